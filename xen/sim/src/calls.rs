//! Tells a test of each call into the simulated Xen.

use std::cell::Cell;

thread_local! {
    static LISTENER: Cell<Option<fn()>> = const { Cell::new(None) };
}

/// Has this thread call `listener` before each of its calls into a simulated Xen, of any domain; `None` ends that. The
/// listener must not make such calls itself.
pub fn listen_to_calls(listener: Option<fn()>) {
    LISTENER.set(listener);
}

pub(super) fn announce() {
    if let Some(listener) = LISTENER.get() {
        listener();
    }
}
