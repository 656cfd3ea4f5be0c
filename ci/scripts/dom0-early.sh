#!/bin/busybox sh
# First process of dom0: finds the root disk and hands over to dom0-init.sh.
/bin/busybox mkdir -p /proc /sys /dev /run /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmpfs /run
load() {
    while read -r module; do
        /bin/busybox insmod "$module" || echo "lab: $module did not load"
    done
}
load </modules.order
# QEMU has one disk, Bochs two others, which Linux finds in any order.
[ -b /dev/vda ] || load </modules.later
tries=0
until [ -x /root/bin/bash ]; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || exec /bin/busybox sh
    for disk in /dev/vda /dev/sda /dev/sdb; do
        [ -b $disk ] && /bin/busybox mount -t ext4 $disk /root || continue
        [ -x /root/bin/bash ] && break
        /bin/busybox umount /root
    done
    /bin/busybox sleep 0.1
done
/bin/busybox cp /dom0-init.sh /run/lab-init
/bin/busybox cp /lab-xen /run/lab-xen
for dir in proc sys dev run; do
    /bin/busybox mkdir -p /root/$dir
    /bin/busybox mount --move /$dir /root/$dir
done
exec /bin/busybox switch_root /root /run/lab-init
