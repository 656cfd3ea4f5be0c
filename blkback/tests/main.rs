//! The whole backend in the simulated Xen, with guests whose frontends behave or do not. One program,
//! so that the simulated machine (`world`) is compiled once.

mod abis;
mod allocations;
mod bad_details;
mod bad_queues;
mod bad_requests;
mod bad_targets;
mod broken_store;
mod closing;
mod discard;
mod error_nodes;
mod given_up;
mod hostile;
mod indexes;
mod late;
mod life;
mod map_slots;
mod memory;
mod memory_target;
mod notifications;
mod operator;
mod ordering;
mod orders;
mod persistent;
mod queues;
mod random;
mod refusals;
mod remade;
mod rings;
mod scale;
mod serving;
mod stale;
mod stopping;
mod toolstack;
mod unserved;
mod world;
