//! A Debian root as a tar archive on disk, read file by file in place.

use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

enum Node {
    File { offset: u64, size: u64, mode: u32 },
    Link(String),
    Dir,
}

/// An index of the archive's members; paths have no leading `./` or `/`.
pub struct RootTar {
    file: File,
    nodes: BTreeMap<String, Node>,
}

impl RootTar {
    /// Reads the headers of all members.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut nodes = BTreeMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let name = clean(&entry.path()?.to_string_lossy());
            let kind = entry.header().entry_type();
            let link = entry
                .link_name()?
                .map(|link| link.to_string_lossy().into_owned());
            let node = match link {
                Some(target) if kind.is_symlink() => Node::Link(target),
                // A hard link names another member from the root.
                Some(target) if kind.is_hard_link() => Node::Link(format!("/{}", clean(&target))),
                _ if kind.is_dir() => Node::Dir,
                _ if kind.is_file() => Node::File {
                    offset: entry.raw_file_position(),
                    size: entry.size(),
                    mode: entry.header().mode()?,
                },
                _ => continue,
            };
            nodes.insert(name, node);
        }
        Ok(Self { file, nodes })
    }

    /// Returns a file's contents and mode; symbolic links are followed as if the archive were the root.
    pub fn read(&self, path: &str) -> Result<(Vec<u8>, u32)> {
        let real = self.resolve(path)?;
        match self.nodes.get(&real) {
            Some(&Node::File { offset, size, mode }) => {
                let mut data = vec![0; size as usize];
                self.file.read_exact_at(&mut data, offset)?;
                Ok((data, mode))
            }
            _ => bail!("{path} is not a file in the root archive"),
        }
    }

    /// Returns whether a path names a file.
    pub fn has_file(&self, path: &str) -> bool {
        self.resolve(path)
            .is_ok_and(|real| matches!(self.nodes.get(&real), Some(Node::File { .. })))
    }

    /// Returns the names directly inside a directory.
    pub fn list(&self, dir: &str) -> Result<Vec<String>> {
        let prefix = format!("{}/", self.resolve(dir)?);
        Ok(self
            .nodes
            .keys()
            .filter_map(|name| name.strip_prefix(&prefix))
            .filter(|rest| !rest.is_empty() && !rest.contains('/'))
            .map(str::to_owned)
            .collect())
    }

    /// Returns the paths in a file with the output of `ldd`.
    pub fn libraries(&self, list: &str) -> Result<BTreeSet<String>> {
        let (listing, _) = self.read(list)?;
        Ok(paths(&String::from_utf8_lossy(&listing)))
    }

    fn resolve(&self, path: &str) -> Result<String> {
        let mut todo: Vec<String> = clean(path).split('/').rev().map(str::to_owned).collect();
        let mut done: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(part),
            }
            match self.nodes.get(&done.join("/")) {
                Some(Node::Link(target)) => {
                    links += 1;
                    if links > 40 {
                        bail!("{path}: too many symbolic links");
                    }
                    done.pop();
                    if target.starts_with('/') {
                        done.clear();
                    }
                    todo.extend(target.split('/').rev().map(str::to_owned));
                }
                Some(_) => {}
                None => bail!("{path} is not in the root archive"),
            }
        }
        Ok(done.join("/"))
    }
}

fn clean(path: &str) -> String {
    path.trim_start_matches("./").trim_matches('/').to_owned()
}

/// The paths in the output of `ldd`.
fn paths(listing: &str) -> BTreeSet<String> {
    listing
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .find(|word| word.starts_with('/') && !word.ends_with(':'))
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_output_gives_paths_only() {
        let text = "/usr/bin/fio:\n\tlinux-vdso.so.1 (0x7ffd)\n\
                    \tlibaio.so.1 => /lib/x86_64-linux-gnu/libaio.so.1 (0x7f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let found: Vec<_> = paths(text).into_iter().collect();
        assert_eq!(
            found,
            [
                "/lib/x86_64-linux-gnu/libaio.so.1",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
    }
}
