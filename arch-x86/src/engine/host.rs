//! The engine before there are vCPUs: which one this machine has, what it can do, and what it makes.

use alloc::string::String;

use arrayvec::ArrayVec;
use mm::addr::Mfn;
use mm::{Clean, Frames, Memory};
use raw_cpuid::CpuId;
use x86_64::registers::control::{Cr0, Cr3};

use super::{Engine, Nested};
use crate::cpu::gdt::{self, CpuTables};
use crate::cpu::idt;
use crate::policy::features::Feature;
use crate::policy::msr::MsrPolicy;
use crate::vdev::ports::Ports;
use crate::{svm, vmx};

/// What the user may choose of it.
#[derive(Clone, Copy, Debug)]
pub struct Wishes {
    /// `vpid=`: translations are tagged with the vCPU that they are of.
    pub vpid: bool,
}

/// The engine of this machine, the same on every CPU.
#[derive(Clone, Copy, Debug)]
pub enum Host {
    Vmx(&'static vmx::caps::Caps),
    Svm(&'static svm::caps::Caps),
}

/// The state of a CPU to which exits come back.
#[derive(Clone, Copy, Debug)]
pub struct HostState {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub code: u16,
    pub data: u16,
    pub task: u16,
    pub gs_base: u64,
    pub task_base: u64,
    pub gdt_base: u64,
    pub idt_base: u64,
    pub engine: CpuEngine,
}

impl HostState {
    /// This CPU's, as it is set up now; its area is not known yet. `tables` are its descriptor tables.
    pub fn here(tables: &'static CpuTables, engine: CpuEngine) -> HostState {
        HostState {
            cr0: Cr0::read_raw(),
            cr3: Cr3::read_raw().0.start_address().as_u64(),
            cr4: crate::host::read_cr4(),
            efer: crate::msr::rdmsr(0xc000_0080),
            code: gdt::CODE,
            data: gdt::DATA,
            task: gdt::TASK,
            gs_base: 0,
            task_base: tables.task_base(),
            gdt_base: tables.gdt_base(),
            idt_base: idt::base(),
            engine,
        }
    }
}

/// What the engine keeps for a CPU.
#[derive(Clone, Copy, Debug)]
pub enum CpuEngine {
    Vmx,
    Svm(&'static svm::cpu::SvmCpu),
}

/// Which ports and MSRs a domain reaches without an exit, as the engine wants it; they live as long as the domain.
pub struct Bitmaps {
    pub ports: Frames<Clean>,
    pub msrs: Frames<Clean>,
}

/// What a vCPU refers to; it lives as long as its domain.
#[derive(Clone, Copy, Debug)]
pub struct Resources {
    pub ports: Mfn,
    pub msrs: Mfn,
    /// The root of the nested page tables.
    pub root: Mfn,
    /// Not zero, and this vCPU's alone.
    pub number: u16,
}

impl Host {
    /// Finds the engine of this CPU. The error is one line for the user.
    pub fn probe(wishes: Wishes) -> Result<Host, String> {
        if CpuId::new().get_feature_info().is_some_and(|has| has.has_vmx()) {
            return vmx::cpu::probe(wishes).map(Host::Vmx);
        }
        if svm::cpu::is_there() {
            return svm::cpu::probe(wishes).map(Host::Svm);
        }
        Err("this CPU has neither VMX nor SVM; Corten needs VMX with EPT and unrestricted guest, or SVM with nested paging".into())
    }

    /// Switches it on, on this CPU, for good.
    pub fn enable(self, memory: &'static Memory) -> Result<CpuEngine, String> {
        match self {
            Host::Vmx(caps) => vmx::cpu::enable(caps, memory).map(|()| CpuEngine::Vmx),
            Host::Svm(caps) => svm::cpu::enable(caps, memory).map(CpuEngine::Svm),
        }
    }

    /// Whether this CPU has the same engine with the same capabilities. The error is the end of a line for the user.
    pub fn is_the_same_here(self, wishes: Wishes) -> Result<(), String> {
        let same = match self {
            Host::Vmx(caps) => vmx::cpu::capabilities(wishes)? == *caps,
            Host::Svm(caps) => svm::cpu::is_there() && svm::cpu::capabilities(wishes)? == *caps,
        };
        if same { Ok(()) } else { Err("its virtualisation capabilities are not the boot CPU's".into()) }
    }

    /// Says what was found.
    pub fn announce(self) {
        match self {
            Host::Vmx(caps) => log::info!(target: "vmx", "{}", caps.summary()),
            Host::Svm(caps) => log::info!(target: "svm", "{}", caps.summary()),
        }
    }

    /// The format of the nested page tables.
    pub fn format(self) -> Nested {
        match self {
            Host::Vmx(caps) => Nested::Ept(vmx::cpu::format(caps)),
            Host::Svm(caps) => Nested::Npt(svm::cpu::format(caps)),
        }
    }

    /// Features of this CPU that a guest cannot have, as the engine does not let their instructions through.
    pub fn withheld(self) -> ArrayVec<Feature, 3> {
        match self {
            Host::Vmx(caps) => vmx::cpu::withheld(caps),
            Host::Svm(_) => ArrayVec::new(),
        }
    }

    /// A domain's bitmaps; `None` if there is no memory.
    pub fn bitmaps(self, memory: &'static Memory, ports: &Ports, msr: &MsrPolicy) -> Option<Bitmaps> {
        match self {
            Host::Vmx(_) => vmx::bitmaps::make(memory, ports, msr),
            Host::Svm(_) => svm::bitmaps::make(memory, ports, msr),
        }
    }

    /// Puts the MSRs of another policy into a domain's bitmaps. No vCPU of it has run.
    pub fn change_msrs(self, memory: &'static Memory, bitmaps: &Bitmaps, msr: &MsrPolicy) -> Option<()> {
        match self {
            Host::Vmx(_) => vmx::bitmaps::fill_msrs(memory, bitmaps, msr),
            Host::Svm(_) => svm::bitmaps::fill_msrs(memory, bitmaps, msr),
        }
    }

    /// A vCPU; `None` if there is no memory.
    ///
    /// # Safety
    /// What `resources` names outlives the vCPU, and is what this engine made. The engine is enabled on every CPU that will load it.
    pub unsafe fn vcpu(self, memory: &'static Memory, resources: Resources) -> Option<Engine> {
        match self {
            // SAFETY: by the caller's promise.
            Host::Vmx(caps) => unsafe { vmx::guest::VmxVcpu::new(caps, resources, memory) }.map(Engine::Vmx),
            // SAFETY: by the caller's promise.
            Host::Svm(caps) => unsafe { svm::guest::SvmVcpu::new(caps, resources, memory) }.map(Engine::Svm),
        }
    }
}
