//! What `rewrite merge` says, on quantized models and of several adapters.

use super::desk::{Desk, stderr};
use super::support::fixture;

#[track_caller]
fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

/// A folder with an adapter of the model whose change is a share of the weights that grows with `alpha`.
fn adapter(desk: &Desk, name: &str, alpha: u32, seed: &str) {
    let spec = format!("{name}=lora[r=4,alpha={alpha},init_weights=bert,attn_matrices=['q','v']]");
    let model = fixture("skill/model.onnx");
    let out = format!("{name}.onnx");
    desk.ok(&[
        model.to_str().unwrap(),
        "-a",
        &spec,
        "--seed",
        seed,
        "-o",
        &out,
    ]);
}

#[test]
fn quantized_weights_are_merged_and_the_error_is_told() {
    let desk = Desk::new();
    adapter(&desk, "large", 100, "1");
    adapter(&desk, "small", 1, "2");
    for (model, form) in [
        (
            "skill/model.int4.onnx",
            "MatMulNBits, 4 bits in blocks of 16",
        ),
        (
            "skill/model.int8.onnx",
            "MatMulInteger, uint8 with a scale for each column",
        ),
    ] {
        let path = fixture(model);
        let merge = |name: &str, more: &[&str]| {
            let model = path.to_str().unwrap();
            let common = [
                "merge",
                model,
                "-a",
                name,
                "-o",
                "m.onnx",
                "--force",
                "--allow-other-base",
            ];
            desk.command(&[&common[..], more].concat())
        };
        let out = merge("large", &[]);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        contains(
            &said,
            &[
                "merged large into 6 weights: model.layers.*.self_attn.{q_proj,v_proj}",
                form,
                "rounding leaves an error of",
                "wrote m.onnx",
            ],
        );
        let found: serde_json::Value =
            serde_json::from_slice(&merge("large", &["--json"]).stdout).unwrap();
        assert_eq!(
            (&found["weights"], &found["quantized"]),
            (&6.into(), &6.into())
        );
        assert_eq!(found["forms"][0]["form"], form);
        // Weights that are changed by about a fifth keep most of that in four bits, and nearly all in eight.
        let lost = found["forms"][0]["error_of_change"].as_f64().unwrap();
        assert!(
            lost < if form.contains("4 bits") { 0.5 } else { 0.1 },
            "{lost}"
        );

        let out = merge("small", &[]);
        contains(
            &stderr(&out),
            &["warning[merge-rounding]", "attach the adapter instead"],
        );
        let out = merge("large", &["--reset"]);
        contains(&stderr(&out), &["warning[reset-rounding]"]);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        contains(&said, &["took large out of 6 weights"]);

        let out = merge("zero=lora", &[]);
        contains(&stderr(&out), &["warning[merge-nothing]"]);
    }
}

#[test]
fn a_change_that_no_code_can_tell_is_told() {
    let desk = Desk::new();
    let spec = "a=lora[r=1,alpha=0.00001,init_weights=bert,attn_matrices=['q']]";
    let model = fixture("skill/model.int4.onnx");
    let model = model.to_str().unwrap();
    desk.ok(&[model, "-a", spec, "-o", "a.onnx"]);
    let out = desk.command(&["merge", model, "-a", "a", "-o", "m.onnx"]);
    contains(
        &stderr(&out),
        &["warning[merge-nothing]", "smaller than what the codes"],
    );
}

#[test]
fn adapters_are_combined_as_peft_does_and_merged_at_once() {
    let desk = Desk::new();
    adapter(&desk, "a", 30, "1");
    adapter(&desk, "b", 30, "2");
    let model = fixture("skill/model.onnx");
    let model = model.to_str().unwrap();
    for how in [
        &["ties", "--density", "0.5", "--weights", "0.7,-0.3"][..],
        &["dare_linear", "--density", "0.5", "--seed", "7"],
        &["linear", "--weights", "-1,2"],
        &["svd", "--svd-rank", "3"],
        &["cat"],
    ] {
        let how = [&["--combination-type"], how].concat();
        // The name is part of what random pruning draws by.
        let average = ["adapter", "average", "a_b", "-a", "a", "-a", "b", "--force"];
        desk.ok(&[&average[..], &how].concat());
        desk.ok(&["merge", model, "-a", "a_b", "-o", "one.onnx", "--force"]);
        let both = [
            "merge", model, "-a", "a", "-a", "b", "-o", "two.onnx", "--force",
        ];
        let out = desk.command(&[&both[..], &how].concat());
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        contains(&said, &["merged a_b into 6 weights"]);
        let read = |name: &str| std::fs::read(desk.path(name)).unwrap();
        assert!(read("one.onnx") == read("two.onnx"), "{how:?}");
    }
    let refused = |more: &[&str]| {
        let all = ["merge", model, "-a", "a", "-a", "b", "-o", "x.onnx"];
        stderr(&desk.command(&[&all[..], more].concat()))
    };
    contains(&refused(&["--weights", "1,1"]), &["--combination-type"]);
    contains(
        &refused(&["--combination-type", "ties"]),
        &["needs a --density"],
    );
    contains(
        &refused(&["--combination-type", "cat", "--active", "a"]),
        &["leave one of them out"],
    );
    let fresh = [
        "merge",
        model,
        "-a",
        "lora",
        "-o",
        "x.onnx",
        "--combination-type",
        "cat",
    ];
    contains(&stderr(&desk.command(&fresh)), &["no saved adapter"]);
    assert!(!desk.path("x.onnx").exists());
}
