//! Resolving the names of servers, by name servers.

use crate::interface::{Interface, State};
use alloc::rc::Rc;
use alloc::vec::Vec;
use bulkhead_stream::ConnectError;
use bulkhead_xen::Hypervisor;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use futures_util::future::{Either, select};
use smoltcp::socket::dns::{GetQueryResultError, QueryHandle, Socket};
use smoltcp::wire::{DnsQueryType, IpAddress};

/// The time that a name server has for an answer; two packets ask for it in that time.
const PATIENCE: Duration = Duration::from_secs(3);
/// The most name servers: the stack's limit.
const MOST: usize = 4;

impl<H: Hypervisor> State<H> {
    /// Returns the name servers, in the order in which they are asked.
    pub(crate) fn name_servers(&self) -> Vec<IpAddress> {
        let all = [&self.settings, &self.leased];
        let all = all.iter().flat_map(|settings| &settings.name_servers);
        let mut servers: Vec<IpAddress> = all.copied().take(MOST).collect();
        if !servers.is_empty() {
            let first = self.silent_name_servers % servers.len();
            servers.rotate_left(first);
        }
        servers
    }

    /// Has the stack ask these name servers.
    pub(crate) fn use_name_servers(&mut self) {
        let servers = self.name_servers();
        let dns = self.sockets.get_mut::<Socket<'_>>(self.dns);
        dns.update_servers(&servers);
    }

    /// Has the next name server asked first from now on.
    fn turn_to_next_name_server(&mut self) {
        self.silent_name_servers = self.silent_name_servers.wrapping_add(1);
        self.use_name_servers();
    }
}

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

/// Asks the name servers for the addresses of a host, and returns them if at least one can be reached. They are not
/// cached: the next connection asks again.
pub(crate) async fn resolve<H: Hypervisor>(
    interface: &Rc<Interface<H>>,
    host: &str,
) -> Result<Vec<IpAddress>, ConnectError> {
    let mut found = Vec::new();
    for kind in [DnsQueryType::A, DnsQueryType::Aaaa] {
        let told = ask_each(interface, host, kind).await?;
        found.extend(told.into_iter().filter(is_a_servers));
        let state = interface.state.borrow();
        if found.iter().any(|address| state.reaches(address)) {
            return Ok(found);
        }
    }
    Err(match found.is_empty() {
        true => ConnectError::NoAddress,
        false => ConnectError::Unreachable,
    })
}

/// Returns whether the address can be a server's: it is neither this domain's own, nor a group's.
fn is_a_servers(address: &IpAddress) -> bool {
    let is_loopback = match address {
        IpAddress::Ipv4(address) => address.is_loopback(),
        IpAddress::Ipv6(address) => address.is_loopback(),
    };
    address.is_unicast() && !is_loopback
}

/// Asks one name server after the other, until one answers.
async fn ask_each<H: Hypervisor>(
    interface: &Rc<Interface<H>>,
    host: &str,
    kind: DnsQueryType,
) -> Result<Vec<IpAddress>, ConnectError> {
    let servers = interface.state.borrow().name_servers();
    for server in &servers {
        // Without a way to it, the stack answers that the name has no address.
        if interface.state.borrow().reaches(server) {
            let patience = interface.handle.sleep(PATIENCE);
            let answer = pin!(ask(interface, host, kind));
            if let Either::Left((answer, _)) = select(answer, patience).await {
                return answer;
            }
        }
        interface.state.borrow_mut().turn_to_next_name_server();
    }
    Err(match servers.is_empty() {
        true => ConnectError::NoNameServer,
        false => ConnectError::NameServerSilent,
    })
}

/// Asks the name server whose turn it is. Returns no address if the host name has none.
async fn ask<H: Hypervisor>(
    interface: &Rc<Interface<H>>,
    host: &str,
    kind: DnsQueryType,
) -> Result<Vec<IpAddress>, ConnectError> {
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
    poll_fn(|context| {
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
                let found = result.iter().flatten().copied().collect();
                Poll::Ready(Ok(found))
            }
        }
    })
    .await
}
