//! A name server.

use crate::datagram::Datagram;
use crate::peer::Frame;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// A record of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An address.
    Address(IpAddr),
    /// Another name of the host.
    Alias(String),
}

/// The way in which the server answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnswerKind {
    /// The server answers as a name server does.
    #[default]
    InOrder,
    /// The server does not answer.
    Silent,
    /// The names in the server's answers are not those that it was asked for.
    OtherName,
    /// The server's answers are for another question.
    OtherQuestion,
    /// A name in the server's answer continues at itself.
    Loop,
    /// The server's answers end after that many bytes.
    Cut(usize),
    /// The server's answers announce records that are not there.
    Short,
}

/// The response code for a name that the server does not know.
const NO_SUCH_NAME: u16 = 3;

/// A server that knows some names, at whatever address it is asked.
#[derive(Default)]
pub struct NameServer {
    /// The records of each name.
    pub records: BTreeMap<String, Vec<Record>>,
    /// The way in which it answers.
    pub answer_kind: AnswerKind,
    /// The addresses at which it is silent.
    pub silent_at: Vec<IpAddr>,
    /// The addresses at which it answers by that response code alone.
    pub fails_at: Vec<(IpAddr, u16)>,
    /// The address and the port from which its answers come, if not from those that are asked.
    pub answers_from: Option<(Ipv4Addr, u16)>,
    /// The number of each question, and the port that it came from.
    pub numbers: Vec<(u16, u16)>,
    /// The names that it was asked for, and the address at which it was asked.
    pub asked: Vec<(String, IpAddr)>,
}

impl NameServer {
    /// Sets the addresses of a name.
    pub fn set(&mut self, name: &str, addresses: &[&str]) {
        let address = |text: &&str| Record::Address(text.parse().expect("an address"));
        let records = addresses.iter().map(address).collect();
        self.records.insert(name.to_string(), records);
    }

    /// Takes a frame that is for the server, and returns the answer.
    pub fn take(&mut self, frame: &Frame) -> Option<Option<Frame>> {
        let question = Datagram::find(frame).filter(|datagram| datagram.destination.1 == 53)?;
        let at = IpAddr::V4(question.destination.0);
        let id = u16::from_be_bytes([question.payload[0], question.payload[1]]);
        self.numbers.push((id, question.source.1));
        let payload = self.answer(&question.payload, at);
        Some(payload.map(|payload| {
            let answer = Datagram {
                from: question.from,
                source: self.answers_from.unwrap_or(question.destination),
                destination: question.source,
                payload,
            };
            answer.frame(question.from)
        }))
    }

    fn answer(&mut self, question: &[u8], at: IpAddr) -> Option<Vec<u8>> {
        let (name, end) = name(question, 12);
        let kind = u16::from_be_bytes([question[end], question[end + 1]]);
        self.asked.push((name.clone(), at));
        if self.answer_kind == AnswerKind::Silent || self.silent_at.contains(&at) {
            return None;
        }
        let known = self.records.contains_key(&name);
        let mut records = Vec::new();
        let mut next = Some(name);
        // An alias is followed, as a resolver does that a client asks.
        while let Some(name) = next.take() {
            for record in self.records.get(&name).into_iter().flatten() {
                match record {
                    Record::Alias(other) => {
                        records.push((name.clone(), 5, labels(other)));
                        next = Some(other.to_lowercase());
                    }
                    Record::Address(IpAddr::V4(address)) if kind == 1 => {
                        records.push((name.clone(), 1, address.octets().to_vec()));
                    }
                    Record::Address(IpAddr::V6(address)) if kind == 28 => {
                        records.push((name.clone(), 28, address.octets().to_vec()));
                    }
                    Record::Address(_) => {}
                }
            }
        }
        let mut answer = question[..end + 4].to_vec();
        let fails = self.fails_at.iter().find(|(failing, _)| *failing == at);
        let code = match fails {
            Some((_, code)) => {
                records.clear();
                *code
            }
            None if known => 0,
            None => NO_SUCH_NAME,
        };
        answer[2..4].copy_from_slice(&(0x8180 | code).to_be_bytes());
        let count = records.len() as u16 + u16::from(self.answer_kind == AnswerKind::Short);
        answer[6..8].copy_from_slice(&count.to_be_bytes());
        if self.answer_kind == AnswerKind::OtherQuestion {
            answer[13] ^= 1;
        }
        for (name, kind, data) in records {
            match self.answer_kind {
                AnswerKind::OtherName => answer.extend(labels("other.example")),
                AnswerKind::Loop => {
                    let here = 0xc000 | answer.len() as u16;
                    answer.extend(here.to_be_bytes());
                }
                _ => answer.extend(labels(&name)),
            }
            answer.extend([0, kind, 0, 1, 0, 0, 0, 60]);
            answer.extend((data.len() as u16).to_be_bytes());
            answer.extend(data);
        }
        if let AnswerKind::Cut(len) = self.answer_kind {
            answer.truncate(len);
        }
        Some(answer)
    }
}

/// Returns a name that is written in labels, and the offset of its end.
fn name(bytes: &[u8], mut at: usize) -> (String, usize) {
    let mut parts = Vec::new();
    while bytes[at] != 0 {
        let label = &bytes[at + 1..][..usize::from(bytes[at])];
        parts.push(String::from_utf8(label.to_vec()).expect("letters"));
        at += 1 + label.len();
    }
    (parts.join("."), at + 1)
}

/// Writes a name in labels.
fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}
