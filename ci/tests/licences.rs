//! The licences of all dependencies are among those that `deny.toml` allows.

use bulkhead_ci::{process, workspace};
use serde_json::Value;
use spdx::{Expression, ParseMode};
use std::fs;
use std::process::Command;

/// Returns the quoted words of a text.
fn quoted(text: &str) -> Vec<&str> {
    text.split('"').skip(1).step_by(2).collect()
}

/// Returns the licences that `deny.toml` allows for all crates, and for that crate alone.
fn allowed<'t>(deny: &'t str, name: &str) -> Vec<&'t str> {
    let (_, list) = deny.split_once("\nallow = [").expect("a list");
    let mut allowed = quoted(list.split_once(']').expect("it ends").0);
    let own = format!("crate = \"{name}\"");
    for line in deny.lines().filter(|line| line.contains(&own)) {
        let (licences, _) = line.split_once("crate =").expect("it names a crate");
        allowed.extend(quoted(licences));
    }
    allowed
}

/// Returns whether those licences satisfy an expression such as `(MIT OR Apache-2.0) AND NCSA`.
fn satisfied(expression: &str, allowed: &[&str]) -> bool {
    let expression = Expression::parse_mode(expression, ParseMode::LAX);
    expression.is_ok_and(|expression| {
        expression.evaluate(|licence| {
            let id = licence.license.id();
            id.is_some_and(|id| allowed.contains(&id.name) && licence.addition.is_none())
        })
    })
}

#[test]
fn every_dependency_has_a_licence_that_is_allowed() {
    let deny = fs::read_to_string(workspace::root().join("deny.toml")).expect("deny.toml");
    let output = Command::new(process::cargo())
        .args(["metadata", "--format-version=1", "--all-features"])
        .args(["--filter-platform=x86_64-unknown-linux-gnu", "--locked"])
        .current_dir(workspace::root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{output:?}");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let mut faults = Vec::new();
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let licence = package["license"].as_str().unwrap_or("none");
        if !satisfied(licence, &allowed(&deny, name)) {
            faults.push(format!("{name}: {licence}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(packages.len() > 20, "{} packages", packages.len());
}

#[test]
fn a_licence_that_is_not_allowed_is_found_out() {
    let deny = "exceptions = [{ allow = [\"NCSA\"], crate = \"one\" }]\nallow = [\n \"MIT\",\n]\n";
    assert_eq!(allowed(deny, "other"), ["MIT"]);
    assert_eq!(allowed(deny, "one"), ["MIT", "NCSA"]);
    for (expression, right) in [
        ("MIT", true),
        ("MIT/Apache-2.0", true),
        ("GPL-2.0-only OR MIT", true),
        ("MIT AND NCSA", false),
        ("GPL-2.0-only", false),
        ("none", false),
    ] {
        assert_eq!(satisfied(expression, &["MIT"]), right, "{expression}");
    }
}
