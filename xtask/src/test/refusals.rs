//! Boots that must be refused, each with one clear line.

use super::case::Case;

pub fn cases() -> Vec<Case> {
    Vec::new()
}
