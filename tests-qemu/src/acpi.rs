//! The few things that guests take from the ACPI tables.

use crate::start;

fn at<T: Copy>(address: u64) -> T {
    // SAFETY: tables lie below 4 GiB, which is mapped; nothing writes them.
    unsafe { (address as *const T).read_unaligned() }
}

/// The address of a table by its signature; none where there are no tables at all.
pub fn table(signature: &[u8; 4]) -> Option<u64> {
    let rsdp = start::start_info().rsdp_paddr;
    if rsdp == 0 {
        return None;
    }
    let xsdt: u64 = at(rsdp + 24);
    let entries = (u64::from(at::<u32>(xsdt + 4)) - 36) / 8;
    (0..entries).map(|index| at::<u64>(xsdt + 36 + index * 8)).find(|table| at::<[u8; 4]>(*table) == *signature)
}

/// The length of a table.
pub fn length(table: u64) -> u64 {
    at::<u32>(table + 4).into()
}

/// The sum of all bytes of a table: 0 in a valid one.
pub fn checksum(table: u64) -> u8 {
    (0..length(table)).map(|offset| at::<u8>(table + offset)).fold(0, u8::wrapping_add)
}

/// An entry of the MADT: type, address. Lengths that would not move on end the list.
pub fn madt_entries(mut visit: impl FnMut(u8, u64)) {
    let Some(madt) = table(b"APIC") else { return };
    let mut entry = madt + 44;
    while entry < madt + length(madt) {
        let size: u8 = at(entry + 1);
        visit(at(entry), entry);
        if size == 0 {
            return;
        }
        entry += u64::from(size);
    }
}

/// A byte, word or double word of a table.
pub fn field<T: Copy>(address: u64) -> T {
    at(address)
}

/// The port of the PM1a control register, from the FADT.
pub fn pm1a_control() -> Option<u16> {
    table(b"FACP").map(|fadt| at::<u32>(fadt + 64) as u16)
}
