//! Many granted pages handed over: by one reference to an index of references, or by a xenstore node for each.

use crate::counting::{Counting, Hypercalls};
use crate::index::{self, Root, WORDS, Words};
use crate::peer::{Peer, StoreCounts};
use crate::{Failure, pages};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_grant::{CopyBatch, Direction, Grant, GrantAccess, GrantTable, GrantedBytes, Region};
use bulkhead_xen::{GrantRef, Hypervisor, PAGE_SIZE, Reservation};
use core::fmt;
use core::ptr::NonNull;

/// The directory in which batches are offered, and in which the mapper reports that it is done.
const NAME: &str = "batch";

/// The directories of references, of as many nodes each as fit one node of xenstored's.
const NODES: &str = "batch-nodes";
const NODES_IN_EACH: usize = 256;

/// The sizes of the batches, in pages.
pub const SIZES: [usize; 3] = [1, 512, 10_000];

/// The most pages of a batch.
const MOST: usize = 10_000;

/// The way in which a batch is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// One reference, to an index.
    Index,
    /// A xenstore node for each reference.
    Nodes,
}

/// Returns all batches that are handed over, one after the other.
pub fn all() -> impl Iterator<Item = (Method, usize)> {
    let of = |method| SIZES.into_iter().map(move |count| (method, count));
    of(Method::Index).chain(of(Method::Nodes))
}

/// The operations of one side for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// The hypercalls.
    pub hypercalls: Hypercalls,
    /// The requests to xenstore.
    pub store: StoreCounts,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Work { hypercalls, store } = self;
        write!(
            f,
            "{} map, {} copy, {} hypercalls in all, {} xenstore writes, {} reads",
            hypercalls.maps,
            hypercalls.copies,
            hypercalls.all(),
            store.writes,
            store.reads
        )
    }
}

/// The granter's report about a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handed {
    /// The mapper has it.
    Over(Work),
    /// xenstored did not take all nodes.
    Refused {
        /// The nodes that it took.
        nodes: usize,
        /// The reason why it refused the next one.
        reason: String,
    },
}

/// The counters of one side.
struct Counter<'c, H> {
    hypervisor: &'c Counting<H>,
    peer: &'c Peer,
    hypercalls: Hypercalls,
    store: StoreCounts,
}

impl<'c, H: Hypervisor> Counter<'c, H> {
    fn start(hypervisor: &'c Counting<H>, peer: &'c Peer) -> Self {
        Counter {
            hypervisor,
            peer,
            hypercalls: hypervisor.counts(),
            store: peer.counts(),
        }
    }

    fn work(&self) -> Work {
        let store = self.peer.counts();
        Work {
            hypercalls: self.hypervisor.counts() - self.hypercalls,
            store: StoreCounts {
                writes: store.writes - self.store.writes,
                reads: store.reads - self.store.reads,
            },
        }
    }
}

/// Returns the word in each page of a batch.
fn content(index: usize) -> u64 {
    0x6ba7_0000_0000 + index as u64
}

/// The granting side.
pub struct Granter<'d, H: Hypervisor> {
    hypervisor: &'d Counting<H>,
    table: &'d GrantTable<Counting<H>>,
    peer: &'d Peer,
    /// The pages of the largest batch, and behind them those of its index.
    first: NonNull<u8>,
    offers: u32,
}

impl<'d, H: Hypervisor> Granter<'d, H> {
    /// Takes the memory of the largest batch.
    pub async fn new(
        hypervisor: &'d Counting<H>,
        table: &'d GrantTable<Counting<H>>,
        peer: &'d Peer,
        memory: &impl Reservation,
    ) -> Result<Self, Failure> {
        let count = MOST + 1 + index::pages_for(MOST);
        let first = pages::allocate(memory, count)?;
        for at in 0..MOST {
            // SAFETY: a new page.
            unsafe { pages::mark(pages::nth(first, at), content(at)) };
        }
        peer.open(NAME).await?;
        Ok(Granter {
            hypervisor,
            table,
            peer,
            first,
            offers: 0,
        })
    }

    /// Grants a batch, hands it over, and ends the grants when the mapper is done.
    pub async fn hand_over(&mut self, method: Method, count: usize) -> Result<Handed, Failure> {
        let grants = self.grant(0..count)?;
        let grefs: Vec<GrantRef> = grants.iter().map(Grant::gref).collect();
        let counter = Counter::start(self.hypervisor, self.peer);
        let (handed, index) = match method {
            Method::Index => {
                let index = self.index(&grefs)?;
                let root = index[0].gref();
                self.offer(format_args!("index {count} {root}")).await?;
                (Handed::Over(counter.work()), index)
            }
            Method::Nodes => match self.nodes(&grefs).await {
                Ok(()) => {
                    self.offer(format_args!("nodes {count} 0")).await?;
                    (Handed::Over(counter.work()), Vec::new())
                }
                Err(refused) => (refused, Vec::new()),
            },
        };
        if matches!(handed, Handed::Over(_)) {
            let offer = self.offers;
            let done = format!("{NAME}/done");
            self.peer
                .wait_for(&done, |value| (value.parse() == Ok(offer)).then_some(()))
                .await?;
        }
        if method == Method::Nodes {
            for directory in 0..count.div_ceil(NODES_IN_EACH) {
                self.peer.withdraw(&format!("{NODES}-{directory}")).await?;
            }
        }
        for grant in grants.into_iter().chain(index) {
            // Refused while the mapper uses the page: it said that it does not.
            let _entry = grant
                .end()
                .map_err(|used| Failure::of("after the end", used))?;
        }
        Ok(handed)
    }

    /// Tells the mapper that there are no more.
    pub async fn finish(&mut self) -> Result<(), Failure> {
        self.offer(format_args!("end 0 0")).await
    }

    fn grant(&self, at: core::ops::Range<usize>) -> Result<Vec<Grant<Counting<H>>>, Failure> {
        let mut grants = Vec::with_capacity(at.len());
        for index in at {
            let frame = pages::frame(self.hypervisor, pages::nth(self.first, index))?;
            let domain = self.peer.domain();
            // SAFETY: pages of this module's, which are never given back; they hold what the mapper is to see.
            let grant = unsafe { self.table.grant(domain, frame, GrantAccess::ReadWrite) };
            grants.push(grant.map_err(|error| Failure::of("a batch", error))?);
        }
        Ok(grants)
    }

    /// Packs references into granted index pages, of which the first is the root.
    fn index(&self, grefs: &[GrantRef]) -> Result<Vec<Grant<Counting<H>>>, Failure> {
        let pages = index::pages_for(grefs.len());
        let grants = self.grant(MOST..MOST + 1 + pages)?;
        let mut held: Vec<GrantRef> = grants[1..].iter().map(Grant::gref).collect();
        for (at, some) in grefs.chunks(WORDS).take(pages).enumerate() {
            self.write(MOST + 1 + at, &index::page(some));
        }
        if pages == 0 {
            held.extend(grefs);
        }
        self.write(MOST, &index::root(grefs.len(), &held));
        Ok(grants)
    }

    fn write(&self, at: usize, words: &Words) {
        // SAFETY: a page of this module's, seen through no reference.
        unsafe { pages::write(pages::nth(self.first, at), words) };
    }

    async fn nodes(&self, grefs: &[GrantRef]) -> Result<(), Handed> {
        for (directory, some) in grefs.chunks(NODES_IN_EACH).enumerate() {
            let name = format!("{NODES}-{directory}");
            let refused = |at: usize| {
                let nodes = directory * NODES_IN_EACH + at;
                move |error| Handed::Refused {
                    nodes,
                    reason: format!("{error}"),
                }
            };
            self.peer.open(&name).await.map_err(refused(0))?;
            for (at, gref) in some.iter().enumerate() {
                let written = self.peer.publish(&format!("{name}/{at}"), gref).await;
                written.map_err(refused(at))?;
            }
        }
        Ok(())
    }

    async fn offer(&mut self, what: fmt::Arguments<'_>) -> Result<(), Failure> {
        self.offers += 1;
        let offer = format!("{} {what}", self.offers);
        self.peer.publish(&format!("{NAME}/offer"), offer).await?;
        Ok(())
    }
}

/// The mapping side.
pub struct Mapper<'d, H: Hypervisor> {
    hypervisor: &'d Counting<H>,
    region: &'d Region<Counting<H>>,
    peer: &'d Peer,
    /// The memory to which the index is copied: the root, then its pages.
    index: NonNull<u8>,
    taken: u32,
}

impl<'d, H: Hypervisor> Mapper<'d, H> {
    /// Takes the memory of the largest index.
    pub async fn new(
        hypervisor: &'d Counting<H>,
        region: &'d Region<Counting<H>>,
        peer: &'d Peer,
        memory: &impl Reservation,
    ) -> Result<Self, Failure> {
        let index = pages::allocate(memory, 1 + index::pages_for(MOST))?;
        peer.open(NAME).await?;
        Ok(Mapper {
            hypervisor,
            region,
            peer,
            index,
            taken: 0,
        })
    }

    /// Waits for the next batch, maps all of it in one hypercall, and checks each page. Returns `None` if there are no
    /// more.
    pub async fn take(&mut self) -> Result<Option<(Method, usize, Work)>, Failure> {
        let next = self.taken + 1;
        let node = format!("{NAME}/offer");
        let offer = self.peer.wait_for(&node, |value| {
            let (number, what) = value.split_once(' ')?;
            (number.parse() == Ok(next)).then(|| String::from(what))
        });
        let offer = offer.await?;
        self.taken = next;
        let mut words = offer.split(' ');
        let method = match words.next() {
            Some("index") => Method::Index,
            Some("nodes") => Method::Nodes,
            _ => return Ok(None),
        };
        let mut number = || words.next().and_then(|word| word.parse().ok());
        let (Some(count), Some(root)) = (number(), number()) else {
            return Err(Failure(format!("the offer {offer:?} cannot be read")));
        };
        let count = count as usize;
        if count == 0 || count > MOST {
            return Err(Failure(format!("a batch of {count} pages")));
        }
        let counter = Counter::start(self.hypervisor, self.peer);
        let grefs = match method {
            Method::Index => self.fetch(GrantRef(root))?,
            Method::Nodes => self.read(count).await?,
        };
        if grefs.len() != count {
            return Err(Failure(format!("{} references of {count}", grefs.len())));
        }
        let mapped = self.region.map_pages(self.peer.domain(), &grefs);
        let mapped = mapped.map_err(|error| Failure::of("a batch", error))?;
        let mapped = mapped.map_err(|(gref, status)| Failure(format!("grant {gref}: {status}")))?;
        let work = counter.work();
        for at in 0..count {
            // SAFETY: mapped as long as `mapped` lives.
            let word = unsafe { pages::read(pages::nth(mapped.base(), at)) };
            if word != content(at) {
                return Err(Failure(format!("page {at} of {count} holds {word:#x}")));
            }
        }
        drop(mapped);
        self.peer.publish(&format!("{NAME}/done"), next).await?;
        Ok(Some((method, count, work)))
    }

    /// Fetches an index: its root in one copy, and if that names further pages, those in another one.
    fn fetch(&self, root: GrantRef) -> Result<Vec<GrantRef>, Failure> {
        let words = self.copy(&[root])?;
        let (pages, count) = match Root::parse(&words[0], MOST)? {
            Root::References(grefs) => return Ok(grefs),
            Root::Pages(pages, count) => (pages, count),
        };
        let words = self.copy(&pages)?;
        let grefs = words.iter().flatten().copied().map(GrantRef);
        Ok(grefs.take(count).collect())
    }

    /// Copies granted pages in one hypercall.
    fn copy(&self, grefs: &[GrantRef]) -> Result<Vec<Words>, Failure> {
        let domain = self.peer.domain();
        let batch = CopyBatch::new(self.hypervisor.clone(), domain, grefs.len());
        let mut batch = batch.map_err(|error| Failure::of("the index", error))?;
        let mut copies = Vec::new();
        for (at, &gref) in grefs.iter().enumerate() {
            let bytes = GrantedBytes {
                gref,
                offset: 0,
                len: PAGE_SIZE,
            };
            let own = pages::nth(self.index, at);
            // SAFETY: pages of this module's, which are never given back and seen through no reference.
            let queued = unsafe { batch.queue(Direction::FromGranted, bytes, own) };
            copies.push(queued.map_err(|error| Failure::of("the index", error))?);
        }
        batch.run();
        let mut pages = Vec::new();
        for (at, copied) in copies.iter().enumerate() {
            let copied = batch.status(copied);
            copied.map_err(|status| Failure::of("the index", status))?;
            // SAFETY: as above.
            pages.push(unsafe { pages::words(pages::nth(self.index, at)) });
        }
        Ok(pages)
    }

    /// Reads a node for each reference.
    async fn read(&self, count: usize) -> Result<Vec<GrantRef>, Failure> {
        let mut grefs = Vec::with_capacity(count);
        for at in 0..count {
            let (directory, at) = (at / NODES_IN_EACH, at % NODES_IN_EACH);
            let node = format!("{NODES}-{directory}/{at}");
            let value = self.peer.read(&node).await?;
            let gref = value.and_then(|value| value.parse().ok());
            grefs.push(GrantRef(
                gref.ok_or_else(|| Failure(format!("{node} holds no reference")))?,
            ));
        }
        Ok(grefs)
    }
}
