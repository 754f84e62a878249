//! Which domains the boot loader's modules make, by the string that comes with each module.
//!
//! `domain name=web memory=1G vcpus=2 weight=512 cap=50 cpus=0-1,3 -- root=/dev/xvda1` makes a domain beside Dom0: the module is its kernel,
//! what stands behind `--` is for the kernel. `domain-initrd` makes a module part of the initrd of the domain before it, and
//! `domain-initrd name=web` of the one that is called so. All other modules are Dom0's. A domain that cannot be made as it is described
//! is left out, with one line that says why.

use alloc::vec::Vec;
use core::fmt;

use sched::{Affinity, CpuId, CpuSet, Terms, Weight};

use super::dom0_mem::{self, Size};

/// The first words of modules that are not Dom0's.
const DOMAIN: &str = "domain";
const INITRD: &str = "domain-initrd";
/// Ends the words that are for the hypervisor.
const SEPARATOR: &str = "--";

/// As many vCPUs as an HVM-type domain of Xen's may have.
pub const MOST_VCPUS: u32 = 128;
/// A cap beyond all CPUs that there can be is a mistake.
const MOST_CAP: u32 = CpuSet::MAX as u32 * 100;
/// Names stand before each line of a domain's console.
const LONGEST_NAME: usize = 31;
/// Less is a size whose suffix was forgotten.
const LEAST_MEMORY: u64 = 1 << 20;

/// A domain as the user describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec<'a> {
    pub name: &'a str,
    /// Bytes, whole pages.
    pub memory: u64,
    pub vcpus: u32,
    pub terms: Terms,
    /// For its kernel.
    pub cmdline: &'a str,
}

/// A domain and the modules that it is made of, by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub spec: Spec<'a>,
    pub kernel: usize,
    pub initrds: Vec<usize>,
}

/// All modules by what they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modules<'a> {
    /// Dom0's, the kernel first.
    pub dom0: Vec<usize>,
    pub domains: Vec<Request<'a>>,
}

/// A domain, or a part of one, that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// What the module says of whose it is; empty if it does not.
    pub name: &'a str,
    /// The module's number.
    pub module: usize,
    pub why: Why<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why<'a> {
    /// A first word that begins as those of domains do.
    Kind(&'a str),
    Unknown(&'a str),
    Missing(&'static str, &'static str),
    Twice(&'static str),
    Name,
    NameTaken,
    NoSize(&'a str),
    TooSmall(&'a str, u64),
    Range {
        option: &'static str,
        value: &'a str,
        least: u32,
        most: u32,
    },
    NoCpus(&'a str),
    NoSuchCpu {
        value: &'a str,
        cpu: u32,
        count: u32,
    },
    NoSuchDomain,
    NoDomainBefore,
    OutOfMemory,
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            "" => write!(f, "module {}: ", self.module)?,
            name => write!(f, "domain {name}: ")?,
        }
        match self.why {
            Why::Kind(word) => write!(f, "{word} is no kind of module; write domain or domain-initrd"),
            Why::Unknown(word) => write!(
                f,
                "{word}: name=, memory=, vcpus=, weight=, cap= and cpus= are known; put what is for its kernel behind --"
            ),
            Why::Missing(option, example) => write!(f, "{option}= is missing; write for example {option}={example}"),
            Why::Twice(option) => write!(f, "{option}= is given twice; give it once"),
            Why::Name => {
                write!(
                    f,
                    "name=: a name has 1 to {LONGEST_NAME} of the letters a-z, A-Z, digits, - and _; choose another"
                )
            }
            Why::NameTaken => f.write_str("name=: another domain is called so; choose another"),
            Why::NoSize(value) => write!(f, "memory={value}: is no size; write for example 512M"),
            Why::TooSmall(value, bytes) => {
                write!(f, "memory={value}: is {}; write a larger size with its suffix, for example 512M", Size(bytes))
            }
            Why::Range { option, value, least, most } => {
                write!(f, "{option}={value}: must be a number from {least} to {most}")
            }
            Why::NoCpus(value) => write!(f, "cpus={value}: is no list of CPUs; write for example 0-1,3"),
            Why::NoSuchCpu { value, cpu, count } => {
                write!(f, "cpus={value}: there is no CPU {cpu}; the machine has 0 to {}", count.saturating_sub(1))
            }
            Why::NoSuchDomain => {
                f.write_str("domain-initrd: no domain is called so; put the domain's module before it")
            }
            Why::NoDomainBefore => {
                f.write_str("domain-initrd: belongs to no domain; put it behind the domain's module, or add name=")
            }
            Why::OutOfMemory => f.write_str("no memory to note it"),
        }?;
        f.write_str("; left out")
    }
}

impl core::error::Error for Refusal<'_> {}

/// Sorts modules by their strings, of a machine with so many CPUs. Each one that makes no sense is told to `refuse`, and left out.
/// `None` if memory runs out.
pub fn sort<'a>(strings: &[&'a str], cpus: u32, mut refuse: impl FnMut(Refusal<'a>)) -> Option<Modules<'a>> {
    let mut modules = Modules::default();
    modules.dom0.try_reserve_exact(strings.len()).ok()?;
    modules.domains.try_reserve_exact(strings.len()).ok()?;
    // Whether the last module that describes a domain was good.
    let mut last_is_good = None;
    for (module, string) in strings.iter().enumerate() {
        let (kind, rest) = first_word(string);
        let name = || words(rest).find_map(|word| word.strip_prefix("name=")).unwrap_or_default();
        let mut refuse = |why| refuse(Refusal { name: name(), module, why });
        match kind {
            DOMAIN => {
                let spec = Spec::parse(rest, cpus).and_then(|spec| {
                    let taken = modules.domains.iter().any(|other| other.spec.name == spec.name);
                    if taken { Err(Why::NameTaken) } else { Ok(spec) }
                });
                last_is_good = Some(spec.is_ok());
                match spec {
                    Ok(spec) => modules.domains.push(Request { spec, kernel: module, initrds: Vec::new() }),
                    Err(why) => refuse(why),
                }
            }
            INITRD => {
                // Without a name it belongs to the domain before it, and goes with one that is left out.
                let lost = last_is_good == Some(false) && name().is_empty();
                if let Err(why) = add_initrd(&mut modules.domains, rest, module, lost) {
                    refuse(why);
                }
            }
            other if other.starts_with(DOMAIN) => refuse(Why::Kind(other)),
            _ => modules.dom0.push(module),
        }
    }
    Some(modules)
}

/// Gives an initrd to the domain that it names, or to the last one. With one that is `lost` nothing is done but to look at its words.
fn add_initrd<'a>(domains: &mut [Request<'a>], text: &'a str, module: usize, lost: bool) -> Result<(), Why<'a>> {
    let mut name = None;
    for word in words(text) {
        match word.split_once('=') {
            Some(("name", value)) => once(&mut name, "name", value)?,
            _ => return Err(Why::Unknown(word)),
        }
    }
    if lost {
        return Ok(());
    }
    let owner = match name {
        Some(name) => domains.iter_mut().find(|domain| domain.spec.name == name).ok_or(Why::NoSuchDomain)?,
        None => domains.last_mut().ok_or(Why::NoDomainBefore)?,
    };
    owner.initrds.try_reserve(1).map_err(|_| Why::OutOfMemory)?;
    owner.initrds.push(module);
    Ok(())
}

impl<'a> Spec<'a> {
    /// Reads what stands behind `domain`, for a machine with so many CPUs.
    pub fn parse(text: &'a str, cpus: u32) -> Result<Spec<'a>, Why<'a>> {
        let [mut name, mut memory, mut vcpus, mut weight, mut cap, mut list] = [None; 6];
        for word in words(text) {
            match word.split_once('=') {
                Some(("name", value)) => once(&mut name, "name", value)?,
                Some(("memory", value)) => once(&mut memory, "memory", value)?,
                Some(("vcpus", value)) => once(&mut vcpus, "vcpus", value)?,
                Some(("weight", value)) => once(&mut weight, "weight", value)?,
                Some(("cap", value)) => once(&mut cap, "cap", value)?,
                Some(("cpus", value)) => once(&mut list, "cpus", value)?,
                _ => return Err(Why::Unknown(word)),
            }
        }
        let name = name.ok_or(Why::Missing("name", "web"))?;
        if !is_name(name) {
            return Err(Why::Name);
        }
        let weight = match weight {
            Some(value) => Weight::new(number("weight", value, 1, u16::MAX.into())?).unwrap_or_default(),
            None => Weight::DEFAULT,
        };
        let hard = match list {
            Some(value) => cpu_list(value, cpus)?,
            None => CpuSet::ALL,
        };
        Ok(Spec {
            name,
            memory: size(memory.ok_or(Why::Missing("memory", "512M"))?)?,
            vcpus: vcpus.map_or(Ok(1), |value| number("vcpus", value, 1, MOST_VCPUS))?,
            terms: Terms {
                weight,
                cap: cap.map_or(Ok(0), |value| number("cap", value, 0, MOST_CAP))?,
                affinity: Affinity { hard, ..Affinity::ANY },
            },
            cmdline: behind_separator(text),
        })
    }
}

fn first_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_once(char::is_whitespace).unwrap_or((text, ""))
}

/// The words before the separator.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace().take_while(|word| *word != SEPARATOR)
}

/// What stands behind the separator, without blanks around.
fn behind_separator(text: &str) -> &str {
    let mut rest = text;
    loop {
        let (word, behind) = first_word(rest);
        if word == SEPARATOR || word.is_empty() {
            return behind.trim();
        }
        rest = behind;
    }
}

fn once<'a>(place: &mut Option<&'a str>, option: &'static str, value: &'a str) -> Result<(), Why<'a>> {
    if place.replace(value).is_some() { Err(Why::Twice(option)) } else { Ok(()) }
}

fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && !["dom0", "domain-0"].iter().any(|reserved| name.eq_ignore_ascii_case(reserved))
}

fn size(value: &str) -> Result<u64, Why<'_>> {
    match dom0_mem::bytes(value) {
        Some(bytes) if bytes < LEAST_MEMORY => Err(Why::TooSmall(value, bytes)),
        Some(bytes) => Ok(bytes & !(mm::PAGE_SIZE as u64).wrapping_sub(1)),
        None => Err(Why::NoSize(value)),
    }
}

fn number<'a>(option: &'static str, value: &'a str, least: u32, most: u32) -> Result<u32, Why<'a>> {
    let number = value.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or(Why::Range { option, value, least, most })
}

/// `0-1,3`: CPUs by their numbers.
fn cpu_list(value: &str, count: u32) -> Result<CpuSet, Why<'_>> {
    let mut set = CpuSet::EMPTY;
    for part in value.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else {
            return Err(Why::NoCpus(value));
        };
        if first > last {
            return Err(Why::NoCpus(value));
        }
        if last >= count {
            return Err(Why::NoSuchCpu { value, cpu: last, count });
        }
        (first..=last).for_each(|cpu| set.insert(CpuId(cpu)));
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CPUS: u32 = 4;

    fn sorted<'a>(strings: &[&'a str]) -> (Modules<'a>, Vec<String>) {
        let mut refused = Vec::new();
        let modules = sort(strings, CPUS, |refusal| refused.push(refusal.to_string())).unwrap();
        (modules, refused)
    }

    /// Why the only domain is left out.
    fn refusal(words: &str) -> String {
        let (modules, mut refused) = sorted(&["console=hvc0", words]);
        assert_eq!((modules.domains.len(), modules.dom0, refused.len()), (0, vec![0], 1), "{words}");
        refused.remove(0)
    }

    #[test]
    fn a_domain_has_all_that_its_module_says() {
        let text = " domain  name=web memory=1G vcpus=2 weight=512 cap=50 cpus=0-1,3 --  console=hvc0 -- quiet ";
        let (modules, refused) = sorted(&["vmlinuz", text]);
        assert_eq!(refused, [""; 0]);
        let Spec { name, memory, vcpus, terms, cmdline } = modules.domains[0].spec;
        assert_eq!((name, memory, vcpus, cmdline), ("web", 1 << 30, 2, "console=hvc0 -- quiet"));
        assert_eq!((terms.weight.get(), terms.cap), (512, 50));
        assert_eq!(terms.affinity.hard, [0, 1, 3].into_iter().map(CpuId).collect());
        assert_eq!(terms.affinity.soft, CpuSet::ALL);
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let spec = Spec::parse("name=a memory=64M", CPUS).unwrap();
        assert_eq!(spec, Spec { name: "a", memory: 64 << 20, vcpus: 1, terms: Terms::default(), cmdline: "" });
        assert_eq!(Spec::parse("name=a memory=64M --", CPUS).unwrap().cmdline, "");
        assert_eq!(Spec::parse("name=a memory=4097k", CPUS).unwrap().memory, 4096 << 10);
    }

    #[test]
    fn modules_that_do_not_say_so_are_dom0s_wherever_they_stand() {
        let strings = ["domain name=a memory=64M", "domain-initrd", "root=/dev/sda1", "", "domains of vmlinuz"];
        let (modules, refused) = sorted(&strings);
        assert_eq!(modules.dom0, [2, 3]);
        assert_eq!((modules.domains[0].kernel, &*modules.domains[0].initrds), (0, &[1][..]));
        assert_eq!(refused, ["module 4: domains is no kind of module; write domain or domain-initrd; left out"]);
    }

    #[test]
    fn an_initrd_belongs_to_the_domain_before_it_or_to_the_one_that_it_names() {
        let (a, b) = ("domain name=a memory=64M", "domain name=b memory=64M");
        let (modules, refused) =
            sorted(&["", a, "domain-initrd", b, "domain-initrd", "domain-initrd name=a", "domain-initrd name=c"]);
        let initrds: Vec<_> = modules.domains.iter().map(|domain| domain.initrds.clone()).collect();
        assert_eq!(initrds, [vec![2, 5], vec![4]]);
        let lost = "domain-initrd: no domain is called so; put the domain's module before it; left out";
        assert_eq!(refused, [format!("domain c: {lost}")]);
    }

    #[test]
    fn the_initrd_of_a_domain_that_is_left_out_is_nobody_elses() {
        let strings = ["", "domain name=a memory=64M", "domain name=b memory=0", "domain-initrd"];
        let (modules, refused) = sorted(&strings);
        assert_eq!((modules.domains.len(), modules.domains[0].initrds.len(), refused.len()), (1, 0, 1));
        let (_, refused) = sorted(&["", "domain-initrd", "domain-initrd naem=a"]);
        assert!(refused[0].contains("belongs to no domain") && refused[1].contains("naem=a: name="), "{refused:?}");
        let (_, refused) = sorted(&["", "domain name=b", "domain-initrd"]);
        assert_eq!(refused.len(), 1, "one line is enough");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_value_and_what_to_do() {
        for (words, said) in [
            ("domain memory=64M", "module 1: name= is missing; write for example name=web; left out"),
            ("domain name=a", "domain a: memory= is missing; write for example memory=512M; left out"),
            ("domain name=a memory=64M vcpus=0", "domain a: vcpus=0: must be a number from 1 to 128; left out"),
            ("domain name=a memory=64M vcpus=129", "domain a: vcpus=129: must be a number from 1 to 128; left out"),
            ("domain name=a memory=64M weight=65536", "weight=65536: must be a number from 1 to 65535"),
            ("domain name=a memory=64M cap=-1", "cap=-1: must be a number from 0 to"),
            ("domain name=a memory=lots", "domain a: memory=lots: is no size; write for example 512M; left out"),
            ("domain name=a memory=512", "memory=512: is 512 KiB; write a larger size with its suffix"),
            ("domain name=a memory=64M cpus=3-1", "cpus=3-1: is no list of CPUs; write for example 0-1,3"),
            ("domain name=a memory=64M cpus=", "cpus=: is no list of CPUs"),
            ("domain name=a memory=64M cpus=2-4", "cpus=2-4: there is no CPU 4; the machine has 0 to 3"),
            ("domain name=a memory=64M memory=1G", "domain a: memory= is given twice; give it once; left out"),
            ("domain name=a memory=64M quiet", "domain a: quiet: name=, memory="),
            ("domain name=a.b memory=64M", "domain a.b: name=: a name has 1 to 31"),
            ("domain name=Dom0 memory=64M", "name=: a name has"),
        ] {
            let refusal = refusal(words);
            assert!(refusal.contains(said), "{words}: {refusal}");
        }
        let (modules, refused) = sorted(&["", "domain name=a memory=64M", "domain name=a memory=64M"]);
        assert_eq!((modules.domains.len(), modules.domains[0].kernel), (1, 1));
        assert_eq!(refused, ["domain a: name=: another domain is called so; choose another; left out"]);
    }

    proptest! {
        #[test]
        fn no_string_can_panic_the_parser(
            strings in proptest::collection::vec("(domain|domain-initrd)?( (name=|memory=|vcpus=|cpus=|cap=|--)?[0-9a-zé,-]{0,12}){0,5}", 0..5),
        ) {
            let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
            let modules = sort(&strings, CPUS, |refusal| drop(refusal.to_string())).unwrap();
            let count = modules.domains.iter().map(|domain| 1 + domain.initrds.len()).sum::<usize>();
            prop_assert!(count + modules.dom0.len() <= strings.len());
        }
    }
}
