//! dom0's pciback, one for each domain that has functions.

use super::super::grants::Purpose;
use super::super::memory::{self, device_reads, device_writes};
use super::super::stats::Violation;
use super::super::world::World;
use super::super::xenstore::Server;
use super::config::Enabled;
use super::request::Request;
use super::toolstack::{backend_path, backend_state, frontend_path, frontend_state};
use bulkhead_xen::abi::grant_table::MapFlags;
use bulkhead_xen::abi::pciif::{
    self, AerOp, BACKEND_ACTIVE, CONF_READ, CONF_WRITE, DEV_NOT_FOUND, DISABLE_MSI, DISABLE_MSIX,
    ENABLE_MSI, ENABLE_MSIX, FRONTEND_ACTIVE, MAGIC, MAX_VECTORS, NOT_IMPLEMENTED, OP_FAILED, Op,
    PciSharedInfo, SUCCESS,
};
use bulkhead_xen::{DomId, GrantRef, Pirq, Port, VcpuId};
use std::collections::VecDeque;
use std::mem::offset_of;

const DOM0: DomId = DomId(0);
/// dom0's vCPU that pciback's ports are delivered to.
const VCPU: VcpuId = VcpuId(2);

/// ENXIO, EINVAL and EALREADY, as Linux answers them.
const ENXIO: i32 = -6;
const EINVAL: i32 = -22;
const EALREADY: i32 = -114;

/// The faults of pciback; by default it has none.
#[derive(Clone, Debug, Default)]
pub struct PcibackFaults {
    /// True if it does not look at operations.
    pub stalled: bool,
    /// The number of operations that it still answers before it stalls.
    pub stall_after: Option<usize>,
    /// The errors with which it answers the next operations instead of doing them; 0 has it do one.
    pub errors: VecDeque<i32>,
    /// The interrupts that it names when MSI-X is enabled, instead of those that it has mapped.
    pub vectors: Option<Vec<u16>>,
    /// The number of operations that it has answered.
    pub answered: usize,
    /// The frontend's answer to the last error that was reported.
    pub error_result: Option<i32>,
}

/// A function that libxl has named.
pub(crate) struct Remembered {
    pub(super) name: String,
    pub(super) index: usize,
}

/// A function that it shows: the number of its device on bus 0, and the one in the machine.
struct Shown {
    device: u8,
    index: usize,
    name: String,
}

/// The page that a frontend has granted.
struct Page {
    gref: GrantRef,
    address: usize,
    port: Port,
}

pub(crate) struct Pciback {
    pub(crate) domain: DomId,
    pub(crate) faults: PcibackFaults,
    /// All functions that libxl has ever named, by name.
    named: Vec<Remembered>,
    shown: Vec<Shown>,
    page: Option<Page>,
    rung: bool,
    /// An error was reported, and the frontend has not answered.
    reported: bool,
}

/// Takes the notifications of all pcibacks.
pub(super) fn take_pending(world: &mut World) -> Vec<Port> {
    let mut rung = Vec::new();
    if let Some(vcpu) = world.vcpu_mut(DOM0, VCPU) {
        while let Some(port) = vcpu.take_pending(Port(0)) {
            rung.push(port);
        }
    }
    rung
}

impl Pciback {
    pub(super) fn new(domain: DomId) -> Self {
        Pciback {
            domain,
            faults: PcibackFaults::default(),
            named: Vec::new(),
            shown: Vec::new(),
            page: None,
            rung: false,
            reported: false,
        }
    }

    pub(super) fn remember(&mut self, more: Vec<Remembered>) {
        self.named.extend(more);
    }

    /// Does one thing that is to be done; returns whether there was one.
    pub(super) fn step(&mut self, store: &mut Server, world: &mut World, rung: &[Port]) -> bool {
        self.rung |= self
            .page
            .as_ref()
            .is_some_and(|page| rung.contains(&page.port));
        let states = (
            backend_state(store, self.domain),
            frontend_state(store, self.domain),
        );
        let states = (
            states.0.as_deref().unwrap_or_default(),
            states.1.as_deref().unwrap_or_default(),
        );
        match states {
            ("1", _) => {
                self.show_new(store);
                self.go(store, "3");
            }
            ("3", "3") => {
                if !self.attach(store, world) {
                    return false;
                }
                self.go(store, "4");
            }
            ("7", "7") => {
                self.remove(store, world);
                self.show_new(store);
                self.go(store, "8");
            }
            ("8", "4") => self.go(store, "4"),
            ("3" | "4" | "5" | "6" | "7" | "8", "5" | "6" | "") if self.page.is_some() => {
                self.disconnect(world);
                self.go(store, "6");
            }
            // libxl removes the directories with the last function.
            ("", _) if self.page.is_some() => {
                self.disconnect(world);
                self.shown.clear();
            }
            _ => return self.serve(world),
        }
        true
    }

    fn go(&self, store: &mut Server, state: &str) {
        store.write(&format!("{}/state", backend_path(self.domain)), state);
    }

    /// Shows the functions that libxl has named since.
    fn show_new(&mut self, store: &mut Server) {
        let back = backend_path(self.domain);
        for number in 0..64 {
            let state = format!("{back}/state-{number}");
            let name = store.read(&format!("{back}/dev-{number}"));
            let (Some(name), Some("1")) = (name, store.read(&state).as_deref()) else {
                continue;
            };
            let known = self.named.iter().find(|one| one.name == name);
            let index = known.expect("libxl has named it").index;
            let taken = |device: &u8| self.shown.iter().any(|shown| shown.device == *device);
            let device = (0..32)
                .find(|device| !taken(device))
                .expect("a free device");
            store.write(
                &format!("{back}/vdev-{number}"),
                &format!("0000:00:{device:02x}.00"),
            );
            store.write(&state, "3");
            self.shown.push(Shown {
                device,
                index,
                name,
            });
        }
        store.write(&format!("{back}/root_num"), "1");
        store.write(&format!("{back}/root-0"), "0000:00");
    }

    /// Removes the functions that libxl takes away.
    fn remove(&mut self, store: &mut Server, world: &mut World) {
        let back = backend_path(self.domain);
        for number in 0..64 {
            if store.read(&format!("{back}/state-{number}")).as_deref() != Some("5") {
                continue;
            }
            let name = store
                .read(&format!("{back}/dev-{number}"))
                .expect("libxl's");
            store.remove(&format!("{back}/vdev-{number}"));
            for gone in self.shown.extract_if(.., |shown| shown.name == name) {
                world.function(gone.index).config.reset();
            }
            self.named.retain(|one| one.name != name);
        }
    }

    /// Connects to the page that the frontend has published.
    fn attach(&mut self, store: &mut Server, world: &mut World) -> bool {
        let front = frontend_path(self.domain);
        let mut node = |name| store.read(&format!("{front}/{name}"));
        let number = |text: Option<String>| text.and_then(|text| text.parse().ok());
        let (gref, port) = (number(node("pci-op-ref")), number(node("event-channel")));
        let (Some(gref), Some(port), Some(MAGIC)) = (gref, port, node("magic").as_deref()) else {
            return false;
        };
        let gref = GrantRef(gref);
        let Some(domain) = world.domain_mut(self.domain) else {
            return false;
        };
        let Ok(frame) = domain.pin(gref, DOM0, MapFlags::HOST_MAP, Purpose::Map) else {
            return false;
        };
        let address = domain.memory.address_of(frame).expect("an own page");
        let Ok(port) = world.bind_interdomain(DOM0, VCPU, self.domain, Port(port)) else {
            return false;
        };
        self.page = Some(Page {
            gref,
            address,
            port,
        });
        true
    }

    /// Lets go of the page.
    fn disconnect(&mut self, world: &mut World) {
        if let Some(page) = self.page.take() {
            let closed = world.close_port(DOM0, page.port);
            closed.expect("pciback's ports stay open until it closes them");
            if let Some(domain) = world.domain_mut(self.domain) {
                domain.unpin(page.gref, MapFlags::HOST_MAP);
                world.reap(self.domain);
            }
        }
    }

    /// Answers the operation that it was notified of.
    fn serve(&mut self, world: &mut World) -> bool {
        let Some(page) = &self.page else {
            return false;
        };
        let (address, port) = (page.address, page.port);
        let flags = memory::word(address + offset_of!(PciSharedInfo, flags));
        let active = || flags.load(std::sync::atomic::Ordering::SeqCst);
        if self.rung && self.reported && active() & BACKEND_ACTIVE == 0 {
            self.reported = false;
            self.faults.error_result = Some(read_error_result(address));
        }
        if self.faults.stall_after == Some(0) {
            (self.faults.stalled, self.faults.stall_after) = (true, None);
        }
        if self.faults.stalled || !std::mem::take(&mut self.rung) {
            return false;
        }
        if active() & FRONTEND_ACTIVE == 0 {
            return false;
        }
        let mut request = Request::read(address + offset_of!(PciSharedInfo, op));
        let forced = self.faults.errors.pop_front().unwrap_or(SUCCESS);
        let err = match forced {
            SUCCESS => self.act(world, &mut request),
            forced => forced,
        };
        request.set(offset_of!(Op, err), err as u32);
        request.write(address + offset_of!(PciSharedInfo, op));
        flags.fetch_and(!FRONTEND_ACTIVE, std::sync::atomic::Ordering::SeqCst);
        self.faults.answered += 1;
        self.faults.stall_after = self.faults.stall_after.map(|left| left - 1);
        // The domain may be gone.
        let _ = world.notify(DOM0, port);
        true
    }

    fn act(&self, world: &mut World, request: &mut Request) -> i32 {
        let field = |offset| request.get(offset);
        let place = (field(offset_of!(Op, domain)), field(offset_of!(Op, bus)));
        let devfn = field(offset_of!(Op, devfn));
        let here = |shown: &&Shown| place == (0, 0) && u32::from(shown.device) << 3 == devfn;
        let Some(shown) = self.shown.iter().find(here) else {
            return DEV_NOT_FOUND;
        };
        let at = field(offset_of!(Op, offset)) as i32;
        let size = field(offset_of!(Op, size)) as i32;
        let value = field(offset_of!(Op, value));
        let config = &mut world.function(shown.index).config;
        match field(offset_of!(Op, cmd)) {
            CONF_READ => match config.shown(at, size) {
                Ok(value) => {
                    request.set(offset_of!(Op, value), value);
                    SUCCESS
                }
                Err(error) => error,
            },
            CONF_WRITE => config.write(at, size, value),
            ENABLE_MSI => self.enable_msi(world, shown.index, request),
            ENABLE_MSIX => self.enable_msix(world, shown.index, request),
            DISABLE_MSI => {
                if let Enabled::Msi(pirq) = config.enabled {
                    config.enabled = Enabled::Nothing;
                    world.pirqs.unmap(self.domain, pirq);
                }
                SUCCESS
            }
            DISABLE_MSIX => {
                if let Enabled::Msix(pirqs) = config.enabled.clone() {
                    config.enabled = Enabled::Nothing;
                    for pirq in pirqs {
                        world.pirqs.unmap(self.domain, pirq);
                    }
                }
                SUCCESS
            }
            _ => NOT_IMPLEMENTED,
        }
    }

    fn enable_msi(&self, world: &mut World, index: usize, request: &mut Request) -> i32 {
        let pirq = world.pirqs.unused();
        let config = &mut world.function(index).config;
        request.set(offset_of!(Op, value), 0);
        if !config.has_msi || !matches!(config.enabled, Enabled::Nothing) {
            return OP_FAILED;
        }
        config.enabled = Enabled::Msi(pirq);
        // Without mask bits, as most devices have it.
        world.pirqs.map(self.domain, pirq, true);
        request.set(offset_of!(Op, value), pirq.0);
        SUCCESS
    }

    fn enable_msix(&self, world: &mut World, index: usize, request: &mut Request) -> i32 {
        let count = request.get(offset_of!(Op, value)) as usize;
        let first = world.pirqs.unused();
        let config = &mut world.function(index).config;
        match config.enabled {
            Enabled::Nothing => {}
            Enabled::Msi(_) => return ENXIO,
            Enabled::Msix(_) => return EALREADY,
        }
        if !config.answers() {
            return ENXIO;
        }
        let entries = config.msix_entries().unwrap_or(0);
        if count == 0 || count > MAX_VECTORS || count > usize::from(entries) {
            return EINVAL;
        }
        if !config.prepared {
            let domain = self.domain;
            world.violations.push(Violation::UnpreparedMsix { domain });
            return EINVAL;
        }
        let pirqs: Vec<Pirq> = (first.0..).take(count).map(Pirq).collect();
        config.enabled = Enabled::Msix(pirqs.clone());
        for (place, pirq) in pirqs.into_iter().enumerate() {
            world.pirqs.map(self.domain, pirq, false);
            let told = self.faults.vectors.as_ref();
            let told = told.map_or(pirq.0, |told| told.get(place).copied().unwrap_or(0).into());
            let offset = offset_of!(Op, msix_entries) + place * size_of::<pciif::MsixEntry>();
            let entry = request.get(offset) & 0xffff_0000;
            request.set(offset, entry | told);
        }
        request.set(offset_of!(Op, value), 0);
        SUCCESS
    }

    /// Reports an error of the first function.
    pub(super) fn report_error(&mut self, world: &mut World) {
        let page = self.page.as_ref().expect("a connected frontend");
        let aer = page.address + offset_of!(PciSharedInfo, aer_op);
        for (offset, value) in [
            (offset_of!(AerOp, cmd), 6_u32),
            (offset_of!(AerOp, err), 1),
            (offset_of!(AerOp, domain), 0),
            (offset_of!(AerOp, bus), 0),
            (offset_of!(AerOp, devfn), 0),
        ] {
            device_writes(aer + offset, &value.to_ne_bytes());
        }
        self.faults.error_result = None;
        self.reported = true;
        let flags = memory::word(page.address + offset_of!(PciSharedInfo, flags));
        flags.fetch_or(BACKEND_ACTIVE, std::sync::atomic::Ordering::SeqCst);
        // The domain may be gone.
        let _ = world.notify(DOM0, page.port);
    }
}

/// The frontend's answer to an error.
fn read_error_result(address: usize) -> i32 {
    let mut bytes = [0; 4];
    let at = offset_of!(PciSharedInfo, aer_op) + offset_of!(AerOp, err);
    device_reads(address + at, &mut bytes);
    i32::from_ne_bytes(bytes)
}
