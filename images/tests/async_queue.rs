//! Stores that are an `async` function: their requests wait, end in any order, and take no memory.

mod support;

use bulkhead_images::testing::CompleteNow;
use bulkhead_images::{
    AsyncIo, AsyncQueue, Caps, Io, IoError, IoQueue, Op, Sector, Submitted, Tag,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use support::{Guest, Wakes};

/// Counts what a thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// True if a read may go on, and the waker of the task that waits for that.
type Gate = (bool, Option<Waker>);

/// The gates that a store waits for before it ends a read, one for each sector.
#[derive(Clone, Default)]
struct Gates(Rc<RefCell<[Gate; 16]>>);

impl Gates {
    fn open(&self, gate: usize) {
        let waker = {
            let gate = &mut self.0.borrow_mut()[gate];
            gate.0 = true;
            gate.1.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    async fn passed(&self, gate: usize) {
        poll_fn(|context| {
            let gate = &mut self.0.borrow_mut()[gate];
            gate.1 = Some(context.waker().clone());
            match std::mem::take(&mut gate.0) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await
    }
}

/// Returns a queue that reads the number of the sector, once its gate is open; writes have no gate.
fn queue(gates: &Gates, depth: usize) -> impl IoQueue + use<> {
    let gates = gates.clone();
    let serve = move |io: AsyncIo| {
        let gates = gates.clone();
        async move {
            match io.op {
                Op::Read { sector } => {
                    gates.passed(sector.0 as usize).await;
                    let bytes = [sector.0 as u8; 100];
                    for start in (0..io.len()).step_by(bytes.len()) {
                        io.copy_from(start, &bytes[..(io.len() - start).min(bytes.len())]);
                    }
                    Ok(())
                }
                Op::Write { .. } => {
                    let mut bytes = [0; 700];
                    io.copy_to(300, &mut bytes);
                    assert_eq!((bytes[0], bytes[211], bytes[212]), (1, 1, 2));
                    Ok(())
                }
                _ => Err(IoError::NotSupported),
            }
        }
    };
    AsyncQueue::new(Caps::UNLIMITED, depth, serve).expect("memory")
}

fn read(sector: u64) -> Op {
    Op::Read {
        sector: Sector(sector),
    }
}

#[test]
fn requests_wait_and_end_in_any_order() {
    let gates = Gates::default();
    let mut queue = queue(&gates, 3);
    assert_eq!(queue.caps().depth, 3);
    let mut guests: Vec<_> = (0..4).map(|_| Guest::filled(&[512, 1024])).collect();
    let segments: Vec<_> = guests.iter_mut().map(Guest::segments).collect();
    let submit = |queue: &mut dyn IoQueue, number: usize| {
        let io = Io {
            op: read(number as u64),
            segments: &segments[number],
        };
        queue.submit(Tag(number), io)
    };
    for number in 0..3 {
        assert_eq!(submit(&mut queue, number), Submitted::Pending);
    }
    assert_eq!(submit(&mut queue, 3), Submitted::Busy);
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    let mut context = Context::from_waker(&waker);
    let polled = queue.poll_complete(&mut context, &mut |_, _| panic!("nothing is done"));
    assert_eq!((polled, wakes.count()), (Poll::Pending, 0));
    gates.open(2);
    assert_eq!(wakes.count(), 1);
    let mut told = Vec::new();
    let polled = queue.poll_complete(&mut context, &mut |tag, outcome| told.push((tag, outcome)));
    assert_eq!((polled, told), (Poll::Ready(()), vec![(Tag(2), Ok(()))]));
    assert_eq!(submit(&mut queue, 3), Submitted::Pending, "there is room");
    gates.open(0);
    gates.open(3);
    let mut told = Vec::new();
    queue.complete(&mut |tag, _| told.push(tag.0));
    told.sort_unstable();
    assert_eq!(told, [0, 3]);
    drop(segments);
    assert_eq!(guests[2].content(), [2; 1536]);
    assert_eq!(guests[1].content(), [0xEE; 1536]);
}

#[test]
fn a_write_is_read_across_segments_and_done_at_once() {
    let mut queue = queue(&Gates::default(), 1);
    let mut guest = Guest::with(&[&[1; 512], &[2; 512]]);
    let op = Op::write(Sector(0));
    let io = Io {
        op,
        segments: &guest.segments(),
    };
    assert_eq!(queue.submit(Tag(1), io), Submitted::Done(Ok(())));
}

#[test]
fn what_is_given_up_ends_at_once() {
    let gates = Gates::default();
    let mut queue = queue(&gates, 4);
    let mut guest = Guest::filled(&[512]);
    let segments = guest.segments();
    for number in 0..4 {
        let io = Io {
            op: read(number),
            segments: &segments,
        };
        assert_eq!(queue.submit(Tag(number as usize), io), Submitted::Pending);
    }
    queue.cancel(Tag(2));
    let mut told = Vec::new();
    queue.complete(&mut |tag, outcome| told.push((tag, outcome)));
    assert_eq!(told, [(Tag(2), Err(IoError::Cancelled))]);
    queue.cancel_all();
    gates.open(0);
    let mut told = Vec::new();
    queue.complete(&mut |tag, outcome| told.push((tag.0, outcome)));
    let cancelled = Err(IoError::Cancelled);
    assert_eq!(told, [(0, cancelled), (1, cancelled), (3, cancelled)]);
    assert_eq!(guest.content(), [0xEE; 512]);
}

#[test]
fn a_request_that_has_ended_is_out_of_reach() {
    let kept: Rc<RefCell<Option<AsyncIo>>> = Rc::default();
    let keeper = kept.clone();
    let serve = move |io| {
        keeper.replace(Some(io));
        async { Ok(()) }
    };
    let mut queue = AsyncQueue::new(Caps::UNLIMITED, 1, serve).expect("memory");
    let mut guest = Guest::filled(&[512]);
    let io = Io {
        op: read(0),
        segments: &guest.segments(),
    };
    assert_eq!(queue.submit(Tag(1), io), Submitted::Done(Ok(())));
    let kept = kept.take().expect("it was kept");
    assert_eq!(kept.len(), 0);
}

#[test]
fn serving_takes_no_memory() {
    let gates = Gates::default();
    let mut queue = queue(&gates, 8);
    let mut guest = Guest::filled(&[512; 20]);
    let segments = guest.segments();
    let before = ALLOCATIONS.get();
    for _ in 0..100 {
        for number in 0..8 {
            let io = Io {
                op: read(number),
                segments: &segments,
            };
            assert_eq!(queue.submit(Tag(number as usize), io), Submitted::Pending);
        }
        (0..7).for_each(|gate| gates.open(gate));
        let mut told = 0;
        queue.complete(&mut |_, _| told += 1);
        assert_eq!(told, 7);
        queue.cancel_all();
        queue.complete(&mut |_, _| told += 1);
        assert_eq!(told, 8);
    }
    assert_eq!(ALLOCATIONS.get(), before);
}
