//! Starting again in place after a crash: what the unikernel does for it, and crashes on purpose that try it.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
#[cfg(any(feature = "nbd", feature = "pci", feature = "vbd"))]
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_blkback::recovery::KeptMemory;
use bulkhead_blkback::upgrade::{ERROR_NODE, Runtime, answer_upgrades, forget, serves};
use bulkhead_blkback::{Backend, Services};
use bulkhead_executor::{Executor, Handle, VcpuSpawner};
#[cfg(any(feature = "nbd", feature = "pci", feature = "vbd"))]
use bulkhead_grant::TableOnDemand;
use bulkhead_images::{Catalog, ImageMemory, RamdiskKind};
use bulkhead_kernel::command_line::value;
use bulkhead_kernel::recovery::upgrade::{self, Before, version};
use bulkhead_kernel::recovery::{region, restart, trial};
use bulkhead_kernel::{Hypercalls, Machine, watchdog};
use bulkhead_upgrade::request::InjectedFault;
use bulkhead_upgrade::{Candidate, Running};
use bulkhead_xen::{PAGE_SIZE, VcpuId};
use bulkhead_xenbus::retry::{persist, persist_write};
use bulkhead_xenbus::{CommandNode, excerpt};
use bulkhead_xenstore_client::{Client, Error, Resumable, Ring, is_within_request};
use core::cell::Cell;
use core::convert::Infallible;
use core::future::pending;
use core::hint::black_box;
use core::sync::atomic::Ordering;
use core::time::Duration;

/// The key on the command line that lets a crash be followed by a restart.
const RECOVER: &str = "recover";

/// The key that lets the toolstack crash the domain on purpose.
const TEST_CRASH: &str = "test-crash";

/// These keys.
pub const KEYS: [&str; 2] = [RECOVER, TEST_CRASH];

/// The number of restarts since the domain was built.
const RESTARTS_NODE: &str = "data/restarts";

/// The report of the last crash.
const REPORT_NODE: &str = "data/last-crash";

/// What fits into a node by xenstored's default limit.
const LONGEST_REPORT: usize = 1900;

/// The time within which a new version has to serve.
const SERVES_WITHIN: Duration = Duration::from_secs(10);

/// The time between two looks whether a version is still on trial.
const TRIAL_LOOK: Duration = Duration::from_secs(1);

/// The time for which a version serves that was asked to fail late.
const FAILS_AFTER: Duration = Duration::from_secs(1);

/// The node by which the toolstack crashes the domain, and its answer.
const CRASH_NODE: &str = "data/crash";

/// The time between the first two attempts to end what a boot before this one has granted; it doubles each time.
#[cfg(any(feature = "nbd", feature = "pci", feature = "vbd"))]
const LEFT_PAUSE: Duration = Duration::from_millis(500);
/// The longest such time: a backend that goes on with its disk may keep pages for good.
#[cfg(any(feature = "nbd", feature = "pci", feature = "vbd"))]
const LONGEST_LEFT_PAUSE: Duration = Duration::from_secs(16);

/// The value of that key that also lets crashes follow each other without a limit.
const OFTEN: &str = "often";

/// Returns whether the command line allows crashes on purpose, and without a limit.
fn test_crashes(line: &str) -> (bool, bool) {
    match value(line, TEST_CRASH) {
        Some(OFTEN) => (true, true),
        allowed => (allowed == Some("on"), false),
    }
}

/// Returns whether crashes are to be followed by restarts: by default, they are.
fn recovers(line: &str) -> bool {
    value(line, RECOVER) != Some("off")
}

/// Returns whether the command line asks for restarts by name. That decides where they cost something else.
fn insists(line: &str) -> bool {
    value(line, RECOVER) == Some("on")
}

/// Has vCPUs watch each other closely, or a timer watch the only one, where the command line asks for restarts: that costs
/// several vCPUs two wake-ups a second each. To be called on the first, before any of them serves.
pub fn watch_closely(machine: &Machine) {
    if insists(machine.command_line) {
        match machine.vcpus {
            1 => watchdog::watch_alone(),
            _ => watchdog::watch_closely(),
        }
    }
}

/// Connects to xenstored, with which an earlier boot of this domain may have been connected. Returns `None` if that
/// connection cannot be gone on with; the log says why.
pub fn connect(executor: &mut Executor<Hypercalls>, machine: &Machine) -> Option<Client> {
    let handle = executor.handle();
    let (hypervisor, store) = (machine.hypervisor, machine.store);
    let earlier = machine.restarted.as_ref().map_or(0, |last| last.boots);
    // SAFETY: the page is the domain's xenstore ring, and nothing else in this domain uses it.
    let ring = unsafe {
        match earlier {
            0 => Ring::new(hypervisor, store),
            _ => Ring::resumed(hypervisor, store),
        }
    };
    let ring = match Resumable::new(ring, region::words()) {
        Ok(ring) => ring,
        Err(error) => {
            log::error!("xenstore cannot be used after the restart: {error}");
            return None;
        }
    };
    let client = Client::resume(&handle, ring, store.port, earlier);
    if let Some(last) = &machine.restarted {
        let number = last.number;
        match last.before {
            Before::Crashed => {
                log::error!("started again in place, restart {number}, after this:");
            }
            Before::Version(before, _) => {
                log::info!("version {} has taken over from {before}", version());
            }
            Before::Failed(failed) => {
                log::error!("back from version {failed}, after this:");
            }
        }
        let lines = last.report.lines().filter(|line| !line.is_empty());
        lines.for_each(|line| log::error!("| {line}"));
        forget_watches(executor, &handle, &client);
    }
    Some(client)
}

/// Has xenstored forget the watches and transactions of the boot before.
fn forget_watches(
    executor: &mut Executor<Hypercalls>,
    handle: &Handle<Hypercalls>,
    client: &Client,
) {
    let done = Rc::new(Cell::new(false));
    let (client, set) = (client.clone(), done.clone());
    handle.spawn(async move {
        if let Err(error) = client.reset_watches().await {
            log::warn!("watches of the boot before stay: {error}");
        }
        set.set(true);
    });
    executor.run_until(|| done.get());
}

/// Shows what became of crashes.
pub fn follow(machine: &Machine, handle: &Handle<Hypercalls>, store: &Client) {
    if let Some(last) = &machine.restarted
        && last.before == Before::Crashed
    {
        let (number, mut report) = (format!("{}", last.number), last.report.clone());
        // ASCII, so that it can be cut anywhere.
        report.truncate(LONGEST_REPORT);
        let (nodes, waiting) = (store.clone(), handle.clone());
        handle.spawn(async move {
            // The number last: whoever sees it finds the report.
            for (node, text) in [(REPORT_NODE, &report), (RESTARTS_NODE, &number)] {
                if let Err(error) = persist_write(&waiting, &nodes, node, text).await {
                    log::error!("{node} cannot be written: {error}");
                }
            }
        });
    }
}

/// Crashes on purpose where the command line allows it.
pub fn crash_on_request(
    machine: &Machine,
    handle: &Handle<Hypercalls>,
    store: &Client,
    vcpus: &[VcpuSpawner<Hypercalls>],
) {
    let (allowed, often) = test_crashes(machine.command_line);
    if often {
        log::warn!("{TEST_CRASH}={OFTEN}: no number of crashes ends this domain");
        restart::lift_limit();
    }
    if allowed {
        log::warn!("{TEST_CRASH}: whoever may write {CRASH_NODE} can crash this domain");
        let (store, waiting, vcpus) = (store.clone(), handle.clone(), vcpus.to_vec());
        handle.spawn(async move {
            let following = async || follow_crashes(&store, &vcpus).await;
            let Err(error) = persist(&waiting, CRASH_NODE, following).await;
            log::error!("{CRASH_NODE} cannot be followed any more: {error}");
        });
    } else if let Some(other) =
        value(machine.command_line, TEST_CRASH).filter(|&text| text != "off")
    {
        log::error!("command line: {TEST_CRASH}={other}: expected on, {OFTEN} or off; off is used");
    }
}

/// The ways to crash: their names, and what does it.
const CRASHES: [(&str, fn()); 6] = [
    ("panic", || panic!("as {CRASH_NODE} asked")),
    ("null", || {
        // SAFETY: meant to crash: nothing is mapped there.
        unsafe { black_box(black_box(8) as *const u32).read_volatile() };
    }),
    ("stack", || {
        black_box(overflow(1));
    }),
    ("heap", || {
        let mut all = Vec::new();
        loop {
            all.push(black_box(vec![1_u8; 64 << 10]));
        }
    }),
    ("hang", || {
        loop {
            core::hint::spin_loop();
        }
    }),
    ("page-table", restart::damage_page_tables),
];

/// Crashes the domain in the way that the node names, on the vCPU whose number may follow.
async fn follow_crashes(
    store: &Client,
    vcpus: &[VcpuSpawner<Hypercalls>],
) -> Result<Infallible, Error> {
    let mut requests = CommandNode::watch(store, CRASH_NODE).await?;
    loop {
        let text = requests.next().await?;
        let (name, vcpu) = text.split_once(' ').unwrap_or((&text, "0"));
        let crash = CRASHES.iter().find(|(known, _)| *known == name);
        let vcpu = vcpu.parse().ok().map(VcpuId);
        let vcpu = vcpus.iter().find(|one| Some(one.vcpu()) == vcpu);
        match (crash, vcpu) {
            (Some((_, crash)), Some(vcpu)) => vcpu.send(|_| crash()),
            _ => log::error!(
                "{CRASH_NODE}: {}: expected panic, null, stack, heap, hang or page-table, and the number of a vCPU",
                excerpt(&text)
            ),
        }
    }
}

/// Calls itself without end.
#[allow(unconditional_recursion, reason = "meant to crash")]
fn overflow(depth: u64) -> u64 {
    let room = black_box([depth; 128]);
    overflow(depth + 1) + room[depth as usize % 128]
}

/// Has a new version fail if it does not serve in time: the one before gets the domain back then. To be called first.
pub fn prove(executor: &mut Executor<Hypercalls>, machine: &Machine) {
    let Some(Before::Version(before, fault)) = machine.restarted.as_ref().map(|last| last.before)
    else {
        return;
    };
    if InjectedFault::of(fault) == InjectedFault::Panic {
        panic!("version {} was asked to panic", version());
    }
    let handle = executor.handle();
    executor.handle().spawn(async move {
        handle.sleep(SERVES_WITHIN).await;
        if trial::is_trying() {
            let seconds = SERVES_WITHIN.as_secs();
            panic!(
                "version {} does not serve {seconds} s after it took over from {before}",
                version()
            );
        }
    });
    if InjectedFault::of(fault) == InjectedFault::Wait {
        executor.run_until(|| false);
    }
}

/// Notes that this version serves, once the disks that the boot before has served are served again, as far as their stores are
/// there, and carries out requests for the next version. `vcpu` is the last one.
pub async fn follow_upgrades(
    backend: &Backend<Hypercalls>,
    vcpu: VcpuSpawner<Hypercalls>,
    line: &'static str,
    last: Option<(Before, String)>,
) {
    let services = &backend.services;
    serves(services).await;
    if let Some((Before::Version(_, fault), _)) = &last
        && InjectedFault::of(*fault) == InjectedFault::Late
    {
        // Guests are served for a moment.
        services.handle.sleep(FAILS_AFTER).await;
        vcpu.send(|_| panic!("version {} was asked to panic late", version()));
        pending::<()>().await;
    }
    trial::settle();
    let told = match &last {
        Some((Before::Version(before, _), _)) => {
            log::info!("version {} serves: {before} is forgotten", version());
            let forgetting = async || forget(&services.store).await;
            persist(&services.handle, ERROR_NODE, forgetting).await
        }
        Some((Before::Failed(failed), report)) => {
            // ASCII, so that it can be cut anywhere.
            let mut reason = format!(
                "version {failed} has failed, and {} serves again: {}",
                version(),
                report.trim()
            );
            reason.truncate(LONGEST_REPORT);
            bulkhead_blkback::upgrade::report(services, &reason).await
        }
        _ => Ok(()),
    };
    if let Err(error) = told {
        log::error!("{ERROR_NODE}: {error}");
    }
    let Err(error) = answer_upgrades(services, &Upgrades(line)).await;
    log::error!("upgrades cannot be asked for any more: {error}");
}

/// Waits until no failure leads back to the version before, which is to find all of its memory.
pub async fn trial_is_over(handle: &Handle<Hypercalls>) {
    while trial::is_trying() {
        handle.sleep(TRIAL_LOOK).await;
    }
}

/// The runtime, as far as upgrades are concerned, with the command line.
struct Upgrades(&'static str);

impl Runtime for Upgrades {
    fn obstacle(&self) -> Option<&'static str> {
        upgrade::obstacle()
    }

    fn running(&self) -> Running {
        upgrade::running()
    }

    fn allows_faults(&self) -> bool {
        test_crashes(self.0).0
    }

    fn take_over(&self, candidate: &Candidate<'_>, fault: InjectedFault) -> &'static str {
        if is_within_request(region::words()) {
            return "a request to xenstored is under way; try again";
        }
        upgrade::take_over(candidate, fault as u32)
    }
}

/// Leaves the first vCPU alone where the command line asks for restarts that could not have others.
pub fn limit_vcpus(machine: &Machine, vcpus: &mut Vec<VcpuId>) {
    let wanted = insists(machine.command_line);
    if vcpus.len() > 1 && wanted && !restart::can_have_several_vcpus() {
        log::warn!(
            "{RECOVER}=on: one vCPU is used, {} are not: the domain has no x2APIC",
            vcpus.len() - 1
        );
        vcpus.truncate(1);
    }
}

/// What the region says of the ramdisk. Any other number is that of a domain that has not looked yet.
const ARCHIVE: u32 = u32::from_le_bytes(*b"file");
const WHOLE: u32 = u32::from_le_bytes(*b"disk");

/// Returns the images in the ramdisk, which stays what the first boot has found: a guest may have written its first bytes
/// since then.
pub fn catalog(mut ramdisk: ImageMemory) -> Catalog {
    let number = region::number();
    let kind = match number.load(Ordering::Relaxed) {
        ARCHIVE => RamdiskKind::Archive,
        WHOLE => RamdiskKind::Whole,
        _ => match RamdiskKind::of(&mut ramdisk) {
            Ok(kind) => kind,
            Err(_) => return Catalog::from_module(ramdisk),
        },
    };
    let found = match kind {
        RamdiskKind::Archive => ARCHIVE,
        RamdiskKind::Whole => WHOLE,
    };
    number.store(found, Ordering::Relaxed);
    Catalog::of_kind(kind, ramdisk)
}

/// Has the files that are taken out of the ramdisk found by the boot that follows a crash, too, unless the command line
/// forbids restarts.
pub fn keep_files(catalog: &mut Catalog, line: &str) {
    if recovers(line) {
        catalog.keep_files();
    }
}

/// Returns the memory that survives a crash, with what the boot before has left there, unless the command line forbids it:
/// what is kept of connected disks, and of connections.
pub fn surviving(line: &str) -> Option<&'static mut KeptMemory> {
    const {
        assert!(
            size_of::<KeptMemory>() <= region::PAGES_BYTES && align_of::<KeptMemory>() <= PAGE_SIZE
        )
    };
    let pages = recovers(line).then(region::take_pages)??;
    // SAFETY: pages of the image, large enough as just asserted, that nothing else uses, and numbers, for all of
    // which any value is valid.
    Some(unsafe { pages.cast().as_mut() })
}

/// Has nothing kept of disks that connect when a crash would end the domain anyway.
pub fn keep_nothing_in_vain(services: &Services<Hypercalls>) {
    services
        .kept_queues
        .unless(|| restart::obstacle().is_some());
}

/// Returns the domain's grant table. Grants that a boot before this one has left there end as soon as the other domains let
/// go of their pages.
#[cfg(any(feature = "nbd", feature = "pci", feature = "vbd"))]
pub fn grants(machine: &Machine, handle: &Handle<Hypercalls>) -> TableOnDemand<Hypercalls> {
    let hypervisor = machine.hypervisor;
    if machine.restarted.is_none() {
        return TableOnDemand::new(hypervisor);
    }
    let grants = TableOnDemand::left(hypervisor, Arc::new(hypervisor));
    let (ending, waiting) = (grants.clone(), handle.clone());
    handle.spawn(async move {
        // Whoever publishes new rings waits for that, too; but there may be none.
        let mut pause = LEFT_PAUSE;
        while ending.get().is_some_and(|table| table.end_left(None) > 0) {
            waiting.sleep(pause).await;
            pause = (pause * 2).min(LONGEST_LEFT_PAUSE);
        }
    });
    grants
}

/// Lets crashes be followed by restarts from now on, unless the command line forbids it.
pub fn enable(line: &'static str) {
    match value(line, RECOVER) {
        Some("off") => return log::info!("{RECOVER}=off: a crash ends this domain"),
        None | Some("on") => {}
        Some(other) => {
            log::error!("command line: {RECOVER}={other}: expected on or off; on is used");
        }
    }
    match restart::enable() {
        Ok(()) => log::info!("after a crash, this domain starts again in place"),
        Err(obstacle) if insists(line) => {
            log::error!("{RECOVER}=on: a crash ends this domain: {obstacle}");
        }
        Err(obstacle) => log::info!("a crash ends this domain: {obstacle}"),
    }
}

/// Has the crash that follows end the domain: the toolstack asked for it, and wants to see it.
pub fn disable() {
    restart::disable();
}
