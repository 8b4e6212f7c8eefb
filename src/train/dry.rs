//! What a run would be, without training.

use crate::disk;
use serde::Serialize;
use std::fmt;

/// A run that was not made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DryRun {
    /// Optimizer steps.
    pub steps: u64,
    /// Training examples.
    pub examples: usize,
    /// Tokens of one epoch, padding not counted.
    pub tokens_per_epoch: u64,
    /// Positions that are computed in one epoch, padding counted.
    pub positions_per_epoch: u64,
    /// Trainable elements.
    pub trainable: usize,
    /// Bytes of the frozen weights, which are mapped and not copied.
    pub base_bytes: u64,
    /// Bytes of the trainable parameters.
    pub parameter_bytes: u64,
    /// Bytes of gradients and optimizer state.
    pub optimizer_bytes: u64,
    /// Positions of the largest batch.
    pub longest_batch: usize,
    /// Most memory that the process has had, forward and backward pass of the largest batch included; `None` where the system does
    /// not tell.
    pub peak_bytes: Option<u64>,
}

/// Bytes in a unit that is read at a glance.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = UNITS.iter().find(|(_, n)| bytes >= *n);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(name, n)| format!("{:.1} {name}", bytes as f64 / *n as f64),
    )
}

impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waste =
            100.0 * (1.0 - self.tokens_per_epoch as f64 / self.positions_per_epoch.max(1) as f64);
        writeln!(f, "steps              {}", self.steps)?;
        writeln!(f, "examples           {}", self.examples)?;
        writeln!(f, "tokens an epoch    {}", self.tokens_per_epoch)?;
        writeln!(f, "padding            {waste:.1} %")?;
        writeln!(f, "largest batch      {} positions", self.longest_batch)?;
        writeln!(
            f,
            "trainable          {} parameters, {}",
            self.trainable,
            size(self.parameter_bytes)
        )?;
        writeln!(f, "gradient and state {}", size(self.optimizer_bytes))?;
        writeln!(f, "base model         {}, mapped", size(self.base_bytes))?;
        match self.peak_bytes {
            Some(peak) => writeln!(
                f,
                "peak memory        {} in one step on the largest batch",
                size(peak)
            ),
            None => Ok(()),
        }
    }
}

/// The most memory that this process has had.
pub(super) fn peak_memory() -> Option<u64> {
    let status = disk::own::text("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_at_a_glance() {
        assert_eq!(size(512), "512 B");
        assert_eq!(size(3 << 20), "3.0 MiB");
        assert_eq!(size(5 << 29), "2.5 GiB");
    }
}
