//! What is typed at the serial console: for Dom0, or for Corten after Ctrl-A three times.

use arrayvec::ArrayVec;

/// Bytes that wait for Dom0 at most. What is typed beyond is lost, as on any terminal.
const ROOM: usize = 256;
const CTRL_A: u8 = 1;
/// So often in a row it changes who is typed to.
const SWITCH: u8 = 3;

#[derive(Debug, Default)]
pub struct Input {
    waiting: ArrayVec<u8, ROOM>,
    in_a_row: u8,
    to_corten: bool,
}

/// What to do about a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Dom0 will read it.
    ForDom0,
    /// A debug key.
    ForCorten(u8),
    /// The keyboard is now Corten's (true) or Dom0's.
    Switched(bool),
}

impl Input {
    pub const fn new() -> Self {
        Self { waiting: ArrayVec::new_const(), in_a_row: 0, to_corten: false }
    }

    pub fn typed(&mut self, byte: u8) -> Typed {
        if byte == CTRL_A {
            self.in_a_row += 1;
            if self.in_a_row == SWITCH {
                self.in_a_row = 0;
                self.to_corten = !self.to_corten;
                return Typed::Switched(self.to_corten);
            }
        } else {
            self.in_a_row = 0;
        }
        if self.to_corten {
            return Typed::ForCorten(byte);
        }
        let _ = self.waiting.try_push(byte);
        Typed::ForDom0
    }

    /// Takes bytes for Dom0.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.waiting.len());
        for (to, from) in into.iter_mut().zip(self.waiting.drain(..count)) {
            *to = from;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dom0_reads_what_is_typed_in_order() {
        let mut input = Input::new();
        for byte in *b"abc" {
            assert_eq!(input.typed(byte), Typed::ForDom0);
        }
        let mut out = [0; 2];
        assert_eq!((input.read(&mut out), out), (2, *b"ab"));
        assert_eq!((input.read(&mut out), out[0]), (1, b'c'));
        assert_eq!(input.read(&mut out), 0);
    }

    #[test]
    fn ctrl_a_three_times_changes_sides_and_anything_between_does_not() {
        let mut input = Input::new();
        let mut type_all = |text: &[u8]| text.iter().fold(None, |_, &byte| Some(input.typed(byte)));
        assert_eq!(type_all(b"\x01\x01x\x01"), Some(Typed::ForDom0));
        assert_eq!(type_all(b"x\x01\x01\x01"), Some(Typed::Switched(true)));
        assert_eq!(type_all(b"r"), Some(Typed::ForCorten(b'r')));
        assert_eq!(type_all(b"\x01\x01\x01"), Some(Typed::Switched(false)));
        assert_eq!(type_all(b"r"), Some(Typed::ForDom0));
    }

    #[test]
    fn too_much_input_is_dropped() {
        let mut input = Input::new();
        for _ in 0..1000 {
            input.typed(b'x');
        }
        assert_eq!(input.read(&mut [0; 1000]), ROOM);
    }
}
