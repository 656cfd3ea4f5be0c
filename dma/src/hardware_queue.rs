//! A queue of a device: its state, and what the device's task does with it, as they are in all drivers.

/// The state of a queue of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceQueueState {
    /// The device works on its commands.
    Running,
    /// The device has broken the protocol. It may still access the commands' memory.
    Broken,
    /// The device is being stopped. It may still access the commands' memory.
    Stopped,
    /// The device has stopped, and accesses no memory. It is given its commands again when it runs again.
    Quiet,
    /// The device was given up, and accesses no memory.
    Dead,
    /// The device was given up, and may still access the commands' memory.
    Stuck,
}

/// A queue of a device, as the device's task starts, stops and checks it.
pub trait HardwareQueue {
    /// Returns its state.
    fn state(&self) -> DeviceQueueState;

    /// Returns whether the device has none of its commands.
    fn is_idle(&self) -> bool;

    /// Notes the time, in seconds, at which checks of the commands begin: all commands count as sent now.
    fn begin_ticks(&mut self, now: u32);

    /// Returns whether the device has a command that was found to take too long.
    fn has_late(&mut self) -> bool;

    /// Stops using the queue, because the device is about to be stopped.
    fn stop(&mut self);

    /// Notes that the device has stopped: it accesses no memory any more. Commands of cancelled requests end.
    fn quiet(&mut self);

    /// Gives up on a device that [has stopped](Self::quiet): all requests fail.
    fn die(&mut self);

    /// Gives up on a device that may still access memory: requests that it has do not complete any more, and new ones
    /// fail.
    fn set_stuck(&mut self);
}
