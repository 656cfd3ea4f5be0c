//! Counts the instructions of a case: runs it under callgrind, and reads callgrind's file.

use std::collections::HashMap;
use std::process::{Command, Stdio};

/// Settings with which the C library's copies are the same on every machine.
const PLAIN_LIBRARY: &str = "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX_Fast_Unaligned_Load,\
    -ERMS,-FSRM,-Prefer_No_VZEROUPPER";

/// Has this program run a case (`--case NAME`) under callgrind, which counts in functions that are called
/// `driver_domains_turn`. Returns the case's output, and callgrind's file.
pub fn run(name: &str) -> Result<(String, String), String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let file =
        std::env::temp_dir().join(format!("bulkhead-{}-{name}.callgrind", std::process::id()));
    let output = Command::new("valgrind")
        .args(["--quiet", "--tool=callgrind", "--cache-sim=no"])
        .arg("--toggle-collect=*driver_domains_turn*")
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(this)
        .args(["--case", name])
        .env("GLIBC_TUNABLES", PLAIN_LIBRARY)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("valgrind: {error}; Debian's package valgrind has it"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{name} failed under valgrind:\n{text}{errors}"));
    }
    let counts = std::fs::read_to_string(&file).map_err(|error| error.to_string());
    // The file is only ours; if it cannot be removed, the system will.
    let _ = std::fs::remove_file(&file);
    Ok((text, counts?))
}

/// Instructions that were counted.
pub struct Counts {
    /// The number of all instructions.
    pub total: f64,
    /// The number of those in the functions that were asked for, and in all that these called.
    pub part: f64,
}

/// Reads a file. The functions asked for are those whose name has `part` in it; a call from one of them
/// is within it already.
pub fn counts(file: &str, part: &str) -> Result<Counts, String> {
    let mut names = HashMap::new();
    let mut counts = Counts {
        total: 0.0,
        part: 0.0,
    };
    let (mut inside, mut called_inside) = (false, false);
    let mut lines = file.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("fn=") {
            inside = is_part(&mut names, name, part);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            called_inside = is_part(&mut names, name, part);
        } else if line.starts_with("calls=") {
            // The next line says what all these calls cost together.
            let cost = last_number(lines.next().unwrap_or_default());
            if called_inside && !inside {
                counts.part += cost.ok_or_else(|| format!("no cost after {line:?}"))?;
            }
        } else if let Some(rest) = line
            .strip_prefix("totals:")
            .or(line.strip_prefix("summary:"))
        {
            counts.total = last_number(rest).unwrap_or_default();
        }
    }
    match counts.total > counts.part {
        true => Ok(counts),
        false => Err("callgrind counted nothing".to_owned()),
    }
}

/// Returns whether a function belongs to the part. The file gives a function's name once, as `(number) name`, and only
/// the number from then on.
fn is_part<'f>(names: &mut HashMap<&'f str, bool>, name: &'f str, part: &str) -> bool {
    match name.split_once(' ') {
        Some((number, name)) => {
            let found = name.contains(part);
            names.insert(number, found);
            found
        }
        None => names.get(name).copied().unwrap_or_default(),
    }
}

fn last_number(line: &str) -> Option<f64> {
    line.split_whitespace().last()?.parse().ok()
}
