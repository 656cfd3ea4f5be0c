//! The messages on the ring: two numbers in each direction.

use bulkhead_ring::Format;

/// A request or a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// A reference of the asking domain's, or the request's number.
    pub subject: u32,
    /// The status.
    pub status: i32,
}

/// The format of a ring of [`Message`]s.
#[derive(Clone, Copy, Debug)]
pub struct Messages;

fn encode(message: &Message) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&message.subject.to_le_bytes());
    bytes[4..].copy_from_slice(&message.status.to_le_bytes());
    bytes
}

fn decode([a, b, c, d, e, f, g, h]: [u8; 8]) -> Message {
    Message {
        subject: u32::from_le_bytes([a, b, c, d]),
        status: i32::from_le_bytes([e, f, g, h]),
    }
}

impl Format for Messages {
    type Request = Message;
    type Response = Message;
    /// Any two numbers are a request.
    type Malformed = core::convert::Infallible;
    type Slot = [u8; 8];
    type ResponseSlot = [u8; 8];

    fn empty_slot(&self) -> [u8; 8] {
        [0; 8]
    }

    fn request_size(&self) -> usize {
        8
    }

    fn response_size(&self) -> usize {
        8
    }

    fn decode_request(&self, slot: &[u8; 8]) -> Result<Message, Self::Malformed> {
        Ok(decode(*slot))
    }

    fn encode_request(&self, request: &Message, slot: &mut [u8; 8]) {
        *slot = encode(request);
    }

    fn decode_response(&self, slot: &[u8; 8]) -> Message {
        decode(*slot)
    }

    fn encode_response(&self, response: &Message) -> [u8; 8] {
        encode(response)
    }
}
