//! Layers by structure, where no names survive: attention cores between three projections and one, feed-forward blocks, norms, and
//! the residual stream that chains them. The last witness, and the weakest; it is asked only where the others are silent.

use super::flow::Flow;
use super::linear::Linears;
use super::norm::{Norm, Norms};
use super::softmax::{Bounds, Heart};
use super::through::Through;
use crate::ir::{NodeId, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};

mod gaps;
mod joints;
mod scattered;
#[cfg(test)]
mod tests;

/// How far a search goes between two landmarks of one layer. It bounds the work for each layer.
const REACH: usize = 160;

/// How many additions to the stream a search for the next layer passes.
const BETWEEN: usize = 64;

/// A projection: a linear, or columns of a fused one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Projection {
    pub(crate) linear: usize,
    /// The value with only its columns, the first of them, and their number.
    pub(crate) columns: Option<(ValueId, usize, usize)>,
}

/// One attention core with the projections around it.
#[derive(Clone, Debug)]
pub(crate) struct Core {
    pub(crate) q: Option<Projection>,
    pub(crate) k: Option<Projection>,
    pub(crate) v: Option<Projection>,
    pub(crate) o: usize,
    /// The softmax of the scores, or the fused operator.
    pub(crate) heart: NodeId,
    /// What the attention module reads for its queries.
    pub(crate) input: ValueId,
    cross: bool,
}

/// Where a sublayer's result is added to the stream.
#[derive(Clone, Copy, Debug)]
struct Joint {
    other: ValueId,
    /// The sum, where it is a value of the graph.
    sum: Option<ValueId>,
    /// Output of a fused norm of the sum.
    normed: Option<ValueId>,
    /// Output of a norm between the sublayer and the addition.
    branch_norm: Option<ValueId>,
}

/// One layer.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) stack: usize,
    pub(crate) self_attn: Core,
    pub(crate) cross_attn: Option<Core>,
    pub(crate) up: Option<Projection>,
    /// The projection of a gated block whose output goes through the activation.
    pub(crate) gate: Option<usize>,
    pub(crate) down: Option<usize>,
    /// What a feed-forward block reads and makes that is no two linears, as a choice of experts.
    pub(crate) block: Option<(ValueId, ValueId)>,
    /// Whether the stream is what norms behind the sublayers make.
    pub(crate) post_norm: bool,
    pub(crate) input: ValueId,
    pub(crate) output: Option<ValueId>,
    /// Outputs of the norms behind self-attention, cross-attention and feed-forward block.
    pub(crate) ln_1: Option<ValueId>,
    pub(crate) ln_cross: Option<ValueId>,
    pub(crate) ln_2: Option<ValueId>,
}

pub(crate) struct Structure<'a> {
    view: &'a Flow<'a>,
    linears: &'a Linears,
    pub(crate) norms: Norms,
    by_output: FxHashMap<ValueId, usize>,
    by_input: FxHashMap<ValueId, Vec<usize>>,
}

impl<'a> Structure<'a> {
    pub(crate) fn new(view: &'a Flow<'a>, linears: &'a Linears) -> Self {
        let mut by_output = FxHashMap::default();
        let mut by_input: FxHashMap<ValueId, Vec<usize>> = FxHashMap::default();
        for (i, l) in linears.flowing() {
            by_output.insert(l.output, i);
            by_output.insert(l.rows.1, i);
            by_input.entry(l.input).or_default().push(i);
            if l.rows.0 != l.input {
                by_input.entry(l.rows.0).or_default().push(i);
            }
        }
        Structure {
            view,
            linears,
            norms: Norms::new(view),
            by_output,
            by_input,
        }
    }

    /// All layers: by stack, and in each in the order of the stream.
    pub(crate) fn layers(&self) -> Vec<Found> {
        let order = self.view.order.iter();
        let mut cores: Vec<Core> = order.filter_map(|n| self.core(*n)).collect();
        if cores.is_empty() {
            cores = self.scattered();
        }
        let mut layers: Vec<Found> = Vec::new();
        // Every value of the stream inside a layer → the layer.
        let mut owner: FxHashMap<ValueId, usize> = FxHashMap::default();
        for core in cores.iter().filter(|c| !c.cross) {
            let at = layers.len();
            let joint = self.joint(self.linears.all[core.o].output);
            let input = self.entering(core.input, joint.as_ref());
            for v in [core.input, input] {
                owner.insert(self.view.root(v), at);
            }
            self.claim(&mut owner, joint.as_ref(), at);
            layers.push(Found {
                stack: 0,
                self_attn: core.clone(),
                cross_attn: None,
                up: None,
                gate: None,
                down: None,
                block: None,
                post_norm: false,
                input,
                output: None,
                ln_1: self.norm_behind(joint.as_ref()),
                ln_cross: None,
                ln_2: None,
            });
        }
        for core in cores.iter().filter(|c| c.cross) {
            let Some(&at) = self.keys(core.input).iter().find_map(|k| owner.get(k)) else {
                continue;
            };
            let joint = self.joint(self.linears.all[core.o].output);
            self.claim(&mut owner, joint.as_ref(), at);
            layers[at].ln_cross = self.norm_behind(joint.as_ref());
            layers[at].cross_attn = Some(core.clone());
        }
        for (at, layer) in layers.iter().enumerate() {
            self.claim_more(&mut owner, &layer.self_attn, at);
        }
        self.feed_forward(&cores, &owner, &mut layers);
        self.chain(layers)
    }

    // ---- attention -------------------------------------------------------------------------------------------------------

    /// The attention core that a softmax or a fused operator is the heart of.
    fn core(&self, n: NodeId) -> Option<Core> {
        let inputs = self.view.inputs(n);
        let slot = |i: usize| inputs.get(i).copied().flatten();
        let microsoft = !self.view.node(n).op.domain.is_empty();
        let (operands, context) = match self.view.op(n) {
            "Softmax" => self.spelled(n)?,
            "Attention" if microsoft => {
                let x = slot(0)?;
                let o = self.ahead(self.view.graph.output(n, 0)?)?;
                return Some(Core {
                    q: None,
                    k: None,
                    v: None,
                    o,
                    heart: n,
                    input: x,
                    cross: false,
                });
            }
            "Attention" | "MultiHeadAttention" | "GroupQueryAttention" => {
                let q = slot(0)?;
                (
                    [q, slot(1).unwrap_or(q), slot(2).unwrap_or(q)],
                    self.view.graph.output(n, 0)?,
                )
            }
            _ => return None,
        };
        let [q, k, v] = operands.map(|v| self.projection(v));
        let o = self.ahead(context)?;
        let (q, k, v) = (q?, k?, v?);
        let sources = self.sources(k.linear);
        let shared = self.sources(q.linear).into_iter().find(|v| {
            sources
                .iter()
                .any(|s| self.view.root(*s) == self.view.root(*v))
        });
        Some(Core {
            q: Some(q),
            k: Some(k),
            v: Some(v),
            o,
            heart: n,
            input: shared.unwrap_or(self.linears.all[q.linear].input),
            cross: shared.is_none(),
        })
    }

    /// What a projection reads; where that is a latent, which another linear makes with a norm behind it at most, also what that reads.
    fn sources(&self, linear: usize) -> Vec<ValueId> {
        const LATENTS: usize = 3;
        let mut out = vec![self.linears.all[linear].input];
        while let (Some(&last), true) = (out.last(), out.len() <= LATENTS) {
            let passes = Through::ALIKE.or(Through::SHAPE);
            let plain = passes.source(self.view.graph, last);
            let norm = self.norms.making(self.view, last);
            let norm = norm.or_else(|| self.norms.making(self.view, plain));
            let mut at = norm.and_then(|n| n.input).unwrap_or(last);
            let latent = loop {
                let at_root = passes.source(self.view.graph, at);
                if let Some(l) = self.by_output.get(&at_root).or(self.by_output.get(&at)) {
                    break Some(*l);
                }
                let part = self.view.producer(at_root);
                match part.filter(|n| matches!(self.view.op(*n), "Split" | "Slice")) {
                    Some(n) => match self.view.input(n, 0) {
                        Some(whole) => at = whole,
                        None => break None,
                    },
                    None => break None,
                }
            };
            let Some(latent) = latent else { break };
            out.push(self.linears.all[latent].input);
        }
        out
    }

    /// Operands of `softmax(q · kᵀ …) · v` and its result.
    fn spelled(&self, softmax: NodeId) -> Option<([ValueId; 3], ValueId)> {
        let view = self.view;
        let linear = |n: NodeId| self.linears.of(n).is_some();
        let bounds = Bounds {
            product: &|n, a, b| !linear(n) && view.is_flow(a) && view.is_flow(b),
            inside: &|v| view.carries(v) && !view.producer(v).is_some_and(linear),
        };
        if !view.is_flow(view.input(softmax, 0)?) {
            return None;
        }
        let found = Heart::around(view, softmax, &bounds).ok()?;
        let mixes = !linear(found.mix) && view.is_flow(found.values);
        let output = view.out(found.mix)?;
        mixes.then_some(([found.queries, found.keys, found.values], output))
    }

    /// Searches back along hidden states, nearest first, not through linears.
    fn behind<T>(&self, from: ValueId, mut stop: impl FnMut(NodeId) -> Option<T>) -> Option<T> {
        let mut seen: FxHashSet<NodeId> = FxHashSet::default();
        let mut open = std::collections::VecDeque::from([from]);
        while let Some(v) = open.pop_front() {
            let Some(n) = self.view.producer(v) else {
                continue;
            };
            if !seen.insert(n) || seen.len() > REACH {
                continue;
            }
            if let Some(found) = stop(n) {
                return Some(found);
            }
            if self.linears.of(n).is_none() && !self.mixes_channels(n) {
                open.extend(
                    self.view
                        .inputs(n)
                        .into_iter()
                        .flatten()
                        .filter(|v| self.view.carries(*v)),
                );
            }
        }
        None
    }

    /// Whether a node is a convolution that is no linear and makes each channel of several: what it makes is not what it read.
    fn mixes_channels(&self, n: NodeId) -> bool {
        let weight = |slot: usize| self.view.tensor(self.view.input(n, slot)?);
        self.view.op(n).starts_with("Conv")
            && weight(1).is_none_or(|w| w.dims.get(1).is_none_or(|d| *d > 1))
    }

    /// The projection that a value comes from.
    fn projection(&self, from: ValueId) -> Option<Projection> {
        let view = self.view;
        self.behind(from, |n| {
            if let Some(linear) = self.linears.of(n) {
                return Some(Projection {
                    linear,
                    columns: None,
                });
            }
            // Columns of a fused projection; the value that the walk came from is one of the outputs.
            let x = view.inputs(n).first().copied().flatten()?;
            let linear = *self.by_output.get(&x)?;
            let columns = super::columns::columns(view, n, self.linears.all[linear].d_out)?;
            let on_path = columns.into_iter().find(|(v, _, _)| self.leads(*v, from))?;
            let (value, first, width) = on_path;
            Some(Projection {
                linear,
                columns: Some((self.with_bias(value, width), first, width)),
            })
        })
    }

    /// Columns with a bias of their own: where an optimizer put products together, it left their biases behind.
    fn with_bias(&self, columns: ValueId, width: usize) -> ValueId {
        let view = self.view;
        let added = |n: NodeId| {
            let mut others = view
                .inputs(n)
                .into_iter()
                .flatten()
                .filter(|v| *v != columns);
            let bias = others.next().filter(|v| view.is_constant(*v))?;
            (view.op(n) == "Add" && view.rank(bias) == Some(1) && view.last(bias) == Some(width))
                .then(|| view.graph.output(n, 0))
                .flatten()
        };
        match view.readers(columns)[..] {
            [n] => added(n).unwrap_or(columns),
            _ => columns,
        }
    }

    /// Whether a value is used on the way to another one.
    fn leads(&self, from: ValueId, to: ValueId) -> bool {
        from == to
            || self
                .behind(to, |n| {
                    self.view.inputs(n).contains(&Some(from)).then_some(())
                })
                .is_some()
    }

    /// The linear that a value runs into, through reshapes and transposes.
    fn ahead(&self, from: ValueId) -> Option<usize> {
        const STEPS: usize = 24;
        let passes = Through::ALIKE.or(Through::SHAPE).or(Through::ORDER);
        // Beside the heads may stand what something else makes, as ConvBERT's convolutions.
        // A gate may be multiplied with it, as in Qwen3-Next.
        let joined = |r: &NodeId| {
            let joins = ["Concat", "Mul"].contains(&self.view.op(*r));
            self.view.out(*r).filter(|_| joins)
        };
        let mut open = std::collections::VecDeque::from([from]);
        for _ in 0..STEPS {
            let at = open.pop_front()?;
            if let Some(&[first, ..]) = self.by_input.get(&at).map(Vec::as_slice) {
                return Some(first);
            }
            let readers = self.view.readers(at);
            let after = readers
                .iter()
                .filter_map(|r| passes.after(self.view.graph, *r));
            open.extend(after);
            open.extend(readers.iter().filter_map(joined));
        }
        None
    }

    // ---- the stream --------------------------------------------------------------------------------------------------------

    /// What a layer reads: the stream in front of the norm of a pre-norm layer.
    fn entering(&self, input: ValueId, joint: Option<&Joint>) -> ValueId {
        let plain = self.unarranged(input);
        let Some(norm) = self.norms.making(self.view, plain) else {
            return input;
        };
        let root = |v: ValueId| self.view.root(v);
        match (norm.input, joint) {
            (Some(x), Some(j)) if root(j.other) == root(x) => x,
            // A parallel layer adds another branch first; a post-norm one adds the normed value itself.
            (Some(x), Some(j)) if root(j.other) != root(plain) => x,
            (Some(x), None) => x,
            _ => plain,
        }
    }

    fn claim(&self, owner: &mut FxHashMap<ValueId, usize>, joint: Option<&Joint>, at: usize) {
        let Some(j) = joint else { return };
        for v in [j.sum, j.normed].into_iter().flatten() {
            owner.entry(self.view.root(v)).or_insert(at);
        }
    }

    /// Claims what is made of a sublayer's sum before the next norm, where no layer did: more may be added, and the sum be scaled, as with
    /// the second branch beside Gemma 3n's attention.
    fn claim_more(&self, owner: &mut FxHashMap<ValueId, usize>, core: &Core, at: usize) {
        const MORE: usize = 3;
        let joint = self.joint(self.linears.all[core.o].output);
        let mut sum = joint.and_then(|j| j.sum);
        for _ in 0..MORE {
            let Some(v) = sum else { break };
            let next = self.view.readers(v).into_iter().find(|r| {
                let others = self
                    .view
                    .inputs(*r)
                    .into_iter()
                    .flatten()
                    .filter(|o| *o != v);
                let (mut flows, mut constants) = (false, false);
                for o in others {
                    flows |= self.view.is_flow(o);
                    constants |= self.view.is_constant(o);
                }
                match self.view.op(*r) {
                    "Add" => flows,
                    "Mul" | "Div" => constants,
                    _ => false,
                }
            });
            sum = next.and_then(|r| self.view.out(r));
            if let Some(v) = sum {
                owner.entry(self.view.root(v)).or_insert(at);
            }
        }
    }

    fn norm_behind(&self, joint: Option<&Joint>) -> Option<ValueId> {
        let j = joint?;
        j.branch_norm
            .or(j.normed)
            .or_else(|| Some(self.norms.of(self.view, j.sum?).next()?.output))
    }

    /// The values by which the layer of a sublayer is known: what the sublayer reads, and that before its norm.
    fn keys(&self, input: ValueId) -> Vec<ValueId> {
        let mut out = vec![self.view.root(input)];
        if let Some(Norm { input: Some(x), .. }) = self.norms.making(self.view, input) {
            out.push(self.view.root(*x));
        }
        let rows = out
            .last()
            .and_then(|v| self.view.producer(*v))
            .filter(|n| self.view.op(*n) == "Reshape");
        let before = rows.and_then(|n| self.view.inputs(n).first().copied().flatten());
        if let Some(before) = before.map(|v| self.view.root(v)) {
            out.push(before);
            // A post-norm layer may take the rows of what the norm behind its attention made.
            let norm = self.norms.making(self.view, before);
            out.extend(norm.and_then(|n| n.input).map(|v| self.view.root(v)));
        }
        out
    }

    // ---- feed-forward --------------------------------------------------------------------------------------------------------

    fn feed_forward(
        &self,
        cores: &[Core],
        owner: &FxHashMap<ValueId, usize>,
        layers: &mut [Found],
    ) {
        let projections = |c: &Core| {
            [c.q, c.k, c.v]
                .into_iter()
                .flatten()
                .map(|p| p.linear)
                .chain([c.o])
                .collect::<Vec<_>>()
        };
        let taken: FxHashSet<usize> = cores.iter().flat_map(projections).collect();
        let free = self.linears.flowing().map(|(i, _)| i);
        let mut downs: Vec<usize> = free.filter(|i| !taken.contains(i)).collect();
        downs.sort_by_key(|i| self.view.place(self.linears.all[*i].core));
        for down in downs {
            let l = &self.linears.all[down];
            let Some(up) = self.up(l.input, &taken) else {
                continue;
            };
            let Some(joint) = self.joint(l.output) else {
                continue;
            };
            let input = self.linears.all[up.linear].input;
            let Some(&at) = self.keys(input).iter().find_map(|k| owner.get(k)) else {
                continue;
            };
            let layer = &mut layers[at];
            let attended = self.linears.all[layer.self_attn.o].output;
            // What is added to anything but the stream is a part of a larger block: an expert that all tokens share.
            let beside = self.view.root(joint.other) == self.view.root(attended);
            if !beside && !self.keys(joint.other).iter().any(|k| owner.contains_key(k)) {
                continue;
            }
            layer.up = Some(up);
            layer.gate = self.gate(l.input, up.linear);
            layer.down = Some(down);
            layer.ln_2 = self.norm_behind(Some(&joint));
            // The stream of a post-norm layer is the normed sum, so its block adds to what a norm of a sum made.
            layer.post_norm = self.norms.making(self.view, joint.other).is_some_and(|n| {
                let first = self.view.root(joint.other) == self.view.root(layer.input);
                !first && (n.skip.is_some() || n.input.is_some_and(|v| self.is_sum(v)))
            });
            layer.output = self.leaving(joint, attended, layer.input, layer.post_norm);
        }
        for layer in layers.iter_mut().filter(|l| l.down.is_none()) {
            self.blocks(layer);
        }
    }

    /// The feed-forward block of a layer by what it reads of the stream and what it adds to it, whatever stands inside.
    fn blocks(&self, layer: &mut Found) {
        let last = layer.cross_attn.as_ref().unwrap_or(&layer.self_attn);
        let attended = self.joint(self.linears.all[last.o].output);
        let Some(stream) = attended.and_then(|j| j.sum) else {
            return;
        };
        let Some(joint) = self.joint(stream) else {
            return;
        };
        // The search for the addition goes through the norm of a post-norm layer.
        let normed = joint.branch_norm;
        let own = || self.norms.of(self.view, stream).next().map(|n| n.output);
        let entered = normed.or_else(own).unwrap_or(stream);
        if self.view.defined(joint.other) <= self.view.defined(entered) {
            return;
        }
        layer.post_norm = normed.is_some();
        let made = match self.norms.making(self.view, joint.other) {
            Some(Norm {
                input: Some(x),
                output,
                ..
            }) => {
                layer.ln_2 = Some(*output);
                *x
            }
            _ => joint.other,
        };
        let behind = || Some(self.norms.of(self.view, joint.sum?).next()?.output);
        layer.output = joint.sum;
        if layer.post_norm {
            layer.ln_2 = behind();
            layer.output = layer.ln_2;
        }
        layer.block = Some((entered, super::residual::unscaled(**self.view, made)));
    }

    /// The other linear of the input of `up` whose output, behind an activation, is multiplied into what the down projection reads.
    fn gate(&self, product: ValueId, up: usize) -> Option<usize> {
        const ACTIVATION: usize = 16;
        let product = self.view.producer(self.view.root(product))?;
        if self.view.op(product) != "Mul" {
            return None;
        }
        let source = self.view.root(self.linears.all[up].input);
        let mut ahead: Vec<ValueId> = self.view.inputs(product).into_iter().flatten().collect();
        let mut seen = 0;
        while let Some(v) = ahead.pop() {
            seen += 1;
            let v = self.view.root(v);
            match self.by_output.get(&v) {
                Some(l) if *l == up => {}
                Some(l) => {
                    let input = self.view.root(self.linears.all[*l].input);
                    return (input == source).then_some(*l);
                }
                None if seen <= ACTIVATION => {
                    let made = self.view.producer(v).filter(|_| self.view.is_flow(v));
                    ahead.extend(made.into_iter().flat_map(|n| self.view.inputs(n)).flatten());
                }
                None => return None,
            }
        }
        None
    }

    /// What leaves a layer whose feed-forward block joins the stream at `joint`.
    fn leaving(
        &self,
        mut joint: Joint,
        attended: ValueId,
        input: ValueId,
        post_norm: bool,
    ) -> Option<ValueId> {
        if post_norm && joint.branch_norm.is_none() {
            return self.norm_behind(Some(&joint));
        }
        // A parallel layer adds its two branches first.
        if self.view.root(joint.other) == self.view.root(attended) {
            joint = self.joint(joint.sum?)?;
        }
        let sum = joint.sum?;
        Some(
            self.restored(sum)
                .filter(|v| self.view.rank(*v) == self.view.rank(input))
                .unwrap_or(sum),
        )
    }

    fn is_sum(&self, v: ValueId) -> bool {
        self.view
            .producer(self.view.root(v))
            .is_some_and(|n| self.view.op(n) == "Add")
    }

    /// A stream that was reshaped to rows and back.
    fn restored(&self, sum: ValueId) -> Option<ValueId> {
        let readers: Vec<NodeId> = self
            .view
            .readers(sum)
            .into_iter()
            .filter(|r| !self.view.measures(*r))
            .collect();
        match readers[..] {
            [r] if self.view.op(r) == "Reshape" => self.view.graph.output(r, 0),
            _ => None,
        }
    }

    /// The up-projection in front of an activation; of two, the one that the product reads as it is.
    fn up(&self, from: ValueId, taken: &FxHashSet<usize>) -> Option<Projection> {
        let mut found: Vec<usize> = Vec::new();
        let mut split = None;
        let _: Option<()> = self.behind(from, |n| {
            let linear = self.linears.of(n)?;
            if !found.contains(&linear) {
                found.push(linear);
            }
            None
        });
        found.retain(|l| !taken.contains(l));
        if let [one] = found[..] {
            split = Some(Projection {
                linear: one,
                columns: None,
            });
        }
        let plain = |l: &&usize| {
            let readers = self.view.readers(self.linears.all[**l].output);
            matches!(readers[..], [r] if self.view.op(r) == "Mul")
        };
        split.or_else(|| {
            let linear = *found.iter().find(plain)?;
            (found.len() == 2).then_some(Projection {
                linear,
                columns: None,
            })
        })
    }

    // ---- stacks --------------------------------------------------------------------------------------------------------------

    /// Orders layers by the stream, and numbers the chains.
    fn chain(&self, mut layers: Vec<Found>) -> Vec<Found> {
        let root = |v: ValueId| self.view.root(v);
        let after: FxHashMap<ValueId, usize> = layers
            .iter()
            .enumerate()
            .map(|(i, l)| (root(l.input), i))
            .collect();
        let next: Vec<Option<usize>> = layers
            .iter()
            .enumerate()
            .map(|(i, l)| self.follower(i, l, &after))
            .collect();
        let mut has_former = vec![false; layers.len()];
        for n in next.iter().flatten() {
            has_former[*n] = true;
        }
        let mut out = Vec::with_capacity(layers.len());
        let firsts: Vec<usize> = (0..layers.len()).filter(|i| !has_former[*i]).collect();
        for (stack, first) in firsts.into_iter().enumerate() {
            let mut at = Some(first);
            while let Some(i) = at {
                layers[i].stack = stack;
                if let Some(n) = next[i] {
                    layers[i].output = Some(layers[n].input);
                }
                out.push(layers[i].clone());
                at = next[i];
            }
        }
        out
    }

    /// The stream where padding is set to zero between layers, as in XLM.
    fn masked(&self, stream: ValueId) -> Option<ValueId> {
        let view = self.view;
        let readers = view.readers(stream);
        let &[n] = &readers[..] else { return None };
        let mut others = view
            .inputs(n)
            .into_iter()
            .flatten()
            .filter(|v| *v != stream);
        let masks = view.op(n) == "Mul" && others.all(|v| !view.carries(v));
        masks.then(|| view.out(n)).flatten()
    }

    /// The layer that takes for its input what this one makes, or a further sum: of a parallel layer, or of layers without attention that
    /// stand between two with it.
    fn follower(&self, at: usize, l: &Found, after: &FxHashMap<ValueId, usize>) -> Option<usize> {
        let mut sum = l
            .output
            .or_else(|| self.joint(self.linears.all[l.self_attn.o].output)?.sum);
        for _ in 0..BETWEEN {
            let v = sum?;
            let masked = self.masked(v);
            let mut inputs = [Some(self.view.root(v)), self.restored(v), masked].into_iter();
            let next = inputs.find_map(|v| after.get(&v?).copied());
            if let Some(next) = next.filter(|n| *n > at) {
                return Some(next);
            }
            sum = self.joint(v).and_then(|j| j.sum);
        }
        None
    }
}
