//! A PCI function, as its driver uses it.

use crate::PciHost;
use crate::address::FunctionName;
use crate::bars::{BadBar, Bar, COUNT};
use crate::capabilities::{Capability, MSIX, MsixTable};
use crate::config_space::{COMMAND_MASTER, COMMAND_MEMORY, ConfigSpace};
use crate::error::{OperationError, PciError};
use crate::frontend::TRIED_AGAIN;
use crate::holders::Holder;
use crate::identity::Identity;
use crate::interrupts::{Delivery, Vectors};
use crate::window::Window;
use alloc::rc::Rc;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::{Handle, Waiters};
use bulkhead_xen::abi::pciif::{DISABLE_MSI, DISABLE_MSIX, ENABLE_MSI, ENABLE_MSIX, MAX_VECTORS};
use bulkhead_xen::{Errno, Mfn, PAGE_SHIFT, PAGE_SIZE, Pirq, Registers};
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::ops::Range;
use core::pin::pin;
use core::task::{Poll, Waker};
use futures_util::future::{Either, select};

/// The register with the interrupt line in its lower byte and the interrupt pin in the upper one (PCI Local Bus
/// Specification 3.0, section 6.2.4).
const INTERRUPT_LINE: u16 = 0x3c;
/// The last register of four bytes.
const LAST_REGISTER: u16 = 0xfc;

/// The reason why a function is to be let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// The toolstack detaches it. pciback waits until the driver has dropped the function and everything that came of
    /// it.
    Detached,
    /// pciback is gone, so the function can be neither configured nor given back any more.
    Gone,
}

/// The state of a function that its driver and the frontend share.
pub struct Shared<H: PciHost> {
    pub name: FunctionName,
    pub identity: Identity,
    pub handle: Handle<H>,
    pub config: ConfigSpace<H>,
    bars: RefCell<[Option<Bar>; COUNT as usize]>,
    capabilities: RefCell<Option<Vec<Capability>>>,
    enabled: Cell<Option<Delivery>>,
    departure: Cell<Option<Departure>>,
    waiting: RefCell<Waiters>,
}

impl<H: PciHost> Shared<H> {
    pub fn new(
        name: FunctionName,
        identity: Identity,
        handle: Handle<H>,
        config: ConfigSpace<H>,
    ) -> Self {
        Shared {
            name,
            identity,
            handle,
            config,
            bars: RefCell::default(),
            capabilities: RefCell::default(),
            enabled: Cell::new(None),
            departure: Cell::new(None),
            waiting: RefCell::default(),
        }
    }

    /// Asks the driver to let go of it.
    pub fn depart(&self, why: Departure) {
        self.departure.set(Some(why));
        let waiting = self.waiting.borrow_mut().take();
        waiting.for_each(Waker::wake);
    }

    /// Stops the function's bus mastering and its interrupts, before it is given back. Fails if pciback does not do it
    /// any more.
    pub async fn turn_off(&self) -> Result<(), OperationError> {
        self.config.command(0, COMMAND_MASTER).await?;
        self.disable_interrupts().await
    }

    /// Stops the bus mastering and the interrupts of a function that a boot before this one has left running. It is not
    /// known which interrupts that boot had enabled.
    pub async fn quieten(&self) -> Result<(), OperationError> {
        self.config.command(0, COMMAND_MASTER).await?;
        // One of the two is enabled, at most.
        for command in [DISABLE_MSIX, DISABLE_MSI] {
            self.config.interrupts(command).await?;
        }
        Ok(())
    }

    /// Disables interrupts with the operation that belongs to the one that enabled them: dom0 tells MSI from MSI-X.
    async fn disable_interrupts(&self) -> Result<(), OperationError> {
        let command = match self.enabled.take() {
            Some(Delivery::Msix) => DISABLE_MSIX,
            Some(Delivery::Msi) => DISABLE_MSI,
            Some(Delivery::Line) | None => return Ok(()),
        };
        self.config.interrupts(command).await.map(drop)
    }

    async fn capabilities(&self) -> Result<Vec<Capability>, OperationError> {
        if let Some(known) = &*self.capabilities.borrow() {
            return Ok(known.clone());
        }
        let found = self.config.capabilities().await?;
        self.capabilities.replace(Some(found.clone()));
        Ok(found)
    }

    async fn bar(&self, bar: u8) -> Result<Bar, PciError> {
        let known = self.bars.borrow().get(usize::from(bar)).copied().flatten();
        if let Some(known) = known {
            return Ok(known);
        }
        let found = self.config.bar(bar).await?;
        self.bars.borrow_mut()[usize::from(bar)] = Some(found);
        Ok(found)
    }
}

/// A PCI function that this domain was given. It stays this domain's until this value and everything that came of it
/// (registers, interrupts) were dropped.
pub struct Function<H: PciHost> {
    shared: Rc<Shared<H>>,
    holder: Arc<Holder>,
}

/// A task's wait for a departure.
struct Wait<'f> {
    waiting: &'f RefCell<Waiters>,
    number: u64,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.waiting.borrow_mut().forget(self.number);
    }
}

impl<H: PciHost> Function<H> {
    pub(crate) fn new(shared: Rc<Shared<H>>, holder: Arc<Holder>) -> Self {
        Function { shared, holder }
    }

    /// Returns its name by dom0's buses, as `xl` and `lspci` in dom0 show it.
    pub fn name(&self) -> FunctionName {
        self.shared.name
    }

    /// Returns its vendor, device and class.
    pub fn identity(&self) -> Identity {
        self.shared.identity
    }

    /// Returns its configuration space.
    pub fn config(&self) -> &ConfigSpace<H> {
        &self.shared.config
    }

    /// Returns its capabilities.
    pub async fn capabilities(&self) -> Result<Vec<Capability>, PciError> {
        Ok(self.shared.capabilities().await?)
    }

    /// Returns the address and size of a memory BAR, 0 to 5. A BAR of 64 bits is named by the first of its two numbers.
    /// Refuses a BAR of I/O ports, and one that is not there or not placed.
    pub async fn bar(&self, bar: u8) -> Result<Bar, PciError> {
        self.shared.bar(bar).await
    }

    /// Lets the function answer at its BARs. It accesses no memory before
    /// [`set_bus_mastering`](Self::set_bus_mastering).
    pub async fn enable(&self) -> Result<(), PciError> {
        Ok(self.shared.config.command(COMMAND_MEMORY, 0).await?)
    }

    /// Maps the registers at `offsets`, in bytes, of a memory BAR; offset 0 of the result is the first of them.
    /// Dropping the result unmaps them.
    ///
    /// A driver maps no more than it uses: pages with a part of the MSI-X table, which may be in the same BAR as the
    /// registers, are refused with [`PciError::Protected`].
    pub async fn open_registers(
        &self,
        bar: u8,
        offsets: Range<u64>,
    ) -> Result<Arc<dyn Registers>, PciError> {
        let place = self.shared.bar(bar).await?.part(bar, &offsets)?;
        let (first, start) = (place.start >> PAGE_SHIFT, place.start % PAGE_SIZE as u64);
        let pages = (place.end.div_ceil(PAGE_SIZE as u64) - first) as usize;
        let mapped = self
            .shared
            .handle
            .hypervisor()
            .map_registers(Mfn(first), pages);
        match mapped {
            Ok(mapped) => {
                let len = (place.end - place.start) as usize;
                let holder = self.holder.clone();
                Ok(Arc::new(Window::new(mapped, start as usize, len, holder)))
            }
            Err(Errno::ACCES) => Err(PciError::Protected { bar }),
            Err(error) => Err(PciError::NotMapped { bar, error }),
        }
    }

    /// Returns the offsets, in bytes, of the part of a memory BAR that precedes the pages of the MSI-X table and its
    /// pending bits, or of all of it if neither is in that BAR. Functions that have them in the BAR of their registers
    /// have the registers first.
    pub async fn register_offsets(&self, bar: u8) -> Result<Range<u64>, PciError> {
        let size = self.shared.bar(bar).await?.size;
        let mut end = size;
        for capability in self.shared.capabilities().await? {
            if capability.id == MSIX
                && let Some(table) = self.table(capability).await?
                && let Some(page) = table.first_page(bar)
            {
                end = end.min(page);
            }
        }
        Ok(0..end)
    }

    /// Lets the function access memory (as far as the IOMMU allows), or forbids it. MSI and MSI-X interrupts are such
    /// accesses.
    ///
    /// The function's last user may have left it running, and not every function is reset in between: a driver stops
    /// the function before it switches this on.
    pub async fn set_bus_mastering(&self, on: bool) -> Result<(), PciError> {
        let (set, clear) = match on {
            true => (COMMAND_MASTER, 0),
            false => (0, COMMAND_MASTER),
        };
        Ok(self.shared.config.command(set, clear).await?)
    }

    async fn table(&self, capability: Capability) -> Result<Option<MsixTable>, OperationError> {
        let register = u16::from(capability.offset) + 4;
        if register > LAST_REGISTER - 4 {
            return Ok(None);
        }
        let table = self.shared.config.read32(register).await?;
        let pending = self.shared.config.read32(register + 4).await?;
        Ok(MsixTable::new(capability, table, pending))
    }

    /// Enables the function, and up to `wanted` interrupts (at least one): by MSI-X if it can be used, else by MSI,
    /// else by its line. Bus mastering stays as it is.
    ///
    /// # Errors
    /// [`PciError::NoInterrupts`] if the function has none of them: it can only be polled. [`PciError::Enabled`] if
    /// interrupts were enabled before. [`PciError::Operation`] if pciback does not answer.
    pub async fn enable_interrupts(&self, wanted: usize) -> Result<Vectors, PciError> {
        if self.shared.enabled.get().is_some() {
            return Err(PciError::Enabled);
        }
        self.enable().await?;
        let capabilities = self.shared.capabilities().await?;
        let mut pirqs = None;
        for capability in capabilities.iter().filter(|one| one.id == MSIX) {
            pirqs = self.msix(*capability, wanted).await?;
        }
        if let Some(pirqs) = pirqs {
            return Ok(self.enabled(Delivery::Msix, &pirqs));
        }
        if capabilities.iter().any(|one| one.id == crate::MSI) {
            let config = &self.shared.config;
            let mut enabled = config.interrupts(ENABLE_MSI).await;
            if enabled == Err(OperationError::Failed) {
                // An earlier attempt that timed out here may have been carried out after all.
                config.interrupts(DISABLE_MSI).await?;
                enabled = config.interrupts(ENABLE_MSI).await;
            }
            match enabled {
                Ok(pirq @ 1..) => return Ok(self.enabled(Delivery::Msi, &[Pirq(pirq)])),
                Ok(0) => self.without("MSI", "dom0 names no interrupt"),
                Err(error @ (OperationError::Disconnected | OperationError::TimedOut)) => {
                    return Err(error.into());
                }
                Err(error) => self.without("MSI", &error.to_string()),
            }
        }
        match self
            .shared
            .config
            .read16(INTERRUPT_LINE)
            .await?
            .to_le_bytes()
        {
            [_, 0] | [0 | 255, _] => Err(PciError::NoInterrupts),
            [line, _] => Ok(self.enabled(Delivery::Line, &[Pirq(line.into())])),
        }
    }

    fn enabled(&self, delivery: Delivery, pirqs: &[Pirq]) -> Vectors {
        self.shared.enabled.set(Some(delivery));
        Vectors::new(delivery, pirqs, &self.holder)
    }

    /// Enables MSI-X, all entries at once: dom0 lets it be enabled once, and cannot disable single entries. Returns
    /// `None` if MSI-X cannot be used, with the reason in the log.
    async fn msix(
        &self,
        capability: Capability,
        wanted: usize,
    ) -> Result<Option<Vec<Pirq>>, PciError> {
        let Some(table) = self.table(capability).await? else {
            self.without("MSI-X", "its table is in no BAR");
            return Ok(None);
        };
        match self.is_prepared(&table).await {
            Ok(true) => {}
            Ok(false) => {
                self.without(
                    "MSI-X",
                    "dom0 has not prepared it: enabling it would end this domain",
                );
                return Ok(None);
            }
            Err(PciError::Operation(error)) => return Err(error.into()),
            Err(error) => {
                self.without("MSI-X", &error.to_string());
                return Ok(None);
            }
        }
        let count = wanted.clamp(1, MAX_VECTORS.min(table.entries.into()));
        let config = &self.shared.config;
        let mut enabled = config.enable_msix(ENABLE_MSIX, count).await;
        if enabled == Err(OperationError::Errno(Errno::ALREADY)) {
            // An earlier attempt that timed out here was carried out after all.
            config.interrupts(DISABLE_MSIX).await?;
            enabled = config.enable_msix(ENABLE_MSIX, count).await;
        }
        match enabled {
            Ok(pirqs) if is_usable(&pirqs) => Ok(Some(pirqs)),
            Ok(_) => {
                config.interrupts(DISABLE_MSIX).await?;
                self.without("MSI-X", "dom0 names no interrupts, or one twice");
                Ok(None)
            }
            Err(error @ (OperationError::Disconnected | OperationError::TimedOut)) => {
                Err(error.into())
            }
            Err(error) => {
                self.without("MSI-X", &error.to_string());
                Ok(None)
            }
        }
    }

    /// Returns whether Xen protects the table's pages from writing, as it does once dom0 has prepared MSI-X
    /// (`PHYSDEVOP_prepare_msix`). If MSI-X were enabled without that for a domain that may write to the table, Xen
    /// would crash the domain (`msix_capability_init` in Xen's `arch/x86/msi.c`).
    async fn is_prepared(&self, table: &MsixTable) -> Result<bool, PciError> {
        let bar = table.bar;
        let size = self.shared.bar(bar).await?.size;
        if !table.is_inside(size) {
            return Err(BadBar::TooSmall { bar, size }.into());
        }
        let start = u64::from(table.offset);
        match self.open_registers(bar, start..start + 1).await {
            Ok(_) => Ok(false),
            Err(PciError::Protected { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn without(&self, what: &str, why: &str) {
        log::warn!("function {}: without {what}: {why}", self.shared.name);
    }

    /// Returns the reason why it is to be let go of, if it is.
    pub fn departing(&self) -> Option<Departure> {
        self.shared.departure.get()
    }

    /// Waits until the function is to be let go of. If `error` says that pciback did not answer in time, waits no
    /// longer than the pause after which the driver is to try again. Returns true if the function is to be let go of.
    pub async fn departs_before_retry(&self, error: &PciError) -> bool {
        let departure = pin!(self.departure());
        if *error != PciError::Operation(OperationError::TimedOut) {
            departure.await;
            return true;
        }
        let over = pin!(self.shared.handle.sleep(TRIED_AGAIN));
        matches!(select(departure, over).await, Either::Left(_))
    }

    /// Waits until it is to be let go of, and returns the reason.
    pub async fn departure(&self) -> Departure {
        let waiting = &self.shared.waiting;
        let number = waiting.borrow_mut().number();
        let wait = Wait { waiting, number };
        poll_fn(|context| {
            if let Some(why) = self.shared.departure.get() {
                return Poll::Ready(why);
            }
            let mut waiting = wait.waiting.borrow_mut();
            waiting.wait(wait.number, context.waker());
            Poll::Pending
        })
        .await
    }
}

/// Returns whether each of these interrupts can be bound: there is at least one, none is 0, and all differ.
fn is_usable(pirqs: &[Pirq]) -> bool {
    let twice = |index: usize| pirqs[..index].contains(&pirqs[index]);
    !pirqs.is_empty() && (0..pirqs.len()).all(|index| pirqs[index] != Pirq(0) && !twice(index))
}
