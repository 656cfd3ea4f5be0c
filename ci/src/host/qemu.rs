//! The QEMU process that emulates a Xen host, and the files through which it is reached.

use super::pci::{self, PciDevice};
use super::xenstored::Xenstored;
use crate::image::HostImage;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Settings of the emulated machine. `docs/emulator-faults.md` lists the settings that were tried, with their
/// failures.
#[derive(Clone, Debug)]
pub struct Machine {
    /// QEMU's `-cpu`.
    pub cpu: String,
    /// QEMU's TCG threading, `single` or `multi`.
    pub threads: String,
    /// Emulated processors.
    pub processors: u32,
    /// Memory of the host in MiB.
    pub memory: u32,
    /// dom0's memory in MiB.
    pub dom0_memory: u32,
    /// The devices that can be passed through to domains. With any, the machine has an IOMMU.
    pub devices: &'static [PciDevice],
    /// The xenstored that dom0 runs.
    pub xenstored: Xenstored,
    /// False if Xen and all kernels go without what protects against speculation: an emulated processor does none,
    /// and its checks take a tenth of the time of all scenarios.
    pub mitigations: bool,
    /// The plugin that counts instructions, if they are to be counted.
    pub plugin: Option<PathBuf>,
    /// Added to Xen's command line.
    pub xen_options: String,
    /// Added to the command line of dom0's kernel.
    pub dom0_options: String,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            // An AMD processor before AVX and XSAVE, with nested paging but without RDTSCP, SMAP, SMEP
            // and ERMS. The README says what each of them breaks or distorts. RDRAND is for TLS.
            cpu: "Opteron_G3,+svm,+npt,+rdrand,-rdtscp,-misalignsse".to_owned(),
            threads: "multi".to_owned(),
            // One for dom0, and two for all others.
            processors: 3,
            memory: 4096,
            dom0_memory: 1024,
            devices: &[],
            xenstored: Xenstored::default(),
            mitigations: true,
            plugin: None,
            xen_options: String::new(),
            dom0_options: String::new(),
        }
    }
}

/// The size in bytes of the disk that outlives a power cycle. The file is sparse.
const LASTING_DISK: u64 = 64 << 20;

/// The folder that holds all files of one running host.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The folder.
    pub dir: PathBuf,
}

impl Instance {
    /// Returns the folder that dom0 sees as `/lab`.
    pub fn share(&self) -> PathBuf {
        self.dir.join("share")
    }

    /// Returns the log of Xen and of dom0's console.
    pub fn xen_log(&self) -> PathBuf {
        self.dir.join("xen.log")
    }

    /// Returns the log of dom0's kernel.
    pub fn dom0_log(&self) -> PathBuf {
        self.share().join("dom0.log")
    }

    /// Returns the folder of the toolstack's logs.
    pub fn tool_stack_logs(&self) -> PathBuf {
        self.share().join("xl")
    }

    /// Returns the file that dom0 makes once it takes commands.
    pub fn ready(&self) -> PathBuf {
        self.share().join("ready")
    }

    /// Returns the disk whose contents outlive a [power cycle](Self::cycle_power), dom0's `/dev/vdb`.
    fn lasting_disk(&self) -> PathBuf {
        self.dir.join("lasting.img")
    }

    /// Returns the log of the commands that were run in dom0, with their output.
    pub fn command_log(&self) -> PathBuf {
        self.dir.join("dom0-commands.log")
    }

    /// Returns the socket that wakes dom0's command server.
    pub fn command_socket(&self) -> PathBuf {
        self.dir.join("command.sock")
    }

    /// Returns the socket of dom0's interactive shell.
    pub fn shell_socket(&self) -> PathBuf {
        self.dir.join("shell.sock")
    }

    /// Returns the socket of QEMU's own monitor, by which the emulated processors can be examined.
    pub fn monitor_socket(&self) -> PathBuf {
        self.dir.join("monitor.sock")
    }

    /// Returns the file with the counts of executed instructions, if they are counted.
    pub fn instructions(&self) -> PathBuf {
        self.dir.join("instructions")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("qemu.pid")
    }

    /// Returns the process that runs this host, if it is alive.
    pub fn pid(&self) -> Option<u32> {
        let pid: u32 = fs::read_to_string(self.pid_file())
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        // The number may have been given to another process since.
        name.contains("qemu-system").then_some(pid)
    }

    /// Starts QEMU. With `with_us`, it ends when the lab's process ends.
    pub fn start(&self, image: &HostImage, machine: &Machine, with_us: bool) -> Result<()> {
        if let Some(pid) = self.pid() {
            bail!("{} is in use by process {pid}", self.dir.display());
        }
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir)?;
        }
        fs::create_dir_all(self.share())?;
        for device in machine.devices {
            device.make_media(&self.dir)?;
        }
        let disk = File::create(self.lasting_disk())?;
        disk.set_len(LASTING_DISK)?;
        self.spawn(&arguments(self, image, machine), with_us)
    }

    /// Cuts the power and turns it on again: kills QEMU, and starts the same machine with the same disks. Data that the
    /// machine had not written to them is lost.
    pub fn cycle_power(&self, with_us: bool) -> Result<()> {
        let pid = self.pid().context("the host does not run")?;
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        let words = line.trim_end_matches('\0').split('\0');
        let arguments: Vec<String> = words.skip(1).map(str::to_owned).collect();
        self.kill()?;
        fs::remove_file(self.ready())?;
        // Domains have the numbers of earlier ones again, and these logs go by numbers.
        fs::remove_dir_all(self.tool_stack_logs())?;
        self.spawn(&arguments, with_us)
    }

    fn spawn(&self, arguments: &[String], with_us: bool) -> Result<()> {
        let log = self.dir.join("qemu.log");
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = if with_us {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]);
            command
        } else {
            // A process that stays must not keep what it inherits, such as a lock that its starter
            // holds while the host boots.
            let close = "exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; exec setsid --fork \"$@\"";
            let mut command = Command::new("sh");
            command.args(["-c", close, "sh"]);
            command
        };
        command
            .arg("qemu-system-x86_64")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(())
    }

    /// Gives QEMU's main thread, which raises the emulated interrupts, real-time priority, where that is
    /// allowed. A pause between raising an interrupt and waking the processor for it can deliver the
    /// previous one twice (`docs/emulator-faults.md`).
    pub fn prefer_main_thread(&self) {
        let Some(pid) = self.pid() else { return };
        // Without the privilege the lab works as well, only less steadily.
        let _ = Command::new("chrt")
            // Threads that it starts later, such as those of the processors, go by the usual rules.
            .args(["--fifo", "--reset-on-fork", "--pid", "1", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }

    /// Ends QEMU.
    pub fn kill(&self) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        let status = Command::new("kill")
            .arg("-KILL")
            .arg(pid.to_string())
            .status()?;
        if !status.success() {
            bail!("cannot end process {pid}");
        }
        while !has_ended(pid) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Returns whether a process has released all of its resources: it is gone, or only its exit status is left. Its
/// command line is gone before its memory is free and its files are closed, and QEMU holds a lock on its PID file until
/// then.
fn has_ended(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| is_empty_shell(&stat))
}

/// Returns whether a process's `stat` (proc_pid_stat(5)) is that of a process without threads. The first thread may
/// have ended long before the others, which still hold the process's files and its memory.
fn is_empty_shell(stat: &str) -> bool {
    // The name, in parentheses, may contain anything.
    let Some((_, rest)) = stat.rsplit_once(") ") else {
        return false;
    };
    let threads = rest.split(' ').nth(17);
    rest.starts_with(['Z', 'X']) && matches!(threads, Some("0" | "1"))
}

/// Returns the option of a Linux kernel that goes without protection against speculation.
pub(super) fn mitigations_option(mitigations: bool) -> &'static str {
    if mitigations { "" } else { "mitigations=off" }
}

fn arguments(instance: &Instance, image: &HostImage, machine: &Machine) -> Vec<String> {
    let show = |path: &Path| path.display().to_string();
    let socket = |path: PathBuf| format!("path={},server=on,wait=off", path.display());
    let mut args: Vec<String> = Vec::new();
    let mut add = |name: &str, value: String| args.extend([format!("-{name}"), value]);
    let has_devices = !machine.devices.is_empty();
    add("machine", if has_devices { "q35" } else { "pc" }.into());
    if has_devices {
        add("device", pci::IOMMU.into());
    }
    add("accel", format!("tcg,thread={}", machine.threads));
    add("cpu", machine.cpu.clone());
    add("smp", machine.processors.to_string());
    add("m", machine.memory.to_string());
    add("display", "none".into());
    add("pidfile", show(&instance.pid_file()));
    add("kernel", show(&image.xen));
    add(
        "append",
        format!(
            "console=com1 com1=115200,8n1 dom0_mem={0}M,max:{0}M dom0_max_vcpus=1 dom0_vcpus_pin \
             loglvl=all guest_loglvl=all console_timestamps=boot {1} {2}",
            machine.dom0_memory,
            if machine.mitigations {
                ""
            } else {
                "spec-ctrl=no"
            },
            machine.xen_options
        ),
    );
    add(
        "initrd",
        format!(
            "{} console=hvc0 quiet {} {} {},{}",
            show(&image.kernel),
            mitigations_option(machine.mitigations),
            machine.xenstored.dom0_option(),
            machine.dom0_options,
            show(&image.initramfs)
        ),
    );
    add(
        "chardev",
        // The log of a machine whose power was cut goes on.
        format!("file,id=xen,path={},append=on", show(&instance.xen_log())),
    );
    add("serial", "chardev:xen".into());
    add(
        "chardev",
        format!("socket,id=command,{}", socket(instance.command_socket())),
    );
    add("serial", "chardev:command".into());
    add(
        "drive",
        format!(
            "file={},format=raw,if=none,id=root,snapshot=on",
            show(&image.disk)
        ),
    );
    add(
        "device",
        "virtio-blk-pci,drive=root,disable-legacy=on".into(),
    );
    add(
        "drive",
        // What QEMU has written survives QEMU: it is in the file, or in the memory of the lab's own machine.
        format!(
            "file={},format=raw,if=none,id=lasting,cache=writeback",
            show(&instance.lasting_disk())
        ),
    );
    add(
        "device",
        "virtio-blk-pci,drive=lasting,disable-legacy=on".into(),
    );
    for (tag, path, read_only) in [
        ("lab", instance.share(), "off"),
        ("guest", image.guest.clone(), "on"),
    ] {
        add(
            "fsdev",
            format!(
                "local,id={tag},path={},security_model=none,readonly={read_only}",
                show(&path)
            ),
        );
        add(
            "device",
            format!("virtio-9p-pci,fsdev={tag},mount_tag={tag},disable-legacy=on"),
        );
    }
    add(
        "chardev",
        format!("socket,id=shell,{}", socket(instance.shell_socket())),
    );
    add("device", "virtio-serial-pci,disable-legacy=on".into());
    add("device", "virtconsole,chardev=shell".into());
    add(
        "monitor",
        format!(
            "unix:{},server=on,wait=off",
            instance.monitor_socket().display()
        ),
    );
    for device in machine.devices {
        for (name, value) in device.arguments(&instance.dir) {
            add(name, value);
        }
    }
    if let Some(plugin) = &machine.plugin {
        let counts = show(&instance.instructions());
        add("plugin", format!("{},counts={counts}", show(plugin)));
    }
    args.extend(["-nodefaults", "-no-reboot"].map(str::to_owned));
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_ended_once_only_its_status_is_left() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!has_ended(child.id()), "it runs");
        child.kill().unwrap();
        // Nobody has asked for its status yet.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !has_ended(child.id()) {
            assert!(std::time::Instant::now() < deadline, "it does not end");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let id = child.id();
        child.wait().unwrap();
        assert!(has_ended(id), "it is gone");
    }

    #[test]
    fn a_process_whose_first_thread_has_ended_holds_its_files_until_the_last_has() {
        let stat = |state: char, threads: u32| {
            format!(
                "42 (qemu) x) {state} 1 42 42 0 -1 4194560 1 0 0 0 3 4 0 0 20 0 {threads} 0 99 0"
            )
        };
        assert!(is_empty_shell(&stat('Z', 1)));
        assert!(is_empty_shell(&stat('X', 0)));
        assert!(!is_empty_shell(&stat('Z', 3)));
        assert!(!is_empty_shell(&stat('S', 1)));
        assert!(!is_empty_shell("nothing"));
    }
}
