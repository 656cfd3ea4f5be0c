//! Transactions, conflicts and quotas.

use super::*;

#[test]
fn transactions_are_invisible_until_committed() {
    let mut store = store();
    ask(&mut store, MessageType::WATCH, 0, "data|t|");
    let id = ask(&mut store, MessageType::TRANSACTION_START, 0, "|");
    let id: u32 = id.trim_end_matches('|').parse().unwrap();
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_START, id, "|"),
        "EBUSY|"
    );
    assert_eq!(ask(&mut store, MessageType::WRITE, id, "data/x/y|1"), "OK|");
    assert_eq!(ask(&mut store, MessageType::READ, id, "data/x/y|"), "1");
    assert_eq!(
        ask(&mut store, MessageType::READ, 0, "data/x/y|"),
        "ENOENT|"
    );
    assert!(events(&mut store, GUEST).is_empty());
    send(&mut store, GUEST, MessageType::TRANSACTION_END, id, b"T\0");
    assert_eq!(events(&mut store, GUEST), ["data/x/y|t|"]);
    assert_eq!(ask(&mut store, MessageType::READ, 0, "data/x/y|"), "1");
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_END, id, "T|"),
        "ENOENT|"
    );
    assert_eq!(store.transaction_count(GUEST), 0);
}

#[test]
fn transactions_conflict_on_what_they_touched_alone() {
    let mut store = store();
    store.write("/local/domain/5/data/a", "1");
    store.write("/local/domain/5/data/b", "1");
    let begin = |store: &mut Server| {
        let id = ask(store, MessageType::TRANSACTION_START, 0, "|");
        id.trim_end_matches('|').parse::<u32>().unwrap()
    };
    // Another node: no conflict.
    let id = begin(&mut store);
    ask(&mut store, MessageType::WRITE, id, "data/a|2");
    store.write("/local/domain/5/data/b", "2");
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_END, id, "T|"),
        "OK|"
    );
    // A node that was read.
    let id = begin(&mut store);
    ask(&mut store, MessageType::READ, id, "data/b|");
    ask(&mut store, MessageType::WRITE, id, "data/a|3");
    store.write("/local/domain/5/data/b", "3");
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_END, id, "T|"),
        "EAGAIN|"
    );
    assert_eq!(store.read("/local/domain/5/data/a").unwrap(), "2");
    // A node that was not there.
    let id = begin(&mut store);
    ask(&mut store, MessageType::READ, id, "data/c|");
    store.write("/local/domain/5/data/c", "");
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_END, id, "T|"),
        "EAGAIN|"
    );
    // Two children of one node, whose list of children both change.
    let id = begin(&mut store);
    ask(&mut store, MessageType::WRITE, id, "data/d|");
    store.write("/local/domain/5/data/e", "");
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_END, id, "T|"),
        "EAGAIN|"
    );
    // Forced, and discarded ones.
    store.faults.conflicts = 1;
    for (end, answer) in [("T|", "EAGAIN|"), ("F|", "OK|"), ("T|", "OK|")] {
        let id = begin(&mut store);
        assert_eq!(
            ask(&mut store, MessageType::TRANSACTION_END, id, end),
            answer
        );
    }
}

#[test]
fn quotas() {
    let mut store = store();
    store.quotas.nodes = 3;
    store.quotas.watches = 1;
    store.quotas.transactions = 1;
    let full = "ENOSPC|";
    assert_eq!(ask(&mut store, MessageType::WRITE, 0, "data/a/b/c|"), full);
    assert_eq!(ask(&mut store, MessageType::WRITE, 0, "data/a/b|"), "OK|");
    assert_eq!(ask(&mut store, MessageType::WRITE, 0, "data/c|"), full);
    assert_eq!(ask(&mut store, MessageType::WRITE, 0, "data/a|2"), "OK|");
    let big = format!("data/a|{}", "x".repeat(2048));
    assert_eq!(ask(&mut store, MessageType::WRITE, 0, &big), full);
    assert_eq!(ask(&mut store, MessageType::WATCH, 0, "a|1|"), "OK|");
    assert_eq!(ask(&mut store, MessageType::WATCH, 0, "a|2|"), full);
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_START, 0, "|"),
        "1|"
    );
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_START, 0, "|"),
        full
    );
    assert_eq!(
        ask(
            &mut store,
            MessageType::SET_PERMS,
            0,
            "data|n5|r1|r2|r3|r4|r6|"
        ),
        full
    );
    // What dom0 makes there inherits the owner and counts, but dom0 is not refused.
    store.write("/local/domain/5/data/dom0", "");
    assert_eq!(store.node_count(GUEST), 4);
}

#[test]
fn replies_that_nobody_takes_hold_requests_up() {
    let mut store = store();
    store.quotas.outstanding = 2;
    for _ in 0..3 {
        send(&mut store, GUEST, MessageType::READ, 0, b"data\0");
    }
    assert_eq!(messages(&mut store, GUEST).len(), 2);
    store.step();
    assert_eq!(messages(&mut store, GUEST).len(), 1);
}

#[test]
fn oxenstored_refuses_in_other_words() {
    let mut store = store();
    store.become_oxenstored();
    store.quotas.nodes = 3;
    let full = "EQUOTA|";
    assert_eq!(ask(&mut store, MessageType::WRITE, 0, "data/a/b/c|"), full);
    assert_eq!(ask(&mut store, MessageType::WRITE, 0, "data/a|"), "OK|");
    let value = |length| format!("data/a|{}", "x".repeat(length));
    let mut write = |length| ask(&mut store, MessageType::WRITE, 0, &value(length));
    assert_eq!(write(2048), "OK|");
    assert_eq!(write(2049), "E2BIG|");
    for n in 0..101 {
        let watch = format!("a|{n}|");
        assert_eq!(ask(&mut store, MessageType::WATCH, 0, &watch), "OK|");
    }
    assert_eq!(ask(&mut store, MessageType::WATCH, 0, "a|more|"), full);
    for n in 1..=11 {
        let id = format!("{n}|");
        assert_eq!(ask(&mut store, MessageType::TRANSACTION_START, 0, "|"), id);
    }
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_START, 0, "|"),
        full
    );
    // A longer listing can be had in no way.
    for n in 0..512 {
        store.write(&format!("/local/domain/5/data/list/{n:07}"), "");
    }
    assert_eq!(
        ask(&mut store, MessageType::DIRECTORY, 0, "data/list|"),
        "E2BIG|"
    );
    assert_eq!(
        ask(&mut store, MessageType::DIRECTORY_PART, 0, "data/list|0|"),
        "ENOSYS|"
    );
    store.remove("/local/domain/5/data/list/0000000");
    let list = ask(&mut store, MessageType::DIRECTORY, 0, "data/list|");
    assert_eq!(list.len(), 511 * 8);
}
