//! Where a file of this machine is from: the repository on the Hub and the commit, so that a record can name what was read and not only
//! where it lay. The cache has both in its paths, and a folder that was pulled into has them in a file.

use crate::adapters::base;
use crate::adapters::folder::Meta;
#[cfg(feature = "hub")]
use crate::hub::Reference;
use crate::onnx::layout;
use crate::train::watch;
use serde_json::{Map, Value, json};
use std::fmt;
use std::path::{Path, PathBuf};

/// A file on the Hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// `org/name`, with `datasets/` before a dataset's.
    pub(super) repo: String,
    /// The commit.
    pub(super) commit: String,
    /// The path in the repository.
    pub(super) path: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hub:{}@{}:{}", self.repo, self.commit, self.path)
    }
}

impl Origin {
    /// Where a file is from, if it was pulled.
    pub(super) fn of(file: &Path) -> Option<Origin> {
        Self::cached(file).or_else(|| Self::recorded(file))
    }

    /// What a path in the cache says: `…/models--org--name/snapshots/COMMIT/onnx/model.onnx`.
    pub(super) fn cached(file: &Path) -> Option<Origin> {
        let parts: Vec<&str> = file
            .components()
            .map(|c| c.as_os_str().to_str())
            .collect::<Option<_>>()?;
        let at = parts.iter().rposition(|p| *p == "snapshots")?;
        let (kind, name) = parts.get(at.checked_sub(1)?)?.split_once("--")?;
        let before = match kind {
            "models" => "",
            "datasets" => "datasets/",
            _ => return None,
        };
        let commit = *parts.get(at + 1)?;
        Some(Origin {
            repo: format!("{before}{}", name.replace("--", "/")),
            commit: is_commit(commit).then(|| commit.to_owned())?,
            path: parts[at + 2..].join("/"),
        })
    }

    /// What `rewrite hub pull --output` left in the folder.
    fn recorded(file: &Path) -> Option<Origin> {
        // Exports lie in a folder of the repository.
        for folder in file.ancestors().skip(1).take(3) {
            let Ok(text) = crate::disk::own::text(folder.join(RECORD)) else {
                continue;
            };
            let record: Value = serde_json::from_str(&text).ok()?;
            let inside = file.strip_prefix(folder).ok()?.components();
            let path: Vec<&str> = inside
                .map(|c| c.as_os_str().to_str())
                .collect::<Option<_>>()?;
            let path = path.join("/");
            // Another file in the folder is not from there, and one that was changed is another.
            let size = record["files"][&path].as_u64()?;
            let same = std::fs::metadata(file).is_ok_and(|m| m.len() == size);
            let commit = record["commit"].as_str().filter(|c| is_commit(c) && same)?;
            return Some(Origin {
                repo: record["repo"].as_str()?.to_owned(),
                commit: commit.to_owned(),
                path,
            });
        }
        None
    }
}

impl Origin {
    /// The model of a file by its name on the Hub: the file, or the folder of an encoder and its decoder.
    pub(super) fn model(&self) -> String {
        let Origin { repo, commit, path } = self;
        if !layout::is_encoder(path) {
            return self.to_string();
        }
        match path.rsplit_once('/') {
            Some((folder, _)) => format!("hub:{repo}@{commit}:{folder}"),
            None => format!("hub:{repo}@{commit}"),
        }
    }

    /// The same as a command takes it.
    #[cfg(feature = "hub")]
    pub(super) fn words(&self) -> String {
        let variant = layout::variant_of(&self.path);
        let more = variant.filter(|v| layout::is_encoder(&self.path) && *v != layout::FULL);
        let more = more.map_or_else(String::new, |v| format!(" --variant {v}"));
        self.model() + &more
    }

    /// Says in an adapter's file where its base model is from.
    pub(super) fn record(self, meta: &mut Meta) {
        if meta.model_name.is_empty() {
            meta.model_name.clone_from(&self.repo);
        }
        let own = meta.extra.entry(base::KEY).or_insert_with(|| json!({}));
        if let Value::Object(own) = own {
            let hub = json!({"repo": self.repo, "revision": self.commit, "file": self.path});
            own.insert(HUB.to_owned(), hub);
        }
    }

    /// What an adapter's file says of where its base model is from.
    #[cfg(feature = "hub")]
    pub(super) fn read(meta: &Meta) -> Option<Origin> {
        let hub = meta.extra.get(base::KEY)?.get(HUB)?;
        let text = |name: &str| hub[name].as_str().map(str::to_owned);
        let origin = Origin {
            repo: text("repo")?,
            commit: text("revision").filter(|c| is_commit(c))?,
            path: text("file")?,
        };
        // The file may be anybody's.
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        (origin.path.chars().all(plain) && Reference::parse(&origin.to_string()).is_ok())
            .then_some(origin)
    }
}

/// Our key beside the base's fingerprint.
const HUB: &str = "hub";

/// The settings of the run that a training goes on with, as its record has them.
pub(super) fn begun(settings: &Map<String, Value>) -> Option<Value> {
    let folder = match settings.get("resume_from_checkpoint")? {
        Value::Bool(true) => PathBuf::from(settings.get("output_dir")?.as_str()?),
        Value::String(checkpoint) => Path::new(checkpoint).parent()?.to_owned(),
        _ => return None,
    };
    let text = crate::disk::own::text(folder.join(watch::file::RUN)).ok()?;
    let mut run: Value = serde_json::from_str(&text).ok()?;
    Some(run["job"].take())
}

/// Where a pulled folder says what it is from.
const RECORD: &str = ".hub.json";

fn is_commit(text: &str) -> bool {
    (text.len() == 40 || text.len() == 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The references to the Hub among texts, with the commits that were pulled in place of branches: `files` are what they became.
#[cfg(feature = "hub")]
pub(super) fn pin(given: &mut Value, files: &Value) {
    let mut commits = std::collections::BTreeMap::new();
    each(&mut files.clone(), &mut |text| {
        if let Some(origin) = Origin::of(Path::new(text)) {
            commits.insert(origin.repo, origin.commit);
        }
    });
    each(given, &mut |text| {
        let reference = text
            .starts_with("hub:")
            .then(|| Reference::parse(text).ok());
        if let Some(reference) = reference.flatten()
            && let Some(commit) = commits.get(&reference.page())
        {
            *text = format!("hub:{}", reference.at(commit));
        }
    });
}

/// Gives references that name no revision the commits that a record has for their repositories; those that were given one.
#[cfg(feature = "hub")]
pub(super) fn pin_as(given: &mut Value, record: &Value) -> Vec<String> {
    let mut commits = std::collections::BTreeMap::new();
    each(&mut record.clone(), &mut |text| {
        let reference = text
            .starts_with("hub:")
            .then(|| Reference::parse(text).ok());
        if let Some(r) = reference.flatten().filter(|r| is_commit(&r.revision)) {
            commits.insert(r.page(), r.revision);
        }
    });
    let mut pinned = Vec::new();
    each(given, &mut |text| {
        if !text.starts_with("hub:") || text.contains('@') {
            return;
        }
        let Ok(reference) = Reference::parse(text) else {
            return;
        };
        if let Some(commit) = commits.get(&reference.page()) {
            *text = format!("hub:{}", reference.at(commit));
            pinned.push(format!("{} at {commit}", reference.page()));
        }
    });
    pinned
}

/// Without the Hub nothing refers to it.
#[cfg(not(feature = "hub"))]
pub(super) fn pin(_: &mut Value, _: &Value) {}

/// Without the Hub nothing refers to it.
#[cfg(not(feature = "hub"))]
pub(super) fn pin_as(_: &mut Value, _: &Value) -> Vec<String> {
    Vec::new()
}

/// Every text in a value.
#[cfg(feature = "hub")]
fn each(value: &mut Value, on: &mut dyn FnMut(&mut String)) {
    match value {
        Value::String(text) => on(text),
        Value::Array(list) => list.iter_mut().for_each(|v| each(v, on)),
        Value::Object(map) => map.values_mut().for_each(|v| each(v, on)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_path_in_the_cache_says_where_it_is_from() {
        let at = |p: &str| Origin::of(Path::new(p)).map(|o| o.to_string());
        let path = format!("/x/hub/models--org--a-b/snapshots/{COMMIT}/onnx/model_q4.onnx");
        assert_eq!(
            at(&path),
            Some(format!("hub:org/a-b@{COMMIT}:onnx/model_q4.onnx"))
        );
        let path = format!("datasets--gsm8k/snapshots/{COMMIT}/a.jsonl");
        assert_eq!(
            at(&path),
            Some(format!("hub:datasets/gsm8k@{COMMIT}:a.jsonl"))
        );
        for other in [
            "model.onnx",
            "/x/snapshots/abc/model.onnx",
            "models--a/snapshots/main/x",
        ] {
            assert_eq!(at(other), None, "{other}");
        }
    }

    #[test]
    fn a_folder_that_was_pulled_into_says_it_of_what_is_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("onnx/model.onnx");
        std::fs::create_dir(dir.path().join("onnx")).unwrap();
        std::fs::write(&file, "abc").unwrap();
        let record =
            serde_json::json!({"repo": "org/m", "commit": COMMIT, "files": {"onnx/model.onnx": 3}});
        std::fs::write(dir.path().join(RECORD), record.to_string()).unwrap();
        let found = Origin::of(&file).unwrap();
        assert_eq!((&*found.repo, &*found.path), ("org/m", "onnx/model.onnx"));
        std::fs::write(&file, "abcd").unwrap();
        assert_eq!(Origin::of(&file), None);
    }

    #[cfg(feature = "hub")]
    #[test]
    fn references_get_the_commits_that_were_read_and_keep_the_ones_they_name() {
        let mut given =
            serde_json::json!(["hub:datasets/o/s:main", "x.jsonl", "hub:datasets/o/t@v1"]);
        let files =
            serde_json::json!({"train": [format!("/h/datasets--o--s/snapshots/{COMMIT}/a.jsonl")]});
        pin(&mut given, &files);
        assert_eq!(given[0], format!("hub:datasets/o/s@{COMMIT}:main"));
        assert_eq!(
            (&given[1], &given[2]),
            (&"x.jsonl".into(), &"hub:datasets/o/t@v1".into())
        );
        let mut again = serde_json::json!(["hub:datasets/o/s:main", "hub:datasets/o/s@v2"]);
        let pinned = pin_as(&mut again, &given);
        assert_eq!(again, serde_json::json!([given[0], "hub:datasets/o/s@v2"]));
        assert_eq!(pinned.len(), 1);
    }
}
