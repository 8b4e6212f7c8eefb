//! Memory: one limit for everything whose size somebody else chose: a model, an adapter, data, a configuration.
//!
//! Sizes are multiplied in 128 bits and compared before anything is allocated.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes; zero until somebody asks or sets it.
static LIMIT: AtomicU64 = AtomicU64::new(0);

/// Where a system tells nothing.
const UNKNOWN: u64 = 64 << 30;

/// The most that one command may ask for, in bytes: what was [set], else what the machine, its control group or the shell allow.
pub(crate) fn limit() -> u64 {
    match LIMIT.load(Ordering::Relaxed) {
        0 => {
            let found = of_machine();
            LIMIT.store(found, Ordering::Relaxed);
            found
        }
        set => set,
    }
}

/// Sets the limit for this process.
#[cfg_attr(
    not(feature = "cli"),
    allow(dead_code, reason = "a flag of the command line")
)]
pub(crate) fn set(bytes: u64) {
    LIMIT.store(bytes.max(1), Ordering::Relaxed);
}

/// What a line of a system file says, in bytes.
fn field(file: &str, name: &str, unit: u64) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    let number: String = line
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    number.parse::<u64>().ok()?.checked_mul(unit)
}

fn of_machine() -> u64 {
    let known = [
        field("/proc/meminfo", "MemTotal:", 1024),
        field("/sys/fs/cgroup/memory.max", "", 1),
        field("/sys/fs/cgroup/memory/memory.limit_in_bytes", "", 1),
        field("/proc/self/limits", "Max address space", 1),
    ];
    known
        .into_iter()
        .flatten()
        .filter(|n| *n > 0)
        .min()
        .unwrap_or(UNKNOWN)
}

/// Something that would take more memory than there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exceeded {
    what: String,
    bytes: u128,
}

impl Exceeded {
    /// `what` would take so many bytes.
    pub(crate) fn new(what: impl Into<String>, bytes: u128) -> Self {
        let what = what.into();
        Exceeded { what, bytes }
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} would take {}, and the limit is {} (--memory-limit)",
            self.what,
            size(self.bytes),
            size(u128::from(limit()))
        )
    }
}

/// Bytes for a reader.
pub(crate) fn size(bytes: u128) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut at = 0;
    let mut x = bytes as f64 / 1024.0;
    while x >= 1024.0 && at + 1 < UNITS.len() {
        x /= 1024.0;
        at += 1;
    }
    format!("{x:.1} {}", UNITS[at])
}

/// Bytes of so many elements, each of a size; too many count as the most there is.
pub(crate) fn bytes_of(dims: impl IntoIterator<Item = u64>, each: u64) -> u128 {
    let count = dims
        .into_iter()
        .fold(1u128, |n, d| n.saturating_mul(u128::from(d)));
    count.saturating_mul(u128::from(each))
}

/// Refuses what would take more than the limit.
///
/// # Errors
/// It would.
pub(crate) fn check(what: impl FnOnce() -> String, bytes: u128) -> Result<(), Exceeded> {
    if bytes > u128::from(limit()) {
        return Err(Exceeded::new(what(), bytes));
    }
    Ok(())
}

/// A number of bytes as it is written on the command line: `8G`, `512MiB`, `1000`.
///
/// # Errors
/// What is expected.
#[cfg_attr(
    not(feature = "cli"),
    allow(dead_code, reason = "a flag of the command line")
)]
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let expected = || {
        format!(
            "`{text}` is no size: expected a number of bytes with or without K, M, G or T, as in 8G"
        )
    };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_uppercase();
    let shift = match unit.trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(expected()),
    };
    let number: f64 = digits.parse().map_err(|_| expected())?;
    let bytes = number * (1u64 << shift) as f64;
    if !(1.0..1.8e19).contains(&bytes) {
        return Err(expected());
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        assert_eq!(parse("8G"), Ok(8 << 30));
        assert_eq!(parse("1.5k"), Ok(1536));
        assert_eq!(parse("512MiB"), Ok(512 << 20));
        assert_eq!(parse("100"), Ok(100));
        for wrong in ["", "G", "-1G", "8X", "nan", "inf", "0", "1e30T"] {
            assert!(parse(wrong).unwrap_err().contains("as in 8G"), "{wrong}");
        }
        assert_eq!(size(4 << 40), "4.0 TiB");
        assert_eq!(size(12), "12 bytes");
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        assert!(limit() > 1 << 20, "{}", limit());
        assert_eq!(bytes_of([1 << 40, 1 << 40, 1 << 40, 1 << 40], 8), u128::MAX);
        let e = check(|| "a list".into(), u128::MAX).unwrap_err();
        assert!(e.to_string().contains("a list would take"), "{e}");
        check(|| "a list".into(), 10).unwrap();
    }
}
