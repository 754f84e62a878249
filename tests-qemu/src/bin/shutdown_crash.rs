//! `SCHEDOP_shutdown` of Dom0 with the reason "crash".

#![no_std]
#![no_main]

use tests_qemu::power;
use tests_qemu::tests::Tests;
use xen_abi::sched::SHUTDOWN_CRASH;

tests_qemu::guest!(main);

fn main(_: &mut Tests) {
    power::shut_down(SHUTDOWN_CRASH);
}
