//! Each example with both its domains, in the simulated Xen.

use bulkhead_examples::batch::{self, Granter, Handed, Mapper, Method, Work};
use bulkhead_examples::channel::{Answering, Asking};
use bulkhead_examples::counting::Counting;
use bulkhead_examples::flip::{Flipped, Refusal};
use bulkhead_examples::index::{Root, page, pages_for, root};
use bulkhead_examples::peer::Peer;
use bulkhead_examples::{Failure, echo, flip};
use bulkhead_executor::{Executor, Handle};
use bulkhead_grant::{GrantTable, Region};
use bulkhead_xen::{Errno, GrantRef};
use bulkhead_xen_sim::{DomainConfig, DomainKind, Sim, SimDomain, SimVcpu};
use bulkhead_xenstore_client::{Client, Ring};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

type Hypervisor = Counting<SimVcpu>;

/// One of the two domains, with its executor.
struct Side {
    domain: SimDomain,
    executor: RefCell<Executor<Hypervisor>>,
    tools: Option<Tools>,
}

/// What its task works with.
struct Tools {
    handle: Handle<Hypervisor>,
    hypervisor: Hypervisor,
    memory: SimVcpu,
    table: GrantTable<Hypervisor>,
    region: Region<Hypervisor>,
    store: Client,
}

impl Tools {
    async fn peer(&self) -> Peer {
        Peer::find(&self.store).await.unwrap()
    }
}

type Outcome<T> = Rc<RefCell<Option<Result<T, Failure>>>>;

impl Side {
    fn new(sim: &Sim, kind: DomainKind) -> Side {
        let domain = sim.add_domain_with(DomainConfig {
            kind,
            memory_pages: 12_000,
            region_pages: 12_000,
            grant_entries: 16_384,
            ..DomainConfig::default()
        });
        let memory = domain.hypervisor();
        let hypervisor = Counting::new(memory.clone());
        let executor = Executor::new(hypervisor.clone());
        let handle = executor.handle();
        // SAFETY: the domain's ring, which nothing else uses.
        let ring = unsafe { Ring::new(hypervisor.clone(), domain.store_ring()) };
        let store = Client::start(&handle, ring);
        let tools = Tools {
            table: GrantTable::new(hypervisor.clone()).unwrap(),
            region: Region::new(hypervisor.clone()).unwrap(),
            handle,
            hypervisor,
            memory,
            store,
        };
        Side {
            domain,
            executor: RefCell::new(executor),
            tools: Some(tools),
        }
    }

    fn spawn<T: 'static, F>(&mut self, example: impl FnOnce(Tools) -> F) -> Outcome<T>
    where
        F: Future<Output = Result<T, Failure>> + 'static,
    {
        let outcome = Outcome::default();
        let shown = outcome.clone();
        let tools = self.tools.take().unwrap();
        let handle = tools.handle.clone();
        let running = example(tools);
        handle.spawn(async move { drop(shown.replace(Some(running.await))) });
        outcome
    }

    fn step(&self) -> bool {
        self.executor.borrow_mut().run_until_idle()
    }
}

/// Both domains. The first grants, the second maps.
struct Machine {
    sim: Sim,
    sides: [Side; 2],
}

impl Machine {
    fn new(granter: DomainKind, mapper: DomainKind) -> Machine {
        let sim = Sim::new();
        let sides = [Side::new(&sim, granter), Side::new(&sim, mapper)];
        for (one, other) in [(0, 1), (1, 0)] {
            let path = format!("/local/domain/{}/data/peer", sides[one].domain.id());
            let peer = sides[other].domain.id().to_string();
            sim.store().write(&path, &peer);
        }
        Machine { sim, sides }
    }

    /// Runs both to their ends.
    fn run<A, B>(&self, granter: &Outcome<A>, mapper: &Outcome<B>) -> (A, B) {
        for _ in 0..1000 {
            self.sim.run_until_idle(|| {
                let moved = self.sides[0].step();
                self.sides[1].step() || moved
            });
            if granter.borrow().is_some() && mapper.borrow().is_some() {
                break;
            }
            let deadlines = self.sides.iter();
            let next = deadlines.filter_map(|side| side.executor.borrow().next_deadline());
            self.sim.advance_to(next.min().expect("somebody waits"));
        }
        let taken = (granter.take(), mapper.take());
        let (granter, mapper) = (taken.0.expect("at its end"), taken.1.expect("at its end"));
        (granter.unwrap(), mapper.unwrap())
    }

    fn assert_clean(&self) {
        for side in &self.sides {
            assert_eq!(side.domain.live_mappings(), 0);
            assert_eq!(side.domain.grants_in_use(), 0);
        }
        self.sim.assert_no_violations();
    }
}

#[test]
fn every_request_is_answered_with_its_status_plus_one() {
    let mut machine = Machine::new(DomainKind::Pvh, DomainKind::Pv);
    let [granter, mapper] = &mut machine.sides;
    let asked = granter.spawn(async |tools: Tools| {
        let peer = tools.peer().await;
        let (handle, table) = (&tools.handle, &tools.table);
        let mut asking = Asking::offer(handle, &tools.memory, table, &peer, echo::NAME).await?;
        let status = echo::ask(&mut asking, 1000).await?;
        asking.close().await;
        Ok((status, peer.counts().writes))
    });
    let answered = mapper.spawn(async |tools: Tools| {
        let peer = tools.peer().await;
        let (handle, region) = (&tools.handle, &tools.region);
        let mut answering = Answering::connect(handle, region, &peer, echo::NAME).await?;
        let answered = echo::answer(&mut answering).await?;
        Ok((answered, peer.counts().writes))
    });
    let (asked, answered) = machine.run(&asked, &answered);
    // A directory with its permissions, and two nodes in it.
    assert_eq!((asked, answered), ((1001, 4), (1001, 0)));
    machine.assert_clean();
}

#[test]
fn nodes_are_for_the_other_domain_alone() {
    let mut machine = Machine::new(DomainKind::Pvh, DomainKind::Pvh);
    let third = machine.sim.add_domain();
    let [granter, mapper] = &mut machine.sides;
    let path = format!("/local/domain/{}/data/shared/node", granter.domain.id());
    let written = granter.spawn(async |tools: Tools| {
        let peer = tools.peer().await;
        peer.open("shared").await?;
        peer.publish("shared/node", 42).await?;
        Ok(())
    });
    let read =
        mapper.spawn(async |tools: Tools| tools.peer().await.wait_number("shared/node").await);
    assert_eq!(machine.run(&written, &read), ((), 42));
    let permissions = machine.sim.store().permissions(&path).unwrap();
    let text: Vec<String> = permissions.iter().map(ToString::to_string).collect();
    let [one, other] = [0, 1].map(|side: usize| machine.sides[side].domain.id());
    assert_eq!(text, [format!("n{one}"), format!("r{other}")]);
    assert!(third.id() != one && third.id() != other);
}

/// Hands all batches over; returns what the granter and the mapper did for each.
fn batches(quota: u32) -> (Vec<Handed>, Vec<(Method, usize, Work)>) {
    let mut machine = Machine::new(DomainKind::Pv, DomainKind::Pvh);
    machine.sim.store().quotas.nodes = quota as usize;
    let [granter, mapper] = &mut machine.sides;
    let handed = granter.spawn(async |tools: Tools| {
        let peer = tools.peer().await;
        let (hypervisor, table) = (&tools.hypervisor, &tools.table);
        let mut granter = Granter::new(hypervisor, table, &peer, &tools.memory).await?;
        let mut handed = Vec::new();
        for (method, count) in batch::all() {
            handed.push(granter.hand_over(method, count).await?);
        }
        granter.finish().await?;
        Ok(handed)
    });
    let taken = mapper.spawn(async |tools: Tools| {
        let peer = tools.peer().await;
        let (hypervisor, region) = (&tools.hypervisor, &tools.region);
        let mut mapper = Mapper::new(hypervisor, region, &peer, &tools.memory).await?;
        let mut all = Vec::new();
        while let Some(taken) = mapper.take().await? {
            all.push(taken);
        }
        Ok(all)
    });
    let outcome = machine.run(&handed, &taken);
    machine.assert_clean();
    outcome
}

#[test]
fn a_batch_takes_one_write_one_copy_and_one_map_however_large() {
    let (handed, taken) = batches(1000);
    let granter: Vec<u32> = handed
        .iter()
        .filter_map(|one| match one {
            Handed::Over(work) => Some(work.store.writes),
            Handed::Refused { .. } => None,
        })
        .collect();
    // A node for each page, two writes for each directory of them, and the offer.
    assert_eq!(granter, [1, 1, 1, 1 + 2 + 1, 512 + 4 + 1]);
    let mapper: Vec<_> = taken
        .iter()
        .map(|(_, count, work)| {
            (
                *count,
                work.hypercalls.copies,
                work.hypercalls.maps,
                work.store,
            )
        })
        .map(|(count, copies, maps, store)| (count, copies, maps, store.reads, store.writes))
        .collect();
    assert_eq!(
        mapper,
        [
            (1, 1, 1, 0, 0),
            (512, 1, 1, 0, 0),
            // The root names ten index pages.
            (10_000, 2, 1, 0, 0),
            (1, 0, 1, 1, 0),
            (512, 0, 1, 512, 0),
        ]
    );
    let Some(Handed::Refused { nodes, reason }) = handed.last() else {
        panic!("10,000 nodes are more than the quota: {:?}", handed.last());
    };
    assert!((900..1000).contains(nodes), "{nodes}");
    assert!(reason.ends_with("ENOSPC"), "{reason}");
}

#[test]
fn references_come_out_of_an_index_as_they_went_in() {
    let refs = |count: u32| (0..count).map(|n| GrantRef(1000 + n)).collect::<Vec<_>>();
    for count in [1, 1021, 1022] {
        let grefs = refs(count);
        let parsed = Root::parse(&root(grefs.len(), &grefs), 10_000);
        assert_eq!(parsed, Ok(Root::References(grefs)));
    }
    for count in [1023, 1024, 1025, 10_000] {
        let held = refs(pages_for(count) as u32);
        let parsed = Root::parse(&root(count, &held), 10_000);
        assert_eq!(parsed, Ok(Root::Pages(held, count)));
    }
    assert_eq!(page(&refs(3))[..4], [1000, 1001, 1002, 0]);
    for (count, pages) in [(0, 0), (10_001, 10), (5, 1), (2000, 0), (u32::MAX, 0)] {
        let mut words = root(1, &[]);
        words[0] = count;
        words[1] = pages;
        assert!(Root::parse(&words, 10_000).is_err(), "{count} in {pages}");
    }
}

/// Flips pages between two domains; returns how it ended for each, and how many pages more each owns.
fn flips(asking: DomainKind, answering: DomainKind) -> ([Flipped; 2], [i64; 2]) {
    let mut machine = Machine::new(asking, answering);
    let owned = |machine: &Machine| [0, 1].map(|at: usize| machine.sides[at].domain.memory_pages());
    let before = owned(&machine);
    let [granter, mapper] = &mut machine.sides;
    let asked = granter.spawn(async |tools: Tools| {
        let peer = tools.peer().await;
        let Tools {
            handle,
            memory,
            table,
            ..
        } = &tools;
        let mut asking = Asking::offer(handle, memory, table, &peer, flip::NAME).await?;
        let flipped = flip::ask(&mut asking, memory, table, peer.domain(), 100).await?;
        asking.close().await;
        Ok(flipped)
    });
    let answered = mapper.spawn(async |tools: Tools| {
        let peer = tools.peer().await;
        let (handle, region) = (&tools.handle, &tools.region);
        let mut answering = Answering::connect(handle, region, &peer, flip::NAME).await?;
        let Tools { memory, table, .. } = &tools;
        flip::answer(&mut answering, memory, table, peer.domain()).await
    });
    let (asked, answered) = machine.run(&asked, &answered);
    machine.assert_clean();
    let after = owned(&machine);
    let more = [0, 1].map(|at: usize| after[at] as i64 - before[at] as i64);
    ([asked, answered], more)
}

fn all(came: u32, went: u32) -> Flipped {
    Flipped::All { came, went }
}

#[test]
fn frames_flip_to_and_fro_between_paravirtualized_domains() {
    let (outcomes, more) = flips(DomainKind::Pv, DomainKind::Pv);
    assert_eq!(outcomes, [all(100, 100); 2]);
    // The asking domain released the page that was to have the frame.
    assert_eq!(more, [-1, 0]);
}

#[test]
fn a_translated_domain_takes_frames_and_gives_none() {
    let refused = Flipped::Refused(Refusal::Hypercall(Errno::NOSYS));
    let (outcomes, more) = flips(DomainKind::Pvh, DomainKind::Pv);
    assert_eq!(outcomes, [refused, all(0, 1)]);
    assert_eq!(more, [0, -1]);
    let (outcomes, more) = flips(DomainKind::Pv, DomainKind::Pvh);
    assert_eq!(outcomes, [Flipped::RefusedThere, refused]);
    assert_eq!(more, [-1, 0]);
}
