//! The two buffers behind the console: what is to be sent, and what was said.

/// Bytes on their way out: first in, first out, and full when it is full.
#[derive(Debug, Default)]
pub struct Queue {
    buffer: &'static mut [u8],
    start: usize,
    len: usize,
}

impl Queue {
    pub fn new(buffer: &'static mut [u8]) -> Self {
        Self { buffer, start: 0, len: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that there is room for while it is empty.
    pub fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes that there is room for.
    pub fn room(&self) -> usize {
        self.buffer.len() - self.len
    }

    /// Appends as much as there is room for; returns how much that was.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        if count == 0 {
            return 0;
        }
        let capacity = self.buffer.len();
        let at = (self.start + self.len) % capacity;
        let first = count.min(capacity - at);
        self.buffer[at..at + first].copy_from_slice(&bytes[..first]);
        self.buffer[..count - first].copy_from_slice(&bytes[first..count]);
        self.len += count;
        count
    }

    /// The oldest bytes, as far as they lie side by side. Empty only if the queue is.
    pub fn front(&self) -> &[u8] {
        &self.buffer[self.start..(self.start + self.len).min(self.buffer.len())]
    }

    /// Removes the oldest bytes.
    pub fn consume(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len -= count;
        self.start = if self.len == 0 { 0 } else { (self.start + count) % self.buffer.len() };
    }

    /// Goes on in another buffer, which has to be large enough.
    pub fn move_to(&mut self, buffer: &'static mut [u8]) {
        let mut new = Self::new(buffer);
        while !self.is_empty() {
            let moved = new.push(self.front());
            if moved == 0 {
                break;
            }
            self.consume(moved);
        }
        *self = new;
    }
}

/// The text of Corten's messages, the oldest of which give way: what `xl dmesg` reads. Positions count all bytes ever written,
/// and wrap as XEN_SYSCTL_readconsole's do.
#[derive(Debug)]
pub struct History {
    buffer: &'static mut [u8],
    /// The position of the first byte that this buffer was given.
    first: u64,
    /// Bytes ever written.
    end: u64,
}

impl History {
    /// A history in a buffer whose length is a power of two.
    pub fn new(buffer: &'static mut [u8]) -> Self {
        assert!(buffer.len().is_power_of_two());
        Self { buffer, first: 0, end: 0 }
    }

    fn start(&self) -> u64 {
        self.end.saturating_sub(self.buffer.len() as u64).max(self.first)
    }

    pub fn push(&mut self, bytes: &[u8]) {
        let capacity = self.buffer.len();
        self.end += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(capacity)..];
        let at = (self.end as usize).wrapping_sub(bytes.len()) & (capacity - 1);
        let first = bytes.len().min(capacity - at);
        self.buffer[at..at + first].copy_from_slice(&bytes[..first]);
        self.buffer[..bytes.len() - first].copy_from_slice(&bytes[first..]);
    }

    /// Copies what was written from position `from` on, or from the oldest that is left; the bytes copied and the position
    /// behind them.
    pub fn read(&self, from: u32, into: &mut [u8]) -> (usize, u32) {
        let behind = u64::from((self.end as u32).wrapping_sub(from));
        let from = if behind > self.end { self.start() } else { (self.end - behind).max(self.start()) };
        let mut copied = 0;
        while copied < into.len() {
            let piece = self.piece(from + copied as u64);
            if piece.is_empty() {
                break;
            }
            let count = piece.len().min(into.len() - copied);
            into[copied..copied + count].copy_from_slice(&piece[..count]);
            copied += count;
        }
        (copied, (from + copied as u64) as u32)
    }

    /// What lies side by side from a position on; empty at the end.
    pub fn piece(&self, from: u64) -> &[u8] {
        let from = from.max(self.start());
        let at = from as usize & (self.buffer.len() - 1);
        let len = (self.end.saturating_sub(from)) as usize;
        &self.buffer[at..(at + len).min(self.buffer.len())]
    }

    /// The position of the oldest byte that is left.
    pub fn oldest(&self) -> u64 {
        self.start()
    }

    /// Goes on in another buffer, whose length is a power of two.
    pub fn move_to(&mut self, buffer: &'static mut [u8]) {
        let mut new = Self::new(buffer);
        new.first = self.start();
        new.end = new.first;
        while new.end < self.end {
            new.push(self.piece(new.end));
        }
        *self = new;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(len: usize) -> &'static mut [u8] {
        Box::leak(vec![0xee; len].into_boxed_slice())
    }

    #[test]
    fn a_queue_gives_bytes_back_in_order_across_its_end() {
        let mut queue = Queue::new(buffer(8));
        let mut out = Vec::new();
        for round in 0..10u8 {
            assert_eq!(queue.push(&[round, round + 100, round + 200]), 3);
            while !queue.is_empty() {
                let front = queue.front()[0];
                out.push(front);
                queue.consume(1);
            }
        }
        let want: Vec<u8> = (0..10).flat_map(|round| [round, round + 100, round + 200]).collect();
        assert_eq!(out, want);
    }

    #[test]
    fn a_full_queue_takes_no_more() {
        let mut queue = Queue::new(buffer(4));
        assert_eq!(queue.push(b"abc"), 3);
        queue.consume(2);
        assert_eq!(queue.push(b"defgh"), 3);
        assert_eq!((queue.room(), queue.push(b"x")), (0, 0));
        queue.move_to(buffer(16));
        assert_eq!(queue.front(), b"cdef");
        assert_eq!(Queue::default().push(b"x"), 0);
        assert_eq!(Queue::default().front(), b"");
    }

    fn all(history: &History, from: u32, step: usize) -> (Vec<u8>, u32) {
        let (mut out, mut at) = (Vec::new(), from);
        loop {
            let mut piece = vec![0; step];
            let (got, next) = history.read(at, &mut piece);
            if got == 0 {
                return (out, at);
            }
            out.extend(&piece[..got]);
            at = next;
        }
    }

    #[test]
    fn a_history_keeps_the_newest_bytes() {
        let mut history = History::new(buffer(8));
        history.push(b"hello");
        assert_eq!(all(&history, 0, 3), (b"hello".to_vec(), 5));
        assert_eq!(all(&history, 3, 8), (b"lo".to_vec(), 5));
        history.push(b" world");
        assert_eq!(all(&history, 0, 3), (b"lo world".to_vec(), 11));
        assert_eq!(all(&history, 9, 3), (b"ld".to_vec(), 11));
        assert_eq!(all(&history, 11, 3), (vec![], 11));
        history.push(b"more than eight bytes");
        assert_eq!(all(&history, 0, 100).0, b"ht bytes");
    }

    #[test]
    fn a_position_that_was_never_reached_reads_as_the_oldest() {
        let mut history = History::new(buffer(8));
        history.push(b"0123456789");
        assert_eq!(all(&history, 4000, 8).0, b"23456789");
    }

    #[test]
    fn positions_wrap_at_32_bits() {
        let mut history = History::new(buffer(8));
        history.end = (1 << 32) - 3;
        history.first = history.end;
        history.push(b"abcdef");
        assert_eq!(all(&history, u32::MAX - 2, 4), (b"abcdef".to_vec(), 3));
    }

    #[test]
    fn a_history_moves_with_its_positions() {
        let mut history = History::new(buffer(4));
        history.push(b"abcdefg");
        history.move_to(buffer(16));
        assert_eq!(all(&history, 0, 16), (b"defg".to_vec(), 7));
        history.push(b"hi");
        assert_eq!(all(&history, 0, 16), (b"defghi".to_vec(), 9));
    }
}
