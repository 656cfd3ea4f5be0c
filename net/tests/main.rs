//! Interfaces in the simulated Xen, connected to a backend in memory and a host behind it.

mod lies;
mod lifecycle;
mod streams;
mod world;
