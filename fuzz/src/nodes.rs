//! Nodes that guests and the toolstack write about a disk. An input is lines, `NAME=VALUE`
//! for a node, or a path.

use crate::heap;
use bulkhead_blkback::admission::Admission;
use bulkhead_blkback::device::DeviceId;
use bulkhead_blkback::id::VbdId;
use bulkhead_blkback::limits::Limits;
use bulkhead_blkback::vbd::config::VbdConfig;
use bulkhead_blkback::vbd::frontend_nodes;
use bulkhead_xen::DomId;
use bulkhead_xenbus::NodeMap;
use bulkhead_xenbus::XenbusState;
use std::collections::HashSet;

/// The most characters of an error that quotes what a guest wrote.
const LONGEST_MESSAGE: usize = 160;

fn nodes(text: &str) -> NodeMap {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    pairs.map(owned).collect()
}

/// Fuzzes the parser of a frontend's nodes. The input is lines `NAME=VALUE`.
pub fn frontend(bytes: &[u8]) {
    let _heap = heap::of_parser(bytes);
    let text = String::from_utf8_lossy(bytes);
    let nodes = nodes(&text);
    let state = XenbusState::parse(nodes.get("state").map(String::as_str));
    assert!(state.to_string().len() == 1);
    // A small driver domain, a large one, and one that is almost full.
    for (vcpus, free) in [(1, 1 << 16), (32, 1 << 24), (4, 100)] {
        let id = VbdId {
            frontend: DomId(1),
            device: 51712,
        };
        let limits = Admission::default().offer(id, Limits::for_vcpus(vcpus), free);
        let most_pages = 1 << limits.ring_page_order;
        let wanted = frontend_nodes::queue_nodes(&nodes, limits);
        if let Ok(names) = &wanted {
            let most = limits.queues as usize * (most_pages + 1);
            assert!((2..=most.max(3)).contains(&names.len()), "{}", names.len());
            let distinct: HashSet<&String> = names.iter().collect();
            assert_eq!(distinct.len(), names.len(), "a node is read twice");
        }
        match frontend_nodes::parse(&nodes, limits) {
            Ok(published) => {
                let queues = published.queues.len();
                assert!((1..=limits.queues as usize).contains(&queues));
                let pages = published.queues[0].ring.len();
                assert!(pages.is_power_of_two() && pages <= most_pages);
                assert!(published.queues.iter().all(|one| one.ring.len() == pages));
                assert!(wanted.is_ok(), "understood without being read");
            }
            Err(error) => {
                let said = error.to_string();
                assert!(said.starts_with("the frontend"), "{said:?}");
                assert!(said.chars().count() <= LONGEST_MESSAGE, "{said:?}");
            }
        }
    }
}

/// Fuzzes the parsers of a backend directory's nodes, which the toolstack writes (lines `NAME=VALUE`), and of the paths
/// that watch events name (other lines).
pub fn toolstack(bytes: &[u8]) {
    let _heap = heap::of_parser(bytes);
    let text = String::from_utf8_lossy(bytes);
    for path in text.lines() {
        if let Some(id) = DeviceId::from_path(path) {
            assert!(id.frontend < DomId::FIRST_RESERVED);
            assert_eq!(DeviceId::from_path(&id.backend_path()), Some(id.clone()));
            let error = id.error_path();
            assert!(error.starts_with("error/backend/") && error.ends_with("/error"));
        }
        if let Some(id) = VbdId::from_path(path) {
            assert!(id.frontend < DomId::FIRST_RESERVED);
            assert_eq!(VbdId::from_path(&id.backend_path()), Some(id));
            let below = format!("{}/state", id.backend_path());
            assert_eq!(VbdId::from_path(&below), Some(id));
            assert_eq!(DeviceId::from_path(path), Some(id.into()));
            let shown = id.to_string();
            assert!(shown.starts_with(&format!("{}/{}", id.frontend, id.device)));
        }
    }
    let named = text.lines().find_map(VbdId::from_path);
    let id = named.unwrap_or(VbdId {
        frontend: DomId(5),
        device: 51712,
    });
    match VbdConfig::parse(id, &nodes(&text)) {
        Ok(config) => {
            assert_eq!(config.frontend_path, id.frontend_path());
            assert!(!config.target.is_empty());
            assert!(config.removable || !config.cdrom, "a CD-ROM is removable");
        }
        Err(error) => {
            let said = error.to_string();
            let explains = said.contains("expected") || said.contains("wrote no");
            assert!(explains, "{said:?}");
        }
    }
}
