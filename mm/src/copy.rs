//! Moving bytes to and from memory that others change meanwhile.
//!
//! Such memory may not be read or written through ordinary Rust accesses: those of a guest would be data races. Short
//! pieces go by relaxed atomics of the widest fitting size; long ones by string instructions, which the compiler cannot see
//! into. (An interpreter counts each iteration of those, so the bulk moves eight bytes at a time.) A port replaces the three
//! `asm!` functions at the end.

use core::mem;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Up to this many bytes, loads and stores beat the start of a string instruction.
const SHORT: usize = 64;

/// The bytes from `at` to the next multiple of eight, at most `len`.
#[inline]
fn to_alignment(at: *const u8, len: usize) -> usize {
    (at.addr().wrapping_neg() & 7).min(len)
}

/// The width at which `len` bytes are copied if they are aligned to it.
#[inline]
const fn grain(len: usize) -> usize {
    match len {
        0 | 1 => 1,
        2 | 3 => 2,
        4..8 => 4,
        _ => 8,
    }
}

/// Copies `to.len()` bytes out of volatile memory.
///
/// # Safety
/// `from` must be mapped and readable for that many bytes, and no Rust reference to them may exist but to atomics.
#[inline(always)]
pub unsafe fn read(from: *const u8, to: &mut [u8]) {
    // SAFETY: as the caller promises; `to` is exclusively ours, so they do not overlap. Offsets keep to `to`'s length, and
    // words are read where they are aligned.
    unsafe {
        if to.len() > SHORT {
            return string_copy(from, to.as_mut_ptr(), to.len());
        }
        // Where the length is known when this is compiled, as that of a structure is, what is left is a load a word.
        match from.addr() & grain(to.len()).wrapping_sub(1) {
            0 => read_aligned(from.cast_mut(), to),
            _ => read_unaligned(from.cast_mut(), to),
        }
    }
}

/// As [`read`], from where the first word is aligned.
///
/// # Safety
/// As for [`read`].
#[inline(always)]
unsafe fn read_aligned(mut at: *mut u8, to: &mut [u8]) {
    // SAFETY: as for `read`.
    unsafe {
        let (words, mut rest) = to.as_chunks_mut::<8>();
        for word in words {
            *word = AtomicU64::from_ptr(at.cast()).load(Ordering::Relaxed).to_ne_bytes();
            at = at.add(8);
        }
        if rest.len() >= 4
            && let Some((word, tail)) = mem::take(&mut rest).split_first_chunk_mut::<4>()
        {
            *word = AtomicU32::from_ptr(at.cast()).load(Ordering::Relaxed).to_ne_bytes();
            (at, rest) = (at.add(4), tail);
        }
        if !rest.is_empty() {
            read_narrow(at, rest);
        }
    }
}

/// As [`read`], from any address.
///
/// # Safety
/// As for [`read`].
#[inline(never)]
unsafe fn read_unaligned(at: *mut u8, to: &mut [u8]) {
    // SAFETY: as for `read`.
    unsafe {
        let Some((head, rest)) = to.split_at_mut_checked(to_alignment(at, to.len())) else { return };
        let aligned = at.add(head.len());
        read_narrow(at, head);
        read_aligned(aligned, rest);
    }
}

/// As [`read`], by words of at most four bytes.
///
/// # Safety
/// As for [`read`].
unsafe fn read_narrow(mut at: *mut u8, to: &mut [u8]) {
    let mut rest = to;
    // SAFETY: `at` advances with `rest`, so what is read lies in the caller's range; each width is used where aligned.
    unsafe {
        while !rest.is_empty() {
            let whole = mem::take(&mut rest);
            if at.addr() & 3 == 0 && whole.len() >= 4 {
                let Some((chunk, tail)) = whole.split_first_chunk_mut::<4>() else { break };
                *chunk = AtomicU32::from_ptr(at.cast()).load(Ordering::Relaxed).to_ne_bytes();
                (at, rest) = (at.add(4), tail);
            } else if at.addr() & 1 == 0 && whole.len() >= 2 {
                let Some((chunk, tail)) = whole.split_first_chunk_mut::<2>() else { break };
                *chunk = AtomicU16::from_ptr(at.cast()).load(Ordering::Relaxed).to_ne_bytes();
                (at, rest) = (at.add(2), tail);
            } else {
                let Some((byte, tail)) = whole.split_first_mut() else { break };
                *byte = AtomicU8::from_ptr(at).load(Ordering::Relaxed);
                (at, rest) = (at.add(1), tail);
            }
        }
    }
}

/// Copies `from` into volatile memory.
///
/// # Safety
/// `to` must be mapped and writable for that many bytes, and no Rust reference to them may exist but to atomics.
#[inline]
pub unsafe fn write(to: *mut u8, from: &[u8]) {
    // SAFETY: as the caller promises; nothing that `from` borrows overlaps memory without references. Offsets keep to
    // `from`'s length, and words are written where they are aligned.
    unsafe {
        if from.len() > SHORT {
            return string_copy(from.as_ptr(), to, from.len());
        }
        match to.addr() & grain(from.len()).wrapping_sub(1) {
            0 => write_aligned(to, from),
            _ => write_unaligned(to, from),
        }
    }
}

/// As [`write`], to where the first word is aligned.
///
/// # Safety
/// As for [`write`].
#[inline(always)]
unsafe fn write_aligned(mut at: *mut u8, from: &[u8]) {
    // SAFETY: as for `write`.
    unsafe {
        let (words, mut rest) = from.as_chunks::<8>();
        for word in words {
            AtomicU64::from_ptr(at.cast()).store(u64::from_ne_bytes(*word), Ordering::Relaxed);
            at = at.add(8);
        }
        if let Some((word, tail)) = rest.split_first_chunk::<4>() {
            AtomicU32::from_ptr(at.cast()).store(u32::from_ne_bytes(*word), Ordering::Relaxed);
            (at, rest) = (at.add(4), tail);
        }
        if !rest.is_empty() {
            write_narrow(at, rest);
        }
    }
}

/// As [`write`], to any address.
///
/// # Safety
/// As for [`write`].
#[inline(never)]
unsafe fn write_unaligned(at: *mut u8, from: &[u8]) {
    // SAFETY: as for `write`.
    unsafe {
        let Some((head, rest)) = from.split_at_checked(to_alignment(at, from.len())) else { return };
        write_narrow(at, head);
        write_aligned(at.add(head.len()), rest);
    }
}

/// As [`write`], by words of at most four bytes.
///
/// # Safety
/// As for [`write`].
unsafe fn write_narrow(mut at: *mut u8, from: &[u8]) {
    let mut rest = from;
    // SAFETY: `at` advances with `rest`, so what is written lies in the caller's range; each width is used where aligned.
    unsafe {
        while !rest.is_empty() {
            if at.addr() & 3 == 0
                && let Some((chunk, tail)) = rest.split_first_chunk::<4>()
            {
                AtomicU32::from_ptr(at.cast()).store(u32::from_ne_bytes(*chunk), Ordering::Relaxed);
                (at, rest) = (at.add(4), tail);
            } else if at.addr() & 1 == 0
                && let Some((chunk, tail)) = rest.split_first_chunk::<2>()
            {
                AtomicU16::from_ptr(at.cast()).store(u16::from_ne_bytes(*chunk), Ordering::Relaxed);
                (at, rest) = (at.add(2), tail);
            } else if let Some((byte, tail)) = rest.split_first() {
                AtomicU8::from_ptr(at).store(*byte, Ordering::Relaxed);
                (at, rest) = (at.add(1), tail);
            } else {
                break;
            }
        }
    }
}

/// Copies `len` bytes upwards, eight at a time as far as that goes.
///
/// # Safety
/// Both ranges must be mapped, `to` writable, and they must not overlap.
pub unsafe fn string_copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for the ranges; the direction flag is clear by the ABI.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            "mov ecx, {tail:e}",
            "rep movsb",
            tail = in(reg) len & 7,
            inout("rcx") len >> 3 => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Sets `words` 64-bit words to zero.
///
/// # Safety
/// The range must be mapped and writable.
pub unsafe fn string_zero(to: *mut u8, words: usize) {
    // SAFETY: the caller vouches for the range; the direction flag is clear by the ABI.
    unsafe {
        core::arch::asm!(
            "rep stosq",
            in("rax") 0u64,
            inout("rcx") words => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_alignment_arrives_whole_and_alone() {
        for start in 0..9 {
            for len in (0..100).chain([255, 256, 257]) {
                let source: Vec<u8> = (0..len).map(|i| i as u8 ^ 0x5a).collect();
                let mut memory = vec![0xeeu8; 300];
                // SAFETY: within the vector, which nothing else refers to meanwhile.
                unsafe { write(memory.as_mut_ptr().add(start), &source) };
                assert_eq!(memory[start..start + len], source);
                assert!(memory[..start].iter().chain(&memory[start + len..]).all(|byte| *byte == 0xee));
                let mut back = vec![0; len];
                // SAFETY: as above.
                unsafe { read(memory.as_ptr().add(start), &mut back) };
                assert_eq!(back, source);
            }
        }
    }
}
