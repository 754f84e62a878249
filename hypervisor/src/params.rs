//! A domain's HVM parameters (Xen's `hvm/params.h`).

use core::sync::atomic::{AtomicU64, Ordering};

use xen_abi::hvm::HVM_PARAM_TRIPLE_FAULT_REASON;
use xen_abi::sched::SHUTDOWN_REBOOT;

/// Number of parameters of Xen 4.20 (HVM_NR_PARAMS).
pub const COUNT: usize = 39;

/// The values as the guest or its toolstack set them.
pub struct Params([AtomicU64; COUNT]);

impl Default for Params {
    fn default() -> Self {
        let params = Params([const { AtomicU64::new(0) }; COUNT]);
        // A kernel that knows no other way resets the machine like that.
        let _ = params.set(HVM_PARAM_TRIPLE_FAULT_REASON, SHUTDOWN_REBOOT.into());
        params
    }
}

impl Params {
    /// `None` for an index that does not exist.
    pub fn get(&self, index: u32) -> Option<u64> {
        Some(self.0.get(index as usize)?.load(Ordering::Relaxed))
    }

    pub fn set(&self, index: u32, value: u64) -> Option<()> {
        self.0.get(index as usize)?.store(value, Ordering::Relaxed);
        Some(())
    }
}
