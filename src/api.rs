//! The jobs of the command line, one call each.

use crate::adapters::heads::{Head, Noted};
use crate::adapters::manifest::Manifest;
use crate::adapters::summary::Summary;
use crate::adapters::{Adapter, AdapterStore, Config, Setup};
use crate::analyze::finite;
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::Model;
use crate::ir::diff::Diff;
use crate::rewrite::passes::expand::has_definition;
use crate::rewrite::passes::head::AttachHead;
use crate::rewrite::passes::inline;
use crate::rewrite::pipelines;
use crate::select::{Interface, ModuleTree, Selection, fused_attentions, hiding_operators};
use std::path::Path;

mod attach;
mod attached;
#[cfg(feature = "runtime")]
mod eject;
mod exchange;
mod prospects;
mod tenants;
mod within;

pub(crate) use crate::adapters::docs::explain as method;
pub use attach::{Adapted, Attach, find_interface};
pub(crate) use attached::{adapted_modules, attached};
#[cfg(feature = "runtime")]
pub(crate) use eject::eject_prefix_tuning;
pub(crate) use prospects::prospects;
pub use tenants::tenants;
pub(crate) use within::{flat, shown};

/// Maps a model and verifies it.
///
/// # Errors
/// [`ErrorKind::Io`], [`ErrorKind::Decode`] or [`ErrorKind::Invalid`], with everything that was found.
pub fn open(path: impl AsRef<Path>) -> Result<Verified> {
    let path = path.as_ref();
    let model = crate::onnx::open(path).map_err(|e| text_file(path).unwrap_or(e))?;
    Verified::check(model).map_err(|r| Error::from(r).within(path.display().to_string()))
}

/// The error of a text file that was given as a model.
fn text_file(path: &Path) -> Option<Error> {
    let mut head = Vec::new();
    let file = disk::open(path).ok()?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, 256), &mut head).ok()?;
    // A cut may go through a character.
    let text = match std::str::from_utf8(&head) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&head[..e.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    if text.is_empty() || text.contains(|c: char| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    let finding = Diagnostic::error("onnx-text", "this is a text file, not an ONNX model")
        .at(path.display().to_string());
    let help = if text.starts_with("version https://git-lfs") {
        "it stands for a file in Git LFS: run `git lfs pull`"
    } else {
        "give the model's binary file, such as model.onnx"
    };
    Some(Error::new(ErrorKind::Decode, finding.help(help)))
}

/// An adapter as the command line names it: `SPEC` or `NAME=SPEC`, where SPEC is a configuration string (`lora[r=8,alpha=16]`), the
/// path of an `adapter_config.json`, or a saved adapter's folder, whose weights come along.
///
/// ```
/// let adapter = onnx_graft::adapter("mine=seq_bn[reduction_factor=32]")?;
/// assert_eq!(adapter.name, "mine");
/// assert!(onnx_graft::adapter("lora[rank=8]").is_err());
/// # Ok::<(), onnx_graft::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::Method`]: an unknown identifier or field, with the nearest one; [`ErrorKind::Io`]: a file that cannot be read.
pub fn adapter(spec: &str) -> Result<Adapter> {
    crate::adapters::spec::parse(spec)?.load()
}

/// Replaces operators that hide the values adapters are spliced at (fused skip norms, packed attention) by their definitions; with
/// `cores` also those that hold the core of an attention. The finding says which ones. Calls of the model's own functions, and branches
/// that are decided, are replaced by their nodes.
///
/// # Errors
/// A form of these operators that has no definition here.
pub(crate) fn opened(model: Verified, cores: bool) -> Result<(Verified, Option<Diagnostic>)> {
    let mut model = if inline::concerns(model.model()) {
        pipelines::inlining(false).run(model)?.model
    } else {
        model
    };
    let (mut names, mut before): (Vec<String>, _) = (Vec::new(), Vec::new());
    // A definition may hold an operator that hides something itself.
    loop {
        let mut hiding = hiding_operators(model.model());
        if cores {
            hiding.extend(fused_attentions(model.model()));
            hiding.sort();
            hiding.dedup();
        }
        hiding.retain(|op| has_definition(&model.model().graph, op));
        if hiding.is_empty() || hiding == before {
            break;
        }
        before.clone_from(&hiding);
        names.extend(hiding.iter().map(ToString::to_string));
        model = pipelines::opening(hiding).run(model)?.model;
    }
    if names.is_empty() {
        return Ok((model, None));
    }
    let note = Diagnostic::warning(
        "expanded",
        format!("replaced by their definitions: {}", names.join(", ")),
    )
    .help("they hide values that adapters are spliced at; `strip` leaves the definitions");
    Ok((model, Some(note)))
}

/// Refuses a model with weights that are not finite; they are named by the modules of a selection, where there is one.
///
/// # Errors
/// [`ErrorKind::Invalid`].
pub(crate) fn check_finite(model: &Verified, selection: Option<&Selection>) -> Result<()> {
    let names = selection.map(Selection::modules_of_weights);
    let names = names.unwrap_or_default();
    finite::check_finite(model, &names).map_err(|d| Error::new(ErrorKind::Invalid, d))
}

/// Adds a prediction head to a base model's graph: the output `logits`. The head's parameters are trained with the adapters.
///
/// # Errors
/// A graph that gives no hidden states or has logits already; weights that do not fit.
pub(crate) fn attach_head(
    model: Verified,
    head: Head,
    seed: u64,
    training: bool,
) -> Result<Verified> {
    attach_heads(model, vec![head], None, seed, training)
}

/// Adds a head for each child of a block of the setup, with the outputs `logits.NAME`; without a block, the only one.
///
/// # Errors
/// Those of [`attach_head`].
pub(crate) fn attach_heads(
    model: Verified,
    heads: Vec<Head>,
    block: Option<Setup>,
    seed: u64,
    training: bool,
) -> Result<Verified> {
    let pass = AttachHead {
        heads,
        block,
        seed,
        training,
    };
    Ok(pipelines::heading(pass).run(model)?.model)
}

/// The heads that a rewritten model says it has, the one in use last.
///
/// # Errors
/// A manifest that cannot be read.
pub(crate) fn heads(model: &Verified) -> Result<Vec<Noted>> {
    let manifest = Manifest::read(model.model()).map_err(|d| Error::new(ErrorKind::Method, d))?;
    Ok(manifest.heads)
}

/// Names of the classes that the model's head tells apart, in the order of their ids, where the graph says them.
///
/// # Errors
/// A manifest that cannot be read.
pub(crate) fn classes(model: &Verified) -> Result<Option<Vec<String>>> {
    Ok(heads(model)?.last().and_then(Noted::classes))
}

/// Keeps examples of one row apart, for packed training. Comes before adapters are attached.
///
/// # Errors
/// Attention or positions that cannot be kept apart.
pub(crate) fn pack(model: Verified, interface: &Interface) -> Result<Verified> {
    let (model, _) = opened(model, true)?;
    let selection = interface.select(&model)?;
    Ok(pipelines::packing(selection).run(model)?.model)
}

/// The difference of two models' graphs by module.
pub fn diff(a: &Verified, b: &Verified) -> Diff {
    let trees = [ModuleTree::new(a), ModuleTree::new(b)];
    let module_of = |m: &Model, n| {
        let tree = &trees[usize::from(!std::ptr::eq(m, a.model()))];
        tree.path_of(n).to_owned()
    };
    crate::ir::diff::diff(a.model(), b.model(), &module_of)
}

/// Takes adapters out of a rewritten model: one, or all.
pub fn strip(model: Verified, adapter: Option<&str>) -> Result<Verified> {
    within::stripped(model, adapter)
}

/// The same of one graph, whatever stands inside its nodes.
fn strip_one(model: Verified, adapter: Option<&str>) -> Result<Verified> {
    let pipeline = pipelines::stripping(adapter.map(str::to_owned));
    Ok(pipeline.run(model)?.model)
}

/// The adapters of a rewritten model, from its manifest: names, configurations and how they were integrated.
pub fn manifest(model: &Verified) -> Result<Vec<(String, Config)>> {
    let manifest = Manifest::read(model.model()).map_err(|d| Error::new(ErrorKind::Method, d))?;
    let entries = manifest.adapters.iter();
    entries.map(|e| Ok((e.name.clone(), e.config()?))).collect()
}

/// The library's summary table of a rewritten model. An adapter is active where the graph has its parameters.
pub fn summary(model: &Verified) -> Result<Summary> {
    summed_up(model, &AdapterStore::from_model(model.model()))
}

/// The same of these parameters, some of which may not be in the graph.
///
/// # Errors
/// A manifest that cannot be read.
pub(crate) fn summed_up(model: &Verified, store: &AdapterStore) -> Result<Summary> {
    let adapters = manifest(model)?;
    Ok(Summary::new(
        adapters.iter().map(|(n, c)| (&**n, c)),
        store,
        &AdapterStore::from_model(model.model()),
        crate::analyze::parameters::base_parameters(&model.model().graph),
    ))
}
