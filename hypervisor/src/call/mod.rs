//! The hypercalls, a file each. Every handler decodes its argument into a typed value, checks the whole of it, and then applies it by
//! code that cannot fail half-way.

pub mod console;
pub mod domctl;
pub mod event_channel;
#[cfg(test)]
mod fuzz_tests;
pub mod grant_table;
pub mod hvm;
pub mod memory;
pub mod multicall;
pub mod physdev;
pub mod platform;
pub mod sched;
pub mod sysctl;
pub mod vcpu;
pub mod version;
pub mod vm_assist;
