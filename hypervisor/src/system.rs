//! All domains on one machine.

use alloc::sync::Arc;
use alloc::vec::Vec;

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
}

impl<M: Machine> System<M> {
    pub const fn new(machine: M, memory: &'static Memory) -> Self {
        System { machine, memory, domains: RwLock::new(Vec::new()) }
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

    /// The control domain, once it is built.
    pub fn control(&self) -> Option<Arc<Domain<M>>> {
        self.domains.read().iter().find(|domain| domain.is_control()).cloned()
    }
}
