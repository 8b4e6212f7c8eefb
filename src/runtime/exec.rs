//! A compiled program: steps over slots.

use super::guard::Guard;
use super::kernels::{Cx, Ins, Kernel, Outs};
use super::value::{Fault, KResult, Value};
use crate::budget::{self, Exceeded};
use crate::diag::Diagnostic;
use onnx_graft_kernels::pool::NoMemory;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Where an operand comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A slot that is read again later.
    Slot(u32),
    /// A slot that dies here: the kernel owns the value.
    Last(u32),
    /// A constant.
    Const(u32),
}

/// One kernel call.
pub(crate) struct Step {
    pub(crate) kernel: Box<dyn Kernel>,
    pub(crate) guard: Option<Guard>,
    pub(crate) ins: Vec<Option<Source>>,
    pub(crate) outs: Vec<Option<u32>>,
    /// Operator and node, for errors.
    pub(crate) what: String,
    /// Where the node is.
    pub(crate) path: String,
}

/// Runs a kernel, if there is memory for what it makes.
pub(super) fn run(
    kernel: &dyn Kernel,
    guard: Option<&Guard>,
    cx: &Cx<'_>,
    ins: Vec<Option<Value>>,
) -> KResult<Outs> {
    if let Some(guard) = guard {
        guard.check(&ins, cx)?;
    }
    // A buffer that the system has no memory for unwinds up to here. Nothing is left half done: a kernel owns what it makes.
    let done = catch_unwind(AssertUnwindSafe(|| kernel.run(cx, Ins(ins))));
    done.unwrap_or_else(|why| match why.downcast::<NoMemory>() {
        Ok(short) => {
            let bytes = budget::bytes_of([short.elements as u64], size_of::<f32>() as u64);
            let what = "the system has no memory left; a buffer";
            Err(Fault(Exceeded::new(what, bytes).to_string()))
        }
        Err(other) => resume_unwind(other),
    })
}

/// Steps in execution order.
#[derive(Default)]
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    pub(crate) slots: usize,
    pub(crate) constants: Vec<Value>,
    /// Slots of the inputs; `None` where nothing reads the input.
    pub(crate) inputs: Vec<Option<u32>>,
    pub(crate) outputs: Vec<Source>,
}

impl Program {
    /// Executes the steps. `inputs` are in the order of the program's inputs; those that nothing reads may be absent.
    pub(crate) fn run(
        &self,
        cx: &Cx<'_>,
        inputs: Vec<Option<Value>>,
    ) -> Result<Vec<Value>, Diagnostic> {
        let mut slots: Vec<Option<Value>> = vec![None; self.slots];
        for (slot, value) in self.inputs.iter().zip(inputs) {
            if let Some(s) = slot {
                slots[*s as usize] = value;
            }
        }
        for step in &self.steps {
            let ins: Vec<Option<Value>> = step
                .ins
                .iter()
                .map(|s| s.and_then(|s| self.fetch(s, &mut slots)))
                .collect();
            let shapes: Vec<Shape> = ins.iter().map(|v| Shape::of(v.as_ref())).collect();
            let outs = run(step.kernel.as_ref(), step.guard.as_ref(), cx, ins)
                .map_err(|e| step.fault(&e, &shapes))?;
            for (slot, value) in step.outs.iter().zip(outs) {
                if let Some(s) = slot {
                    slots[*s as usize] = value;
                }
            }
        }
        let missing = || Diagnostic::error("run-output", "a requested value was not computed");
        self.outputs
            .iter()
            .map(|s| self.fetch(*s, &mut slots).ok_or_else(missing))
            .collect()
    }

    fn fetch(&self, source: Source, slots: &mut [Option<Value>]) -> Option<Value> {
        match source {
            Source::Slot(s) => slots[s as usize].clone(),
            Source::Last(s) => slots[s as usize].take(),
            Source::Const(c) => self.constants.get(c as usize).cloned(),
        }
    }
}

/// Type and shape of an operand, noted before the kernel consumes it. The first dimensions only: no allocation on the way.
struct Shape {
    dtype: Option<crate::ir::DType>,
    rank: usize,
    dims: [usize; 6],
}

impl Shape {
    fn of(v: Option<&Value>) -> Self {
        let mut dims = [0; 6];
        let Some(v) = v else {
            return Shape {
                dtype: None,
                rank: 0,
                dims,
            };
        };
        for (o, d) in dims.iter_mut().zip(v.dims()) {
            *o = *d;
        }
        Shape {
            dtype: Some(v.dtype()),
            rank: v.dims().len(),
            dims,
        }
    }
}

impl Step {
    fn fault(&self, e: &Fault, shapes: &[Shape]) -> Diagnostic {
        let list: Vec<String> = shapes
            .iter()
            .map(|s| match s.dtype {
                None => "absent".to_owned(),
                Some(t) => format!("{t}{:?}", &s.dims[..s.rank.min(6)]),
            })
            .collect();
        Diagnostic::error("run-node", format!("{}: {e}", self.what))
            .at(self.path.clone())
            .note(format!("inputs: {}", list.join(", ")))
    }
}
