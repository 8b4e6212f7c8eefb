//! From the Hub: which files there are, and their way into the cache.

use super::cache::{Place, not_cached};
use super::http::Ask;
use super::name::{acts, commit_hash, encoded, etag_name, harmless};
use super::pace::Paced;
use super::{Hub, IntoError, OnTransfer, Pattern, Reference, Transfer, fail};
use crate::diag::{Diagnostic, nearest};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx;
use crate::staging::{self, StagedFile};
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use ureq::http::Method;

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct RemoteFile {
    /// Its path.
    pub path: String,
    /// Its size, where the server says it.
    pub size: Option<u64>,
}

/// The files of a repository at a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Listing {
    /// The commit.
    pub commit: String,
    /// Its files, by name.
    pub files: Vec<RemoteFile>,
}

/// Which files are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Select {
    /// Patterns; all files without.
    pub include: Vec<String>,
    /// Patterns of files that are left out.
    pub exclude: Vec<String>,
}

/// A file that was pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PulledFile {
    /// Its path in the repository.
    pub path: String,
    /// Its size.
    pub size: u64,
    /// Whether it was in the cache already.
    pub cached: bool,
}

/// What was pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Pulled {
    /// `org/name`, with `datasets/` before a dataset's.
    pub repo: String,
    /// The revision that was asked for.
    pub revision: String,
    /// The commit that it was.
    pub commit: String,
    /// The folder of this commit's files in the cache.
    pub folder: PathBuf,
    /// The files.
    pub files: Vec<PulledFile>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
}

/// What the Hub says of a file.
struct Head {
    etag: String,
    size: Option<u64>,
}

impl Hub {
    /// The files of a repository; offline, those in the cache.
    ///
    /// # Errors
    /// A repository or revision that does not exist or is not for us; names that lead elsewhere; a connection that fails.
    pub(crate) fn list(&self, reference: &Reference) -> Result<Listing> {
        if self.offline {
            return self.list_cached(reference);
        }
        let url = format!(
            "{}/api/{}/{}/revision/{}?blobs=true",
            self.client.endpoint(),
            reference.kind.plural(),
            reference.repo,
            encoded(&reference.revision, false)
        );
        let info: Info = self.client.json(&Ask::new(Method::GET, url, reference))?;
        if !commit_hash(&info.sha) {
            return Err(untrusted(
                reference,
                &format!("`{}` as a commit", self.client.scrubbed(&info.sha)),
            ));
        }
        let bad: Vec<Diagnostic> = info
            .siblings
            .iter()
            .filter(|s| !harmless(&s.rfilename))
            .map(|s| {
                fail(
                    "hub-name",
                    format!(
                        "the repository has a file that must not be written: {:?}",
                        s.rfilename
                    ),
                )
                .at(reference.to_string())
                .help("names must be relative and stay in their folder")
            })
            .collect();
        if !bad.is_empty() {
            return Err(Error::many(ErrorKind::Hub, bad));
        }
        let mut files: Vec<RemoteFile> = info
            .siblings
            .into_iter()
            .map(|s| RemoteFile {
                path: s.rfilename,
                size: s.size,
            })
            .collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files.dedup_by(|a, b| a.path == b.path);
        Ok(Listing {
            commit: info.sha,
            files,
        })
    }

    fn list_cached(&self, reference: &Reference) -> Result<Listing> {
        let place = Place::of(self, reference);
        let commit = place
            .commit(&reference.revision)
            .filter(|c| place.snapshot(c).is_dir())
            .ok_or_else(|| not_cached(reference, "this revision"))?;
        let files = place.files(&commit)?.into_iter();
        Ok(Listing {
            files: files
                .map(|(path, size)| RemoteFile {
                    path,
                    size: Some(size),
                })
                .collect(),
            commit,
        })
    }

    /// Pulls files into the cache. The data files of a pulled ONNX model come along. The path of the reference is a file, a pattern, or
    /// a folder, and joins what is selected.
    ///
    /// # Errors
    /// What [`Hub::list`] refuses; patterns that match nothing; files whose size or hash is not what was promised; a cache that
    /// cannot be written to. A file has its name when it is complete, never before.
    pub(crate) fn pull(
        &self,
        reference: &Reference,
        select: &Select,
        on: OnTransfer<'_>,
    ) -> Result<Pulled> {
        let listing = self.list(reference)?;
        let mut reference = reference.clone();
        let mut select = select.clone();
        if let Some(path) = reference.path.take() {
            let folder = format!("{path}/");
            let inside = listing.files.iter().any(|f| f.path.starts_with(&folder));
            select.include.push(if inside { folder } else { path });
        }
        let wanted = select.of(&reference, &listing)?;
        self.pull_files(&reference, &listing, wanted, on)
    }

    /// Pulls these files of a listing.
    pub(super) fn pull_files(
        &self,
        reference: &Reference,
        listing: &Listing,
        wanted: Vec<&RemoteFile>,
        on: OnTransfer<'_>,
    ) -> Result<Pulled> {
        refuse_acting(reference, &wanted)?;
        let place = Place::of(self, reference);
        let folder = place.snapshot(&listing.commit);
        let mut files: Vec<PulledFile> = Vec::new();
        let mut queue: std::collections::VecDeque<&RemoteFile> = wanted.into();
        while let Some(file) = queue.pop_front() {
            if files.iter().any(|f| f.path == file.path) {
                continue;
            }
            let cached = present(&place, &listing.commit, file);
            if !cached {
                self.fetch(reference, &place, &listing.commit, file, on)?;
            }
            let path = folder.join(&file.path);
            let meta = fs::metadata(&path).map_err(|e| Error::io(&path, "cannot be read", e))?;
            files.push(PulledFile {
                path: file.path.clone(),
                size: meta.len(),
                cached,
            });
            if Path::new(&file.path)
                .extension()
                .is_some_and(|e| e == "onnx")
            {
                queue.extend(data_files(reference, listing, file, &path)?);
            }
        }
        if !self.offline {
            place.note(&reference.revision, &listing.commit)?;
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Pulled {
            repo: reference.page(),
            revision: reference.revision.clone(),
            commit: listing.commit.clone(),
            folder,
            files,
        })
    }

    fn url(&self, reference: &Reference, commit: &str, path: &str) -> String {
        let (endpoint, page) = (self.client.endpoint(), reference.page());
        format!("{endpoint}/{page}/resolve/{commit}/{}", encoded(path, true))
    }

    /// Brings one file into the cache.
    fn fetch(
        &self,
        reference: &Reference,
        place: &Place,
        commit: &str,
        file: &RemoteFile,
        on: OnTransfer<'_>,
    ) -> Result<()> {
        let about = Reference {
            path: Some(file.path.clone()),
            ..reference.clone()
        };
        if self.offline {
            return Err(not_cached(&about, "this file"));
        }
        let url = self.url(reference, commit, &file.path);
        let head = self.head(&about, &url, commit)?;
        let size = head.size.or(file.size);
        let _lock = place.lock(&head.etag)?;
        let blob = place.blob(&head.etag);
        let there =
            fs::metadata(&blob).is_ok_and(|m| m.is_file() && size.is_none_or(|s| s == m.len()));
        if !there {
            self.download(
                &about,
                &url,
                &place.partial(&head.etag),
                size,
                &file.path,
                on,
            )?;
            let partial = place.partial(&head.etag);
            check_hash(&about, &partial, &head.etag)?;
            fs::rename(&partial, &blob).map_err(|e| Error::io(&blob, "cannot be written", e))?;
        }
        place.link(&head.etag, commit, &file.path).map(|_| ())
    }

    /// Hash and size of a file. The redirect to a store is not followed: the Hub's own answer says both.
    fn head(&self, about: &Reference, url: &str, commit: &str) -> Result<Head> {
        let mut ask =
            Ask::new(Method::HEAD, url.to_owned(), about).header("accept-encoding", "identity");
        ask.follow = false;
        let answer = self.client.send(&ask, &mut |_| {})?;
        let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok());
        let found = header("x-repo-commit");
        if found != Some(commit) {
            let found = found.map_or_else(
                || "no commit".to_owned(),
                |f| format!("commit `{}`", self.client.scrubbed(f)),
            );
            return Err(untrusted(
                about,
                &format!("{found} where {commit} was asked for"),
            ));
        }
        let etag = header("x-linked-etag")
            .or(header("etag"))
            .unwrap_or_default();
        let etag = etag
            .strip_prefix("W/")
            .unwrap_or(etag)
            .trim_matches('"')
            .to_owned();
        if !etag_name(&etag) {
            return Err(untrusted(about, "no hash that can be used"));
        }
        let length = header("content-length").filter(|_| answer.status().is_success());
        let size = header("x-linked-size").or(length);
        let size = size.and_then(|s| s.parse().ok());
        Ok(Head { etag, size })
    }

    /// Downloads into a partial file, from where it ends.
    fn download(
        &self,
        about: &Reference,
        url: &str,
        partial: &Path,
        size: Option<u64>,
        name: &str,
        on: OnTransfer<'_>,
    ) -> Result<()> {
        let io = |e| Error::io(partial, "cannot be written", e);
        let mut left = u64::from(self.client.retries()) + size.unwrap_or(0) / PART;
        let (mut broken, mut best) = (0, 0);
        loop {
            let mut start = fs::metadata(partial).map_or(0, |m| m.len());
            if size.is_none_or(|s| start > s) {
                start = 0;
            }
            if start > 0 && size == Some(start) {
                return Ok(());
            }
            let mut ask =
                Ask::new(Method::GET, url.to_owned(), about).header("accept-encoding", "identity");
            if start > 0 {
                ask = ask.header("range", format!("bytes={start}-"));
            }
            ask.accept = &[416];
            let answer = self.client.send(&ask, &mut |_| {})?;
            let range = answer
                .headers()
                .get("content-range")
                .and_then(|v| v.to_str().ok());
            let goes_on = answer.status() == 206
                && range.is_some_and(|r| r.starts_with(&format!("bytes {start}-")));
            let mut out = OpenOptions::new()
                .create(true)
                .append(true)
                .open(partial)
                .map_err(io)?;
            if !goes_on {
                out.set_len(0).map_err(io)?;
                start = 0;
            }
            let asked_again = answer.status() == 416 || (answer.status() == 206 && !goes_on);
            let limit = size.map_or(UNSIZED, |s| s - start) + 1;
            let body = answer.into_body().into_reader().take(limit);
            let mut body = Paced::new(body, self.client.timeout(), None);
            let (done, ended) = if asked_again {
                (
                    start,
                    Err("the server has another part than was asked for".to_owned()),
                )
            } else {
                copy(&mut body, &mut out, start, &mut |done| {
                    on(Transfer {
                        file: name,
                        done,
                        total: size,
                    });
                })
                .map_err(io)?
            };
            match (ended, size) {
                (Ok(()), None) if done > UNSIZED => {
                    let _ = fs::remove_file(partial);
                    let what = format!("more than {UNSIZED} bytes, and did not say how many");
                    return Err(untrusted(about, &what));
                }
                (Ok(()), None) => return out.sync_all().map_err(io),
                (Ok(()), Some(s)) if s == done => return out.sync_all().map_err(io),
                (Ok(()), Some(s)) if done > s => {
                    let _ = fs::remove_file(partial);
                    return Err(untrusted(
                        about,
                        &format!("more than the {s} bytes it promised"),
                    ));
                }
                (why, _) => {
                    broken = if done > best { 1 } else { broken + 1 };
                    best = best.max(done);
                    if broken > self.client.retries() || left == 0 || body.was_slow() {
                        return Err(self.cut(about, done, size, why.err().as_deref()));
                    }
                    left -= 1;
                    self.client.pause(broken - 1);
                }
            }
        }
    }

    fn cut(&self, about: &Reference, done: u64, size: Option<u64>, why: Option<&str>) -> Error {
        let of = size.map_or_else(String::new, |s| format!(" of {s}"));
        let why = why.map_or_else(
            || "the connection ended".to_owned(),
            |w| self.client.scrubbed(w),
        );
        fail("hub-download", format!("only {done}{of} bytes came: {why}"))
            .at(about.to_string())
            .help("what came is kept: run the same command again to go on")
            .into_error()
    }
}

/// A connection may break off as often in a row as anything may fail, and once for each part of this size besides. What counts is how far the
/// best attempt came: a server that begins again each time brings nothing new.
const PART: u64 = 16 << 20;
/// Most bytes of a file whose size nobody says.
const UNSIZED: u64 = 64 << 20;

/// Refuses files whose names make other programs do something where they are written.
fn refuse_acting(reference: &Reference, wanted: &[&RemoteFile]) -> Result<()> {
    let finding = |file: &&&RemoteFile| {
        let message = format!(
            "`{}` must not be written: a file of this name acts on whoever receives it",
            file.path
        );
        let d = fail("hub-name", message).at(reference.to_string());
        d.help("leave it out (--exclude), or read it on the Hub's page")
    };
    let findings: Vec<Diagnostic> = wanted
        .iter()
        .filter(|f| acts(&f.path))
        .map(|f| finding(&f))
        .collect();
    if findings.is_empty() {
        return Ok(());
    }
    Err(Error::many(ErrorKind::Hub, findings))
}

/// Copies a body into a file. The outer error is the file's; the inner one the connection's.
fn copy(
    body: &mut impl Read,
    out: &mut File,
    start: u64,
    on: &mut dyn FnMut(u64),
) -> std::io::Result<(u64, std::result::Result<(), String>)> {
    let mut buffer = vec![0; 1 << 16];
    let mut done = start;
    on(done);
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return Ok((done, Ok(()))),
            Ok(n) => {
                out.write_all(&buffer[..n])?;
                done += n as u64;
                on(done);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Ok((done, Err(e.to_string()))),
        }
    }
}

/// Whether a file is in its snapshot already.
fn present(place: &Place, commit: &str, file: &RemoteFile) -> bool {
    let found = fs::metadata(place.snapshot(commit).join(&file.path));
    found.is_ok_and(|m| m.is_file() && file.size.is_none_or(|s| s == m.len()))
}

impl Select {
    /// The files that are wanted.
    fn of<'a>(&self, reference: &Reference, listing: &'a Listing) -> Result<Vec<&'a RemoteFile>> {
        let read = |list: &[String]| list.iter().map(|p| Pattern::new(p)).collect::<Vec<_>>();
        let any = |list: &[Pattern], path: &str| list.iter().any(|p| p.matches(path));
        let (include, exclude) = (read(&self.include), read(&self.exclude));
        let mut findings = Vec::new();
        for (pattern, text) in include.iter().zip(&self.include) {
            if !listing.files.iter().any(|f| pattern.matches(&f.path)) {
                findings.push(nothing(reference, text, listing));
            }
        }
        if !findings.is_empty() {
            return Err(Error::many(ErrorKind::Hub, findings));
        }
        let wanted: Vec<&RemoteFile> = listing
            .files
            .iter()
            .filter(|f| self.include.is_empty() || any(&include, &f.path))
            .filter(|f| !any(&exclude, &f.path))
            .collect();
        if wanted.is_empty() {
            let d = fail("hub-file", "nothing is left to pull").at(reference.to_string());
            return Err(d
                .help("no file of the repository passes the patterns")
                .into_error());
        }
        Ok(wanted)
    }
}

/// The finding about a pattern that matches no file.
pub(super) fn nothing(reference: &Reference, pattern: &str, listing: &Listing) -> Diagnostic {
    const SHOWN: usize = 8;
    let names: Vec<&str> = listing.files.iter().map(|f| f.path.as_str()).collect();
    let mut d = fail("hub-file", format!("`{pattern}` matches no file")).at(reference.to_string());
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len().min(SHOWN)].join(", ");
    d = d.note(match (names.len(), more) {
        (0, _) => "there are no files".to_owned(),
        (_, 0) => format!("there are {shown}"),
        _ => format!("there are {shown} and {more} more"),
    });
    match nearest(pattern, names.iter().copied()) {
        Some(near) => d.help(format!("did you mean `{near}`?")),
        None => d.help("patterns are those of a shell; `*` also crosses folders"),
    }
}

/// The error of a server that must not be believed.
fn untrusted(about: &Reference, what: &str) -> Error {
    fail("hub-answer", format!("the server gave {what}"))
        .at(about.to_string())
        .help("is HF_ENDPOINT the address of a Hub or of a mirror?")
        .into_error()
}

/// Checks content against its hash: SHA-256 of large files, git's SHA-1 of others. Hashes of other lengths are not known.
fn check_hash(about: &Reference, path: &Path, etag: &str) -> Result<()> {
    let hex = etag.bytes().all(|b| b.is_ascii_hexdigit());
    let found = match etag.len() {
        64 if hex => digest(path, Sha256::new()),
        40 if hex => {
            let len = fs::metadata(path).map_or(0, |m| m.len());
            digest(path, Sha1::new_with_prefix(format!("blob {len}\0")))
        }
        _ => return Ok(()),
    };
    let found = found.map_err(|e| Error::io(path, "cannot be read", e))?;
    if found.eq_ignore_ascii_case(etag) {
        return Ok(());
    }
    let _ = fs::remove_file(path);
    Err(fail(
        "hub-hash",
        "what came is not what the Hub has: its hash differs",
    )
    .at(about.to_string())
    .note(format!("found {found}, expected {etag}"))
    .help("run the same command again; behind a proxy or mirror, ask who changes files")
    .into_error())
}

/// The hash of a file, in hexadecimal.
pub(super) fn digest<D: Digest>(path: &Path, mut hash: D) -> std::io::Result<String> {
    let mut file = disk::own::open(path)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, b| {
        out.push_str(&format!("{b:02x}"));
        out
    })
}

/// The files that a model's tensors lie in.
fn data_files<'a>(
    reference: &Reference,
    listing: &'a Listing,
    model: &RemoteFile,
    path: &Path,
) -> Result<Vec<&'a RemoteFile>> {
    // A model that cannot be read is pulled as it is; opening it says what is wrong.
    let Ok(locations) = onnx::locations(path) else {
        return Ok(Vec::new());
    };
    let folder = model.path.rsplit_once('/').map_or("", |(f, _)| f);
    let mut found = Vec::new();
    for location in locations {
        let wanted = if folder.is_empty() {
            location.clone()
        } else {
            format!("{folder}/{location}")
        };
        let file = listing.files.iter().find(|f| f.path == wanted);
        found.push(file.ok_or_else(|| {
            let what = format!(
                "`{}` needs `{wanted}`, which the repository does not have",
                model.path
            );
            let d = fail("hub-data", what).at(reference.to_string());
            d.help("the repository is incomplete").into_error()
        })?);
    }
    Ok(found)
}

impl Pulled {
    /// Copies what was pulled into a folder of its own, with a record of where it is from. Each file appears as a whole.
    ///
    /// # Errors
    /// Files that are there with another content, unless `force` is set; a folder that cannot be written to.
    pub(crate) fn export(&self, target: &Path, force: bool) -> Result<Vec<PathBuf>> {
        let mut findings = Vec::new();
        let mut todo = Vec::new();
        for file in &self.files {
            let (from, to) = (self.folder.join(&file.path), target.join(&file.path));
            if to.exists() && same(&from, &to) {
                continue;
            }
            if fs::symlink_metadata(&to).is_ok() && !force {
                findings.push(
                    fail("exists", "the file is there with another content")
                        .at(to.display().to_string())
                        .help("give --force to replace it, or pull elsewhere"),
                );
            }
            todo.push((from, to));
        }
        if !findings.is_empty() {
            return Err(Error::many(ErrorKind::Io, findings));
        }
        fs::create_dir_all(target).map_err(|e| Error::io(target, "cannot be made", e))?;
        let root = target
            .canonicalize()
            .map_err(|e| Error::io(target, "cannot be read", e))?;
        let _hold = staging::hold(&root)?;
        for (from, to) in &todo {
            copy_to(&root, from, to)?;
        }
        let record = serde_json::json!({
            "repo": self.repo, "revision": self.revision, "commit": self.commit,
            "files": self.files.iter().map(|f| (&f.path, f.size)).collect::<std::collections::BTreeMap<_, _>>(),
        });
        let path = target.join(RECORD);
        let text = serde_json::to_string_pretty(&record).unwrap_or_default() + "\n";
        let written = staging::write(&path, text.as_bytes(), false);
        written.map_err(|e| Error::io(&path, "cannot be written", e))?;
        Ok(self.files.iter().map(|f| target.join(&f.path)).collect())
    }
}

/// Where a pulled folder says what it is from.
const RECORD: &str = ".hub.json";

fn same(a: &Path, b: &Path) -> bool {
    let len = |p: &Path| fs::metadata(p).map(|m| m.len()).ok();
    len(a) == len(b)
        && matches!((digest(a, Sha256::new()), digest(b, Sha256::new())), (Ok(a), Ok(b)) if a == b)
}

/// Copies a file under a folder, and nowhere else.
fn copy_to(root: &Path, from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().unwrap_or(root);
    // A link that is there must not lead what is written out of the folder.
    let there = parent.ancestors().find(|a| a.exists()).unwrap_or(root);
    let inside = there.canonicalize().is_ok_and(|p| p.starts_with(root));
    if !inside {
        let d =
            fail("hub-name", "the file would lie outside the folder").at(to.display().to_string());
        return Err(d.help("a link in the folder leads out of it").into_error());
    }
    let copy = || -> std::io::Result<()> {
        fs::create_dir_all(parent)?;
        let mut staged = StagedFile::beside(to)?;
        std::io::copy(&mut disk::own::open(from)?, staged.file())?;
        staged.name(to, true)
    };
    copy().map_err(|e| Error::io(to, "cannot be written", e))
}
