//! Values that completions offer, for arguments that take others too: a file is as good as a built-in name.

use super::flags::checked;
use crate::adapters::identifiers;
use crate::job::{check_interface, check_spec};
use crate::select::Interface;
use clap::builder::{PossibleValue, TypedValueParser};
use std::ffi::OsStr;

/// A parser that offers some of the values that it takes.
#[derive(Clone)]
pub(super) struct Offering<P> {
    inner: P,
    words: Vec<String>,
}

/// The parser with what it offers.
pub(super) fn offering<P: TypedValueParser<Value = String>>(
    inner: P,
    words: impl IntoIterator<Item = impl Into<String>>,
) -> Offering<P> {
    Offering {
        inner,
        words: words.into_iter().map(Into::into).collect(),
    }
}

impl<P: TypedValueParser<Value = String>> TypedValueParser for Offering<P> {
    type Value = String;

    fn parse_ref(
        &self,
        cmd: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        self.inner.parse_ref(cmd, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.words.iter().map(PossibleValue::new)))
    }
}

/// An interface: a file, or one of the built-in names.
pub(super) fn interface() -> impl TypedValueParser<Value = String> {
    offering(checked(check_interface), Interface::builtin_names())
}

/// An adapter: a file or a folder, or a configuration that begins with one of the identifiers.
pub(super) fn adapter() -> impl TypedValueParser<Value = String> {
    offering(checked(check_spec), identifiers())
}

/// The name of a built-in interface.
pub(super) fn interface_name() -> impl TypedValueParser<Value = String> {
    offering(any(), Interface::builtin_names())
}

/// An identifier, or a configuration that begins with one.
pub(super) fn method() -> impl TypedValueParser<Value = String> {
    offering(any(), identifiers())
}

fn any() -> impl TypedValueParser<Value = String> {
    |text: &str| Ok::<_, String>(text.to_owned())
}
