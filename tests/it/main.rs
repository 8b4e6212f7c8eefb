//! The command as a user runs it, and the fixtures. One binary, which links once.
//!
//! What the library keeps to itself is tested from inside: `tests/unit`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

#[cfg(feature = "cli")]
mod cli;
#[cfg(feature = "cli")]
mod desk;
#[cfg(feature = "cli")]
mod eject;
#[cfg(feature = "cli")]
mod exchange;
mod fixtures;
#[cfg(feature = "cli")]
mod generate;
#[cfg(feature = "cli")]
mod guards;
#[cfg(feature = "cli")]
mod habits;
#[cfg(feature = "cli")]
mod heads;
#[cfg(feature = "cli")]
mod hostile;
#[cfg(feature = "cli")]
mod hub;
#[cfg(feature = "cli")]
mod learn;
#[cfg(feature = "cli")]
mod merge;
#[cfg(feature = "cli")]
mod page;
#[cfg(feature = "cli")]
mod parallel;
#[cfg(feature = "cli")]
mod pictures;
#[cfg(feature = "cli")]
mod recipes;
#[cfg(feature = "cli")]
mod report;
#[cfg(feature = "cli")]
mod resume;
#[cfg(feature = "cli")]
mod tasks;
#[cfg(feature = "cli")]
mod tenants;
#[cfg(feature = "cli")]
mod unlucky;

#[allow(dead_code, reason = "shared with the tests inside the library")]
#[path = "../support/mod.rs"]
mod support;
