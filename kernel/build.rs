//! Tells how a bootable ELF is linked: to our own demo directly, to every other binary's build
//! script as metadata (`DEP_BULKHEAD_KERNEL_LINK_ARGS`, separated by the unit separator U+001F).

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=link.ld");
    let folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let script = format!("-Wl,-T,{}", folder.join("link.ld").display());
    let args = [
        // No C runtime: the entry points are ours.
        "-nostartfiles",
        "-nostdlib",
        // An ELF that needs no relocation: the compiler's position-independent code is fine.
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        // Xen copies the parts to where they belong: they need no alignment in the file.
        "-Wl,-z,max-page-size=16",
        "-Wl,-z,norelro",
        &script,
    ];
    println!("cargo::metadata=link_args={}", args.join("\u{1f}"));
    if env::var_os("CARGO_FEATURE_UNIKERNEL").is_some() {
        for arg in args {
            println!("cargo::rustc-link-arg-bins={arg}");
        }
    }
}
