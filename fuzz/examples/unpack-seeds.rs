//! Writes the seeds as libFuzzer wants them: one binary file each, in a folder for each target below
//! the one that is named.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let named = std::env::args_os().nth(1);
    let root = PathBuf::from(named.expect("the name of a folder"));
    for (target, _) in bulkhead_fuzz::TARGETS {
        let folder = root.join(target);
        std::fs::create_dir_all(&folder)?;
        for (name, bytes) in bulkhead_fuzz::seeds::of(target) {
            std::fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}
