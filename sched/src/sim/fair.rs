//! What each vCPU is entitled to.

use alloc::vec;
use alloc::vec::Vec;

/// The CPU time, in CPUs, that vCPUs with these weights get of `cpus` when all of them always want to run: by weight, but at most one CPU
/// each, and what the heavy ones cannot use is shared out again among the others.
pub fn entitlements(weights: &[u32], cpus: f64) -> Vec<f64> {
    let mut full = vec![false; weights.len()];
    loop {
        let left = cpus - full.iter().filter(|&&full| full).count() as f64;
        let total: f64 =
            weights.iter().zip(&full).filter(|(_, full)| !**full).map(|(&weight, _)| f64::from(weight)).sum();
        let share = |index: usize| if full[index] { 1.0 } else { left.max(0.0) * f64::from(weights[index]) / total };
        let Some(over) = (0..weights.len()).find(|&index| !full[index] && share(index) >= 1.0) else {
            return (0..weights.len()).map(share).collect();
        };
        full[over] = true;
    }
}

/// The greatest deviation of what was got from what was due, relative to what was due.
pub fn worst_error(got: &[f64], due: &[f64]) -> f64 {
    got.iter().zip(due).map(|(got, due)| (got - due).abs() / due).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_too_heavy_leaves_the_rest_to_the_others() {
        assert_eq!(entitlements(&[1000, 100, 100], 2.0), [1.0, 0.5, 0.5]);
        assert_eq!(entitlements(&[256, 512], 1.0), [1.0 / 3.0, 2.0 / 3.0]);
        assert_eq!(entitlements(&[1, 2], 4.0), [1.0, 1.0]);
    }

    #[test]
    fn the_worst_error_is_relative() {
        assert_eq!(worst_error(&[1.0, 0.5], &[1.0, 1.0]), 0.5);
    }
}
