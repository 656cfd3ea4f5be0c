//! Links the examples as the runtime says: see `kernel/build.rs`.

fn main() {
    // Only there when the runtime is built in, with the feature `unikernel`.
    let Ok(args) = std::env::var("DEP_BULKHEAD_KERNEL_LINK_ARGS") else {
        return;
    };
    for arg in args.split('\u{1f}') {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
}
