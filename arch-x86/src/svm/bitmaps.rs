//! The I/O and MSR permission maps (APM Vol. 2, 15.10 and 15.11).

use mm::addr::HostPhys;
use mm::{Frames, Memory, try_box};

use crate::engine::Bitmaps;
use crate::policy::msr::{MsrPolicy, Passthrough};
use crate::vdev::ports::{BITMAP_WORDS, Ports};

/// 12 KiB: the last page stands for accesses that begin at port 0xfffd or later and go beyond the end.
const IOPM_ORDER: u8 = 2;
const MSRPM_ORDER: u8 = 1;
const MSRPM_BYTES: usize = 2 * mm::PAGE_SIZE;
const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
const IA32_PAT: u32 = 0x277;

/// The maps of a domain with these ports and MSRs; `None` if there is no memory.
pub fn make(memory: &'static Memory, ports: &Ports, msr: &MsrPolicy) -> Option<Bitmaps> {
    let frames = |order| memory.allocate(order, None).ok().map(Frames::scrub);
    let bitmaps = Bitmaps { ports: frames(IOPM_ORDER)?, msrs: frames(MSRPM_ORDER)? };
    let window = memory.window();
    let mut words = try_box([0u64; BITMAP_WORDS]).ok()?;
    ports.fill_bitmap(&mut words);
    let base = bitmaps.ports.mfn().phys().0;
    let beyond = core::iter::repeat_n(u64::MAX, mm::PAGE_SIZE / 8);
    for (index, word) in words.iter().copied().chain(beyond).enumerate() {
        window.write_u64(HostPhys(base + index as u64 * 8), word).ok()?;
    }
    fill_msrs(memory, &bitmaps, msr)?;
    Some(bitmaps)
}

/// Has the MSRs of another policy in a domain's map. No vCPU of it has run.
pub fn fill_msrs(memory: &Memory, bitmaps: &Bitmaps, msr: &MsrPolicy) -> Option<()> {
    let mut map = try_box([0xffu8; MSRPM_BYTES]).ok()?;
    fill_msr_map(&mut map, msr.passthrough());
    memory.window().copy_to(bitmaps.msrs.mfn().phys(), &map[..]).ok()
}

/// Two bits an MSR: a read exits, a write exits.
fn fill_msr_map(map: &mut [u8; MSRPM_BYTES], through: impl Iterator<Item = Passthrough>) {
    for row in through {
        let base = match row.msr {
            // The guest's PAT is in the VMCB; its MSR stays the host's, which nested walks use.
            IA32_PAT => continue,
            // QEMU's TCG reads it as zero; kernels use RDTSC.
            IA32_TIME_STAMP_COUNTER => continue,
            0..0x2000 => 0,
            0xc000_0000..0xc000_2000 => 0x800,
            0xc001_0000..0xc001_2000 => 0x1000,
            _ => continue,
        };
        let (index, bit) = ((row.msr & 0x1fff) as usize / 4, row.msr % 4 * 2);
        let allowed = u8::from(row.read) | u8::from(row.write) << 1;
        if let Some(byte) = map.get_mut(base + index) {
            *byte &= !(allowed << bit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(msr: u32, read: bool, write: bool) -> [u8; MSRPM_BYTES] {
        let mut map = [0xff; MSRPM_BYTES];
        fill_msr_map(&mut map, [Passthrough { msr, read, write }].into_iter());
        map
    }

    #[test]
    fn an_msr_that_goes_through_has_its_two_bits_clear() {
        assert_eq!(map(0x174, true, true)[0x5d], 0xfc);
        assert_eq!(map(0xc000_0102, true, true)[0x840], 0xcf);
        assert_eq!(map(0xc001_0003, true, false)[0x1000], 0xbf);
        assert_eq!(map(0x11, false, true)[4], 0xf7);
    }

    #[test]
    fn the_hosts_pat_is_out_of_reach() {
        assert!(map(IA32_PAT, true, true).iter().all(|byte| *byte == 0xff));
    }
}
