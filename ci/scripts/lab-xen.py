#!/usr/bin/python3 -IS
"""What the lab asks Xen itself, inside dom0, more exactly or more quickly than xl answers.

lab-xen cpu-khz                 the processors' clock
lab-xen cpu-time DOMID          nanoseconds of processor time used
lab-xen unpause-until DOMID LOG START TEXT SECONDS
                                lets a paused domain run; prints the microseconds until TEXT is in LOG
                                behind its byte START
lab-xen attach DOMID DEVICE DISK
                                xl block-attach; prints the microseconds until the backend is connected
lab-xen load FIFO               says "begun", waits until somebody has written to FIFO, and removes it; the
                                nanoseconds in between, then for each domain its number and the nanoseconds
                                of processor time it used in them
lab-xen contend STOP DOMID      until the file STOP is there, writes the states of all disks of a driver
                                domain, as they are, in transactions that conflict with everybody else's;
                                prints how many were committed and how many were not
"""
# Each module costs an emulated processor up to a tenth of a second: those that are not always needed come later.
import os
import sys
import time

XEN = next(name for name in os.listdir("/usr/lib") if name.startswith("xen-") and name[4].isdigit())
sys.path.insert(0, f"/usr/lib/{XEN}/lib/python")
import xen.lowlevel.xc  # noqa: E402

xc = xen.lowlevel.xc.xc()


def xenstore():
    import xen.lowlevel.xs

    return xen.lowlevel.xs.xs()


def cpu_time(domid):
    (info,) = xc.domain_getinfo(domid, 1)
    if info["domid"] != domid:
        sys.exit(f"there is no domain {domid}")
    return info["cpu_time"]


def unpause_until(domid, log, start, text, seconds):
    begin = time.monotonic()
    xc.domain_unpause(domid)
    seen = b""
    while time.monotonic() < begin + seconds:
        try:
            with open(log, "rb", buffering=0) as file:
                file.seek(start + len(seen))
                seen += file.read()
        except FileNotFoundError:
            pass
        if text.encode() in seen:
            print(int((time.monotonic() - begin) * 1e6))
            return
        time.sleep(0.0005)
    sys.exit(f"not within {seconds} s")


def attach(domid, device, disk):
    import subprocess

    begin = time.monotonic()
    command = ["xl", "block-attach", str(domid), disk]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=50)
    if done.returncode != 0:
        sys.exit(f"xl block-attach: status {done.returncode}\n{done.stdout}")
    xs = xenstore()
    frontend = f"/local/domain/{domid}/device/vbd/{device}"
    state = None
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        backend = xs.read("", f"{frontend}/backend")
        state = backend and xs.read("", f"{backend.decode()}/state")
        if state == b"4":
            print(int((time.monotonic() - begin) * 1e6))
            return
        time.sleep(0.002)
    sys.exit(f"the backend's state is {state}")


def all_cpu_times():
    times = {info["domid"]: info["cpu_time"] for info in xc.domain_getinfo(0, 1000)}
    return time.monotonic_ns(), times


def load(fifo):
    start, before = all_cpu_times()
    print("begun", flush=True)
    with open(fifo) as file:
        file.read()
    end, after = all_cpu_times()
    print(end - start)
    for domid in sorted(before.keys() & after.keys()):
        print(domid, after[domid] - before[domid])
    sys.stdout.flush()
    os.unlink(fifo)


def states(xs, domid):
    root = f"/local/domain/{domid}/backend/vbd"
    for guest in xs.ls("", root) or []:
        for device in xs.ls("", f"{root}/{guest}") or []:
            yield f"{root}/{guest}/{device}/state"
            yield f"/local/domain/{guest}/device/vbd/{device}/state"


def contend(stop, domid):
    xs = xenstore()
    committed = conflicts = 0
    while not os.path.exists(stop):
        nodes = list(states(xs, domid))
        transaction = xs.transaction_start()
        for node in nodes:
            # What is not there any more must not be made by writing it.
            value = xs.read(transaction, node)
            if value is not None:
                xs.write(transaction, node, value)
        time.sleep(0.002)
        if xs.transaction_end(transaction):
            committed += 1
        else:
            conflicts += 1
    print(committed, conflicts)


match sys.argv[1:]:
    case ["cpu-khz"]:
        print(xc.physinfo()["cpu_khz"])
    case ["cpu-time", domid]:
        print(cpu_time(int(domid)))
    case ["unpause-until", domid, log, start, text, seconds]:
        unpause_until(int(domid), log, int(start), text, float(seconds))
    case ["attach", domid, device, disk]:
        attach(int(domid), int(device), disk)
    case ["load", fifo]:
        load(fifo)
    case ["contend", stop, domid]:
        contend(stop, int(domid))
    case _:
        sys.exit(__doc__)
