//! Every target over its seeds and over mutations of them, on the stable toolchain.

use bulkhead_fuzz::{TARGETS, seeds};
use std::panic::catch_unwind;

/// A generator of numbers that are the same in every run (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as usize % limit
    }

    /// Changes an input in a few places, as a fuzzer would.
    fn mutate(&mut self, bytes: &mut Vec<u8>, others: &[(String, Vec<u8>)]) {
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len() + 1);
            match self.below(7) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                2 if at < bytes.len() => bytes[at] = self.below(256) as u8,
                3 => bytes.insert(at, self.below(256) as u8),
                4 if at < bytes.len() => _ = bytes.remove(at),
                5 => bytes.truncate(at),
                _ => {
                    let other = &others[self.below(others.len())].1;
                    let from = self.below(other.len() + 1);
                    let until = from + self.below(other.len() - from + 1);
                    bytes.splice(at..at, other[from..until].iter().copied());
                    bytes.truncate(1 << 16);
                }
            }
        }
    }
}

/// Returns the number of mutations to try: `BULKHEAD_FUZZ_ROUNDS`, or `default`, which takes a few seconds.
fn rounds(default: usize) -> usize {
    let asked = std::env::var("BULKHEAD_FUZZ_ROUNDS").ok();
    asked.map_or(default, |asked| asked.parse().expect("a number of rounds"))
}

fn smoke(name: &str, default: usize) {
    let target = TARGETS.iter().find(|target| target.0 == name);
    let run = target.expect("a target of that name").1;
    let try_on = |bytes: &[u8]| {
        if catch_unwind(|| run(bytes)).is_err() {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!("{name} fails; to keep the input: seeds/{name}/NAME.hex with\n{hex}");
        }
    };
    let seeds = seeds::of(name);
    assert!(!seeds.is_empty(), "{name} has no seeds");
    for (_, bytes) in &seeds {
        try_on(bytes);
    }
    let mut random = Random(1);
    for _ in 0..rounds(default) {
        let mut bytes = seeds[random.below(seeds.len())].1.clone();
        random.mutate(&mut bytes, &seeds);
        try_on(&bytes);
    }
}

#[test]
fn requests() {
    smoke("requests", 50_000);
}

#[test]
fn ring() {
    smoke("ring", 10_000);
}

#[test]
fn xenstore() {
    smoke("xenstore", 10_000);
}

#[test]
fn target() {
    smoke("target", 50_000);
}

#[test]
fn archive() {
    smoke("archive", 10_000);
}

#[test]
fn upgrade() {
    smoke("upgrade", 20_000);
}

#[test]
fn volumes() {
    smoke("volumes", 2_000);
}

#[test]
fn frontend() {
    smoke("frontend", 20_000);
}

#[test]
fn toolstack() {
    smoke("toolstack", 20_000);
}

#[test]
fn operator() {
    smoke("operator", 20_000);
}

#[test]
fn backend() {
    smoke("backend", 3_000);
}

#[test]
fn life() {
    smoke("life", 30);
}

#[test]
fn blkfront() {
    smoke("blkfront", 30);
}

#[test]
fn nbd() {
    smoke("nbd", 60);
}

#[test]
fn net() {
    smoke("net", 60);
}

#[test]
fn nvme() {
    smoke("nvme", 30);
}

#[test]
fn every_target_has_its_folder_and_its_program() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, _) in TARGETS {
        assert!(seeds::folder(name).is_dir(), "{name}");
        let program = root.join(format!("fuzz_targets/{name}.rs"));
        let text = std::fs::read_to_string(program).expect("a program for libFuzzer");
        assert!(text.contains(&format!("bulkhead_fuzz::{name}(bytes)")));
    }
}

#[test]
fn tls() {
    smoke("tls", 100);
}

#[test]
fn virtio() {
    smoke("virtio", 60);
}
