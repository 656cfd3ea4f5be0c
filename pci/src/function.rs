//! A function of a device, as its driver has it.

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

/// The register with the interrupt line, below the one with its pin.
const INTERRUPT_LINE: u16 = 0x3c;
/// The last register of four bytes.
const LAST_REGISTER: u16 = 0xfc;

/// The reason why a function is to be let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// The tool stack takes it away, and waits until everything of it was dropped.
    Detached,
    /// pciback is gone, and the function with it as far as this domain is concerned.
    Gone,
}

/// The part of a function that the frontend has too.
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

    /// Leaves the function as its next owner expects it, as far as pciback still does that.
    pub async fn turn_off(&self) -> Result<(), OperationError> {
        self.config.command(0, COMMAND_MASTER).await?;
        self.disable_interrupts().await
    }

    /// Has a function access no memory, and raise no interrupt, that a boot before this one has left at work.
    pub async fn quieten(&self) -> Result<(), OperationError> {
        self.config.command(0, COMMAND_MASTER).await?;
        // One of the two is enabled, at most.
        for command in [DISABLE_MSIX, DISABLE_MSI] {
            self.config.interrupts(command).await?;
        }
        Ok(())
    }

    /// dom0 counts messages that were enabled as such: what was enabled as MSI-X is not disabled as MSI.
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

/// A function of a device that this domain was given. It is its owner's until this value and everything that came of
/// it (registers, interrupts) were dropped.
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

    /// Returns its name, as the user knows it.
    pub fn name(&self) -> FunctionName {
        self.shared.name
    }

    /// Returns what it is.
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

    /// Returns where a memory BAR is, and how large. A BAR of 64 bits is named by the first of its two numbers.
    pub async fn bar(&self, bar: u8) -> Result<Bar, PciError> {
        self.shared.bar(bar).await
    }

    /// Lets the function answer at its BARs. It accesses no memory before
    /// [`set_bus_mastering`](Self::set_bus_mastering).
    pub async fn enable(&self) -> Result<(), PciError> {
        Ok(self.shared.config.command(COMMAND_MEMORY, 0).await?)
    }

    /// Maps the registers at some offsets of a memory BAR; offset 0 of the result is the first of them.
    ///
    /// A driver maps no more than it uses: pages with a part of the MSI-X table, which devices may have beside their
    /// registers in one BAR, are refused.
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

    /// Returns the offsets of a memory BAR before the pages of the MSI-X table and its pending bits: all of it, if
    /// these are not there. Where a function has both in one BAR, that is where its registers are.
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

    /// Lets the function access memory, as far as the IOMMU lets it, or forbids it. Interrupts that are messages are
    /// such accesses.
    ///
    /// Its last user may have left it at work, and not every function is reset in between: the driver stops it first.
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

    /// Enables the function, and up to `wanted` interrupts, once: by MSI-X if it has that, else by MSI, else by its
    /// line. If it has none of them, it can only be polled. Bus mastering stays as it is.
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
                // An operation that was given up may have been done after all.
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

    /// Enables MSI-X, all entries at once: dom0 lets it be enabled once, and does not disable a part of it. `None` if
    /// it cannot be used; only a pciback that does not answer is an error.
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
            // An operation that was given up has been done after all.
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

    /// Returns whether Xen has the table's pages read-only, as it has from the time on when dom0 prepared MSI-X.
    /// Enabling it first for a domain that could write there, Xen ends that domain (`msix_capability_init`).
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

    /// Waits until it is to be let go of, or until what has failed with that error is to be tried again, which it is if dom0
    /// had no time for it. Returns whether it is to be let go of.
    pub async fn departs_before_retry(&self, error: &PciError) -> bool {
        let departure = pin!(self.departure());
        if *error != PciError::Operation(OperationError::TimedOut) {
            departure.await;
            return true;
        }
        let over = pin!(self.shared.handle.sleep(TRIED_AGAIN));
        matches!(select(departure, over).await, Either::Left(_))
    }

    /// Waits until it is to be let go of.
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

/// Returns whether these can be bound: each is there, and another one.
fn is_usable(pirqs: &[Pirq]) -> bool {
    let twice = |index: usize| pirqs[..index].contains(&pirqs[index]);
    !pirqs.is_empty() && (0..pirqs.len()).all(|index| pirqs[index] != Pirq(0) && !twice(index))
}
