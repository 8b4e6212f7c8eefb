//! Files of adapters: AdapterHub's folders, PEFT's, torch's pickles, cards, and averages of folders.

pub(crate) mod average;
pub(crate) mod base;
pub(crate) mod card;
pub(crate) mod folder;
pub(crate) mod onnx_adapter;
pub(crate) mod peft;
pub(crate) mod spec;
pub(crate) mod stacked;
pub(super) mod store;
pub(crate) mod target;
pub(crate) mod torch;
pub(crate) mod weighted;
