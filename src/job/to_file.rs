//! The main job: attaches adapters to a model file and writes the result beside it.

use super::attach::{AdapterSettings, Attaching};
use super::check::{ensure_absent, keep, usage, write_file};
use super::event::OnEvent;
use super::files::ModelFiles;
use super::folder::unlocked;
use super::open;
use super::origin::Origin;
use super::saving::SaveFormat;
use crate::adapters::folder;
use crate::adapters::place::Kind;
use crate::adapters::summary::Summary;
use crate::api::Adapted;
use crate::error::{Error, Result};
use crate::infer::Verified;
use crate::ir::Graph;
use crate::ir::contract::{self, stamp};
use crate::onnx::{SaveOptions, Saved};
use crate::staging;
use crate::text::CHAT_TEMPLATE;
use indexmap::IndexMap;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Attaches adapters to a model file: writes `MODEL.NAMES.onnx` and a folder for each adapter.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub(crate) struct AttachToFile {
    /// The ONNX file, or the folder of an encoder and a decoder.
    pub model: PathBuf,
    /// The variant of the files in a folder.
    pub variant: Option<String>,
    /// Which adapters, and where they go.
    pub adapters: AdapterSettings,
    /// Output file or folder (default: beside the model, or here for a model in the Hub's cache).
    pub output: Option<PathBuf>,
    /// Whether existing outputs are replaced.
    pub force: bool,
    /// Whether nothing is written, and the difference told instead.
    pub dry_run: bool,
    /// Seed of initial parameter values (default: 42).
    pub seed: u64,
    /// The format that adapters are written in.
    pub format: SaveFormat,
}

/// What attaching to a file did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub(crate) struct AttachReport {
    /// What the interface selected.
    pub selected: Selected,
    /// The library's summary table.
    pub summary: Summary,
    /// Names of the adapters that the input `adapter_ids` chooses from, by id.
    pub tenants: Vec<String>,
    /// What became of it.
    pub output: Written,
}

/// What was written.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub(crate) enum Written {
    /// Nothing: the difference of the graphs by module.
    Dry {
        /// As text.
        diff: String,
    },
    /// Files.
    Files {
        /// The model; every file of it, where encoder and decoder are files of their own.
        saved: Vec<Saved>,
        /// The adapters' folders.
        adapters: Vec<PathBuf>,
    },
}

/// What an interface selected in a model, in short.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub(crate) struct Selected {
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Projections of the first layer, by interface field.
    pub first_layer: IndexMap<String, String>,
    /// The adapters of each of them, where it has any.
    pub adapted: IndexMap<String, Vec<String>>,
    /// Number of places with an adapter.
    pub places: usize,
    /// How many places there are of each kind.
    pub at: Vec<Placed>,
}

/// Places of one kind.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub(crate) struct Placed {
    /// The adapter.
    pub adapter: String,
    /// The kind.
    pub kind: String,
    /// Number of places.
    pub places: usize,
}

impl AttachToFile {
    /// A job with the command's defaults.
    pub(crate) fn new(model: impl Into<PathBuf>, adapters: AdapterSettings) -> Self {
        AttachToFile {
            model: model.into(),
            variant: None,
            adapters,
            output: None,
            force: false,
            dry_run: false,
            seed: 42,
            format: SaveFormat::default(),
        }
    }

    /// Attaches and writes.
    ///
    /// # Errors
    /// Those of [`Attach::run`](crate::Attach::run); outputs that exist or are inputs; files that cannot be read or written.
    pub(crate) fn run(&self, events: OnEvent<'_>) -> Result<AttachReport> {
        if self.output.is_none() && Origin::cached(&self.model).is_some() {
            // The cache holds what is on the Hub, and nothing else.
            let output = Some(PathBuf::from("."));
            return AttachToFile {
                output,
                ..self.clone()
            }
            .run(events);
        }
        let files = ModelFiles::locate(&self.model, self.variant.as_deref())?;
        let parts = files.parts();
        let model = if parts.is_empty() {
            open(&files.path, events)?
        } else {
            files.open(events)?
        };
        let before = self.dry_run.then(|| model.clone());
        let interface = self.adapters.interface(&files.path, &model)?;
        let how = Attaching {
            seed: self.seed,
            ..Attaching::default()
        };
        let adapted = self
            .adapters
            .attach_by(&interface, model, &files.path, how, events)?;
        let names: Vec<String> = adapted.manifest()?.into_iter().map(|a| a.0).collect();
        for name in names.iter().filter(|n| adapted.has_head(n)) {
            self.format.say_headless(name, events)?;
        }
        let summary = adapted.summary()?;
        let selected = selected(&adapted);
        let output = match before {
            Some(before) => Written::Dry {
                diff: crate::api::diff(&before, &adapted.model)
                    .folded()
                    .to_string(),
            },
            None if parts.is_empty() => self.write(&adapted, &names, &files.path)?,
            None => self.write_parts(&adapted, &names, &parts, events)?,
        };
        Ok(AttachReport {
            selected,
            summary,
            tenants: if self.adapters.adapter_ids {
                names
            } else {
                Vec::new()
            },
            output,
        })
    }

    /// Writes the folders of adapters that were attached to encoder and decoder together, and every file of the model with what of them
    /// belongs to it.
    fn write_parts(
        &self,
        adapted: &Adapted,
        names: &[String],
        parts: &[PathBuf],
        events: OnEvent<'_>,
    ) -> Result<Written> {
        if self.adapters.adapter_ids || !self.adapters.fusions.is_empty() {
            return Err(usage(
                "encoder and decoder are files of their own: adapters that are chosen by ids or mixed are not written into them",
                "export encoder and decoder as one graph, or attach to one file after the other",
            ));
        }
        let inside = parts.first().and_then(|p| p.parent());
        let folder = self.output.as_deref().or(inside);
        let folder = folder.map_or_else(PathBuf::new, Path::to_path_buf);
        let to = |part: &Path| {
            let stem = part.file_stem().unwrap_or_default().to_string_lossy();
            folder.join(format!("{stem}.{}.onnx", names.join("+")))
        };
        for part in parts {
            keep(&to(part), [&**part])?;
            ensure_absent(&to(part), self.force)?;
        }
        let adapters = self.write_adapters(adapted, names, &folder, &mut || Ok(Vec::new()))?;
        let named = |n: &String| format!("{n}={}", folder.join(n).display());
        let settings = AdapterSettings {
            adapters: names.iter().map(named).collect(),
            route: None,
            ..self.adapters.clone()
        };
        let mut saved = Vec::new();
        for part in parts {
            let model = open(part, events)?;
            let interface = settings.interface(part, &model)?;
            let how = Attaching {
                seed: self.seed,
                ..Attaching::default()
            };
            let adapted = settings.attach_by(&interface, model, part, how, events)?;
            let options = SaveOptions {
                force: self.force,
                ..SaveOptions::default()
            };
            saved.push(crate::onnx::save(&adapted.model, to(part), options)?);
        }
        Ok(Written::Files { saved, adapters })
    }

    /// Writes the model and the folders of its adapters, after the last check.
    fn write(&self, adapted: &Adapted, names: &[String], model: &Path) -> Result<Written> {
        let fusions = adapted.setup.fusions();
        let is_fusion = |n: &&String| fusions.iter().any(|(name, _)| name == *n);
        let adapters: Vec<&str> = names
            .iter()
            .filter(|n| !is_fusion(n))
            .map(|n| &**n)
            .collect();
        let path = self.target(model, &adapters);
        let beside = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        keep(&path, [model])?;
        ensure_absent(&path, self.force)?;
        let (mut saved, before) = (Vec::new(), path.exists());
        let adapters = self.write_adapters(adapted, names, &beside, &mut || {
            let options = SaveOptions {
                force: self.force,
                ..SaveOptions::default()
            };
            let done = crate::onnx::save(&adapted.model, &path, options)?;
            let mut new = Vec::new();
            new.extend((!before).then(|| done.model.clone()));
            if !self.force {
                new.extend(done.written.iter().cloned());
            }
            saved.push(done);
            Ok(new)
        })?;
        Ok(Written::Files { saved, adapters })
    }

    /// Writes the folders of adapters, and the model in front of them, after the last check. `model` says which files it made where nothing
    /// was: they go again when a folder cannot be put in its place, so that no model stands there without its adapters.
    fn write_adapters(
        &self,
        adapted: &Adapted,
        names: &[String],
        beside: &Path,
        model: &mut dyn FnMut() -> Result<Vec<PathBuf>>,
    ) -> Result<Vec<PathBuf>> {
        // A file of many gives each folder when it is asked for (`rewrite tenants extract`).
        let names = if self.adapters.adapter_ids {
            &[]
        } else {
            names
        };
        let _claim = unlocked(beside)?;
        for name in names {
            folder::free(&beside.join(name))?;
        }
        self.format.check_names(names)?;
        let store = adapted.store();
        let folders = adapted.folders(names, &store)?;
        // A folder that an adapter was loaded from holds it already.
        let sources = self.adapters.sources();
        let (mut paths, mut saved) = (Vec::new(), Vec::new());
        for folder in folders {
            let path = beside.join(&folder.name);
            if path.canonicalize().is_ok_and(|f| sources.contains(&f)) {
                paths.push(path);
                continue;
            }
            paths.extend(self.format.places(&path));
            saved.push((folder.name.clone(), self.format.of(folder, &path)?));
        }
        for (_, adapter) in &saved {
            adapter.check(self.force)?;
        }
        std::fs::create_dir_all(beside)
            .map_err(|e| Error::io(beside, "cannot make the folder", e))?;
        let templates = self.adapters.templates();
        let mut staged = Vec::new();
        for (name, adapter) in &saved {
            staged.extend(adapter.staged(self.force, &|place, whole| {
                if let Some(template) = templates.get(name) {
                    write_file(&place.join(CHAT_TEMPLATE), template.as_bytes())?;
                }
                if whole {
                    adapted.write_head(name, place, &store, false)?;
                }
                Ok(())
            })?);
        }
        // Two runs into one folder end with the model and the adapters of one of them.
        let _hold = staging::hold(beside)?;
        let new = model()?;
        let put = staged.into_iter().try_for_each(|s| s.put(&[CHAT_TEMPLATE]));
        if let Err(e) = put {
            for path in new {
                let _ = std::fs::remove_file(path);
            }
            return Err(e);
        }
        if adapted.setup.active().len() > 1 && !self.adapters.adapter_ids {
            folder::write_setup(beside, &adapted.setup, self.force)?;
        }
        Ok(paths)
    }

    /// The file that the model is written to.
    fn target(&self, model: &Path, names: &[&str]) -> PathBuf {
        let stem = model.file_stem().unwrap_or_default();
        let names = if self.adapters.adapter_ids {
            contract::ADAPTER_IDS.to_owned()
        } else {
            names.join("+")
        };
        let file = format!("{}.{names}.onnx", stem.to_string_lossy());
        match &self.output {
            None => model.with_file_name(file),
            Some(out) if out.is_dir() || out.extension().is_none() => out.join(file),
            Some(out) => out.clone(),
        }
    }
}

/// What was selected.
pub(super) fn selected(adapted: &Adapted) -> Selected {
    let selection = &adapted.selection;
    let modules = crate::api::adapted_modules(&adapted.model);
    let (mut first_layer, mut of) = (IndexMap::new(), IndexMap::new());
    if let Some(l) = selection.layers.first() {
        let attentions = [&l.self_attn, &l.cross_attn].into_iter().flatten();
        let inside = attentions.flat_map(|a| [&a.q, &a.k, &a.v, &a.qkv, &a.o]);
        let outside = [&l.intermediate, &l.gate_proj, &l.output_proj];
        for p in inside.chain(outside).flatten() {
            let at = format!("{} [{} → {}]", p.path, p.d_in, p.d_out);
            let field = p.role.field().to_string();
            let here = modules.iter().filter(|(_, all)| all.contains(&*p.path));
            let names: Vec<String> = here.map(|(name, _)| name.clone()).collect();
            if !names.is_empty() {
                of.insert(field.clone(), names);
            }
            first_layer.insert(field, at);
        }
    }
    let (places, at) = places(&adapted.model);
    Selected {
        layers: selection.layers.len(),
        hidden_size: selection.hidden_size,
        first_layer,
        adapted: of,
        places,
        at,
    }
}

/// The number of places, and how many there are of each kind, by adapter.
fn places(model: &Verified) -> (usize, Vec<Placed>) {
    let mut count = 0;
    let mut kinds: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    count_places(&model.model().graph, &mut count, &mut kinds);
    let placed = |((adapter, kind), places): ((&str, &str), usize)| Placed {
        adapter: adapter.to_owned(),
        kind: kind.to_owned(),
        places,
    };
    (count, kinds.into_iter().map(placed).collect())
}

/// Counts the places of a graph, and of the graphs inside its nodes.
fn count_places<'g>(
    graph: &'g Graph,
    count: &mut usize,
    kinds: &mut BTreeMap<(&'g str, &'g str), usize>,
) {
    for n in graph.nodes() {
        for body in graph.bodies(n) {
            if let Some(inner) = body.graph(graph) {
                count_places(inner, count, kinds);
            }
        }
        let metadata = &graph.node(n).metadata;
        let get = |key: &str| metadata.get(key).map(|v| &**v);
        if get(stamp::REPLACES).is_none() {
            continue;
        }
        *count += 1;
        let adapter = get(stamp::ADAPTER).unwrap_or_default();
        // What has no kind grows along with another place.
        let kind = get(stamp::PLACE).unwrap_or(Kind::GROWN.name);
        *kinds.entry((adapter, kind)).or_default() += 1;
    }
}
