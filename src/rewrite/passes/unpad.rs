//! Work on tokens instead of padding.
//!
//! A batch of rows of unequal length is mostly padding where texts are short. Most nodes work on each position by itself: products with
//! weights, norms, activations, sums. Between the attentions they are given the tokens alone, `[1, tokens, width]`, and what attentions
//! and heads read gets its padding back, as zeros (`unpad_input` and `pad_input` of `FlashAttention`). The gradient of one is the other, so
//! the backward pass works on tokens as well.
//!
//! It is done only where nothing can see the difference: what stands at padding may flow to attentions that hide it by a mask made of
//! `attention_mask`, to products and choices by such a mask or by labels, to the first position of each row, and to outputs of positions. Rows
//! that are padded on the left keep their padding ([`TokenIndices`](crate::ops)). Linear in the size of the graph.

use crate::analyze::view::View;
use crate::ir::contract::{self, stamp};
use crate::ir::{Attr, Builder, DType, Graph, NodeId, OpId, Spot, Sym, Use, Val, ValueId};
use crate::ops::{DOMAIN, MS};
use crate::rewrite::{Pass, PassCx, PassError, Patch, Uses};
use rustc_hash::{FxHashMap, FxHashSet};

/// Takes padding out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unpad {
    /// Whether outputs may have something else at padding.
    pub free_outputs: bool,
}

/// Inputs that say where padding is: `[batch, sequence]`.
const MASKS: [&str; 2] = [contract::ATTENTION_MASK, contract::DECODER_ATTENTION_MASK];

impl Pass for Unpad {
    fn name(&self) -> &'static str {
        "unpad"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        for mask in MASKS {
            let found = Found::new(View::new(&cx.model().graph, cx), mask, self.free_outputs);
            if let Some(found) = found {
                found.write(cx)?;
            }
        }
        Ok(())
    }
}

/// Operators that work on each element by itself.
const ELEMENTWISE: [&str; 37] = [
    "Abs",
    "Add",
    "Cast",
    "Celu",
    "Clip",
    "Div",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Log",
    "Max",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Selu",
    "Sigmoid",
    "Sign",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Swish",
    "Tanh",
    "ThresholdedRelu",
    "Where",
];
/// Those of other domains.
const FUSED: [(&str, &str); 7] = [
    (DOMAIN, "Gelu"),
    (DOMAIN, "Silu"),
    (DOMAIN, "SwiGLU"),
    (MS, "BiasGelu"),
    (MS, "FastGelu"),
    (MS, "Gelu"),
    (MS, "QuickGelu"),
];
/// Norms over the last axis.
const NORMS: [(&str, &str); 7] = [
    ("", "LayerNormalization"),
    ("", "RMSNormalization"),
    ("", "SimplifiedLayerNormalization"),
    (DOMAIN, "LayerNormalization"),
    (DOMAIN, "RMSNormalization"),
    (MS, "SkipLayerNormalization"),
    (MS, "SkipSimplifiedLayerNormalization"),
];
/// Operators that lay elements out in another way.
const LAYOUT: [&str; 9] = [
    "Concat",
    "Expand",
    "Flatten",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

/// The nodes that are given tokens alone, and where their values come from and go.
struct Found {
    mask: ValueId,
    /// What they read that others make, and where.
    enters: Vec<(ValueId, Vec<Use>)>,
    /// What others read that they make, and where.
    leaves: Vec<(ValueId, Vec<Use>)>,
    /// Graph outputs that they make, and where they read them themselves.
    outputs: Vec<(ValueId, Vec<Use>)>,
    /// Shapes of what they make, with its width.
    shapes: Vec<(NodeId, i64)>,
    /// Those of them that are others for tokens: what draws numbers for elements, and what lays vectors out in another form, with their
    /// width.
    anew: Vec<(NodeId, Option<i64>)>,
    /// The nodes.
    inside: FxHashSet<NodeId>,
    /// Everything that they make.
    behind: Vec<ValueId>,
    /// Attentions whose queries stand at positions.
    attentions: Vec<NodeId>,
}

/// A graph and the sizes of its batch.
struct Search<'a> {
    view: View<'a>,
    batch: [Sym; 2],
}

impl Found {
    /// Looks for them; `None` where there are none, or something would see the difference.
    fn new(view: View<'_>, mask: &str, free_outputs: bool) -> Option<Found> {
        let g = view.graph;
        let mask = g.find(mask).filter(|v| g.is_input(*v))?;
        let [b, s] = view.dims(mask)? else {
            return None;
        };
        if b == s {
            return None;
        }
        let batch = [b.clone(), s.clone()];
        let search = Search { view, batch };
        let order = g.order().ok()?;
        let inside = search.nodes(&order);
        if inside.is_empty() {
            return None;
        }
        let mut found = Found {
            mask,
            enters: Vec::new(),
            leaves: Vec::new(),
            outputs: Vec::new(),
            shapes: Vec::new(),
            anew: Vec::new(),
            inside: FxHashSet::default(),
            behind: Vec::new(),
            attentions: Vec::new(),
        };
        found.borders(&search, &order, &inside);
        let free = |v: &ValueId| free_outputs || !g.is_output(*v);
        let (unseen, attentions) = search.unseen(&order, &inside, &found)?;
        (found.inside, found.attentions) = (inside, attentions);
        unseen.iter().all(free).then_some(found)
    }

    /// Sorts the values that go in and out.
    fn borders(&mut self, search: &Search<'_>, order: &[NodeId], inside: &FxHashSet<NodeId>) {
        let g = search.view.graph;
        let reads = |u: &Use| inside.contains(&u.node());
        let mut seen: FxHashSet<ValueId> = FxHashSet::default();
        for &n in order.iter().filter(|n| inside.contains(n)) {
            for v in g.node_inputs(n).into_iter().flatten() {
                let made = g.producer(v).is_some_and(|(p, _)| inside.contains(&p));
                if search.is_rows(v) && !made && seen.insert(v) {
                    let uses = g.uses(v).into_iter().filter(reads).collect();
                    self.enters.push((v, uses));
                }
            }
            let laid_out = search.laid_out(n);
            if g.node(n).op.is_onnx("Dropout") || laid_out.is_some() {
                self.anew.push((n, laid_out));
            }
            for v in g.node_outputs(n).into_iter().flatten() {
                self.behind.push(v);
                let (own, mut others): (Vec<Use>, Vec<Use>) =
                    g.uses(v).into_iter().partition(reads);
                let width = search
                    .view
                    .size(v, 2)
                    .filter(|_| search.view.rank(v) == Some(3));
                others.retain(|u| {
                    let shape = g.node(u.node()).op.is_onnx("Shape");
                    let whole = g.node(u.node()).attr("start").is_none()
                        && g.node(u.node()).attr("end").is_none();
                    if let (true, true, Some(width)) = (shape, whole, width) {
                        self.shapes.push((u.node(), width));
                        return false;
                    }
                    true
                });
                if g.is_output(v) {
                    self.outputs.push((v, own));
                } else if !others.is_empty() {
                    self.leaves.push((v, others));
                }
            }
        }
    }

    fn write(self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let g = &cx.model().graph;
        let behind = |v: ValueId| g.producer(v).map(|(n, _)| Spot::Behind(n));
        let mut patch = cx.patch("work on tokens instead of padding", None);
        patch.builder().set_scope("unpad");
        patch.builder().set_spot(Some(Spot::Front));
        let tokens = patch
            .builder()
            .op_in(DOMAIN, "TokenIndices", &[self.mask.into()], &[]);
        let sizes = patch.builder().shape(self.mask);
        // The width of what is flat: its rows are those of the batch.
        let flat = |cx: &PassCx<'_>, v: ValueId| {
            let dims = cx.fact(v).and_then(|f| f.dims.as_deref());
            dims.filter(|d| d.len() == 2).and_then(|d| d[1].as_const())
        };
        // What stands for a value among the tokens.
        let mut now: FxHashMap<ValueId, Val> = FxHashMap::default();
        for (v, uses) in self.enters {
            let b = patch.builder();
            b.set_spot(behind(v));
            let width = flat(cx, v);
            let x = match width {
                Some(width) => b.reshape(v, b.concat(&[sizes, b.ints(&[width])], 0)),
                None => v.into(),
            };
            let own = b.op_in(DOMAIN, "UnpadInput", &[x, tokens, sizes], &[]);
            let own = match width {
                Some(width) => b.reshape(own, b.ints(&[-1, width])),
                None => own,
            };
            now.insert(v, own);
            patch.redirect(v, own, Uses::Only(uses));
        }
        let mut made_anew = Vec::new();
        for &(n, width) in &self.anew {
            let b = patch.builder();
            b.set_spot(Some(Spot::Behind(n)));
            let Some(x) = g.input(n, 0) else { continue };
            let x = now.get(&x).copied().unwrap_or(x.into());
            let outputs = g.node_outputs(n);
            let made = match width {
                Some(width) => {
                    let flat = outputs[0].is_some_and(|v| flat(cx, v).is_some());
                    let shape = if flat {
                        b.ints(&[-1, width])
                    } else {
                        b.ints(&[1, -1, width])
                    };
                    vec![b.reshape(x, shape)]
                }
                None => dropped(b, g, n, x, tokens),
            };
            for (old, new) in outputs.into_iter().zip(made) {
                if let Some(old) = old {
                    now.insert(old, new);
                    made_anew.push((old, new));
                }
            }
        }
        for (n, width) in self.shapes {
            let b = patch.builder();
            b.set_spot(Some(Spot::Behind(n)));
            let shape = b.concat(&[sizes, b.ints(&[width])], 0);
            if let Some(old) = g.output(n, 0) {
                patch.redirect(old, shape, Uses::All);
                patch.remove_node(n);
            }
        }
        let whole = |patch: &Patch, v: ValueId| {
            let b = patch.builder();
            b.set_spot(behind(v));
            let of = now.get(&v).copied().unwrap_or(v.into());
            let width = flat(cx, v);
            let of = match width {
                Some(width) => b.reshape(of, b.ints(&[1, -1, width])),
                None => of,
            };
            let whole = b.op_in(DOMAIN, "PadInput", &[of, tokens, sizes], &[]);
            match width {
                Some(width) => b.reshape(whole, b.ints(&[-1, width])),
                None => whole,
            }
        };
        for (v, uses) in &self.leaves {
            let whole = whole(&patch, *v);
            patch.redirect(*v, whole, Uses::Only(uses.clone()));
        }
        let mut again: Vec<(Val, Val, Vec<Use>)> = Vec::new();
        for (v, own) in self.outputs {
            let whole = whole(&patch, v);
            patch.redirect(v, whole, Uses::All);
            // What was made anew reads it as it is.
            let own: Vec<Use> = own
                .into_iter()
                .filter(|u| self.anew.iter().all(|(n, _)| *n != u.node()))
                .collect();
            if !own.is_empty() {
                again.push((whole, now.get(&v).copied().unwrap_or(v.into()), own));
            }
        }
        // Others read them whole already.
        for (old, new) in made_anew {
            let uses = g
                .uses(old)
                .into_iter()
                .filter(|u| self.inside.contains(&u.node()));
            patch.redirect(old, new, Uses::Only(uses.collect()));
        }
        for (n, _) in self.anew {
            patch.remove_node(n);
        }
        patch.forget(self.behind);
        patch.import(DOMAIN, 1);
        let applied = cx.commit(patch)?;
        if again.is_empty() && self.attentions.is_empty() {
            return Ok(());
        }
        let mut patch = cx.patch("what works on places knows which are tokens", None);
        let tokens = applied.value(tokens);
        for &n in &self.attentions {
            on_tokens(&mut patch, &cx.model().graph, n, tokens);
        }
        for (whole, own, uses) in again {
            patch.redirect(
                applied.value(whole),
                applied.value(own).into(),
                Uses::Only(uses),
            );
        }
        cx.commit(patch)?;
        Ok(())
    }
}

/// Inputs and attributes of a node, for one that takes its place.
fn parts_of(g: &Graph, n: NodeId) -> (Vec<Option<Val>>, Vec<(&str, Attr)>) {
    let inputs = g.node_inputs(n).into_iter();
    let attrs = g.node(n).attrs.iter();
    let inputs = inputs.map(|v| v.map(Val::from)).collect();
    (inputs, attrs.map(|(k, a)| (&**k, a.clone())).collect())
}

/// Tells an `Attention` which of its queries are tokens.
fn on_tokens(patch: &mut Patch, g: &Graph, n: NodeId, tokens: ValueId) {
    let b = patch.builder();
    b.set_spot(Some(Spot::Behind(n)));
    let (mut inputs, attrs) = parts_of(g, n);
    inputs.resize(4, None);
    inputs.push(Some(tokens.into()));
    let outputs = g.node_outputs(n);
    let made = b.node_n(g.node(n).op.clone(), &inputs, &attrs, outputs.len());
    for (old, new) in outputs.into_iter().zip(made) {
        if let Some(old) = old {
            patch.redirect(old, new, Uses::All);
        }
    }
    patch.remove_node(n);
}

/// A `Dropout` that draws for each token what it drew for its place in the batch.
fn dropped(b: &Builder, g: &Graph, n: NodeId, x: Val, tokens: Val) -> Vec<Val> {
    let node = g.node(n);
    let (mut inputs, attrs) = parts_of(g, n);
    inputs[0] = Some(x);
    inputs.resize(3, None);
    inputs.push(Some(tokens));
    let op = OpId::new(DOMAIN, "Dropout");
    let made = b.node_n(op, &inputs, &attrs, node.output_count());
    let name = node.metadata.get(stamp::DRAWS_AS).unwrap_or(&node.name);
    b.mark_last_node(stamp::DRAWS_AS, name);
    made
}

impl Search<'_> {
    /// Whether a value has a vector for each position of the batch: `[batch, sequence, width]`, or `[batch · sequence, width]`.
    fn is_rows(&self, v: ValueId) -> bool {
        let [b, s] = &self.batch;
        let fits = |d: &[Sym]| match d {
            [rows, width] => b.mul(s).as_ref() == Some(rows) && width.as_const().is_some(),
            [batch, sequence, _] => (batch, sequence) == (b, s),
            _ => false,
        };
        self.view.dtype(v).is_some_and(DType::is_float) && self.view.dims(v).is_some_and(fits)
    }

    /// Width of the vectors that a node lays out in one of these forms, from the other one.
    fn laid_out(&self, n: NodeId) -> Option<i64> {
        let (view, node) = (&self.view, self.view.node(n));
        let (x, y) = (view.input(n, 0)?, view.out(n)?);
        let width = view.size(y, -1)?;
        let fits = node.op.is_onnx("Reshape")
            && self.is_rows(x)
            && self.is_rows(y)
            && view.size(x, -1) == Some(width);
        fits.then_some(width)
    }

    /// Whether a value is the same for all positions.
    fn is_shared(&self, v: ValueId) -> bool {
        let one = |d: &[Sym]| {
            d.split_last()
                .is_none_or(|(_, outer)| outer.iter().all(|d| d.is(1)))
        };
        self.view.dims(v).is_some_and(one)
    }

    /// The nodes that can be given tokens alone, where products with weights are among those that feed each other.
    fn nodes(&self, order: &[NodeId]) -> FxHashSet<NodeId> {
        let g = self.view.graph;
        let mut group: FxHashMap<NodeId, usize> = FxHashMap::default();
        let mut above: Vec<usize> = Vec::new();
        let mut works: Vec<bool> = Vec::new();
        let root = |above: &[usize], mut i: usize| {
            while above[i] != i {
                i = above[i];
            }
            i
        };
        for &n in order.iter().filter(|n| self.by_row(**n)) {
            let own = above.len();
            above.push(own);
            works.push(self.multiplies(n));
            group.insert(n, own);
            for v in g.node_inputs(n).into_iter().flatten() {
                let made = g.producer(v).and_then(|(p, _)| group.get(&p)).copied();
                let Some(made) = made.filter(|_| self.is_rows(v)) else {
                    continue;
                };
                let (a, b) = (root(&above, made), root(&above, own));
                let (first, other) = (a.min(b), a.max(b));
                above[other] = first;
                works[first] |= works[other];
            }
        }
        let kept = |(_, i): &(NodeId, usize)| works[root(&above, *i)];
        group.into_iter().filter(kept).map(|(n, _)| n).collect()
    }

    /// Whether a node multiplies positions with a matrix.
    fn multiplies(&self, n: NodeId) -> bool {
        let op = &self.view.node(n).op;
        op.is_onnx("MatMul")
            || op.is_onnx("Gemm")
            || is(op, &[(MS, "MatMulNBits"), (MS, "MatMulBnb4")])
    }

    /// Whether a node makes of each position what it makes of it by itself.
    fn by_row(&self, n: NodeId) -> bool {
        let (view, g) = (&self.view, self.view.graph);
        let (node, op) = (view.node(n), &view.node(n).op);
        let ins = view.inputs(n);
        let made = g.node_outputs(n);
        let used = |v: &ValueId| !g.uses(*v).is_empty() || g.is_output(*v);
        if !g.node_captures(n).is_empty()
            || made
                .first()
                .copied()
                .flatten()
                .is_none_or(|v| !self.is_rows(v))
            || !made
                .iter()
                .skip(1)
                .flatten()
                .filter(|v| used(v))
                .all(|v| self.is_rows(*v))
        {
            return false;
        }
        let rows = |slot: usize| {
            ins.get(slot)
                .copied()
                .flatten()
                .is_some_and(|v| self.is_rows(v))
        };
        if op.is_onnx("Reshape") {
            return self.laid_out(n).is_some();
        }
        let any = (0..ins.len()).any(rows);
        let rank = made[0].and_then(|v| view.rank(v)).unwrap_or(3);
        let same = |v: ValueId| self.is_rows(v) && view.rank(v) == Some(rank);
        let fits = |v: &ValueId| same(*v) || self.is_shared(*v);
        let all = || ins.iter().flatten().all(fits);
        let last = |axis: i64| axis == -1 || axis == rank as i64 - 1;
        let behind = |from: usize| ins.iter().skip(from).flatten().all(|v| !self.is_rows(*v));
        let only_last = || view.axes(n).is_some_and(|a| a.len() == 1 && last(a[0]));
        if op.is_onnx("MatMul") || op.is_onnx("Gemm") {
            let flat = ins.get(1).copied().flatten().and_then(|v| view.rank(v));
            let straight = node.int("transA", 0) == 0;
            return rows(0) && flat == Some(2) && behind(1) && straight;
        }
        if self.multiplies(n) {
            return rows(0) && behind(1);
        }
        if ELEMENTWISE.iter().any(|name| op.is_onnx(name)) || is(op, &FUSED) {
            return any && all();
        }
        if is(op, &NORMS) {
            return rows(0) && all() && last(node.int("axis", -1));
        }
        match &*op.op_type {
            "Softmax" | "LogSoftmax" => {
                op.domain.is_empty() && rows(0) && last(node.int("axis", -1))
            }
            "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceSumSquare" | "ReduceL2" => {
                op.domain.is_empty() && rows(0) && node.int("keepdims", 1) == 1 && only_last()
            }
            "Split" => op.domain.is_empty() && rows(0) && last(node.int("axis", 0)),
            "Concat" => {
                op.domain.is_empty()
                    && ins.iter().flatten().all(|v| same(*v))
                    && last(node.int("axis", 0))
            }
            _ => false,
        }
    }

    /// The values that have something else at padding, if no more than that changes; and the attentions that read such queries.
    fn unseen(
        &self,
        order: &[NodeId],
        inside: &FxHashSet<NodeId>,
        found: &Found,
    ) -> Option<(FxHashSet<ValueId>, Vec<NodeId>)> {
        let (view, g) = (&self.view, self.view.graph);
        let mut attentions = Vec::new();
        // What says where padding is, without being computed from hidden states; and whether it is zero there.
        let mut tells: FxHashMap<ValueId, bool> = FxHashMap::from_iter([(found.mask, true)]);
        tells.extend(g.find(contract::LABELS).map(|v| (v, false)));
        let mut stages: FxHashMap<ValueId, Stage> = FxHashMap::default();
        let leaves = found.leaves.iter().chain(&found.outputs);
        let mut padded: FxHashSet<ValueId> = leaves.map(|(v, _)| *v).collect();
        // The same, and what is zero there but for the sign of it.
        let mut touched = padded.clone();
        for &n in order.iter().filter(|n| !inside.contains(n)) {
            let ins = view.inputs(n);
            let made = || g.node_outputs(n).into_iter().flatten();
            let op = &view.node(n).op;
            let has = |slot: usize, of: &FxHashSet<ValueId>| {
                ins.get(slot)
                    .copied()
                    .flatten()
                    .is_some_and(|v| of.contains(&v))
            };
            let tell = |slot: usize| {
                ins.get(slot)
                    .copied()
                    .flatten()
                    .and_then(|v| tells.get(&v))
                    .copied()
            };
            let measures = op.is_onnx("Shape") || op.is_onnx("Size");
            let flows = ins.iter().flatten().any(|v| padded.contains(v));
            if g.node_captures(n).iter().any(|v| padded.contains(v)) {
                return None;
            }
            if measures {
                continue;
            }
            let told = (0..ins.len()).any(|i| tell(i).is_some());
            let zero = (0..ins.len()).any(|i| tell(i) == Some(true));
            let stage = ins.iter().flatten().find_map(|v| stages.get(v)).copied();
            if let Some(stage) = stage {
                match stage.behind(op, told, self.is_last_axis(n)) {
                    Some(Next::Stage(next)) => stages.extend(made().map(|v| (v, next))),
                    Some(Next::Mix) => {
                        padded.extend(made());
                        touched.extend(made());
                    }
                    None => return None,
                }
                continue;
            }
            if !flows {
                if ins.iter().flatten().any(|v| touched.contains(v)) {
                    touched.extend(made());
                } else if told {
                    // A mask stays zero where it is.
                    let straight = LAYOUT.iter().chain(&["Cast", "Identity", "Mul"]);
                    let straight = straight.into_iter().any(|name| op.is_onnx(name));
                    tells.extend(made().map(|v| (v, zero && straight)));
                }
                continue;
            }
            let effect = match &*op.op_type {
                "Attention" if &*op.domain == DOMAIN => {
                    if has(3, &touched) || tell(3).is_none() {
                        return None;
                    }
                    let places = ins[0].and_then(|q| view.dims(q));
                    let places = places.filter(|d| d.len() == 4 && d[0] == self.batch[0]);
                    if has(0, &padded) && places.is_some_and(|d| d[2] == self.batch[1]) {
                        attentions.push(n);
                    }
                    Effect::Stays
                }
                "MatMul" if has(0, &padded) && has(1, &padded) => {
                    stages.extend(made().map(|v| (v, Stage::Scores)));
                    continue;
                }
                // Positions times a matrix: the keys of a prefix.
                "MatMul" if !has(1, &touched) && self.is_by_position(ins[0]) => Effect::Stays,
                "RotaryEmbedding" if &*op.domain == DOMAIN => Effect::Stays,
                "LinearCrossEntropy" if &*op.domain == DOMAIN => Effect::Ends,
                // Labels there are those that do not count.
                "SoftmaxCrossEntropyLoss" | "NegativeLogLikelihoodLoss" if told => Effect::Ends,
                "Mul" if op.domain.is_empty() && zero => Effect::Hides,
                // What is chosen instead is the same for all, as a rule.
                "Where"
                    if op.domain.is_empty()
                        && tell(0).is_some()
                        && !(has(1, &touched) && has(2, &touched)) =>
                {
                    Effect::Hides
                }
                "Gather" if op.domain.is_empty() => match view.node(n).int("axis", 0) {
                    1 => match ins.get(1).copied().flatten().and_then(|v| view.ints(v)) {
                        Some(at) => {
                            Effect::ends(at == [0] && ins[0].is_some_and(|v| self.is_rows(v)))
                        }
                        None => Effect::Ends,
                    },
                    _ => Effect::Stays,
                },
                "Slice" if op.domain.is_empty() => {
                    let at =
                        |slot: usize| ins.get(slot).copied().flatten().and_then(|v| view.ints(v));
                    let first =
                        at(1) == Some(vec![0]) && at(2) == Some(vec![1]) && at(3) == Some(vec![1]);
                    Effect::ends(first && ins[0].is_some_and(|v| self.is_rows(v)))
                }
                "GatherND" if op.domain.is_empty() => {
                    let at = ins.get(1).copied().flatten();
                    Effect::ends(at.is_some_and(|v| view.constant(v).is_none()))
                }
                "GatherElements" if op.domain.is_empty() => Effect::Stays,
                name if LAYOUT.contains(&name) && op.domain.is_empty() => Effect::Stays,
                name if ELEMENTWISE.contains(&name) && op.domain.is_empty() => Effect::Stays,
                _ if is(op, &FUSED) || self.by_last_axis(n) => Effect::Stays,
                _ => return None,
            };
            if effect == Effect::Stays {
                padded.extend(made());
            }
            if effect != Effect::Ends {
                touched.extend(made());
            }
        }
        Some((touched, attentions))
    }

    /// Whether the axis of positions is the last but one.
    fn is_by_position(&self, v: Option<ValueId>) -> bool {
        let dims = v.and_then(|v| self.view.dims(v));
        let last = |d: &[Sym]| matches!(d, [.., rows, width] if *rows == self.batch[1] && *width != self.batch[1]);
        dims.is_some_and(last)
    }

    /// Whether a softmax is over the last axis.
    fn is_last_axis(&self, n: NodeId) -> bool {
        let axis = self.view.node(n).int("axis", -1);
        let rank = self.view.input(n, 0).and_then(|v| self.view.rank(v));
        axis == -1 || rank.is_some_and(|r| axis == r as i64 - 1)
    }

    /// Whether an operator works along the last axis alone, whatever is in front.
    fn by_last_axis(&self, n: NodeId) -> bool {
        let (node, view) = (self.view.node(n), &self.view);
        let rank = view.input(n, 0).and_then(|v| view.rank(v)).unwrap_or(0);
        let last = |axis: i64| axis == -1 || axis == rank as i64 - 1;
        let along = match &*node.op.op_type {
            "ReduceMean" | "ReduceSum" => view.axes(n).is_some_and(|a| a.len() == 1 && last(a[0])),
            "LogSoftmax" => self.is_last_axis(n),
            _ => is(&node.op, &NORMS) && self.is_last_axis(n),
        };
        along && rank > 2
    }
}

/// What an operator makes of the places of padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// They stay.
    Stays,
    /// They hold the same whatever was there.
    Hides,
    /// They are gone.
    Ends,
}

impl Effect {
    fn ends(ends: bool) -> Effect {
        if ends { Effect::Ends } else { Effect::Stays }
    }
}

/// How far an attention has come whose nodes stand by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Products of queries and keys.
    Scores,
    /// The same, with padding hidden.
    Hidden,
    /// Shares of the values, none at padding.
    Shares,
}

/// What a node makes of such a value.
enum Next {
    Stage(Stage),
    /// Values mixed: hidden states again.
    Mix,
}

impl Stage {
    /// What an operator makes of it; `told` is whether another input says where padding is.
    fn behind(self, op: &OpId, told: bool, last_axis: bool) -> Option<Next> {
        let name = &*op.op_type;
        if !op.domain.is_empty() {
            return None;
        }
        let same = || ELEMENTWISE.contains(&name) || LAYOUT.contains(&name) || name == "IsNaN";
        match (name, self) {
            ("Add" | "Where", Stage::Scores) if told => Some(Next::Stage(Stage::Hidden)),
            ("Softmax", Stage::Hidden) if last_axis => Some(Next::Stage(Stage::Shares)),
            ("MatMul", Stage::Shares) => Some(Next::Mix),
            _ => same().then_some(Next::Stage(self)),
        }
    }
}

fn is(op: &OpId, names: &[(&str, &str)]) -> bool {
    names
        .iter()
        .any(|(domain, name)| *domain == &*op.domain && *name == &*op.op_type)
}
