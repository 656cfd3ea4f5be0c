//! Tests of the client with rustls' own server, whose cryptography is ring's.

mod certificates;
mod connections;
mod endings;
mod files;
mod fragments;
mod identities;
mod rsa_keys;
mod violations;
mod world;
