//! Which interface reads a model, and which adapters it gets.

use super::check::usage;
use super::event::{Event, OnEvent, note, warn};
use super::files::ModelFiles;
use super::origin::Origin;
use crate::adapters::average::rename;
use crate::adapters::heads::{self, Head, HeadBase, HeadType, Joined, SavedHead, StaticHead};
use crate::adapters::spec::{self, Spec};
use crate::adapters::target::Met;
use crate::adapters::{Adapter, Config, Route, Setup, Weighting, weighted};
use crate::analyze::logits::of_heads;
use crate::api::{self, Adapted, Attach};
use crate::diag::{Diagnostic, count};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::contract;
use crate::select::Interface;
use crate::text::CHAT_TEMPLATE;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The interface and the adapters that a job or a command names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "settings of a command")]
pub struct AdapterSettings {
    /// File or name of the interface (default: the one beside the model, or of the graph).
    pub interface: Option<String>,
    /// Adapters, each as `SPEC` or `NAME=SPEC` (default: the first method that the interface lists).
    pub adapters: Vec<String>,
    /// How the adapters are composed (default: all are active, one behind the other).
    pub active: Option<String>,
    /// The fusions of its `Fuse` blocks, each as `SPEC` or `NAME=SPEC` (default: fresh ones).
    pub fusions: Vec<String>,
    /// Layers without adapters.
    pub skip_layers: Vec<usize>,
    /// Whether a graph input says which layers are skipped.
    pub skip_layers_input: bool,
    /// Whether the graph input `adapter_ids` chooses one of the adapters for each sample, instead of a setup.
    pub adapter_ids: bool,
    /// Whether gates of adapters are graph outputs.
    pub output_adapter_gating_scores: bool,
    /// Whether the weights that fusions give their adapters are graph outputs.
    pub output_adapter_fusion_attentions: bool,
    /// How the Adapters library is to integrate fresh adapters: `native`, by its own class for the model's type, or `plugin`, through the
    /// interface (default: native where it has such a class and no interface file is named).
    pub route: Option<String>,
    /// Whether adapters may be attached to another base model than the one that they were made for.
    pub allow_other_base: bool,
}

impl AdapterSettings {
    /// The interface that is named, or that of the model.
    ///
    /// # Errors
    /// [`ErrorKind::Interface`].
    pub(crate) fn interface(&self, path: &Path, model: &Verified) -> Result<Interface> {
        match &self.interface {
            Some(name) => Interface::resolve(name),
            // Attaching says what is missing, where an adapter does not choose modules by their names.
            None => match api::find_interface(model, Some(path)) {
                Err(_) if !self.listed()?.is_empty() => Ok(Interface::bare()),
                found => found,
            },
        }
    }

    /// The adapters that are named; the first method of the interface, without any.
    pub(super) fn load(&self, interface: &Interface, events: OnEvent<'_>) -> Result<Vec<Adapter>> {
        let listed = self.listed()?;
        if listed.is_empty() {
            return Ok(vec![Adapter::default_of(interface)?]);
        }
        let load = |text: &String| {
            warn(events, &spec::shadowed(text))?;
            let adapter = match spec::parse(text)? {
                Spec::Saved { name, folder } => {
                    let read = spec::read_folder(&folder)?;
                    // That the other library cannot read it matters to who gives it away.
                    let (aside, said): (Vec<_>, Vec<_>) = read
                        .notes
                        .iter()
                        .cloned()
                        .partition(|d| d.code == "beyond-library");
                    warn(events, &said)?;
                    for finding in aside {
                        events(&Event::Detail(finding.to_string()))?;
                    }
                    let count = read.parameters();
                    let adapter = read.into_adapter(name.as_deref());
                    let at = folder.display();
                    note(
                        events,
                        format!("loaded `{}` from {at}: {count} parameters", adapter.name),
                    )?;
                    adapter
                }
                fresh @ Spec::Fresh { .. } => {
                    let adapter = fresh.load()?;
                    warn(events, &adapter.config.unknown())?;
                    adapter
                }
            };
            Ok(Adapter {
                allow_other_base: self.allow_other_base,
                ..adapter
            })
        };
        listed.iter().map(load).collect()
    }

    /// One adapter, which PEFT's `add_weighted_adapter` makes of all that are named.
    pub(super) fn load_weighted(&self, how: &Weighting, events: OnEvent<'_>) -> Result<Adapter> {
        let mut folders = Vec::new();
        for text in self.listed()? {
            warn(events, &spec::shadowed(&text))?;
            let Spec::Saved { name, folder } = spec::parse(&text)? else {
                return Err(usage(
                    format!("--adapter {text} is no saved adapter, and only these are combined"),
                    "give the folders of LoRA adapters",
                ));
            };
            let read = spec::read_folder(&folder)?;
            folders.push(match name {
                Some(name) => rename(read, &name)?,
                None => read,
            });
        }
        let names: Vec<String> = folders.iter().map(|f| f.name.clone()).collect();
        let why = "what is made of several adapters has the graph's own head";
        self.leave_heads(&names, why, events)?;
        let made = weighted(&names.join("_"), &folders, how)?;
        warn(events, &made.notes)?;
        Ok(Adapter {
            allow_other_base: self.allow_other_base,
            ..made.into_adapter(None)
        })
    }

    /// The setup that is named, and the folder that holds its adapters, where it is a file's.
    fn named_setup(&self) -> Result<Option<(Setup, Option<PathBuf>)>> {
        let Some(text) = &self.active else {
            return Ok(None);
        };
        spec::setup(text)
            .map(Some)
            .map_err(|e| e.within("--active"))
    }

    /// The adapters, each as `SPEC` or `NAME=SPEC`: those that are named, else those beside the file of the setup.
    fn listed(&self) -> Result<Vec<String>> {
        if let ([], Some((setup, Some(folder)))) = (&*self.adapters, self.named_setup()?) {
            let beside = |n: &str| format!("{n}={}", folder.join(n).display());
            return Ok(setup.names().into_iter().map(beside).collect());
        }
        Ok(self.adapters.clone())
    }

    /// How adapters are composed.
    fn setup(&self, adapters: &[Adapter]) -> Result<Setup> {
        let names: Vec<&str> = adapters.iter().map(|a| &*a.name).collect();
        let Some((setup, _)) = self.named_setup()? else {
            return Ok(Setup::stack(names.into_iter().map(str::to_owned)));
        };
        setup.check(&names).map_err(|d| {
            let message = format!("--active: {}", d.message);
            Error::new(ErrorKind::Usage, Diagnostic { message, ..d })
        })?;
        Ok(setup)
    }

    /// The setup to merge by, and of the adapters those that are in it; `None` where all go in one after the other.
    pub(super) fn merged_setup(&self, adapters: &mut Vec<Adapter>) -> Result<Option<Setup>> {
        if self.active.is_none() {
            return Ok(None);
        }
        let setup = self.setup(adapters)?;
        let active = setup.names();
        adapters.retain(|a| active.contains(&&*a.name));
        // One after the other is the order of the list.
        adapters.sort_by_key(|a| active.iter().position(|n| *n == a.name));
        Ok((!setup.is_chain()).then_some(setup))
    }

    /// The fusions that are named, each for a `Fuse` of the setup; else those beside the file of the setup.
    fn load_fusions(&self, setup: &Setup, events: OnEvent<'_>) -> Result<Vec<Adapter>> {
        let asked = setup.fusions();
        let mut texts = self.fusions.clone();
        if let ([], Some((_, Some(folder)))) = (&*texts, self.named_setup()?) {
            let places = asked.iter().map(|(name, _)| folder.join(name));
            let saved = places.filter(|p| p.is_dir());
            texts = saved.map(|p| p.display().to_string()).collect();
        }
        let mut seen: Vec<String> = Vec::new();
        let mut load = |text: &String| -> Result<Adapter> {
            let mut fusion = spec::fusion(text)?;
            let named = spec::split(text).0;
            if let Some(named) = named.filter(|n| asked.iter().all(|(known, _)| known != n)) {
                let known: Vec<&str> = asked.iter().map(|(n, _)| &**n).collect();
                let found = format!("--fusion {text}: the setup asks for no fusion `{named}`");
                let help = match &*known {
                    [] => "the setup has no `Fuse`: --active 'Fuse(a, b)'".to_owned(),
                    names => format!("it asks for `{}`", names.join("`, `")),
                };
                let found = Diagnostic::error("fusion-setup", found).help(help);
                return Err(Error::new(ErrorKind::Usage, found));
            }
            // The only one is meant, whatever its adapters were called when it was saved.
            if let [(only, _)] = &*asked
                && *only != fusion.name
            {
                if !fusion.name.is_empty() {
                    let line = format!("the fusion `{}` is used for `{only}`", fusion.name);
                    note(events, line)?;
                }
                fusion.name.clone_from(only);
            }
            if fusion.name.is_empty() {
                let known: Vec<&str> = asked.iter().map(|(n, _)| &**n).collect();
                let found = format!("--fusion {text} does not say which fusion of the setup it is");
                let found = Diagnostic::error("fusion-setup", found);
                let help = match &*known {
                    [] => "the setup has no `Fuse`: --active 'Fuse(a, b)'".to_owned(),
                    names => format!("name it: --fusion '{}={text}'", names.join("' or '")),
                };
                return Err(Error::new(ErrorKind::Usage, found.help(help)));
            }
            if seen.contains(&fusion.name) {
                let found = format!(
                    "--fusion {text}: there is a fusion for `{}` already",
                    fusion.name
                );
                return Err(usage(found, "give one for each `Fuse` of the setup"));
            }
            seen.push(fusion.name.clone());
            fusion.allow_other_base = self.allow_other_base;
            Ok(fusion)
        };
        texts.iter().map(&mut load).collect()
    }

    /// Attaches the adapters by the interface that is named, or that of the model.
    pub(super) fn attach(
        &self,
        model: Verified,
        path: &Path,
        seed: u64,
        training: bool,
        events: OnEvent<'_>,
    ) -> Result<Adapted> {
        let interface = self.interface(path, &model)?;
        let how = Attaching {
            seed,
            training,
            ..Attaching::default()
        };
        self.attach_by(&interface, model, path, how, events)
    }

    /// Attaches the adapters, with the head that was saved with one of them. A graph without a head gets it behind its hidden states; in
    /// a graph with a head of the same class it takes that one's place.
    pub(super) fn attach_by(
        &self,
        interface: &Interface,
        model: Verified,
        path: &Path,
        how: Attaching,
        events: OnEvent<'_>,
    ) -> Result<Adapted> {
        if self.adapter_ids && self.listed()?.is_empty() {
            return Err(usage(
                "--adapter-ids chooses one of several adapters for each sample, and none is named",
                "name them: --adapter a=lora --adapter b=lora",
            ));
        }
        let mut adapters = self.load(interface, events)?;
        let names: Vec<String> = adapters.iter().map(|a| a.name.clone()).collect();
        let setup = self.setup(&adapters)?;
        let block = setup.headed().filter(|_| !has_head(&model)).cloned();
        let mut several = None;
        if let Some(block) = &block {
            several = self.heads_of(
                block,
                (&names, &adapters),
                interface,
                (&model, path),
                events,
            )?;
        }
        let (joined, saved) = if self.adapter_ids {
            self.one_by_ids()?;
            let why = "a graph with `adapter_ids` has one head for all samples, its own";
            self.leave_heads(&names, why, events)?;
            (None, None)
        } else if block.is_some() {
            (None, None)
        } else {
            self.join_head(
                &mut adapters,
                interface,
                &model,
                path,
                how.train_head,
                events,
            )?
        };
        adapters.extend(self.load_fusions(&setup, events)?);
        let attach = Attach::to(model).from_file(path).interface(interface);
        let attach = if self.adapter_ids {
            attach.adapter_ids(true)
        } else {
            attach.active(setup)
        };
        let mut attach = attach
            .adapters(adapters)
            .skip_layers(self.skip_layers.iter().copied())
            .skip_layers_input(self.skip_layers_input)
            .output_gating_scores(self.output_adapter_gating_scores)
            .output_fusion_attentions(self.output_adapter_fusion_attentions);
        if let Some(route) = self.named_route(interface, path)? {
            attach = attach.route(route);
        }
        let mut adapted = attach.seed(how.seed).training(how.training).run()?;
        if let Some(origin) = Origin::of(path) {
            origin.record(&mut adapted.meta);
        }
        adapted.headed = self.headed(&names);
        if let Some((head, own)) = joined {
            adapted.take_head(head, own)?;
        } else if let Some(saved) = saved {
            let (model, head) = headed_by(&saved, adapted.model, path, how, events)?;
            adapted.model = model;
            adapted.heads.extend(head.map(SavedHead::Flexible));
        } else if let Some(heads) = several {
            let (model, training) = (adapted.model, how.training);
            adapted.model = api::attach_heads(model, heads.clone(), block, how.seed, training)?;
            let heads = heads.into_iter().map(SavedHead::Flexible);
            adapted.heads.extend(heads);
        }
        warn(events, &adapted.warnings)?;
        tell(&adapted, events)?;
        Ok(adapted)
    }

    /// Refuses what says how adapters act together, where each sample has one.
    fn one_by_ids(&self) -> Result<()> {
        let flag = if self.active.is_some() {
            "--active"
        } else if !self.fusions.is_empty() {
            "--fusion"
        } else {
            return Ok(());
        };
        Err(usage(
            format!(
                "--adapter-ids gives each sample one adapter, and {flag} puts several together"
            ),
            "leave one of them out; `MultiTask(a, b)` in a setup chooses between setups by `task_ids`",
        ))
    }

    /// Says that heads of adapters are not used, and why.
    pub(super) fn leave_heads(
        &self,
        names: &[String],
        why: &str,
        events: OnEvent<'_>,
    ) -> Result<()> {
        for (name, _) in self.headed(names) {
            let found = format!("the head that was saved with `{name}` is not used");
            let found = Diagnostic::warning("head-ignored", found);
            warn(events, &[found.help(why)])?;
        }
        Ok(())
    }

    /// Gives the adapter that a head was saved with the head's values, where the graph has a head of the same class; `train`: also where
    /// none was saved. The adapter's configuration without them, or else the head that is still to be attached.
    pub(super) fn join_head(
        &self,
        adapters: &mut [Adapter],
        interface: &Interface,
        model: &Verified,
        path: &Path,
        train: bool,
        events: OnEvent<'_>,
    ) -> Result<(Option<OwnHead>, Option<SavedHead>)> {
        let names: Vec<String> = adapters.iter().map(|a| a.name.clone()).collect();
        let saved = self.saved_head(&names, events)?;
        if let Some(saved) = &saved {
            self.check_head(saved, adapters, interface, (model, path), events)?;
        }
        let mut head = match (has_head(model), saved) {
            (true, Some(SavedHead::Static(head))) => head,
            // A head that came with an adapter is trained with it.
            (true, _) if train && api::heads(model)?.is_empty() => {
                let name = names.last().map_or("", String::as_str);
                let class = ModelFiles::at(path).class();
                let selection = interface.select(model)?;
                StaticHead::of_graph(name, &class, &selection, &model.model().graph)?
            }
            (_, saved) => return Ok((None, saved)),
        };
        let Some(adapter) = adapters.iter_mut().find(|a| a.name == head.name) else {
            return Ok((None, None));
        };
        let (own, selection) = (adapter.config.clone(), interface.select(model)?);
        Ok(
            match head.join(adapter, &selection, &model.model().graph, train)? {
                Joined::Taken | Joined::Same => (Some((head, own)), None),
                Joined::Other => (None, Some(SavedHead::Static(head))),
            },
        )
    }

    /// Refuses a saved head that was made for a model of another width, and says what else its file contradicts or leaves open.
    fn check_head(
        &self,
        saved: &SavedHead,
        adapters: &[Adapter],
        interface: &Interface,
        (model, path): (&Verified, &Path),
        events: OnEvent<'_>,
    ) -> Result<()> {
        let selection = interface.select(model)?;
        let own = Interface::model_type_beside(path).or_else(|| interface.model_type.clone());
        let met = Met {
            selection: &selection,
            interface,
            model_type: own.as_deref().unwrap_or_default(),
        };
        let names: Vec<String> = adapters.iter().map(|a| a.name.clone()).collect();
        let named = self
            .headed(&names)
            .into_iter()
            .find(|(n, _)| n == saved.name());
        let Some((name, folder)) = named else {
            return Ok(());
        };
        let adapter = adapters.iter().find(|a| a.name == name);
        let what = format!("the head of `{name}`");
        let said = met.check_head(&what, &heads::files::target(&folder)?, adapter)?;
        warn(events, &said)
    }

    /// The route that is named.
    pub(super) fn named_route(&self, interface: &Interface, path: &Path) -> Result<Option<Route>> {
        let own = || Interface::model_type_beside(path).or_else(|| interface.model_type.clone());
        match self.route.as_deref() {
            None => Ok(None),
            Some("plugin") => Ok(Some(Route::Plugin)),
            Some("native") => {
                let own = own().unwrap_or_default();
                let route = Route::native(&own);
                let none = || {
                    let found = format!(
                        "--route native: the Adapters library has no class for models of type `{own}`"
                    );
                    Error::new(
                        ErrorKind::Usage,
                        Diagnostic::error("route", found).help("use --route plugin"),
                    )
                };
                route.map(Some).ok_or_else(none)
            }
            Some(other) => {
                let found = format!("--route is `{other}`");
                let found = Diagnostic::error("route", found).help("use native or plugin");
                Err(Error::new(ErrorKind::Usage, found))
            }
        }
    }

    /// The folders that adapters are loaded from.
    pub(super) fn sources(&self) -> Vec<PathBuf> {
        let source = |text: &String| match spec::parse(text).ok()? {
            Spec::Saved { folder, .. } => folder.canonicalize().ok(),
            Spec::Fresh { .. } => None,
        };
        let fusion = |text: &String| Path::new(spec::split(text).1).canonicalize().ok();
        let listed = self.listed().unwrap_or_default();
        let adapters = listed.iter().filter_map(source);
        adapters
            .chain(self.fusions.iter().filter_map(fusion))
            .collect()
    }

    /// The adapters that were saved with a head, and their folders. `names` are those of all adapters, in order.
    fn headed(&self, names: &[String]) -> Vec<(String, PathBuf)> {
        let folder = |text: &String| {
            let folder = text.split_once('=').map_or(text.as_str(), |(_, spec)| spec);
            let mut places = [text.as_str(), folder].into_iter().map(Path::new);
            let place = places.find(|p| p.is_dir() && !spec::is_identifier(folder))?;
            heads::files::has_head(place).then(|| place.to_owned())
        };
        let listed = self.listed().unwrap_or_default();
        let named = listed.iter().zip(names);
        named
            .filter_map(|(text, name)| Some((name.clone(), folder(text)?)))
            .collect()
    }

    /// The head in the folder of the last active adapter that has one, as the library takes it. Others are named.
    fn saved_head(&self, names: &[String], events: OnEvent<'_>) -> Result<Option<SavedHead>> {
        let active = self.named_setup()?.map(|(setup, _)| setup);
        let mut found: Vec<(usize, SavedHead)> = Vec::new();
        for (name, place) in self.headed(names) {
            let at = match &active {
                Some(setup) => setup.names().iter().position(|n| *n == name),
                None => Some(found.len()),
            };
            if let (Some(at), Some(head)) = (at, SavedHead::read(&place, Some(&name))?) {
                found.push((at, head));
            }
        }
        found.sort_by_key(|(at, _)| *at);
        let last = found.pop().map(|(_, head)| head);
        for (_, other) in found {
            let (name, used) = (other.name(), last.as_ref().map_or("", SavedHead::name));
            let found = format!("the head that was saved with `{name}` is not used");
            let found = Diagnostic::warning("head-ignored", found);
            let help = format!("the one of `{used}` is: the last active adapter's");
            warn(events, &[found.help(help)])?;
        }
        Ok(last)
    }

    /// The head of each child of the block: that in the folder of its last adapter. None, where no child has one.
    fn heads_of(
        &self,
        block: &Setup,
        (names, adapters): (&[String], &[Adapter]),
        interface: &Interface,
        of: (&Verified, &Path),
        events: OnEvent<'_>,
    ) -> Result<Option<Vec<Head>>> {
        let saved = self.headed(names);
        let owners: Vec<&str> = block.children().iter().map(Setup::last).collect();
        let (with, without): (Vec<&str>, Vec<&str>) = owners
            .iter()
            .partition(|o| saved.iter().any(|(n, _)| n == *o));
        for (name, _) in saved.iter().filter(|(n, _)| !owners.contains(&&**n)) {
            let found = format!("the head that was saved with `{name}` is not used");
            let help = format!("`{name}` is not the last adapter of a child of `{block}`");
            warn(
                events,
                &[Diagnostic::warning("head-ignored", found).help(help)],
            )?;
        }
        let Some(first) = with.first() else {
            return Ok(None);
        };
        if let Some(missing) = without.first() {
            let found = format!(
                "each child of `{block}` has a head of its own: `{first}` was saved with one, and `{missing}` was not"
            );
            let found = Diagnostic::error("head-missing", found)
                .help("give adapters that all have a head, or that all have none");
            return Err(Error::new(ErrorKind::Method, found));
        }
        let base = ModelFiles::at(of.1).head_base();
        let head = |owner: &&str| -> Result<Head> {
            let folder = saved.iter().find(|(n, _)| n == *owner).map(|(_, f)| f);
            let folder = folder.map_or(Path::new(""), PathBuf::as_path);
            let read = SavedHead::read(folder, Some(owner))?.ok_or_else(|| {
                let found = format!("`{owner}` has no head");
                Error::new(ErrorKind::Method, Diagnostic::error("head-missing", found))
            })?;
            self.check_head(&read, adapters, interface, of, events)?;
            let head = flexible(&read, events)?;
            Ok(Head {
                base: base.clone(),
                ..head
            })
        };
        owners.iter().map(head).collect::<Result<_>>().map(Some)
    }

    /// The chat templates that adapters were trained with, by their names, where the folders that they are loaded from have one.
    pub(super) fn templates(&self) -> BTreeMap<String, String> {
        let kept = |text: &String| {
            let Ok(spec::Spec::Saved {
                name: given,
                folder,
            }) = spec::parse(text)
            else {
                return None;
            };
            let template = disk::text(folder.join(CHAT_TEMPLATE)).ok()?;
            let own = || spec::read_folder(&folder).ok().map(|f| f.name);
            Some((given.or_else(own)?, template))
        };
        // Of two of one name the first counts.
        let listed = self.listed().unwrap_or_default();
        listed.iter().rev().filter_map(kept).collect()
    }
}

/// A head that an adapter has among its own parameters, and the adapter's configuration without it.
type OwnHead = (StaticHead, Config);

/// How adapters are attached.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attaching {
    /// Seed of initial values.
    pub(super) seed: u64,
    /// Whether dropout is wanted.
    pub(super) training: bool,
    /// Whether a head of the graph's own is trained.
    pub(super) train_head: bool,
    /// Whether the adapters were merged into the weights.
    pub(super) merged: bool,
}

/// Whether a graph has a prediction head.
pub(super) fn has_head(model: &Verified) -> bool {
    let graph = &model.model().graph;
    let own = [contract::LOGITS, contract::START_LOGITS];
    own.iter().any(|n| graph.find(n).is_some()) || of_heads(graph).next().is_some()
}

/// The model with a saved head behind its hidden states, and that head. Where the graph has a head already, it stays, and the saved one
/// is named.
pub(super) fn headed_by(
    saved: &SavedHead,
    model: Verified,
    path: &Path,
    how: Attaching,
    events: OnEvent<'_>,
) -> Result<(Verified, Option<Head>)> {
    let mut unused = |why: &str| {
        let found = format!(
            "the head that was saved with `{}` is not used",
            saved.name()
        );
        warn(
            events,
            &[Diagnostic::warning("head-ignored", found).help(why)],
        )
    };
    if has_head(&model) {
        unused("the graph has its own head; export the model without one to use the saved one")?;
        return Ok((model, None));
    }
    if let SavedHead::Static(head) = saved
        && let Err(e) = head.flexible()
    {
        unused(&format!("{e}; export the model with its head"))?;
        return Ok((model, None));
    }
    let head = flexible(saved, events)?;
    let base = HeadBase {
        merged: how.merged,
        ..ModelFiles::at(path).head_base()
    };
    let head = Head { base, ..head };
    let model = api::attach_head(model, head.clone(), how.seed, how.training)?;
    Ok((model, Some(head)))
}

/// A saved head in the form that a base model takes.
fn flexible(saved: &SavedHead, events: OnEvent<'_>) -> Result<Head> {
    let head = match saved {
        SavedHead::Flexible(head) => return Ok(head.clone()),
        SavedHead::Static(head) => head.flexible()?,
    };
    if head.config.head_type == HeadType::MultipleChoice {
        let n = head.config.num_choices.unwrap_or(2);
        let found = format!(
            "the head that was saved with `{}` is taken to choose one of {n} texts",
            head.name
        );
        let found = Diagnostic::warning("head-choices", found);
        warn(events, &[found.help("the file of a Transformers class says its number of labels and not how many texts belong together; in head_config.json, `num_labels` says it")])?;
    }
    Ok(head)
}

/// Says what was attached: a line for each adapter, and one for each of its parameters to those who want to know everything.
fn tell(adapted: &Adapted, events: OnEvent<'_>) -> Result<()> {
    let selection = &adapted.selection;
    events(&Event::Detail(format!(
        "selected {} of {}",
        count(selection.layers.len(), "layer", "layers"),
        adapted
            .interface
            .model_type
            .as_deref()
            .unwrap_or("a model of no known type"),
    )))?;
    for row in adapted.summary()?.rows {
        let line = format!(
            "adapter {}: {}, {} parameters",
            row.name, row.architecture, row.params
        );
        events(&Event::Detail(line))?;
    }
    for (name, param) in adapted.store().iter() {
        events(&Event::Trace(format!("  {name} {:?}", param.tensor.dims)))?;
    }
    Ok(())
}
