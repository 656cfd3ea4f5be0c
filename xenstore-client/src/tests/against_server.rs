//! Every operation, as a domain with a domain's rights does it.

use super::*;
use crate::{Error, Fault, Permission, Refusal};
use bulkhead_xen::abi::xs_wire::NodeAccess;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

#[test]
fn values() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    rig.run(async {
        store.write("data/a/b", "12").await?;
        assert_eq!(store.read("data/a/b").await?, "12");
        assert_eq!(store.read_number::<u32>("data/a/b").await?, 12);
        assert_eq!(store.read("data/a").await?, "");
        assert_eq!(store.read_optional("data/none").await?, None);
        assert_eq!(store.read_number_optional::<u8>("data/none").await?, None);
        assert!(store.exists("/local/domain/5/data/a").await?);
        assert!(!store.exists("data/none").await?);
        store.mkdir("data/dir").await?;
        assert_eq!(store.directory("data").await?, ["a", "dir"]);
        assert_eq!(store.directory("data/dir").await?, Vec::<String>::new());
        assert_eq!(
            store.directory_or_empty("data/none").await?,
            Vec::<String>::new()
        );
        store.remove("data/a").await?;
        store.remove("data/a").await?;
        assert_eq!(store.directory("data").await?, ["dir"]);
        store.write("data/bytes", [0u8, 255, 10]).await?;
        assert_eq!(store.read_bytes("data/bytes").await?, [0, 255, 10]);
        let path = store.domain_path(OTHER).await?;
        assert_eq!(path.as_str(), "/local/domain/6");
        Ok::<(), Error>(())
    })
    .unwrap();
}

#[test]
fn several_values_at_once() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    rig.run(async {
        store.write("data/a", "1").await.unwrap();
        store.write("data/b", "2").await.unwrap();
        let paths = ["data/b", "data/none", "data/a"].map(String::from);
        let expected = vec![Some("2".into()), None, Some("1".into())];
        assert_eq!(store.read_each(&paths).await, Ok(expected));
        assert_eq!(store.read_each(&[]).await, Ok(vec![]));
        // One that fails is the answer to all, and the others' answers are thrown away.
        store.write("data/bytes", [255]).await.unwrap();
        let paths = ["data/a", "data/bytes", "data/b"].map(String::from);
        let error = store.read_each(&paths).await.unwrap_err();
        assert!(matches!(error.fault(), Fault::NotText { .. }), "{error}");
        assert_eq!(store.read("data/b").await.unwrap(), "2");
    });
}

#[test]
fn numbers() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    rig.run(async {
        for bad in ["", "x", "1x", " 1", "1\n", "+1", "-", "256", "--1"] {
            store.write("data/n", bad).await.unwrap();
            let error = store.read_number::<u8>("data/n").await.unwrap_err();
            let expected = Fault::NotANumber {
                path: "data/n".into(),
                value: bad.into(),
            };
            assert_eq!(*error.fault(), expected);
        }
        store.write("data/n", "-7").await.unwrap();
        assert_eq!(store.read_number("data/n").await, Ok(-7));
        assert!(store.read_number::<u8>("data/n").await.is_err());
    });
}

#[test]
fn refusals_name_what_was_asked() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    rig.run(async {
        let error = store.read("data/none").await.unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "xenstore: READ of \"data/none\": ENOENT");
        let error = store.write("/local/domain/6/data/x", "").await.unwrap_err();
        assert_eq!(error.refusal(), Some(Refusal::AccessDenied));
        store.write("data/n", [0xff]).await.unwrap();
        let error = store.read("data/n").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "xenstore: \"data/n\" is not text: \"\\xff\""
        );
        let error = store.write("data/n", [0; 5000]).await.unwrap_err();
        assert!(matches!(error.fault(), Fault::TooLong { length: 5007, .. }));
        let error = store.read("data//n").await.unwrap_err();
        assert!(matches!(error.fault(), Fault::Path { .. }));
        // None of that hurts the connection.
        assert!(store.exists("data/n").await.unwrap());
    });
}

#[test]
fn permissions() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    rig.run(async {
        store.write("data/x", "1").await?;
        let own = Permission {
            domain: GUEST,
            access: NodeAccess::None,
        };
        let reader = Permission {
            domain: OTHER,
            access: NodeAccess::Read,
        };
        assert_eq!(store.permissions("data/x").await?, [own]);
        store.set_permissions("data/x", &[own, reader]).await?;
        assert_eq!(store.permissions("data/x").await?, [own, reader]);
        Ok::<(), Error>(())
    })
    .unwrap();
    let value = rig
        .server
        .as_domain(OTHER)
        .read("/local/domain/5/data/x")
        .unwrap();
    assert_eq!(value, b"1");
}

#[test]
fn long_listings_come_whole() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    let names: Vec<String> = (0..900).map(|n| format!("child-{n}")).collect();
    for name in &names {
        rig.server
            .write(&format!("/local/domain/5/data/{name}"), "");
    }
    assert_eq!(rig.run(store.directory("data")), Ok(names.clone()));
    // One that changes between two parts is begun again.
    let mut listing = pin!(store.directory("data"));
    let mut changed = false;
    let listed = loop {
        if let Poll::Ready(result) = rig.poll(listing.as_mut()) {
            break result.unwrap();
        }
        let _ = rig.connection.pump();
        // The generation that the first part came with is on its way.
        rig.end.pump(&mut rig.server);
        let _ = rig.connection.pump();
        if !changed && rig.server.has_outgoing(GUEST) {
            rig.server.remove("/local/domain/5/data/child-0");
            changed = true;
        }
    };
    assert!(changed);
    assert_eq!(listed, names[1..]);
}

#[test]
fn many_requests_in_flight() {
    let mut rig = Rig::new();
    rig.server.faults.reverse_replies = true;
    rig.server.faults.requests_per_step = Some(7);
    let store = rig.client.clone();
    let mut writes = Vec::new();
    for n in 0..200 {
        let store = store.clone();
        writes.push(std::boxed::Box::pin(async move {
            let path = format!("data/{n}");
            store.write(&path, n.to_string()).await?;
            store.read(&path).await
        }));
    }
    let mut answers = vec![None; writes.len()];
    for _ in 0..10_000 {
        for (write, answer) in writes.iter_mut().zip(&mut answers) {
            if answer.is_none()
                && let Poll::Ready(result) = rig.poll(write.as_mut())
            {
                *answer = Some(result);
            }
        }
        rig.step();
    }
    for (n, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer, Some(Ok(n.to_string())));
    }
}

#[test]
fn dropped_requests_disturb_nobody() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    for rounds in 0..4 {
        {
            let mut dropped = pin!(store.read("data"));
            assert!(rig.poll(dropped.as_mut()).is_pending());
            for _ in 0..rounds {
                rig.step();
            }
        }
        let expected = format!("{rounds}");
        rig.run(store.write("data/x", &expected)).unwrap();
        assert_eq!(rig.run(store.read("data/x")), Ok(expected));
    }
    rig.settle();
    assert!(store.shared().borrow().requests.is_empty());
}

#[test]
fn of_a_long_value_the_start_is_kept() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    let long = "4".to_string() + &" ".repeat(2000);
    let characters = "x".to_string() + &"\u{fc}".repeat(1000);
    rig.run(async {
        store.write("data/long", &long).await?;
        store.write("data/characters", &characters).await?;
        store.write("data/short", "4").await?;
        assert_eq!(
            store.read_start("data/long").await?.as_deref(),
            Some(&long[..64])
        );
        let paths = ["characters", "none", "short"].map(|name| format!("data/{name}"));
        assert_eq!(
            store.read_each_start(&paths).await?,
            // No part of a character.
            [Some(characters[..63].to_string()), None, Some("4".into())]
        );
        assert_eq!(store.read_start("data/none").await?, None);
        assert_eq!(store.read("data/long").await?, long);
        assert!(store.exists("data/long").await?);
        Ok::<_, Error>(())
    })
    .unwrap();
}

#[test]
fn watches_tell_what_changes() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    let mut watch = rig.run(store.watch("data/dir")).unwrap();
    let mut other = rig.run(store.watch("data")).unwrap();
    assert_eq!(rig.run(watch.next()).unwrap().as_str(), "data/dir");
    assert_eq!(rig.run(other.next()).unwrap().as_str(), "data");
    rig.server.write("/local/domain/5/data/dir/x", "1");
    rig.server.write("/local/domain/5/data/y", "1");
    assert_eq!(rig.run(watch.next()).unwrap().as_str(), "data/dir/x");
    assert_eq!(rig.run(other.next()).unwrap().as_str(), "data/dir/x");
    assert_eq!(rig.run(other.next()).unwrap().as_str(), "data/y");
    {
        let mut nothing = pin!(watch.next());
        assert!(rig.poll(nothing.as_mut()).is_pending());
        rig.settle();
        assert!(rig.poll(nothing.as_mut()).is_pending());
    }
    // Equal events that wait are one, however far they have come.
    for value in 0..3 {
        rig.server
            .write("/local/domain/5/data/dir/x", &value.to_string());
        rig.settle();
    }
    assert_eq!(rig.run(watch.next()).unwrap().as_str(), "data/dir/x");
    assert!(rig.poll(pin!(watch.next())).is_pending());
    assert_eq!(rig.run(other.next()).unwrap().as_str(), "data/dir/x");
    // An event on its way when the watch is dropped is thrown away.
    rig.server.write("/local/domain/5/data/dir/x", "2");
    drop(watch);
    rig.settle();
    assert_eq!(rig.server.watch_count(GUEST), 1);
    assert_eq!(rig.run(other.next()).unwrap().as_str(), "data/dir/x");
    drop(other);
    rig.settle();
    assert_eq!(rig.server.watch_count(GUEST), 0);
    assert!(store.shared().borrow().requests.is_empty());
}

#[test]
fn a_watch_that_is_never_set_up_leaves_nothing() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    for rounds in 0..4 {
        {
            let mut setting = pin!(store.watch("data"));
            assert!(rig.poll(setting.as_mut()).is_pending());
            for _ in 0..rounds {
                rig.step();
            }
        }
        rig.settle();
        assert_eq!(rig.server.watch_count(GUEST), 0);
        assert!(store.shared().borrow().watches.is_empty());
        assert!(store.shared().borrow().requests.is_empty());
    }
    rig.server.quotas.watches = 0;
    let error = rig.run(store.watch("data")).unwrap_err();
    assert_eq!(error.refusal(), Some(Refusal::QuotaExceeded));
    assert!(rig.run(store.exists("data")).unwrap());
}

#[test]
fn too_many_events_become_one() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    let mut watch = rig.run(store.watch("data")).unwrap();
    rig.run(watch.next()).unwrap();
    for n in 0..1000 {
        rig.server.write(&format!("/local/domain/5/data/{n}"), "");
        rig.settle();
    }
    assert_eq!(rig.run(watch.next()).unwrap().as_str(), "data");
    while rig.poll(pin!(watch.next())).is_ready() {}
    rig.server.write("/local/domain/5/data/0", "");
    assert_eq!(rig.run(watch.next()).unwrap().as_str(), "data/0");
}

#[test]
fn events_that_wait_take_little_memory_however_long_their_paths_are() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    let mut watch = rig.run(store.watch("data")).unwrap();
    rig.run(watch.next()).unwrap();
    // As much as a guest can write below its own directory, while the owner of the watch does not look.
    let deep = format!("data/{}", "x".repeat(1900));
    for n in 0..255 {
        rig.server.write(&format!("/local/domain/5/{deep}/{n}"), "");
        rig.settle();
        let shared = store.shared().borrow();
        let waiting = shared.watches.iter().flat_map(|(_, one)| &one.events);
        let bytes: usize = waiting.map(|path| path.as_str().len()).sum();
        assert!(bytes <= 8 << 10, "{bytes} bytes after {n} events");
    }
    let all = core::iter::from_fn(|| match rig.poll(pin!(watch.next())) {
        Poll::Ready(path) => Some(path.unwrap()),
        Poll::Pending => None,
    });
    // The owner learns that anything may have changed.
    let all: Vec<_> = all.collect();
    assert_eq!(all[0].as_str(), "data");
    assert!(all.len() < 8, "{} events", all.len());
    rig.server.write("/local/domain/5/data/y", "");
    assert_eq!(rig.run(watch.next()).unwrap().as_str(), "data/y");
}

#[test]
fn special_watches() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    let everyone = [Permission {
        domain: DomId(0),
        access: NodeAccess::Read,
    }];
    rig.server.set_permissions("@releaseDomain", &everyone);
    let mut watch = rig.run(store.watch("@releaseDomain")).unwrap();
    rig.run(watch.next()).unwrap();
    rig.server.release(OTHER);
    assert_eq!(rig.run(watch.next()).unwrap().as_str(), "@releaseDomain");
}

#[test]
fn forgetting_everything() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    let watch = rig.run(store.watch("data")).unwrap();
    rig.run(store.reset_watches()).unwrap();
    assert_eq!(rig.server.watch_count(GUEST), 0);
    // The watch's own end finds nothing to remove, which is not an error.
    drop(watch);
    rig.settle();
    assert!(rig.run(store.exists("data")).unwrap());
}
