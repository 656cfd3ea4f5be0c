//! A queue: a ring, the pages that its requests name, and the device that serves them.

use super::data_path::{PageAccess, Paths};
use super::dispatch::Dispatcher;
use super::error_log::ErrorLog;
use super::gathering::RequestPattern;
use super::needs::most_pages;
use super::options::QueueOptions;
use super::pieces::Pieces;
use super::setup::{QueueError, QueueSetup, QueueSetupError};
use super::stats::QueueStats;
use super::store::Store;
use super::submit::Submitter;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;
use bulkhead_executor::{EventChannel, Handle};
use bulkhead_grant::Region;
use bulkhead_images::IoQueue;
use bulkhead_ring::blkif::MAX_SEGMENTS;
use bulkhead_xen::Hypervisor;
use core::num::NonZeroU32;
use core::task::{Context, Poll, Waker};
use core::time::Duration;

/// A queue that is served. Dropping it gives everything back: in-flight requests are abandoned, then the pages are
/// unmapped and the event channel is closed. A device that has requests is closed before
/// ([`poll_close`](Self::poll_close)).
pub struct Queue<H: Hypervisor> {
    // Dropped first: after that the device touches no page any more.
    submitter: Submitter<H>,
    page_access: PageAccess<H>,
    dispatcher: Dispatcher<H>,
    channel: Rc<EventChannel<H>>,
    handle: Handle<H>,
    stats: Arc<QueueStats>,
    /// True if hypercalls may have been made that the counters do not show yet.
    uncounted: bool,
    options: QueueOptions,
}

impl<H: Hypervisor> Queue<H> {
    /// Maps the ring and binds the event channel. All memory that serving needs is taken here.
    pub fn connect(
        handle: &Handle<H>,
        region: &Region<H>,
        setup: QueueSetup,
        device: Box<dyn IoQueue>,
    ) -> Result<Self, QueueSetupError> {
        let frontend = setup.frontend;
        let pages = region
            .map_pages(frontend, &setup.ring)?
            .map_err(|(gref, status)| QueueSetupError::Ring(gref, status))?;
        let stats = Arc::<QueueStats>::default();
        let error_log = ErrorLog::new(setup.name, setup.log, handle, stats.clone());
        let store = Store::new(device);
        let (dispatcher, again) = Dispatcher::attach(
            pages,
            (setup.abi, setup.journal),
            setup.indirect_segments,
            (setup.discard, store.caps()),
            error_log,
            stats.clone(),
        )?;
        let slots = dispatcher.slots() as usize;
        let largest = setup.indirect_segments.max(MAX_SEGMENTS);
        let most_pages = most_pages(slots, setup.indirect_segments);
        let room = (slots, largest, most_pages);
        let sector_size = setup.sector_size;
        let pieces = Pieces::needed(
            handle.hypervisor(),
            frontend,
            store.caps(),
            sector_size,
            room,
        )?;
        let paths = Paths {
            frontend,
            persistent: setup.persistent,
            data_path: setup.options.data_path,
            has_memory: store.has_memory(),
            sector_size,
            dma: store.dma_memory(),
        };
        let submitter = Submitter::new(store, pieces, largest)?;
        let page_access = PageAccess::new(handle.hypervisor(), region, paths, most_pages, largest)?;
        let port = handle
            .hypervisor()
            .bind_interdomain(frontend, setup.event_channel)
            .map_err(|error| QueueSetupError::EventChannel(setup.event_channel, error))?;
        let channel = handle.event_channel(port);
        if let Some(requests) = again {
            log::info!(
                "{}: taken up again, {requests} request(s) are served again",
                dispatcher.error_log.name()
            );
            // It may have missed the notification of what it was shown last.
            channel.notify();
        }
        Ok(Queue {
            submitter,
            page_access,
            dispatcher,
            channel: Rc::new(channel),
            handle: handle.clone(),
            stats,
            uncounted: false,
            options: setup.options,
        })
    }

    /// Returns the name of the disk and the queue, for the log.
    pub fn name(&self) -> &str {
        self.dispatcher.error_log.name()
    }

    /// Keeps nothing for the time after a crash any more.
    pub fn keep_nothing(&mut self) {
        self.dispatcher.keep_nothing();
    }

    /// Returns the frontend's event channel.
    pub fn channel(&self) -> Rc<EventChannel<H>> {
        self.channel.clone()
    }

    /// Returns the number of requests that the frontend can have outstanding.
    pub fn slots(&self) -> u32 {
        self.dispatcher.slots()
    }

    /// Returns the options with which the queue is served.
    pub fn options(&self) -> QueueOptions {
        self.options
    }

    /// Returns the queue's counters.
    pub fn stats(&self) -> Arc<QueueStats> {
        self.stats.clone()
    }

    /// Returns the number of requests that have not been answered yet.
    pub fn in_flight(&self) -> usize {
        self.dispatcher.inflight.in_flight()
    }

    /// Returns the number of requests that could be taken.
    #[inline(always)]
    pub fn waiting(&mut self) -> Result<u32, QueueError> {
        self.dispatcher.waiting()
    }

    /// Takes no further requests but those that are on the ring at this moment.
    pub fn close(&mut self) -> Result<(), QueueError> {
        self.dispatcher.close()
    }

    /// Returns the number of requests of a [closed](Self::close) queue that are still to be taken.
    pub fn untaken(&self) -> u32 {
        self.dispatcher.untaken()
    }

    /// Returns the number of responses that the frontend has not been shown yet.
    pub fn unpublished(&self) -> u32 {
        self.dispatcher.unpublished()
    }

    /// Returns the number of requests and responses that may be gathered, when `waiting` requests
    /// [wait](Self::waiting). While the device works on others, requests do not count: what is held back is published
    /// without them.
    #[inline]
    pub fn gathered(&self, waiting: u32) -> u32 {
        let requests = match self.is_at_work() {
            true => 0,
            false => waiting,
        };
        requests + self.unpublished()
    }

    /// Returns the number of all requests that the frontend has outstanding, when `waiting` requests
    /// [wait](Self::waiting).
    #[inline]
    pub fn outstanding(&self, waiting: u32) -> u32 {
        waiting + self.in_flight() as u32 + self.unpublished()
    }

    /// Returns whether the device completes requests later and has some.
    #[inline]
    pub fn is_at_work(&self) -> bool {
        self.submitter.completes_later() && self.in_flight() > 0
    }

    /// Takes the requests on the ring, has them served, and puts the responses that are ready, without publishing them
    /// yet. Returns the number of requests that were taken.
    pub fn sweep(&mut self) -> Result<u32, QueueError> {
        let (dispatcher, page_access) = (&mut self.dispatcher, &mut self.page_access);
        let taken = dispatcher.take(page_access, &mut self.submitter)?;
        if taken.requests == 0 {
            return Ok(0);
        }
        self.stats.sweeps.add(1);
        let in_service = self.in_flight().max(taken.requests as usize);
        self.stats.deepest.raise_to(in_service as u64);
        match self.dispatcher.how_many_begun() {
            0 => self.settle(),
            _ => self.start(taken.pages),
        }
        Ok(taken.requests)
    }

    /// Has the requests served that were begun, which have `pages` pages.
    fn start(&mut self, pages: usize) {
        self.uncounted = true;
        let (dispatcher, page_access) = (&mut self.dispatcher, &mut self.page_access);
        let mut sweep = page_access.begin(pages, || self.handle.now());
        self.submitter
            .queue_pages(&mut sweep, dispatcher, page_access);
        let sweep = page_access.execute(sweep);
        self.submitter.end_in_place(&sweep);
        self.submitter.start(&sweep, dispatcher, page_access);
        self.settle();
        self.page_access.finish(sweep, || self.handle.now());
    }

    /// Publishes the responses, and notifies the frontend if it asked for that. Returns the number of the responses.
    #[inline(always)]
    pub fn publish(&mut self) -> u32 {
        let published = self.unpublished();
        if self.dispatcher.publish() {
            self.stats.notifications_sent.add(1);
            self.channel.notify();
        }
        published
    }

    /// Returns whether the device may complete requests later.
    #[inline]
    pub fn completes_later(&self) -> bool {
        self.submitter.completes_later()
    }

    /// Returns whether serving requests one by one costs no more than serving them together.
    pub fn is_served_singly(&self) -> bool {
        self.submitter.completes_later() || self.page_access.needs_no_calls()
    }

    /// Asks the frontend to notify this end when there are `more` requests beside those that were
    /// [waiting](Self::waiting). Returns true if that many can be taken already.
    #[inline]
    pub fn final_check_for(&mut self, waiting: u32, more: NonZeroU32) -> Result<bool, QueueError> {
        self.dispatcher.final_check_for(waiting, more)
    }

    /// Returns the number of requests, beside the `waiting` ones, from which on the queue had better not sleep: the store
    /// may run out of work, or the frontend can send no more.
    pub fn missed_from(&self, waiting: u32, pattern: RequestPattern) -> NonZeroU32 {
        let others = self.dispensable(pattern).saturating_sub(waiting);
        let to_come = match pattern.depth.saturating_sub(self.outstanding(waiting)) {
            0 => u32::MAX,
            to_come => to_come,
        };
        NonZeroU32::new(others.min(to_come)).unwrap_or(NonZeroU32::MIN)
    }

    /// Returns whether the store was given requests since the last call, and has so much to do that the next one may
    /// wait for others.
    pub fn store_has_become_busy(&mut self, pattern: RequestPattern) -> bool {
        self.submitter.was_given_requests() && self.dispensable(pattern) > 1
    }

    /// Returns the number of requests that may wait for others to join them: half as many as the device has, for it has
    /// work meanwhile; or as many as there are responses that wait for others, because their own would wait with these;
    /// or as many as the frontend sends together. Requests are also taken whenever the device has completed some.
    fn dispensable(&self, pattern: RequestPattern) -> u32 {
        let half = self.in_flight() as u32 / 2;
        half.max(self.unpublished()).max(pattern.together()).max(1)
    }

    /// Returns the number from which on the `waiting` requests wait for no others before the device is given them. If all
    /// that the frontend keeps outstanding are here, no other can come.
    #[inline]
    pub fn enough(&self, waiting: u32, pattern: RequestPattern) -> u32 {
        match self.outstanding(waiting) >= pattern.depth {
            true => 1,
            false => self.dispensable(pattern),
        }
    }

    /// Returns whether the frontend has nothing to do, while responses are held back that are a quarter of what the device
    /// has at work, and two at least.
    #[inline]
    pub fn is_waited_for(&self, waiting: u32, pattern: RequestPattern) -> bool {
        let (in_flight, unpublished) = (self.in_flight() as u32, self.unpublished());
        let enough = unpublished >= 2 && unpublished >= in_flight / 4;
        enough && in_flight > 0 && self.outstanding(waiting) >= pattern.depth
    }

    /// Returns whether the device has so many requests that it hardly misses the `waiting` ones while the queue sleeps,
    /// until it has completed some. That also holds if more responses than that wait for others, or more requests will come
    /// together, and the frontend is in a closed loop: it is busy with earlier responses.
    #[inline]
    pub fn hardly_misses(&self, waiting: u32, pattern: RequestPattern) -> bool {
        let is_few = waiting < self.unpublished().max(pattern.together());
        waiting < self.in_flight() as u32 / 4 || pattern.closed_loop && is_few
    }

    /// Returns ready if the frontend has sent a notification. Otherwise its next notification wakes the task.
    #[inline]
    pub fn poll_notified(&self, context: &mut Context<'_>) -> Poll<()> {
        let notified = self.channel.poll_notified(context);
        if notified.is_ready() {
            self.stats.notifications_received.add(1);
        }
        notified
    }

    /// Counts that the task is about to sleep.
    #[inline]
    pub fn count_sleep(&self) {
        self.stats.sleeps.add(1);
    }

    /// Returns ready if the device has completed a request, or says that it may take one. Otherwise it wakes the task
    /// when it does.
    pub fn poll_completion(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.in_flight() == 0 {
            return Poll::Pending;
        }
        // A device that is ready has not kept the waker, even if no request waits for it any more.
        let polled = self.submitter.collect(context, &mut self.dispatcher);
        let dispatcher = &self.dispatcher;
        let nothing = dispatcher.inflight.none_done() && !self.submitter.can_go_on(dispatcher);
        match polled.is_pending() && nothing {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }

    /// Asks the device to give up the requests in flight, as far as it can.
    pub fn cancel_pending(&mut self) {
        self.submitter.cancel_pending();
    }

    /// Puts the responses to the requests that the device has completed.
    #[inline]
    pub fn settle(&mut self) {
        self.submitter.flush();
        if self.in_flight() > 0 {
            self.collect();
        }
        self.clear_answered();
    }

    /// Takes the device's completions, and goes on with these requests and with those that wait for them.
    fn collect(&mut self) {
        self.uncounted = true;
        let (dispatcher, page_access) = (&mut self.dispatcher, &mut self.page_access);
        let mut unwatched = Context::from_waker(Waker::noop());
        let _ = self.submitter.collect(&mut unwatched, dispatcher);
        loop {
            // `finish` may add to the list, where a request has another step to go.
            while let Some((tag, outcome)) = dispatcher.inflight.take_done() {
                self.submitter.finish(tag, outcome, dispatcher, page_access);
            }
            if !self.submitter.go_on(dispatcher, page_access) {
                break;
            }
        }
    }

    /// Unmaps the pages of the requests that were answered: only then may the frontend be shown the responses,
    /// and use its pages again.
    #[inline]
    fn clear_answered(&mut self) {
        if self.dispatcher.has_answered() {
            self.page_access.unmap();
            self.dispatcher.clear_answered();
            if core::mem::take(&mut self.uncounted) {
                self.page_access.count(&self.stats, self.submitter.staged());
            }
            self.page_access.count_hits(&self.stats);
        }
    }

    /// Returns the number of requests that the device has completed asynchronously.
    pub fn completions(&self) -> u64 {
        self.submitter.completions()
    }

    /// Returns the longest time that the device may take without completing a request, if it sets a limit.
    pub fn timeout(&self) -> Option<Duration> {
        self.submitter.timeout()
    }

    /// Asks the device to let go of all requests and pages; the device wakes the task when it has. The queue
    /// serves no requests any more.
    pub fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.submitter.poll_close(context)
    }

    /// Answers the requests still in flight with errors: the device has let go of them.
    pub fn abandon(&mut self) {
        let (dispatcher, page_access) = (&mut self.dispatcher, &mut self.page_access);
        dispatcher.abandon(|hold| page_access.release(hold));
        page_access.unmap();
        self.publish();
    }

    /// Complains that the frontend sends notifications again and again without a request.
    #[cold]
    pub fn log_spurious_notifications(&mut self) {
        self.dispatcher.error_log.log(format_args!(
            "notified without a request too often: looked at more seldom"
        ));
    }
}
