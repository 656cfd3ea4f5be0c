//! The xenbus state machine of a disk's or a network interface's frontend: a function from the states of both ends to
//! the next step, without any I/O, so that every combination can be tested.
//!
//! The rules are those that Linux's blkfront and netfront, the backends of Linux and QEMU, and libxl follow (states as in
//! `io/xenbus.h`):
//! - the backend offers its features in state 2, and connects to the rings that the frontend publishes: a disk's with
//!   state 3, an interface's with state 4. It goes to 4 itself, a disk's once its properties are published, an
//!   interface's once the hotplug script has run;
//! - the toolstack detaches by writing `online` = 0 and `state` = 5 into the backend's directory; the frontend
//!   closes by state 6;
//! - a backend that closes while `online` is 1 may come back: a frontend that goes from 6 to 1 is offered
//!   the device again. A backend that goes from 4 to 2 and finds the frontend in 4 goes on with the same rings;
//! - the backend's directory disappears when its domain is destroyed, and the frontend's when the toolstack
//!   removes the device.

use crate::XenbusState;

/// The stage that this frontend has reached with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is shared with the backend, which may offer the device.
    Fresh,
    /// The rings are published; the backend's turn.
    Published,
    /// Requests or packets go over the rings.
    Connected,
    /// Everything was taken back; the backend has yet to notice.
    Closed,
    /// The device was given up because of the backend's behaviour, until the toolstack attaches it anew.
    Failed,
}

/// The states that [`decide`] decides by, as they are at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The frontend's directory is there.
    pub attached: bool,
    /// The backend's `state` node; unknown if it is gone.
    pub backend: XenbusState,
    /// The backend's `online` node: the toolstack wants the device to exist.
    pub online: bool,
    /// The device is in use, and is not to be let go of when the toolstack detaches it.
    pub in_use: bool,
    /// The backend has had time enough to connect again by itself.
    pub waited: bool,
    /// The domain started again in place after a crash, and this end's `state` node is one that the boot before wrote
    /// (see [`is_left`]).
    pub left: bool,
    /// That boot was connected, and going on with its rings has not been tried yet.
    pub may_go_on: bool,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Do nothing until something changes.
    Wait,
    /// Go on with the rings of a boot before this one, if that is possible.
    GoOn,
    /// Publish rings, and report that.
    Publish,
    /// Use the rings: the backend is connected to them.
    Connect,
    /// Read again what the backend tells of the device; then do nothing until something changes.
    Reread,
    /// Do nothing until something changes, or a restarted backend has had its time.
    WaitForBackend,
    /// Do nothing until something changes: the device is to be detached, but it is in use.
    Keep,
    /// Take back everything and report `Closed`. Requests wait for the backend to come back.
    Close,
    /// Report `Initialising`: the backend may offer the device again.
    StartOver,
    /// Take back everything: the toolstack has removed the directory.
    Forget,
}

/// Returns whether this end's `state` node is one that only a frontend writes: a boot before this one, if this one has
/// not written it.
pub fn is_left(own: XenbusState) -> bool {
    use XenbusState::*;
    matches!(own, Initialised | Connected | Closing | Closed)
}

/// Decides the next step.
pub fn decide(phase: Phase, seen: Observed) -> Step {
    use XenbusState::*;
    if !seen.attached {
        return Step::Forget;
    }
    match (phase, seen.backend) {
        (Phase::Failed, _) => Step::Wait,

        (Phase::Fresh, Connected) if seen.may_go_on => Step::GoOn,

        // The backend is connected to rings of the boot before, or about to connect to them; or it waits for this end
        // to start over.
        (Phase::Fresh, InitWait | Closed) if seen.left => Step::Close,
        (Phase::Fresh, InitWait) => Step::Publish,
        (Phase::Fresh, Initialised | Connected | Closing) => Step::Close,
        (Phase::Fresh, _) => Step::Wait,

        (Phase::Published, Connected) => Step::Connect,
        (Phase::Published, InitWait | Initialised) => Step::Wait,

        (Phase::Connected, Connected) => Step::Reread,
        // A disk in use is kept, as other frontends do. The toolstack gives up waiting, and the backend serves on.
        (Phase::Connected, Closing) if !seen.online && seen.in_use => Step::Keep,

        // Linux's backend driver goes on with the rings that it finds when it is bound again to a device.
        (Phase::Connected, InitWait) if !seen.waited => Step::WaitForBackend,

        // The backend closes, is gone, or has started over without having answered its requests.
        (Phase::Published | Phase::Connected, _) => Step::Close,

        (Phase::Closed, Initialising | InitWait | Closed) if seen.online => Step::StartOver,
        (Phase::Closed, _) => Step::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState::*;

    fn seen(backend: XenbusState, online: bool, in_use: bool) -> Observed {
        Observed {
            attached: true,
            backend,
            online,
            in_use,
            waited: false,
            left: false,
            may_go_on: false,
        }
    }

    const PHASES: [Phase; 5] = [
        Phase::Fresh,
        Phase::Published,
        Phase::Connected,
        Phase::Closed,
        Phase::Failed,
    ];

    #[test]
    fn a_device_from_attach_to_detach() {
        let step = |phase, backend, online| decide(phase, seen(backend, online, false));
        assert_eq!(step(Phase::Fresh, Initialising, true), Step::Wait);
        assert_eq!(step(Phase::Fresh, InitWait, true), Step::Publish);
        assert_eq!(step(Phase::Published, InitWait, true), Step::Wait);
        assert_eq!(step(Phase::Published, Connected, true), Step::Connect);
        assert_eq!(step(Phase::Connected, Connected, true), Step::Reread);
        assert_eq!(step(Phase::Connected, Closing, false), Step::Close);
        assert_eq!(step(Phase::Closed, Closed, false), Step::Wait);
    }

    #[test]
    fn a_device_in_use_is_not_let_go_of() {
        let step = |backend, online| decide(Phase::Connected, seen(backend, online, true));
        assert_eq!(step(Closing, false), Step::Keep);
        assert_eq!(step(Closing, true), Step::Close);
        assert_eq!(step(Closed, false), Step::Close);
        assert_eq!(step(Unknown, false), Step::Close);
    }

    #[test]
    fn a_backend_that_closes_may_come_back() {
        for in_use in [false, true] {
            let step = |phase, backend| decide(phase, seen(backend, true, in_use));
            for gone in [Closing, Closed, Initialising, Unknown] {
                assert_eq!(step(Phase::Connected, gone), Step::Close, "{gone:?}");
            }
            assert_eq!(step(Phase::Connected, InitWait), Step::WaitForBackend);
            let waited = Observed {
                waited: true,
                ..seen(InitWait, true, in_use)
            };
            assert_eq!(decide(Phase::Connected, waited), Step::Close);
            assert_eq!(step(Phase::Closed, Closing), Step::Wait);
            assert_eq!(step(Phase::Closed, Connected), Step::Wait);
            assert_eq!(step(Phase::Closed, Unknown), Step::Wait);
            assert_eq!(step(Phase::Closed, Closed), Step::StartOver);
            assert_eq!(step(Phase::Fresh, Closed), Step::Wait);
            assert_eq!(step(Phase::Fresh, InitWait), Step::Publish);
        }
    }

    #[test]
    fn what_a_crash_has_left_is_closed_before_rings_are_published() {
        for backend in [InitWait, Initialised, Connected, Closing, Closed] {
            let left = Observed {
                left: true,
                ..seen(backend, true, true)
            };
            assert_eq!(decide(Phase::Fresh, left), Step::Close, "{backend:?}");
        }
    }

    #[test]
    fn rings_that_a_crash_has_left_are_gone_on_with_if_their_backend_is_connected() {
        for backend in [
            Initialising,
            InitWait,
            Initialised,
            Connected,
            Closing,
            Closed,
        ] {
            let left = Observed {
                left: true,
                may_go_on: true,
                ..seen(backend, true, true)
            };
            let goes_on = decide(Phase::Fresh, left) == Step::GoOn;
            assert_eq!(goes_on, backend == Connected, "{backend:?}");
        }
    }

    #[test]
    fn a_directory_that_is_gone_is_forgotten_and_a_failed_device_does_not_come_back_by_itself() {
        for phase in PHASES {
            let gone = Observed {
                attached: false,
                ..seen(Connected, true, true)
            };
            assert_eq!(decide(phase, gone), Step::Forget);
        }
        for backend in [InitWait, Connected, Closing, Closed, Unknown] {
            assert_eq!(decide(Phase::Failed, seen(backend, true, true)), Step::Wait);
        }
    }

    #[test]
    fn nothing_is_shared_with_a_backend_that_was_told_to_go() {
        for phase in [Phase::Closed, Phase::Failed] {
            for backend in [Initialising, InitWait, Connected, Closing, Closed, Unknown] {
                assert_eq!(decide(phase, seen(backend, false, false)), Step::Wait);
            }
        }
    }
}
