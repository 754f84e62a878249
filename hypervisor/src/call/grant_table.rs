//! GNTTABOP: what a domain does with grants. Every operation takes an array; each element is read once, carried out, and told its
//! status before the next one is looked at, so that a batch can stop and go on between any two.

use alloc::sync::Arc;
use core::mem::offset_of;

use arrayvec::ArrayVec;
use mm::p2m::Flush;
use xen_abi::compat::Compat;
use xen_abi::errno::Errno;
use xen_abi::grant::*;
use xen_abi::handle::GuestHandle;
use xen_abi::types::DomainId;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::domain::Domain;
use crate::grant::copy::{self, CopyRequest, Place};
use crate::grant::map::{self, MapRequest, UnmapRequest, Unmapped};
use crate::grant::{Kind, Party, Refused, status};
use crate::hypercall::{Arguments, Caller, Outcome};
use crate::machine::{Machine, Width};
use crate::physmap::on_demand;
use crate::system::System;

#[cfg(test)]
mod tests;

/// Elements after which a batch lets others run.
const TURN: u32 = 128;
/// Mappings that end with one flush.
const FLUSHED_TOGETHER: usize = 32;

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<Outcome, Errno> {
    let [command, array, count, ..] = arguments;
    // An unsigned count that Xen refuses where an `int` would be negative.
    let count = count as u32;
    if count > i32::MAX as u32 {
        return Err(Errno::EINVAL);
    }
    match command as u32 {
        GNTTABOP_MAP_GRANT_REF => map_batch(caller, arguments, count),
        GNTTABOP_UNMAP_GRANT_REF => unmap_batch::<M, UnmapGrantRef>(caller, arguments, count),
        GNTTABOP_UNMAP_AND_REPLACE => unmap_batch::<M, UnmapAndReplace>(caller, arguments, count),
        GNTTABOP_COPY => copy_batch(caller, arguments, count),
        GNTTABOP_SWAP_GRANT_REF => swap_batch(caller, arguments, count),
        GNTTABOP_QUERY_SIZE if count == 1 => query_size(caller, array),
        GNTTABOP_SETUP_TABLE if count == 1 => setup_table(caller, array),
        GNTTABOP_SET_VERSION if count == 1 => set_version(caller, array),
        GNTTABOP_GET_VERSION if count == 1 => get_version(caller, array),
        GNTTABOP_QUERY_SIZE | GNTTABOP_SETUP_TABLE | GNTTABOP_SET_VERSION | GNTTABOP_GET_VERSION => Err(Errno::EINVAL),
        // Pages are shared and not given away.
        GNTTABOP_TRANSFER => Err(Errno::EOPNOTSUPP),
        // A translated domain maps its status frames by XENMEM_add_to_physmap; caches are coherent; dumps are not a guest's to ask for.
        GNTTABOP_GET_STATUS_FRAMES | GNTTABOP_CACHE_FLUSH | GNTTABOP_DUMP_TABLE => Err(Errno::ENOSYS),
        _ => Err(Errno::ENOSYS),
    }
}

// ---- batches ----

/// The address of element `index`.
#[inline]
fn element(array: u64, index: u64, size: usize) -> Result<u64, Errno> {
    index.checked_mul(size as u64).and_then(|offset| array.checked_add(offset)).ok_or(Errno::EFAULT)
}

/// Carries out `each` on the address of every element; after a turn's worth the rest is left for later.
#[inline]
fn batch<M: Machine>(
    caller: &mut Caller<'_, M>,
    arguments: Arguments,
    count: u32,
    size: usize,
    mut each: impl FnMut(&mut Caller<'_, M>, u64) -> Result<(), Errno>,
) -> Result<Outcome, Errno> {
    let array = caller.handle::<u8>(arguments[1]).address();
    let turn = count.min(TURN);
    for index in 0..turn {
        match each(caller, element(array, index.into(), size)?) {
            // Those before it are carried out.
            Err(Errno::ERESTART) => return after(arguments, array, size, count, index),
            told => told?,
        }
    }
    after(arguments, array, size, count, turn)
}

/// What becomes of a batch of which `done` elements are carried out.
fn after(arguments: Arguments, array: u64, size: usize, count: u32, done: u32) -> Result<Outcome, Errno> {
    let rest = count.saturating_sub(done);
    if rest == 0 {
        return Ok(Outcome::Return(0));
    }
    let [command, _, _, fourth, fifth] = arguments;
    Ok(Outcome::Continue([command, element(array, done.into(), size)?, rest.into(), fourth, fifth]))
}

#[inline]
fn write_status<M: Machine>(
    caller: &mut Caller<'_, M>,
    element: u64,
    offset: usize,
    result: Result<(), Refused>,
) -> Result<(), Errno> {
    let at = element.checked_add(offset as u64).ok_or(Errno::EFAULT)?;
    caller.write_bytes(at, &status(result).to_ne_bytes())
}

/// The domain that granted what the last element was about: the next one's is often the same.
struct Granter<M: Machine> {
    last: Option<Arc<Domain<M>>>,
    has_searched: bool,
}

impl<M: Machine> Granter<M> {
    fn none() -> Self {
        Granter { last: None, has_searched: false }
    }

    /// A page may be there the next time, if the granter has to populate it: looks for memory once a turn.
    #[cold]
    #[inline(never)]
    fn assist(&mut self, system: &System<M>, domain: &Domain<M>) {
        if !core::mem::replace(&mut self.has_searched, true) {
            on_demand::assist(system, domain);
        }
    }

    #[inline]
    fn find(&mut self, caller: &Caller<'_, M>, id: DomainId) -> Result<Arc<Domain<M>>, Refused> {
        if id == DomainId::SELF || id == caller.domain.id {
            return Ok(Arc::clone(caller.domain));
        }
        if let Some(last) = &self.last
            && last.id == id
        {
            return Ok(Arc::clone(last));
        }
        let found = caller.system.domain(id).ok_or(Refused::BadDomain)?;
        self.last = Some(Arc::clone(&found));
        Ok(found)
    }
}

#[inline]
fn party<M: Machine>(domain: &Domain<M>) -> Party<'_, M::Format> {
    Party { id: domain.id, p2m: &domain.p2m, grants: &domain.grants }
}

fn map_batch<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments, count: u32) -> Result<Outcome, Errno> {
    let mut granters = Granter::none();
    batch(caller, arguments, count, size_of::<MapGrantRef>(), |caller, at| {
        let mut op: MapGrantRef = caller.read(GuestHandle::new(at))?;
        let mapped = map_one(caller, &mut granters, &op);
        op.status = status(mapped.map(|_| ()));
        if let Ok((handle, bus_address)) = mapped {
            op.handle = handle;
            op.dev_bus_addr = bus_address;
        }
        // From the status on, everything is the answer.
        const ANSWER: usize = offset_of!(MapGrantRef, status);
        let answer = op.as_bytes().get(ANSWER..).ok_or(Errno::EFAULT)?;
        caller.write_bytes(at.checked_add(ANSWER as u64).ok_or(Errno::EFAULT)?, answer)
    })
}

#[inline]
fn map_one<M: Machine>(
    caller: &Caller<'_, M>,
    granters: &mut Granter<M>,
    op: &MapGrantRef,
) -> Result<(u32, u64), Refused> {
    let request = MapRequest::decode(op)?;
    // Who grants is to be named, though it be the caller.
    if op.dom == DomainId::SELF {
        return Err(Refused::BadDomain);
    }
    let granter = granters.find(caller, op.dom)?;
    let vcpu = caller.vcpu.id.0 as usize;
    let mapped = map::map(party(caller.domain), vcpu, party(&granter), request);
    if mapped == Err(Refused::Again) {
        granters.assist(caller.system, &granter);
    }
    let (handle, mfn) = mapped?;
    // Where devices find it; only a domain with devices has a use for that.
    let bus_address = if caller.domain.is_control() { mfn.phys().0 } else { 0 };
    Ok((handle, bus_address))
}

/// The two operations that end a mapping.
trait Unmap: FromBytes + IntoBytes + Immutable {
    const STATUS: usize;
    fn decode(&self) -> Result<UnmapRequest, Refused>;
}

impl Unmap for UnmapGrantRef {
    const STATUS: usize = offset_of!(UnmapGrantRef, status);
    fn decode(&self) -> Result<UnmapRequest, Refused> {
        Ok(UnmapRequest::decode(self))
    }
}

impl Unmap for UnmapAndReplace {
    const STATUS: usize = offset_of!(UnmapAndReplace, status);
    fn decode(&self) -> Result<UnmapRequest, Refused> {
        UnmapRequest::decode_replace(self)
    }
}

fn unmap_batch<M: Machine, T: Unmap>(
    caller: &mut Caller<'_, M>,
    arguments: Arguments,
    count: u32,
) -> Result<Outcome, Errno> {
    let array = caller.handle::<u8>(arguments[1]).address();
    let turn = count.min(TURN);
    let mut done = 0;
    while done < turn {
        let mut reached = done;
        let together = turn.saturating_sub(done).min(FLUSHED_TOGETHER as u32);
        let mut ended = ArrayVec::<Unmapped, FLUSHED_TOGETHER>::new();
        let mut flush = Flush::none();
        let domain = Arc::clone(caller.domain);
        let carried_out: Result<(), Errno> = (|| {
            for index in done..done.saturating_add(together) {
                let at = element(array, index.into(), size_of::<T>())?;
                let op: T = caller.read(GuestHandle::new(at))?;
                let unmapped = op.decode().and_then(|request| map::unmap(party(&domain), request));
                let result = match unmapped {
                    Ok((unmapped, stale)) => {
                        flush = core::mem::replace(&mut flush, Flush::none()).merge(stale);
                        // There is room: as many as go together.
                        let _ = ended.try_push(unmapped);
                        Ok(())
                    }
                    Err(refused) => Err(refused),
                };
                write_status(caller, at, T::STATUS, result)?;
                reached = index.saturating_add(1);
            }
            Ok(())
        })();
        // Even if an element could not be read: those before it are unmapped.
        caller.system.machine.flush(&domain, flush);
        for unmapped in ended {
            unmapped.finish(&domain.grants);
        }
        match carried_out {
            Err(Errno::ERESTART) => return after(arguments, array, size_of::<T>(), count, reached),
            carried_out => carried_out?,
        }
        done = done.saturating_add(together);
    }
    after(arguments, array, size_of::<T>(), count, turn)
}

fn copy_batch<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments, count: u32) -> Result<Outcome, Errno> {
    type Narrow = <GrantCopy as Compat>::Narrow;
    let (size, status_at) = match caller.width {
        Width::Bits64 => (size_of::<GrantCopy>(), offset_of!(GrantCopy, status)),
        Width::Bits32 => (size_of::<Narrow>(), offset_of!(Narrow, status)),
    };
    let mut granters = (Granter::none(), Granter::none());
    batch(caller, arguments, count, size, |caller, at| {
        let op: GrantCopy = caller.read_arg(GuestHandle::new(at))?;
        let copied = copy_one(caller, &mut granters, &op);
        write_status(caller, at, status_at, copied)
    })
}

#[inline]
fn copy_one<M: Machine>(
    caller: &Caller<'_, M>,
    granters: &mut (Granter<M>, Granter<M>),
    op: &GrantCopy,
) -> Result<(), Refused> {
    let request = CopyRequest::decode(op, caller.domain.id)?;
    let domain = |place: &Place| place.granter().unwrap_or(caller.domain.id);
    let source = granters.0.find(caller, domain(&request.source))?;
    let dest = granters.1.find(caller, domain(&request.dest))?;
    let copied = copy::copy(caller.domain.id, party(&source), party(&dest), &request);
    if copied == Err(Refused::Again) {
        granters.0.assist(caller.system, &source);
        granters.1.assist(caller.system, &dest);
    }
    copied
}

fn swap_batch<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments, count: u32) -> Result<Outcome, Errno> {
    batch(caller, arguments, count, size_of::<SwapGrantRef>(), |caller, at| {
        let op: SwapGrantRef = caller.read(GuestHandle::new(at))?;
        let swapped = caller.domain.grants.table().swap(op.ref_a, op.ref_b);
        write_status(caller, at, offset_of!(SwapGrantRef, status), swapped)
    })
}

// ---- the table as a whole ----

/// The domain whose table is meant, which must be the caller's unless it is a control domain.
fn subject<M: Machine>(caller: &Caller<'_, M>, id: DomainId) -> Result<Arc<Domain<M>>, Refused> {
    caller.target(id).map_err(|errno| if errno == Errno::EPERM { Refused::Denied } else { Refused::BadDomain })
}

fn query_size<M: Machine>(caller: &mut Caller<'_, M>, argument: u64) -> Result<Outcome, Errno> {
    let handle = caller.handle::<QuerySize>(argument);
    let mut op = caller.read(handle)?;
    let result = subject(caller, op.dom).map(|domain| {
        let table = domain.grants.table();
        op.nr_frames = table.frame_count();
        op.max_nr_frames = table.max_frames();
    });
    op.status = status(result);
    caller.write(handle, &op)?;
    Ok(Outcome::Return(0))
}

fn setup_table<M: Machine>(caller: &mut Caller<'_, M>, argument: u64) -> Result<Outcome, Errno> {
    type Narrow = <SetupTable as Compat>::Narrow;
    let at = caller.handle::<u8>(argument).address();
    let op: SetupTable = caller.read_arg(GuestHandle::new(at))?;
    let result = subject(caller, op.dom).and_then(|domain| {
        let grown = domain.grants.table().grow(caller.system.memory, op.nr_frames);
        grown.map(|()| domain).map_err(|_| Refused::General)
    });
    let result = match result {
        Ok(domain) => {
            list_frames(caller, &domain, &op)?;
            Ok(())
        }
        Err(refused) => Err(refused),
    };
    let status_at = match caller.width {
        Width::Bits64 => offset_of!(SetupTable, status),
        Width::Bits32 => offset_of!(Narrow, status),
    };
    write_status(caller, at, status_at, result)?;
    Ok(Outcome::Return(0))
}

/// Tells a caller where the table's owner sees its frames; all ones where it does not.
fn list_frames<M: Machine>(caller: &mut Caller<'_, M>, domain: &Domain<M>, op: &SetupTable) -> Result<(), Errno> {
    for index in 0..op.nr_frames {
        let gfn = domain.grants.table().gfn(Kind::Entries, index).map_or(u64::MAX, |gfn| gfn.0);
        caller.write_arg_at(op.frame_list, index.into(), &gfn)?;
    }
    Ok(())
}

fn set_version<M: Machine>(caller: &mut Caller<'_, M>, argument: u64) -> Result<Outcome, Errno> {
    let handle = caller.handle::<SetVersion>(argument);
    let mut op = caller.read(handle)?;
    let table = caller.domain.grants.table();
    let result = table.set_version(caller.system.memory, op.version);
    // Whether it was changed or not, the caller learns what it is.
    op.version = table.version().into();
    caller.write(handle, &op)?;
    result.map(|()| Outcome::Return(0))
}

fn get_version<M: Machine>(caller: &mut Caller<'_, M>, argument: u64) -> Result<Outcome, Errno> {
    let handle = caller.handle::<GetVersion>(argument);
    let mut op = caller.read(handle)?;
    op.version = caller.target(op.dom)?.grants.table().version().into();
    caller.write(handle, &op)?;
    Ok(Outcome::Return(0))
}
