//! Writing what a PVH kernel starts with, and how its first vCPU starts (`arch-x86/hvm/start_info.h` and Xen's `docs/misc/pvh`).

use alloc::vec::Vec;
use core::ops::Range;

use mm::GuestPhys;
use xen_abi::Errno;
use xen_abi::start_info::{MemmapTableEntry, ModlistEntry, StartInfo, XEN_HVM_START_MAGIC_VALUE};
use zerocopy::IntoBytes;

use super::elf::Kernel;
use super::initrd;
use super::map::Map;

/// The door to the memory of a domain that is being built.
pub trait GuestWriter {
    /// Copies `bytes` to guest memory: in one go, however many they are. EFAULT if not all of it is the guest's RAM.
    fn write(&mut self, at: GuestPhys, bytes: &[u8]) -> Result<(), Errno>;

    /// Writes `len` zeroes.
    fn zero(&mut self, at: GuestPhys, len: u64) -> Result<(), Errno>;
}

/// Writes `parts`, already arranged, as one initrd at `at`.
pub fn load_initrd(guest: &mut impl GuestWriter, at: u64, parts: &[&[u8]]) -> Result<(), Errno> {
    let mut end = 0u64;
    for (offset, part) in initrd::offsets(parts).0 {
        guest.zero(place(at, end)?, offset.saturating_sub(end))?;
        guest.write(place(at, offset)?, part)?;
        end = offset.saturating_add(part.len() as u64);
    }
    Ok(())
}

/// Copies the kernel's segments so that its first byte comes to lie at `at`, and returns its entry point there.
pub fn load_kernel(guest: &mut impl GuestWriter, at: u64, kernel: &Kernel<'_>) -> Result<u32, Errno> {
    let linked = kernel.extent().start;
    let moved = |address: u64| at.checked_add(address.checked_sub(linked)?);
    for segment in &kernel.segments {
        let start = moved(segment.address).ok_or(Errno::EFAULT)?;
        let data = segment.data.len() as u64;
        guest.write(GuestPhys(start), segment.data)?;
        guest.zero(place(start, data)?, segment.size.saturating_sub(data))?;
    }
    moved(kernel.entry.into()).and_then(|entry| u32::try_from(entry).ok()).ok_or(Errno::EFAULT)
}

/// What the start info tells the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// `SIF_*`.
    pub flags: u32,
    pub cmdline: &'a str,
    pub map: &'a Map,
    pub initrd: Option<&'a Range<u64>>,
    /// 0 for none.
    pub rsdp: u64,
}

impl Told<'_> {
    /// Bytes that [`write`](Self::write) needs. The map may grow by `more` regions until then.
    pub fn size(&self, more: usize) -> u64 {
        let regions = self.map.regions().len().saturating_add(more);
        let table = regions.saturating_mul(size_of::<MemmapTableEntry>());
        size_of::<StartInfo>()
            .saturating_add(size_of::<ModlistEntry>())
            .saturating_add(table)
            .saturating_add(self.cmdline.len())
            .saturating_add(1) as u64
    }

    /// Writes the start info to `at` and all it points to behind it. Version 1: the memory map spares the kernel a hypercall, and one
    /// that does not know of it asks XENMEM_memory_map.
    pub fn write(&self, guest: &mut impl GuestWriter, at: u64) -> Result<(), Errno> {
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(usize::try_from(self.size(0)).map_err(|_| Errno::ENOMEM)?)
            .map_err(|_| Errno::ENOMEM)?;
        let regions = self.map.regions();

        let modlist = at.saturating_add(size_of::<StartInfo>() as u64);
        let modules = u32::from(self.initrd.is_some());
        let memmap = modlist.saturating_add((size_of::<ModlistEntry>() as u64).saturating_mul(modules.into()));
        let cmdline = memmap.saturating_add(size_of::<MemmapTableEntry>().saturating_mul(regions.len()) as u64);
        let info = StartInfo {
            magic: XEN_HVM_START_MAGIC_VALUE,
            version: 1,
            flags: self.flags,
            nr_modules: modules,
            modlist_paddr: if modules == 0 { 0 } else { modlist },
            cmdline_paddr: cmdline,
            rsdp_paddr: self.rsdp,
            memmap_paddr: memmap,
            memmap_entries: u32::try_from(regions.len()).map_err(|_| Errno::E2BIG)?,
            reserved: 0,
        };
        bytes.extend_from_slice(info.as_bytes());
        if let Some(initrd) = self.initrd {
            let size = initrd.end.saturating_sub(initrd.start);
            let module = ModlistEntry { paddr: initrd.start, size, ..ModlistEntry::default() };
            bytes.extend_from_slice(module.as_bytes());
        }
        for region in regions {
            let size = region.end.saturating_sub(region.start);
            let entry = MemmapTableEntry { addr: region.start, size, r#type: region.kind.to_e820(), reserved: 0 };
            bytes.extend_from_slice(entry.as_bytes());
        }
        // The kernel reads up to the first NUL.
        bytes.extend_from_slice(self.cmdline.as_bytes());
        bytes.push(0);
        guest.write(GuestPhys(at), &bytes)
    }
}

/// A segment register as it is cached. The attributes have the layout of a descriptor's second word, shifted right by 8 (SDM Vol. 3,
/// 26.4.1): type, S, DPL, P, then from bit 12 on AVL, L, D/B, G.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentState {
    pub selector: u16,
    pub base: u64,
    pub limit: u32,
    pub attributes: u16,
}

/// How the first vCPU of a PVH domain starts: 32-bit protected mode without paging, interrupts off. What is not named is as after reset
/// or zero: all other general registers, CR3, CR4, EFER, GDTR, IDTR; LDTR is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuStart {
    pub eip: u32,
    /// The start info's address.
    pub ebx: u32,
    pub eflags: u32,
    pub cr0: u32,
    pub cs: SegmentState,
    /// DS, ES and SS; FS and GS may be as well.
    pub data: SegmentState,
    pub tr: SegmentState,
}

const CR0_PE: u32 = 1 << 0;
const CR0_ET: u32 = 1 << 4;
/// Bit 1 of EFLAGS is always set.
const EFLAGS_FIXED: u32 = 1 << 1;

const FLAT: SegmentState = SegmentState { selector: 0, base: 0, limit: u32::MAX, attributes: 0 };
/// Present, 32-bit, page granularity: code, execute and read, accessed.
const CODE: u16 = 0xc09b;
/// The same: data, read and write, accessed.
const DATA: u16 = 0xc093;
/// A present, busy 32-bit TSS.
const TSS: u16 = 0x008b;
const TSS_LIMIT: u32 = 0x67;

impl VcpuStart {
    /// EFAULT if the start info lies above 4 GiB.
    pub fn new(entry: u32, start_info: u64) -> Result<VcpuStart, Errno> {
        Ok(VcpuStart {
            eip: entry,
            ebx: u32::try_from(start_info).map_err(|_| Errno::EFAULT)?,
            eflags: EFLAGS_FIXED,
            cr0: CR0_PE | CR0_ET,
            cs: SegmentState { attributes: CODE, ..FLAT },
            data: SegmentState { attributes: DATA, ..FLAT },
            tr: SegmentState { limit: TSS_LIMIT, attributes: TSS, ..FLAT },
        })
    }
}

fn place(at: u64, offset: u64) -> Result<GuestPhys, Errno> {
    at.checked_add(offset).map(GuestPhys).ok_or(Errno::EFAULT)
}

#[cfg(test)]
mod tests {
    use super::super::map::{Region, RegionKind};
    use super::super::sample::elf64;
    use super::*;
    use xen_abi::start_info::{SIF_INITDOMAIN, SIF_PRIVILEGED};
    use zerocopy::FromBytes;

    /// Guest memory that was not zero before.
    struct Ram {
        bytes: Vec<u8>,
        writes: usize,
    }

    impl Ram {
        fn new(size: usize) -> Ram {
            Ram { bytes: vec![0xaa; size], writes: 0 }
        }

        fn read<T: FromBytes>(&self, at: u64) -> T {
            T::read_from_prefix(&self.bytes[at as usize..]).unwrap().0
        }
    }

    impl GuestWriter for Ram {
        fn write(&mut self, at: GuestPhys, bytes: &[u8]) -> Result<(), Errno> {
            self.writes += 1;
            let at = at.0 as usize;
            self.bytes.get_mut(at..at + bytes.len()).ok_or(Errno::EFAULT)?.copy_from_slice(bytes);
            Ok(())
        }

        fn zero(&mut self, at: GuestPhys, len: u64) -> Result<(), Errno> {
            let at = at.0 as usize;
            self.bytes.get_mut(at..at + len as usize).ok_or(Errno::EFAULT)?.fill(0);
            Ok(())
        }
    }

    #[test]
    fn a_kernel_is_copied_a_write_a_segment_and_its_rest_zeroed() {
        let image = elf64().load(0x1000, b"text", 6).load(0x1800, b"data", 4).entry(0x1002).build();
        let kernel = Kernel::parse(&image).unwrap();
        let mut ram = Ram::new(0x4000);
        assert_eq!(load_kernel(&mut ram, 0x3000, &kernel), Ok(0x3002));
        assert_eq!(ram.bytes[0x3000..0x3007], *b"text\0\0\xaa");
        assert_eq!(ram.bytes[0x3800..0x3804], *b"data");
        assert_eq!(ram.writes, 2);
        assert_eq!(load_kernel(&mut ram, 0x3900, &kernel), Err(Errno::EFAULT));
    }

    #[test]
    fn the_parts_of_an_initrd_are_joined_with_zeroes_between() {
        let mut ram = Ram::new(32);
        load_initrd(&mut ram, 4, &[b"early", b"real"]).unwrap();
        assert_eq!(ram.bytes[4..18], *b"early\0\0\0real\xaa\xaa");
    }

    #[test]
    fn the_start_info_tells_of_command_line_initrd_memory_and_acpi() {
        let map =
            Map::new(&[Region::new(0..0x8000, RegionKind::Ram), Region::new(0x8000..0x9000, RegionKind::Unusable)])
                .unwrap();
        let told = Told {
            flags: SIF_PRIVILEGED | SIF_INITDOMAIN,
            cmdline: "root=/dev/sda1 ro",
            map: &map,
            initrd: Some(&(0x5000..0x5123)),
            rsdp: 0x7000,
        };
        let mut ram = Ram::new(0x2000);
        told.write(&mut ram, 0x1000).unwrap();

        let info: StartInfo = ram.read(0x1000);
        assert_eq!((info.magic, info.version, info.flags), (XEN_HVM_START_MAGIC_VALUE, 1, 3));
        assert_eq!((info.nr_modules, info.rsdp_paddr, info.memmap_entries), (1, 0x7000, 2));
        let initrd: ModlistEntry = ram.read(info.modlist_paddr);
        assert_eq!((initrd.paddr, initrd.size, initrd.cmdline_paddr), (0x5000, 0x123, 0));
        let second: MemmapTableEntry = ram.read(info.memmap_paddr + 24);
        assert_eq!((second.addr, second.size, second.r#type), (0x8000, 0x1000, 5));
        let cmdline = info.cmdline_paddr as usize;
        assert_eq!(ram.bytes[cmdline..cmdline + 18], *b"root=/dev/sda1 ro\0");
        assert_eq!(cmdline as u64 + 18 - 0x1000, told.size(0));
        assert_eq!(ram.bytes[cmdline + 18], 0xaa);
        assert_eq!(ram.writes, 1);
    }

    #[test]
    fn without_an_initrd_there_is_no_module_list() {
        let told = Told { flags: 0, cmdline: "", map: &Map::default(), initrd: None, rsdp: 0 };
        let mut ram = Ram::new(0x1000);
        told.write(&mut ram, 0).unwrap();
        let info: StartInfo = ram.read(0);
        assert_eq!((info.nr_modules, info.modlist_paddr, info.memmap_entries), (0, 0, 0));
    }

    #[test]
    fn the_first_vcpu_starts_in_flat_protected_mode() {
        let start = VcpuStart::new(0x100_0b20, 0x10_0000).unwrap();
        assert_eq!((start.eip, start.ebx, start.cr0, start.eflags), (0x100_0b20, 0x10_0000, 0x11, 2));
        assert_eq!((start.cs.limit, start.data.base, start.tr.limit), (u32::MAX, 0, 0x67));
        assert_eq!(VcpuStart::new(0, 1 << 32), Err(Errno::EFAULT));
    }
}
