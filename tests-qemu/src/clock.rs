//! System time, as the hypervisor's `vcpu_time_info` gives it.

use crate::{cpu, hypercall, memory};
use xen_abi::numbers::SCHED_OP;
use xen_abi::sched::{Poll, SCHEDOP_POLL};
use xen_abi::x86::VcpuTimeInfo;

/// The time info of vCPU 0 in the shared page.
pub fn time_info() -> VcpuTimeInfo {
    let address = memory::shared_info() + 32;
    loop {
        // SAFETY: the shared page is mapped; a torn copy is noticed by its version.
        let info = unsafe { (address as *const VcpuTimeInfo).read_volatile() };
        if info.version & 1 == 0 && cpu::read32(address) == info.version {
            return info;
        }
        cpu::pause();
    }
}

/// Nanoseconds that `ticks` of the TSC take.
pub fn ticks_to_nanos(info: &VcpuTimeInfo, ticks: u64) -> u64 {
    let shifted = if info.tsc_shift >= 0 { ticks << info.tsc_shift } else { ticks >> -info.tsc_shift };
    ((u128::from(shifted) * u128::from(info.tsc_to_system_mul)) >> 32) as u64
}

/// The TSC's frequency as the hypervisor states it.
pub fn tsc_hz() -> u64 {
    let info = time_info();
    let hz = (1_000_000_000u128 << 32) / u128::from(info.tsc_to_system_mul.max(1));
    (if info.tsc_shift >= 0 { hz >> info.tsc_shift } else { hz << -info.tsc_shift }) as u64
}

/// System time in nanoseconds.
pub fn now() -> u64 {
    let info = time_info();
    info.system_time + ticks_to_nanos(&info, cpu::rdtsc().saturating_sub(info.tsc_timestamp))
}

/// Sleeps, so that others may run.
pub fn sleep(nanos: u64) {
    let end = now() + nanos;
    while now() < end {
        hypercall::op(SCHED_OP, SCHEDOP_POLL, &mut Poll { timeout: end, ..Default::default() });
    }
}

/// Waits, spinning, by the TSC alone.
pub fn spin(nanos: u64) {
    let end = now() + nanos;
    while now() < end {
        cpu::pause();
    }
}

/// How late something may be, in nanoseconds: an engine that counts instructions is punctual, one that lives in the host's time
/// is as late as its host is busy.
pub fn slop() -> u64 {
    if tsc_hz() < 200_000_000 { 2_000_000 } else { 300_000_000 }
}
