//! Copies between granted pages and own ones that are allowed or refused.

use super::grants::{FREE, GREF, Pair, peek, poke};
use bulkhead_xen::abi::grant_table::{CopyEnd, CopyFlags, EntryFlags, GrantCopy};
use bulkhead_xen::{DomId, GrantRef, GrantStatus, Hypervisor};

impl Pair {
    fn copy(&self, source: CopyEnd, dest: CopyEnd, len: u16, flags: CopyFlags) -> GrantStatus {
        let mut op = GrantCopy {
            source,
            dest,
            len,
            flags: flags.bits(),
            status: GrantStatus::GENERAL_ERROR,
        };
        // SAFETY: no references point into domain memory.
        unsafe { self.hypervisor.copy_grants(std::slice::from_mut(&mut op)) }.unwrap();
        op.status
    }
}

#[test]
fn copies_between_a_grant_and_an_own_page() {
    let pair = Pair::new();
    let own = pair.backend.alloc_page();
    let frame = pair.backend.frame_of(own);
    let theirs = |offset| CopyEnd::granted(GREF, pair.frontend.id(), offset);
    poke(pair.page, 5);
    let from = CopyFlags::SOURCE_GREF;
    let status = pair.copy(theirs(0), CopyEnd::own(frame, 100), 4096 - 100, from);
    assert_eq!(status, GrantStatus::OKAY);
    // SAFETY: within the page.
    assert_eq!(peek(unsafe { own.add(100) }), 5);

    poke(own, 6);
    let to = CopyFlags::DEST_GREF;
    let status = pair.copy(CopyEnd::own(frame, 0), theirs(4095), 1, to);
    assert_eq!(status, GrantStatus::OKAY);
    // SAFETY: within the page.
    assert_eq!(peek(unsafe { pair.page.add(4095) }), 6);
    assert_eq!(pair.backend.stats().bytes_copied, 4096 - 100 + 1);
    assert_eq!(pair.flags(), FREE, "a copy is over when the hypercall is");
    pair.sim.assert_no_violations();
}

#[test]
fn copies_are_checked() {
    let pair = Pair::new();
    let frame = pair.backend.frame_of(pair.backend.alloc_page());
    let own = |offset| CopyEnd::own(frame, offset);
    let theirs = |offset| CopyEnd::granted(GREF, pair.frontend.id(), offset);
    let (from, to) = (CopyFlags::SOURCE_GREF, CopyFlags::DEST_GREF);
    assert_eq!(pair.copy(theirs(0), own(0), 0, from), GrantStatus::OKAY);
    pair.sim.assert_no_violations();

    let bounds = GrantStatus::BAD_COPY_ARG;
    assert_eq!(pair.copy(theirs(1), own(0), 4096, from), bounds);
    assert_eq!(pair.copy(own(4095), theirs(0), 2, to), bounds);
    assert_eq!(pair.copy(theirs(u16::MAX), own(0), u16::MAX, from), bounds);
    assert_eq!(pair.sim.violations().len(), 3);

    // Frames are named by their owner alone.
    let foreign = CopyEnd {
        domain: pair.frontend.id(),
        ..CopyEnd::own(pair.frontend.frame_of(pair.page), 0)
    };
    let denied = GrantStatus::PERMISSION_DENIED;
    assert_eq!(pair.copy(foreign, own(0), 1, CopyFlags::empty()), denied);
    let not_ours = CopyEnd::own(pair.frontend.frame_of(pair.page), 0);
    assert_eq!(
        pair.copy(theirs(0), not_ours, 1, from),
        GrantStatus::BAD_PAGE
    );

    pair.grant(GREF, FREE | EntryFlags::READONLY);
    assert_eq!(pair.copy(theirs(0), own(0), 1, from), GrantStatus::OKAY);
    let general = GrantStatus::GENERAL_ERROR;
    assert_eq!(pair.copy(own(0), theirs(0), 1, to), general);
    pair.frontend.revoke(GREF);
    assert_eq!(pair.copy(theirs(0), own(0), 1, from), general);
    let beyond = CopyEnd::granted(GrantRef(u32::MAX), pair.frontend.id(), 0);
    assert_eq!(pair.copy(beyond, own(0), 1, from), GrantStatus::BAD_GNTREF);
    let unknown = CopyEnd::granted(GREF, DomId(77), 0);
    assert_eq!(pair.copy(unknown, own(0), 1, from), GrantStatus::BAD_DOMAIN);
    assert_eq!(pair.frontend.grants_in_use(), 0);
}
