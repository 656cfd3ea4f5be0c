//! Transactions: conflicts, transactions that are dropped, and more of them than a domain may have.

use super::*;
use crate::{Fault, Outcome, Transaction};
use std::vec::Vec;

#[test]
fn transactions_are_tried_again() {
    let mut rig = Rig::new();
    rig.server.faults.conflicts = 99;
    let store = rig.client.clone();
    let tries = core::cell::Cell::new(0);
    let body = async |tx: &Transaction| {
        tries.set(tries.get() + 1);
        tx.write("data/a", "1").await?;
        tx.write("data/b", "2").await?;
        assert!(!store.exists("data/a").await?);
        tx.read_number::<u32>("data/b").await
    };
    assert_eq!(rig.run(store.transaction(body)), Ok(2));
    assert_eq!(tries.get(), 100);
    assert_eq!(rig.server.read("/local/domain/5/data/a").unwrap(), "1");
    rig.server.faults.conflicts = 100;
    let endless = store.transaction(async |tx| tx.write("data/a", "2").await);
    assert_eq!(
        rig.run(endless),
        Err(Fault::Conflicts { attempts: 100 }.into())
    );
    assert_eq!(rig.server.read("/local/domain/5/data/a").unwrap(), "1");
    let failing = store.transaction(async |tx| {
        tx.write("data/a", "2").await?;
        tx.read("data/none").await
    });
    assert!(rig.run(failing).unwrap_err().is_not_found());
    rig.settle();
    assert_eq!(rig.server.transaction_count(GUEST), 0);
    assert_eq!(rig.server.read("/local/domain/5/data/a").unwrap(), "1");
}

#[test]
fn real_conflicts_are_seen() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    rig.server.write("/local/domain/5/data/a", "1");
    let tx = rig.run(store.begin()).unwrap();
    assert_eq!(rig.run(tx.read("data/a")).unwrap(), "1");
    rig.server.write("/local/domain/5/data/a", "2");
    assert_eq!(rig.run(tx.commit()), Ok(Outcome::Conflict));
    let tx = rig.run(store.begin()).unwrap();
    rig.run(tx.write("data/a", "3")).unwrap();
    assert_eq!(rig.run(tx.commit()), Ok(Outcome::Committed));
    assert_eq!(rig.server.read("/local/domain/5/data/a").unwrap(), "3");
}

#[test]
fn transactions_that_are_dropped_are_ended() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    for rounds in 0..4 {
        {
            let mut begin = pin!(store.begin());
            assert!(rig.poll(begin.as_mut()).is_pending());
            for _ in 0..rounds {
                rig.step();
            }
        }
        rig.settle();
        assert_eq!(rig.server.transaction_count(GUEST), 0);
    }
    drop(rig.run(store.begin()).unwrap());
    rig.settle();
    assert_eq!(rig.server.transaction_count(GUEST), 0);
    assert!(store.shared().borrow().requests.is_empty());
}

#[test]
fn more_transactions_than_the_quota_wait_their_turn() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(rig.run(store.begin()).unwrap());
    }
    let mut ninth = pin!(store.begin());
    for _ in 0..10 {
        assert!(rig.poll(ninth.as_mut()).is_pending());
        rig.step();
    }
    assert_eq!(rig.server.transaction_count(GUEST), 8);
    open.pop();
    rig.run(ninth).unwrap();
}
