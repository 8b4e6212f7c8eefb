//! Flags made from the options of a struct: kebab-case names, with the field's documentation as help.

use crate::options::{Kind, OptionField, Options, fields};
use clap::builder::{PossibleValuesParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches};
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

/// An id apart from the fields of the derived commands.
fn id(name: &str) -> String {
    format!("option.{name}")
}

fn arg(field: &OptionField, aliases: Vec<String>) -> Arg {
    let mut help = field.doc.trim_end_matches('.').replace('\n', " ");
    let shown = match &field.default {
        Value::Null | Value::Bool(false) => None,
        Value::String(s) if s.is_empty() => None,
        Value::Array(a) if a.is_empty() => None,
        Value::Object(o) if o.is_empty() => None,
        Value::String(s) => Some(s.clone()),
        other => Some(other.to_string()),
    };
    if let Some(value) = shown {
        help += &format!(" [default: {value}]");
    }
    let kind = field.kind.clone();
    let arg = Arg::new(id(&field.name))
        .long(field.name.replace('_', "-"))
        .aliases(aliases)
        .help(help)
        .action(ArgAction::Append)
        .value_name(field.kind.placeholder());
    match &field.kind {
        Kind::Bool => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .action(ArgAction::Set)
            .value_parser(PossibleValuesParser::new(["true", "false"])),
        Kind::Choice(words) => arg
            .action(ArgAction::Set)
            .value_parser(PossibleValuesParser::new(words.clone())),
        Kind::OneOf(kinds) if kinds.contains(&Kind::Bool) => arg
            .num_args(0..=1)
            .default_missing_value("true")
            .action(ArgAction::Set)
            .value_parser(ValueParser::new(move |t: &str| {
                kind.parse(t).map(|_| t.to_owned())
            })),
        Kind::List(_) | Kind::OneOf(_) => arg.value_parser(ValueParser::new(move |t: &str| {
            kind.parse(t).map(|_| t.to_owned())
        })),
        Kind::Integer | Kind::Number => arg
            .action(ArgAction::Set)
            .allow_negative_numbers(true)
            .value_parser(ValueParser::new(move |t: &str| {
                kind.parse(t).map(|_| t.to_owned())
            })),
        Kind::Text | Kind::Map => {
            arg.action(ArgAction::Set)
                .value_parser(ValueParser::new(move |t: &str| {
                    kind.parse(t).map(|_| t.to_owned())
                }))
        }
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
        let args: Vec<Arg> = new.map(|f| arg(&f, aliases(&f.name))).collect();
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
            let values: Result<Vec<Value>, String> = values.map(|v| field.kind.parse(v)).collect();
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
        Ok(out)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.given.extend(Self::from_arg_matches(matches)?.given);
        Ok(())
    }
}
