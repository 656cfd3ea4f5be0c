//! The unikernel: Bulkhead as `xl create` boots it.

#![no_std]
#![no_main]

extern crate alloc;

mod keys;
#[cfg(feature = "nbd")]
mod network;
#[cfg(feature = "recover")]
mod recovery;
#[cfg(feature = "nbd")]
#[cfg_attr(not(feature = "tls"), path = "without_tls.rs")]
mod tls;

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_blkback::Backend;
use bulkhead_blkback::availability::{online, refuse_changes};
use bulkhead_blkback::control::{ShutdownRequest, crash_requested, shutdown_requested};
use bulkhead_blkback::engine::QueueOptions;
use bulkhead_blkback::memory_target::follow_memory_target;
use bulkhead_blkback::operator::{OperatorCommand, answer_keys, answer_requests};
use bulkhead_blkback::vcpus::learn_wakeup_latency;
#[cfg(feature = "vbd")]
use bulkhead_blkfront::{Frontends, vbd_store};
#[cfg(feature = "recover")]
use bulkhead_executor::Flag;
#[cfg(any(feature = "pci", feature = "vbd"))]
use bulkhead_executor::Handle;
use bulkhead_executor::{Executor, VcpuSpawner};
use bulkhead_grant::Region;
#[cfg(any(feature = "nbd", feature = "pci", feature = "vbd"))]
use bulkhead_grant::TableOnDemand;
#[cfg(feature = "vbd")]
use bulkhead_images::Store;
use bulkhead_images::{Catalog, ImageMemory, Stores};
#[cfg(feature = "pci")]
use bulkhead_kernel::GuestType;
use bulkhead_kernel::command_line::{unknown, value};
use bulkhead_kernel::logger;
use bulkhead_kernel::memory::beyond_reserve;
use bulkhead_kernel::{Hypercalls, Machine, Module, ShutdownReason, watchdog};
#[cfg(feature = "nbd")]
use bulkhead_net::Traces;
#[cfg(feature = "nvme")]
use bulkhead_nvme::{Controllers, NvmeDriver, nvme_store};
#[cfg(feature = "virtio")]
use bulkhead_virtio::{Devices, VirtioDriver, virtio_store};
use bulkhead_xen::{Hypervisor, VcpuId};
use bulkhead_xenbus::retry::persist;
use bulkhead_xenstore_client::Client;
#[cfg(not(feature = "recover"))]
use bulkhead_xenstore_client::Ring;
use core::cell::{Cell, RefCell};
use core::mem::take;
use core::ops::RangeInclusive;
use keys::KEYS;
#[cfg(feature = "nbd")]
use network::Network;

bulkhead_kernel::entry!(main);

fn main(mut machine: Machine) -> ShutdownReason {
    let hypervisor = machine.hypervisor;
    let started = machine.started;
    let options = options(machine.command_line);
    start_watchdog(machine.command_line);
    #[cfg(feature = "recover")]
    recovery::watch_closely(&machine);
    #[allow(
        unused_mut,
        reason = "only TLS takes files out of the ramdisk, or leaves them there"
    )]
    let mut catalog = catalog(take(&mut machine.modules).into_iter().next());
    #[cfg(feature = "recover")]
    recovery::keep_files(&mut catalog, machine.command_line);
    #[cfg(feature = "nbd")]
    let tls = tls::tls(machine.command_line, &mut catalog);
    let catalog = with_memory(catalog, hypervisor).with_discard(options.discard);
    let first = VcpuSpawner::new(hypervisor, hypervisor.vcpu());
    let mut executor = executor(&first, hypervisor);
    let handle = executor.handle();
    #[cfg(feature = "recover")]
    recovery::prove(&mut executor, &machine);
    #[cfg(feature = "recover")]
    let Some(store) = recovery::connect(&mut executor, &machine) else {
        return ShutdownReason::Crash;
    };
    #[cfg(not(feature = "recover"))]
    let store = {
        // SAFETY: the page is the domain's xenstore ring, and nothing else in this domain uses it.
        let ring = unsafe { Ring::new(hypervisor, machine.store) };
        Client::start(&handle, ring)
    };
    #[cfg(feature = "recover")]
    recovery::follow(&machine, &handle, &store);
    let (vcpus, running) = start_vcpus(&machine, &mut executor, first, &store);
    #[cfg(feature = "recover")]
    recovery::crash_on_request(&machine, &handle, &store, &vcpus);
    #[cfg(feature = "recover")]
    let last_vcpu = vcpus.last().expect("there is always a vCPU").clone();
    let Some(region) = Region::new(hypervisor) else {
        log::error!("the address space for foreign pages has an owner already");
        return ShutdownReason::Crash;
    };
    #[allow(unused_mut, reason = "without features there are the images alone")]
    let mut stores = Stores::new(catalog);
    #[cfg(any(feature = "nbd", feature = "pci", feature = "vbd"))]
    let grants = {
        #[cfg(feature = "recover")]
        let grants = recovery::grants(&machine, &handle);
        #[cfg(not(feature = "recover"))]
        let grants = TableOnDemand::new(hypervisor);
        grants
    };
    #[cfg(all(feature = "recover", feature = "pci"))]
    let of_devices = grants.noting(bulkhead_kernel::recovery::restart::note_device);
    #[cfg(all(not(feature = "recover"), feature = "pci"))]
    let of_devices = grants.clone();
    #[cfg(feature = "nvme")]
    let mut controllers = None;
    #[cfg(feature = "virtio")]
    let mut devices = None;
    #[cfg(feature = "pci")]
    if machine.guest_type == GuestType::Pv {
        #[allow(unused_mut, reason = "without features there are no drivers")]
        let mut functions = own_functions(&handle, &store, of_devices, hypervisor);
        #[cfg(feature = "nvme")]
        {
            let all = own_controllers(&mut functions, &handle, &vcpus, &machine, options.hold);
            stores.register(Box::new(nvme_store(all.clone())));
            controllers = Some(all);
        }
        #[cfg(feature = "virtio")]
        {
            let all = own_devices(&mut functions, &handle, &vcpus, &machine);
            stores.register(Box::new(virtio_store(all.clone())));
            devices = Some(all);
        }
        handle.spawn(async move {
            let Err(error) = functions.follow().await;
            log::error!("PCI functions of our own cannot be followed any more: {error}");
        });
    }
    #[cfg(feature = "recover")]
    #[allow(unused_variables, reason = "only a network has connections")]
    let (places, connections) = recovery::surviving(machine.command_line)
        .map(|memory| (&mut memory.places, &memory.connections))
        .unzip();
    #[cfg(feature = "nbd")]
    let network = {
        let vcpus = vcpus.len();
        #[cfg(feature = "recover")]
        let traces = connections.map(|all| Traces::new(all)).unwrap_or_default();
        #[cfg(not(feature = "recover"))]
        let traces = Traces::default();
        Network::start(
            &machine,
            &handle,
            &store,
            vcpus,
            (grants.clone(), traces),
            tls,
            &mut stores,
        )
    };
    #[cfg(feature = "vbd")]
    stores.register(own_disks(&handle, &store, &vcpus, grants, hypervisor));
    let backend = Backend::with(
        vcpus,
        handle.clone(),
        store.clone(),
        region,
        stores,
        options,
    );
    backend.services.admission.watch_memory(beyond_reserve);
    #[cfg(feature = "recover")]
    if let Some(places) = places {
        recovery::keep_nothing_in_vain(&backend.services);
        backend.services.kept_queues.start(places);
    }
    let end = Rc::new(Cell::new(None));

    let ended = end.clone();
    let serving = backend.clone();
    #[cfg(feature = "recover")]
    let (line, serves) = (machine.command_line, Rc::new(Flag::default()));
    #[cfg(feature = "recover")]
    {
        let last = machine
            .restarted
            .take()
            .map(|last| (last.before, last.report));
        let (backend, serves) = (backend.clone(), serves.clone());
        handle.spawn(async move {
            serves.wait().await;
            recovery::follow_upgrades(&backend, last_vcpu, line, last).await;
        });
    }
    handle.spawn(async move {
        let ready = || {
            #[cfg(feature = "recover")]
            {
                recovery::enable(line);
                serves.set();
            }
            logger::never_wait();
            let took = hypervisor.now().since(started);
            log::info!(
                "ready for attach, {}.{:03} ms after the start",
                took.as_micros() as u64 / 1000,
                took.subsec_micros() % 1000
            );
        };
        let Err(_) = serving.serve(ready).await;
        serving.none_connected().await;
        log::error!("no disk is connected, and none will be: the domain ends");
        ended.set(Some(ShutdownReason::Crash));
    });

    if let Some(port) = machine.console {
        let (backend, console) = (backend.clone(), handle.event_channel(port));
        handle.spawn(async move { answer_keys(&backend.services, console, logger::read).await });
    }

    for command in OperatorCommand::ALL {
        let backend = backend.clone();
        handle.spawn(async move {
            let Err(error) = answer_requests(&backend.services, command).await;
            log::error!("requests of the kind {command:?} are not answered any more: {error}");
        });
    }

    if machine.vcpus > 1 {
        let (store, all, following) = (store.clone(), machine.vcpus, handle.clone());
        handle.spawn(async move {
            let refusing = async || refuse_changes(&store, all, &running).await;
            let Err(error) = persist(&following, "changes of the vCPUs", refusing).await;
            log::error!("changes of the vCPUs cannot be seen any more: {error}");
        });
    }
    let (sizing, nodes) = (handle.clone(), store.clone());
    handle.spawn(async move {
        #[cfg(feature = "recover")]
        recovery::trial_is_over(&sizing).await;
        let Err(error) = follow_memory_target(&sizing, &nodes, &hypervisor).await;
        log::error!("memory/target cannot be followed any more: {error}");
    });

    let (crashing, keys) = (handle.clone(), store.clone());
    handle.spawn(async move {
        let waiting = async || crash_requested(&keys).await;
        match persist(&crashing, "sysrq keys", waiting).await {
            Ok(()) => {
                #[cfg(feature = "recover")]
                recovery::disable();
                panic!("the toolstack asked for a crash (xl sysrq)");
            }
            Err(error) => log::error!("sysrq keys cannot be seen: {error}"),
        }
    });

    let ended = end.clone();
    handle.spawn(async move {
        let waiting = async || shutdown_requested(&store).await;
        match persist(&backend.services.handle, "shutdown requests", waiting).await {
            Ok(request) => {
                log::info!("{request:?} requested: closing {} disk(s)", backend.disks());
                backend.close().await;
                #[cfg(feature = "nvme")]
                if let Some(controllers) = controllers {
                    controllers.close().await;
                }
                #[cfg(feature = "virtio")]
                if let Some(devices) = devices {
                    devices.close().await;
                }
                #[cfg(feature = "nbd")]
                network.close().await;
                ended.set(Some(reason(request)));
            }
            Err(error) => log::error!("shutdown requests cannot be seen: {error}"),
        }
    });

    executor.run_until(|| end.get().is_some());
    end.get().unwrap_or(ShutdownReason::Crash)
}

/// Starts the store of the driver domain's own disks, whose task finds them.
#[cfg(feature = "vbd")]
fn own_disks(
    handle: &Handle<Hypercalls>,
    store: &Client,
    vcpus: &[VcpuSpawner<Hypercalls>],
    grants: TableOnDemand<Hypercalls>,
    hypervisor: Hypercalls,
) -> Box<dyn Store> {
    let memory = Arc::new(hypervisor);
    let vcpus = vcpus.to_vec();
    #[cfg(feature = "recover")]
    let kept = bulkhead_kernel::recovery::region::kept_ports();
    #[cfg(not(feature = "recover"))]
    let kept = bulkhead_xen::KeptPorts::NONE;
    let disks = Frontends::new(handle.clone(), store.clone(), vcpus, memory, grants, kept);
    let following = disks.clone();
    handle.spawn(async move {
        let Err(error) = following.follow().await;
        log::error!("disks of our own cannot be followed any more: {error}");
    });
    Box::new(vbd_store(disks))
}

/// Returns the frontend that finds the PCI functions that the domain was given, for their drivers.
#[cfg(feature = "pci")]
fn own_functions(
    handle: &Handle<Hypercalls>,
    store: &Client,
    grants: TableOnDemand<Hypercalls>,
    hypervisor: Hypercalls,
) -> bulkhead_pci::Frontend<Hypercalls> {
    let memory = Arc::new(hypervisor);
    let options = bulkhead_pci::FrontendOptions {
        #[cfg(feature = "recover")]
        keep_port: bulkhead_kernel::recovery::restart::keep_port,
        ..bulkhead_pci::FrontendOptions::default()
    };
    bulkhead_pci::Frontend::new(handle.clone(), store.clone(), memory, grants, options)
}

/// Adds the driver of the NVMe controllers among these functions, and returns the controllers. Their completions are
/// not held back for longer than `hold`.
#[cfg(feature = "nvme")]
fn own_controllers(
    functions: &mut bulkhead_pci::Frontend<Hypercalls>,
    handle: &Handle<Hypercalls>,
    vcpus: &[VcpuSpawner<Hypercalls>],
    machine: &Machine,
    hold: Option<core::time::Duration>,
) -> Rc<Controllers<Hypercalls>> {
    let (vcpus, memory) = (vcpus.to_vec(), Arc::new(machine.hypervisor));
    let controllers = Controllers::new(handle.clone(), vcpus, memory, machine.devices, hold);
    functions.add_driver(Rc::new(NvmeDriver::new(controllers.clone())));
    controllers
}

/// Adds the driver of the virtio-blk devices among these functions, and returns the devices.
#[cfg(feature = "virtio")]
fn own_devices(
    functions: &mut bulkhead_pci::Frontend<Hypercalls>,
    handle: &Handle<Hypercalls>,
    vcpus: &[VcpuSpawner<Hypercalls>],
    machine: &Machine,
) -> Rc<Devices<Hypercalls>> {
    let (vcpus, memory) = (vcpus.to_vec(), Arc::new(machine.hypervisor));
    let devices = Devices::new(handle.clone(), vcpus, memory, machine.devices);
    functions.add_driver(Rc::new(VirtioDriver::new(devices.clone())));
    devices
}

/// Reads the options on the command line. Logs words that it does not recognise.
fn options(line: &'static str) -> QueueOptions {
    for word in unknown(line, &KEYS) {
        let known = KEYS.join(", ");
        log::warn!("command line: {word} is not known; known are log, {known}");
    }
    let mistaken = |mistake| log::error!("command line: {mistake}");
    QueueOptions::parse(|key| value(line, key), mistaken)
}

/// The key on the command line for the seconds after which Xen ends a domain that hangs.
const WATCHDOG: &str = "watchdog";

/// The default: five minutes, because Xen's timer also counts while the domain is paused.
const WATCHDOG_SECONDS: u32 = 300;

/// The values accepted, in seconds. Less would end a domain on a host that is only busy; 0 disables the watchdog.
const WATCHDOG_RANGE: RangeInclusive<u32> = 10..=86_400;

fn start_watchdog(line: &'static str) {
    let seconds = match value(line, WATCHDOG) {
        None => WATCHDOG_SECONDS,
        Some(text) => match text.parse() {
            Ok(seconds) if seconds == 0 || WATCHDOG_RANGE.contains(&seconds) => seconds,
            _ => {
                let (least, most) = (WATCHDOG_RANGE.start(), WATCHDOG_RANGE.end());
                log::error!(
                    "command line: {WATCHDOG}={text}: expected {least} to {most} seconds, or 0 for \
                     none; {WATCHDOG_SECONDS} is used"
                );
                WATCHDOG_SECONDS
            }
        },
    };
    watchdog::start(seconds);
}

/// Returns the executor of a vCPU that serves queues.
fn executor(spawner: &VcpuSpawner<Hypercalls>, hypervisor: Hypercalls) -> Executor<Hypercalls> {
    let executor = Executor::of(spawner, hypervisor);
    let handle = executor.handle();
    handle.spawn(learn_wakeup_latency(handle.clone()));
    if let Some(interval) = watchdog::interval() {
        let handle = handle.clone();
        executor.handle().spawn(async move {
            loop {
                watchdog::beat();
                handle.sleep(interval).await;
            }
        });
    }
    executor
}

/// Starts an executor on each of the other vCPUs that are online. Returns all executors, and the vCPUs
/// on which they run.
fn start_vcpus(
    machine: &Machine,
    executor: &mut Executor<Hypercalls>,
    first: VcpuSpawner<Hypercalls>,
    store: &Client,
) -> (Vec<VcpuSpawner<Hypercalls>>, Vec<VcpuId>) {
    let hypervisor = machine.hypervisor;
    #[cfg_attr(not(feature = "recover"), allow(unused_mut))]
    let mut online = online_vcpus(machine, executor, store);
    #[cfg(feature = "recover")]
    recovery::limit_vcpus(machine, &mut online);
    let mut all = vec![first];
    let others = online.iter().skip(1).copied();
    let running = bulkhead_kernel::start_vcpus(others, |vcpu| {
        let spawner = VcpuSpawner::new(hypervisor, vcpu);
        all.push(spawner.clone());
        Box::new(move || crate::executor(&spawner, hypervisor).run_until(|| false))
    });
    all.truncate(1 + running as usize);
    if all.len() > 1 {
        log::info!("{} vCPUs serve queues", all.len());
    }
    if online.len() < machine.vcpus as usize {
        let offline = machine.vcpus as usize - online.len();
        log::info!("{offline} of {} vCPUs are offline", machine.vcpus);
    }
    let running = all.iter().map(VcpuSpawner::vcpu).collect();
    (all, running)
}

/// Returns the vCPUs that the toolstack has online; with a single one there is nothing to ask.
fn online_vcpus(
    machine: &Machine,
    executor: &mut Executor<Hypercalls>,
    store: &Client,
) -> Vec<VcpuId> {
    if machine.vcpus == 1 {
        return vec![VcpuId(0)];
    }
    let (store, all) = (store.clone(), machine.vcpus);
    let found = Rc::new(RefCell::new(None));
    let shown = found.clone();
    let handle = executor.handle();
    handle.spawn(async move { drop(shown.replace(Some(online(&store, all).await))) });
    executor.run_until(|| found.borrow().is_some());
    found.take().unwrap_or_default()
}

/// Returns the images in the ramdisk, if there is one.
fn catalog(module: Option<Module>) -> Catalog {
    let Some(module) = module else {
        log::info!("no ramdisk: no images");
        return Catalog::empty();
    };
    // SAFETY: the module is ours alone from here on, and stays as long as the domain runs.
    let memory = unsafe { ImageMemory::new(module.start, module.len) };
    #[cfg(feature = "recover")]
    let catalog = recovery::catalog(memory);
    #[cfg(not(feature = "recover"))]
    let catalog = Catalog::from_module(memory);
    catalog
}

/// Returns the same images, able to grow. Logs which there are.
fn with_memory(catalog: Catalog, hypervisor: Hypercalls) -> Catalog {
    let catalog = catalog.with_reservation(Arc::new(hypervisor));
    if let Some(damage) = catalog.damage() {
        log::error!("the ramdisk: {damage}");
    }
    for (name, bytes, _) in catalog.images() {
        log::info!("image ram:{name}, {bytes} bytes");
    }
    catalog
}

fn reason(request: ShutdownRequest) -> ShutdownReason {
    match request {
        // Xen has no reason of its own for a halt.
        ShutdownRequest::Poweroff | ShutdownRequest::Halt => ShutdownReason::Poweroff,
        ShutdownRequest::Reboot => ShutdownReason::Reboot,
    }
}
