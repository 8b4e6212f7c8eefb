//! References to the Hub in the place of files: `hub:org/name@revision:path`. They are pulled before anything else is done, so that
//! every command takes them where it takes a file. Only a model waits until the flags are known that say which of its variants is meant.

use super::Ui;
use crate::error::Result;
use crate::job::{Want, fetched, wanted};
use std::ffi::OsString;

/// The name of the setting that a flag gives.
fn setting(flag: &str) -> String {
    match flag {
        "-i" => "interface".to_owned(),
        "-a" => "adapter".to_owned(),
        long => long.trim_start_matches("--").replace('-', "_"),
    }
}

/// The command line with what it refers to on this machine. The `hub` command has its own ways, and texts stay what they are.
pub(super) fn arguments(given: Vec<OsString>, ui: &Ui) -> Result<Vec<OsString>> {
    let refers = |a: &OsString| a.to_str().is_some_and(|t| t.contains("hub:"));
    if !given.iter().any(refers) || given.get(1).is_some_and(|c| c == "hub") {
        return Ok(given);
    }
    let named = given.get(1).and_then(|c| c.to_str()).map(str::to_owned);
    let positional = match named.as_deref() {
        Some("strip" | "diff" | "tenants") => Some(Want::Model),
        Some("adapter") => Some(Want::Adapter),
        _ => None,
    };
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
            (None, None) => (String::new(), text),
        };
        let wanted = if flag.is_empty() {
            positional
        } else {
            wanted(&setting(&flag))
        };
        let found = match wanted {
            // The job knows of splits and configurations.
            Some(Want::Data) | None => None,
            Some(want) => fetched(value, want, &mut |event| {
                ui.event(event);
                Ok(())
            })?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_files_stay_what_they_are() {
        let ui = Ui {
            json: false,
            quiet: true,
            verbose: 0,
            events: false,
            door: None,
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
