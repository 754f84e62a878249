//! A triple fault ends the guest, and only the guest.

#![no_std]
#![no_main]

use tests_qemu::tests::Tests;
use tests_qemu::{fault, probe, say};

tests_qemu::guest!(main);

fn main(_: &mut Tests) {
    say!("no interrupt table from here on");
    fault::load_table(0, 0);
    let _ = probe::run(&[0x0f, 0x0b], &mut Default::default());
    say!("TEST triple_fault: no way back FAIL: the guest went on");
}
