//! Files of adapters: AdapterHub's folders, PEFT's, torch's pickles, cards, heads, and averages of folders.

pub mod average;
pub mod base;
pub mod card;
pub mod folder;
pub mod head;
pub mod peft;
pub mod spec;
pub(super) mod store;
pub mod torch;
