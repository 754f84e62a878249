//! One processor: its descriptor tables, its exceptions, its control registers.

pub mod control;
pub mod exceptions;
pub mod gdt;
pub mod idt;
pub mod model;
pub mod registers;
pub mod stack;
pub mod topology;
