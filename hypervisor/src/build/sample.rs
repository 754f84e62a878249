//! Small kernel images for the tests, and bytes such as kernels are made of.

use alloc::vec::Vec;

/// An ELF image in the making: its notes are segment 0, what `load` adds comes after.
pub struct Elf {
    pub class64: bool,
    pub machine: u16,
    pub loads: Vec<(u64, Vec<u8>, u64)>,
    pub notes: Vec<u8>,
}

pub fn elf64() -> Elf {
    Elf { class64: true, machine: 62, loads: Vec::new(), notes: Vec::new() }
}

impl Elf {
    pub fn load(mut self, address: u64, data: &[u8], size: u64) -> Elf {
        self.loads.push((address, data.to_vec(), size));
        self
    }

    pub fn note(mut self, kind: u32, desc: &[u8]) -> Elf {
        for word in [4, desc.len() as u32, kind] {
            self.notes.extend(word.to_le_bytes());
        }
        self.notes.extend(b"Xen\0");
        self.notes.extend(desc);
        self.notes.resize(self.notes.len().next_multiple_of(4), 0);
        self
    }

    pub fn entry(self, entry: u64) -> Elf {
        self.note(18, &entry.to_le_bytes())
    }

    pub fn reloc(self, align: u32, min: u32, max: u32) -> Elf {
        let desc: Vec<u8> = [align, min, max].iter().flat_map(|w| w.to_le_bytes()).collect();
        self.note(19, &desc)
    }

    pub fn build(&self) -> Vec<u8> {
        let word = |v: u64| if self.class64 { v.to_le_bytes().to_vec() } else { (v as u32).to_le_bytes().to_vec() };
        let (header, phdr) = if self.class64 { (64, 56) } else { (52, 32) };
        let segments = core::iter::once((4u32, 0, &self.notes[..], self.notes.len() as u64))
            .chain(self.loads.iter().map(|(a, d, s)| (1, *a, &d[..], *s)))
            .collect::<Vec<_>>();
        let mut out = Vec::new();
        out.extend(b"\x7fELF");
        out.extend([1 + u8::from(self.class64), 1, 1]);
        out.resize(16, 0);
        out.extend(2u16.to_le_bytes());
        out.extend(self.machine.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend(word(0));
        out.extend(word(header));
        out.extend(word(0));
        out.extend(0u32.to_le_bytes());
        for half in [header as u16, phdr, segments.len() as u16, 0, 0, 0] {
            out.extend(half.to_le_bytes());
        }
        let mut offset = header + u64::from(phdr) * segments.len() as u64;
        for (kind, address, data, size) in &segments {
            let file = data.len() as u64;
            out.extend(kind.to_le_bytes());
            if self.class64 {
                out.extend(7u32.to_le_bytes());
            }
            for value in [offset, *address, *address, file, *size] {
                out.extend(word(value));
            }
            if !self.class64 {
                out.extend(7u32.to_le_bytes());
            }
            out.extend(word(4));
            offset += file;
        }
        for (_, _, data, _) in &segments {
            out.extend(*data);
        }
        out
    }

    /// The image as the payload of a bzImage.
    pub fn bzimage(&self) -> Vec<u8> {
        bzimage(&self.build())
    }
}

/// A bzImage of one setup sector, its payload at an odd place behind it.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut out = alloc::vec![0; 1024];
    out[0x1f1] = 1;
    out[0x1fe] = 0x55;
    out[0x1ff] = 0xaa;
    out[0x202..0x206].copy_from_slice(b"HdrS");
    out[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    out[0x248..0x24c].copy_from_slice(&5u32.to_le_bytes());
    out[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend(b"setup");
    out.extend(payload);
    out.extend(b"trailer");
    out
}

/// `size` bytes with repeats, runs, noise and x86 calls, by `seed`, that begin as ELF does.
pub fn kernel_like(size: usize, mut seed: u32) -> Vec<u8> {
    let mut bytes = b"\x7fELF".to_vec();
    while bytes.len() < size {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = (seed >> 8 & 63) as usize;
        match seed >> 28 {
            0 => bytes.extend((0..length / 4).map(|i| (seed >> (i % 24)) as u8)),
            1 => bytes.extend(core::iter::repeat_n(seed as u8 & 1, length * 4)),
            2 | 3 => {
                let target = 0x1000u32.wrapping_mul(seed >> 10 & 15).wrapping_sub(bytes.len() as u32 + 5);
                bytes.push(0xe8 | seed as u8 & 1);
                bytes.extend(target.to_le_bytes());
            }
            _ => {
                let back = 1 + (seed >> 4) as usize % bytes.len().min(1 << (seed >> 14 & 15).max(1));
                let run: Vec<u8> = bytes[bytes.len() - back..].iter().copied().cycle().take(length).collect();
                bytes.extend(run);
            }
        }
    }
    bytes.truncate(size);
    bytes
}
