//! Saving: files are written beside their final place and renamed, and external data is referred to or copied, never rewritten.

use super::encode;
use super::external::{ExternalSource, contained, map, peek, relative};
use super::message::entry;
use super::proto::{
    AttributeProto, GraphProto, ModelProto, TensorProto, tensor_proto::DataLocation,
};
use super::write::model_out;
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::{AttrValue, Graph, Model, Payload, TensorData};
use crate::staging::{self, StagedFile};
use bytes::Bytes;
use indexmap::{IndexMap, IndexSet};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest message that protobuf's reference implementation reads.
pub(crate) const MESSAGE_LIMIT: u64 = (1 << 31) - 1;

/// Tensors below this size stay inline when others move out.
const MOVE_FROM: usize = 1024;

/// Alignment of tensors in data files that this library writes, as the schema recommends for mapping.
const ALIGN: u64 = 4096;

/// Bytes copied between two reports of progress.
const COPY_STEP: u64 = 64 << 20;

/// How to save.
#[derive(Default)]
pub struct SaveOptions<'a> {
    /// Replace files that exist. Data files that exist with the same content are used as they are, with and without it.
    pub force: bool,
    /// Models larger than this move their large inline tensors to `<name>.data`; `None` is [`MESSAGE_LIMIT`].
    pub inline_limit: Option<u64>,
    /// Called with the bytes written so far and in all.
    pub progress: Option<&'a mut dyn FnMut(u64, u64)>,
}

impl std::fmt::Debug for SaveOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SaveOptions")
            .field("force", &self.force)
            .field("inline_limit", &self.inline_limit)
            .finish_non_exhaustive()
    }
}

/// What a save did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The model file.
    pub model: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Data files that were written: copies of the input's, and a new one for tensors that do not fit inline.
    pub written: Vec<PathBuf>,
    /// Data files that were there and that the model refers to.
    pub shared: Vec<PathBuf>,
}

/// The encoded model. External tensors stay references.
///
/// # Errors
/// A model larger than [`MESSAGE_LIMIT`]: [`save`] moves large tensors out.
pub fn to_bytes(model: &Verified) -> Result<Vec<u8>> {
    let chunks = encode::model(model_out(model.model())?);
    let len = usize::try_from(chunks.len()).unwrap_or(usize::MAX);
    if chunks.len() > MESSAGE_LIMIT {
        return Err(too_large(chunks.len(), MESSAGE_LIMIT).into_error());
    }
    let mut out = Vec::with_capacity(len);
    for chunk in chunks.finish() {
        out.extend_from_slice(&chunk);
    }
    Ok(out)
}

/// Writes a model. Beside its input it refers to the same external data; elsewhere that is copied along (shared by the file system
/// where it can). Payloads go from the mapped input to the file without passing through memory of their own.
///
/// No data file is ever replaced, with `force` neither: it may be another model's. Where a name is taken by other content, the copy is
/// called `<model>.data`, `<model>.1.data`, … and the model refers to that. The data files come first and the model last, each under a
/// temporary name and renamed: an interrupted save leaves the old model with its data, or the new one. Data files of this kind that
/// the replaced model referred to, and no model of the folder does any more, are deleted then.
///
/// # Errors
/// I/O errors; a model that exists, without `force`, or that is an input; data files that would lie outside the model's folder; a model
/// that does not fit even with its large tensors moved out.
pub fn save(
    model: &Verified,
    path: impl AsRef<Path>,
    mut options: SaveOptions<'_>,
) -> Result<Saved> {
    let path = path.as_ref();
    let place = |e: Error| e.within(path.display().to_string());
    let (Some(name), folder) = (path.file_name().and_then(|n| n.to_str()), folder_of(path)) else {
        return Err(refuse(
            path,
            "the output must be a file name in UTF-8",
            None,
        ));
    };
    check_target(path, options.force)?;
    // Two models that are written to one place at once never mix their files, nor choose the same names for them.
    let _hold = staging::hold(folder)?;
    let old = replaced(path, options.force);
    let mut proto = model_out(model.model()).map_err(place)?;
    let mut data = data_files(model.model(), &mut proto, folder).map_err(place)?;
    let own = folder.join(name);
    let mut names = Names::new(&own, name, folder);
    names
        .taken
        .extend(data.iter().filter(|d| !d.other).map(|d| d.target.clone()));
    for d in data.iter_mut().filter(|d| d.other || d.target == own) {
        let location = names.unused();
        d.target = folder.join(&location);
        d.renamed = Some(location);
    }
    relocate(&mut proto, &data);
    let limit = options.inline_limit.unwrap_or(MESSAGE_LIMIT);
    let mut moved = Moved::default();
    let mut chunks = encode::model(proto);
    if chunks.len() > limit {
        moved.location = names.unused();
        let mut proto = model_out(model.model()).map_err(place)?;
        relocate(&mut proto, &data);
        moved.graph(proto.graph.as_mut());
        chunks = encode::model(proto);
        if chunks.len() > limit {
            return Err(too_large(chunks.len(), limit)
                .into_error()
                .within(path.display().to_string()));
        }
    }
    let mut saved = Saved {
        model: path.to_owned(),
        bytes: chunks.len(),
        written: Vec::new(),
        shared: Vec::new(),
    };
    let copies: Vec<&DataFile> = data.iter().filter(|d| d.copy).collect();
    let total = chunks.len() + moved.len + copies.iter().map(|d| d.len).sum::<u64>();
    let mut progress = Progress {
        done: 0,
        total,
        report: options.progress.take(),
    };
    saved
        .shared
        .extend(data.iter().filter(|d| !d.copy).map(|d| d.target.clone()));
    for d in copies {
        copy(d, folder, &mut progress)?;
        saved.written.push(d.target.clone());
    }
    if !moved.tensors.is_empty() {
        let target = folder.join(&moved.location);
        moved.write(&target, &mut progress)?;
        saved.written.push(target);
    }
    write_atomic(path, options.force, true, |file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        for chunk in chunks.finish() {
            for part in chunk.chunks(usize::try_from(COPY_STEP).unwrap_or(usize::MAX)) {
                out.write_all(part)?;
                progress.add(part.len());
            }
        }
        out.flush()
    })?;
    for location in old {
        let target = folder.join(&location);
        let kept = saved.written.contains(&target) || saved.shared.contains(&target);
        if !kept && is_own(&location, name) && !referred(folder, &location) {
            // What is left behind is a file too many, and no error of the new model.
            let _ = disk::remove(&target);
        }
    }
    Ok(saved)
}

/// The data files of the model that is replaced.
fn replaced(path: &Path, force: bool) -> Vec<String> {
    if !force || !path.is_file() {
        return Vec::new();
    }
    let old = peek(path).and_then(|old| locations_in(old.bytes()));
    old.unwrap_or_default()
}

/// Whether a model of a folder refers to a data file, or may do so.
fn referred(folder: &Path, location: &str) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .any(|p| {
            let found = peek(&p).and_then(|m| locations_in(m.bytes()));
            found.map_or(true, |l| l.iter().any(|l| l == location))
        })
}

/// Names of data files beside a model.
struct Names<'a> {
    model: &'a Path,
    name: &'a str,
    folder: &'a Path,
    taken: Vec<PathBuf>,
}

impl<'a> Names<'a> {
    fn new(model: &'a Path, name: &'a str, folder: &'a Path) -> Self {
        let taken = Vec::new();
        Names {
            model,
            name,
            folder,
            taken,
        }
    }

    /// A name of the model's own that no file has.
    fn unused(&mut self) -> String {
        let mut i = 0;
        loop {
            let name = data_name(self.name, i);
            let path = self.folder.join(&name);
            let there = std::fs::symlink_metadata(&path).is_ok();
            if !there && path != self.model && !self.taken.contains(&path) {
                self.taken.push(path);
                return name;
            }
            i += 1;
        }
    }
}

/// Whether a data file has a name that [`data_name`] gives.
fn is_own(location: &str, model: &str) -> bool {
    let rest = location
        .strip_prefix(model)
        .and_then(|r| r.strip_suffix(".data"));
    rest.is_some_and(|r| {
        r.is_empty()
            || r.strip_prefix('.')
                .is_some_and(|n| n.parse::<usize>().is_ok())
    })
}

/// Puts the new names of data files in the place of the old ones.
fn relocate(proto: &mut ModelProto, data: &[DataFile]) {
    if data.iter().all(|d| d.renamed.is_none()) {
        return;
    }
    visit_tensors(proto, &mut |t| {
        let Some(old) = location_of(t) else { return };
        let new = data
            .iter()
            .find(|d| *d.location == *old)
            .and_then(|d| d.renamed.as_ref());
        if let Some(new) = new {
            let mut entries = t.external_data.iter_mut();
            if let Some(entry) = entries.find(|e| e.key() == "location") {
                entry.value = Some(new.clone());
            }
        }
    });
}

struct TooLarge(Diagnostic);

impl TooLarge {
    fn into_error(self) -> Error {
        Error::new(ErrorKind::Unsupported, self.0)
    }
}

fn too_large(len: u64, limit: u64) -> TooLarge {
    TooLarge(
        Diagnostic::error(
            "onnx-too-large",
            format!(
                "the model takes {len} bytes without external data; a message may have {limit}"
            ),
        )
        .help("save it to a file, where large initializers become external data"),
    )
}

fn refuse(path: &Path, message: &str, help: Option<&str>) -> Error {
    let mut finding = Diagnostic::error("save", message).at(path.display().to_string());
    if let Some(help) = help {
        finding = finding.help(help);
    }
    Error::new(ErrorKind::Io, finding)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// A target must be absent, or a regular file or link that may be replaced, in a folder that is there.
fn check_target(path: &Path, force: bool) -> Result<()> {
    let folder = folder_of(path);
    if !folder.is_dir() {
        let message = format!("there is no folder {}", folder.display());
        return Err(refuse(path, &message, Some("make it first")));
    }
    let Ok(meta) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !(meta.is_file() || meta.is_symlink()) {
        return Err(refuse(
            path,
            "the output exists and is not a regular file",
            None,
        ));
    }
    if !force {
        return Err(refuse(
            path,
            "the output exists",
            Some("choose another name, or replace it with `--force`"),
        ));
    }
    disk::replaceable(path).map_err(|e| Error::io(path, "cannot write", e))
}

struct Progress<'a> {
    done: u64,
    total: u64,
    report: Option<&'a mut dyn FnMut(u64, u64)>,
}

impl Progress<'_> {
    fn add(&mut self, n: usize) {
        self.done += u64::try_from(n).unwrap_or_default();
        if let Some(report) = &mut self.report {
            report(self.done, self.total);
        }
    }
}

/// Writes a file under a temporary name in its own folder, then renames it. With `sync` it also survives a loss of power.
fn write_atomic(
    path: &Path,
    force: bool,
    sync: bool,
    write: impl FnOnce(&mut File) -> std::io::Result<()>,
) -> Result<()> {
    let io = |e| Error::io(path, "cannot write", e);
    let mut staged = StagedFile::beside(path).map_err(io)?;
    write(staged.file()).map_err(io)?;
    if sync {
        staged.file().sync_all().map_err(io)?;
    }
    staged.name(path, force).map_err(io)
}

// ---- data files of the input ---------------------------------------------------------------------------------------------

/// An external data file that the model refers to.
struct DataFile {
    /// What the model calls it.
    location: Box<str>,
    /// What the written one does, where that name is taken.
    renamed: Option<String>,
    source: PathBuf,
    target: PathBuf,
    len: u64,
    /// Whether it must be copied: it is elsewhere, and the target does not have the same content already.
    copy: bool,
    /// Whether something else has its name.
    other: bool,
}

fn data_files(model: &Model, proto: &mut ModelProto, folder: &Path) -> Result<Vec<DataFile>> {
    let mut sources: IndexMap<Box<str>, Arc<Path>> = IndexMap::new();
    let mut conflict = None;
    visit_model(model, &mut |tensor| {
        if let Payload::External(external) = &tensor.payload
            && let (Some(location), Some(base)) = (external.entry("location"), &external.folder)
        {
            let known = sources
                .entry(location.into())
                .or_insert_with(|| base.clone());
            if known != base {
                conflict = Some(location.to_owned());
            }
        }
    });
    if let Some(location) = conflict {
        return Err(Error::new(
            ErrorKind::Unsupported,
            Diagnostic::error(
                "external-data",
                format!("two data files of different folders are both called `{location}`"),
            ),
        ));
    }
    // Tensors that the IR does not interpret (sparse ones, training information) lie in the same folder as the others.
    if let Some(base) = sources.values().next().cloned() {
        let mut more = Vec::new();
        visit_tensors(proto, &mut |t| more.extend(location_of(t)));
        for location in more {
            sources
                .entry(location.into())
                .or_insert_with(|| base.clone());
        }
    }
    sources
        .iter()
        .map(|(location, base)| data_file(location, base, folder))
        .collect()
}

fn data_file(location: &str, base: &Path, folder: &Path) -> Result<DataFile> {
    let source = contained(base, location)?;
    let target = folder.join(relative(location)?);
    let len = std::fs::metadata(&source)
        .map_err(|e| Error::io(&source, "cannot open", e))?
        .len();
    let same = target.canonicalize().is_ok_and(|t| t == source) || same_content(&source, &target);
    let other = !same && std::fs::symlink_metadata(&target).is_ok();
    Ok(DataFile {
        location: location.into(),
        renamed: None,
        source,
        target,
        len,
        copy: !same,
        other,
    })
}

fn same_content(a: &Path, b: &Path) -> bool {
    let regular = std::fs::metadata(b).is_ok_and(|m| m.is_file());
    let length = |p: &Path| std::fs::metadata(p).map(|m| m.len()).ok();
    regular
        && length(a) == length(b)
        && matches!((peek(a), peek(b)), (Ok(a), Ok(b)) if a.as_ref() == b.as_ref())
}

fn copy(d: &DataFile, folder: &Path, progress: &mut Progress<'_>) -> Result<()> {
    let parent = folder_of(&d.target);
    let there = parent.ancestors().find(|a| a.exists()).unwrap_or(folder);
    let inside = matches!((folder.canonicalize(), there.canonicalize()), (Ok(root), Ok(p)) if p.starts_with(&root));
    if !inside {
        return Err(refuse(
            &d.target,
            "the data file would lie outside the model's folder",
            None,
        ));
    }
    std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, "cannot make the folder", e))?;
    let source = disk::open(&d.source).map_err(|e| Error::io(&d.source, "cannot open", e))?;
    // The source is still there: a copy is not worth waiting for the disk.
    write_atomic(&d.target, false, false, |target| {
        // The kernel copies between files, and shares blocks where the file system can.
        loop {
            let n = std::io::copy(&mut (&source).take(COPY_STEP), target)?;
            if n == 0 {
                return Ok(());
            }
            progress.add(usize::try_from(n).unwrap_or(usize::MAX));
        }
    })
}

/// The data files that a model file refers to, relative to its folder; they are not opened.
///
/// # Errors
/// A file that is no model.
pub(crate) fn locations(path: &Path) -> Result<Vec<String>> {
    locations_in(map(path)?.bytes())
}

fn locations_in(bytes: Bytes) -> Result<Vec<String>> {
    let model = super::read(bytes, &ExternalSource::none())?;
    let mut found = IndexSet::new();
    visit_model(&model, &mut |tensor| {
        if let Payload::External(external) = &tensor.payload {
            found.extend(external.entry("location").map(str::to_owned));
        }
    });
    Ok(found.into_iter().collect())
}

fn visit_model(model: &Model, f: &mut impl FnMut(&TensorData)) {
    visit_graph(&model.graph, f);
    for function in &model.functions {
        visit_graph(&function.body, f);
    }
}

fn visit_graph(g: &Graph, f: &mut impl FnMut(&TensorData)) {
    for v in g.initializers() {
        g.value(*v).tensor.iter().for_each(&mut *f);
    }
    for n in g.nodes() {
        for attr in g.node(n).attrs.values() {
            match &attr.value {
                AttrValue::Tensor(t) => f(t),
                AttrValue::Tensors(ts) => ts.iter().for_each(&mut *f),
                AttrValue::Graph(inner) => visit_graph(inner, f),
                AttrValue::Graphs(inner) => inner.iter().for_each(|g| visit_graph(g, f)),
                AttrValue::Float(_)
                | AttrValue::Int(_)
                | AttrValue::String(_)
                | AttrValue::Floats(_)
                | AttrValue::Ints(_)
                | AttrValue::Strings(_)
                | AttrValue::Ref { .. }
                | AttrValue::Other(_) => {}
            }
        }
    }
}

fn location_of(t: &TensorProto) -> Option<String> {
    (t.data_location() == DataLocation::External)
        .then(|| t.external_data.iter().find(|e| e.key() == "location"))
        .flatten()
        .map(|e| e.value().to_owned())
}

/// All tensors of a message, those included that are no [`TensorData`] in the IR.
fn visit_tensors(proto: &mut ModelProto, f: &mut impl FnMut(&mut TensorProto)) {
    fn graph(g: &mut GraphProto, f: &mut impl FnMut(&mut TensorProto)) {
        g.initializer.iter_mut().for_each(&mut *f);
        for s in &mut g.sparse_initializer {
            s.values.iter_mut().chain(&mut s.indices).for_each(&mut *f);
        }
        let attributes = g.node.iter_mut().flat_map(|n| &mut n.attribute);
        attributes.for_each(|a| attribute(a, f));
    }
    fn attribute(a: &mut AttributeProto, f: &mut impl FnMut(&mut TensorProto)) {
        a.t.iter_mut().chain(&mut a.tensors).for_each(&mut *f);
        let graphs = a.g.iter_mut().chain(&mut a.graphs);
        graphs.for_each(|g| graph(g, f));
        for s in a.sparse_tensor.iter_mut().chain(&mut a.sparse_tensors) {
            s.values.iter_mut().chain(&mut s.indices).for_each(&mut *f);
        }
    }
    let training = proto.training_info.iter_mut();
    let training = training.flat_map(|t| t.initialization.iter_mut().chain(&mut t.algorithm));
    let graphs = proto.graph.iter_mut().chain(training);
    graphs.for_each(|g| graph(g, f));
    for node in proto.functions.iter_mut().flat_map(|x| &mut x.node) {
        node.attribute.iter_mut().for_each(|a| attribute(a, f));
    }
}

// ---- tensors that do not fit inline --------------------------------------------------------------------------------------

fn data_name(model: &str, i: usize) -> String {
    if i == 0 {
        format!("{model}.data")
    } else {
        format!("{model}.{i}.data")
    }
}

/// Tensors that move to a data file of the model's own.
#[derive(Default)]
struct Moved {
    location: String,
    tensors: Vec<Bytes>,
    len: u64,
}

impl Moved {
    fn graph(&mut self, graph: Option<&mut GraphProto>) {
        let Some(g) = graph else { return };
        for t in &mut g.initializer {
            self.tensor(t);
        }
        for a in g.node.iter_mut().flat_map(|n| &mut n.attribute) {
            for inner in a.g.iter_mut().chain(&mut a.graphs) {
                self.graph(Some(inner));
            }
        }
    }

    fn tensor(&mut self, t: &mut TensorProto) {
        let Some(raw) = t.raw_data.take_if(|raw| raw.len() >= MOVE_FROM) else {
            return;
        };
        let offset = self.len.next_multiple_of(ALIGN);
        t.external_data = vec![
            entry("location", &self.location),
            entry("offset", &offset.to_string()),
            entry("length", &raw.len().to_string()),
        ];
        t.set_data_location(DataLocation::External);
        self.len = offset + u64::try_from(raw.len()).unwrap_or(u64::MAX);
        self.tensors.push(raw);
    }

    fn write(&self, path: &Path, progress: &mut Progress<'_>) -> Result<()> {
        write_atomic(path, false, true, |file| {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            let mut at = 0u64;
            for t in &self.tensors {
                let pad = at.next_multiple_of(ALIGN) - at;
                std::io::copy(&mut std::io::repeat(0).take(pad), &mut out)?;
                out.write_all(t)?;
                let n = pad + u64::try_from(t.len()).unwrap_or(u64::MAX);
                at += n;
                progress.add(usize::try_from(n).unwrap_or(usize::MAX));
            }
            out.flush()
        })
    }
}
