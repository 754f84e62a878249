//! The two-level ABI: a pending and a mask bit for each port in shared_info, and in each vcpu_info a selector whose bits say which
//! words of the pending bits to look at.
//!
//! All words are touched 32 bits at a time. Bit n of a bitmap is then at the same place for guests of either width; only the
//! selector's grain and the lengths differ.

use core::sync::atomic::{AtomicU32, Ordering};

use mm::SharedPage;
use xen_abi::event::{EVTCHN_2L_NR_CHANNELS, EVTCHN_2L_NR_CHANNELS_32};
use xen_abi::types::{Port, VcpuId};

use super::channels::{Raised, Shared};
use super::ports::Slot;
use crate::machine::Width;

/// Where things are for a guest of one width (Xen's `xen.h`: shared_info and vcpu_info).
struct Layout {
    ports: u32,
    /// Ports that one bit of the selector stands for.
    grain: u32,
    /// Offset of `evtchn_mask` in shared_info; `evtchn_pending` comes right before it.
    mask: usize,
    /// Offset of `evtchn_pending_sel` in vcpu_info.
    selector: usize,
}

/// Offset of `evtchn_pending` in shared_info, behind 32 vcpu_infos of 64 bytes.
const PENDING: usize = 2048;

const LAYOUT_64: Layout = Layout { ports: EVTCHN_2L_NR_CHANNELS, grain: 64, mask: 2560, selector: 8 };
const LAYOUT_32: Layout = Layout { ports: EVTCHN_2L_NR_CHANNELS_32, grain: 32, mask: 2176, selector: 4 };

const _: () = {
    use core::mem::offset_of;
    use xen_abi::x86::{SharedInfo, VcpuInfo};
    assert!(offset_of!(SharedInfo, evtchn_pending) == PENDING);
    assert!(offset_of!(SharedInfo, evtchn_mask) == LAYOUT_64.mask);
    assert!(offset_of!(VcpuInfo, evtchn_pending_sel) == LAYOUT_64.selector);
};

#[inline]
const fn layout(width: Width) -> &'static Layout {
    match width {
        Width::Bits64 => &LAYOUT_64,
        Width::Bits32 => &LAYOUT_32,
    }
}

/// How many ports the ABI has for a guest of this width.
pub const fn ports(width: Width) -> u32 {
    layout(width).ports
}

/// One bit of a bitmap in a shared page.
struct Bit<'a> {
    word: &'a AtomicU32,
    mask: u32,
}

impl<'a> Bit<'a> {
    #[inline]
    fn new(page: &'a SharedPage, bitmap: usize, index: u32) -> Option<Bit<'a>> {
        let word = bitmap.wrapping_add((index / 32).wrapping_mul(4) as usize);
        Some(Bit { word: page.atomic_u32(word)?, mask: 1u32.wrapping_shl(index) })
    }

    // All of these are SeqCst: the protocol is "change one bit, then look at another" on both sides.

    #[inline]
    fn is_set(&self) -> bool {
        self.word.load(Ordering::SeqCst) & self.mask != 0
    }

    /// True if it was clear.
    #[inline]
    fn set(&self) -> bool {
        self.word.fetch_or(self.mask, Ordering::SeqCst) & self.mask == 0
    }

    /// True if it was set.
    #[inline]
    fn clear(&self) -> bool {
        self.word.fetch_and(!self.mask, Ordering::SeqCst) & self.mask != 0
    }
}

#[inline]
fn pending<G: Shared>(guest: &G, port: Port) -> Option<Bit<'_>> {
    (port.0 < layout(guest.width()).ports).then(|| Bit::new(guest.shared_info(), PENDING, port.0))?
}

#[inline]
fn mask<G: Shared>(guest: &G, port: Port) -> Option<Bit<'_>> {
    let layout = layout(guest.width());
    (port.0 < layout.ports).then(|| Bit::new(guest.shared_info(), layout.mask, port.0))?
}

/// Makes a port's event pending, unless the guest has not taken the last one yet.
#[inline]
pub fn raise(guest: &impl Shared, port: Port, slot: &Slot) -> Raised {
    let (Some(pending), Some(mask)) = (pending(guest, port), mask(guest, port)) else { return Raised::NOTHING };
    if !pending.set() {
        return Raised::NOTHING;
    }
    // The vCPU is read only now: whoever moves the port afterwards finds the event pending.
    let notify = if mask.is_set() { None } else { select(guest, slot.state().vcpu(), port) };
    Raised { newly: true, notify }
}

/// Clears a port's mask; the vCPU to notify if that lets a pending event through.
pub fn unmask(guest: &impl Shared, port: Port, slot: &Slot) -> Option<VcpuId> {
    let through = mask(guest, port)?.clear() && is_pending(guest, port);
    if through { select(guest, slot.state().vcpu(), port) } else { None }
}

/// Tells a vCPU which word to look at; the vCPU itself if it does not know yet.
#[inline]
fn select(guest: &impl Shared, vcpu: VcpuId, port: Port) -> Option<VcpuId> {
    let layout = layout(guest.width());
    let (page, info) = guest.info(vcpu)?;
    let selector = Bit::new(page, info.wrapping_add(layout.selector), port.0.checked_div(layout.grain)?)?;
    selector.set().then_some(vcpu)
}

/// Has a vCPU look at every word.
pub fn select_all(guest: &impl Shared, vcpu: VcpuId) {
    let Some((page, info)) = guest.info(vcpu) else { return };
    let layout = layout(guest.width());
    let words = layout.grain as usize / 32;
    for word in (0..words).map(|word| info.wrapping_add(layout.selector).wrapping_add(word.wrapping_mul(4))) {
        if let Some(word) = page.atomic_u32(word) {
            word.store(u32::MAX, Ordering::SeqCst);
        }
    }
}

pub fn is_pending(guest: &impl Shared, port: Port) -> bool {
    pending(guest, port).is_some_and(|bit| bit.is_set())
}

pub fn clear_pending(guest: &impl Shared, port: Port) {
    if let Some(bit) = pending(guest, port) {
        bit.clear();
    }
}

#[cfg(test)]
mod tests {
    use memoffset::span_of;
    use xen_abi::compat;
    use xen_abi::x86::SharedInfo;

    use super::*;

    #[test]
    fn the_bitmaps_lie_side_by_side_and_hold_all_ports() {
        assert_eq!(span_of!(SharedInfo, evtchn_pending), PENDING..LAYOUT_64.mask);
        assert_eq!(span_of!(SharedInfo, evtchn_mask), LAYOUT_64.mask..LAYOUT_64.mask + LAYOUT_64.ports as usize / 8);
        assert_eq!(span_of!(compat::SharedInfo, evtchn_pending), PENDING..LAYOUT_32.mask);
        assert_eq!(span_of!(compat::SharedInfo, evtchn_mask).len(), LAYOUT_32.ports as usize / 8);
    }
}
