//! Writes the seeds as cargo-fuzz wants them: one binary file each, below `corpus/`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    for (target, _) in bulkhead_fuzz::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(target);
        std::fs::create_dir_all(&folder)?;
        for (name, bytes) in bulkhead_fuzz::seeds::of(target) {
            std::fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}
