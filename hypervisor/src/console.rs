//! What domains write to their consoles: Dom0's text goes out as it is, any other domain's line by line under its name, and no faster than
//! the machine can bear. Nobody waits for another domain's lines: those for which there is no room are left out.

use arrayvec::ArrayVec;
use mm::lock::{Lock, Rank};
use sched::Nanos;

use crate::domain::Domain;
use crate::machine::Machine;

/// Longer lines are cut into several.
const LONGEST: usize = 200;
/// Bytes of a domain's that may go out at once: what a kernel says while it boots. All that goes out counts, also what is put around a line.
const BURST: u64 = 48 << 10;
/// Bytes a second that it may go on with; serial ports carry three times as much.
const RATE: u64 = 4 << 10;
/// Lines that are taken at once.
const LINES: usize = 16;
/// What stands around a line: "(", the domain's name, ") ", and the end of the line.
const AROUND: usize = 5;
/// What is said about lines that were left out takes no more.
const NOTE: usize = "[18446744073709551615 bytes dropped: more than the console takes]".len();

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
    /// Bytes that may go out, and when that was so.
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

impl Line {
    /// The bytes that the domain wrote.
    fn written(&self) -> u64 {
        (self.text.len() as u64).saturating_add(1)
    }

    /// The bytes that go out for a domain with such a name.
    fn emitted(&self, name: &str) -> u64 {
        let around = name.len().saturating_add(AROUND);
        let note = if self.dropped == 0 { 0 } else { around.saturating_add(NOTE) };
        self.text.len().saturating_add(around).saturating_add(note) as u64
    }
}

impl Begun {
    /// Takes text up to the end of a line: the bytes taken, and the line if it may go out. `name` is the domain's.
    fn take(&mut self, text: &[u8], name: &str, now: Nanos) -> (usize, Option<Line>) {
        for (index, byte) in text.iter().enumerate() {
            match byte {
                b'\n' => return (index.saturating_add(1), self.finish(name, now)),
                b'\r' => {}
                _ if self.text.is_full() => return (index, self.finish(name, now)),
                // Nothing that a terminal takes for a command.
                _ => self.text.push(if matches!(byte, b'\t' | b' '..=b'~') { *byte } else { b'?' }),
            }
        }
        (text.len(), None)
    }

    fn finish(&mut self, name: &str, now: Nanos) -> Option<Line> {
        let line = Line { text: self.text.take(), dropped: core::mem::take(&mut self.dropped) };
        if !self.allowance.draw(line.emitted(name), now) {
            self.leave_out(line.dropped.saturating_add(line.written()));
            return None;
        }
        Some(line)
    }

    /// So many bytes go nowhere.
    fn leave_out(&mut self, bytes: u64) {
        self.dropped = self.dropped.saturating_add(bytes);
    }
}

/// A domain writes to its console, by hypercall or by port. How many bytes were taken; whoever has more goes on with them later, after others
/// had their turn.
pub fn write<M: Machine>(machine: &M, domain: &Domain<M>, text: &[u8]) -> usize {
    if domain.is_control() {
        return machine.console_write(domain, text);
    }
    let mut done = 0usize;
    for _ in 0..LINES {
        let rest = text.get(done..).unwrap_or_default();
        if rest.is_empty() {
            break;
        }
        let (taken, line) = domain.console.0.lock().take(rest, &domain.name, machine.now());
        if let Some(line) = line {
            say(machine, domain, &line);
        }
        done = done.saturating_add(taken);
    }
    done
}

/// The domain has stopped: what it has begun to write is all that there will be.
pub fn finish<M: Machine>(machine: &M, domain: &Domain<M>) {
    let mut begun = domain.console.0.lock();
    let line =
        if begun.text.is_empty() && begun.dropped == 0 { None } else { begun.finish(&domain.name, machine.now()) };
    drop(begun);
    if let Some(line) = line {
        say(machine, domain, &line);
    }
}

fn say<M: Machine>(machine: &M, domain: &Domain<M>, line: &Line) {
    let Line { text, dropped } = line;
    let text = core::str::from_utf8(text).unwrap_or_default();
    let lost = if *dropped != 0
        && !machine.console_line(domain, format_args!("[{dropped} bytes dropped: more than the console takes]"))
    {
        dropped.saturating_add(line.written())
    } else if !machine.console_line(domain, format_args!("{text}")) {
        line.written()
    } else {
        return;
    };
    domain.console.0.lock().leave_out(lost);
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
        pieces.iter().for_each(|piece| assert_eq!(write(&system.machine, &domain, piece), piece.len()));
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

    /// Bytes that stand around a line of a fake domain's.
    const FRAME: u64 = AROUND as u64 + 4;

    /// What went out for a fake domain.
    fn emitted(lines: &[String]) -> u64 {
        lines.iter().map(|line| line.len() as u64 + FRAME).sum()
    }

    #[test]
    fn who_writes_too_much_is_cut_short_and_it_is_said() {
        let system = fake::system(64);
        let domain = fake::add_domain(system, 5, 4);
        let line = b"0123456789abcde\n";
        let first = BURST / (15 + FRAME);
        for _ in 0..first + 100 {
            write(&system.machine, &domain, line);
        }
        assert_eq!(system.machine.lines.lock().unwrap().len() as u64, first);
        system.machine.now.fetch_add(SECOND / 2, core::sync::atomic::Ordering::Relaxed);
        for _ in 0..1000 {
            write(&system.machine, &domain, line);
        }
        let lines = system.machine.lines.lock().unwrap();
        assert_eq!(lines[first as usize], "[1600 bytes dropped: more than the console takes]");
        let all = emitted(&lines);
        assert!(all <= BURST + RATE / 2 && all > BURST + RATE / 2 - 2 * (15 + FRAME), "{all}");
    }

    #[test]
    fn what_is_put_around_a_line_counts_even_if_there_is_nothing_in_it() {
        let system = fake::system(64);
        let domain = fake::add_domain(system, 5, 4);
        for _ in 0..BURST {
            write(&system.machine, &domain, b"\n");
        }
        let lines = system.machine.lines.lock().unwrap();
        assert_eq!((lines.len() as u64, emitted(&lines)), (BURST / FRAME, BURST / FRAME * FRAME));
    }

    #[test]
    fn many_lines_are_taken_a_few_at_a_time() {
        let system = fake::system(64);
        let domain = fake::add_domain(system, 5, 4);
        assert_eq!(write(&system.machine, &domain, &[b'\n'; 256]), LINES);
        assert_eq!(system.machine.lines.lock().unwrap().len(), LINES);
    }

    #[test]
    fn lines_without_room_are_left_out_and_it_is_said_once_there_is() {
        let system = fake::system(64);
        let domain = fake::add_domain(system, 5, 4);
        let has_room = |has| system.machine.has_room.store(has, core::sync::atomic::Ordering::Relaxed);
        has_room(false);
        assert_eq!(write(&system.machine, &domain, b"one\ntwo\n"), 8);
        has_room(true);
        assert_eq!(write(&system.machine, &domain, b"three\n"), 6);
        let lines = system.machine.lines.lock().unwrap();
        assert_eq!(*lines, ["[8 bytes dropped: more than the console takes]", "three"]);
    }

    #[test]
    fn dom0s_text_goes_out_as_it_is() {
        let system = fake::system(64);
        let dom0 = fake::add_domain(system, 0, 4);
        assert_eq!(write(&system.machine, &dom0, b"\x1b[1m no end"), 11);
        assert_eq!(*system.machine.written.lock().unwrap(), b"\x1b[1m no end");
        assert!(system.machine.lines.lock().unwrap().is_empty());
    }
}
