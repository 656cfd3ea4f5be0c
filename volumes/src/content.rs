//! What is on a disk: partitions, and physical volumes of LVM on them or on the disk itself.

use crate::gpt::{self, GptError, Table};
use crate::lvm::{self, Found, Group, LvmError};
use crate::memory::push;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_images::{BlockDevice, DeviceReader, OpenQueueError, Sector};
use bulkhead_xen::VcpuId;
use core::fmt;

/// What was found on a disk when it was read last.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// The partitions, if there is a table.
    pub table: Option<Table>,
    /// The physical volumes.
    pub physical: Vec<Found>,
    /// What an operator wants to know, in sentences.
    pub notes: Vec<String>,
}

/// Why what is on a disk is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentError {
    /// The disk cannot be opened.
    Open(OpenQueueError),
    /// The partition table cannot be used.
    Gpt(GptError),
    /// There is no partition table, and a damaged label of LVM.
    Lvm(LvmError),
}

impl fmt::Display for ContentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContentError::Open(error) => write!(f, "it cannot be opened: {error}"),
            ContentError::Gpt(error) => error.fmt(f),
            ContentError::Lvm(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ContentError {}

impl Content {
    /// Reads the tables of a disk.
    ///
    /// Physical volumes are looked for on partitions whose type says that they are some, or on a disk that
    /// has no partitions. Others belong to guests, who may write there what they like: a label of LVM too,
    /// with the names of other guests' volumes.
    pub async fn read(device: &dyn BlockDevice, vcpu: VcpuId) -> Result<Content, ContentError> {
        let reader = DeviceReader::open(device, vcpu).await;
        let mut reader = reader.map_err(ContentError::Open)?;
        let content = Content::read_with(&mut reader).await;
        reader.close().await;
        content
    }

    /// Reads the tables through a reader.
    pub async fn read_with(reader: &mut DeviceReader) -> Result<Content, ContentError> {
        let mut content = Content::default();
        let table = gpt::read(reader).await.map_err(ContentError::Gpt)?;
        let Some(table) = table else {
            let sectors = reader.geometry().sectors;
            let found = lvm::read(reader, Sector(0), sectors).await;
            content.add(found.map_err(ContentError::Lvm)?, "")?;
            return Ok(content);
        };
        content
            .notes
            .extend(table.note.as_ref().map(ToString::to_string));
        for partition in &table.partitions {
            if partition.fault.is_some() || !partition.is_physical_volume() {
                continue;
            }
            let on = alloc::format!(" on partition {}", partition.number);
            match lvm::read(reader, partition.start, partition.sectors).await {
                Ok(found) => content.add(found, &on)?,
                Err(LvmError::NoMemory) => return Err(ContentError::Lvm(LvmError::NoMemory)),
                Err(error) => {
                    content.note(alloc::format!("partition {}: {error}", partition.number))?
                }
            }
        }
        content.table = Some(table);
        Ok(content)
    }

    fn add(&mut self, found: Option<Found>, on: &str) -> Result<(), ContentError> {
        let Some(found) = found else {
            return Ok(());
        };
        for fault in &found.faults {
            self.note(alloc::format!(
                "a copy of the metadata of LVM{on} is not used: {fault}"
            ))?;
        }
        push(&mut self.physical, found).ok_or(ContentError::Lvm(LvmError::NoMemory))
    }

    fn note(&mut self, note: String) -> Result<(), ContentError> {
        push(&mut self.notes, note).ok_or(ContentError::Lvm(LvmError::NoMemory))
    }

    /// Returns the groups that have a physical volume here, as the newest copy here describes each.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        let all = || {
            self.physical
                .iter()
                .filter_map(|found| found.group.as_ref())
        };
        all().enumerate().filter_map(move |(number, group)| {
            // One of several copies of the same group counts: the first of the newest.
            let mut others = all().enumerate();
            let older = others.any(|(other, another)| {
                another.id == group.id
                    && (another.seqno > group.seqno
                        || (another.seqno == group.seqno && other < number))
            });
            (!older).then_some(group)
        })
    }
}
