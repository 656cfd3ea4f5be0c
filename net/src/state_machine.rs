//! The xenbus state machine of an interface: a function from the states of both ends to the next step, without any
//! I/O.
//!
//! The rules are those that Linux's netfront and netback, and libxl follow:
//! - the backend offers its features in state 2; the frontend publishes its rings with state 4, and the backend connects
//!   to them and reports 4 once the hotplug script has run;
//! - a detach is `online` = 0 and `state` = 5 in the backend's directory; the frontend closes by state 6;
//! - a backend that closes while `online` is 1 may come back: a frontend that goes from 6 to 1 is offered the interface
//!   again. One that goes from 4 to 2 and finds the frontend in 4 goes on with the same rings;
//! - the backend's directory disappears when its domain is destroyed, and the frontend's when the toolstack removes the
//!   interface.

use bulkhead_xenbus::XenbusState;

/// The part of an interface's life that this end has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is shared with the backend.
    Fresh,
    /// The rings are published, and the backend has not connected to them yet.
    Published,
    /// The backend is connected.
    Connected,
    /// Everything was taken back; the backend has yet to notice.
    Closed,
    /// The interface was given up because of the backend's behaviour, until it is attached anew.
    Failed,
}

/// The nodes that decide, as xenstore has them at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// True if the frontend's directory is there.
    pub attached: bool,
    /// The backend's `state` node; unknown if it is gone.
    pub backend: XenbusState,
    /// True if the toolstack wants the device to exist: the backend's `online` node.
    pub online: bool,
    /// True if the backend has had enough time to connect again by itself.
    pub waited: bool,
    /// True if this end's node is from a boot before this one, which has crashed: that boot's rings are published, or
    /// it had closed.
    pub left: bool,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing until something changes.
    Wait,
    /// Nothing until something changes, or a restarted backend has had its time.
    WaitForBackend,
    /// Publish rings, and report `Connected`.
    Publish,
    /// The backend is there: packets flow.
    Connect,
    /// Take back everything and report `Closed`.
    Close,
    /// Report `Initialising`: the backend may offer the interface again.
    StartOver,
    /// Take back everything: the toolstack has removed the directory.
    Forget,
}

/// Decides the next step.
pub fn decide(phase: Phase, seen: Observed) -> Step {
    use XenbusState::*;
    if !seen.attached {
        return Step::Forget;
    }
    match (phase, seen.backend) {
        (Phase::Failed, _) => Step::Wait,

        // The rings that it is connected to, or about to be, are not this end's; or it waits to be asked again.
        (Phase::Fresh, InitWait | Closed) if seen.left => Step::Close,
        (Phase::Fresh, InitWait) => Step::Publish,
        (Phase::Fresh, Initialised | Connected | Closing) => Step::Close,
        (Phase::Fresh, _) => Step::Wait,

        (Phase::Published, Connected) => Step::Connect,
        (Phase::Published, InitWait | Initialised) => Step::Wait,
        (Phase::Connected, Connected) => Step::Wait,
        (Phase::Connected, InitWait) if !seen.waited => Step::WaitForBackend,
        // It goes, is gone, or has started over.
        (Phase::Published | Phase::Connected, _) => Step::Close,

        (Phase::Closed, Initialising | InitWait | Closed) if seen.online => Step::StartOver,
        (Phase::Closed, _) => Step::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState::*;

    fn seen(backend: XenbusState, online: bool) -> Observed {
        Observed {
            attached: true,
            backend,
            online,
            waited: false,
            left: false,
        }
    }

    #[test]
    fn an_interface_from_attach_to_detach() {
        let step = |phase, backend, online| decide(phase, seen(backend, online));
        assert_eq!(step(Phase::Fresh, Initialising, true), Step::Wait);
        assert_eq!(step(Phase::Fresh, InitWait, true), Step::Publish);
        assert_eq!(step(Phase::Published, InitWait, true), Step::Wait);
        assert_eq!(step(Phase::Published, Connected, true), Step::Connect);
        assert_eq!(step(Phase::Connected, Connected, true), Step::Wait);
        assert_eq!(step(Phase::Connected, Closing, false), Step::Close);
        assert_eq!(step(Phase::Closed, Closed, false), Step::Wait);
    }

    #[test]
    fn a_backend_that_closes_may_come_back() {
        let step = |phase, backend| decide(phase, seen(backend, true));
        for gone in [Closing, Closed, Initialising, Unknown] {
            assert_eq!(step(Phase::Connected, gone), Step::Close, "{gone:?}");
        }
        assert_eq!(step(Phase::Connected, InitWait), Step::WaitForBackend);
        let waited = Observed {
            waited: true,
            ..seen(InitWait, true)
        };
        assert_eq!(decide(Phase::Connected, waited), Step::Close);
        assert_eq!(step(Phase::Closed, Closing), Step::Wait);
        assert_eq!(step(Phase::Closed, Closed), Step::StartOver);
        assert_eq!(step(Phase::Fresh, Closed), Step::Wait);
    }

    #[test]
    fn what_a_crash_has_left_is_closed_before_rings_are_published() {
        for backend in [InitWait, Initialised, Connected, Closing, Closed] {
            let left = Observed {
                left: true,
                ..seen(backend, true)
            };
            assert_eq!(decide(Phase::Fresh, left), Step::Close, "{backend:?}");
        }
        assert_eq!(decide(Phase::Closed, seen(Closed, true)), Step::StartOver);
    }

    #[test]
    fn a_directory_that_is_gone_is_forgotten_and_a_failed_interface_stays_so() {
        for phase in [
            Phase::Fresh,
            Phase::Published,
            Phase::Connected,
            Phase::Closed,
            Phase::Failed,
        ] {
            let gone = Observed {
                attached: false,
                ..seen(Connected, true)
            };
            assert_eq!(decide(phase, gone), Step::Forget);
        }
        for backend in [InitWait, Connected, Closing, Closed, Unknown] {
            assert_eq!(decide(Phase::Failed, seen(backend, true)), Step::Wait);
        }
    }
}
