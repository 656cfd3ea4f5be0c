//! The structures in which the controller describes itself.

use crate::device::{Config, FakeNamespace};

/// Puts a number into a structure.
fn put<const N: usize>(bytes: &mut [u8], at: usize, number: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&number);
}

fn text(bytes: &mut [u8], at: usize, len: usize, text: &str) {
    bytes[at..at + len].fill(b' ');
    bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
}

pub fn controller(config: &Config) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    text(&mut bytes, 4, 20, config.serial);
    text(&mut bytes, 24, 40, "Fake NVMe Ctrl");
    text(&mut bytes, 64, 8, "1.0");
    bytes[77] = config.most_pages;
    put(&mut bytes, 92, (1_u32 << 8).to_le_bytes());
    (bytes[258], bytes[259]) = (3, 3);
    (bytes[512], bytes[513]) = (0x66, 0x44);
    put(&mut bytes, 516, 256_u32.to_le_bytes());
    let commands = u16::from(config.deallocates) << 2 | u16::from(config.writes_zeroes) << 3;
    put(&mut bytes, 520, commands.to_le_bytes());
    bytes[525] = config.cache.into();
    bytes
}

pub fn namespace(namespace: &FakeNamespace) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    for at in [0, 8, 16] {
        put(&mut bytes, at, namespace.blocks().to_le_bytes());
    }
    bytes[33] = 0b1001;
    bytes[99] = namespace.read_only.into();
    bytes[104] = namespace.id as u8;
    bytes[130] = namespace.shift as u8;
    bytes
}

pub fn list(config: &Config, after: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let ids = config.namespaces.iter().map(|namespace| namespace.id);
    for (index, id) in ids.filter(|id| *id > after).take(1024).enumerate() {
        put(&mut bytes, index * 4, id.to_le_bytes());
    }
    bytes
}

pub fn limits(config: &Config) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[1] = config.most_zeroes;
    put(&mut bytes, 4, config.most_range.to_le_bytes());
    bytes
}

pub fn smart() -> Vec<u8> {
    let mut bytes = vec![0; 512];
    put(&mut bytes, 1, 311_u16.to_le_bytes());
    (bytes[3], bytes[5]) = (100, 2);
    bytes
}
