//! What the driver domain logs, kept for each test.

use std::cell::RefCell;

struct Journal;

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

impl log::Log for Journal {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{} {}", record.level(), record.args());
            LINES.with_borrow_mut(|lines| lines.push(line));
        }
    }

    fn flush(&self) {}
}

/// Starts a new journal for this thread.
pub fn install() {
    // Only the first call of the program does anything.
    if log::set_logger(&Journal).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    LINES.with_borrow_mut(Vec::clear);
}

/// The lines since then.
pub fn lines() -> Vec<String> {
    LINES.with_borrow(Clone::clone)
}
