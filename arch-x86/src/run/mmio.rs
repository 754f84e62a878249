//! Accesses that the nested page tables refuse: virtual devices behind memory addresses, holes, and writes to read-only memory.

use hypervisor::machine::Machine;
use hypervisor::physmap::on_demand;
use mm::addr::{Gfn, GuestPhys, PageSize};
use mm::table::PageFormat;

use super::{Next, Running};
use crate::context::GuestTables;
use crate::decode::{self, Access, LONGEST, Mode, Registers, Size};
use crate::engine::Engine;
use crate::event::exception;
use crate::exit::{PageAccess, PortAccess};
use crate::guest_paging::{self, Purpose};
use crate::regs::GuestRegs;
use crate::segment::SegmentRegister;
use crate::vdev::vlapic;

/// Where every domain sees its local APIC in xAPIC mode.
const LAPIC_PAGE: u64 = 0xfee0_0000;

/// A vCPU's registers as instructions use them.
struct Emulated<'a> {
    regs: &'a mut GuestRegs,
    engine: &'a mut Engine,
}

impl Registers for Emulated<'_> {
    fn gpr(&self, number: u8) -> u64 {
        if number == 4 { self.engine.rsp() } else { self.regs.get(number) }
    }

    fn set_gpr(&mut self, number: u8, value: u64) {
        if number == 4 { self.engine.set_rsp(value) } else { self.regs.set(number, value) }
    }

    fn rflags(&self) -> u64 {
        self.engine.rflags()
    }

    fn set_rflags(&mut self, value: u64) {
        self.engine.set_rflags(value);
    }

    fn segment_base(&self, number: u8) -> u64 {
        let register = match number {
            0 => SegmentRegister::Es,
            1 => SegmentRegister::Cs,
            2 => SegmentRegister::Ss,
            3 => SegmentRegister::Ds,
            4 => SegmentRegister::Fs,
            _ => SegmentRegister::Gs,
        };
        if number < 4 && self.engine.in_64_bit_mode() { 0 } else { self.engine.segment(register).base }
    }
}

/// Why an access could not be made: the guest takes a fault instead, or makes it again.
struct Faulted;

impl Running<'_> {
    pub(super) fn guest_page(&mut self, access: PageAccess) -> Next {
        // Another CPU may have put a mapping there meanwhile: then the access is simply made again.
        if let Some(mapping) = self.domain.p2m.lookup(access.at.gfn()) {
            if mapping.kind.readable()
                && (!access.write || mapping.kind.writable())
                && (!access.fetch || mapping.kind.executable())
            {
                let too_large = access.fetch && mapping.size != PageSize::Size4K;
                if too_large && !self.domain.p2m.format().runs_large_code() {
                    return self.split_for_code(access.at.gfn());
                }
                return Next::Enter;
            }
            if mapping.kind.comes_when_touched() {
                return self.touched(access.at.gfn());
            }
        }
        if access.fetch && self.context.engine.privilege() == 3 {
            // A process that may map such a place is no reason to stop them all.
            self.context.raise_general_protection();
            return Next::Enter;
        }
        if access.fetch {
            return self.crash_at(access, "executes where no code can be");
        }
        if access.walk {
            return self.crash_at(access, "has a page table where no RAM is");
        }
        self.emulate(access.at)
    }

    /// Code is to run in a page that is too large for it.
    #[cold]
    #[inline(never)]
    fn split_for_code(&mut self, gfn: Gfn) -> Next {
        if self.domain.p2m.split_at(gfn).is_ok() {
            return Next::Enter;
        }
        let (name, tables) = (&self.domain.name, self.domain.p2m.table_frames());
        log::error!(target: "vcpu", "{name} has no memory for another page table beside {tables}; raise its shadow_memory=, or free memory of the host's");
        self.crash("its code needs smaller pages")
    }

    /// The first touch of a page that is populated on demand.
    #[cold]
    #[inline(never)]
    pub(super) fn touched(&mut self, gfn: Gfn) -> Next {
        match on_demand::touched(self.system, self.domain, gfn) {
            Ok(()) => Next::Enter,
            Err(_) => self.crash("no memory left to be populated with"),
        }
    }

    #[inline]
    pub(super) fn comes_when_touched(&self, gfn: Gfn) -> bool {
        self.domain.p2m.lookup(gfn).is_some_and(|found| found.kind.comes_when_touched())
    }

    #[cold]
    fn crash_at(&mut self, access: PageAccess, what: &str) -> Next {
        log::error!(target: "vcpu", "{} {what}: guest-physical {:#x}", self.domain.name, access.at.0);
        self.crash("bad access")
    }

    /// Carries out the instruction at RIP, whose access at `at` came here.
    fn emulate(&mut self, at: GuestPhys) -> Next {
        let mut bytes = [0; LONGEST];
        let code = self.context.engine.segment(SegmentRegister::Cs);
        let (mode, base) = if self.context.engine.in_64_bit_mode() {
            (Mode::Bits64, 0)
        } else if code.access.big() {
            (Mode::Bits32, code.base)
        } else {
            (Mode::Bits16, code.base)
        };
        let rip = base.wrapping_add(self.context.engine.rip());
        let count = crate::dump::fetch(self.domain, self.context, rip, &mut bytes);
        let fetched = bytes.get(..count).unwrap_or_default();
        let registers = Emulated { regs: &mut self.context.regs, engine: &mut self.context.engine };
        let plan = match decode::plan(fetched, mode, &registers) {
            Ok(plan) => plan,
            // Its code has changed since: the guest executes what is there now.
            Err(decode::Undecodable::CutShort) => return Next::Enter,
            Err(why) => {
                if crate::ratelimit::guest_message() {
                    log::warn!(target: "mmio", "{}: {why:?} instruction {fetched:02x?} at {rip:#x} reaches {:#x}", self.domain.name, at.0);
                }
                self.context.raise_undefined();
                return Next::Enter;
            }
        };
        let value = match self.access(&plan.access, at) {
            Ok(value) => value,
            Err(Faulted) => return Next::Enter,
        };
        let mut registers = Emulated { regs: &mut self.context.regs, engine: &mut self.context.engine };
        match plan.finish(value, &mut registers) {
            decode::Next::Repeat => return Next::Enter,
            decode::Next::Retire => {}
            decode::Next::Write { size, value } => self.write_device_memory(at, size, value),
        }
        self.context.engine.advance_by(u64::from(plan.length));
        Next::Enter
    }

    /// Makes the first access of a plan; what was read.
    fn access(&mut self, access: &Access, at: GuestPhys) -> Result<u64, Faulted> {
        Ok(match *access {
            Access::Nothing => 0,
            Access::Read(size) | Access::ReadModifyWrite(size) => self.read_device_memory(at, size),
            Access::Write { size, value } => {
                self.write_device_memory(at, size, value);
                0
            }
            Access::Copy { size, from, to } => {
                let from = self.linear(from, size, false)?;
                let to = self.linear(to, size, true)?;
                let value = self.read_anywhere(from, size);
                self.write_anywhere(to, size, value);
                value
            }
        })
    }

    /// Translates as the guest's instruction would, with its page fault. Memory that is to be populated comes first; then the instruction is
    /// executed again.
    fn linear(&mut self, linear: u64, size: Size, write: bool) -> Result<GuestPhys, Faulted> {
        let paging = self.context.engine.paging();
        let user = self.context.engine.privilege() == 3;
        let mut tables = GuestTables(self.context.cache.of(&self.domain.p2m));
        let purpose = Purpose { write, user, fetch: false };
        let translated = guest_paging::translate(&paging, linear, purpose, &mut tables);
        let missing = match translated {
            Ok(at) => {
                let last = GuestPhys(at.0.wrapping_add(u64::from(size.bytes())).wrapping_sub(1));
                [at.gfn(), last.gfn()].into_iter().find(|gfn| self.comes_when_touched(*gfn))
            }
            // A page table.
            Err(_) => self.context.cache.take_missed(),
        };
        if let Some(gfn) = missing {
            self.touched(gfn);
            return Err(Faulted);
        }
        translated.map_err(|refused| {
            self.context.engine.set_cr2(linear);
            self.context.raise(exception::PAGE_FAULT, Some(refused.error));
            Faulted
        })
    }

    fn read_anywhere(&mut self, at: GuestPhys, size: Size) -> u64 {
        let mut bytes = [0; 8];
        let wanted = bytes.get_mut(..usize::from(size.bytes())).unwrap_or_default();
        if mm::GuestMemory::new(&self.domain.p2m).copy_from(at, wanted).is_ok() {
            return u64::from_le_bytes(bytes);
        }
        self.read_device_memory(at, size)
    }

    fn write_anywhere(&mut self, at: GuestPhys, size: Size, value: u64) {
        let bytes = value.to_le_bytes();
        let wanted = bytes.get(..usize::from(size.bytes())).unwrap_or_default();
        if mm::GuestMemory::new(&self.domain.p2m).copy_to(at, wanted).is_err() {
            self.write_device_memory(at, size, value);
        }
    }

    /// A read where no RAM is. What nothing answers reads as all ones, as on a bus.
    fn read_device_memory(&mut self, at: GuestPhys, size: Size) -> u64 {
        let address = at.0;
        if address & !0xfff == LAPIC_PAGE {
            let machine = &self.system.machine;
            let inbox = &self.vcpu.machine.inbox;
            let offset = (address & 0xfff) as u16;
            return self.context.vlapic.read_mmio(offset, size.bytes(), || machine.now(), inbox);
        }
        let devices = &self.domain.machine.devices;
        if let Some(value) = devices.read_io_apic(address) {
            return u64::from(value);
        }
        devices.read_memory(address, size.bytes()).unwrap_or(u64::MAX)
    }

    fn write_device_memory(&mut self, at: GuestPhys, size: Size, value: u64) {
        let address = at.0;
        if address & !0xfff == LAPIC_PAGE {
            let machine = &self.system.machine;
            let inbox = &self.vcpu.machine.inbox;
            let offset = (address & 0xfff) as u16;
            let effect: vlapic::Effect =
                self.context.vlapic.write_mmio(offset, size.bytes(), value, || machine.now(), inbox);
            self.carry_out(effect);
            return;
        }
        let devices = &self.domain.machine.devices;
        if devices.write_io_apic(self.domain, address, value as u32).is_none() {
            devices.write_memory(self.system, self.domain, address, size.bytes(), value);
        }
    }

    /// INS and OUTS on a trapped port: one element, then the instruction again until its count is done.
    pub(super) fn string_port(&mut self, access: PortAccess) -> Next {
        let engine = &self.context.engine;
        let long = engine.in_64_bit_mode();
        let mask = if long {
            u64::MAX
        } else if engine.segment(SegmentRegister::Cs).access.big() {
            0xffff_ffff
        } else {
            0xffff
        };
        if access.rep && self.context.regs.rcx & mask == 0 {
            self.context.engine.advance();
            return Next::Enter;
        }
        // INS stores at ES:rDI; OUTS loads from DS:rSI (a segment override is not looked for: flat segments are all that its users have).
        let (index, register) = if access.input { (7, SegmentRegister::Es) } else { (6, SegmentRegister::Ds) };
        let offset = self.context.regs.get(index) & mask;
        let base = if long { 0 } else { engine.segment(register).base };
        let Some(size) = Size::from_bytes(usize::from(access.size)) else { return Next::Enter };
        let Ok(at) = self.linear(base.wrapping_add(offset), size, access.input) else { return Next::Enter };
        if access.input {
            let value = self.port_element(&access, None);
            self.write_anywhere(at, size, u64::from(value));
        } else {
            let value = self.read_anywhere(at, size);
            self.port_element(&access, Some(value as u32));
        }
        let backwards = self.context.engine.rflags() & 1 << 10 != 0;
        let step = u64::from(access.size);
        let moved = if backwards { offset.wrapping_sub(step) } else { offset.wrapping_add(step) };
        let old = self.context.regs.get(index);
        self.context.regs.set(index, (old & !mask) | (moved & mask));
        if access.rep {
            let count = self.context.regs.rcx;
            let left = (count & mask).wrapping_sub(1) & mask;
            self.context.regs.rcx = (count & !mask) | left;
            if left != 0 {
                return Next::Enter;
            }
        }
        self.context.engine.advance();
        Next::Enter
    }
}
