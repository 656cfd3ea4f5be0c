//! The xenbus state machine of the frontend: a function from the states of both ends to the next step, without any
//! I/O, so that every combination can be tested.
//!
//! The rules are those that Linux's pciback and pcifront, and libxl, follow (states as in `io/xenbus.h`):
//! - pciback shows the functions, with state 3, before the frontend does anything; it connects to the page that the
//!   frontend publishes with state 3, and goes to 4;
//! - when libxl adds or removes a function, it writes 7 into pciback's directory. The frontend answers with 7 once it
//!   has let go of what is removed; pciback acts, and goes to 8; the frontend looks at the functions anew and
//!   goes to 4, and so does pciback;
//! - 5 and 6 end it. A frontend that went to 6 is connected again if pciback is in 3 again.

use bulkhead_xenbus::XenbusState;

/// The stage that the frontend has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A boot before this one of the same domain may have been connected.
    Left,
    /// Nothing is shared with pciback.
    Fresh,
    /// The page is published; pciback's turn.
    Published,
    /// Functions are used.
    Connected,
    /// The functions that are to be removed were let go of; pciback's turn.
    Reconfiguring,
    /// Everything was taken back.
    Closed,
}

/// The states that [`decide`] decides by, as they are at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The frontend's directory is there.
    pub attached: bool,
    /// This end's `state` node.
    pub own: XenbusState,
    /// pciback's `state` node; unknown if it is gone.
    pub backend: XenbusState,
    /// The driver of a function that is to be removed was asked to let go of it, and has not.
    pub in_use: bool,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Do nothing until something changes.
    Wait,
    /// Go on with the channel of the boot before, in the phase that [`phase_left`] returns; if the channel cannot be
    /// used, publish another one or close, as the backend's state demands.
    Resume,
    /// Publish a page, and report `Initialised`.
    Publish,
    /// Look at the functions, and report `Connected`.
    Connect,
    /// Ask drivers to let go of the functions that are to be removed. If none is in use then, report
    /// `Reconfiguring`.
    Reconfigure,
    /// Do nothing for as long as a function that is to be removed is in use.
    Keep,
    /// Take back everything, and report `Closed`.
    Close,
    /// Take back everything: the directory is gone.
    Forget,
}

/// Decides the next step.
pub fn decide(phase: Phase, seen: Observed) -> Step {
    use XenbusState::*;
    if !seen.attached {
        return Step::Forget;
    }
    match (phase, seen.backend) {
        (Phase::Left, _) if phase_left(seen).is_some() => Step::Resume,
        (Phase::Left, Initialised) => Step::Publish,
        (Phase::Left, _) => Step::Wait,

        (Phase::Fresh | Phase::Closed, Initialised) => Step::Publish,
        (Phase::Fresh | Phase::Closed, _) => Step::Wait,

        (Phase::Published, Connected) => Step::Connect,
        (Phase::Published, Initialising | InitWait | Initialised) => Step::Wait,

        (Phase::Connected, Reconfiguring) if seen.in_use => Step::Keep,
        (Phase::Connected, Reconfiguring) => Step::Reconfigure,
        (Phase::Connected, Connected | Reconfigured) => Step::Wait,

        // `Connected` if pciback went on before this end saw `Reconfigured`.
        (Phase::Reconfiguring, Reconfigured | Connected) => Step::Connect,
        (Phase::Reconfiguring, Reconfiguring) => Step::Wait,

        (Phase::Published | Phase::Connected | Phase::Reconfiguring, _) => Step::Close,
    }
}

/// Returns the phase that a boot before this one had reached, if both ends' states say that it had published a page. In
/// each of these phases, the functions are listed anew before one is used.
pub fn phase_left(seen: Observed) -> Option<Phase> {
    use XenbusState::*;
    let published = matches!(
        seen.own,
        Initialised | Connected | XenbusState::Reconfiguring
    );
    match seen.backend {
        _ if !published => None,
        Initialised | Connected => Some(Phase::Published),
        // What is to be removed is asked for, and answered, by this boot.
        Reconfiguring if seen.own != Reconfiguring => Some(Phase::Connected),
        Reconfiguring | Reconfigured => Some(Phase::Reconfiguring),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState::*;

    fn step(phase: Phase, backend: XenbusState) -> Step {
        decide(phase, seen(backend, false))
    }

    fn seen(backend: XenbusState, in_use: bool) -> Observed {
        Observed {
            attached: true,
            own: Unknown,
            backend,
            in_use,
        }
    }

    const PHASES: [Phase; 6] = [
        Phase::Left,
        Phase::Fresh,
        Phase::Published,
        Phase::Connected,
        Phase::Reconfiguring,
        Phase::Closed,
    ];

    #[test]
    fn from_boot_to_the_first_function() {
        assert_eq!(step(Phase::Fresh, Initialising), Step::Wait);
        assert_eq!(step(Phase::Fresh, InitWait), Step::Wait);
        assert_eq!(step(Phase::Fresh, Initialised), Step::Publish);
        assert_eq!(step(Phase::Published, Initialised), Step::Wait);
        assert_eq!(step(Phase::Published, Connected), Step::Connect);
        assert_eq!(step(Phase::Connected, Connected), Step::Wait);
    }

    #[test]
    fn functions_come_and_go() {
        assert_eq!(step(Phase::Connected, Reconfiguring), Step::Reconfigure);
        assert_eq!(step(Phase::Reconfiguring, Reconfiguring), Step::Wait);
        assert_eq!(step(Phase::Reconfiguring, Reconfigured), Step::Connect);
        assert_eq!(step(Phase::Reconfiguring, Connected), Step::Connect);
        assert_eq!(step(Phase::Connected, Reconfigured), Step::Wait);
        assert_eq!(
            decide(Phase::Connected, seen(Reconfiguring, true)),
            Step::Keep
        );
    }

    #[test]
    fn a_backend_that_ends_ends_it_and_may_begin_again() {
        for phase in [Phase::Published, Phase::Connected, Phase::Reconfiguring] {
            for backend in [Closing, Closed, Unknown] {
                for in_use in [false, true] {
                    assert_eq!(decide(phase, seen(backend, in_use)), Step::Close);
                }
            }
        }
        for backend in [Initialising, InitWait, Initialised] {
            assert_eq!(step(Phase::Connected, backend), Step::Close);
        }
        assert_eq!(step(Phase::Closed, Closed), Step::Wait);
        assert_eq!(step(Phase::Closed, Connected), Step::Wait);
        assert_eq!(step(Phase::Closed, Initialised), Step::Publish);
    }

    #[test]
    fn what_a_boot_before_has_left_is_gone_on_with() {
        let left = |own, backend| {
            let seen = Observed {
                own,
                ..seen(backend, false)
            };
            (decide(Phase::Left, seen), phase_left(seen))
        };
        let resumed = |phase| (Step::Resume, Some(phase));
        assert_eq!(left(Initialised, Initialised), resumed(Phase::Published));
        assert_eq!(left(Initialised, Connected), resumed(Phase::Published));
        assert_eq!(left(Connected, Connected), resumed(Phase::Published));
        assert_eq!(left(Connected, Reconfiguring), resumed(Phase::Connected));
        let reconfiguring = resumed(Phase::Reconfiguring);
        assert_eq!(left(Reconfiguring, Reconfiguring), reconfiguring);
        assert_eq!(left(Reconfiguring, Reconfigured), reconfiguring);
        assert_eq!(left(Connected, Reconfigured), reconfiguring);
        for own in [Initialising, Closing, Closed, Unknown] {
            assert_eq!(left(own, Initialised), (Step::Publish, None));
            assert_eq!(left(own, Connected), (Step::Wait, None));
        }
        for backend in [Initialising, InitWait, Closing, Closed, Unknown] {
            assert_eq!(left(Connected, backend), (Step::Wait, None));
        }
    }

    #[test]
    fn a_directory_that_is_gone_is_forgotten() {
        for phase in PHASES {
            for backend in [Unknown, Connected, Reconfiguring] {
                let gone = Observed {
                    attached: false,
                    ..seen(backend, true)
                };
                assert_eq!(decide(phase, gone), Step::Forget);
            }
        }
    }
}
