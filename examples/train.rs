//! Trains an adapter as a job: the same settings, checks and results as `rewrite train`.
//!
//! ```sh
//! cargo run --release --example train -- fixtures/jobs/word-problems.json target/demo/example
//! ```

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks to a person"
)]

use onnx_graft::Result;
use onnx_graft::job::{Evaluation, Event, Job, TrainEvent};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(file), Some(out)) = (args.next(), args.next()) else {
        eprintln!("usage: train JOB.json FOLDER");
        return ExitCode::from(2);
    };
    match run(&file, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn run(file: &str, out: &str) -> Result<()> {
    // Every setting of a job file can be set by its name; what the file says of paths is relative to the file.
    let job = Job::open(file)?
        .set("output_dir", out)
        .set("overwrite_output_dir", true);
    let report = job.run(&mut |event| {
        match event {
            Event::Note(line) => eprintln!("{line}"),
            Event::Training(TrainEvent::Log(entry)) => {
                eprintln!("step {}: loss {:.4}", entry.step, entry.loss);
            }
            _ => {}
        }
        Ok(())
    })?;
    println!("{} steps, loss {:.4}", report.steps, report.last_loss);
    for adapter in &report.adapters {
        println!("wrote {}", adapter.display());
        measure(file, adapter)?;
    }
    Ok(())
}

/// Measures the model of a job with a trained adapter, on the data that the job sets apart for it.
fn measure(file: &str, adapter: &Path) -> Result<()> {
    let report = Evaluation::open(file)?
        .set("adapter", adapter.display().to_string())
        .run(&mut |_| Ok(()))?;
    for (name, value) in &report.metrics {
        println!("{name} {value:.4}");
    }
    Ok(())
}
