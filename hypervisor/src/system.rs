//! All domains on one machine.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU32;

use mm::Memory;
use spin::RwLock;
use xen_abi::errno::Errno;
use xen_abi::types::DomainId;

use crate::domain::Domain;
use crate::machine::Machine;

pub struct System<M: Machine> {
    pub machine: M,
    pub memory: &'static Memory,
    domains: RwLock<Vec<Arc<Domain<M>>>>,
    /// Where the console ring begins, since XEN_SYSCTL_readconsole last cleared it.
    pub console_start: AtomicU32,
}

impl<M: Machine> System<M> {
    pub const fn new(machine: M, memory: &'static Memory) -> Self {
        System { machine, memory, domains: RwLock::new(Vec::new()), console_start: AtomicU32::new(0) }
    }

    /// The domain with this id.
    pub fn domain(&self, id: DomainId) -> Option<Arc<Domain<M>>> {
        self.domains.read().iter().find(|domain| domain.id == id).cloned()
    }

    /// EEXIST if its id is taken, ENOMEM if the list cannot grow.
    pub fn add(&self, domain: Arc<Domain<M>>) -> Result<(), Errno> {
        let mut domains = self.domains.write();
        if domains.iter().any(|other| other.id == domain.id) {
            return Err(Errno::EEXIST);
        }
        domains.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        domains.push(domain);
        Ok(())
    }

    /// Takes a domain off the list. Whoever has it already keeps it.
    pub fn remove(&self, id: DomainId) -> Option<Arc<Domain<M>>> {
        let mut domains = self.domains.write();
        let index = domains.iter().position(|domain| domain.id == id)?;
        Some(domains.swap_remove(index))
    }

    /// Does something for every domain; none is added or removed meanwhile.
    pub fn for_each(&self, each: impl FnMut(&Arc<Domain<M>>)) {
        self.domains.read().iter().for_each(each);
    }

    /// The control domain, once it is built.
    pub fn control(&self) -> Option<Arc<Domain<M>>> {
        self.domains.read().iter().find(|domain| domain.is_control()).cloned()
    }
}
