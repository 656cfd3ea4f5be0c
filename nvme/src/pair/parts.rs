//! Requests that take several commands.

use super::{QueuePair, forget, transfer};
use crate::prp::{Part, Run, run};
use crate::slots::Owner;
use crate::splits::{Action, Blocks};
use bulkhead_dma::DeviceQueueState;
use bulkhead_images::{IoError, IoSegment, Submitted, Tag};

impl QueuePair {
    /// Begins a request that takes several commands.
    #[cold]
    pub(super) fn split(
        &mut self,
        number: usize,
        tag: Tag,
        (action, blocks): (Action, Blocks),
        segments: &[IoSegment],
    ) -> Submitted {
        let whole = |segment: &IoSegment| segment.len().is_multiple_of(1 << blocks.shift);
        if !segments.iter().all(whole) {
            return Submitted::Done(Err(IoError::Misaligned));
        }
        let Some(split) = self.splits.begin(number as u16, tag, action, blocks) else {
            return self.clients.busy(number);
        };
        let parts = &mut self.splits.get(split).parts;
        for segment in segments {
            match Part::of(segment) {
                Ok(part) if parts.len() < parts.capacity() => parts.push(part),
                refused => {
                    self.splits.end(split);
                    return Submitted::Done(Err(refused.err().unwrap_or(IoError::NotSupported)));
                }
            }
        }
        self.clients.note_taken(number);
        self.advance(split);
        Submitted::Pending
    }

    /// Sends as many commands of a request in parts as there are slots for.
    #[cold]
    pub(super) fn advance(&mut self, number: u8) {
        self.send_parts(number);
        // It may have failed before a command was sent, so that none ends it.
        self.end_split(number);
    }

    fn send_parts(&mut self, number: u8) {
        loop {
            let split = self.splits.get(number);
            let client = usize::from(split.client);
            if !split.has_more() || self.state != DeviceQueueState::Running {
                return;
            }
            // Deallocating and clearing may take long: the controller gets one such command of a request at a time.
            if split.pending > 0 && !split.action.moves_data() {
                return;
            }
            let Some(slot) = self.slots.next() else {
                return;
            };
            if self.clients.any_waits() && !self.clients.has_share(client, self.slots.len()) {
                return;
            }
            let split = self.splits.get(number);
            let (command, sent) = if split.action.moves_data() {
                let parts = split.parts[split.next..].iter().copied().map(Ok);
                let Ok(Run {
                    parts,
                    bytes,
                    pointer,
                }) = run(parts, &self.lists.of(slot))
                else {
                    // Fewer bytes than blocks.
                    split.outcome = Err(IoError::Misaligned);
                    return;
                };
                split.next += parts;
                let count = (bytes as u64 >> split.left.shift).min(split.left.count);
                let command = transfer(split.action, &split.left, count);
                (command.with_data(pointer), count)
            } else {
                let most = split.action.most_blocks(split.left.shift, self.limits);
                let count = split.left.count.min(most);
                let command = forget(split.action, &split.left, count, &self.lists, slot);
                (command, count)
            };
            split.left.start.0 += sent;
            split.left.count -= sent;
            split.pending += 1;
            self.counts.parts += 1;
            self.send(command, Owner::Split(number), client);
        }
    }

    /// Completes a request in parts, if all of its commands have ended.
    pub(super) fn end_split(&mut self, number: u8) {
        let split = self.splits.get(number);
        if split.is_done() {
            let (client, tag, outcome) = (usize::from(split.client), split.tag, split.outcome);
            self.splits.end(number);
            self.clients[client].complete(tag, outcome);
        }
    }
}
