//! Domains that are made at boot beside Dom0.

use super::case::{Boot, Case, Context, host_is_well, last_lines, module, nothing_to_prepare};
use super::debian;
use crate::build;
use crate::console::End;
use crate::dom0::{DOMAIN_KERNEL_ARGS, Dom0};
use crate::engine::Engine;
use crate::image::Hypervisor;
use anyhow::{Context as _, Result, ensure};

const SUITE: &str = "trixie";

pub fn cases() -> Vec<Case> {
    // In Bochs it takes minutes.
    let beside_debian = |about, quick, engines| Case {
        on_xen: false,
        engines,
        run: Box::new(beside_debian),
        ..debian::case("domains_debian13", about, SUITE, quick)
    };
    vec![
        beside_debian("two Debian domains run beside Debian's Dom0 and end by themselves", true, |engine| {
            !matches!(engine, Engine::Bochs(_))
        }),
        beside_debian("the same in Bochs", false, |engine| {
            matches!(engine, Engine::Bochs(_)) && engine.bears_busy_cpus()
        }),
        Case {
            on_xen: false,
            prepare: nothing_to_prepare(),
            run: Box::new(|context| life(context, "domain_life", LIFE, 300)),
            ..debian::case("domains_life", "domains come and go, some of them hostile", SUITE, true)
        },
        Case {
            on_xen: false,
            prepare: nothing_to_prepare(),
            run: Box::new(|context| life(context, "domain_life", LONG_LIFE, 1800)),
            ..debian::case("domains_long_life", "200 domains come and go; a million hostile calls", SUITE, false)
        },
        Case {
            on_xen: false,
            prepare: nothing_to_prepare(),
            run: Box::new(|context| life(context, "domain_exhausted", "", 300)),
            ..debian::case("domains_exhausted", "who asks for something without memory is told so", SUITE, true)
        },
        Case {
            on_xen: false,
            prepare: nothing_to_prepare(),
            run: Box::new(shares),
            ..debian::case("domains_share", "two busy domains share a CPU by their weights", SUITE, true)
        },
        Case {
            on_xen: false,
            prepare: nothing_to_prepare(),
            run: Box::new(pinned),
            ..debian::case(
                "domains_pinned",
                "busy domains get what their caps and their CPUs allow, while a CPU is idle",
                SUITE,
                true,
            )
        },
        Case {
            on_xen: false,
            prepare: nothing_to_prepare(),
            run: Box::new(without_interrupts),
            ..debian::case("domains_no_interrupts", "domains that let no interrupt in, and always exit", SUITE, true)
        },
        Case {
            on_xen: false,
            prepare: nothing_to_prepare(),
            run: Box::new(neighbours),
            ..debian::case("domains_exits", "a domain that exits beside one that loads x87 state", SUITE, true)
        },
        Case {
            on_xen: false,
            prepare: nothing_to_prepare(),
            run: Box::new(|context| many(context, 1).map(drop)),
            ..debian::case(
                "domains_guests",
                "test guests as domains beside Dom0: each ends in its own way",
                SUITE,
                true,
            )
        },
        Case {
            on_xen: false,
            prepare: Box::new(build::checked),
            run: Box::new(checked),
            ..debian::case(
                "checked_guests",
                "the same on two CPUs, with assertions and lock ranks checked",
                SUITE,
                true,
            )
        },
    ]
}

/// What the guest that makes domains is told, in hexadecimal: cycles of creating and destroying, calls of the storm.
const LIFE: &str = "cycles=a calls=4e20";
const LONG_LIFE: &str = "cycles=c8 calls=f4240";

/// Dom0 is a guest that makes domains.
fn life(context: &Context<'_>, guest: &str, told: &str, limit: u64) -> Result<()> {
    let boot = Boot {
        corten_args: "dom0_mem=128M".into(),
        modules: vec![module(&build::guest(guest), told), module(&build::guest("domain_hostile"), "")],
        memory_mib: 1024,
        limit,
        ..Boot::default()
    };
    let run = context.boot("run", boot)?;
    host_is_well(&run)?;
    let failures: Vec<&str> = run.console.lines().filter(|line| line.contains(" FAIL")).collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n    "));
    ensure!(
        run.console.contains(&format!("GUEST {guest} DONE ")) && run.end == End::PoweredOff,
        "it did not come to its end:\n    {}",
        last_lines(&run.console, 12)
    );
    Ok(())
}

/// Two hogs of weights 256 and 512 on the one CPU share it 1:2, within 3 %.
fn shares(context: &Context<'_>) -> Result<()> {
    let console = hogs(context, 1, 11, &[("light", "weight=256"), ("heavy", "weight=512")])?;
    let ratio = share(&console, "heavy")? / share(&console, "light")?;
    ensure!((ratio / 2.0 - 1.0).abs() <= 0.03, "the weights are 1:2, and the shares 1:{ratio:.3}");
    Ok(())
}

/// One hog has half of CPU 0, and two have to share CPU 1 though the other is idle half of the time.
fn pinned(context: &Context<'_>) -> Result<()> {
    const HOGS: [(&str, &str, u32); 3] = [("half", "cap=50 cpus=0", 0), ("one", "cpus=1", 1), ("two", "cpus=1", 1)];
    let console = hogs(context, 2, 5, &HOGS.map(|(name, terms, _)| (name, terms)))?;
    // Where time is the host's, a busy host keeps a CPU from whoever has it for many time slices, and a budget that was not used in its
    // period does not come again.
    let counts = matches!(context.engine, Engine::Bochs(_));
    let (capped, shared) = if counts { (0.99..=1.01, 0.99..=1.01) } else { (0.8..=1.03, 0.85..=1.15) };
    for (name, terms, cpu) in HOGS {
        let share = share(&console, name)?;
        let bounds = if terms.contains("cap=") { &capped } else { &shared };
        ensure!(bounds.contains(&(share / 0.5)), "domain {name} ({terms}) has {share:.4} of a CPU, and not half of it");
        let ran =
            console.lines().find(|line| line.contains(&format!("{name} (domain ")) && line.contains(" has run for "));
        let ran = ran.with_context(|| format!("the hypervisor does not say where domain {name} has run"))?;
        ensure!(ran.trim_end().ends_with(&format!(", on CPUs {cpu}")), "domain {name} ({terms}) leaves its CPU: {ran}");
    }
    let together = share(&console, "one")? + share(&console, "two")?;
    ensure!((0.97..=1.03).contains(&together), "two domains have {together:.4} of the CPU that they share");
    Ok(())
}

/// Dom0's timer gets through to it while such a domain works on the one CPU there is: it ends the machine before the domain is done.
fn without_interrupts(context: &Context<'_>) -> Result<()> {
    let guest = build::guest("domain_share");
    for told in ["", "exits=1", "yields=1"] {
        let hog = module(&guest, &format!("domain name=hog memory=64M -- hog=8 {told}"));
        let modules = vec![module(&guest, "wait=2"), hog];
        let boot = Boot { corten_args: "dom0_mem=128M".into(), modules, limit: 60, ..Boot::default() };
        let run = context.boot("run", boot)?;
        host_is_well(&run)?;
        ensure!(run.end == End::PoweredOff, "it did not power off; its end:\n    {}", last_lines(&run.console, 12));
        ensure!(!run.console.contains("SHARE"), "hog={told}: Dom0 had no turn until the hog was done");
    }
    Ok(())
}

/// Hogs by name and terms, of which each says what it got from the first second to the one given; the console of all of it.
fn hogs(context: &Context<'_>, cpus: u32, end: u32, terms: &[(&str, &str)]) -> Result<String> {
    let guest = build::guest("domain_share");
    let mut modules = vec![module(&guest, &format!("wait={:x}", end + 2))];
    for (name, terms) in terms {
        modules.push(module(&guest, &format!("domain name={name} memory=64M {terms} -- hog={end:x}")));
    }
    let run = context
        .boot("run", Boot { corten_args: "dom0_mem=128M".into(), modules, cpus, limit: 120, ..Boot::default() })?;
    host_is_well(&run)?;
    ensure!(run.end == End::PoweredOff, "it did not power off; its end:\n    {}", last_lines(&run.console, 12));
    Ok(run.console)
}

/// The image with all its assertions, which end the run where they do not hold.
fn checked(context: &Context<'_>) -> Result<()> {
    let hypervisor = Hypervisor { image: build::checked_image(), ..context.hypervisor.clone() };
    let console = many(&Context { hypervisor: &hypervisor, engine: context.engine, logs: context.logs.clone() }, 2)?;
    ensure!(console.contains("assertions are on"), "the image does not say that it checks its assertions");
    Ok(())
}

/// Two domains, each alone with its CPU.
fn neighbours(context: &Context<'_>) -> Result<()> {
    // In Bochs a second takes longer.
    let seconds = if matches!(context.engine, Engine::Bochs(_)) { 2 } else { 8 };
    let guest = build::guest("domain_exits");
    let domain = |name: &str, cpu: u32, told: &str| {
        module(&guest, &format!("domain name={name} memory=64M cpus={cpu} -- until={seconds:x} {told}"))
    };
    let wait = format!("wait={:x}", seconds + 1);
    let boot = Boot {
        corten_args: "dom0_mem=128M".into(),
        modules: vec![
            module(&build::guest("domain_share"), &wait),
            domain("exits", 0, ""),
            domain("loads", 1, "fpu=1"),
        ],
        cpus: 2,
        limit: 120,
        ..Boot::default()
    };
    let run = context.boot("run", boot)?;
    host_is_well(&run)?;
    ensure!(run.end == End::PoweredOff, "it did not power off; its end:\n    {}", last_lines(&run.console, 12));
    for (index, name) in ["exits", "loads"].into_iter().enumerate() {
        judge(&run.console, &beside(name, "domain_exits"), index + 1).with_context(|| format!("domain {name}"))?;
    }
    Ok(())
}

/// A guest as a domain beside Dom0.
struct Beside {
    name: &'static str,
    guest: &'static str,
    vcpus: u32,
    /// More of the description, and for the guest.
    terms: &'static str,
    told: &'static str,
    /// How many checks it makes, if it ends by itself; what the hypervisor says of its end.
    checks: bool,
    ends: &'static str,
    /// What else its console shows.
    says: &'static [&'static str],
}

/// MiB of each.
const MEMORY: u32 = 64;

const fn beside(name: &'static str, guest: &'static str) -> Beside {
    Beside { name, guest, vcpus: 1, terms: "", told: "", checks: true, ends: "powers off", says: &[] }
}

const BESIDE: &[Beside] = &[
    Beside { vcpus: 2, says: &["a line by port 0xe9, ?[7mharmless"], ..beside("plain", "domain_checks") },
    Beside {
        told: "flood=1",
        says: &["bytes dropped: more than the console takes]"],
        ..beside("loud", "domain_checks")
    },
    Beside { vcpus: 2, told: "halt=1", checks: false, says: &["halts"], ..beside("halted", "domain_checks") },
    Beside { checks: false, ends: "reboots", ..beside("fault", "triple_fault") },
    Beside { checks: false, ends: "has crashed", ..beside("crash", "shutdown_crash") },
    Beside { checks: false, ends: "reboots", ..beside("again", "shutdown_reboot") },
    Beside { terms: "cap=50 cpus=0", ..beside("capped", "domain_checks") },
    Beside { vcpus: 2, ..beside("pair", "apic_ipi") },
    Beside { terms: "weight=1024", ..beside("page", "hypercall_page") },
    beside("faults", "vmx_instructions"),
];

/// Domains that are left out: the kernel, the description, what is said.
const LEFT_OUT: &[(&str, &str, &str)] = &[
    ("domain_checks", "domain name=huge memory=4G", "domain huge: memory=4 GiB: Dom0 and others leave"),
    ("domain_checks", "domain name=tiny memory=16M", "domain tiny: kernel: "),
    ("dom0_sleep", "domain name=odd memory=64M", "domain odd: kernel: "),
    ("domain_checks", "domain name=plain memory=64M", "domain plain: name=: another domain is called so"),
    ("domain_checks", "domain name=far memory=64M cpus=9", "domain far: cpus=9: there is no CPU 9"),
    ("domain_checks", "domain-initrd name=nobody", "domain nobody: domain-initrd: no domain is called so"),
];

/// Many domains, some of which are good for nothing. Dom0 sees the end of all of them.
fn many(context: &Context<'_>, cpus: u32) -> Result<String> {
    let mut modules = vec![module(&build::guest("domain_share"), "wait=c")];
    for (index, Beside { name, guest, vcpus, terms, told, .. }) in BESIDE.iter().enumerate() {
        let id = index + 1;
        let described = format!("domain name={name} memory={MEMORY}M vcpus={vcpus} {terms}");
        let told = format!("id={id:x} memory={MEMORY:x} vcpus={vcpus:x} {told}");
        modules.push(module(&build::guest(guest), &format!("{described} -- {told}")));
    }
    modules.extend(LEFT_OUT.iter().map(|(guest, described, _)| module(&build::guest(guest), described)));
    let boot =
        Boot { corten_args: "dom0_mem=128M".into(), modules, memory_mib: 1024, cpus, limit: 180, ..Boot::default() };
    let run = context.boot("run", boot)?;
    host_is_well(&run)?;
    ensure!(run.end == End::PoweredOff, "it did not power off; its end:\n    {}", last_lines(&run.console, 12));
    for (index, domain) in BESIDE.iter().enumerate() {
        judge(&run.console, domain, index + 1).with_context(|| format!("domain {}", domain.name))?;
    }
    for (_, described, said) in LEFT_OUT {
        let refused = run.console.lines().any(|line| line.contains(said) && line.contains("left out"));
        ensure!(refused, "\"{described}\" is not refused by \"{said} … left out\"");
    }
    Ok(run.console)
}

fn judge(console: &str, domain: &Beside, id: usize) -> Result<()> {
    let tag = format!("({}) ", domain.name);
    let own: Vec<&str> = console.lines().filter_map(|line| Some(line.split_once(&tag)?.1.trim_end())).collect();
    let failures: Vec<&str> = own.iter().copied().filter(|line| line.contains(" FAIL")).collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n    "));
    if domain.checks {
        let done = format!("GUEST {} DONE ", domain.guest);
        ensure!(own.iter().any(|line| line.starts_with(&done)), "it did not come to its end: {:?}", own.last());
    }
    for said in domain.says {
        ensure!(own.iter().any(|line| line.contains(said)), "it does not say {said:?}");
    }
    for end in [domain.ends, "its memory is free again"] {
        let line = |line: &str| line.contains(&format!("{} (domain {id})", domain.name)) && line.contains(end);
        ensure!(console.lines().any(line), "the hypervisor does not say {end:?}");
    }
    Ok(())
}

/// The part of the CPU that a domain says it got: "(light) … SHARE 1 of 3".
fn share(console: &str, name: &str) -> Result<f64> {
    let tag = format!("({name}) ");
    let mut own = console.lines().filter(|line| line.contains(&tag));
    let said = own.find_map(|line| line.split_once("SHARE ")?.1.split_once(" of "));
    let (got, all) = said.with_context(|| format!("domain {name} does not say what it got"))?;
    Ok(got.trim().parse::<f64>()? / all.trim().parse::<f64>()?)
}

/// Two domains of Debian's kernel and our initramfs. Both end while Dom0 is there; a third is described wrongly.
fn beside_debian(context: &Context<'_>) -> Result<()> {
    let dom0 = Dom0::fetch(SUITE)?;
    let initramfs = dom0.initramfs_path()?;
    // In Bochs, where two CPUs are slow for five vCPUs, Dom0 is done before the domains are.
    let wait = if matches!(context.engine, Engine::Bochs(_)) { 60 } else { 10 };
    let mut boot = debian::boot(SUITE, "checks", &format!("corten.wait={wait}"))?;
    boot.cpus = 2;
    boot.memory_mib = 1536;
    boot.limit = 600;
    let kernel = format!("{DOMAIN_KERNEL_ARGS} corten.run=poweroff");
    for (name, vcpus) in [("one", 1), ("two", 2)] {
        boot.modules.push(module(&dom0.kernel, &format!("domain name={name} memory=192M vcpus={vcpus} -- {kernel}")));
        boot.modules.push(module(&initramfs, &format!("domain-initrd name={name}")));
    }
    boot.modules.push(module(&dom0.kernel, "domain name=three memory=192M colour=red -- quiet"));
    let run = context.boot("run", boot)?;
    debian::judge(context, &run)?;
    for name in ["one", "two"] {
        let said = |what: &str| run.console.lines().any(|line| line.contains(name) && line.contains(what));
        for what in ["=== DOM0 INIT REACHED ===", "=== DOM0 SCRIPT DONE ===", "powers off", "its memory is free again"]
        {
            ensure!(said(what), "domain {name}: no line says {what:?}");
        }
    }
    ensure!(run.console.contains("domain three: colour=red"), "the domain that is described wrongly is not refused");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_read_from_the_domains_own_line() {
        let console = "(heavy) SHARE 6 of 9\r\n(light) SHARE 3 of 9\r\n";
        assert_eq!(share(console, "heavy").ok(), Some(6.0 / 9.0));
        assert!(share(console, "other").is_err());
    }
}
