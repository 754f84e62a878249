//! The part of the image that the host can test.
#![cfg_attr(not(test), no_std)]
