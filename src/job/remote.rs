//! References to the Hub in the place of files: `hub:org/name@revision:path`. They are pulled before anything else is done.

use super::event::OnEvent;
use crate::error::Result;
use serde_json::{Map, Value};

#[cfg(feature = "hub")]
use pull::data;
#[cfg(feature = "hub")]
pub(crate) use pull::fetched;
#[cfg(feature = "hub")]
pub(super) use pull::model;

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
        _ => None,
    }
}

/// Pulls what settings refer to, and puts the files of this machine in their place.
pub(super) fn fetch(settings: &mut Map<String, Value>, events: OnEvent<'_>) -> Result<()> {
    let config = settings.get("data_config").and_then(Value::as_str);
    let config = config.map(str::to_owned);
    let variant = settings.get("variant").and_then(Value::as_str);
    let variant = variant.map(str::to_owned);
    if let Some(Value::String(text)) = settings.get_mut("model")
        && let Some(path) = model(text, variant.as_deref(), false, events)?
    {
        *text = path.display().to_string();
    }
    for (name, value) in settings.iter_mut() {
        if let Some(want) = wanted(name) {
            local(value, want, config.as_deref(), events)?;
        }
    }
    Ok(())
}

fn local(value: &mut Value, want: Want, config: Option<&str>, events: OnEvent<'_>) -> Result<()> {
    match value {
        Value::String(text) if want == Want::Data => {
            if let Some(splits) = data(text, config, events)? {
                *value = splits;
            }
            Ok(())
        }
        Value::String(text) => {
            if let Some(paths) = fetched(text, want, events)? {
                *value = match &paths[..] {
                    [one] => Value::String(one.clone()),
                    many => many.iter().cloned().map(Value::String).collect(),
                };
            }
            Ok(())
        }
        Value::Array(list) => list
            .iter_mut()
            .try_for_each(|v| local(v, want, config, events)),
        Value::Object(map) => map
            .values_mut()
            .try_for_each(|v| local(v, want, config, events)),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

#[cfg(feature = "hub")]
mod pull {
    use super::super::event::{Event, OnEvent};
    use crate::disk;
    use crate::error::Result;
    use crate::hub::{Hub, Pattern, Reference, Sought, Transfer, Want, resolve};
    use crate::train::Splits;
    use serde_json::{Map, Value};
    use std::path::PathBuf;

    /// Says the name of each file whose transfer begins, as long as somebody listens.
    struct Said<'a> {
        last: String,
        heard: Result<()>,
        events: OnEvent<'a>,
    }

    impl<'a> Said<'a> {
        fn new(events: OnEvent<'a>) -> Self {
            Said {
                last: String::new(),
                heard: Ok(()),
                events,
            }
        }

        fn transfer(&mut self, t: Transfer<'_>) {
            if t.file != self.last && self.heard.is_ok() {
                t.file.clone_into(&mut self.last);
                self.heard = (self.events)(&Event::Note(format!("pulling {}", t.file)));
            }
        }
    }

    /// The files of a data set on the Hub by split, of the configuration that is named: behind a colon in the reference, or by
    /// `config`. A reference to one file is that file. Only what belongs to the configuration is pulled.
    pub(super) fn data(
        text: &str,
        config: Option<&str>,
        events: OnEvent<'_>,
    ) -> Result<Option<Value>> {
        if !text.starts_with("hub:") {
            return Ok(None);
        }
        let reference = Reference::parse(text)?;
        let hub = Hub::from_env()?;
        let listing = hub.list(&reference)?;
        let names: Vec<String> = listing.files.iter().map(|f| f.path.clone()).collect();
        let mut said = Said::new(events);
        let mut pull = |files: &[String]| {
            let pulled = hub.pull_named(&reference, &listing, files, &mut |t| said.transfer(t))?;
            Ok::<_, crate::error::Error>(pulled)
        };
        let path = reference.path.as_deref();
        if let Some(file) = path.filter(|p| names.iter().any(|n| n == p)) {
            let folder = pull(&[file.to_owned()])?;
            said.heard?;
            return Ok(Some(folder.join(file).display().to_string().into()));
        }
        let card = "README.md".to_owned();
        let splits = match path {
            Some(glob) if glob.contains(['*', '?', '[']) => {
                let pattern = Pattern::new(glob);
                let found = names.into_iter().filter(|n| pattern.matches(n));
                let names: Vec<String> = found.collect();
                Splits::of_files(&names, text)?
            }
            path => {
                let card = if names.contains(&card) {
                    let folder = pull(std::slice::from_ref(&card))?;
                    disk::text(folder.join(&card)).ok()
                } else {
                    None
                };
                Splits::of(&names, card.as_deref(), path.or(config), text)?
            }
        };
        let all: Vec<String> = splits.all.iter().flat_map(|(_, f)| f.clone()).collect();
        let folder = pull(&all)?;
        said.heard?;
        let local = |files: &[String]| -> Value {
            let paths = files.iter().map(|f| folder.join(f).display().to_string());
            paths.map(Value::String).collect()
        };
        let splits: Map<String, Value> = splits
            .all
            .iter()
            .map(|(name, files)| (name.clone(), local(files)))
            .collect();
        Ok(Some(Value::Object(splits)))
    }

    /// The file of a model that a text stands for; the folder of its parts, where encoder and decoder are files of their own.
    pub(in super::super) fn model(
        text: &str,
        variant: Option<&str>,
        every_part: bool,
        events: OnEvent<'_>,
    ) -> Result<Option<PathBuf>> {
        let sought = Sought {
            want: Want::Model,
            variant,
            every_part,
        };
        let mut said = Said::new(events);
        let found = resolve(text, sought, &mut |t| said.transfer(t))?;
        said.heard?;
        Ok(found.and_then(|paths| paths.into_iter().next()))
    }

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
        let mut said = Said::new(events);
        let found = resolve(reference, want.into(), &mut |t| said.transfer(t))?;
        said.heard?;
        let shown = |p: PathBuf| format!("{name}{}", p.display());
        Ok(found.map(|paths| paths.into_iter().map(shown).collect()))
    }
}

/// Refuses references: this build has no Hub.
#[cfg(not(feature = "hub"))]
fn data(text: &str, _: Option<&str>, events: OnEvent<'_>) -> Result<Option<Value>> {
    fetched(text, Want::Data, events).map(|_| None)
}

/// Refuses references: this build has no Hub.
#[cfg(not(feature = "hub"))]
pub(super) fn model(
    text: &str,
    _: Option<&str>,
    _: bool,
    events: OnEvent<'_>,
) -> Result<Option<std::path::PathBuf>> {
    fetched(text, Want::Model, events).map(|_| None)
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
