//! The page that other CPUs start in.

use core::arch::global_asm;

use mm::addr::{HostPhys, Mfn};
use mm::{Memory, PAGE_SIZE};

use crate::paging;

global_asm!(include_str!("trampoline.S"), options(att_syntax));

unsafe extern "C" {
    static corten_trampoline: u8;
    static corten_trampoline_places: u8;
    static corten_trampoline_root: u8;
    static corten_trampoline_stack: u8;
    static corten_trampoline_argument: u8;
    static corten_trampoline_entry: u8;
    static corten_trampoline_expected: u8;
    static corten_trampoline_end: u8;
}

/// Addresses that the page's own is added to, 8 bytes apart.
const PLACES: u64 = 3;

/// How a CPU goes on from the trampoline.
#[derive(Clone, Copy, Debug)]
pub struct Onward {
    pub stack: u64,
    pub argument: u64,
    pub entry: u64,
}

/// The trampoline in its page.
pub struct Trampoline {
    memory: &'static Memory,
    page: HostPhys,
}

fn offset(symbol: *const u8) -> u64 {
    symbol.addr() as u64 - (&raw const corten_trampoline).addr() as u64
}

impl Trampoline {
    /// Puts it into a page of RAM below 1 MiB, which is Corten's from then on: frames there are nobody's to allocate. The error is the end of a
    /// line for the user.
    pub fn place(memory: &'static Memory, page: HostPhys) -> Result<Trampoline, &'static str> {
        paging::map_trampoline(page.mfn()).map_err(|_| "the page that they start in cannot be mapped")?;
        let this = Trampoline { memory, page };
        let root = this.low_root().ok_or("there is no memory below 4 GiB for a page table")?;
        let start = &raw const corten_trampoline;
        // SAFETY: the code lies between the two symbols, in the image's read-only part.
        let code = unsafe { core::slice::from_raw_parts(start, offset(&raw const corten_trampoline_end) as usize) };
        memory.window().copy_to(page, code).map_err(|_| "the page that they start in is no RAM")?;
        for place in 0..PLACES {
            let at = HostPhys(page.0 + offset(&raw const corten_trampoline_places) + place * 8);
            let word = memory.window().read_u64(at).unwrap_or(0);
            // An address below 1 MiB does not carry into the upper half.
            let _ = memory.window().write_u64(at, word + page.0);
        }
        this.set(&raw const corten_trampoline_root, root.phys().0);
        Ok(this)
    }

    /// The root of the host's page tables where a CPU without long mode can name it: itself, or a copy. It never changes.
    fn low_root(&self) -> Option<Mfn> {
        let root = paging::root()?;
        const LIMIT: HostPhys = HostPhys(1 << 32);
        if root.phys().0 + PAGE_SIZE as u64 <= LIMIT.0 {
            return Some(root);
        }
        let copy = self.memory.allocate(0, Some(LIMIT)).ok()?.into_host();
        self.memory.window().copy_frame(root, copy).ok()?;
        Some(copy)
    }

    fn set(&self, symbol: *const u8, value: u64) {
        let _ = self.memory.window().write_u64(HostPhys(self.page.0 + offset(symbol)), value);
    }

    /// The next CPU that starts here goes on so, and only that one.
    pub fn prepare(&self, onward: Onward) {
        self.set(&raw const corten_trampoline_stack, onward.stack);
        self.set(&raw const corten_trampoline_argument, onward.argument);
        self.set(&raw const corten_trampoline_entry, onward.entry);
        self.set(&raw const corten_trampoline_expected, 1);
    }

    /// No CPU is expected any more.
    pub fn withdraw(&self) {
        self.set(&raw const corten_trampoline_expected, 0);
    }

    /// The page's number, as a SIPI names it.
    pub fn vector(&self) -> u8 {
        (self.page.0 >> 12) as u8
    }
}
