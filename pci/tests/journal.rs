//! What the log says while something runs.

use log::{LevelFilter, Log, Metadata, Record};
use std::cell::RefCell;

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Journal;

impl Log for Journal {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        LINES.with_borrow_mut(|lines| lines.push(format!("{} {}", record.level(), record.args())));
    }

    fn flush(&self) {}
}

/// Runs something on this thread, and returns the lines of the log, each with its level.
pub fn lines_of(run: impl FnOnce()) -> Vec<String> {
    // Another test of this program may have set it already.
    let _ = log::set_logger(&Journal);
    log::set_max_level(LevelFilter::Info);
    LINES.take();
    run();
    LINES.take()
}
