#!/bin/busybox sh
# Init of a Linux guest: loads the block frontend. console-commands.sh follows.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ LANG=C
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt /run
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
mount -t tmpfs tmpfs /tmp
# `MODULE.OPTION=VALUE` on the kernel's command line reaches the module.
options() {
    for word in $(cat /proc/cmdline); do
        case $word in "$1".*) echo "${word#*.}" ;; esac
    done
}
while read -r module; do
    name=${module##*/}
    name=${name%.ko}
    insmod "$module" $(options "${name//-/_}") || echo "lab: $module did not load"
done </modules.order
dmesg -n 1
