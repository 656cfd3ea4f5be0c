//! The tasks that wait for a controller's interrupts, each on the vCPU that serves with the queue pair.

use crate::controller::Controller;
use crate::function::Vectors;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::{Handover, Task, VcpuSpawner};
use bulkhead_xen::{Errno, Hypervisor};

/// Those of one controller.
#[derive(Default)]
pub struct Listeners {
    tasks: Vec<Task>,
    here: bool,
}

impl Listeners {
    /// Binds the interrupt of each queue pair on its vCPU. A function with a single interrupt, or none, has the
    /// controller's task look at the queue pairs. The error names the interrupt.
    pub async fn listen<H: Hypervisor>(
        &mut self,
        controller: &Arc<Controller>,
        vectors: &Arc<dyn Vectors<H>>,
        vcpus: &[VcpuSpawner<H>],
    ) -> Result<(), (usize, Errno)> {
        self.here = vectors.count() == 1;
        if vectors.count() <= 1 {
            return Ok(());
        }
        for (index, vcpu) in vcpus.iter().enumerate().take(controller.pairs().len()) {
            let vector = index + 1;
            let taken = Handover::default();
            let (given, controller, vectors) = (taken.clone(), controller.clone(), vectors.clone());
            vcpu.send(move |handle| {
                let hypervisor = handle.hypervisor().clone();
                let bound = vectors.bind(vector, &hypervisor);
                given.give(bound.map(|port| {
                    let channel = handle.event_channel(port);
                    handle.spawn(async move {
                        loop {
                            channel.notified().await;
                            controller.watch().count_interrupt();
                            if let Some(pair) = controller.pairs().get(index) {
                                pair.lock().interrupted();
                            }
                            vectors.handled(vector, &hypervisor);
                        }
                    })
                }));
            });
            match taken.taken().await {
                Ok(task) => self.tasks.push(task),
                Err(error) => return Err((vector, error)),
            }
        }
        Ok(())
    }

    /// Returns whether the controller's task is the one that is interrupted.
    pub fn are_here(&self) -> bool {
        self.here
    }

    /// Unbinds the interrupts.
    pub fn stop(&mut self) {
        self.tasks.drain(..).for_each(|task| task.stop());
    }
}
