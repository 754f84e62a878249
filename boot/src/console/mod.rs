//! The console: Corten's messages and Dom0's output, on a serial port and the screen.
//!
//! Output never waits for the port while there is room to put it aside: it goes to a queue, and the port is fed from there
//! whenever someone comes by (each message, [`poll`] in the idle loop, the port's interrupt). At 115200 baud a character takes
//! 87 microseconds, in which a guest could have run. If the queue is full, other domains' lines are left out, Dom0 comes back later
//! with what it could not write, and only Corten's own messages wait. For these there is a part of the queue that no domain fills.

mod input;
mod ring;
mod screen;
mod uart;

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use mm::{Lock, Rank};
use spin::Once;
use spin::mutex::{SpinMutex, SpinMutexGuard};

use crate::options::SerialOptions;
use input::{Input, Typed};
use ring::{History, Queue};
pub use screen::Screen;
use uart::Uart;

/// What the buffers hold before there is memory for larger ones.
const EARLY_ROOM: usize = 4096;
/// How often a port that takes nothing is tried before its output is thrown away: about a second, at a microsecond a try.
const PATIENCE: u32 = 1_000_000;
/// How often it is tried while Dom0 waits: a few milliseconds, in which a port's own buffer goes out.
const MOMENT: u32 = 4000;
/// Of the queue, one part in so many is left free by Dom0, and by other domains.
const LEFT_BY_DOM0: usize = 8;
const LEFT_BY_OTHERS: usize = 4;
/// Bytes of Dom0's that are taken at once where they are to be out before it goes on (`sync_console`).
const AT_ONCE: usize = 32;

/// What a port does for the queue.
trait Port {
    /// Gives it bytes, as many as it takes without waiting.
    fn send(&mut self, bytes: &[u8]) -> usize;
    /// Has it interrupt when it can take more if `more` says that there is more.
    fn set_interrupts(&mut self, more: bool);
}

struct Console<P> {
    uart: Option<P>,
    /// On its way to the port.
    queue: Queue,
    /// How often the port was tried, since it last took something, while there was somebody who waited for it.
    tries: u32,
    /// Corten's messages, for `xl dmesg`.
    history: History,
    input: Input,
    screen: Option<Screen>,
    /// Write all out before going on (`sync_console`).
    synchronous: bool,
    /// The port's interrupt reaches us.
    interrupts: bool,
}

static CONSOLE: Lock<Option<Console<Uart>>> = Lock::new(Rank::Console, None);

// What is looked at without the lock.
/// The port, 0 for none: for emergencies.
static PORT: AtomicU16 = AtomicU16::new(0);
/// Nothing happens at the console unless its interrupt says so.
static QUIET: AtomicBool = AtomicBool::new(false);
/// Input is waiting for Dom0.
static INPUT: AtomicBool = AtomicBool::new(false);

static DEBUG_KEYS: Once<fn(u8)> = Once::new();

impl<P: Port> Console<P> {
    /// One with buffers and nothing else.
    fn new(history: &'static mut [u8], queue: &'static mut [u8]) -> Self {
        Self {
            uart: None,
            queue: Queue::new(queue),
            tries: 0,
            history: History::new(history),
            input: Input::new(),
            screen: None,
            synchronous: false,
            interrupts: false,
        }
    }

    /// Feeds the port what it takes without waiting.
    fn pump(&mut self) {
        let Some(uart) = &mut self.uart else {
            self.queue.consume(usize::MAX);
            return;
        };
        while !self.queue.is_empty() {
            let sent = uart.send(self.queue.front());
            if sent == 0 {
                break;
            }
            self.queue.consume(sent);
        }
        if self.interrupts {
            uart.set_interrupts(!self.queue.is_empty());
            QUIET.store(self.queue.is_empty(), Ordering::Relaxed);
        }
    }

    /// Feeds the port for somebody who waits. A port that is stuck loses its output.
    fn press(&mut self) {
        let before = self.queue.room();
        self.pump();
        self.tries = if self.queue.room() == before { self.tries + 1 } else { 0 };
        if self.tries >= PATIENCE {
            self.tries = 0;
            self.queue.consume(usize::MAX);
        }
    }

    /// Feeds the port until at least `room` bytes can be queued.
    fn make_room(&mut self, room: usize) {
        self.tries = 0;
        while self.queue.room() < room && !self.queue.is_empty() {
            self.press();
            core::hint::spin_loop();
        }
    }

    /// Bytes that can be queued if one part in `parts` of the queue is left free; as many as there may be without a port, which takes them all.
    fn room_beside(&self, parts: usize) -> usize {
        match self.uart {
            Some(_) => self.queue.room().saturating_sub(self.queue.capacity() / parts),
            None => usize::MAX,
        }
    }

    /// Takes of Dom0's bytes what there is room for.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let most = match self.synchronous {
            true if self.queue.is_empty() => AT_ONCE,
            true => 0,
            false => self.room_beside(LEFT_BY_DOM0),
        };
        let count = bytes.len().min(most);
        self.send(&bytes[..count]);
        match count {
            0 if !bytes.is_empty() => self.press(),
            _ => self.feed(),
        }
        count
    }

    /// Takes a line of another domain's, if there is room for all of it and its longer end.
    fn take_line(&mut self, line: &[u8]) -> bool {
        let has_room = line.len() < self.room_beside(LEFT_BY_OTHERS);
        if has_room {
            self.say(line);
        }
        self.pump();
        has_room
    }

    fn send(&mut self, mut bytes: &[u8]) {
        if self.uart.is_none() {
            return;
        }
        loop {
            bytes = &bytes[self.queue.push(bytes)..];
            if bytes.is_empty() {
                return;
            }
            self.make_room(1);
        }
    }

    /// A message of Corten's: to the history, the screen and, with line ends as terminals want them, the port.
    fn say(&mut self, text: &[u8]) {
        self.history.push(text);
        if let Some(screen) = &mut self.screen {
            screen.write(text);
        }
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(line) => {
                    self.send(line);
                    self.send(b"\r\n");
                }
                None => self.send(line),
            }
        }
    }

    fn feed(&mut self) {
        self.pump();
        if self.synchronous {
            self.make_room(usize::MAX);
        }
    }
}

/// Runs `f` with the console, if there is one yet.
fn with<R>(f: impl FnOnce(&mut Console<Uart>) -> R) -> Option<R> {
    CONSOLE.lock().as_mut().map(f)
}

/// Opens the console on a serial port, or for the buffers and a later screen only. The port, if it answered.
pub fn init(serial: Option<&SerialOptions>) -> Option<u16> {
    static HISTORY: SpinMutex<[u8; EARLY_ROOM]> = SpinMutex::new([0; EARLY_ROOM]);
    static QUEUE: SpinMutex<[u8; EARLY_ROOM]> = SpinMutex::new([0; EARLY_ROOM]);
    let mut console = CONSOLE.lock();
    if console.is_none() {
        let history: &'static mut [u8; EARLY_ROOM] = SpinMutexGuard::leak(HISTORY.try_lock()?);
        let queue: &'static mut [u8; EARLY_ROOM] = SpinMutexGuard::leak(QUEUE.try_lock()?);
        *console = Some(Console::new(history, queue));
    }
    let console = console.as_mut()?;
    console.uart = serial.and_then(Uart::open);
    let port = console.uart.as_ref().map(Uart::base);
    PORT.store(port.unwrap_or(0), Ordering::Relaxed);
    port
}

/// Goes on with larger buffers; the history's length is a power of two. What is in the old ones moves along.
pub fn grow(history: &'static mut [u8], queue: &'static mut [u8]) {
    with(|console| {
        console.history.move_to(history);
        console.queue.move_to(queue);
    });
}

/// `sync_console`: from now on every message is out before its sender goes on.
pub fn set_synchronous(on: bool) {
    with(|console| console.synchronous = on);
}

/// Shows messages on a screen, those of the past first.
pub fn show_on(mut screen: Screen) {
    with(|console| {
        let mut at = console.history.oldest();
        loop {
            let piece = console.history.piece(at);
            if piece.is_empty() {
                break;
            }
            screen.write(piece);
            at += piece.len() as u64;
        }
        console.screen = Some(screen);
    });
}

/// The screen is Dom0's from now on.
pub fn give_up_screen() {
    // The screen's memory is freed outside of the lock: the heap's ranks before it.
    let screen = with(|console| console.screen.take());
    drop(screen);
}

/// Says a message of Corten's.
pub fn write(text: &[u8]) {
    with(|console| {
        console.say(text);
        console.feed();
    });
}

/// Sends what Dom0 writes to its console, as it is. How much of it: if there is no room, this waits a moment for some, in which others have the
/// console, too.
pub fn write_dom0(bytes: &[u8]) -> usize {
    for _ in 0..MOMENT {
        let taken = with(|console| console.take(bytes)).unwrap_or(bytes.len());
        if taken != 0 || bytes.is_empty() {
            return taken;
        }
        core::hint::spin_loop();
    }
    0
}

/// Says a line of another domain's. False if there is no room for it. Nobody waits for it, with `sync_console` either.
pub fn offer_line(line: &[u8]) -> bool {
    with(|console| console.take_line(line)).unwrap_or(true)
}

/// Takes input for Dom0: the number of bytes.
pub fn read_input(into: &mut [u8]) -> usize {
    if !INPUT.load(Ordering::Relaxed) {
        return 0;
    }
    with(|console| {
        let count = console.input.read(into);
        if count < into.len() {
            INPUT.store(false, Ordering::Relaxed);
        }
        count
    })
    .unwrap_or(0)
}

/// Copies messages from the history, from position `from` on: the bytes copied and the position behind them
/// (XEN_SYSCTL_readconsole).
pub fn read_history(from: u32, into: &mut [u8]) -> (usize, u32) {
    with(|console| console.history.read(from, into)).unwrap_or((0, from))
}

/// Feeds the port and takes its input. True if there is new input for Dom0. Cheap where nothing is to be done.
pub fn poll() -> bool {
    !QUIET.load(Ordering::Relaxed) && serve(false)
}

/// The port's interrupt. As [`poll`].
pub fn on_uart_interrupt() -> bool {
    serve(true)
}

fn serve(interrupt: bool) -> bool {
    let mut for_dom0 = false;
    let mut keys = arrayvec::ArrayVec::<u8, 16>::new();
    let switched = with(|console| {
        if let Some(uart) = &mut console.uart {
            if interrupt {
                uart.acknowledge();
            }
            let mut switched = None;
            while !keys.is_full() {
                let Some(byte) = uart.receive() else { break };
                match console.input.typed(byte) {
                    Typed::ForDom0 => for_dom0 = true,
                    Typed::ForCorten(key) => keys.push(key),
                    Typed::Switched(to_corten) => switched = Some(to_corten),
                }
                if switched.is_some() {
                    break;
                }
            }
            console.pump();
            switched
        } else {
            None
        }
    })
    .flatten();
    if for_dom0 {
        INPUT.store(true, Ordering::Relaxed);
    }
    if let Some(to_corten) = switched {
        let to = if to_corten { "Corten's debug keys" } else { "Dom0" };
        log::info!(target: "console", "input goes to {to} (Ctrl-A three times switches)");
    }
    // Keys do as they like, so the lock is not held.
    for key in keys {
        if let Some(handler) = DEBUG_KEYS.get() {
            handler(key);
        }
    }
    for_dom0
}

/// Sets what a debug key does.
pub fn set_debug_key_handler(handler: fn(u8)) {
    DEBUG_KEYS.call_once(|| handler);
}

/// The port's interrupt leads to [`on_uart_interrupt`] from now on, and there is nothing to poll for between.
pub fn use_interrupts() {
    with(|console| {
        console.interrupts = console.uart.is_some();
        console.pump();
    });
}

/// Waits until all is out, as long as the port takes any: the machine may be off right after this.
pub fn flush() {
    with(|console| {
        console.make_room(usize::MAX);
        let Some(uart) = &console.uart else { return };
        for _ in 0..PATIENCE {
            if uart.is_idle() {
                break;
            }
            core::hint::spin_loop();
        }
    });
}

/// Whether the console has a serial port.
pub fn has_port() -> bool {
    PORT.load(Ordering::Relaxed) != 0
}

/// Says things when Corten is going down: at once, whoever holds the console.
pub struct Emergency(());

impl Emergency {
    /// Lets out first what is queued, unless a CPU is stuck in the console.
    pub fn begin() -> Self {
        for _ in 0..PATIENCE {
            if let Some(mut console) = CONSOLE.try_lock() {
                if let Some(console) = console.as_mut() {
                    console.make_room(usize::MAX);
                }
                break;
            }
            core::hint::spin_loop();
        }
        Self(())
    }

    /// Touches no lock: for NMIs and machine checks.
    pub fn without_locks() -> Self {
        Self(())
    }

    fn send(&self, text: &[u8]) {
        let port = PORT.load(Ordering::Relaxed);
        if port != 0 {
            uart::send_now(port, text);
        }
    }
}

impl Write for Emergency {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => {
                    self.send(line.as_bytes());
                    self.send(b"\r\n");
                }
                None => self.send(line.as_bytes()),
            }
        }
        if let Some(mut console) = CONSOLE.try_lock()
            && let Some(console) = console.as_mut()
        {
            console.history.push(text.as_bytes());
            if let Some(screen) = &mut console.screen {
                screen.write(text.as_bytes());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 1024;

    /// A port that takes so many bytes yet.
    struct Fake(usize);

    impl Port for Fake {
        fn send(&mut self, bytes: &[u8]) -> usize {
            let count = bytes.len().min(self.0);
            self.0 -= count;
            count
        }

        fn set_interrupts(&mut self, _: bool) {}
    }

    fn console(takes: usize) -> Console<Fake> {
        let buffer = || Box::leak(vec![0; ROOM].into_boxed_slice());
        Console { uart: Some(Fake(takes)), ..Console::new(buffer(), buffer()) }
    }

    /// Has a domain write until there is no room.
    fn fill(console: &mut Console<Fake>, dom0: bool) {
        let line = b"(d1) a line\n";
        while if dom0 { console.take(line) != 0 } else { console.take_line(line) } {}
    }

    #[test]
    fn nobody_waits_for_another_domains_line() {
        let mut console = console(0);
        fill(&mut console, false);
        let left = console.queue.room();
        assert!((ROOM / LEFT_BY_OTHERS..ROOM / LEFT_BY_OTHERS + 13).contains(&left), "{left}");
        assert_eq!(console.tries, 0);
        console.uart = Some(Fake(100));
        assert!(!console.take_line(b"(d1) too early\n"));
        assert!(console.take_line(b"(d1) again\n"));
    }

    #[test]
    fn there_is_room_for_what_corten_says_whatever_domains_write() {
        let mut console = console(0);
        fill(&mut console, false);
        fill(&mut console, true);
        assert_eq!(console.queue.room(), ROOM / LEFT_BY_DOM0);
        console.say(b"(corten) what it is\n");
        assert_eq!((console.queue.room(), console.tries), (ROOM / LEFT_BY_DOM0 - 21, 1), "no try but Dom0's last one");
    }

    #[test]
    fn dom0_comes_back_with_what_there_is_no_room_for() {
        let mut console = console(0);
        let text = [b'x'; ROOM];
        assert_eq!(console.take(&text), ROOM - ROOM / LEFT_BY_DOM0);
        assert_eq!((console.take(&text), console.take(&[])), (0, 0));
        console.uart = Some(Fake(16));
        assert_eq!((console.take(&text), console.take(&text)), (0, 16));
    }

    #[test]
    fn a_port_that_is_stuck_loses_its_output_in_the_end() {
        let mut console = console(0);
        fill(&mut console, true);
        let tries = (1u32..).find(|_| console.take(b"x") != 0);
        assert!(tries.is_some_and(|tries| tries.abs_diff(PATIENCE) <= 1), "{tries:?}");
    }

    #[test]
    fn what_is_to_be_out_at_once_is_taken_a_little_at_a_time() {
        let mut console = console(40);
        console.synchronous = true;
        assert_eq!(console.take(&[b'x'; 100]), AT_ONCE);
        assert!(console.queue.is_empty());
        assert!(console.take_line(b"(d1) a line\n"));
        assert_eq!(console.take(b"x"), 0, "not before the line is out");
    }

    #[test]
    fn without_a_port_everything_is_taken() {
        let mut console = Console::<Fake> { uart: None, ..console(0) };
        assert_eq!(console.take(&[b'x'; 2 * ROOM]), 2 * ROOM);
        assert!((0..ROOM).all(|_| console.take_line(b"(d1) a line\n")));
    }
}
