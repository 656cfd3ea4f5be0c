//! Instructions that call an operating system. An ELF that Xen boots has none beneath it: such an instruction in a
//! library for Linux, to ask for random numbers for example, would be an exception there, or a hypercall with other
//! registers.
//!
//! The ELF calls Xen through a page that Xen fills when it boots. Where there is no stack for that, our own assembly
//! has the instruction itself, behind one that has no effect and that no other code has.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// The instruction before each hypercall that our own assembly makes by itself (`kernel/src/recovery/parking.rs`).
const HYPERCALL: &str = "nopl   0x58656e(%rax)";

/// Checks that an ELF has no system calls.
pub fn ensure_none(elf: &Path) -> Result<()> {
    let output = Command::new("objdump")
        .args(["--disassemble", "--no-show-raw-insn"])
        .arg(elf)
        .output()
        .context("cannot start objdump (it comes with the linker, package binutils)")?;
    ensure!(
        output.status.success(),
        "objdump cannot read {}",
        elf.display()
    );
    let code = String::from_utf8_lossy(&output.stdout);
    let instructions = code.lines().filter(|line| is_instruction(line)).count();
    ensure!(
        instructions > 10_000,
        "{} has {instructions} instructions",
        elf.display()
    );
    let calls = system_calls(&code);
    ensure!(
        calls.is_empty(),
        "{} calls an operating system:\n{}",
        elf.display(),
        calls.join("\n")
    );
    Ok(())
}

/// Returns the lines with system calls that are not hypercalls of our own.
fn system_calls(code: &str) -> Vec<&str> {
    let lines = code.lines().filter(|line| is_instruction(line));
    let before = std::iter::once("").chain(lines.clone());
    let calls = before
        .zip(lines)
        .filter(|(before, line)| is_system_call(line) && instruction(before) != Some(HYPERCALL));
    calls.map(|(_, line)| line).collect()
}

/// Returns the instruction of a line: `  1000: \tsyscall`.
fn instruction(line: &str) -> Option<&str> {
    let (address, instruction) = line.split_once(":\t")?;
    let address = address.trim();
    let is_address = !address.is_empty() && address.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_address.then(|| instruction.trim())
}

fn is_instruction(line: &str) -> bool {
    instruction(line).is_some()
}

fn is_system_call(line: &str) -> bool {
    let Some(instruction) = instruction(line) else {
        return false;
    };
    let mut words = instruction.split_whitespace();
    match words.next() {
        Some("syscall" | "sysenter") => true,
        Some("int") => words.next() == Some("$0x80"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_instructions_are_told_from_others() {
        for (line, calls) in [
            ("  10f3c5:\tsyscall", true),
            ("  10f3c5:\tsyscall ", true),
            ("  10f3c5:\tsysenter", true),
            ("  10f3c5:\tint    $0x80", true),
            ("  10f3c5:\tint    $0x3", false),
            ("  10f3c5:\tint3", false),
            ("  10f3c5:\tcall   10f000 <syscall>", false),
            ("000000000010f3c5 <syscall>:", false),
            ("  10f3c5:\tmov    $0x50f,%eax", false),
        ] {
            assert_eq!(is_system_call(line), calls, "{line}");
        }
    }

    #[test]
    fn hypercalls_of_our_own_are_marked() {
        let ours = "  1000:\tnopl   0x58656e(%rax)\n  1007:\tsyscall\n";
        let others = "  1009:\tnopl   0x0(%rax)\n  1010:\tsyscall\n  1012:\tsyscall\n";
        assert!(system_calls(ours).is_empty());
        let both = format!("{ours}{others}");
        assert_eq!(
            system_calls(&both),
            ["  1010:\tsyscall", "  1012:\tsyscall"]
        );
    }

    #[test]
    fn a_library_that_calls_linux_is_found_out() {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let mut files = maps
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5));
        let libc = files.find(|file| file.contains("/libc.so")).unwrap();
        let error = ensure_none(Path::new(libc)).unwrap_err();
        assert!(
            format!("{error}").contains("calls an operating system"),
            "{error}"
        );
    }
}
