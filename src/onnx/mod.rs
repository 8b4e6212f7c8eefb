//! ONNX files: bytes to [`Model`](crate::ir::Model) and back.
//!
//! The wire layer is prost over the mapped file: tensor payloads stay slices of the map. `decode(write(read(b))) == decode(b)` for every
//! valid model `b`: what the IR does not interpret rides along in `residue` fields, which hold the encoded message without the
//! fields that were interpreted. Writing puts the interpreted fields back wherever they say something else than the residue does, so
//! that presence, order and odd spellings survive. Fields that the schema does not know are an error, never dropped.
//!
//! Not here: types and shapes (`infer`), and anything that changes a graph (`rewrite`).

#![deny(clippy::as_conversions, clippy::indexing_slicing, clippy::expect_used)]

mod encode;
mod external;
pub(crate) mod layout;
mod message;
mod order;
pub(crate) mod proto;
mod read;
mod save;
#[cfg(test)]
mod tests;
mod wire;
mod write;

pub use external::ExternalSource;
#[cfg(test)]
pub(crate) use message::tensor;
pub use read::{open, read};
pub(crate) use save::locations;
pub use save::{SaveOptions, Saved, save, to_bytes};
