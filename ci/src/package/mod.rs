//! The Debian package: the unikernel without TLS and with it, the manual page, documents and example configurations.
//!
//! The same commit and the same ELF make the same package, bit by bit: nothing in it is newer than the commit.

mod copyright;

use crate::process::{run_logged, tail};
use crate::workspace;
use anyhow::{Context, Result, bail, ensure};
use flate2::{Compression, write::GzEncoder};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the example configurations, once the package is installed.
pub const EXAMPLES: &str = "/usr/share/doc/bulkhead/examples";

/// The version of the package, which is the workspace's.
const VERSION: &str = env!("CARGO_PKG_VERSION");

const MANUAL: &str = "docs/bulkhead.7";

/// Documents that are installed as they are.
const DOCUMENTS: &[&str] = &["README.md", "FEATURES.md", "SECURITY.md"];

/// Makes `bulkhead_VERSION_amd64.deb` of these ELFs, without TLS and with it, in `dir`, and returns its path.
pub fn build(elf: &Path, tls_elf: &Path, dir: &Path) -> Result<PathBuf> {
    let tree = dir.join("package-tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    let root = workspace::root();
    let read = |name: &str| {
        let path = root.join(name);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let add = |path: &str, contents: &[u8]| {
        let path = tree.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().context("a file needs a folder")?)?;
        fs::write(&path, contents)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).context("cannot set a mode")
    };
    let mut size = 0;
    for (name, elf) in [("bulkhead", elf), ("bulkhead-tls", tls_elf)] {
        let elf = fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
        add(&format!("usr/lib/bulkhead/{name}"), &elf)?;
        size += elf.len();
    }
    add("usr/share/man/man7/bulkhead.7.gz", &gzip(&read(MANUAL)?)?)?;
    for name in DOCUMENTS {
        add(&format!("usr/share/doc/bulkhead/{name}"), &read(name)?)?;
    }
    // Where Debian has it.
    add(
        "usr/share/doc/bulkhead/changelog.gz",
        &gzip(&read("CHANGELOG.md")?)?,
    )?;
    add(
        "usr/share/doc/bulkhead/copyright",
        copyright::text()?.as_bytes(),
    )?;
    for entry in fs::read_dir(root.join("docs/examples"))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        add(&format!("{EXAMPLES}/{name}"), &fs::read(&path)?)?;
    }
    add("DEBIAN/control", control(size).as_bytes())?;
    folders_for_all(&tree)?;

    let package = dir.join(format!("bulkhead_{VERSION}_amd64.deb"));
    run_logged(
        Command::new("dpkg-deb")
            .env("SOURCE_DATE_EPOCH", source_date()?)
            .args(["--root-owner-group", "-Zxz", "--build"])
            .args([&tree, &package]),
        &dir.join("dpkg-deb.log"),
    )?;
    fs::remove_dir_all(&tree)?;
    Ok(package)
}

/// Has mandoc check the manual page for mistakes.
pub fn check_manual() -> Result<()> {
    let output = Command::new("mandoc")
        .args(["-Tlint", "-Wwarning", MANUAL])
        .current_dir(workspace::root())
        .output()
        .context("cannot start mandoc")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{MANUAL}:\n{}", tail(&said, 20));
    Ok(())
}

/// Returns the time at which the commit was made, in seconds: nothing in the package is newer.
fn source_date() -> Result<String> {
    if let Ok(date) = std::env::var("SOURCE_DATE_EPOCH") {
        return Ok(date);
    }
    let output = Command::new("git")
        .args(["log", "-1", "--format=%ct"])
        .current_dir(workspace::root())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        _ => bail!("git does not give the date of the commit: set SOURCE_DATE_EPOCH"),
    }
}

fn gzip(data: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(data)?;
    encoder.finish().context("cannot compress")
}

/// Makes folders readable for all users, whatever the umask was.
fn folders_for_all(folder: &Path) -> Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            folders_for_all(&path)?;
        }
    }
    Ok(())
}

fn control(size: usize) -> String {
    let size = size.div_ceil(1024);
    format!(
        "Package: bulkhead\n\
         Version: {VERSION}\n\
         Architecture: amd64\n\
         Maintainer: The Bulkhead authors\n\
         Installed-Size: {size}\n\
         Recommends: xen-utils-common\n\
         Section: admin\n\
         Priority: optional\n\
         Description: storage driver domain for Xen\n \
         A unikernel that xl boots as a driver domain, PVH or PV. Guests name it as the\n \
         backend of their disks, and it serves them from disk images.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("bulkhead-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn the_same_elf_makes_the_same_package() {
        let dir = folder("package");
        let elf = dir.join("elf");
        let packages = [1, 2].map(|second| {
            // Only what is in the ELF counts, not when it was written.
            fs::write(&elf, b"not really an ELF").unwrap();
            let package = build(&elf, &elf, &dir).unwrap();
            let bytes = fs::read(&package).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(1100 * (2 - second)));
            bytes
        });
        assert!(packages[0] == packages[1], "the packages differ");
        let other = dir.join("other");
        fs::write(&other, b"another one").unwrap();
        for elfs in [[&elf, &other], [&other, &elf]] {
            let changed = fs::read(build(elfs[0], elfs[1], &dir).unwrap()).unwrap();
            assert!(packages[0] != changed, "an ELF is not in it");
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_is_installed_where() {
        let dir = folder("contents");
        let elf = dir.join("elf");
        fs::write(&elf, b"not really an ELF").unwrap();
        let tls_elf = dir.join("tls-elf");
        fs::write(&tls_elf, b"not an ELF either").unwrap();
        let package = build(&elf, &tls_elf, &dir).unwrap();
        let listing = Command::new("dpkg-deb")
            .arg("--contents")
            .arg(&package)
            .output()
            .unwrap();
        let listing = String::from_utf8(listing.stdout).unwrap();
        for path in [
            "-rw-r--r-- root/root 17 ./usr/lib/bulkhead/bulkhead",
            "-rw-r--r-- root/root 17 ./usr/lib/bulkhead/bulkhead-tls",
            "./usr/share/man/man7/bulkhead.7.gz",
            "./usr/share/doc/bulkhead/README.md",
            "./usr/share/doc/bulkhead/copyright",
            "./usr/share/doc/bulkhead/examples/storage.cfg",
            "./usr/share/doc/bulkhead/examples/storage-tls.cfg",
        ] {
            let words = |line: &str| {
                line.split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            let wanted = words(path);
            let found = listing.lines().any(|line| {
                let line = words(line);
                wanted.iter().all(|word| line.contains(word))
            });
            assert!(found, "{path} is not in:\n{listing}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
