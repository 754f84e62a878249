//! PCI as the hardware has it: configuration space through ports and memory, and the memory of the devices.
//!
//! Configuration cycles and device memory cannot break Rust's memory: no BAR is let near RAM ([`Hardware::is_device_memory`]),
//! and what a device does with DMA is its driver's to answer for.

use alloc::vec::Vec;
use core::arch::asm;
use core::ops::Range;
use core::ptr::NonNull;

use arrayvec::ArrayVec;
use mm::addr::{HostPhys, Mfn};
use mm::lock::{Lock, Rank};
use mm::{PAGE_SIZE, RangeSet};
use xen_abi::errno::Errno;

use crate::paging;
use crate::pci::{ConfigAccess, PciHost, Sbdf, Width};
use crate::port::{inb, inl, inw, outb, outl, outw};
use crate::vdev::vpci::ecam::{Ecam, WINDOWS};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// What configuration mechanism #1 reaches of a function.
const PORTS_REACH: u16 = 0x100;
/// Frames of device memory that are mapped at most: a Dom0 that moves its BARs about has no more of the host's memory than that.
const MOST_FRAMES: usize = 1 << 14;

/// The machine's PCI buses.
pub struct Hardware {
    /// Address and data port belong together.
    ports: Lock<()>,
    windows: Lock<ArrayVec<Window, WINDOWS>>,
    /// Bytes of physical memory where no device may have a BAR.
    reserved: RangeSet,
    /// Device memory that has been touched, by frame.
    frames: Lock<Vec<(Mfn, Registers)>>,
}

/// Configuration space in memory.
struct Window {
    ecam: Ecam,
    /// Mapped when it is first used.
    registers: Option<Registers>,
}

impl Hardware {
    /// `reserved` is where no device may be: RAM and what else is not a device's, and the devices that are Corten's.
    pub fn new(reserved: RangeSet) -> Hardware {
        Hardware {
            ports: Lock::new(Rank::Console, ()),
            windows: Lock::new(Rank::Console, ArrayVec::new()),
            reserved,
            frames: Lock::new(Rank::Timers, Vec::new()),
        }
    }

    /// Reaches a segment's configuration space through this window from now on. `-ENOSPC` if there are too many, `-EINVAL` if
    /// it is where no device can be.
    pub fn add_window(&self, ecam: Ecam) -> Result<(), Errno> {
        let bytes = bytes(&ecam);
        if self.reserved.overlaps(bytes) {
            return Err(Errno::EINVAL);
        }
        self.windows.lock().try_push(Window { ecam, registers: None }).map_err(|_| Errno::ENOSPC)
    }

    /// The window that has a function, and the function's offset in it.
    fn window(&self, sbdf: Sbdf) -> Option<(Registers, u64)> {
        let (ecam, mapped) = {
            let windows = self.windows.lock();
            let window = windows.iter().find(|window| {
                let ecam = &window.ecam;
                ecam.segment == sbdf.segment() && (ecam.first_bus..=ecam.last_bus).contains(&sbdf.bus())
            })?;
            (window.ecam, window.registers)
        };
        let registers = match mapped {
            Some(registers) => registers,
            None => self.map_window(&ecam)?,
        };
        let offset = u64::from(sbdf.bdf()) << 12;
        Some((registers, offset - (u64::from(ecam.first_bus) << 20)))
    }

    /// Maps all of a window, which takes no more page tables than a bus of it would: its pages are large.
    #[cold]
    fn map_window(&self, ecam: &Ecam) -> Option<Registers> {
        let bytes = bytes(ecam);
        let registers = Registers::map(HostPhys(bytes.start), bytes.end - bytes.start)?;
        let mut windows = self.windows.lock();
        let window = windows.iter_mut().find(|window| window.ecam == *ecam)?;
        Some(*window.registers.get_or_insert(registers))
    }

    /// The frame with this byte of device memory.
    fn frame(&self, address: HostPhys) -> Option<Registers> {
        let frame = address.mfn();
        let find = |frames: &Vec<(Mfn, Registers)>| frames.binary_search_by_key(&frame, |(mfn, _)| *mfn);
        let known = {
            let frames = self.frames.lock();
            find(&frames).map(|at| frames.get(at).map(|(_, registers)| *registers)).map_err(|_| frames.len())
        };
        match known {
            Ok(registers) => return registers,
            Err(count) if count >= MOST_FRAMES || !self.is_device_memory(frame, 1) => return None,
            Err(_) => {}
        }
        let registers = Registers::map(frame.phys(), PAGE_SIZE as u64)?;
        let mut frames = self.frames.lock();
        frames.try_reserve(1).ok()?;
        if let Err(at) = find(&frames) {
            frames.insert(at, (frame, registers));
        }
        Some(registers)
    }
}

fn bytes(ecam: &Ecam) -> Range<u64> {
    let (start, end) = ecam.range();
    start.0..end.0
}

/// What is written to the address port for a register of a function of segment 0.
const fn port_address(sbdf: Sbdf, register: u16) -> u32 {
    ENABLE | (sbdf.bdf() as u32) << 8 | (register & 0xfc) as u32
}

impl ConfigAccess for Hardware {
    #[inline]
    fn read(&self, sbdf: Sbdf, register: u16, width: Width) -> u32 {
        if sbdf.segment() == 0 && register < PORTS_REACH {
            let port = DATA | (register & 0b11);
            let _held = self.ports.lock();
            outl(ADDRESS, port_address(sbdf, register));
            return match width {
                Width::Byte => u32::from(inb(port)),
                Width::Word => u32::from(inw(port)),
                Width::Long | Width::Quad => inl(port),
            };
        }
        match self.window(sbdf) {
            Some((registers, offset)) => registers.read(offset | u64::from(register), width) as u32,
            None => width.ones() as u32,
        }
    }

    #[inline]
    fn write(&self, sbdf: Sbdf, register: u16, width: Width, value: u32) {
        if sbdf.segment() == 0 && register < PORTS_REACH {
            let port = DATA | (register & 0b11);
            let _held = self.ports.lock();
            outl(ADDRESS, port_address(sbdf, register));
            match width {
                Width::Byte => outb(port, value as u8),
                Width::Word => outw(port, value as u16),
                Width::Long | Width::Quad => outl(port, value),
            }
        } else if let Some((registers, offset)) = self.window(sbdf) {
            registers.write(offset | u64::from(register), width, value.into());
        }
    }
}

impl PciHost for Hardware {
    fn is_device_memory(&self, first: Mfn, frames: u64) -> bool {
        let start = first.phys().0;
        let Some(end) = frames.checked_mul(PAGE_SIZE as u64).and_then(|bytes| start.checked_add(bytes)) else {
            return false;
        };
        let in_a_window = || {
            self.windows.lock().iter().any(|window| {
                let bytes = bytes(&window.ecam);
                bytes.start < end && start < bytes.end
            })
        };
        !self.reserved.overlaps(start..end) && !in_a_window()
    }

    fn read_memory(&self, address: HostPhys, width: Width) -> u64 {
        match self.frame(address) {
            Some(registers) => registers.read(address.page_offset() as u64, width),
            None => width.ones(),
        }
    }

    fn write_memory(&self, address: HostPhys, width: Width, value: u64) {
        if let Some(registers) = self.frame(address) {
            registers.write(address.page_offset() as u64, width, value);
        }
    }
}

/// Device memory, mapped uncached for good.
#[derive(Clone, Copy)]
struct Registers {
    base: NonNull<u8>,
    len: u64,
}

// SAFETY: any CPU may make accesses to device memory; what they mean together is for the locks of those who make them.
unsafe impl Send for Registers {}

impl Registers {
    fn map(at: HostPhys, len: u64) -> Option<Registers> {
        match paging::map_mmio(at, len) {
            Ok(base) => NonNull::new(base).map(|base| Registers { base, len }),
            Err(why) => {
                log::error!(target: "pci", "device memory at {:#x} cannot be mapped ({why})", at.0);
                None
            }
        }
    }

    /// The place of an access, if it lies within.
    #[inline]
    fn at(&self, offset: u64, width: Width) -> Option<*mut u8> {
        let fits = offset.checked_add(width.bytes().into()).is_some_and(|end| end <= self.len);
        // SAFETY: the offset is within what is mapped.
        fits.then(|| unsafe { self.base.as_ptr().add(offset as usize) })
    }

    /// One access of this width. AMD's family 10h makes configuration accesses only from and to the accumulator (BIOS and Kernel
    /// Developer's Guide, 2.11.1), so that is where they are made from and to.
    fn read(&self, offset: u64, width: Width) -> u64 {
        let Some(at) = self.at(offset, width) else { return width.ones() };
        let value: u64;
        // SAFETY: the access lies within device memory that is mapped for good; reading it touches no memory of Rust's.
        unsafe {
            match width {
                Width::Byte => {
                    let byte: u8;
                    asm!("mov al, [{}]", in(reg) at, out("al") byte, options(nostack, preserves_flags));
                    value = byte.into();
                }
                Width::Word => {
                    let word: u16;
                    asm!("mov ax, [{}]", in(reg) at, out("ax") word, options(nostack, preserves_flags));
                    value = word.into();
                }
                Width::Long => {
                    let long: u32;
                    asm!("mov eax, [{}]", in(reg) at, out("eax") long, options(nostack, preserves_flags));
                    value = long.into();
                }
                Width::Quad => {
                    asm!("mov rax, [{}]", in(reg) at, out("rax") value, options(nostack, preserves_flags));
                }
            }
        }
        value
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        let Some(at) = self.at(offset, width) else { return };
        // SAFETY: as for `read`; no BAR is let near RAM.
        unsafe {
            match width {
                Width::Byte => {
                    asm!("mov [{}], al", in(reg) at, in("al") value as u8, options(nostack, preserves_flags))
                }
                Width::Word => {
                    asm!("mov [{}], ax", in(reg) at, in("ax") value as u16, options(nostack, preserves_flags))
                }
                Width::Long => {
                    asm!("mov [{}], eax", in(reg) at, in("eax") value as u32, options(nostack, preserves_flags))
                }
                Width::Quad => asm!("mov [{}], rax", in(reg) at, in("rax") value, options(nostack, preserves_flags)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mm::addr::GuestPhys;

    fn hardware() -> Hardware {
        let mut reserved = RangeSet::new();
        reserved.insert(0..0x4000_0000).unwrap();
        reserved.insert(0xfec0_0000..0xfec0_1000).unwrap();
        Hardware::new(reserved)
    }

    fn window(base: u64, last_bus: u8) -> Ecam {
        Ecam { base: GuestPhys(base), segment: 1, first_bus: 0, last_bus }
    }

    #[test]
    fn the_address_port_takes_bus_device_function_and_long() {
        assert_eq!(port_address(Sbdf::new(0, 1, 2, 3), 0x3e), 0x8001_133c);
    }

    #[test]
    fn a_device_may_be_anywhere_but_where_something_else_is() {
        let hardware = hardware();
        hardware.add_window(window(0xb000_0000, 15)).unwrap();
        assert!(hardware.is_device_memory(Mfn(0x4_0000), 16));
        assert!(!hardware.is_device_memory(Mfn(0x3_ffff), 16), "RAM before it");
        assert!(!hardware.is_device_memory(Mfn(0xf_e000), 0x1000), "the I/O APIC inside of it");
        assert!(!hardware.is_device_memory(Mfn(0xb_0fff), 1), "the window's last frame");
        assert!(hardware.is_device_memory(Mfn(0xb_1000), 1));
        assert!(!hardware.is_device_memory(Mfn(u64::MAX >> 12), 2), "it wraps");
    }

    #[test]
    fn a_window_over_ram_is_refused_and_too_many_are() {
        let hardware = hardware();
        assert_eq!(hardware.add_window(window(0x3ff0_0000, 1)), Err(Errno::EINVAL));
        for index in 0..WINDOWS as u64 {
            hardware.add_window(window(0x1_0000_0000 + (index << 20), 0)).unwrap();
        }
        assert_eq!(hardware.add_window(window(0x2_0000_0000, 0)), Err(Errno::ENOSPC));
    }

    #[test]
    fn what_cannot_be_reached_reads_as_ones() {
        let hardware = hardware();
        assert_eq!(hardware.read(Sbdf::new(1, 0, 0, 0), 0, Width::Word), 0xffff);
        assert_eq!(hardware.read(Sbdf::new(0, 0, 0, 0), 0x100, Width::Long), u32::MAX);
        assert_eq!(hardware.read_memory(HostPhys(0x1000), Width::Quad), u64::MAX, "RAM is not touched");
    }

    #[test]
    fn an_access_beyond_what_is_mapped_is_not_made() {
        let mut memory = [0u64; 2];
        let registers = Registers { base: NonNull::new(memory.as_mut_ptr().cast()).unwrap(), len: 16 };
        registers.write(9, Width::Byte, 0x12);
        registers.write(10, Width::Word, 0x3456);
        registers.write(12, Width::Long, 0x789a_bcde);
        registers.write(16, Width::Byte, 0xff);
        registers.write(u64::MAX, Width::Quad, 0xff);
        assert_eq!(registers.read(8, Width::Quad), 0x789a_bcde_3456_1200);
        assert_eq!(registers.read(8, Width::Long), 0x3456_1200);
        assert_eq!(registers.read(14, Width::Word), 0x789a);
        assert_eq!(registers.read(13, Width::Byte), 0xbc);
        assert_eq!(registers.read(13, Width::Long), 0xffff_ffff);
        assert_eq!(memory[0], 0);
    }
}
