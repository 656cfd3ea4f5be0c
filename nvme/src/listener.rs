//! The tasks that wait for the interrupts of a controller's queue pairs, each on the vCPU of its pair.

use crate::controller::Controller;
use crate::function::ControllerVectors;
use crate::moderation::Moderation;
use crate::pair::QueuePair;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::{EventChannel, Handle, Handover, Task, VcpuSpawner};
use bulkhead_xen::{Errno, Hypervisor};
use spin::Mutex;

/// The tasks of one controller.
#[derive(Default)]
pub struct Listeners {
    tasks: Vec<Task>,
}

impl Listeners {
    /// Binds the interrupt of each queue pair on its vCPU. If the function has a single interrupt, or none, it binds
    /// none, and the controller's task looks at the queue pairs. The error names the interrupt.
    pub async fn listen<H: Hypervisor>(
        &mut self,
        controller: &Arc<Controller>,
        vectors: &Arc<dyn ControllerVectors<H>>,
        vcpus: &[VcpuSpawner<H>],
    ) -> Result<(), (usize, Errno)> {
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
                    let (channel, handle) = (handle.event_channel(port), handle.clone());
                    let mut moderation = Moderation::new(controller.hold());
                    handle.clone().spawn(async move {
                        let Some(pair) = controller.pairs().get(index) else {
                            return;
                        };
                        loop {
                            channel.notified().await;
                            controller.watch().count_interrupt();
                            let mut any = pair.lock().take();
                            vectors.handled(vector, &hypervisor);
                            while any {
                                // The queues' tasks run, and the controller completes more commands meanwhile.
                                handle.yield_now().await;
                                any = pair.lock().take();
                            }
                            if hold_back(&handle, &channel, pair, &mut moderation).await {
                                vectors.handled(vector, &hypervisor);
                            }
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

    /// Unbinds the interrupts.
    pub fn stop(&mut self) {
        self.tasks.drain(..).for_each(|task| task.stop());
    }
}

/// Masks the interrupt for as long as [`Moderation`] expects several completions at a known time, and looks for them
/// then. Returns whether the interrupt was raised meanwhile, for completions that were taken without it.
async fn hold_back<H: Hypervisor>(
    handle: &Handle<H>,
    channel: &EventChannel<H>,
    pair: &Mutex<QueuePair>,
    moderation: &mut Moderation,
) -> bool {
    let mut held_back = false;
    loop {
        let (at_work, done) = pair.lock().progress();
        let (now, scale) = (handle.now(), handle.wakeup_scale());
        let Some(pause) = moderation.pause(now, at_work, done, scale) else {
            break;
        };
        if !held_back {
            held_back = true;
            channel.mask();
        }
        handle.sleep(pause).await;
        pair.lock().take_expected();
    }
    // Commands that were completed until here are found by `look`, and their interrupt is dropped; later ones
    // interrupt.
    let interrupted = held_back && channel.forget();
    pair.lock().look();
    if held_back {
        channel.unmask();
    }
    interrupted
}
