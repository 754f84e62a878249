//! The host's own page tables: the image by its segments, all RAM in the direct map, devices and stacks on request.
//!
//! There is one address space, which all CPUs share. Its parts are apart by whole entries of the root, so that the root never
//! changes once it is in use.

use core::fmt;

use mm::{HostPhys, Lock, MemoryType, Mfn, PAGE_SIZE, PageSize, Rank, Window};

/// Physical address 0 in the direct map, which `mm::Window` shows: room for 64 TiB.
pub const DIRECT_MAP: u64 = 0xffff_8300_0000_0000;
/// Device registers, as they are mapped.
pub const DEVICES: u64 = 0xffff_f000_0000_0000;
/// Stacks, each above a page that is never mapped.
pub const STACKS: u64 = 0xffff_f080_0000_0000;
/// The image.
pub const IMAGE: u64 = 0xffff_ffff_8000_0000;

/// Bytes of address space in one entry of the root: what devices and stacks each have.
const ROOT_ENTRY: u64 = 1 << 39;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What the page-attribute table of every CPU holds while the host runs (IA32_PAT): as at reset, but that entries 1 and 5 are
/// write-combining, which is chosen by the write-through bit alone.
pub const PAT: u64 = 0x0007_0106_0007_0106;

/// What a mapping allows. Nothing is both writable and executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    ReadWrite,
    ReadExecute,
}

/// Why something cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// There is no frame for a page table.
    OutOfMemory,
    /// Something is mapped at this address.
    Occupied(u64),
    /// Addresses or length are no multiples of a page, or beyond the end of what can be addressed.
    BadRange,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory => f.write_str("no memory for page tables"),
            Self::Occupied(at) => write!(f, "{at:#x} is mapped already"),
            Self::BadRange => f.write_str("not a range of whole pages"),
        }
    }
}

/// Gives frames for page tables.
pub type FrameSource<'a> = &'a mut dyn FnMut() -> Option<Mfn>;

/// Page tables, reached through a window.
#[derive(Debug)]
pub struct PageTables {
    window: Window,
    root: Mfn,
    largest: PageSize,
}

impl PageTables {
    /// Empty tables that map by pages of up to `largest`.
    pub fn new(window: Window, largest: PageSize, frames: FrameSource<'_>) -> Result<Self, MapError> {
        let root = new_table(&window, frames)?;
        Ok(Self { window, root, largest })
    }

    /// The frame of the root, for CR3.
    pub fn root(&self) -> Mfn {
        self.root
    }

    /// The same tables through another window.
    pub fn with_window(self, window: Window) -> Self {
        Self { window, ..self }
    }

    /// Maps `len` bytes at `at` to those at `to`, by pages as large as possible.
    ///
    /// # Errors
    /// With `Occupied` and `OutOfMemory` the part before is mapped.
    pub fn map(
        &mut self,
        at: u64,
        to: HostPhys,
        len: u64,
        access: Access,
        memory: MemoryType,
        frames: FrameSource<'_>,
    ) -> Result<(), MapError> {
        let end = at.checked_add(len).ok_or(MapError::BadRange)?;
        let aligned = (at | to.0 | len) & (PAGE_SIZE as u64 - 1) == 0;
        if !aligned || to.0.checked_add(len).is_none_or(|end| end > ADDRESS + PAGE_SIZE as u64) {
            return Err(MapError::BadRange);
        }
        let mut run = Run { at, to: to.0, end, leaf: leaf_bits(access, memory) };
        while run.at < run.end {
            self.fill(self.root, 4, &mut run, frames)?;
        }
        Ok(())
    }

    /// Fills entries of one table until the run or the table ends.
    fn fill(&self, table: Mfn, level: u8, run: &mut Run, frames: FrameSource<'_>) -> Result<(), MapError> {
        let span = span(level);
        let leaf_here = PageSize::of_level(level).is_some_and(|size| size <= self.largest);
        loop {
            let slot = entry_address(table, run.at, level);
            let entry = self.window.read_u64(slot).map_err(|_| MapError::BadRange)?;
            if leaf_here && (run.at | run.to) & (span - 1) == 0 && run.end - run.at >= span {
                if entry != 0 {
                    return Err(MapError::Occupied(run.at));
                }
                let large = if level == 1 { 0 } else { LARGE };
                self.window.write_u64(slot, run.to | run.leaf | large).map_err(|_| MapError::BadRange)?;
                run.at += span;
                run.to += span;
            } else {
                let next = match entry {
                    0 => {
                        let new = new_table(&self.window, frames)?;
                        let entry = new.phys().0 | PRESENT | WRITABLE;
                        self.window.write_u64(slot, entry).map_err(|_| MapError::BadRange)?;
                        new
                    }
                    _ if entry & LARGE != 0 || level == 1 => return Err(MapError::Occupied(run.at)),
                    _ => HostPhys(entry & ADDRESS).mfn(),
                };
                self.fill(next, level - 1, run, frames)?;
            }
            if run.at >= run.end || run.at & (span * 512 - 1) == 0 {
                return Ok(());
            }
        }
    }

    /// What is mapped at an address.
    pub fn translate(&self, at: u64) -> Option<(HostPhys, Access)> {
        let mut table = self.root;
        for level in (1..=4).rev() {
            let entry = self.window.read_u64(entry_address(table, at, level)).ok()?;
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 1 || entry & LARGE != 0 {
                let inside = span(level) - 1;
                let access = match (entry & WRITABLE != 0, entry & NO_EXECUTE == 0) {
                    (true, _) => Access::ReadWrite,
                    (false, true) => Access::ReadExecute,
                    (false, false) => Access::Read,
                };
                return Some((HostPhys(entry & ADDRESS & !inside | at & inside), access));
            }
            table = HostPhys(entry & ADDRESS).mfn();
        }
        None
    }
}

/// What is left to be mapped.
struct Run {
    at: u64,
    to: u64,
    end: u64,
    leaf: u64,
}

/// Bytes that an entry of a table of this level covers.
const fn span(level: u8) -> u64 {
    1 << (12 + 9 * (level as u32 - 1))
}

fn entry_address(table: Mfn, at: u64, level: u8) -> HostPhys {
    HostPhys(table.phys().0 + (at / span(level) % 512) * 8)
}

fn new_table(window: &Window, frames: FrameSource<'_>) -> Result<Mfn, MapError> {
    let frame = frames().ok_or(MapError::OutOfMemory)?;
    window.zero_frame(frame).map_err(|_| MapError::BadRange)?;
    Ok(frame)
}

/// The bits of a leaf; for the memory types see [`PAT`].
fn leaf_bits(access: Access, memory: MemoryType) -> u64 {
    let access = match access {
        Access::Read => NO_EXECUTE,
        Access::ReadWrite => WRITABLE | NO_EXECUTE,
        Access::ReadExecute => 0,
    };
    let memory = match memory {
        MemoryType::WriteBack => 0,
        MemoryType::WriteCombining => WRITE_THROUGH,
        // The host asks for no other; uncached is always right, if slow.
        MemoryType::Uncacheable | MemoryType::WriteThrough | MemoryType::WriteProtected => {
            CACHE_DISABLE | WRITE_THROUGH
        }
    };
    PRESENT | GLOBAL | access | memory
}

/// The address space in use, and what of it has been given out.
struct Host {
    tables: Option<PageTables>,
    frames: fn() -> Option<Mfn>,
    next_device: u64,
    next_stack: u64,
}

static HOST: Lock<Host> =
    Lock::new(Rank::P2m, Host { tables: None, frames: || None, next_device: DEVICES, next_stack: STACKS });

/// Makes these the tables that the functions below change. `frames` gives frames for further tables and for stacks.
pub fn install(tables: PageTables, frames: fn() -> Option<Mfn>) {
    let mut host = HOST.lock();
    host.tables = Some(tables);
    host.frames = frames;
}

/// The root of the address space that all CPUs use; `None` before it is installed.
pub fn root() -> Option<Mfn> {
    HOST.lock().tables.as_ref().map(PageTables::root)
}

/// What the address space maps at an address.
pub fn translate(at: u64) -> Option<(HostPhys, Access)> {
    HOST.lock().tables.as_ref()?.translate(at)
}

/// Maps device registers, uncached. The mapping is for good; ask once for each device. The pointer is to the first byte asked
/// for, wherever it lies in its page.
pub fn map_mmio(at: HostPhys, len: u64) -> Result<*mut u8, MapError> {
    map_device(at, len, MemoryType::Uncacheable)
}

/// As [`map_mmio`], but write-combining: for framebuffers.
pub fn map_framebuffer(at: HostPhys, len: u64) -> Result<*mut u8, MapError> {
    map_device(at, len, MemoryType::WriteCombining)
}

fn map_device(at: HostPhys, len: u64, memory: MemoryType) -> Result<*mut u8, MapError> {
    const PAGE: u64 = PAGE_SIZE as u64;
    let offset = at.0 & (PAGE - 1);
    let len = len.checked_add(offset).and_then(|len| len.checked_next_multiple_of(PAGE)).ok_or(MapError::BadRange)?;
    let mut host = HOST.lock();
    let host = &mut *host;
    // Large things get large pages: the address is as far into its 2 MiB as the physical one.
    let large = PageSize::Size2M.bytes();
    let mut start = host.next_device;
    if len >= large {
        start = start.next_multiple_of(large) + (at.0 - offset) % large;
    }
    let end = start.checked_add(len).filter(|end| *end <= DEVICES + ROOT_ENTRY).ok_or(MapError::BadRange)?;
    let tables = host.tables.as_mut().ok_or(MapError::OutOfMemory)?;
    tables.map(start, HostPhys(at.0 - offset), len, Access::ReadWrite, memory, &mut || (host.frames)())?;
    host.next_device = end;
    Ok((start + offset) as *mut u8)
}

/// Maps a page below 1 MiB at its own address, to execute: what other processors start in switches paging on under its feet. It
/// is written through the direct map.
pub fn map_trampoline(page: Mfn) -> Result<(), MapError> {
    let at = page.phys();
    let mut host = HOST.lock();
    let host = &mut *host;
    let tables = host.tables.as_mut().ok_or(MapError::OutOfMemory)?;
    let frames = &mut || (host.frames)();
    tables.map(at.0, at, PAGE_SIZE as u64, Access::ReadExecute, MemoryType::WriteBack, frames)
}

/// Makes a stack of `pages` pages above one that is not mapped, so that an overflow is a fault and not a corruption. Returns
/// its top.
pub fn allocate_stack(pages: u64) -> Result<u64, MapError> {
    const PAGE: u64 = PAGE_SIZE as u64;
    let mut host = HOST.lock();
    let host = &mut *host;
    let bottom = host.next_stack + PAGE;
    let top = bottom + pages * PAGE;
    if top > STACKS + ROOT_ENTRY {
        return Err(MapError::BadRange);
    }
    let tables = host.tables.as_mut().ok_or(MapError::OutOfMemory)?;
    host.next_stack = top;
    for page in 0..pages {
        let frame = (host.frames)().ok_or(MapError::OutOfMemory)?;
        let at = bottom + page * PAGE;
        let memory = MemoryType::WriteBack;
        tables.map(at, frame.phys(), PAGE, Access::ReadWrite, memory, &mut || (host.frames)())?;
    }
    Ok(top)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: usize = 64;

    #[repr(align(4096))]
    struct Ram([[u8; 4096]; FRAMES]);

    /// Memory of a few frames, and a source of all but the first of them.
    fn machine() -> (Window, impl FnMut() -> Option<Mfn>) {
        let ram = Box::leak(Box::new(Ram([[0xee; 4096]; FRAMES])));
        // SAFETY: the memory is leaked, and only the window refers to it from here on.
        let window = unsafe { Window::new(ram.0.as_mut_ptr().cast(), HostPhys(FRAMES as u64 * 4096)) };
        let mut next = 1;
        (window, move || {
            next += 1;
            (next <= FRAMES as u64).then_some(Mfn(next - 1))
        })
    }

    fn tables(largest: PageSize) -> (PageTables, impl FnMut() -> Option<Mfn>) {
        let (window, mut frames) = machine();
        (PageTables::new(window, largest, &mut frames).expect("a root"), frames)
    }

    #[test]
    fn what_is_mapped_is_found_and_the_rest_is_not() {
        let (mut tables, mut frames) = tables(PageSize::Size1G);
        let (at, to) = (IMAGE + 0x3000, HostPhys(0x7fe0_3000));
        tables.map(at, to, 0x2000, Access::ReadExecute, MemoryType::WriteBack, &mut frames).expect("room");
        assert_eq!(tables.translate(at + 0x1fff), Some((HostPhys(0x7fe0_4fff), Access::ReadExecute)));
        assert_eq!(tables.translate(at - 1), None);
        assert_eq!(tables.translate(at + 0x2000), None);
    }

    #[test]
    fn pages_are_as_large_as_alignment_allows() {
        for (largest, count) in [(PageSize::Size1G, 1 + 1 + 2 + 2), (PageSize::Size2M, 1 + 1 + 3 + 2)] {
            let (mut tables, mut frames) = tables(largest);
            let mut used = 1;
            let mut counted = || {
                used += 1;
                frames()
            };
            // From one page before a 1 GiB border to one page after the next.
            let (at, to) = (DIRECT_MAP + (1 << 30) - 4096, HostPhys((1 << 30) - 4096));
            let len = (1 << 30) + 2 * 4096;
            tables.map(at, to, len, Access::ReadWrite, MemoryType::WriteBack, &mut counted).expect("room");
            assert_eq!(used, count, "{largest:?}");
            for offset in [0, 4096, 1 << 29, len - 1] {
                assert_eq!(tables.translate(at + offset), Some((HostPhys(to.0 + offset), Access::ReadWrite)));
            }
        }
    }

    #[test]
    fn a_mapping_crosses_tables_of_every_level() {
        let (mut tables, mut frames) = tables(PageSize::Size4K);
        let at = DIRECT_MAP + ROOT_ENTRY - 4096;
        tables.map(at, HostPhys(0x5000), 0x3000, Access::Read, MemoryType::WriteBack, &mut frames).expect("room");
        assert_eq!(tables.translate(at + 0x2000), Some((HostPhys(0x7000), Access::Read)));
    }

    #[test]
    fn nothing_is_mapped_twice() {
        let (mut tables, mut frames) = tables(PageSize::Size2M);
        let mut map = |at, len| tables.map(at, HostPhys(0), len, Access::ReadWrite, MemoryType::WriteBack, &mut frames);
        assert_eq!(map(IMAGE, 2 << 20), Ok(()));
        assert_eq!(map(IMAGE + 0x1000, 0x1000), Err(MapError::Occupied(IMAGE + 0x1000)));
        assert_eq!(map(IMAGE, 2 << 20), Err(MapError::Occupied(IMAGE)));
        assert_eq!(map(IMAGE + 1, 0x1000), Err(MapError::BadRange));
        assert_eq!(map(u64::MAX - 0xfff, 0x1000), Err(MapError::BadRange));
    }

    #[test]
    fn without_frames_the_mapping_fails() {
        let (mut tables, _) = tables(PageSize::Size1G);
        let result = tables.map(IMAGE, HostPhys(0), 0x1000, Access::Read, MemoryType::WriteBack, &mut || None);
        assert_eq!(result, Err(MapError::OutOfMemory));
    }

    #[test]
    fn only_text_is_executable_and_memory_types_follow_the_pat() {
        let pat = |leaf: u64| {
            let index = u64::from(leaf & WRITE_THROUGH != 0) | u64::from(leaf & CACHE_DISABLE != 0) << 1;
            PAT >> (index * 8) & 0xff
        };
        for access in [Access::Read, Access::ReadWrite, Access::ReadExecute] {
            for memory in [MemoryType::WriteBack, MemoryType::WriteCombining, MemoryType::Uncacheable] {
                let leaf = leaf_bits(access, memory);
                assert_eq!(leaf & NO_EXECUTE == 0, access == Access::ReadExecute);
                assert_eq!(leaf & WRITABLE != 0, access == Access::ReadWrite);
                assert_eq!(pat(leaf), memory as u64);
            }
        }
    }
}
