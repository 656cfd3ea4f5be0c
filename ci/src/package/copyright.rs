//! The package's `copyright` file: Bulkhead's own licence, and those of the crates with which the ELF is linked.

use crate::process;
use crate::workspace;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The files in which a crate's licence may be. Bulkhead takes MIT where there is a choice.
const FILES: &[&str] = &[
    "LICENSE-MIT",
    "LICENSE.md",
    "LICENSE.txt",
    "LICENSE-0BSD.txt",
    "LICENSE",
    "COPYING",
    // As the REUSE specification has it.
    "LICENSES/MIT.txt",
];

/// Returns the whole file.
pub fn text() -> Result<String> {
    let own = fs::read_to_string(workspace::root().join("LICENSE-MIT"))?;
    let mut text = format!(
        "Bulkhead is licensed under the MIT license or the Apache License, Version 2.0\n\
         (/usr/share/common-licenses/Apache-2.0), as you like.\n\n{own}\n\
         The ELF is linked with Rust's core and alloc libraries (MIT or Apache-2.0, the\n\
         contributors of the Rust project), and with these crates:\n"
    );
    let metadata = cargo(&["metadata", "--format-version=1", "--all-features"])?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    for linked in linked()? {
        let is_linked = |package: &&Value| {
            let word = |key| package[key].as_str().unwrap_or_default();
            linked == format!("{} v{}", word("name"), word("version"))
        };
        let package = packages.iter().find(is_linked);
        let package = package.with_context(|| format!("no metadata of {linked}"))?;
        let licence = package["license"].as_str().context("a licence")?;
        let _ = write!(text, "\n== {linked}: {licence}\n\n");
        let manifest = package["manifest_path"].as_str().context("a path")?;
        let folder = Path::new(manifest).parent().context("a folder")?;
        let read = |file| fs::read_to_string(folder.join(file)).ok();
        let words = FILES.iter().find_map(read);
        let words = words.with_context(|| format!("{linked} comes without its licence"))?;
        let _ = writeln!(text, "{}", words.trim_end());
    }
    Ok(text)
}

/// Returns the crates of other projects that are linked into the ELF, as `NAME vVERSION`.
fn linked() -> Result<BTreeSet<String>> {
    let tree = cargo(&[
        "tree",
        "--package=bulkhead-blkback",
        "--features=unikernel,tls",
        "--target=x86_64-unknown-linux-gnu",
        "--edges=normal,no-proc-macro",
        "--prefix=none",
        "--no-dedupe",
    ])?;
    // A crate of the workspace has its folder behind its name.
    let others = tree.lines().filter(|line| !line.contains('('));
    Ok(others.map(|line| line.trim().to_owned()).collect())
}

fn cargo(args: &[&str]) -> Result<String> {
    let output = Command::new(process::cargo())
        .args(args)
        .arg("--locked")
        .current_dir(workspace::root())
        .output()
        .context("cannot start cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo {}:\n{said}", args[0]);
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_crate_that_is_linked_has_its_licence() {
        let text = super::text().unwrap();
        let linked = super::linked().unwrap();
        assert!(linked.len() > 5, "{linked:?}");
        assert_eq!(text.matches("\n== ").count(), linked.len());
        assert!(text.contains("== talc v") && !text.contains("== bulkhead"));
    }
}
