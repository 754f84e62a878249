//! Debian's own kernels as Dom0.

use super::case::Case;

pub fn cases() -> Vec<Case> {
    Vec::new()
}
