//! Xen's own report of grants and event channels, through its debug keys.

use super::Host;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// Returns the number of other domains' grants that domain `by` has mapped, summed over all granting domains.
pub fn grants_in_use(host: &Host, by: u32) -> Result<usize> {
    Ok(count_grants(&debug_key(host, 'g')?, by))
}

/// Returns the number of a domain's event channels that are bound to anything.
pub fn bound_ports(host: &Host, domain: u32) -> Result<usize> {
    Ok(count_ports(&debug_key(host, 'e')?, domain))
}

/// A domain's own pages, as Xen counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Pages of its memory.
    pub memory: u64,
    /// Pages that Xen has for it, such as those of its grant table.
    pub of_xen: u64,
    /// Pages of its memory that other domains have mapped.
    pub mapped_by_others: usize,
}

/// Returns the numbers of a domain's own pages.
pub fn pages(host: &Host, domain: u32) -> Result<Pages> {
    let about = debug_key(host, 'q')?;
    let [memory, of_xen] =
        ["nr_pages=", "xenheap_pages="].map(|name| general(&about, domain, name));
    let none = || format!("Xen says nothing of domain {domain}'s pages");
    Ok(Pages {
        memory: memory.with_context(none)?,
        of_xen: of_xen.with_context(none)?,
        mapped_by_others: count_given(&debug_key(host, 'g')?, domain),
    })
}

/// Returns a number in the general information about a domain.
fn general(text: &str, domain: u32, name: &str) -> Option<u64> {
    let heading = format!("General information for domain {domain}:");
    let (_, rest) = text.split_once(&heading)?;
    let rest = rest.split("General information for domain ").next()?;
    let (_, number) = rest.split_once(&format!(" {name}"))?;
    number
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// Counts the entries in use of the table of a domain.
fn count_given(text: &str, domain: u32) -> usize {
    let heading = |line: &&str| line.contains("grant-table for remote d");
    let own = format!("grant-table for remote d{domain} ");
    let lines = text.lines().skip_while(|line| !line.contains(&own)).skip(1);
    lines
        .take_while(|line| !heading(line))
        .filter(|line| line.contains(" [0x"))
        .count()
}

/// Presses a debug key and returns Xen's output. A second key marks the end.
pub(super) fn debug_key(host: &Host, key: char) -> Result<String> {
    const MARKER: &str = "'h' pressed";
    let log = host.instance().xen_log();
    let start = super::length(&log);
    host.ok(&format!("xl debug-keys {key} && xl debug-keys h"))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let text = super::read_from(&log, start);
        if let Some((text, _)) = text.split_once(MARKER) {
            return Ok(text.to_owned());
        }
        host.tick(deadline)
            .with_context(|| format!("Xen did not answer to debug key {key}"))?;
    }
}

/// Counts the entries in use: `[0xREF] DOMID MFN PIN …`, where DOMID is the domain that maps.
fn count_grants(text: &str, by: u32) -> usize {
    text.lines()
        .filter_map(|line| line.split_once("[0x")?.1.split_once(']'))
        .filter_map(|(_, entry)| entry.split_whitespace().next())
        .filter(|word| word.parse() == Ok(by))
        .count()
}

/// Counts the ports in the section of a domain.
fn count_ports(text: &str, domain: u32) -> usize {
    about(text, domain)
        .iter()
        .filter(|line| line.contains("]: s="))
        .count()
}

/// Returns the output of the debug keys `e` and `q` about the processors and the event channels of a domain.
pub(super) fn about(text: &str, domain: u32) -> Vec<&str> {
    let headings = [
        "Event channel information for domain ",
        "VCPU information and callbacks for domain ",
    ];
    let number = |line: &str| -> Option<u32> {
        let rest = headings
            .iter()
            .find_map(|heading| line.split_once(heading))?
            .1;
        rest.split_once(':')?.0.parse().ok()
    };
    let mut inside = false;
    text.lines()
        .filter(|line| {
            if let Some(number) = number(line) {
                inside = number == domain;
            } else if line.contains("General information for domain ") {
                inside = false;
            }
            inside
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_counted_by_who_maps_them() {
        let text = "(XEN) [   12.5]       -------- active --------       -------- shared --------\n\
                    (XEN) [   12.5] [ref] localdom mfn      pin          localdom gmfn     flags\n\
                    (XEN) [   12.5] grant-table for remote d7 (v1)\n\
                    (XEN) [   12.5] [0x008]      3 0x13a77c 0x00000001          3 0x13a77c 0x19\n\
                    (XEN) [   12.6] [0x009]      0 0x13a77d 0x00000001          0 0x13a77d 0x19\n\
                    (XEN) [   12.6] no active grant table entries\n";
        assert_eq!(count_grants(text, 3), 1);
        assert_eq!(count_grants(text, 0), 1);
        assert_eq!(count_grants(text, 7), 0);
    }

    #[test]
    fn pages_that_others_have_mapped_are_counted_in_the_domains_own_table() {
        let text = "(XEN) [   12.5] grant-table for remote d7 (v1)\n\
                    (XEN) [   12.5]   2 frames (64 max), 0 maptrack frames (1024 max)\n\
                    (XEN) [   12.5] [0x008]      3 0x13a77c 0x00000001          3 0x13a77c 0x19\n\
                    (XEN) [   12.5] grant-table for remote d70 (v1)\n\
                    (XEN) [   12.6] [0x009]      0 0x13a77d 0x00000001          0 0x13a77d 0x19\n\
                    (XEN) [   12.6] [0x00a]      0 0x13a77d 0x00000001          0 0x13a77d 0x19\n";
        assert_eq!(
            [7, 70, 8].map(|domain| count_given(text, domain)),
            [1, 2, 0]
        );
    }

    #[test]
    fn pages_are_found_in_the_general_information() {
        let text = "(XEN) [  15.8] General information for domain 7:\n\
                    (XEN) [  15.8]     refcnt=1 dying=0 pause_count=0\n\
                    (XEN) [  15.8]     nr_pages=32768 xenheap_pages=5 shared_pages=0 paged_pages=0 dirty_cpus={1} max_pages=33024\n\
                    (XEN) [  15.8] General information for domain 70:\n\
                    (XEN) [  15.8]     refcnt=1 dying=0 pause_count=0\n";
        assert_eq!(general(text, 7, "nr_pages="), Some(32768));
        assert_eq!(general(text, 7, "xenheap_pages="), Some(5));
        assert_eq!(general(text, 70, "nr_pages="), None);
    }

    #[test]
    fn ports_are_counted_in_the_domains_own_section() {
        let text = "(XEN) [  1502.8] Event channel information for domain 0:\n\
                    (XEN) [  1502.8]        1 [0/0/  -   ]: s=5 n=0 x=0 v=0\n\
                    (XEN) [  1502.8] Event channel information for domain 10:\n\
                    (XEN) [  1502.8] Polling vCPUs: {}\n\
                    (XEN) [  1502.8]     port [p/m/s]\n\
                    (XEN) [  1502.8]        1 [0/1/  -   ]: s=3 n=0 x=0 d=0 p=31\n\
                    (XEN) [  1502.8]        2 [0/1/  -   ]: s=3 n=0 x=0 d=0 p=32\n";
        assert_eq!(count_ports(text, 10), 2);
        assert_eq!(count_ports(text, 0), 1);
        assert_eq!(count_ports(text, 1), 0);
    }
}
