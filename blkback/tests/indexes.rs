//! Indirect requests whose segments fill more than one descriptor page: more of them than are offered to frontends, so
//! a queue is served here without a disk around it.

use bulkhead_blkback::engine::{QueueControl, QueueSetup, queue_control, serve};
use bulkhead_blkback_testkit::{
    Answer, Guest, Link, PATHS, Page, Random, Setup, Style, World, content,
};
use bulkhead_grant::GrantAccess;
use bulkhead_ring::blkif::{Operation, Request, Segment, Status, TransferKind};
use bulkhead_xen::GrantRef;

const SEGMENTS: usize = 1100;
const IMAGE: usize = 1 << 20;

/// A ring that is served, and the control that stops the queue.
struct Served<'w> {
    world: &'w World,
    link: Link,
    control: QueueControl,
    /// The pages of the requests: each segment is one sector of them.
    pages: Vec<Page>,
}

impl<'w> Served<'w> {
    fn new(world: &'w World, guest: &Guest<'_>, persistent: bool) -> Served<'w> {
        let style = Style::persistent(persistent);
        let mut link = Link::new(&guest.domain, &guest.grants, world.storage.id(), style);
        let backend = &world.backend;
        let access = bulkhead_images::Access::ReadWrite;
        let stores = &backend.services.stores;
        let device = stores.open_now("ram:disk0", access, "this test");
        let setup = QueueSetup {
            name: "a queue".into(),
            log: backend
                .services
                .guest_logs
                .of(guest.domain.id(), backend.services.handle.now()),
            frontend: guest.domain.id(),
            abi: style.abi,
            ring: link.ring_refs(),
            event_channel: link.port,
            persistent,
            indirect_segments: SEGMENTS,
            discard: false,
            sector_size: 512,
            device: device.expect("it can be opened"),
            options: backend.services.options,
            turn: Default::default(),
            queues: 1,
            unreleased: Default::default(),
            journal: Default::default(),
        };
        let (control, guard) = queue_control();
        let (handle, region) = (
            backend.services.handle.clone(),
            backend.services.region.clone(),
        );
        world.spawn(serve(handle, region, setup, guard));
        control.start();
        world.run();
        let pages = (0..SEGMENTS.div_ceil(8)).map(|_| link.fresh_page(GrantAccess::ReadWrite));
        Served {
            world,
            control,
            pages: pages.collect(),
            link,
        }
    }

    /// Serves a ring, does `scene`, and ends without a trace, on every way to a guest's pages.
    fn on_every_path(scene: impl Fn(&mut Served<'_>, &[Segment])) {
        for (path, persistent) in PATHS {
            let world = World::with(Setup {
                images: vec![("disk0".into(), content(0, IMAGE))],
                ..Setup::on_path(path)
            });
            let guest = Guest::new(&world);
            let mut served = Served::new(&world, &guest, persistent);
            let segments = served.segments();
            scene(&mut served, &segments);
            served.end();
            world.nothing_left();
        }
    }

    fn segments(&self) -> Vec<Segment> {
        let segment = |number: usize| {
            let sector = (number % 8) as u8;
            Segment::new(self.pages[number / 8].gref(), sector, sector)
        };
        (0..SEGMENTS).map(|n| segment(n).unwrap()).collect()
    }

    /// Asks for so many segments in several index pages, which `spoil` may change.
    fn ask(
        &mut self,
        kind: TransferKind,
        segments: &[Segment],
        spoil: impl FnOnce(&mut [GrantRef], &[Page]),
    ) -> Answer {
        let (indirect, index) = self.link.indirect(kind, 3, segments);
        assert!(index.len() > 1, "several index pages");
        let mut grefs = [GrantRef(0); 8];
        grefs[..index.len()].copy_from_slice(indirect.pages());
        spoil(&mut grefs, &index);
        let indirect = bulkhead_ring::blkif::Indirect::new(
            kind,
            indirect.sector,
            segments.len() as u16,
            grefs,
        );
        let id = self.link.new_id();
        let operation = Operation::Indirect(indirect.expect("not too many segments"));
        self.link.push(&Request::of(id, operation), index);
        self.link.kick();
        self.world.run();
        let mut answers = self.link.collect();
        assert_eq!(answers.len(), 1);
        answers.remove(0)
    }

    fn content(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.pages.iter().flat_map(Page::bytes).collect();
        bytes.truncate(SEGMENTS * 512);
        bytes
    }

    fn end(mut self) {
        let control = self.control;
        self.world.spawn(async move { control.stop().await });
        self.world.run();
        for page in self.pages {
            self.link.recycle(page);
        }
        self.link.take_down();
    }
}

#[test]
fn segments_in_several_index_pages_are_served() {
    Served::on_every_path(|served, segments| {
        for count in [513, 1024, 1025, SEGMENTS] {
            let asked = &segments[..count];
            let before = served.world.storage.stats();
            let answer = served.ask(TransferKind::Read, asked, |_, _| ());
            assert_eq!(answer.status, Status::Okay, "{count} segments");
            let image = &content(0, IMAGE)[3 * 512..][..count * 512];
            assert!(served.content()[..count * 512] == *image);
            let stats = served.world.storage.stats() - before;
            let fetches = stats.copy_calls + stats.map_calls;
            assert!(fetches <= 2, "index pages and data: {stats:?}");
        }
        let data = Random::new(9).bytes(SEGMENTS * 512);
        for (page, bytes) in served.pages.iter().zip(data.chunks(4096)) {
            page.fill(0, bytes);
        }
        let written = served.ask(TransferKind::Write, segments, |_, _| ());
        assert_eq!(written.status, Status::Okay);
        served
            .pages
            .iter()
            .for_each(|page| page.fill(0, &[0; 4096]));
        served.ask(TransferKind::Read, segments, |_, _| ());
        assert!(served.content() == data);
    });
}

#[test]
fn a_later_index_page_that_is_malformed_is_one_error() {
    Served::on_every_path(|served, segments| {
        for which in 0..3 {
            let refused = served.ask(TransferKind::Write, segments, |grefs, _| {
                grefs[which] = GrantRef(900);
            });
            assert_eq!(refused.status, Status::Error, "page {which} is not granted");
            let refused = served.ask(TransferKind::Write, segments, |_, index| {
                // A first sector after the last.
                index[which].fill(8 * 20, &[8, 0, 0, 0, 5, 4, 0, 0]);
            });
            assert_eq!(refused.status, Status::Error, "a segment of page {which}");
        }
        let mut many = segments.to_vec();
        many.push(segments[0]);
        let refused = served.ask(TransferKind::Write, &many, |_, _| ());
        assert_eq!(refused.status, Status::Error, "one more than was offered");
        let read = served.ask(TransferKind::Read, segments, |_, _| ());
        assert_eq!(read.status, Status::Okay);
        let image = &content(0, IMAGE)[3 * 512..][..SEGMENTS * 512];
        assert!(served.content() == image, "nothing was written");
    });
}
