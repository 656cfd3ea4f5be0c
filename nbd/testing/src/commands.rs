//! The server's side of commands.

use crate::server::Server;
use bulkhead_stream::Ended;

/// A command that the server was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The number of its connection.
    pub connection: usize,
    /// The kind of command, as on the wire.
    pub kind: u16,
    /// The first byte.
    pub offset: u64,
    /// The number of bytes.
    pub len: u32,
    /// The cookie for the reply.
    pub cookie: u64,
    /// True for a write that is to be durable when it is answered.
    pub fua: bool,
}

/// The treatment of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// The command is done and answered.
    Done,
    /// The command is done later, when the test says so.
    Held,
    /// The command is never answered.
    Lost,
    /// The command is answered with that error.
    Failed(u32),
    /// The command is done, and answered twice.
    Twice,
    /// The command is done, and the answer names another command.
    Misnamed(u64),
    /// The command is answered by these parts of a structured reply; the last one is its end.
    Parts(Vec<Part>),
    /// The command is answered by these bytes.
    Raw(Vec<u8>),
    /// The command is done, and the connection ends before the answer.
    Unanswered(Ended),
}

/// A part of a structured reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Nothing.
    None,
    /// The export's data at that place.
    Data(u64, u32),
    /// A hole at that place.
    Hole(u64, u32),
    /// An error of that number.
    Error(u32),
    /// An error of that number at a place.
    ErrorAt(u32, u64),
    /// A part of that type with that payload.
    Raw(u16, Vec<u8>),
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8"))
}

/// Returns a simple reply.
pub fn simple(cookie: u64, error: u32) -> Vec<u8> {
    let mut reply = 0x6744_6698_u32.to_be_bytes().to_vec();
    reply.extend(error.to_be_bytes());
    reply.extend(cookie.to_be_bytes());
    reply
}

fn chunk(cookie: u64, done: bool, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut reply = 0x668e_33ef_u32.to_be_bytes().to_vec();
    reply.extend(u16::from(done).to_be_bytes());
    reply.extend(kind.to_be_bytes());
    reply.extend(cookie.to_be_bytes());
    reply.extend((payload.len() as u32).to_be_bytes());
    reply.extend(payload);
    reply
}

/// Returns whether a command is a write that is to be durable when it is answered. `told` are the export's flags that
/// the client was told: they must allow it. No other command may have a flag.
fn is_fua(told: u16, command: &[u8]) -> bool {
    const SEND_FUA: u16 = 1 << 3;
    match [command[4], command[5]] {
        [0, 0] => false,
        [0, 1] => {
            assert_eq!(word(command, 4) as u16, 1, "a write");
            assert!(told & SEND_FUA != 0, "the export knows no such writes");
            true
        }
        others => panic!("flags {others:?} are used"),
    }
}

impl Server {
    pub fn step_commands(&mut self, number: usize, export: usize) -> bool {
        let early = self.config.refuses_writes_early;
        let connection = &mut self.connections[number];
        let waiting = &connection.read;
        if waiting.len() < 28 {
            return false;
        }
        assert_eq!(word(waiting, 0), 0x2560_9513, "a command");
        let seen = Seen {
            connection: number,
            kind: word(waiting, 4) as u16,
            fua: is_fua(connection.told, waiting),
            cookie: long(waiting, 8),
            offset: long(waiting, 16),
            len: word(waiting, 24),
        };
        let data = if seen.kind == 1 { seen.len as usize } else { 0 };
        if let Some(error) = early.filter(|_| seen.kind == 1 && !connection.refused) {
            connection.refused = true;
            connection.send(&simple(seen.cookie, error));
        }
        let Some(message) = connection.take(28 + data) else {
            return false;
        };
        if seen.kind == 2 {
            self.disconnects += 1;
            self.connections[number].end(Ended::Closed);
            return true;
        }
        self.seen.push(seen);
        if std::mem::take(&mut self.connections[number].refused) {
            return true;
        }
        let mut treatment = (self.treatment)(&seen);
        // Data is there already: what is held back may have been done or not.
        let undone = matches!(
            treatment,
            Treatment::Failed(_) | Treatment::Lost | Treatment::Parts(_) | Treatment::Raw(_)
        );
        if !undone && !self.execute(export, &seen, &message[28..]) {
            treatment = Treatment::Failed(28);
        }
        match treatment {
            Treatment::Held => self.held.push((export, seen)),
            treatment => self.answer(export, seen, treatment),
        }
        true
    }

    /// Does a command. Returns false if it reaches past the end: the size that the client knows was forged.
    fn execute(&mut self, export: usize, seen: &Seen, data: &[u8]) -> bool {
        let bytes = &mut self.config.exports[export].bytes;
        let end = seen.offset.checked_add(seen.len.into());
        let Some(end) = end.filter(|end| *end <= bytes.len() as u64) else {
            return false;
        };
        let place = &mut bytes[seen.offset as usize..end as usize];
        match seen.kind {
            1 => place.copy_from_slice(data),
            4 | 6 => place.fill(0),
            0 | 3 => {}
            other => panic!("command {other}"),
        }
        true
    }

    /// Does a command that was held back.
    pub fn finish(&mut self, index: usize) {
        let (export, seen) = self.held.remove(index);
        self.answer(export, seen, Treatment::Done);
    }

    fn answer(&mut self, export: usize, seen: Seen, treatment: Treatment) {
        let reply = match treatment {
            Treatment::Held | Treatment::Lost => Vec::new(),
            Treatment::Failed(error) if seen.kind == 0 && self.is_structured(&seen) => {
                chunk(seen.cookie, true, 0x8001, &error_text(error))
            }
            Treatment::Failed(error) => simple(seen.cookie, error),
            Treatment::Done | Treatment::Unanswered(_) => self.done(export, &seen),
            Treatment::Twice => self.done(export, &seen).repeat(2),
            Treatment::Misnamed(by) => self.done(
                export,
                &Seen {
                    cookie: seen.cookie ^ by,
                    ..seen
                },
            ),
            Treatment::Parts(ref parts) => self.parts(export, &seen, parts),
            Treatment::Raw(ref bytes) => bytes.clone(),
        };
        let connection = &mut self.connections[seen.connection];
        match treatment {
            Treatment::Unanswered(ended) => connection.end(ended),
            _ => connection.send(&reply),
        }
    }

    fn is_structured(&self, seen: &Seen) -> bool {
        self.connections[seen.connection].structured
    }

    /// Returns the reply to a command that was done.
    fn done(&self, export: usize, seen: &Seen) -> Vec<u8> {
        if seen.kind != 0 {
            return simple(seen.cookie, 0);
        }
        let data = self.data(export, seen.offset, seen.len);
        if !self.is_structured(seen) {
            let mut reply = simple(seen.cookie, 0);
            reply.extend(data);
            return reply;
        }
        let part = match self.config.holes && data.iter().all(|byte| *byte == 0) {
            true => Part::Hole(seen.offset, seen.len),
            false => Part::Data(seen.offset, seen.len),
        };
        self.parts(export, seen, &[part])
    }

    fn data(&self, export: usize, offset: u64, len: u32) -> Vec<u8> {
        let bytes = &self.config.exports[export].bytes;
        // What a liar sends need not be there.
        let byte = |at: u64| bytes.get(at as usize).copied().unwrap_or(0x5a);
        (0..u64::from(len))
            .map(|at| byte(offset.wrapping_add(at)))
            .collect()
    }

    fn parts(&self, export: usize, seen: &Seen, parts: &[Part]) -> Vec<u8> {
        let mut reply = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let (kind, payload) = match part {
                Part::None => (0, Vec::new()),
                Part::Data(offset, len) => {
                    let mut payload = offset.to_be_bytes().to_vec();
                    payload.extend(self.data(export, *offset, *len));
                    (1, payload)
                }
                Part::Hole(offset, len) => {
                    let mut payload = offset.to_be_bytes().to_vec();
                    payload.extend(len.to_be_bytes());
                    (2, payload)
                }
                Part::Error(error) => (0x8001, error_text(*error)),
                Part::ErrorAt(error, offset) => {
                    let mut payload = error_text(*error);
                    payload.extend(offset.to_be_bytes());
                    (0x8002, payload)
                }
                Part::Raw(kind, payload) => (*kind, payload.clone()),
            };
            reply.extend(chunk(seen.cookie, index + 1 == parts.len(), kind, &payload));
        }
        reply
    }
}

fn error_text(error: u32) -> Vec<u8> {
    let mut payload = error.to_be_bytes().to_vec();
    payload.extend(7_u16.to_be_bytes());
    payload.extend(b"failure");
    payload
}
