//! Operators with windows, and with the statistics of planes: the numbers are ONNX Runtime's.

use onnx_graft::infer::Verified;
use onnx_graft::ir::{Attr, Builder, DType, Dim, Model, OpId, TensorData, Type, Val};
use onnx_graft::runtime::{CompileOptions, Feeds, Outputs, Plan};

/// Whole numbers between -5 and 5, in an order without a pattern.
fn numbers(dims: &[u64]) -> TensorData {
    let n = dims.iter().product::<u64>();
    let values: Vec<f32> = (0..n).map(|i| ((i * 7 + 3) % 11) as f32 - 5.0).collect();
    TensorData::from_f32(dims, &values)
}

/// What a graph of constants makes.
fn run(b: Builder, ports: &[(Val, &str, Type)]) -> Outputs {
    let model = Model {
        graph: b.finish_graph("g", ports).unwrap(),
        opset_imports: vec![("".into(), 19)],
        ir_version: 9,
        ..Model::default()
    };
    let model = Verified::check(model).unwrap();
    let plan = Plan::compile(&model, &CompileOptions::default()).unwrap();
    plan.run(&Feeds::new()).unwrap()
}

type Attrs<'a> = &'a [(&'a str, &'a [i64])];

/// That an operator of opset 19 makes these numbers of [`numbers`], and that its inferred shape is that of `want`.
fn check(op: &str, ins: &[&[u64]], attrs: Attrs<'_>, want: &[(DType, &[i64], &[f32])]) {
    let b = Builder::new(19);
    let ins: Vec<Option<Val>> = ins
        .iter()
        .enumerate()
        .map(|(i, dims)| Some(b.initializer(&format!("x{i}"), numbers(dims))))
        .collect();
    let lists = [
        "kernel_shape",
        "strides",
        "pads",
        "dilations",
        "output_padding",
        "output_shape",
    ];
    let attr = |(name, v): &(&'static str, &[i64])| -> (&'static str, Attr) {
        match *name {
            "auto_pad" => (name, ["SAME_LOWER", "SAME_UPPER"][v[0] as usize].into()),
            n if lists.contains(&n) => (name, (*v).into()),
            _ => (name, v[0].into()),
        }
    };
    let attrs: Vec<(&str, Attr)> = attrs
        .iter()
        .map(|(n, v)| {
            let known =
                lists
                    .iter()
                    .chain(&["auto_pad", "ceil_mode", "count_include_pad", "group", "k"]);
            let name = known.copied().find(|k| k == n).unwrap();
            attr(&(name, v))
        })
        .collect();
    let made = b.node_n(OpId::onnx(op), &ins, &attrs, want.len());
    let names = ["y", "indices"];
    let ports: Vec<(Val, &str, Type)> = made
        .iter()
        .zip(names)
        .zip(want)
        .map(|((v, name), (ty, dims, _))| {
            let dims: Vec<Dim> = dims.iter().map(|d| Dim::Known(*d)).collect();
            (*v, name, Type::tensor(*ty, dims))
        })
        .collect();
    let out = run(b, &ports);
    for (name, (_, dims, want)) in names.iter().zip(want) {
        let found = &out[*name];
        let shape: Vec<i64> = found.dims().iter().map(|d| *d as i64).collect();
        assert_eq!(shape, *dims, "{op} {name}");
        let found = match found.to_f32() {
            Ok(v) => v,
            Err(_) => found
                .0
                .to_ints()
                .unwrap()
                .iter()
                .map(|i| *i as f32)
                .collect(),
        };
        // Whole numbers, their means and roots: nothing but the last bit.
        let close = found
            .iter()
            .zip(*want)
            .all(|(a, b)| (a - b).abs() < 2e-6 * b.abs().max(1.0));
        assert!(
            close && found.len() == want.len(),
            "{op} {name}: {found:?}, not {want:?}"
        );
    }
}

const F: DType = DType::Float;
const I: DType = DType::Int64;

#[test]
fn means_of_windows() {
    let pool = |dims: &[u64], attrs: Attrs<'_>, shape: &[i64], want: &[f32]| {
        check("AveragePool", &[dims], attrs, &[(F, shape, want)]);
    };
    let ceil: Attrs<'_> = &[
        ("kernel_shape", &[3]),
        ("strides", &[2]),
        ("pads", &[1, 0]),
        ("ceil_mode", &[1]),
    ];
    pool(&[1, 1, 6], ceil, &[1, 1, 3], &[1.5, 1.0, 1.0 / 3.0]);
    let padded = [ceil, &[("count_include_pad", &[1])]].concat();
    pool(&[1, 1, 6], &padded, &[1, 1, 3], &[1.0, 1.0, 1.0 / 3.0]);
    let dilated: Attrs<'_> = &[
        ("kernel_shape", &[2]),
        ("dilations", &[2]),
        ("strides", &[3]),
        ("ceil_mode", &[1]),
    ];
    pool(&[1, 1, 7], dilated, &[1, 1, 3], &[-0.5, -1.5, -4.0]);
    let same: Attrs<'_> = &[("kernel_shape", &[2, 2]), ("auto_pad", &[0])];
    let want = [
        -2.0, 1.5, -0.5, 0.25, 2.5, 0.5, -4.0, -0.5, -2.5, -1.75, 0.5, -1.5,
    ];
    pool(&[1, 2, 3, 2], same, &[1, 2, 3, 2], &want);
    let before: Attrs<'_> = &[
        ("kernel_shape", &[2, 2]),
        ("pads", &[1, 1, 0, 0]),
        ("count_include_pad", &[1]),
    ];
    let want = [-0.5, 0.75, 1.5, -1.25, 1.0, 2.5, -1.75, 0.0, 1.5];
    pool(&[1, 1, 3, 3], before, &[1, 1, 3, 3], &want);
    check(
        "GlobalAveragePool",
        &[&[1, 2, 3, 2]],
        &[],
        &[(F, &[1, 2, 1, 1], &[5.0 / 6.0, -7.0 / 6.0])],
    );
}

#[test]
fn the_largest_of_windows() {
    let ceil: Attrs<'_> = &[
        ("kernel_shape", &[2]),
        ("strides", &[2]),
        ("ceil_mode", &[1]),
    ];
    let want: [(DType, &[i64], &[f32]); 2] = [
        (F, &[1, 2, 3], &[5.0, 1.0, 4.0, 0.0, 3.0, -5.0]),
        (I, &[1, 2, 3], &[1.0, 2.0, 4.0, 5.0, 7.0, 9.0]),
    ];
    check("MaxPool", &[&[1, 2, 5]], ceil, &want);
    let dilated: Attrs<'_> = &[
        ("kernel_shape", &[2, 2]),
        ("pads", &[1, 0, 0, 1]),
        ("dilations", &[1, 2]),
    ];
    let want: [(DType, &[i64], &[f32]); 2] = [
        (F, &[1, 1, 3, 2], &[1.0, 5.0, 1.0, 5.0, 0.0, 4.0]),
        (I, &[1, 1, 3, 2], &[2.0, 1.0, 2.0, 1.0, 5.0, 4.0]),
    ];
    check("MaxPool", &[&[1, 1, 3, 3]], dilated, &want);
    check(
        "GlobalMaxPool",
        &[&[1, 2, 3, 2]],
        &[],
        &[(F, &[1, 2, 1, 1], &[5.0, 3.0])],
    );
}

#[test]
fn transposed_convolutions() {
    let conv = |x: &[u64], w: &[u64], attrs: Attrs<'_>, shape: &[i64], want: &[f32]| {
        check("ConvTranspose", &[x, w], attrs, &[(F, shape, want)]);
    };
    let steps: Attrs<'_> = &[("strides", &[2])];
    let extra = [steps, &[("pads", &[1, 0]), ("output_padding", &[1])]].concat();
    conv(
        &[1, 2, 3],
        &[2, 1, 3],
        &extra,
        &[1, 1, 7],
        &[-22.0, -24.0, 41.0, 3.0, 5.0, 1.0, 0.0],
    );
    let groups: Attrs<'_> = &[("group", &[2]), ("dilations", &[2, 1])];
    let want = [
        4.0, -20.0, 25.0, -2.0, 11.0, -15.0, -2.0, 11.0, -15.0, 1.0, -6.0, 9.0, 16.0, 0.0, 0.0,
        -16.0, 12.0, 0.0, -16.0, 12.0, 0.0, 16.0, -24.0, 9.0,
    ];
    conv(&[1, 2, 2, 2], &[2, 1, 2, 2], groups, &[1, 2, 4, 3], &want);
    let want = [-10.0, -12.0, 31.0, 3.0, -10.0, 1.0];
    for auto in [&[0], &[1]] {
        let same = [steps, &[("auto_pad", auto)]].concat();
        conv(&[1, 1, 3], &[1, 1, 4], &same, &[1, 1, 6], &want);
    }
    let longer = [steps, &[("output_shape", &[8])]].concat();
    conv(
        &[1, 1, 3],
        &[1, 1, 3],
        &longer,
        &[1, 1, 8],
        &[4.0, -10.0, -12.0, 25.0, 3.0, 5.0, 1.0, 0.0],
    );
    let shorter = [steps, &[("output_shape", &[6])]].concat();
    conv(
        &[1, 1, 3],
        &[1, 1, 3],
        &shorter,
        &[1, 1, 6],
        &[-10.0, -12.0, 25.0, 3.0, 5.0, 1.0],
    );
}

#[test]
fn statistics_of_planes_and_diagonals() {
    let planes: Vec<f32> = numbers(&[1, 2, 3]).to_f32().unwrap();
    let (scale, bias) = ([-2.0, 5.0], [-2.0, 5.0]);
    let want: Vec<f32> = planes
        .chunks(3)
        .enumerate()
        .flat_map(|(c, p)| {
            let mean = p.iter().sum::<f32>() / 3.0;
            let var = p.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 3.0;
            let normal = move |x: f32| (x - mean) / (var + 1e-5).sqrt();
            p.iter()
                .map(move |x| normal(*x) * scale[c] + bias[c])
                .collect::<Vec<_>>()
        })
        .collect();
    check(
        "InstanceNormalization",
        &[&[1, 2, 3], &[2], &[2]],
        &[],
        &[(F, &[1, 2, 3], &want)],
    );
    check(
        "EyeLike",
        &[&[2, 3]],
        &[("k", &[1])],
        &[(F, &[2, 3], &[0.0, 1.0, 0.0, 0.0, 0.0, 1.0])],
    );
    check(
        "EyeLike",
        &[&[3, 2]],
        &[("k", &[-1])],
        &[(F, &[3, 2], &[0.0, 0.0, 1.0, 0.0, 0.0, 1.0])],
    );
}

/// A slice that goes backwards begins at the front at the latest, as ONNX bounds its start, and not as numpy does.
#[test]
fn a_slice_backwards_from_before_the_front() {
    let b = Builder::new(19);
    let x = b.initializer("x", numbers(&[5]));
    let bounds = [-100, -100, 0, -2].map(|n| b.ints(&[n]));
    let y = b.op("Slice", &[[x].as_slice(), &bounds].concat(), &[]);
    let out = run(b, &[(y, "y", Type::tensor(F, vec![Dim::Known(1)]))]);
    assert_eq!(out["y"].to_f32().unwrap(), [-2.0]);
}
