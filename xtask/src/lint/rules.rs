//! The house rules (`style.md`, `architecture.md`), each a function from a file to its complaints.

use super::source::{Line, has_word};

/// A file as the rules see it.
pub struct File {
    /// From the root of the checkout, with `/`.
    pub path: String,
    pub lines: Vec<Line>,
}

/// A line and what is wrong with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Complaint {
    pub line: usize,
    pub what: String,
}

type Rule = fn(&File) -> Vec<Complaint>;
pub const RULES: &[Rule] = &[
    unsafe_has_its_place,
    unsafe_has_its_reason,
    architecture_has_its_place,
    vendors_have_their_place,
    no_way_to_panic,
    allocations_may_fail,
];

/// The files of `mm` that touch physical memory.
const UNSAFE_IN_MM: &[&str] = &["mm/src/copy.rs", "mm/src/heap.rs", "mm/src/window.rs", "mm/src/fake.rs"];
/// The safe half of `arch-x86`, which the host tests.
const SAFE_IN_ARCH: &[&str] =
    &["arch-x86/src/vdev", "arch-x86/src/policy", "arch-x86/src/acpi", "arch-x86/src/pci/", "arch-x86/src/decode"];
/// Tests that compare the decoder with what this very CPU does.
const RUNS_INSTRUCTIONS: &str = "arch-x86/src/decode/tests.rs";
const VENDOR_WORDS: &[&str] = &["vmx", "svm", "intel", "amd", "ept", "npt", "vmcs", "vmcb"];
/// What allocates and stops the machine if there is no memory.
const MUST_ALLOCATE: &[&str] = &[
    "Box::new(",
    "Arc::new(",
    "vec![",
    "format!(",
    "with_capacity(",
    "String::from(",
    "Vec::from(",
    ".to_vec()",
    ".to_owned()",
    ".to_string()",
    ".concat()",
    "collect::<Vec",
];
/// They are what does it instead.
const FALLIBLE: &str = "mm/src/heap.rs";
const PANICS: &[&str] = &[".unwrap()", ".expect(", "panic!", "todo!", "unimplemented!", "unreachable!"];

fn in_folder(path: &str, folders: &[&str]) -> bool {
    folders.iter().any(|folder| path.starts_with(folder))
}

/// A file that is compiled for tests alone.
fn is_test(path: &str) -> bool {
    path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || path.ends_with("_tests.rs")
        || path.ends_with("/fake.rs")
        || path.contains("/fake/")
        || path.ends_with("/sample.rs")
        || path.ends_with("/sim.rs")
        || path.contains("/sim/")
}

fn complaints(file: &File, what: impl Fn(&Line) -> Option<String>) -> Vec<Complaint> {
    let wrong = file.lines.iter().enumerate().filter_map(|(index, line)| Some((index, what(line)?)));
    wrong.map(|(index, what)| Complaint { line: index + 1, what }).collect()
}

/// `unsafe` only in `arch-x86` (but for its safe half), `boot`, a few files of `mm`, and the guests.
fn unsafe_has_its_place(file: &File) -> Vec<Complaint> {
    let path = file.path.as_str();
    let allowed = in_folder(path, &["arch-x86/src", "boot/src", "tests-qemu/src"]) && !in_folder(path, SAFE_IN_ARCH)
        || UNSAFE_IN_MM.contains(&path)
        || path == RUNS_INSTRUCTIONS;
    complaints(file, |line| {
        (!allowed && has_word(&line.code, "unsafe")).then(|| "`unsafe` has no place in this file".to_string())
    })
}

/// Each unsafe block says why it holds, in a comment with `SAFETY:` right above.
fn unsafe_has_its_reason(file: &File) -> Vec<Complaint> {
    let opens =
        |code: &str| code.contains("unsafe {") || code.trim_end().ends_with("unsafe") || code.contains("unsafe impl");
    let lines = file.lines.iter().enumerate().filter(|(_, line)| opens(&line.code));
    let bare = lines.filter(|(index, _)| {
        let above = file.lines.get(index.saturating_sub(12)..=*index).unwrap_or_default();
        let mut near = above.iter().rev();
        !near.any(|line| line.comment.contains("SAFETY:"))
    });
    bare.map(|(index, _)| Complaint { line: index + 1, what: "an unsafe block without `// SAFETY:`".into() }).collect()
}

/// What depends on the architecture is in `arch-x86` and `boot`.
fn architecture_has_its_place(file: &File) -> Vec<Complaint> {
    let allowed = in_folder(&file.path, &["arch-x86/", "boot/", "xtask/src/lint"]);
    complaints(file, |line| {
        (!allowed && has_word(&line.code, "target_arch")).then(|| "`target_arch` outside arch-x86 and boot".to_string())
    })
}

/// No vendor's name in what is common to all, comments included.
fn vendors_have_their_place(file: &File) -> Vec<Complaint> {
    if !in_folder(&file.path, &["hypervisor/src", "mm/src", "sched/src"]) {
        return Vec::new();
    }
    complaints(file, |line| {
        let text = format!("{} {}", line.code, line.comment).to_lowercase();
        let word = VENDOR_WORDS.iter().find(|word| has_word(&text, word))?;
        Some(format!("a vendor's word, `{word}`"))
    })
}

/// What a guest can reach does not panic by its own words (indexing and arithmetic are clippy's to watch).
fn no_way_to_panic(file: &File) -> Vec<Complaint> {
    if !in_folder(&file.path, &["hypervisor/", "mm/src", "sched/src"]) || is_test(&file.path) {
        return Vec::new();
    }
    complaints(file, |line| {
        let word = PANICS.iter().find(|word| !line.test && line.code.contains(*word))?;
        Some(format!("`{word}` where a guest may come"))
    })
}

/// Memory may run out, and whoever asked is told: `mm` has what allocates so. Only what runs at boot alone need not care, and says so (`BOOT:`).
fn allocations_may_fail(file: &File) -> Vec<Complaint> {
    let folders = ["hypervisor/", "mm/src", "sched/src", "arch-x86/src"];
    if !in_folder(&file.path, &folders) || is_test(&file.path) || file.path == FALLIBLE {
        return Vec::new();
    }
    let reserved: String = file.lines.iter().map(|line| line.code.trim()).collect();
    complaints(file, |line| {
        if line.test || line.boot {
            return None;
        }
        if let Some(word) = MUST_ALLOCATE.iter().find(|word| line.code.contains(*word)) {
            return Some(format!("`{word}` where memory may have run out (or say `BOOT:` why not)"));
        }
        let list = grown(&line.code).filter(|name| !reserved.contains(&format!("{name}.try_reserve")))?;
        Some(format!("`{list}` grows without `try_reserve` (or say `BOOT:` why memory cannot have run out)"))
    })
}

/// The name of a list that begins empty here, to have something put in.
fn grown(code: &str) -> Option<&str> {
    let (name, value) = code.trim().strip_prefix("let mut ")?.split_once('=')?;
    let is_empty =
        ["Vec::new()", "alloc::vec::Vec::new()", "String::new()"].iter().any(|empty| value.trim().starts_with(empty));
    is_empty.then(|| name.split(':').next().unwrap_or(name).trim())
}

/// Every `repr(C)` type has its layout asserted: in its own file, or in `all` (the generated table).
pub fn layouts_are_asserted(file: &File, table: &str) -> Vec<Complaint> {
    let code: Vec<&str> = file.lines.iter().map(|line| line.code.as_str()).collect();
    let mut wrong = Vec::new();
    for (index, line) in file.lines.iter().enumerate() {
        if !line.code.contains("repr(C") || line.test || file.path.contains("xtask/") {
            continue;
        }
        let following = code.get(index..).unwrap_or_default();
        let Some(name) = following.iter().find_map(|line| type_name(line)) else { continue };
        let generic = format!("<{name}");
        let asserted = code.iter().any(|line| {
            line.contains(&format!("{generic}>")) && line.contains("size_of")
                || line.contains(&format!("offset_of!({name}"))
                || line.contains(&format!("{generic}<")) && line.contains("size_of")
        });
        if !asserted && !table.contains(&format!("::{name}:")) {
            wrong.push(Complaint { line: index + 1, what: format!("no assertion of the layout of `{name}`") });
        }
    }
    wrong
}

fn type_name(line: &str) -> Option<&str> {
    let rest = ["struct ", "union ", "enum "].iter().find_map(|word| line.split_once(word).map(|(_, rest)| rest))?;
    rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()
}

/// What each crate may know of.
const MAY_DEPEND: &[(&str, &[&str])] = &[
    ("hypervisor/xen-abi", &[]),
    ("mm", &["xen-abi"]),
    ("sched", &["xen-abi"]),
    ("hypervisor", &["xen-abi", "mm", "sched"]),
    ("arch-x86", &["xen-abi", "mm", "sched", "hypervisor"]),
    ("boot", &["xen-abi", "mm", "sched", "hypervisor", "arch-x86"]),
    ("tests-qemu", &["xen-abi"]),
    ("xtask", &[]),
];

/// Dependencies among our own crates point one way.
pub fn dependencies_point_one_way(folder: &str, manifest: &str) -> Vec<Complaint> {
    let Some((_, allowed)) = MAY_DEPEND.iter().find(|(name, _)| *name == folder) else {
        return vec![Complaint { line: 1, what: "a crate that the lint does not know".into() }];
    };
    let ours: Vec<&str> = MAY_DEPEND.iter().filter_map(|(name, _)| name.rsplit('/').next()).collect();
    let mut section = "";
    let mut wrong = Vec::new();
    for (index, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            section = line;
        } else if section.starts_with("[dependencies") {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            if ours.contains(&name) && !allowed.contains(&name) {
                wrong.push(Complaint { line: index + 1, what: format!("`{folder}` must not depend on `{name}`") });
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::super::source::lines;
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), lines: lines(text) }
    }

    fn all(path: &str, text: &str) -> usize {
        let file = file(path, text);
        RULES.iter().map(|rule| rule(&file).len()).sum()
    }

    #[test]
    fn unsafe_in_the_hypervisor_is_refused() {
        assert_eq!(all("hypervisor/src/domain.rs", "// SAFETY: none\nlet a = unsafe { b };"), 1);
        assert_eq!(all("mm/src/buddy.rs", "// SAFETY: none\nlet a = unsafe { b };"), 1);
        assert_eq!(all("mm/src/window.rs", "// SAFETY: none\nlet a = unsafe { b };"), 0);
        assert_eq!(all("arch-x86/src/vdev/vlapic.rs", "// SAFETY: none\nlet a = unsafe { b };"), 1);
        assert_eq!(all("hypervisor/src/lib.rs", "#![forbid(unsafe_code)]"), 0);
    }

    #[test]
    fn unsafe_without_a_reason_is_refused() {
        assert_eq!(all("arch-x86/src/port.rs", "fn a() {\n    unsafe { b() }\n}"), 1);
        assert_eq!(all("arch-x86/src/port.rs", "fn a() {\n    // SAFETY: b is fine.\n    unsafe { b() }\n}"), 0);
    }

    #[test]
    fn architecture_and_vendors_stay_where_they_are() {
        assert_eq!(all("mm/src/frame.rs", "#[cfg(target_arch = \"x86_64\")]\nfn a() {}"), 1);
        assert_eq!(all("boot/src/main.rs", "#[cfg(target_arch = \"x86_64\")]\nfn a() {}"), 0);
        assert_eq!(all("hypervisor/src/domain.rs", "// as VMX does it\nfn accept() {}"), 1);
        assert_eq!(all("sched/src/lib.rs", "fn ept() {}"), 1);
        assert_eq!(all("arch-x86/src/vmx/ept.rs", "fn ept() {}"), 0);
    }

    #[test]
    fn panics_are_refused_outside_tests() {
        assert_eq!(all("hypervisor/src/a.rs", "fn a() { b.unwrap(); }"), 1);
        assert_eq!(all("mm/src/a.rs", "fn a() { panic!(\"x\") }"), 1);
        assert_eq!(all("mm/src/a.rs", "fn a() { b.unwrap_or(1); }"), 0);
        assert_eq!(all("hypervisor/src/a.rs", "#[cfg(test)]\nmod tests {\n fn a() { b.unwrap(); }\n}"), 0);
        assert_eq!(all("hypervisor/src/event/tests.rs", "fn a() { b.unwrap(); }"), 0);
        assert_eq!(all("arch-x86/src/a.rs", "fn a() { b.unwrap(); }"), 0);
    }

    #[test]
    fn allocations_that_cannot_fail_are_refused_after_boot() {
        assert_eq!(all("arch-x86/src/a.rs", "fn a() { Box::new(b); }"), 1);
        assert_eq!(all("hypervisor/src/a.rs", "fn a() { c(&format!(\"x\")); }"), 1);
        assert_eq!(all("hypervisor/src/a.rs", "fn a() { mm::try_box(b)?; }"), 0);
        assert_eq!(
            all("hypervisor/src/a.rs", "/// BOOT: once.\nfn a() {\n Box::new(b);\n}\nfn c() { Box::new(b); }"),
            1
        );
        assert_eq!(all("arch-x86/src/a.rs", "let mut all = Vec::new();\nall.push(1);"), 1);
        assert_eq!(
            all("arch-x86/src/a.rs", "let mut all: Vec<u8> = Vec::new();\nall.try_reserve(1)?;\nall.push(1);"),
            0
        );
        assert_eq!(all("boot/src/a.rs", "fn a() { Box::new(b); }"), 0);
    }

    #[test]
    fn a_c_layout_needs_its_assertion() {
        let bare = file("arch-x86/src/regs.rs", "#[repr(C)]\n#[derive(Clone)]\npub struct Regs {\n}");
        assert_eq!(layouts_are_asserted(&bare, "").len(), 1);
        assert_eq!(layouts_are_asserted(&bare, "    crate::x::Regs: 8 { }").len(), 0);
        let text = "#[repr(C)]\npub struct Regs {\n}\nconst _: () = assert!(size_of::<Regs>() == 8);";
        assert_eq!(layouts_are_asserted(&file("arch-x86/src/regs.rs", text), "").len(), 0);
    }

    #[test]
    fn dependencies_that_point_back_are_refused() {
        let manifest =
            "[package]\nname = \"mm\"\n[dependencies]\nhypervisor.workspace = true\nxen-abi.workspace = true\n";
        assert_eq!(dependencies_point_one_way("mm", manifest).len(), 1);
        assert_eq!(dependencies_point_one_way("boot", manifest).len(), 0);
        assert_eq!(dependencies_point_one_way("mm", "[dev-dependencies]\nhypervisor.workspace = true\n").len(), 0);
        assert_eq!(dependencies_point_one_way("new", "").len(), 1);
    }
}
