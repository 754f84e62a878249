//! What a toolstack does, for a guest that runs as Dom0: domains made of guests like itself.

use core::mem::offset_of;

use elf::ElfBytes;
use elf::abi::{PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::note::Note;
use xen_abi::domctl::*;
use xen_abi::elfnote::XEN_ELFNOTE_PHYS32_ENTRY;
use xen_abi::handle::GuestHandle;
use xen_abi::hvm_save::{CPU_CODE, Cpu, Descriptor, END_CODE, HEADER_CODE, HVM_FILE_MAGIC, HVM_FILE_VERSION, Header};
use xen_abi::memory::*;
use xen_abi::numbers::{DOMCTL, MEMORY_OP, SYSCTL};
use xen_abi::start_info::{StartInfo, XEN_HVM_START_MAGIC_VALUE};
use xen_abi::sysctl::{PhysInfo, Sysctl, XEN_SYSCTL_INTERFACE_VERSION, XEN_SYSCTL_PHYSINFO};
use xen_abi::types::DomainId;
use xen_abi::x86::{ArchDomainConfig, XEN_X86_EMU_LAPIC};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use crate::{cpu, hypercall, memory, start};

/// Memory that no guest uses (see [`memory::spare_ram`]), which Dom0 gives up to look at others' pages there.
const WINDOW: u64 = 40 << 20;
/// Where a domain's start info and its command line go; its kernel is far above.
const START_INFO: u64 = 0x1000;
const COMMAND_LINE: u64 = 0x2000;

/// A negated errno.
pub type Failed = i64;

fn checked(result: i64) -> Result<(), Failed> {
    if result < 0 { Err(result) } else { Ok(()) }
}

/// A domctl; the argument as it came back.
pub fn domctl<T: IntoBytes + Immutable>(cmd: u32, domain: DomainId, argument: &T) -> Result<Domctl, Failed> {
    let mut op = Domctl { cmd, interface_version: XEN_DOMCTL_INTERFACE_VERSION, domain, ..Domctl::default() };
    op.u.set(argument);
    checked(hypercall::call(DOMCTL, [core::ptr::from_mut(&mut op) as u64, 0, 0, 0, 0])).map(|()| op)
}

/// A sysctl; the argument as it came back.
pub fn sysctl<T: IntoBytes + Immutable>(cmd: u32, argument: &T) -> Result<Sysctl, Failed> {
    let mut op = Sysctl { cmd, interface_version: XEN_SYSCTL_INTERFACE_VERSION, ..Sysctl::default() };
    op.u.set(argument);
    checked(hypercall::call(SYSCTL, [core::ptr::from_mut(&mut op) as u64, 0, 0, 0, 0])).map(|()| op)
}

/// What the machine has.
pub fn physinfo() -> Result<PhysInfo, Failed> {
    sysctl(XEN_SYSCTL_PHYSINFO, &PhysInfo::default()).map(|op| op.u.get())
}

/// The module that came with the guest.
pub fn module() -> &'static [u8] {
    let info = start::start_info();
    if info.nr_modules == 0 {
        return &[];
    }
    let (at, size) = (cpu::read64(info.modlist_paddr), cpu::read64(info.modlist_paddr + 8));
    // SAFETY: the module lies below 4 GiB, nothing else is there, and nobody writes to it.
    unsafe { core::slice::from_raw_parts(at as *const u8, size as usize) }
}

/// A domain that this guest has made.
#[derive(Clone, Copy)]
pub struct Child(pub DomainId);

impl Child {
    /// A domain that is paused, with `mib` of memory (whole 2 MiB).
    pub fn create(vcpus: u32, mib: u64) -> Result<Child, Failed> {
        let config = CreateDomain {
            flags: XEN_DOMCTL_CDF_HVM | XEN_DOMCTL_CDF_HAP,
            max_vcpus: vcpus,
            max_evtchn_port: 1023,
            max_grant_frames: 4,
            max_maptrack_frames: 4,
            grant_opts: 2,
            arch: ArchDomainConfig { emulation_flags: XEN_X86_EMU_LAPIC, misc_flags: 0 },
            ..CreateDomain::default()
        };
        let child = Child(domctl(XEN_DOMCTL_CREATEDOMAIN, DomainId(0), &config)?.domain);
        child.control(XEN_DOMCTL_MAX_VCPUS, &MaxVcpus { max: vcpus })?;
        child.control(XEN_DOMCTL_MAX_MEM, &MaxMem { max_memkb: mib << 10 })?;
        for extent in 0..mib / 2 {
            if !child.populate(extent * 512, 9) {
                return Err(-12);
            }
        }
        Ok(child)
    }

    /// Gives it a block of `2^order` pages.
    pub fn populate(&self, gfn: u64, order: u32) -> bool {
        let mut request = MemoryReservation {
            extent_start: GuestHandle::new(core::ptr::from_ref(&gfn) as u64),
            nr_extents: 1,
            extent_order: order,
            domid: self.0,
            ..MemoryReservation::default()
        };
        hypercall::op(MEMORY_OP, XENMEM_POPULATE_PHYSMAP, &mut request) == 1
    }

    pub fn control<T: IntoBytes + Immutable>(&self, cmd: u32, argument: &T) -> Result<Domctl, Failed> {
        domctl(cmd, self.0, argument)
    }

    /// Lets `act` use one of its pages, by its address here.
    pub fn with_page<R>(&self, gfn: u64, act: impl FnOnce(u64) -> R) -> Result<R, Failed> {
        let (mine, mut status) = (memory::gfn(WINDOW), 0i32);
        let mut batch = AddToPhysmapBatch {
            domid: DomainId::SELF,
            space: XENMAPSPACE_GMFN_FOREIGN as u16,
            foreign_domid: self.0,
            size: 1,
            idxs: GuestHandle::new(core::ptr::from_ref(&gfn) as u64),
            gpfns: GuestHandle::new(core::ptr::from_ref(&mine) as u64),
            errs: GuestHandle::new(core::ptr::from_mut(&mut status) as u64),
        };
        checked(hypercall::op(MEMORY_OP, XENMEM_ADD_TO_PHYSMAP_BATCH, &mut batch))?;
        checked(status.into())?;
        let result = act(WINDOW);
        let mut remove = RemoveFromPhysmap { domid: DomainId::SELF, gpfn: mine, ..RemoveFromPhysmap::default() };
        checked(hypercall::op(MEMORY_OP, XENMEM_REMOVE_FROM_PHYSMAP, &mut remove)).map(|()| result)
    }

    /// Writes into its memory.
    pub fn write(&self, mut at: u64, mut bytes: &[u8]) -> Result<(), Failed> {
        while !bytes.is_empty() {
            let offset = at % memory::PAGE_SIZE;
            let (now, rest) = bytes.split_at(bytes.len().min((memory::PAGE_SIZE - offset) as usize));
            self.with_page(memory::gfn(at), |page| {
                for (index, byte) in now.iter().enumerate() {
                    cpu::write8(page + offset + index as u64, *byte);
                }
            })?;
            at += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Loads a guest and what it is told; its first vCPU starts there. -ENOEXEC for what is no guest.
    pub fn load(&self, image: &[u8], told: &str) -> Result<(), Failed> {
        const NO_GUEST: Failed = -8;
        let elf = ElfBytes::<LittleEndian>::minimal_parse(image).map_err(|_| NO_GUEST)?;
        let mut entry = None;
        for segment in elf.segments().ok_or(NO_GUEST)? {
            if segment.p_type == PT_LOAD {
                self.write(segment.p_paddr, elf.segment_data(&segment).map_err(|_| NO_GUEST)?)?;
            } else if segment.p_type == PT_NOTE {
                for note in elf.segment_data_as_notes(&segment).map_err(|_| NO_GUEST)? {
                    if let Note::Unknown(note) = note
                        && note.n_type == u64::from(XEN_ELFNOTE_PHYS32_ENTRY)
                        && let Some(bytes) = note.desc.first_chunk::<4>()
                    {
                        entry = Some(u32::from_le_bytes(*bytes));
                    }
                }
            }
        }
        self.write(COMMAND_LINE, told.as_bytes())?;
        let info = StartInfo { magic: XEN_HVM_START_MAGIC_VALUE, cmdline_paddr: COMMAND_LINE, ..StartInfo::default() };
        self.write(START_INFO, info.as_bytes())?;
        self.start_at(entry.ok_or(NO_GUEST)?, START_INFO as u32)
    }

    /// Its first vCPU begins at `entry` as PVH has it.
    pub fn start_at(&self, entry: u32, ebx: u32) -> Result<(), Failed> {
        let mut cpu = Cpu::new_zeroed();
        cpu.rip = entry.into();
        cpu.rbx = ebx.into();
        cpu.rflags = 2;
        cpu.cr0 = 0x11;
        cpu.dr6 = 0xffff_0ff0;
        cpu.dr7 = 0x400;
        (cpu.cs_limit, cpu.cs_arbytes) = (u32::MAX, 0xc9b);
        for (limit, access) in [
            (&mut cpu.ds_limit, &mut cpu.ds_arbytes),
            (&mut cpu.es_limit, &mut cpu.es_arbytes),
            (&mut cpu.fs_limit, &mut cpu.fs_arbytes),
            (&mut cpu.gs_limit, &mut cpu.gs_arbytes),
            (&mut cpu.ss_limit, &mut cpu.ss_arbytes),
        ] {
            (*limit, *access) = (u32::MAX, 0xc93);
        }
        (cpu.tr_limit, cpu.tr_arbytes) = (0x67, 0x8b);
        self.set_cpu(0, &cpu)
    }

    /// Loads the registers of a vCPU.
    pub fn set_cpu(&self, vcpu: u16, cpu: &Cpu) -> Result<(), Failed> {
        let record = |typecode, length: usize| Descriptor { typecode, instance: vcpu, length: length as u32 };
        let context = Context {
            before_header: Descriptor { instance: 0, ..record(HEADER_CODE, size_of::<Header>()) },
            header: Header { magic: HVM_FILE_MAGIC, version: HVM_FILE_VERSION, ..Header::default() },
            before_cpu: record(CPU_CODE, size_of::<Cpu>()),
            cpu: *cpu,
            end: Descriptor { instance: 0, ..record(END_CODE, 0) },
        };
        let request = HvmContext {
            size: size_of::<Context>() as u32,
            pad: 0,
            buffer: GuestHandle::new(core::ptr::from_ref(&context) as u64),
        };
        self.control(XEN_DOMCTL_SETHVMCONTEXT, &request).map(drop)
    }

    pub fn info(&self) -> Result<GetDomainInfo, Failed> {
        self.control(XEN_DOMCTL_GETDOMAININFO, &GetDomainInfo::default()).map(|op| op.u.get())
    }

    /// Why it has shut down, if it has.
    pub fn reason(&self) -> Option<u32> {
        let flags = self.info().ok()?.flags;
        (flags & XEN_DOMINF_SHUTDOWN != 0).then_some(flags >> XEN_DOMINF_SHUTDOWNSHIFT & XEN_DOMINF_SHUTDOWNMASK)
    }

    pub fn pause(&self) -> Result<(), Failed> {
        self.control(XEN_DOMCTL_PAUSEDOMAIN, &0u32).map(drop)
    }

    pub fn unpause(&self) -> Result<(), Failed> {
        self.control(XEN_DOMCTL_UNPAUSEDOMAIN, &0u32).map(drop)
    }

    pub fn destroy(&self) -> Result<(), Failed> {
        self.control(XEN_DOMCTL_DESTROYDOMAIN, &0u32).map(drop)
    }
}

/// The registers of one vCPU, as XEN_DOMCTL_sethvmcontext takes them.
#[repr(C)]
struct Context {
    before_header: Descriptor,
    header: Header,
    before_cpu: Descriptor,
    cpu: Cpu,
    end: Descriptor,
}
const _: () = assert!(offset_of!(Context, cpu) == 40 && offset_of!(Context, end) == 40 + size_of::<Cpu>());
