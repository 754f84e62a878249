//! The loader's strings, copied out of its memory before that is gone: room for them that lasts for ever, without a heap.

/// Bytes for all strings together. Linux takes command lines of 2 KiB.
pub const ROOM: usize = 32 << 10;

/// What room is left.
#[derive(Debug)]
pub struct Strings {
    rest: &'static mut [u8],
}

impl Strings {
    pub fn new(room: &'static mut [u8]) -> Self {
        Self { rest: room }
    }

    /// Keeps what is left of `text` up to a NUL, to the first byte that is not UTF-8, or to the end of the room.
    pub fn keep(&mut self, text: &[u8]) -> &'static str {
        let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
        let text = text.get(..self.rest.len()).unwrap_or(text);
        let valid = match core::str::from_utf8(text) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        let (kept, rest) = core::mem::take(&mut self.rest).split_at_mut(valid);
        self.rest = rest;
        kept.copy_from_slice(&text[..valid]);
        core::str::from_utf8(kept).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_end_at_nul_at_garbage_and_at_the_end_of_the_room() {
        let mut strings = Strings::new(Box::leak(Box::new([0; 10])));
        assert_eq!(strings.keep(b"ab\0cd"), "ab");
        assert_eq!(strings.keep(b"x\xffy"), "x");
        assert_eq!(strings.keep(b""), "");
        assert_eq!(strings.keep("123456\u{e9}".as_bytes()), "123456");
        assert_eq!(strings.keep(b"789"), "7");
        assert_eq!(strings.keep(b"0"), "");
    }
}
