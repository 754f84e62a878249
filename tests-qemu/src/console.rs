//! Output, by the console hypercall: it works before anything is set up, on Xen and on Corten alike.

use crate::hypercall;
use core::fmt::{self, Write};
use xen_abi::console::CONSOLEIO_WRITE;
use xen_abi::numbers;

/// Collects a line, so that a message is one hypercall.
struct Line {
    bytes: [u8; 256],
    used: usize,
}

impl Line {
    fn flush(&mut self) {
        hypercall::call(
            numbers::CONSOLE_IO,
            [CONSOLEIO_WRITE.into(), self.used as u64, self.bytes.as_ptr() as u64, 0, 0],
        );
        self.used = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.bytes[self.used] = byte;
            self.used += 1;
            if self.used == self.bytes.len() {
                self.flush();
            }
        }
        Ok(())
    }
}

pub fn print(arguments: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; 256], used: 0 };
    let _ = line.write_fmt(arguments);
    if line.used > 0 {
        line.flush();
    }
}

/// Prints one line on the console.
#[macro_export]
macro_rules! say {
    ($($arguments:tt)*) => {
        $crate::console::print(format_args!("{}\n", format_args!($($arguments)*)))
    };
}
