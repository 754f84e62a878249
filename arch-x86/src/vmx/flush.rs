//! Stale EPT translations are dropped before an entry, by generation ([`crate::engine::flush_all`]).

use mm::addr::Mfn;

use super::guest::ept_pointer;
use super::vmcs;
use crate::engine::generation;

#[inline]
pub fn invept_if_changed(seen: &mut u64, root: Mfn) {
    let now = generation();
    if now != *seen {
        *seen = now;
        vmcs::invept(Some(ept_pointer(root)));
    }
}
