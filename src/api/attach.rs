//! Attaching: from a model and the names of adapters to the adapted model.

use super::{adapter, heads, manifest, open, opened, strip, summed_up};
use crate::adapters::base::Base;
#[cfg(feature = "train")]
use crate::adapters::folder::remove;
use crate::adapters::folder::{AdapterFolder, Meta};
#[cfg(feature = "train")]
use crate::adapters::heads::files::{copy_renamed, file};
use crate::adapters::heads::{Noted, SavedHead, StaticHead};
use crate::adapters::manifest::{Exchangeable, Manifest};
use crate::adapters::place::Shown;
use crate::adapters::plan::plan;
use crate::adapters::summary::Summary;
use crate::adapters::target::Met;
use crate::adapters::{Adapter, AdapterStore, Config, Route, Setup, UnknownKeys};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::contract;
use crate::rewrite::passes::{AttachPass, Exchanging, Tensors};
use crate::rewrite::{bodies, pipelines};
use crate::select::{Interface, Library, PerStack, Selection, beside, infer_interface};
use std::path::{Path, PathBuf};

/// Attaches adapters to a model: says where they go, which ones they are and how they act together, and [runs](Self::run).
///
/// ```
/// use onnx_graft::Attach;
///
/// let adapted = Attach::open("fixtures/qwen3/model.onnx")?.adapter("lora[r=4]")?.run()?;
/// assert_eq!(adapted.summary()?.rows[0].name, "lora");
/// # Ok::<(), onnx_graft::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is attached before it runs"]
pub struct Attach {
    model: Verified,
    file: Option<PathBuf>,
    interface: Option<Interface>,
    adapters: Vec<Adapter>,
    active: Option<Setup>,
    seed: u64,
    training: bool,
    route: Option<Route>,
    shown: Shown,
    skip_layers: Vec<usize>,
    skip_input: bool,
    by_ids: bool,
    exchange: Option<(Exchanging, Vec<Exchangeable>)>,
}

impl Attach {
    /// Attaches to a model in memory.
    pub fn to(model: Verified) -> Self {
        Attach {
            model,
            file: None,
            interface: None,
            adapters: Vec::new(),
            active: None,
            seed: 42,
            training: false,
            route: None,
            shown: Shown::default(),
            skip_layers: Vec::new(),
            skip_input: false,
            by_ids: false,
            exchange: None,
        }
    }

    /// Attaches again what the input `adapter_ids` of a model chooses from, to the base model that is in it, so that there may be further
    /// adapters, or fewer ([`without`](Self::without)). No other file is needed.
    ///
    /// # Errors
    /// [`ErrorKind::Method`]: a model without such adapters.
    pub fn again(model: &Verified) -> Result<Self> {
        let (tenants, folders) = super::tenants::read(model)?;
        let again = |folder: AdapterFolder| Adapter {
            // It is attached to this one already.
            allow_other_base: true,
            ..folder.into_adapter(None)
        };
        let mut out = Self::to(strip(model.clone(), None)?)
            .adapters(folders.into_iter().map(again))
            .skip_layers(tenants.skip_layers)
            .adapter_ids(true);
        if let Some(text) = &tenants.interface {
            out.interface = Some(Interface::parse(text, &tenants.source)?);
        }
        Ok(out)
    }

    /// Leaves out an adapter that was named before.
    ///
    /// # Errors
    /// [`ErrorKind::Method`]: there is none of this name, or no other.
    pub fn without(mut self, name: &str) -> Result<Self> {
        super::tenants::check_left(name, &self.adapters)?;
        self.adapters.retain(|a| a.name != name);
        Ok(self)
    }

    /// Whether the graph gets an optional input `adapter_ids: i64[batch]`, which chooses for each sample one of the adapters, by its place in
    /// the order in which they were named, or none by -1; left out, none (default: no, all adapters act by the setup). Their parameters
    /// are stacked, so that the graph has as many nodes for a thousand adapters as for one.
    pub fn adapter_ids(mut self, wanted: bool) -> Self {
        self.by_ids = wanted;
        self
    }

    /// Has the parameters become optional inputs of the graph, which leave the model as it is where nothing is given; what the adapters
    /// give is in [`Adapted::exchanged`]. `known`: what a graph has inputs for already.
    #[cfg(feature = "train")]
    pub(crate) fn exchange(mut self, how: Exchanging, known: Vec<Exchangeable>) -> Self {
        self.exchange = Some((how, known));
        self
    }

    /// Attaches to the model of a file, whose folder may hold a `config.json` (see [`from_file`](Self::from_file)).
    ///
    /// # Errors
    /// Those of [`open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self::to(open(path)?).from_file(path))
    }

    /// The file that the model was read from. `config.json` beside it names the model's type, which finds the interface where none is
    /// given, and what saved adapters tell about their model.
    pub fn from_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// The interface that says which modules adapters go to (default: that of the model's type, else one inferred from the graph).
    pub fn interface(mut self, interface: &Interface) -> Self {
        self.interface = Some(interface.clone());
        self
    }

    /// One more adapter, as [`adapter`] reads it (default: the first method that the interface lists).
    ///
    /// # Errors
    /// Those of [`adapter`].
    pub fn adapter(mut self, spec: &str) -> Result<Self> {
        self.adapters.push(adapter(spec)?);
        Ok(self)
    }

    /// More adapters.
    pub fn adapters(mut self, adapters: impl IntoIterator<Item = Adapter>) -> Self {
        self.adapters.extend(adapters);
        self
    }

    /// Which adapters are active, and how they act together (default: all, one behind the other).
    pub fn active(mut self, setup: Setup) -> Self {
        self.active = Some(setup);
        self
    }

    /// How the Adapters library is to integrate fresh adapters, which decides their names and, in a few places, what is computed (default:
    /// by its own class for the model's type, if it has one and no interface file was given). Saved adapters stay what they are.
    pub fn route(mut self, route: Route) -> Self {
        self.route = Some(route);
        self
    }

    /// Seed of initial parameter values (default: 42).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Whether dropout and stochastic depth act, as they do in training (default: no). Files are written without.
    pub fn training(mut self, training: bool) -> Self {
        self.training = training;
        self
    }

    /// Layers that get no adapters (`AdapterDrop`; the library's `skip_layers`). The parameters for them stay in the adapters' files.
    pub fn skip_layers(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.skip_layers.extend(layers);
        self
    }

    /// Whether the graph gets an optional input `adapter_skip_layers: bool[layers]` that says which layers are skipped (default: no).
    pub fn skip_layers_input(mut self, wanted: bool) -> Self {
        self.skip_input = wanted;
        self
    }

    /// Whether the gates of adapters are graph outputs, `adapter_gating_scores.MODULE: [batch, gates]` (default: no).
    pub fn output_gating_scores(mut self, wanted: bool) -> Self {
        self.shown.gating = wanted;
        self
    }

    /// Whether the weights that fusions give their adapters are graph outputs, `adapter_fusion_attentions.MODULE: [batch, positions,
    /// adapters]` (default: no).
    pub fn output_fusion_attentions(mut self, wanted: bool) -> Self {
        self.shown.attentions = wanted;
        self
    }

    /// Selects the interface's sites and attaches the adapters.
    ///
    /// # Errors
    /// [`ErrorKind::Interface`]: no interface, or one that does not fit the graph; [`ErrorKind::Method`] and [`ErrorKind::Patch`]:
    /// adapters that do not fit the places.
    pub fn run(self) -> Result<Adapted> {
        let mut attach = |model: Verified| {
            let one = Attach {
                model,
                ..self.clone()
            };
            let adapted = one.run_flat()?;
            Ok((adapted.model.clone(), adapted))
        };
        let (model, all) = bodies::everywhere(self.model.clone(), &mut attach)?;
        Ok(super::within::joined(all, model))
    }

    /// Attaches to the main graph, whatever stands inside its nodes.
    fn run_flat(self) -> Result<Adapted> {
        let by_name = |a: &Adapter| a.config.methods().iter().all(|m| m.names_modules());
        let by_name = !self.adapters.is_empty() && self.adapters.iter().all(by_name);
        let interface = match self.interface.filter(|i| by_name || !i.is_bare()) {
            Some(interface) => interface,
            None => match find_interface(&self.model, self.file.as_deref()) {
                Err(_) if by_name => Interface::bare(),
                found => found?,
            },
        };
        let interface = match &self.file {
            Some(file) => interface.counting(file),
            None => interface,
        };
        let mut adapters = self.adapters;
        if adapters.is_empty() {
            adapters.push(Adapter::default_of(&interface)?);
        }
        let route = self.route;
        let route = route.unwrap_or_else(|| usual_route(&interface, self.file.as_deref()));
        for adapter in adapters.iter_mut().filter(|a| a.weights.is_none()) {
            adapter.route = route.clone();
        }
        let names = adapters.iter().map(|a| a.name.clone());
        if let Some(setup) = self.active.as_ref().filter(|_| self.by_ids) {
            let found =
                format!("the setup `{setup}` and `adapter_ids` both say which adapter acts");
            let found = Diagnostic::error("tenants-setup", found).help(
                "leave one of them out: with `adapter_ids`, each sample has one adapter, or none",
            );
            return Err(Error::new(ErrorKind::Usage, found));
        }
        let setup = self.active.unwrap_or_else(|| Setup::stack(names));
        let dropout = self.file.as_deref().map_or(0.0, attention_dropout);
        let fresh_fusions = complete(&mut adapters, &setup, dropout)?;
        let attached = adapters.iter().map(|a| Attached {
            name: a.name.clone(),
            config: a.config.clone(),
            route: a.route.clone(),
            meta: a.meta.clone(),
        });
        let attached = attached.collect();
        let mut methods = adapters.iter().flat_map(|a| a.config.methods());
        let cores = methods.any(|m| m.opens_attention());
        let (mut model, mut expanded) = opened(self.model, cores)?;
        let mut selection = interface.select(&model)?;
        let mut methods = adapters.iter().flat_map(|a| a.config.methods());
        if !cores && selection.hides_projections() && methods.any(|m| m.adapts_projections()) {
            let first = expanded.take();
            (model, expanded) = opened(model, true)?;
            expanded = expanded.or(first);
            selection = interface.select(&model)?;
        }
        let base = Base::of(&selection, &model);
        let meta = meta(self.file.as_deref(), &interface, &selection, &base);
        let met = Met {
            selection: &selection,
            interface: &interface,
            model_type: &meta.model_type,
        };
        let said = met.check(&adapters)?;
        let active = setup.active();
        let is_idle = |a: &&Adapter| !active.contains(&a.name);
        let idle: Vec<Adapter> = adapters.iter().filter(is_idle).cloned().collect();
        let idle = if idle.is_empty() {
            AdapterStore::default()
        } else {
            let planned = plan(&idle, &selection, &model, self.seed);
            planned.map_err(|e| met.explain(&idle, e))?.store
        };
        let graph = &model.model().graph;
        let there = heads(&model)?.into_iter();
        let there = there.map(|n| n.head(&selection, graph));
        let there: Vec<SavedHead> = there.collect::<Result<_>>()?;
        let mut warnings = selection.misses.clone();
        warnings.extend(expanded);
        warnings.extend(fresh_fusions);
        warnings.extend(said);
        if adapters.iter().any(|a| a.route == Route::Plugin) && !interface.is_bare() {
            warnings.extend(beyond_library(
                &interface.resolved(&selection),
                &meta.model_type,
            ));
        }
        let given = adapters.clone();
        // A written graph goes without its configuration, and says its name by itself.
        for adapter in adapters.iter_mut().filter(|a| a.meta.is_none()) {
            adapter.meta = Some(meta.clone());
        }
        let tenants = self.by_ids.then(|| {
            let skipped = self.skip_layers.clone();
            super::tenants::noted(&adapters, &interface, &selection, &meta, skipped)
        });
        let mut exchanged = Vec::new();
        if let Some(how) = &self.exchange {
            let of = (&*adapters, &selection, &model);
            let found = super::exchange::tensors(of, self.seed, &self.skip_layers, how);
            exchanged = found.map_err(|e| met.explain(&given, e))?;
        }
        let pass = AttachPass {
            exchange: self.exchange.map(|(how, _)| how),
            selection: selection.clone(),
            setup: setup.clone(),
            adapters,
            seed: self.seed,
            training: self.training,
            shown: self.shown,
            skip_layers: self.skip_layers,
            skip_input: self.skip_input,
            tenants,
        };
        let rewritten = pipelines::attaching(pass).run(model);
        let mut rewritten = rewritten.map_err(|f| met.explain(&given, f.into()))?;
        for report in &mut rewritten.reports {
            warnings.append(&mut report.warnings);
        }
        Ok(Adapted {
            meta,
            model: rewritten.model,
            selection,
            warnings,
            interface,
            setup,
            attached,
            idle,
            heads: there,
            headed: Vec::new(),
            exchanged,
        })
    }
}

/// Gives every `Fuse` of a setup its fusion: the one of its name, or a fresh one, which is said. A fusion has the route of the adapters that
/// it mixes.
fn complete(
    adapters: &mut Vec<Adapter>,
    setup: &Setup,
    dropout: f64,
) -> Result<Option<Diagnostic>> {
    let wrong = |found: String, help: &str| {
        let found = Diagnostic::error("fusion-setup", found).help(help);
        Err(Error::new(ErrorKind::Method, found))
    };
    let asked = setup.fusions();
    let fusions = adapters.iter().filter(|a| a.config.fuses().is_some());
    let idle = fusions
        .map(|a| &a.name)
        .find(|n| asked.iter().all(|(name, _)| name != *n));
    if let Some(name) = idle {
        return wrong(
            format!("the setup `{setup}` has no `Fuse` for the fusion `{name}`"),
            "name the adapters that it mixes: --active 'Fuse(a, b)'",
        );
    }
    let mut fresh = Vec::new();
    for (name, children) in asked {
        if adapters.iter().all(|a| a.name != name) {
            adapters.push(Adapter::fresh(&*name, Config::parse_fusion("dynamic")?));
            fresh.push(name.clone());
        }
        let of = |n: &String| {
            adapters
                .iter()
                .find(|a| a.name == *n)
                .map(|a| a.route.clone())
        };
        let route = children.iter().find_map(of).unwrap_or(Route::Plugin);
        for fusion in adapters.iter_mut().filter(|a| a.name == name) {
            if fusion.config.fuses().is_none() {
                return wrong(
                    format!("`{name}` is an adapter, and the name of a fusion"),
                    "give one of them another name: Fuse(a, b, name='c')",
                );
            }
            fusion.route = route.clone();
            let config = std::mem::replace(&mut fusion.config, Config::union(Vec::new()));
            fusion.config = config.fusing(children.clone(), dropout);
        }
    }
    Ok((!fresh.is_empty()).then(|| {
        let found = format!("the fusion `{}` has initial values", fresh.join("`, `"));
        Diagnostic::warning("fusion-fresh", found)
            .help("a trained one is given with --fusion DIR; `static` and other configurations too")
    }))
}

/// `attention_probs_dropout_prob` in `config.json` beside a model.
fn attention_dropout(model: &Path) -> f64 {
    let text = disk::text(beside(model, "config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    config["attention_probs_dropout_prob"]
        .as_f64()
        .unwrap_or(0.0)
}

/// One adapter that was attached. Its configuration may be of a method that no manifest can name.
#[derive(Clone, Debug)]
struct Attached {
    name: String,
    config: Config,
    route: Route,
    /// What its own file said.
    meta: Option<Meta>,
}

/// How the library integrates a fresh adapter: by its own class for the model's type; through the interface, where it has none, or where
/// an interface file says how.
pub(super) fn usual_route(interface: &Interface, file: Option<&Path>) -> Route {
    let own = file.and_then(Interface::model_type_beside);
    let own = own.or_else(|| interface.model_type.clone());
    let own = own.filter(|_| interface.is_builtin());
    own.and_then(|t| Route::native(&t)).unwrap_or(Route::Plugin)
}

/// A model with adapters.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Adapted {
    /// The rewritten model.
    pub model: Verified,
    /// What the interface selected in the model before.
    pub selection: Selection,
    /// Findings that did not stop the work.
    pub warnings: Vec<Diagnostic>,
    /// The interface.
    pub interface: Interface,
    /// How the adapters act together.
    pub setup: Setup,
    /// What saved adapters tell about their model.
    pub meta: Meta,
    /// The adapters that were attached.
    attached: Vec<Attached>,
    /// Parameters of adapters that are not active: no part of the graph.
    idle: AdapterStore,
    /// The heads that adapters of the graph have, the one in use last.
    pub(crate) heads: Vec<SavedHead>,
    /// Adapters that were saved with a head, and their folders.
    pub(crate) headed: Vec<(String, PathBuf)>,
    /// Where parameters became inputs: names of the adapters, and what each gives.
    pub(crate) exchanged: Vec<(String, Tensors)>,
}

impl Adapted {
    /// The library's summary table.
    ///
    /// # Errors
    /// A manifest that cannot be read.
    pub fn summary(&self) -> Result<Summary> {
        summed_up(&self.model, &self.store())
    }

    /// The adapters: names and configurations.
    ///
    /// # Errors
    /// A manifest that cannot be read.
    pub fn manifest(&self) -> Result<Vec<(String, Config)>> {
        manifest(&self.model)
    }

    /// The parameters that the adapters have in the model.
    pub fn store(&self) -> AdapterStore {
        let mut out = AdapterStore::from_model(self.model.model());
        for (name, param) in self.idle.iter() {
            out.insert(name, param.clone());
        }
        out
    }

    /// Says that an adapter brought this head, whose parameters are its own in the graph, and what the adapter's configuration is
    /// without it.
    ///
    /// # Errors
    /// A manifest that cannot be read.
    pub(crate) fn take_head(&mut self, head: StaticHead, config: Config) -> Result<()> {
        let noted = Noted::joined(&head, &config);
        self.model = pipelines::noting(noted).run(self.model.clone())?.model;
        let of = self.attached.iter_mut().find(|a| a.name == head.name);
        if let Some(attached) = of {
            attached.config = config;
        }
        self.heads.push(SavedHead::Static(head));
        Ok(())
    }

    /// The head of an adapter, if it has one in the graph.
    fn head_of(&self, adapter: &str) -> Option<&SavedHead> {
        self.heads.iter().rfind(|h| h.name() == adapter)
    }

    /// Whether an adapter's folder has a head beside it.
    #[cfg(feature = "train")]
    pub(crate) fn has_head(&self, adapter: &str) -> bool {
        let saved = || self.headed.iter().any(|(name, _)| name == adapter);
        self.head_of(adapter).is_some() || saved()
    }

    /// What an adapter's file says of the model: what it said before, and what it did not.
    fn meta_of(&self, adapter: &str) -> Meta {
        let attached = self.attached.iter().find(|a| a.name == adapter);
        let saved = attached.and_then(|a| a.meta.clone());
        let mut meta = saved.map_or_else(|| self.meta.clone(), |saved| self.meta.under(saved));
        if meta.model_name.is_empty()
            && let Ok(manifest) = Manifest::read(self.model.model())
            && let Some(entry) = manifest.adapters.into_iter().find(|a| a.name == adapter)
        {
            meta.model_name = entry.model_name;
        }
        if meta.model_type.is_empty()
            && let Some(Route::Native { model_type }) = self.route_of(adapter)
        {
            meta.model_type = model_type.into();
        }
        meta
    }

    /// How the library integrated an adapter, where that is known.
    fn route_of(&self, adapter: &str) -> Option<Route> {
        if let Some(attached) = self.attached.iter().find(|a| a.name == adapter) {
            return Some(attached.route.clone());
        }
        let manifest = Manifest::read(self.model.model()).ok()?;
        let entry = manifest.adapters.iter().find(|a| a.name == adapter)?;
        Route::named(entry.route.as_deref()?)
    }

    /// Writes the head that an adapter has into its folder, with the parameters of `store`; one that is no part of the graph as it was.
    #[cfg(feature = "train")]
    pub(crate) fn write_head(
        &self,
        adapter: &str,
        folder: &Path,
        store: &AdapterStore,
        force: bool,
    ) -> Result<()> {
        if let Some(head) = self.head_of(adapter) {
            let meta = self.meta_of(adapter);
            return head.write(folder, store, &self.model.model().graph, &meta, force);
        }
        match self.headed.iter().find(|(name, _)| name == adapter) {
            Some((name, from)) => copy_renamed(from, folder, name, force),
            None if force => remove(folder, &file::ALL),
            None => Ok(()),
        }
    }

    /// The folder of one adapter, with the parameters of `store`.
    ///
    /// # Errors
    /// [`ErrorKind::Method`]: the model has no adapter of this name.
    pub fn folder(&self, name: &str, store: &AdapterStore) -> Result<AdapterFolder> {
        self.folder_by(&self.noted()?, name, store)
    }

    /// The folders of several; the manifest is read once.
    #[cfg(feature = "train")]
    pub(crate) fn folders(
        &self,
        names: &[String],
        store: &AdapterStore,
    ) -> Result<Vec<AdapterFolder>> {
        let manifest = self.noted()?;
        let folder = |n: &String| self.folder_by(&manifest, n, &store.of(n));
        names.iter().map(folder).collect()
    }

    fn noted(&self) -> Result<Manifest> {
        let manifest = Manifest::read(self.model.model());
        manifest.map_err(|d| Error::new(ErrorKind::Method, d))
    }

    fn folder_by(
        &self,
        manifest: &Manifest,
        name: &str,
        store: &AdapterStore,
    ) -> Result<AdapterFolder> {
        let attached = self.attached.iter().find(|a| a.name == name);
        let entry = manifest.adapters.iter().find(|a| a.name == name);
        let config = match (attached, entry) {
            (Some(attached), _) => attached.config.clone(),
            (None, Some(entry)) => {
                let without = manifest.heads.iter().rfind(|h| h.name == name);
                match without.and_then(Noted::adapter) {
                    Some(config) => Config::from_dict(config, UnknownKeys::Keep)?,
                    None => entry.config()?,
                }
            }
            (None, None) => {
                let message = format!("the model has no adapter `{name}`");
                let d = Diagnostic::error("adapter-unknown", message);
                return Err(Error::new(ErrorKind::Method, d));
            }
        };
        // The library's own classes need none, and a folder that has one is of the plugin route.
        let plugin = self.route_of(name).is_none_or(|r| r == Route::Plugin);
        let plugin = plugin && !self.interface.is_bare() && config.fuses().is_none();
        let interface =
            plugin.then(|| interface_for(&config, &self.interface, &self.selection).to_json());
        let idle = self.idle.of(name);
        let store = if store.of(name).iter().next().is_none() {
            &idle
        } else {
            store
        };
        let mut meta = self.meta_of(name);
        if entry.is_some_and(|e| e.thirds) {
            // Without our mark it stays a file that goes by thirds.
            Base::recorded(&meta.extra)
                .by_thirds()
                .record(&mut meta.extra);
        }
        let temperature = store.get(&format!("{}{name}", contract::FUSION_TEMPERATURE));
        let config = match temperature.and_then(|p| p.tensor.to_f32()).as_deref() {
            Some(&[now]) => config.cooled(now),
            _ => config,
        };
        let mut folder = AdapterFolder::from_store(name, config, store, meta, interface);
        if let Some(SavedHead::Static(head)) = self.head_of(name) {
            head.without(&mut folder.weights);
        }
        Ok(folder)
    }
}

/// The interface as a saved adapter needs it: the gate's projection, which the Adapters library's form has no field for, is named only
/// where the adapter's modules are chosen by their names.
pub(super) fn interface_for(
    config: &Config,
    interface: &Interface,
    selection: &Selection,
) -> Interface {
    let mut out = interface.resolved(selection);
    if !config.methods().iter().any(|m| m.names_modules()) {
        out.fields.layer_gate_proj = PerStack::default();
    }
    out
}

/// That the Adapters library cannot use an interface, or not all of it.
fn beyond_library(interface: &Interface, model_type: &str) -> Option<Diagnostic> {
    let message = match interface.for_library() {
        Library::Nothing => {
            "the Adapters library has no interface for a model like this: none is written for it"
                .to_owned()
        }
        Library::Part(_) if interface.stacks() > 1 => {
            let lists = &interface.fields.model_layers;
            let named = |stack: usize| format!("`{}`", lists.get(stack).unwrap_or_default());
            let others: Vec<String> = (1..interface.stacks()).map(named).collect();
            format!(
                "the Adapters library's interface has room for one list of layers: the one written for it names {} only, so the library leaves out the adapter's parts in {} and computes something else",
                named(0),
                others.join(" and ")
            )
        }
        Library::Part(_) | Library::Whole => return None,
    };
    let help = if Route::native(model_type).is_some() {
        format!("use --route native: the library's own class for `{model_type}` takes all of it")
    } else {
        "this program reads the whole interface beside it: use the adapter here alone".to_owned()
    };
    Some(Diagnostic::warning("interface-library", message).help(help))
}

/// The interface of a model for which none was given: the `adapter_interface.json` beside its file, else the built-in one of the type in
/// `config.json`, else one inferred from the graph. A built-in interface that does not fit the graph (another version of the library
/// names its modules otherwise, or the file is a part of the model) gives way to an inferred one that does, and selecting with that
/// says what was missing.
///
/// # Errors
/// [`ErrorKind::Interface`]: the type is not known, and the graph does not tell.
pub fn find_interface(model: &Verified, file: Option<&Path>) -> Result<Interface> {
    let named = file.map(Interface::detect).transpose()?.flatten();
    if let Some(found) = named.as_ref().filter(|i| !i.is_builtin()) {
        return Ok(found.clone());
    }
    let model = &opened(super::shown(model.clone())?, false)?.0;
    let misfit = match &named {
        Some(found) => match found.select(model) {
            Ok(_) => return Ok(found.clone()),
            Err(misfit) => Some((found, misfit)),
        },
        None => None,
    };
    match (infer_interface(model), misfit) {
        (Ok(p), None) => Ok(p.noted(None)),
        // The findings of the built-in one are what stands in the way, if neither fits.
        (Ok(p), Some((found, misfit))) => Ok(match p.interface.select(model) {
            Ok(_) => p.noted(Some(gives_way(found, &misfit))),
            Err(_) => found.clone(),
        }),
        (Err(_), Some((found, _))) => Ok(found.clone()),
        (Err(e), None) => {
            let d = Diagnostic::error("interface-unknown", "no interface was given, and none could be found")
                .help("give one: --interface qwen3, or --interface adapter_interface.json (`rewrite interface list`)");
            Err(Error::new(ErrorKind::Interface, d).with_source(e))
        }
    }
}

/// That a built-in interface gives way to an inferred one, with what it misses.
fn gives_way(interface: &Interface, misfit: &Error) -> Diagnostic {
    const SHOWN: usize = 4;
    let found = format!(
        "the {} interface does not fit this graph: one inferred from the graph is used",
        interface.source
    );
    let all = misfit.findings();
    let mut d = Diagnostic::warning("interface-inferred", found);
    for finding in all.iter().take(SHOWN) {
        d = d.note(format!("it misses: {}", finding.message));
    }
    if all.len() > SHOWN {
        d = d.note(format!("and {} more", all.len() - SHOWN));
    }
    d.help("`rewrite interface infer` shows the inferred one; --interface names another")
}

/// What `config.json` beside a model says, for the adapter's own file.
fn meta(model: Option<&Path>, interface: &Interface, selection: &Selection, base: &Base) -> Meta {
    let config = model.map(|m| beside(m, "config.json"));
    let text = config.and_then(|c| disk::text(c).ok());
    let config: serde_json::Value =
        serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
    let string = |v: &serde_json::Value| v.as_str().map(str::to_owned);
    let mut extra = serde_json::Map::new();
    base.record(&mut extra);
    Meta {
        hidden_size: (selection.hidden_size > 0).then_some(selection.hidden_size as u64),
        model_class: string(&config["architectures"][0]).unwrap_or_default(),
        model_name: string(&config["_name_or_path"]).unwrap_or_default(),
        model_type: string(&config["model_type"])
            .or_else(|| interface.model_type.clone())
            .unwrap_or_default(),
        version: Some(crate::adapters::folder::VERSION.to_owned()),
        extra,
    }
}
