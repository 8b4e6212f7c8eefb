//! References to the Hub in the place of files: `hub:org/name@revision:path`. They are pulled before anything else is done, so that
//! every command takes them where it takes a file.

use super::Ui;
use crate::error::Result;
use crate::hub::{Want, resolve};
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::path::PathBuf;

/// What the value of a flag, or of a job's field, stands for; `None` for text.
fn wanted(flag: &str) -> Option<Want> {
    match flag {
        "-i" | "--interface" | "interface" => Some(Want::Interface),
        "-a" | "--adapter" | "adapter" => Some(Want::Adapter),
        "--tokenizer" | "tokenizer" => Some(Want::Tokenizer),
        "--data" | "--eval-data" | "data" | "eval_data" => Some(Want::Data),
        "model" => Some(Want::Model),
        _ => None,
    }
}

/// The files that a value stands for; `NAME=hub:…` keeps its name.
fn fetched(value: &str, want: Want, ui: &Ui) -> Result<Option<Vec<String>>> {
    let (name, reference) = match value.split_once('=') {
        Some((name, rest)) if rest.starts_with("hub:") && want == Want::Adapter => {
            (format!("{name}="), rest)
        }
        _ => (String::new(), value),
    };
    let mut last = String::new();
    let found = resolve(reference, want, &mut |t| {
        if t.file != last {
            t.file.clone_into(&mut last);
            ui.note(&format!("pulling {}", t.file));
        }
    })?;
    let shown = |p: PathBuf| format!("{name}{}", p.display());
    Ok(found.map(|paths| paths.into_iter().map(shown).collect()))
}

/// The command line with what it refers to on this machine. The `hub` command has its own ways, and texts stay what they are.
pub(super) fn arguments(given: Vec<OsString>, ui: &Ui) -> Result<Vec<OsString>> {
    let refers = |a: &OsString| a.to_str().is_some_and(|t| t.contains("hub:"));
    if !given.iter().any(refers) || given.get(1).is_some_and(|c| c == "hub") {
        return Ok(given);
    }
    let mut out: Vec<OsString> = Vec::new();
    for arg in given {
        let Some(text) = arg.to_str().filter(|t| t.contains("hub:")) else {
            out.push(arg);
            continue;
        };
        let inline = text
            .split_once('=')
            .filter(|(flag, _)| flag.starts_with('-'));
        let before = out
            .last()
            .and_then(|a| a.to_str())
            .filter(|f| f.starts_with('-'))
            .map(str::to_owned);
        let (flag, value) = match (inline, before) {
            (Some((flag, value)), _) => (flag.to_owned(), value),
            (None, Some(flag)) => (flag, text),
            (None, None) => ("model".to_owned(), text),
        };
        let found = match wanted(&flag) {
            Some(want) => fetched(value, want, ui)?,
            None => None,
        };
        let Some(paths) = found else {
            out.push(arg);
            continue;
        };
        for (i, path) in paths.into_iter().enumerate() {
            if inline.is_some() {
                out.push(format!("{flag}={path}").into());
            } else if i == 0 {
                out.push(path.into());
            } else {
                out.extend([flag.clone().into(), path.into()]);
            }
        }
    }
    Ok(out)
}

/// The fields of a job with what they refer to on this machine.
pub(super) fn job(options: &mut Map<String, Value>, ui: &Ui) -> Result<()> {
    for (field, value) in options.iter_mut() {
        if let Some(want) = wanted(field) {
            local(value, want, ui)?;
        }
    }
    Ok(())
}

fn local(value: &mut Value, want: Want, ui: &Ui) -> Result<()> {
    match value {
        Value::String(text) => {
            if let Some(paths) = fetched(text, want, ui)? {
                *value = match &paths[..] {
                    [one] => Value::String(one.clone()),
                    many => many.iter().cloned().map(Value::String).collect(),
                };
            }
            Ok(())
        }
        Value::Array(list) => list.iter_mut().try_for_each(|v| local(v, want, ui)),
        Value::Object(map) => map.values_mut().try_for_each(|v| local(v, want, ui)),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_files_stay_what_they_are() {
        let ui = Ui {
            json: false,
            quiet: true,
            verbose: 0,
        };
        let line = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for given in [
            "rewrite run model.onnx --inputs in.safetensors",
            "rewrite hub pull hub:org/name",
            "rewrite generate m.onnx --prompt hub:what",
        ] {
            assert_eq!(arguments(line(given), &ui).unwrap(), line(given));
        }
    }
}
