//! The grant operations of one domain on another's grants: map, unmap, copy.

use super::faults::GrantUse;
use super::grants::{MapTrack, Purpose};
use super::memory::{self, Location};
use super::stats::Violation;
use super::world::{Domain, DomainKind, World};
use bulkhead_xen::abi::grant_table::{
    CopyEnd, CopyFlags, GrantCopy, MapFlags, MapGrantRef, UnmapGrantRef,
};
use bulkhead_xen::{DomId, Gfn, GrantHandle, GrantRef, GrantStatus, Mfn, PAGE_SHIFT, PAGE_SIZE};

/// The flags with which a copy holds its two ends: as a mapping for reading, and one for writing.
const READING: MapFlags = MapFlags::HOST_MAP.union(MapFlags::READONLY);
const WRITING: MapFlags = MapFlags::HOST_MAP;

impl World {
    /// One entry of `GNTTABOP_map_grant_ref` (`map_grant_ref`).
    pub(super) fn map_grant(&mut self, caller: DomId, op: &mut MapGrantRef) {
        match self.try_map(caller, op) {
            Ok((handle, frame)) => {
                op.handle = handle;
                op.dev_bus_addr = frame.0 << PAGE_SHIFT;
                op.status = GrantStatus::OKAY;
            }
            Err(status) => op.status = status,
        }
    }

    fn try_map(
        &mut self,
        caller: DomId,
        op: &MapGrantRef,
    ) -> Result<(GrantHandle, Mfn), GrantStatus> {
        let domain = caller;
        let flags = MapFlags::from_bits_retain(op.flags);
        if !flags.intersects(MapFlags::HOST_MAP | MapFlags::DEVICE_MAP) {
            let flags = op.flags;
            self.violations.push(Violation::MapFlags { domain, flags });
            return Err(GrantStatus::BAD_GNTREF);
        }
        let refused = match self.known(caller).kind {
            DomainKind::Pvh => flags.contains(MapFlags::DEVICE_MAP),
            DomainKind::Pv => false,
        };
        if refused || !MapFlags::all().contains(flags) {
            let flags = op.flags;
            self.violations.push(Violation::MapFlags { domain, flags });
            return Err(GrantStatus::GENERAL_ERROR);
        }
        if self.domain(op.domain).is_none() {
            return Err(GrantStatus::BAD_DOMAIN);
        }
        let grants = &mut self.known_mut(caller).grants;
        let handle = grants.take_handle().ok_or(GrantStatus::NO_SPACE)?;
        let mapped = self.pin_and_map(caller, op, flags);
        match mapped {
            Ok(mapping) => {
                let grants = &mut self.known_mut(caller).grants;
                grants.set_mapping(handle, mapping);
                Ok((handle, mapping.frame))
            }
            Err(status) => {
                self.known_mut(caller).grants.put_handle(handle);
                Err(status)
            }
        }
    }

    fn pin_and_map(
        &mut self,
        caller: DomId,
        op: &MapGrantRef,
        flags: MapFlags,
    ) -> Result<MapTrack, GrantStatus> {
        let (owner, gref, address) = (op.domain, op.gref, op.host_addr);
        if let Some(status) = self.faults.take_grant(GrantUse::Map, owner, gref) {
            return Err(status);
        }
        let owning = self.known_mut(owner);
        let gfn = owning.pin(gref, caller, flags, Purpose::Map)?;
        let frame = owning.memory.machine_frame(gfn);
        if flags.contains(MapFlags::HOST_MAP) {
            // A real Xen would map over whatever is there, or crash the caller.
            let domain = caller;
            let violation = match self.known_mut(caller).region.slot(address) {
                None => Some(Violation::MapOutsideRegion { domain, address }),
                Some(true) => Some(Violation::MapOccupied { domain, address }),
                Some(slot) => {
                    *slot = true;
                    None
                }
            };
            if let Some(violation) = violation {
                self.violations.push(violation);
                self.known_mut(owner).unpin(gref, flags);
                return Err(GrantStatus::GENERAL_ERROR);
            }
            let writable = !flags.contains(MapFlags::READONLY);
            self.machine.map_frame(address as usize, frame, writable);
        }
        Ok(MapTrack {
            owner,
            gref,
            flags,
            frame,
            gfn,
            address,
        })
    }

    /// One entry of `GNTTABOP_unmap_grant_ref` (`unmap_common`).
    pub(super) fn unmap_grant(&mut self, caller: DomId, op: &mut UnmapGrantRef) {
        op.status = match self.try_unmap(caller, op) {
            Ok(()) => GrantStatus::OKAY,
            Err(status) => status,
        };
    }

    fn try_unmap(&mut self, caller: DomId, op: &UnmapGrantRef) -> Result<(), GrantStatus> {
        let (domain, handle, address) = (caller, op.handle, op.host_addr);
        let Some(mapping) = self.known(caller).grants.mapping(handle) else {
            let violation = Violation::UnmapHandle { domain, handle };
            self.violations.push(violation);
            return Err(GrantStatus::BAD_HANDLE);
        };
        let fault = self
            .faults
            .take_grant(GrantUse::Unmap, mapping.owner, mapping.gref);
        if let Some(status) = fault {
            return Err(status);
        }
        let bus = mapping.frame.0 << PAGE_SHIFT;
        let device = mapping.flags.contains(MapFlags::DEVICE_MAP);
        if device && op.dev_bus_addr != 0 && op.dev_bus_addr != bus {
            return Err(GrantStatus::BAD_DEV_ADDR);
        }
        let host = mapping.flags.contains(MapFlags::HOST_MAP);
        // Address 0, of either kind, asks a real Xen to leave that mapping alone: a leak, for us.
        let forgets_device = device && !host && op.dev_bus_addr == 0;
        if (host && address != mapping.address) || forgets_device {
            self.violations.push(Violation::UnmapAddress {
                domain,
                handle,
                address,
            });
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let mut done = mapping.flags & MapFlags::READONLY;
        if host {
            self.unmap_page(caller, address);
            done |= MapFlags::HOST_MAP;
        }
        if device && op.dev_bus_addr != 0 {
            done |= MapFlags::DEVICE_MAP;
        }
        let left = mapping.flags.difference(done) - MapFlags::READONLY;
        let grants = &mut self.known_mut(caller).grants;
        if left.is_empty() {
            grants.put_handle(handle);
        } else {
            let flags = left | (mapping.flags & MapFlags::READONLY);
            grants.set_mapping(handle, MapTrack { flags, ..mapping });
        }
        self.known_mut(mapping.owner).unpin(mapping.gref, done);
        self.reap(mapping.owner);
        Ok(())
    }

    fn unmap_page(&mut self, caller: DomId, address: u64) {
        let slot = self.known_mut(caller).region.slot(address);
        *slot.expect("only pages of the region are mapped") = false;
        self.machine.unmap_page(address as usize);
    }

    /// Unmaps all that a dying domain has mapped (`gnttab_release_mappings`).
    pub(super) fn release_mappings(&mut self, id: DomId) {
        for handle in self.known(id).grants.live_handles() {
            let grants = &mut self.known_mut(id).grants;
            let mapping = grants.mapping(handle).expect("the handle is live");
            grants.put_handle(handle);
            if mapping.flags.contains(MapFlags::HOST_MAP) {
                self.unmap_page(id, mapping.address);
            }
            self.known_mut(mapping.owner)
                .unpin(mapping.gref, mapping.flags);
            if mapping.owner != id {
                self.reap(mapping.owner);
            }
        }
        self.machine.settle();
    }

    /// One entry of `GNTTABOP_copy` (`gnttab_copy_one`). Returns the bytes copied.
    pub(super) fn copy_grant(&mut self, caller: DomId, op: &mut GrantCopy) -> u64 {
        let (status, bytes) = match self.try_copy(caller, op) {
            Ok(()) => (GrantStatus::OKAY, u64::from(op.len)),
            Err(status) => (status, 0),
        };
        op.status = status;
        bytes
    }

    fn try_copy(&mut self, caller: DomId, op: &GrantCopy) -> Result<(), GrantStatus> {
        if op.len == 0 {
            return Ok(());
        }
        let flags = CopyFlags::from_bits_retain(op.flags);
        let source_granted = flags.contains(CopyFlags::SOURCE_GREF);
        let dest_granted = flags.contains(CopyFlags::DEST_GREF);
        let source_owner = self.copy_owner(caller, &op.source, source_granted)?;
        let dest_owner = self.copy_owner(caller, &op.dest, dest_granted)?;
        let source = self.claim(caller, source_owner, &op.source, source_granted, READING)?;
        let copied = self
            .claim(caller, dest_owner, &op.dest, dest_granted, WRITING)
            .and_then(|dest| {
                let copied =
                    self.copy_bytes(caller, op, (source_owner, source), (dest_owner, dest));
                if dest_granted {
                    self.known_mut(dest_owner)
                        .unpin(GrantRef(op.dest.what as u32), WRITING);
                }
                copied
            });
        if source_granted {
            self.known_mut(source_owner)
                .unpin(GrantRef(op.source.what as u32), READING);
        }
        copied
    }

    /// Returns the domain whose page one end of a copy names (`gnttab_copy_lock_domain`).
    fn copy_owner(
        &self,
        caller: DomId,
        end: &CopyEnd,
        granted: bool,
    ) -> Result<DomId, GrantStatus> {
        if end.domain == DomId::SELF {
            return Ok(caller);
        }
        if !granted {
            return Err(GrantStatus::PERMISSION_DENIED);
        }
        match self.domain(end.domain) {
            Some(_) => Ok(end.domain),
            None => Err(GrantStatus::BAD_DOMAIN),
        }
    }

    /// The frame at one end of a copy, pinned if it is granted (`gnttab_copy_claim_buf`).
    fn claim(
        &mut self,
        caller: DomId,
        owner: DomId,
        end: &CopyEnd,
        granted: bool,
        flags: MapFlags,
    ) -> Result<Gfn, GrantStatus> {
        if granted {
            let gref = GrantRef(end.what as u32);
            if let Some(status) = self.faults.take_grant(GrantUse::Copy, owner, gref) {
                return Err(status);
            }
            return self
                .known_mut(owner)
                .pin(gref, caller, flags, Purpose::Copy);
        }
        let frame = Gfn(end.what);
        if self.known(owner).memory.owns(frame) {
            Ok(frame)
        } else {
            Err(GrantStatus::BAD_PAGE)
        }
    }

    fn copy_bytes(
        &mut self,
        caller: DomId,
        op: &GrantCopy,
        (source_owner, source): (DomId, Gfn),
        (dest_owner, dest): (DomId, Gfn),
    ) -> Result<(), GrantStatus> {
        let bytes = usize::from(op.len);
        let fits = |end: &CopyEnd| usize::from(end.offset) + bytes <= PAGE_SIZE;
        if !fits(&op.source) || !fits(&op.dest) {
            self.violations
                .push(Violation::CopyBounds { domain: caller });
            return Err(GrantStatus::BAD_COPY_ARG);
        }
        let from = Location {
            memory: &self.known(source_owner).memory,
            frame: source,
            offset: op.source.offset,
        };
        let to = Location {
            memory: &self.known(dest_owner).memory,
            frame: dest,
            offset: op.dest.offset,
        };
        memory::copy(&from, &to, bytes);
        Ok(())
    }

    /// A domain that was looked up before.
    fn known(&self, id: DomId) -> &Domain {
        self.domain(id).expect("the domain was looked up")
    }

    fn known_mut(&mut self, id: DomId) -> &mut Domain {
        self.domain_mut(id).expect("the domain was looked up")
    }
}
