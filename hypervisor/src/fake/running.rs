//! A vCPU that makes hypercalls, and its memory.

use std::sync::Arc;

use mm::addr::GuestPhys;
use xen_abi::compat::Compat;
use xen_abi::types::VcpuId;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Context, Fake, page};
use crate::domain::Domain;
use crate::hypercall::{Arguments, Caller, Outcome, dispatch};
use crate::machine::Width;
use crate::system::System;
use crate::vcpu::Vcpu;

/// A running vCPU.
pub struct Running {
    pub system: &'static System<Fake>,
    pub domain: Arc<Domain<Fake>>,
    pub context: Context,
    /// Which vCPU it is.
    pub id: VcpuId,
}

impl Running {
    pub fn new(system: &'static System<Fake>, domain: &Arc<Domain<Fake>>) -> Running {
        Running { system, domain: Arc::clone(domain), context: Context::default(), id: VcpuId(0) }
    }

    pub fn vcpu(&self) -> &Vcpu<Fake> {
        self.domain.vcpu(self.id).unwrap()
    }

    /// Makes a hypercall whose arguments are an operation and a structure, which is put at the end of page 0 and read back.
    pub fn op<T: FromBytes + IntoBytes + Immutable>(&mut self, number: u64, operation: u32, argument: &mut T) -> i64 {
        let at = page(1) - (size_of::<T>() as u64).next_multiple_of(8);
        self.poke(at, argument);
        let result = self.call(number, &[operation.into(), at]).0;
        *argument = self.peek(at);
        result
    }

    /// As [`op`](Self::op), with the structure as a 32-bit caller has it where the caller is one.
    pub fn op_arg<T>(&mut self, number: u64, operation: u32, argument: &mut T) -> i64
    where
        T: Compat + FromBytes + IntoBytes + Immutable,
    {
        if self.context.width == Width::Bits64 {
            return self.op(number, operation, argument);
        }
        let mut narrow = argument.narrow();
        let result = self.op(number, operation, &mut narrow);
        *argument = T::widen(narrow);
        result
    }

    /// Makes a hypercall once.
    pub fn call_once(&mut self, number: u64, arguments: Arguments) -> Outcome {
        let vcpu = self.domain.vcpu(self.id).unwrap();
        let width = self.context.width;
        let mut caller = Caller { system: self.system, domain: &self.domain, vcpu, context: &mut self.context, width };
        let outcome = dispatch(&mut caller, number, arguments);
        self.system.for_each(|domain| {
            let stale = domain.machine.lock().unwrap().stale(&domain.p2m);
            assert_eq!(stale, None, "what was unmapped by call {number} {arguments:x?} was not flushed");
        });
        outcome
    }

    /// Makes a hypercall, and makes it again until it is done. What it returns, and how often it was interrupted.
    pub fn call(&mut self, number: u64, arguments: &[u64]) -> (i64, usize) {
        let mut registers = [0; 5];
        registers[..arguments.len()].copy_from_slice(arguments);
        for times in 0.. {
            match self.call_once(number, registers) {
                Outcome::Return(value) => return (value, times),
                Outcome::Continue(next) => registers = next,
            }
        }
        unreachable!()
    }

    /// Writes into the domain's memory, past everything else.
    pub fn poke<T: IntoBytes + Immutable + ?Sized>(&self, at: u64, value: &T) {
        for (index, byte) in value.as_bytes().iter().enumerate() {
            let at = GuestPhys(at + index as u64);
            let mfn = self.domain.p2m.lookup(at.gfn()).unwrap().mfn;
            let host = mm::HostPhys(mfn.phys().0 + at.page_offset() as u64);
            self.system.memory.window().copy_to(host, &[*byte]).unwrap();
        }
    }

    pub fn peek<T: FromBytes + IntoBytes>(&self, at: u64) -> T {
        let mut value = T::new_zeroed();
        for (index, byte) in value.as_mut_bytes().iter_mut().enumerate() {
            let at = GuestPhys(at + index as u64);
            let mfn = self.domain.p2m.lookup(at.gfn()).unwrap().mfn;
            let host = mm::HostPhys(mfn.phys().0 + at.page_offset() as u64);
            let mut one = [0];
            self.system.memory.window().copy_from(host, &mut one).unwrap();
            *byte = one[0];
        }
        value
    }
}
