//! What to do about a disk, given where both ends say they are: the xenbus state machine as a
//! function, without any I/O, so that every combination can be tested.
//!
//! The rules are those that Linux's xen-blkback, QEMU and libxl follow:
//! - the toolstack detaches by writing `online` = 0 and `state` = 5 into the backend's directory,
//!   waits for `state` = 6, and then for the directory to be removed;
//! - a frontend closes by going through 5 to 6, and may come back at 1 while `online` is 1
//!   (a reboot of its driver, kexec);
//! - the frontend's directory just disappears when its domain is destroyed.

use super::state::XenbusState;

/// What this backend has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The features are published; the frontend's turn.
    Offered,
    /// The rings are being served.
    Connected,
    /// The device was closed because of an error; it stays so until the frontend comes back.
    Failed,
    /// The frontend has closed the device.
    Closed,
}

/// What xenstore says at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The `state` node in the backend's directory; `None` if the directory is gone.
    pub own: Option<XenbusState>,
    /// The `online` node: the toolstack wants the device to exist.
    pub online: bool,
    /// The frontend's `state` node; `None` if it is gone.
    pub frontend: Option<XenbusState>,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing until something changes.
    Wait,
    /// Connect to the rings that the frontend published.
    Connect,
    /// Take back everything and publish the features anew, for a frontend that starts over.
    Offer,
    /// Acknowledge that the frontend is closing; it may still have requests in flight.
    AcknowledgeClosing,
    /// Take back everything and report `Closed`.
    Close,
    /// Take back everything, report `Closed` and give the image to others: nobody will connect.
    /// The toolstack has yet to take the device away. The end.
    Release,
    /// Take back everything, report `Closed` and remove the backend's directory: the end.
    Remove,
    /// Take back everything: the toolstack has made the directory anew, for another disk.
    StartOver,
    /// Take back everything: the toolstack has removed the directory itself. The end.
    Abandon,
}

/// Decides the next step.
pub fn decide(phase: Phase, seen: Observed) -> Step {
    let Some(own) = seen.own else {
        return Step::Abandon;
    };
    if own == XenbusState::Initialising {
        return Step::StartOver;
    }
    let unplugged = !seen.online && matches!(own, XenbusState::Closing | XenbusState::Closed);
    let frontend = match seen.frontend {
        Some(state) if state != XenbusState::Unknown => state,
        // Its domain is gone, or it has removed its own directory: nobody will ever connect.
        _ if unplugged => return Step::Remove,
        _ => return Step::Release,
    };
    match (frontend, phase) {
        (XenbusState::Closed, _) if !seen.online => Step::Remove,
        (XenbusState::Closed, Phase::Closed | Phase::Offered) => Step::Wait,
        (XenbusState::Closed, Phase::Connected | Phase::Failed) => Step::Close,

        // Nothing is shared, so there is nobody to wait for.
        (_, Phase::Offered | Phase::Failed | Phase::Closed) if unplugged => Step::Remove,

        (XenbusState::Closing, Phase::Connected) if own != XenbusState::Closing => {
            Step::AcknowledgeClosing
        }
        (XenbusState::Closing, _) => Step::Wait,

        (XenbusState::Initialised | XenbusState::Connected, Phase::Offered) => Step::Connect,

        // A frontend that starts over, with or without having closed.
        (XenbusState::Initialising, Phase::Connected | Phase::Closed | Phase::Failed) => {
            Step::Offer
        }
        _ => Step::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState::*;

    fn seen(own: XenbusState, online: bool, frontend: XenbusState) -> Observed {
        Observed {
            own: Some(own),
            online,
            frontend: Some(frontend),
        }
    }

    #[test]
    fn a_disk_from_attach_to_detach() {
        assert_eq!(
            decide(Phase::Offered, seen(InitWait, true, Initialising)),
            Step::Wait
        );
        assert_eq!(
            decide(Phase::Offered, seen(InitWait, true, Initialised)),
            Step::Connect
        );
        assert_eq!(
            decide(Phase::Connected, seen(Connected, true, Initialised)),
            Step::Wait
        );
        assert_eq!(
            decide(Phase::Connected, seen(Connected, true, Connected)),
            Step::Wait
        );
        // The toolstack asks; the frontend still has requests in flight, then closes.
        assert_eq!(
            decide(Phase::Connected, seen(Closing, false, Connected)),
            Step::Wait
        );
        assert_eq!(
            decide(Phase::Connected, seen(Closing, false, Closing)),
            Step::Wait
        );
        assert_eq!(
            decide(Phase::Connected, seen(Closing, false, Closed)),
            Step::Remove
        );
    }

    #[test]
    fn a_frontend_that_closes_by_itself_may_come_back() {
        let closing = seen(Connected, true, Closing);
        assert_eq!(decide(Phase::Connected, closing), Step::AcknowledgeClosing);
        assert_eq!(
            decide(Phase::Connected, seen(Closing, true, Closed)),
            Step::Close
        );
        assert_eq!(
            decide(Phase::Closed, seen(Closed, true, Closed)),
            Step::Wait
        );
        assert_eq!(
            decide(Phase::Closed, seen(Closed, true, Initialising)),
            Step::Offer
        );
    }

    #[test]
    fn a_frontend_that_never_connected_is_not_waited_for() {
        assert_eq!(
            decide(Phase::Offered, seen(Closing, false, Initialising)),
            Step::Remove
        );
        assert_eq!(
            decide(Phase::Closed, seen(Closing, false, Initialising)),
            Step::Remove
        );
        assert_eq!(
            decide(Phase::Failed, seen(Closing, false, Connected)),
            Step::Remove
        );
    }

    #[test]
    fn a_frontend_that_starts_over_without_closing_is_offered_the_disk_again() {
        assert_eq!(
            decide(Phase::Connected, seen(Connected, true, Initialising)),
            Step::Offer
        );
        assert_eq!(
            decide(Phase::Failed, seen(Closing, true, Initialising)),
            Step::Offer
        );
    }

    #[test]
    fn a_failed_device_does_not_connect_again_by_itself() {
        for frontend in [Initialised, Connected, Closing] {
            assert_eq!(
                decide(Phase::Failed, seen(Closing, true, frontend)),
                Step::Wait
            );
        }
        assert_eq!(
            decide(Phase::Failed, seen(Closing, true, Closed)),
            Step::Close
        );
    }

    #[test]
    fn what_is_gone_is_given_up() {
        for phase in [
            Phase::Offered,
            Phase::Connected,
            Phase::Failed,
            Phase::Closed,
        ] {
            let gone = |own, online| Observed {
                own: Some(own),
                online,
                frontend: None,
            };
            assert_eq!(decide(phase, gone(Connected, true)), Step::Release);
            assert_eq!(decide(phase, gone(Closing, false)), Step::Remove);
            for online in [false, true] {
                let removed = Observed {
                    own: None,
                    online,
                    frontend: Some(Connected),
                };
                assert_eq!(decide(phase, removed), Step::Abandon);
                let remade = seen(Initialising, online, Initialising);
                assert_eq!(decide(phase, remade), Step::StartOver);
            }
        }
    }
}
