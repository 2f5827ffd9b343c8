//! Gives every guest its linker script: the images are static and at fixed addresses, without the start files of a C
//! library.

use std::path::Path;

/// Guests that are not ELF64 with a PVH entry: name, linker script, whether the linker writes a flat image.
const SPECIAL: [(&str, &str, bool); 4] = [
    ("protected", "flat.ld", true),
    ("multiboot64", "flat.ld", false),
    ("kludge", "flat.ld", true),
    ("realmode", "rom.ld", true),
];

fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let (link, guests) = (Path::new(&root).join("link"), Path::new(&root).join("src/bin"));
    println!("cargo:rerun-if-changed={}", link.display());
    println!("cargo:rerun-if-changed={}", guests.display());
    for arg in ["-nostartfiles", "-static", "-no-pie", "-Wl,--build-id=none"] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    for entry in std::fs::read_dir(guests).expect("src/bin is part of this package") {
        let path = entry.expect("src/bin can be read").path();
        let guest = path.file_stem().expect("a file has a name").to_string_lossy();
        let special = SPECIAL.iter().find(|(name, ..)| *name == guest);
        let (script, flat) = special.map_or(("pvh.ld", false), |&(_, script, flat)| (script, flat));
        println!(
            "cargo:rustc-link-arg-bin={guest}=-Wl,-z,max-page-size=4096,-T,{}",
            link.join(script).display()
        );
        if flat {
            println!("cargo:rustc-link-arg-bin={guest}=-Wl,--oformat=binary");
        }
    }
}
