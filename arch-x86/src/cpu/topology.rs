//! Where a CPU is in the machine, and what it has: told by CPUID on that CPU.

use core::arch::x86_64::CpuidResult;
use core::fmt;

use sched::CpuPlace;

/// CPUID as a function of leaf and subleaf.
pub trait Cpuid: Fn(u32, u32) -> CpuidResult {}

impl<F: Fn(u32, u32) -> CpuidResult> Cpuid for F {}

/// Extended topology, with and without levels beyond core (SDM Vol. 2, CPUID).
const EXTENDED_TOPOLOGIES: [u32; 2] = [0x1f, 0xb];
/// Kinds of levels in it.
const SMT: u32 = 1;
#[cfg(test)]
const CORE: u32 = 2;
/// Subleaves that are looked at.
const LEVELS: u32 = 8;

/// The place of the CPU that answers. Without a table of its own every socket is taken for a part of node 0.
pub fn place(cpuid: &impl Cpuid) -> CpuPlace {
    let highest = cpuid(0, 0).eax;
    let leaves = EXTENDED_TOPOLOGIES.into_iter().filter(|leaf| *leaf <= highest);
    for leaf in leaves {
        // A leaf without levels is one that the CPU does not have.
        if cpuid(leaf, 0).ebx & 0xffff != 0 {
            return by_levels(cpuid, leaf);
        }
    }
    by_counts(cpuid)
}

/// Each level says how many bits of the x2APIC id it and those below take; the core is what lies between threads and package.
fn by_levels(cpuid: &impl Cpuid, leaf: u32) -> CpuPlace {
    let (mut thread_bits, mut package_bits) = (0, 0);
    let id = cpuid(leaf, 0).edx;
    for level in 0..LEVELS {
        let answer = cpuid(leaf, level);
        let bits = answer.eax & 0x1f;
        match answer.ecx >> 8 & 0xff {
            0 => break,
            SMT => (thread_bits, package_bits) = (bits, package_bits.max(bits)),
            _ => package_bits = package_bits.max(bits),
        }
    }
    from_id(id, thread_bits, package_bits)
}

/// Older CPUs tell numbers, which stand for as many bits as they need.
fn by_counts(cpuid: &impl Cpuid) -> CpuPlace {
    const HTT: u32 = 1 << 28;
    let basic = cpuid(1, 0);
    let id = basic.ebx >> 24;
    let logical = if basic.edx & HTT != 0 { (basic.ebx >> 16 & 0xff).max(1) } else { 1 };
    let extended = if cpuid(0x8000_0000, 0).eax >= 0x8000_0008 { cpuid(0x8000_0008, 0).ecx } else { 0 };
    // AMD tells the bits of the core's number, or the number of cores (APM Vol. 3, Fn8000_0008_ECX).
    let package_bits = match (extended >> 12 & 0xf, extended & 0xff) {
        (0, 0) => bits_for(logical),
        (0, cores) => bits_for(cores + 1),
        (bits, _) => bits,
    };
    let cores = if cpuid(0, 0).eax >= 4 { (cpuid(4, 0).eax >> 26) + 1 } else { logical };
    let is_amd = extended & 0xff != 0;
    let thread_bits = if is_amd { 0 } else { bits_for(logical).saturating_sub(bits_for(cores)) };
    from_id(id, thread_bits, package_bits)
}

/// Bits that it takes to count so many.
fn bits_for(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

fn from_id(id: u32, thread_bits: u32, package_bits: u32) -> CpuPlace {
    let inside = |bits: u32| 1u32.checked_shl(bits).map_or(u32::MAX, |end| end - 1);
    CpuPlace {
        node: 0,
        socket: id.checked_shr(package_bits).unwrap_or(0),
        core: (id & inside(package_bits)).checked_shr(thread_bits).unwrap_or(0),
    }
}

/// What CPUs must have in common, since guests are told one and the same of all of them, and run on all of them: leaf, subleaf, and the bits of
/// EAX, EBX, ECX and EDX that are features. The others are names, numbers, or say what the system has switched on.
#[rustfmt::skip]
const COMPARED: [(u32, u32, [u32; 4]); 10] = [
    (0x1, 0,         [0, 0, !OSXSAVE, !0]),
    (0x7, 0,         [0, !0, !OSPKE, !0]),
    (0x7, 1,         [!0; 4]),
    (0x7, 2,         [!0; 4]),
    // EBX tells the size of what is switched on.
    (0xd, 0,         [!0, 0, !0, !0]),
    (0xd, 1,         [!0, 0, !0, !0]),
    (0x8000_0001, 0, [0, 0, !0, !0]),
    (0x8000_0007, 0, [0, 0, 0, !0]),
    // The number of cores is in ECX.
    (0x8000_0008, 0, [!0, !0, 0, 0]),
    (0x8000_000a, 0, [0, 0, 0, !0]),
];
const OSXSAVE: u32 = 1 << 27;
const OSPKE: u32 = 1 << 4;

/// A feature that one CPU has and another has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    pub leaf: u32,
    pub subleaf: u32,
    pub register: &'static str,
    pub boot: u32,
    pub here: u32,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { leaf, subleaf, register, boot, here } = self;
        write!(f, "CPUID leaf {leaf:#x}.{subleaf} {register} is {here:#010x} and not {boot:#010x}")
    }
}

/// What a CPU has: the leaves that [`compare`] looks at.
#[derive(Clone, Copy, Debug)]
pub struct Features([[u32; 4]; COMPARED.len()]);

impl Features {
    /// Those of the CPU that answers.
    pub fn of(cpuid: &impl Cpuid) -> Features {
        let highest = [cpuid(0, 0).eax, cpuid(0x8000_0000, 0).eax];
        let mut words = [[0; 4]; COMPARED.len()];
        for ((leaf, subleaf, features), words) in COMPARED.into_iter().zip(&mut words) {
            if leaf <= highest[usize::from(leaf >= 0x8000_0000)] {
                let answer = cpuid(leaf, subleaf);
                *words = [answer.eax, answer.ebx, answer.ecx, answer.edx];
                for (word, mask) in words.iter_mut().zip(features) {
                    *word &= mask;
                }
            }
        }
        Features(words)
    }

    /// The first difference from the boot CPU.
    pub fn compare(&self, boot: &Features) -> Option<Difference> {
        let mut leaves = COMPARED.into_iter().zip(self.0.iter().zip(&boot.0));
        leaves.find_map(|((leaf, subleaf, _), (here, boot))| {
            let mut registers = ["EAX", "EBX", "ECX", "EDX"].into_iter().zip(here.iter().zip(boot));
            let (register, (&here, &boot)) = registers.find(|(_, (here, boot))| here != boot)?;
            Some(Difference { leaf, subleaf, register, boot, here })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };

    /// Two threads a core, four cores: as Intel's extended topology has it.
    fn with_levels(id: u32) -> impl Fn(u32, u32) -> CpuidResult {
        move |leaf, level| match (leaf, level) {
            (0, _) => CpuidResult { eax: 0xb, ..NOTHING },
            (0xb, 0) => CpuidResult { eax: 1, ebx: 2, ecx: SMT << 8, edx: id },
            (0xb, 1) => CpuidResult { eax: 3, ebx: 8, ecx: 1 | CORE << 8, edx: id },
            _ => NOTHING,
        }
    }

    fn place_of(id: u32) -> (u32, u32) {
        let CpuPlace { socket, core, .. } = place(&with_levels(id));
        (socket, core)
    }

    #[test]
    fn levels_of_the_extended_topology_cut_the_id() {
        assert_eq!([0, 1, 2, 7, 8, 13].map(place_of), [(0, 0), (0, 0), (0, 1), (0, 3), (1, 0), (1, 2)]);
    }

    #[test]
    fn without_it_the_numbers_of_cores_and_threads_do() {
        // An AMD CPU of four cores that tells only their number.
        let amd = |id: u32| {
            place(&move |leaf, _| match leaf {
                0 => CpuidResult { eax: 1, ..NOTHING },
                1 => CpuidResult { ebx: id << 24 | 4 << 16, edx: 1 << 28, ..NOTHING },
                0x8000_0000 => CpuidResult { eax: 0x8000_0008, ..NOTHING },
                0x8000_0008 => CpuidResult { ecx: 3, ..NOTHING },
                _ => NOTHING,
            })
        };
        assert_eq!([0, 3, 4, 7].map(|id| (amd(id).socket, amd(id).core)), [(0, 0), (0, 3), (1, 0), (1, 3)]);
        // One that tells nothing is a socket of its own.
        let plain =
            |id: u32| place(&move |leaf, _| CpuidResult { eax: u32::from(leaf == 0), ebx: id << 24, ..NOTHING });
        assert_eq!((plain(0).socket, plain(1).socket), (0, 1));
    }

    #[test]
    fn nonsense_in_the_leaves_makes_no_nonsense_of_the_arithmetic() {
        for value in [0, 1, 0x1f, u32::MAX, 0x8000_0008] {
            let _ = place(&|_, _| CpuidResult { eax: value, ebx: value, ecx: value, edx: value });
        }
    }

    #[test]
    fn the_first_feature_that_differs_is_named() {
        let cpu = |ebx: u32, id: u32| {
            Features::of(&move |leaf, subleaf| match (leaf, subleaf) {
                (0, _) => CpuidResult { eax: 0xd, ..NOTHING },
                (1, _) => CpuidResult { ebx: id << 24, ecx: id << 27 & 1 << 27, ..NOTHING },
                (7, 0) => CpuidResult { ebx, ..NOTHING },
                _ => NOTHING,
            })
        };
        assert_eq!(cpu(5, 1).compare(&cpu(5, 0)), None, "numbers and what is switched on may differ");
        let difference = cpu(4, 1).compare(&cpu(5, 0)).expect("a difference");
        assert_eq!(difference.to_string(), "CPUID leaf 0x7.0 EBX is 0x00000004 and not 0x00000005");
    }
}
