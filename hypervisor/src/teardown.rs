//! The end of a domain: its event channels are closed, its memory is given up, and what it has mapped of others is let go.

use crate::domain::Domain;
use crate::machine::Machine;
use crate::system::System;
use crate::{event, grant, physmap};

/// Ports, pages and grant mappings of one step.
const PORTS: u32 = 64;
const PAGES: u64 = 256;
const MAPPINGS: usize = 16;

/// How far the end of one domain is. The domain is off the [system's](System::remove) list, and none of its vCPUs runs any more.
#[derive(Clone, Copy, Debug, Default)]
pub struct Teardown {
    /// The grant mapping to go on with.
    handle: u32,
}

impl Teardown {
    /// Does a part of it; true when nothing is left. What others still refer to is theirs until they are done.
    pub fn step<M: Machine>(&mut self, system: &System<M>, domain: &Domain<M>) -> bool {
        if !event::close_all(system, domain, PORTS) || !physmap::relinquish(system, domain, PAGES) {
            return false;
        }
        match grant::map::release_all(&domain.grants, self.handle, MAPPINGS) {
            Some(next) => {
                self.handle = next;
                false
            }
            None => true,
        }
    }
}
