//! Events: the changes that reach a watcher.

use super::*;

#[test]
fn watches_fire_for_what_is_below_and_readable() {
    let mut store = store();
    assert_eq!(
        ask(&mut store, MessageType::WATCH, 0, "data/dir|one|"),
        "OK|"
    );
    assert_eq!(
        ask(&mut store, MessageType::WATCH, 0, "data/dir|one|"),
        "EEXIST|"
    );
    assert_eq!(
        ask(
            &mut store,
            MessageType::WATCH,
            0,
            "/local/domain/5/data|two|"
        ),
        "OK|"
    );
    assert!(events(&mut store, GUEST).is_empty());
    store.write("/local/domain/5/data/dir/a", "1");
    assert_eq!(
        events(&mut store, GUEST),
        ["data/dir/a|one|", "/local/domain/5/data/dir/a|two|"]
    );
    // Readable neither itself nor from above: nothing is told.
    store.set_permissions("/local/domain/5/data/dir", &owned_by(DOM0, &[]));
    store.set_permissions("/local/domain/5/data/dir/a", &owned_by(DOM0, &[]));
    events(&mut store, GUEST);
    store.write("/local/domain/5/data/dir/a", "2");
    assert!(events(&mut store, GUEST).is_empty());
    // Equal events that wait are one event.
    store.write("/local/domain/5/data/x", "1");
    store.write("/local/domain/5/data/x", "2");
    assert_eq!(events(&mut store, GUEST), ["/local/domain/5/data/x|two|"]);
    assert_eq!(
        ask(&mut store, MessageType::UNWATCH, 0, "data|one|"),
        "ENOENT|"
    );
    assert_eq!(
        ask(&mut store, MessageType::UNWATCH, 0, "data/dir|one|"),
        "OK|"
    );
    assert_eq!(ask(&mut store, MessageType::RESET_WATCHES, 0, "|"), "OK|");
    assert_eq!(store.watch_count(GUEST), 0);
}

#[test]
fn first_event_follows_the_reply() {
    let mut store = store();
    send(&mut store, GUEST, MessageType::WATCH, 0, b"none/such\0t\0");
    let messages = messages(&mut store, GUEST);
    assert_eq!(messages[0].header.message_type, MessageType::WATCH);
    assert_eq!(messages[1].header.message_type, MessageType::WATCH_EVENT);
    assert_eq!(messages[1].header.request, RequestId(0));
    assert_eq!(messages[1].text(), "none/such|t|");
}

#[test]
fn removing_a_parent_fires_each_watched_node_by_its_own_name() {
    let mut store = store();
    store.write("/local/domain/5/data/dir/a/b", "1");
    for path in ["data", "data/dir/a", "data/dir/a/none"] {
        ask(&mut store, MessageType::WATCH, 0, &format!("{path}|t|"));
    }
    events(&mut store, GUEST);
    store.remove("/local/domain/5/data/dir");
    assert_eq!(events(&mut store, GUEST), ["data/dir/a|t|", "data/dir|t|"]);
}

#[test]
fn domains_come_and_go() {
    let mut store = store();
    let everyone = [Permission {
        domain: DOM0,
        access: NodeAccess::Read,
    }];
    ask(&mut store, MessageType::WATCH, 0, "@releaseDomain|r|");
    store.release(DomId(9));
    assert!(events(&mut store, GUEST).is_empty());
    store.set_permissions("@releaseDomain", &everyone);
    events(&mut store, GUEST);
    store.release(DomId(9));
    store.release(DomId(9));
    let event = "@releaseDomain|r|";
    assert_eq!(events(&mut store, GUEST), [event, event]);
    store.release(GUEST);
    assert!(!store.is_introduced(GUEST));
    assert_eq!(store.watch_count(GUEST), 0);
}
