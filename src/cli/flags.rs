//! Flags made from the options of a struct: kebab-case names, with the field's documentation as help.

use super::values::offering;
use crate::error::Error;
use crate::job::{check_other_arguments, is_path, other_arguments};
use crate::options::{self, Kind, OptionField, Options, fields};
use clap::builder::{PossibleValue, PossibleValuesParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, ValueHint};
use serde_json::{Map, Value};
use std::marker::PhantomData;

/// The values of the flags that were given, by field.
#[derive(Debug)]
pub(crate) struct Flags<T> {
    /// What was given.
    pub(crate) given: Map<String, Value>,
    of: PhantomData<T>,
}

impl<T> Default for Flags<T> {
    fn default() -> Self {
        Flags {
            given: Map::new(),
            of: PhantomData,
        }
    }
}

impl<T> Clone for Flags<T> {
    fn clone(&self) -> Self {
        Flags {
            given: self.given.clone(),
            of: PhantomData,
        }
    }
}

/// A parser of texts that are looked at as soon as they are given, so that a wrong one is an error of usage.
pub(super) fn checked(
    check: fn(&str) -> crate::error::Result<()>,
) -> impl Fn(&str) -> Result<String, String> + Clone + Send + Sync + 'static {
    move |text| {
        let said = |e: Error| {
            let lines = e.findings().iter().flat_map(|d| {
                let help = d.help.iter().map(|help| format!("help: {help}"));
                std::iter::once(d.message.clone())
                    .chain(d.notes.clone())
                    .chain(help)
            });
            lines.collect::<Vec<_>>().join("\n  ")
        };
        check(text).map(|()| text.to_owned()).map_err(said)
    }
}

/// What is wrong with values, in the words of a command line: options are flags.
fn refused(e: &Error, flags: &[String]) -> clap::Error {
    let mut lines = Vec::new();
    for d in e.findings() {
        let parts: Vec<&str> = d.message.split('`').collect();
        let named = |(at, part): (usize, &&str)| match at % 2 {
            0 => (*part).to_owned(),
            _ if flags.iter().any(|f| f == part) => format!("--{}", part.replace('_', "-")),
            _ => format!("`{part}`"),
        };
        lines.push(parts.iter().enumerate().map(named).collect::<String>());
        lines.extend(d.help.iter().map(|help| format!("  help: {help}")));
    }
    clap::Error::raw(
        clap::error::ErrorKind::InvalidValue,
        lines.join("\n") + "\n",
    )
}

/// An id apart from the fields of the derived commands.
fn id(name: &str) -> String {
    format!("option.{name}")
}

fn arg(field: &OptionField, aliases: Vec<String>, others: &[&'static str]) -> Arg {
    let mut help = field.doc.trim_end_matches('.').replace('\n', " ");
    let shown = match &field.default {
        Value::Null | Value::Bool(false) => None,
        Value::String(s) if s.is_empty() => None,
        Value::Array(a) if a.is_empty() => None,
        Value::Object(o) if o.is_empty() => None,
        Value::String(s) => Some(s.clone()),
        // As a flag takes it.
        Value::Array(a) => {
            let words = a
                .iter()
                .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
            Some(words.collect::<Vec<_>>().join(","))
        }
        other => Some(other.to_string()),
    };
    if let Some(value) = shown {
        help += &format!(" [default: {value}]");
    }
    let kind = field.kind.clone();
    let text = move |t: &str| kind.parse(t).map(|_| t.to_owned());
    let arg = Arg::new(id(&field.name))
        .long(field.name.replace('_', "-"))
        .aliases(aliases)
        .help(help)
        .action(ArgAction::Append)
        .value_hint(hint(&field.name))
        .value_name(field.kind.placeholder());
    match &field.kind {
        Kind::Bool => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .action(ArgAction::Set)
            .value_parser(PossibleValuesParser::new(["true", "false"])),
        Kind::Choice(words) => {
            let words = words.iter().map(|w| PossibleValue::new(w.clone()));
            let others = others.iter().map(|w| PossibleValue::new(*w).hide(true));
            arg.action(ArgAction::Set)
                .value_parser(PossibleValuesParser::new(words.chain(others)))
        }
        Kind::OneOf(kinds) if kinds.contains(&Kind::Bool) => arg
            .num_args(0..=1)
            .default_missing_value("true")
            .action(ArgAction::Set)
            .value_parser(ValueParser::new(text)),
        Kind::List(item) => match &**item {
            Kind::Choice(words) => arg.value_parser(offering(text, words)),
            _ => arg.value_parser(ValueParser::new(text)),
        },
        Kind::OneOf(_) => arg.value_parser(ValueParser::new(text)),
        Kind::Integer | Kind::Number => arg
            .action(ArgAction::Set)
            .allow_negative_numbers(true)
            .value_parser(ValueParser::new(text)),
        Kind::Text | Kind::Map => arg
            .action(ArgAction::Set)
            .value_parser(ValueParser::new(text)),
    }
}

/// What completions offer for the value of an option.
fn hint(name: &str) -> ValueHint {
    if name.ends_with("_dir") {
        ValueHint::DirPath
    } else if is_path(name) {
        ValueHint::AnyPath
    } else {
        ValueHint::Other
    }
}

impl<T: Options> clap::Args for Flags<T> {
    fn augment_args(cmd: clap::Command) -> clap::Command {
        let taken: Vec<String> = cmd
            .get_arguments()
            .filter_map(|a| a.get_long().map(str::to_owned))
            .collect();
        let aliases = |name: &str| -> Vec<String> {
            let of = T::ALIASES.iter().filter(|(_, f)| *f == name);
            of.map(|(a, _)| a.replace('_', "-")).collect()
        };
        // An option that the command has by itself is not one more flag.
        let new = fields::<T>()
            .into_iter()
            .filter(|f| !taken.contains(&f.name.replace('_', "-")));
        let others = |name: &str| -> Vec<&'static str> {
            let of = T::WORDS.iter().filter(|(field, ..)| *field == name);
            of.map(|(_, other, _)| *other).collect()
        };
        let made = |f: OptionField| arg(&f, aliases(&f.name), &others(&f.name));
        let args: Vec<Arg> = new.map(made).collect();
        cmd.args(args)
    }

    fn augment_args_for_update(cmd: clap::Command) -> clap::Command {
        Self::augment_args(cmd)
    }
}

impl<T: Options> clap::FromArgMatches for Flags<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut out = Flags::default();
        for field in fields::<T>() {
            let name = id(&field.name);
            let Ok(Some(values)) = matches.try_get_many::<String>(&name) else {
                continue;
            };
            let word = |v: &String| match options::word::<T>(&field.name, v) {
                Some(word) => field.kind.parse(word),
                None => field.kind.parse(v),
            };
            let values: Result<Vec<Value>, String> = values.map(word).collect();
            let mut values =
                values.map_err(|e| clap::Error::raw(clap::error::ErrorKind::InvalidValue, e))?;
            let value = match values.len() {
                0 => continue,
                1 => values.remove(0),
                _ => Value::Array(
                    values
                        .into_iter()
                        .flat_map(|v| match v {
                            Value::Array(a) => a,
                            v => vec![v],
                        })
                        .collect(),
                ),
            };
            out.given.insert(field.name, value);
        }
        let names: Vec<String> = fields::<T>().into_iter().map(|f| f.name).collect();
        options::check::<T>(&out.given).map_err(|e| refused(&e, &names))?;
        Ok(out)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.given.extend(Self::from_arg_matches(matches)?.given);
        Ok(())
    }
}

/// Flags of Hugging Face's scripts that change nothing here, or are refused with a reason. No help shows them.
#[derive(Clone, Debug, Default)]
pub(crate) struct OtherFlags {
    /// What was given, by name.
    pub(crate) given: Map<String, Value>,
}

impl clap::Args for OtherFlags {
    fn augment_args(cmd: clap::Command) -> clap::Command {
        let args = other_arguments().map(|(name, truth)| {
            let arg = Arg::new(id(name))
                .long(name.replace('_', "-"))
                .help("Changes nothing here")
                .hide(true);
            if truth {
                arg.num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
                    .value_parser(PossibleValuesParser::new(["true", "false"]))
            } else {
                arg.allow_hyphen_values(true)
            }
        });
        cmd.args(args.collect::<Vec<Arg>>())
    }

    fn augment_args_for_update(cmd: clap::Command) -> clap::Command {
        Self::augment_args(cmd)
    }
}

impl clap::FromArgMatches for OtherFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut out = OtherFlags::default();
        for (name, _) in other_arguments() {
            if let Ok(Some(text)) = matches.try_get_one::<String>(&id(name)) {
                // Python's words for nothing and for the two truth values.
                let value = match text.as_str() {
                    "None" => Value::Null,
                    "True" => true.into(),
                    "False" => false.into(),
                    text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
                };
                out.given.insert(name.to_owned(), value);
            }
        }
        let names: Vec<String> = other_arguments().map(|(n, _)| n.to_owned()).collect();
        check_other_arguments(&out.given).map_err(|e| refused(&e, &names))?;
        Ok(out)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.given.extend(Self::from_arg_matches(matches)?.given);
        Ok(())
    }
}
