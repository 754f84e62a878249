//! VCPUOP: a vCPU's shared areas and its timers.

use mm::addr::{Gfn, GuestPhys};
use mm::SharedPage;
use sched::Nanos;
use xen_abi::errno::Errno;
use xen_abi::types::VcpuId;
use xen_abi::vcpu::*;

use crate::area::Area;
use crate::domain::Domain;
use crate::event;
use crate::hypercall::{Arguments, Caller, Outcome};
use crate::machine::{Access, Machine, Width};
use crate::runstate::GuestArea;
use crate::vcpu::Vcpu;
use crate::wallclock;

const TIME_INFO_LEN: usize = 32;
const VCPU_INFO_LEN: usize = 64;
/// A periodic timer may not be faster than this (Xen's own limit).
const SHORTEST_PERIOD: Nanos = Nanos(1_000_000);

pub fn op<M: Machine>(caller: &mut Caller<'_, M>, arguments: Arguments) -> Result<Outcome, Errno> {
    let [command, vcpu, argument, ..] = arguments;
    let domain = caller.domain.clone();
    let vcpu = u32::try_from(vcpu).ok().and_then(|id| domain.vcpu(VcpuId(id))).ok_or(Errno::ENOENT)?;
    match command as u32 {
        VCPUOP_SET_SINGLESHOT_TIMER => set_singleshot(caller, vcpu, argument)?,
        VCPUOP_STOP_SINGLESHOT_TIMER => {
            own(caller, vcpu)?;
            vcpu.set_singleshot(None);
            caller.system.machine.timer_changed(&domain, vcpu);
        }
        VCPUOP_SET_PERIODIC_TIMER => {
            let period = Nanos(caller.read(caller.handle::<SetPeriodicTimer>(argument))?.period_ns);
            if period < SHORTEST_PERIOD {
                return Err(Errno::EINVAL);
            }
            vcpu.set_periodic(caller.system.machine.now(), period);
            caller.system.machine.timer_changed(&domain, vcpu);
        }
        VCPUOP_STOP_PERIODIC_TIMER => {
            vcpu.set_periodic(Nanos(0), Nanos(0));
            caller.system.machine.timer_changed(&domain, vcpu);
        }
        VCPUOP_REGISTER_VCPU_INFO => register_info(caller, &domain, vcpu, argument)?,
        VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA => {
            let linear = caller.read(caller.handle::<RegisterArea>(argument))?.addr;
            let area = linear_area(caller, linear, TIME_INFO_LEN)?;
            set_time_area(caller, &domain, vcpu, Some(area));
        }
        VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA => {
            let address = caller.read(caller.handle::<RegisterArea>(argument))?.addr;
            let area = match address {
                u64::MAX => None,
                address => Some(physical_area(caller, GuestPhys(address), TIME_INFO_LEN)?),
            };
            set_time_area(caller, &domain, vcpu, area);
        }
        VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA => {
            let linear = caller.read(caller.handle::<RegisterArea>(argument))?.addr;
            let area = if linear == 0 { None } else { Some(runstate_area(caller, linear)?) };
            vcpu.runstate.lock().register(area);
        }
        VCPUOP_REGISTER_RUNSTATE_PHYS_AREA => {
            let address = caller.read(caller.handle::<RegisterArea>(argument))?.addr;
            let wide = caller.width == Width::Bits64;
            let length = if wide { GuestArea::LEN_64 } else { GuestArea::LEN_32 };
            let area = match address {
                u64::MAX => None,
                address => {
                    let area = physical_area(caller, GuestPhys(address), length)?;
                    Some(GuestArea::new(area, length, None, wide))
                }
            };
            vcpu.runstate.lock().register(area);
        }
        VCPUOP_GET_RUNSTATE_INFO => {
            let now = caller.system.machine.now();
            let info = {
                let runstate = vcpu.runstate.lock();
                RunstateInfo {
                    state: runstate.state() as u32,
                    pad: 0,
                    state_entry_time: runstate.since().0,
                    time: runstate.times(now),
                }
            };
            caller.write(caller.handle(argument), &info)?;
        }
        VCPUOP_IS_UP => {
            let up = vcpu.holds() & crate::vcpu::hold::OFFLINE == 0;
            return Ok(Outcome::Return(i64::from(up)));
        }
        VCPUOP_UP => caller.system.machine.set_online(&domain, vcpu, true)?,
        VCPUOP_DOWN => caller.system.machine.set_online(&domain, vcpu, false)?,
        // VCPUOP_initialise of an HVM-type vCPU takes vcpu_hvm_context; INIT/SIPI is what PVH kernels use here.
        _ => return Err(Errno::ENOSYS),
    }
    Ok(Outcome::Return(0))
}

/// A vCPU sets its own single-shot timer only.
fn own<M: Machine>(caller: &Caller<'_, M>, vcpu: &Vcpu<M>) -> Result<(), Errno> {
    if vcpu.id == caller.vcpu.id { Ok(()) } else { Err(Errno::EINVAL) }
}

fn set_singleshot<M: Machine>(caller: &mut Caller<'_, M>, vcpu: &Vcpu<M>, argument: u64) -> Result<(), Errno> {
    own(caller, vcpu)?;
    let timer = caller.read(caller.handle::<SetSingleshotTimer>(argument))?;
    let deadline = Nanos(timer.timeout_abs_ns);
    if timer.flags & VCPU_SSHOTTMR_FUTURE != 0 && deadline < caller.system.machine.now() {
        return Err(Errno::ETIME);
    }
    vcpu.set_singleshot(Some(deadline));
    caller.system.machine.timer_changed(caller.domain, vcpu);
    Ok(())
}

fn register_info<M: Machine>(
    caller: &mut Caller<'_, M>,
    domain: &Domain<M>,
    vcpu: &Vcpu<M>,
    argument: u64,
) -> Result<(), Errno> {
    let request = caller.read(caller.handle::<RegisterVcpuInfo>(argument))?;
    let offset = request.offset as usize;
    if offset.checked_add(VCPU_INFO_LEN).is_none_or(|end| end > mm::PAGE_SIZE) || !offset.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    if vcpu.has_registered_info() {
        return Err(Errno::EINVAL);
    }
    let page = share(caller, Gfn(request.mfn))?;
    let area = Area::new(page, offset, VCPU_INFO_LEN).ok_or(Errno::EINVAL)?;
    // What was said in the old place is said again in the new one.
    if let Some(old) = vcpu.info(domain) {
        let (old, _) = old.time();
        let from = (vcpu.id.0 as usize).saturating_mul(VCPU_INFO_LEN);
        for byte in 0..VCPU_INFO_LEN {
            if let (Some(from), Some(to)) = (old.atomic_u8(from.saturating_add(byte)), area.atomic_u8(byte)) {
                to.store(from.load(core::sync::atomic::Ordering::Relaxed), core::sync::atomic::Ordering::Relaxed);
            }
        }
    }
    if !vcpu.register_info(area) {
        return Err(Errno::EINVAL);
    }
    event::info_moved(caller.system, domain, vcpu);
    wallclock::update_vcpu_time(caller.system, domain, vcpu);
    Ok(())
}

fn set_time_area<M: Machine>(caller: &Caller<'_, M>, domain: &Domain<M>, vcpu: &Vcpu<M>, area: Option<Area>) {
    *vcpu.time_area.lock() = area;
    wallclock::update_vcpu_time(caller.system, domain, vcpu);
}

/// Shares one of the caller's RAM pages for long. EINVAL if it is none.
fn share<M: Machine>(caller: &Caller<'_, M>, gfn: Gfn) -> Result<SharedPage, Errno> {
    SharedPage::of_guest(&caller.domain.p2m, caller.system.memory, gfn).map_err(|_| Errno::EINVAL)
}

fn physical_area<M: Machine>(caller: &Caller<'_, M>, at: GuestPhys, length: usize) -> Result<Area, Errno> {
    let page = share(caller, at.gfn())?;
    Area::new(page, at.page_offset(), length).ok_or(Errno::EINVAL)
}

/// An area by its linear address: it is fixed to the page that is there now, and may not cross a page.
fn linear_area<M: Machine>(caller: &mut Caller<'_, M>, linear: u64, length: usize) -> Result<Area, Errno> {
    let at = caller.system.machine.translate(caller.domain, caller.context, linear, Access::Write)?;
    physical_area(caller, at, length)
}

/// A runstate area, which may cross a page as the guest's compiler pleases.
fn runstate_area<M: Machine>(caller: &mut Caller<'_, M>, linear: u64) -> Result<GuestArea, Errno> {
    let wide = caller.width == Width::Bits64;
    let length = if wide { GuestArea::LEN_64 } else { GuestArea::LEN_32 };
    let offset = (linear as usize) % mm::PAGE_SIZE;
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
