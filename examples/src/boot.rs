//! The common part of each example's `main`: xenstore, a grant table, address space for foreign pages, and one task.

use crate::counting::Counting;
use crate::peer::Peer;
use crate::{Failure, Role};
use alloc::rc::Rc;
use bulkhead_executor::{Executor, Handle};
use bulkhead_grant::{GrantTable, Region};
use bulkhead_kernel::{Hypercalls, Machine, ShutdownReason, command_line};
use bulkhead_xenstore_client::{Client, Ring};
use core::cell::Cell;
use core::future::Future;

/// The domain of an example, with everything that it uses.
pub struct Domain {
    /// The vCPU's tasks.
    pub handle: Handle<Counting<Hypercalls>>,
    /// The hypervisor, with its counts.
    pub hypervisor: Counting<Hypercalls>,
    /// The domain's memory.
    pub memory: Hypercalls,
    /// The domain's own grant table.
    pub table: GrantTable<Counting<Hypercalls>>,
    /// The address space for pages of the other domain.
    pub region: Region<Counting<Hypercalls>>,
    /// The other domain.
    pub peer: Peer,
    /// The role of this domain of the two (`role=grant` or `role=map` on the command line).
    pub role: Role,
    /// The domain's command line.
    pub command_line: &'static str,
}

/// Runs an example to its end. The domain's shutdown reason says whether it failed.
pub fn run<F>(machine: &Machine, example: impl FnOnce(Domain) -> F + 'static) -> ShutdownReason
where
    F: Future<Output = Result<(), Failure>>,
{
    let line = machine.command_line;
    let role = match command_line::value(line, "role") {
        Some("grant") => Role::Granter,
        Some("map") => Role::Mapper,
        _ => {
            log::error!("the command line needs role=grant or role=map");
            return ShutdownReason::Crash;
        }
    };
    let memory = machine.hypervisor;
    let hypervisor = Counting::new(memory);
    let mut executor = Executor::new(hypervisor.clone());
    let handle = executor.handle();
    // SAFETY: the page is the domain's xenstore ring, and nothing else in this domain uses it.
    let ring = unsafe { Ring::new(hypervisor.clone(), machine.store) };
    let store = Client::start(&handle, ring);
    let table = GrantTable::new(hypervisor.clone());
    let region = Region::new(hypervisor.clone());
    let (Some(table), Some(region)) = (table, region) else {
        log::error!("there is no grant table, or no address space for foreign pages");
        return ShutdownReason::Crash;
    };
    let end = Rc::new(Cell::new(None));
    let ended = end.clone();
    let tasks = handle.clone();
    handle.spawn(async move {
        let found = Peer::find(&store).await;
        let outcome = match found {
            Ok(peer) => {
                let domain = Domain {
                    handle: tasks,
                    hypervisor,
                    memory,
                    table,
                    region,
                    peer,
                    role,
                    command_line: line,
                };
                example(domain).await
            }
            Err(error) => Err(error),
        };
        ended.set(Some(match outcome {
            Ok(()) => ShutdownReason::Poweroff,
            Err(failure) => {
                log::error!("{failure}");
                ShutdownReason::Crash
            }
        }));
    });
    executor.run_until(|| end.get().is_some());
    end.get().unwrap_or(ShutdownReason::Crash)
}
