//! The documents name only what exists: every relative link leads to a file, and every test and scenario that a link
//! names is in it.

use bulkhead_ci::scenarios;
use std::fs;
use std::path::{Path, PathBuf};

/// A link in a document: `[text](target)`.
#[derive(Debug)]
struct Link {
    text: String,
    target: String,
}

fn root() -> PathBuf {
    let ci = Path::new(env!("CARGO_MANIFEST_DIR"));
    ci.parent().expect("it is in a workspace").to_path_buf()
}

/// Returns the links of a document, without those in blocks of code.
fn links(document: &str) -> Vec<Link> {
    let mut links = Vec::new();
    for (number, part) in document.split("\n```").enumerate() {
        if number % 2 == 0 {
            for (before, after) in part.match_indices("](").map(|(at, _)| part.split_at(at)) {
                let text = before.rsplit_once('[').map_or("", |(_, text)| text);
                let target = after[2..].split_once(')').map_or("", |(target, _)| target);
                links.push(Link {
                    text: text.into(),
                    target: target.into(),
                });
            }
        }
    }
    links
}

/// Returns the Markdown files of the workspace.
fn documents() -> Vec<PathBuf> {
    let mut documents = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(".md") {
                documents.push(path);
            }
        }
    }
    documents
}

/// Returns the fault of a link in a document of that folder, if it has one.
fn fault(folder: &Path, document: &str, link: &Link) -> Option<String> {
    let Link { text, target } = link;
    if target.contains("://") {
        return None;
    }
    let (file, place) = target.split_once('#').unwrap_or((target, ""));
    if file.is_empty() {
        let is_heading = |line: &str| line.starts_with('#') && anchor(line) == place;
        let found = document.lines().any(is_heading);
        return (!found).then(|| format!("no heading #{place}"));
    }
    let Ok(content) = fs::read_to_string(folder.join(file)) else {
        let is_folder = folder.join(file).is_dir();
        return (!is_folder).then(|| format!("no file {file}"));
    };
    let named = text.trim_matches('`');
    if file.ends_with(".md") && !place.is_empty() {
        return fault(
            folder,
            &content,
            &Link {
                text: text.clone(),
                target: format!("#{place}"),
            },
        );
    }
    if let Some(scenario) = text.strip_prefix("lab: ") {
        let name = scenario.trim_matches('`');
        let known = scenarios::names().contains(&name);
        let here = content.contains(&format!("\"{name}\""));
        return (!known || !here).then(|| format!("no scenario {name} in {file}"));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if file.ends_with(".rs") && text.starts_with('`') && named.chars().all(is_name) {
        let test = format!("fn {named}(");
        return (!content.contains(&test)).then(|| format!("no test {named} in {file}"));
    }
    None
}

/// Returns the name of a heading in links, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn every_link_leads_to_what_it_names() {
    let (mut checked, mut faults) = (0, Vec::new());
    for path in documents() {
        let document = fs::read_to_string(&path).expect("a document");
        let folder = path.parent().expect("it is in a folder");
        for link in links(&document) {
            checked += 1;
            if let Some(fault) = fault(folder, &document, &link) {
                faults.push(format!("{}: [{}]: {fault}", path.display(), link.text));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(checked > 100, "{checked} links");
}

#[test]
fn the_readme_has_a_row_for_every_crate() {
    let read = |name| fs::read_to_string(root().join(name)).expect("a file");
    let (manifest, readme) = (read("Cargo.toml"), read("README.md"));
    let (_, members) = manifest.split_once("members = [").expect("a workspace");
    let (members, _) = members.split_once(']').expect("the list ends");
    let folders: Vec<&str> = members.split('"').skip(1).step_by(2).collect();
    assert!(
        folders.contains(&"blkback") && folders.len() > 8,
        "{folders:?}"
    );
    let missing = |folder: &&&str| !readme.contains(&format!("\n| [`{folder}/`]("));
    let missing: Vec<&&str> = folders.iter().filter(missing).collect();
    assert!(missing.is_empty(), "README.md has no row for {missing:?}");
}

/// Returns the settings of a configuration, without comments.
fn settings(config: &str) -> Vec<String> {
    let code = |line: &str| line.split('#').next().unwrap_or_default().trim().to_owned();
    let lines = config.lines().map(code);
    lines.filter(|line| !line.is_empty()).collect()
}

/// The README shows the configurations that the package installs, which the scenario `package` boots.
#[test]
fn the_readmes_configurations_are_the_examples() {
    let readme = fs::read_to_string(root().join("README.md")).expect("a file");
    let blocks = readme.split("```python\n# /etc/xen/").skip(1);
    let mut compared = Vec::new();
    for block in blocks {
        let (name, rest) = block.split_once('\n').expect("a name");
        let (config, _) = rest.split_once("```").expect("the block ends");
        let example = root().join("docs/examples").join(name);
        let example = fs::read_to_string(example).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(settings(config), settings(&example), "{name}");
        compared.push(name);
    }
    assert_eq!(compared, ["storage.cfg", "guest.cfg", "storage-ram.cfg"]);
}

#[test]
fn a_link_to_nothing_is_found_out() {
    let document = "# Some Thing's end\n\n```sh\n[x](y)\n```\n";
    let wrong = |text: &str, target: &str| {
        let (text, target) = (text.into(), target.into());
        fault(&root(), document, &Link { text, target })
    };
    assert_eq!(wrong("this", "ci/tests/documents.rs"), None);
    assert_eq!(wrong("`anchor`", "ci/tests/documents.rs"), None);
    assert_eq!(wrong("images", "images/"), None);
    assert_eq!(wrong("end", "#some-things-end"), None);
    assert_eq!(wrong("lab: `detach`", "ci/src/scenarios/leaving.rs"), None);
    for (text, target) in [
        ("this", "ci/tests/nothing.rs"),
        ("`no_such_test`", "ci/tests/documents.rs"),
        ("beginning", "#some-things-beginning"),
        ("lab: `no-such`", "ci/src/scenarios/leaving.rs"),
        ("lab: `detach`", "ci/src/scenarios/boot.rs"),
    ] {
        assert!(wrong(text, target).is_some(), "[{text}]({target})");
    }
    assert_eq!(links(document).len(), 0, "code has no links");
    assert_eq!(links("[a](b), [`c`](d)").len(), 2);
}
