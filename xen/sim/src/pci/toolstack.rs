//! The acts of libxl when a domain is given functions, and when they are taken away. Its nodes, and the order of its
//! steps, are those of libxl 4.17 to 4.20 (`libxl_pci.c`): when it detaches a function from a PV domain, it changes
//! Xen's state before it asks the domain.

use super::super::xenstore::{Server, domain_path, owned_by};
use super::super::{Sim, SimDomain};
use super::function::SimFunction;
use super::pciback::{Pciback, Remembered};
use bulkhead_xen::DomId;

const DOM0: DomId = DomId(0);

/// The backend's directory of a domain's functions.
pub fn backend_path(domain: DomId) -> String {
    format!("{}/backend/pci/{domain}/0", domain_path(DOM0))
}

/// The frontend's directory of a domain's functions.
pub fn frontend_path(domain: DomId) -> String {
    format!("{}/device/pci/0", domain_path(domain))
}

/// The state of the backend; `None` if there is none.
pub fn backend_state(store: &mut Server, domain: DomId) -> Option<String> {
    store.read(&format!("{}/state", backend_path(domain)))
}

/// The state of the frontend; `None` if there is none.
pub fn frontend_state(store: &mut Server, domain: DomId) -> Option<String> {
    store.read(&format!("{}/state", frontend_path(domain)))
}

impl Sim {
    /// Gives a domain functions as `pci=[…]` does, and `xl pci-attach`: the domain may access their registers and
    /// interrupt lines, they are in its IOMMU tables, and the nodes are written. The first call makes the
    /// directories; while a domain runs, functions are added one at a time, and libxl waits until the backend is in
    /// state 4 before and after.
    ///
    /// # Panics
    /// If another domain has one of them, or the backend is not in state 4 where libxl waits for that.
    pub fn attach_functions(&self, domain: &SimDomain, functions: &[&SimFunction]) {
        let id = domain.id();
        for function in functions {
            self.assign(id, function);
        }
        let remembered: Vec<Remembered> = functions.iter().map(|one| self.remember(one)).collect();
        let mut pcibacks = self.pcibacks();
        let mut store = self.store();
        let (back, front) = (backend_path(id), frontend_path(id));
        let known = store.read(&format!("{back}/num_devs"));
        let count: usize = known
            .as_deref()
            .map_or(0, |count| count.parse().expect("libxl's"));
        if count > 0 {
            assert_eq!(backend_state(&mut store, id).as_deref(), Some("4"));
        }
        store.transaction(|tx| {
            if known.is_none() {
                tx.mkdir(&back)?;
                tx.set_permissions(&back, &owned_by(DOM0, &[id]))?;
                tx.write(&format!("{back}/frontend"), &front)?;
                tx.write(&format!("{back}/frontend-id"), id.to_string())?;
                tx.write(&format!("{back}/online"), "1")?;
                tx.write(&format!("{back}/state"), "1")?;
                tx.mkdir(&front)?;
                tx.set_permissions(&front, &owned_by(id, &[DOM0]))?;
                tx.write(&format!("{front}/backend"), &back)?;
                tx.write(&format!("{front}/backend-id"), "0")?;
                tx.write(&format!("{front}/state"), "1")?;
            }
            for (number, one) in (count..).zip(&remembered) {
                let name = &one.name;
                tx.write(&format!("{back}/key-{number}"), name)?;
                tx.write(&format!("{back}/dev-{number}"), name)?;
                let options = "msitranslate=0,power_mgmt=0,permissive=0,rdm_policy=strict";
                tx.write(&format!("{back}/opts-{number}"), options)?;
                tx.write(&format!("{back}/state-{number}"), "1")?;
            }
            let all = count + remembered.len();
            tx.write(&format!("{back}/num_devs"), all.to_string())?;
            match count {
                0 => Ok(()),
                _ => tx.write(&format!("{back}/state"), "7"),
            }
        });
        drop(store);
        let index = pcibacks.iter().position(|one| one.domain == id);
        let index = index.unwrap_or_else(|| {
            pcibacks.push(Pciback::new(id));
            pcibacks.len() - 1
        });
        pcibacks[index].remember(remembered);
    }

    fn assign(&self, domain: DomId, function: &SimFunction) {
        let mut world = self.world.lock();
        let state = world.function(function.index);
        assert_eq!(state.owner, None, "another domain has {}", state.name);
        state.owner = Some(domain);
        if let Some(line) = state.config.line {
            world.pirqs.map(domain, line, true);
        }
        let domain = world.alive_mut(domain).expect("a domain that runs");
        domain.devices += 1;
    }

    fn remember(&self, function: &SimFunction) -> Remembered {
        let mut world = self.world.lock();
        Remembered {
            name: world.function(function.index).name.clone(),
            index: function.index,
        }
    }

    /// Begins `xl pci-detach`: Xen takes the function away, and then the domain is asked. libxl waits for the backend
    /// to be in state 4 again, up to ten seconds: then comes [`finish_detach`](Self::finish_detach).
    ///
    /// # Panics
    /// If the backend is not in state 4, or the domain does not have the function.
    pub fn detach_function(&self, domain: &SimDomain, function: &SimFunction) {
        let id = domain.id();
        let mut world = self.world.lock();
        let state = world.function(function.index);
        assert_eq!(state.owner.take(), Some(id), "{} is not there", state.name);
        let (name, line) = (state.name.clone(), state.config.line);
        if let Some(line) = line {
            world.pirqs.unmap(id, line);
        }
        world.alive_mut(id).expect("a domain that runs").devices -= 1;
        drop(world);
        let mut store = self.store();
        assert_eq!(backend_state(&mut store, id).as_deref(), Some("4"));
        let number = number_of(&mut store, id, &name);
        let back = backend_path(id);
        store.transaction(|tx| {
            tx.write(&format!("{back}/state-{number}"), "5")?;
            tx.write(&format!("{back}/state"), "7")
        });
    }

    /// Ends `xl pci-detach`: the function's nodes are removed, and the later ones renumbered; with the last function,
    /// both directories are. Returns false if the
    /// backend is not in state 4: libxl gives up and leaves everything as it is.
    pub fn finish_detach(&self, domain: &SimDomain, function: &SimFunction) -> bool {
        let id = domain.id();
        let name = self.world.lock().function(function.index).name.clone();
        let mut store = self.store();
        if backend_state(&mut store, id).as_deref() != Some("4") {
            return false;
        }
        let gone = number_of(&mut store, id, &name);
        let back = backend_path(id);
        let count = store.read(&format!("{back}/num_devs"));
        let count: usize = count.and_then(|count| count.parse().ok()).expect("libxl's");
        for number in gone..count {
            for node in ["state", "key", "dev", "vdev", "opts"] {
                let next = store.read(&format!("{back}/{node}-{}", number + 1));
                let path = format!("{back}/{node}-{number}");
                match next {
                    Some(next) => store.write(&path, &next),
                    None => store.remove(&path),
                }
            }
        }
        store.write(&format!("{back}/num_devs"), &(count - 1).to_string());
        if count == 1 {
            let front = frontend_path(id);
            store.transaction(|tx| {
                tx.remove(&back)?;
                tx.remove(&front)
            });
        }
        true
    }
}

fn number_of(store: &mut Server, domain: DomId, name: &str) -> usize {
    let back = backend_path(domain);
    let mut numbers = 0..64;
    let here = |number: &usize| {
        let node = store.read(&format!("{back}/dev-{number}"));
        node.as_deref() == Some(name)
    };
    numbers.find(here).expect("the function is in the store")
}
