//! A disk's life as the toolstack writes it.

use super::super::toolstack::{self, Disk, Vbd};
use super::*;

fn with_domains() -> Server {
    let mut store = Server::new();
    for (domain, name, driver) in [(BACKEND, "storage", true), (GUEST, "guest", false)] {
        store.introduce(domain);
        toolstack::create_domain(&mut store, domain, name, driver);
    }
    store
}

#[test]
fn device_numbers() {
    for (name, number) in [
        ("xvda", 51712),
        ("xvdb", 51728),
        ("xvdp", 51952),
        ("xvdq", 268439552),
        ("xvdaa", 268442112),
    ] {
        assert_eq!(Vbd::new(BACKEND, GUEST, name).device_number(), number);
    }
}

#[test]
fn attaching_gives_each_side_its_rights() {
    let mut store = with_domains();
    let vbd = Vbd::new(BACKEND, GUEST, "xvda");
    toolstack::attach(&mut store, &vbd, &Disk::read_only("ram:disk0"));
    let backend = vbd.backend_path();
    let frontend = vbd.frontend_path();
    assert_eq!(store.read(&format!("{backend}/mode")).unwrap(), "r");
    assert_eq!(
        store.read(&format!("{backend}/params")).unwrap(),
        "ram:disk0"
    );

    let mut storage = store.as_domain(BACKEND);
    // Relative paths, as the backend uses them.
    assert_eq!(storage.list("backend/vbd/5"), Ok(vec!["51712".into()]));
    storage.write("backend/vbd/5/51712/state", "2").unwrap();
    storage.write("backend/vbd/5/51712/sectors", "8").unwrap();
    assert_eq!(
        storage.read(&format!("{frontend}/state")),
        Ok(b"1".to_vec())
    );
    // A node that the guest has not written yet is missing, not forbidden.
    assert_eq!(
        storage.read(&format!("{frontend}/ring-ref")),
        Err(Refusal::NotFound)
    );
    assert_eq!(
        storage.write(&format!("{frontend}/state"), "4"),
        Err(Refusal::AccessDenied)
    );
    // The directories above its own are dom0's.
    for above in ["backend", "backend/vbd", "backend/vbd/5"] {
        assert_eq!(storage.remove(above), Err(Refusal::AccessDenied));
        assert_eq!(
            storage.write(&format!("{above}/x"), ""),
            Err(Refusal::AccessDenied)
        );
    }

    let mut guest = store.as_domain(GUEST);
    assert_eq!(guest.read(&format!("{backend}/sectors")), Ok(b"8".to_vec()));
    guest.write("device/vbd/51712/ring-ref", "8").unwrap();
    guest.write("device/vbd/51712/state", "3").unwrap();
    assert_eq!(
        guest.write(&format!("{backend}/state"), "4"),
        Err(Refusal::AccessDenied)
    );
    let mut storage = store.as_domain(BACKEND);
    assert_eq!(
        storage.read(&format!("{frontend}/ring-ref")),
        Ok(b"8".to_vec())
    );
    assert_eq!(vbd.backend_state(&mut store).as_deref(), Some("2"));
    assert_eq!(vbd.frontend_state(&mut store).as_deref(), Some("3"));
}

#[test]
fn detaching_leaves_the_store_as_it_was() {
    let mut store = with_domains();
    let before = store.dump();
    let vbd = Vbd::new(BACKEND, GUEST, "xvdb");
    for force in [false, true] {
        toolstack::attach(&mut store, &vbd, &Disk::new("ram:disk0"));
        let asked = match force {
            false => toolstack::request_detach(&mut store, &vbd),
            true => toolstack::force_detach(&mut store, &vbd),
        };
        assert!(asked);
        assert_eq!(vbd.backend_state(&mut store).as_deref(), Some("5"));
        assert_eq!(vbd.frontend_state(&mut store).is_none(), force);
        let backend = vbd.backend_path();
        assert_eq!(store.read(&format!("{backend}/online")).unwrap(), "0");
        // The backend's part.
        let mut storage = store.as_domain(BACKEND);
        storage.write("backend/vbd/5/51728/state", "6").unwrap();
        storage.remove("backend/vbd/5/51728").unwrap();
        assert!(vbd.backend_gone(&store));
        assert!(!toolstack::request_detach(&mut store, &vbd));
        toolstack::finish_detach(&mut store, &vbd);
        // Nothing is left, not even what was made above the disk's directories.
        assert_eq!(store.dump(), before);
    }
}

#[test]
fn a_backend_sees_its_disks_come_and_go() {
    let mut store = with_domains();
    send(
        &mut store,
        BACKEND,
        MessageType::WATCH,
        0,
        b"backend/vbd\0b\0",
    );
    send(
        &mut store,
        BACKEND,
        MessageType::WATCH,
        0,
        b"/local/domain/5/device/vbd\0f\0",
    );
    events(&mut store, BACKEND);
    let vbd = Vbd::new(BACKEND, GUEST, "xvda");
    toolstack::attach(&mut store, &vbd, &Disk::new("ram:disk0"));
    let seen = events(&mut store, BACKEND);
    assert!(
        seen.contains(&"backend/vbd/5/51712/state|b|".into()),
        "{seen:?}"
    );
    // One watch above all of a guest's disks tells what the backend may read below.
    let state = "/local/domain/5/device/vbd/51712/state|f|".to_string();
    assert!(seen.contains(&state), "{seen:?}");
    store
        .as_domain(GUEST)
        .write("device/vbd/51712/state", "3")
        .unwrap();
    assert_eq!(events(&mut store, BACKEND), [state]);
    // A commit's events come in the order in which the transaction touched the nodes.
    toolstack::request_detach(&mut store, &vbd);
    assert_eq!(
        events(&mut store, BACKEND),
        [
            "backend/vbd/5/51712/state|b|",
            "backend/vbd/5/51712/online|b|"
        ]
    );
    // A frontend that is removed by itself is seen to go.
    toolstack::force_detach(&mut store, &vbd);
    let seen = events(&mut store, BACKEND);
    let gone = "/local/domain/5/device/vbd/51712|f|".to_string();
    assert!(seen.contains(&gone), "{seen:?}");
    // If the whole domain's directory goes at once, a watch above the frontend's is on a node that
    // the backend may not read: it hears nothing.
    toolstack::attach(&mut store, &vbd, &Disk::new("ram:disk0"));
    events(&mut store, BACKEND);
    toolstack::remove_domain(&mut store, GUEST);
    assert_eq!(events(&mut store, BACKEND), Vec::<String>::new());
}
