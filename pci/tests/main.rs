//! The frontend in the simulated Xen, with a pciback and functions that behave or do not. One program, so that it is
//! linked once.

mod departures;
mod functions;
mod interrupts;
mod journal;
mod machine;
mod operations;
mod registers;
