//! CRC-32 as gzip has it (RFC 1952, 8): eight bytes at a time, a table for each.

const REFLECTED_POLYNOMIAL: u32 = 0xedb8_8320;

/// `TABLES[n][b]` is what byte `b` comes to with `n` bytes of zeroes behind it.
static TABLES: [[u32; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut rest: &mut [[u32; 256]] = &mut tables;
    let mut bits = 8;
    while let Some((table, others)) = rest.split_first_mut() {
        let mut entries: &mut [u32] = table;
        let mut byte = 0;
        while let Some((entry, others)) = entries.split_first_mut() {
            let mut crc: u32 = byte;
            let mut bit = 0;
            while bit < bits {
                crc = if crc & 1 == 1 { crc >> 1 ^ REFLECTED_POLYNOMIAL } else { crc >> 1 };
                bit += 1;
            }
            *entry = crc;
            entries = others;
            byte += 1;
        }
        rest = others;
        bits += 8;
    }
    tables
};

/// The checksum of `bytes`.
pub fn checksum(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut crc = u32::MAX;
    for word in words {
        let word = u64::from_le_bytes(*word) ^ u64::from(crc);
        crc =
            word.to_le_bytes().iter().zip(TABLES.iter().rev()).fold(0, |crc, (byte, table)| crc ^ entry(table, *byte));
    }
    let [table, ..] = &TABLES;
    !rest.iter().fold(crc, |crc, byte| crc >> 8 ^ entry(table, crc as u8 ^ byte))
}

fn entry(table: &[u32; 256], byte: u8) -> u32 {
    table.get(usize::from(byte)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn the_known_checksums_come_out() {
        assert_eq!(checksum(b""), 0);
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
        assert_eq!(checksum(b"The quick brown fox jumps over the lazy dog"), 0x414f_a339);
    }
}
