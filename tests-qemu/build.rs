//! Guests are linked by a script of their own; the helpers that run inside Dom0's Linux are not.

fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo::rerun-if-changed=guest.ld");
    println!("cargo::rerun-if-changed=src/bin");
    for entry in std::fs::read_dir(format!("{root}/src/bin")).expect("src/bin").flatten() {
        let file = entry.file_name().into_string().expect("a name in UTF-8");
        let name = file.trim_end_matches(".rs");
        if !name.starts_with("dom0_") {
            println!("cargo::rustc-link-arg-bin={name}=-T{root}/guest.ld");
            println!("cargo::rustc-link-arg-bin={name}=--build-id=none");
        }
    }
}
