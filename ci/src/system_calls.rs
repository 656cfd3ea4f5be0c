//! Instructions that call an operating system. An ELF that Xen boots has none beneath it: what a library means for
//! Linux, to ask for random numbers for example, would be an exception there, or a hypercall with other registers.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// Makes sure that there are none in an ELF. (It reaches Xen through a page that Xen fills when it boots.)
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
    let calls: Vec<&str> = code.lines().filter(|line| is_system_call(line)).collect();
    ensure!(
        calls.is_empty(),
        "{} calls an operating system:\n{}",
        elf.display(),
        calls.join("\n")
    );
    Ok(())
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
