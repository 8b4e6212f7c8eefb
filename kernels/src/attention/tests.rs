use super::*;
use crate::testing::{close, dot, gradient, values, wide};

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

/// Runs forward and backward in the layouts of `spec` with every instruction set, and compares with the naive form and its finite
/// differences.
fn check(spec: &Attention<'_>) {
    let sizes = [spec.q, spec.k, spec.v].map(|at| at.vectors() * at.dim);
    let dense = [
        values(sizes[0], 1),
        values(sizes[1], 2),
        values(sizes[2], 3),
    ];
    let [wq, wk, wv] = [0, 1, 2].map(|i| wide(&dense[i]));
    let out_len = spec.out.vectors() * spec.out.dim;
    let dout = values(out_len, 4);
    let exact = wide(&dout);
    let loss = |q: &[f64], k: &[f64], v: &[f64]| dot(&naive(spec, q, k, v), &exact);
    let wanted = [
        naive(spec, &wq, &wk, &wv),
        gradient(&wq, |q| loss(q, &wk, &wv)),
        gradient(&wk, |k| loss(&wq, k, &wv)),
        gradient(&wv, |v| loss(&wq, &wk, v)),
    ];
    let [q, k, v] =
        [(0, spec.q), (1, spec.k), (2, spec.v)].map(|(i, at)| spread(&dense[i], at, 2 * sizes[i]));
    let dout = spread(&dout, spec.out, 2 * out_len);
    for isa in Isa::all() {
        let (mut out, mut lse) = (vec![0.0; 2 * out_len], vec![0.0; spec.out.vectors()]);
        forward_on(isa, spec, (&q, &k, &v), &mut out, &mut lse).unwrap();
        let [mut dq, mut dk, mut dv] = sizes.map(|len| vec![f32::NAN; 2 * len]);
        let grads = AttentionGrads {
            dq: &mut dq,
            dk: &mut dk,
            dv: &mut dv,
        };
        backward_on(isa, spec, (&q, &k, &v), (&out, &lse), &dout, grads).unwrap();
        let found = [
            gather(&out, spec.out),
            gather(&dq, spec.q),
            gather(&dk, spec.k),
            gather(&dv, spec.v),
        ];
        for (found, wanted) in found.iter().zip(&wanted) {
            close(found, wanted, TOLERANCE);
        }
    }
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
        live: None,
    }
}

#[test]
fn padding_gives_zeros_and_nothing_else_changes() {
    let (seq, counts) = (75, [75, 9, 0, 50]);
    let whole = spec(4, (seq, seq), (4, 2), 8);
    let hidden = |b: usize, key: usize| if key < counts[b] { 0.0 } else { f32::MIN };
    let keys = (0..4 * seq).map(|i| hidden(i / seq, i % seq));
    let mask: Vec<f32> = keys.collect();
    let whole = Attention {
        mask: Some(Mask {
            data: MaskData::Add(&mask),
            dims: [4, 1, 1, seq],
        }),
        ..whole
    };
    let live = Attention {
        live: Some(&counts),
        ..whole
    };
    let (wide, narrow) = (4 * seq * 32, 4 * seq * 16);
    let (q, k, v) = (values(wide, 1), values(narrow, 2), values(narrow, 3));
    let counts_row = |i: usize, width: usize| i / width % seq < counts[i / width / seq];
    let mut dout = values(wide, 4);
    for (i, x) in dout.iter_mut().enumerate() {
        *x = if counts_row(i, 32) { *x } else { 0.0 };
    }
    let run = |spec: &Attention<'_>| {
        let (mut out, mut lse) = (vec![7.0; wide], vec![7.0; 4 * 4 * seq]);
        forward(spec, &q, &k, &v, &mut out, &mut lse).unwrap();
        let [mut dq, mut dk, mut dv] = [wide, narrow, narrow].map(|n| vec![7.0; n]);
        let grads = AttentionGrads {
            dq: &mut dq,
            dk: &mut dk,
            dv: &mut dv,
        };
        backward(spec, (&q, &k, &v), (&out, &lse), &dout, grads).unwrap();
        [out, dq, dk, dv]
    };
    let (wanted, found) = (run(&whole), run(&live));
    for (at, (wanted, found)) in wanted.iter().zip(&found).enumerate() {
        let width = if at < 2 { 32 } else { 16 };
        let wanted = wanted.iter().enumerate();
        let wanted = wanted.map(|(i, x)| if counts_row(i, width) { *x } else { 0.0 });
        let bits = |x: f32| (x + 0.0).to_bits();
        let same = found.iter().zip(wanted).all(|(a, b)| bits(*a) == bits(b));
        assert!(same, "{at}");
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
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; 440]);
        let [mut dq, mut dk, mut dv] = [q.len(), k.len(), v.len()].map(|len| vec![0.0; len]);
        crate::team::Team::new(threads).unwrap().run(|| {
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

#[test]
fn vectors_of_no_elements_give_the_mean() {
    let without = Attention {
        q: Heads::bshd(1, 2, 1, 0),
        k: Heads::bshd(1, 3, 1, 0),
        ..spec(1, (2, 3), (1, 1), 2)
    };
    let v = [1.0, 2.0, 3.0, 4.0, 5.0, 9.0];
    // Whatever stands in the scratch of this thread.
    crate::scratch::with_scratch(1 << 12, |space| space.fill(f32::NAN));
    let (mut out, mut lse) = ([7.0; 4], [7.0; 2]);
    forward(&without, &[], &[], &v, &mut out, &mut lse).unwrap();
    close(&out, &[3.0, 5.0, 3.0, 5.0], TOLERANCE);
    close(&lse, &[3f64.ln(); 2], TOLERANCE);
}

/// A mask `[1, 1, rows, before + rows]` that separates segments; the `before` first keys are everyone's.
fn separating(segments: &[usize], before: usize, hidden: f32) -> Vec<f32> {
    let of = |i: usize| {
        let mut end = 0;
        segments.iter().position(|n| {
            end += n;
            i < end
        })
    };
    let rows: usize = segments.iter().sum();
    let value = |row: usize, key: usize| {
        let seen = key < before || (of(key - before) == of(row) && key - before <= row);
        if seen { 0.0 } else { hidden }
    };
    (0..rows)
        .flat_map(|row| (0..before + rows).map(move |key| (row, key)))
        .map(|(row, key)| value(row, key))
        .collect()
}

#[expect(
    clippy::large_types_passed_by_value,
    reason = "the result takes its fields"
)]
fn masked<'a>(spec: Attention<'a>, mask: &'a [f32]) -> Attention<'a> {
    Attention {
        mask: Some(Mask {
            data: MaskData::Add(mask),
            dims: [1, 1, spec.q.seq, spec.k.seq],
        }),
        ..spec
    }
}

#[test]
fn blocks_need_the_keys_of_their_segments_only() {
    let mask = separating(&[70, 130], 0, f32::MIN / 2.0);
    let base = spec(1, (200, 200), (1, 1), 4);
    let spans = Spans::new(&masked(base, &mask));
    // Panels of 32 keys, blocks of 48 rows: the second block holds both segments, and is causal besides.
    let ends = |spans: &[std::ops::Range<usize>]| -> Vec<(usize, usize)> {
        spans.iter().map(|s| (s.start, s.end)).collect()
    };
    let needed: Vec<_> = (0..5).map(|block| ends(spans.of(0, 0, block))).collect();
    assert_eq!(
        needed,
        [
            vec![(0, 48)],
            vec![(0, 96)],
            vec![(64, 144)],
            vec![(64, 192)],
            vec![(64, 200)]
        ]
    );
    // Everyone's keys are a span of their own.
    let mask = separating(&[64, 136], 5, f32::NEG_INFINITY);
    let base = spec(1, (200, 205), (1, 1), 4);
    let spans = Spans::new(&masked(base, &mask));
    assert_eq!(spans.of(0, 0, 2), [0..32, 64..149]);
    // A row that sees nothing still has probabilities: its block needs all keys.
    let mut mask = separating(&[70, 130], 0, -1e35);
    mask[150 * 200..151 * 200].fill(-1e35);
    let base = spec(1, (200, 200), (1, 1), 4);
    let spans = Spans::new(&masked(base, &mask));
    assert_eq!(
        (ends(spans.of(0, 0, 0)), ends(spans.of(0, 0, 3))),
        (vec![(0, 48)], vec![(0, 200)])
    );
}

/// Result and gradients.
fn both(spec: &Attention<'_>, [q, k, v, dout]: [&[f32]; 4]) -> [Vec<f32>; 4] {
    let (mut out, mut lse) = (vec![f32::NAN; dout.len()], vec![0.0; spec.out.vectors()]);
    forward(spec, q, k, v, &mut out, &mut lse).unwrap();
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| vec![f32::NAN; x.len()]);
    let grads = AttentionGrads {
        dq: &mut dq,
        dk: &mut dk,
        dv: &mut dv,
    };
    backward(spec, (q, k, v), (&out, &lse), dout, grads).unwrap();
    [out, dq, dk, dv]
}

#[test]
fn segments_of_one_row_are_attended_apart() {
    // More keys than one packed block of depth has, in segments that cross its border.
    let (segments, heads, kv, d, before) = ([330, 50, 270], 2, 1, 4, 3);
    let rows: usize = segments.iter().sum();
    let keys = before + rows;
    let (q, dout) = (values(rows * heads * d, 1), values(rows * heads * d, 2));
    let (k, v) = (values(keys * kv * d, 3), values(keys * kv * d, 4));
    let mask = separating(&segments, before, f32::MIN / 2.0);
    let spec_of = |s, t| spec(1, (s, t), (heads, kv), d);
    let [out, dq, dk, dv] = both(&masked(spec_of(rows, keys), &mask), [&q, &k, &v, &dout]);
    let common = before * kv * d;
    let (mut dk_common, mut dv_common) = (vec![0.0; common], vec![0.0; common]);
    let mut at = 0;
    for n in segments {
        let rows = at * heads * d..(at + n) * heads * d;
        let own = (before + at) * kv * d..(before + at + n) * kv * d;
        let part = |x: &[f32]| [&x[..common], &x[own.clone()]].concat();
        let causal = Attention {
            causal: Some(before),
            ..spec_of(n, before + n)
        };
        let [o, a, b, c] = both(
            &causal,
            [&q[rows.clone()], &part(&k), &part(&v), &dout[rows.clone()]],
        );
        close(&out[rows.clone()], &wide(&o), TOLERANCE);
        close(&dq[rows], &wide(&a), TOLERANCE);
        close(&dk[own.clone()], &wide(&b[common..]), TOLERANCE);
        close(&dv[own], &wide(&c[common..]), TOLERANCE);
        dk_common.iter_mut().zip(&b).for_each(|(sum, x)| *sum += x);
        dv_common.iter_mut().zip(&c).for_each(|(sum, x)| *sum += x);
        at += n;
    }
    // Sums over all rows, of which the parts were rounded.
    close(&dk[..common], &wide(&dk_common), 10.0 * TOLERANCE);
    close(&dv[..common], &wide(&dv_common), 10.0 * TOLERANCE);
}
