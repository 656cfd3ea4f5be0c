//! No module of these crates needs another one that needs it in turn, directly or by way of others: each can be read
//! with the modules below it, and without those above.
//!
//! A module needs another if it names it in a path (`crate::…`, `super::…`, a child of its own) outside of its
//! tests, or if that one has an `impl` of a type that is defined here: those methods are called without a path.
//! A child that only its parent needs is a part of the parent, which is read with it: what it needs counts as
//! the parent's need.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The crates without circles.
const CRATES: &[&str] = &["kernel", "blkback"];

/// A module's path below the root of its crate, which is empty.
type Module = Vec<String>;
type Needs = BTreeMap<Module, BTreeSet<Module>>;

#[test]
fn no_modules_need_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for name in CRATES {
        let mut sources = BTreeMap::new();
        read(&root.join(name).join("src"), &Vec::new(), &mut sources);
        assert!(sources.len() > 2, "{name} has modules");
        let circles = circles(&with_parts(needs(&sources)));
        assert!(
            circles.is_empty(),
            "{name} has circles:\n{}",
            circles.join("\n")
        );
    }
}

#[test]
fn circles_are_found() {
    let sources = [
        ("", "mod a; mod b; mod c; pub use a::{self, A};"),
        ("a", "use crate::{b::{x as y, Z}, other}; pub struct A;"),
        ("b", "fn f() { super::c::g() }"),
        ("c", "use super::a::A; impl<T> A { fn h() {} }"),
        (
            "d",
            "use crate::a; // use crate::e;\n#[cfg(test)]\nmod tests { use crate::e; }",
        ),
        ("e", "use crate::d::*; impl Clone for A {}"),
        ("e::f", "use super::super::d::{self};"),
        ("g", "use crate::b::Z; fn f(_: impl Fn() -> Z) -> Z {}"),
        (
            "h",
            "use crate::g::Y; #[x]\nunsafe impl Y { fn f() -> impl Z {} }",
        ),
    ];
    let sources = sources.map(|(path, text)| (module(path), text.to_owned()));
    let needs = needs(&BTreeMap::from(sources));
    let of = |path: &str| needs[&module(path)].clone();
    assert_eq!(of(""), [module("a")].into());
    assert_eq!(of("a"), [module(""), module("b"), module("c")].into());
    assert_eq!(of("b"), [module("c")].into());
    assert_eq!(of("c"), [module("a")].into());
    assert_eq!(of("d"), [module("a")].into());
    assert_eq!(of("e"), [module("d")].into());
    assert_eq!(of("e::f"), [module("d")].into());
    assert_eq!(of("g"), [module("b"), module("h")].into());
    assert_eq!(of("h"), [module("g")].into());
    let circle = [
        " needs a",
        "a needs ",
        "a needs b",
        "a needs c",
        "b needs c",
        "c needs a",
        "g needs h",
        "h needs g",
    ];
    assert_eq!(circles(&needs), circle);
}

#[test]
fn a_part_of_a_module_may_need_it_and_counts_as_it() {
    let sources = [
        ("", "mod a; mod c; mod d; use a::b; pub struct Root;"),
        ("a", "mod part; use part::P; pub struct A;"),
        ("a::part", "use super::A; use crate::c::C; impl A {}"),
        ("c", "mod part; use part::P; pub struct C;"),
        ("c::part", "mod more; use super::C;"),
        ("c::part::more", "use crate::d::D; impl super::P {}"),
        ("d", "mod shown; use shown::S; use crate::c::C;"),
        ("d::shown", "use super::D;"),
        ("e", "use crate::d::shown::S;"),
        ("f", "use crate::Root;"),
    ];
    let sources = sources.map(|(path, text)| (module(path), text.to_owned()));
    let needs = with_parts(needs(&BTreeMap::from(sources)));
    assert!(!needs.contains_key(&module("a::part")));
    assert!(needs.contains_key(&module("f")));
    let circle = [
        "c needs d",
        "d needs c",
        "d needs d::shown",
        "d::shown needs d",
    ];
    assert_eq!(circles(&needs), circle);
}

fn module(path: &str) -> Module {
    path.split("::")
        .filter(|name| !name.is_empty())
        .map(String::from)
        .collect()
}

/// Reads the modules in a folder. `main.rs` is a crate of its own, and tests may need any module.
fn read(folder: &Path, above: &Module, sources: &mut BTreeMap<Module, String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let below = || above.iter().cloned().chain([name.to_string()]).collect();
        match &*name {
            "tests" | "main" => {}
            _ if path.is_dir() => read(&path, &below(), sources),
            _ => {
                let module = if name == "lib" || name == "mod" {
                    above.clone()
                } else {
                    below()
                };
                sources.insert(module, fs::read_to_string(&path).expect("a file"));
            }
        }
    }
}

fn needs(sources: &BTreeMap<Module, String>) -> Needs {
    let mut needs: Needs = sources
        .keys()
        .map(|module| (module.clone(), BTreeSet::new()))
        .collect();
    for (module, text) in sources {
        let tokens = tokens(text);
        let scope = Scope { module, sources };
        let mut imported = BTreeMap::new();
        let mut at = 0;
        while at < tokens.len() {
            let mut paths = Vec::new();
            if tokens[at] == "impl" && begins_item(&tokens[..at]) {
                if let Some(owner) = scope.inherent(&tokens[at + 1..], &imported) {
                    needs
                        .get_mut(&owner)
                        .expect("a module")
                        .insert(module.clone());
                }
                at += 1;
            } else {
                at = tree(&tokens, at, &[], &mut paths).max(at + 1);
            }
            for path in paths {
                if let Some(found) = scope.resolve(&path) {
                    imported.insert(path.last().copied().unwrap_or_default(), found.clone());
                    needs.get_mut(module).expect("a module").insert(found);
                }
            }
        }
    }
    for (module, needed) in &mut needs {
        needed.remove(module);
    }
    needs
}

struct Scope<'a> {
    module: &'a Module,
    sources: &'a BTreeMap<Module, String>,
}

impl Scope<'_> {
    /// Returns the module into which a path of this crate leads.
    fn resolve(&self, path: &[&str]) -> Option<Module> {
        let mut found = match path {
            ["crate", _, ..] => Vec::new(),
            ["self" | "super", _, ..] => self.module.clone(),
            [first, _, ..] => {
                let child = [&self.module[..], &[(*first).to_owned()]].concat();
                return self
                    .sources
                    .contains_key(&child)
                    .then(|| self.descend(child, &path[1..]));
            }
            _ => return None,
        };
        let ups = path.iter().take_while(|part| **part == "super").count();
        found.truncate(found.len().saturating_sub(ups));
        let rest = if ups > 0 { ups } else { 1 };
        Some(self.descend(found, &path[rest..]))
    }

    fn descend(&self, mut module: Module, path: &[&str]) -> Module {
        for part in path {
            module.push((*part).to_owned());
            if !self.sources.contains_key(&module) {
                module.pop();
                break;
            }
        }
        module
    }

    /// Returns the module of the type of an `impl` without a trait, if it is not this one.
    fn inherent(&self, tokens: &[&str], imported: &BTreeMap<&str, Module>) -> Option<Module> {
        let head: Vec<&str> = tokens
            .iter()
            .copied()
            .take_while(|token| *token != "{")
            .collect();
        if head.contains(&"for") {
            return None;
        }
        // The type's name comes before its own parameters, and after those of the `impl`.
        let mut depth = 0;
        let names = head
            .iter()
            .take_while(|token| **token != "where")
            .filter(|token| {
                depth += i32::from(**token == "<") - i32::from(**token == ">");
                depth == 0 && is_name(token)
            });
        let path: Vec<&str> = names.copied().collect();
        let owner = self
            .resolve(&path)
            .or_else(|| imported.get(path.last()?).cloned());
        owner.filter(|owner| owner != self.module)
    }
}

/// Returns whether an `impl` after these tokens is one of a type, and not a parameter's or a result's type.
fn begins_item(before: &[&str]) -> bool {
    let last = before.last();
    last.is_none_or(|last| ["}", "{", ";", "]", "unsafe"].contains(last))
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Returns the tokens of a module without its tests and comments.
fn tokens(text: &str) -> Vec<&str> {
    let text = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let mut tokens = Vec::new();
    for line in text.lines() {
        let mut rest = line.split("//").next().unwrap_or_default().trim_start();
        while let Some(first) = rest.chars().next() {
            let is_part = |c: char| c.is_alphanumeric() || c == '_';
            let length = match first {
                _ if is_part(first) => rest.find(|c| !is_part(c)).unwrap_or(rest.len()),
                ':' if rest.starts_with("::") => 2,
                '-' if rest.starts_with("->") => 2,
                _ => first.len_utf8(),
            };
            let (token, after) = rest.split_at(length);
            tokens.push(token);
            rest = after.trim_start();
        }
    }
    tokens
}

/// Takes a path, or a tree of paths, off the tokens, and returns where it ends.
fn tree<'a>(
    tokens: &[&'a str],
    at: usize,
    above: &[&'a str],
    paths: &mut Vec<Vec<&'a str>>,
) -> usize {
    let get = |at: usize| tokens.get(at).copied().unwrap_or_default();
    let mut path = above.to_vec();
    let mut at = at;
    loop {
        if get(at) == "{" && !path.is_empty() {
            at += 1;
            while !["}", ""].contains(&get(at)) {
                at = tree(tokens, at, &path, paths).max(at + 1);
            }
            return at + 1;
        }
        if !is_name(get(at)) {
            break;
        }
        path.push(get(at));
        at += 1;
        if get(at) != "::" {
            break;
        }
        at += 1;
    }
    if get(at) == "as" && !above.is_empty() {
        at += 2;
    }
    if path.len() > above.len() {
        paths.push(path);
    }
    at
}

/// Counts the parts of modules as these modules.
fn with_parts(mut needs: Needs) -> Needs {
    let mut below: Vec<Module> = needs
        .keys()
        .filter(|path| path.len() > 1)
        .cloned()
        .collect();
    below.sort_by_key(|path| Reverse(path.len()));
    for part in below {
        let parent = &part[..part.len() - 1];
        let mut users = needs
            .iter()
            .filter(|(_, needed)| needed.contains(&part))
            .map(|(user, _)| user);
        if users.next().is_some_and(|user| user == parent) && users.next().is_none() {
            let needed = needs.remove(&part).expect("a module");
            let parents = needs.get_mut(parent).expect("a module");
            parents.extend(needed);
            parents.remove(&part);
            parents.remove(parent);
        }
    }
    needs
}

/// Returns the needs of modules for others that need them in turn.
fn circles(needs: &Needs) -> Vec<String> {
    let mut circles = Vec::new();
    for (from, needed) in needs {
        let needed = needed.iter().filter(|to| reached(needs, to).contains(from));
        circles.extend(needed.map(|to| format!("{} needs {}", from.join("::"), to.join("::"))));
    }
    circles
}

/// Returns the modules that one needs, directly or by way of others.
fn reached<'a>(needs: &'a Needs, from: &Module) -> BTreeSet<&'a Module> {
    let mut all = BTreeSet::new();
    let mut next = vec![from];
    while let Some(module) = next.pop() {
        let new = needs[module].iter().filter(|needed| all.insert(*needed));
        next.extend(new.collect::<Vec<_>>());
    }
    all
}
