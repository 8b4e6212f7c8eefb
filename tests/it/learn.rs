//! A model that learns: what it cannot do before, it does after, and does not without the adapter.

use super::desk::Desk;
use super::support::fixture;

/// Share of test problems whose final number is right.
fn exact_match(desk: &Desk, adapter: Option<&str>) -> f64 {
    let job = fixture("jobs/word-problems.json");
    let data = fixture("skill/test.jsonl");
    let mut args = vec![
        "eval",
        job.to_str().unwrap(),
        "--data",
        data.to_str().unwrap(),
        "--metrics",
        "final_number",
        "--quiet",
    ];
    args.extend([
        "--max-new-tokens",
        "12",
        "--batch-size",
        "20",
        "--max-eval-samples",
        "40",
    ]);
    if let Some(folder) = adapter {
        args.extend(["--adapter", folder]);
    }
    desk.json(&args)["metrics"]["final_number"]
        .as_f64()
        .unwrap()
}

#[track_caller]
fn learns(adapter: &str) {
    let desk = Desk::new();
    let job = fixture("jobs/word-problems.json");
    let mut args = vec!["train", job.to_str().unwrap(), "--output-dir", "out"];
    args.extend([
        "--adapter",
        adapter,
        "--eval-strategy",
        "no",
        "--load-best-model-at-end=false",
        "--save-strategy",
        "no",
        "--quiet",
    ]);
    let report = desk.json(&args);
    let losses: Vec<f64> = report["losses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l.as_f64().unwrap())
        .collect();
    assert!(losses[losses.len() - 1] < 0.1 * losses[0], "{losses:?}");
    let after = exact_match(&desk, Some("out/math"));
    // Seen with five seeds: 0.79 to 0.81 for LoRA, 0.71 to 0.79 for the bottleneck adapter, of all hundred problems. Rounding differs
    // between machines, and with it the run.
    assert!(after > 0.6, "exact match after training: {after}");
}

#[test]
fn the_base_model_cannot_do_it() {
    assert!(exact_match(&Desk::new(), None) < 0.05);
}

#[test]
fn lora_learns_it() {
    learns(
        "math=lora[r=8,alpha=16,attn_matrices=['q','k','v'],intermediate_lora=True,output_lora=True]",
    );
}

#[test]
fn a_bottleneck_adapter_learns_it() {
    learns("math=par_bn[reduction_factor=1]");
}

/// The files that are deployed are trained as they are.
#[test]
fn quantized_models_learn_as_well() {
    for model in ["skill/model.int4.onnx", "skill/model.int8.onnx"] {
        let desk = Desk::new();
        let (job, model) = (fixture("jobs/word-problems.json"), fixture(model));
        let job = std::fs::read_to_string(job).unwrap();
        let job = job
            .replace("../skill/model.onnx", model.to_str().unwrap())
            .replace("../skill", fixture("skill").to_str().unwrap());
        std::fs::write(desk.path("job.json"), job).unwrap();
        let report = desk.json(&[
            "train",
            "job.json",
            "--output-dir",
            "out",
            "--max-steps",
            "40",
            "--eval-strategy",
            "no",
            "--load-best-model-at-end=false",
            "--save-strategy",
            "no",
            "--quiet",
        ]);
        let losses: Vec<f64> = report["losses"]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| l.as_f64().unwrap())
            .collect();
        // The float model comes from 5.18 to 0.4 in as many steps.
        assert!(losses[losses.len() - 1] < 0.15 * losses[0], "{losses:?}");
    }
}
