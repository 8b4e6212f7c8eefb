use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataLocation,
};
use super::{ExternalSource, SaveOptions, encode, open, read, save, to_bytes};
use crate::infer::Verified;
use crate::ir::{AttrValue, Graph, Model, Payload};
use bytes::Bytes;
use prost::Message;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/onnx")
        .join(name)
}

fn load(name: &str) -> Verified {
    verified(open(fixture(name)).unwrap())
}

fn verified(model: Model) -> Verified {
    Verified::check(model).map_err(|r| r.findings).unwrap()
}

fn info(name: &str) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(name.into()),
        ..ValueInfoProto::default()
    }
}

fn node(op: &str, ins: &[&str], outs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: Some(op.into()),
        input: ins.iter().map(ToString::to_string).collect(),
        output: outs.iter().map(ToString::to_string).collect(),
        ..NodeProto::default()
    }
}

fn model_of(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![super::proto::OperatorSetIdProto {
            domain: None,
            version: Some(17),
        }],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

fn graph_of(ins: &[&str], nodes: Vec<NodeProto>, outs: &[&str]) -> GraphProto {
    GraphProto {
        node: nodes,
        input: ins.iter().map(|n| info(n)).collect(),
        output: outs.iter().map(|n| info(n)).collect(),
        ..GraphProto::default()
    }
}

fn read_proto(proto: &ModelProto) -> crate::Result<Model> {
    read(proto.encode_to_vec().into(), &ExternalSource::none())
}

fn refusal(proto: &ModelProto) -> String {
    read_proto(proto).unwrap_err().to_string()
}

fn float_tensor(name: &str, n: u16) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: vec![n.into()],
        data_type: Some(1),
        raw_data: Some(vec![7u8; usize::from(n) * 4].into()),
        ..TensorProto::default()
    }
}

#[test]
fn payloads_are_slices_of_the_file() {
    let bytes = Bytes::from(std::fs::read(fixture("qwen3-torchscript.onnx")).unwrap());
    let range = bytes.as_ptr_range();
    let model = read(bytes.clone(), &ExternalSource::none()).unwrap();
    let mut seen = 0;
    for &v in model.graph.initializers() {
        let Some(tensor) = &model.graph.value(v).tensor else {
            panic!("an initializer without tensor")
        };
        if let Payload::Raw(raw) = &tensor.payload {
            assert!(
                range.contains(&raw.as_ptr()),
                "{} was copied",
                model.graph.name_of(v)
            );
            seen += raw.len();
        }
    }
    assert!(seen > 10_000, "{seen}");
}

#[test]
fn external_tensors_are_slices_of_one_map() {
    let model = load("external.onnx");
    let g = &model.model().graph;
    let bytes = |name: &str| {
        g.value(g.find(name).unwrap())
            .tensor
            .as_ref()
            .unwrap()
            .bytes()
            .unwrap()
    };
    let (w, k) = (bytes("w"), bytes("k"));
    // `w` is at offset 3 and `k` at 27 of one file.
    assert_eq!(w.as_ptr().wrapping_add(24), k.as_ptr());
    let floats: Vec<f32> = w
        .chunks(4)
        .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
        .collect();
    assert_eq!(floats, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(bytes("n")[..], 7i64.to_le_bytes());
}

#[test]
fn subgraphs_capture_explicitly() {
    let model = load("control_flow.onnx");
    let g = &model.model().graph;
    let outer = g.nodes().next().unwrap();
    let names = |g: &Graph| -> Vec<String> {
        g.captures()
            .iter()
            .map(|&v| g.name_of(v).to_owned())
            .collect()
    };
    let inner = |g: &Graph, n, attr: &str| match g.node(n).attr(attr) {
        Some(AttrValue::Graph(inner)) => (**inner).clone(),
        other => panic!("{other:?}"),
    };
    let then = inner(g, outer, "then_branch");
    let els = inner(g, outer, "else_branch");
    assert_eq!(names(&then), ["x", "w", "cond"]);
    assert_eq!(names(&els), ["x"]);
    let wired: Vec<&str> = g
        .node_captures(outer)
        .into_iter()
        .map(|v| g.name_of(v))
        .collect();
    // Attributes are in the order of their names: `else_branch` comes first.
    assert_eq!(wired, ["x", "x", "w", "cond"]);
    let nested = then.nodes().nth(1).unwrap();
    assert_eq!(names(&inner(&then, nested, "then_branch")), ["x", "y"]);
    let wired: Vec<&str> = then
        .node_captures(nested)
        .into_iter()
        .map(|v| then.name_of(v))
        .collect();
    assert_eq!(wired, ["x", "w", "x", "y"]);
}

#[test]
fn captures_follow_the_value_they_stand_for() {
    let mut model = open(fixture("control_flow.onnx")).unwrap();
    // `w` is read two graphs further in; `y` and `local` are names inside `then`.
    let w = model.graph.find("w").unwrap();
    model.graph.rename(w, "y").unwrap();
    let bytes = to_bytes(&verified(model)).unwrap();
    let again = read(bytes.into(), &ExternalSource::none()).unwrap();
    let outer = again.graph.nodes().next().unwrap();
    let Some(AttrValue::Graph(then)) = again.graph.node(outer).attr("then_branch") else {
        panic!("no subgraph");
    };
    let mul = then.nodes().next().unwrap();
    let names = |v: Vec<Option<crate::ir::ValueId>>| -> Vec<String> {
        v.into_iter()
            .flatten()
            .map(|v| then.name_of(v).to_owned())
            .collect()
    };
    assert_eq!(names(then.node_inputs(mul)), ["x", "y"]);
    assert_eq!(names(then.node_outputs(mul)), ["y_inner"]);
    let nested = then.nodes().nth(1).unwrap();
    let captured: Vec<&str> = then
        .node_captures(nested)
        .into_iter()
        .map(|v| then.name_of(v))
        .collect();
    assert_eq!(captured, ["x", "y", "x", "y_inner"]);
}

#[test]
fn unknown_fields_are_refused_with_their_place() {
    let mut bytes = model_of(graph_of(&["x"], vec![], &["x"])).encode_to_vec();
    // Field 99 of the model, length-delimited.
    bytes.extend_from_slice(&[0x9a, 0x06, 0x01, 0x41]);
    let message = read(bytes.into(), &ExternalSource::none())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("onnx-unknown-field") && message.contains("99"),
        "{message}"
    );
    // Field 3 of the second node, in place of its `op_type`, as an unknown number 30.
    let mut second = node("Relu", &["x"], &["z"]).encode_to_vec();
    second.extend_from_slice(&[0xf0, 0x01, 0x01]);
    let first = node("Relu", &["x"], &["y"]).encode_to_vec();
    let mut graph = Vec::new();
    for n in [&first, &second] {
        graph.extend_from_slice(&[0x0a, n.len().try_into().unwrap()]);
        graph.extend_from_slice(n);
    }
    let mut bytes = vec![0x3a, graph.len().try_into().unwrap()];
    bytes.extend_from_slice(&graph);
    let message = read(bytes.into(), &ExternalSource::none())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("graph[0].node[1]") && message.contains("number 30"),
        "{message}"
    );
}

#[test]
fn broken_names_are_reported_together() {
    let message = refusal(&model_of(graph_of(
        &["x", "x"],
        vec![
            node("Relu", &["missing"], &["y"]),
            node("Add", &["x", "late"], &["z"]),
            node("Relu", &["z"], &["late"]),
            node("Relu", &["x"], &["y"]),
        ],
        &["nowhere"],
    )));
    for part in [
        "a graph input is named `x`, which is defined already",
        "reads `missing`, which nothing defines",
        "reads `late`, which a later node defines",
        "is named `y`, which is defined already",
        "the graph's outputs reads `nowhere`",
    ] {
        assert!(message.contains(part), "`{part}` is not in {message}");
    }
}

#[test]
fn nodes_out_of_order_are_mended() {
    let proto = model_of(graph_of(
        &["x"],
        vec![
            node("Relu", &["late"], &["y"]),
            node("Neg", &["x"], &["late"]),
            node("Abs", &["y"], &["z"]),
        ],
        &["z"],
    ));
    let model = read_proto(&proto).unwrap();
    assert!(model.graph.mended);
    let ops: Vec<&str> = model
        .graph
        .nodes()
        .map(|n| &*model.graph.node(n).op.op_type)
        .collect();
    assert_eq!(ops, ["Neg", "Relu", "Abs"]);
}

#[test]
fn cycles_are_errors() {
    let message = refusal(&model_of(graph_of(
        &["x"],
        vec![
            node("Add", &["x", "b"], &["a"]),
            node("Relu", &["a"], &["b"]),
        ],
        &["b"],
    )));
    assert!(message.contains("onnx-order"), "{message}");
}

#[test]
fn tensors_must_have_the_bytes_their_dimensions_say() {
    let refuse = |t: TensorProto| {
        let mut g = graph_of(&["x"], vec![], &["x"]);
        g.initializer.push(t);
        refusal(&model_of(g))
    };
    let t = |f: fn(&mut TensorProto)| {
        let mut t = float_tensor("w", 4);
        f(&mut t);
        refuse(t)
    };
    assert!(t(|t| t.dims = vec![5]).contains("20 bytes are expected, `raw_data` has 16"));
    assert!(t(|t| t.dims = vec![-1]).contains("a dimension is -1"));
    assert!(t(|t| t.dims = vec![i64::MAX, i64::MAX]).contains("overflow"));
    assert!(t(|t| t.dims = vec![1 << 62]).contains("overflow"));
    assert!(t(|t| t.data_type = Some(77)).contains("element type 77"));
    assert!(t(|t| t.float_data = vec![1.0]).contains("more than one field"));
    assert!(t(|t| t.raw_data = None).contains("4 entries are expected, the file has 0"));
}

fn nested(depth: usize) -> ModelProto {
    let mut graph = graph_of(&[], vec![], &["x"]);
    for _ in 0..depth {
        let mut holder = node("If", &["x"], &["y"]);
        holder.attribute.push(AttributeProto {
            name: Some("then_branch".into()),
            r#type: Some(AttributeType::Graph.into()),
            g: Some(graph),
            ..AttributeProto::default()
        });
        graph = graph_of(&[], vec![holder], &["x"]);
    }
    graph.input.push(info("x"));
    model_of(graph)
}

#[test]
fn nesting_is_bounded() {
    assert!(read_proto(&nested(30)).is_ok());
    let message = refusal(&nested(40));
    assert!(message.contains("nested more than 100 deep"), "{message}");
}

#[test]
fn a_small_file_cannot_take_much_memory() {
    // Two bytes for each empty node.
    let graph = [0x0a, 0x00].repeat(1 << 20);
    let mut bytes = vec![0x3a];
    prost::encoding::encode_varint(1 << 21, &mut bytes);
    bytes.extend_from_slice(&graph);
    let message = read(bytes.into(), &ExternalSource::none())
        .unwrap_err()
        .to_string();
    assert!(message.contains("far more messages"), "{message}");
}

#[test]
fn graphs_may_not_hide_in_odd_attributes() {
    let mut holder = node("If", &["x"], &["y"]);
    holder.attribute.push(AttributeProto {
        name: Some("a".into()),
        r#type: Some(AttributeType::Int.into()),
        i: Some(1),
        g: Some(graph_of(&[], vec![], &["x"])),
        ..AttributeProto::default()
    });
    let message = refusal(&model_of(graph_of(&["x"], vec![holder], &["y"])));
    assert!(
        message.contains("holds a graph beside another value"),
        "{message}"
    );
}

#[test]
fn chunks_are_what_prost_encodes() {
    for name in [
        "storage.onnx",
        "control_flow.onnx",
        "function.onnx",
        "external.onnx",
        "qwen3-dynamo.onnx",
    ] {
        let mut proto = ModelProto::decode(&*std::fs::read(fixture(name)).unwrap()).unwrap();
        // A payload large enough to be a chunk of its own, in every place that can hold one.
        let big = float_tensor("big", 5000);
        let graph = proto.graph.as_mut().unwrap();
        graph.initializer.push(big.clone());
        graph
            .sparse_initializer
            .push(super::proto::SparseTensorProto {
                values: Some(big.clone()),
                indices: Some(big.clone()),
                dims: vec![1],
            });
        graph.node.push(node("Constant", &[], &["c"]));
        graph
            .node
            .last_mut()
            .unwrap()
            .attribute
            .push(AttributeProto {
                name: Some("value".into()),
                t: Some(big.clone()),
                tensors: vec![big.clone(), float_tensor("small", 1), big.clone()],
                doc_string: Some("after".into()),
                ..AttributeProto::default()
            });
        let expected = proto.encode_to_vec();
        let chunks = encode::model(proto);
        assert_eq!(chunks.len(), u64::try_from(expected.len()).unwrap());
        let chunks = chunks.finish();
        assert!(chunks.iter().filter(|c| c.len() == 20_000).count() >= 6);
        assert!(chunks.concat() == expected, "{name}");
    }
}

// ---- external data ---------------------------------------------------------------------------------------------------------

fn external_model(location: &str, offset: &str, length: Option<&str>) -> ModelProto {
    let entry = |k: &str, v: &str| StringStringEntryProto {
        key: Some(k.into()),
        value: Some(v.into()),
    };
    let mut t = float_tensor("w", 2);
    t.raw_data = None;
    t.set_data_location(DataLocation::External);
    t.external_data = vec![entry("location", location), entry("offset", offset)];
    t.external_data.extend(length.map(|l| entry("length", l)));
    let mut g = graph_of(&["x"], vec![], &["x"]);
    g.initializer.push(t);
    model_of(g)
}

fn open_external(folder: &Path, proto: &ModelProto) -> crate::Result<Model> {
    let path = folder.join("model.onnx");
    std::fs::write(&path, proto.encode_to_vec()).unwrap();
    open(path)
}

#[test]
fn external_ranges_are_checked_against_the_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("data"), [0u8; 16]).unwrap();
    let open = |o, l| open_external(dir.path(), &external_model("data", o, l)).map(|_| ());
    open("8", Some("8")).unwrap();
    open("8", None).unwrap();
    for (offset, length, part) in [
        ("9", Some("8"), "which has 16"),
        ("18446744073709551615", None, "which has 16"),
        ("-1", None, "not a number"),
        ("0", Some("4"), "takes 8 bytes"),
        ("0", Some("16"), "takes 8 bytes"),
    ] {
        let message = open(offset, length).unwrap_err().to_string();
        assert!(message.contains(part), "`{part}` is not in {message}");
    }
}

#[test]
fn external_paths_stay_in_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    std::fs::write(dir.path().join("secret"), [0u8; 16]).unwrap();
    std::fs::write(folder.join("sub/data"), [0u8; 16]).unwrap();
    let open = |l: &str| open_external(&folder, &external_model(l, "0", None)).map(|_| ());
    open("sub/data").unwrap();
    open("./sub/data").unwrap();
    let absolute = dir.path().join("secret").display().to_string();
    for location in [
        "../secret",
        "sub/../../secret",
        &absolute,
        "",
        ".",
        "a\0b",
        "absent",
        "sub",
        "/dev/zero",
    ] {
        assert!(open(location).is_err(), "{location:?} was accepted");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("../secret", folder.join("link")).unwrap();
        std::os::unix::fs::symlink("sub/data", folder.join("inside")).unwrap();
        let message = open("link").unwrap_err().to_string();
        assert!(message.contains("leads out"), "{message}");
        open("inside").unwrap();
    }
}

#[test]
fn special_files_are_no_models() {
    assert!(open("/dev/null").is_err());
    assert!(open(std::env::temp_dir()).is_err());
    let empty = tempfile::NamedTempFile::new().unwrap();
    assert!(
        open(empty.path())
            .unwrap_err()
            .to_string()
            .contains("no graph")
    );
}

// ---- saving ------------------------------------------------------------------------------------------------------------------

fn copy_of_external() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("weights")).unwrap();
    for name in ["external.onnx", "external.onnx.data", "weights/more.bin"] {
        std::fs::copy(fixture(name), dir.path().join(name)).unwrap();
    }
    dir
}

fn files(dir: &Path) -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    found
}

#[test]
fn saving_beside_the_input_shares_its_data() {
    let dir = copy_of_external();
    let model = verified(open(dir.path().join("external.onnx")).unwrap());
    let saved = save(&model, dir.path().join("new.onnx"), SaveOptions::default()).unwrap();
    assert!(
        saved.written.is_empty() && saved.shared.len() == 2,
        "{saved:?}"
    );
    assert_eq!(
        files(dir.path()),
        ["external.onnx", "external.onnx.data", "new.onnx", "weights"]
    );
    assert_eq!(
        std::fs::read(dir.path().join("new.onnx")).unwrap(),
        std::fs::read(fixture("external.onnx")).unwrap()
    );
}

#[test]
fn saving_elsewhere_copies_the_data() {
    let (dir, to) = (copy_of_external(), tempfile::tempdir().unwrap());
    let model = verified(open(dir.path().join("external.onnx")).unwrap());
    let mut last = (0, 0);
    let mut progress = |done, total| last = (done, total);
    let options = SaveOptions {
        progress: Some(&mut progress),
        ..SaveOptions::default()
    };
    let saved = save(&model, to.path().join("m.onnx"), options).unwrap();
    assert_eq!(saved.written.len(), 2);
    assert_eq!(last, (33 + 8 + saved.bytes, 33 + 8 + saved.bytes));
    assert_eq!(
        files(to.path()),
        ["external.onnx.data", "m.onnx", "weights"]
    );
    let again = open(to.path().join("m.onnx")).unwrap();
    let w = again.graph.find("w").unwrap();
    assert_eq!(
        again
            .graph
            .value(w)
            .tensor
            .as_ref()
            .unwrap()
            .to_f32()
            .unwrap()[5..],
        [5.0]
    );
    // A second model of the same data does not write it again.
    let saved = save(&model, to.path().join("n.onnx"), SaveOptions::default()).unwrap();
    assert!(saved.written.is_empty());
}

#[test]
fn existing_files_need_force() {
    let (dir, to) = (copy_of_external(), tempfile::tempdir().unwrap());
    let model = verified(open(dir.path().join("external.onnx")).unwrap());
    let path = to.path().join("m.onnx");
    std::fs::write(&path, "old").unwrap();
    assert!(save(&model, &path, SaveOptions::default()).is_err());
    std::fs::remove_file(&path).unwrap();
    assert!(files(to.path()).is_empty(), "a refused save leaves nothing");
    // Data of another model are neither replaced nor in the way.
    let other = to.path().join("external.onnx.data");
    std::fs::write(&other, "other").unwrap();
    save(&model, &path, SaveOptions::default()).unwrap();
    assert_eq!(std::fs::read(&other).unwrap(), b"other");
    assert_eq!(
        files(to.path()),
        ["external.onnx.data", "m.onnx", "m.onnx.data", "weights"]
    );
    let force = || SaveOptions {
        force: true,
        ..SaveOptions::default()
    };
    save(&model, &path, force()).unwrap();
    open(&path).unwrap();
    std::fs::create_dir(to.path().join("folder")).unwrap();
    assert!(save(&model, to.path().join("folder"), force()).is_err());
}

#[cfg(unix)]
#[test]
fn data_is_not_written_through_a_link() {
    let (dir, to) = (copy_of_external(), tempfile::tempdir().unwrap());
    let outside = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), to.path().join("weights")).unwrap();
    let model = verified(open(dir.path().join("external.onnx")).unwrap());
    let message = save(&model, to.path().join("m.onnx"), SaveOptions::default())
        .unwrap_err()
        .to_string();
    assert!(message.contains("outside the model's folder"), "{message}");
    assert!(files(outside.path()).is_empty());
}

#[test]
fn models_beyond_the_limit_move_their_large_tensors_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = graph_of(&["x"], vec![node("Relu", &["x"], &["y"])], &["y"]);
    g.initializer = vec![
        float_tensor("a", 300),
        float_tensor("small", 2),
        float_tensor("b", 2000),
    ];
    let model = verified(read_proto(&model_of(g)).unwrap());
    let limit = |n| SaveOptions {
        inline_limit: Some(n),
        ..SaveOptions::default()
    };
    let path = dir.path().join("m.onnx");
    let message = save(&model, &path, limit(50)).unwrap_err().to_string();
    assert!(message.contains("onnx-too-large"), "{message}");
    let saved = save(&model, &path, limit(5000)).unwrap();
    assert_eq!(saved.written, [dir.path().join("m.onnx.data")]);
    let moved = open(&path).unwrap();
    let tensor = |n: &str| {
        moved
            .graph
            .value(moved.graph.find(n).unwrap())
            .tensor
            .clone()
            .unwrap()
    };
    let Payload::External(b) = tensor("b").payload else {
        panic!("`b` is inline")
    };
    assert_eq!(
        (b.entry("offset"), b.entry("length")),
        (Some("4096"), Some("8000"))
    );
    assert!(b.bytes.iter().all(|&x| x == 7));
    assert!(matches!(tensor("small").payload, Payload::Raw(_)));
}

#[test]
fn saving_twice_gives_the_same_bytes() {
    let model = load("qwen3-dynamo.onnx");
    let dir = tempfile::tempdir().unwrap();
    save(&model, dir.path().join("a.onnx"), SaveOptions::default()).unwrap();
    let bytes = std::fs::read(dir.path().join("a.onnx")).unwrap();
    assert_eq!(bytes, to_bytes(&model).unwrap());
    assert_eq!(bytes, to_bytes(&load("qwen3-dynamo.onnx")).unwrap());
}
