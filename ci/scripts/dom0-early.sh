#!/bin/busybox sh
# First process of dom0: finds the root disk and hands over to dom0-init.sh.
/bin/busybox mkdir -p /proc /sys /dev /run /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmpfs /run
while read -r module; do
    /bin/busybox insmod "$module" || echo "lab: $module did not load"
done </modules.order
tries=0
until [ -b /dev/vda ] || [ $tries -ge 100 ]; do
    tries=$((tries + 1))
    /bin/busybox sleep 0.1
done
/bin/busybox mount -t ext4 /dev/vda /root || exec /bin/busybox sh
/bin/busybox cp /dom0-init.sh /run/lab-init
/bin/busybox cp /lab-xen /run/lab-xen
for dir in proc sys dev run; do
    /bin/busybox mkdir -p /root/$dir
    /bin/busybox mount --move /$dir /root/$dir
done
exec /bin/busybox switch_root /root /run/lab-init
