//! No file and no run is taken for something that it is not: other base models, folders of other runs, and what a person would want to
//! be told.

use super::desk::{Desk, stderr};
use super::support::fixture;
use onnx_graft::ir::{DType, TensorData};
use std::fs::{self, File};

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

/// A training of two steps of the adapter `a` into `out`.
fn training<'a>(model: &'a str, data: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let own = [
        "train",
        model,
        "-i",
        "interface.json",
        "-a",
        "a=lora[r=2]",
        "--data",
        data,
        "--output-dir",
        "out",
        "--max-steps",
        "2",
        "--learning-rate",
        "1e-2",
        "--threads",
        "1",
    ];
    [&own[..], more].concat()
}

/// Qwen3 and rows for it; also `other.onnx`, with the same shapes and other weights in the projections.
fn desk() -> Desk {
    let desk = Desk::with("qwen3/model.onnx");
    fs::copy(fixture("train/ids.jsonl"), desk.path("ids.jsonl")).unwrap();
    let folder = fixture("qwen3/plugin/lora_all");
    desk.ok(&[
        "merge",
        "model.onnx",
        "-i",
        "interface.json",
        "-a",
        folder.to_str().unwrap(),
        "-o",
        "other.onnx",
    ]);
    desk
}

#[test]
fn an_adapter_stays_with_the_weights_that_it_was_trained_on() {
    let desk = desk();
    desk.ok(&training("model.onnx", "ids.jsonl", &["--save-steps", "2"]));
    let on = |model| ["-i", "interface.json", "-a", "out/a", model];
    let refused = |args: &[&str]| {
        let said = desk.fails(args);
        contains(
            &said,
            &[
                "error[base-differs]",
                "its file says blake3:",
                "this model is blake3:",
                "--allow-other-base",
            ],
        );
    };
    refused(&[&on("other.onnx")[..], &["-o", "x.onnx"]].concat());
    refused(&[&["merge"], &on("other.onnx")[..], &["-o", "x.onnx"]].concat());
    let data = ["--data", "ids.jsonl"];
    refused(&[&["eval"], &on("other.onnx")[..], &data].concat());
    let out = desk.command(
        &[
            &on("other.onnx")[..],
            &["-o", "x.onnx", "--allow-other-base"],
        ]
        .concat(),
    );
    assert!(out.status.success());
    contains(&stderr(&out), &["warning[base-differs]"]);
    desk.ok(&[
        &["eval"],
        &on("other.onnx")[..],
        &data,
        &["--allow-other-base"],
    ]
    .concat());

    let merge = [&["merge"], &on("other.onnx")[..]].concat();
    let out = desk.command(&[&merge[..], &["-o", "m.onnx", "--allow-other-base"]].concat());
    assert!(out.status.success());
    contains(&stderr(&out), &["warning[base-differs]"]);

    // An average of adapters for two models belongs to neither.
    let mut there = training("other.onnx", "ids.jsonl", &[]);
    there[9] = "there";
    desk.ok(&there);
    let average = ["adapter", "average", "both", "-a", "out/a", "-a", "there/a"];
    contains(
        &stderr(&desk.command(&average)),
        &["warning[base-differs]", "different base models"],
    );

    // What was only attached to leaves the base model what it was; so does what was folded in and is taken out.
    desk.ok(&[&on("model.onnx")[..], &["-o", "with/"]].concat());
    desk.ok(&["strip", "with/model.a.onnx", "-o", "without.onnx"]);
    desk.ok(&[&on("without.onnx")[..], &["-o", "y/"]].concat());
    desk.ok(&[&["merge"], &on("model.onnx")[..], &["-o", "merged.onnx"]].concat());
    let reset = ["--reset", "-o", "back.onnx"];
    let out = desk.command(&[&["merge"], &on("merged.onnx")[..], &reset].concat());
    assert!(out.status.success(), "{}", stderr(&out));

    // Neither does a run go on over other weights.
    let resume = training(
        "other.onnx",
        "ids.jsonl",
        &["--resume", "--save-steps", "2"],
    );
    contains(&desk.fails(&resume), &["error[resume]", "`base` was"]);
}

#[test]
fn a_base_model_with_weights_that_are_no_numbers_is_refused() {
    let desk = desk();
    let model = onnx_graft::onnx::open(desk.path("model.onnx")).unwrap();
    let tensors = model.graph.initializers().iter();
    let weight = tensors
        .filter_map(|v| model.graph.value(*v).tensor.as_ref())
        .filter(|t| t.dtype == DType::Float && t.dims.len() == 2)
        .last()
        .and_then(TensorData::bytes)
        .unwrap();
    let mut bytes = fs::read(desk.path("model.onnx")).unwrap();
    let at = bytes
        .windows(weight.len())
        .position(|w| w == weight)
        .unwrap();
    for (name, value) in [("nan.onnx", f32::NAN), ("inf.onnx", f32::INFINITY)] {
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        fs::write(desk.path(name), &bytes).unwrap();
        // What only rewrites reads no weight.
        desk.ok(&["-i", "interface.json", "-a", "lora", name, "--dry-run"]);
        desk.ok(&training(name, "ids.jsonl", &["--dry-run"]));
        contains(
            &desk.fails(&training(name, "ids.jsonl", &[])),
            &["error[base-finite]", "1 of `"],
        );
        // Without an adapter, too.
        desk.write("prompts.jsonl", "{\"input_ids\": [3, 4]}\n");
        let prompt = ["generate", name, "--prompts", "prompts.jsonl"];
        let eval = ["eval", name, "--data", "ids.jsonl"];
        let run = [
            "run",
            name,
            "--inputs",
            "inputs.safetensors",
            "--outputs",
            "o.safetensors",
        ];
        for command in [&prompt[..], &eval, &run] {
            contains(&desk.fails(command), &["error[base-finite]", "1 of `"]);
        }
    }
}

#[test]
fn a_folder_belongs_to_one_run() {
    let desk = desk();
    desk.ok(&training("model.onnx", "ids.jsonl", &["--save-steps", "1"]));
    // Of another adapter, which would leave `a` as it is.
    let mut second = training("model.onnx", "ids.jsonl", &["--save-steps", "2"]);
    second[5] = "b=seq_bn";
    let said = desk.fails(&second);
    contains(
        &said,
        &["error[exists]", "run.json exists", "--resume", "--force"],
    );
    // From elsewhere, a run does not go on here.
    fs::create_dir(desk.path("away")).unwrap();
    fs::rename(
        desk.path("out/checkpoint-1"),
        desk.path("away/checkpoint-1"),
    )
    .unwrap();
    let from = [
        &training("model.onnx", "ids.jsonl", &["--save-steps", "1"])[..],
        &["--resume=away/checkpoint-1"],
    ]
    .concat();
    contains(&desk.fails(&from), &["error[exists]"]);

    // Replaced: nothing of the first run is left that could be taken for the second's.
    fs::create_dir(desk.path("out/mine")).unwrap();
    fs::copy(
        desk.path("out/a/adapter_config.json"),
        desk.path("out/mine/adapter_config.json"),
    )
    .unwrap();
    desk.ok(&[&second[..], &["--force"]].concat());
    assert!(desk.path("out/checkpoint-2").exists());
    let kept = fs::read_to_string(desk.path("out/checkpoint-2/checkpoint.json")).unwrap();
    assert!(kept.contains("\"b/adapter_config.json\"") && !kept.contains("\"a/"));
    let run = fs::read_to_string(desk.path("out/run.json")).unwrap();
    let run: serde_json::Value = serde_json::from_str(&run).unwrap();
    let made: Vec<_> = run["made"].as_object().unwrap().keys().collect();
    assert_eq!(made, ["b"]);
    assert!(!desk.path("out/a").exists(), "the earlier run made it");
    let mine = desk.path("out/mine/adapter_config.json");
    assert!(mine.exists(), "no record names it");

    // Results without a checkpoint are nothing to go on from, and not replaced in passing.
    fs::remove_dir_all(desk.path("out/checkpoint-2")).unwrap();
    contains(
        &desk.fails(&[&second[..], &["--resume"]].concat()),
        &["error[exists]", "out/b exists"],
    );
}

#[test]
fn two_processes_do_not_train_into_one_folder() {
    let desk = desk();
    let run = training("model.onnx", "ids.jsonl", &["--force"]);
    desk.ok(&run);
    let path = desk.path("out/.lock");
    assert!(!path.exists(), "a run that ended leaves no file of a lock");
    let lock = File::create(&path).unwrap();
    lock.try_lock().unwrap();
    contains(&desk.fails(&run), &["error[run-locked]", "out"]);
    // One that was killed leaves the file, and no lock.
    drop(lock);
    desk.ok(&run);
    assert!(!path.exists());
}

#[test]
fn a_methods_name_is_not_taken_for_a_folder() {
    let desk = Desk::attached("lora[r=2]");
    let run = |spec: &str, to: &str| {
        let to = format!("{to}/");
        let out = desk.command(&[
            "-i",
            "interface.json",
            "-a",
            spec,
            "model.onnx",
            "-o",
            &to,
            "--dry-run",
        ]);
        assert!(out.status.success(), "{}", stderr(&out));
        (stderr(&out), String::from_utf8(out.stdout).unwrap())
    };
    let (said, fresh) = run("lora", "fresh");
    contains(&said, &["warning[spec-folder]", "./lora"]);
    assert!(!said.contains("loaded `"));
    let (said, saved) = run("./lora", "saved");
    contains(&said, &["loaded `lora` from ./lora: 448 parameters"]);
    assert!(!said.contains("spec-folder"));
    // The method's own rank is 8, the folder's is 2.
    assert_ne!(fresh, saved);
}

#[test]
fn two_weight_files_of_one_adapter_are_the_same() {
    let desk = Desk::attached("a=lora[r=2]");
    let attach = |adapter, to| {
        [
            "-i",
            "interface.json",
            "-a",
            adapter,
            "model.onnx",
            "-o",
            to,
        ]
    };
    desk.ok(&attach("c=a", "x.onnx"));
    desk.ok(&[
        "-i",
        "interface.json",
        "-a",
        "a=lora[r=2]",
        "--seed",
        "7",
        "model.onnx",
        "-o",
        "b/",
    ]);
    fs::copy(
        desk.path("b/a/pytorch_adapter.bin"),
        desk.path("a/pytorch_adapter.bin"),
    )
    .unwrap();
    contains(
        &desk.fails(&attach("d=a", "y.onnx")),
        &[
            "error[weights-differ]",
            "adapter.safetensors",
            "pytorch_adapter.bin",
        ],
    );
    fs::remove_file(desk.path("a/adapter.safetensors")).unwrap();
    desk.ok(&attach("d=a", "y.onnx"));
}

#[test]
fn what_an_adapter_says_of_its_model_is_compared() {
    let desk = Desk::attached("a=lora[r=2]");
    let path = desk.path("a/adapter_config.json");
    let config = fs::read_to_string(&path).unwrap();
    let attach = |to| ["-i", "interface.json", "-a", "b=a", "model.onnx", "-o", to];
    fs::write(&path, config.replace("\"qwen3\"", "\"llama\"")).unwrap();
    let out = desk.command(&attach("x.onnx"));
    assert!(out.status.success());
    contains(
        &stderr(&out),
        &["warning[model-differs]", "`llama`", "`qwen3`"],
    );
    let wide = config.replace("\"hidden_size\": 32", "\"hidden_size\": 48");
    assert_ne!(wide, config);
    fs::write(&path, wide).unwrap();
    contains(
        &desk.fails(&attach("y.onnx")),
        &["error[model-differs]", "width 48", "32 wide"],
    );
    fs::write(&path, config).unwrap();
    let names = desk.path("a/adapter_interface.json");
    let text = fs::read_to_string(&names).unwrap();
    fs::write(names, text.replace("mlp.up_proj", "mlp.gate_proj")).unwrap();
    let out = desk.command(&attach("z.onnx"));
    contains(
        &stderr(&out),
        &[
            "warning[interface-differs]",
            "`layer_intermediate_proj` is \"mlp.gate_proj\" there",
        ],
    );
}

#[test]
fn an_interface_that_names_what_is_not_there_is_refused() {
    let desk = Desk::with("qwen3/model.onnx");
    let text = fs::read_to_string(desk.path("interface.json")).unwrap();
    for (from, to, said) in [
        (
            "\"base_model\": null",
            "\"base_model\": \"transformer\"",
            "`base_model` = \"transformer\"",
        ),
        (
            "\"embed_tokens\"",
            "\"wte\"",
            "`model_embeddings` = \"wte\"",
        ),
        (
            "\"embed_tokens\"",
            "\"embeddings\"",
            "`model_embeddings` = \"embeddings\"",
        ),
        // Of the right width, and elsewhere.
        (
            "\"embed_tokens\"",
            "\"norm\"",
            "`model_embeddings` = \"norm\"",
        ),
        (
            "\"embed_tokens\"",
            "\"layers.0.input_layernorm\"",
            "`model_embeddings` = \"layers.0.input_layernorm\"",
        ),
    ] {
        assert!(text.contains(from), "{from}");
        desk.write("wrong.json", &text.replace(from, to));
        let found = desk.fails(&["-i", "wrong.json", "-a", "lora", "model.onnx"]);
        contains(&found, &["error[select-no-match]", said]);
    }
    desk.write(
        "right.json",
        &text.replace("\"base_model\": null", "\"base_model\": \"model\""),
    );
    desk.ok(&["-i", "right.json", "-a", "lora", "model.onnx"]);
    // A method that the interface does not list.
    let listed = text.replace("\"bottleneck\",", "");
    desk.write("lora.json", &listed);
    let out = desk.command(&["-i", "lora.json", "-a", "seq_bn", "model.onnx"]);
    assert!(out.status.success());
    contains(
        &stderr(&out),
        &["warning[interface-method]", "`bottleneck`"],
    );
}

#[test]
fn nothing_is_learned_at_a_rate_of_0() {
    let desk = desk();
    let mut args = training("model.onnx", "ids.jsonl", &[]);
    args[13] = "0";
    contains(
        &desk.misused(&args),
        &["--learning-rate", "nothing is learned"],
    );
}

#[test]
fn one_class_teaches_nothing() {
    let desk = Desk::with("bert/model.onnx");
    let tokenizer = fixture("tokenizer/tokenizer.json");
    desk.write(
        "one.jsonl",
        &"{\"text\": \"the cat sat\", \"label\": \"good\"}\n".repeat(3),
    );
    let more = [
        "--task",
        "classification",
        "--tokenizer",
        tokenizer.to_str().unwrap(),
    ];
    let args = training("model.onnx", "one.jsonl", &more);
    contains(
        &desk.fails(&args),
        &["error[data-one-class]", "all 3 examples", "`good`"],
    );
    let out = desk.command(&[&args[..], &["--label-names", "good,bad"]].concat());
    assert!(out.status.success(), "{}", stderr(&out));
    contains(&stderr(&out), &["warning[data-one-class]"]);
}

#[test]
fn a_tokenizer_of_another_model_is_found_out() {
    let desk = Desk::with("qwen3/model.onnx");
    let tokenizer = fixture("tokenizer/tokenizer.json");
    let more = ["--tokenizer", tokenizer.to_str().unwrap()];
    let rows = |text: &str| {
        desk.write(
            "rows.jsonl",
            &format!("{{\"text\": \"{text}\"}}\n").repeat(4),
        );
    };
    rows("wholly foreign words here");
    let said = desk.fails(&training("model.onnx", "rows.jsonl", &more));
    contains(
        &said,
        &[
            "error[tokenizer-unknown]",
            "100 % of the tokens",
            "--tokenizer",
        ],
    );
    rows("the cat sat elsewhere");
    let out = desk.command(&training("model.onnx", "rows.jsonl", &more));
    assert!(out.status.success(), "{}", stderr(&out));
    contains(
        &stderr(&out),
        &["25 % of the tokens", "is it the model's own?"],
    );
    let prompt = [
        "generate",
        "model.onnx",
        "-i",
        "interface.json",
        "--prompt",
        "wholly foreign words",
        "--max-new-tokens",
        "1",
    ];
    let out = desk.command(&[&prompt[..], &more].concat());
    assert!(!out.status.success(), "{}", stderr(&out));
    contains(
        &stderr(&out),
        &[
            "error[tokenizer-unknown]",
            "100 % of the prompts' tokens (3 of 3)",
        ],
    );
    // Tokens that the model has no embeddings for.
    let mut own: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&tokenizer).unwrap()).unwrap();
    own["model"]["vocab"]["foreign"] = 40_000.into();
    desk.write("tokenizer.json", &own.to_string());
    rows("the cat foreign");
    let beyond = training(
        "model.onnx",
        "rows.jsonl",
        &["--tokenizer", "tokenizer.json", "--force"],
    );
    contains(
        &desk.fails(&beyond),
        &["token id 40000 is outside", "another model"],
    );
}

#[test]
fn a_base_model_has_no_base_model_inside() {
    let desk = Desk::with("bert/model.onnx");
    let text = fs::read_to_string(desk.path("interface.json")).unwrap();
    desk.write(
        "wrong.json",
        &text.replace("\"base_model\": null", "\"base_model\": \"bert\""),
    );
    contains(
        &desk.fails(&["-i", "wrong.json", "-a", "lora", "model.onnx"]),
        &[
            "error[select-no-match]",
            "`base_model` = \"bert\"",
            "the whole graph",
        ],
    );
    for part in [
        "embeddings.position_embeddings",
        "embeddings.token_type_embeddings",
    ] {
        let other = format!("\"model_embeddings\": \"{part}\"");
        desk.write(
            "wrong.json",
            &text.replace("\"model_embeddings\": \"embeddings\"", &other),
        );
        contains(
            &desk.fails(&["-i", "wrong.json", "-a", "lora", "model.onnx"]),
            &["error[select-no-match]", part],
        );
    }
}

#[test]
fn what_a_file_says_of_its_base_is_read_or_told() {
    let desk = Desk::attached("a=lora[r=2]");
    let path = desk.path("a/adapter_config.json");
    let config = fs::read_to_string(&path).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&config).unwrap();
    let attach = |to| ["-i", "interface.json", "-a", "b=a", "model.onnx", "-o", to];
    let said = |garbage: serde_json::Value, to| {
        let mut json = json.clone();
        json["onnx_graft"]["base"] = garbage;
        fs::write(&path, json.to_string()).unwrap();
        let out = desk.command(&attach(to));
        assert!(out.status.success(), "{}", stderr(&out));
        stderr(&out)
    };
    let good = json["onnx_graft"]["base"].clone();
    assert!(!said(good, "v/").contains("base-garbled"));
    let text = said("garbage".into(), "w/");
    contains(&text, &["warning[base-garbled]", "`onnx_graft.base`"]);
    contains(&said(7.into(), "x/"), &["warning[base-garbled]"]);
    json["onnx_graft"]["weights"]["embed_tokens.weight"] = "f32[2] xyz".into();
    fs::write(&path, json.to_string()).unwrap();
    let out = desk.command(&attach("y/"));
    contains(&stderr(&out), &["base-garbled", "embed_tokens.weight"]);
}

#[test]
fn a_run_that_is_replaced_leaves_nothing_in_its_adapters_folder() {
    let desk = desk();
    desk.ok(&training("model.onnx", "ids.jsonl", &[]));
    for name in [
        "head_config.json",
        "model_head.safetensors",
        "chat_template.jinja",
        "notes.txt",
    ] {
        desk.write(&format!("out/a/{name}"), "{}");
    }
    // What a run would be is told wherever it would go.
    desk.ok(&training("model.onnx", "ids.jsonl", &["--dry-run"]));
    desk.ok(&training("model.onnx", "ids.jsonl", &["--force"]));
    let left = |name: &str| desk.path("out/a").join(name).exists();
    assert!(!left("head_config.json") && !left("model_head.safetensors"));
    assert!(!left("chat_template.jinja"));
    assert!(left("notes.txt"), "what no run writes stays");
}

#[test]
fn nothing_is_attached_into_a_folder_that_is_trained_into() {
    let desk = desk();
    fs::create_dir(desk.path("out")).unwrap();
    let lock = File::create(desk.path("out/.lock")).unwrap();
    lock.try_lock().unwrap();
    let attach = [
        "-i",
        "interface.json",
        "-a",
        "a=lora",
        "model.onnx",
        "-o",
        "out/",
    ];
    contains(&desk.fails(&attach), &["error[run-locked]", "out"]);
    drop(lock);
    desk.ok(&attach);
}

#[test]
fn a_summary_says_what_is_trained() {
    let desk = desk();
    let mut run = training("model.onnx", "ids.jsonl", &["--train-adapters", "b"]);
    run.extend(["-a", "b=lora[r=2]"]);
    let out = desk.command(&run);
    assert!(out.status.success(), "{}", stderr(&out));
    contains(&stderr(&out), &["parameters of b\n"]);
    let page = fs::read_to_string(desk.path("out/report.html")).unwrap();
    let row = |name: &str| {
        let line = page.lines().find(|l| l.starts_with(&format!("{name} ")));
        let cells: Vec<String> = line
            .unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        cells[cells.len() - 2..].join(" ")
    };
    assert_eq!(row("a"), "1 0");
    assert_eq!(row("b"), "1 1");
    // Of two adapters in a file, the one that is not active is none of the graph.
    let json = desk.json(&[
        "-i",
        "interface.json",
        "-a",
        "out/a",
        "-a",
        "out/b",
        "--active",
        "a",
        "model.onnx",
        "-o",
        "two/",
    ]);
    let active = |json: &serde_json::Value| -> Vec<bool> {
        let rows = json["summary"].as_array().unwrap().iter();
        rows.map(|r| r["active"].as_bool().unwrap()).collect()
    };
    assert_eq!(active(&json), [true, false]);
}

#[test]
fn an_adapter_of_another_model_type_is_called_that() {
    let desk = Desk::with("bert/model.onnx");
    fs::copy(fixture("bert/config.json"), desk.path("config.json")).unwrap();
    let other = fixture("gpt2/native/lora_qv");
    let said = desk.fails(&["-a", other.to_str().unwrap(), "model.onnx"]);
    assert!(
        said.contains("was made for a model of the type `gpt2`, and this one is `bert`")
            && said.contains("of its parameters do not fit")
            && said.matches("error[").count() == 1,
        "{said}"
    );
}

#[test]
fn merging_a_fresh_adapter_says_that_nothing_changes() {
    let desk = Desk::with("qwen3/model.onnx");
    let out = desk.command(&[
        "merge",
        "-i",
        "qwen3",
        "-a",
        "lora",
        "model.onnx",
        "-o",
        "m.onnx",
    ]);
    assert!(out.status.success());
    let said = stderr(&out);
    assert!(said.contains("`lora` changes no weight"), "{said}");
}
