//! One decoder layer of Qwen3-0.6B shape with low-rank adapters on all linears, forward and backward, in several implementations.
//!
//! Each implementation runs in child processes of its own, in turns; times are medians, memory is the peak beyond the weights and
//! inputs that all share. `cargo bench --bench layer -- matmul` prints single products only, `-- layer` the layer only.
#![allow(
    unsafe_code,
    clippy::print_stdout,
    clippy::panic,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a benchmark prints its table and stops at the first surprise"
)]

mod matmul;
mod planned;
mod setup;
mod tape;
mod wired;

use onnx_graft::runtime::Precision;
use onnx_graft_kernels::gemm;
use onnx_graft_kernels::team::Team;
use setup::{Fixture, Gradients};
use std::process::Command;
use std::time::Instant;

/// One implementation of the layer: computes the gradients for the fixture's upstream gradient.
trait Layer {
    fn step(&mut self) -> Gradients;
}

/// Name and constructor of each implementation; the first is the reference.
type Variant = (&'static str, fn(&'static Fixture) -> Box<dyn Layer>);

const VARIANTS: &[Variant] = &[
    ("candle tape", |fixture| Box::new(tape::Tape::new(fixture))),
    ("kernels f32", |fixture| {
        Box::new(wired::Wired::new(fixture, gemm::Precision::F32))
    }),
    ("kernels bf16", |fixture| {
        Box::new(wired::Wired::new(fixture, gemm::Precision::Bf16))
    }),
    ("plan f32", |fixture| {
        Box::new(planned::Planned::new(fixture, Precision::F32))
    }),
    ("plan bf16", |fixture| {
        Box::new(planned::Planned::new(fixture, Precision::Bf16))
    }),
];

const THREADS: &str = "2";
const ROUNDS: usize = 3;
const STEPS: usize = 5;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let team = || Team::new(THREADS.parse().unwrap()).unwrap();
    if let Some(at) = args.iter().position(|arg| arg == "--variant") {
        team().run(|| child(args[at + 1].parse().unwrap()));
        return;
    }
    let wants = |name: &str| {
        !args.iter().any(|arg| arg == "matmul" || arg == "layer")
            || args.iter().any(|arg| arg == name)
    };
    if std::env::var("RAYON_NUM_THREADS").is_err() {
        // The pools of rayon and candle read their size at the start.
        let status = Command::new(std::env::current_exe().unwrap())
            .args(&args)
            .envs([
                ("RAYON_NUM_THREADS", THREADS),
                ("CANDLE_NUM_THREADS", THREADS),
            ])
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    if wants("matmul") {
        team().run(|| matmul::print(15));
        println!();
    }
    if wants("layer") {
        layers();
    }
}

/// What a child measured.
struct Run {
    times: Vec<f64>,
    /// Of all threads, in a step.
    cpu: f64,
    peak: f64,
    faults: f64,
    norms: Vec<f64>,
}

fn layers() {
    let mut runs: Vec<Vec<Run>> = VARIANTS.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for (index, runs) in runs.iter_mut().enumerate() {
            runs.push(measure(index));
        }
    }
    println!(
        "{:14} {:>9} {:>7} {:>9} {:>7} {:>9} {:>7} {:>9} {:>7} {:>9} {:>10}",
        "layer",
        "median ms",
        "ratio",
        "best ms",
        "ratio",
        "cpu ms",
        "ratio",
        "peak MiB",
        "ratio",
        "faults",
        "grads off"
    );
    let base = columns(&runs[0]);
    for ((name, _), run) in VARIANTS.iter().zip(&runs) {
        let own = columns(run);
        print!("{name:14}");
        for (value, base) in own[..4].iter().zip(base) {
            print!(" {value:>9.1} {:>7.2}", value / base);
        }
        let norms = run[0].norms.iter().zip(&runs[0][0].norms);
        let gap = norms.map(|(a, b)| ((a - b) / b).abs()).fold(0.0, f64::max);
        println!(" {:>9.0} {gap:>10.1e}", own[4]);
    }
}

/// Median and best time of a step, its processor time, the peak of memory, and page faults.
fn columns(runs: &[Run]) -> [f64; 5] {
    let times: Vec<f64> = runs.iter().flat_map(|run| run.times.clone()).collect();
    let best = times.iter().copied().fold(f64::INFINITY, f64::min);
    let over = |get: fn(&Run) -> f64| median(runs.iter().map(get).collect());
    [
        median(times),
        best,
        over(|run| run.cpu),
        over(|run| run.peak),
        over(|run| run.faults),
    ]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(index: usize) -> Run {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--variant", &index.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut lines = text.lines().map(|line| {
        line.split(' ')
            .map(|v| v.parse().unwrap())
            .collect::<Vec<f64>>()
    });
    let mut next = || lines.next().unwrap();
    Run {
        times: next(),
        cpu: next()[0],
        peak: next()[0],
        faults: next()[0],
        norms: next(),
    }
}

/// Runs one variant and prints times, peak, faults and the norms of the gradients, a line each.
fn child(index: usize) {
    let fixture: &'static Fixture = Box::leak(Box::new(Fixture::new()));
    let mut layer = VARIANTS[index].1(fixture);
    let before = status("VmRSS:");
    // Starts the peak anew, where the kernel allows it.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let norms = layer.step().norms();
    let (mut times, first_faults, first_cpu) = (Vec::new(), minor_faults(), cpu_time());
    for _ in 0..STEPS {
        let start = Instant::now();
        let gradients = layer.step();
        times.push(start.elapsed().as_secs_f64() * 1e3);
        drop(gradients);
    }
    let faults = (minor_faults() - first_faults) / STEPS as f64;
    let cpu = (cpu_time() - first_cpu) / STEPS as f64;
    let peak = (status("VmHWM:") - before) / 1024.0;
    let join = |values: &[f64]| {
        values
            .iter()
            .map(f64::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    };
    println!(
        "{}\n{cpu}\n{peak}\n{faults}\n{}",
        join(&times),
        join(&norms)
    );
}

/// A line of this process's status, in KiB.
fn status(key: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .unwrap_or("0");
    line.split_whitespace()
        .next()
        .unwrap_or("0")
        .parse()
        .unwrap()
}

fn minor_faults() -> f64 {
    stat(7)
}

/// Milliseconds of processor time of this process.
fn cpu_time() -> f64 {
    const PER_TICK: f64 = 10.0;
    (stat(11) + stat(12)) * PER_TICK
}

/// A field of this process's statistics, counted from the one after the command.
fn stat(field: usize) -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let rest = text.rsplit(')').next().unwrap_or_default();
    rest.split_whitespace()
        .nth(field)
        .unwrap_or("0")
        .parse()
        .unwrap()
}
