//! Requests as they come over the wire: their payloads, and what answers them.

use super::session::Session;
use super::tree::DOM0;
use super::{Server, domain_path};
use bulkhead_xen::DomId;
use bulkhead_xen::abi::xs_wire::{
    Header, MessageType, PAYLOAD_MAX, Permission, Refusal, TransactionId,
};

/// The answer to a request.
pub(super) struct Answer {
    pub payload: Vec<u8>,
    /// An event to the same domain, right after the reply.
    pub event: Option<Vec<u8>>,
}

impl Server {
    pub(super) fn answer(
        &mut self,
        domain: DomId,
        request: &Header,
        payload: &[u8],
    ) -> Result<Answer, Refusal> {
        let kind = request.message_type;
        if domain != DOM0
            && let Some(refuse) = &mut self.faults.refuse
        {
            let path = path_and_rest(payload).map_or("", |(path, _)| path);
            // What ends something ends it, whatever it answers.
            let ends = matches!(kind, MessageType::UNWATCH | MessageType::RESET_WATCHES);
            if !ends && let Some(refusal) = refuse(domain, kind, path) {
                if kind == MessageType::TRANSACTION_END {
                    Session::new(self, domain, request.transaction).end(false)?;
                }
                return Err(refusal);
            }
        }
        let ignores_transaction = matches!(kind, MessageType::WATCH | MessageType::UNWATCH);
        let transaction = if ignores_transaction {
            TransactionId::NONE
        } else {
            request.transaction
        };
        if transaction != TransactionId::NONE
            && !self
                .connections
                .get(&domain)
                .is_some_and(|connection| connection.transactions.contains_key(&transaction))
        {
            return Err(Refusal::NotFound);
        }
        if !self.program.knows(kind) {
            return Err(Refusal::NotImplemented);
        }
        let mut event = None;
        let mut session = Session::new(self, domain, transaction);
        let payload = match kind {
            MessageType::READ => session.read(only(payload)?)?,
            MessageType::WRITE => {
                let (path, value) = path_and_rest(payload)?;
                session.write(path, value)?;
                okay()
            }
            MessageType::MKDIR => {
                session.mkdir(only(payload)?)?;
                okay()
            }
            MessageType::RM => {
                session.remove(only(payload)?)?;
                okay()
            }
            MessageType::DIRECTORY => session.child_list(only(payload)?)?.0,
            MessageType::DIRECTORY_PART => {
                let [path, offset] = strings(payload)?;
                let offset = text(offset)?.parse().map_err(|_| Refusal::Invalid)?;
                let (list, generation) = session.child_list(text(path)?)?;
                directory_part(&list, generation, offset)
            }
            MessageType::GET_PERMS => {
                let mut list = Vec::new();
                for permission in session.permissions(only(payload)?)? {
                    list.extend_from_slice(permission.to_string().as_bytes());
                    list.push(0);
                }
                list
            }
            MessageType::SET_PERMS => {
                let (path, list) = path_and_rest(payload)?;
                let mut permissions = Vec::new();
                for entry in terminated(list)? {
                    permissions.push(Permission::parse(entry).ok_or(Refusal::Invalid)?);
                }
                session.set_permissions(path, &permissions)?;
                okay()
            }
            MessageType::WATCH => {
                let [path, token] = strings(payload)?;
                event = Some(session.watch(text(path)?, token)?);
                okay()
            }
            MessageType::UNWATCH => {
                let [path, token] = strings(payload)?;
                session.unwatch(text(path)?, token)?;
                okay()
            }
            MessageType::RESET_WATCHES => {
                session.reset()?;
                okay()
            }
            MessageType::TRANSACTION_START => format!("{}\0", session.begin()?.0).into_bytes(),
            MessageType::TRANSACTION_END => {
                let commit = match payload {
                    b"T\0" => true,
                    b"F\0" => false,
                    _ => return Err(Refusal::Invalid),
                };
                session.end(commit)?;
                okay()
            }
            MessageType::GET_DOMAIN_PATH => {
                let asked = only(payload)?.parse().map_err(|_| Refusal::Invalid)?;
                (domain_path(DomId(asked)) + "\0").into_bytes()
            }
            MessageType::IS_DOMAIN_INTRODUCED if domain == DOM0 => {
                let asked = only(payload)?.parse().map_err(|_| Refusal::Invalid)?;
                match self.is_introduced(DomId(asked)) {
                    true => b"T\0".to_vec(),
                    false => b"F\0".to_vec(),
                }
            }
            MessageType::CONTROL
            | MessageType::INTRODUCE
            | MessageType::RELEASE
            | MessageType::IS_DOMAIN_INTRODUCED
            | MessageType::RESUME
            | MessageType::SET_TARGET
                if domain != DOM0 =>
            {
                return Err(Refusal::AccessDenied);
            }
            _ => return Err(Refusal::NotImplemented),
        };
        Ok(Answer { payload, event })
    }
}

fn okay() -> Vec<u8> {
    b"OK\0".to_vec()
}

fn text(bytes: &[u8]) -> Result<&str, Refusal> {
    core::str::from_utf8(bytes).map_err(|_| Refusal::Invalid)
}

/// The strings of a payload that is nothing but strings, each with its nul.
fn terminated(payload: &[u8]) -> Result<impl Iterator<Item = &[u8]>, Refusal> {
    let list = payload.strip_suffix(b"\0").ok_or(Refusal::Invalid)?;
    Ok(list.split(|&byte| byte == 0))
}

/// Splits a payload of `COUNT` strings.
fn strings<const COUNT: usize>(payload: &[u8]) -> Result<[&[u8]; COUNT], Refusal> {
    let list: Vec<&[u8]> = terminated(payload)?.collect();
    list.try_into().map_err(|_| Refusal::Invalid)
}

/// The one string of a payload.
fn only(payload: &[u8]) -> Result<&str, Refusal> {
    let [path] = strings(payload)?;
    text(path)
}

/// A path, and bytes after it that may be anything.
fn path_and_rest(payload: &[u8]) -> Result<(&str, &[u8]), Refusal> {
    let end = payload.iter().position(|&byte| byte == 0);
    let end = end.ok_or(Refusal::Invalid)?;
    Ok((text(&payload[..end])?, &payload[end + 1..]))
}

/// The generation, and whole names from `offset` on as far as they fit. The end of the list is
/// marked by an empty name.
fn directory_part(list: &[u8], generation: u64, offset: usize) -> Vec<u8> {
    let mut answer = format!("{generation}\0").into_bytes();
    let most = PAYLOAD_MAX - answer.len() - 1;
    let rest = list.get(offset..).unwrap_or_default();
    let mut taken = 0;
    for name in rest.split_inclusive(|&byte| byte == 0) {
        if taken + name.len() > most {
            break;
        }
        taken += name.len();
    }
    answer.extend_from_slice(&rest[..taken]);
    if taken == rest.len() {
        answer.push(0);
    }
    answer
}
