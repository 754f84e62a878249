//! The screen: VGA text, or a framebuffer with an 8 by 16 font. Only written to; what it shows is kept here.

use alloc::vec::Vec;

use font8x8::legacy::BASIC_LEGACY;

use crate::info::Framebuffer;

/// Light grey on black.
const ATTRIBUTE: u16 = 0x07 << 8;
/// The pixels of a character: the font's are doubled downwards.
const GLYPH_WIDTH: usize = 8;
const GLYPH_HEIGHT: usize = 16;
/// More characters than this in a line or lines on a screen are of no use.
const MAX_COLUMNS: usize = 200;
const MAX_ROWS: usize = 80;

/// Where characters appear.
enum Surface {
    /// Cells of character and attribute.
    Text(*mut u16),
    Pixels {
        memory: *mut u8,
        format: Framebuffer,
    },
}

/// A terminal that knows lines and nothing else.
pub struct Screen {
    surface: Surface,
    columns: usize,
    rows: usize,
    /// What is shown, row by row.
    cells: Vec<u8>,
    row: usize,
    column: usize,
}

// SAFETY: the pointers are to memory of the screen's own, which only this value writes to.
unsafe impl Send for Screen {}

impl Screen {
    /// The text screen of a VGA, 80 by 25.
    ///
    /// # Safety
    /// `memory` is the text buffer, mapped for ever and nobody else's.
    pub unsafe fn text(memory: *mut u8) -> Option<Self> {
        Self::new(Surface::Text(memory.cast()), 80, 25)
    }

    /// A framebuffer; `None` if its format is not one of 32 (or 24) bits a pixel.
    ///
    /// # Safety
    /// `memory` is what `format` describes, mapped for ever and nobody else's.
    pub unsafe fn pixels(memory: *mut u8, format: Framebuffer) -> Option<Self> {
        if !matches!(format.bits_per_pixel, 24 | 32) {
            return None;
        }
        let columns = (format.width as usize / GLYPH_WIDTH).min(MAX_COLUMNS);
        let rows = (format.height as usize / GLYPH_HEIGHT).min(MAX_ROWS);
        Self::new(Surface::Pixels { memory, format }, columns, rows)
    }

    fn new(surface: Surface, columns: usize, rows: usize) -> Option<Self> {
        let mut cells = Vec::new();
        cells.try_reserve_exact(columns * rows).ok()?;
        cells.resize(columns * rows, b' ');
        (columns > 0 && rows > 1).then(|| {
            let mut screen = Self { surface, columns, rows, cells, row: 0, column: 0 };
            for index in 0..screen.cells.len() {
                screen.show(index);
            }
            screen
        })
    }

    /// Writes text; a line feed begins a new line.
    pub fn write(&mut self, text: &[u8]) {
        for &byte in text {
            match byte {
                b'\n' => self.new_line(),
                b'\r' => self.column = 0,
                b'\t' => self.column = (self.column + 8) & !7,
                _ => {
                    if self.column >= self.columns {
                        self.new_line();
                    }
                    self.put(self.row * self.columns + self.column, if byte < 0x20 { b'.' } else { byte & 0x7f });
                    self.column += 1;
                }
            }
        }
    }

    fn new_line(&mut self) {
        self.column = 0;
        self.row += 1;
        if self.row == self.rows {
            // Several lines at once: moving the picture is what costs.
            let lines = (self.rows / 4).max(1);
            let kept = (self.rows - lines) * self.columns;
            for index in 0..self.cells.len() {
                let byte = if index < kept { self.cells[index + lines * self.columns] } else { b' ' };
                self.put(index, byte);
            }
            self.row -= lines;
        }
    }

    fn put(&mut self, index: usize, byte: u8) {
        if self.cells[index] != byte {
            self.cells[index] = byte;
            self.show(index);
        }
    }

    fn show(&mut self, index: usize) {
        let byte = self.cells[index];
        match &self.surface {
            Surface::Text(memory) => {
                // SAFETY: within the 80 by 25 cells that the constructor was promised.
                unsafe { memory.add(index).write_volatile(u16::from(byte) | ATTRIBUTE) };
            }
            Surface::Pixels { memory, format } => {
                let bytes = usize::from(format.bits_per_pixel / 8);
                let (x, y) = (index % self.columns * GLYPH_WIDTH, index / self.columns * GLYPH_HEIGHT);
                let white = pixel(format);
                for line in 0..GLYPH_HEIGHT {
                    let bits = BASIC_LEGACY[usize::from(byte & 0x7f)][line / 2];
                    let at = (y + line) * format.pitch as usize + x * bytes;
                    for dot in 0..GLYPH_WIDTH {
                        let value = if bits >> dot & 1 != 0 { white } else { 0 };
                        let pixel = memory.wrapping_add(at + dot * bytes);
                        // SAFETY: a dot of a whole character, which lies in the framebuffer that the constructor was promised.
                        // Pixels of four bytes are written at once, where they are aligned.
                        unsafe {
                            if bytes == 4 && pixel.addr().is_multiple_of(4) {
                                pixel.cast::<u32>().write_volatile(value);
                            } else {
                                for (offset, byte) in value.to_le_bytes().into_iter().take(bytes).enumerate() {
                                    pixel.add(offset).write_volatile(byte);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The pixel of text: each colour at three quarters.
fn pixel(format: &Framebuffer) -> u32 {
    format.channels.iter().fold(0, |pixel, &(position, size)| {
        let full = (1u64 << size.min(32)) - 1;
        pixel | ((full * 3 / 4) << position.min(32)) as u32
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mm::HostPhys;

    fn text_screen() -> (Screen, *mut u16) {
        let memory = Box::leak(Box::new([0u16; 80 * 25])).as_mut_ptr();
        // SAFETY: leaked, and only read below.
        (unsafe { Screen::text(memory.cast()) }.expect("memory"), memory)
    }

    fn line(memory: *mut u16, row: usize) -> String {
        // SAFETY: within the leaked buffer.
        let cells = (0..80).map(|column| unsafe { memory.add(row * 80 + column).read_volatile() });
        cells.map(|cell| char::from(cell as u8)).collect::<String>().trim_end().into()
    }

    #[test]
    fn text_appears_line_by_line_and_wraps() {
        let (mut screen, memory) = text_screen();
        screen.write(b"one\ntwo\rT\n");
        screen.write(&[b'x'; 81]);
        assert_eq!((line(memory, 0).as_str(), line(memory, 1).as_str()), ("one", "Two"));
        assert_eq!((line(memory, 2).len(), line(memory, 3).as_str()), (80, "x"));
    }

    #[test]
    fn a_full_screen_scrolls_by_several_lines() {
        let (mut screen, memory) = text_screen();
        for number in 0..25 {
            screen.write(format!("line {number}\n").as_bytes());
        }
        assert_eq!(line(memory, 0), "line 6");
        assert_eq!(line(memory, 18), "line 24");
        assert_eq!(line(memory, 19), "");
        screen.write(b"next");
        assert_eq!(line(memory, 19), "next");
    }

    #[test]
    fn a_framebuffer_shows_glyphs_and_stays_in_bounds() {
        for bits_per_pixel in [24, 32] {
            let pitch = 40 * usize::from(bits_per_pixel / 8) + 8;
            let memory = Box::leak(vec![0xeeu8; pitch * 40].into_boxed_slice());
            let format = Framebuffer {
                at: HostPhys(0),
                pitch: pitch as u32,
                width: 40,
                height: 40,
                bits_per_pixel,
                channels: [(16, 8), (8, 8), (0, 8)],
            };
            let pointer = memory.as_mut_ptr();
            // SAFETY: the memory is as described, leaked, and only read below.
            let mut screen = unsafe { Screen::pixels(pointer, format) }.expect("a known format");
            assert_eq!((screen.columns, screen.rows), (5, 2));
            screen.write(b"\nI");
            // SAFETY: within the leaked buffer.
            let at = |x: usize, y: usize| unsafe {
                pointer.add(y * pitch + x * usize::from(bits_per_pixel / 8)).read_volatile()
            };
            let glyph: Vec<u8> = (0..8).map(|x| at(x, 16)).collect();
            assert_eq!(glyph, [0, 191, 191, 191, 191, 0, 0, 0]);
            assert_eq!(at(0, 0), 0, "cleared");
            assert_eq!(at(0, 32), 0xee, "below the last whole line");
        }
    }
}
