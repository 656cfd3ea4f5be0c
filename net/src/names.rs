//! Names of servers, and the name servers that know their addresses.

use crate::interface::Interface;
use alloc::rc::Rc;
use bulkhead_stream::ConnectError;
use bulkhead_xen::Hypervisor;
use core::future::poll_fn;
use core::task::Poll;
use smoltcp::socket::dns::{GetQueryResultError, QueryHandle, Socket};
use smoltcp::wire::{DnsQueryType, IpAddress};

/// A question to a name server. Dropping this withdraws it.
struct Question<'i, H: Hypervisor> {
    interface: &'i Interface<H>,
    query: Option<QueryHandle>,
}

impl<H: Hypervisor> Drop for Question<'_, H> {
    fn drop(&mut self) {
        if let Some(query) = self.query.take() {
            let mut state = self.interface.state.borrow_mut();
            let dns = state.dns;
            state.sockets.get_mut::<Socket<'_>>(dns).cancel_query(query);
        }
    }
}

/// Asks the name servers for the address of a host.
pub(crate) async fn resolve<H: Hypervisor>(
    interface: &Rc<Interface<H>>,
    host: &str,
) -> Result<IpAddress, ConnectError> {
    for kind in [DnsQueryType::A, DnsQueryType::Aaaa] {
        let query = {
            let mut state = interface.state.borrow_mut();
            let state = &mut *state;
            let stack = state.stack.as_mut().ok_or(ConnectError::NoNetwork)?;
            let dns = state.sockets.get_mut::<Socket<'_>>(state.dns);
            let query = dns.start_query(stack.context(), host, kind);
            query.map_err(|_| ConnectError::NoAddress)?
        };
        let mut question = Question {
            interface,
            query: Some(query),
        };
        interface.work.raise();
        let found = poll_fn(|context| {
            let mut state = interface.state.borrow_mut();
            let dns = state.dns;
            let dns = state.sockets.get_mut::<Socket<'_>>(dns);
            match dns.get_query_result(query) {
                Err(GetQueryResultError::Pending) => {
                    dns.register_query_waker(query, context.waker());
                    Poll::Pending
                }
                result => {
                    // The place is free again.
                    question.query = None;
                    Poll::Ready(result.ok())
                }
            }
        })
        .await;
        if let Some(address) = found.and_then(|found| found.first().copied()) {
            return Ok(address);
        }
    }
    Err(ConnectError::NoAddress)
}
