//! Interfaces in the simulated Xen, connected to a backend in memory and a host behind it.

mod dhcp;
mod left;
mod leftovers;
mod lifecycle;
mod names;
mod neighbours;
mod queues;
mod resets;
mod streams;
mod violations;
