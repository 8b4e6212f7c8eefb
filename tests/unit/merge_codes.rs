//! Adapters folded into quantized weights: every form in which these are read.

use super::merge::{difference, moved, outputs};
use crate::ir::text::parse;
use crate::rewrite::passes::testing::{DECODER, interface};
use onnx_graft::Attach;
use onnx_graft::adapters::Adapter;
use onnx_graft::infer::Verified;
use onnx_graft::ir::{DType, TensorData};
use onnx_graft::job::{merge, reset};
use onnx_graft::runtime::{Feeds, Tensor};

/// How the projection of values is stored and read: what is declared, its nodes, its constants.
struct Form {
    name: &'static str,
    declared: &'static str,
    nodes: &'static str,
    constants: Vec<(&'static str, TensorData)>,
    /// Greatest distance of a value from the nearest one that codes can tell.
    step: f32,
}

fn bytes(dtype: DType, dims: &[u64], seed: u32) -> TensorData {
    let n = dtype.bytes_for(dims.iter().product()).unwrap();
    let each = (0..n as u32).map(|i| (i.wrapping_mul(89).wrapping_add(seed) % 256) as u8);
    TensorData::raw(dtype, dims, each.collect::<Vec<u8>>().into())
}

fn halves(dims: &[u64], values: &[f32]) -> TensorData {
    TensorData::from_floats(DType::Float16, dims, values).unwrap()
}

fn floats(dims: &[u64], each: f32) -> TensorData {
    let n = dims.iter().product::<u64>();
    let values: Vec<f32> = (0..n).map(|i| each * (1.0 + i as f32 * 0.125)).collect();
    TensorData::from_f32(dims, &values)
}

const SCOPE: &str = "/model/layers.0/self_attn/v_proj";

fn forms() -> Vec<Form> {
    let nbits = |name, bits: u8, zeros: Option<TensorData>| {
        let width = 2 * u64::from(bits);
        let mut constants = vec![
            ("v.codes", bytes(DType::Uint8, &[4, 1, width], 3)),
            (
                "v.scale",
                floats(&[4, 1], if bits == 4 { 0.05 } else { 0.004 }),
            ),
        ];
        let (declared, nodes) = match (bits, &zeros) {
            (4, None) => (
                "init %v.codes: u8[4, 1, 8] = fill(0)\n          init %v.scale: f32[4, 1] = fill(0)",
                "%v = com.microsoft::MatMulNBits(%x, %v.codes, %v.scale) {K = 4, N = 4, bits = 4, block_size = 16}",
            ),
            (8, None) => (
                "init %v.codes: u8[4, 1, 16] = fill(0)\n          init %v.scale: f32[4, 1] = fill(0)",
                "%v = com.microsoft::MatMulNBits(%x, %v.codes, %v.scale) {K = 4, N = 4, bits = 8, block_size = 16}",
            ),
            _ => (
                "init %v.codes: u8[4, 1, 8] = fill(0)\n          init %v.scale: f32[4, 1] = fill(0)\n          init %v.zero: u8[4, 1] = fill(0)",
                "%v = com.microsoft::MatMulNBits(%x, %v.codes, %v.scale, %v.zero) {K = 4, N = 4, bits = 4, block_size = 16}",
            ),
        };
        constants.extend(zeros.map(|z| ("v.zero", z)));
        Form {
            name,
            declared,
            nodes,
            constants,
            step: if bits == 4 { 0.08 } else { 0.007 },
        }
    };
    let bnb4 = |name, nodes| Form {
        name,
        declared: "init %v.codes: u8[8] = fill(0)\n          init %v.scale: f32[1] = fill(0)",
        nodes,
        constants: vec![
            ("v.codes", bytes(DType::Uint8, &[8], 5)),
            ("v.scale", floats(&[1], 0.6)),
        ],
        // The widest gap of the tables, a third of the greatest value, and the greatest value may grow.
        step: 0.4,
    };
    let linear = |name, declared, nodes, constants, step| Form {
        name,
        declared,
        nodes,
        constants,
        step,
    };
    let pc = floats(&[4], 0.004);
    vec![
        nbits("NBits 4", 4, None),
        nbits("NBits 8", 8, None),
        nbits(
            "NBits 4, zero points",
            4,
            Some(TensorData::raw(
                DType::Uint8,
                [4, 1],
                vec![7, 8, 5, 9].into(),
            )),
        ),
        bnb4(
            "fp4",
            "%v = com.microsoft::MatMulBnb4(%x, %v.codes, %v.scale) {K = 4, N = 4, block_size = 64, quant_type = 0}",
        ),
        bnb4(
            "nf4",
            "%v = com.microsoft::MatMulBnb4(%x, %v.codes, %v.scale) {K = 4, N = 4, block_size = 64, quant_type = 1}",
        ),
        linear(
            "QDQ int8 by column",
            "init %v.codes: i8[4, 4] = fill(0)\n          init %v.scale: f32[4] = fill(0)",
            "%v.w = DequantizeLinear(%v.codes, %v.scale) {axis = 1}  // SCOPE/DequantizeLinear\n          %v = MatMul(%x, %v.w)",
            vec![
                ("v.codes", bytes(DType::Int8, &[4, 4], 1)),
                ("v.scale", pc.clone()),
            ],
            0.01,
        ),
        linear(
            "QDQ uint8 in one, transposed",
            "init %v.codes: u8[4, 4] = fill(0)\n          init %v.scale: f32[] = {0.004}\n          init %v.zero: u8[] = {117}",
            "%v.o = DequantizeLinear(%v.codes, %v.scale, %v.zero)  // SCOPE/DequantizeLinear\n          %v.w = Transpose(%v.o) {perm = [1, 0]}  // SCOPE/Transpose\n          %v = MatMul(%x, %v.w)",
            vec![("v.codes", bytes(DType::Uint8, &[4, 4], 9))],
            0.01,
        ),
        linear(
            "QDQ int4 in blocks, f16 scales",
            "init %v.codes: i8[4, 4] = fill(0)\n          init %v.scale: f16[2, 4] = fill(0)",
            "%v.h = DequantizeLinear(%v.codes, %v.scale) {axis = 0, block_size = 2}  // SCOPE/DequantizeLinear\n          %v.w = Cast(%v.h) {to = 1}  // SCOPE/Cast\n          %v = MatMul(%x, %v.w)",
            vec![
                ("v.codes", bytes(DType::Int4, &[4, 4], 2)),
                (
                    "v.scale",
                    halves(&[2, 4], &[0.05, 0.06, 0.07, 0.08, 0.05, 0.06, 0.07, 0.08]),
                ),
            ],
            0.1,
        ),
        linear(
            "MatMulInteger",
            "init %v.codes: i8[4, 4] = fill(0)\n          init %v.scale: f32[4] = fill(0)\n          init %v.zero: i8[4] = {3, 0, -6, 7}",
            "%v.x, %v.xs, %v.xz = DynamicQuantizeLinear(%x)  // SCOPE/DynamicQuantizeLinear\n          %v.i = MatMulInteger(%v.x, %v.codes, %v.xz, %v.zero)  // SCOPE/MatMulInteger\n          %v.f = Cast(%v.i) {to = 1}  // SCOPE/Cast\n          %v.s = Mul(%v.xs, %v.scale)  // SCOPE/Mul\n          %v = Mul(%v.f, %v.s)",
            vec![
                ("v.codes", bytes(DType::Int8, &[4, 4], 4)),
                ("v.scale", pc.clone()),
            ],
            0.01,
        ),
        linear(
            "DynamicQuantizeMatMul",
            "init %v.codes: u8[4, 4] = fill(0)\n          init %v.scale: f32[] = {0.004}\n          init %v.zero: u8[] = {128}",
            "%v = com.microsoft::DynamicQuantizeMatMul(%x, %v.codes, %v.scale, %v.zero)",
            vec![("v.codes", bytes(DType::Uint8, &[4, 4], 8))],
            0.01,
        ),
    ]
}

fn model(form: &Form) -> Verified {
    let node = "%v = MatMul(%x, %v.weight)";
    let text = DECODER
        .replace(
            "opset \"\" 17",
            "opset \"\" 21\n        opset \"com.microsoft\" 1",
        )
        .replace("init %v.weight: f32[4, 4] = fill(0.5)", form.declared)
        .replace(node, &form.nodes.replace("SCOPE", SCOPE));
    let mut model = parse(&text).unwrap_or_else(|e| panic!("{}: {e}\n{text}", form.name));
    for (name, tensor) in &form.constants {
        let id = model.graph.find(name).unwrap();
        model.graph.value_mut(id).unwrap().tensor = Some(tensor.clone());
    }
    for name in ["table", "places"] {
        let id = model.graph.find(name).unwrap();
        let tensor = model.graph.value_mut(id).unwrap().tensor.as_mut().unwrap();
        let n = tensor.count().unwrap();
        let wave: Vec<f32> = (0..n).map(|i| (i as f32 * 1.3).sin()).collect();
        *tensor = TensorData::from_f32(tensor.dims.clone(), &wave);
    }
    Verified::check(model).unwrap_or_else(|_| panic!("{}", form.name))
}

fn feeds() -> Feeds {
    let mut feeds = Feeds::new();
    let ids = Tensor::from_i64(&[1, 5], vec![1, 4, 2, 7, 0]).unwrap();
    feeds.insert("input/input_ids", ids);
    feeds
}

fn stored(model: &Verified) -> Vec<(String, TensorData)> {
    let graph = &model.model().graph;
    let all = graph.initializers().iter().map(|v| {
        let tensor = graph.value(*v).tensor.clone().unwrap();
        (graph.name_of(*v).to_owned(), tensor)
    });
    all.collect()
}

fn attached(model: &Verified, adapter: Adapter) -> Verified {
    let interface = interface();
    let attach = Attach::to(model.clone()).interface(&interface);
    let attach = attach.adapters(vec![adapter]).active("a".into()).seed(0);
    attach.run().unwrap().model
}

const LORA: &str = "lora[r=2,alpha=8,attn_matrices=['v']]";

/// Each weight is off by at most half a step; four of them are summed, and what the values become is mixed by weights that add up to 1
/// and passes through matrices of halves: 0.5·4 of the output projection, (1 + 0.5·6·0.5·4) of the block, 0.5·4 of the head.
fn bound(form: &Form) -> f32 {
    form.step * 0.5 * 4.0 * 2.0 * 2.0 * (0.5 * 4.0) * (1.0 + 6.0) * (0.5 * 4.0)
}

#[test]
fn merged_and_attached_differ_by_less_than_steps_allow() {
    for form in forms() {
        let (model, data) = (model(&form), feeds());
        let adapter = moved(&model, &interface(), LORA);
        let merged = merge(&model, &interface(), vec![adapter.clone()])
            .unwrap_or_else(|e| panic!("{}: {e}", form.name));
        let (base, want) = (
            outputs(&model, &data),
            outputs(&attached(&model, adapter.clone()), &data),
        );
        let found = outputs(&merged, &data);
        let (far, effect) = (difference(&found, &want), difference(&want, &base));
        assert!(far < bound(&form), "{}: {far} of {effect}", form.name);
        assert!(far < effect, "{}: {far} of {effect}", form.name);
        let others = |m: &Verified| {
            let mut all = stored(m);
            all.retain(|(name, _)| !name.starts_with("v."));
            all
        };
        assert_eq!(others(&merged), others(&model), "{}", form.name);
        let nodes = |m: &Verified| m.model().graph.nodes().count();
        assert_eq!(nodes(&merged), nodes(&model), "{}", form.name);
        // What is taken out again comes back as nearly as the codes can tell.
        let back = reset(&merged, &interface(), vec![adapter]).unwrap();
        let off = difference(&outputs(&back, &data), &base);
        assert!(off < bound(&form), "{}: {off} of {effect}", form.name);
    }
}

#[test]
fn an_adapter_that_adds_nothing_changes_nothing() {
    for form in forms() {
        let model = model(&form);
        let fresh = Adapter::fresh("a", onnx_graft::adapters::Config::parse(LORA).unwrap());
        let merged = merge(&model, &interface(), vec![fresh]).unwrap();
        assert_eq!(stored(&merged), stored(&model), "{}", form.name);
    }
}

/// Magnitudes need the norms of the floats that the codes stand for.
#[test]
fn magnitudes_merge_where_they_cannot_be_attached() {
    for form in forms() {
        let model = model(&form);
        let (name, m) = (
            "layers.0.self_attn.v_proj.loras.a",
            TensorData::from_f32([4, 1], &[0.5; 4]),
        );
        let mut adapter = moved(&model, &interface(), LORA);
        let config = "dora[r=2,alpha=8,attn_matrices=['v']]";
        adapter.config = onnx_graft::adapters::Config::parse(config).unwrap();
        let weights = adapter.weights.as_mut().unwrap();
        let key = weights.tensors.keys().next().unwrap().clone();
        let at = key.rsplit_once(".lora_").unwrap().0;
        assert!(at.ends_with(name), "{at}");
        weights.tensors.insert(format!("{at}.m.weight").into(), m);
        let merged = merge(&model, &interface(), vec![adapter.clone()])
            .unwrap_or_else(|e| panic!("{}: {e}", form.name));
        assert!(stored(&merged) != stored(&model), "{}", form.name);
        let back = reset(&merged, &interface(), vec![adapter]).unwrap_err();
        assert!(back.to_string().contains("reset-dora"), "{back}");
    }
}

/// Codes that other modules read as well are copied for the one that is adapted, with the nodes that open them.
#[test]
fn what_is_shared_is_copied() {
    let mut shared = forms();
    shared.retain(|f| ["NBits 4", "QDQ int8 by column"].contains(&f.name));
    for form in &mut shared {
        let opened = form.nodes.contains("Dequantize");
        let other = if opened {
            "%v0 = MatMul(%x, %v.w)  // /model/layers.0/mlp/other/MatMul"
        } else {
            "%v0 = com.microsoft::MatMulNBits(%x, %v.codes, %v.scale) {K = 4, N = 4, bits = 4, block_size = 16}  // /model/layers.0/mlp/other/MatMulNBits"
        };
        let own = form.nodes.rsplit_once("\n          ");
        let (front, product) = own.unwrap_or(("", form.nodes));
        let nodes = format!("{front}\n          {other}\n          {product}");
        form.nodes = Box::leak(nodes.trim_start().to_owned().into_boxed_str());
        let model = model(form);
        let adapter = moved(&model, &interface(), LORA);
        let merged = merge(&model, &interface(), vec![adapter]).unwrap();
        let before = stored(&model);
        let after = stored(&merged);
        assert_eq!(after[..before.len()], before[..], "{}", form.name);
        assert!(after.len() > before.len(), "{}", form.name);
    }
}

/// A file whose sizes do not fit is refused by name.
#[test]
fn sizes_that_do_not_fit_are_refused() {
    let mut form = forms().remove(0);
    form.constants[1].1 = floats(&[7, 1], 0.1);
    form.declared =
        "init %v.codes: u8[4, 1, 8] = fill(0)\n          init %v.scale: f32[7, 1] = fill(0)";
    let model = model(&form);
    let mut adapter = Adapter::fresh("a", onnx_graft::adapters::Config::parse(LORA).unwrap());
    adapter.weights = None;
    let error = merge(&model, &interface(), vec![adapter])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("weight-form") && error.contains("v_proj"),
        "{error}"
    );
}
