//! References in the place of files: `hub:org/name@revision:path`.

use super::pull::nothing;
use super::{Hub, IntoError, Listing, OnTransfer, Pattern, Pulled, Reference, RemoteFile, fail};
use crate::diag::Diagnostic;
use crate::error::{Error, Result};
use crate::onnx::layout::{self, Layout, Listed, Unclear};
use std::path::{Path, PathBuf};

/// What a reference stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// An ONNX file, with its data files, and with configuration and tokenizer beside it.
    Model,
    /// An adapter folder, AdapterHub's or PEFT's.
    Adapter,
    /// An `adapter_interface.json`.
    Interface,
    /// A `tokenizer.json`, with the files that say more about it.
    Tokenizer,
    /// Files of rows: a data set, with splits and configurations, which the Hub knows nothing of.
    Data,
}

/// What an adapter consists of.
const ADAPTER: [&str; 14] = [
    "adapter_config.json",
    "adapter_interface.json",
    "adapter.safetensors",
    "pytorch_adapter.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "head_config.json",
    "model_head.safetensors",
    "pytorch_model_head.bin",
    "adapter_fusion_config.json",
    "model_adapter_fusion.safetensors",
    "pytorch_model_adapter_fusion.bin",
    "setup.json",
    "chat_template.jinja",
];
/// What is read beside a model or a tokenizer.
const BESIDE: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "adapter_interface.json",
];

/// What is looked for in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sought<'a> {
    /// What it is.
    pub want: Want,
    /// The variant of a model; full precision without one.
    pub variant: Option<&'a str>,
    /// Every file of an encoder-decoder, and not only those that its computation needs.
    pub every_part: bool,
}

impl From<Want> for Sought<'_> {
    fn from(want: Want) -> Self {
        Sought {
            want,
            variant: None,
            every_part: false,
        }
    }
}

/// Pulls what a text refers to, if it begins with `hub:`: one file, or the folder of an adapter or of an encoder and its decoder.
///
/// # Errors
/// References that are none, and what [`Hub::pull`] refuses.
pub(crate) fn resolve(
    text: &str,
    sought: Sought<'_>,
    on: OnTransfer<'_>,
) -> Result<Option<Vec<PathBuf>>> {
    if !text.starts_with("hub:") {
        return Ok(None);
    }
    let reference = Reference::parse(text)?;
    Hub::from_env()?.find(&reference, sought, on).map(Some)
}

impl Hub {
    /// Pulls what a reference stands for, and says where it is.
    ///
    /// # Errors
    /// A repository without it, or with several that it could be; what [`Hub::pull`] refuses.
    pub(crate) fn find(
        &self,
        reference: &Reference,
        sought: Sought<'_>,
        on: OnTransfer<'_>,
    ) -> Result<Vec<PathBuf>> {
        let (main, _) = self.pull_sought(reference, sought, on)?;
        let folder = sought.want == Want::Adapter || (sought.want == Want::Model && main.len() > 1);
        if folder {
            let parent = main.first().and_then(|f| f.parent());
            return Ok(parent.map(Path::to_path_buf).into_iter().collect());
        }
        Ok(main)
    }

    /// Pulls what a reference stands for with all that comes along: the files that are meant, and everything that was pulled.
    ///
    /// # Errors
    /// See [`Hub::find`].
    pub(crate) fn pull_sought(
        &self,
        reference: &Reference,
        sought: Sought<'_>,
        on: OnTransfer<'_>,
    ) -> Result<(Vec<PathBuf>, Pulled)> {
        let listing = self.list(reference)?;
        let (main, more) = chosen(reference, sought, &listing).map_err(|e| self.unseen(e))?;
        let wanted = main.iter().chain(&more).copied().collect();
        let pulled = self.pull_files(reference, &listing, wanted, on)?;
        let main = main.iter().map(|f| pulled.folder.join(&f.path)).collect();
        Ok((main, pulled))
    }

    /// The error of a file that is not found, with a word on what was looked through.
    fn unseen(&self, e: Error) -> Error {
        if !self.offline {
            return e;
        }
        let told = |d: &Diagnostic| {
            d.clone()
                .note("the Hub must not be asked: only what is in the cache is seen")
        };
        Error::many(e.kind(), e.findings().iter().map(told).collect())
    }

    /// Pulls files of a listing by name, and says which folder they are in.
    pub(crate) fn pull_named(
        &self,
        reference: &Reference,
        listing: &Listing,
        names: &[String],
        on: OnTransfer<'_>,
    ) -> Result<PathBuf> {
        let names: std::collections::BTreeSet<&String> = names.iter().collect();
        let wanted = listing.files.iter().filter(|f| names.contains(&f.path));
        self.pull_files(reference, listing, wanted.collect(), on)
            .map(|pulled| pulled.folder)
    }
}

type Files<'a> = Vec<&'a RemoteFile>;

/// The files that are meant, and those that come along.
fn chosen<'a>(
    reference: &Reference,
    sought: Sought<'_>,
    listing: &'a Listing,
) -> Result<(Files<'a>, Files<'a>)> {
    let want = sought.want;
    let inside = scope(reference, listing)?;
    let exact = reference
        .path
        .as_deref()
        .filter(|p| inside.len() == 1 && inside[0].path == **p);
    let named = |name: &str| -> Files<'a> {
        let exact = exact.is_some();
        inside
            .iter()
            .filter(|f| exact || base(&f.path) == name)
            .copied()
            .collect()
    };
    let (main, what) = match want {
        Want::Model => {
            let main = model(reference, sought, &inside, listing)?;
            let more = along(want, main[0], listing);
            return Ok((main, more));
        }
        Want::Data => (inside.clone(), "data"),
        Want::Interface => (named("adapter_interface.json"), "adapter_interface.json"),
        Want::Tokenizer => (named("tokenizer.json"), "tokenizer.json"),
        Want::Adapter => (named("adapter_config.json"), "adapter_config.json"),
    };
    let one = the_one(&main).ok_or_else(|| missing(reference, what, &main))?;
    Ok((vec![one], along(want, one, listing)))
}

/// The files of a model: the one that is named, else those of the variant.
fn model<'a>(
    reference: &Reference,
    sought: Sought<'_>,
    inside: &Files<'a>,
    listing: &'a Listing,
) -> Result<Files<'a>> {
    let onnx = inside.iter().filter(|f| is(&f.path, "onnx")).copied();
    let onnx: Files<'a> = onnx.collect();
    let pointed = reference.path.is_some() && sought.variant.is_none();
    if let ([one], true) = (&onnx[..], pointed) {
        return Ok(vec![one]);
    }
    let exact = reference.path.as_ref().filter(|p| inside[0].path == **p);
    if let (Some(path), Some(variant)) = (exact, sought.variant) {
        if layout::is_variant(path, variant) {
            return Ok(inside.clone());
        }
        let d = fail(
            "model-variant",
            format!("`{path}` is not the variant `{variant}`"),
        );
        let d = d.at(reference.to_string());
        return Err(d.help("name the file, or the variant").into_error());
    }
    let scoped = |f: &&RemoteFile| inside.iter().any(|i| i.path == f.path) || !is(&f.path, "onnx");
    let listed = listing.files.iter().filter(scoped);
    let listed: Vec<Listed<'_>> = listed.map(|f| (&*f.path, f.size)).collect();
    let found = match layout::choose(&listed, sought.variant) {
        Ok(found) => found,
        Err(Unclear::Told(d)) => return Err(d.at(reference.to_string()).into_error()),
        Err(Unclear::Strange) => {
            return match &onnx[..] {
                [one] if sought.variant.is_none() => Ok(vec![one]),
                all => Err(missing(reference, "ONNX model", all)),
            };
        }
    };
    let Layout {
        model,
        decoder,
        more,
    } = found;
    let more = more.into_iter().filter(|_| sought.every_part);
    let paths = std::iter::once(model).chain(decoder).chain(more);
    let file = |path: String| inside.iter().find(|f| f.path == path).copied();
    Ok(paths.filter_map(file).collect())
}

/// The files of the listing that the reference's path covers: a file, a folder, a pattern; all without a path.
fn scope<'a>(reference: &Reference, listing: &'a Listing) -> Result<Files<'a>> {
    let Some(path) = &reference.path else {
        return Ok(listing.files.iter().collect());
    };
    if let Some(file) = listing.files.iter().find(|f| f.path == *path) {
        return Ok(vec![file]);
    }
    let (folder, pattern) = (format!("{path}/"), Pattern::new(path));
    let found: Files<'_> = listing
        .files
        .iter()
        .filter(|f| f.path.starts_with(&folder) || pattern.matches(&f.path))
        .collect();
    if found.is_empty() {
        return Err(nothing(reference, path, listing).into_error());
    }
    Ok(found)
}

/// The only file, or the one with the plainest name in the outermost folder.
fn the_one<'a>(files: &[&'a RemoteFile]) -> Option<&'a RemoteFile> {
    if let [one] = files {
        return Some(one);
    }
    let depth = |f: &RemoteFile| f.path.matches('/').count();
    let least = files.iter().map(|f| depth(f)).min()?;
    let plain = [
        "adapter_interface.json",
        "tokenizer.json",
        "adapter_config.json",
    ];
    let mut outer = files
        .iter()
        .filter(|f| depth(f) == least && plain.contains(&base(&f.path)));
    match (outer.next(), outer.next()) {
        (Some(one), None) => Some(one),
        _ => None,
    }
}

/// What is pulled with a file: what is read beside it.
fn along<'a>(want: Want, one: &RemoteFile, listing: &'a Listing) -> Files<'a> {
    let folder = folder_of(&one.path);
    let names: &[&str] = match want {
        Want::Adapter => &ADAPTER,
        Want::Model | Want::Tokenizer => &BESIDE,
        Want::Interface | Want::Data => &[],
    };
    let file = |path: &str| listing.files.iter().find(|f| f.path == path);
    let beside = |name: &str| match folder {
        "" => file(name),
        _ => file(&format!("{folder}/{name}")),
    };
    let torch = |name: &str| is(name, "bin");
    let safe = names
        .iter()
        .any(|n| is(n, "safetensors") && beside(n).is_some());
    names
        .iter()
        .filter(|n| !(torch(n) && safe))
        // Exports often lie in a folder below what they were exported from.
        .filter_map(|n| beside(n).or_else(|| file(n).filter(|_| want == Want::Model)))
        .filter(|f| f.path != one.path)
        .collect()
}

fn missing(reference: &Reference, what: &str, found: &[&RemoteFile]) -> Error {
    let d = match found {
        [] => fail("hub-file", format!("the repository has no {what}")),
        _ => fail(
            "hub-file",
            format!("the repository has several: which {what} is meant?"),
        )
        .note(
            found
                .iter()
                .map(|f| f.path.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        ),
    };
    d.at(reference.to_string())
        .help(format!(
            "name it: `hub:{}@{}:PATH`",
            reference.page(),
            reference.revision
        ))
        .into_error()
}

/// Whether a path has an extension.
fn is(path: &str, extension: &str) -> bool {
    Path::new(path)
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(f, _)| f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(reference: &str, want: Want, files: &[&str]) -> Result<String> {
        let listing = Listing {
            commit: "0".repeat(40),
            files: files
                .iter()
                .map(|p| RemoteFile {
                    path: (*p).to_owned(),
                    size: None,
                })
                .collect(),
        };
        let (main, more) = chosen(&Reference::parse(reference)?, want.into(), &listing)?;
        let names = |l: Files<'_>| {
            l.iter()
                .map(|f| f.path.clone())
                .collect::<Vec<_>>()
                .join(" ")
        };
        Ok(format!("{} + {}", names(main), names(more)))
    }

    #[test]
    fn a_reference_stands_for_what_is_wanted() {
        let repo = [
            "config.json",
            "onnx/config.json",
            "onnx/model.onnx",
            "onnx/model_q4.onnx",
            "tokenizer.json",
            "tokenizer_config.json",
        ];
        let model = |r: &str| choose(r, Want::Model, &repo);
        assert_eq!(
            model("a/b").unwrap(),
            "onnx/model.onnx + onnx/config.json tokenizer.json tokenizer_config.json"
        );
        assert_eq!(
            model("a/b:onnx/model_q4.onnx").unwrap(),
            "onnx/model_q4.onnx + onnx/config.json tokenizer.json tokenizer_config.json"
        );
        assert_eq!(
            model("a/b:*q4.onnx").unwrap(),
            "onnx/model_q4.onnx + onnx/config.json tokenizer.json tokenizer_config.json"
        );
        let tokenizer = choose("a/b", Want::Tokenizer, &repo).unwrap();
        assert_eq!(
            tokenizer,
            "tokenizer.json + config.json tokenizer_config.json"
        );
        assert!(
            choose("a/b", Want::Model, &["x.onnx", "y.onnx"])
                .unwrap_err()
                .to_string()
                .contains("x.onnx, y.onnx")
        );
        assert!(
            choose("a/b", Want::Adapter, &repo)
                .unwrap_err()
                .to_string()
                .contains("adapter_config.json")
        );
        assert!(choose("a/b:nope", Want::Model, &repo).is_err());
    }

    #[test]
    fn adapters_come_as_several_files() {
        let repo = [
            "README.md",
            "adapter.safetensors",
            "adapter_config.json",
            "pytorch_adapter.bin",
            "sub/adapter_config.json",
        ];
        assert_eq!(
            choose("a/b", Want::Adapter, &repo).unwrap(),
            "adapter_config.json + adapter.safetensors"
        );
        assert_eq!(
            choose("a/b:sub", Want::Adapter, &repo).unwrap(),
            "sub/adapter_config.json + "
        );
    }
}
