//! Throughput of single products: ours against the `gemm` crate.

use onnx_graft_kernels::gemm::{Mat, MatMut, Precision, Term, gemm};
use std::time::{Duration, Instant};

struct Case {
    name: &'static str,
    m: usize,
    k: usize,
    n: usize,
    trans_a: bool,
    trans_b: bool,
}

const fn case(
    name: &'static str,
    m: usize,
    k: usize,
    n: usize,
    trans_a: bool,
    trans_b: bool,
) -> Case {
    Case {
        name,
        m,
        k,
        n,
        trans_a,
        trans_b,
    }
}

const CASES: [Case; 9] = [
    case("x W", 512, 1024, 3072, false, false),
    case("x W^T", 512, 1024, 3072, false, true),
    case("x W", 512, 3072, 1024, false, false),
    case("x W^T", 512, 3072, 1024, false, true),
    case("x A", 512, 1024, 8, false, false),
    case("x A^T", 512, 1024, 8, false, true),
    case("u B", 512, 8, 1024, false, false),
    case("x^T du", 1024, 512, 8, true, false),
    case("u^T dy", 8, 512, 1024, true, false),
];

/// Prints one line per shape.
pub fn print(repeats: usize) {
    println!(
        "{:8} {:>16} {:>12} {:>12} {:>7}",
        "product", "M x K x N", "ours GF/s", "crate GF/s", "ratio"
    );
    for case in &CASES {
        let Case { m, k, n, .. } = *case;
        let a: Vec<f32> = (0..m * k).map(|i| (i % 13) as f32 - 6.0).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i % 7) as f32 - 3.0).collect();
        let mut c = vec![0.0; m * n];
        let (mut ours, mut other) = (Vec::new(), Vec::new());
        let inner = if m * k * n < 1 << 25 { 20 } else { 1 };
        for _ in 0..repeats {
            ours.push(time(inner, || run_ours(case, &a, &b, &mut c)));
            other.push(time(inner, || run_crate(case, &a, &b, &mut c)));
        }
        let (ours, other) = (best(ours), best(other));
        let rate = |t: Duration| 2.0 * (m * k * n * inner) as f64 / t.as_secs_f64() / 1e9;
        println!(
            "{:8} {:>16} {:>12.1} {:>12.1} {:>7.2}",
            case.name,
            format!("{m} x {k} x {n}"),
            rate(ours),
            rate(other),
            rate(ours) / rate(other)
        );
    }
}

fn best(times: Vec<Duration>) -> Duration {
    times.into_iter().min().unwrap_or_default()
}

fn time(inner: usize, mut work: impl FnMut()) -> Duration {
    let start = Instant::now();
    (0..inner).for_each(|_| work());
    start.elapsed()
}

fn run_ours(case: &Case, a: &[f32], b: &[f32], c: &mut [f32]) {
    let Case {
        m,
        k,
        n,
        trans_a,
        trans_b,
        ..
    } = *case;
    let (ar, ac) = if trans_a { (k, m) } else { (m, k) };
    let (br, bc) = if trans_b { (n, k) } else { (k, n) };
    let a = Mat::new(a, ar, ac).expect("sizes");
    let b = Mat::new(b, br, bc).expect("sizes");
    let term = Term {
        trans_a,
        trans_b,
        ..Term::new(a, b)
    };
    let c = MatMut::new(c, m, n).expect("sizes");
    gemm(Precision::F32, &[term], false, c).expect("sizes");
}

fn run_crate(case: &Case, a: &[f32], b: &[f32], c: &mut [f32]) {
    let Case {
        m,
        k,
        n,
        trans_a,
        trans_b,
        ..
    } = *case;
    let (a_cs, a_rs) = if trans_a {
        (m as isize, 1)
    } else {
        (1, k as isize)
    };
    let (b_cs, b_rs) = if trans_b {
        (k as isize, 1)
    } else {
        (1, n as isize)
    };
    // SAFETY: the slices hold the matrices that the strides describe.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            a_cs,
            a_rs,
            b.as_ptr(),
            b_cs,
            b_rs,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}
