//! The store `nvme:`, which serves namespaces and volumes on them.

use crate::command::NamespaceId;
use crate::controller::Controller;
use crate::controllers::Controllers;
use crate::namespace::{Namespace, NamespaceDevice};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_dma::short_name;
use bulkhead_images::BlockDevice;
use bulkhead_volumes::{DiskStore, Disks, KnownDisk, NameError, VolumeName, Waiting};
use bulkhead_xen::Hypervisor;
use core::any::Any;
use core::time::Duration;

/// Returns the store `nvme:` of these controllers.
///
/// A target names a controller by its PCI function, then a namespace if it is not the first one, then a volume if it is
/// not the whole namespace: `nvme:03:00.0`, `nvme:03:00.0/n2`, `nvme:03:00.0/root-alice`, `nvme:03:00.0/n2/vg0/alice`.
pub fn nvme_store<H: Hypervisor>(controllers: Rc<Controllers<H>>) -> DiskStore {
    DiskStore::new(Rc::new(Namespaces(controllers)))
}

struct Namespaces<H: Hypervisor>(Rc<Controllers<H>>);

impl<H: Hypervisor> Namespaces<H> {
    /// Finds the namespace that a disk's name means.
    fn find(&self, name: &str) -> Result<(Arc<Controller>, Arc<Namespace>), String> {
        let (function, number) = apart(name);
        let controller = self.0.find(function).ok_or_else(|| self.missing(name))?;
        if let Some(reason) = controller.failure() {
            return Err(format!("the controller {function} was given up: {reason}"));
        }
        let namespaces = controller.namespaces();
        let mut all = namespaces.iter();
        let found = match number {
            None => all.next(),
            Some(number) => all.find(|namespace| namespace.id() == number),
        };
        if let Some(namespace) = found {
            return Ok((controller, namespace.clone()));
        }
        if let Some(reason) = number.and_then(|number| controller.refused(number)) {
            return Err(format!("the namespace {name} cannot be served: {reason}"));
        }
        let numbers: Vec<String> = namespaces
            .iter()
            .map(|namespace| format!("n{}", namespace.id()))
            .collect();
        Err(match numbers.is_empty() {
            true => format!("the controller {function} has no namespace that can be served"),
            false => format!(
                "the controller {function} has no such namespace, there are: {}",
                numbers.join(", ")
            ),
        })
    }
}

impl<H: Hypervisor> Disks for Namespaces<H> {
    fn scheme(&self) -> &'static str {
        "nvme"
    }

    fn example(&self) -> &'static str {
        "03:00.0"
    }

    fn expected(&self) -> &'static str {
        "nvme:FUNCTION[/nNAMESPACE][/VOLUME]"
    }

    /// The number of a namespace belongs to the disk's name.
    fn parse(&self, value: &str) -> Result<VolumeName, NameError> {
        let mut words = value.splitn(3, '/');
        let (function, number, rest) = (words.next(), words.next(), words.next());
        let Some((function, number)) =
            function.zip(number.filter(|word| number_of(word).is_some()))
        else {
            return value.parse();
        };
        let whole = match rest {
            None => function.to_string(),
            Some(rest) => format!("{function}/{rest}"),
        };
        let name: VolumeName = whole.parse()?;
        Ok(VolumeName {
            disk: format!("{}/{number}", name.disk),
            part: name.part,
        })
    }

    fn ready<'a>(&'a self, name: &'a str) -> Waiting<'a, Result<String, String>> {
        Box::pin(async move {
            let (function, _) = apart(name);
            let controllers = &self.0;
            controllers
                .until(|| {
                    if controllers.unusable(function).is_some() {
                        return Some(());
                    }
                    let controller = controllers.find(function)?;
                    (controller.is_ready() || controller.failure().is_some()).then_some(())
                })
                .await;
            let (controller, namespace) = self.find(name)?;
            Ok(full_name(&controller, &namespace))
        })
    }

    fn missing(&self, name: &str) -> String {
        let (function, _) = apart(name);
        if let Some(reason) = self.0.unusable(function) {
            return format!("the controller {function} cannot be used: {reason}");
        }
        let all = self.0.list();
        if all
            .iter()
            .any(|controller| controller.name() == short_name(function))
        {
            return format!("the controller {function} is not ready");
        }
        let names: Vec<&str> = all.iter().map(|controller| controller.name()).collect();
        match names.is_empty() {
            true => format!(
                "no controller {function}: the driver domain has none (pci= in its configuration)"
            ),
            false => format!("no controller {function}, there are: {}", names.join(", ")),
        }
    }

    fn pause(&self, span: Duration) -> Waiting<'_, ()> {
        Box::pin(self.0.handle().sleep(span))
    }

    fn spawn(&self, task: Waiting<'static, ()>) {
        self.0.handle().spawn(task);
    }

    fn list(&self) -> Vec<KnownDisk> {
        let mut all = Vec::new();
        for controller in self.0.list() {
            // While it is reset, or does not work for the moment, its namespaces stay listed: guests' disks on them
            // stay attached.
            if controller.is_leaving() {
                continue;
            }
            for namespace in controller.namespaces() {
                all.push(KnownDisk {
                    name: full_name(&controller, &namespace),
                    identity: namespace,
                });
            }
        }
        all
    }

    fn are_same(&self, one: &dyn Any, other: &dyn Any) -> bool {
        let (one, other) = (one.downcast_ref(), other.downcast_ref::<Namespace>());
        one.zip(other)
            .is_some_and(|(one, other): (&Namespace, _)| one.is_same(other))
    }

    fn lines(&self) -> Vec<String> {
        self.0.lines()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>, String> {
        let (controller, namespace) = self.find(name)?;
        if let Some(reason) = namespace.failure() {
            return Err(reason.to_string());
        }
        Ok(Arc::new(NamespaceDevice::new(controller, namespace)))
    }
}

/// Returns the name of a namespace. The first one has the name of its controller.
fn full_name(controller: &Controller, namespace: &Namespace) -> String {
    let first = controller.namespaces().first().map(|first| first.id());
    match first == Some(namespace.id()) {
        true => controller.name().to_string(),
        false => format!("{}/n{}", controller.name(), namespace.id()),
    }
}

/// Splits a disk's name into the controller's name and the number of a namespace, if there is one.
fn apart(name: &str) -> (&str, Option<NamespaceId>) {
    match name.split_once('/') {
        Some((function, number)) => (function, number_of(number)),
        None => (name, None),
    }
}

/// Returns the number in a word such as `n2`; `None` if it is not of that form.
fn number_of(word: &str) -> Option<NamespaceId> {
    let digits = word.strip_prefix('n')?;
    let plain = digits.bytes().all(|digit| digit.is_ascii_digit()) && !digits.starts_with('0');
    digits.parse().ok().filter(|_| plain).map(NamespaceId)
}
