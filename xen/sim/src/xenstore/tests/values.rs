//! Values, rights, refusals and lists.

use super::*;

#[test]
fn values_over_the_wire() {
    let mut store = store();
    assert_eq!(
        ask(&mut store, MessageType::WRITE, 0, "data/a/b|v|w"),
        "OK|"
    );
    assert_eq!(ask(&mut store, MessageType::READ, 0, "data/a/b|"), "v|w");
    assert_eq!(ask(&mut store, MessageType::READ, 0, "data/a|"), "");
    assert_eq!(ask(&mut store, MessageType::DIRECTORY, 0, "data|"), "a|");
    assert_eq!(ask(&mut store, MessageType::GET_PERMS, 0, "data/a|"), "n5|");
    assert_eq!(
        ask(&mut store, MessageType::SET_PERMS, 0, "data/a|n5|r2|"),
        "OK|"
    );
    assert_eq!(
        ask(&mut store, MessageType::GET_PERMS, 0, "data/a|"),
        "n5|r2|"
    );
    assert_eq!(ask(&mut store, MessageType::MKDIR, 0, "data/a|"), "OK|");
    assert_eq!(ask(&mut store, MessageType::RM, 0, "data/a|"), "OK|");
    assert_eq!(ask(&mut store, MessageType::RM, 0, "data/a|"), "OK|");
    assert_eq!(ask(&mut store, MessageType::RM, 0, "data/a/b|"), "ENOENT|");
    assert_eq!(ask(&mut store, MessageType::READ, 0, "data/a|"), "ENOENT|");
    let own = ask(&mut store, MessageType::GET_DOMAIN_PATH, 0, "5|");
    assert_eq!(own, "/local/domain/5|");
}

#[test]
fn malformed_requests_are_refused() {
    let mut store = store();
    for path in ["", "data/", "data//a", "da ta", "@data", "data.a"] {
        let payload = format!("{path}|");
        assert_eq!(ask(&mut store, MessageType::READ, 0, &payload), "EINVAL|");
    }
    let long = format!("data/{}|", "x".repeat(2048));
    assert_eq!(ask(&mut store, MessageType::READ, 0, &long), "EINVAL|");
    assert_eq!(ask(&mut store, MessageType::READ, 0, "data"), "EINVAL|");
    assert_eq!(
        ask(&mut store, MessageType::READ, 0, "data|data|"),
        "EINVAL|"
    );
    assert_eq!(ask(&mut store, MessageType::READ, 7, "data|"), "ENOENT|");
    assert_eq!(ask(&mut store, MessageType(77), 0, "data|"), "ENOSYS|");
    assert_eq!(ask(&mut store, MessageType::RELEASE, 0, "2|"), "EACCES|");
    assert_eq!(
        ask(&mut store, MessageType::SET_PERMS, 0, "data|"),
        "EINVAL|"
    );
    assert_eq!(
        ask(&mut store, MessageType::SET_PERMS, 0, "data|x5|"),
        "EINVAL|"
    );
}

#[test]
fn too_long_a_message_ends_the_connection() {
    let mut store = store();
    send(
        &mut store,
        GUEST,
        MessageType::READ,
        0,
        &[b'x'; PAYLOAD_MAX + 1],
    );
    assert_eq!(store.connection_error(GUEST), Some(ERROR_PROTOCOL));
    send(&mut store, GUEST, MessageType::READ, 0, b"data\0");
    assert!(!store.has_outgoing(GUEST));
}

#[test]
fn rights() {
    let mut store = store();
    // Its own directory is dom0's; it may read there, but make and remove nothing.
    let mut guest = store.as_domain(GUEST);
    assert_eq!(guest.read(""), Err(Refusal::Invalid));
    assert_eq!(guest.read("/local/domain/5"), Ok(vec![]));
    assert_eq!(guest.write("name", "x"), Err(Refusal::AccessDenied));
    assert_eq!(guest.remove("/local/domain/5"), Err(Refusal::AccessDenied));
    assert_eq!(guest.read("nothing"), Err(Refusal::NotFound));
    // Another's is not for it, whether there is something or not.
    assert_eq!(
        guest.read("/local/domain/2/data"),
        Err(Refusal::AccessDenied)
    );
    assert_eq!(
        guest.read("/local/domain/2/none"),
        Err(Refusal::AccessDenied)
    );
    assert_eq!(guest.read("/none"), Err(Refusal::AccessDenied));
    // What it owns, it can open to others, but not give away.
    guest.write("data/x", "1").unwrap();
    guest
        .set_permissions("data/x", &owned_by(GUEST, &[BACKEND]))
        .unwrap();
    assert_eq!(
        guest.set_permissions("data/x", &owned_by(BACKEND, &[])),
        Err(Refusal::NotPermitted)
    );
    let mut backend = store.as_domain(BACKEND);
    assert_eq!(backend.read("/local/domain/5/data/x"), Ok(b"1".to_vec()));
    assert_eq!(
        backend.write("/local/domain/5/data/x", "2"),
        Err(Refusal::AccessDenied)
    );
    // What it makes where another lets it write is its own.
    let shared = [
        Permission::parse(b"n2").unwrap(),
        Permission::parse(b"b5").unwrap(),
    ];
    store.set_permissions("/local/domain/2/data", &shared);
    store
        .as_domain(GUEST)
        .write("/local/domain/2/data/mine", "")
        .unwrap();
    let made = store.permissions("/local/domain/2/data/mine").unwrap();
    assert_eq!(made, [Permission::parse(b"n5").unwrap(), shared[1]]);
    // The owner removes what another domain owns below.
    store.write("/local/domain/5/data/x/y", "dom0's");
    store.set_permissions("/local/domain/5/data/x/y", &owned_by(DOM0, &[]));
    store.as_domain(GUEST).remove("data/x").unwrap();
    assert!(!store.exists("/local/domain/5/data/x/y"));
}

#[test]
fn long_lists_come_in_parts() {
    let mut store = store();
    let names: Vec<String> = (0..600).map(|n| format!("child-{n}")).collect();
    for name in &names {
        store.write(&format!("/local/domain/5/data/{name}"), "");
    }
    assert_eq!(
        ask(&mut store, MessageType::DIRECTORY, 0, "data|"),
        "E2BIG|"
    );
    let mut list = String::new();
    let generation = loop {
        let request = format!("data|{}|", list.len());
        let part = ask(&mut store, MessageType::DIRECTORY_PART, 0, &request);
        let (generation, part) = part.split_once('|').unwrap();
        if let Some(last) = part.strip_suffix("||") {
            list += last;
            break generation.to_string();
        }
        list += part;
    };
    assert_eq!(list.split('|').collect::<Vec<_>>(), names);
    let end = ask(&mut store, MessageType::DIRECTORY_PART, 0, "data|99999|");
    assert_eq!(end, format!("{generation}||"));
    store.write("/local/domain/5/data/more", "");
    let end = ask(&mut store, MessageType::DIRECTORY_PART, 0, "data|99999|");
    assert_ne!(end, format!("{generation}||"));
}

#[test]
fn the_whole_store_as_text() {
    let mut store = Server::new();
    let before = store.dump();
    store.write("/local/x", "a\"\n");
    assert!(store.dump().contains("/local/x = \"a\\\"\\n\" (n0)\n"));
    store.remove("/local");
    assert_eq!(store.dump(), before);
}
