//! Registers of functions, mapped by their drivers.

use crate::machine::{Accesses, Machine, Noting, second};
use bulkhead_pci::{BadBar, PciError};
use bulkhead_xen::{Errno, Mfn, Mmio, PAGE_SHIFT};
use bulkhead_xen_sim::pci::{BarConfig, FunctionConfig, MsixConfig, SimFunction};
use std::rc::Rc;

/// A machine with one function, and the accesses to its registers.
fn noting(config: &FunctionConfig) -> (Machine, SimFunction, Accesses) {
    let machine = Machine::new();
    let accesses = Accesses::default();
    let noted = accesses.clone();
    let function = machine.sim.add_function(config, |_| Noting(noted));
    machine.attach(&[&function]);
    (machine, function, accesses)
}

#[test]
fn registers_are_those_of_the_bar() {
    let (machine, _, accesses) = noting(&FunctionConfig::default());
    let function = machine.take();
    let opened = machine.finish(async move {
        function.enable().await.expect("enabled");
        let all = function.open_registers(0, 0..0x2000).await;
        let some = function.open_registers(0, 0x1008..0x1010).await;
        (all.expect("registers"), some.expect("registers"))
    });
    let (all, some) = opened;
    assert_eq!(machine.domain.mapped_registers(), 3);
    assert_eq!((all.len(), some.len()), (0x2000, 8));
    assert_eq!(all.read32(0x1c), 0x1c);
    assert_eq!(all.read64(0x28), 0x2c << 32 | 0x28);
    assert_eq!((some.read16(2), some.read8(7)), (0x100a, 0x0f));
    some.write32(4, 9);
    let noted: Vec<_> = accesses.lock().expect("no panics").drain(..).collect();
    let expected = [
        (0, 0x1c, 4, None),
        (0, 0x28, 4, None),
        (0, 0x2c, 4, None),
        (0, 0x100a, 2, None),
        (0, 0x100f, 1, None),
        (0, 0x100c, 4, Some(9)),
    ];
    assert_eq!(noted, expected);
    // Neither past the end nor between two registers.
    assert_eq!(
        (some.read32(8), some.read64(4)),
        (u32::MAX, 0xffff_ffff_0000_100c)
    );
    assert_eq!((all.read32(0x2000), all.read32(1)), (u32::MAX, u32::MAX));
    some.write32(8, 1);
    all.write8(usize::MAX, 1);
    let noted: Vec<_> = accesses.lock().expect("no panics").drain(..).collect();
    assert_eq!(noted, [(0, 0x100c, 4, None)]);
    drop((all, some));
    assert_eq!(machine.domain.mapped_registers(), 0);
}

#[test]
fn a_function_that_is_off_reads_as_ones() {
    let (machine, _, accesses) = noting(&FunctionConfig::default());
    let function = machine.take();
    let opened = machine.finish(async move { function.open_registers(0, 0..0x1000).await });
    let registers = opened.expect("registers");
    assert_eq!(registers.read32(0), u32::MAX);
    registers.write32(0, 1);
    assert!(accesses.lock().expect("no panics").is_empty());
}

#[test]
fn bars_of_all_kinds_are_sized() {
    let bar = |number, size, wide| BarConfig { number, size, wide };
    let (machine, ..) = noting(&FunctionConfig {
        bars: vec![
            bar(0, 256, false),
            bar(1, 0x1000, false),
            bar(2, 0x10_0000, true),
            bar(5, 16, false),
        ],
        msix: None,
        ..FunctionConfig::default()
    });
    let function = Rc::new(machine.take());
    let size = |number| {
        let function = function.clone();
        let bar = machine.finish(async move { function.bar(number).await });
        bar.map(|bar| bar.size)
    };
    assert_eq!(size(0), Ok(256));
    assert_eq!(size(1), Ok(0x1000));
    assert_eq!(size(2), Ok(0x10_0000));
    assert_eq!(size(5), Ok(16));
    assert_eq!(size(2), Ok(0x10_0000), "known");
    // The upper half of another one.
    let nonsense = PciError::Bar(BadBar::Nonsense { bar: 3 });
    assert_eq!(size(3), Err(nonsense));
    for missing in [4, 6, 255] {
        let expected = PciError::Bar(BadBar::Missing { bar: missing });
        assert_eq!(size(missing), Err(expected));
    }
    let opening = function.clone();
    let small = machine.finish(async move {
        opening.enable().await.expect("enabled");
        opening.open_registers(5, 8..16).await
    });
    let small = small.expect("registers of a BAR that is less than a page");
    assert_eq!(
        (small.len(), small.read32(0), small.read32(8)),
        (8, 8, u32::MAX)
    );
    let too_much = machine.finish(async move { function.open_registers(0, 0..257).await });
    let too_small = BadBar::TooSmall { bar: 0, size: 256 };
    assert_eq!(too_much.err(), Some(PciError::Bar(too_small)));
}

#[test]
fn pages_of_the_msix_table_are_refused() {
    // The table is behind the doorbells in their page, and the pending bits have one of their own.
    let (machine, ..) = noting(&FunctionConfig {
        msix: Some(MsixConfig {
            entries: 8,
            bar: 0,
            table: 0x1800,
            pending: 0x3000,
        }),
        ..FunctionConfig::default()
    });
    let function = Rc::new(machine.take());
    let open = |offsets| {
        let function = function.clone();
        let opened = machine.finish(async move { function.open_registers(0, offsets).await });
        opened.map(|registers| registers.len())
    };
    let protected = Err(PciError::Protected { bar: 0 });
    let asking = function.clone();
    let offsets = machine.finish(async move { asking.register_offsets(0).await });
    assert_eq!(offsets, Ok(0..0x1000));
    assert_eq!(open(0..0x1000), Ok(0x1000));
    assert_eq!(open(0..0x1004), protected);
    assert_eq!(open(0x1000..0x1100), protected);
    assert_eq!(open(0x2000..0x3000), Ok(0x1000));
    assert_eq!(open(0x3ff8..0x4000), protected);
    assert_eq!(machine.domain.mapped_registers(), 0);
}

#[test]
fn xen_maps_only_what_the_domain_was_given() {
    let (machine, functions) = Machine::with(&[FunctionConfig::default()]);
    let others = machine.add(&second());
    let hypervisor = machine.domain.hypervisor();
    let frame = |function: &SimFunction| Mfn(u64::from(function.config(0x10) & !0xf) >> PAGE_SHIFT);
    let map = |frame, pages| hypervisor.map_registers(frame, pages).err();
    let own = frame(&functions[0]);
    assert_eq!(map(own, 2), None);
    assert_eq!(map(own, 3), Some(Errno::ACCES));
    assert_eq!(map(frame(&others), 1), Some(Errno::PERM));
    assert_eq!(map(Mfn(own.0 + 4), 1), Some(Errno::PERM));
    let page = machine.domain.alloc_page();
    let memory = Mfn(machine.domain.frame_of(page).0);
    assert_eq!(map(memory, 1), Some(Errno::PERM));
    let guest = machine.sim.add_domain();
    let refused = guest.hypervisor().map_registers(own, 1).err();
    assert_eq!(refused, Some(Errno::NOSYS));
    assert_eq!(machine.domain.mapped_registers(), 0);
}
