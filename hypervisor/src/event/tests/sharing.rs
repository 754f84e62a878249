//! Pages that a test sees from the guest's side as well.

use mm::{Memory, fake};

use super::*;

fn memory() -> &'static Memory {
    static MEMORY: OnceLock<&'static Memory> = OnceLock::new();
    MEMORY.get_or_init(|| fake::memory(1 << 14))
}

/// A page of zeros, as the hypervisor has it and as the guest has it.
pub fn page() -> (SharedPage, SharedPage) {
    let owner = DomainId(5);
    let ours = SharedPage::allocate(memory(), owner).unwrap();
    let theirs = SharedPage::of_frame(memory(), memory().reference(ours.mfn(), owner).unwrap()).unwrap();
    (ours, theirs)
}
