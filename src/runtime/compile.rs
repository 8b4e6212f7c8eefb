//! From instructions to a program: what is needed, which kernels, what folds, where values live.

use super::exec::{self, Program, Source, Step};
use super::guard::Guard;
use super::kernels::{self, BuildCx, Cx, Kernel};
use super::lower::{Instr, Lowered, Vid};
use super::value::{Value, Weight};
use crate::diag::Diagnostic;
use crate::ir::Node;
use candle_core::Device;
use onnx_graft_kernels::gemm::Precision;
use onnx_graft_kernels::pool::Pool;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Constants up to this size are converted when the plan is made; larger ones stay in the file until a kernel asks.
const SMALL: usize = 64 * 1024;
/// Nodes whose inputs or outputs are larger are not folded.
const FOLD: usize = 1024 * 1024;

/// What compilation needs to know of the plan.
pub(super) struct Setup<'a> {
    pub(super) device: &'a Device,
    pub(super) pool: &'a Arc<Pool>,
}

/// A value as compilation sees it.
enum Known {
    No,
    Yes(Value),
    Bad,
}

/// Compiles a lowered graph. `known` are the inputs whose values are known now, `wanted` the values to compute; findings are
/// collected, so that all of them can be shown together.
pub(super) fn compile(
    setup: &Setup<'_>,
    code: Lowered<'_>,
    known: &FxHashMap<Vid, Value>,
    open: &[Vid],
    wanted: &[Vid],
    findings: &mut Vec<Diagnostic>,
) -> Program {
    let n = code.len();
    let live = live(&code.instrs, wanted, n);
    let read = reads(&code.instrs, &live, wanted, n);
    let mut values: Vec<Known> = (0..n).map(|_| Known::No).collect();
    for v in 0..n {
        if let Some(t) = known.get(&v) {
            values[v] = Known::Yes(t.clone());
        } else if let Some(t) = &code.tensors[v]
            && read[v]
            && !open.contains(&v)
        {
            values[v] = constant(setup, t, &code.names[v], findings);
        }
    }
    let mut made: Vec<Made> = Vec::new();
    for (i, instr) in code.instrs.into_iter().enumerate() {
        if !live[i] {
            continue;
        }
        if let Some(m) = make(setup, instr, &mut values, &read, findings) {
            made.push(m);
        }
    }
    let values: Vec<Option<Value>> = values
        .into_iter()
        .map(|k| match k {
            Known::Yes(v) => Some(v),
            Known::No | Known::Bad => None,
        })
        .collect();
    assign(made, values, &code.inputs, wanted)
}

/// An instruction with its kernel.
struct Made {
    kernel: Box<dyn Kernel>,
    guard: Option<Guard>,
    ins: Vec<Option<Vid>>,
    outs: Vec<Option<Vid>>,
    what: String,
    path: String,
}

fn live(instrs: &[Instr<'_>], wanted: &[Vid], n: usize) -> Vec<bool> {
    let mut needed = vec![false; n];
    for &w in wanted {
        needed[w] = true;
    }
    let mut live = vec![false; instrs.len()];
    for (i, instr) in instrs.iter().enumerate().rev() {
        if instr.outs.iter().flatten().any(|&o| needed[o]) {
            live[i] = true;
            for &v in instr.ins.iter().flatten() {
                needed[v] = true;
            }
        }
    }
    live
}

fn reads(instrs: &[Instr<'_>], live: &[bool], wanted: &[Vid], n: usize) -> Vec<bool> {
    let mut read = vec![false; n];
    for &w in wanted {
        read[w] = true;
    }
    for (instr, _) in instrs.iter().zip(live).filter(|(_, l)| **l) {
        for &v in instr.ins.iter().flatten() {
            read[v] = true;
        }
    }
    read
}

fn constant(
    setup: &Setup<'_>,
    t: &crate::ir::TensorData,
    name: &str,
    findings: &mut Vec<Diagnostic>,
) -> Known {
    let made = Weight::new(t, setup.device).and_then(|w| {
        if t.stored_len() <= SMALL {
            w.value()
        } else {
            Ok(Value::Weight(w))
        }
    });
    match made {
        Ok(v) => Known::Yes(v),
        Err(e) => {
            findings.push(
                Diagnostic::error("compile-constant", format!("`{name}`: {e}"))
                    .help("read the model together with its external data files"),
            );
            Known::Bad
        }
    }
}

/// Builds the kernel of an instruction, and folds it where its inputs are known.
fn make(
    setup: &Setup<'_>,
    mut instr: Instr<'_>,
    values: &mut [Known],
    read: &[bool],
    findings: &mut Vec<Diagnostic>,
) -> Option<Made> {
    let node: &Node = &instr.node;
    let path = place(node, &instr.path);
    let constants: Vec<Option<Value>> = instr
        .ins
        .iter()
        .map(|v| match v.map(|v| &values[v]) {
            Some(Known::Yes(v)) => Some(v.clone()),
            _ => None,
        })
        .collect();
    let graphs = subprograms(setup, &mut instr.graphs, &constants, findings);
    let node: &Node = &instr.node;
    let wants: Vec<bool> = instr
        .outs
        .iter()
        .map(|o| o.is_some_and(|o| read[o]))
        .collect();
    let what = describe(node);
    let Some(maker) = kernels::lookup(&node.op.domain, &node.op.op_type) else {
        findings.push(
            Diagnostic::error(
                "unsupported-op",
                format!("{what}: there is no kernel for {}", node.op),
            )
            .at(path),
        );
        return None;
    };
    let mut cx = BuildCx {
        node,
        opset: instr.opset,
        n_in: instr.ins.len(),
        wants: &wants,
        graphs,
    };
    let kernel = match maker(&mut cx) {
        Ok(k) => k,
        Err(e) => {
            findings.push(Diagnostic::error("unsupported-op", format!("{what}: {e}")).at(path));
            return None;
        }
    };
    let guard = Guard::of(node, instr.opset, instr.outs.len());
    let outs: Vec<Option<Vid>> = instr.outs.iter().map(|o| o.filter(|&o| read[o])).collect();
    let all = instr
        .ins
        .iter()
        .zip(&constants)
        .all(|(v, c)| v.is_none() || c.is_some());
    if all
        && kernel.pure()
        && let Some(folded) = fold(setup, kernel.as_ref(), guard.as_ref(), constants)
    {
        for (o, v) in outs.iter().zip(folded) {
            if let (Some(o), Some(v)) = (o, v) {
                values[*o] = Known::Yes(v);
            }
        }
        return None;
    }
    Some(Made {
        kernel,
        guard,
        ins: instr.ins,
        outs,
        what,
        path,
    })
}

fn fold(
    setup: &Setup<'_>,
    kernel: &dyn Kernel,
    guard: Option<&Guard>,
    constants: Vec<Option<Value>>,
) -> Option<Vec<Option<Value>>> {
    let size: usize = constants.iter().flatten().map(Value::size).sum();
    if size > FOLD && !kernel.is_view() {
        return None;
    }
    let cx = Cx {
        pool: setup.pool,
        device: setup.device,
        random: None,
        precision: Precision::F32,
    };
    // An error here is one at run time, too, unless the node is never reached.
    let outs = exec::run(kernel, guard, &cx, constants).ok()?;
    let small = kernel.is_view() || outs.iter().flatten().map(Value::size).sum::<usize>() <= FOLD;
    small.then_some(outs)
}

fn subprograms(
    setup: &Setup<'_>,
    graphs: &mut Vec<(Box<str>, Lowered<'_>)>,
    constants: &[Option<Value>],
    findings: &mut Vec<Diagnostic>,
) -> Vec<(Box<str>, Program)> {
    let captures: usize = graphs.iter().map(|g| g.1.captures).sum();
    let mut at = constants.len() - captures.min(constants.len());
    graphs
        .drain(..)
        .map(|(name, code)| {
            let formal = code.inputs.len() - code.captures;
            let mut known = FxHashMap::default();
            for (k, &v) in code.inputs[formal..].iter().enumerate() {
                if let Some(Some(c)) = constants.get(at + k) {
                    known.insert(v, c.clone());
                }
            }
            at += code.captures;
            let wanted = code.outputs.clone();
            let open: Vec<Vid> = code.inputs[..formal].to_vec();
            (name, compile(setup, code, &known, &open, &wanted, findings))
        })
        .collect()
}

/// Gives every value a slot; a slot is free again after the last use of its value.
fn assign(made: Vec<Made>, values: Vec<Option<Value>>, inputs: &[Vid], wanted: &[Vid]) -> Program {
    let n = values.len();
    let mut last = vec![usize::MAX; n];
    for (i, m) in made.iter().enumerate() {
        for &v in m.ins.iter().flatten() {
            last[v] = i;
        }
    }
    let mut keep = vec![false; n];
    for &w in wanted {
        keep[w] = true;
    }
    let mut a = Assigner {
        slot: vec![None; n],
        free: Vec::new(),
        next: 0,
        constants: Vec::new(),
        constant_of: vec![None; n],
        values,
    };
    let in_slots = inputs
        .iter()
        .map(|&v| (last[v] != usize::MAX || keep[v]).then(|| a.take(v)))
        .collect();
    let mut steps = Vec::with_capacity(made.len());
    for (i, m) in made.into_iter().enumerate() {
        let dies = |v: Vid| last[v] == i && !keep[v];
        let mut ins = Vec::with_capacity(m.ins.len());
        for (k, v) in m.ins.iter().enumerate() {
            let again = m.ins[k + 1..].contains(v);
            ins.push(v.and_then(|v| a.source(v, dies(v) && !again)));
        }
        let mut dead: Vec<Vid> = m
            .ins
            .iter()
            .flatten()
            .copied()
            .filter(|&v| dies(v))
            .collect();
        dead.sort_unstable();
        dead.dedup();
        for v in dead {
            a.release(v);
        }
        let outs = m.outs.iter().map(|o| o.map(|o| a.take(o))).collect();
        steps.push(Step {
            kernel: m.kernel,
            guard: m.guard,
            ins,
            outs,
            what: m.what,
            path: m.path,
        });
    }
    let outputs = wanted
        .iter()
        .enumerate()
        .filter_map(|(k, &w)| a.source(w, !wanted[k + 1..].contains(&w)))
        .collect();
    Program {
        steps,
        slots: a.next,
        constants: a.constants,
        inputs: in_slots,
        outputs,
    }
}

struct Assigner {
    slot: Vec<Option<u32>>,
    free: Vec<u32>,
    next: usize,
    constants: Vec<Value>,
    constant_of: Vec<Option<u32>>,
    values: Vec<Option<Value>>,
}

impl Assigner {
    fn take(&mut self, v: Vid) -> u32 {
        let s = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next as u32 - 1
        });
        self.slot[v] = Some(s);
        s
    }

    fn release(&mut self, v: Vid) {
        if let Some(s) = self.slot[v].take() {
            self.free.push(s);
        }
    }

    fn source(&mut self, v: Vid, last: bool) -> Option<Source> {
        if let Some(s) = self.slot[v] {
            return Some(if last {
                Source::Last(s)
            } else {
                Source::Slot(s)
            });
        }
        if let Some(c) = self.constant_of[v] {
            return Some(Source::Const(c));
        }
        let value = self.values[v].clone()?;
        self.constants.push(value);
        let c = self.constants.len() as u32 - 1;
        self.constant_of[v] = Some(c);
        Some(Source::Const(c))
    }
}

fn describe(node: &Node) -> String {
    if node.name.is_empty() {
        node.op.to_string()
    } else {
        format!("`{}` ({})", node.name, node.op)
    }
}

/// Where a node is: function calls, and the module that its exporter noted.
fn place(node: &Node, path: &str) -> String {
    let module = node
        .metadata
        .get(crate::ir::contract::exporter::SCOPES)
        .and_then(|s| {
            let parts: Vec<&str> = s.split('\'').skip(1).step_by(2).collect();
            parts
                .len()
                .checked_sub(2)
                .and_then(|i| parts.get(i).copied())
        })
        .filter(|m| !m.is_empty());
    match (path.is_empty(), module) {
        (true, None) => String::new(),
        (true, Some(m)) => format!("module {m}"),
        (false, None) => path.to_owned(),
        (false, Some(m)) => format!("module {m}, {path}"),
    }
}
