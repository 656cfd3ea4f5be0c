//! Messages: what is written is read back, and nothing that arrives can do harm.

use crate::wire::*;
use crate::{ConnectionFault, NodeAccess, Path};
use bulkhead_xen::DomId;
use proptest::prelude::*;
use std::string::String;
use std::vec::Vec;
use std::{format, vec};

fn emitted(request: Request<'_>) -> Vec<u8> {
    request.emit(RequestId(5), TransactionId(6)).unwrap()
}

#[test]
fn requests_as_the_specification_writes_them() {
    let permissions =
        [(1, NodeAccess::None), (2, NodeAccess::Both)].map(|(domain, access)| Permission {
            domain: DomId(domain),
            access,
        });
    for (request, kind, payload) in [
        (Request::Directory("a"), 1, &b"a\0"[..]),
        (Request::Read("a/b"), 2, b"a/b\0"),
        (Request::ReadStart("a/b"), 2, b"a/b\0"),
        (Request::GetPermissions("a"), 3, b"a\0"),
        (Request::Watch("a", Token(7)), 4, b"a\x007\0"),
        (Request::Unwatch("a", Token(7)), 5, b"a\x007\0"),
        (Request::TransactionStart, 6, b"\0"),
        (Request::TransactionEnd(true), 7, b"T\0"),
        (Request::TransactionEnd(false), 7, b"F\0"),
        (Request::DomainPath(DomId(3)), 10, b"3\0"),
        (Request::Write("a", b"\0v"), 11, b"a\0\0v"),
        (Request::Mkdir("a"), 12, b"a\0"),
        (Request::Remove("a"), 13, b"a\0"),
        (
            Request::SetPermissions("a", &permissions),
            14,
            b"a\0n1\0b2\0",
        ),
        (Request::ResetWatches, 21, b"\0"),
        (Request::DirectoryPart("a", 4000), 22, b"a\x004000\0"),
    ] {
        let bytes = emitted(request);
        let (message, rest) = Message::split(&bytes).unwrap().unwrap();
        assert_eq!(message.header.message_type, MessageType(kind));
        assert_eq!(message.header.request, RequestId(5));
        assert_eq!(message.header.transaction, TransactionId(6));
        assert_eq!(message.payload, payload);
        assert!(rest.is_empty());
    }
    assert_eq!(
        Request::Write("a", &[0; 4095]).emit(RequestId(1), TransactionId::NONE),
        Err(4097)
    );
    assert!(
        Request::Write("a", &[0; 4094])
            .emit(RequestId(1), TransactionId::NONE)
            .is_ok()
    );
}

#[test]
fn answers() {
    assert_eq!(parse_names(b""), Some(vec![]));
    assert_eq!(parse_names(b"a\0b\0"), Some(vec!["a".into(), "b".into()]));
    for bad in [&b"a"[..], b"\0", b"a\0\0", b"\xff\0"] {
        assert_eq!(parse_names(bad), None);
    }
    assert_eq!(parse_permissions(b""), None);
    assert_eq!(parse_permissions(b"n1\0q2\0"), None);
    assert_eq!(parse_permissions(b"n1\0r2\0").unwrap().len(), 2);
    assert_eq!(parse_transaction(b"7\0"), Some(TransactionId(7)));
    for bad in [&b"0\0"[..], b"7", b"7\x008\0", b"x\0", b"\0", b""] {
        assert_eq!(parse_transaction(bad), None);
    }
    assert_eq!(parse_okay(b"OK\0"), Some(()));
    assert_eq!(parse_okay(b"OK"), None);
    assert_eq!(parse_refusal(b"EAGAIN\0"), Some(Refusal::Again));
    assert_eq!(parse_refusal(b"EAGAIN"), None);
    assert_eq!(parse_path(b"/x\0"), Path::new("/x").ok());
    assert_eq!(parse_path(b"/x"), None);
    assert_eq!(parse_path(b"x\0"), None);
}

#[test]
fn parts_of_listings() {
    let part = DirectoryPart::parse(b"12\0a\0bc\0").unwrap();
    assert_eq!(part.generation, "12");
    assert_eq!(part.names, ["a", "bc"]);
    assert_eq!((part.length, part.last), (5, false));
    let part = DirectoryPart::parse(b"12\0a\0\0").unwrap();
    assert_eq!((part.length, part.last), (2, true));
    let part = DirectoryPart::parse(b"12\0\0").unwrap();
    assert_eq!((part.names.len(), part.length, part.last), (0, 0, true));
    for bad in [
        &b""[..],
        b"12",
        b"12\0",
        b"x\0a\0\0",
        b"\0a\0\0",
        b"1\0a\0\0b\0",
    ] {
        assert_eq!(DirectoryPart::parse(bad), None, "{bad:?}");
    }
}

#[test]
fn events() {
    let event = Event::parse(b"backend/vbd\x0042\0").unwrap();
    assert_eq!(event.path.as_str(), "backend/vbd");
    assert_eq!(event.token, Some(Token(42)));
    assert_eq!(Event::parse(b"a\0else\0").unwrap().token, None);
    assert!(Event::parse(b"@releaseDomain\x001\0").is_some());
    for bad in [
        &b""[..],
        b"\0",
        b"a\0",
        b"a\x001",
        b"a b\x001\0",
        b"\x001\0",
    ] {
        assert_eq!(Event::parse(bad), None, "{bad:?}");
    }
}

#[test]
fn paths() {
    for good in ["/", "a", "/a/b", "a-b_c@d/0", "@releaseDomain"] {
        assert!(Path::new(good).is_ok(), "{good}");
    }
    let long = "x".repeat(2049);
    for bad in [
        "", "a/", "/a/", "a//b", "//", "a b", "a.b", "ä", "a\0", &long,
    ] {
        assert!(Path::new(bad).is_err(), "{bad}");
    }
    assert!(Path::new(&format!("/{long}")).is_ok());
    assert!(Path::new(&format!("/{}", "x".repeat(3072))).is_err());
    let path = Path::new("/a/b").unwrap();
    assert_eq!(path.parent().unwrap().as_str(), "/a");
    assert_eq!(path.parent().unwrap().parent().unwrap().as_str(), "/");
    assert_eq!(Path::new("/").unwrap().parent(), None);
    assert_eq!(Path::new("a").unwrap().parent(), None);
    assert_eq!(Path::new("a").unwrap().name(), "a");
    assert_eq!(Path::new("/").unwrap().join("a").unwrap().as_str(), "/a");
    assert!(path.join("").is_err());
    assert!(path.join("c d").is_err());
    assert_eq!(path.below("/a"), Some("b"));
    assert_eq!(path.below("/a/b"), Some(""));
    assert_eq!(path.below("/"), Some("a/b"));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(Some((message, rest))) = Message::split(&bytes) {
            prop_assert_eq!(Header::SIZE + message.payload.len() + rest.len(), bytes.len());
        }
        parse_okay(&bytes);
        parse_names(&bytes);
        parse_permissions(&bytes);
        parse_transaction(&bytes);
        parse_path(&bytes);
        parse_refusal(&bytes);
        DirectoryPart::parse(&bytes);
        Event::parse(&bytes);
    }

    #[test]
    fn almost_right_bytes_do_not_panic(
        payload in "([0-9]{0,3}\0)?([a-z/@]{0,3}\0){0,4}\0?",
    ) {
        if let Some(names) = parse_names(payload.as_bytes()) {
            let again: String = names.iter().map(|name| format!("{name}\0")).collect();
            prop_assert_eq!(again, payload.clone());
        }
        if let Some(part) = DirectoryPart::parse(payload.as_bytes()) {
            let mut again = format!("{}\0", part.generation);
            for name in &part.names {
                again += &format!("{name}\0");
            }
            prop_assert_eq!(part.length, again.len() - part.generation.len() - 1);
            if part.last {
                again += "\0";
            }
            prop_assert_eq!(again, payload.clone());
        }
        Event::parse(payload.as_bytes());
    }

    #[test]
    fn a_stream_is_cut_where_its_messages_end(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut stream = Vec::new();
        for payload in &payloads {
            stream.extend(emitted(Request::Write("p", payload)));
        }
        let cut = cut.index(stream.len() + 1);
        let mut rest = &stream[..cut];
        let mut whole = Vec::new();
        while let Some((message, after)) = Message::split(rest).unwrap() {
            whole.push(message.payload[2..].to_vec());
            rest = after;
        }
        prop_assert_eq!(&whole[..], &payloads[..whole.len()]);
        prop_assert_eq!(cut == stream.len(), whole.len() == payloads.len() && rest.is_empty());
    }

    #[test]
    fn too_long_is_refused_as_soon_as_it_is_announced(length in 4097u32.., kind in 0u32..23) {
        let header = Header {
            message_type: MessageType(kind),
            request: RequestId(1),
            transaction: TransactionId::NONE,
            length,
        };
        prop_assert!(matches!(
            Message::split(&header.to_bytes()),
            Err(ConnectionFault::TooLong(_))
        ));
    }
}
