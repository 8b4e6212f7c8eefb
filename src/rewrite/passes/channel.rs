//! One child of a `Parallel` alone: what the setup makes with that child in the block's place, out of the graph that holds all of them.

use super::attach::outputs::{Grown, remembered};
use crate::adapters::Setup;
use crate::adapters::manifest::Manifest;
use crate::adapters::place::Kind;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::contract::{self, stamp};
use crate::ir::{NodeId, ValueId};
use crate::rewrite::passes::loss::channels;
use crate::rewrite::{Pass, PassCx, PassError, Uses, pipelines};
use rustc_hash::FxHashMap;

/// The children of a `Parallel`, each alone: what it is, and the model with it in the block's place. None, where there is no such block.
///
/// # Errors
/// A manifest that cannot be read.
pub(crate) fn children(model: &Verified) -> Result<Vec<(String, Verified)>> {
    if channels(&model.model().graph) == 1 {
        return Ok(Vec::new());
    }
    let manifest = Manifest::read(model.model()).map_err(|d| Error::new(ErrorKind::Method, d))?;
    let children = manifest.parallel().unwrap_or_default();
    let alone = |(i, child): (usize, &Setup)| {
        let model = pipelines::one_channel(i).run(model.clone())?.model;
        Ok((child.to_string(), model))
    };
    children.iter().enumerate().map(alone).collect()
}

/// Keeps one child of a `Parallel`. The batch stands in what flows once again, and outputs are those of the child, under their usual names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OneChannel {
    /// Index of the child.
    pub channel: usize,
}

impl Pass for OneChannel {
    fn name(&self) -> &'static str {
        "one-channel"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> std::result::Result<(), PassError> {
        let g = &cx.model().graph;
        let mut manifest = Manifest::read(cx.model())?;
        let children = manifest.parallel().unwrap_or_default();
        let Some(child) = children.get(self.channel) else {
            let found = format!("the setup has no child {} of a `Parallel`", self.channel);
            return Err(Diagnostic::error("channel", found).into());
        };
        let head = child.last().to_owned();
        let mut closing: FxHashMap<ValueId, ValueId> = FxHashMap::default();
        let (mut gone, mut entries, mut types) = (Vec::<NodeId>::new(), Vec::new(), Vec::new());
        for n in g.nodes() {
            let metadata = &g.node(n).metadata;
            let place = metadata.get(stamp::PLACE);
            let enters = place.is_some_and(|kind| **kind == *Kind::BATCH.name);
            if !enters && !metadata.contains_key(stamp::CHANNELS) {
                continue;
            }
            let joins = !enters && g.node(n).op.is_onnx("Concat");
            let Some(from) = g.input(n, if joins { self.channel } else { 0 }) else {
                continue;
            };
            if enters {
                entries.push(from);
                types.extend(metadata.get(stamp::OUTPUTS).map(|text| remembered(text)));
            }
            closing.extend(g.node_outputs(n).into_iter().flatten().map(|v| (v, from)));
            gone.push(n);
        }
        let behind = Grown::behind(g, &entries).values();
        let mut patch = cx.patch("one child of `Parallel`", None);
        for port in g.outputs() {
            let name = g.name_of(port.value);
            let Some((usual, of)) = contract::head_output(name) else {
                continue;
            };
            patch.remove_output(port.value);
            if of == head {
                let own = patch.builder().unary("Identity", port.value);
                patch.add_output(own, usual, port.ty.clone());
            }
        }
        for (name, ty) in types.into_iter().flatten() {
            let named = |p: &&crate::ir::GraphPort| g.name_of(p.value) == name;
            if let Some(port) = g.outputs().iter().find(named) {
                patch.output_type(port.value, Some(ty));
            }
        }
        let root = |mut v: ValueId| {
            while let Some(under) = closing.get(&v) {
                v = *under;
            }
            v
        };
        let mut moved: Vec<ValueId> = closing.keys().copied().collect();
        moved.sort_unstable();
        for v in moved {
            patch.redirect(v, root(v).into(), Uses::All);
        }
        for n in gone {
            patch.remove_node(n);
        }
        patch.forget(behind);
        let others = children.iter().map(Setup::last).filter(|n| *n != head);
        let others: Vec<String> = others.map(str::to_owned).collect();
        manifest.heads.retain(|h| !others.contains(&h.name));
        patch.model_metadata(stamp::MANIFEST, Some(&manifest.text()));
        cx.commit(patch)?;
        Ok(())
    }
}
