//! The workloads of the benchmarks, and how a process that runs one of them reports.
//!
//! Orcane's subjects and LLVM's are programs of their own: a process that measures Orcane does not load LLVM.

pub mod child;
pub mod functions;
pub mod link;
pub mod llvm;
pub mod programs;
pub mod quality;
pub mod session;
pub mod steady;
pub mod table;
pub mod to_llvm;
pub mod workload;

/// What a benchmark may fail with.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The middle one of some values; there is at least one.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median of the ratios of two measurements, each to the other's of the same round.
#[must_use]
pub fn ratio(ours: &[f64], theirs: &[f64]) -> f64 {
    median(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs))
}

#[cfg(test)]
mod tests {
    use super::ratio;

    #[test]
    fn ratios_are_of_one_round() {
        // The machine was twice as slow in the second round, and in the third it did something else beside.
        assert_eq!(ratio(&[1.0, 2.0, 9.0], &[2.0, 4.0, 4.0]), 0.5);
    }
}
