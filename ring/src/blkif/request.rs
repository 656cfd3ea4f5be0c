//! Requests of a frontend.

use super::response::{Response, Status};
use super::segment::{SEGMENTS_PER_INDIRECT_PAGE, Segment, Segments, SlotSegments};
use super::{MAX_INDIRECT_PAGES, MAX_SEGMENTS};
use bulkhead_xen::GrantRef;
use core::fmt;

/// The identifier that a frontend gives to a request. The response repeats it; the backend does not interpret it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct RequestId(pub u64);

/// A position on the disk, in sectors as the protocol counts them (`blkif_sector_t`): 512 bytes,
/// whatever the disk's sector size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct BlkifSector(pub u64);

/// The virtual device that a request names (`blkif_vdev_t`). Each ring serves one device, so this value has no
/// effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Handle(pub u16);

/// The byte for the kind of a request (`BLKIF_OP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Opcode(pub u8);

impl Opcode {
    /// `BLKIF_OP_READ`
    pub const READ: Opcode = Opcode(0);
    /// `BLKIF_OP_WRITE`
    pub const WRITE: Opcode = Opcode(1);
    /// `BLKIF_OP_WRITE_BARRIER`
    pub const WRITE_BARRIER: Opcode = Opcode(2);
    /// `BLKIF_OP_FLUSH_DISKCACHE`
    pub const FLUSH_DISKCACHE: Opcode = Opcode(3);
    /// `BLKIF_OP_DISCARD`
    pub const DISCARD: Opcode = Opcode(5);
    /// `BLKIF_OP_INDIRECT`
    pub const INDIRECT: Opcode = Opcode(6);
}

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Opcode::READ => "READ",
            Opcode::WRITE => "WRITE",
            Opcode::WRITE_BARRIER => "WRITE_BARRIER",
            Opcode::FLUSH_DISKCACHE => "FLUSH_DISKCACHE",
            Opcode::DISCARD => "DISCARD",
            Opcode::INDIRECT => "INDIRECT",
            Opcode(other) => return write!(f, "operation {other}"),
        })
    }
}

/// A request that was checked as far as that is possible without the disk. `S` is the place of its segments: the
/// request itself, or the private copy of its slot ([`SlotRequest`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<S = Segments> {
    /// The identifier, which the response repeats.
    pub id: RequestId,
    /// The virtual device.
    pub handle: Handle,
    /// The operation.
    pub operation: Operation<S>,
}

/// A request whose segments are in the private copy of its slot.
pub type SlotRequest<'a> = Request<SlotSegments<'a>>;

/// The operation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "nothing is allocated on the data path, and transfers are the common case"
)]
pub enum Operation<S = Segments> {
    /// Transfers data, with the segments in the request itself.
    Transfer(Transfer<S>),
    /// Transfers data, with the segments in pages of their own.
    Indirect(Indirect),
    /// Makes all data durable that was written before this request.
    Flush,
    /// Discards data.
    Discard(Discard),
}

/// The direction of a transfer, and its effects beside that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransferKind {
    /// Reads from the disk into granted pages.
    Read,
    /// Writes from granted pages to the disk.
    Write,
    /// Writes after all earlier writes and before all later ones. Without segments, it only orders those.
    WriteBarrier,
    /// Flushes, then writes: a `FLUSH_DISKCACHE` with segments. The header does not mention it; other backends serve
    /// it so.
    FlushAndWrite,
}

impl TransferKind {
    /// Returns the operation's byte in the ring.
    pub const fn opcode(self) -> Opcode {
        match self {
            TransferKind::Read => Opcode::READ,
            TransferKind::Write => Opcode::WRITE,
            TransferKind::WriteBarrier => Opcode::WRITE_BARRIER,
            TransferKind::FlushAndWrite => Opcode::FLUSH_DISKCACHE,
        }
    }

    /// Returns true for everything but [`Read`](Self::Read): the granted pages are only read then.
    pub const fn is_write(self) -> bool {
        !matches!(self, TransferKind::Read)
    }
}

/// A transfer (`struct blkif_request`). Reads and plain writes have at least one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer<S = Segments> {
    /// The direction.
    pub kind: TransferKind,
    /// The first sector on the disk.
    pub sector: BlkifSector,
    /// The segments of memory, in the order of the sectors.
    pub segments: S,
}

/// A transfer with many segments (`struct blkif_request_indirect`). They lie in pages of the frontend's, which it can
/// still change: the backend copies them once, and parses the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indirect {
    /// [`Read`](TransferKind::Read) or [`Write`](TransferKind::Write), no other.
    pub kind: TransferKind,
    /// The first sector on the disk.
    pub sector: BlkifSector,
    /// The number of segments: 1 to 4096.
    segments: u16,
    grefs: [GrantRef; MAX_INDIRECT_PAGES],
}

impl Indirect {
    /// The most segments that fit the pages of one request.
    pub const MAX_SEGMENTS: usize = MAX_INDIRECT_PAGES * SEGMENTS_PER_INDIRECT_PAGE;

    /// Returns a request with `segments` segments in the pages of `grefs`, of which it uses as many
    /// as `segments` need. Returns `None` if `segments` is 0 or more than
    /// [`MAX_SEGMENTS`](Self::MAX_SEGMENTS), or if `kind` is neither read nor write.
    pub fn new(
        kind: TransferKind,
        sector: BlkifSector,
        segments: u16,
        grefs: [GrantRef; MAX_INDIRECT_PAGES],
    ) -> Option<Indirect> {
        let counted = (1..=Self::MAX_SEGMENTS).contains(&usize::from(segments));
        let plain = matches!(kind, TransferKind::Read | TransferKind::Write);
        (counted && plain).then(|| {
            let mut indirect = Indirect {
                kind,
                sector,
                segments,
                grefs,
            };
            let used = indirect.pages().len();
            indirect.grefs[used..].fill(GrantRef(0));
            indirect
        })
    }

    /// Returns the number of segments: 1 to [`MAX_SEGMENTS`](Self::MAX_SEGMENTS).
    pub const fn segments(&self) -> usize {
        self.segments as usize
    }

    /// Returns the pages that hold the segments, and no more than those.
    pub fn pages(&self) -> &[GrantRef] {
        let used = self.segments().div_ceil(SEGMENTS_PER_INDIRECT_PAGE);
        &self.grefs[..used]
    }
}

/// A discard (`struct blkif_request_discard`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// The first sector.
    pub sector: BlkifSector,
    /// The number of sectors.
    pub count: u64,
    /// All copies of the data must become unreadable (`BLKIF_DISCARD_SECURE`).
    pub secure: bool,
}

impl Request {
    /// Returns a read or write of up to [`MAX_SEGMENTS`] segments. Returns `None` if there are more, or if there is
    /// none and the kind needs one.
    pub fn transfer(
        id: RequestId,
        kind: TransferKind,
        sector: BlkifSector,
        segments: &[Segment],
    ) -> Option<Request> {
        if segments.is_empty() && kind != TransferKind::WriteBarrier {
            return None;
        }
        let segments = Segments::new(segments)?;
        Some(Request::of(
            id,
            Operation::Transfer(Transfer {
                kind,
                sector,
                segments,
            }),
        ))
    }

    /// Returns a flush.
    pub fn flush(id: RequestId) -> Request {
        Request::of(id, Operation::Flush)
    }

    /// Returns a request for the frontend's only device.
    pub fn of(id: RequestId, operation: Operation) -> Request {
        Request {
            id,
            handle: Handle::default(),
            operation,
        }
    }
}

impl<S> Request<S> {
    /// Returns the operation that the response has to name: for an indirect request, its read or write. Frontends
    /// compare the two, and give up a device whose responses differ.
    pub const fn opcode(&self) -> Opcode {
        match self.operation {
            Operation::Transfer(Transfer { kind, .. })
            | Operation::Indirect(Indirect { kind, .. }) => kind.opcode(),
            Operation::Flush => Opcode::FLUSH_DISKCACHE,
            Operation::Discard(_) => Opcode::DISCARD,
        }
    }

    /// Returns the response to this request.
    pub const fn response(&self, status: Status) -> Response {
        Response {
            id: self.id,
            operation: self.opcode(),
            status,
        }
    }
}

impl From<SlotRequest<'_>> for Request {
    fn from(request: SlotRequest<'_>) -> Request {
        Request {
            id: request.id,
            handle: request.handle,
            operation: match request.operation {
                Operation::Transfer(Transfer {
                    kind,
                    sector,
                    segments,
                }) => Operation::Transfer(Transfer {
                    kind,
                    sector,
                    segments: segments.into(),
                }),
                Operation::Indirect(indirect) => Operation::Indirect(indirect),
                Operation::Flush => Operation::Flush,
                Operation::Discard(discard) => Operation::Discard(discard),
            },
        }
    }
}

const _: () = assert!(MAX_SEGMENTS <= u8::MAX as usize);
