#![cfg_attr(not(test), no_std)]

pub mod policy;
pub mod vdev;
