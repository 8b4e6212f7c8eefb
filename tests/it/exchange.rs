//! From the command line: graphs whose adapters are inputs, ONNX Runtime's files, and the formats that adapters are written in.

use super::desk::Desk;
use super::support::fixture;
use onnx_graft::Attach;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The tensors of a file of 32-bit floats.
fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(path).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| -> Vec<f32> {
        data.chunks_exact(4)
            .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
            .collect()
    };
    read.iter()
        .map(|(name, view)| (name.to_owned(), values(view.data())))
        .collect()
}

/// A desk with a base model and two adapters that were trained for a step each, so that they do something.
fn desk() -> Desk {
    let desk = Desk::with("qwen3/model.onnx");
    for spec in ["a=lora[r=2]", "b=seq_bn"] {
        trained(&desk, spec, &spec[..1]);
    }
    desk
}

fn trained(desk: &Desk, spec: &str, to: &str) {
    let data = fixture("train/ids.jsonl");
    let data = data.to_str().unwrap();
    let fixed = [
        "-i",
        "interface.json",
        "--max-steps",
        "2",
        "--learning-rate",
        "0.05",
    ];
    let run = [
        "train",
        "model.onnx",
        "-a",
        spec,
        "--data",
        data,
        "--output-dir",
        to,
    ];
    desk.ok(&[&run[..], &fixed].concat());
}

#[test]
fn one_graph_serves_adapters_that_come_and_go() {
    let desk = desk();
    let args = [
        "export-adapter",
        "model.onnx",
        "-i",
        "interface.json",
        "-a",
        "a/a",
        "-a",
        "b/b",
        "-o",
        "served",
    ];
    let said = desk.json(&args);
    assert_eq!(said["adapters"][0]["name"], "a");
    assert_eq!(said["adapters"][0]["parameters"], 448);
    assert_eq!(said["inputs"], 8 + 8);
    for file in ["model.onnx", "a.onnx_adapter", "b.onnx_adapter"] {
        assert!(desk.path("served").join(file).is_file(), "{file}");
    }
    // Nothing is replaced, and nothing half written.
    let message = desk.fails(&args);
    assert!(message.contains("exists"), "{message}");

    // Without an adapter the graph is the base model; taken out again, it is the base model's file.
    let run = ["--inputs", "inputs.safetensors", "--outputs"];
    desk.ok(&[&["run", "model.onnx"][..], &run, &["plain.safetensors"]].concat());
    desk.ok(&[
        &["run", "served/model.onnx"][..],
        &run,
        &["served.safetensors"],
    ]
    .concat());
    let of = |file: &str| tensors(&desk.path(file))["logits"].clone();
    assert_eq!(of("plain.safetensors"), of("served.safetensors"));
    // With one, it is that adapter attached.
    for (name, folder) in [("a", "a/a"), ("b", "b/b")] {
        let (file, attached) = (
            format!("served/{name}.onnx_adapter"),
            format!("{name}.attached"),
        );
        let come = format!("{name}.come");
        desk.ok(&[
            &["run", "served/model.onnx", "-a", &file][..],
            &run,
            &[&come],
        ]
        .concat());
        desk.ok(&[
            &["run", "model.onnx", "-i", "interface.json", "-a", folder][..],
            &run,
            &[&attached],
        ]
        .concat());
        let (come, attached) = (of(&come), of(&attached));
        assert!(attached != of("plain.safetensors"));
        // Sums in another order.
        assert!(
            come.iter()
                .zip(&attached)
                .all(|(a, b)| (a - b).abs() < 1e-4),
            "{name}"
        );
    }
    desk.ok(&["strip", "served/model.onnx", "-o", "again.onnx"]);
    desk.ok(&["diff", "model.onnx", "again.onnx", "--exit-code"]);

    // A further adapter of a kind that is there, of another rank; and one of a kind that is not.
    trained(&desk, "c=lora[r=5,attn_matrices=['q']]", "c");
    let more = desk.json(&[
        "export-adapter",
        "served/model.onnx",
        "-i",
        "interface.json",
        "-a",
        "c/c",
        "-o",
        "served",
    ]);
    assert!(more["model"].is_null());
    assert_eq!(more["adapters"][0]["tensors"], 4);
    let other = [
        "export-adapter",
        "served/model.onnx",
        "-i",
        "interface.json",
        "-a",
        "ia3",
        "-o",
        "served",
    ];
    let message = desk.fails(&other);
    assert!(
        message.contains("`ia3` does not fit the inputs of the graph"),
        "{message}"
    );
    assert!(message.contains("from the base model"), "{message}");

    // What stands for all adapters is no place for one.
    let message = desk.fails(&["-i", "interface.json", "-a", "a/a", "served/model.onnx"]);
    assert!(message.contains("exchange-there"), "{message}");
    let message = desk.misused(&[
        "export-adapter",
        "model.onnx",
        "-a",
        "a/a",
        "--active",
        "a",
        "-o",
        "x",
    ]);
    assert!(message.contains("--active"), "{message}");
}

/// What Olive and ONNX Runtime's own tools wrote is read, attached, and written again with the same numbers.
#[test]
fn files_of_other_tools_are_read_and_converted() {
    let desk = Desk::with("qwen3/model.onnx");
    for name in ["olive.onnx_adapter", "genai.onnx_adapter"] {
        fs::copy(fixture("served").join(name), desk.path(name)).unwrap();
    }
    let weights = |folder: &str| tensors(&desk.path(folder).join("adapter_model.safetensors"));
    let peft = fixture("served/peft");
    let peft = peft.to_str().unwrap();
    // PEFT's own folder, through the file and back: the scale is in the second matrix then.
    desk.ok(&[
        "adapter",
        "convert",
        peft,
        "--to",
        "onnx-adapter",
        "-o",
        "mine.onnx_adapter",
    ]);
    for name in ["olive", "genai", "mine"] {
        let file = format!("{name}.onnx_adapter");
        desk.ok(&["adapter", "convert", &file, "--to", "peft", "-o", name]);
        assert_eq!(weights(name), weights("olive"), "{name}");
    }
    let own = tensors(&fixture("served/peft/adapter_model.safetensors"));
    for (key, value) in weights("olive") {
        let scale = if key.contains("lora_B") { 3.0 } else { 1.0 };
        let want: Vec<f32> = own[&*key].iter().map(|v| v * scale).collect();
        assert_eq!(value, want, "{key}");
    }
    desk.ok(&[
        "adapter",
        "convert",
        "olive.onnx_adapter",
        "--to",
        "adapterhub",
        "-i",
        "interface.json",
        "-o",
        "hub",
    ]);
    // Attached, all are one adapter.
    let base = desk.path("model.onnx");
    let print = |spec: &str| {
        let spec = if spec == peft {
            spec.to_owned()
        } else {
            desk.path(spec).display().to_string()
        };
        let adapted = Attach::open(&base)
            .unwrap()
            .adapter(&format!("x={spec}"))
            .unwrap();
        adapted
            .run()
            .unwrap()
            .store()
            .iter()
            .map(|(n, p)| (n.to_owned(), p.tensor.to_f32()))
            .collect::<BTreeMap<_, _>>()
    };
    assert_eq!(print("olive.onnx_adapter"), print("olive"));
    assert_eq!(print("genai.onnx_adapter"), print("mine"));
    let table = desk.ok(&["adapter", "summary", "olive.onnx_adapter"]);
    assert!(table.contains("olive"), "{table}");
    // A graph that was made here takes the other tool's file as it is.
    desk.ok(&[
        "export-adapter",
        "model.onnx",
        "-i",
        "interface.json",
        "-a",
        peft,
        "-o",
        "served",
    ]);
    let graph = onnx_graft::open(desk.path("served/model.onnx")).unwrap();
    let text = onnx_graft::ir::text::print(graph.model());
    assert!(
        text.contains("model.layers.0.self_attn.q_proj.lora_A.weight"),
        "{text}"
    );
    let bytes = fs::read(desk.path("served/peft.onnx_adapter")).unwrap();
    let theirs = fs::read(desk.path("mine.onnx_adapter")).unwrap();
    assert_eq!(bytes.len(), theirs.len());
}

#[test]
fn files_that_are_none_are_refused() {
    let desk = Desk::with("qwen3/model.onnx");
    desk.write("text.onnx_adapter", "not a flat buffer, but long enough");
    let convert = [
        "adapter",
        "convert",
        "text.onnx_adapter",
        "--to",
        "peft",
        "-o",
        "x",
    ];
    let message = desk.fails(&convert);
    assert!(
        message.contains("TORT") && message.contains("text.onnx_adapter"),
        "{message}"
    );
    let whole = fs::read(fixture("served/olive.onnx_adapter")).unwrap();
    fs::write(desk.path("cut.onnx_adapter"), &whole[..whole.len() / 2]).unwrap();
    let message = desk.fails(&[
        "adapter",
        "convert",
        "cut.onnx_adapter",
        "--to",
        "peft",
        "-o",
        "x",
    ]);
    assert!(message.contains("cut off"), "{message}");
    let message = desk.fails(&[
        "-i",
        "interface.json",
        "-a",
        "cut.onnx_adapter",
        "model.onnx",
    ]);
    assert!(message.contains("cut off"), "{message}");
}

/// AdapterHub's folder, PEFT's, or both; and what PEFT cannot say is refused before anything is trained.
#[test]
fn adapters_are_written_in_the_format_that_is_asked_for() {
    let desk = Desk::with("qwen3/model.onnx");
    let attach = |spec: &str, format: &str| {
        desk.ok(&[
            "-i",
            "interface.json",
            "-a",
            spec,
            "--format",
            format,
            "model.onnx",
        ])
    };
    let has = |file: &str| desk.path(file).is_file();
    attach("a=lora[r=2]", "both");
    assert!(has("a/adapter.safetensors") && has("a-peft/adapter_model.safetensors"));
    attach("b=lora[r=2]", "peft");
    assert!(!has("b/adapter.safetensors") && has("b/adapter_model.safetensors"));
    let message = desk.fails(&[
        "-i",
        "interface.json",
        "-a",
        "c=seq_bn",
        "--format",
        "peft",
        "model.onnx",
    ]);
    assert!(
        message.contains("--format peft") && message.contains("PEFT does not have"),
        "{message}"
    );
    let data = fixture("train/ids.jsonl");
    let data = data.to_str().unwrap();
    let train = |spec: &str, out: &'static str, format: &'static str| {
        let args = [
            "train",
            "model.onnx",
            "-i",
            "interface.json",
            "-a",
            spec,
            "--data",
            data,
            "--max-steps",
            "2",
        ];
        [&args[..], &["--output-dir", out, "--format", format]]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let run = |args: &[String]| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        desk.ok(&args)
    };
    run(&train("a=lora[r=2]", "both", "both"));
    assert!(has("both/a/adapter.safetensors") && has("both/a-peft/adapter_model.safetensors"));
    // What was written goes on, in either form, as the same adapter.
    let loss = |folder: &str| {
        desk.json(&[
            "eval",
            "model.onnx",
            "-i",
            "interface.json",
            "-a",
            folder,
            "--data",
            data,
        ])["metrics"]["loss"]
            .as_f64()
            .unwrap()
    };
    assert!((loss("both/a") - loss("both/a-peft")).abs() < 1e-6);
    run(&train("both/a-peft", "more", "peft"));
    assert!(
        has("more/a-peft/adapter_model.safetensors") && !has("more/a-peft/adapter.safetensors")
    );
    let args = train("seq_bn", "none", "peft");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let message = desk.fails(&args);
    assert!(message.contains("--format peft"), "{message}");
    desk.ok(&["adapter", "delete", "more/a-peft"]);
    assert!(!desk.path("more/a-peft").exists());
}
