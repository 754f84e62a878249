//! MSI-X: Dom0 has a table of its own in place of the device's (PCI 3.0, 6.8.2).
//!
//! The frames that hold the device's table or its pending bits are not mapped. What else is in them is passed through, an
//! access at a time; the control register is the device's.

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use mm::addr::{GuestPhys, HostPhys, Mfn};
use xen_abi::errno::Errno;

use super::config::Write;
use super::{Effect, Effects, Slot, push};
use crate::pci::capability::{MSIX_ENABLE, MSIX_ENTRY, Msix};
use crate::pci::{ConfigAccess, Message, Place, Width};

/// Vector control: the entry is masked.
const MASKED: u32 = 1 << 0;

/// An entry of Dom0's table.
#[derive(Clone, Copy, Debug)]
struct Entry {
    message: Message,
    control: u32,
}

impl Entry {
    /// As after a reset.
    const RESET: Entry = Entry { message: Message { address: 0, data: 0 }, control: MASKED };

    fn is_masked(&self) -> bool {
        self.control & MASKED != 0
    }

    fn bytes(&self) -> u128 {
        u128::from(self.control) << 96 | u128::from(self.message.data) << 64 | u128::from(self.message.address)
    }

    /// Writes one of the four longs.
    fn write(&mut self, long: u64, value: u32) {
        let address = &mut self.message.address;
        match long {
            0 => *address = *address & !0xffff_ffff | u64::from(value & !0b11),
            1 => *address = *address & 0xffff_ffff | u64::from(value) << 32,
            2 => self.message.data = value,
            _ => self.control = value & MASKED,
        }
    }
}

/// Dom0's MSI-X table of a function, and where the device has its own.
#[derive(Debug)]
pub struct MsixState {
    capability: Msix,
    table: Option<Place>,
    pending: Option<Place>,
    entries: Vec<Entry>,
    enabled: bool,
}

impl MsixState {
    /// A table with everything masked. `-ENOMEM`.
    pub(super) fn new(capability: Msix) -> Result<MsixState, Errno> {
        let mut entries = Vec::new();
        let count = usize::from(capability.entries);
        entries.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
        entries.resize(count, Entry::RESET);
        Ok(MsixState { capability, table: None, pending: None, entries, enabled: false })
    }

    /// A BAR has got its place.
    pub(super) fn place(&mut self, register: u16, bar: Place) {
        let piece = |offset: u32, size| Place { start: HostPhys(bar.start.0.saturating_add(offset.into())), size };
        let (table, pending) = (self.capability.table, self.capability.pending);
        if table.0 == register {
            self.table = Some(piece(table.1, self.capability.table_size()));
        }
        if pending.0 == register {
            self.pending = Some(piece(pending.1, self.capability.pending_size()));
        }
    }

    /// A BAR has lost its place.
    pub(super) fn displace(&mut self, register: u16) {
        if self.capability.table.0 == register {
            self.table = None;
        }
        if self.capability.pending.0 == register {
            self.pending = None;
        }
    }

    /// Where the device's table is.
    pub(super) fn table(&self) -> Option<HostPhys> {
        self.table.map(|place| place.start)
    }

    /// The frames that must not be mapped, in order: first, and first beyond.
    pub(super) fn holes(&self) -> ArrayVec<(Mfn, Mfn), 2> {
        let mut holes: ArrayVec<_, 2> = self.table.into_iter().chain(self.pending).map(Place::frames).collect();
        holes.sort_unstable();
        holes
    }

    /// Whether a frame must not be mapped.
    #[inline]
    pub(super) fn traps(&self, frame: Mfn) -> bool {
        let has = |place: &Place| {
            let (first, end) = place.frames();
            first <= frame && frame < end
        };
        self.table.as_ref().is_some_and(has) || self.pending.as_ref().is_some_and(has)
    }

    /// What Dom0 reads in its table; none if the address is elsewhere.
    pub(super) fn read(&self, address: GuestPhys, width: Width) -> Option<u64> {
        let (index, offset) = self.index(address)?;
        let entry = self.entries.get(usize::from(index))?;
        Some((entry.bytes() >> (offset << 3 & 127)) as u64 & width.ones())
    }

    /// Index, message and whether it is masked, of every entry.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u16, Message, bool)> + '_ {
        (0..).zip(&self.entries).map(|(index, entry)| (index, entry.message, entry.is_masked()))
    }

    /// As after a reset; whether it was on.
    pub(super) fn forget(&mut self) -> bool {
        self.entries.fill(Entry::RESET);
        core::mem::take(&mut self.enabled)
    }

    /// The entry that an address is in, and the offset in the entry.
    fn index(&self, address: GuestPhys) -> Option<(u16, u64)> {
        let table = self.table?;
        let offset = address.0.checked_sub(table.start.0).filter(|&offset| offset < table.size)?;
        Some(((offset / MSIX_ENTRY) as u16, offset % MSIX_ENTRY))
    }
}

impl Slot {
    /// Dom0 writes the control register.
    pub(super) fn msix_control_write(&mut self, access: &impl ConfigAccess, write: Write, out: &mut Effects) {
        let sbdf = self.function.sbdf;
        let Some(capability) = self.function.msix else { return };
        let on =
            |access: &_| ConfigAccess::read(access, sbdf, capability.control(), Width::Word) as u16 & MSIX_ENABLE != 0;
        let before = on(access);
        self.pass(access, write);
        let after = on(access);
        let Some(state) = &mut self.msix else { return };
        let was_enabled = core::mem::replace(&mut state.enabled, after);
        if after && !before {
            push(out, Effect::MsixSync { sbdf });
        } else if !after && was_enabled {
            push(out, Effect::MsixUnbind { sbdf });
        }
    }

    /// Dom0 writes into its table; false if the address is elsewhere. Bytes and words are dropped: what they do is not
    /// defined.
    pub(super) fn msix_table_write(&mut self, address: GuestPhys, width: Width, value: u64, out: &mut Effects) -> bool {
        let sbdf = self.function.sbdf;
        let Some(state) = &mut self.msix else { return false };
        let Some((index, offset)) = state.index(address) else { return false };
        let Some(entry) = state.entries.get_mut(usize::from(index)) else { return true };
        let was_masked = entry.is_masked();
        let first = offset / 4;
        match width {
            Width::Byte | Width::Word => return true,
            Width::Long => entry.write(first, value as u32),
            Width::Quad => {
                entry.write(first, value as u32);
                entry.write(first | 1, (value >> 32) as u32);
            }
        }
        // A masked entry's message matters when it is unmasked. Masking again what is masked says it again to the device,
        // which may have forgotten.
        let masked = entry.is_masked();
        let control_written = first == 3 || (width == Width::Quad && first == 2);
        if state.enabled && (control_written || !(was_masked && masked)) {
            push(out, Effect::MsixEntry { sbdf, entry: index, message: entry.message, masked });
        }
        true
    }
}
