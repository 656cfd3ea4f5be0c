//! Requests of an operator: growth of an image, an end of the domain, options of its command line.

use crate::heap;
use bulkhead_blkback::control::ShutdownRequest;
use bulkhead_blkback::engine::QueueOptions;
use bulkhead_images::{Catalog, GrowRequest, ImageMemory};
use std::ptr::NonNull;
use std::time::Duration;

/// Fuzzes the parsers of an operator's requests and options. The input is the text of a node, or a command line.
pub fn operator(bytes: &[u8]) {
    let _heap = heap::of_parser(bytes);
    let text = String::from_utf8_lossy(bytes);
    match text.parse::<GrowRequest>() {
        Ok(request) => {
            assert!(!request.name.is_empty());
            assert!(text.contains(&request.name));
            refuse(&request);
        }
        Err(error) => {
            let said = error.to_string();
            assert!(said.contains("expected") && said.len() < 500, "{said:?}");
        }
    }
    // No mistake in a request may end the domain.
    if ShutdownRequest::parse(&text).is_some() {
        assert!(["poweroff", "reboot", "halt"].contains(&&*text));
    }
    options(&text);
}

/// Checks that a domain without spare memory refuses to grow an image, with an error that names the image.
fn refuse(request: &GrowRequest) {
    let mut ramdisk = vec![0; 4096];
    let base = NonNull::from(&mut ramdisk[..]).cast();
    // SAFETY: the vector outlives the catalog, and is not used meanwhile.
    let memory = unsafe { ImageMemory::new(base, 4096) };
    let grown = Catalog::from_module(memory).grow(&request.name, request.size);
    let error = grown.expect_err("there is no memory").to_string();
    assert!(error.contains(&*request.name), "{error:?}");
}

fn options(text: &str) {
    let words = || text.split_ascii_whitespace();
    let value = |key: &str| {
        let mut pairs = words().filter_map(|word| word.split_once('='));
        pairs.find(|pair| pair.0 == key).map(|pair| pair.1)
    };
    let mut mistakes = 0;
    let options = QueueOptions::parse(value, |mistake| {
        mistakes += 1;
        assert!(mistake.to_string().contains("the default is used"));
    });
    let given = QueueOptions::KEYS.iter().filter(|key| value(key).is_some());
    assert!(mistakes <= given.count());
    for span in [options.poll, options.hold].into_iter().flatten() {
        assert!(span <= Duration::from_millis(10));
    }
}
