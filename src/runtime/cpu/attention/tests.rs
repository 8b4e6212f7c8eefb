use super::*;
use crate::runtime::cpu::testing::{close, dot, gradient, values, wide};

/// A few roundings of sums of about 20 products of values below 1.
const TOLERANCE: f64 = 3e-6;

/// Naive attention; keeps no layout, takes dense `[b, s, h, d]`.
fn naive(spec: &Attention<'_>, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let (b, s, h, d) = (spec.q.batch, spec.q.seq, spec.q.heads, spec.q.dim);
    let (t, kv, dv) = (spec.k.seq, spec.k.heads, spec.v.dim);
    let mut out = vec![0.0; b * s * h * dv];
    for vector in 0..b * s * h {
        let (batch, row, head) = (vector / h / s, vector / h % s, vector % h);
        let group = head / (h / kv);
        let at = |key: usize| (batch * t + key) * kv + group;
        let scores: Vec<f64> = (0..t)
            .map(|key| {
                let score =
                    dot(&q[vector * d..][..d], &k[at(key) * d..][..d]) * f64::from(spec.scale);
                if spec.causal.is_some_and(|offset| key > row + offset) {
                    return f64::NEG_INFINITY;
                }
                let Some(Mask { data, dims }) = spec.mask else {
                    return score;
                };
                let pick = |axis: usize, i: usize| if dims[axis] == 1 { 0 } else { i };
                let at = ((pick(0, batch) * dims[1] + pick(1, head)) * dims[2] + pick(2, row))
                    * dims[3]
                    + pick(3, key);
                match data {
                    MaskData::Add(data) => score + f64::from(data[at]),
                    MaskData::Keep(data) if data[at] != 0 => score,
                    MaskData::Keep(_) => f64::NEG_INFINITY,
                }
            })
            .collect();
        let sum: f64 = scores.iter().map(|score| score.exp()).sum();
        for (key, score) in scores
            .iter()
            .enumerate()
            .filter(|(_, score)| score.is_finite())
        {
            for x in 0..dv {
                out[vector * dv + x] += score.exp() / sum * v[at(key) * dv + x];
            }
        }
    }
    out
}

/// Copies dense `[b, s, h, d]` to another layout.
fn spread(x: &[f32], to: Heads, len: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; len];
    for (i, vector) in x.chunks(to.dim).enumerate() {
        let (b, s, h) = (i / to.heads / to.seq, i / to.heads % to.seq, i % to.heads);
        out[to.at(b, s, h)..][..to.dim].copy_from_slice(vector);
    }
    out
}

fn gather(x: &[f32], from: Heads) -> Vec<f32> {
    let order = (0..from.vectors()).map(|i| {
        (
            i / from.heads / from.seq,
            i / from.heads % from.seq,
            i % from.heads,
        )
    });
    order
        .flat_map(|(b, s, h)| x[from.at(b, s, h)..][..from.dim].to_vec())
        .collect()
}

/// Runs forward and backward in the layouts of `spec` and compares with the naive form and its finite differences.
fn check(spec: &Attention<'_>) {
    let sizes = [spec.q, spec.k, spec.v].map(|at| at.vectors() * at.dim);
    let dense = [
        values(sizes[0], 1),
        values(sizes[1], 2),
        values(sizes[2], 3),
    ];
    let [q, k, v] =
        [(0, spec.q), (1, spec.k), (2, spec.v)].map(|(i, at)| spread(&dense[i], at, 2 * sizes[i]));
    let out_len = spec.out.vectors() * spec.out.dim;
    let (mut out, mut lse) = (vec![0.0; 2 * out_len], vec![0.0; spec.out.vectors()]);
    forward(spec, &q, &k, &v, &mut out, &mut lse).unwrap();
    let [wq, wk, wv] = [0, 1, 2].map(|i| wide(&dense[i]));
    close(
        &gather(&out, spec.out),
        &naive(spec, &wq, &wk, &wv),
        TOLERANCE,
    );

    let dout = values(out_len, 4);
    let spread_dout = spread(&dout, spec.out, 2 * out_len);
    let [mut dq, mut dk, mut dv] = sizes.map(|len| vec![f32::NAN; 2 * len]);
    let grads = AttentionGrads {
        dq: &mut dq,
        dk: &mut dk,
        dv: &mut dv,
    };
    backward(spec, (&q, &k, &v), (&out, &lse), &spread_dout, grads).unwrap();
    let dout = wide(&dout);
    let loss = |q: &[f64], k: &[f64], v: &[f64]| dot(&naive(spec, q, k, v), &dout);
    close(
        &gather(&dq, spec.q),
        &gradient(&wq, |q| loss(q, &wk, &wv)),
        TOLERANCE,
    );
    close(
        &gather(&dk, spec.k),
        &gradient(&wk, |k| loss(&wq, k, &wv)),
        TOLERANCE,
    );
    close(
        &gather(&dv, spec.v),
        &gradient(&wv, |v| loss(&wq, &wk, v)),
        TOLERANCE,
    );
}

fn spec(b: usize, (s, t): (usize, usize), (h, kv): (usize, usize), d: usize) -> Attention<'static> {
    Attention {
        q: Heads::bshd(b, s, h, d),
        k: Heads::bshd(b, t, kv, d),
        v: Heads::bshd(b, t, kv, d),
        out: Heads::bshd(b, s, h, d),
        scale: 0.7,
        causal: None,
        mask: None,
    }
}

#[test]
fn plain_and_grouped() {
    check(&spec(2, (3, 5), (2, 2), 4));
    check(&spec(1, (14, 4), (4, 2), 3));
}

#[test]
fn causal_with_and_without_past() {
    check(&Attention {
        causal: Some(0),
        ..spec(1, (5, 5), (2, 1), 4)
    });
    check(&Attention {
        causal: Some(2),
        ..spec(1, (3, 5), (2, 2), 4)
    });
}

#[test]
fn layouts_and_value_size() {
    let (b, s, t, h, kv) = (2, 3, 4, 2, 1);
    let plain = spec(b, (s, t), (h, kv), 4);
    check(&Attention {
        q: Heads::bhsd(b, s, h, 4),
        k: Heads {
            seq_step: 7,
            batch_step: 7 * t,
            ..plain.k
        },
        v: Heads::bhsd(b, t, kv, 5),
        out: Heads::bhsd(b, s, h, 5),
        ..plain
    });
}

#[test]
fn masks_broadcast_and_empty_rows_are_zero() {
    let base = spec(2, (3, 4), (2, 1), 3);
    for dims in [[2, 2, 3, 4], [1, 1, 3, 4], [2, 1, 1, 4], [1, 2, 3, 1]] {
        let len = dims.iter().product();
        let bias = values(len, 5);
        check(&Attention {
            mask: Some(Mask {
                data: MaskData::Add(&bias),
                dims,
            }),
            ..base
        });
        // Row 1 of the first head sees nothing where the mask has rows.
        let keep: Vec<u8> = (0..len)
            .map(|i| u8::from(i % 5 != 0 && (i / 4 != 1 || dims[2] == 1)))
            .collect();
        check(&Attention {
            mask: Some(Mask {
                data: MaskData::Keep(&keep),
                dims,
            }),
            causal: Some(1),
            ..base
        });
    }
    let keep = [0; 4];
    let none = Attention {
        mask: Some(Mask {
            data: MaskData::Keep(&keep),
            dims: [1, 1, 1, 4],
        }),
        ..base
    };
    check(&none);
}

#[test]
fn several_blocks_of_rows_and_threads_give_the_same_bits() {
    let spec = Attention {
        causal: Some(0),
        ..spec(1, (110, 110), (4, 2), 8)
    };
    let (q, k, v) = (
        values(110 * 32, 1),
        values(110 * 16, 2),
        values(110 * 16, 3),
    );
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; 440]);
        let [mut dq, mut dk, mut dv] = [q.len(), k.len(), v.len()].map(|len| vec![0.0; len]);
        pool.install(|| {
            forward(&spec, &q, &k, &v, &mut out, &mut lse).unwrap();
            let grads = AttentionGrads {
                dq: &mut dq,
                dk: &mut dk,
                dv: &mut dv,
            };
            backward(&spec, (&q, &k, &v), (&out, &lse), &q, grads).unwrap();
        });
        (out, lse, dq, dk, dv)
    };
    let one = run(1);
    assert_eq!(one, run(3));
    close(
        &one.0,
        &naive(&spec, &wide(&q), &wide(&k), &wide(&v)),
        TOLERANCE,
    );
}

#[test]
fn sizes_are_checked() {
    let spec = spec(1, (2, 2), (2, 1), 4);
    let (x, mut out, mut lse) = ([0.0; 16], [0.0; 16], [0.0; 4]);
    assert_eq!(forward(&spec, &x, &x, &x, &mut out, &mut lse), Ok(()));
    assert!(forward(&spec, &x[1..], &x, &x, &mut out, &mut lse).is_err());
    assert!(forward(&spec, &x, &x, &x, &mut out, &mut lse[1..]).is_err());
    let three = Attention {
        k: Heads::bshd(1, 2, 3, 4),
        v: Heads::bshd(1, 2, 3, 4),
        ..spec
    };
    assert!(
        forward(
            &three, &[0.0; 24], &[0.0; 24], &[0.0; 24], &mut out, &mut lse
        )
        .is_err()
    );
    let shared = Attention {
        out: Heads {
            seq_step: 0,
            ..spec.out
        },
        ..spec
    };
    assert!(forward(&shared, &x, &x, &x, &mut out, &mut lse).is_err());
    let mask = Mask {
        data: MaskData::Add(&x),
        dims: [1, 1, 3, 2],
    };
    assert!(
        forward(
            &Attention {
                mask: Some(mask),
                ..spec
            },
            &x,
            &x,
            &x,
            &mut out,
            &mut lse
        )
        .is_err()
    );
    let empty = Attention {
        k: Heads::bshd(1, 0, 1, 4),
        v: Heads::bshd(1, 0, 1, 4),
        ..spec
    };
    out.fill(7.0);
    assert_eq!(forward(&empty, &x, &[], &[], &mut out, &mut lse), Ok(()));
    assert!(out.iter().all(|value| *value == 0.0));
}
