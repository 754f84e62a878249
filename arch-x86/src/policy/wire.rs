//! A policy as the toolstack exchanges it: leaves and MSRs in arrays, in one order.

use alloc::vec::Vec;

use hypervisor::cpu_policy::MAX_LEAVES;
use mm::{OutOfMemory, try_vec};
use xen_abi::errno::Errno;
use xen_abi::x86::{CpuidLeaf, MsrEntry, XEN_CPUID_FIRST_LEAF, XEN_CPUID_NO_SUBLEAF};

use super::cpuid::{
    CACHES, CpuidPolicy, FIRST_EXTENDED, LAST_STRUCTURED, LEVELS, Leaf, MAX_BASIC, MAX_EXTENDED_AMD, STRUCTURED,
};

/// Where Xen's leaves lie if Viridian's come first.
const SECOND_HYPERVISOR: u32 = XEN_CPUID_FIRST_LEAF + 0x100;
/// Subleaves of leaf 0xD: two of its own, and one for each state that is not in the legacy area.
const STATES: u32 = 63;

/// MSR_PLATFORM_INFO.
pub const PLATFORM_INFO: u32 = 0xce;
/// IA32_ARCH_CAPABILITIES.
pub const ARCH_CAPABILITIES: u32 = 0x10a;
/// Of [`PLATFORM_INFO`]: CPUID can be made to fault. The one bit of it that a policy knows.
const CPUID_FAULTING: u64 = 1 << 31;

/// The array of what `answer` says.
pub fn serialise(answer: impl Fn(u32, u32) -> Leaf) -> Result<Vec<CpuidLeaf>, OutOfMemory> {
    // Room for all that there can be.
    let mut all = try_vec(MAX_LEAVES as usize)?;
    for_each(answer, |leaf| all.push(leaf));
    Ok(all)
}

/// Tells what `answer` says, in order. Leaves of hypervisors say nothing: those are no policy's to choose.
pub fn for_each(answer: impl Fn(u32, u32) -> Leaf, mut tell: impl FnMut(CpuidLeaf)) {
    let mut push = |leaf, subleaf| {
        let [a, b, c, d] = answer(leaf, if subleaf == XEN_CPUID_NO_SUBLEAF { 0 } else { subleaf });
        tell(CpuidLeaf { leaf, subleaf, a, b, c, d });
    };
    let [highest, ..] = answer(0, 0);
    for leaf in 0..=highest.min(MAX_BASIC) {
        match leaf {
            // The last one is that which says so.
            0x4 => last_of(CACHES, |index| answer(leaf, index)[0] & 0x1f == 0).for_each(|index| push(leaf, index)),
            0x7 => (0..=answer(leaf, 0)[0].min(LAST_STRUCTURED)).for_each(|index| push(leaf, index)),
            0xb => last_of(LEVELS, |index| answer(leaf, index)[2] & 0xff00 == 0).for_each(|index| push(leaf, index)),
            0xd => {
                let ([low, _, _, high], [_, _, low_s, high_s]) = (answer(leaf, 0), answer(leaf, 1));
                let states = u64::from(high | high_s) << 32 | u64::from(low | low_s);
                let highest = states.checked_ilog2().unwrap_or(0).clamp(1, STATES - 1);
                (0..=highest).for_each(|index| push(leaf, index));
            }
            _ => push(leaf, XEN_CPUID_NO_SUBLEAF),
        }
    }
    let [highest, ..] = answer(FIRST_EXTENDED, 0);
    for leaf in FIRST_EXTENDED..=highest.clamp(FIRST_EXTENDED, MAX_EXTENDED_AMD) {
        push(leaf, XEN_CPUID_NO_SUBLEAF);
    }
}

/// Subleaves up to the first that is the last, of so many at the most.
fn last_of(count: usize, is_last: impl Fn(u32) -> bool) -> impl Iterator<Item = u32> {
    let mut ended = false;
    (0..count as u32).take_while(move |&index| {
        let before = ended;
        ended = ended || is_last(index);
        !before
    })
}

/// A leaf or subleaf that no policy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchLeaf;

/// Leaves that the toolstack sends, over those that were there.
#[derive(Clone, Debug)]
pub struct Leaves {
    basic: [Leaf; MAX_BASIC as usize + 1],
    caches: [Leaf; CACHES],
    structured: [Leaf; STRUCTURED],
    levels: [Leaf; LEVELS],
    /// Of leaf 0xD what is a choice: the first subleaves. The components are as they are.
    states: [Leaf; 2],
    extended: [Leaf; (MAX_EXTENDED_AMD - FIRST_EXTENDED) as usize + 1],
}

impl Leaves {
    /// Those of a policy.
    pub fn of(policy: &CpuidPolicy) -> Leaves {
        let mut leaves = Leaves {
            basic: Default::default(),
            caches: Default::default(),
            structured: Default::default(),
            levels: Default::default(),
            states: Default::default(),
            extended: [[0; 4]; (MAX_EXTENDED_AMD - FIRST_EXTENDED) as usize + 1],
        };
        policy.for_each_leaf(|leaf| {
            // Every one has a place here.
            let _ = leaves.put(&leaf);
        });
        leaves
    }

    /// Puts a leaf in its place.
    pub fn put(&mut self, sent: &CpuidLeaf) -> Result<(), NoSuchLeaf> {
        let CpuidLeaf { leaf, subleaf, a, b, c, d } = *sent;
        let (table, index): (&mut [Leaf], u32) = match (leaf, subleaf) {
            (0x4, _) => (&mut self.caches, subleaf),
            (0x7, _) => (&mut self.structured, subleaf),
            (0xb, _) => (&mut self.levels, subleaf),
            (0xd, 2..STATES) => return Ok(()),
            (0xd, _) => (&mut self.states, subleaf),
            (0..=MAX_BASIC, XEN_CPUID_NO_SUBLEAF) => (&mut self.basic, leaf),
            (FIRST_EXTENDED..=MAX_EXTENDED_AMD, XEN_CPUID_NO_SUBLEAF) => (&mut self.extended, leaf & 0xff),
            // How many leaves of its own the hypervisor shows is not for the toolstack to say; libxenguest sends it all the same.
            (XEN_CPUID_FIRST_LEAF | SECOND_HYPERVISOR, XEN_CPUID_NO_SUBLEAF) => return Ok(()),
            _ => return Err(NoSuchLeaf),
        };
        *table.get_mut(index as usize).ok_or(NoSuchLeaf)? = [a, b, c, d];
        Ok(())
    }

    /// What a leaf says; nothing beyond the highest.
    pub fn answer(&self, leaf: u32, subleaf: u32) -> Leaf {
        let highest = |table: &[Leaf]| table.first().map_or(0, |leaf| leaf[0]);
        let (table, index): (&[Leaf], u32) = match leaf {
            1..FIRST_EXTENDED if leaf > highest(&self.basic) => return [0; 4],
            FIRST_EXTENDED.. if leaf != FIRST_EXTENDED && leaf > highest(&self.extended) => return [0; 4],
            0x4 => (&self.caches, subleaf),
            0x7 => (&self.structured, subleaf),
            0xb => (&self.levels, subleaf),
            0xd => (&self.states, subleaf),
            FIRST_EXTENDED..=MAX_EXTENDED_AMD => (&self.extended, leaf & 0xff),
            _ => (&self.basic, leaf),
        };
        table.get(index as usize).copied().unwrap_or_default()
    }
}

/// The array of MSRs of a policy that shows so much of IA32_ARCH_CAPABILITIES. MSR_PLATFORM_INFO has nothing to show.
pub fn msrs(capabilities: u64) -> [MsrEntry; 2] {
    [
        MsrEntry { idx: PLATFORM_INFO, ..MsrEntry::default() },
        MsrEntry { idx: ARCH_CAPABILITIES, flags: 0, val: capabilities },
    ]
}

/// Takes one MSR that the toolstack sends. Which error is which is as libxenguest's users know it: EINVAL for flags, and for what cannot be had;
/// ERANGE for an MSR that no policy has; EOVERFLOW for bits that no policy knows.
pub fn take_msr(sent: &MsrEntry, capabilities: &mut u64) -> Result<(), Errno> {
    match *sent {
        MsrEntry { flags: 1.., .. } => Err(Errno::EINVAL),
        MsrEntry { idx: PLATFORM_INFO, val: 0, .. } => Ok(()),
        MsrEntry { idx: PLATFORM_INFO, val: CPUID_FAULTING, .. } => Err(Errno::EINVAL),
        MsrEntry { idx: PLATFORM_INFO, .. } => Err(Errno::EOVERFLOW),
        MsrEntry { idx: ARCH_CAPABILITIES, val, .. } => {
            *capabilities = val;
            Ok(())
        }
        _ => Err(Errno::ERANGE),
    }
}
