//! What domains write to their consoles: Dom0's text goes out as it is, any other domain's line by line under its name, and no faster than
//! the machine can bear.

use arrayvec::ArrayVec;
use mm::lock::{Lock, Rank};
use sched::Nanos;

use crate::domain::Domain;
use crate::machine::Machine;

/// Longer lines are cut into several.
const LONGEST: usize = 200;
/// Bytes that a domain may write at once: what a kernel says while it boots.
const BURST: u64 = 48 << 10;
/// Bytes a second that it may go on with; serial ports carry three times as much.
const RATE: u64 = 4 << 10;

type Text = ArrayVec<u8, LONGEST>;

/// What an ordinary domain has begun to write.
pub struct DebugConsole(Lock<Begun>);

impl Default for DebugConsole {
    fn default() -> Self {
        DebugConsole(Lock::new(Rank::Console, Begun::default()))
    }
}

#[derive(Debug, Default)]
struct Begun {
    text: Text,
    /// Bytes that may be written, and when that was so.
    allowance: Allowance,
    /// Bytes that went nowhere since the last line that went out.
    dropped: u64,
}

#[derive(Clone, Copy, Debug)]
struct Allowance {
    bytes: u64,
    at: Nanos,
}

impl Default for Allowance {
    fn default() -> Self {
        Allowance { bytes: BURST, at: Nanos::ZERO }
    }
}

impl Allowance {
    /// Whether so many bytes may go out now.
    fn draw(&mut self, bytes: u64, now: Nanos) -> bool {
        const SECOND: u64 = 1_000_000_000;
        let elapsed = now.0.saturating_sub(self.at.0);
        let more = elapsed.saturating_mul(RATE).checked_div(SECOND).unwrap_or(0);
        if more > 0 {
            *self = Allowance { bytes: self.bytes.saturating_add(more).min(BURST), at: now };
        }
        let left = self.bytes.checked_sub(bytes);
        self.bytes = left.unwrap_or(self.bytes);
        left.is_some()
    }
}

/// A line that is complete, and the bytes that were dropped before it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Line {
    text: Text,
    dropped: u64,
}

impl Begun {
    /// Takes text up to the end of a line: the bytes taken, and the line if it may go out.
    fn take(&mut self, text: &[u8], now: Nanos) -> (usize, Option<Line>) {
        for (index, byte) in text.iter().enumerate() {
            match byte {
                b'\n' => return (index.saturating_add(1), self.finish(now)),
                b'\r' => {}
                _ if self.text.is_full() => return (index, self.finish(now)),
                // Nothing that a terminal takes for a command.
                _ => self.text.push(if matches!(byte, b'\t' | b' '..=b'~') { *byte } else { b'?' }),
            }
        }
        (text.len(), None)
    }

    fn finish(&mut self, now: Nanos) -> Option<Line> {
        let text = self.text.take();
        let length = (text.len() as u64).saturating_add(1);
        if !self.allowance.draw(length, now) {
            self.dropped = self.dropped.saturating_add(length);
            return None;
        }
        Some(Line { text, dropped: core::mem::take(&mut self.dropped) })
    }
}

/// A domain writes to its console, by hypercall or by port.
pub fn write<M: Machine>(machine: &M, domain: &Domain<M>, text: &[u8]) {
    if domain.is_control() {
        machine.console_write(domain, text);
        return;
    }
    let mut rest = text;
    while !rest.is_empty() {
        let (taken, line) = domain.console.0.lock().take(rest, machine.now());
        if let Some(line) = line {
            say(machine, domain, &line);
        }
        rest = rest.get(taken..).unwrap_or_default();
    }
}

/// The domain has stopped: what it has begun to write is all that there will be.
pub fn finish<M: Machine>(machine: &M, domain: &Domain<M>) {
    let mut begun = domain.console.0.lock();
    let line = if begun.text.is_empty() && begun.dropped == 0 { None } else { begun.finish(machine.now()) };
    drop(begun);
    if let Some(line) = line {
        say(machine, domain, &line);
    }
}

fn say<M: Machine>(machine: &M, domain: &Domain<M>, line: &Line) {
    if line.dropped != 0 {
        machine.console_line(domain, format_args!("[{} bytes dropped: it writes too much]", line.dropped));
    }
    machine.console_line(domain, format_args!("{}", core::str::from_utf8(&line.text).unwrap_or_default()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    const SECOND: u64 = 1_000_000_000;

    /// What a domain that writes `pieces` shows.
    fn shown(pieces: &[&[u8]]) -> Vec<String> {
        let system = fake::system(64);
        let domain = fake::add_domain(system, 5, 4);
        pieces.iter().for_each(|piece| write(&system.machine, &domain, piece));
        finish(&system.machine, &domain);
        core::mem::take(&mut system.machine.lines.lock().unwrap())
    }

    #[test]
    fn lines_are_whole_however_they_come() {
        assert_eq!(shown(&[b"one\ntw", b"o", b"\r\nthr", b"ee"]), ["one", "two", "three"]);
        assert_eq!(shown(&[b"\n", b""]), [""]);
        let long = "x".repeat(LONGEST + 3);
        assert_eq!(shown(&[long.as_bytes(), b"\n"]), ["x".repeat(LONGEST), "xxx".into()]);
        let exact = "y".repeat(LONGEST) + "\nz\n";
        assert_eq!(shown(&[exact.as_bytes()]), ["y".repeat(LONGEST), "z".into()]);
    }

    #[test]
    fn a_terminal_takes_nothing_in_a_line_for_a_command() {
        assert_eq!(shown(&[b"\x1b[2J\ta\x9b\xc3\xa4\x00\n"]), ["?[2J\ta????"]);
    }

    #[test]
    fn who_writes_too_much_is_cut_short_and_it_is_said() {
        let system = fake::system(64);
        let domain = fake::add_domain(system, 5, 4);
        let line = b"0123456789abcde\n";
        for _ in 0..BURST / 16 + 100 {
            write(&system.machine, &domain, line);
        }
        assert_eq!(system.machine.lines.lock().unwrap().len() as u64, BURST / 16);
        system.machine.now.fetch_add(SECOND / 2, core::sync::atomic::Ordering::Relaxed);
        for _ in 0..1000 {
            write(&system.machine, &domain, line);
        }
        let lines = system.machine.lines.lock().unwrap();
        assert_eq!(lines.len() as u64, BURST / 16 + RATE / 32 + 1);
        assert_eq!(lines[BURST as usize / 16], "[1600 bytes dropped: it writes too much]");
    }

    #[test]
    fn dom0s_text_goes_out_as_it_is() {
        let system = fake::system(64);
        let dom0 = fake::add_domain(system, 0, 4);
        write(&system.machine, &dom0, b"\x1b[1m no end");
        assert_eq!(*system.machine.written.lock().unwrap(), b"\x1b[1m no end");
        assert!(system.machine.lines.lock().unwrap().is_empty());
    }
}
