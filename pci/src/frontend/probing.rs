//! New functions, which are identified and offered to the drivers, and functions that are to be removed.

use super::{FrontendTask, Known};
use crate::PciHost;
use crate::address::{FunctionName, Slot};
use crate::config_space::ConfigSpace;
use crate::devices::{Listed, list};
use crate::error::OperationError;
use crate::function::{Departure, Function, Shared};
use crate::holders::Holders;
use crate::identity::Identity;
use crate::state_machine::Phase;
use alloc::rc::Rc;
use alloc::vec::Vec;
use bulkhead_xenbus::XenbusState;
use bulkhead_xenstore_client::Error;

impl<H: PciHost> FrontendTask<'_, H> {
    /// Forgets the functions that are gone, offers the new ones to the drivers, and reports `Connected`.
    pub(super) async fn connect(&mut self) -> Result<(), Error> {
        let listed = self.list().await?;
        let there = |known: &Known<H>| {
            let same = |one: &Listed| one.name == known.shared.name && !one.removed;
            listed.iter().any(same)
        };
        self.functions.retain(there);
        self.told = None;
        self.probe_functions().await?;
        self.phase = Phase::Connected;
        self.write(&[], XenbusState::Connected).await
    }

    /// Identifies the functions that are not known yet, and offers them to the drivers.
    pub(super) async fn probe_functions(&mut self) -> Result<(), Error> {
        let listed = self.list().await?;
        self.again = None;
        for one in listed.iter().filter(|one| !one.removed) {
            let known = self
                .functions
                .iter()
                .any(|known| known.shared.name == one.name);
            match one.slot {
                _ if known => {}
                Some(slot) => self.probe_function(one.name, slot).await,
                None => log::error!("function {}: dom0's pciback does not show it", one.name),
            }
        }
        Ok(())
    }

    /// Asks the drivers for the functions that are to be removed. If none of these is in use, turns them off and
    /// reports `Reconfiguring`, so that pciback removes them.
    pub(super) async fn reconfigure(&mut self) -> Result<(), Error> {
        let listed = self.list().await?;
        let mut gone = Vec::new();
        for known in &mut self.functions {
            let removed = |one: &&Listed| one.name == known.shared.name && one.removed;
            if listed.iter().find(removed).is_none() {
                continue;
            }
            if !known.leaves {
                known.leaves = true;
                log::info!("function {}: is to be detached", known.shared.name);
                known.shared.depart(Departure::Detached);
            }
            match known.holders.any() {
                true => return Ok(()),
                false => gone.push(known.shared.clone()),
            }
        }
        for shared in gone {
            if let Err(error) = shared.turn_off().await {
                log::warn!("function {}: not turned off: {error}", shared.name);
            }
            log::info!("function {}: detached", shared.name);
        }
        self.functions.retain(|known| !known.leaves);
        self.phase = Phase::Reconfiguring;
        self.write(&[], XenbusState::Reconfiguring).await
    }

    async fn list(&self) -> Result<Vec<Listed>, Error> {
        match self.nodes.peer() {
            Some(peer) => list(&self.frontend.store, &peer.path).await,
            None => Ok(Vec::new()),
        }
    }

    /// Identifies a new function, and offers it to the drivers.
    async fn probe_function(&mut self, name: FunctionName, slot: Slot) {
        let Some(channel) = &self.channel else {
            return;
        };
        let config = ConfigSpace::new(channel.clone(), slot);
        let identity = match identify(&config).await {
            Ok(Some(identity)) => identity,
            Ok(None) => return log::error!("function {name}: nothing answers there"),
            Err(error) => return self.has_not_answered(name, error),
        };
        let handle = self.frontend.handle.clone();
        let shared = Rc::new(Shared::new(name, identity, handle, config));
        if self.left
            && let Err(error) = shared.quieten().await
        {
            log::warn!("function {name}: cannot be stopped, as it must be after a restart");
            return self.has_not_answered(name, error);
        }
        let (holder, holders) = Holders::new(&self.released);
        let mut offered = Function::new(shared.clone(), holder);
        let mut taken = None;
        for driver in &self.frontend.drivers {
            match driver.take(offered) {
                Ok(()) => {
                    taken = Some(driver.name());
                    break;
                }
                Err(back) => offered = back,
            }
        }
        match taken {
            Some(driver) => log::info!("function {name}: {identity}, driver {driver}"),
            None => log::warn!("function {name}: {identity}: no driver for it"),
        }
        self.functions.push(Known {
            shared,
            holders,
            leaves: false,
        });
    }

    /// Logs why a function was not identified. If pciback did not answer in time, has it tried again later.
    fn has_not_answered(&mut self, name: FunctionName, error: OperationError) {
        match error {
            OperationError::TimedOut => {
                log::warn!("function {name}: {error}: it is asked again");
                self.try_again();
            }
            _ => log::error!("function {name}: {error}"),
        }
    }
}

/// Reads a function's identity; `None` if nothing answers.
async fn identify<H: PciHost>(config: &ConfigSpace<H>) -> Result<Option<Identity>, OperationError> {
    let id = config.read32(0).await?;
    let class = config.read32(8).await?;
    Ok(Identity::new(id, class))
}
