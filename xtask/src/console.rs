//! The machine's serial console: read until the run ends, kept in a log, shown to whoever watches.

use crate::engine::Running;
use anyhow::Result;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How a run came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The machine powered off, or its engine failed; the console says which.
    PoweredOff,
    /// The console said what was waited for.
    Said,
    TimedOut,
}

pub struct Run {
    pub end: End,
    pub console: String,
    pub took: Duration,
}

/// Watches a run to its end: `limit`, power-off, or one of `until` on the console. The whole console goes to `log` as it
/// comes, and to `show`.
pub fn watch(
    running: &mut Running,
    log: &Path,
    limit: Duration,
    until: &[String],
    show: &mut dyn FnMut(&[u8]),
) -> Result<Run> {
    let mut file = std::fs::File::create(log)?;
    let mut all: Vec<u8> = Vec::new();
    let mut buffer = [0; 4096];
    let started = Instant::now();
    running.console.set_read_timeout(Some(Duration::from_millis(100)))?;
    let end = loop {
        let open = match running.console.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                let new = buffer.get(..count).unwrap_or_default();
                file.write_all(new)?;
                show(new);
                all.extend_from_slice(new);
                if until.iter().any(|text| says(&all, count, text)) {
                    break End::Said;
                }
                true
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted),
        };
        if !open {
            // The port closes a moment before the engine is gone.
            let patience = Instant::now() + Duration::from_secs(5);
            while !running.ended() && Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(20));
            }
            break End::PoweredOff;
        }
        if started.elapsed() > limit {
            break End::TimedOut;
        }
    };
    Ok(Run { end, console: String::from_utf8_lossy(&all).into_owned(), took: started.elapsed() })
}

/// Whether `text` ends within the last `new` bytes of `all`.
fn says(all: &[u8], new: usize, text: &str) -> bool {
    let from = all.len().saturating_sub(new + text.len());
    all.get(from..).unwrap_or_default().windows(text.len().max(1)).any(|window| window == text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_arrives_in_two_pieces_is_found() {
        assert!(says(b"hello world", 3, "o world"));
        assert!(!says(b"hello world", 1, "hello"));
    }
}
