//! I/O bitmaps A and B, and the MSR bitmap (SDM Vol. 3, 25.6.4 and 25.6.9).

use mm::addr::HostPhys;
use mm::{Frames, Memory, try_box};

use crate::engine::Bitmaps;
use crate::policy::msr::MsrPolicy;
use crate::vdev::ports::{BITMAP_WORDS, Ports};

/// Bitmap B lies behind A.
const TWO_PAGES: u8 = 1;

/// The bitmaps of a domain with these ports and MSRs; `None` if there is no memory.
pub fn make(memory: &'static Memory, ports: &Ports, msr: &MsrPolicy) -> Option<Bitmaps> {
    let frames = |order| memory.allocate(order, None).ok().map(Frames::scrub);
    let bitmaps = Bitmaps { ports: frames(TWO_PAGES)?, msrs: frames(0)? };
    let window = memory.window();
    let mut words = try_box([0u64; BITMAP_WORDS]).ok()?;
    ports.fill_bitmap(&mut words);
    let base = bitmaps.ports.mfn().phys().0;
    for (index, word) in words.iter().enumerate() {
        window.write_u64(HostPhys(base + index as u64 * 8), *word).ok()?;
    }
    fill_msrs(memory, &bitmaps, msr)?;
    Some(bitmaps)
}

/// Has the MSRs of another policy in a domain's bitmap. No vCPU of it has run.
pub fn fill_msrs(memory: &Memory, bitmaps: &Bitmaps, msr: &MsrPolicy) -> Option<()> {
    let mut bits = try_box([0xffu8; mm::PAGE_SIZE]).ok()?;
    for row in msr.passthrough() {
        let base = match row.msr {
            0..0x2000 => 0,
            0xc000_0000..0xc000_2000 => 1024,
            _ => continue,
        };
        let (byte, bit) = (base + (row.msr & 0x1fff) as usize / 8, row.msr % 8);
        if row.read {
            bits[byte] &= !(1 << bit);
        }
        if row.write {
            bits[2048 + byte] &= !(1 << bit);
        }
    }
    memory.window().copy_to(bitmaps.msrs.mfn().phys(), &bits[..]).ok()
}
