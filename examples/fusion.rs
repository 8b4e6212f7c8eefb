//! `AdapterFusion` in two stages (Pfeiffer et al. 2021): an adapter for each of two kinds of text, then a fusion that mixes both, which are
//! left as they are.
//!
//! ```sh
//! cargo run --release --example fusion -- target/demo/fusion
//! ```

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks to a person"
)]

use onnx_graft::job::{Evaluation, Job};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let Some(out) = std::env::args().nth(1) else {
        eprintln!("usage: fusion FOLDER");
        return ExitCode::from(2);
    };
    match run(Path::new("fixtures"), Path::new(&out)) {
        Ok(losses) => {
            println!("loss on both kinds of text: {losses:.3?}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// The losses on both kinds of text: of the first adapter, of the second one, and of their fusion.
pub fn run(fixtures: &Path, out: &Path) -> Result<[f64; 3]> {
    let model = fixtures.join("qwen3/model.onnx");
    std::fs::create_dir_all(out)?;
    let rising = rows(&out.join("rising.jsonl"), &[|i| 3 + i % 9])?;
    let falling = rows(&out.join("falling.jsonl"), &[|i| 40 - i % 7])?;
    let both = rows(&out.join("both.jsonl"), &[|i| 3 + i % 9, |i| 40 - i % 7])?;
    let train = |name: &str, data: &Path, settings: &[(&str, Value)]| -> Result<PathBuf> {
        let folder = out.join(name);
        let job = Job::open(&model)?
            .set("data", text(data))
            .set("output_dir", text(&folder))
            .set("overwrite_output_dir", true)
            .set("learning_rate", 1e-2)
            .set("max_steps", 40);
        let job = settings
            .iter()
            .fold(job, |job, (key, value)| job.set(key, value.clone()));
        job.run(&mut |_| Ok(()))?;
        Ok(folder)
    };

    // First stage: each adapter for itself.
    let config = |name: &str| [("adapter", json!({ name: "seq_bn[reduction_factor=4]" }))];
    let a = train("first", &rising, &config("rising"))?.join("rising");
    let b = train("second", &falling, &config("falling"))?.join("falling");

    // Second stage: the fusion alone learns which of them to listen to.
    let adapters = json!({ "rising": text(&a), "falling": text(&b) });
    let setup = "Fuse(rising, falling)";
    let fused = [("adapter", adapters.clone()), ("active", json!(setup))];
    let fusion = train("fusion", &both, &fused)?.join("rising,falling");

    let measure = |settings: &[(&str, Value)]| -> Result<f64> {
        let eval = Evaluation::open(&model)?
            .set("data", text(&both))
            .set("metrics", json!(["loss"]));
        let eval = settings
            .iter()
            .fold(eval, |eval, (key, value)| eval.set(key, value.clone()));
        Ok(eval.run(&mut |_| Ok(()))?.metrics["loss"])
    };
    Ok([
        measure(&[("adapter", json!(text(&a)))])?,
        measure(&[("adapter", json!(text(&b)))])?,
        measure(&[
            ("adapter", adapters),
            ("active", json!(setup)),
            ("fusion", json!(text(&fusion))),
        ])?,
    ])
}

/// A file with four rows of token ids for each pattern.
fn rows(path: &Path, patterns: &[fn(usize) -> usize]) -> Result<PathBuf> {
    let mut lines = String::new();
    for pattern in patterns {
        for start in 0..4 {
            let ids: Vec<usize> = (start..start + 12).map(pattern).collect();
            let _ = writeln!(lines, "{}", json!({ "input_ids": ids }));
        }
    }
    std::fs::write(path, lines)?;
    Ok(path.to_owned())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
