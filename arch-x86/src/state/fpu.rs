//! A floating-point and vector state as XSAVE lays it out, in its standard form (SDM Vol. 1, 13.4).

use alloc::vec::Vec;

use mm::{OutOfMemory, try_concat, try_vec};
use xen_abi::errno::Errno;

/// The legacy area: all that FXSAVE knows.
pub const LEGACY: usize = 512;
const HEADER: usize = 64;
/// XSTATE_BV, at the beginning of the header.
const STATES: usize = LEGACY;
const MXCSR: usize = 24;
const FCW: usize = 0;

/// Legacy area, header, and the components behind them.
#[derive(Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Clone))]
pub struct FpuImage(Vec<u8>);

impl FpuImage {
    /// Zeroes in `size` bytes, or as many as there have to be.
    fn zeroed(size: usize) -> Result<FpuImage, OutOfMemory> {
        let size = size.max(LEGACY + HEADER);
        let mut bytes = try_vec(size)?;
        bytes.resize(size, 0);
        Ok(FpuImage(bytes))
    }

    /// As after FNINIT and a reset. ENOMEM, as all here.
    pub fn initial() -> Result<FpuImage, OutOfMemory> {
        let mut image = FpuImage::zeroed(0)?;
        image.put(FCW, &0x37fu16.to_le_bytes());
        image.put(MXCSR, &0x1f80u32.to_le_bytes());
        Ok(image)
    }

    /// What was saved in `size` bytes, by whoever is trusted: `copy` fills them in.
    pub fn saved(size: usize, copy: impl FnOnce(&mut [u8])) -> Result<FpuImage, OutOfMemory> {
        let mut image = FpuImage::zeroed(size)?;
        copy(image.0.get_mut(..size).unwrap_or_default());
        Ok(image)
    }

    /// A legacy area that was sent: x87 and SSE. `mxcsr_mask` is what this CPU knows of MXCSR. EINVAL.
    pub fn from_legacy(legacy: &[u8; LEGACY], mxcsr_mask: u32) -> Result<FpuImage, Errno> {
        let mut image = FpuImage::zeroed(0)?;
        image.put(0, legacy);
        image.put(STATES, &super::super::policy::xstate::XCR0_LEGACY.to_le_bytes());
        if image.mxcsr() & !mxcsr_mask != 0 { Err(Errno::EINVAL) } else { Ok(image) }
    }

    /// An area that was sent, of these states. EINVAL for whatever would have XRSTOR fault (SDM Vol. 1, 13.8.1).
    pub fn from_area(area: &[u8], states: u64, mxcsr_mask: u32) -> Result<FpuImage, Errno> {
        let header: &[u8; HEADER] = area.get(LEGACY..).and_then(<[u8]>::first_chunk).ok_or(Errno::EINVAL)?;
        let image = FpuImage(try_concat(&[area])?);
        let (_, rest) = header.split_at(8);
        let valid =
            image.states() & !states == 0 && rest.iter().all(|byte| *byte == 0) && image.mxcsr() & !mxcsr_mask == 0;
        if valid { Ok(image) } else { Err(Errno::EINVAL) }
    }

    /// Which states are not the initial ones, as bits of XCR0.
    pub fn states(&self) -> u64 {
        u64::from_le_bytes(self.get(STATES))
    }

    pub fn legacy(&self) -> [u8; LEGACY] {
        self.get(0)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same in `size` bytes with no other states than these.
    pub(super) fn limited(&self, states: u64, size: usize) -> Result<FpuImage, OutOfMemory> {
        let mut image = FpuImage::zeroed(size)?;
        image.put(0, &self.0);
        image.put(STATES, &(self.states() & states).to_le_bytes());
        Ok(image)
    }

    fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.get(MXCSR))
    }

    fn get<const COUNT: usize>(&self, at: usize) -> [u8; COUNT] {
        self.0.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; COUNT])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }
}
