//! The vCPUs that the toolstack has online: `cpu/N/availability`
//! (Xen's `docs/misc/xenstore-paths.pandoc`).
//!
//! `vcpus=1 maxvcpus=4` makes four vCPUs, of which one is online; `xl vcpu-set` changes that while the
//! domain runs. What is offline when the domain starts is never started. A change later is refused in
//! the log: queues stay on the vCPU on which they began.

use alloc::format;
use alloc::vec::Vec;
use bulkhead_xen::VcpuId;
use bulkhead_xenstore_client::{Client, Error};
use core::convert::Infallible;

const ROOT: &str = "cpu";

/// Returns the vCPUs that are to run, of `all` vCPUs. The first one runs in any case.
pub async fn online(store: &Client, all: u32) -> Vec<VcpuId> {
    let mut online = Vec::new();
    for vcpu in (0..all).map(VcpuId) {
        if vcpu == VcpuId(0) || is_online(store, vcpu).await {
            online.push(vcpu);
        }
    }
    online
}

/// Returns whether a vCPU is to be online. It is, if the toolstack wrote nothing about it.
async fn is_online(store: &Client, vcpu: VcpuId) -> bool {
    match store
        .read_optional(format!("{ROOT}/{vcpu}/availability"))
        .await
    {
        Ok(value) => value.as_deref() != Some("offline"),
        Err(error) => {
            log::warn!("vCPU {vcpu} is taken to be online: {error}");
            true
        }
    }
}

/// Returns the vCPU that a path below [`ROOT`] is about.
fn vcpu_of(path: &str) -> Option<VcpuId> {
    let rest = path.strip_prefix(ROOT)?.strip_prefix('/')?;
    rest.split('/').next()?.parse().ok().map(VcpuId)
}

/// Watches for changes and logs, once for each, that they are not followed. `all` is the number of vCPUs,
/// `running` those that run. Returns only if xenstore cannot be used any more.
pub async fn refuse_changes(
    store: &Client,
    all: u32,
    running: &[VcpuId],
) -> Result<Infallible, Error> {
    let mut watch = store.watch(ROOT).await?;
    // Whether the wish of each was refused already.
    let mut refused = alloc::vec![false; all as usize];
    loop {
        let path = watch.next().await?;
        let about = vcpu_of(path.as_ref());
        // The first event is about all of them.
        for vcpu in (0..all).map(VcpuId) {
            if about.is_none_or(|about| about == vcpu) {
                let (runs, wanted) = (running.contains(&vcpu), is_online(store, vcpu).await);
                let told = core::mem::replace(&mut refused[vcpu.0 as usize], runs != wanted);
                if runs != wanted && !told {
                    let (wish, state) = if wanted {
                        ("online", "stays offline")
                    } else {
                        ("offline", "goes on serving")
                    };
                    log::warn!(
                        "vCPU {vcpu} is wanted {wish}, but {state}: the number of vCPUs is that of \
                         the domain's start; set vcpus= and start the domain anew for another"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_a_vcpu_or_all() {
        assert_eq!(vcpu_of("cpu/3/availability"), Some(VcpuId(3)));
        assert_eq!(vcpu_of("cpu/12"), Some(VcpuId(12)));
        assert_eq!(vcpu_of("cpu"), None);
        assert_eq!(vcpu_of("cpu/x/availability"), None);
    }
}
