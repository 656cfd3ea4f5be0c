//! What a frontend can ask.

use super::response::{Response, Status};
use super::segment::{SEGMENTS_PER_INDIRECT_PAGE, Segment, Segments, SlotSegments};
use super::{MAX_INDIRECT_PAGES, MAX_SEGMENTS};
use bulkhead_xen::GrantRef;
use core::fmt;

/// The frontend's own name for a request: means nothing to us, and goes back in the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct RequestId(pub u64);

/// A position on the disk, in sectors as the protocol counts them (`blkif_sector_t`): 512 bytes,
/// whatever the disk's sector size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Sector(pub u64);

/// Which virtual device the frontend means (`blkif_vdev_t`). Each ring serves one device, so it
/// decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Handle(pub u16);

/// The byte that says what kind of request this is (`BLKIF_OP_*`).
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

/// One request, checked as far as it can be without knowing the disk. `S` is where its segments are:
/// in itself, or in the private copy of its slot ([`SlotRequest`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<S = Segments> {
    /// Goes back in the response.
    pub id: RequestId,
    /// The virtual device.
    pub handle: Handle,
    /// What to do.
    pub operation: Operation<S>,
}

/// A request whose segments are in the private copy of its slot.
pub type SlotRequest<'a> = Request<SlotSegments<'a>>;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "nothing is allocated on the data path, and transfers are the common case"
)]
pub enum Operation<S = Segments> {
    /// Moves data, with the segments in the request itself.
    Transfer(Transfer<S>),
    /// Moves data, with the segments in pages of their own.
    Indirect(Indirect),
    /// Makes all data written before this request durable.
    Flush,
    /// Forgets data.
    Discard(Discard),
}

/// Which way data moves, and what else happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransferKind {
    /// From the disk into granted pages.
    Read,
    /// From granted pages to the disk.
    Write,
    /// A write ordered after all earlier writes and before all later ones. It may be empty: the
    /// order alone.
    WriteBarrier,
    /// `FLUSH_DISKCACHE` that carries segments: a flush, then a write. The header does not speak
    /// of it; other backends serve it so.
    FlushAndWrite,
}

impl TransferKind {
    /// The operation's byte on the wire.
    pub const fn opcode(self) -> Opcode {
        match self {
            TransferKind::Read => Opcode::READ,
            TransferKind::Write => Opcode::WRITE,
            TransferKind::WriteBarrier => Opcode::WRITE_BARRIER,
            TransferKind::FlushAndWrite => Opcode::FLUSH_DISKCACHE,
        }
    }

    /// True for everything but [`Read`](Self::Read): granted pages are only read.
    pub const fn is_write(self) -> bool {
        !matches!(self, TransferKind::Read)
    }
}

/// Data to move (`struct blkif_request`). Reads and plain writes have at least one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer<S = Segments> {
    /// Which way.
    pub kind: TransferKind,
    /// Where on the disk it starts.
    pub sector: Sector,
    /// The memory, in the order of the disk.
    pub segments: S,
}

/// Data to move by many segments (`struct blkif_request_indirect`). The segments lie in pages of
/// the frontend's, which it may still change: copy them once, then parse the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indirect {
    /// [`Read`](TransferKind::Read) or [`Write`](TransferKind::Write), no other.
    pub kind: TransferKind,
    /// Where on the disk it starts.
    pub sector: Sector,
    /// How many segments there are: 1 to 4096.
    segments: u16,
    grefs: [GrantRef; MAX_INDIRECT_PAGES],
}

impl Indirect {
    /// The most segments that fit the pages of one request.
    pub const MAX_SEGMENTS: usize = MAX_INDIRECT_PAGES * SEGMENTS_PER_INDIRECT_PAGE;

    /// A request for `segments` segments in the pages of `grefs`, of which only as many are used
    /// as `segments` need. `None` if `segments` is 0 or more than
    /// [`MAX_SEGMENTS`](Self::MAX_SEGMENTS), or if `kind` is neither read nor write.
    pub fn new(
        kind: TransferKind,
        sector: Sector,
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

    /// How many segments there are: 1 to [`MAX_SEGMENTS`](Self::MAX_SEGMENTS).
    pub const fn segments(&self) -> usize {
        self.segments as usize
    }

    /// The pages that hold them, just as many as it takes.
    pub fn pages(&self) -> &[GrantRef] {
        let used = self.segments().div_ceil(SEGMENTS_PER_INDIRECT_PAGE);
        &self.grefs[..used]
    }
}

/// Data to forget (`struct blkif_request_discard`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// Where it starts.
    pub sector: Sector,
    /// How many sectors.
    pub count: u64,
    /// Whether all copies must become unreadable (`BLKIF_DISCARD_SECURE`).
    pub secure: bool,
}

impl Request {
    /// A read or write of up to [`MAX_SEGMENTS`] segments; `None` if there are more, or none
    /// where the kind needs one.
    pub fn transfer(
        id: RequestId,
        kind: TransferKind,
        sector: Sector,
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

    /// A flush.
    pub fn flush(id: RequestId) -> Request {
        Request::of(id, Operation::Flush)
    }

    /// A request for the frontend's only device.
    pub fn of(id: RequestId, operation: Operation) -> Request {
        Request {
            id,
            handle: Handle::default(),
            operation,
        }
    }
}

impl<S> Request<S> {
    /// The operation as the response has to name it. That of an indirect request is the read or
    /// write that it stands for: frontends compare, and give up a device that answers otherwise.
    pub const fn opcode(&self) -> Opcode {
        match self.operation {
            Operation::Transfer(Transfer { kind, .. })
            | Operation::Indirect(Indirect { kind, .. }) => kind.opcode(),
            Operation::Flush => Opcode::FLUSH_DISKCACHE,
            Operation::Discard(_) => Opcode::DISCARD,
        }
    }

    /// The response to this request.
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
