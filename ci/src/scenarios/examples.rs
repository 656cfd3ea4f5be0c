//! The examples in `examples/`: two domains that grant each other pages, hand batches of them over, and flip
//! frames. What they count is in the table at the end.

use crate::commands::build;
use crate::config::{Config, Kind};
use crate::host::domain::Domain;
use crate::host::xenstored::Xenstored;
use crate::testbed::{Part, Scenario, Testbed};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "grant-echo",
        about: "two domains: a ring and a port go over by xenstore, each request is answered with its status plus one",
        part: Part::Suite,
        run: echo,
    },
    Scenario {
        name: "grant-batch",
        about: "1, 512 and 10,000 granted pages go over by one reference, or by a xenstore node each, and are mapped by one hypercall",
        part: Part::Suite,
        run: batch,
    },
    Scenario {
        name: "grant-flip",
        about: "frames change their owner and come back; PVH domains are refused, and keep their pages",
        part: Part::Suite,
        run: flip,
    },
];

/// The nodes that a domain may own by xenstored's default, and as many as a node for each page of the largest batch takes.
const NODES: u32 = 1000;
const MORE_NODES: u32 = 12_000;

/// The time within which an example has to end. Ten thousand nodes have taken three minutes on a slow machine.
const LONGEST: Duration = Duration::from_secs(480);

/// The two domains of an example, with what they printed until they ended.
struct Ended {
    granter: String,
    mapper: String,
}

/// Runs an example with a granter and a mapper of these kinds, to its end.
fn run(testbed: &Testbed, example: &str, kinds: [Kind; 2], memory: u32) -> Result<Ended> {
    let host = testbed.host;
    let [granter, mapper] = kinds;
    testbed.step(format!("{example}: {granter} grants, {mapper} maps"));
    let (here, there) = testbed.shared_file(example);
    fs::copy(build::build_example(example)?, here)?;
    let create = |name, kind, role| {
        let mut config = Config::new(name, kind, &there);
        config.memory = memory;
        config.cmdline = format!("role={role}");
        host.create_paused(&config)
    };
    let mut granter = create("granting", granter, "grant")?;
    let mut mapper = create("mapping", mapper, "map")?;
    for (one, other) in [(&granter, &mapper), (&mapper, &granter)] {
        let (id, peer) = (one.id, other.id);
        host.ok(&format!(
            "xenstore-write /local/domain/{id}/data/peer {peer}"
        ))?;
    }
    granter.unpause()?;
    mapper.unpause()?;
    let end = |domain: &mut Domain| -> Result<String> {
        domain.wait_gone(LONGEST).with_context(|| {
            let console = domain.console();
            format!("{}:\n{console}", domain.name)
        })?;
        Ok(domain.console())
    };
    let ended = Ended {
        granter: end(&mut granter)?,
        mapper: end(&mut mapper)?,
    };
    for console in [&ended.granter, &ended.mapper] {
        let failed = console.contains("ERROR") || console.contains("panic");
        ensure!(!failed, "{example} failed:\n{console}");
    }
    Ok(ended)
}

/// The line with these words, and the numbers behind them.
fn line<'c>(console: &'c str, words: &str) -> Result<(&'c str, Vec<u64>)> {
    let found = console.lines().find_map(|line| {
        let at = line.find(words)?;
        Some((line, &line[at + words.len()..]))
    });
    let (line, rest) = found.with_context(|| format!("no {words:?} in:\n{console}"))?;
    let words = rest.split(|character: char| !character.is_ascii_digit());
    Ok((line, words.filter_map(|word| word.parse().ok()).collect()))
}

fn echo(testbed: &Testbed) -> Result<()> {
    for kinds in [[Kind::Pvh, Kind::Pv], [Kind::Pv, Kind::Pvh]] {
        let ended = run(testbed, "echo", kinds, 32)?;
        for (kind, console, what) in [
            (kinds[0], &ended.granter, "asks"),
            (kinds[1], &ended.mapper, "answers"),
        ] {
            let (_, numbers) = line(console, "conversation: ")?;
            let [rounds, notifications, sleeps, writes] = numbers[..] else {
                anyhow::bail!("{console}");
            };
            // The last one says that it is the last one.
            ensure!(rounds == 1001, "{rounds} round trips");
            let row = format!("{kind} {what}");
            testbed.record(&row, "round trips", rounds.to_string());
            testbed.record(&row, "notifications", notifications.to_string());
            testbed.record(&row, "sleeps", sleeps.to_string());
            testbed.record(&row, "xenstore writes", writes.to_string());
        }
        line(&ended.granter, "grant ended")?;
    }
    Ok(())
}

/// Sets the number of nodes that each domain may own. Returns false with oxenstored, which has its quotas from a file alone.
fn allow_nodes(testbed: &Testbed, nodes: u32) -> Result<bool> {
    let dom0 = testbed.host.ok("cat /proc/cmdline")?;
    if dom0.contains(&Xenstored::Oxenstored.dom0_option()) {
        return Ok(false);
    }
    let script = format!("xenstore-control quota set nodes {nodes}");
    testbed.host.ok(&script).map(|_| true)
}

fn batch(testbed: &Testbed) -> Result<()> {
    let allowed = allow_nodes(testbed, MORE_NODES)?;
    let ended = run(testbed, "batch", [Kind::Pvh, Kind::Pv], 64);
    allow_nodes(testbed, NODES)?;
    let ended = ended?;
    for method in ["Index", "Nodes"] {
        for count in [1_u64, 512, 10_000] {
            let row = format!("{}, {count} pages", method.to_lowercase());
            if let Ok((_, numbers)) =
                line(&ended.granter, &format!("{method} {count}: refused after "))
            {
                let nodes = numbers.first().copied().unwrap_or_default();
                ensure!(
                    !allowed && method == "Nodes" && count > 900 && nodes > 900,
                    "{}",
                    ended.granter
                );
                let refused = format!("refused after {nodes} nodes: quota");
                testbed.record(&row, "granter: xenstore writes", refused);
                continue;
            }
            let (_, granted) = line(&ended.granter, &format!("{method} {count}: granted, "))?;
            let (_, mapped) = line(&ended.mapper, &format!("{method} {count}: mapped, "))?;
            let ([0, 0, calls, writes, _], [maps, copies, all, written, reads]) =
                (&granted[..], &mapped[..])
            else {
                anyhow::bail!("{granted:?}, {mapped:?}");
            };
            let (index, pages) = match (method, count) {
                ("Index", 10_000) => (2, 0),
                ("Index", _) => (1, 0),
                _ => (0, count),
            };
            ensure!(
                (*maps, *copies, *written, *reads) == (1, index, 0, pages),
                "{row}: {mapped:?}"
            );
            ensure!(
                *writes == 1 + pages + 2 * pages.div_ceil(256),
                "{row}: {granted:?}"
            );
            for (column, value) in [
                ("granter: hypercalls", calls),
                ("granter: xenstore writes", writes),
                ("mapper: copies", copies),
                ("mapper: maps", maps),
                ("mapper: hypercalls", all),
                ("mapper: xenstore writes", written),
                ("mapper: xenstore reads", reads),
            ] {
                testbed.record(&row, column, value.to_string());
            }
        }
    }
    Ok(())
}

fn flip(testbed: &Testbed) -> Result<()> {
    for kinds in [
        [Kind::Pv, Kind::Pv],
        [Kind::Pvh, Kind::Pv],
        [Kind::Pv, Kind::Pvh],
    ] {
        let ended = run(testbed, "flip", kinds, 32)?;
        for (kind, console, what) in [
            (kinds[0], &ended.granter, "accepts, then gives"),
            (kinds[1], &ended.mapper, "gives, then accepts"),
        ] {
            let (line, _) = line(console, "flips: ")?;
            let (_, outcome) = line.split_once("flips: ").unwrap_or_default();
            let row = format!("{}-{}: {kind} {what}", kinds[0], kinds[1]);
            testbed.record(row, "frames", outcome.trim().to_owned());
        }
        let refused = "not implemented (errno 38), the page was kept";
        let expected = match kinds {
            [Kind::Pv, Kind::Pv] => ["100 frames came"; 2],
            // It accepted one, and cannot give it back.
            [Kind::Pvh, _] => [refused, "0 frames came with their content, 1 went"],
            _ => ["giving was refused to the other domain", refused],
        };
        for (console, expected) in [&ended.granter, &ended.mapper].into_iter().zip(expected) {
            let (line, _) = line(console, "flips: ")?;
            ensure!(line.contains(expected), "{line}");
        }
    }
    Ok(())
}
