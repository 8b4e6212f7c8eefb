//! Where a quantized weight is stored: its codes, scales and zero points in the graph, and how other ones take their place.

use super::coded::{Code, Coded, Group, Zeros};
use crate::analyze::view::tensor;
use crate::diag::Diagnostic;
use crate::ir::{DType, Graph, NodeId, TensorData, Use, Val, ValueId};
use crate::ops::{FP4, NF4};
use crate::rewrite::{Patch, Uses};
use crate::select::{Layout, WeightForm, WeightUse};
use rustc_hash::{FxHashMap, FxHashSet};

/// A constant that a weight is made of, and the slots that read it for this weight.
#[derive(Clone, Debug)]
struct Part {
    /// What the slots read.
    value: ValueId,
    /// What holds the constant: the same, but for identities in between.
    held: ValueId,
    uses: Vec<Use>,
}

/// A weight that is stored as codes.
#[derive(Debug)]
pub(super) struct Stored {
    /// What it is called in reports.
    pub(super) form: String,
    /// Shape of the floats that it stands for.
    pub(super) dims: Box<[u64]>,
    pub(super) coded: Coded,
    codes: Part,
    scales: Part,
    zeros: Option<Part>,
    /// How many zero points of a row are filled up to a byte.
    zeros_in_row: usize,
    /// Nodes between the constants and what the multiplication reads, in order, and what they end in.
    chain: Vec<NodeId>,
    end: Option<ValueId>,
}

/// What is read of the graph before it is understood.
struct Found {
    codes: ValueId,
    scales: ValueId,
    zeros: Option<ValueId>,
    /// Slots of codes, scales and zero points.
    slots: [u32; 3],
    /// The nodes that read each of them.
    readers: [Vec<NodeId>; 3],
    chain: Vec<NodeId>,
    end: Option<ValueId>,
}

fn unread(name: &str, what: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::error(
        "weight-form",
        format!("the weight of `{name}` is quantized in a form that does not merge: {what}"),
    )
    .help("keep the adapter attached, or merge into the model before it is quantized")
}

impl Stored {
    /// Finds how the weight of a module is stored. `nodes` are the module's.
    pub(super) fn open(
        graph: &Graph,
        weight: &WeightUse,
        nodes: &FxHashSet<NodeId>,
        name: &str,
    ) -> Result<Self, Diagnostic> {
        let wrong = |what: &str| unread(name, what);
        let core = cores(graph, weight, nodes).first().copied();
        let core = core.ok_or_else(|| wrong("no node of the module reads it"))?;
        let found = match &weight.form {
            WeightForm::Dequantized { .. } => Found::dequantized(graph, weight),
            WeightForm::Integer { .. } => Found::integer(graph, core, (weight, nodes)),
            WeightForm::Float | WeightForm::NBits { .. } | WeightForm::Bnb4 { .. } => {
                Found::fused(graph, weight, nodes, [1, 2, 3])
            }
        };
        let found = found.ok_or_else(|| wrong("its scales are not those of it alone"))?;
        Self::made(graph, found, &weight.form, name)
    }

    /// What was found, as codes with their scales.
    fn made(
        graph: &Graph,
        found: Found,
        form: &WeightForm,
        name: &str,
    ) -> Result<Self, Diagnostic> {
        let wrong = |what: &str| unread(name, what);
        let held = |v: ValueId| {
            let t = tensor(graph, behind(graph, v)).filter(|t| t.bytes().is_some());
            t.ok_or_else(|| wrong("its codes or scales are no constants"))
        };
        let (codes, scales) = (held(found.codes)?, held(found.scales)?);
        let zeros = found.zeros.map(held).transpose()?;
        let first = found.readers[0].first();
        let id = *first.ok_or_else(|| wrong("no node reads its codes"))?;
        let read = Reading {
            graph,
            id,
            codes,
            scales,
            zeros,
        };
        let made = match form {
            WeightForm::NBits { .. } => read.nbits(),
            WeightForm::Bnb4 { .. } => read.bnb4(),
            WeightForm::Float | WeightForm::Dequantized { .. } | WeightForm::Integer { .. } => {
                read.linear()
            }
        };
        let made = made.filter(|(coded, ..)| coded.fits());
        let (coded, dims, zeros_in_row) = made.ok_or_else(|| wrong("its shapes do not fit"))?;
        let part = |value: ValueId, slot: usize| {
            let uses = found.readers[slot]
                .iter()
                .map(|n| Use::Input(*n, found.slots[slot]));
            let (uses, held) = (uses.collect(), behind(graph, value));
            Part { value, held, uses }
        };
        let blocks = matches!(form, WeightForm::NBits { .. });
        Ok(Stored {
            form: named(&coded, &graph.node(id).op.op_type, blocks),
            dims,
            coded,
            codes: part(found.codes, 0),
            scales: part(found.scales, 1),
            zeros: found.zeros.map(|v| part(v, 2)),
            zeros_in_row,
            chain: found.chain,
            end: found.end,
        })
    }

    /// Whether a value is a constant vector of codes that a node dequantizes.
    pub(super) fn is_coded(graph: &Graph, bias: ValueId) -> bool {
        let made = graph.producer(bias).map(|(n, _)| graph.node(n));
        made.is_some_and(|n| n.op.is_onnx("DequantizeLinear"))
    }

    /// Finds how the bias of a module is stored, which [`is_coded`](Self::is_coded).
    pub(super) fn open_bias(graph: &Graph, bias: ValueId, name: &str) -> Result<Self, Diagnostic> {
        let weight = WeightUse {
            value: bias,
            read: bias,
            layout: Layout::OutIn,
            bias: None,
            form: WeightForm::Float,
        };
        let wrong = || unread(name, "its bias");
        let found = Found::dequantized(graph, &weight).ok_or_else(wrong)?;
        Self::made(graph, found, &weight.form, name)
    }

    /// The floats that the weight stands for.
    pub(super) fn floats(&self) -> TensorData {
        TensorData::from_f32(self.dims.clone(), &self.coded.floats())
    }

    /// Puts the codes, scales and zero points as they are now in the place of the former ones, for this module alone.
    pub(super) fn write(
        &self,
        patch: &mut Patch,
        graph: &Graph,
        nodes: &FxHashSet<NodeId>,
        name: &str,
    ) -> Result<(), Diagnostic> {
        let shared = self
            .end
            .is_some_and(|end| !alone(graph, end, nodes, &self.chain));
        let mut instead: FxHashMap<ValueId, Val> = FxHashMap::default();
        for (part, new) in self
            .renewed(graph)
            .ok_or_else(|| unread(name, "its shapes"))?
        {
            let inside = part.uses.iter().all(|u| self.chain.contains(&u.node()));
            let uses = graph.uses(part.value);
            let whole = uses.iter().all(|u| part.uses.contains(u)) && !graph.is_output(part.value);
            let initializer = graph.value(part.value).tensor.is_some();
            if whole && initializer && !(shared && inside) {
                patch.set_tensor(part.value, new);
                continue;
            }
            let own = format!("{name}/{}", graph.name_of(part.value));
            let copy = patch.builder().initializer(&own, new);
            if shared && inside {
                instead.insert(part.value, copy);
            } else {
                patch.redirect(part.value, copy, Uses::Only(part.uses.clone()));
            }
        }
        let Some(end) = self.end.filter(|_| shared && !instead.is_empty()) else {
            return Ok(());
        };
        for n in &self.chain {
            let find = |v: ValueId| instead.get(&v).copied().unwrap_or(Val::Old(v));
            let copies = patch.builder().copy_node(graph, *n, find);
            instead.extend(copies);
        }
        let uses = graph.uses(end).into_iter();
        let uses = uses.filter(|u| nodes.contains(&u.node())).collect();
        if let Some(copy) = instead.get(&end) {
            patch.redirect(end, *copy, Uses::Only(uses));
        }
        Ok(())
    }

    /// Puts floats in the place of a bias of codes, for this module alone.
    pub(super) fn write_floats(
        &self,
        patch: &mut Patch,
        graph: &Graph,
        nodes: &FxHashSet<NodeId>,
        (new, name): (TensorData, &str),
    ) {
        let Some(end) = self.end else { return };
        let own = format!("{name}/{}", graph.name_of(end));
        let floats = patch.builder().initializer(&own, new);
        let uses = graph.uses(end).into_iter();
        let uses = uses.filter(|u| nodes.contains(&u.node())).collect();
        patch.redirect(end, floats, Uses::Only(uses));
    }

    /// The constants that are other ones now.
    fn renewed(&self, graph: &Graph) -> Option<Vec<(&Part, TensorData)>> {
        let mut out = Vec::new();
        let mut put = |part, old: &TensorData, new: TensorData| {
            if old.bytes() != new.bytes() {
                out.push((part, new));
            }
        };
        let coded = &self.coded;
        let old = tensor(graph, self.codes.held)?;
        let bytes = coded.bytes.clone().into();
        put(
            &self.codes,
            old,
            TensorData::raw(old.dtype, old.dims.clone(), bytes),
        );
        let old = tensor(graph, self.scales.held)?;
        let scales = TensorData::from_floats(old.dtype, old.dims.clone(), &coded.scales)?;
        put(&self.scales, old, scales);
        let (Some(part), zeros) = (&self.zeros, &coded.zeros) else {
            return Some(out);
        };
        let old = tensor(graph, part.held)?;
        let new = match zeros {
            Zeros::Fixed(_) => return Some(out),
            Zeros::Floats(z, _) => TensorData::from_floats(old.dtype, old.dims.clone(), z)?,
            Zeros::Codes(z, code) => {
                let mut bytes = old.bytes()?.to_vec();
                for (g, z) in z.iter().enumerate() {
                    code.put(&mut bytes, packed(*code, g, self.zeros_in_row), *z as i32);
                }
                TensorData::raw(old.dtype, old.dims.clone(), bytes.into())
            }
        };
        put(part, old, new);
        Some(out)
    }
}

/// Where the g-th zero point is, of rows that are filled up to a byte.
fn packed(code: Code, g: usize, in_row: usize) -> usize {
    let per_byte = (8 / code.bits()).max(1);
    g / in_row * in_row.next_multiple_of(per_byte) + g % in_row
}

/// The nodes of a module that read its weight.
pub(super) fn cores(graph: &Graph, weight: &WeightUse, nodes: &FxHashSet<NodeId>) -> Vec<NodeId> {
    let read = graph.uses(weight.read).into_iter().map(Use::node);
    let mut out: Vec<NodeId> = read.filter(|n| nodes.contains(n)).collect();
    out.dedup();
    out
}

/// Whether nothing but these nodes reads what a chain of nodes makes.
fn alone(graph: &Graph, end: ValueId, nodes: &FxHashSet<NodeId>, chain: &[NodeId]) -> bool {
    let made = chain.iter().flat_map(|n| graph.node_outputs(*n)).flatten();
    made.chain([end]).all(|v| {
        let known = |n: NodeId| chain.contains(&n) || (v == end && nodes.contains(&n));
        !graph.is_output(v) && graph.uses(v).iter().all(|u| known(u.node()))
    })
}

impl Found {
    /// Codes, scales and zero points are inputs of the nodes that multiply.
    fn fused(
        graph: &Graph,
        weight: &WeightUse,
        nodes: &FxHashSet<NodeId>,
        slots: [u32; 3],
    ) -> Option<Self> {
        let readers = cores(graph, weight, nodes);
        let at = |n: &NodeId, slot: u32| graph.input(*n, slot as usize);
        let first = readers.first()?;
        let [codes, scales, zeros] = slots.map(|slot| at(first, slot));
        let same = |n: &NodeId| slots.map(|slot| at(n, slot)) == [codes, scales, zeros];
        readers.iter().all(same).then_some(())?;
        Some(Found {
            codes: codes?,
            scales: scales?,
            zeros,
            slots,
            readers: [readers.clone(), readers.clone(), readers],
            chain: Vec::new(),
            end: None,
        })
    }

    /// `DequantizeLinear` in front, perhaps with a transpose or a cast behind it.
    fn dequantized(graph: &Graph, weight: &WeightUse) -> Option<Self> {
        let mut chain = Vec::new();
        let mut at = weight.read;
        loop {
            let (node, _) = graph.producer(at)?;
            chain.push(node);
            let first = graph.input(node, 0)?;
            if graph.node(node).op.is_onnx("DequantizeLinear") {
                chain.reverse();
                return Some(Found {
                    codes: first,
                    scales: graph.input(node, 1)?,
                    zeros: graph.input(node, 2),
                    slots: [0, 1, 2],
                    readers: [vec![node], vec![node], vec![node]],
                    chain,
                    end: Some(weight.read),
                });
            }
            at = first;
        }
    }

    /// Integer products, whose scale a `Mul` behind them has.
    fn integer(
        graph: &Graph,
        core: NodeId,
        (weight, nodes): (&WeightUse, &FxHashSet<NodeId>),
    ) -> Option<Self> {
        match &*graph.node(core).op.op_type {
            "DynamicQuantizeMatMul" => return Self::fused(graph, weight, nodes, [1, 2, 3]),
            "MatMulIntegerToFloat" => return Self::fused(graph, weight, nodes, [1, 3, 5]),
            _ => {}
        }
        let sum = graph.output(core, 0)?;
        let reader = |v: ValueId| match graph.uses(v)[..] {
            [u] => Some(u.node()),
            _ => None,
        };
        let float = graph.output(reader(sum)?, 0)?;
        let outer = reader(float).filter(|n| graph.node(*n).op.is_onnx("Mul"))?;
        let both = graph.node_inputs(outer).into_iter().flatten();
        let end = both.into_iter().find(|v| *v != float)?;
        let (inner, _) = graph.producer(end)?;
        if !graph.node(inner).op.is_onnx("Mul") {
            return None;
        }
        let slot = (0..2).find(|slot| {
            let v = graph.input(inner, *slot as usize);
            v.is_some_and(|v| tensor(graph, v).is_some())
        })?;
        let fused = Self::fused(graph, weight, nodes, [1, 1, 3])?;
        // A module with several calls has a product of scales for each.
        (fused.readers[0].len() == 1).then_some(())?;
        Some(Found {
            scales: graph.input(inner, slot as usize)?,
            slots: [1, slot, 3],
            readers: [vec![core], vec![inner], vec![core]],
            chain: vec![inner],
            end: Some(end),
            ..fused
        })
    }
}

/// The value itself, behind identities.
fn behind(graph: &Graph, mut v: ValueId) -> ValueId {
    while let Some((n, _)) = graph.producer(v)
        && graph.node(n).op.is_onnx("Identity")
        && let Some(x) = graph.input(n, 0)
    {
        v = x;
    }
    v
}

/// The constants of a weight, and the node that says how to read them.
struct Reading<'g> {
    graph: &'g Graph,
    id: NodeId,
    codes: &'g TensorData,
    scales: &'g TensorData,
    zeros: Option<&'g TensorData>,
}

/// A weight, the shape of its floats, and how many zero points of a row are filled up.
type Read = (Coded, Box<[u64]>, usize);

impl Reading<'_> {
    fn size(&self, name: &str, default: i64) -> Option<usize> {
        let given = self.graph.node(self.id).int(name, default);
        usize::try_from(given).ok()
    }

    fn coded(&self, shape: [usize; 2], code: Code, group: Group, zeros: Zeros) -> Option<Coded> {
        Some(Coded {
            shape,
            row: shape[1],
            code,
            bytes: self.codes.bytes()?.to_vec(),
            group,
            scales: self.scales.to_f32()?,
            scale_type: self.scales.dtype,
            zeros,
            keeps_scales: false,
        })
    }

    /// `MatMulNBits`: `[N, blocks, bytes]`.
    fn nbits(&self) -> Option<Read> {
        let [k, n] = [self.size("K", 0)?, self.size("N", 0)?];
        let (bits, block) = (self.size("bits", 4)?, self.size("block_size", 0)?);
        if !matches!(bits, 1 | 2 | 4 | 8) || block == 0 || k == 0 {
            return None;
        }
        let blocks = k.div_ceil(block);
        let code = Code::Int {
            bits,
            signed: false,
        };
        let count = n.checked_mul(blocks)?;
        let zeros = match self.zeros {
            None => Zeros::Fixed(2f32.powi(bits as i32 - 1)),
            Some(z) if z.dtype.is_float() => Zeros::Floats(z.to_f32()?, z.dtype),
            Some(z) => {
                let bytes = z.bytes()?;
                let held = n.checked_mul((blocks.checked_mul(bits)?).div_ceil(8))?;
                if z.dtype != DType::Uint8 || bytes.len() != held {
                    return None;
                }
                let zero = |g: usize| code.get(&bytes, packed(code, g, blocks)) as f32;
                Zeros::Codes((0..count).map(zero).collect(), code)
            }
        };
        let group = match self.graph.input(self.id, 4) {
            None => Group::RowBlock(block),
            Some(order) => ordered(tensor(self.graph, order)?, k, blocks)?,
        };
        let mut coded = self.coded([n, k], code, group, zeros)?;
        coded.row = blocks.checked_mul(block)?;
        Some((coded, [n as u64, k as u64].into(), blocks))
    }

    /// `MatMulBnb4`: elements of `[N, K]` in their order.
    fn bnb4(&self) -> Option<Read> {
        let [k, n] = [self.size("K", 0)?, self.size("N", 0)?];
        let table = match self.size("quant_type", 1)? {
            0 => &FP4,
            1 => &NF4,
            _ => return None,
        };
        let group = Group::Flat(self.size("block_size", 0)?);
        let coded = self.coded([n, k], Code::Table(table), group, Zeros::Fixed(0.0))?;
        Some((coded, [n as u64, k as u64].into(), 1))
    }

    /// Codes in the shape of the weight: `DequantizeLinear`, and products of integers, whose scales are those of columns.
    fn linear(&self) -> Option<Read> {
        let opens = self.graph.node(self.id).op.is_onnx("DequantizeLinear");
        let dims: Option<Vec<usize>> = self
            .codes
            .dims
            .iter()
            .map(|d| usize::try_from(*d).ok())
            .collect();
        let dims = dims?;
        let (first, last) = match dims[..] {
            [n] => (1, n),
            [first, .., last] => (first, last),
            [] => return None,
        };
        let count = |t: &TensorData| usize::try_from(t.count()?).ok();
        let scales = count(self.scales)?;
        let rank = dims.len() as i64;
        let (axis, block) = if opens {
            let axis = self.graph.node(self.id).int("axis", 1);
            (
                if axis < 0 { axis + rank } else { axis },
                self.size("block_size", 0)?,
            )
        } else {
            (rank - 1, 0)
        };
        let all = count(self.codes)?;
        let by_rows = [first, all.checked_div(first)?];
        let by_last = [all.checked_div(last)?, last];
        let (shape, group) = match (axis, block) {
            (_, 0) if scales == 1 => (by_rows, Group::One),
            (0, 0) if rank > 1 => (by_rows, Group::Row),
            (0, of) if rank > 1 => (by_rows, Group::ColumnBlock(of)),
            (a, 0) if a + 1 == rank => (by_last, Group::Column),
            (a, of) if a + 1 == rank => (by_last, Group::RowBlock(of)),
            _ => return None,
        };
        let zeros = match self.zeros {
            None => Zeros::Fixed(0.0),
            Some(z) => {
                let (code, bytes, n) = (Code::of(z.dtype)?, z.bytes()?, count(z)?);
                let each: Vec<f32> = (0..n).map(|g| code.get(&bytes, g) as f32).collect();
                match each[..] {
                    [one] if scales > 1 => Zeros::Fixed(one),
                    _ => Zeros::Codes(each, code),
                }
            }
        };
        let in_row = scales.max(1);
        let coded = self.coded(shape, Code::of(self.codes.dtype)?, group, zeros)?;
        Some((coded, self.codes.dims.clone(), in_row))
    }
}

/// Groups by the numbers that columns have.
fn ordered(order: &TensorData, columns: usize, groups: usize) -> Option<Group> {
    let order = order.to_i64()?;
    let mut lists = vec![Vec::new(); groups];
    for (c, g) in order.get(..columns)?.iter().enumerate() {
        let list = lists.get_mut(usize::try_from(*g).ok()?)?;
        list.push(u32::try_from(c).ok()?);
    }
    Some(Group::Ordered(lists.into()))
}

/// What a form is called in reports.
fn named(coded: &Coded, op: &str, table: bool) -> String {
    let groups = match &coded.group {
        Group::One => "with one scale".to_owned(),
        Group::Row => "with a scale for each row".to_owned(),
        Group::Column => "with a scale for each column".to_owned(),
        Group::Ordered(_) => "in blocks by g_idx".to_owned(),
        Group::RowBlock(of) | Group::ColumnBlock(of) | Group::Flat(of) => {
            format!("in blocks of {of}")
        }
    };
    let kind = match coded.code {
        Code::Table(t) if t == &FP4 => "fp4".to_owned(),
        Code::Table(_) => "nf4".to_owned(),
        Code::Int { bits, signed } if !table => {
            format!("{}int{bits}", if signed { "" } else { "u" })
        }
        Code::Int { bits, .. } => format!("{bits} bits"),
    };
    format!("{op}, {kind} {groups}")
}
