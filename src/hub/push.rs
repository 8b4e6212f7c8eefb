//! To the Hub: small files inside one commit, large ones to its store first.

use super::http::{Ask, Payload};
use super::name::{commit_hash, encoded, harmless, revision_name};
use super::pull::{digest, hex};
use super::{Hub, IntoError, OnTransfer, Reference, Transfer, fail};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use ureq::http::Method;

/// The server looks at so many bytes to tell text from other content.
const SAMPLE: usize = 512;
/// Files in one question about how to send them.
const CHUNK: usize = 256;
/// A file that the server takes inside a commit is not larger than this.
const INLINE_LIMIT: u64 = 64 << 20;

/// What a pushed file consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file.
    File(PathBuf),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// A file to push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PushFile {
    /// Its path in the repository.
    pub path: String,
    /// Its content.
    pub source: Source,
}

/// How to push.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PushOptions {
    /// Makes the repository when there is none.
    pub create: bool,
    /// A repository that is made is private.
    pub private: bool,
    /// First line of the commit's message.
    pub message: String,
    /// The rest of it.
    pub description: String,
    /// Opens a pull request instead of changing the branch.
    pub pull_request: bool,
}

/// What was pushed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// `org/name`.
    pub repo: String,
    /// The page of the repository.
    pub url: String,
    /// The commit; none when the repository has everything already.
    pub commit: Option<String>,
    /// The page of the pull request, if one was asked for.
    pub pull_request: Option<String>,
    /// Paths that the commit changes.
    pub files: Vec<String>,
    /// Paths that were there already, with the same content.
    pub unchanged: Vec<String>,
}

/// The files of a folder, by name. Hidden ones are left out, and so is what is no file.
///
/// # Errors
/// A folder that cannot be read or has no files; links that lead out of it; names that the Hub does not take.
pub(crate) fn folder(root: &Path) -> Result<Vec<PushFile>> {
    let bad = |path: &Path, what: &str| {
        fail("hub-folder", what)
            .at(path.display().to_string())
            .help("push a folder of plain files")
    };
    let base = root
        .canonicalize()
        .map_err(|e| Error::io(root, "cannot be read", e))?;
    let mut findings: Vec<Diagnostic> = Vec::new();
    let mut files = Vec::new();
    let mut folders = vec![(base.clone(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        let list = fs::read_dir(&folder).map_err(|e| Error::io(&folder, "cannot be read", e))?;
        for entry in list {
            let entry = entry.map_err(|e| Error::io(&folder, "cannot be read", e))?;
            let path = entry.path();
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let inner = name
                .to_str()
                .map(|n| format!("{prefix}{n}"))
                .filter(|n| harmless(n));
            let Some(inner) = inner else {
                findings.push(bad(&path, "the Hub does not take a file of this name"));
                continue;
            };
            let Some(real) = path.canonicalize().ok().filter(|p| p.starts_with(&base)) else {
                findings.push(bad(&path, "a link that leads out of the folder"));
                continue;
            };
            let link = entry.file_type().is_ok_and(|t| t.is_symlink());
            if real.is_dir() && !link {
                folders.push((path, format!("{inner}/")));
            } else if real.is_file() {
                files.push(PushFile {
                    path: inner,
                    source: Source::File(path),
                });
            } else {
                findings.push(bad(&path, "this is neither a file nor a folder"));
            }
        }
    }
    if !findings.is_empty() {
        return Err(Error::many(ErrorKind::Hub, findings));
    }
    if files.is_empty() {
        return Err(bad(root, "there is nothing to push").into_error());
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// A file, looked at.
struct Item<'a> {
    file: &'a PushFile,
    size: u64,
    sha256: String,
    git: String,
    sample: String,
}

impl<'a> Item<'a> {
    fn new(file: &'a PushFile) -> Result<Item<'a>> {
        let encode = |bytes: &[u8]| STANDARD.encode(&bytes[..bytes.len().min(SAMPLE)]);
        match &file.source {
            Source::Bytes(bytes) => {
                let mut git = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
                git.update(bytes);
                Ok(Item {
                    file,
                    size: bytes.len() as u64,
                    sha256: hex(&Sha256::digest(bytes)),
                    git: hex(&git.finalize()),
                    sample: encode(bytes),
                })
            }
            Source::File(path) => {
                let look = || -> std::io::Result<Item<'a>> {
                    let size = fs::metadata(path)?.len();
                    let mut start = Vec::new();
                    disk::open(path)?
                        .take(SAMPLE as u64)
                        .read_to_end(&mut start)?;
                    Ok(Item {
                        file,
                        size,
                        sha256: digest(path, Sha256::new())?,
                        git: digest(path, Sha1::new_with_prefix(format!("blob {size}\0")))?,
                        sample: encode(&start),
                    })
                };
                look().map_err(|e| Error::io(path, "cannot be read", e))
            }
        }
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        match &self.file.source {
            Source::Bytes(bytes) => Ok(bytes.clone()),
            Source::File(path) => {
                disk::tensors(path).map_err(|e| Error::io(path, "cannot be read", e))
            }
        }
    }

    fn part(&self, from: u64, len: u64) -> Payload<'_> {
        const KIND: &str = "application/octet-stream";
        match &self.file.source {
            Source::Bytes(bytes) => {
                let end = (from + len).min(bytes.len() as u64) as usize;
                Payload::Bytes(&bytes[(from as usize).min(end)..end], KIND)
            }
            Source::File(path) => Payload::File { path, from, len },
        }
    }
}

#[derive(Deserialize)]
struct Whoami {
    name: String,
    /// What kind of token it is; its form has changed over the years, so nothing is taken for granted.
    #[serde(default)]
    auth: Value,
}

impl Whoami {
    /// Whether the token is known to have no right to write to a repository.
    fn only_reads(&self, repo: &str) -> bool {
        let token = &self.auth["accessToken"];
        match token["role"].as_str() {
            Some("read") => true,
            Some("fineGrained") => {
                let owner = repo.split_once('/').map_or(repo, |(owner, _)| owner);
                let Some(scopes) = token["fineGrained"]["scoped"].as_array() else {
                    return false;
                };
                let names = |name: &str| name == owner || name == repo;
                !scopes.iter().any(|scope| {
                    let writes = |p: &Value| {
                        p.as_str()
                            .is_some_and(|p| p.starts_with("repo") && p.ends_with("write"))
                    };
                    let rights = scope["permissions"].as_array();
                    scope["entity"]["name"].as_str().is_none_or(names)
                        && rights.is_some_and(|r| r.iter().any(writes))
                })
            }
            _ => false,
        }
    }
}

#[derive(Deserialize)]
struct Modes {
    files: Vec<Mode>,
}

/// How the server wants a file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mode {
    path: String,
    #[serde(rename = "uploadMode")]
    how: String,
    #[serde(default)]
    should_ignore: bool,
    oid: Option<String>,
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    #[serde(default)]
    actions: Option<Actions>,
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct ObjectError {
    message: String,
}

#[derive(Deserialize, Default)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Committed {
    commit_oid: Option<String>,
    pull_request_url: Option<String>,
}

impl Hub {
    /// Pushes files as one commit. What the repository has already is not sent.
    ///
    /// # Errors
    /// Offline or without a token; a repository that is missing, or that we may not write to; a connection that fails. The
    /// repository changes as a whole or not at all.
    pub(crate) fn push(
        &self,
        to: &Reference,
        files: &[PushFile],
        options: &PushOptions,
        on: OnTransfer<'_>,
    ) -> Result<Pushed> {
        let to = &self.owned(to)?;
        let items = files.iter().map(Item::new).collect::<Result<Vec<_>>>()?;
        if options.create {
            self.create(to, options.private)?;
        }
        let modes = self.modes(to, &items, options.pull_request)?;
        let (mut lines, mut changed, mut unchanged, mut large) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for item in &items {
            let path = &item.file.path;
            let mode = modes
                .iter()
                .find(|m| m.path == *path)
                .ok_or_else(|| refused(to, &format!("no answer about `{path}`")))?;
            if mode.should_ignore {
                continue;
            }
            let lfs = mode.how == "lfs";
            let own = if lfs { &item.sha256 } else { &item.git };
            if mode.oid.as_ref() == Some(own) {
                unchanged.push(path.clone());
                continue;
            }
            changed.push(path.clone());
            if lfs {
                large.push(item);
                lines.push(json!({"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": item.sha256, "size": item.size}}));
            } else if item.size <= INLINE_LIMIT {
                let content = STANDARD.encode(item.bytes()?);
                lines.push(json!({"key": "file", "value": {"path": path, "encoding": "base64", "content": content}}));
            } else {
                return Err(refused(
                    to,
                    &format!(
                        "the wish to have `{path}` of {} bytes inside the commit",
                        item.size
                    ),
                ));
            }
        }
        let mut pushed = Pushed {
            repo: to.page(),
            url: format!("{}/{}", self.client.endpoint(), to.page()),
            commit: None,
            pull_request: None,
            files: changed,
            unchanged,
        };
        if pushed.files.is_empty() {
            return Ok(pushed);
        }
        self.upload(to, &large, on)?;
        let done = self.commit(to, lines, options)?;
        let commit = done.commit_oid.filter(|c| commit_hash(c));
        let commit = commit.ok_or_else(|| {
            let page = &pushed.url;
            fail("hub-answer", "the answer to the commit names no commit")
                .at(to.to_string())
                .help(format!(
                    "whether it was made is not known: look at {page} before you push again"
                ))
                .into_error()
        })?;
        pushed.commit = Some(commit);
        pushed.pull_request = done.pull_request_url.map(|u| self.client.scrubbed(&u));
        Ok(pushed)
    }

    /// The place of a push with its owner: a bare name is the user's own. Asks the Hub whose token it is, and so whether it is one.
    ///
    /// # Errors
    /// Offline or without a token; a token that the Hub refuses.
    pub(crate) fn owned(&self, to: &Reference) -> Result<Reference> {
        self.may_push(to)?;
        let url = format!("{}/api/whoami-v2", self.client.endpoint());
        let me: Whoami = self.client.json(&Ask::new(Method::GET, url, to))?;
        let repo = if to.repo.contains('/') {
            to.repo.clone()
        } else {
            format!("{}/{}", me.name, to.repo)
        };
        if !to.repo.contains('/') && !super::name::repo_id(&repo) {
            return Err(refused(to, "a name that no user has"));
        }
        if me.only_reads(&repo) {
            let message = format!("the token may read, and not write to {repo}");
            let page = format!("{}/settings/tokens", self.client.endpoint());
            let d = fail("hub-token", &message).at(to.to_string());
            let help = format!("set HF_TOKEN to one that may write: {page}");
            return Err(d.help(help).into_error());
        }
        Ok(Reference { repo, ..to.clone() })
    }

    fn may_push(&self, to: &Reference) -> Result<()> {
        if self.offline {
            let d = fail("hub-offline", "nothing can be pushed offline").at(to.to_string());
            return Err(d.help("unset HF_HUB_OFFLINE").into_error());
        }
        if !self.client.has_token() {
            let d = fail("hub-token", "a push needs a token").at(to.to_string());
            let page = format!("{}/settings/tokens", self.client.endpoint());
            return Err(d
                .help(format!("set HF_TOKEN to one that may write: {page}"))
                .into_error());
        }
        Ok(())
    }

    /// Makes the repository. One that is there is left as it is.
    fn create(&self, to: &Reference, private: bool) -> Result<()> {
        let (organization, name) = match to.repo.split_once('/') {
            Some((o, n)) => (Some(o), n),
            None => (None, to.repo.as_str()),
        };
        let mut body = json!({"name": name, "organization": organization, "private": private});
        if to.kind != super::Kind::Model {
            body["type"] = to.kind.name().into();
        }
        let body = body.to_string();
        let url = format!("{}/api/repos/create", self.client.endpoint());
        let mut ask = Ask::new(Method::POST, url, to).json(body.as_bytes());
        ask.accept = &[409];
        self.client.send(&ask, &mut |_| {}).map(|_| ())
    }

    fn api(&self, to: &Reference, what: &str) -> String {
        let revision = encoded(&to.revision, false);
        let (endpoint, kind, repo) = (self.client.endpoint(), to.kind.plural(), &to.repo);
        format!("{endpoint}/api/{kind}/{repo}/{what}/{revision}")
    }

    fn modes(&self, to: &Reference, items: &[Item<'_>], pull_request: bool) -> Result<Vec<Mode>> {
        let mut modes = Vec::new();
        for chunk in items.chunks(CHUNK) {
            let files: Vec<Value> = chunk
                .iter()
                .map(|i| json!({"path": i.file.path, "sample": i.sample, "size": i.size}))
                .collect();
            let body = json!({ "files": files }).to_string();
            let mut url = self.api(to, "preupload");
            if pull_request {
                url += "?create_pr=1";
            }
            let found: Modes = self
                .client
                .json(&Ask::new(Method::POST, url, to).json(body.as_bytes()))?;
            modes.extend(found.files);
        }
        Ok(modes)
    }

    /// Brings large files into the Hub's store.
    fn upload(&self, to: &Reference, items: &[&Item<'_>], on: OnTransfer<'_>) -> Result<()> {
        for chunk in items.chunks(CHUNK) {
            let objects: Vec<Value> = chunk
                .iter()
                .map(|i| json!({"oid": i.sha256, "size": i.size}))
                .collect();
            let body = json!({
                "operation": "upload", "transfers": ["basic", "multipart"], "objects": objects,
                "hash_algo": "sha256", "ref": {"name": to.revision},
            })
            .to_string();
            let url = format!(
                "{}/{}.git/info/lfs/objects/batch",
                self.client.endpoint(),
                to.page()
            );
            let mut ask = Ask::new(Method::POST, url, to).header("accept", LFS);
            ask.payload = Payload::Bytes(body.as_bytes(), LFS);
            let batch: Batch = self.client.json(&ask)?;
            for item in chunk {
                let object = batch.objects.iter().find(|o| o.oid == item.sha256);
                let object = object
                    .ok_or_else(|| refused(to, &format!("no answer about `{}`", item.file.path)))?;
                self.store(to, item, object, on)?;
            }
        }
        Ok(())
    }

    fn store(
        &self,
        to: &Reference,
        item: &Item<'_>,
        object: &Object,
        on: OnTransfer<'_>,
    ) -> Result<()> {
        let about = Reference {
            path: Some(item.file.path.clone()),
            ..to.clone()
        };
        if let Some(e) = &object.error {
            return Err(refused(&about, &self.client.scrubbed(&e.message)));
        }
        // Without an action, the store has the content already.
        let Some(upload) = object.actions.as_ref().and_then(|a| a.upload.as_ref()) else {
            return Ok(());
        };
        let mut sent = |done: u64| {
            on(Transfer {
                file: &item.file.path,
                done,
                total: Some(item.size),
            });
        };
        if let Some(size) = upload.header.get("chunk_size") {
            self.parts(&about, item, upload, size, &mut sent)?;
        } else {
            let mut ask = Ask::new(Method::PUT, upload.href.clone(), &about);
            for (name, value) in &upload.header {
                let length = name.eq_ignore_ascii_case("content-length");
                if let Some(value) = value.as_str().filter(|_| !length) {
                    ask = ask.header(name, value);
                }
            }
            ask.payload = item.part(0, item.size);
            self.client.send(&ask, &mut sent)?;
        }
        sent(item.size);
        if let Some(verify) = object.actions.as_ref().and_then(|a| a.verify.as_ref()) {
            let body = json!({"oid": item.sha256, "size": item.size}).to_string();
            let ask = Ask::new(Method::POST, verify.href.clone(), &about).json(body.as_bytes());
            self.client.send(&ask, &mut |_| {})?;
        }
        Ok(())
    }

    /// Sends a file in parts: the header has an address for each, by number.
    fn parts(
        &self,
        about: &Reference,
        item: &Item<'_>,
        upload: &Action,
        size: &Value,
        sent: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let size = size
            .as_u64()
            .or_else(|| size.as_str()?.parse().ok())
            .filter(|s| *s > 0);
        let size = size.ok_or_else(|| refused(about, "parts of no size"))?;
        let mut parts: Vec<(u64, &str)> = upload
            .header
            .iter()
            .filter_map(|(k, v)| Some((k.parse().ok()?, v.as_str()?)))
            .collect();
        parts.sort_unstable();
        let numbers = parts.iter().map(|p| p.0);
        let count = item.size.div_ceil(size);
        if !numbers.eq(1..=count) {
            return Err(refused(
                about,
                &format!("{} parts where {count} are needed", parts.len()),
            ));
        }
        let mut done = Vec::new();
        for (number, href) in parts {
            let from = (number - 1) * size;
            let mut ask = Ask::new(Method::PUT, href.to_owned(), about);
            ask.payload = item.part(from, size.min(item.size - from));
            let answer = self.client.send(&ask, &mut |n| sent(from + n))?;
            let etag = answer.headers().get("etag").and_then(|e| e.to_str().ok());
            let etag = etag.ok_or_else(|| refused(about, "a part without a hash"))?;
            done.push(json!({"partNumber": number, "etag": etag}));
        }
        let body = json!({"oid": item.sha256, "parts": done}).to_string();
        let mut ask = Ask::new(Method::POST, upload.href.clone(), about).header("accept", LFS);
        ask.payload = Payload::Bytes(body.as_bytes(), LFS);
        self.client.send(&ask, &mut |_| {}).map(|_| ())
    }

    fn commit(
        &self,
        to: &Reference,
        lines: Vec<Value>,
        options: &PushOptions,
    ) -> Result<Committed> {
        let header = json!({"key": "header", "value": {"summary": options.message, "description": options.description}});
        let body: String = std::iter::once(header)
            .chain(lines)
            .map(|l| l.to_string() + "\n")
            .collect();
        let mut url = self.api(to, "commit");
        if options.pull_request {
            url += "?create_pr=1";
        }
        let mut ask = Ask::new(Method::POST, url, to);
        ask.payload = Payload::Bytes(body.as_bytes(), "application/x-ndjson");
        // A commit that arrived and whose answer got lost must not be made twice.
        ask.again = false;
        // What another host says of it is no answer.
        ask.follow = false;
        self.client.json(&ask)
    }
}

const LFS: &str = "application/vnd.git-lfs+json";

fn refused(about: &Reference, what: &str) -> Error {
    fail("hub-answer", format!("the server answered {what}"))
        .at(about.to_string())
        .help("nothing was committed; try again later")
        .into_error()
}

impl Reference {
    /// A place to push to.
    ///
    /// # Errors
    /// What [`Reference::parse`] refuses, and a path: a push is about whole files of a folder.
    pub(crate) fn target(text: &str) -> Result<Reference> {
        let r = Reference::parse(text)?;
        if r.path.is_some() || !revision_name(&r.revision) {
            let d = fail(
                "hub-reference",
                "a push goes to a repository, not to a path in it",
            )
            .at(text.to_owned());
            return Err(d.help("`org/name` or `org/name@branch`").into_error());
        }
        Ok(r)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_only_read_are_known() {
        let me = |auth: Value| -> Whoami {
            serde_json::from_value(json!({"name": "me", "auth": auth})).unwrap()
        };
        let role = |role: &str| me(json!({"type": "access_token", "accessToken": {"role": role}}));
        assert!(role("read").only_reads("me/a") && !role("write").only_reads("me/a"));
        let fine = |name: &str, rights: &[&str]| {
            let scope = json!({"entity": {"type": "user", "name": name}, "permissions": rights});
            me(
                json!({"accessToken": {"role": "fineGrained", "fineGrained": {"global": [], "scoped": [scope]}}}),
            )
        };
        for (name, rights, only) in [
            ("me", &["repo.content.read", "repo.write"][..], false),
            ("me/a", &["repo.write"], false),
            ("me", &["repo.content.read"], true),
            ("you", &["repo.write"], true),
            ("me", &[], true),
        ] {
            assert_eq!(
                fine(name, rights).only_reads("me/a"),
                only,
                "{name} {rights:?}"
            );
        }
        // What is not said is left to the Hub.
        assert!(!me(Value::Null).only_reads("me/a"));
        assert!(!me(json!({"accessToken": {"role": "fineGrained"}})).only_reads("me/a"));
    }
}
