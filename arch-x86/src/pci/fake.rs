//! A PCI bus in memory, for tests: configuration spaces with bits that can and cannot be written, and device memory.

use core::cell::{Cell, RefCell};
use core::ops::Range;
use std::collections::BTreeMap;
use std::vec::Vec;

use mm::addr::{HostPhys, Mfn};

use super::{ConfigAccess, PciHost, Sbdf, Width};

/// A function's configuration space.
#[derive(Clone)]
pub struct FakeFunction {
    pub config: [u8; 4096],
    pub writable: [u8; 4096],
    last_capability: Option<u8>,
}

impl FakeFunction {
    /// A function without BARs and capabilities, with a command register that can be written.
    pub fn new(vendor: u16, device: u16) -> FakeFunction {
        let mut function = FakeFunction { config: [0; 4096], writable: [0; 4096], last_capability: None };
        function.set(0x00, &vendor.to_le_bytes());
        function.set(0x02, &device.to_le_bytes());
        function.set(0x08, &[1, 0, 0, 2]);
        function.allow(0x04, &[0x47, 0x05]);
        function.allow(0x3c, &[0xff]);
        function
    }

    /// A bridge to another bus.
    pub fn bridge(secondary: u8) -> FakeFunction {
        let mut function = FakeFunction::new(0x8086, 0x2448);
        function.set(0x08, &[1, 0, 4, 6]);
        function.set(0x0e, &[1]);
        function.set(0x18, &[0, secondary, secondary]);
        function.allow(0x18, &[0xff, 0xff, 0xff]);
        function
    }

    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.config[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    pub fn multifunction(mut self) -> Self {
        self.config[0x0e] |= 0x80;
        self
    }

    pub fn command(mut self, value: u16) -> Self {
        self.set(0x04, &value.to_le_bytes());
        self
    }

    /// A 32-bit memory BAR.
    pub fn bar(mut self, index: usize, start: u32, size: u32) -> Self {
        let at = 0x10 + index * 4;
        self.set(at, &start.to_le_bytes());
        self.allow(at, &(!(size - 1)).to_le_bytes());
        self
    }

    /// A 64-bit prefetchable memory BAR.
    pub fn bar_64(mut self, index: usize, start: u64, size: u64) -> Self {
        let at = 0x10 + index * 4;
        self.set(at, &(start | 0b1100).to_le_bytes());
        self.allow(at, &(!(size - 1) & !0xf).to_le_bytes());
        self
    }

    pub fn io_bar(mut self, index: usize, start: u32, size: u32) -> Self {
        let at = 0x10 + index * 4;
        self.set(at, &(start | 1).to_le_bytes());
        self.allow(at, &(!(size - 1) & !1).to_le_bytes());
        self
    }

    pub fn rom(mut self, start: u32, size: u32) -> Self {
        self.set(0x30, &start.to_le_bytes());
        self.allow(0x30, &(!(size - 1) | 1).to_le_bytes());
        self
    }

    /// Puts a capability at the end of the list.
    pub fn capability(mut self, at: u8, body: &[u8]) -> Self {
        self.config[0x06] |= 1 << 4;
        let link = self.last_capability.map_or(0x34, |last| usize::from(last) + 1);
        self.config[link] = at;
        self.set(at.into(), body);
        self.config[usize::from(at) + 1] = 0;
        self.last_capability = Some(at);
        self
    }

    /// A 64-bit MSI capability with masking and up to 2^n vectors.
    pub fn msi(self, at: u8, log2_vectors: u8) -> Self {
        let mut function = self.capability(at, &[0x05, 0, 0x80 | log2_vectors << 1, 1]);
        function.allow(usize::from(at) + 2, &[0x71]);
        function.allow(usize::from(at) + 4, &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        function.allow(usize::from(at) + 16, &[0xff, 0xff, 0xff, 0xff]);
        function
    }

    /// An MSI-X capability.
    pub fn msix(self, at: u8, entries: u16, table: (u8, u32), pending: (u8, u32)) -> Self {
        let mut body = std::vec![0x11, 0];
        body.extend((entries - 1).to_le_bytes());
        body.extend((table.1 | u32::from(table.0)).to_le_bytes());
        body.extend((pending.1 | u32::from(pending.0)).to_le_bytes());
        let mut function = self.capability(at, &body);
        function.allow(usize::from(at) + 3, &[0xc0]);
        function
    }
}

/// The bus, and the machine around it.
#[derive(Default)]
pub struct FakeBus {
    functions: RefCell<BTreeMap<Sbdf, FakeFunction>>,
    /// Device memory that was written, by address, a long each.
    pub memory: RefCell<BTreeMap<u64, u32>>,
    /// Where no device may be.
    pub ram: Vec<Range<u64>>,
    /// Configuration reads so far.
    pub reads: Cell<usize>,
    /// Every configuration write: function, register, value.
    pub writes: RefCell<Vec<(Sbdf, u16, u32)>>,
}

impl FakeBus {
    pub fn with(self, sbdf: Sbdf, function: FakeFunction) -> FakeBus {
        self.functions.borrow_mut().insert(sbdf, function);
        self
    }

    pub fn plug(&self, sbdf: Sbdf, function: FakeFunction) {
        self.functions.borrow_mut().insert(sbdf, function);
    }

    pub fn with_ram(mut self, ram: Range<u64>) -> FakeBus {
        self.ram.push(ram);
        self
    }

    /// Changes a function behind everyone's back, as a reset does.
    pub fn change(&self, sbdf: Sbdf, change: impl FnOnce(&mut FakeFunction)) {
        change(self.functions.borrow_mut().get_mut(&sbdf).expect("no such function"));
    }

    pub fn word(&self, sbdf: Sbdf, register: u16) -> u16 {
        self.read(sbdf, register, Width::Word) as u16
    }

    pub fn long(&self, sbdf: Sbdf, register: u16) -> u32 {
        self.read(sbdf, register, Width::Long)
    }
}

fn check_alignment(register: u16, width: Width) {
    assert!(width != Width::Quad, "configuration space has no quadwords");
    assert_eq!(register % u16::from(width.bytes()), 0, "{register:#x} is not aligned to {width:?}");
    assert!(register + u16::from(width.bytes()) <= 4096, "{register:#x} is beyond configuration space");
}

impl ConfigAccess for FakeBus {
    fn read(&self, sbdf: Sbdf, register: u16, width: Width) -> u32 {
        check_alignment(register, width);
        self.reads.set(self.reads.get() + 1);
        let functions = self.functions.borrow();
        let mut bytes = [0; 4];
        let n = usize::from(width.bytes());
        match functions.get(&sbdf) {
            Some(function) => bytes[..n].copy_from_slice(&function.config[usize::from(register)..][..n]),
            None => bytes[..n].fill(0xff),
        }
        u32::from_le_bytes(bytes)
    }

    fn write(&self, sbdf: Sbdf, register: u16, width: Width, value: u32) {
        check_alignment(register, width);
        self.writes.borrow_mut().push((sbdf, register, value));
        if let Some(function) = self.functions.borrow_mut().get_mut(&sbdf) {
            for (i, byte) in value.to_le_bytes().into_iter().take(width.bytes().into()).enumerate() {
                let at = usize::from(register) + i;
                let mask = function.writable[at];
                function.config[at] = function.config[at] & !mask | byte & mask;
            }
        }
    }
}

impl PciHost for FakeBus {
    fn is_device_memory(&self, first: Mfn, frames: u64) -> bool {
        let (start, end) = (first.0 << 12, (first.0 + frames) << 12);
        !self.ram.iter().any(|ram| start < ram.end && ram.start < end)
    }

    fn read_memory(&self, address: HostPhys, width: Width) -> u64 {
        assert_eq!(address.0 % u64::from(width.bytes()), 0);
        let long = |at: u64| u64::from(self.memory.borrow().get(&at).copied().unwrap_or(0));
        let at = address.0 & !3;
        let value = long(at) | long(at + 4) << 32;
        value >> ((address.0 & 3) * 8) & width.ones()
    }

    fn write_memory(&self, address: HostPhys, width: Width, value: u64) {
        assert_eq!(address.0 % u64::from(width.bytes()), 0);
        assert!(width >= Width::Long, "the fake's memory takes longs");
        self.memory.borrow_mut().insert(address.0, value as u32);
        if width == Width::Quad {
            self.memory.borrow_mut().insert(address.0 + 4, (value >> 32) as u32);
        }
    }
}
