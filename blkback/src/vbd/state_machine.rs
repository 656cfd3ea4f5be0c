//! The xenbus state machine of a disk: a function from the states of both ends to the next step, without
//! any I/O, so that every combination can be tested.
//!
//! The rules are those that Linux's xen-blkback, QEMU and libxl follow:
//! - the toolstack detaches by writing `online` = 0 and `state` = 5 into the backend's directory,
//!   waits for `state` = 6, and then for the directory to be removed;
//! - a frontend closes by going through 5 to 6, and may come back at 1 while `online` is 1
//!   (a reboot of its driver, kexec);
//! - the frontend's directory just disappears when its domain is destroyed.

use bulkhead_xenbus::XenbusState;

/// The part of a disk's life that this backend has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was published yet; the directory may show what an earlier task has left there.
    New,
    /// The boot before has served the rings until it crashed, and nothing of them is mapped here yet.
    #[cfg(feature = "recover")]
    Left,
    /// The features are published; the frontend's turn.
    Offered,
    /// The rings are being served.
    Connected,
    /// The device was closed because of an error; it stays so until the frontend comes back.
    Failed,
    /// The frontend has closed the device.
    Closed,
}

/// The nodes that decide, as xenstore has them at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The `state` node in the backend's directory; `None` if the directory is gone.
    pub own: Option<XenbusState>,
    /// The `online` node: the toolstack wants the device to exist.
    pub online: bool,
    /// The frontend's `state` node; `None` if it is gone.
    pub frontend: Option<XenbusState>,
}

impl Observed {
    /// Returns whether no frontend is left that waits for responses: its domain has ended, or one of the
    /// directories is gone.
    pub fn is_frontend_gone(&self) -> bool {
        let there = |state| state != XenbusState::Unknown;
        self.own.is_none() || !self.frontend.is_some_and(there)
    }
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing until something changes.
    Wait,
    /// Connect to the rings that the frontend published.
    Connect,
    /// Go on serving the rings that the boot before has served.
    #[cfg(feature = "recover")]
    Resume,
    /// Tell the frontend that it is connected: the rings are served, and it does not know yet.
    Announce,
    /// Take back everything and publish the features anew, for a frontend that starts over.
    Offer,
    /// Report `Closing`: the frontend is closing and may still have requests in flight, or the
    /// device was given up.
    ReportClosing,
    /// Take back everything and report `Closed`.
    Close,
    /// Take back everything, report `Closed` and give the image to others: no frontend will connect.
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
    #[cfg(feature = "recover")]
    if phase == Phase::Left {
        return decide_on_what_is_left(seen);
    }
    let Some(own) = seen.own else {
        return Step::Abandon;
    };
    if own == XenbusState::Initialising {
        return match phase {
            Phase::New => Step::Offer,
            _ => Step::StartOver,
        };
    }
    let leaving = matches!(own, XenbusState::Closing | XenbusState::Closed);
    let unplugged = !seen.online && leaving;
    let frontend = match seen.frontend {
        Some(state) if state != XenbusState::Unknown => state,
        // Its domain is gone, or it has removed its own directory: no frontend will connect.
        _ if unplugged => return Step::Remove,
        _ => return Step::Release,
    };
    match (frontend, phase) {
        (XenbusState::Closed, _) if !seen.online => Step::Remove,
        (XenbusState::Closed, Phase::Closed) if own == XenbusState::Closed => Step::Wait,
        // Also one that has never connected: Windows' begins with that.
        (XenbusState::Closed, _) => Step::Close,

        // Nothing is shared, so there is no frontend to wait for.
        (_, Phase::New | Phase::Offered | Phase::Failed | Phase::Closed) if unplugged => {
            Step::Remove
        }

        (XenbusState::Closing, Phase::Connected | Phase::Offered)
            if own != XenbusState::Closing =>
        {
            Step::ReportClosing
        }

        // A frontend that starts over, with or without having closed. If the toolstack wants the
        // device back, it is not offered again.
        (XenbusState::Initialising, Phase::Connected) if !seen.online => Step::Close,
        (
            XenbusState::Initialising,
            Phase::New | Phase::Connected | Phase::Closed | Phase::Failed,
        ) if seen.online => Step::Offer,
        // It had begun to close before it ever connected, and was told that this end closes, too.
        (XenbusState::Initialising, Phase::Offered)
            if seen.online && own == XenbusState::Closing =>
        {
            Step::Offer
        }

        // Whatever the directory says, the disk is not served: the frontend is to close.
        (_, Phase::New | Phase::Failed) if !leaving => Step::ReportClosing,

        (XenbusState::Initialised | XenbusState::Connected, Phase::Offered)
            if own == XenbusState::InitWait && seen.online =>
        {
            Step::Connect
        }
        (XenbusState::Initialised | XenbusState::Connected, Phase::Connected)
            if own == XenbusState::InitWait =>
        {
            Step::Announce
        }
        _ => Step::Wait,
    }
}

/// Decides the next step where the boot before has served the rings: the step of a backend that had never stopped. If
/// that is to serve on, the rings are taken up first.
#[cfg(feature = "recover")]
fn decide_on_what_is_left(seen: Observed) -> Step {
    match (decide(Phase::Connected, seen), seen.own) {
        // The directory is another disk's.
        (Step::StartOver, _) => decide(Phase::New, seen),
        (
            Step::Wait | Step::Announce | Step::ReportClosing,
            Some(XenbusState::InitWait | XenbusState::Connected | XenbusState::Closing),
        ) => Step::Resume,
        // It does not say that anything is served.
        (Step::Wait | Step::Announce | Step::ReportClosing, _) => decide(Phase::New, seen),
        (step, _) => step,
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
        assert_eq!(decide(Phase::Connected, closing), Step::ReportClosing);
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
        // It had begun to close before it ever connected.
        assert_eq!(
            decide(Phase::Offered, seen(Closing, true, Initialising)),
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
        for phase in PHASES {
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
                let expected = match phase {
                    Phase::New => Step::Offer,
                    _ => Step::StartOver,
                };
                assert_eq!(decide(phase, remade), expected);
            }
        }
    }

    #[cfg(feature = "recover")]
    #[test]
    fn what_a_crash_has_left_is_served_on_until_its_frontend_has_closed() {
        let step = |own, online, frontend| decide(Phase::Left, seen(own, online, frontend));
        for frontend in [Initialised, Connected] {
            assert_eq!(step(Connected, true, frontend), Step::Resume);
            // The frontend was not told yet that it is connected.
            assert_eq!(step(InitWait, true, frontend), Step::Resume);
            // The toolstack detaches: there may be requests.
            assert_eq!(step(Closing, false, frontend), Step::Resume);
        }
        assert_eq!(step(Connected, true, Closing), Step::Resume);
        assert_eq!(step(Connected, true, Closed), Step::Close);
        assert_eq!(step(Closing, false, Closed), Step::Remove);
        // It started over meanwhile.
        assert_eq!(step(Connected, true, Initialising), Step::Offer);
        // Another disk, or an earlier driver domain's.
        assert_eq!(step(Initialising, true, Initialising), Step::Offer);
        assert_eq!(step(Unknown, true, Connected), Step::ReportClosing);
        assert_eq!(step(Closed, true, Connected), Step::Wait);
        let gone = |own| Observed {
            own,
            online: true,
            frontend: None,
        };
        assert_eq!(decide(Phase::Left, gone(Some(Connected))), Step::Release);
        assert_eq!(decide(Phase::Left, gone(None)), Step::Abandon);
    }

    const PHASES: [Phase; 5] = [
        Phase::New,
        Phase::Offered,
        Phase::Connected,
        Phase::Failed,
        Phase::Closed,
    ];

    #[test]
    fn a_frontend_that_closes_before_it_connects_is_followed() {
        let step = |phase, own, frontend| decide(phase, seen(own, true, frontend));
        assert_eq!(step(Phase::Offered, InitWait, Closing), Step::ReportClosing);
        assert_eq!(step(Phase::Offered, Closing, Closing), Step::Wait);
        assert_eq!(step(Phase::Offered, Closing, Closed), Step::Close);
        assert_eq!(step(Phase::Offered, InitWait, Closed), Step::Close);
        assert_eq!(step(Phase::Closed, Closed, Initialising), Step::Offer);
        // Half of the way back is none.
        assert_eq!(step(Phase::Offered, Closing, Initialised), Step::Wait);
    }

    #[test]
    fn nothing_is_offered_or_connected_against_the_toolstack() {
        for phase in PHASES {
            for own in [InitWait, Connected, Closing, Closed, Unknown] {
                for frontend in [
                    Initialising,
                    InitWait,
                    Initialised,
                    Connected,
                    Closing,
                    Closed,
                ] {
                    let step = decide(phase, seen(own, false, frontend));
                    assert!(
                        !matches!(step, Step::Offer | Step::Connect),
                        "{phase:?} {own:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_an_earlier_task_has_left_is_closed_before_anyone_connects() {
        for own in [InitWait, Initialised, Connected, Unknown] {
            for frontend in [InitWait, Initialised, Connected, Closing] {
                let step = decide(Phase::New, seen(own, true, frontend));
                assert_eq!(step, Step::ReportClosing, "{own:?} {frontend:?}");
            }
        }
        let closing = seen(Closing, true, Connected);
        assert_eq!(decide(Phase::New, closing), Step::Wait);
    }

    #[test]
    fn what_could_not_be_written_is_written_again() {
        let step = |phase, own, frontend| decide(phase, seen(own, true, frontend));
        assert_eq!(
            step(Phase::Connected, InitWait, Initialised),
            Step::Announce
        );
        assert_eq!(
            step(Phase::Failed, Connected, Connected),
            Step::ReportClosing
        );
        assert_eq!(step(Phase::Closed, Closing, Closed), Step::Close);
    }
}
