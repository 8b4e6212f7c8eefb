//! `RNN`, `GRU`, `LSTM`: one row of a batch after the other, step by step. `LinearAttention`: the same over keys and values.

use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, size_of};
use crate::ir::AttrValue;
use crate::runtime::value::{Fault, Floats, KResult};
use crate::runtime::walk::count;

/// A function of one number.
type Function = Box<dyn Fn(f32) -> f32 + Send + Sync>;

#[derive(Clone, Copy, PartialEq)]
enum Cell {
    Rnn,
    Gru,
    Lstm,
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Cell::Rnn => 1,
            Cell::Gru => 3,
            Cell::Lstm => 4,
        }
    }

    fn activations(self) -> &'static [&'static str] {
        match self {
            Cell::Rnn => &["Tanh"],
            Cell::Gru => &["Sigmoid", "Tanh"],
            Cell::Lstm => &["Sigmoid", "Tanh", "Tanh"],
        }
    }
}

struct Recurrent {
    cell: Cell,
    /// Those of each direction, one after the other.
    activations: Vec<Function>,
    backward: Vec<bool>,
    batch_first: bool,
    before_reset: bool,
    input_forget: bool,
    clip: Option<f32>,
}

fn function(name: &str, alpha: Option<f32>, beta: Option<f32>) -> KResult<Function> {
    let (a, b) = (alpha.unwrap_or(1.0), beta.unwrap_or(0.0));
    Ok(match name.to_ascii_lowercase().as_str() {
        "sigmoid" => Box::new(|x: f32| 1.0 / (1.0 + (-x).exp())),
        "tanh" => Box::new(f32::tanh),
        "relu" => Box::new(|x: f32| x.max(0.0)),
        "affine" => Box::new(move |x| a * x + b),
        "leakyrelu" => {
            let a = alpha.unwrap_or(0.01);
            Box::new(move |x| if x < 0.0 { a * x } else { x })
        }
        "thresholdedrelu" => Box::new(move |x| if x > a { x } else { 0.0 }),
        "scaledtanh" => Box::new(move |x| a * (b * x).tanh()),
        "hardsigmoid" => {
            let (a, b) = (alpha.unwrap_or(0.2), beta.unwrap_or(0.5));
            Box::new(move |x| (a * x + b).clamp(0.0, 1.0))
        }
        "elu" => Box::new(move |x| if x < 0.0 { a * x.exp_m1() } else { x }),
        "softsign" => Box::new(|x: f32| x / (1.0 + x.abs())),
        "softplus" => Box::new(|x: f32| x.exp().ln_1p()),
        other => return Err(Fault(format!("activations with \"{other}\""))),
    })
}

/// `out[i] += Σ_j m[i, j]·v[j]`.
fn add_product(out: &mut [f32], m: &[f32], v: &[f32]) {
    for (o, row) in out.iter_mut().zip(m.chunks(v.len().max(1))) {
        *o += row.iter().zip(v).map(|(a, b)| a * b).sum::<f32>();
    }
}

/// Weights of one direction.
struct Weights<'a> {
    w: &'a [f32],
    r: &'a [f32],
    b: Option<&'a [f32]>,
    p: Option<&'a [f32]>,
}

impl Recurrent {
    fn clipped(&self, v: &mut [f32]) {
        if let Some(c) = self.clip {
            v.iter_mut().for_each(|x| *x = x.clamp(-c, c));
        }
    }

    /// The next state of one row, in place; `c` is the cell of an `LSTM`.
    fn step(&self, direction: usize, x: &[f32], of: &Weights<'_>, h: &mut [f32], c: &mut [f32]) {
        let n = h.len();
        let gates = self.cell.gates();
        let f = &self.activations[direction * self.cell.activations().len()..];
        let bias = |k: usize, i: usize| of.b.map_or(0.0, |b| b[k * n + i]);
        let mut from_x = vec![0.0; gates * n];
        add_product(&mut from_x, of.w, x);
        for (k, part) in from_x.chunks_mut(n.max(1)).enumerate() {
            part.iter_mut()
                .enumerate()
                .for_each(|(i, v)| *v += bias(k, i));
        }
        let mut from_h = vec![0.0; gates * n];
        add_product(&mut from_h, of.r, h);
        for (k, part) in from_h.chunks_mut(n.max(1)).enumerate() {
            part.iter_mut()
                .enumerate()
                .for_each(|(i, v)| *v += bias(gates + k, i));
        }
        match self.cell {
            Cell::Rnn => {
                from_x.iter_mut().zip(&from_h).for_each(|(a, b)| *a += b);
                self.clipped(&mut from_x);
                h.iter_mut().zip(from_x).for_each(|(h, v)| *h = f[0](v));
            }
            Cell::Gru => {
                let mut gate: Vec<f32> = (0..2 * n).map(|i| from_x[i] + from_h[i]).collect();
                self.clipped(&mut gate);
                gate.iter_mut().for_each(|v| *v = f[0](*v));
                let (z, r) = gate.split_at(n);
                let mut new: Vec<f32> = if self.before_reset {
                    (0..n)
                        .map(|i| from_x[2 * n + i] + r[i] * from_h[2 * n + i])
                        .collect()
                } else {
                    let reset: Vec<f32> = r.iter().zip(&*h).map(|(r, h)| r * h).collect();
                    let mut v = vec![0.0; n];
                    add_product(&mut v, &of.r[2 * n * n..], &reset);
                    (0..n)
                        .map(|i| v[i] + from_x[2 * n + i] + bias(5, i))
                        .collect()
                };
                self.clipped(&mut new);
                for i in 0..n {
                    h[i] = (1.0 - z[i]) * f[1](new[i]) + z[i] * h[i];
                }
            }
            Cell::Lstm => {
                from_x.iter_mut().zip(&from_h).for_each(|(a, b)| *a += b);
                let peek = |k: usize, i: usize| of.p.map_or(0.0, |p| p[k * n + i]);
                for i in 0..n {
                    let clip = |x: f32| self.clip.map_or(x, |c| x.clamp(-c, c));
                    let gate = f[0](clip(from_x[i] + peek(0, i) * c[i]));
                    let forget = if self.input_forget {
                        1.0 - gate
                    } else {
                        f[0](clip(from_x[2 * n + i] + peek(2, i) * c[i]))
                    };
                    c[i] = forget * c[i] + gate * f[1](clip(from_x[3 * n + i]));
                    let out = f[0](clip(from_x[n + i] + peek(1, i) * c[i]));
                    h[i] = out * f[2](c[i]);
                }
            }
        }
    }
}

impl Kernel for Recurrent {
    /// `(x, w, r, b?, lengths?, h?, c?, p?) -> (y, h, c)`
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let lengths = ins.ints_opt(4)?;
        let mut part = |slot| ins.dense_opt(slot, cx);
        let (x, w, r, b) = (part(0)?, part(1)?, part(2)?, part(3)?);
        let (h0, c0, p) = (part(5)?, part(6)?, part(7)?);
        let (Some(x), Some(w), Some(r)) = (x, w, r) else {
            return Err("an operand is absent".into());
        };
        let [a0, a1, width] = *x.dims() else {
            return Err(Fault(format!("an input of {:?}", x.dims())));
        };
        let (steps, batch) = if self.batch_first { (a1, a0) } else { (a0, a1) };
        let n = r.dims().last().copied().unwrap_or(0);
        let (dirs, gates) = (self.backward.len(), self.cell.gates());
        let fits = w.dims() == [dirs, gates * n, width]
            && r.dims() == [dirs, gates * n, n]
            && b.as_ref().is_none_or(|b| b.dims() == [dirs, 2 * gates * n])
            && p.as_ref().is_none_or(|p| p.dims() == [dirs, 3 * n])
            && lengths.as_ref().is_none_or(|l| l.len() == batch);
        if !fits {
            return Err(Fault(format!(
                "weights of {:?} and {:?} for an input of {:?} in {dirs} directions",
                w.dims(),
                r.dims(),
                x.dims()
            )));
        }
        let state = |v: &Option<Floats>| -> KResult<Vec<f32>> {
            match v {
                None => Ok(vec![0.0; dirs * batch * n]),
                Some(v) if v.tensor().elem_count() == dirs * batch * n => v.to_vec(),
                Some(v) => Err(Fault(format!("a state of {:?}", v.dims()))),
            }
        };
        let (mut h, mut c) = (state(&h0)?, state(&c0)?);
        let (xs, ws, rs) = (x.to_vec()?, w.to_vec()?, r.to_vec()?);
        let bs = b.map(|b| b.to_vec()).transpose()?;
        let ps = p.map(|p| p.to_vec()).transpose()?;
        let mut y = cx.zeros(count(&[steps, dirs, batch, n])?);
        for d in 0..dirs {
            let part = |v: &'_ [f32]| -> (usize, usize) {
                let each = v.len() / dirs;
                (d * each, (d + 1) * each)
            };
            let cut = |v: &'_ Vec<f32>| part(v);
            let of = Weights {
                w: &ws[cut(&ws).0..cut(&ws).1],
                r: &rs[cut(&rs).0..cut(&rs).1],
                b: bs.as_ref().map(|v| &v[cut(v).0..cut(v).1]),
                p: ps.as_ref().map(|v| &v[cut(v).0..cut(v).1]),
            };
            for row in 0..batch {
                let length = match &lengths {
                    Some(l) => size_of(l[row])?.min(steps),
                    None => steps,
                };
                let at = if self.batch_first {
                    (row * dirs + d) * n
                } else {
                    (d * batch + row) * n
                };
                let (h, c) = (&mut h[at..at + n], &mut c[at..at + n]);
                for t in 0..length {
                    let t = if self.backward[d] { length - 1 - t } else { t };
                    let from = if self.batch_first {
                        (row * steps + t) * width
                    } else {
                        (t * batch + row) * width
                    };
                    self.step(d, &xs[from..from + width], &of, h, c);
                    let to = if self.batch_first {
                        ((row * steps + t) * dirs + d) * n
                    } else {
                        ((t * dirs + d) * batch + row) * n
                    };
                    y[to..to + n].copy_from_slice(h);
                }
            }
        }
        let (all, last) = if self.batch_first {
            ([batch, steps, dirs, n], [batch, dirs, n])
        } else {
            ([steps, dirs, batch, n], [dirs, batch, n])
        };
        let mut outs = vec![
            Some(cx.floats(y, &all, x.dtype())?.into()),
            Some(cx.floats(h, &last, x.dtype())?.into()),
        ];
        if self.cell == Cell::Lstm {
            outs.push(Some(cx.floats(c, &last, x.dtype())?.into()));
        }
        Ok(outs)
    }
}

fn make(cx: &mut BuildCx<'_>, cell: Cell) -> KResult<Box<dyn Kernel>> {
    let backward = match cx.node.str("direction").unwrap_or("forward") {
        "forward" => vec![false],
        "reverse" => vec![true],
        "bidirectional" => vec![false, true],
        other => return Err(Fault(format!("direction = \"{other}\""))),
    };
    let names: Vec<String> = match cx.node.attr("activations") {
        Some(AttrValue::Strings(all)) => all
            .iter()
            .map(|s| String::from_utf8_lossy(s).into_owned())
            .collect(),
        _ => backward
            .iter()
            .flat_map(|_| cell.activations().iter().map(|s| (*s).to_owned()))
            .collect(),
    };
    if names.len() != backward.len() * cell.activations().len() {
        return Err(Fault(format!("{} activations", names.len())));
    }
    let list = |name: &str| {
        cx.node
            .attr(name)
            .and_then(AttrValue::as_floats)
            .unwrap_or(&[])
    };
    let (alphas, betas) = (list("activation_alpha"), list("activation_beta"));
    let activations = names
        .iter()
        .enumerate()
        .map(|(i, name)| function(name, alphas.get(i).copied(), betas.get(i).copied()))
        .collect::<KResult<_>>()?;
    Ok(Box::new(Recurrent {
        cell,
        activations,
        backward,
        batch_first: cx.flag("layout"),
        before_reset: cx.flag("linear_before_reset"),
        input_forget: cx.flag("input_forget"),
        clip: cx.node.attr("clip").and_then(AttrValue::as_float),
    }))
}

/// `LinearAttention(q, k, v, state?, decay?, beta?) -> (y, state)`.
struct LinearAttention {
    heads: [usize; 2],
    scale: f32,
    gated: bool,
    delta: bool,
}

impl Kernel for LinearAttention {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let state_type = ins.get(3).map(crate::runtime::value::Value::dtype);
        let mut part = |slot| ins.dense_opt(slot, cx);
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let (past, decay, beta) = (part(3)?, part(4)?, part(5)?);
        let (Some(q), Some(k), Some(v)) = (q, k, v) else {
            return Err("an operand is absent".into());
        };
        let (dq, dk, dv) = (q.dims().to_vec(), k.dims().to_vec(), v.dims().to_vec());
        let bad = || {
            Fault(format!(
                "queries of {dq:?}, keys of {dk:?}, values of {dv:?}"
            ))
        };
        let ([batch, steps, wq], [_, _, wk], [_, _, wv]) = (&dq[..], &dk[..], &dv[..]) else {
            return Err(bad());
        };
        let [hq, hk] = self.heads;
        let (batch, steps, ek, ev) = (*batch, *steps, wk / hk, wv / hk);
        if *wq != hq * ek || ek * hk != *wk || ev * hk != *wv || dk[..2] != dq[..2] {
            return Err(bad());
        }
        let scale = if self.scale == 0.0 {
            1.0 / (ek as f32).sqrt()
        } else {
            self.scale
        };
        let (qs, ks, vs) = (q.to_vec()?, k.to_vec()?, v.to_vec()?);
        let some = |v: &Option<Floats>, needed: bool, what: &str| -> KResult<(Vec<f32>, usize)> {
            match v {
                Some(v) => Ok((v.to_vec()?, v.dims().last().copied().unwrap_or(0))),
                None if needed => Err(Fault(format!("{what} is absent"))),
                None => Ok((Vec::new(), 0)),
            }
        };
        let (decays, wd) = some(&decay, self.gated, "the decay")?;
        let (betas, wb) = some(&beta, self.delta, "the rate of updates")?;
        let size = count(&[batch, hk, ek, ev])?;
        let mut state = match &past {
            Some(p) if p.tensor().elem_count() == size => p.to_vec()?,
            Some(p) => return Err(Fault(format!("a state of {:?}", p.dims()))),
            None => vec![0.0; size],
        };
        if (self.gated && wd != hk && wd != hk * ek) || (self.delta && wb != hk && wb != 1) {
            return Err(Fault(format!(
                "a decay of {wd} and rates of {wb} for {hk} heads"
            )));
        }
        let mut y = cx.zeros(count(&[batch, steps, hq, ev])?);
        let share = hq / hk;
        for b in 0..batch {
            for h in 0..hk {
                let s = &mut state[(b * hk + h) * ek * ev..(b * hk + h + 1) * ek * ev];
                for t in 0..steps {
                    let row = b * steps + t;
                    let key = &ks[row * wk + h * ek..][..ek];
                    let value = &vs[row * wv + h * ev..][..ev];
                    if self.gated {
                        for (i, line) in s.chunks_mut(ev.max(1)).enumerate() {
                            let at = if wd == hk { h } else { h * ek + i };
                            let factor = decays[row * wd + at].exp();
                            line.iter_mut().for_each(|x| *x *= factor);
                        }
                    }
                    let mut new = value.to_vec();
                    if self.delta {
                        for (i, line) in s.chunks(ev.max(1)).enumerate() {
                            new.iter_mut().zip(line).for_each(|(n, x)| *n -= x * key[i]);
                        }
                        let rate = betas[row * wb + if wb == 1 { 0 } else { h }];
                        new.iter_mut().for_each(|n| *n *= rate);
                    }
                    for (i, line) in s.chunks_mut(ev.max(1)).enumerate() {
                        line.iter_mut()
                            .zip(&new)
                            .for_each(|(x, n)| *x += key[i] * n);
                    }
                    for g in h * share..(h + 1) * share {
                        let query = &qs[row * wq + g * ek..][..ek];
                        let out = &mut y[(row * hq + g) * ev..][..ev];
                        for (i, line) in s.chunks(ev.max(1)).enumerate() {
                            let f = scale * query[i];
                            out.iter_mut().zip(line).for_each(|(o, x)| *o += f * x);
                        }
                    }
                }
            }
        }
        let state_type = state_type.unwrap_or_else(|| q.dtype());
        Ok(vec![
            Some(cx.floats(y, &[batch, steps, hq * ev], q.dtype())?.into()),
            Some(cx.floats(state, &[batch, hk, ek, ev], state_type)?.into()),
        ])
    }
}

fn linear(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let (gated, delta) = match cx.node.str("update_rule").unwrap_or("gated_delta") {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return Err(Fault(format!("update_rule = \"{other}\""))),
    };
    let heads = [
        size_of(cx.need_int("q_num_heads")?)?,
        size_of(cx.need_int("kv_num_heads")?)?,
    ];
    if heads[1] == 0 || !heads[0].is_multiple_of(heads[1]) {
        return Err(Fault(format!("{heads:?} heads")));
    }
    Ok(Box::new(LinearAttention {
        heads,
        scale: cx.float("scale", 0.0),
        gated,
        delta,
    }))
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "RNN", |cx| make(cx, Cell::Rnn)),
    ("", "GRU", |cx| make(cx, Cell::Gru)),
    ("", "LSTM", |cx| make(cx, Cell::Lstm)),
    ("", "LinearAttention", linear),
];
