//! The driver domain's log, kept for each test.

use std::cell::RefCell;

struct Journal;

thread_local! {
    /// The lines; `None` in a thread that has no journal.
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

impl log::Log for Journal {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        #[cfg(feature = "recover")]
        let _busy = crate::stepping::Busy::new();
        LINES.with_borrow_mut(|lines| {
            if let Some(lines) = lines
                && self.enabled(record.metadata())
            {
                lines.push(format!("{} {}", record.level(), record.args()));
            }
        });
    }

    fn flush(&self) {}
}

/// Starts a new journal for this thread.
pub fn install() {
    // Only the first call of the program does anything.
    if log::set_logger(&Journal).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    LINES.set(Some(Vec::new()));
}

/// Returns the lines since the journal was started.
pub fn lines() -> Vec<String> {
    LINES.with_borrow(|lines| lines.clone().unwrap_or_default())
}
