//! All domains on one machine.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mm::lock::{Lock, Rank};
use mm::{Dirty, Frames, Memory};
use spin::RwLock;
use xen_abi::errno::Errno;
use xen_abi::types::DomainId;

use crate::domain::Domain;
use crate::machine::Machine;
use crate::teardown::Grave;

pub struct System<M: Machine> {
    pub machine: M,
    pub memory: &'static Memory,
    /// In the order of their numbers.
    domains: RwLock<Vec<Arc<Domain<M>>>>,
    /// Domains that are gone, while somebody may still look at them.
    graves: Lock<Vec<Grave<M>>>,
    /// CPUs that have taken one of those to work on it.
    burying: AtomicU32,
    /// The number that was given out last.
    last_id: AtomicU32,
    /// Pages that are kept free for domains (XENMEM_claim_pages). Changes with the lock held; who only asks whether there are any takes none.
    claimed: AtomicU64,
    claims: Lock<()>,
    /// Where the console ring begins, since XEN_SYSCTL_readconsole last cleared it.
    pub console_start: AtomicU32,
}

impl<M: Machine> System<M> {
    pub const fn new(machine: M, memory: &'static Memory) -> Self {
        System {
            machine,
            memory,
            domains: RwLock::new(Vec::new()),
            graves: Lock::new(Rank::Domains, Vec::new()),
            burying: AtomicU32::new(0),
            last_id: AtomicU32::new(0),
            claimed: AtomicU64::new(0),
            claims: Lock::new(Rank::DomainControl, ()),
            console_start: AtomicU32::new(0),
        }
    }

    /// The domain with this id.
    pub fn domain(&self, id: DomainId) -> Option<Arc<Domain<M>>> {
        let domains = self.domains.read();
        let index = domains.binary_search_by_key(&id.0, |domain| domain.id.0).ok()?;
        domains.get(index).cloned()
    }

    /// The first domain from this id on.
    pub fn domain_from(&self, id: DomainId) -> Option<Arc<Domain<M>>> {
        let domains = self.domains.read();
        let index = domains.partition_point(|domain| domain.id.0 < id.0);
        domains.get(index).cloned()
    }

    /// EEXIST if its id is taken, ENOMEM if the list cannot grow.
    pub fn add(&self, domain: Arc<Domain<M>>) -> Result<(), Errno> {
        let mut domains = self.domains.write();
        let place = domains.binary_search_by_key(&domain.id.0, |other| other.id.0);
        let Err(index) = place else { return Err(Errno::EEXIST) };
        domains.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.last_id.fetch_max(domain.id.0.into(), Ordering::Relaxed);
        domains.insert(index, domain);
        Ok(())
    }

    /// A number that no domain has, as far as possible from those that were in use lately. `None` if all are taken.
    pub fn free_id(&self) -> Option<DomainId> {
        const END: u32 = DomainId::FIRST_RESERVED.0 as u32;
        let domains = self.domains.read();
        let last = self.last_id.load(Ordering::Relaxed);
        let candidates = (last.saturating_add(1)..END).chain(1..END);
        let is_free = |id: &u32| {
            let id = *id as u16;
            // Whoever still uses what was of a domain's with that number is not to be the next one's burden.
            domains.binary_search_by_key(&id, |domain| domain.id.0).is_err() && self.memory.lingering(DomainId(id)) == 0
        };
        let id = candidates.take(END as usize).find(is_free)?;
        self.last_id.store(id, Ordering::Relaxed);
        Some(DomainId(id as u16))
    }

    /// Takes a domain off the list. Whoever has it already keeps it.
    pub fn remove(&self, id: DomainId) -> Option<Arc<Domain<M>>> {
        let mut domains = self.domains.write();
        let index = domains.binary_search_by_key(&id.0, |domain| domain.id.0).ok()?;
        Some(domains.remove(index))
    }

    /// Does something for every domain; none is added or removed meanwhile.
    pub fn for_each(&self, each: impl FnMut(&Arc<Domain<M>>)) {
        self.domains.read().iter().for_each(each);
    }

    /// The control domain, once it is built.
    pub fn control(&self) -> Option<Arc<Domain<M>>> {
        self.domains.read().iter().find(|domain| domain.is_control()).cloned()
    }

    // ---- domains that are gone ----

    /// Keeps a domain that is on the list no more until nobody looks at it. Should there be no memory for that, it stays for ever.
    pub(crate) fn add_grave(&self, grave: Grave<M>) {
        let mut graves = self.graves.lock();
        if graves.try_reserve(1).is_ok() {
            graves.push(grave);
        } else {
            core::mem::forget(grave);
        }
    }

    /// Works on a domain that nobody has any more, until `work` says that it is done. False if there is none, nor another CPU at such a one.
    pub(crate) fn work_on_a_grave(&self, work: impl FnOnce(&mut Grave<M>) -> bool) -> bool {
        let mut grave = {
            let mut graves = self.graves.lock();
            match graves.iter().position(|grave| Arc::strong_count(&grave.domain) == 1) {
                Some(index) => {
                    self.burying.fetch_add(1, Ordering::Relaxed);
                    graves.swap_remove(index)
                }
                None => return self.burying.load(Ordering::Acquire) != 0,
            }
        };
        if work(&mut grave) {
            drop(grave);
        } else {
            self.add_grave(grave);
        }
        self.burying.fetch_sub(1, Ordering::Release);
        true
    }

    /// Whether a domain is still to be given back.
    pub fn has_graves(&self) -> bool {
        !self.graves.lock().is_empty()
    }

    // ---- claims ----

    /// Pages that are kept free for domains.
    pub fn claimed(&self) -> u64 {
        self.claimed.load(Ordering::Relaxed)
    }

    /// Keeps `pages` free until the domain has that many, those that it has included; none gives the claim up. EINVAL for fewer than it has or
    /// more than it may have, ENOMEM if there are not as many.
    pub fn claim(&self, domain: &Domain<M>, pages: u64) -> Result<(), Errno> {
        if pages == 0 {
            self.release_claim(domain);
            return Ok(());
        }
        let held = domain.pages.load(Ordering::Relaxed);
        if pages > domain.max_pages.load(Ordering::Relaxed) {
            return Err(Errno::EINVAL);
        }
        let wanted = pages.checked_sub(held).ok_or(Errno::EINVAL)?;
        let _held = self.claims.lock();
        let free = self.memory.free_frames();
        // A domain dies before its claim is released: only with the lock held it is known that it still will be.
        if domain.control.is_dying() || domain.control.claim.load(Ordering::Relaxed) != 0 {
            return Err(Errno::EINVAL);
        }
        let total = self.claimed().checked_add(wanted).filter(|total| *total <= free).ok_or(Errno::ENOMEM)?;
        self.claimed.store(total, Ordering::Relaxed);
        domain.control.claim.store(wanted, Ordering::Relaxed);
        Ok(())
    }

    /// The domain's claim is no more.
    pub(crate) fn release_claim(&self, domain: &Domain<M>) {
        let _held = self.claims.lock();
        let own = domain.control.claim.swap(0, Ordering::Relaxed);
        self.claimed.store(self.claimed().saturating_sub(own), Ordering::Relaxed);
    }

    /// Takes `2^order` free frames for a domain: out of its claim, as far as that goes, otherwise out of what nobody claims. Also how many were
    /// claimed; ENOMEM if there is no such block, or too little of the rest.
    pub(crate) fn draw(&self, domain: &Domain<M>, order: u8) -> Result<(Frames<Dirty>, u64), Errno> {
        // Without a claim anywhere nothing is to be kept.
        if self.claimed() == 0 {
            return Ok((self.memory.allocate(order, None)?, 0));
        }
        // Until the frames are taken: what is claimed no more and free yet would be another's.
        let _held = self.claims.lock();
        let frames = 1u64.wrapping_shl(order.into());
        let own = domain.control.claim.load(Ordering::Relaxed);
        let covered = own.min(frames);
        let free = self.memory.free_frames().saturating_sub(self.claimed().saturating_sub(own));
        if frames > free {
            return Err(Errno::ENOMEM);
        }
        let block = self.memory.allocate(order, None)?;
        domain.control.claim.store(own.saturating_sub(covered), Ordering::Relaxed);
        self.claimed.store(self.claimed().saturating_sub(covered), Ordering::Relaxed);
        Ok((block, covered))
    }

    /// The domain did not get frames after all. To be said before they are free.
    pub(crate) fn restore_claim(&self, domain: &Domain<M>, covered: u64) {
        let _held = self.claims.lock();
        // A dying domain's claim is no more.
        if covered != 0 && !domain.control.is_dying() {
            domain.control.claim.fetch_add(covered, Ordering::Relaxed);
            self.claimed.store(self.claimed().saturating_add(covered), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fake::{self, Wanted};

    #[test]
    fn a_domain_that_is_on_its_way_out_gets_no_claim() {
        let system = fake::system(1024);
        let domain = fake::add(system, Wanted { pages: 1, max_pages: 1000, ..Wanted::default() });
        let held = system.claims.lock();
        std::thread::scope(|scope| {
            let claiming = scope.spawn(|| system.claim(&domain, 50));
            // By now it waits for the lock.
            std::thread::sleep(Duration::from_millis(20));
            domain.control.begin_dying();
            drop(held);
            assert_eq!(claiming.join().unwrap(), Err(Errno::EINVAL));
        });
    }
}
