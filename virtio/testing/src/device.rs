//! The device's own state, and what it does with requests.

use crate::queue::{Fault, Part, Queue};
use bulkhead_xen_sim::pci::SimFunction;
use virtio_spec::DeviceStatus;
use virtio_spec::blk::{F, S, T};

/// What the device is like.
#[derive(Clone)]
pub struct Config {
    /// Its number among its vendor's devices.
    pub id: u16,
    /// It has the capabilities of a modern device.
    pub is_modern: bool,
    /// Its content.
    pub bytes: Vec<u8>,
    /// The features that it offers.
    pub features: F,
    /// The size of its blocks.
    pub block: u32,
    /// Its physical blocks, as a power of two of blocks.
    pub physical: u8,
    /// The most segments of a request.
    pub segments: u32,
    /// Its queues, and the most entries of each.
    pub queues: u16,
    /// See [`queues`](Self::queues).
    pub entries: u16,
    /// The most sectors that are discarded, and overwritten with zeros, at a time.
    pub discards: u32,
    /// See [`discards`](Self::discards).
    pub zeroes: u32,
    /// The entries of its MSI-X table, if it has one.
    pub messages: Option<u16>,
    /// It has an interrupt line.
    pub line: bool,
    /// What it says at some offsets instead of what is true.
    pub forged: Vec<(usize, u8)>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            id: 0x1042,
            is_modern: true,
            bytes: vec![0; 2 << 20],
            features: F::VERSION_1
                | F::ACCESS_PLATFORM
                | F::SEG_MAX
                | F::BLK_SIZE
                | F::FLUSH
                | F::TOPOLOGY
                | F::MQ
                | F::DISCARD
                | F::WRITE_ZEROES
                | F::INDIRECT_DESC
                | F::EVENT_IDX,
            block: 512,
            physical: 0,
            segments: 254,
            queues: 4,
            entries: 256,
            discards: 0x3f_ffff,
            zeroes: 0x3f_ffff,
            messages: Some(5),
            line: true,
            forged: Vec::new(),
        }
    }
}

impl Config {
    /// `virtio_blk_config`.
    pub fn describe(&self) -> Vec<u8> {
        let mut bytes = vec![0; 60];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &(self.bytes.len() as u64 / 512).to_le_bytes());
        put(12, &self.segments.to_le_bytes());
        put(20, &self.block.to_le_bytes());
        put(24, &[self.physical]);
        put(34, &self.queues.to_le_bytes());
        put(36, &self.discards.to_le_bytes());
        put(40, &1_u32.to_le_bytes());
        put(44, &(self.block / 512).to_le_bytes());
        put(48, &self.zeroes.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(56, &[1]);
        for (at, value) in &self.forged {
            bytes[at % 60] = *value;
        }
        bytes
    }
}

/// A request that the device was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The queue, and the first descriptor.
    pub queue: u16,
    /// See [`queue`](Self::queue).
    pub head: u16,
    /// Its type.
    pub kind: u32,
    /// The first sector of its header.
    pub sector: u64,
    pub(crate) data: Vec<Part>,
    pub(crate) status: u64,
}

impl Seen {
    /// Returns the number of segments.
    pub fn segments(&self) -> usize {
        self.data.len()
    }

    fn len(&self) -> usize {
        self.data.iter().map(|part| part.len as usize).sum()
    }

    /// The bytes that the device writes if all goes well.
    pub(crate) fn written(&self) -> u32 {
        let data = self.data.iter().filter(|part| part.written);
        1 + data.map(|part| part.len).sum::<u32>()
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It is done.
    Done,
    /// It fails with this status, and nothing of it is done.
    Failed(u8),
    /// It is held back, until the test has it done.
    Held,
    /// Nothing is ever heard of it.
    Lost,
    /// It is done, and told of twice.
    Twice,
    /// It is done, and the device tells of another one.
    Misnamed,
    /// It is done, and the device tells that it has written more than it may.
    TooLong,
    /// It is told of, but no outcome is written.
    NoOutcome,
}

type Decide = Box<dyn FnMut(&Seen) -> Treatment + Send>;

/// The device.
pub struct Device {
    pub function: SimFunction,
    pub config: Config,
    pub state: DeviceStatus,
    pub accepted: u64,
    pub isr: u8,
    pub queues: Vec<Queue>,
    pub treatment: Decide,
    pub held: Vec<Seen>,
    pub seen: Vec<Seen>,
    pub vanished: bool,
    pub never_resets: bool,
    pub refuses: bool,
    pub notifications: u64,
    pub interrupts: u64,
    pub resets: u64,
    offered_half: u32,
    accepted_half: u32,
    config_vector: u16,
    selected: u16,
    generation: u8,
}

/// The vector of what does not interrupt.
const NO_VECTOR: u16 = 0xffff;

impl Device {
    pub fn new(function: SimFunction, config: Config) -> Device {
        let mut device = Device {
            function,
            queues: Vec::new(),
            config,
            state: DeviceStatus::empty(),
            accepted: 0,
            isr: 0,
            treatment: Box::new(|_| Treatment::Done),
            held: Vec::new(),
            seen: Vec::new(),
            vanished: false,
            never_resets: false,
            refuses: false,
            notifications: 0,
            interrupts: 0,
            resets: 0,
            offered_half: 0,
            accepted_half: 0,
            config_vector: NO_VECTOR,
            selected: 0,
            generation: 0,
        };
        device.reset();
        device
    }

    fn reset(&mut self) {
        self.resets += u64::from(self.state.contains(DeviceStatus::DRIVER_OK));
        self.state = DeviceStatus::empty();
        (self.accepted, self.isr, self.config_vector) = (0, 0, NO_VECTOR);
        self.held.clear();
        let queue = Queue {
            entries: self.config.entries,
            vector: NO_VECTOR,
            ..Queue::default()
        };
        self.queues = vec![queue; self.config.queues.into()];
    }

    pub fn fail(&mut self) {
        self.state |= DeviceStatus::DEVICE_NEEDS_RESET;
        self.interrupt_config();
    }

    /// Tells the driver that the configuration has changed.
    pub fn tell_of_change(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.interrupt_config();
    }

    fn interrupt_config(&mut self) {
        self.isr |= 2;
        self.interrupt(self.config_vector);
    }

    pub fn interrupt(&mut self, vector: u16) {
        // Without a message, the line is raised.
        let messages = self.function.messages() > 0;
        if !messages || vector != NO_VECTOR {
            self.interrupts += 1;
            self.function.interrupt(if messages { vector } else { 0 });
        }
    }

    pub fn notified(&mut self, queue: u16) {
        self.notifications += 1;
        if let Some(queue) = self.queues.get_mut(usize::from(queue)) {
            queue.notified = true;
        }
    }

    fn queue(&self) -> Option<&Queue> {
        self.queues.get(usize::from(self.selected))
    }

    pub fn read_common(&mut self, at: u64) -> u64 {
        let offered = self.config.features.bits().to_ne() as u64;
        let queue = self.queue();
        match at {
            0x04 => u64::from((offered >> (32 * (self.offered_half & 1))) as u32),
            0x10 => self.config_vector.into(),
            0x12 => self.config.queues.into(),
            0x14 => self.state.bits().into(),
            0x15 => self.generation.into(),
            0x18 => queue.map_or(0, |queue| queue.entries.into()),
            0x1a => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            0x1c => queue.is_some_and(|queue| queue.enabled).into(),
            0x1e => self.selected.into(),
            _ => 0,
        }
    }

    pub fn write_common(&mut self, at: u64, width: usize, value: u64) {
        // A vector that its table does not have is refused.
        let vectors = self.function.messages() as u64;
        let vector = if value < vectors {
            value as u16
        } else {
            NO_VECTOR
        };
        match at {
            0x00 => self.offered_half = value as u32,
            0x08 => self.accepted_half = value as u32,
            0x0c => {
                let shift = 32 * (self.accepted_half & 1);
                self.accepted = self.accepted & !(0xffff_ffff << shift) | value << shift;
            }
            0x10 => self.config_vector = vector,
            0x14 => self.set_state(value as u8),
            0x16 => self.selected = value as u16,
            _ => {
                let selected = usize::from(self.selected);
                let Some(queue) = self.queues.get_mut(selected) else {
                    return;
                };
                let half = |old: u64, at: u64| match at & 4 {
                    0 => old & !0xffff_ffff | value,
                    _ => old & 0xffff_ffff | value << 32,
                };
                assert!(!queue.enabled, "a queue is described before it is enabled");
                match (at, width) {
                    (0x18, 2) => queue.entries = value as u16,
                    (0x1a, 2) => queue.vector = vector,
                    (0x1c, 2) => queue.enabled = value == 1,
                    (0x20 | 0x24, 4) => queue.descriptors = half(queue.descriptors, at),
                    (0x28 | 0x2c, 4) => queue.available = half(queue.available, at),
                    (0x30 | 0x34, 4) => queue.used = half(queue.used, at),
                    other => panic!("no register is written like that: {other:x?}"),
                }
                if queue.enabled {
                    let aligned = queue.descriptors.is_multiple_of(16)
                        && queue.available.is_multiple_of(2)
                        && queue.used.is_multiple_of(4);
                    assert!(aligned && queue.entries.is_power_of_two());
                }
            }
        }
    }

    fn set_state(&mut self, value: u8) {
        if value == 0 {
            if !self.never_resets {
                self.reset();
            }
            return;
        }
        let mut state = DeviceStatus::from_bits_retain(value);
        let offered = self.config.features.bits().to_ne() as u64;
        if self.refuses || self.accepted & !offered != 0 {
            state.remove(DeviceStatus::FEATURES_OK);
        }
        self.state |= state;
    }

    /// Does what there is to do.
    pub fn step(&mut self) -> bool {
        let works = self.state.contains(DeviceStatus::DRIVER_OK)
            && !self.state.contains(DeviceStatus::DEVICE_NEEDS_RESET);
        if self.vanished || !works {
            return false;
        }
        let mut any = false;
        for number in 0..self.queues.len() as u16 {
            let queue = &mut self.queues[usize::from(number)];
            if !queue.enabled || !std::mem::take(&mut queue.notified) {
                continue;
            }
            any = true;
            if self.serve(number).is_err() {
                self.fail();
                return true;
            }
        }
        any
    }

    fn serve(&mut self, number: u16) -> Result<(), Fault> {
        loop {
            while let Some(request) = self.fetch(number)? {
                self.take(request);
            }
            if !self.want_notification(number)? {
                return Ok(());
            }
        }
    }

    /// Reads what a chain asks for.
    pub fn parse(&self, queue: u16, head: u16, parts: &[Part]) -> Result<Seen, Fault> {
        let (Some(header), Some(status)) = (parts.first(), parts.last()) else {
            panic!("a chain of nothing");
        };
        assert_eq!((header.len, header.written), (16, false));
        assert_eq!((status.len, status.written), (1, true));
        let mut bytes = [0; 16];
        self.dma_read(header.address, &mut bytes)?;
        let data = parts[1..parts.len() - 1].to_vec();
        if self.config.forged.is_empty() {
            assert!(
                data.len() <= self.config.segments.max(1) as usize,
                "{}",
                data.len()
            );
        }
        Ok(Seen {
            queue,
            head,
            kind: u32::from_le_bytes(std::array::from_fn(|byte| bytes[byte])),
            sector: u64::from_le_bytes(std::array::from_fn(|byte| bytes[8 + byte])),
            data,
            status: status.address,
        })
    }

    fn take(&mut self, request: Seen) {
        self.seen.push(request.clone());
        let (queue, head, written) = (request.queue, request.head.into(), request.written());
        match (self.treatment)(&request) {
            Treatment::Done => self.finish(&request),
            Treatment::Failed(status) => self.answer(&request, status),
            Treatment::Held => self.held.push(request),
            Treatment::Lost => {}
            Treatment::Twice => {
                self.finish(&request);
                self.push_used(queue, head, written);
            }
            Treatment::Misnamed => {
                _ = self.execute(&request);
                self.push_used(queue, head ^ 0x8000, written);
            }
            Treatment::TooLong => {
                _ = self.execute(&request);
                self.push_used(queue, head, written + 1);
            }
            Treatment::NoOutcome => self.push_used(queue, head, 0),
        }
    }

    /// Tells of a request that was not done.
    pub fn answer(&mut self, request: &Seen, status: u8) {
        let _ = self.dma_write(request.status, &[status]);
        self.push_used(request.queue, request.head.into(), 1);
    }

    /// Does a request, and tells of it.
    pub fn finish(&mut self, request: &Seen) {
        let status = match self.execute(request) {
            Ok(()) => S::Ok,
            Err(status) => status,
        };
        let written = match status {
            S::Ok => request.written(),
            _ => 1,
        };
        if self.dma_write(request.status, &[status.into()]).is_err() {
            return self.fail();
        }
        self.push_used(request.queue, request.head.into(), written);
    }

    /// Does a request.
    pub fn execute(&mut self, request: &Seen) -> Result<(), S> {
        let failed = |Fault| S::Ioerr;
        match T::try_from(request.kind) {
            Ok(T::In) => {
                let mut from = self.range(request.sector, request.len() as u64)?.start;
                for part in &request.data {
                    let bytes = self.config.bytes[from..from + part.len as usize].to_vec();
                    self.dma_write(part.address, &bytes).map_err(failed)?;
                    from += bytes.len();
                }
                Ok(())
            }
            Ok(T::Out) => {
                let mut to = self.range(request.sector, request.len() as u64)?.start;
                for part in &request.data {
                    let mut bytes = vec![0; part.len as usize];
                    self.dma_read(part.address, &mut bytes).map_err(failed)?;
                    self.config.bytes[to..to + bytes.len()].copy_from_slice(&bytes);
                    to += bytes.len();
                }
                Ok(())
            }
            Ok(T::Flush) => Ok(()),
            Ok(kind @ (T::Discard | T::WriteZeroes)) => {
                let (sector, count, flags) = self.forgotten(request)?;
                let (most, wanted) = match kind {
                    T::Discard => (self.config.discards, 0),
                    _ => (self.config.zeroes, 1),
                };
                if self.config.forged.is_empty() {
                    assert!(
                        count <= most && flags == wanted,
                        "{count} sectors, flags {flags}"
                    );
                }
                let range = self.range(sector, u64::from(count) * 512)?;
                self.config.bytes[range].fill(0);
                Ok(())
            }
            _ => Err(S::Unsupp),
        }
    }

    /// Reads the first sector, the number of sectors and the flags of what a request has the device forget.
    pub fn forgotten(&self, request: &Seen) -> Result<(u64, u32, u32), S> {
        let [part] = *request.data.as_slice() else {
            return Err(S::Unsupp);
        };
        assert_eq!((part.len, part.written), (16, false));
        let mut bytes = [0; 16];
        let read = self.dma_read(part.address, &mut bytes);
        read.map_err(|Fault| S::Ioerr)?;
        let sector = u64::from_le_bytes(std::array::from_fn(|byte| bytes[byte]));
        let rest = u64::from_le_bytes(std::array::from_fn(|byte| bytes[8 + byte]));
        Ok((sector, rest as u32, (rest >> 32) as u32))
    }

    fn range(&self, sector: u64, len: u64) -> Result<std::ops::Range<usize>, S> {
        let start = sector.checked_mul(512).ok_or(S::Ioerr)?;
        let end = start.checked_add(len).ok_or(S::Ioerr)?;
        match end <= self.config.bytes.len() as u64 {
            true => Ok(start as usize..end as usize),
            false => Err(S::Ioerr),
        }
    }
}
