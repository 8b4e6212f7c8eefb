//! One operator, a loss, its gradient from the pass and from differences.

use onnx_graft::infer::Verified;
use onnx_graft::ir::contract;
use onnx_graft::ir::{Attr, Builder, DType, Dim, Model, OpId, TensorData, Type, Val};
use onnx_graft::rewrite::Pipeline;
use onnx_graft::rewrite::passes::gradient::{GradientPass, Outputs, Unreached};
use onnx_graft::runtime::{CompileOptions, Feeds, Plan, Value};

/// An input of the operator.
pub(crate) enum In {
    /// Floats in a range, by which the loss is differentiated.
    Wanted(Vec<usize>, f32, f32),
    /// Floats by which the loss is differentiated, in the form of `i8` codes with this scale and zero point.
    Code(Vec<usize>, f32, i8),
    /// Floats in a range that stay as they are.
    Frozen(Vec<usize>, f32, f32),
    /// A constant.
    Is(TensorData),
    /// Absent.
    None,
}

/// One operator in one form.
pub(crate) struct Case {
    pub(crate) domain: &'static str,
    pub(crate) op: &'static str,
    pub(crate) opset: i64,
    pub(crate) ins: Vec<In>,
    pub(crate) attrs: Vec<(&'static str, Attr)>,
    /// Number of outputs, and those that the loss depends on.
    pub(crate) outs: usize,
    pub(crate) weighed: Vec<usize>,
    /// Whether the case holds with inputs of unknown sizes, too.
    pub(crate) dynamic: bool,
    pub(crate) tolerance: f32,
}

/// Step of the central differences: with values and losses around one, rounding (1e-7 / step) and curvature (step² / 6) both stay
/// below 1e-4 for functions with derivatives of a few units.
const STEP: f32 = 1e-2;
/// Ten times that, relative to the gradient where it is larger than one.
const TOLERANCE: f32 = 1e-3;

/// A case of `Op` or `domain::Op`, at opset 20.
pub(crate) fn op(name: &'static str) -> Case {
    let (domain, op) = name.rsplit_once("::").unwrap_or(("", name));
    Case {
        domain,
        op,
        opset: 20,
        ins: Vec::new(),
        attrs: Vec::new(),
        outs: 1,
        weighed: vec![0],
        dynamic: true,
        tolerance: TOLERANCE,
    }
}

impl Case {
    /// A differentiated input between -1.5 and 1.5.
    pub(crate) fn x(self, dims: &[usize]) -> Self {
        self.within(dims, -1.5, 1.5)
    }

    /// A differentiated input in a range.
    pub(crate) fn within(mut self, dims: &[usize], low: f32, high: f32) -> Self {
        self.ins.push(In::Wanted(dims.to_vec(), low, high));
        self
    }

    /// A differentiated input of up to ten steps of this size, as `i8` codes.
    pub(crate) fn code(mut self, dims: &[usize], scale: f32, zero: i8) -> Self {
        self.ins.push(In::Code(dims.to_vec(), scale, zero));
        self
    }

    /// A frozen input between -1 and 1.
    pub(crate) fn frozen(mut self, dims: &[usize]) -> Self {
        self.ins.push(In::Frozen(dims.to_vec(), -1.0, 1.0));
        self
    }

    /// A vector of integers.
    pub(crate) fn ints(self, data: &[i64]) -> Self {
        self.is(TensorData::ints(data))
    }

    /// A tensor of integers.
    pub(crate) fn grid(self, dims: &[u64], data: &[i64]) -> Self {
        self.is(TensorData::from_i64(dims, data))
    }

    /// A tensor of truth values.
    pub(crate) fn bools(self, dims: &[u64], data: &[u8]) -> Self {
        self.is(TensorData::raw(DType::Bool, dims, data.to_vec().into()))
    }

    /// A constant.
    pub(crate) fn is(mut self, tensor: TensorData) -> Self {
        self.ins.push(In::Is(tensor));
        self
    }

    /// An absent input.
    pub(crate) fn none(mut self) -> Self {
        self.ins.push(In::None);
        self
    }

    /// An attribute.
    pub(crate) fn set(mut self, name: &'static str, value: impl Into<Attr>) -> Self {
        self.attrs.push((name, value.into()));
        self
    }

    /// The opset.
    pub(crate) fn at(mut self, opset: i64) -> Self {
        self.opset = opset;
        self
    }

    /// Outputs, all of which the loss depends on.
    pub(crate) fn outs(mut self, n: usize) -> Self {
        (self.outs, self.weighed) = (n, (0..n).collect());
        self
    }

    /// Outputs, of which the loss depends on the first only.
    pub(crate) fn first_of(mut self, n: usize) -> Self {
        self.outs = n;
        self
    }

    /// The rule needs known sizes.
    pub(crate) fn fixed(mut self) -> Self {
        self.dynamic = false;
        self
    }
}

/// Numbers that look random and depend on nothing else than seed and position.
pub(crate) fn noise(seed: u64, n: usize, low: f32, high: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            low + (high - low) * ((state >> 40) as f32 / (1u64 << 24) as f32)
        })
        .collect()
}

/// The wanted inputs: name, sizes and values.
fn wanted(case: &Case) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let wanted = case.ins.iter().enumerate().filter_map(|(i, input)| {
        let (dims, low, high) = match input {
            In::Wanted(dims, low, high) => (dims, low, high),
            In::Code(dims, scale, _) => (dims, &(-10.0 * scale), &(10.0 * scale)),
            In::Frozen(..) | In::Is(_) | In::None => return None,
        };
        let values = noise(i as u64 + 11, dims.iter().product(), *low, *high);
        Some((format!("x{i}"), dims.clone(), values))
    });
    wanted.collect()
}

fn inputs(b: &Builder, case: &Case, known: bool) -> Vec<Option<Val>> {
    let mut out = Vec::new();
    for (i, input) in case.ins.iter().enumerate() {
        let name = format!("x{i}");
        out.push(match input {
            In::Wanted(dims, ..) | In::Code(dims, ..) => {
                let dim = |(axis, &n): (usize, &usize)| {
                    if known {
                        Dim::Known(n as i64)
                    } else {
                        Dim::Symbol(format!("d{i}_{axis}").into())
                    }
                };
                let dims: Vec<Dim> = dims.iter().enumerate().map(dim).collect();
                let x = b.graph_input(&name, Type::tensor(DType::Float, dims));
                Some(match input {
                    In::Code(_, scale, zero) => {
                        let zero = vec![*zero as u8].into();
                        let zero = b.constant(TensorData::raw(DType::Int8, [], zero));
                        b.op("QuantizeLinear", &[x, b.scalar(*scale), zero], &[])
                    }
                    _ => x,
                })
            }
            In::Frozen(dims, low, high) => {
                let values = noise(i as u64 + 31, dims.iter().product(), *low, *high);
                let dims: Vec<u64> = dims.iter().map(|&n| n as u64).collect();
                Some(b.initializer(&name, TensorData::from_f32(dims, &values)))
            }
            In::Is(tensor) => Some(b.initializer(&name, tensor.clone())),
            In::None => None,
        });
    }
    out
}

/// `Σ out · cos(1.7·i + 0.3)` over the elements of the outputs.
fn loss(b: &Builder, case: &Case, outs: &[Val]) -> Val {
    let terms = case.weighed.iter().map(|&slot| {
        let out = outs[slot];
        let count = b.unary("Size", out);
        let range = b.op("Range", &[b.int(0), count, b.int(1)], &[]);
        let range = b.cast(range, DType::Float);
        let angle = b.add(b.mul(range, b.scalar(1.7)), b.scalar(0.3));
        let weights = b.reshape(b.unary("Cos", angle), b.shape(out));
        let weighed = b.mul(b.cast(out, DType::Float), weights);
        b.op("ReduceSum", &[weighed], &[("keepdims", 0i64.into())])
    });
    terms.reduce(|a, t| b.add(a, t)).expect("an output")
}

/// The operator and a loss over its outputs.
pub(crate) fn model(case: &Case, known: bool) -> Model {
    let b = Builder::new(case.opset);
    let ins = inputs(&b, case, known);
    let id = OpId::new(case.domain, case.op);
    let outs = b.node_n(id, &ins, &case.attrs, case.outs);
    let loss = loss(&b, case, &outs);
    let ty = Type::tensor(DType::Float, []);
    Model {
        graph: b
            .finish_graph("g", &[(loss, "loss", ty)])
            .expect("fresh names"),
        opset_imports: vec![
            ("".into(), case.opset),
            ("com.microsoft".into(), 1),
            ("onnx_graft".into(), 1),
            ("ai.onnx.preview.training".into(), 1),
            ("ai.onnx.ml".into(), 1),
        ],
        ir_version: 10,
        ..Model::default()
    }
}

/// The model with the gradients of all wanted inputs.
pub(crate) fn differentiated(case: &Case, known: bool) -> Result<Verified, String> {
    let model = Verified::check(model(case, known)).map_err(|r| format!("{:?}", r.findings))?;
    let pass = GradientPass {
        loss: "loss".into(),
        wrt: wanted(case).into_iter().map(|w| w.0).collect(),
        outputs: Outputs::Keep,
        unreached: Unreached::Refuse,
    };
    let done = Pipeline::new().with(pass).run(model);
    Ok(done.map_err(|f| format!("{}", f.error))?.model)
}

/// Compares the pass with central differences. The first line of what is wrong, if anything is.
pub(crate) fn check(case: &Case, known: bool) -> Result<(), String> {
    let model = differentiated(case, known)?;
    let plan = Plan::compile(&model, &CompileOptions::default()).map_err(|e| e.to_string())?;
    let base = wanted(case);
    let run = |at: Option<(usize, usize, f32)>| {
        let mut feeds = Feeds::new();
        for (w, (name, dims, values)) in base.iter().enumerate() {
            let mut values = values.clone();
            if let Some((_, i, by)) = at.filter(|a| a.0 == w) {
                values[i] += by;
            }
            let value = Value::from_f32(dims, values).map_err(|e| e.to_string())?;
            feeds.insert(name, value);
        }
        plan.run(&feeds).map_err(|e| e.to_string())
    };
    let scalar = |at| -> Result<f32, String> {
        let out = run(Some(at))?;
        Ok(out["loss"].to_f32().map_err(|e| e.to_string())?[0])
    };
    let grads = run(None)?;
    for (w, (name, dims, _)) in base.iter().enumerate() {
        let grad = &grads[&contract::grad(name)];
        if grad.dims() != dims {
            return Err(format!(
                "grad/{name} has shape {:?}, expected {dims:?}",
                grad.dims()
            ));
        }
        let grad = grad.to_f32().map_err(|e| e.to_string())?;
        for (i, found) in grad.iter().copied().enumerate() {
            let want = (scalar((w, i, STEP))? - scalar((w, i, -STEP))?) / (2.0 * STEP);
            let close = (want - found).abs() <= case.tolerance * want.abs().max(1.0);
            if !close {
                return Err(format!(
                    "grad/{name}[{i}] is {found}, the difference {want}"
                ));
            }
        }
    }
    Ok(())
}
