//! Hypercalls: who calls, with what, and the table of all of them.

use alloc::sync::Arc;

use mm::addr::{Gfn, GuestPhys};
use mm::{Cached, SharedPage};
use xen_abi::compat::Compat;
use xen_abi::errno::Errno;
use xen_abi::handle::GuestHandle;
use xen_abi::numbers;
use xen_abi::types::DomainId;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::call;
use crate::domain::Domain;
use crate::machine::{Access, Machine, Width};
use crate::physmap::on_demand;
use crate::system::System;
use crate::vcpu::Vcpu;

/// The vCPU that makes a hypercall, and everything it may reach by it.
pub struct Caller<'a, M: Machine> {
    pub system: &'a System<M>,
    pub domain: &'a Arc<Domain<M>>,
    pub vcpu: &'a Vcpu<M>,
    pub context: &'a mut M::Context,
    /// The width of its registers and of its argument structures.
    pub width: Width,
}

/// The argument registers: rdi, rsi, rdx, r10, r8 (ebx, ecx, edx, esi, edi of a 32-bit caller).
pub type Arguments = [u64; 5];

/// What a hypercall comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This value in rax.
    Return(i64),
    /// Its time is up: the same call is made again with these arguments once the vCPU may run.
    Continue(Arguments),
}

/// What a handler answers with.
trait Answer {
    fn outcome(self, refused: impl FnOnce(Errno) -> Outcome) -> Outcome;
}

impl Answer for Outcome {
    #[inline]
    fn outcome(self, _refused: impl FnOnce(Errno) -> Outcome) -> Outcome {
        self
    }
}

impl Answer for Result<(), Errno> {
    #[inline]
    fn outcome(self, refused: impl FnOnce(Errno) -> Outcome) -> Outcome {
        self.map_or_else(refused, |()| Outcome::Return(0))
    }
}

impl Answer for Result<u64, Errno> {
    #[inline]
    fn outcome(self, refused: impl FnOnce(Errno) -> Outcome) -> Outcome {
        self.map_or_else(refused, |value| Outcome::Return(value as i64))
    }
}

impl Answer for Result<Outcome, Errno> {
    #[inline]
    fn outcome(self, refused: impl FnOnce(Errno) -> Outcome) -> Outcome {
        self.unwrap_or_else(refused)
    }
}

#[inline]
fn refuse(arguments: Arguments, errno: Errno) -> Outcome {
    match errno {
        // Something comes first, a part at a time: memory for an argument, what is left of a domain.
        Errno::ERESTART => Outcome::Continue(arguments),
        errno => Outcome::Return(errno.as_return()),
    }
}

/// The page behind that of `linear`, from which `len` bytes more are to be there. EFAULT if they reach beyond the end of linear memory.
fn next_page(linear: u64, len: usize) -> Result<u64, Errno> {
    let next = linear.checked_add(left_in_page(linear)).ok_or(Errno::EFAULT)?;
    next.checked_add((len as u64).saturating_sub(1)).map(|_| next).ok_or(Errno::EFAULT)
}

/// Bytes from `linear` to the end of its page.
#[inline]
const fn left_in_page(linear: u64) -> u64 {
    const PAGE: u64 = mm::PAGE_SIZE as u64;
    PAGE.wrapping_sub(linear & PAGE.wrapping_sub(1))
}

impl<M: Machine> Caller<'_, M> {
    /// Has a copy made to or from the caller's linear memory, within one page; again once there is memory that was to be populated.
    #[inline]
    fn within_page(
        &mut self,
        linear: u64,
        access: Access,
        mut copy: impl FnMut(&mut Cached<'_, M::Format>, GuestPhys) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        loop {
            let physical = self.system.machine.translate(self.domain, self.context, linear, access);
            let copied = physical.and_then(|physical| {
                let cache = self.system.machine.p2m_cache(self.context);
                copy(&mut cache.of(&self.domain.p2m), physical)
            });
            match copied {
                Ok(()) => return Ok(()),
                Err(errno) => self.populate_missed(errno)?,
            }
        }
    }

    /// After an access that failed: populates the page that was missing. What the access comes to if there is none, ERESTART if that takes longer.
    #[cold]
    #[inline(never)]
    fn populate_missed(&mut self, errno: Errno) -> Result<(), Errno> {
        let gfn = self.system.machine.p2m_cache(self.context).take_missed().ok_or(errno)?;
        on_demand::populate(self.system, self.domain, gfn)
            .map_err(|why| if why == Errno::ERESTART { why } else { errno })
    }

    /// Copies bytes in from the caller's memory. EFAULT where it cannot be read, ERESTART if the call is to be made again first.
    #[inline]
    pub fn read_bytes(&mut self, linear: u64, into: &mut [u8]) -> Result<(), Errno> {
        if into.len() as u64 > left_in_page(linear) {
            return self.read_pages(linear, into);
        }
        self.within_page(linear, Access::Read, |memory, physical| memory.copy_from(physical, into))
    }

    /// Copies bytes out to the caller's memory. EFAULT where it cannot be written, ERESTART if the call is to be made again first.
    #[inline]
    pub fn write_bytes(&mut self, linear: u64, from: &[u8]) -> Result<(), Errno> {
        if from.len() as u64 > left_in_page(linear) {
            return self.write_pages(linear, from);
        }
        self.within_page(linear, Access::Write, |memory, physical| memory.copy_to(physical, from))
    }

    #[cold]
    fn read_pages(&mut self, linear: u64, into: &mut [u8]) -> Result<(), Errno> {
        let (first, rest) = into.split_at_mut_checked(left_in_page(linear) as usize).ok_or(Errno::EFAULT)?;
        self.read_bytes(linear, first)?;
        let mut linear = next_page(linear, rest.len())?;
        for page in rest.chunks_mut(mm::PAGE_SIZE) {
            self.read_bytes(linear, page)?;
            linear = linear.wrapping_add(page.len() as u64);
        }
        Ok(())
    }

    #[cold]
    fn write_pages(&mut self, linear: u64, from: &[u8]) -> Result<(), Errno> {
        let (first, rest) = from.split_at_checked(left_in_page(linear) as usize).ok_or(Errno::EFAULT)?;
        self.write_bytes(linear, first)?;
        let mut linear = next_page(linear, rest.len())?;
        for page in rest.chunks(mm::PAGE_SIZE) {
            self.write_bytes(linear, page)?;
            linear = linear.wrapping_add(page.len() as u64);
        }
        Ok(())
    }

    /// One structure from the caller's memory.
    #[inline]
    pub fn read<T: FromBytes + IntoBytes>(&mut self, from: GuestHandle<T>) -> Result<T, Errno> {
        let (mut value, linear) = (T::new_zeroed(), from.address());
        // Here the copy is made for the size of the structure.
        if size_of::<T>() as u64 <= left_in_page(linear) {
            self.within_page(linear, Access::Read, |memory, physical| {
                memory.copy_from(physical, value.as_mut_bytes())
            })?;
        } else {
            self.read_pages(linear, value.as_mut_bytes())?;
        }
        Ok(value)
    }

    /// One structure to the caller's memory.
    #[inline]
    pub fn write<T: IntoBytes + Immutable>(&mut self, to: GuestHandle<T>, value: &T) -> Result<(), Errno> {
        self.write_bytes(to.address(), value.as_bytes())
    }

    /// Element `index` of an array in the caller's memory.
    #[inline]
    pub fn read_at<T: FromBytes + IntoBytes>(&mut self, array: GuestHandle<T>, index: u64) -> Result<T, Errno> {
        self.read(array.element(index).ok_or(Errno::EFAULT)?)
    }

    #[inline]
    pub fn write_at<T: IntoBytes + Immutable>(
        &mut self,
        array: GuestHandle<T>,
        index: u64,
        value: &T,
    ) -> Result<(), Errno> {
        self.write(array.element(index).ok_or(Errno::EFAULT)?, value)
    }

    /// One structure from the caller's memory, in the layout of its width.
    #[inline]
    pub fn read_arg<T: Compat + FromBytes + IntoBytes>(&mut self, from: GuestHandle<T>) -> Result<T, Errno> {
        match self.width {
            Width::Bits64 => self.read(from),
            Width::Bits32 => self.read(from.cast::<T::Narrow>()).map(T::widen),
        }
    }

    /// One structure to the caller's memory, in the layout of its width.
    #[inline]
    pub fn write_arg<T: Compat + IntoBytes + Immutable>(&mut self, to: GuestHandle<T>, value: &T) -> Result<(), Errno> {
        match self.width {
            Width::Bits64 => self.write(to, value),
            Width::Bits32 => self.write(to.cast::<T::Narrow>(), &value.narrow()),
        }
    }

    /// Element `index` of an array whose elements have the layout of the caller's width.
    #[inline]
    pub fn read_arg_at<T: Compat + FromBytes + IntoBytes>(
        &mut self,
        array: GuestHandle<T>,
        index: u64,
    ) -> Result<T, Errno> {
        self.read_arg(self.arg_at(array, index)?)
    }

    #[inline]
    pub fn write_arg_at<T: Compat + IntoBytes + Immutable>(
        &mut self,
        array: GuestHandle<T>,
        index: u64,
        value: &T,
    ) -> Result<(), Errno> {
        self.write_arg(self.arg_at(array, index)?, value)
    }

    /// Where element `index` of an array is whose elements have the layout of the caller's width.
    #[inline]
    pub fn arg_at<T: Compat>(&self, array: GuestHandle<T>, index: u64) -> Result<GuestHandle<T>, Errno> {
        match self.width {
            Width::Bits64 => array.element(index),
            Width::Bits32 => array.cast::<T::Narrow>().element(index).map(GuestHandle::cast),
        }
        .ok_or(Errno::EFAULT)
    }

    /// A handle to a `T` at an argument register's address.
    #[inline]
    pub fn handle<T>(&self, register: u64) -> GuestHandle<T> {
        GuestHandle::new(match self.width {
            Width::Bits64 => register,
            Width::Bits32 => u64::from(register as u32),
        })
    }

    /// The domain that an argument names: DOMID_SELF and the caller's own id are the caller; another domain only for a control domain.
    /// ESRCH if there is none, EPERM if it is not the caller's to name.
    pub fn target(&self, id: DomainId) -> Result<Arc<Domain<M>>, Errno> {
        if id == DomainId::SELF || id == self.domain.id {
            return Ok(self.domain.clone());
        }
        if !self.domain.is_control() {
            return Err(Errno::EPERM);
        }
        self.system.domain(id).ok_or(Errno::ESRCH)
    }

    /// EPERM unless the caller controls the machine.
    pub fn require_control(&self) -> Result<(), Errno> {
        if self.domain.is_control() { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// Shares one of the caller's own pages for long. EINVAL where it has no RAM that it may write, ERESTART if the call is to be made again first.
    pub fn share(&self, gfn: Gfn) -> Result<SharedPage, Errno> {
        if on_demand::populate(self.system, self.domain, gfn) == Err(Errno::ERESTART) {
            return Err(Errno::ERESTART);
        }
        SharedPage::of_guest(&self.domain.p2m, self.system.memory, gfn).map_err(|_| Errno::EINVAL)
    }
}

/// Who may make a hypercall at all; single operations may ask for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Anyone,
    /// Only a domain that controls the machine.
    Control,
}

macro_rules! hypercalls {
    ($($number:ident => $who:ident, $handler:path;)*) => {
        /// The table: number, who may call, and what answers. It is the security policy; a number that is not here is -ENOSYS.
        #[inline]
        pub fn dispatch<M: Machine>(caller: &mut Caller<'_, M>, number: u64, arguments: Arguments) -> Outcome {
            match number {
                $(numbers::$number => {
                    if matches!(Who::$who, Who::Control) && !caller.domain.is_control() {
                        return Outcome::Return(Errno::EPERM.as_return());
                    }
                    $handler(caller, arguments).outcome(|errno| refuse(arguments, errno))
                })*
                _ => Outcome::Return(Errno::ENOSYS.as_return()),
            }
        }

        /// Every hypercall that is answered: its name, its number and who may make it.
        pub const TABLE: &[(&str, u64, Who)] = &[$((stringify!($number), numbers::$number, Who::$who)),*];
    };
}

hypercalls! {
    // number                => who,     handler
    MEMORY_OP                => Anyone,  call::memory::op;
    MULTICALL                => Anyone,  call::multicall::op;
    SET_TIMER_OP             => Anyone,  call::vcpu::set_timer_op;
    XEN_VERSION              => Anyone,  call::version::op;
    CONSOLE_IO               => Anyone,  call::console::op;
    GRANT_TABLE_OP           => Anyone,  call::grant_table::op;
    VM_ASSIST                => Anyone,  call::vm_assist::op;
    VCPU_OP                  => Anyone,  call::vcpu::op;
    SCHED_OP                 => Anyone,  call::sched::op;
    EVENT_CHANNEL_OP         => Anyone,  call::event_channel::op;
    PHYSDEV_OP               => Anyone,  call::physdev::op;
    HVM_OP                   => Anyone,  call::hvm::op;
    DOMCTL                   => Control, call::domctl::op;
    PLATFORM_OP              => Control, call::platform::op;
    SYSCTL                   => Control, call::sysctl::op;
}

#[cfg(test)]
mod tests {
    use xen_abi::compat;
    use xen_abi::sched::Poll;

    use super::*;
    use crate::fake::{self, Running, page};

    fn pair() -> (Running, Running) {
        let system = fake::system(256);
        let domains = [fake::add_domain(system, 0, 16), fake::add_domain(system, 5, 16)];
        let [dom0, guest] = domains.map(|domain| Running::new(system, &domain));
        (dom0, guest)
    }

    fn as_caller<R>(running: &mut Running, act: impl FnOnce(&mut Caller<'_, fake::Fake>) -> R) -> R {
        let Running { system, domain, context, id, .. } = running;
        let (vcpu, width) = (domain.vcpu(*id).unwrap(), context.width);
        act(&mut Caller { system, domain, vcpu, context, width })
    }

    #[test]
    fn a_number_that_is_not_in_the_table_is_not_implemented() {
        let (mut dom0, mut guest) = pair();
        for number in (0..64).chain([1 << 20, u64::MAX]) {
            if TABLE.iter().any(|(_, known, _)| *known == number) {
                continue;
            }
            for running in [&mut dom0, &mut guest] {
                assert_eq!(running.call(number, &[0, page(0)]).0, Errno::ENOSYS.as_return(), "{number}");
            }
        }
    }

    #[test]
    fn what_is_for_who_controls_the_machine_is_for_nobody_else() {
        let (_, mut guest) = pair();
        let control: Vec<_> = TABLE.iter().filter(|(_, _, who)| *who == Who::Control).collect();
        assert_eq!(control.iter().map(|(name, ..)| *name).collect::<Vec<_>>(), ["DOMCTL", "PLATFORM_OP", "SYSCTL"]);
        for (name, number, _) in control {
            assert_eq!(guest.call(*number, &[0, 0]).0, Errno::EPERM.as_return(), "{name}");
        }
    }

    #[test]
    fn an_argument_is_read_and_written_in_the_callers_layout() {
        let (mut dom0, _) = pair();
        let poll = Poll { ports: GuestHandle::new(0xc000_1000), nr_ports: 2, pad: 0, timeout: 1 << 40 };
        let at = GuestHandle::<Poll>::new(page(1) - 4);
        as_caller(&mut dom0, |caller| caller.write_arg(at, &poll)).unwrap();
        assert_eq!(dom0.peek::<Poll>(at.address()), poll);
        assert_eq!(as_caller(&mut dom0, |caller| caller.read_arg(at)), Ok(poll));
        dom0.context.width = Width::Bits32;
        as_caller(&mut dom0, |caller| caller.write_arg(at, &poll)).unwrap();
        assert_eq!(dom0.peek::<compat::Poll>(at.address()), compat::Compat::narrow(&poll));
        assert_eq!(as_caller(&mut dom0, |caller| caller.read_arg(at)), Ok(poll));
    }

    #[test]
    fn lists_have_elements_of_the_callers_width() {
        let (mut dom0, _) = pair();
        let list = GuestHandle::<u64>::new(page(1));
        for (width, second) in [(Width::Bits64, page(1) + 8), (Width::Bits32, page(1) + 4)] {
            dom0.context.width = width;
            as_caller(&mut dom0, |caller| caller.write_arg_at(list, 1, &0x1234)).unwrap();
            assert_eq!(dom0.peek::<u32>(second), 0x1234);
            assert_eq!(as_caller(&mut dom0, |caller| caller.read_arg_at(list, 1)), Ok(0x1234));
        }
        let wraps = GuestHandle::<u64>::new(u64::MAX - 7);
        assert_eq!(as_caller(&mut dom0, |caller| caller.read_arg_at(wraps, 2)), Err(Errno::EFAULT));
    }

    #[test]
    fn an_argument_may_cross_pages_but_not_the_end_of_memory() {
        let (mut dom0, _) = pair();
        let bytes: Vec<u8> = (0..5000u32).map(|index| index as u8).collect();
        let at = page(3) - 17;
        as_caller(&mut dom0, |caller| caller.write_bytes(at, &bytes)).unwrap();
        let mut back = vec![0; 5000];
        as_caller(&mut dom0, |caller| caller.read_bytes(at, &mut back)).unwrap();
        assert_eq!(back, bytes);
        for nowhere in [page(16) - 4999, u64::MAX - 100, 1 << 60] {
            assert_eq!(as_caller(&mut dom0, |caller| caller.read_bytes(nowhere, &mut back)), Err(Errno::EFAULT));
            assert_eq!(as_caller(&mut dom0, |caller| caller.write_bytes(nowhere, &bytes)), Err(Errno::EFAULT));
        }
        let device = fake::DEVICE << 12;
        assert_eq!(as_caller(&mut dom0, |caller| caller.write_bytes(device, &[1])), Err(Errno::EFAULT));
    }

    #[test]
    fn a_domain_names_itself_and_others_only_if_it_controls_them() {
        let (mut dom0, mut guest) = pair();
        let target =
            |running: &mut Running, id| as_caller(running, |caller| caller.target(id).map(|domain| domain.id.0));
        assert_eq!(target(&mut guest, DomainId::SELF), Ok(5));
        assert_eq!(target(&mut guest, DomainId(5)), Ok(5));
        assert_eq!(target(&mut guest, DomainId(0)), Err(Errno::EPERM));
        assert_eq!(target(&mut guest, DomainId(99)), Err(Errno::EPERM), "not even whether it is there");
        assert_eq!(target(&mut dom0, DomainId(5)), Ok(5));
        assert_eq!(target(&mut dom0, DomainId(99)), Err(Errno::ESRCH));
    }
}
