//! Tasks that wait for event channels.

use crate::Core;
use alloc::rc::Rc;
use alloc::vec::Vec;
use bulkhead_xen::{Hypervisor, Port};
use core::cell::RefCell;
use core::task::{Context, Poll, Waker};

#[derive(Default)]
struct PortState {
    notified: bool,
    waiter: Option<Waker>,
}

/// A table by port number: ports are small and dense, and looking one up is one index.
#[derive(Default)]
pub(crate) struct Ports(RefCell<Vec<PortState>>);

impl Ports {
    /// Remembers that `port` was notified and wakes its waiter.
    pub(crate) fn notify(&self, port: Port) {
        // A port that no task has taken over yet is not in the table; the task that takes it over looks
        // at what it waits for once before waiting, so nothing is lost by dropping this.
        if let Some(state) = self.0.borrow_mut().get_mut(port.0 as usize) {
            state.notified = true;
            if let Some(waiter) = &state.waiter {
                waiter.wake_by_ref();
            }
        }
    }

    fn reset(&self, port: Port) {
        let mut ports = self.0.borrow_mut();
        let index = port.0 as usize;
        if ports.len() <= index {
            ports.resize_with(index + 1, PortState::default);
        }
        ports[index] = PortState::default();
    }
}

/// An event channel of this domain. Dropping it closes the port.
pub struct EventChannel<H: Hypervisor> {
    core: Rc<Core<H>>,
    port: Port,
}

impl<H: Hypervisor> EventChannel<H> {
    pub(crate) fn new(core: Rc<Core<H>>, port: Port) -> Self {
        core.ports.reset(port);
        EventChannel { core, port }
    }

    /// The local port.
    pub fn port(&self) -> Port {
        self.port
    }

    /// Waits for a notification since the last one that was waited for. Any number of
    /// notifications in between count as one, as they do in Xen.
    pub async fn notified(&self) {
        core::future::poll_fn(|context| self.poll_notified(context)).await;
    }

    /// Returns ready if there was such a notification, as [`notified`](Self::notified) does. Otherwise the next one
    /// wakes the task.
    #[inline]
    pub fn poll_notified(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut ports = self.core.ports.0.borrow_mut();
        let state = &mut ports[self.port.0 as usize];
        if core::mem::take(&mut state.notified) {
            return Poll::Ready(());
        }
        match &mut state.waiter {
            Some(waiter) => waiter.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Returns whether the other end is open. If Xen does not say, the other end is assumed to be open.
    pub fn is_connected(&self) -> bool {
        let connected = self.core.hypervisor.is_connected(self.port);
        connected.unwrap_or_else(|error| {
            log::warn!(
                "cannot read the state of event channel {}: {error}",
                self.port
            );
            true
        })
    }

    /// Holds back notifications until [`unmask`](Self::unmask): meanwhile they wake no task.
    pub fn mask(&self) {
        self.core.hypervisor.mask_port(self.port);
    }

    /// Lets notifications through again. If one came meanwhile, it wakes the waiting task now.
    pub fn unmask(&self) {
        if let Err(error) = self.core.hypervisor.unmask_port(self.port) {
            // Xen refuses it for ports that are not open, which this one is.
            log::error!("cannot unmask event channel {}: {error}", self.port);
        }
    }

    /// Forgets a notification that came while they were held back. Returns whether there was one.
    pub fn forget(&self) -> bool {
        self.core.hypervisor.forget_notification(self.port)
    }

    /// Notifies the other end.
    pub fn notify(&self) {
        if let Err(error) = self.core.hypervisor.notify(self.port) {
            // The other end is gone: xenstore tells soon, and it misses nothing.
            log::debug!("cannot notify event channel {}: {error}", self.port);
        }
    }
}

impl<H: Hypervisor> Drop for EventChannel<H> {
    fn drop(&mut self) {
        self.core.ports.reset(self.port);
        if let Err(error) = self.core.hypervisor.close_port(self.port) {
            log::warn!("cannot close event channel {}: {error}", self.port);
        }
    }
}
