//! The FIFO ABI: an event word for each port in pages that the guest gives, and for each vCPU a control block with the heads of
//! sixteen queues, one a priority. A queue is a list of ports linked through their event words.
//!
//! The guest consumes from the head by itself; only the hypervisor appends. It remembers each queue's last port on its own
//! side, and never reads a link. So whatever the guest writes into its words or its control block, every operation here ends
//! after a bounded number of steps and the only events that can get lost are that guest's.
//!
//! An event word has its PENDING bit set first. If it was then neither masked nor linked, the port has to be linked, and
//! whoever sets LINKED does so. A guest that unmasks or unlinks a port looks at PENDING afterwards, so no event falls between.

use alloc::vec::Vec;
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU32, Ordering};

use mm::SharedPage;
use spin::Once;
use spin::mutex::{SpinMutex, SpinMutexGuard};
use xen_abi::errno::Errno;
use xen_abi::event as abi;
use xen_abi::types::{Port, VcpuId};

use super::channels::Raised;
use super::ports::Slot;
use crate::area::Area;

const PENDING: u32 = 1 << abi::EVTCHN_FIFO_PENDING;
const MASKED: u32 = 1 << abi::EVTCHN_FIFO_MASKED;
const LINKED: u32 = 1 << abi::EVTCHN_FIFO_LINKED;
const BUSY: u32 = 1 << abi::EVTCHN_FIFO_BUSY;
const LINK: u32 = abi::EVTCHN_FIFO_LINK_MASK;

const PRIORITIES: usize = abi::EVTCHN_FIFO_MAX_QUEUES as usize;

/// Ports of the ABI.
pub const PORTS: u32 = abi::EVTCHN_FIFO_NR_CHANNELS;
/// Bytes of a vCPU's control block.
pub const CONTROL_SIZE: usize = size_of::<abi::FifoControlBlock>();

/// How often appending is tried before the guest is asked, by BUSY, to leave the word alone; and how often after that.
const TRIES: u32 = 4;
const BUSY_TRIES: u32 = 64;

/// What a domain that uses the FIFO ABI has: its event words and its vCPUs' queues. Pages and control blocks are added and stay.
pub struct Fifo {
    words: Vec<Once<SharedPage>>,
    vcpus: Vec<Queues>,
}

/// A vCPU's queues.
struct Queues {
    control: Once<Area>,
    /// The last port that was linked into each queue, or 0. The guest may have taken it out since: then its word is not LINKED.
    tails: [SpinMutex<u32>; PRIORITIES],
}

/// Names a queue of a domain: vCPU and priority. Locks of two queues are taken in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct QueueId(u32);

impl QueueId {
    #[inline]
    const fn new(vcpu: VcpuId, priority: u32) -> QueueId {
        QueueId(vcpu.0.wrapping_mul(PRIORITIES as u32).wrapping_add(priority))
    }
}

impl Fifo {
    /// ENOMEM where memory is short.
    pub fn new(vcpus: usize) -> Result<Fifo, Errno> {
        let mut fifo = Fifo { words: Vec::new(), vcpus: Vec::new() };
        let pages = abi::EVTCHN_FIFO_MAX_ARRAY_PAGES as usize;
        fifo.words.try_reserve_exact(pages).map_err(|_| Errno::ENOMEM)?;
        fifo.words.resize_with(pages, Once::new);
        fifo.vcpus.try_reserve_exact(vcpus).map_err(|_| Errno::ENOMEM)?;
        fifo.vcpus
            .resize_with(vcpus, || Queues { control: Once::new(), tails: [const { SpinMutex::new(0) }; PRIORITIES] });
        Ok(fifo)
    }

    /// Gives a vCPU its control block. ENOENT if there is no such vCPU, EINVAL if it has one.
    pub fn add_control(&self, vcpu: VcpuId, block: Area) -> Result<(), Errno> {
        let queues = self.vcpus.get(vcpu.0 as usize).ok_or(Errno::ENOENT)?;
        let mut block = Some(block);
        queues.control.try_call_once(|| block.take().ok_or(Errno::EINVAL))?;
        // Not taken: there was one already.
        if block.is_none() { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Adds the next page of event words and answers which ports are in it. ENOSPC if every port has its word. Callers hold the
    /// domain's lock.
    pub fn add_words(&self, page: SharedPage) -> Result<core::ops::Range<u32>, Errno> {
        let next = self.words.iter().position(|words| !words.is_completed()).ok_or(Errno::ENOSPC)?;
        self.words.get(next).ok_or(Errno::ENOSPC)?.call_once(|| page);
        let first = (next as u32).wrapping_mul(abi::EVTCHN_FIFO_WORDS_PER_PAGE);
        Ok(first..first.wrapping_add(abi::EVTCHN_FIFO_WORDS_PER_PAGE))
    }

    #[inline]
    fn word(&self, port: Port) -> Option<&AtomicU32> {
        let page = self.words.get((port.0 / abi::EVTCHN_FIFO_WORDS_PER_PAGE) as usize)?.get()?;
        let place = (port.0 % abi::EVTCHN_FIFO_WORDS_PER_PAGE).wrapping_mul(size_of::<u32>() as u32);
        page.atomic_u32(place as usize)
    }

    /// Makes a port's event pending.
    #[inline]
    pub fn raise(&self, port: Port, slot: &Slot) -> Raised {
        let Some(word) = self.word(port) else { return self.raise_without_word(port, slot) };
        self.raise_in(word, port, slot)
    }

    #[inline]
    fn raise_in(&self, word: &AtomicU32, port: Port, slot: &Slot) -> Raised {
        let before = word.fetch_or(PENDING, Ordering::SeqCst);
        let notify = if before & (MASKED | LINKED) == 0 { self.link(word, port, slot) } else { None };
        Raised { newly: before & PENDING == 0, notify }
    }

    /// Keeps the event until the guest has added the page that the port's word is in.
    #[cold]
    fn raise_without_word(&self, port: Port, slot: &Slot) -> Raised {
        let newly = !slot.early.swap(true, Ordering::SeqCst);
        // The page may have come just now. Whoever takes the event off the slot delivers it: this call, or the adding of the page.
        match self.word(port) {
            Some(word) if slot.early.swap(false, Ordering::SeqCst) => self.raise_in(word, port, slot),
            _ => Raised { newly, notify: None },
        }
    }

    /// Delivers what was kept for a port, after a page or a control block came.
    pub fn raise_early(&self, port: Port, slot: &Slot) -> Raised {
        if slot.early.swap(false, Ordering::SeqCst) { self.raise(port, slot) } else { Raised::NOTHING }
    }

    /// Clears a port's mask; the vCPU to notify if that lets a pending event through.
    pub fn unmask(&self, port: Port, slot: &Slot) -> Option<VcpuId> {
        let word = self.word(port)?;
        let before = word.fetch_and(!MASKED, Ordering::SeqCst);
        if before & (PENDING | LINKED) == PENDING { self.link(word, port, slot) } else { None }
    }

    pub fn is_pending(&self, port: Port, slot: &Slot) -> bool {
        slot.early.load(Ordering::SeqCst)
            || self.word(port).is_some_and(|word| word.load(Ordering::SeqCst) & PENDING != 0)
    }

    pub fn clear_pending(&self, port: Port) {
        if let Some(word) = self.word(port) {
            word.fetch_and(!PENDING, Ordering::SeqCst);
        }
    }

    /// A port that the guest has not taken out of its queue yet cannot be used anew.
    pub fn is_linked(&self, port: Port) -> bool {
        self.word(port).is_some_and(|word| word.load(Ordering::SeqCst) & LINKED != 0)
    }

    /// Appends a port to the queue of its vCPU and priority, unless it is in a queue; the vCPU to notify, if it does not know that the
    /// queue has events.
    #[inline]
    fn link(&self, word: &AtomicU32, port: Port, slot: &Slot) -> Option<VcpuId> {
        let state = slot.state();
        let (vcpu, priority) = (state.vcpu(), state.priority());
        let queues = self.vcpus.get(vcpu.0 as usize)?;
        let Some(control) = queues.control.get() else {
            return self.link_without_control(vcpu, word, port, slot);
        };
        let (head, ready) = fields(control, priority)?;
        {
            let queue = QueueId::new(vcpu, priority);
            let mut tail = if slot.last_queue.load(Ordering::Relaxed) == queue.0 {
                let tail = queues.tails.get(priority as usize)?.lock();
                claim(word, slot, queue).then_some(tail)
            } else {
                self.claim_from_another(word, slot, port, queue)
            }?;
            forget(&mut tail, port);
            let before = core::mem::replace(&mut *tail, port.0);
            if before != 0 && self.word(Port(before)).is_some_and(|last| append(last, port)) {
                return None;
            }
            head.store(port.0, Ordering::Release);
        }
        let bit = 1u32.wrapping_shl(priority);
        (ready.fetch_or(bit, Ordering::SeqCst) & bit == 0).then_some(vcpu)
    }

    fn tail(&self, queue: QueueId) -> Option<SpinMutexGuard<'_, u32>> {
        let queues = self.vcpus.get(queue.0 as usize / PRIORITIES)?;
        Some(queues.tails.get(queue.0 as usize % PRIORITIES)?.lock())
    }

    /// Gets the right to link a port into `queue`, if it was last in another one: that queue's lock is needed as well.
    #[cold]
    fn claim_from_another(
        &self,
        word: &AtomicU32,
        slot: &Slot,
        port: Port,
        queue: QueueId,
    ) -> Option<SpinMutexGuard<'_, u32>> {
        let last = QueueId(slot.last_queue.load(Ordering::Relaxed));
        if last == queue {
            let tail = self.tail(queue)?;
            return claim(word, slot, queue).then_some(tail);
        }
        let (tail, mut old) = if queue < last {
            let tail = self.tail(queue)?;
            (tail, self.tail(last)?)
        } else {
            let old = self.tail(last)?;
            (self.tail(queue)?, old)
        };
        if !claim(word, slot, last) {
            return None;
        }
        forget(&mut old, port);
        slot.last_queue.store(queue.0, Ordering::Relaxed);
        Some(tail)
    }

    /// The event stays pending in its word, and is kept until the vCPU has a control block.
    #[cold]
    fn link_without_control(&self, vcpu: VcpuId, word: &AtomicU32, port: Port, slot: &Slot) -> Option<VcpuId> {
        slot.early.store(true, Ordering::SeqCst);
        // It may have come just now. As that happens once a vCPU, this does not go on for ever even if the port is moved about.
        let came = self.vcpus.get(vcpu.0 as usize)?.control.is_completed();
        if came && slot.early.swap(false, Ordering::SeqCst) { self.link(word, port, slot) } else { None }
    }
}

/// Sets LINKED for a port that was last in a queue whose lock the caller holds; false if somebody else did. Where another CPU has linked
/// the port, even into another queue, it did so after the caller's event became pending, so the guest will see that event.
#[inline]
fn claim(word: &AtomicU32, slot: &Slot, last: QueueId) -> bool {
    slot.last_queue.load(Ordering::Relaxed) == last.0 && word.fetch_or(LINKED, Ordering::SeqCst) & LINKED == 0
}

/// A port that is not LINKED but was the last one of a queue has left that queue empty. It must not be remembered there: it will be LINKED again
/// elsewhere, and the next port would be appended to the wrong queue behind it.
#[inline]
fn forget(tail: &mut u32, port: Port) {
    if *tail == port.0 {
        *tail = 0;
    }
}

/// A queue's head and its vCPU's ready bits.
#[inline]
fn fields(control: &Area, priority: u32) -> Option<(&AtomicU32, &AtomicU32)> {
    let head =
        offset_of!(abi::FifoControlBlock, head).wrapping_add((priority as usize).wrapping_mul(size_of::<Port>()));
    Some((control.atomic_u32(head)?, control.atomic_u32(offset_of!(abi::FifoControlBlock, ready))?))
}

/// Makes `port` what follows the port of `last`, if that is still in its queue. The guest changes the word at the same time; one that
/// does so for ever is told that the queue was empty, and loses what it had in there.
#[inline]
fn append(last: &AtomicU32, port: Port) -> bool {
    let mut seen = last.load(Ordering::SeqCst);
    let mut busy = false;
    for attempt in 0..TRIES.wrapping_add(BUSY_TRIES) {
        if attempt == TRIES {
            busy = true;
            seen = last.fetch_or(BUSY, Ordering::SeqCst) | BUSY;
        }
        if seen & LINKED == 0 {
            break;
        }
        let next = (seen & !(LINK | BUSY)) | port.0;
        match last.compare_exchange(seen, next, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return true,
            Err(now) => seen = now,
        }
    }
    if busy {
        last.fetch_and(!BUSY, Ordering::SeqCst);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_another_cpu_has_moved_meanwhile_is_not_linked_again() {
        let table = super::super::ports::Table::new().unwrap();
        let slot = table.get_or_grow(Port(1)).unwrap();
        let word = AtomicU32::new(PENDING);
        slot.last_queue.store(QueueId::new(VcpuId(1), 7).0, Ordering::Relaxed);
        assert!(!claim(&word, slot, QueueId::new(VcpuId(0), 7)));
        assert_eq!(word.load(Ordering::Relaxed), PENDING);
        assert!(claim(&word, slot, QueueId::new(VcpuId(1), 7)));
        assert!(!claim(&word, slot, QueueId::new(VcpuId(1), 7)), "it is linked");
    }

    #[test]
    fn appending_asks_for_quiet_by_busy_and_takes_the_request_back() {
        let last = AtomicU32::new(LINKED | MASKED);
        assert!(append(&last, Port(9)));
        assert_eq!(last.load(Ordering::Relaxed), LINKED | MASKED | 9);
        let gone = AtomicU32::new(PENDING);
        assert!(!append(&gone, Port(9)));
        assert_eq!(gone.load(Ordering::Relaxed), PENDING);
    }
}
