//! Segments and the task state: flat, one set a processor.

use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::{lgdt, load_tss};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, DescriptorFlags, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use super::stack::EXCEPTION_STACKS;

/// Selector of the 64-bit code segment; the same as in the tables of `boot`'s entry.
pub const CODE: u16 = 0x08;
/// Selector of the data segment.
pub const DATA: u16 = 0x10;
/// Selector of the task state segment.
pub const TASK: u16 = 0x18;

/// The descriptor table of one processor with its task state segment.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct CpuTables {
    gdt: [u64; 5],
    task: TaskStateSegment,
}

// The descriptors come first, in one cache line with the beginning of the task state segment.
const _: () = assert!(core::mem::offset_of!(CpuTables, gdt) == 0 && core::mem::offset_of!(CpuTables, task) == 5 * 8);

impl CpuTables {
    pub const fn new() -> Self {
        Self { gdt: [0; 5], task: TaskStateSegment::new() }
    }

    /// Fills the tables and loads them into this processor's registers. `exceptions` are the stacks of the interrupt stack table.
    pub fn load(&'static mut self, exceptions: [u64; EXCEPTION_STACKS]) -> &'static Self {
        // The structure is packed: its fields are written whole.
        let mut table = [VirtAddr::zero(); 7];
        for (slot, top) in table.iter_mut().zip(exceptions) {
            *slot = VirtAddr::new(top);
        }
        self.task.interrupt_stack_table = table;
        let (low, high) = match Descriptor::tss_segment(static_task(&self.task)) {
            Descriptor::SystemSegment(low, high) => (low, high),
            Descriptor::UserSegment(low) => (low, 0),
        };
        self.gdt = [0, DescriptorFlags::KERNEL_CODE64.bits(), DescriptorFlags::KERNEL_DATA.bits(), low, high];
        let this: &'static Self = self;
        let selector = |raw: u16| SegmentSelector(raw);
        // SAFETY: the tables are complete and stay for ever; code and data are flat, as they were before.
        unsafe {
            lgdt(&DescriptorTablePointer {
                limit: (size_of_val(&this.gdt) - 1) as u16,
                base: VirtAddr::from_ptr(&this.gdt),
            });
            CS::set_reg(selector(CODE));
            SS::set_reg(selector(DATA));
            DS::set_reg(selector(DATA));
            ES::set_reg(selector(DATA));
            load_tss(selector(TASK));
        }
        this
    }

    /// The address of the descriptor table, for the VMCS's host state.
    pub fn gdt_base(&self) -> u64 {
        self.gdt.as_ptr() as u64
    }

    /// The address of the task state segment, for the VMCS's host state.
    pub fn task_base(&self) -> u64 {
        &raw const self.task as u64
    }
}

impl Default for CpuTables {
    fn default() -> Self {
        Self::new()
    }
}

/// The task state of tables that are `'static` already.
fn static_task(task: &TaskStateSegment) -> &'static TaskStateSegment {
    // SAFETY: the only caller holds it for ever; the descriptor keeps its address and nothing else.
    unsafe { &*core::ptr::from_ref(task) }
}
