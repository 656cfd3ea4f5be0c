//! Both ends of a ring against a model of the protocol, in random runs that wrap the indices; and
//! an end against one that publishes whatever it likes.

mod support;

use bulkhead_ring::blkif::{Abi, Blkif, Request, RequestId, Response, Status};
use bulkhead_ring::{BackRing, FrontRing, Index, Overrun, RingFull, SharedPages, Unasked};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::num::NonZeroU32;
use support::Pages;

/// A step of one of the ends.
#[derive(Clone, Debug)]
enum Step {
    Push,
    PublishRequests,
    TakeRequest,
    Respond,
    PublishResponses,
    TakeResponse,
    CheckRequests(NonZeroU32),
    CheckResponses(NonZeroU32),
}

fn step() -> impl Strategy<Value = Step> {
    let ahead = prop_oneof![Just(1_u32), 1..40_u32];
    let ahead = ahead.prop_map(|ahead| NonZeroU32::new(ahead).expect("at least 1"));
    prop_oneof![
        6 => Just(Step::Push),
        2 => Just(Step::PublishRequests),
        6 => Just(Step::TakeRequest),
        5 => Just(Step::Respond),
        2 => Just(Step::PublishResponses),
        5 => Just(Step::TakeResponse),
        1 => ahead.clone().prop_map(Step::CheckRequests),
        1 => ahead.prop_map(Step::CheckResponses),
    ]
}

/// One direction: messages put and not published, published and not taken.
#[derive(Default)]
struct Direction {
    put: VecDeque<u64>,
    published: VecDeque<u64>,
    /// How many more messages have to be published before a notification is due; 0 if the other
    /// end waits for none.
    awaited: u32,
}

impl Direction {
    /// A direction in which the receiver waits for the first message.
    fn fresh() -> Direction {
        Direction {
            awaited: 1,
            ..Direction::default()
        }
    }

    /// Says whether a notification is due.
    fn publish(&mut self) -> bool {
        let count = self.put.len() as u32;
        self.published.append(&mut self.put);
        let due = (1..=count).contains(&self.awaited);
        self.awaited = self.awaited.saturating_sub(count);
        due
    }

    /// Says whether that many are there already.
    fn final_check(&mut self, messages: NonZeroU32) -> bool {
        let pending = self.published.len() as u32;
        match messages.get().checked_sub(pending) {
            None | Some(0) => true,
            Some(missing) => {
                self.awaited = missing;
                false
            }
        }
    }
}

struct Ends {
    front: FrontRing<SharedPages, Blkif>,
    back: BackRing<SharedPages, Blkif>,
}

fn ends(pages: &Pages, abi: Abi, start: u32) -> Ends {
    let format = Blkif::new(abi);
    Ends {
        front: FrontRing::starting_at(pages.map(), format, start).expect("room for a ring"),
        back: BackRing::attach(pages.map(), format).expect("a fresh ring"),
    }
}

fn run(ends: Ends, steps: &[Step]) {
    let Ends {
        mut front,
        mut back,
    } = ends;
    let (mut requests, mut responses) = (Direction::fresh(), Direction::fresh());
    let mut served: VecDeque<u64> = VecDeque::new();
    let (mut next, mut outstanding) = (0_u64, 0_u32);
    for step in steps {
        match step {
            Step::Push => {
                let pushed = front.push(&Request::flush(RequestId(next)));
                if outstanding == front.slots() {
                    assert_eq!(pushed, Err(RingFull));
                } else {
                    assert_eq!(pushed, Ok(()));
                    requests.put.push_back(next);
                    next += 1;
                    outstanding += 1;
                }
            }
            Step::PublishRequests => assert_eq!(front.publish(), requests.publish()),
            Step::TakeRequest => {
                assert_eq!(back.unconsumed(), Ok(requests.published.len() as u32));
                let taken = back.take().expect("an honest frontend");
                let taken = taken.map(|request| request.expect("a flush").id.0);
                assert_eq!(taken, requests.published.pop_front());
                served.extend(taken);
            }
            Step::Respond => {
                // Every other answer is out of order.
                let id = if next % 2 == 0 {
                    served.pop_front()
                } else {
                    served.pop_back()
                };
                let request = Request::flush(RequestId(id.unwrap_or(0)));
                let put = back.respond(&request.response(Status::Okay));
                assert_eq!(put, id.map(|_| ()).ok_or(Unasked));
                responses.put.extend(id);
            }
            Step::PublishResponses => {
                assert_eq!(back.unpublished(), responses.put.len() as u32);
                assert_eq!(back.publish(), responses.publish());
            }
            Step::TakeResponse => {
                assert_eq!(front.unconsumed(), Ok(responses.published.len() as u32));
                let taken = front.take().expect("an honest backend");
                let taken: Option<Response> = taken;
                assert_eq!(
                    taken.map(|taken| taken.id.0),
                    responses.published.pop_front()
                );
                outstanding -= taken.iter().len() as u32;
            }
            Step::CheckRequests(ahead) => assert_eq!(
                back.final_check_for(*ahead),
                Ok(requests.final_check(*ahead))
            ),
            Step::CheckResponses(ahead) => assert_eq!(
                front.final_check_for(*ahead),
                Ok(responses.final_check(*ahead))
            ),
        }
        assert_eq!(front.free(), front.slots() - outstanding);
        assert_eq!(back.outstanding(), served.len() as u32);
    }
}

proptest! {
    #[test]
    fn both_ends_follow_the_model(
        steps in prop::collection::vec(step(), 1..400),
        start in prop_oneof![Just(0_u32), any::<u32>(), u32::MAX - 80..=u32::MAX],
        pages in 1..=16_usize,
        abi in prop_oneof![Just(Abi::X86_64), Just(Abi::X86_32)],
    ) {
        let pages = Pages::new(pages);
        run(ends(&pages, abi, start), &steps);
    }

    /// Whatever the frontend publishes: an error, or no more requests than the ring has slots.
    #[test]
    fn a_hostile_frontend_never_gets_more_than_the_slots(
        indices in prop::collection::vec(
            prop_oneof![0..100_u32, u32::MAX - 50..=u32::MAX, any::<u32>()], 1..40,
        ),
        answer in any::<bool>(),
    ) {
        let pages = Pages::new(1);
        let mut back = BackRing::new(pages.map(), Blkif::new(Abi::X86_64)).expect("room");
        for producer in indices {
            pages.poke(Index::RequestProducer, producer);
            let before = back.outstanding();
            let mut taken = 0;
            while let Ok(Some(request)) = back.take() {
                taken += 1;
                let response = match request {
                    Ok(request) => request.response(Status::Okay),
                    Err(malformed) => malformed.response(),
                };
                if answer {
                    back.respond(&response).expect("a request to answer");
                }
            }
            prop_assert!(answer || before + taken <= back.slots());
            prop_assert!(taken <= back.slots());
            prop_assert!(back.outstanding() <= back.slots());
            back.final_check().ok();
            let _notify = back.publish();
        }
    }

    /// Whatever the backend publishes: an error, or no more responses than it was asked for.
    #[test]
    fn a_hostile_backend_never_gives_more_than_it_was_asked_for(
        asked in 0..40_u32,
        producer in prop_oneof![0..100_u32, any::<u32>()],
    ) {
        let pages = Pages::new(1);
        let mut front = FrontRing::new(pages.map(), Blkif::new(Abi::X86_64)).expect("room");
        let pushed = (0..asked).take_while(|_| front.push(&Request::flush(RequestId(0))).is_ok());
        let pushed = pushed.count() as u32;
        let _notify = front.publish();
        pages.poke(Index::ResponseProducer, producer);
        let mut taken = 0;
        while let Ok(Some(_)) = front.take() {
            taken += 1;
        }
        prop_assert_eq!(taken, if producer <= pushed { producer } else { 0 });
    }
}

#[test]
fn a_producer_that_runs_ahead_is_an_overrun() {
    let pages = Pages::new(1);
    let mut back = BackRing::new(pages.map(), Blkif::new(Abi::X86_64)).expect("room");
    pages.poke(Index::RequestProducer, 32);
    assert_eq!(back.unconsumed(), Ok(32));
    pages.poke(Index::RequestProducer, 33);
    let overrun = Overrun {
        producer: 33,
        consumer: 0,
        most: 32,
    };
    assert_eq!(back.unconsumed(), Err(overrun));
    assert_eq!(back.take().err(), Some(overrun));
    assert_eq!(back.final_check(), Err(overrun));
    assert_eq!(
        overrun.to_string(),
        "ring overrun: producer index 0x21 with 0x0 consumed, at most 32 may be pending"
    );
}

#[test]
fn a_producer_that_goes_back_is_an_overrun() {
    let pages = Pages::new(1);
    let mut back = BackRing::new(pages.map(), Blkif::new(Abi::X86_64)).expect("room");
    pages.poke(Index::RequestProducer, 3);
    for _ in 0..3 {
        assert!(back.take().expect("possible").is_some());
    }
    pages.poke(Index::RequestProducer, 2);
    assert!(back.take().is_err());
}

#[test]
fn an_answer_to_a_request_that_is_not_published_is_an_overrun() {
    let pages = Pages::new(1);
    let mut front = FrontRing::new(pages.map(), Blkif::new(Abi::X86_64)).expect("room");
    front.push(&Request::flush(RequestId(1))).expect("room");
    pages.poke(Index::ResponseProducer, 1);
    assert!(front.take().is_err());
    assert!(front.publish());
    assert!(front.take().expect("possible now").is_some());
}

#[test]
fn a_backend_that_takes_over_gets_the_unanswered_requests_again() {
    let pages = Pages::new(1);
    let Ends { mut front, back } = ends(&pages, Abi::X86_64, u32::MAX);
    let mut died = back;
    for id in 0..3 {
        front.push(&Request::flush(RequestId(id))).expect("room");
    }
    assert!(front.publish());
    let first = died.take().expect("honest").expect("one").expect("a flush");
    died.respond(&first.response(Status::Okay)).expect("asked");
    assert!(died.publish());
    assert!(
        died.take().expect("honest").is_some(),
        "taken, never answered"
    );

    let mut back = BackRing::attach(pages.map(), Blkif::new(Abi::X86_64)).expect("consistent");
    assert_eq!(back.unconsumed(), Ok(2));
    let again = back.take().expect("honest").expect("one").expect("a flush");
    assert_eq!(again.id, RequestId(1));

    pages.poke(Index::RequestProducer, 100);
    assert!(BackRing::attach(pages.map(), Blkif::new(Abi::X86_64)).is_err());
}

#[test]
fn a_backend_that_takes_over_may_have_kept_what_was_taken() {
    let pages = Pages::new(1);
    let Ends {
        mut front,
        back: mut died,
    } = ends(&pages, Abi::X86_64, u32::MAX - 1);
    for id in 0..4 {
        front.push(&Request::flush(RequestId(id))).expect("room");
    }
    assert!(front.publish());
    let kept: Vec<Request> = (0..3)
        .map(|_| died.take().expect("honest").expect("one").expect("a flush"))
        .collect();
    // An answer out of its order overwrites the first request, which was not answered, and is never shown.
    let answer = kept[2].response(Status::Okay);
    died.respond(&answer).expect("asked");

    let mut back = BackRing::attach(pages.map(), Blkif::new(Abi::X86_64)).expect("consistent");
    assert!(back.skip(5).is_err(), "the frontend has published four");
    assert_eq!(back.skip(3), Ok(()));
    assert_eq!((back.outstanding(), back.unconsumed()), (3, Ok(1)));
    for request in &kept {
        back.respond(&request.response(Status::Okay))
            .expect("asked");
    }
    let last = back.take().expect("honest").expect("one").expect("a flush");
    assert_eq!(last.id, RequestId(3));
    back.respond(&last.response(Status::Okay)).expect("asked");
    assert_eq!(
        back.respond(&last.response(Status::Okay)),
        Err(Unasked),
        "each was answered"
    );
    assert!(back.publish());
    for id in 0..4 {
        let answer = front.take().expect("honest").expect("published");
        assert_eq!(answer.id, RequestId(id));
    }
}

#[test]
fn a_frontend_takes_over_a_quiet_ring_only() {
    let pages = Pages::new(1);
    let Ends { mut front, .. } = ends(&pages, Abi::X86_32, 5);
    let format = Blkif::new(Abi::X86_32);
    assert_eq!(
        FrontRing::attach(pages.map(), format).map(|ring| ring.free()),
        Ok(32)
    );
    front.push(&Request::flush(RequestId(0))).expect("room");
    assert!(front.publish());
    assert!(FrontRing::attach(pages.map(), format).is_err());
}

#[test]
fn rings_have_as_many_slots_as_the_header_says() {
    // ((pages * 4096 - 64) / sizeof(struct blkif_request)), rounded down to a power of two. With
    // seven pages the shorter requests of the 32-bit layout make the difference.
    let counts = [
        (1, [32, 32]),
        (2, [64, 64]),
        (3, [64, 64]),
        (4, [128, 128]),
        (7, [128, 256]),
        (8, [256, 256]),
        (15, [512, 512]),
        (16, [512, 512]),
    ];
    for (pages, slots) in counts {
        let pages = Pages::new(pages);
        let found = [Abi::X86_64, Abi::X86_32].map(|abi| {
            let ring = BackRing::new(pages.map(), Blkif::new(abi));
            ring.expect("room for a ring").slots()
        });
        assert_eq!(found, slots);
    }
}

#[test]
fn pages_that_are_no_ring_are_refused() {
    let base = std::ptr::NonNull::<u8>::dangling();
    for (address, pages) in [(4096, 0), (4096, 17), (4097, 1)] {
        let at = base.with_addr(address.try_into().expect("not zero"));
        // SAFETY: refused before it is used.
        assert!(unsafe { SharedPages::new(at, pages) }.is_err());
    }
}
