//! The server's side of the handshake.

use crate::server::{FakeExport, Phase, Server, TlsMode};
use bulkhead_stream::Ended;

const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFO: u32 = 3;
const UNSUPPORTED: u32 = 1 << 31 | 1;
const POLICY: u32 = 1 << 31 | 2;
const TLS_REQUIRED: u32 = 1 << 31 | 5;
const UNKNOWN: u32 = 1 << 31 | 6;

impl Server {
    /// Sends a message, or what the test makes of it, and returns the bytes that were sent.
    fn say(&mut self, number: usize, mut message: Vec<u8>) -> Vec<u8> {
        let count = self.connections[number].messages;
        (self.forge)(count, &mut message);
        let connection = &mut self.connections[number];
        connection.messages += 1;
        connection.send(&message);
        message
    }

    fn reply(&mut self, number: usize, option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
        let mut message = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
        message.extend(option.to_be_bytes());
        message.extend(kind.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        self.say(number, message)
    }

    pub fn step_handshake(&mut self, number: usize) -> bool {
        match self.connections[number].phase {
            Phase::New => {
                let mut greeting = b"NBDMAGICIHAVEOPT".to_vec();
                greeting.extend(3_u16.to_be_bytes());
                self.connections[number].phase = Phase::Flags;
                self.say(number, greeting);
                true
            }
            Phase::Flags => {
                let connection = &mut self.connections[number];
                let Some(flags) = connection.take(4) else {
                    return false;
                };
                connection.no_zeroes = flags[3] & 2 != 0;
                connection.phase = Phase::Options;
                true
            }
            _ => self.step_option(number),
        }
    }

    fn step_option(&mut self, number: usize) -> bool {
        let connection = &mut self.connections[number];
        let waiting = &connection.read;
        if waiting.len() < 16 {
            return false;
        }
        assert_eq!(&waiting[..8], b"IHAVEOPT", "an option");
        let word = |at: usize| u32::from_be_bytes(waiting[at..at + 4].try_into().expect("4"));
        let (option, len) = (word(8), word(12) as usize);
        let Some(message) = connection.take(16 + len) else {
            return false;
        };
        let tls = connection.tls;
        match option {
            2 => {
                self.reply(number, option, ACK, &[]);
                self.connections[number].end(Ended::Closed);
            }
            5 if self.config.tls == TlsMode::Absent => {
                self.reply(number, option, UNSUPPORTED, b"no TLS");
            }
            5 => {
                self.reply(number, option, ACK, &[]);
                self.connections[number].tls = true;
            }
            _ if self.config.tls == TlsMode::Required && !tls => {
                self.reply(number, option, TLS_REQUIRED, b"");
            }
            3 if !self.config.lists => _ = self.reply(number, option, POLICY, b"not told"),
            3 => {
                let exports = self.config.exports.iter();
                let names: Vec<String> = exports.map(|export| export.name.clone()).collect();
                for name in names {
                    let mut data = (name.len() as u32).to_be_bytes().to_vec();
                    data.extend(name.bytes());
                    data.extend(b"a description");
                    self.reply(number, option, SERVER, &data);
                }
                self.reply(number, option, ACK, &[]);
            }
            8 if self.config.structured => {
                self.connections[number].structured = true;
                self.reply(number, option, ACK, &[]);
            }
            7 if self.config.goes => self.go(number, &message[16..]),
            _ => _ = self.reply(number, option, UNSUPPORTED, b"what?"),
        }
        true
    }

    fn go(&mut self, number: usize, data: &[u8]) {
        let len = u32::from_be_bytes(data[..4].try_into().expect("4")) as usize;
        let name = String::from_utf8(data[4..4 + len].to_vec()).expect("text");
        let exports = &self.config.exports;
        let Some(index) = exports.iter().position(|export| export.name == name) else {
            self.reply(number, 7, UNKNOWN, b"no such export");
            return;
        };
        let FakeExport {
            canonical,
            bytes,
            flags,
            sizes,
            ..
        } = &exports[index];
        let mut export = vec![0, 0];
        export.extend((bytes.len() as u64).to_be_bytes());
        export.extend(flags.to_be_bytes());
        let mut messages = Vec::new();
        if let Some(sizes) = sizes {
            let mut message = vec![0, 3];
            sizes
                .iter()
                .for_each(|size| message.extend(size.to_be_bytes()));
            messages.push(message);
        }
        if let Some(name) = canonical {
            let mut message = vec![0, 1];
            message.extend(name.bytes());
            messages.push(message);
        }
        let told = self.reply(number, 7, INFO, &export);
        // Behind the header of 20 bytes, the kind of information and the size.
        let flags = told.get(30..32).and_then(|flags| flags.try_into().ok());
        self.connections[number].told = flags.map_or(0, u16::from_be_bytes);
        for message in messages {
            self.reply(number, 7, INFO, &message);
        }
        self.reply(number, 7, ACK, &[]);
        self.connections[number].phase = Phase::Commands(index);
    }
}
