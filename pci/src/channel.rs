//! The page that is shared with pciback (`struct xen_pci_sharedinfo`, `io/pciif.h`), and the operations that
//! pciback is asked for through it, one at a time.

use crate::address::Slot;
use crate::error::OperationError;
use crate::frontend::FrontendOptions;
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bulkhead_executor::{EventChannel, Handle, Signal, Task, Waiters};
use bulkhead_grant::{NotShared, SharedMemory};
use bulkhead_xen::abi::pciif::{
    AER_RESULT_NONE, AerOp, BACKEND_ACTIVE, FRONTEND_ACTIVE, MAGIC, MAX_VECTORS, Op, PciSharedInfo,
};
use bulkhead_xen::{DomId, Hypervisor, Pirq, Port};
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::mem::{ManuallyDrop, offset_of};
use core::pin::{Pin, pin};
use core::sync::atomic::Ordering;
use core::task::{Poll, Waker};
use core::time::Duration;
use futures_util::future::{Either, select};

/// The offsets of the parts in the page, in bytes.
const FLAGS: usize = offset_of!(PciSharedInfo, flags);
const OP: usize = offset_of!(PciSharedInfo, op);
const ENTRIES: usize = OP + offset_of!(Op, msix_entries);
const AER_OP: usize = offset_of!(PciSharedInfo, aer_op);

/// The future of an operation.
pub type Operating<'c> = Pin<Box<dyn Future<Output = Result<u32, OperationError>> + 'c>>;

/// An operation that pciback is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Operation {
    /// `XEN_PCI_OP_*`.
    pub command: u32,
    /// The offset of the register in configuration space.
    pub offset: u16,
    /// Its size in bytes: 1, 2 or 4.
    pub size: u8,
    /// The value to write, or the number of MSI-X entries.
    pub value: u32,
}

/// The channel to pciback.
pub struct Channel<H: Hypervisor> {
    handle: Handle<H>,
    options: FrontendOptions,
    /// Not freed when the channel is dropped: pciback may have it mapped, and has when the domain ends. [`give_up`]
    /// takes it back.
    page: ManuallyDrop<SharedMemory<H>>,
    events: Rc<EventChannel<H>>,
    /// Raised when pciback has notified us, and when the channel is closed.
    notified: Signal,
    closed: Cell<bool>,
    /// A task uses the channel; the others wait for their turn.
    busy: Cell<bool>,
    waiting: RefCell<Waiters>,
    listener: RefCell<Option<Task>>,
}

/// A task's turn to use the channel.
struct Turn<'c, H: Hypervisor>(&'c Channel<H>);

impl<H: Hypervisor> Drop for Turn<'_, H> {
    fn drop(&mut self) {
        self.0.busy.set(false);
        let waiting = self.0.waiting.borrow_mut().take();
        waiting.for_each(Waker::wake);
    }
}

/// A task's wait for its turn.
struct Wait<'c> {
    waiting: &'c RefCell<Waiters>,
    number: u64,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.waiting.borrow_mut().forget(self.number);
    }
}

impl<H: Hypervisor> Channel<H> {
    /// Makes a channel to the backend in a domain: grants it `page`, which holds zeros, and allocates a port for it.
    /// The error is a sentence for the log.
    pub fn new(
        handle: &Handle<H>,
        mut page: SharedMemory<H>,
        backend: DomId,
        options: FrontendOptions,
    ) -> Result<Rc<Self>, String> {
        let hypervisor = handle.hypervisor();
        let granted = page.grant(hypervisor, backend);
        granted.map_err(|error: NotShared| error.to_string())?;
        let port = hypervisor.alloc_unbound(backend);
        let port = port.map_err(|error| format!("no event channel: {error}"))?;
        Ok(Self::with(handle, page, port, options))
    }

    /// Goes on with a channel of a boot before this one, whose page is still granted. An operation of that boot may be
    /// in flight: the first operation of this boot waits for its end.
    pub fn left(
        handle: &Handle<H>,
        page: SharedMemory<H>,
        port: Port,
        options: FrontendOptions,
    ) -> Result<Rc<Self>, String> {
        let hypervisor = handle.hypervisor();
        if hypervisor.is_connected(port) != Ok(true) {
            return Err(format!("its event channel {port} is not connected"));
        }
        let taken = hypervisor.take_up_or_close_port(port);
        taken.map_err(|error| format!("its event channel {port}: {error}"))?;
        let channel = Self::with(handle, page, port, options);
        // pciback may have reported an error of a function meanwhile, and the crash may have come after an operation
        // was written and before pciback was notified of it. A notification too many is harmless.
        channel.listen();
        channel.events.notify();
        Ok(channel)
    }

    fn with(
        handle: &Handle<H>,
        page: SharedMemory<H>,
        port: Port,
        options: FrontendOptions,
    ) -> Rc<Self> {
        (options.keep_port)(Some(port));
        let channel = Rc::new(Channel {
            handle: handle.clone(),
            options,
            page: ManuallyDrop::new(page),
            events: Rc::new(handle.event_channel(port)),
            notified: Signal::default(),
            closed: Cell::new(false),
            busy: Cell::new(false),
            waiting: RefCell::default(),
            listener: RefCell::default(),
        });
        let (events, listening) = (channel.events.clone(), Rc::downgrade(&channel));
        let listener = handle.spawn(async move {
            loop {
                events.notified().await;
                let Some(channel) = listening.upgrade() else {
                    return;
                };
                channel.listen();
            }
        });
        channel.listener.replace(Some(listener));
        channel
    }

    /// Returns the nodes by which pciback finds the channel, those that Linux's pcifront writes.
    pub fn nodes(&self) -> Vec<(&'static str, String)> {
        let gref = self.page.gref(0).map(|gref| gref.to_string());
        [
            ("pci-op-ref", gref.unwrap_or_default()),
            ("event-channel", self.events.port().to_string()),
            ("magic", MAGIC.to_string()),
        ]
        .into()
    }

    /// Fails the operation that is under way, and all later ones.
    pub fn close(&self) {
        self.closed.set(true);
        (self.options.keep_port)(None);
        self.notified.raise();
        if let Some(listener) = self.listener.take() {
            listener.stop();
        }
    }

    /// Has pciback do an operation on a function; returns the value of its answer. The future is boxed so that the code
    /// of an operation is not repeated in each future that waits for several.
    pub fn operate(&self, slot: Slot, operation: Operation) -> Operating<'_> {
        Box::pin(async move {
            let _turn = self.turn().await;
            self.exchange(slot, operation).await
        })
    }

    /// Has pciback enable MSI-X for the first `count` entries of a function's table, `MAX_VECTORS` (128) at most;
    /// returns their interrupts.
    pub async fn enable_msix(
        &self,
        slot: Slot,
        command: u32,
        count: usize,
    ) -> Result<Vec<Pirq>, OperationError> {
        let _turn = self.turn().await;
        self.answered().await?;
        let count = count.min(MAX_VECTORS);
        for entry in 0..count {
            // `struct xen_msix_entry`: the vector is the lower half, the entry's number the upper one.
            self.write(ENTRIES + entry * 4, (entry as u32) << 16);
        }
        let value = count as u32;
        let operation = Operation {
            command,
            value,
            ..Operation::default()
        };
        match self.exchange(slot, operation).await? {
            0 => {}
            answer => return Err(OperationError::Meaningless(answer as i32)),
        }
        let vector = |entry| Pirq(self.read(ENTRIES + entry * 4) & 0xffff);
        Ok((0..count).map(vector).collect())
    }

    /// Sends an operation and waits for its answer. The caller has the [turn](Self::turn).
    async fn exchange(&self, slot: Slot, operation: Operation) -> Result<u32, OperationError> {
        // pciback may still be at work on an operation that timed out here.
        self.answered().await?;
        for (offset, value) in [
            (offset_of!(Op, cmd), operation.command),
            (offset_of!(Op, err), 0),
            (offset_of!(Op, domain), slot.domain.into()),
            (offset_of!(Op, bus), slot.bus.into()),
            (offset_of!(Op, devfn), slot.devfn().into()),
            (offset_of!(Op, offset), operation.offset.into()),
            (offset_of!(Op, size), operation.size.into()),
            (offset_of!(Op, value), operation.value),
            (offset_of!(Op, info), 0),
        ] {
            self.write(OP + offset, value);
        }
        let flags = self.page.word(FLAGS);
        flags.fetch_or(FRONTEND_ACTIVE, Ordering::SeqCst);
        self.events.notify();
        self.answered().await?;
        OperationError::check(self.read(OP + offset_of!(Op, err)) as i32)?;
        Ok(self.read(OP + offset_of!(Op, value)))
    }

    /// Waits until pciback has answered the last operation, for the time in [`FrontendOptions::timeout`].
    async fn answered(&self) -> Result<(), OperationError> {
        let deadline = self.handle.now() + self.options.timeout;
        loop {
            if self.closed.get() {
                return Err(OperationError::Disconnected);
            }
            if self.flags() & FRONTEND_ACTIVE == 0 {
                return Ok(());
            }
            let over = self.handle.sleep_until(deadline);
            let notified = pin!(self.notified.raised());
            if let Either::Right(_) = select(notified, pin!(over)).await {
                return match self.flags() & FRONTEND_ACTIVE {
                    0 => Ok(()),
                    _ => Err(OperationError::TimedOut),
                };
            }
        }
    }

    /// Waits until no other task uses the channel.
    async fn turn(&self) -> Turn<'_, H> {
        let waiting = &self.waiting;
        let number = waiting.borrow_mut().number();
        let wait = Wait { waiting, number };
        poll_fn(|context| {
            if !self.busy.replace(true) {
                return Poll::Ready(());
            }
            let mut waiting = wait.waiting.borrow_mut();
            waiting.wait(wait.number, context.waker());
            Poll::Pending
        })
        .await;
        Turn(self)
    }

    /// Handles a notification of pciback's: logs the error of a function that it reports, if it does, and wakes the
    /// task that waits for an answer.
    fn listen(&self) {
        if self.flags() & BACKEND_ACTIVE != 0 {
            let read = |offset| self.read(AER_OP + offset);
            log::warn!(
                "dom0 reports a PCI error (AER operation {}, state {}, function {:02x}:{:02x}.{}); it is acknowledged, \
                 and nothing else is done",
                read(offset_of!(AerOp, cmd)),
                read(offset_of!(AerOp, err)),
                read(offset_of!(AerOp, bus)) & 0xff,
                read(offset_of!(AerOp, devfn)) >> 3 & 31,
                read(offset_of!(AerOp, devfn)) & 7,
            );
            self.write(AER_OP + offset_of!(AerOp, err), AER_RESULT_NONE as u32);
            let flags = self.page.word(FLAGS);
            flags.fetch_and(!BACKEND_ACTIVE, Ordering::SeqCst);
            self.events.notify();
        }
        self.notified.raise();
    }

    fn flags(&self) -> u32 {
        self.page.word(FLAGS).load(Ordering::Acquire)
    }

    fn read(&self, offset: usize) -> u32 {
        self.page.word(offset).load(Ordering::Acquire)
    }

    fn write(&self, offset: usize, value: u32) {
        self.page.word(offset).store(value, Ordering::Release);
    }
}

/// The pause between the first two attempts to take a page back; it doubles each time.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The longest such pause.
const LONGEST_LOOK: Duration = Duration::from_secs(60);

/// Closes a channel, and starts a task that takes its page back once no function has the channel any more and pciback
/// has unmapped the page.
pub fn give_up<H: Hypervisor>(channel: Rc<Channel<H>>) {
    channel.close();
    let handle = channel.handle.clone();
    handle.clone().spawn(async move {
        let mut shared = Some(channel);
        let mut page = None;
        let mut pause = LOOK_AGAIN;
        loop {
            if let Some(channel) = shared.take() {
                match Rc::try_unwrap(channel) {
                    Ok(channel) => page = Some(ManuallyDrop::into_inner(channel.page)),
                    Err(channel) => shared = Some(channel),
                }
            }
            if page.as_mut().is_some_and(SharedMemory::revoke) {
                return;
            }
            handle.sleep(pause).await;
            pause = (pause * 2).min(LONGEST_LOOK);
        }
    });
}
