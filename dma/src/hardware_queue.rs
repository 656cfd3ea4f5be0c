//! A queue of a device: its state, as it is in all drivers.

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
