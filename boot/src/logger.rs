//! Messages by level, subsystem and time: `(corten) [    0.012345] warn  vmx: …`.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};

use arrayvec::ArrayString;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::Once;

use crate::console;

/// What messages begin with, as Xen's with `(XEN)`.
const PREFIX: &str = "(corten) ";
/// Messages whose target begins so are about guests and have a level of their own (`guest_loglvl`).
const GUEST: &str = "guest";

struct Logger;

static LOGGER: Logger = Logger;
static OWN: AtomicU8 = AtomicU8::new(LevelFilter::Info as u8);
static GUESTS: AtomicU8 = AtomicU8::new(LevelFilter::Warn as u8);
static CLOCK: Once<fn() -> u64> = Once::new();

/// Makes this the logger of the whole program.
pub fn init() {
    let _ = log::set_logger(&LOGGER);
    set_levels(LevelFilter::Info, LevelFilter::Warn);
}

/// Sets how much is said about Corten and about guests.
pub fn set_levels(own: LevelFilter, guests: LevelFilter) {
    OWN.store(own as u8, Ordering::Relaxed);
    GUESTS.store(guests as u8, Ordering::Relaxed);
    log::set_max_level(own.max(guests));
}

/// Gives messages their time: nanoseconds since boot.
pub fn set_clock(clock: fn() -> u64) {
    CLOCK.call_once(|| clock);
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let limit = if metadata.target().starts_with(GUEST) { &GUESTS } else { &OWN };
        metadata.level() as u8 <= limit.load(Ordering::Relaxed)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // The message is put together before the console is locked: what is printed may take locks of its own.
        let mut line = Line::new(console::write);
        let now = CLOCK.get().map(|clock| clock());
        let _ = write_line(&mut line, now, record.level(), record.target(), *record.args());
        line.finish();
    }

    fn flush(&self) {
        console::flush();
    }
}

/// Says a line of a guest's, as a warning about it and as it is: guests have their own time and levels. False if there is no room for it.
pub fn guest_line(line: fmt::Arguments<'_>) -> bool {
    if Level::Warn as u8 > GUESTS.load(Ordering::Relaxed) {
        return true;
    }
    // There is room for the longest line with the longest name.
    let mut text = ArrayString::<256>::new();
    let _ = writeln!(text, "{line}");
    console::offer_line(text.as_bytes())
}

fn write_line(
    out: &mut impl Write,
    now: Option<u64>,
    level: Level,
    target: &str,
    message: fmt::Arguments<'_>,
) -> fmt::Result {
    out.write_str(PREFIX)?;
    match now {
        Some(now) => write!(out, "[{:5}.{:06}] ", now / 1_000_000_000, now / 1000 % 1_000_000)?,
        None => out.write_str("[    -.------] ")?,
    }
    out.write_str(match level {
        Level::Error => "error ",
        Level::Warn => "warn  ",
        Level::Info => "info  ",
        Level::Debug => "debug ",
        Level::Trace => "trace ",
    })?;
    write!(out, "{}: {message}", subsystem(target))
}

/// The part of a log target that says what it is about: of a module's path what follows the crate.
fn subsystem(target: &str) -> &str {
    target.split_once("::").map_or(target, |(_, module)| module)
}

/// A line in the making. Longer ones go out in pieces.
struct Line {
    buffer: [u8; 256],
    len: usize,
    out: fn(&[u8]),
}

impl Line {
    fn new(out: fn(&[u8])) -> Self {
        Self { buffer: [0; 256], len: 0, out }
    }

    fn finish(mut self) {
        let _ = self.write_str("\n");
        (self.out)(&self.buffer[..self.len]);
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut text = text.as_bytes();
        while !text.is_empty() {
            let count = text.len().min(self.buffer.len() - self.len);
            self.buffer[self.len..self.len + count].copy_from_slice(&text[..count]);
            self.len += count;
            text = &text[count..];
            if self.len == self.buffer.len() {
                (self.out)(&self.buffer);
                self.len = 0;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_line_has_time_level_and_subsystem() {
        let mut line = String::new();
        let _ = write_line(&mut line, Some(12_345_678), Level::Info, "arch_x86::vmx::caps", format_args!("ept {}", 4));
        assert_eq!(line, "(corten) [    0.012345] info  vmx::caps: ept 4");
        line.clear();
        let _ = write_line(&mut line, None, Level::Error, "boot", format_args!("no"));
        assert_eq!(line, "(corten) [    -.------] error boot: no");
    }

    #[test]
    fn a_long_line_goes_out_in_pieces_and_whole() {
        std::thread_local!(static OUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        let mut line = Line::new(|piece| OUT.with_borrow_mut(|out| out.extend(piece)));
        for number in 0..200 {
            let _ = write!(line, "{number} ");
        }
        line.finish();
        let want: String = (0..200).map(|number| format!("{number} ")).collect();
        OUT.with_borrow(|out| assert_eq!(String::from_utf8_lossy(out), want + "\n"));
    }

    #[test]
    fn guests_have_a_level_of_their_own() {
        set_levels(LevelFilter::Info, LevelFilter::Error);
        let enabled = |level, target| LOGGER.enabled(&Metadata::builder().level(level).target(target).build());
        assert!(enabled(Level::Info, "vmx") && !enabled(Level::Debug, "vmx"));
        assert!(enabled(Level::Error, "guest d1") && !enabled(Level::Warn, "guest d1"));
    }
}
