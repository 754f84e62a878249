//! Gives the image the names of its functions, for backtraces: fills the area that boot/src/symbols.rs keeps free and describes.

use anyhow::{Context, Result, bail, ensure};
use elf::ElfBytes;
use elf::abi::{PT_LOAD, SHF_EXECINSTR, STT_FUNC, STT_NOTYPE};
use elf::endian::LittleEndian;
use std::ops::Range;
use std::path::Path;

const MAGIC: &[u8; 8] = b"CORTNSYM";
const VERSION: u32 = 1;
/// Where the counts begin in the area.
const COUNTS: usize = 16;

/// Writes the symbols of the ELF file into its own area, in place. Before it is stripped.
pub fn embed(elf_path: &Path) -> Result<()> {
    let mut file = std::fs::read(elf_path).with_context(|| format!("cannot read {}", elf_path.display()))?;
    let (area, symbols) = read(&file).with_context(|| format!("{}", elf_path.display()))?;
    let place = file.get_mut(area).context("the area is beyond the end of the file")?;
    ensure!(place.starts_with(MAGIC), "the section .symbols does not begin with its magic");
    ensure!(place[8..12] == VERSION.to_le_bytes(), "the section .symbols is of another version");
    let room = place.len() - COUNTS;
    // Where the names do not all fit, long ones are cut rather than short ones lost.
    let Some(table) = [160, 120, 90, 60, 40].iter().map(|&len| encode(&symbols, len)).find(|t| t.len() <= room) else {
        bail!("{} symbols do not fit into {room} bytes; raise SIZE in boot/src/symbols.rs", symbols.len());
    };
    place[COUNTS..COUNTS + table.len()].copy_from_slice(&table);
    place[COUNTS + table.len()..].fill(0);
    std::fs::write(elf_path, file).with_context(|| format!("cannot write {}", elf_path.display()))
}

/// Functions by their offset from the image's start.
type Symbols = Vec<(u32, String)>;

/// Where the area is in the file, and the symbols by their offset from the image's start.
fn read(file: &[u8]) -> Result<(Range<usize>, Symbols)> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file).context("not an ELF file")?;
    let section = elf.section_header_by_name(".symbols")?.context("there is no section .symbols")?;
    let start = usize::try_from(section.sh_offset)?;
    let area = start..start + usize::try_from(section.sh_size)?;

    let segments = elf.segments().context("no program headers")?;
    let image = segments.iter().filter(|s| s.p_type == PT_LOAD).map(|s| s.p_vaddr).min().context("nothing to load")?;
    let sections = elf.section_headers().context("no section headers")?;
    let (table, names) = elf.symbol_table()?.context("no symbol table: the file is stripped")?;
    let mut symbols = Vec::new();
    for symbol in table.iter().filter(|symbol| matches!(symbol.st_symtype(), STT_FUNC | STT_NOTYPE)) {
        // The reserved numbers (absolute symbols and the like) are no sections.
        let Ok(section) = sections.get(symbol.st_shndx.into()) else { continue };
        let name = names.get(symbol.st_name as usize)?;
        if section.sh_flags & u64::from(SHF_EXECINSTR) == 0 || name.is_empty() || name.starts_with(".L") {
            continue;
        }
        symbols.push((u32::try_from(symbol.st_value - image)?, plain(name)));
    }
    symbols.sort();
    symbols.dedup_by_key(|(offset, _)| *offset);
    Ok((area, symbols))
}

/// The name as it was written, without the compiler's hashes.
fn plain(name: &str) -> String {
    // Local copies of a function carry a suffix of LLVM's.
    let name = name.split(".llvm.").next().unwrap_or(name);
    format!("{:#}", rustc_demangle::demangle(name))
}

/// The counts, the table and the names, each name cut to `longest` bytes.
fn encode(symbols: &[(u32, String)], longest: usize) -> Vec<u8> {
    let (mut table, mut names) = (Vec::new(), Vec::new());
    for (offset, name) in symbols {
        let name = &name[..name.floor_char_boundary(longest.min(255))];
        table.extend(offset.to_le_bytes());
        table.extend((names.len() as u32).to_le_bytes());
        names.push(name.len() as u8);
        names.extend(name.bytes());
    }
    let mut all = Vec::new();
    all.extend((symbols.len() as u32).to_le_bytes());
    all.extend((names.len() as u32).to_le_bytes());
    all.extend(table);
    all.extend(names);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_hashes() {
        assert_eq!(plain("_ZN8arch_x863vmx4load17h0123456789abcdefE"), "arch_x86::vmx::load");
        assert_eq!(plain("_ZN4boot4main17h0123456789abcdefE.llvm.1234567"), "boot::main");
        assert_eq!(plain("start_multiboot2"), "start_multiboot2");
    }

    #[test]
    fn the_table_is_offsets_and_names_with_their_length() {
        let symbols = [(0x10, "ab".to_string()), (0x1000, "c\u{e9}d".to_string())];
        let table = encode(&symbols, 2);
        let words: Vec<u32> =
            table[..24].chunks(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect();
        assert_eq!(words, [2, 5, 0x10, 0, 0x1000, 3]);
        assert_eq!(&table[24..], b"\x02ab\x01c");
    }
}
