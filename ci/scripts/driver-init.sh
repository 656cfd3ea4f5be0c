#!/bin/busybox sh
# Init of a Linux driver domain: loads the block backend, the block frontend and a RAM disk, where it has a device passed
# through that device's drivers, and where it is on a network what reaches disks there; then runs the tool stack's part.
# console-commands.sh follows.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ LANG=C
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /var/lib/xen /var/log/xen /var/lock
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
ln -s /run /var/run
mkdir -p /run/xen
# `MODULE.OPTION=VALUE` on the kernel's command line reaches the module.
options() {
    for word in $(cat /proc/cmdline); do
        case $word in "$1".*) echo "${word#*.}" ;; esac
    done
}
load() {
    name=${1##*/}
    name=${name%.ko}
    insmod "$1" $(options "${name//-/_}") || echo "lab: $1 did not load"
}
while read -r module; do load "$module"; done </modules.order
if grep -qw lab.device /proc/cmdline; then
    while read -r module; do load "$module"; done </modules.later
fi
if grep -qw lab.network /proc/cmdline; then
    while read -r module; do load "$module"; done </modules.network
fi
mount -t xenfs xenfs /proc/xen
dmesg -n 1
if xl devd; then
    echo "ready for attach"
else
    echo "lab: xl devd failed"
    cat /var/log/xen/*
fi
