//! One core of this computer for all threads of an emulator, where it cannot be trusted with more.

use anyhow::{Context, Result};
use std::sync::Mutex;

/// Cores that machines of ours are kept on, as often as there are machines.
static TAKEN: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// A core that one machine has; dropping it gives it back.
pub struct Core(pub usize);

impl Core {
    /// The one that the fewest machines are kept on.
    pub fn take() -> Result<Core> {
        let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let cores = list.and_then(cores_of).context("/proc/self/status does not list the cores that are allowed")?;
        let mut taken = TAKEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Other runs beside this one are to begin elsewhere.
        let core = least_taken(&cores, &taken, std::process::id() as usize).context("no core is allowed")?;
        taken.push(core);
        Ok(Core(core))
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let mut taken = TAKEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(index) = taken.iter().position(|core| *core == self.0) {
            taken.swap_remove(index);
        }
    }
}

/// The numbers in a list such as `0-3,8`.
fn cores_of(list: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cores.extend(first.parse().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(cores)
}

/// Of those that the fewest have, the first from number `start` on, counted round.
fn least_taken(cores: &[usize], taken: &[usize], start: usize) -> Option<usize> {
    let start = start.checked_rem(cores.len())?;
    let in_turn = cores.iter().cycle().skip(start).take(cores.len());
    in_turn.copied().min_by_key(|core| taken.iter().filter(|other| *other == core).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cores_has_numbers_and_ranges() {
        assert_eq!(cores_of("\t0-1"), Some(vec![0, 1]));
        assert_eq!(cores_of("2,4-6,9\n"), Some(vec![2, 4, 5, 6, 9]));
        assert_eq!(cores_of("all"), None);
    }

    #[test]
    fn machines_are_spread_over_the_cores() {
        assert_eq!(least_taken(&[0, 1], &[], 4), Some(0));
        assert_eq!(least_taken(&[0, 1], &[], 5), Some(1));
        assert_eq!(least_taken(&[0, 1], &[1], 5), Some(0));
        assert_eq!(least_taken(&[2, 5, 7], &[2, 5, 7, 7], 2), Some(2));
        assert_eq!(least_taken(&[], &[], 1), None);
    }
}
