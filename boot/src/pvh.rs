//! The start information of PVH, from a loader that takes the ELF file as it is: QEMU's `-kernel`, or another hypervisor.

use core::mem::size_of;

use mm::{HostPhys, Window};
use xen_abi::start_info::{MemmapTableEntry, ModlistEntry, StartInfo, XEN_HVM_START_MAGIC_VALUE};
use zerocopy::{FromBytes, IntoBytes};

use crate::info::{BootInfo, MAX_REGIONS, Module};
use crate::memory::{self, Problem, Region, RegionKind};
use crate::strings::Strings;

/// Reads the start information at `at`; `None` if there is none. What is wrong with the memory map is told to `problem`.
pub fn read(window: &Window, at: HostPhys, strings: &mut Strings, problem: impl FnMut(Problem)) -> Option<BootInfo> {
    let start: StartInfo = fetch(window, at)?;
    if start.magic != XEN_HVM_START_MAGIC_VALUE {
        return None;
    }
    let mut info = BootInfo {
        loader_name: "a PVH loader",
        cmdline: text(window, start.cmdline_paddr, strings),
        rsdp: (start.rsdp_paddr != 0).then_some(HostPhys(start.rsdp_paddr)),
        loader: at.0..at.0 + size_of::<StartInfo>() as u64,
        ..BootInfo::default()
    };
    for index in 0..u64::from(start.nr_modules) {
        let module: ModlistEntry = element(window, start.modlist_paddr, index)?;
        let cmdline = text(window, module.cmdline_paddr, strings);
        if module.size != 0
            && info.modules.try_push(Module { start: HostPhys(module.paddr), len: module.size, cmdline }).is_err()
        {
            break;
        }
    }
    // Only version 1 has a memory map.
    let entries = if start.version >= 1 { u64::from(start.memmap_entries).min(MAX_REGIONS as u64) } else { 0 };
    let regions =
        (0..entries).map_while(|index| element::<MemmapTableEntry>(window, start.memmap_paddr, index)).map(|entry| {
            Region {
                start: entry.addr,
                end: entry.addr.saturating_add(entry.size),
                kind: RegionKind::from_e820(entry.r#type),
            }
        });
    info.memory_map = memory::normalise(regions, problem);
    Some(info)
}

fn fetch<T: FromBytes + IntoBytes + zerocopy::Immutable>(window: &Window, at: HostPhys) -> Option<T> {
    let mut value = T::new_zeroed();
    window.copy_from(at, value.as_mut_bytes()).ok()?;
    Some(value)
}

fn element<T: FromBytes + IntoBytes + zerocopy::Immutable>(window: &Window, table: u64, index: u64) -> Option<T> {
    let offset = index.checked_mul(size_of::<T>() as u64)?;
    fetch(window, HostPhys(table.checked_add(offset)?))
}

/// The string at `at`, which may be absent.
fn text(window: &Window, at: u64, strings: &mut Strings) -> &'static str {
    if at == 0 {
        return "";
    }
    let mut buffer = [0u8; 2048];
    let mut len = 0;
    while let Some(byte) = buffer.get_mut(len) {
        let mut one = [0];
        if window.copy_from(HostPhys(at.saturating_add(len as u64)), &mut one).is_err() || one[0] == 0 {
            break;
        }
        *byte = one[0];
        len += 1;
    }
    strings.keep(&buffer[..len])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory with `pieces` in it, and a window to it.
    fn machine(pieces: &[(usize, &[u8])]) -> Window {
        let memory = Box::leak(Box::new([0u64; 1024]));
        for (at, piece) in pieces {
            memory.as_mut_bytes()[*at..at + piece.len()].copy_from_slice(piece);
        }
        // SAFETY: the memory is leaked, and only the window refers to it from here on.
        unsafe { Window::new(memory.as_mut_ptr().cast(), HostPhys(8192)) }
    }

    fn read_at_0x100(window: &Window) -> Option<BootInfo> {
        let mut strings = Strings::new(Box::leak(Box::new([0; 256])));
        read(window, HostPhys(0x100), &mut strings, |_| {})
    }

    #[test]
    fn what_the_loader_says_is_taken_over() {
        let start = StartInfo {
            magic: XEN_HVM_START_MAGIC_VALUE,
            version: 1,
            nr_modules: 1,
            modlist_paddr: 0x200,
            cmdline_paddr: 0x300,
            rsdp_paddr: 0xf0000,
            memmap_paddr: 0x400,
            memmap_entries: 2,
            ..StartInfo::default()
        };
        let module = ModlistEntry { paddr: 0x1000000, size: 0x1234, cmdline_paddr: 0x310, reserved: 0 };
        let map = [
            MemmapTableEntry { addr: 0x100000, size: 0x7f00000, r#type: 1, reserved: 0 },
            MemmapTableEntry { addr: 0, size: 0x9fc00, r#type: 1, reserved: 0 },
        ];
        let window = machine(&[
            (0x100, start.as_bytes()),
            (0x200, module.as_bytes()),
            (0x300, b"noreboot\0"),
            (0x310, b"console=hvc0\0"),
            (0x400, map.as_bytes()),
        ]);
        let info = read_at_0x100(&window).expect("start information");
        assert_eq!(info.cmdline, "noreboot");
        assert_eq!(
            info.modules.as_slice(),
            [Module { start: HostPhys(0x1000000), len: 0x1234, cmdline: "console=hvc0" }]
        );
        assert_eq!(info.rsdp, Some(HostPhys(0xf0000)));
        assert_eq!(info.memory_map.len(), 2);
        assert_eq!(info.memory_map[1], Region { start: 0x100000, end: 0x8000000, kind: RegionKind::Ram });
    }

    #[test]
    fn without_the_magic_there_is_no_start_information() {
        assert!(read_at_0x100(&machine(&[])).is_none());
    }

    #[test]
    fn lists_outside_of_memory_are_not_followed() {
        let start = StartInfo {
            magic: XEN_HVM_START_MAGIC_VALUE,
            version: 1,
            memmap_paddr: u64::MAX - 8,
            memmap_entries: 100,
            cmdline_paddr: 8190,
            ..StartInfo::default()
        };
        let info = read_at_0x100(&machine(&[(0x100, start.as_bytes()), (8190, b"ab")])).expect("start information");
        assert_eq!((info.cmdline, info.memory_map.len()), ("ab", 0));
    }
}
