//! The queue of one of a guest's rings: the guest's requests as commands on a line.

use crate::client::MOST_REQUESTS;
use crate::entry::Work;
use crate::export::OpenedExport;
use crate::line::Line;
use crate::segments::MOST as MOST_SEGMENTS;
use crate::wire::{CommandKind, TransmissionFlags};
use alloc::sync::Arc;
use bulkhead_grant::OutOfMemory;
use bulkhead_images::{
    Caps, DataAccess, Io, IoError, IoQueue, Op, QueueContext, Sector, Submitted, Tag,
};
use core::task::{Context, Poll};

/// A queue of an export.
pub struct ExportQueue {
    opened: Arc<OpenedExport>,
    line: usize,
    client: u16,
    caps: Caps,
}

impl ExportQueue {
    /// Opens a queue on the vCPU that calls this.
    pub fn new(
        opened: Arc<OpenedExport>,
        context: &QueueContext,
    ) -> Result<ExportQueue, OutOfMemory> {
        let line = opened.export.line_for(context.vcpu);
        let depth = context.depth.clamp(1, MOST_REQUESTS);
        let client = opened.export.line(line).table().open(depth)?;
        Ok(ExportQueue {
            line,
            client,
            caps: Caps {
                depth,
                segments: MOST_SEGMENTS,
                bytes: opened.properties.most_bytes as usize,
                alignment: 1,
                access: DataAccess::Mapped,
                fua: opened
                    .properties
                    .flags
                    .contains(TransmissionFlags::SEND_FUA),
                // How long a server may take is for the line's task to say.
                timeout: None,
                at_once: false,
            },
            opened,
        })
    }

    #[inline]
    fn line(&self) -> &Line {
        self.opened.export.line(self.line)
    }

    /// Returns the operation and the bytes of a request.
    #[inline]
    fn work(&self, kind: CommandKind, sector: Sector, len: u64) -> Result<Work, IoError> {
        let properties = &self.opened.properties;
        let work = Work {
            kind,
            offset: sector.bytes().ok_or(IoError::OutOfRange)?,
            len,
            fua: false,
        };
        if work.changes_data() && properties.is_read_only() {
            return Err(IoError::ReadOnly);
        }
        let end = work.offset.checked_add(len).ok_or(IoError::OutOfRange)?;
        if end > properties.sectors.bytes().unwrap_or(0) {
            return Err(IoError::OutOfRange);
        }
        let unit = properties.sector_size.bytes() as u64;
        match (work.offset | len) & (unit - 1) {
            0 => Ok(work),
            _ => Err(IoError::Misaligned),
        }
    }

    /// Returns the work for a request; `None` if there is nothing to do.
    #[inline]
    fn checked(&self, io: &Io<'_>) -> Result<Option<Work>, IoError> {
        let flags = self.opened.properties.flags;
        let data = || io.segments.iter().map(|segment| segment.len() as u64).sum();
        let work = match io.op {
            Op::Read { sector } => self.work(CommandKind::Read, sector, data())?,
            Op::Write { sector, fua } => Work {
                fua,
                ..self.work(CommandKind::Write, sector, data())?
            },
            Op::Flush if flags.contains(TransmissionFlags::SEND_FLUSH) => {
                return self.work(CommandKind::Flush, Sector(0), 0).map(Some);
            }
            Op::Flush | Op::Discard { secure: true, .. } => return Err(IoError::NotSupported),
            Op::Discard { sector, count, .. } => {
                let kind = if flags.contains(TransmissionFlags::SEND_TRIM) {
                    CommandKind::Trim
                } else if flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
                    CommandKind::WriteZeroes
                } else {
                    return Err(IoError::NotSupported);
                };
                self.work(kind, sector, count.bytes().ok_or(IoError::OutOfRange)?)?
            }
        };
        Ok(Some(work).filter(|work| work.len > 0))
    }
}

impl IoQueue for ExportQueue {
    fn caps(&self) -> Caps {
        self.caps
    }

    #[inline]
    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        match self.checked(&io) {
            Ok(Some(work)) => self
                .line()
                .table()
                .submit(self.client, tag, work, io.segments),
            Ok(None) => Submitted::Done(Ok(())),
            Err(error) => Submitted::Done(Err(error)),
        }
    }

    fn flush_submissions(&mut self) {
        self.line().wake();
    }

    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        let mut table = self.line().table();
        let client = table.client(self.client);
        if client.drain(sink) {
            return Poll::Ready(());
        }
        client.wake_with(context.waker());
        Poll::Pending
    }

    fn cancel(&mut self, tag: Tag) {
        self.line().table().cancel(self.client, Some(tag));
    }

    fn cancel_all(&mut self) {
        self.line().table().cancel(self.client, None);
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut table = self.line().table();
        table.close(self.client);
        table.poll_close(self.client, context)
    }
}

impl Drop for ExportQueue {
    fn drop(&mut self) {
        self.line().table().release(self.client);
    }
}
