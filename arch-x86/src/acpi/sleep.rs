//! How the machine sleeps. The sleep type that switches it off comes out of AML: `Name (\_S5_, Package () { a, b, … })` (ACPI 6.5, 7.4.2 and 20.2.5.4).
//!
//! No AML is interpreted. The object is a constant in every firmware that Corten has met, and is found by its bytes; where it is
//! not, there is none.

use mm::HostPhys;

use super::table::{HEADER, Signature, Table, field};
use super::{Fadt, PhysRead, Problems, Tables};

const NAME: u8 = 0x08;
const ROOT: u8 = b'\\';
const PACKAGE: u8 = 0x12;
const S5: &[u8; 4] = b"_S5_";

/// The values that go into SLP_TYP of PM1a's and of PM1b's control register: 3 bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepType {
    pub pm1a: u8,
    pub pm1b: u8,
}

impl SleepType {
    /// What means S5 on this machine, out of the DSDT or else one of the SSDTs. What is wrong with them is added to `problems`.
    pub fn soft_off(
        memory: &impl PhysRead,
        tables: &Tables,
        fadt: &Fadt,
        problems: &mut Problems,
    ) -> Option<SleepType> {
        let dsdt = (fadt.dsdt != 0).then_some(HostPhys(fadt.dsdt));
        let ssdts = tables.list.iter().filter(|table| table.signature == Signature::SSDT).map(|table| table.at);
        dsdt.into_iter().chain(ssdts).find_map(|at| {
            let table = Table::read(memory, at).map_err(|problem| problems.add(problem)).ok()?;
            SleepType::find(table.bytes().get(HEADER..)?)
        })
    }

    fn find(aml: &[u8]) -> Option<SleepType> {
        let names = aml.windows(S5.len()).enumerate().filter(|(_, name)| name == S5);
        names.filter(|(at, _)| is_declared(aml, *at)).find_map(|(at, _)| {
            let object = aml.get(at.checked_add(S5.len())?..)?;
            SleepType::parse(object)
        })
    }

    /// Reads the package that `object` begins with.
    fn parse(object: &[u8]) -> Option<SleepType> {
        let (&PACKAGE, rest) = object.split_first()? else { return None };
        let mut elements = Elements { bytes: package(rest)? };
        let count = elements.byte()?;
        let first = elements.integer()?;
        let (a, b) = match count {
            0 => return None,
            // Some firmware has both in one number, as ACPICA knows.
            1 => (first & 0xff, first >> 8),
            _ => (first, elements.integer()?),
        };
        let three_bits = |value: u32| u8::try_from(value).ok().filter(|value| *value < 8);
        Some(SleepType { pm1a: three_bits(a)?, pm1b: three_bits(b)? })
    }
}

/// Whether the name at `at` is that of a NameOp, be it by itself or from the root.
fn is_declared(aml: &[u8], at: usize) -> bool {
    let before = |bytes: usize| at.checked_sub(bytes).and_then(|at| aml.get(at).copied());
    before(1) == Some(NAME) || before(1) == Some(ROOT) && before(2) == Some(NAME)
}

/// The content of a package whose PkgLength (20.2.4) `bytes` begin with; it must be whole.
fn package(bytes: &[u8]) -> Option<&[u8]> {
    let lead = *bytes.first()?;
    let following = usize::from(lead >> 6);
    let length = if following == 0 {
        usize::from(lead & 0x3f)
    } else {
        // The lead byte has the low 4 bits.
        let more = bytes.get(1..=following)?;
        more.iter().rev().fold(0usize, |length, byte| length << 8 | usize::from(*byte)) << 4 | usize::from(lead & 0xf)
    };
    // The length counts its own bytes.
    bytes.get(..length)?.get(following.checked_add(1)?..)
}

/// What is left of a package.
struct Elements<'a> {
    bytes: &'a [u8],
}

impl Elements<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let value = field(self.bytes, 0)?;
        self.bytes = self.bytes.get(N..)?;
        Some(value)
    }

    /// A constant; `None` for anything that would have to be evaluated.
    fn integer(&mut self) -> Option<u32> {
        match self.byte()? {
            value @ (0 | 1) => Some(value.into()),
            0x0a => self.byte().map(u32::from),
            0x0b => self.take().map(u16::from_le_bytes).map(u32::from),
            0x0c => self.take().map(u32::from_le_bytes),
            _ => None,
        }
    }
}

/// Whether the FACS at `facs` (5.2.10) says where firmware is to jump to after a sleep: the operating system writes that before it
/// suspends. False for what is no FACS.
pub fn has_waking_vector(memory: &impl PhysRead, facs: HostPhys) -> bool {
    let mut bytes = [0; 32];
    if memory.read(facs, &mut bytes).is_err() || !bytes.starts_with(b"FACS") {
        return false;
    }
    let length = field(&bytes, 4).map_or(0, u32::from_le_bytes);
    let vector = field(&bytes, 12).map_or(0, u32::from_le_bytes);
    let wide_vector = field(&bytes, 24).map_or(0, u64::from_le_bytes);
    // The wide one came with ACPI 2.0.
    vector != 0 || length as usize >= bytes.len() && wide_vector != 0
}

#[cfg(test)]
mod tests {
    use super::super::RootPointer;
    use super::super::sample::{Memory, table};
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn both(pm1a: u8, pm1b: u8) -> Option<SleepType> {
        Some(SleepType { pm1a, pm1b })
    }

    fn find(object: &[u8]) -> Option<SleepType> {
        // Other names of the kind around it.
        let aml = [b"\x08_S3_\x12\x06\x04\x0a\x05\x00\x00\x00", object, b"\x08_S4_\x12\x06\x04\x0a\x06\x00\x00\x00"];
        SleepType::find(&aml.concat())
    }

    #[test]
    fn both_types_are_found_in_every_encoding() {
        assert_eq!(find(b"\x08_S5_\x12\x06\x04\x00\x00\x00\x00"), both(0, 0));
        assert_eq!(find(b"\x08_S5_\x12\x07\x04\x0a\x07\x00\x00\x00"), both(7, 0));
        assert_eq!(find(b"\x08\\_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00"), both(5, 5), "from the root");
        assert_eq!(find(b"\x08_S5_\x12\x08\x04\x01\x0b\x06\x00\x00\x00"), both(1, 6));
        assert_eq!(
            find(b"\x08_S5_\x12\x4a\x00\x04\x0c\x03\x00\x00\x00\x01\x00"),
            both(3, 1),
            "a PkgLength of two bytes"
        );
        assert_eq!(find(b"\x08_S5_\x12\x05\x01\x0b\x07\x05"), both(7, 5), "both in one number");
    }

    #[test]
    fn what_is_no_constant_or_not_whole_is_none() {
        let none: [&[u8]; 12] = [
            b"",
            b"_S5_\x12\x06\x04\x00\x00\x00\x00",         // a mention, no declaration
            b"\x08_S5_\x0a\x05",                         // an integer
            b"\x08_S5_\x12\x0b\x02SLPA\x00",             // a name to be evaluated
            b"\x08_S5_\x12\x02\x00",                     // empty
            b"\x08_S5_\x12\x02\x02\x00\x00",             // longer than its package
            b"\x08_S5_\x12\x04\x02\x0a\x05",             // one of two
            b"\x08_S5_\x12\x06\x04\x0a\x08\x00\x00",     // 4 bits
            b"\x08_S5_\x12\x07\x04\x0b\x05\x01\x00\x00", // 9 bits
            b"\x08_S5_\x12\xff\xff\xff\xff\x04\x00\x00", // longer than the table
            b"\x08_S5_\x12\x00\x04\x00\x00",             // shorter than its own length
            b"\x08_S5_\x12\x06\x04\xff\x00\x00\x00",     // Ones
        ];
        for object in none {
            assert_eq!(find(object), None, "{object:x?}");
        }
        for whole in 0..11 {
            assert_eq!(SleepType::find(&b"\x08_S5_\x12\x08\x04\x0a\x05\x0a\x05"[..whole]), None);
        }
    }

    #[test]
    fn a_later_declaration_serves_where_the_first_does_not() {
        assert_eq!(find(b"\x08_S5_\x70\x08_S5_\x12\x07\x04\x0a\x07\x00\x00\x00"), both(7, 0));
    }

    fn machine(dsdt: Vec<u8>, ssdts: [&[u8]; 2]) -> (Option<SleepType>, usize) {
        let mut memory = Memory::new();
        let dsdt = memory.place(0x4000, &dsdt);
        let mut fadt = alloc::vec![0; 80];
        fadt[4..8].copy_from_slice(&(dsdt as u32).to_le_bytes());
        let fadt = memory.place(0x2000, &table(b"FACP", &fadt));
        let first = memory.place(0x5000, &table(b"SSDT", ssdts[0]));
        let second = memory.place(0x6000, &table(b"SSDT", ssdts[1]));
        let list: Vec<u8> = [fadt, first, second].iter().flat_map(|at| at.to_le_bytes()).collect();
        let xsdt = memory.place(0x1000, &table(b"XSDT", &list));
        let tables = Tables::find(&memory, RootPointer { xsdt, rsdt: 0 }).unwrap();
        let fadt = Fadt::parse(&tables.read(&memory, Signature::FADT).unwrap()).unwrap();
        let mut problems = Problems::default();
        let found = SleepType::soft_off(&memory, &tables, &fadt, &mut problems);
        (found, problems.iter().count())
    }

    #[test]
    fn the_dsdt_counts_before_the_ssdts() {
        let (seven, five) = (b"\x08_S5_\x12\x07\x04\x0a\x07\x00\x00\x00", b"\x08_S5_\x12\x07\x04\x0a\x05\x00\x00\x00");
        let dsdt = |aml: &[u8]| table(b"DSDT", aml);
        assert_eq!(machine(dsdt(seven), [five, b""]), (both(7, 0), 0));
        assert_eq!(machine(dsdt(b""), [b"", five]), (both(5, 0), 0));
        assert_eq!(machine(dsdt(b""), [b"", b""]), (None, 0));
        let mut broken = dsdt(seven);
        broken[12] ^= 1;
        assert_eq!(machine(broken, [b"", five]), (both(5, 0), 1), "its checksum is bad, and that is told");
    }

    proptest! {
        #[test]
        fn no_aml_can_panic_the_search(
            before in proptest::collection::vec(any::<u8>(), 0..8),
            after in proptest::collection::vec(any::<u8>(), 0..24),
        ) {
            let _ = SleepType::find(&[before.as_slice(), b"\x08_S5_\x12", &after].concat());
        }
    }
}
