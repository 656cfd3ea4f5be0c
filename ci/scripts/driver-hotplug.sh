#!/bin/busybox sh
# What `xl devd` runs for a disk in a Linux driver domain: tells xen-blkback which device to serve.
[ "$1" = add ] || exit 0
device=$(xenstore-read "$XENBUS_PATH/params")
xenstore-write "$XENBUS_PATH/physical-device" "$(stat -L -c %t:%T "$device")"
xenstore-write "$XENBUS_PATH/hotplug-status" connected
