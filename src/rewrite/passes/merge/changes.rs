//! What a merge changed, for whoever wants to know.

use super::coded::Spread;
use std::sync::{Arc, Mutex, PoisonError};

/// A weight that adapters were folded into.
#[derive(Clone, Debug)]
pub(crate) struct MergedWeight {
    /// The modules whose weight it is; several where one projection holds them.
    pub(crate) modules: Vec<String>,
    /// The adapters that want it to be another one.
    pub(crate) adapters: Vec<String>,
    /// How it is quantized; `None` where it is stored as floats.
    pub(crate) form: Option<String>,
    /// What it was.
    pub(crate) base: Spread,
    /// What the adapters add to it.
    pub(crate) change: Spread,
    /// How far what is stored now is from what the adapters make of it, where it is quantized.
    pub(crate) error: Spread,
    /// Whether anything that is stored is another one.
    pub(crate) stored: bool,
    /// Groups with other codes, and among them those with another scale.
    pub(crate) groups: [usize; 2],
}

impl MergedWeight {
    /// Which share of the change is lost in rounding: 1 where nothing of it is left.
    pub(crate) fn lost(&self) -> f64 {
        if self.change.squares > 0.0 {
            (self.error.squares / self.change.squares).sqrt()
        } else {
            0.0
        }
    }
}

/// Where a pass puts down what it changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes(Arc<Mutex<Vec<MergedWeight>>>);

impl Changes {
    /// Notes one more.
    pub(super) fn put(&self, weight: MergedWeight) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(weight);
    }

    /// All of them.
    pub(crate) fn taken(&self) -> Vec<MergedWeight> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
