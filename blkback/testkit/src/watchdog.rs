//! Ends the program if a machine runs for much longer than any should: a task that always finds
//! something to do would otherwise be a test that never ends.

use std::sync::{Mutex, Once, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

static RUNNING: Mutex<Vec<(ThreadId, Option<String>, Instant)>> = Mutex::new(Vec::new());
static WATCHDOG: Once = Once::new();

/// A machine that runs; dropped when it has come to rest.
pub struct Watched;

impl Watched {
    pub fn new() -> Watched {
        WATCHDOG.call_once(|| {
            thread::spawn(|| {
                loop {
                    thread::sleep(Duration::from_secs(1));
                    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(stuck) = running.iter().find(|run| run.2.elapsed() > LIMIT) {
                        eprintln!("a machine does not come to rest: {:?}", stuck.1);
                        std::process::abort();
                    }
                }
            });
        });
        let thread = thread::current();
        let entry = (
            thread.id(),
            thread.name().map(str::to_string),
            Instant::now(),
        );
        RUNNING
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(entry);
        Watched
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let id = thread::current().id();
        RUNNING
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|run| run.0 != id);
    }
}
