//! The whole backend in the simulated Xen, with guests whose frontends behave or do not
//! (`bulkhead-blkback-testkit`). One program, so that it is linked once.

mod abis;
mod allocations;
mod async_store;
mod bad_details;
mod bad_queues;
mod bad_requests;
mod bad_targets;
mod barriers;
mod broken_store;
mod bus_addresses;
mod closing;
mod coalescing;
mod data_leaks;
mod discard;
mod error_nodes;
mod fairness;
mod gathering;
mod given_up;
mod guest_lines;
mod hostile;
mod hostile_backend;
mod indexes;
mod kept_rings;
mod lasting;
mod lifecycle;
mod manual;
mod map_slots;
mod memory;
mod memory_target;
mod messages;
mod nbd;
mod nbd_lines;
mod notifications;
mod nvme;
mod operator;
mod persistent;
mod queues;
mod random;
mod reattach_races;
mod reconnections;
#[cfg(feature = "recover")]
mod recovery;
#[cfg(feature = "recover")]
mod recovery_any_order;
#[cfg(feature = "recover")]
mod recovery_control_plane;
#[cfg(feature = "recover")]
mod recovery_devices;
#[cfg(feature = "recover")]
mod recovery_going_on;
#[cfg(feature = "recover")]
mod recovery_hostile;
#[cfg(feature = "recover")]
mod recovery_in_order;
#[cfg(feature = "recover")]
mod recovery_load;
#[cfg(feature = "recover")]
mod recovery_nbd;
#[cfg(feature = "recover")]
mod recovery_own_disks;
#[cfg(feature = "recover")]
mod recovery_pciback;
mod refusals;
mod requests_below;
mod rings;
mod scale;
mod scripted_backend;
mod shown;
mod silent_stores;
mod smoke;
mod state_orders;
mod stopping;
mod stores;
mod toolstack;
mod unanswered;
mod unserved;
#[cfg(feature = "recover")]
mod upgrade;
mod virtio;
mod volumes;
mod waiting_store;
