//! The binary: every command on a fixture in a folder of its own, what it prints where, its exit codes, and what it leaves behind.

use super::desk::{Desk, stderr};
use super::support::fixture;
use serde_json::Value as Json;
use std::fs;

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn the_main_job_writes_a_model_and_an_adapter_folder() {
    let desk = Desk::with("qwen3/model.onnx");
    let model = fs::read(desk.path("model.onnx")).unwrap();
    let out = desk.ok(&[
        "--interface",
        "interface.json",
        "--adapter",
        "a=lora[r=4]",
        "model.onnx",
    ]);
    contains(&out, &["lora", "model.a.onnx"]);
    assert!(desk.path("model.a.onnx").exists());
    for file in ["adapter_config.json", "adapter_interface.json"] {
        assert!(desk.path("a").join(file).exists(), "{file}");
    }
    assert!(fs::read(desk.path("model.onnx")).unwrap() == model);

    // Twice: refused and untouched; with --force the same bytes.
    let again = ["-i", "interface.json", "-a", "a=lora[r=4]", "model.onnx"];
    contains(&desk.fails(&again), &["exists", "--force"]);
    let before = desk.files();
    desk.ok(&[&again[..], &["--force"]].concat());
    assert!(desk.files() == before, "the same work gave other bytes");

    // The folder that was written is an adapter.
    desk.ok(&[
        "-i",
        "interface.json",
        "-a",
        "b=a",
        "model.onnx",
        "-o",
        "elsewhere",
    ]);
    assert!(desk.path("elsewhere/model.b.onnx").exists());
    contains(
        &desk.ok(&["adapter", "summary", "model.a.onnx"]),
        &["lora", "a"],
    );
    contains(&desk.ok(&["adapter", "summary", "a"]), &["lora", "a"]);
}

#[test]
fn a_dry_run_writes_nothing() {
    let desk = Desk::with("qwen3/model.torchscript.onnx");
    let before = desk.files();
    let out = desk.ok(&["-i", "qwen3", "-a", "seq_bn", "model.onnx", "--dry-run"]);
    contains(&out, &["layers.0", "layers 0, 1, each"]);
    assert!(desk.files() == before);
}

#[test]
fn json_is_one_document() {
    let desk = Desk::with("qwen3/model.onnx");
    let written = desk.json(&["-i", "interface.json", "-a", "lora", "model.onnx"]);
    assert!(written.is_object());
    let commands: &[&[&str]] = &[
        &["inspect", "model.onnx"],
        &["inspect", "model.onnx", "-i", "interface.json"],
        &["interface", "list"],
        &["interface", "show", "qwen3"],
        &["interface", "check", "interface.json", "model.onnx"],
        &["interface", "infer", "model.onnx"],
        &["interface", "infer", "model.onnx", "-o", "inferred.json"],
        &["print", "model.onnx", "--module", "layers.0.mlp"],
        &["diff", "model.onnx", "model.lora.onnx"],
        &["adapter", "methods"],
        &["adapter", "show", "lora"],
        &["adapter", "summary", "lora"],
        &["verify", "model.onnx", "model.lora.onnx"],
        &["strip", "model.lora.onnx", "-o", "stripped.onnx"],
        &[
            "run",
            "model.onnx",
            "--inputs",
            "inputs.safetensors",
            "--outputs",
            "out.safetensors",
        ],
    ];
    for command in commands {
        desk.json(command);
    }
}

#[test]
fn inspect_shows_what_an_interface_selects() {
    let desk = Desk::with("qwen3/model.onnx");
    let out = desk.ok(&["inspect", "model.onnx"]);
    contains(&out, &["pytorch", "input_ids", "logits", "layers"]);
    let out = desk.ok(&["inspect", "model.onnx", "--interface", "interface.json"]);
    let folded = "layers 0, 1, each as this one";
    contains(&out, &["self_attn.q_proj [32 -> 32]", folded, "lm_head"]);
}

#[test]
fn inspect_ends_with_what_can_be_adapted() {
    let desk = Desk::with("qwen3/model.onnx");
    let out = desk.ok(&["inspect", "model.onnx"]);
    contains(
        &out,
        &["adapting    by the interface `inferred`: 2 layers of width 32"],
    );
    let json = desk.json(&["inspect", "model.onnx", "-i", "interface.json"]);
    let methods = json["adapting"]["methods"].as_array().unwrap();
    let of = |name: &str| methods.iter().find(|m| m["method"] == name).unwrap();
    assert_eq!(of("lora")["places"], 4);
    assert!(of("seq_bn")["why"].is_null());
    // A method that has no place here says why.
    let without = methods.iter().find(|m| m["places"] == 0);
    assert!(without.is_none_or(|m| m["why"].is_string()));
}

#[test]
fn a_built_in_interface_that_does_not_fit_gives_way() {
    let desk = Desk::with("qwen3/model.onnx");
    let bare = desk.ok(&["-a", "x=lora", "model.onnx", "-o", "bare.onnx"]);
    desk.write("config.json", r#"{"model_type": "vit"}"#);
    let out = desk.command(&["-a", "y=lora", "model.onnx", "-o", "other.onnx"]);
    let said = stderr(&out);
    assert!(out.status.success(), "{said}");
    contains(
        &said,
        &[
            "the built-in vit interface does not fit this graph",
            "`model_layers` = \"encoder.layer\"",
        ],
    );
    let places = |text: &str| text.lines().next().map(str::to_owned);
    assert_eq!(
        places(&String::from_utf8(out.stdout).unwrap()),
        places(&bare)
    );
    // An interface that is named stands, with its findings.
    let named = desk.fails(&["-i", "vit", "-a", "z=lora", "model.onnx", "-o", "z.onnx"]);
    contains(&named, &["select-no-layers"]);
}

#[test]
fn print_diff_and_strip_agree() {
    let desk = Desk::attached("lora");
    let base = desk.ok(&["print", "model.onnx"]);
    desk.ok(&["strip", "model.lora.onnx", "-o", "stripped.onnx"]);
    assert_eq!(desk.ok(&["print", "stripped.onnx"]), base);
    assert_ne!(desk.ok(&["print", "model.lora.onnx"]), base);

    let diff = |args: &[&str]| desk.command(args).status.code();
    assert_eq!(
        diff(&["diff", "model.onnx", "stripped.onnx", "--exit-code"]),
        Some(0)
    );
    assert_eq!(
        diff(&["diff", "model.onnx", "model.lora.onnx", "--exit-code"]),
        Some(1)
    );
    assert_eq!(diff(&["diff", "model.onnx", "model.lora.onnx"]), Some(0));
    let text = desk.ok(&["diff", "model.onnx", "model.lora.onnx"]);
    contains(&text, &["self_attn.q_proj", "MatMul"]);
}

#[test]
fn run_computes_loss_and_gradients() {
    let desk = Desk::attached("lora[init_weights='bert']");
    let run = |more: &[&str]| {
        let args = [
            "run",
            "model.lora.onnx",
            "--inputs",
            "inputs.safetensors",
            "--outputs",
            "out.safetensors",
            "--force",
            "--loss",
            "causal-lm",
        ];
        desk.json(&[&args[..], more].concat())
    };
    let portable = run(&["--grad"]);
    let native = run(&["--grad", "--native"]);
    let loss = |r: &Json| r["loss"].as_f64().unwrap();
    // 1e-5 is the corpus's tolerance for a loss.
    assert!((loss(&portable) - loss(&native)).abs() < 1e-5);
    let names = |r: &Json| {
        r["outputs"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    let grads = names(&portable)
        .iter()
        .filter(|n| n.starts_with("grad/"))
        .count();
    // q and v, two matrices each, two layers.
    assert_eq!(grads, 8);
    assert_eq!(names(&portable), names(&native));
    let one = run(&["--output", "logits"]);
    assert_eq!(names(&one), ["logits", "loss"]);
}

#[test]
fn training_lowers_the_loss_and_saves_an_adapter() {
    let desk = Desk::with("qwen3/model.onnx");
    let row = |i| {
        let first = i + 8;
        format!("{{\"input_ids\": [{first}, 5, 6, {i}], \"labels\": [-100, 5, 6, {i}]}}")
    };
    let rows: Vec<String> = (0..6).map(row).collect();
    fs::write(desk.path("train.jsonl"), rows.join("\n")).unwrap();
    let train = [
        "train",
        "model.onnx",
        "-i",
        "interface.json",
        "-a",
        "a=lora",
        "--data",
        "train.jsonl",
        "--output-dir",
        "out",
        "--max-steps",
        "8",
        "--learning-rate",
        "0.02",
        "--per-device-train-batch-size",
        "3",
    ];
    let report = desk.json(&train);
    assert_eq!(report["steps"], 8);
    assert!(report["last_loss"].as_f64().unwrap() < report["first_loss"].as_f64().unwrap());
    contains(&desk.fails(&train), &["exists", "--force"]);

    // What was saved can be attached, and a second run gives the same bytes.
    let first = fs::read(desk.path("out/a/pytorch_adapter.bin"))
        .or_else(|_| fs::read(desk.path("out/a/adapter.safetensors")))
        .unwrap();
    desk.ok(&[&train[..], &["--force", "-q"]].concat());
    let second = fs::read(desk.path("out/a/pytorch_adapter.bin"))
        .or_else(|_| fs::read(desk.path("out/a/adapter.safetensors")))
        .unwrap();
    assert!(first == second, "two runs of one seed differ");
    desk.ok(&[
        "-i",
        "interface.json",
        "-a",
        "out/a",
        "model.onnx",
        "-o",
        "trained.onnx",
    ]);
    desk.ok(&[
        "merge",
        "model.onnx",
        "-i",
        "interface.json",
        "-a",
        "out/a",
        "-o",
        "merged.onnx",
    ]);
    // 1e-4: the order of rounding, on logits of order 10.
    desk.ok(&[
        "verify",
        "trained.onnx",
        "merged.onnx",
        "--atol",
        "1e-4",
        "--rtol",
        "1e-4",
    ]);

    // One batch at every step.
    let batch = [
        "train",
        "model.onnx",
        "-i",
        "interface.json",
        "-a",
        "b=seq_bn",
        "--data",
        "inputs.safetensors",
        "--output-dir",
        "batch",
        "--max-steps",
        "3",
        "--loss",
        "causal-lm",
        "--json",
    ];
    desk.ok(&batch);
    assert!(desk.path("batch/b/adapter_config.json").exists());
}

#[test]
fn verify_compares_on_both_engines() {
    let desk = Desk::attached("lora");
    for engine in ["candle", "tract"] {
        if engine == "tract" && cfg!(not(feature = "tract")) {
            continue;
        }
        // A fresh LoRA is the identity.
        let args = [
            "verify",
            "model.onnx",
            "model.lora.onnx",
            "--engine",
            engine,
        ];
        desk.ok(&[&args[..], &["--inputs", "inputs.safetensors"]].concat());
        desk.ok(&args);
    }
    let other = Desk::attached("seq_bn[init_weights='bert',reduction_factor=2]");
    let out = other.command(&[
        "verify",
        "model.onnx",
        "model.seq_bn.onnx",
        "--atol",
        "1e-9",
        "--rtol",
        "0",
    ]);
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    contains(
        &String::from_utf8_lossy(&out.stdout),
        &["logits", "DIFFERENT"],
    );
}

#[cfg(not(feature = "tract"))]
#[test]
fn an_engine_that_is_not_built_is_one_error_with_a_way_out() {
    let desk = Desk::new();
    let out = desk.command(&["verify", "a.onnx", "b.onnx", "--engine", "tract"]);
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    contains(
        &stderr(&out),
        &[
            "error[tract-missing]",
            "leave `--engine tract` out",
            "--features tract",
        ],
    );
    assert_eq!(stderr(&out).matches("error").count(), 1);
}

#[test]
fn the_graph_is_printed_after_any_pass() {
    let desk = Desk::with("qwen3/model.onnx");
    let print = |args: &[&str]| desk.ok(&[&["print", "model.onnx"][..], args].concat());
    let (plain, fused) = (print(&[]), print(&["--after", "fuse-blocks"]));
    assert!(!plain.contains("onnx_graft::") && fused.contains("onnx_graft::"));
    assert_eq!(
        print(&["--pipeline", "inference", "--mode", "portable"]),
        plain
    );
    let lora = ["--adapter", "lora[r=2]", "--pipeline", "training"];
    let loss = print(&[&lora[..], &["--after", "loss", "--mode", "portable"]].concat());
    assert!(loss.contains("loss") && !loss.contains("grad/"));
    let gradient = print(&[&lora[..], &["--after", "gradient"]].concat());
    contains(&gradient, &["grad/", "onnx_graft::"]);
    contains(
        &print(&["--after", "list"]),
        &["training", "early-shapes", "native", "Before the gradient"],
    );
    for (args, what) in [
        (
            ["--after", "nothing"],
            "the native pipeline `inference` has no pass `nothing`",
        ),
        (["--pipeline", "nothing"], "there is no pipeline `nothing`"),
    ] {
        let out = desk.command(&[&["print", "model.onnx"][..], &args].concat());
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        contains(&stderr(&out), &[what, "decoding-first", "add-cache"]);
    }
}

#[test]
fn wrong_arguments_exit_with_2() {
    let desk = Desk::with("qwen3/model.onnx");
    let wrong: [&[&str]; 6] = [
        &["print", "model.onnx", "--module", "no.such"],
        &["inspect"],
        &["frobnicate", "x"],
        &["run", "model.onnx"],
        &["--no-such-flag"],
        &["verify", "a", "b", "--engine", "steam"],
    ];
    for args in wrong {
        let out = desk.command(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {}", stderr(&out));
        assert!(out.stdout.is_empty(), "{args:?}");
    }
    assert_eq!(desk.command(&["--help"]).status.code(), Some(0));
    assert_eq!(desk.command(&["--version"]).status.code(), Some(0));
}

#[test]
fn what_cannot_be_done_is_said_and_nothing_is_written() {
    let desk = Desk::with("qwen3/model.onnx");
    let whole = fs::read(desk.path("model.onnx")).unwrap();
    fs::write(desk.path("half.onnx"), &whole[..whole.len() / 2]).unwrap();
    fs::write(desk.path("text.onnx"), "not a model").unwrap();
    let interface = fs::read_to_string(desk.path("interface.json")).unwrap();
    fs::write(
        desk.path("typo.json"),
        interface.replace("attn_q_proj", "atn_q_proj"),
    )
    .unwrap();
    fs::write(
        desk.path("miss.json"),
        interface.replace("\"q_proj\"", "\"query\""),
    )
    .unwrap();
    fs::write(desk.path("broken.json"), &interface[..40]).unwrap();
    let main = |interface: &str, adapter: &str, model: &str| {
        desk.fails(&["-i", interface, "-a", adapter, model])
    };
    contains(&main("interface.json", "lora", "half.onnx"), &["half.onnx"]);
    contains(&main("interface.json", "lora", "text.onnx"), &["text.onnx"]);
    contains(&main("interface.json", "lora", "gone.onnx"), &["gone.onnx"]);
    contains(
        &main("typo.json", "lora", "model.onnx"),
        &["atn_q_proj", "attn_q_proj"],
    );
    contains(
        &main("miss.json", "lora", "model.onnx"),
        &["attn_q_proj", "query", "q_proj"],
    );
    contains(&main("broken.json", "lora", "model.onnx"), &["broken.json"]);
    let misused = |interface: &str, adapter: &str| {
        desk.misused(&["-i", interface, "-a", adapter, "model.onnx"])
    };
    contains(&misused("qwen33", "lora"), &["qwen33", "qwen3"]);
    contains(
        &misused("interface.json", "lora[alhpa=3]"),
        &["alhpa", "alpha"],
    );
    contains(&misused("interface.json", "lroa"), &["lroa", "lora"]);
    let other = fixture("gpt2/plugin/seq_bn");
    let message = main("interface.json", other.to_str().unwrap(), "model.onnx");
    contains(&message, &["model-differs", "`gpt2`", "`qwen3`"]);
    contains(
        &desk.fails(&["strip", "model.onnx", "-o", "s.onnx", "--name", "x"]),
        &["x"],
    );
}

#[test]
fn bad_data_is_said_by_row() {
    let desk = Desk::with("qwen3/model.onnx");
    let train = |rows: &str| {
        fs::write(desk.path("train.jsonl"), rows).unwrap();
        desk.fails(&[
            "train",
            "model.onnx",
            "-i",
            "interface.json",
            "-a",
            "lora",
            "--data",
            "train.jsonl",
            "--output-dir",
            "out",
            "--max-steps",
            "2",
        ])
    };
    let good = "{\"input_ids\": [1, 2, 3], \"labels\": [1, 2, 3]}\n";
    contains(
        &train(&format!("{good}{{\"input_ids\": [1, 2")),
        &["train.jsonl", "2"],
    );
    contains(
        &train(&format!(
            "{good}{{\"input_ids\": [1, 2], \"labels\": [1]}}\n"
        )),
        &["2"],
    );
    contains(
        &train(&format!("{good}{good}{{\"input_ids\": [1, 4800]}}\n")),
        &["3", "4800"],
    );
    train("");
    let run = [
        "run",
        "model.onnx",
        "--inputs",
        "inputs.safetensors",
        "--outputs",
        "o.safetensors",
    ];
    contains(
        &desk.fails(&[&run[..], &["--loss", "no_such_value"]].concat()),
        &["no_such_value"],
    );
    contains(
        &desk.fails(&[&run[..], &["--output", "logist"]].concat()),
        &["logist", "logits"],
    );
}

#[test]
fn external_data_stays_inside_the_models_folder() {
    let desk = Desk::with("qwen3/model.onnx");
    let bytes = fs::read(fixture("onnx/external.onnx")).unwrap();
    let name = b"external.onnx.data";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
    // Names of the same length, so that the message stays well-formed.
    for outside in [
        "../../etc/hostname",
        "/etc/security/lim",
        "x/../../../passwd1",
    ] {
        let mut text = outside.as_bytes().to_vec();
        text.resize(name.len(), b'x');
        let mut bytes = bytes.clone();
        bytes[at..at + name.len()].copy_from_slice(&text);
        fs::write(desk.path("outside.onnx"), bytes).unwrap();
        let message = desk.fails(&["print", "outside.onnx"]);
        contains(&message, &[&String::from_utf8(text).unwrap()]);
    }
}

#[test]
fn tasks_are_told_by_an_input() {
    let desk = Desk::with("bert/model.onnx");
    for name in ["adapter_a", "adapter_b"] {
        let (from, to) = (fixture("bert/native/mtl_lora").join(name), desk.path(name));
        fs::create_dir(&to).unwrap();
        for file in ["adapter_config.json", "adapter.safetensors"] {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }
    let tasks = [
        "-i",
        "bert",
        "-a",
        "adapter_a",
        "-a",
        "adapter_b",
        "--active",
        "MultiTask(a, b)",
    ];
    let out = desk.ok(&[&tasks[..], &["model.onnx", "-o", "out/"]].concat());
    contains(
        &out,
        &["adapters at 4 places", "out/model.a+b.onnx", "out/b/"],
    );
    let io = [
        "--inputs",
        "inputs.safetensors",
        "--outputs",
        "o.safetensors",
    ];
    let missing = desk.fails(&[&["run", "out/model.a+b.onnx"][..], &io].concat());
    contains(&missing, &["the input `task_ids` is missing"]);
    for (setup, what) in [
        ("Fuse(a, b, name=3)", "`name` of `Fuse` is 3"),
        ("MultiTask(a b)", "expected `,` or `)`"),
        ("MultiTask(a, c)", "the adapter `c`, which is not there"),
    ] {
        let args = [&tasks[..7], &[setup, "model.onnx", "-o", "other/"]].concat();
        let out = desk.command(&args);
        assert_eq!(out.status.code(), Some(2), "{setup}");
        contains(&stderr(&out), &[what]);
    }
}

#[test]
fn mistaken_files_are_called_what_they_are() {
    let desk = Desk::with("qwen3/model.onnx");
    fs::write(desk.path("notes.txt"), "no model\n").unwrap();
    let text = desk.fails(&["inspect", "notes.txt"]);
    contains(&text, &["this is a text file", "notes.txt"]);
    fs::write(desk.path("lora"), "in the way").unwrap();
    let text = desk.fails(&[
        "-i",
        "interface.json",
        "-a",
        "lora",
        "model.onnx",
        "--force",
    ]);
    contains(&text, &["lora is a file"]);
    let out = desk.command(&["strip", "model.onnx", "-o", "same.onnx"]);
    assert!(out.status.success());
    contains(&stderr(&out), &["carries no adapters", "model.onnx"]);
}

#[test]
fn methods_are_shown_with_their_parameters() {
    let desk = Desk::with("qwen3/model.onnx");
    let out = desk.ok(&["adapter", "show", "houlsby"]);
    contains(
        &out,
        &[
            "houlsby is an older name of double_seq_bn",
            "mh_adapter",
            "adapter_up.weight",
            "[d, d/reduction_factor]",
        ],
    );
    let out = desk.ok(&["adapter", "show", "unipelt"]);
    contains(
        &out,
        &[
            "unipelt is the union prefix_tuning",
            "gate.weight",
            "control_trans",
        ],
    );
    let one = desk.json(&["adapter", "show", "lora"]);
    assert_eq!(
        one["parameters"][0]["shape"],
        serde_json::json!(["r", "in"])
    );
    contains(
        &desk.fails(&["adapter", "show", "lorra"]),
        &["nearest one is `lora`"],
    );
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let desk = Desk::new();
    let page = desk.ok(&["man"]);
    contains(&page, &[".TH rewrite 1", "rewrite\\-train(1)"]);
    let out = desk.ok(&["man", "pages", "--json"]);
    let out: Json = serde_json::from_str(&out).unwrap();
    let files = out["files"].as_array().unwrap();
    assert!(files.len() > 30, "{files:?}");
    for name in ["rewrite", "rewrite-train", "rewrite-adapter-convert"] {
        let text = fs::read_to_string(desk.path("pages").join(format!("{name}.1"))).unwrap();
        contains(&text, &[".SH NAME", ".SH OPTIONS", "Example"]);
    }
    contains(&desk.fails(&["man", "pages"]), &["exists", "--force"]);
    desk.ok(&["man", "pages", "--force"]);
}
