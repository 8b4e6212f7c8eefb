//! References to the Hub in the place of files: `hub:org/name@revision:path`. They are pulled before anything else is done.

use super::event::OnEvent;
use crate::error::Result;
use serde_json::{Map, Value};

#[cfg(feature = "hub")]
pub(crate) use pull::fetched;

/// What a setting stands for.
#[cfg(feature = "hub")]
pub(crate) use crate::hub::Want;

/// What a setting stands for.
#[cfg(not(feature = "hub"))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Model,
    Adapter,
    Interface,
    Tokenizer,
    Data,
}

/// What the text of a setting stands for; `None` where it is no file.
pub(crate) fn wanted(setting: &str) -> Option<Want> {
    match setting {
        "interface" => Some(Want::Interface),
        "adapter" => Some(Want::Adapter),
        "tokenizer" => Some(Want::Tokenizer),
        "data" | "eval_data" => Some(Want::Data),
        "model" => Some(Want::Model),
        _ => None,
    }
}

/// Pulls what settings refer to, and puts the files of this machine in their place.
pub(super) fn fetch(settings: &mut Map<String, Value>, events: OnEvent<'_>) -> Result<()> {
    for (name, value) in settings.iter_mut() {
        if let Some(want) = wanted(name) {
            local(value, want, events)?;
        }
    }
    Ok(())
}

fn local(value: &mut Value, want: Want, events: OnEvent<'_>) -> Result<()> {
    match value {
        Value::String(text) => {
            if let Some(paths) = fetched(text, want, events)? {
                *value = match &paths[..] {
                    [one] => Value::String(one.clone()),
                    many => many.iter().cloned().map(Value::String).collect(),
                };
            }
            Ok(())
        }
        Value::Array(list) => list.iter_mut().try_for_each(|v| local(v, want, events)),
        Value::Object(map) => map.values_mut().try_for_each(|v| local(v, want, events)),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

#[cfg(feature = "hub")]
mod pull {
    use super::super::event::{Event, OnEvent};
    use crate::error::Result;
    use crate::hub::{Want, resolve};
    use std::path::PathBuf;

    /// The files that a text stands for; `NAME=hub:…` keeps its name.
    pub(crate) fn fetched(
        text: &str,
        want: Want,
        events: OnEvent<'_>,
    ) -> Result<Option<Vec<String>>> {
        let (name, reference) = match text.split_once('=') {
            Some((name, rest)) if rest.starts_with("hub:") && want == Want::Adapter => {
                (format!("{name}="), rest)
            }
            _ => (String::new(), text),
        };
        let mut last = String::new();
        let mut heard = Ok(());
        let found = resolve(reference, want, &mut |t| {
            if t.file != last && heard.is_ok() {
                t.file.clone_into(&mut last);
                heard = events(&Event::Note(format!("pulling {}", t.file)));
            }
        })?;
        heard?;
        let shown = |p: PathBuf| format!("{name}{}", p.display());
        Ok(found.map(|paths| paths.into_iter().map(shown).collect()))
    }
}

/// Refuses references: this build has no Hub.
#[cfg(not(feature = "hub"))]
fn fetched(text: &str, _: Want, _: OnEvent<'_>) -> Result<Option<Vec<String>>> {
    use crate::diag::Diagnostic;
    use crate::error::{Error, ErrorKind};
    let refers = text.starts_with("hub:") || text.contains("=hub:");
    if !refers {
        return Ok(None);
    }
    let d = Diagnostic::error("hub-missing", format!("`{text}` is on the Hub"));
    Err(Error::new(
        ErrorKind::Unsupported,
        d.help("build with the feature `hub`"),
    ))
}
