//! What the toolstack has made of a domain: how it was created, whether it is held, and how far its end is.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use mm::lock::{Lock, Rank};
use sched::Weight;
use xen_abi::domctl::{CreateDomain, XEN_DOMCTL_CDF_HAP, XEN_DOMCTL_CDF_HVM};
use xen_abi::errno::Errno;
use xen_abi::memory::E820Entry;
use xen_abi::types::DomainHandle;
use xen_abi::x86::{ArchDomainConfig, XEN_X86_EMU_LAPIC};

use crate::teardown::Teardown;

/// `XEN_DOMCTL_pausedomain` calls that can be outstanding.
const MOST_PAUSES: u32 = 255;

/// How a domain was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// `XEN_DOMCTL_CDF_*`.
    pub flags: u32,
    pub arch: ArchDomainConfig,
    /// Nobody else looks after it.
    pub by_toolstack: bool,
}

impl Made {
    /// A domain that no toolstack has asked for.
    pub const AT_BOOT: Made = Made {
        flags: XEN_DOMCTL_CDF_HVM | XEN_DOMCTL_CDF_HAP,
        arch: ArchDomainConfig { emulation_flags: XEN_X86_EMU_LAPIC, misc_flags: 0 },
        by_toolstack: false,
    };
}

impl From<&CreateDomain> for Made {
    fn from(config: &CreateDomain) -> Made {
        Made { flags: config.flags, arch: config.arch, by_toolstack: true }
    }
}

pub struct Control {
    pub made: Made,
    handle: Lock<DomainHandle>,
    pauses: Lock<u32>,
    dying: AtomicBool,
    /// It has run, or could have.
    finished: AtomicBool,
    /// The scheduler knows its vCPUs (XEN_DOMCTL_max_vcpus).
    admitted: AtomicBool,
    /// Weight and cap, in 16 bits each.
    share: AtomicU32,
    /// Bytes (XEN_DOMCTL_set_paging_mempool_size): what the toolstack allows for page tables.
    pub pool: AtomicU64,
    /// Seconds that the domain's wall clock is ahead of the machine's.
    pub time_offset: AtomicI64,
    /// Pages that are kept free for it (XENMEM_claim_pages).
    pub claim: AtomicU64,
    /// What XENMEM_memory_map answers.
    memory_map: Lock<Vec<E820Entry>>,
    /// Nobody has it while somebody takes the domain down.
    ending: Lock<Option<Teardown>>,
}

impl Control {
    pub fn new(made: Made, handle: DomainHandle, memory_map: Vec<E820Entry>) -> Control {
        Control {
            made,
            handle: Lock::new(Rank::DomainControl, handle),
            pauses: Lock::new(Rank::DomainControl, 0),
            dying: AtomicBool::new(false),
            finished: AtomicBool::new(!made.by_toolstack),
            admitted: AtomicBool::new(false),
            share: AtomicU32::new(Weight::DEFAULT.get().into()),
            pool: AtomicU64::new(0),
            time_offset: AtomicI64::new(0),
            claim: AtomicU64::new(0),
            memory_map: Lock::new(Rank::DomainControl, memory_map),
            ending: Lock::new(Rank::DomainControl, Some(Teardown::default())),
        }
    }

    pub fn handle(&self) -> DomainHandle {
        *self.handle.lock()
    }

    pub fn set_handle(&self, handle: DomainHandle) {
        *self.handle.lock() = handle;
    }

    /// One pause more. For the first, `hold` holds the vCPUs; nobody else pauses or unpauses meanwhile. EUSERS if there are too many.
    pub fn pause(&self, hold: impl FnOnce()) -> Result<(), Errno> {
        let mut pauses = self.pauses.lock();
        if *pauses >= MOST_PAUSES {
            return Err(Errno::EUSERS);
        }
        *pauses = pauses.wrapping_add(1);
        if *pauses == 1 {
            hold();
        }
        Ok(())
    }

    /// One pause less. After the last, `release` lets the vCPUs go; nobody else pauses or unpauses meanwhile. EINVAL if there is none.
    pub fn unpause(&self, release: impl FnOnce()) -> Result<(), Errno> {
        let mut pauses = self.pauses.lock();
        *pauses = pauses.checked_sub(1).ok_or(Errno::EINVAL)?;
        if *pauses == 0 {
            release();
        }
        Ok(())
    }

    /// The domain is let run for the first time: from here on what it is made of does not change.
    pub fn finish(&self) {
        self.finished.store(true, Ordering::Release);
    }

    pub fn is_paused(&self) -> bool {
        *self.pauses.lock() != 0
    }

    /// It may have run: what it is made of does not change any more.
    pub fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    /// The domain is on its way out, and gets nothing more.
    #[inline]
    pub fn is_dying(&self) -> bool {
        self.dying.load(Ordering::Acquire)
    }

    /// True the first time.
    pub fn begin_dying(&self) -> bool {
        !self.dying.swap(true, Ordering::AcqRel)
    }

    pub fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Acquire)
    }

    /// True the first time.
    pub fn admit(&self) -> bool {
        !self.admitted.swap(true, Ordering::AcqRel)
    }

    /// Weight and cap (hundredths of a CPU, 0 for none).
    pub fn share(&self) -> (Weight, u16) {
        let share = self.share.load(Ordering::Relaxed);
        (Weight::new(share & 0xffff).unwrap_or_default(), share.wrapping_shr(16) as u16)
    }

    pub fn set_share(&self, weight: Weight, cap: u16) {
        self.share.store(u32::from(weight.get()) | u32::from(cap).wrapping_shl(16), Ordering::Relaxed);
    }

    /// How many regions its memory map has.
    pub fn map_len(&self) -> u32 {
        self.memory_map.lock().len() as u32
    }

    /// A region of its memory map.
    pub fn map_entry(&self, index: u32) -> Option<E820Entry> {
        self.memory_map.lock().get(index as usize).copied()
    }

    pub fn set_map(&self, map: Vec<E820Entry>) {
        let before = core::mem::replace(&mut *self.memory_map.lock(), map);
        drop(before);
    }

    /// How far the end of the domain is; `None` while another CPU is at it. To be given back.
    pub(crate) fn take_ending(&self) -> Option<Teardown> {
        self.ending.lock().take()
    }

    pub(crate) fn give_ending(&self, teardown: Teardown) {
        *self.ending.lock() = Some(teardown);
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    #[test]
    fn pauses_are_counted() {
        let control = Control::new(Made::AT_BOOT, DomainHandle::default(), Vec::new());
        let held = Cell::new(false);
        let pause = || control.pause(|| held.set(true));
        let unpause = || control.unpause(|| held.set(false));
        assert_eq!((unpause(), held.get()), (Err(Errno::EINVAL), false));
        assert_eq!((pause(), pause(), held.get()), (Ok(()), Ok(()), true));
        assert_eq!((unpause(), held.get(), control.is_paused()), (Ok(()), true, true));
        assert_eq!((unpause(), held.get(), control.is_paused()), (Ok(()), false, false));
        for _ in 0..MOST_PAUSES {
            pause().unwrap();
        }
        assert_eq!(pause(), Err(Errno::EUSERS));
    }

    #[test]
    fn weight_and_cap_go_together() {
        let control = Control::new(Made::AT_BOOT, DomainHandle::default(), Vec::new());
        assert_eq!(control.share(), (Weight::DEFAULT, 0));
        let weight = Weight::new(65535).unwrap();
        control.set_share(weight, 65535);
        assert_eq!(control.share(), (weight, 65535));
    }
}
