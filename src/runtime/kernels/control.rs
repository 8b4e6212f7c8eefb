//! `If`, `Loop`, `Scan`: kernels over programs. Captures come behind the node's own inputs, those of the first subgraph first.

use super::movement::{concat, narrow, pick};
use super::shape::reshaped;
use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, axis_of, plain, size_of};
use crate::ir::{AttrValue, DType, Dim, GraphPort, TensorData};
use crate::runtime::exec::Program;
use crate::runtime::value::{Fault, Host, KResult, Value, Weight};
use bytes::Bytes;

/// `If(condition)`.
struct If {
    yes: Program,
    no: Program,
    /// Whether the then branch is the first attribute of the file.
    yes_first: bool,
}

impl Kernel for If {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let test = ins.ints(0)?;
        let [test] = test[..] else {
            return Err("the condition must have one element".into());
        };
        let mut captures = ins.0.split_off(1);
        let first = if self.yes_first { &self.yes } else { &self.no };
        let second = captures.split_off(first.inputs.len().min(captures.len()));
        let (yes, no) = if self.yes_first {
            (captures, second)
        } else {
            (second, captures)
        };
        let outs = if test != 0 {
            run(&self.yes, cx, yes)?
        } else {
            run(&self.no, cx, no)?
        };
        Ok(outs.into_iter().map(Some).collect())
    }

    fn pure(&self) -> bool {
        false
    }
}

pub(super) fn run(p: &Program, cx: &Cx<'_>, inputs: Vec<Option<Value>>) -> KResult<Vec<Value>> {
    let outs = p.run(cx, inputs).map_err(|d| Fault(d.to_string()))?;
    outs.into_iter().map(plain).collect()
}

fn if_(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let mut graphs = std::mem::take(&mut cx.graphs);
    let (Some(b), Some(a), None) = (graphs.pop(), graphs.pop(), graphs.pop()) else {
        return Err("`then_branch` and `else_branch` are expected".into());
    };
    let yes_first = &*a.0 == "then_branch";
    let (yes, no) = if yes_first { (a.1, b.1) } else { (b.1, a.1) };
    Ok(Box::new(If { yes, no, yes_first }))
}

fn body(cx: &mut BuildCx<'_>) -> KResult<Program> {
    let mut graphs = std::mem::take(&mut cx.graphs);
    match (graphs.pop(), graphs.pop()) {
        (Some((_, body)), None) => Ok(body),
        _ => Err("one `body` is expected".into()),
    }
}

/// What is declared of an output of a body. A size that is not declared counts as none, as in ONNX Runtime.
type Declared = Option<(DType, Vec<usize>)>;

/// What is declared of the outputs of a body.
fn declared(cx: &BuildCx<'_>) -> Vec<Declared> {
    let Some(AttrValue::Graph(g)) = cx.node.attr("body") else {
        return Vec::new();
    };
    let of = |port: &GraphPort| {
        let ty = port.ty.as_ref().or(g.value(port.value).ty.as_ref())?;
        let size = |d: &Dim| match d {
            Dim::Known(n) => usize::try_from(*n).unwrap_or(0),
            _ => 0,
        };
        let dims = ty.dims().unwrap_or(&[]).iter().map(size).collect();
        Some((ty.dtype()?, dims))
    };
    g.outputs().iter().map(of).collect()
}

/// Values of all iterations, joined along a new axis.
fn stacked(cx: &Cx<'_>, parts: Vec<Value>, axis: i64, declared: &Declared) -> KResult<Value> {
    let Some(first) = parts.first() else {
        let Some((dtype, dims)) = declared else {
            return Err("a loop without iterations has scanned outputs of unknown type".into());
        };
        let mut dims = dims.clone();
        dims.insert(axis_of(axis, dims.len() + 1)?, 0);
        let dims: Vec<u64> = dims.into_iter().map(|d| d as u64).collect();
        let nothing = TensorData::raw(*dtype, dims, Bytes::new());
        return Weight::new(&nothing, cx.device)?.value();
    };
    let axis = axis_of(axis, first.dims().len() + 1)?;
    let parts = parts
        .into_iter()
        .map(|v| {
            let mut dims = v.dims().to_vec();
            dims.insert(axis, 1);
            reshaped(cx, v, dims)
        })
        .collect::<KResult<Vec<_>>>()?;
    concat(cx, parts, axis as i64)
}

/// `Loop(limit?, condition?, carried…)`; the body is `(i, condition, carried…) -> (condition, carried…, scanned…)`.
struct Loop {
    body: Program,
    carried: usize,
    declared: Vec<Declared>,
}

impl Kernel for Loop {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let first = |v: Option<Vec<i64>>| v.and_then(|v| v.first().copied());
        let limit = first(ins.ints_opt(0)?).unwrap_or(i64::MAX);
        let mut go = first(ins.ints_opt(1)?).unwrap_or(1) != 0;
        let captures = ins.0.split_off((2 + self.carried).min(ins.0.len()));
        let mut state = ins.0.split_off(2);
        let scans = self.body.outputs.len().saturating_sub(1 + self.carried);
        let mut scanned: Vec<Vec<Value>> = vec![Vec::new(); scans];
        let mut i = 0;
        while go && i < limit {
            let mut inputs = vec![
                Some(Value::from_i64(&[], vec![i])?),
                Some(Value::Host(Host::from_bools(Vec::new(), vec![1])?)),
            ];
            inputs.append(&mut state);
            inputs.extend(captures.iter().cloned());
            let mut outs = run(&self.body, cx, inputs)?.into_iter();
            let test = outs.next().ok_or("the body has no condition")?;
            go = first(Some(test.to_ints()?)).unwrap_or(0) != 0;
            state = outs.by_ref().take(self.carried).map(Some).collect();
            for (list, v) in scanned.iter_mut().zip(outs) {
                list.push(v);
            }
            i += 1;
        }
        let mut outs = state;
        for (list, ty) in scanned.into_iter().zip(&self.declared[1 + self.carried..]) {
            outs.push(Some(stacked(cx, list, 0, ty)?));
        }
        Ok(outs)
    }

    fn pure(&self) -> bool {
        false
    }
}

/// `Scan(states…, sequences…)`, opset 9 and later; the body is `(states…, elements…) -> (states…, elements…)`.
struct Scan {
    body: Program,
    states: usize,
    inputs: usize,
    in_axes: Vec<i64>,
    in_reversed: Vec<i64>,
    out_axes: Vec<i64>,
    out_reversed: Vec<i64>,
    declared: Vec<Declared>,
}

impl Kernel for Scan {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let captures = ins
            .0
            .split_off((self.states + self.inputs).min(ins.0.len()));
        let sequences: Vec<Value> = ins.0.split_off(self.states).into_iter().flatten().collect();
        let mut state = ins.0;
        let mut axes = Vec::new();
        for (k, s) in sequences.iter().enumerate() {
            axes.push(axis_of(at(&self.in_axes, k), s.dims().len())?);
        }
        let lengths: Vec<usize> = sequences
            .iter()
            .zip(&axes)
            .map(|(s, &a)| s.dims()[a])
            .collect();
        let n = lengths.first().copied().unwrap_or(0);
        if lengths.iter().any(|&l| l != n) {
            return Err(Fault(format!("sequences of lengths {lengths:?}")));
        }
        let scans = self.body.outputs.len().saturating_sub(self.states);
        let mut scanned: Vec<Vec<Value>> = vec![Vec::new(); scans];
        for i in 0..n {
            let mut inputs = std::mem::take(&mut state);
            for (k, s) in sequences.iter().enumerate() {
                let from = if at(&self.in_reversed, k) == 1 {
                    n - 1 - i
                } else {
                    i
                };
                let v = narrow(s, axes[k], from, 1)?;
                let mut dims = v.dims().to_vec();
                dims.remove(axes[k]);
                inputs.push(Some(reshaped(cx, v, dims)?));
            }
            inputs.extend(captures.iter().cloned());
            let mut outs = run(&self.body, cx, inputs)?.into_iter();
            state = outs.by_ref().take(self.states).map(Some).collect();
            for (list, v) in scanned.iter_mut().zip(outs) {
                list.push(v);
            }
        }
        let mut outs = state;
        for (k, list) in scanned.into_iter().enumerate() {
            let axis = at(&self.out_axes, k);
            let v = stacked(cx, list, axis, &self.declared[self.states + k])?;
            outs.push(Some(if at(&self.out_reversed, k) == 1 {
                let axis = axis_of(axis, v.dims().len())?;
                let index: Vec<usize> = (0..n).rev().collect();
                pick(cx, v, axis, &index)?
            } else {
                v
            }));
        }
        Ok(outs)
    }

    fn pure(&self) -> bool {
        false
    }
}

fn at(list: &[i64], k: usize) -> i64 {
    list.get(k).copied().unwrap_or(0)
}

fn loop_(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let carried = cx.node.input_count().saturating_sub(2);
    let declared = declared(cx);
    let body = body(cx)?;
    outputs(&body, 1 + carried, &declared)?;
    Ok(Box::new(Loop {
        body,
        carried,
        declared,
    }))
}

fn scan(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let inputs = size_of(cx.need_int("num_scan_inputs")?)?;
    let states = cx
        .node
        .input_count()
        .checked_sub(inputs)
        .filter(|_| cx.opset >= 9)
        .ok_or("fewer inputs than sequences, or an opset below 9")?;
    let declared = declared(cx);
    let body = body(cx)?;
    outputs(&body, states, &declared)?;
    let list = |name: &str| cx.ints(name).unwrap_or_default();
    Ok(Box::new(Scan {
        states,
        inputs,
        in_axes: list("scan_input_axes"),
        in_reversed: list("scan_input_directions"),
        out_axes: list("scan_output_axes"),
        out_reversed: list("scan_output_directions"),
        body,
        declared,
    }))
}

/// Whether a body has the outputs that the node needs.
fn outputs(body: &Program, at_least: usize, declared: &[Declared]) -> KResult<()> {
    let found = body.outputs.len();
    if found < at_least || declared.len() != found {
        return Err(Fault(format!(
            "the body has {found} outputs, expected at least {at_least}"
        )));
    }
    Ok(())
}

pub(super) const KERNELS: &[Entry] = &[("", "If", if_), ("", "Loop", loop_), ("", "Scan", scan)];
