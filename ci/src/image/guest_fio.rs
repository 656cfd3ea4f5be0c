//! fio for guests, without most of the libraries that Debian links it with.
//!
//! The engines for Ceph, GlusterFS, RDMA, NBD and persistent memory have fio load 60 libraries of 85 MB at each start. That
//! costs a guest 250 MiB of memory, and an emulated processor seconds. Guests use none of these engines. So one library
//! takes the place of all those: it has the symbols that fio wants of them, and whoever calls one of these is killed.

use super::cpio::Cpio;
use super::root_tar::RootTar;
use crate::process;
use anyhow::{Context, Result};
use elf::ElfBytes;
use elf::abi::{DT_NEEDED, SHN_UNDEF, STB_WEAK};
use elf::endian::LittleEndian;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

pub(super) const PROGRAM: &str = "/usr/bin/fio";

/// The root's file that lists its libraries.
pub(super) const LIBRARIES: &str = "lab-fio-libraries";

/// The beginnings of the names of those that it uses, and of what loads them.
const USED: &[&str] = &[
    "libaio.so",
    "libc.so",
    "libm.so",
    "libnuma.so",
    "libz.so",
    "ld-linux",
];

/// Adds fio with the libraries that it uses and one in place of the others, which is made in `dir`.
pub(super) fn add(cpio: &mut Cpio, tar: &RootTar, dir: &Path) -> Result<()> {
    let (fio, mode) = tar.read(PROGRAM)?;
    let all = tar.libraries(LIBRARIES)?;
    cpio.file(PROGRAM, mode, &fio);
    let mut defined = BTreeSet::new();
    for path in all.iter().filter(|path| is_used(file_name(path))) {
        let (data, mode) = tar.read(path)?;
        defined.extend(Symbols::of(&data).with_context(|| path.clone())?.defined);
        cpio.file(path, mode, &data);
    }
    let symbols = Symbols::of(&fio).context("cannot read fio")?;
    let needed = |path: &&String| symbols.needed.iter().any(|name| name == file_name(path));
    let mut replaced = all
        .iter()
        .filter(needed)
        .filter(|path| !is_used(file_name(path)));
    let Some(first) = replaced.next() else {
        return Ok(());
    };
    cpio.file(first, 0o755, &symbols.build(&defined, dir)?);
    for path in replaced {
        cpio.symlink(path, first);
    }
    Ok(())
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn is_used(name: &str) -> bool {
    USED.iter().any(|start| name.starts_with(start))
}

/// The dynamic symbols of a program or a library.
#[derive(Default)]
struct Symbols {
    /// The libraries that it is linked with.
    needed: Vec<String>,
    /// What it has.
    defined: BTreeSet<String>,
    /// What it wants of others, by version. Those without a version have an empty one.
    wanted: BTreeMap<String, Vec<String>>,
}

impl Symbols {
    fn of(data: &[u8]) -> Result<Symbols> {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(data)?;
        let mut symbols = Symbols::default();
        let (table, names) = elf.dynamic_symbol_table()?.context("it has no symbols")?;
        let versions = elf.symbol_version_table()?;
        for (index, symbol) in table.iter().enumerate().skip(1) {
            let name = names.get(symbol.st_name as usize)?.to_owned();
            if symbol.st_shndx != SHN_UNDEF {
                symbols.defined.insert(name);
                continue;
            }
            if symbol.st_bind() == STB_WEAK {
                continue;
            }
            let version = match &versions {
                Some(versions) => versions.get_requirement(index)?,
                None => None,
            };
            let wanted = match version {
                Some(version) if is_used(version.file) => continue,
                Some(version) => version.name,
                None => "",
            };
            let wanted = symbols.wanted.entry(wanted.to_owned()).or_default();
            wanted.push(name);
        }
        for entry in elf.dynamic()?.context("it is linked with nothing")?.iter() {
            if entry.d_tag == DT_NEEDED {
                let name = names.get(entry.d_val() as usize)?;
                symbols.needed.push(name.to_owned());
            }
        }
        Ok(symbols)
    }

    /// Builds the library that has all that is wanted and not `defined`.
    fn build(&self, defined: &BTreeSet<String>, dir: &Path) -> Result<Vec<u8>> {
        let (source, versions) = self.write(defined);
        let path = |name: &str| dir.join(name);
        fs::write(path("unused.c"), source)?;
        fs::write(path("unused.map"), versions)?;
        let mut script = "-Wl,--version-script=".to_owned();
        script += &path("unused.map").to_string_lossy();
        let mut cc = Command::new("cc");
        cc.args([
            "-shared",
            "-fPIC",
            "-fno-builtin",
            "-nostdlib",
            &script,
            "-o",
        ])
        .args([path("unused.so"), path("unused.c")]);
        process::run_logged(&mut cc, &path("unused.log"))?;
        fs::read(path("unused.so")).context("cannot read what cc has made")
    }

    /// Returns its source, and the version that each symbol has.
    fn write(&self, defined: &BTreeSet<String>) -> (String, String) {
        let (mut source, mut versions) = (String::new(), String::new());
        for (version, names) in &self.wanted {
            let has_version = !version.is_empty();
            let names = names
                .iter()
                .filter(|&name| has_version || !defined.contains(name));
            let mut list = String::new();
            for name in names {
                let _ = writeln!(source, "void {name}(void) {{ __builtin_trap(); }}");
                let _ = write!(list, " {name};");
            }
            if has_version {
                let _ = writeln!(versions, "{version} {{{list} }};");
            }
        }
        (source, versions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_symbol_has_the_version_that_is_wanted() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let symbols = Symbols {
            wanted: [
                (String::new(), names(&["rbd_open", "inflate"])),
                ("GFAPI_6.0".to_owned(), names(&["glfs_fsync"])),
            ]
            .into(),
            ..Symbols::default()
        };
        let (source, versions) = symbols.write(&["inflate".to_owned()].into());
        assert_eq!(
            source,
            "void rbd_open(void) { __builtin_trap(); }\nvoid glfs_fsync(void) { __builtin_trap(); }\n"
        );
        assert_eq!(versions, "GFAPI_6.0 { glfs_fsync; };\n");
    }

    #[test]
    fn a_program_wants_what_it_is_linked_with() {
        let program = std::env::current_exe().expect("a program");
        let symbols = Symbols::of(&fs::read(program).expect("its data")).expect("symbols");
        assert!(
            symbols
                .needed
                .iter()
                .any(|name| name.starts_with("libc.so"))
        );
        // All that it wants is the C library's, which is used.
        let versions: Vec<_> = symbols.wanted.keys().collect();
        assert!(
            versions
                .iter()
                .all(|version| version.is_empty() || version.starts_with("GCC")),
            "{versions:?}"
        );
    }
}
