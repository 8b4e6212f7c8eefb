//! MAD-X (Pfeiffer et al. 2020): adapters for two languages, with an invertible part behind the embeddings, and one for a task that is
//! learned in the first language. The language adapter stays as it is; it is swapped for the other one, and the task survives.
//!
//! ```sh
//! cargo run --release --example languages -- target/demo/languages
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
        eprintln!("usage: languages FOLDER");
        return ExitCode::from(2);
    };
    match run(Path::new("fixtures"), Path::new(&out)) {
        Ok(learned) => {
            println!("loss of the task: {learned:.3?}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// Losses of the task.
#[derive(Clone, Copy, Debug)]
pub struct Learned {
    /// In the language that it was learned in, by its language adapter alone.
    pub before: f64,
    /// With the task's adapter.
    pub after: f64,
    /// In the other language, by that one's adapter alone.
    pub other_before: f64,
    /// With the task's adapter, which has not seen that language.
    pub other_after: f64,
}

/// Trains the three adapters, and measures the task in both languages.
pub fn run(fixtures: &Path, out: &Path) -> Result<Learned> {
    let model = fixtures.join("qwen3/model.onnx");
    std::fs::create_dir_all(out)?;
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

    // A language is an order of its own words; the task, the same in both, is to close a sentence with the same two.
    let words = [|i: usize| 3 + i % 9, |i: usize| 20 + i % 7];
    let mut languages = Vec::new();
    let mut sentences = Vec::new();
    for (name, word) in ["north", "south"].into_iter().zip(words) {
        let data = rows(&out.join(format!("{name}.jsonl")), word, &[])?;
        let config = [("adapter", json!({ name: "seq_bn_inv[reduction_factor=4]" }))];
        languages.push(train(name, &data, &config)?.join(name));
        sentences.push(rows(
            &out.join(format!("{name}-task.jsonl")),
            word,
            &[44, 45],
        )?);
    }

    // The task is learned on top of the first language, which stays bit by bit what it was.
    let stack = |language: usize, task: Value| {
        let own = json!({ "language": text(&languages[language]), "task": task });
        [("adapter", own), ("active", json!("Stack(language, task)"))]
    };
    let mut settings = stack(0, json!("seq_bn[reduction_factor=4]")).to_vec();
    settings.push(("train_adapters", json!(["task"])));
    let task = train("task", &sentences[0], &settings)?.join("task");

    let measure = |data: &Path, settings: &[(&str, Value)]| -> Result<f64> {
        let eval = Evaluation::open(&model)?
            .set("data", text(data))
            .set("metrics", json!(["loss"]));
        let eval = settings
            .iter()
            .fold(eval, |eval, (key, value)| eval.set(key, value.clone()));
        Ok(eval.run(&mut |_| Ok(()))?.metrics["loss"])
    };
    let alone = |language: usize| [("adapter", json!(text(&languages[language])))];
    Ok(Learned {
        before: measure(&sentences[0], &alone(0))?,
        after: measure(&sentences[0], &stack(0, json!(text(&task))))?,
        other_before: measure(&sentences[1], &alone(1))?,
        other_after: measure(&sentences[1], &stack(1, json!(text(&task))))?,
    })
}

/// A file with four rows of token ids: ten words, and what closes the sentence, of which alone the loss is counted then.
fn rows(path: &Path, word: fn(usize) -> usize, end: &[usize]) -> Result<PathBuf> {
    let mut lines = String::new();
    for start in 0..4 {
        let mut ids: Vec<i64> = (start..start + 10).map(|i| word(i) as i64).collect();
        let mut labels = if end.is_empty() {
            ids.clone()
        } else {
            vec![-100; ids.len()]
        };
        ids.extend(end.iter().map(|i| *i as i64));
        labels.extend(end.iter().map(|i| *i as i64));
        let _ = writeln!(lines, "{}", json!({ "input_ids": ids, "labels": labels }));
    }
    std::fs::write(path, lines)?;
    Ok(path.to_owned())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
