//! Which files of a data set are which split: the rules of `datasets` (5.0.1), for a folder and for a repository on the Hub alike.
//!
//! Looks at names and at the card (`README.md`) alone, and reads no data, so that only what belongs to a configuration is pulled from the
//! Hub, and a listing there and a folder here get one answer. In this order: the configurations that the card lists;
//! `data/SPLIT-00000-of-00001.*`; a word such as `train` or `test` in the names of folders; one in the names of files; all files as
//! `train`. Unlike `datasets`, letters of any case are the same (`Test.jsonl` is not trained on), and folders that are data sets of their
//! own are not read as one.

mod card;
mod choose;
mod glob;
mod slice;

pub(super) use choose::{Part, meet};

use super::source::{FORMATS, Format};
use crate::diag::{Diagnostic, nearest};
use crate::error::{Error, ErrorKind, Result};
use card::Configuration;
use glob::Glob;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::LazyLock;

/// The words of each split, in the order in which they are looked for.
const WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];
/// Patterns of a split: for each of its words, in names of folders or of files. `-._ 0-9` are the characters that set words off.
type Patterns = LazyLock<[Vec<Glob>; 3]>;
static IN_FOLDERS: Patterns = LazyLock::new(|| {
    patterns(&[
        "**/{word}/**",
        "**/{word}[-._ 0-9]*/**",
        "**/*[-._ 0-9]{word}/**",
        "**/*[-._ 0-9]{word}[-._ 0-9]*/**",
    ])
});
static IN_FILES: Patterns =
    LazyLock::new(|| patterns(&["**/{word}[-._ 0-9]*", "**/*[-._ 0-9]{word}[-._ 0-9]*"]));

fn patterns(forms: &[&str]) -> [Vec<Glob>; 3] {
    WORDS.map(|(_, words)| {
        let of = |word: &&str| {
            forms
                .iter()
                .map(|form| Glob::new(&form.replace("{word}", word)))
                .collect::<Vec<_>>()
        };
        words.iter().flat_map(of).collect()
    })
}

const SHARDS: &str = "[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]*.*";
/// Files that describe a data set.
const DESCRIBING: [&str; 4] = [
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
];

/// The files of a data set by split. Paths are relative to its folder, with slashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Splits {
    /// Name and files of each.
    pub(crate) all: Vec<(String, Vec<String>)>,
    /// Whether something says the splits. Otherwise all files are `train`.
    pub(crate) named: bool,
}

/// The split that a word stands for, where a data set has none of that name.
fn canonical(word: &str) -> Option<&'static str> {
    let found = WORDS.iter().find(|(_, words)| words.contains(&word));
    found.map(|(split, _)| *split)
}

impl Splits {
    /// The splits of a configuration of a data set with these files; `at` is where it is, for messages. `config` is a configuration of
    /// the card or a folder.
    ///
    /// # Errors
    /// No data files; a configuration that does not exist, or that must be chosen; splits in different formats.
    pub(crate) fn of(
        files: &[String],
        card: Option<&str>,
        config: Option<&str>,
        at: &str,
    ) -> Result<Splits> {
        let listed = card.map_or(Ok(Vec::new()), card::configurations);
        let listed = listed.map_err(|what| {
            let d = wrong(
                "dataset-card",
                format!("the head of README.md cannot be read: {what}"),
            );
            failed(d.help("mend it, or name the data files"), at)
        })?;
        let rows: Vec<&str> = files
            .iter()
            .map(String::as_str)
            .filter(|f| holds_rows(f))
            .collect();
        let folders = || -> BTreeSet<&str> {
            let above = |f: &&'_ str| f.match_indices('/').map(|(at, _)| at).collect::<Vec<_>>();
            rows.iter()
                .flat_map(|f| above(f).into_iter().map(|at| &f[..at]))
                .collect()
        };
        let chosen = match config {
            Some(name) => listed.iter().find(|c| c.name == name),
            None => card::default(&listed),
        };
        if let Some(Configuration { name, unknown, .. }) = chosen
            && !unknown.is_empty()
        {
            let said = unknown.join("`, `");
            let message = format!(
                "the card says how the files of the configuration `{name}` are read, which is not followed here: `{said}`"
            );
            let help = "name the data files, as JSON lines, or as CSV with commas and a line of column names";
            return Err(failed(wrong("dataset-card", message).help(help), at));
        }
        if let Some(configuration) = chosen {
            return configuration.splits(&rows, at);
        }
        match config {
            None | Some("default") if listed.is_empty() => by_names(&rows, Some(""), files, at),
            None => {
                let names = names(&listed);
                let d = wrong(
                    "dataset-config",
                    "the data set has several configurations, and none is the default".to_owned(),
                );
                let d = d.note(format!("configurations: {}", names.join(", ")));
                Err(failed(d.help("choose one: `data_config`"), at))
            }
            Some(name) if folders().contains(name.trim_end_matches('/')) => {
                by_names(&rows, Some(name.trim_end_matches('/')), files, at)
            }
            Some(name) => {
                let folders = folders();
                let known: Vec<&str> = if listed.is_empty() {
                    folders.into_iter().collect()
                } else {
                    names(&listed)
                };
                let d = wrong(
                    "dataset-config",
                    format!("the data set has no configuration `{name}`"),
                );
                let d = match nearest(name, known.iter().copied()) {
                    Some(near) => d.help(format!("did you mean `{near}`?")),
                    None if known.is_empty() => d.help("leave `data_config` out"),
                    None => d.help(format!("there are: {}", known.join(", "))),
                };
                Err(failed(d, at))
            }
        }
    }

    /// The splits of files that a pattern names: whatever folders they are in, they are one data set.
    ///
    /// # Errors
    /// No data files; splits in different formats.
    #[cfg(feature = "hub")]
    pub(crate) fn of_files(files: &[String], at: &str) -> Result<Splits> {
        let rows: Vec<&str> = files
            .iter()
            .map(String::as_str)
            .filter(|f| holds_rows(f))
            .collect();
        by_names(&rows, None, files, at)
    }

    /// The files of the split of a name, or of a word for it.
    pub(crate) fn get(&self, name: &str) -> Option<&[String]> {
        let find = |name: &str| self.all.iter().find(|(split, _)| split == name);
        let found = find(name).or_else(|| find(canonical(name)?))?;
        Some(&found.1)
    }

    /// The names of the splits.
    pub(crate) fn names(&self) -> String {
        let names: Vec<&str> = self.all.iter().map(|(name, _)| name.as_str()).collect();
        names.join(", ")
    }
}

fn names(listed: &[Configuration]) -> Vec<&str> {
    listed.iter().map(|c| c.name.as_str()).collect()
}

fn wrong(code: &'static str, message: String) -> Diagnostic {
    Diagnostic::error(code, message)
}

fn failed(d: Diagnostic, at: &str) -> Error {
    Error::new(ErrorKind::Train, d.at(at.to_owned()))
}

/// Whether a file of this name has rows, and is not hidden.
fn holds_rows(file: &str) -> bool {
    let mut parts = file.rsplit('/');
    let name = parts.next().unwrap_or_default();
    Format::of(Path::new(file)).is_some()
        && !DESCRIBING.contains(&name)
        && !name.starts_with('.')
        && !parts.any(|folder| folder.starts_with('.') || folder.starts_with("__"))
}

impl Configuration {
    fn splits(&self, rows: &[&str], at: &str) -> Result<Splits> {
        let base = self.folder.trim_matches('/');
        if self.files.is_empty() {
            return by_names(rows, Some(base), &[], at);
        }
        let mut all = Vec::new();
        for (split, patterns) in &self.files {
            let mut found = Vec::new();
            for pattern in patterns {
                let whole = below(base, pattern.trim_start_matches("./"));
                let glob = Glob::new(&whole);
                let before = found.len();
                found.extend(
                    rows.iter()
                        .filter(|f| glob.matches(f))
                        .map(|f| (*f).to_owned()),
                );
                found[before..].sort();
                if found.len() == before && !glob.magic() {
                    let d = wrong(
                        "dataset-config",
                        format!(
                            "the configuration `{}` names a file that is not there: `{whole}`",
                            self.name
                        ),
                    );
                    return Err(failed(
                        d.help("mend the card (README.md), or name the data files"),
                        at,
                    ));
                }
            }
            all.push((split.clone(), found));
        }
        one_format(all, true, at)
    }
}

fn below(base: &str, path: &str) -> String {
    match base {
        "" => path.to_owned(),
        _ => format!("{base}/{path}"),
    }
}

/// The splits that the names of files and folders say, in a data set below the folder `base`, or of any files. `others` are all files, for
/// a message.
fn by_names(rows: &[&str], base: Option<&str>, others: &[String], at: &str) -> Result<Splits> {
    let whole = base.is_some();
    let base = base.unwrap_or_default();
    let prefix = below(base, "");
    let inside: Vec<(&str, String)> = rows
        .iter()
        .filter_map(|f| Some((*f, f.strip_prefix(&*prefix)?.to_lowercase())))
        .collect();
    if inside.is_empty() {
        let d = wrong("dataset-folder", "there are no data files".to_owned());
        let shown: Vec<&str> = others.iter().take(8).map(String::as_str).collect();
        let d = if shown.is_empty() {
            d
        } else {
            d.note(format!("files there: {}", shown.join(", ")))
        };
        let at = if base.is_empty() {
            at.to_owned()
        } else {
            format!("{at}, {base}/")
        };
        return Err(failed(
            d.help(format!("names of data files end in {FORMATS}")),
            &at,
        ));
    }
    if let Some(splits) = sharded(&inside) {
        return one_format(splits, true, at);
    }
    for patterns in [&*IN_FOLDERS, &*IN_FILES] {
        let splits: Vec<_> = WORDS
            .iter()
            .zip(patterns)
            .map(|((split, _), globs)| ((*split).to_owned(), worded(&inside, globs)))
            .filter(|(_, files)| !files.is_empty())
            .collect();
        if !splits.is_empty() {
            if whole {
                single(&splits, &prefix, at)?;
            }
            return one_format(splits, true, at);
        }
    }
    let mut all: Vec<String> = inside.iter().map(|(f, _)| (*f).to_owned()).collect();
    all.sort();
    let splits = vec![("train".to_owned(), all)];
    if whole {
        single(&splits, &prefix, at)?;
    }
    one_format(splits, false, at)
}

/// The files that one of the patterns is about, in the order of the patterns, each once.
fn worded(files: &[(&str, String)], globs: &[Glob]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for glob in globs {
        let mut new: Vec<&str> = files
            .iter()
            .filter(|(f, low)| glob.matches(low) && seen.insert(*f))
            .map(|(f, _)| *f)
            .collect();
        new.sort_unstable();
        found.extend(new.into_iter().map(str::to_owned));
    }
    found
}

/// The splits of `data/SPLIT-00000-of-00001.*`, where there are such files: train, validation, test, then by name.
fn sharded(files: &[(&str, String)]) -> Option<Vec<(String, Vec<String>)>> {
    static SHARDED: LazyLock<Glob> = LazyLock::new(|| Glob::new(&format!("data/*-{SHARDS}")));
    let mut splits: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, low) in files.iter().filter(|(_, low)| SHARDED.matches(low)) {
        let name = low.rsplit('/').next().unwrap_or_default();
        let of = name.find("-of-")?;
        let split = name.get(..of)?.rsplit_once('-')?.0;
        splits
            .entry(split.to_owned())
            .or_default()
            .push((*file).to_owned());
    }
    for files in splits.values_mut() {
        files.sort();
    }
    let mut out: Vec<(String, Vec<String>)> = Vec::new();
    for (split, _) in WORDS {
        out.extend(splits.remove_entry(split));
    }
    out.extend(splits);
    (!out.is_empty()).then_some(out)
}

/// Refuses folders that are data sets of their own: `datasets` would read them as one.
fn single(splits: &[(String, Vec<String>)], prefix: &str, at: &str) -> Result<()> {
    let files = splits.iter().flat_map(|(_, files)| files);
    let mut folders = BTreeSet::new();
    for file in files {
        let inside = file.strip_prefix(prefix).unwrap_or(file);
        match inside.split_once('/') {
            Some((folder, _)) => folders.insert(folder),
            None => return Ok(()),
        };
    }
    let says_split = |folder: &&str| {
        let path = [("", format!("{}/x", folder.to_lowercase()))];
        IN_FOLDERS
            .iter()
            .any(|globs| !worded(&path, globs).is_empty())
    };
    if folders.len() < 2 || folders.iter().all(says_split) {
        return Ok(());
    }
    let names: Vec<&str> = folders.into_iter().collect();
    let d = wrong(
        "dataset-folder",
        "the folder holds several data sets".to_owned(),
    );
    let d = d.note(format!("folders: {}", names.join(", ")));
    let help = format!("choose one: `data_config` = \"{prefix}{}\"", names[0]);
    Err(failed(d.help(help), at))
}

/// Leaves the files in the commonest format of the first split, which must be that of all splits.
fn one_format(mut all: Vec<(String, Vec<String>)>, named: bool, at: &str) -> Result<Splits> {
    let family = |file: &String| {
        Format::of(Path::new(file)).map(|(format, _)| match format {
            Format::Json => Format::JsonLines,
            other => other,
        })
    };
    let mut formats = Vec::new();
    for (split, files) in &mut all {
        let mut counts: BTreeMap<Format, usize> = BTreeMap::new();
        for format in files.iter().filter_map(family) {
            *counts.entry(format).or_default() += 1;
        }
        // The order of formats decides between equal numbers.
        let most = counts
            .into_iter()
            .max_by_key(|&(format, n)| (n, std::cmp::Reverse(format)));
        let Some((most, _)) = most else {
            let d = wrong(
                "dataset-split",
                format!("the split `{split}` has no data files"),
            );
            return Err(failed(
                d.help(format!("names of data files end in {FORMATS}")),
                at,
            ));
        };
        formats.push(most);
        files.retain(|f| family(f) == Some(most));
    }
    if formats.windows(2).any(|w| w[0] != w[1]) {
        let each = all.iter().zip(&formats);
        let each: Vec<String> = each.map(|((s, _), f)| format!("{s}: {f:?}")).collect();
        let d = wrong(
            "dataset-folder",
            format!("splits have different formats: {}", each.join(", ")),
        );
        return Err(failed(d.help("name the files: `data` and `eval_data`"), at));
    }
    Ok(Splits { all, named })
}
