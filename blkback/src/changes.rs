//! Changes of a disk's nodes since its task last read them. xenstored reports them by watch events. Each
//! event names one path, and only the nodes that it concerns are read again.

use alloc::rc::Rc;
use bulkhead_executor::Signal;
use core::cell::Cell;

/// Nodes that have to be read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stale {
    /// `state` of the backend's directory.
    pub own: bool,
    /// `online` of the backend's directory.
    pub online: bool,
    /// `state` of the frontend's directory.
    pub frontend: bool,
    /// `statistics` of the backend's directory.
    pub statistics: bool,
}

impl Stale {
    /// Nothing.
    pub const NONE: Stale = Stale {
        own: false,
        online: false,
        frontend: false,
        statistics: false,
    };

    /// Everything.
    pub const ALL: Stale = Stale {
        own: true,
        online: true,
        frontend: true,
        statistics: true,
    };

    /// The frontend's side.
    pub const FRONTEND: Stale = Stale {
        frontend: true,
        ..Stale::NONE
    };

    /// Returns the nodes that an event in the backend's directory makes stale, given the rest of its path there.
    pub fn in_backend(rest: &str) -> Stale {
        match rest {
            "" => Stale::ALL,
            "/state" => Stale {
                own: true,
                ..Stale::NONE
            },
            "/online" => Stale {
                online: true,
                ..Stale::NONE
            },
            "/statistics" => Stale {
                statistics: true,
                ..Stale::NONE
            },
            // Written by this domain, or describing the disk: the toolstack changes those only with a new directory.
            _ => Stale::NONE,
        }
    }

    /// Returns the nodes that an event in the frontend's directory makes stale. All others are read when the
    /// frontend connects.
    pub fn in_frontend(rest: &str) -> Stale {
        match rest {
            "" | "/state" => Stale::FRONTEND,
            _ => Stale::NONE,
        }
    }

    fn and(self, other: Stale) -> Stale {
        Stale {
            own: self.own || other.own,
            online: self.online || other.online,
            frontend: self.frontend || other.frontend,
            statistics: self.statistics || other.statistics,
        }
    }
}

/// Reports changes to a disk's task. All clones report to the same task.
#[derive(Clone, Default)]
pub struct Changes {
    signal: Signal,
    stale: Rc<Cell<Stale>>,
}

impl Changes {
    /// Reports that anything may have changed.
    pub fn raise(&self) {
        self.raise_for(Stale::ALL);
    }

    /// Reports that these nodes may have changed.
    pub fn raise_for(&self, stale: Stale) {
        if stale != Stale::NONE {
            self.put_back(stale);
            self.signal.raise();
        }
    }

    /// Ends the current wait, or the next one, though all that has changed was looked at.
    pub fn end_wait(&self) {
        self.signal.raise();
    }

    /// Waits until something may have changed. Only one task waits at a time.
    pub async fn raised(&self) {
        self.signal.raised().await;
    }

    /// Returns whether a change was reported that the task has not waited for, and forgets it.
    pub fn take(&self) -> bool {
        self.signal.take()
    }

    /// Returns which of both ends' states have to be read again. They count as read from here on.
    pub fn take_stale(&self) -> Stale {
        let stale = self.stale.get();
        self.stale.set(Stale {
            statistics: stale.statistics,
            ..Stale::NONE
        });
        stale
    }

    /// Notes that these nodes could not be read.
    pub fn put_back(&self, stale: Stale) {
        self.stale.set(self.stale.get().and(stale));
    }

    /// Returns whether an operator may have asked for statistics. The request counts as seen from here on.
    pub fn take_statistics(&self) -> bool {
        let stale = self.stale.get();
        self.stale.set(Stale {
            statistics: false,
            ..stale
        });
        stale.statistics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_concern_what_is_at_their_paths() {
        assert_eq!(Stale::in_backend(""), Stale::ALL);
        assert!(Stale::in_backend("/state").own);
        assert!(Stale::in_backend("/online").online);
        assert!(Stale::in_backend("/statistics").statistics);
        for rest in ["/sectors", "/params", "/state/x", "/"] {
            assert_eq!(Stale::in_backend(rest), Stale::NONE, "{rest}");
        }
        assert_eq!(Stale::in_frontend("/state"), Stale::FRONTEND);
        assert_eq!(Stale::in_frontend(""), Stale::FRONTEND);
        assert_eq!(Stale::in_frontend("/ring-ref"), Stale::NONE);
    }

    #[test]
    fn what_is_stale_adds_up_until_it_is_read() {
        let changes = Changes::default();
        changes.raise_for(Stale::NONE);
        assert!(!changes.take());
        changes.raise_for(Stale::FRONTEND);
        changes.raise_for(Stale::in_backend("/statistics"));
        assert!(changes.take());
        assert!(changes.take_stale().frontend);
        assert!(!changes.take_stale().frontend);
        assert!(changes.take_statistics());
        assert!(!changes.take_statistics());
        changes.put_back(Stale::FRONTEND);
        assert!(!changes.take(), "nobody is woken by what could not be read");
        assert!(changes.take_stale().frontend);
    }
}
