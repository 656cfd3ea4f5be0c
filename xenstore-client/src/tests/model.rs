//! Random operations, against a map that does the same, with every kind of slowness in between.

use super::*;
use crate::{Outcome, Refusal};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

/// The nodes below `data`, by path relative to it.
type Model = BTreeMap<String, String>;

#[derive(Clone, Debug)]
enum Operation {
    Write(String, String),
    Mkdir(String),
    Remove(String),
    Read(String),
    List(String),
    /// Several of the above, committed or discarded; conflicts with a change from outside if the
    /// number says so.
    Transaction(Vec<Operation>, bool, Option<String>),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab]", 1..4).prop_map(|parts| parts.join("/"))
}

fn simple() -> impl Strategy<Value = Operation> {
    prop_oneof![
        3 => (path(), "[a-z]{0,5}").prop_map(|(path, value)| Operation::Write(path, value)),
        1 => path().prop_map(Operation::Mkdir),
        1 => path().prop_map(Operation::Remove),
        2 => path().prop_map(Operation::Read),
        2 => path().prop_map(Operation::List),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let transaction = (
        prop::collection::vec(simple(), 0..5),
        any::<bool>(),
        prop::option::of(path()),
    );
    prop_oneof![
        6 => simple(),
        1 => transaction
            .prop_map(|(body, commit, outside)| Operation::Transaction(body, commit, outside)),
    ]
}

fn make(model: &mut Model, path: &str) {
    for (at, _) in path.match_indices('/') {
        model.entry(path[..at].into()).or_default();
    }
    model.entry(path.into()).or_default();
}

fn children(model: &Model, path: &str) -> Vec<String> {
    let below = model.keys().filter_map(|key| {
        let rest = key.strip_prefix(path)?.strip_prefix('/')?;
        (!rest.contains('/')).then(|| rest.to_string())
    });
    below.collect()
}

/// Does one operation on both sides and compares what they answer.
async fn both(nodes: &crate::Nodes, model: &mut Model, operation: &Operation) {
    let full = |path: &str| format!("data/{path}");
    match operation {
        Operation::Write(path, value) => {
            nodes.write(full(path), value).await.unwrap();
            make(model, path);
            model.insert(path.clone(), value.clone());
        }
        Operation::Mkdir(path) => {
            nodes.mkdir(full(path)).await.unwrap();
            make(model, path);
        }
        Operation::Remove(path) => {
            let result = nodes.remove(full(path)).await;
            let above = path.rfind('/').map(|slash| &path[..slash]);
            if above.is_none_or(|above| model.contains_key(above)) {
                result.unwrap();
            } else {
                assert_eq!(result.unwrap_err().refusal(), Some(Refusal::NotFound));
            }
            let below = format!("{path}/");
            model.retain(|key, _| key != path && !key.starts_with(&below));
        }
        Operation::Read(path) => {
            let value = nodes.read_optional(full(path)).await.unwrap();
            assert_eq!(value.as_ref(), model.get(path));
        }
        Operation::List(path) => {
            let mut names = nodes.directory_or_empty(full(path)).await.unwrap();
            names.sort();
            assert_eq!(names, children(model, path));
        }
        Operation::Transaction(..) => unreachable!("transactions do not nest"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_store_is_a_map(
        operations in prop::collection::vec(operation(), 1..40),
        slow in prop::option::of(1usize..3),
        reverse in any::<bool>(),
    ) {
        let mut rig = Rig::new();
        rig.server.faults.requests_per_step = slow;
        rig.server.faults.reverse_replies = reverse;
        let store = rig.client.clone();
        let mut model = Model::new();
        for operation in &operations {
            let Operation::Transaction(body, commit, outside) = operation else {
                rig.run(both(&store, &mut model, operation));
                continue;
            };
            let tx = rig.run(store.begin()).unwrap();
            let mut inside = model.clone();
            for operation in body {
                rig.run(both(&tx, &mut inside, operation));
            }
            if let Some(path) = outside {
                rig.server.write(&format!("/local/domain/5/data/{path}"), "outside");
                make(&mut model, path);
                model.insert(path.clone(), "outside".into());
            }
            if !commit {
                drop(tx);
            } else if rig.run(tx.commit()).unwrap() == Outcome::Committed {
                // What was done inside holds, and what was done outside did not touch it.
                if let Some(path) = outside {
                    make(&mut inside, path);
                    inside.insert(path.clone(), "outside".into());
                }
                model = inside;
            } else {
                prop_assert!(outside.is_some(), "a conflict with nobody");
            }
        }
        // What dom0 sees in the end.
        rig.settle();
        let mut seen = Model::new();
        let mut open = vec![String::new()];
        while let Some(path) = open.pop() {
            let full = format!("/local/domain/5/data{path}");
            for name in rig.server.list(&full) {
                let below = format!("{path}/{name}");
                let value = rig.server.read(&format!("/local/domain/5/data{below}"));
                seen.insert(below[1..].into(), value.unwrap());
                open.push(below);
            }
        }
        prop_assert_eq!(seen, model);
        prop_assert_eq!(rig.server.transaction_count(GUEST), 0);
        prop_assert!(store.shared().borrow().requests.is_empty());
    }

    /// Bytes that no xenstored would send break the connection or nothing; they never hang it.
    #[test]
    fn rubbish_is_survived(
        rubbish in prop::collection::vec(any::<u8>(), 1..100),
        at in any::<prop::sample::Index>(),
        length in 1usize..8,
    ) {
        let mut rig = Rig::new();
        let store = rig.client.clone();
        let mut turn = 0;
        rig.server.faults.mangle = Some(Box::new(move |_, bytes| {
            turn += 1;
            if turn % 3 == 0 {
                let at = at.index(bytes.len());
                let end = bytes.len().min(at + length);
                for (byte, bad) in bytes[at..end].iter_mut().zip(rubbish.iter().cycle()) {
                    *byte = *bad;
                }
            }
        }));
        let mut work = pin!(async {
            for _ in 0..10 {
                let written = store.write("data/x", "1").await;
                if let Err(error) = written
                    && error.is_disconnected()
                {
                    return Err(error);
                }
                let _ = store.read("data/x").await?;
            }
            Ok(())
        });
        // A length that was made longer leaves the client waiting for the rest, as it must; then
        // the end of the connection ends the wait.
        for _ in 0..200 {
            if rig.poll(work.as_mut()).is_ready() {
                return Ok(());
            }
            rig.step();
        }
        rig.server.give_up(GUEST, 1);
        for _ in 0..10 {
            rig.step();
        }
        prop_assert!(rig.poll(work.as_mut()).is_ready());
    }
}
