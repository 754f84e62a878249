//! The machine's own interrupt controllers: they belong to Corten, guests see virtual ones.

pub mod io;
pub mod local;
pub mod vectors;
