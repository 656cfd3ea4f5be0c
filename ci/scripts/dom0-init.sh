#!/bin/bash
# Init of dom0: starts the Xen tool stack, then serves the lab's commands.
#
# The lab's folder is at /lab. Under QEMU it is shared with the lab (9p), and dom0 serves commands: one is a
# script /lab/cmd/ID.sh; the line "ID" on ttyS1 starts it, its output goes to ID.out and ID.err, and ID.rc
# holds a line with its exit status last of all. Under Bochs it is a disk with one script, once.sh, whose output goes to
# ttyS1, and its exit status after it.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C TERM=linux
say() { echo "lab: $*"; }

mkdir -p /dev/pts /dev/shm /lab /guest
mount -t devpts devpts /dev/pts
# The tool stack's block script asks stat(1) for /dev/stdin to see whether it holds its lock, and tries
# for ever where there is none.
ln -sfn /proc/self/fd /dev/fd
for fd in 0:stdin 1:stdout 2:stderr; do
    ln -sfn "fd/${fd%:*}" "/dev/${fd#*:}"
done
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
for module in 9pnet_virtio 9p virtio_console xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs xen-blkback loop; do
    modprobe "$module" 2>/dev/null || say "module $module is missing"
done
if [ -b /dev/vda ]; then
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,access=any lab /lab || say "no /lab"
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro,cache=loose guest /guest || say "no /guest"
else
    for disk in /dev/sda /dev/sdb; do
        mount -t ext4 $disk /lab
        [ -f /lab/once.sh ] && break
        umount /lab
    done
fi
mount -t xenfs xenfs /proc/xen
hostname dom0
ln -sf /run/lab-xen /usr/local/bin/lab-xen

mkdir -p /lab/cmd /lab/console /lab/xl /run/xen /run/lock /run/xenstored /var/lib/xen /var/lib/xenstored
rm -rf /var/log/xen && ln -s /lab/xl /var/log/xen
dmesg --follow >>/lab/dom0.log 2>/dev/null &

xen_bin=$(echo /usr/lib/xen-[0-9]*/bin)
export PATH=$xen_bin:$PATH
# Which of the two programs keeps xenstore stands on the kernel's command line.
xenstored=$(tr ' ' '\n' </proc/cmdline | sed -n 's/^lab\.xenstored=//p')
"$xen_bin/$xenstored" --pid-file /run/xen/xenstored.pid || say "$xenstored failed"
until xenstore-exists / 2>/dev/null; do sleep 0.1; done
"$xen_bin/xen-init-dom0" || say "xen-init-dom0 failed"
"$xen_bin/xenconsoled" --log=all --log-dir=/lab/console --pid-file=/run/xen/xenconsoled.pid || say "xenconsoled failed"

# No program is started but those of the script: each costs an emulated processor a twentieth of a second.
run() {
    cd /tmp
    (. "/lab/cmd/$1.sh") </dev/null >"/lab/cmd/$1.out" 2>"/lab/cmd/$1.err"
    echo $? >"/lab/cmd/$1.rc"
}

stty raw -echo -F /dev/ttyS1
if [ -f /lab/once.sh ]; then
    cd /tmp
    bash /lab/once.sh </dev/null >/dev/ttyS1 2>&1
    echo "@@once $?" >/dev/ttyS1
    sleep infinity
fi
# An interactive shell for `cargo lab shell`, on the virtio console.
(
    while [ -c /dev/hvc1 ]; do
        stty sane -F /dev/hvc1
        setsid -c bash -i </dev/hvc1 >/dev/hvc1 2>&1
        sleep 0.2
    done
) &

exec 3</dev/ttyS1
uname -r >/lab/ready.tmp && mv /lab/ready.tmp /lab/ready
while true; do
    if ! read -r id <&3; then
        sleep 0.2
        continue
    fi
    [ -f "/lab/cmd/$id.sh" ] || continue
    [ -e "/lab/cmd/$id.started" ] && continue
    : >"/lab/cmd/$id.started"
    run "$id" &
done
