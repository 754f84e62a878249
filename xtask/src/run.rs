//! `cargo xtask run`: Dom0's console in this terminal.

use crate::cli::RunArgs;
use crate::engine::{Engine, Running};
use crate::image::Medium;
use crate::{once, paths, progress, toolstack};
use anyhow::Result;
use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;
use xshell::{Shell, cmd};

const CTRL_A: u8 = 1;

pub fn command(args: &RunArgs) -> Result<ExitCode> {
    let engine = Engine::choose(args.machine.engine, &args.machine.options)?;
    let (mut boot, mut machine) = (args.boot.clone(), args.machine.clone());
    if boot.kernel.is_none() && !boot.dom0_args.contains("corten.modules=") {
        boot.dom0_args.push_str(&format!(" corten.modules={}", engine.dom0_modules()));
    }
    let logs = paths::target_dir("run")?;
    if args.toolstack {
        toolstack::add(&mut boot, &mut machine, &logs)?;
    }
    let medium = Medium::from_cli(&boot, engine.xen_protocol())?;
    let iso = logs.join("boot.iso");
    progress::step("make the boot medium", |_| medium.write_iso(&iso))?;
    let machine = once::machine(&machine, &boot.hypervisor, &iso, logs.clone())?;
    eprintln!("starting {} with {} MiB; Ctrl-A x leaves", engine.name(), machine.memory_mib);
    if machine.debug {
        eprintln!("the machine waits for gdb: target remote localhost:1234");
    }
    let mut running = engine.start(&machine)?;
    let raw = RawTerminal::enter();
    let left = relay(&mut running, &logs.join("console.log"))?;
    drop(raw);
    eprintln!("\n{}; logs in {}", if left { "left" } else { "the machine is off" }, logs.display());
    Ok(ExitCode::SUCCESS)
}

/// Carries bytes both ways until the machine ends (false) or the user leaves (true).
fn relay(running: &mut Running, log: &std::path::Path) -> Result<bool> {
    let mut file = std::fs::File::create(log)?;
    let keys = keyboard();
    let mut keys_in = Escape::default();
    let mut out = std::io::stdout();
    let mut buffer = [0; 4096];
    running.console.set_read_timeout(Some(Duration::from_millis(20)))?;
    loop {
        match running.console.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => {
                let new = buffer.get(..count).unwrap_or_default();
                file.write_all(new)?;
                out.write_all(new)?;
                out.flush()?;
            }
            Err(_) if running.ended() => return Ok(false),
            Err(_) => {}
        }
        for key in keys.try_iter() {
            match keys_in.feed(key) {
                Key::Leave => return Ok(true),
                Key::Send(byte) => running.console.write_all(&[byte])?,
                Key::Nothing => {}
            }
        }
    }
}

/// Reads standard input on a thread of its own: it cannot be waited for together with a socket.
fn keyboard() -> mpsc::Receiver<u8> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut byte = [0];
        while let Ok(1) = std::io::stdin().read(&mut byte) {
            if sender.send(byte[0]).is_err() {
                return;
            }
        }
    });
    receiver
}

#[derive(PartialEq, Eq, Debug)]
enum Key {
    Send(u8),
    Leave,
    Nothing,
}

/// Ctrl-A x leaves, Ctrl-A Ctrl-A sends a Ctrl-A.
#[derive(Default)]
struct Escape {
    pending: bool,
}

impl Escape {
    fn feed(&mut self, byte: u8) -> Key {
        match (std::mem::take(&mut self.pending), byte) {
            (false, CTRL_A) => {
                self.pending = true;
                Key::Nothing
            }
            (true, b'x' | b'X') => Key::Leave,
            (_, byte) => Key::Send(byte),
        }
    }
}

/// The terminal without echo or line editing, put back when dropped.
struct RawTerminal {
    before: String,
}

impl RawTerminal {
    fn enter() -> Option<RawTerminal> {
        let sh = Shell::new().ok()?;
        if !std::io::stdin().is_terminal() {
            return None;
        }
        let before = cmd!(sh, "stty -F /dev/tty -g").quiet().read().ok()?;
        cmd!(sh, "stty -F /dev/tty raw -echo").quiet().run().ok()?;
        Some(RawTerminal { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Ok(sh) = Shell::new() {
            let before = &self.before;
            let _ = cmd!(sh, "stty -F /dev/tty {before}").quiet().run();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_leaves_and_ctrl_a_twice_sends_one() {
        let mut escape = Escape::default();
        assert_eq!(escape.feed(b'x'), Key::Send(b'x'));
        assert_eq!(escape.feed(CTRL_A), Key::Nothing);
        assert_eq!(escape.feed(b'x'), Key::Leave);
        assert_eq!(escape.feed(CTRL_A), Key::Nothing);
        assert_eq!(escape.feed(CTRL_A), Key::Send(CTRL_A));
        assert_eq!(escape.feed(b'a'), Key::Send(b'a'));
    }
}
