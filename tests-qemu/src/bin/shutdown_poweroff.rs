//! `SCHEDOP_shutdown` of Dom0 with the reason "poweroff".

#![no_std]
#![no_main]

use tests_qemu::power;
use tests_qemu::tests::Tests;
use xen_abi::sched::SHUTDOWN_POWEROFF;

tests_qemu::guest!(main);

fn main(_: &mut Tests) {
    power::shut_down(SHUTDOWN_POWEROFF);
}
