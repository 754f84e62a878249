//! VCPUOP: a vCPU's shared areas and its timers.

use mm::addr::{Gfn, GuestPhys};
use sched::Nanos;
use xen_abi::errno::Errno;
use xen_abi::types::VcpuId;
use xen_abi::vcpu::*;

use crate::area::Area;
use crate::domain::{Domain, take_down};
use crate::event;
use crate::hypercall::{Arguments, Caller};
use crate::machine::{Access, Machine, Width};
use crate::runstate::GuestArea;
use crate::timer;
use crate::vcpu::Vcpu;
use crate::wallclock;

#[cfg(test)]
mod tests;

const TIME_INFO_LEN: usize = 32;
const VCPU_INFO_LEN: usize = 64;
/// The limits of a periodic timer: a millisecond, and Xen's longest difference of times.
const SHORTEST_PERIOD: u64 = 1_000_000;
const LONGEST_PERIOD: u64 = u64::MAX >> 2;

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<u64, Errno> {
    let [command, vcpu, argument, ..] = arguments;
    let system = caller.system;
    let domain = &**caller.domain;
    let vcpu = domain.vcpu(VcpuId(vcpu as u32)).ok_or(Errno::ENOENT)?;
    match command as u32 {
        VCPUOP_SET_SINGLESHOT_TIMER => {
            own(caller, vcpu)?;
            // VCPU_SSHOTTMR_future is ignored, as in Xen: a late timer fires at once and is never lost.
            let timer = caller.read_arg(caller.handle::<SetSingleshotTimer>(argument))?;
            vcpu.set_singleshot(Some(timer::deadline(timer.timeout_abs_ns)));
            timer::set(system, domain, vcpu);
        }
        VCPUOP_STOP_SINGLESHOT_TIMER => {
            own(caller, vcpu)?;
            vcpu.set_singleshot(None);
            system.machine.timer_changed(domain, vcpu);
        }
        VCPUOP_SET_PERIODIC_TIMER => {
            let period = caller.read(caller.handle::<SetPeriodicTimer>(argument))?.period_ns;
            if !(SHORTEST_PERIOD..=LONGEST_PERIOD).contains(&period) {
                return Err(Errno::EINVAL);
            }
            vcpu.set_periodic(system.machine.now(), Nanos(period));
            system.machine.timer_changed(domain, vcpu);
        }
        VCPUOP_STOP_PERIODIC_TIMER => {
            vcpu.set_periodic(Nanos(0), Nanos(0));
            system.machine.timer_changed(domain, vcpu);
        }
        VCPUOP_REGISTER_VCPU_INFO => register_info(caller, domain, vcpu, argument)?,
        VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA => {
            let area = match linear_address(caller, argument)? {
                0 => None,
                linear => Some(linear_area(caller, linear, TIME_INFO_LEN)?),
            };
            set_time_area(caller, domain, vcpu, area);
        }
        VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA => {
            let area = physical_area(caller, argument, TIME_INFO_LEN)?;
            set_time_area(caller, domain, vcpu, area);
        }
        VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA => {
            let area = match linear_address(caller, argument)? {
                0 => None,
                linear => Some(runstate_area(caller, linear)?),
            };
            vcpu.runstate.lock().register(area);
        }
        VCPUOP_REGISTER_RUNSTATE_PHYS_AREA => {
            let (length, wide) = runstate_layout(caller);
            let area = physical_area(caller, argument, length)?;
            vcpu.runstate.lock().register(area.map(|area| GuestArea::new(area, length, None, wide)));
        }
        VCPUOP_GET_RUNSTATE_INFO => {
            let info = runstate_info(vcpu, system.machine.now());
            caller.write_arg(caller.handle(argument), &info)?;
        }
        VCPUOP_IS_UP => return Ok(u64::from(vcpu.is_up())),
        VCPUOP_UP => system.machine.set_online(domain, vcpu, true)?,
        VCPUOP_DOWN => take_down(system, domain, vcpu)?,
        VCPUOP_SEND_NMI => {
            if argument != 0 {
                return Err(Errno::EINVAL);
            }
            system.machine.send_nmi(domain, vcpu);
        }
        // For a vCPU that is pinned to a CPU, which none is.
        VCPUOP_GET_PHYSID => return Err(Errno::EINVAL),
        // VCPUOP_initialise of an HVM-type vCPU takes vcpu_hvm_context; INIT/SIPI is what PVH kernels use here.
        _ => return Err(Errno::ENOSYS),
    }
    Ok(0)
}

/// set_timer_op, the single-shot timer of old kernels: a time, in two registers of a 32-bit caller; zero stops it.
pub fn set_timer_op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<u64, Errno> {
    let [first, second, ..] = arguments;
    let at = match caller.width {
        Width::Bits64 => first,
        Width::Bits32 => u64::from(first as u32) | u64::from(second as u32) << 32,
    };
    caller.vcpu.set_singleshot((at != 0).then(|| timer::deadline(at)));
    timer::set(caller.system, caller.domain, caller.vcpu);
    Ok(0)
}

/// A vCPU sets its own single-shot timer only.
fn own<M: Machine>(caller: &Caller<'_, M>, vcpu: &Vcpu<M>) -> Result<(), Errno> {
    if vcpu.id == caller.vcpu.id { Ok(()) } else { Err(Errno::EINVAL) }
}

fn runstate_info<M: Machine>(vcpu: &Vcpu<M>, now: Nanos) -> RunstateInfo {
    let runstate = vcpu.runstate.lock();
    RunstateInfo {
        state: runstate.state() as u32,
        pad: 0,
        state_entry_time: runstate.since().0,
        time: runstate.times(now),
    }
}

/// EINVAL for a page that is not the caller's own, ENXIO for a place that is not aligned or leaves the page, EBUSY if it was fixed before.
fn register_info<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Domain<M>,
    vcpu: &Vcpu<M>,
    argument: u64,
) -> Result<(), Errno> {
    let request = caller.read(caller.handle::<RegisterVcpuInfo>(argument))?;
    let offset = request.offset as usize;
    if offset >= mm::PAGE_SIZE {
        return Err(Errno::EINVAL);
    }
    if vcpu.has_registered_info() {
        return Err(Errno::EBUSY);
    }
    let area = area(caller, Gfn(request.mfn), offset, VCPU_INFO_LEN)?;
    // What was said in the old place is said again in the new one.
    if let Some((page, from)) = vcpu.info(domain).map(|info| info.place()) {
        let mut content = [0; VCPU_INFO_LEN];
        let _ = page.read(from, &mut content);
        let _ = area.page().write(area.offset(), &content);
    }
    if !vcpu.register_info(area) {
        return Err(Errno::EBUSY);
    }
    event::info_moved(caller.system, domain, vcpu);
    wallclock::update_vcpu_time(caller.system, domain, vcpu);
    Ok(())
}

fn set_time_area<M: Machine>(caller: &Caller<'_, M>, domain: &Domain<M>, vcpu: &Vcpu<M>, area: Option<Area>) {
    *vcpu.time_area.lock() = area;
    wallclock::update_vcpu_time(caller.system, domain, vcpu);
}

// ---- places for the hypervisor to write to ----

/// `length` bytes of one of the caller's pages. ENXIO if they leave it or are not aligned to a word of the caller's, EINVAL if the caller has no such
/// page.
fn area<M: Machine>(caller: &Caller<'_, M>, gfn: Gfn, offset: usize, length: usize) -> Result<Area, Errno> {
    let word = if caller.width == Width::Bits64 { 8 } else { 4 };
    if !offset.is_multiple_of(word) || offset.checked_add(length).is_none_or(|end| end > mm::PAGE_SIZE) {
        return Err(Errno::ENXIO);
    }
    Area::new(caller.share(gfn)?, offset, length).ok_or(Errno::ENXIO)
}

/// An area by the guest-physical address at `argument`; all ones are none.
fn physical_area<M: Machine>(caller: &mut Caller<'_, M>, argument: u64, length: usize) -> Result<Option<Area>, Errno> {
    let address = caller.read(caller.handle::<RegisterArea>(argument))?.addr;
    if address == u64::MAX {
        return Ok(None);
    }
    let at = GuestPhys(address);
    area(caller, at.gfn(), at.page_offset(), length).map(Some)
}

/// The linear address at `argument`. Of a 32-bit caller's only the lower half counts.
fn linear_address<M: Machine>(caller: &mut Caller<'_, M>, argument: u64) -> Result<u64, Errno> {
    let address = caller.read(caller.handle::<RegisterArea>(argument))?.addr;
    Ok(caller.handle::<()>(address).address())
}

/// An area by its linear address: it is fixed to the page that is there now, and may not cross a page.
fn linear_area<M: Machine>(caller: &mut Caller<'_, M>, linear: u64, length: usize) -> Result<Area, Errno> {
    let at = caller.system.machine.translate(caller.domain, caller.context, linear, Access::Write)?;
    area(caller, at.gfn(), at.page_offset(), length)
}

/// Bytes of a runstate area, and whether it has the 64-bit layout.
fn runstate_layout<M: Machine>(caller: &Caller<'_, M>) -> (usize, bool) {
    match caller.width {
        Width::Bits64 => (GuestArea::LEN_64, true),
        Width::Bits32 => (GuestArea::LEN_32, false),
    }
}

/// A runstate area, which may cross a page as the guest's compiler pleases.
fn runstate_area<M: Machine>(caller: &mut Caller<'_, M>, linear: u64) -> Result<GuestArea, Errno> {
    let (length, wide) = runstate_layout(caller);
    let offset = GuestPhys(linear).page_offset();
    let split = mm::PAGE_SIZE.saturating_sub(offset).min(length);
    let first = linear_area(caller, linear, split)?;
    let second = match length.saturating_sub(split) {
        0 => None,
        rest => {
            let next = linear.checked_add(split as u64).ok_or(Errno::EFAULT)?;
            Some(linear_area(caller, next, rest)?)
        }
    };
    Ok(GuestArea::new(first, split, second, wide))
}
