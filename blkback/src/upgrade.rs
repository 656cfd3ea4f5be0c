//! The operator's request that a new version takes over (`docs/recovery.md`):
//!
//! ```text
//!   xenstore-write /local/domain/<storage>/data/upgrade "ram:bulkhead sha256=$(sha256sum <bulkhead | cut -d' ' -f1)"
//!   xenstore-read  /local/domain/<storage>/data/upgrade-error
//! ```
//!
//! The file is read from any store, whole and once, and checked; the runtime hands over to what was checked.

use crate::services::Services;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bulkhead_images::{Access, BlockDevice, DeviceReader, Owner};
use bulkhead_upgrade::request::InjectedFault;
use bulkhead_upgrade::{Candidate, Request, Running, elf, has_checksum};
use bulkhead_xen::{DomId, Hypervisor, VcpuId};
use bulkhead_xenbus::CommandNode;
use bulkhead_xenbus::retry::{persist, persist_write};
use bulkhead_xenstore_client::{Client, Error};
use core::convert::Infallible;
use core::pin::pin;
use core::time::Duration;
use futures_util::future::{Either, select};

/// The node for requests.
pub const NODE: &str = "data/upgrade";

/// The node with the reason why the last request was not carried out. There is none after a success.
pub const ERROR_NODE: &str = "data/upgrade-error";

/// The time in which the store has to deliver the file.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// The time that stores have to be there again which disks of the boot before are on. A store says within seven seconds that
/// it is not there.
const STORES_COME: Duration = Duration::from_secs(7);

/// Waits until this version serves what the boot before has served. A disk whose store is away, whatever version asks for it,
/// is not waited for much longer than stores need to come.
pub async fn serves<H: Hypervisor>(services: &Services<H>) {
    let kept_queues = &services.kept_queues;
    let come = pin!(services.handle.sleep(STORES_COME));
    select(pin!(kept_queues.settled()), come).await;
    kept_queues.found().await;
}

/// The version that runs, as far as upgrades are concerned.
pub trait Runtime {
    /// Returns the reason why no version can take over now, if there is one.
    fn obstacle(&self) -> Option<&'static str>;

    /// Returns the properties of this version that a new one has to fit.
    fn running(&self) -> Running;

    /// Returns whether versions may be asked to fail on purpose.
    fn allows_faults(&self) -> bool;

    /// Hands the domain over. Returns only if that is not possible, with the reason.
    fn take_over(&self, candidate: &Candidate<'_>, fault: InjectedFault) -> &'static str;
}

/// Carries out requests. Returns only if xenstore cannot be used any more.
pub async fn answer_upgrades<H: Hypervisor>(
    services: &Services<H>,
    runtime: &impl Runtime,
) -> Result<Infallible, Error> {
    persist(&services.handle, NODE, async || {
        let mut requests = CommandNode::watch(&services.store, NODE).await?;
        loop {
            let request = requests.next().await?;
            let refused = carry_out(services, runtime, &request).await;
            report(services, &refused).await?;
        }
    })
    .await
}

/// Tells the operator why no new version has taken over.
pub async fn report<H: Hypervisor>(services: &Services<H>, reason: &str) -> Result<(), Error> {
    log::error!("{NODE}: {reason}");
    persist_write(&services.handle, &services.store, ERROR_NODE, reason).await
}

/// Removes the reason: a new version has taken over.
pub async fn forget(store: &Client) -> Result<(), Error> {
    match store.read_optional(ERROR_NODE).await? {
        Some(_) => store.remove(ERROR_NODE).await,
        None => Ok(()),
    }
}

/// Reads and checks the file, and hands over to it. Returns only if that fails, with the reason.
async fn carry_out<H: Hypervisor>(
    services: &Services<H>,
    runtime: &impl Runtime,
    request: &str,
) -> String {
    let request = match Request::parse(request) {
        Ok(request) => request,
        Err(error) => return error.to_string(),
    };
    if request.fault != InjectedFault::None && !runtime.allows_faults() {
        return "test= needs test-crash=on on the command line".into();
    }
    if let Some(obstacle) = runtime.obstacle() {
        return obstacle.into();
    }
    let target = request.target;
    let (reading, late) = (
        pin!(read(services, target)),
        services.handle.sleep(READ_WITHIN),
    );
    let file = match select(reading, pin!(late)).await {
        Either::Left((Ok(file), _)) => file,
        Either::Left((Err(error), _)) => return format!("{target}: {error}"),
        Either::Right(_) => {
            let limit = READ_WITHIN.as_secs();
            return format!("{target}: it was not read within {limit} s");
        }
    };
    if !has_checksum(&file, &request.sha256) {
        let bytes = file.len();
        return format!("{target}: its {bytes} bytes do not have the checksum that sha256= names");
    }
    let running = runtime.running();
    let candidate = match Candidate::check(&file, &running, request.force) {
        Ok(candidate) => candidate,
        Err(refused) => return format!("{target}: {refused}"),
    };
    log::info!(
        "version {} takes over from {}",
        candidate.note.version,
        running.version
    );
    format!("{target}: {}", runtime.take_over(&candidate, request.fault))
}

/// Reads a file from a store. Its headers say where it ends.
async fn read<H: Hypervisor>(services: &Services<H>, target: &str) -> Result<Vec<u8>, String> {
    let owner = Owner {
        name: NODE,
        domain: DomId::SELF,
    };
    let opened = services.stores.open(target, Access::ReadOnly, owner).await;
    let device = opened.map_err(|error| error.to_string())?;
    read_device(&*device).await
}

/// Reads it on the first vCPU, where the control plane runs.
async fn read_device(device: &dyn BlockDevice) -> Result<Vec<u8>, String> {
    let reader = DeviceReader::open(device, VcpuId(0)).await;
    let mut reader = reader.map_err(|error| error.to_string())?;
    let mut file = Vec::new();
    let mut more = async |file: &mut Vec<u8>, end: u64| {
        let (start, end) = (file.len(), usize::try_from(end).unwrap_or(usize::MAX));
        let room = file.try_reserve_exact(end.saturating_sub(start));
        room.map_err(|_| String::from("there is no memory for it"))?;
        file.resize(end.max(start), 0);
        let read = reader.read(start as u64, &mut file[start..]).await;
        read.map_err(|error| error.to_string())
    };
    more(&mut file, elf::HEADER_BYTES as u64).await?;
    let headers = elf::headers_end(&file).map_err(|error| error.to_string())?;
    more(&mut file, headers).await?;
    let end = elf::length(&file).map_err(|error| error.to_string())?;
    more(&mut file, end).await?;
    reader.close().await;
    Ok(file)
}
