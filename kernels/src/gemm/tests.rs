use super::block::PANEL;
use super::packed::{multiply_on_thread, pack, packed_len};
use super::raw::{RawA, RawB};
use super::*;
use crate::isa::Level;
use crate::testing::{close, values};
use crate::{DType, KernelError};
use half::{bf16, f16};

/// Depth of the deepest block that a unit packs.
const KC: usize = 512;

/// Sums of K products of values below 1 in f32 round by less than K * 2^-24 each way; 1e-5 leaves a factor for K <= 600.
const TOLERANCE: f64 = 1e-5;

fn naive(
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
    m: usize,
    n: usize,
    k: usize,
) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            c[i * n + j] = (0..k)
                .map(|x| f64::from(a(i, x)) * f64::from(b(x, j)))
                .sum();
        }
    }
    c
}

/// The product in single precision.
fn single(isa: Isa, terms: &[Term<'_>], accumulate: bool, c: MatMut<'_>) -> Result<()> {
    gemm_on(isa, Precision::F32, terms, accumulate, c)
}

fn stored(dtype: DType, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = vec![0xaa];
    let mut exact = Vec::new();
    for &value in values {
        match dtype {
            DType::F32 => {
                bytes.extend(value.to_le_bytes());
                exact.push(value);
            }
            DType::F16 => {
                bytes.extend(f16::from_f32(value).to_le_bytes());
                exact.push(f16::from_f32(value).to_f32());
            }
            DType::Bf16 => {
                bytes.extend(bf16::from_f32(value).to_le_bytes());
                exact.push(bf16::from_f32(value).to_f32());
            }
        }
    }
    (bytes, exact)
}

#[test]
fn every_layout_and_edge() {
    let shapes = [
        (1, 1, 1),
        (3, 8, 5),
        (12, 32, 16),
        (13, 33, 17),
        (25, 16, 300),
        (30, 49, 513),
        (40, 3, 70),
        (5, 100, 8),
    ];
    for isa in Isa::all() {
        for (m, n, k) in shapes {
            for flags in 0..8 {
                let (ta, tb, accumulate) = (flags & 1 == 1, flags & 2 == 2, flags & 4 == 4);
                let (pad, alpha) = (3, 0.5);
                let (ar, ac) = if ta { (k, m) } else { (m, k) };
                let (br, bc) = if tb { (n, k) } else { (k, n) };
                let a = values(ar * (ac + pad), 1);
                let b = values(br * (bc + pad), 2);
                let start = values(m * n, 3);
                let mut c = start.clone();
                let term = Term {
                    alpha,
                    a: Mat::strided(&a, ar, ac, ac + pad).unwrap(),
                    trans_a: ta,
                    b: Mat::strided(&b, br, bc, bc + pad).unwrap().into(),
                    trans_b: tb,
                };
                single(isa, &[term], accumulate, MatMut::new(&mut c, m, n).unwrap()).unwrap();
                let at = |i: usize, x: usize| {
                    if ta {
                        a[x * (ac + pad) + i]
                    } else {
                        a[i * (ac + pad) + x]
                    }
                };
                let bt = |x: usize, j: usize| {
                    if tb {
                        b[j * (bc + pad) + x]
                    } else {
                        b[x * (bc + pad) + j]
                    }
                };
                let mut wanted = naive(at, bt, m, n, k);
                for (wanted, &start) in wanted.iter_mut().zip(&start) {
                    *wanted = *wanted * f64::from(alpha)
                        + if accumulate { f64::from(start) } else { 0.0 };
                }
                close(&c, &wanted, TOLERANCE);
            }
        }
    }
}

#[test]
fn stored_weights_at_odd_addresses() {
    let (m, n, k) = (14, 35, 19);
    let a = values(m * k, 1);
    for isa in Isa::all() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            for tb in [false, true] {
                for n in [n, 5] {
                    let (bytes, exact) = stored(dtype, &values(k * n, 2));
                    let (rows, cols) = if tb { (n, k) } else { (k, n) };
                    let weight = WeightRef::new(dtype, &bytes[1..], rows, cols).unwrap();
                    let term = Term::new(Mat::new(&a, m, k).unwrap(), weight);
                    let term = if tb { term.trans_b() } else { term };
                    let mut c = vec![f32::NAN; m * n];
                    single(isa, &[term], false, MatMut::new(&mut c, m, n).unwrap()).unwrap();
                    let bt = |x: usize, j: usize| {
                        if tb {
                            exact[j * k + x]
                        } else {
                            exact[x * n + j]
                        }
                    };
                    close(&c, &naive(|i, x| a[i * k + x], bt, m, n, k), TOLERANCE);
                }
            }
        }
    }
}

#[test]
fn a_sum_of_products_is_one_pass() {
    let (m, n, k, rank) = (14, 40, 30, 8);
    let (x, w, u, v) = (
        values(m * k, 1),
        values(k * n, 2),
        values(m * rank, 3),
        values(rank * n, 4),
    );
    for isa in Isa::all() {
        let mut c = vec![f32::NAN; m * n];
        let terms = [
            Term::new(Mat::new(&x, m, k).unwrap(), Mat::new(&w, k, n).unwrap()),
            Term::new(
                Mat::new(&u, m, rank).unwrap(),
                Mat::new(&v, rank, n).unwrap(),
            )
            .scaled(2.0),
        ];
        single(isa, &terms, false, MatMut::new(&mut c, m, n).unwrap()).unwrap();
        let base = naive(|i, y| x[i * k + y], |y, j| w[y * n + j], m, n, k);
        let low = naive(|i, y| u[i * rank + y], |y, j| v[y * n + j], m, n, rank);
        let wanted: Vec<f64> = base.iter().zip(&low).map(|(a, b)| a + 2.0 * b).collect();
        close(&c, &wanted, TOLERANCE);
    }
}

#[test]
fn large_enough_for_threads_gives_the_bits_of_one() {
    let (m, n, k) = (60, 300, 70);
    let (a, b) = (values(m * k, 1), values(k * n, 2));
    let product = |threads: usize| {
        let mut c = vec![0.0; m * n];
        crate::team::Team::new(threads).unwrap().run(|| {
            let term = Term::new(Mat::new(&a, m, k).unwrap(), Mat::new(&b, k, n).unwrap());
            gemm(
                Precision::F32,
                &[term],
                false,
                MatMut::new(&mut c, m, n).unwrap(),
            )
            .unwrap();
        });
        c
    };
    let one = product(1);
    assert_eq!(one, product(2));
    assert_eq!(one, product(3));
    close(
        &one,
        &naive(|i, x| a[i * k + x], |x, j| b[x * n + j], m, n, k),
        TOLERANCE,
    );
}

#[test]
fn sizes_are_checked() {
    let a = [0.0; 6];
    assert!(Mat::new(&a, 2, 4).is_err());
    assert!(Mat::strided(&a, 2, 3, 2).is_err());
    assert!(Mat::new(&a, usize::MAX, 2).is_err());
    let mut c = [1.0; 4];
    let term = Term::new(Mat::new(&a, 2, 3).unwrap(), Mat::new(&a, 2, 3).unwrap());
    let wrong = gemm(
        Precision::F32,
        &[term],
        false,
        MatMut::new(&mut c, 2, 2).unwrap(),
    );
    assert_eq!(
        wrong,
        Err(KernelError::Dim {
            what: "depth of the right operand",
            found: 2,
            expected: 3
        })
    );
    gemm(
        Precision::F32,
        &[],
        false,
        MatMut::new(&mut c, 2, 2).unwrap(),
    )
    .unwrap();
    assert!(c.iter().all(|&x| x == 0.0));
}

#[test]
fn bf16_rounds_operands_only() {
    let units = Isa::with_units();
    if units.is_empty() {
        eprintln!("skipped: this machine multiplies bfloat16 in `f32`");
    }
    let shapes = [
        (32, 32, 32),
        (8, 33, 5),
        (33, 70, 40),
        (40, 64, 600),
        (65, 40, 8),
    ];
    for (m, n, k) in shapes {
        for flags in 0..8 {
            let (ta, tb, accumulate) = (flags & 1 == 1, flags & 2 == 2, flags & 4 == 4);
            let round = |x: f32| bf16::from_f32(x).to_f32();
            let a: Vec<f32> = values(m * k, 1).into_iter().map(round).collect();
            let b: Vec<f32> = values(n * k, 2).into_iter().map(round).collect();
            let start = values(m * n, 3);
            let (ar, ac) = if ta { (k, m) } else { (m, k) };
            let (br, bc) = if tb { (n, k) } else { (k, n) };
            let at = |i: usize, x: usize| if ta { a[x * m + i] } else { a[i * k + x] };
            let bt = |x: usize, j: usize| if tb { b[j * k + x] } else { b[x * n + j] };
            let mut wanted = naive(at, bt, m, n, k);
            for (wanted, &start) in wanted.iter_mut().zip(&start) {
                *wanted = *wanted * 0.5 + if accumulate { f64::from(start) } else { 0.0 };
            }
            for dtype in [DType::F32, DType::Bf16] {
                let (bytes, _) = stored(dtype, &b);
                let weight = WeightRef::new(dtype, &bytes[1..], br, bc).unwrap();
                let term = Term {
                    alpha: 0.5,
                    a: Mat::new(&a, ar, ac).unwrap(),
                    trans_a: ta,
                    b: weight.into(),
                    trans_b: tb,
                };
                for &isa in &units {
                    let mut c = start.clone();
                    let out = MatMut::new(&mut c, m, n).unwrap();
                    gemm_on(isa, Precision::Bf16, &[term], accumulate, out).unwrap();
                    // The operands are bfloat16 already and 0.5 is exact, so only the sums round.
                    close(&c, &wanted, TOLERANCE);
                }
            }
        }
    }
}

/// Operands that are no bfloat16 show that the unit is used, and that it rounds to nearest.
#[test]
fn bf16_rounds_to_nearest() {
    let (m, n, k) = (16, 48, 64);
    let (a, b) = (values(m * k, 1), values(k * n, 2));
    let round = |x: f32| bf16::from_f32(x).to_f32();
    let wanted = naive(
        |i, x| round(a[i * k + x]),
        |x, j| round(b[x * n + j]),
        m,
        n,
        k,
    );
    for isa in Isa::with_units() {
        let mut c = vec![f32::NAN; m * n];
        let term = Term::new(Mat::new(&a, m, k).unwrap(), Mat::new(&b, k, n).unwrap());
        let out = MatMut::new(&mut c, m, n).unwrap();
        gemm_on(isa, Precision::Bf16, &[term], false, out).unwrap();
        close(&c, &wanted, TOLERANCE);
    }
}

#[test]
fn without_a_unit_bf16_is_f32() {
    let (m, n, k) = (16, 48, 64);
    let (a, b) = (values(m * k, 1), values(k * n, 2));
    let isa = Isa::all()[0];
    assert_eq!(isa.level(), Level::Portable);
    let product = |precision| {
        let mut c = vec![f32::NAN; m * n];
        let term = Term::new(Mat::new(&a, m, k).unwrap(), Mat::new(&b, k, n).unwrap());
        let out = MatMut::new(&mut c, m, n).unwrap();
        gemm_on(isa, precision, &[term], false, out).unwrap();
        c
    };
    assert_eq!(product(Precision::Bf16), product(Precision::F32));
}

#[test]
fn deep_products_are_sliced() {
    let (m, n, k) = (2, 3, 17 * KC);
    let (a, b) = (values(m * k, 1), values(k * n, 2));
    let wanted = naive(|i, x| a[i * k + x], |x, j| b[x * n + j], m, n, k);
    for isa in Isa::all() {
        let mut c = vec![0.0; m * n];
        let term = Term::new(Mat::new(&a, m, k).unwrap(), Mat::new(&b, k, n).unwrap());
        single(isa, &[term], false, MatMut::new(&mut c, m, n).unwrap()).unwrap();
        // K is 15 times that of the other tests.
        close(&c, &wanted, 15.0 * TOLERANCE);
    }
}

#[test]
fn a_part_of_a_packed_operand_is_that_part() {
    // Deeper than one packed block; parts begin inside of it, and with its second one.
    let (m, n, k) = (14, 70, KC + 90);
    let (a, b) = (values(m * k, 1), values(k * n, 2));
    for isa in Isa::all() {
        let mut space = vec![0.0; packed_len(k, n)];
        let view = RawB::new(DType::F32, b.as_ptr().cast(), n, false);
        // SAFETY: a dense `[k, n]` matrix.
        let whole = unsafe { pack(isa, view, k, n, &mut space) };
        for (row, column) in [(0, PANEL), (7, 0), (KC - 5, 2 * PANEL), (KC, PANEL)] {
            let (rows, columns) = (k - row - 3, n - column);
            let mut c = vec![f32::NAN; m * columns];
            let left = RawA::new(a.as_ptr(), k, false);
            let to = RawC {
                ptr: c.as_mut_ptr(),
                ld: columns,
            };
            let part = whole.part(row, column);
            // SAFETY: `rows` columns of A; the part has as many rows, and `columns` columns as C has.
            unsafe { multiply_on_thread((m, columns, rows), 0.5, left, &part, to, false) };
            let want = naive(
                |i, x| 0.5 * a[i * k + x],
                |x, j| b[(row + x) * n + column + j],
                m,
                columns,
                rows,
            );
            close(&c, &want, TOLERANCE);
        }
    }
}
