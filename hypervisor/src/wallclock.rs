//! Time as shared_info and vcpu_info give it to the guest: the wall clock and each vCPU's pvclock.

use core::mem::offset_of;
use core::sync::atomic::{Ordering, fence};

use mm::SharedPage;
use xen_abi::compat;
use xen_abi::x86::SharedInfo;

use crate::domain::Domain;
use crate::machine::{ClockScale, Machine, Width};
use crate::system::System;
use crate::vcpu::Vcpu;

/// Offsets of `wc_version`, which `wc_sec` and `wc_nsec` follow, and of `wc_sec_hi` in shared_info; a 32-bit guest's bitmaps are shorter and its
/// `wc_sec_hi` is in its arch_shared_info (Xen's `xen.h`, `arch-x86/xen.h`).
struct WallclockLayout {
    version: usize,
    seconds_high: usize,
}

const WALLCLOCK_64: WallclockLayout =
    WallclockLayout { version: offset_of!(SharedInfo, wc_version), seconds_high: offset_of!(SharedInfo, wc_sec_hi) };
const WALLCLOCK_32: WallclockLayout = WallclockLayout {
    version: offset_of!(compat::SharedInfo, wc_version),
    seconds_high: offset_of!(compat::SharedInfo, arch.wc_sec_hi),
};

const PVCLOCK_TSC_STABLE: u8 = 1 << 0;

fn store_u32(page: &SharedPage, offset: usize, value: u32) {
    if let Some(word) = page.atomic_u32(offset) {
        word.store(value, Ordering::Relaxed);
    }
}

fn store_u64(page: &SharedPage, offset: usize, value: u64) {
    store_u32(page, offset, value as u32);
    store_u32(page, offset.wrapping_add(4), (value >> 32) as u32);
}

/// Writes under a version that is odd while the content changes, so that the guest can tell a torn read.
fn versioned(page: &SharedPage, version: usize, write: impl FnOnce()) {
    let Some(version) = page.atomic_u32(version) else { return };
    let odd = version.load(Ordering::Relaxed) | 1;
    version.store(odd, Ordering::Relaxed);
    fence(Ordering::Release);
    write();
    version.store(odd.wrapping_add(1), Ordering::Release);
}

/// Writes the wall clock at system time zero into the domain's shared_info.
pub fn update_wallclock<M: Machine>(system: &System<M>, domain: &Domain<M>) {
    let (seconds, nanoseconds) = system.machine.wallclock_at_boot();
    let seconds = seconds.wrapping_add_signed(domain.control.time_offset.load(Ordering::Relaxed));
    let layout = match domain.shared_width() {
        Width::Bits64 => WALLCLOCK_64,
        Width::Bits32 => WALLCLOCK_32,
    };
    let page = &domain.shared_info;
    versioned(page, layout.version, || {
        store_u32(page, layout.version.wrapping_add(4), seconds as u32);
        store_u32(page, layout.version.wrapping_add(8), nanoseconds);
        store_u32(page, layout.seconds_high, (seconds >> 32) as u32);
    });
}

/// From now on what the domain shares has the layout of a guest of this width: where the layout changes, the wall clock moves with it.
pub fn latch_width<M: Machine>(system: &System<M>, domain: &Domain<M>, width: Width) {
    if domain.shared_width() != width {
        domain.latch_width(width);
        update_wallclock(system, domain);
    }
}

fn write_time(page: &SharedPage, at: usize, scale: &ClockScale) {
    versioned(page, at, || {
        store_u64(page, at.wrapping_add(8), scale.tsc_timestamp);
        store_u64(page, at.wrapping_add(16), scale.system_time.0);
        store_u32(page, at.wrapping_add(24), scale.tsc_to_system_mul);
        let flags = if scale.stable { PVCLOCK_TSC_STABLE } else { 0 };
        for (offset, value) in [(28usize, scale.tsc_shift as u8), (29, flags)] {
            if let Some(byte) = page.atomic_u8(at.wrapping_add(offset)) {
                byte.store(value, Ordering::Relaxed);
            }
        }
    });
}

/// Writes a vCPU's `vcpu_time_info` wherever it is, and the copy that VCPUOP_register_vcpu_time_memory_area asked for.
pub fn update_vcpu_time<M: Machine>(system: &System<M>, domain: &Domain<M>, vcpu: &Vcpu<M>) {
    let scale = system.machine.clock_scale();
    if let Some(info) = vcpu.info(domain) {
        let (page, at) = info.time();
        write_time(page, at, &scale);
    }
    if let Some(area) = &*vcpu.time_area.lock() {
        write_time(area.page(), area.offset(), &scale);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::fake::{self, Wanted};

    fn word(page: &SharedPage, offset: usize) -> u32 {
        page.atomic_u32(offset).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    #[test]
    fn the_wall_clock_is_where_each_width_has_it_and_moves_when_the_width_changes() {
        let system = fake::system(64);
        let domain = fake::add(system, Wanted::default());
        let (seconds, nanoseconds) = (0x3_2345_6789u64, 99);
        system.machine.set_wallclock(seconds, nanoseconds, sched::Nanos(0));
        let page = &domain.shared_info;
        let (low, high) = (seconds as u32, (seconds >> 32) as u32);
        // Offsets as the C compiler has them (`xen_abi::layout`).
        latch_width(system, &domain, Width::Bits32);
        assert_eq!([2308, 2312, 2340].map(|at| word(page, at)), [low, nanoseconds, high]);
        assert_eq!([3076, 3080, 3084].map(|at| word(page, at)), [0; 3]);
        latch_width(system, &domain, Width::Bits64);
        assert_eq!([3076, 3080, 3084].map(|at| word(page, at)), [low, nanoseconds, high]);
        assert_eq!(word(page, 3072), 2, "one update so far");
        latch_width(system, &domain, Width::Bits64);
        assert_eq!(word(page, 3072), 2, "nothing has changed");
    }
}
