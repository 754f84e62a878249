//! A guest's floating-point and vector state. The host uses none (it is built for soft float), so the state stays in the CPU until another
//! vCPU needs it.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mm::{Clean, Frames, Memory, OutOfMemory, Window};

use crate::state::{FpuImage, LEGACY};

/// The states that Corten switches where the CPU has them: x87, SSE, AVX, AVX-512, PKRU.
pub const SWITCHED: u64 = 0x2e7;

static IN_USE: AtomicU64 = AtomicU64::new(0);
static KEEPS_POINTERS: AtomicBool = AtomicBool::new(false);

/// Notes which states this machine has.
pub fn set_switched_states(mask: u64) {
    IN_USE.store(mask, Ordering::Relaxed);
}

/// The states that are switched on this machine, as bits of XCR0; 0 without XSAVE.
pub fn switched_states() -> u64 {
    IN_USE.load(Ordering::Relaxed)
}

/// Notes that this machine's CPUs save and restore the addresses of the last x87 instruction only where it has left an exception pending: AMD's without
/// RstrFpErrPtrs (APM Vol. 2, 11.4.4.3, and CPUID Fn8000_0008_EBX).
pub fn set_keeps_pointers(keeps: bool) {
    KEEPS_POINTERS.store(keeps, Ordering::Relaxed);
}

/// Puts an address of the host's own where the last vCPU's would be seen by the next.
fn forget_pointers() {
    static ZERO: u32 = 0;
    // SAFETY: what is in the registers is restored next, and pending exceptions are cleared before an instruction could raise them.
    unsafe { asm!("fnclex", "ffree st(7)", "fild dword ptr [{0}]", in(reg) &ZERO, options(nostack)) };
}

/// Where a vCPU's state is kept while it is not in the CPU.
pub struct FpuArea {
    frames: Frames<Clean>,
    window: Window,
    /// In bytes.
    size: usize,
    /// 0 where the CPU has no XSAVE.
    mask: u64,
}

impl FpuArea {
    /// `size` is what CPUID leaf 0xD says for `mask`, in bytes; 512 without XSAVE.
    pub fn new(memory: &'static Memory, mask: u64, size: usize) -> Result<FpuArea, OutOfMemory> {
        let order = size.div_ceil(mm::PAGE_SIZE).next_power_of_two().trailing_zeros() as u8;
        let frames = memory.allocate(order, None)?.scrub();
        let window = *memory.window();
        // FCW and MXCSR as after FNINIT and reset; an XSTATE_BV of zero then loads initial state for the rest.
        let base = frames.mfn().phys();
        let _ = window.write_u64(base, 0x37f);
        let _ = window.copy_to(mm::addr::HostPhys(base.0 + 24), &0x1f80u32.to_le_bytes());
        Ok(FpuArea { frames, window, size, mask })
    }

    fn pointer(&self) -> *mut u8 {
        self.window.pointer(self.frames.mfn().phys(), mm::PAGE_SIZE as u64).unwrap_or(core::ptr::null_mut())
    }

    /// The state, while it is not in the CPU.
    pub fn image(&self) -> Result<FpuImage, OutOfMemory> {
        let size = if self.mask == 0 { LEGACY } else { self.size };
        FpuImage::saved(size, |bytes| {
            // The area has as many.
            let _ = self.window.copy_from(self.frames.mfn().phys(), bytes);
        })
    }

    /// Puts another state here, which was checked. It is not in the CPU.
    pub fn set_image(&self, image: &FpuImage) {
        let room = if self.mask == 0 { LEGACY } else { self.size };
        let bytes = image.bytes();
        let _ = self.window.copy_to(self.frames.mfn().phys(), bytes.get(..room).unwrap_or(bytes));
    }

    /// Puts the CPU's state here. `xcr0` is the guest's, which is in force.
    pub fn save(&self) {
        // SAFETY: the area is this vCPU's own, of the size that the CPU asks for, and 64-byte aligned as a frame is. Nothing in the
        // host depends on the state that stays behind in the CPU.
        unsafe {
            if self.mask == 0 {
                asm!("fxsave64 [{0}]", in(reg) self.pointer(), options(nostack));
            } else {
                asm!("xsave64 [{0}]", in(reg) self.pointer(), in("eax") self.mask as u32, in("edx") (self.mask >> 32) as u32, options(nostack));
            }
        }
    }

    /// An x87 exception is pending in the state, unmasked: FCW and FSW are its first words.
    fn has_exception_pending(&self) -> bool {
        let words = self.window.read_u64(self.frames.mfn().phys()).unwrap_or(0);
        (words >> 16) & !words & 0x3f != 0
    }

    /// Puts this state into the CPU.
    pub fn restore(&self) {
        if KEEPS_POINTERS.load(Ordering::Relaxed) && !self.has_exception_pending() {
            forget_pointers();
        }
        // SAFETY: what is restored was saved there, or is the initial state written by `new`; the area is not a guest's to write.
        unsafe {
            if self.mask == 0 {
                asm!("fxrstor64 [{0}]", in(reg) self.pointer(), options(nostack));
            } else {
                asm!("xrstor64 [{0}]", in(reg) self.pointer(), in("eax") self.mask as u32, in("edx") (self.mask >> 32) as u32, options(nostack));
            }
        }
    }
}

/// The bits of MXCSR that this CPU knows (SDM Vol. 1, 11.6.6).
pub fn mxcsr_mask() -> u32 {
    const WITHOUT_A_MASK: u32 = 0xffbf;
    #[repr(C, align(16))]
    struct Area([u32; LEGACY / 4]);
    const _: () = assert!(core::mem::size_of::<Area>() == LEGACY);
    let mut area = Area([0; LEGACY / 4]);
    // SAFETY: FXSAVE writes 512 bytes to an aligned area of as many, and leaves the state in the CPU as it is.
    unsafe { asm!("fxsave64 [{0}]", in(reg) &mut area, options(nostack)) };
    match area.0 {
        [_, _, _, _, _, _, _, 0, ..] => WITHOUT_A_MASK,
        [_, _, _, _, _, _, _, mask, ..] => mask,
    }
}

/// XCR0, which is the guest's while it is on this CPU.
#[inline]
pub fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading it changes nothing; the caller asks only where there is XSAVE, which is then switched on.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nostack, nomem, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Loads XCR0, which the caller has checked against what the CPU has.
pub fn set_xcr0(value: u64) {
    // SAFETY: the value is one that CPUID leaf 0xD allows; the host uses no extended state.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, nomem))
    };
}
