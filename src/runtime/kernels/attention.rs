//! Attention operators: `Attention` of ONNX (opset 23, 24) and `Attention`, `MultiHeadAttention`, `GroupQueryAttention` of ONNX Runtime.
//!
//! All of them are one core over `[batch, heads, positions, size]` views. A row in which every key is masked gives zeros.

mod scores;

use self::scores::{Scores, Stage, attend, attend_and_keep, heads, last};
use super::matmul::matmul;
use super::rotary::{Layout, rotate};
use super::{BuildCx, Cx, Entry, Ins, Kernel, MS, Outs};
use crate::runtime::value::{Fault, Floats, KResult, Value};
use crate::runtime::walk::count;

/// `[b, h, s, d]` as `[b, s, h·d]`.
fn merged(cx: &Cx<'_>, x: Floats) -> KResult<Floats> {
    let [b, h, s, d] = last(&x)?;
    let turned = x.view(|t| t.permute((0, 2, 1, 3)))?;
    drop(x);
    cx.dense(turned)?.view(|t| t.reshape((b, s, h * d)))
}

/// Keys or values behind those of the past.
fn grown(cx: &Cx<'_>, past: Option<Floats>, new: Floats) -> KResult<Floats> {
    match past {
        None => Ok(new),
        Some(p) => {
            let parts = vec![Value::Float(p), Value::Float(new)];
            super::to_floats(super::movement::concat(cx, parts, 2)?, 0)
        }
    }
}

/// A mask as something to add: `false` becomes `off`.
fn additive(cx: &Cx<'_>, v: Value, off: f32) -> KResult<Floats> {
    match super::plain(v)? {
        Value::Float(x) => Ok(x),
        Value::Host(h) => {
            let data = h
                .ints()?
                .iter()
                .map(|&x| if x != 0 { 0.0 } else { off })
                .collect();
            cx.floats(data, h.dims(), crate::ir::DType::Float)
        }
        Value::Weight(_) => Err("a weight converts to a tensor".into()),
    }
}

/// `Attention(q, k, v, mask?, past k?, past v?, valid keys?) -> (y, present k?, present v?, scores?)` of ONNX.
struct Standard {
    heads: i64,
    kv_heads: i64,
    scale: Option<f32>,
    softcap: f32,
    causal: bool,
    /// Keys that a query sees before and behind its own position; negative: all.
    window: [i64; 2],
    keep: Option<Stage>,
    wants_present: bool,
}

impl Kernel for Standard {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let flat = ins.need(0)?.dims().len() == 3;
        let mask = if ins.has(3) {
            Some(additive(cx, ins.take(3)?, f32::NEG_INFINITY)?)
        } else {
            None
        };
        let valid = ins.ints_opt(6)?;
        let past_v = ins.dense_opt(5, cx)?;
        let past_k = ins.dense_opt(4, cx)?;
        let past = past_k.as_ref().map_or(Ok(0), |p| last(p).map(|d| d[2]))?;
        let v = heads(cx, ins.floats(2)?, self.kv_heads)?;
        let k = heads(cx, ins.floats(1)?, self.kv_heads)?;
        let q = heads(cx, ins.floats(0)?, self.heads)?;
        let (k, v) = (grown(cx, past_k, k)?, grown(cx, past_v, v)?);
        let [batch, _, seq, d] = last(&q)?;
        let keys = last(&k)?[2];
        if valid.as_ref().is_some_and(|v| v.len() != batch) {
            return Err("one number of keys for each batch entry is expected".into());
        }
        let mask = mask.map(|m| longer(cx, m, keys)).transpose()?;
        let visible =
            |b: usize, i: usize| self.visible(valid.as_ref().map(|v| v[b]), past, seq, keys, i);
        let read = mask.as_ref().map(Floats::read);
        let view = read
            .as_ref()
            .map(crate::runtime::value::FloatRead::view)
            .transpose()?;
        let scores = Scores {
            scale: self.scale.unwrap_or(1.0 / (d as f32).sqrt()),
            softcap: self.softcap,
            visible: &visible,
            bias: view.as_ref(),
            sink: None,
            keep: self.keep,
        };
        let (y, kept) = attend_and_keep(cx, &q, &k, &v, &scores)?;
        let y = if flat { merged(cx, y)? } else { y };
        let mut outs = vec![Some(y.into()), None, None, kept.map(Value::Float)];
        if self.wants_present {
            outs[1] = Some(cx.dense(k)?.into());
            outs[2] = Some(cx.dense(v)?.into());
        }
        Ok(outs)
    }
}

impl Standard {
    /// The keys that query `i` sees. Its position is behind the keys of the past or, with a cache in place, it is one of the last valid
    /// ones, which may put it before the first key.
    fn visible(
        &self,
        valid: Option<i64>,
        past: usize,
        seq: usize,
        keys: usize,
        i: usize,
    ) -> std::ops::Range<usize> {
        let known = valid.map_or(keys as i64, |v| v.clamp(0, keys as i64));
        let at = i as i64 + valid.map_or(past as i64, |v| v - seq as i64);
        let [before, behind] = self.window;
        let mut to = known;
        if self.causal {
            to = to.min(at + 1);
        }
        if behind >= 0 {
            to = to.min(at.saturating_add(behind).saturating_add(1));
        }
        let from = if before >= 0 {
            at.saturating_sub(before).max(0)
        } else {
            0
        };
        from as usize..to.max(0) as usize
    }
}

/// A mask whose last axis is shorter than the keys hides the rest.
fn longer(cx: &Cx<'_>, mask: Floats, keys: usize) -> KResult<Floats> {
    let mut dims = mask.dims().to_vec();
    let Some(n) = dims.last_mut() else {
        return Ok(mask);
    };
    if *n == 1 || *n >= keys {
        return Ok(mask);
    }
    *n = keys - *n;
    let axis = dims.len() as i64 - 1;
    let mut rest = cx.alloc(count(&dims)?);
    rest.fill(f32::NEG_INFINITY);
    let rest = cx.floats(rest, &dims, mask.dtype())?;
    super::to_floats(
        super::movement::concat(cx, vec![mask.into(), rest.into()], axis)?,
        3,
    )
}

fn standard(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let stage = match cx.int("qk_matmul_output_mode", 0) {
        0 => Stage::Product,
        1 => Stage::Capped,
        2 => Stage::Masked,
        3 => Stage::Softmax,
        other => return Err(Fault(format!("qk_matmul_output_mode = {other}"))),
    };
    let heads = cx.int("q_num_heads", 0);
    Ok(Box::new(Standard {
        heads,
        kv_heads: cx.int("kv_num_heads", heads),
        scale: cx
            .node
            .attr("scale")
            .and_then(crate::ir::AttrValue::as_float),
        softcap: cx.float("softcap", 0.0),
        causal: cx.flag("is_causal"),
        window: [
            cx.int("left_window_size", -1),
            cx.int("right_window_size", -1),
        ],
        keep: cx.wants(3).then_some(stage),
        wants_present: cx.wants(1) || cx.wants(2),
    }))
}

/// The scale of ONNX Runtime's operators: 0 or absent means the usual one.
fn usual(scale: f32, dim: usize) -> f32 {
    if scale == 0.0 {
        1.0 / (dim as f32).sqrt()
    } else {
        scale
    }
}

/// The key mask of ONNX Runtime's operators as something to add to `[batch, heads, seq, keys]`.
fn key_mask(cx: &Cx<'_>, v: Value, batch: usize, keys: usize, off: f32) -> KResult<Floats> {
    let (dims, ints) = (v.dims().to_vec(), v.to_ints()?);
    let fill = |keep: Vec<bool>, dims: &[usize]| {
        let data = keep
            .into_iter()
            .map(|k| if k { 0.0 } else { off })
            .collect();
        cx.floats(data, dims, crate::ir::DType::Float)
    };
    match *dims.as_slice() {
        [b] if b == batch => {
            let keep = (0..batch * keys).map(|i| ((i % keys) as i64) < ints[i / keys]);
            fill(keep.collect(), &[batch, 1, 1, keys])
        }
        // The end of each row, then its beginning.
        [b] if b == 2 * batch => {
            let keep = (0..batch * keys).map(|i| {
                let (r, j) = (i / keys, (i % keys) as i64);
                j < ints[r] && j >= ints[batch + r]
            });
            fill(keep.collect(), &[batch, 1, 1, keys])
        }
        [b, t] if b == batch && t == keys => {
            fill(ints.iter().map(|&x| x != 0).collect(), &[b, 1, 1, t])
        }
        [b, s, t] if t == keys => fill(ints.iter().map(|&x| x != 0).collect(), &[b, 1, s, t]),
        [b, h, s, t] if t == keys => fill(ints.iter().map(|&x| x != 0).collect(), &[b, h, s, t]),
        _ => Err(Fault(format!(
            "a mask of {dims:?} for {batch} x {keys} keys"
        ))),
    }
}

/// The sum of a key mask and a bias of the scores.
fn joined(cx: &Cx<'_>, a: Option<Floats>, b: Option<Floats>) -> KResult<Option<Floats>> {
    match (a, b) {
        (Some(a), Some(b)) => super::binary::zip_floats(cx, a, b, &|x, y| x + y).map(Some),
        (a, b) => Ok(a.or(b)),
    }
}

/// `com.microsoft::Attention(x, weight, bias?, mask?, past?, scores?)`: q, k and v in one product.
struct Packed {
    heads: i64,
    causal: bool,
    off: f32,
    scale: f32,
    sizes: Option<Vec<i64>>,
    wants_present: bool,
}

impl Kernel for Packed {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let extra = ins.dense_opt(5, cx)?;
        let past = if ins.has(4) {
            Some(ins.dense(4, cx)?)
        } else {
            None
        };
        let mask = if ins.has(3) { Some(ins.take(3)?) } else { None };
        let bias = if ins.has(2) {
            Some(ins.floats(2)?)
        } else {
            None
        };
        let (w, x) = (ins.take(1)?, ins.take(0)?);
        let qkv = matmul(cx, x, w, 1.0)?;
        let qkv = match bias {
            Some(b) => super::binary::zip_floats(cx, qkv, b, &|x, b| x + b)?,
            None => qkv,
        };
        let [batch, seq, width] = *qkv.dims() else {
            return Err(Fault(format!("{:?}, expected rank 3", qkv.dims())));
        };
        let sizes: Vec<usize> = match &self.sizes {
            Some(s) => s
                .iter()
                .map(|&n| super::size_of(n))
                .collect::<KResult<_>>()?,
            None => vec![width / 3; 3],
        };
        if sizes.len() != 3 || sizes.iter().sum::<usize>() != width {
            return Err(Fault(format!("parts {sizes:?} of {width} columns")));
        }
        let part = |i: usize| -> KResult<Floats> {
            let from = sizes[..i].iter().sum::<usize>();
            heads(cx, qkv.view(|t| t.narrow(2, from, sizes[i]))?, self.heads)
        };
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let (pk, pv) = match &past {
            Some(p) => (
                Some(p.view(|t| t.narrow(0, 0, 1)?.squeeze(0))?),
                Some(p.view(|t| t.narrow(0, 1, 1)?.squeeze(0))?),
            ),
            None => (None, None),
        };
        let before = pk.as_ref().map_or(Ok(0), |p| last(p).map(|d| d[2]))?;
        let (k, v) = (grown(cx, pk, k)?, grown(cx, pv, v)?);
        let keys = before + seq;
        let mask = mask
            .map(|m| key_mask(cx, m, batch, keys, self.off))
            .transpose()?;
        let mask = joined(cx, mask, extra)?;
        let y = scored(
            cx,
            (&q, &k, &v),
            mask,
            self.causal.then_some(before),
            self.scale,
        )?;
        let mut outs = vec![Some(merged(cx, y)?.into())];
        if self.wants_present {
            let five = |x: Floats| -> KResult<Value> {
                Ok(Value::Float(cx.dense(x)?.view(|t| t.unsqueeze(0))?))
            };
            let both = super::movement::concat(cx, vec![five(k)?, five(v)?], 0)?;
            outs.push(Some(both));
        }
        Ok(outs)
    }
}

/// Attention under a mask to add and, with the length of the past, the causal rule.
fn scored(
    cx: &Cx<'_>,
    (q, k, v): (&Floats, &Floats, &Floats),
    mask: Option<Floats>,
    causal: Option<usize>,
    scale: f32,
) -> KResult<Floats> {
    let keys = last(k)?[2];
    let visible = |_: usize, i: usize| 0..causal.map_or(keys, |past| keys.min(i + past + 1));
    let read = mask.as_ref().map(Floats::read);
    let view = read
        .as_ref()
        .map(crate::runtime::value::FloatRead::view)
        .transpose()?;
    let rule = Scores {
        scale: usual(scale, last(q)?[3]),
        softcap: 0.0,
        visible: &visible,
        bias: view.as_ref(),
        sink: None,
        keep: None,
    };
    attend(cx, q, k, v, &rule)
}

fn packed(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    if cx.flag("do_rotary") || cx.flag("past_present_share_buffer") {
        return Err("do_rotary and past_present_share_buffer".into());
    }
    Ok(Box::new(Packed {
        heads: cx.need_int("num_heads")?,
        causal: cx.flag("unidirectional"),
        off: cx.float("mask_filter_value", -10000.0),
        scale: cx.float("scale", 0.0),
        sizes: cx.ints("qkv_hidden_sizes"),
        wants_present: cx.wants(1),
    }))
}

/// `com.microsoft::MultiHeadAttention(q, k?, v?, bias?, key mask?, scores?, past k?, past v?)`.
struct Multi {
    heads: i64,
    causal: bool,
    off: f32,
    scale: f32,
    wants_present: bool,
}

impl Kernel for Multi {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let pv = ins.dense_opt(7, cx)?;
        let pk = ins.dense_opt(6, cx)?;
        let extra = ins.dense_opt(5, cx)?;
        let mask = if ins.has(4) { Some(ins.take(4)?) } else { None };
        let bias = ins.dense_opt(3, cx)?;
        let [q, k, v] = self.parts(cx, &mut ins)?;
        let q = biased(cx, q, bias.as_ref(), 0)?;
        let dim = last(&q)?[1] * last(&q)?[3];
        let k = biased(cx, k, bias.as_ref(), dim)?;
        let v = biased(cx, v, bias.as_ref(), 2 * dim)?;
        let before = pk.as_ref().map_or(Ok(0), |p| last(p).map(|d| d[2]))?;
        let (k, v) = (grown(cx, pk, k)?, grown(cx, pv, v)?);
        let (batch, keys) = (last(&q)?[0], last(&k)?[2]);
        let mask = mask
            .map(|m| key_mask(cx, m, batch, keys, self.off))
            .transpose()?;
        let mask = joined(cx, mask, extra)?;
        let y = scored(
            cx,
            (&q, &k, &v),
            mask,
            self.causal.then_some(before),
            self.scale,
        )?;
        let mut outs = vec![Some(merged(cx, y)?.into())];
        if self.wants_present {
            outs.push(Some(cx.dense(k)?.into()));
            outs.push(Some(cx.dense(v)?.into()));
        }
        Ok(outs)
    }
}

impl Multi {
    fn parts(&self, cx: &Cx<'_>, ins: &mut Ins) -> KResult<[Floats; 3]> {
        let q = ins.floats(0)?;
        // Packed: [b, s, heads, 3, size], or k and v as [b, t, heads, 2, size].
        let pick =
            |x: &Floats, i: usize| x.view(|t| t.narrow(3, i, 1)?.squeeze(3)?.permute((0, 2, 1, 3)));
        if q.dims().len() == 5 {
            return Ok([pick(&q, 0)?, pick(&q, 1)?, pick(&q, 2)?]);
        }
        let q = heads(cx, q, self.heads)?;
        let k = ins.floats(1)?;
        if k.dims().len() == 5 {
            return Ok([q, pick(&k, 0)?, pick(&k, 1)?]);
        }
        Ok([
            q,
            heads(cx, k, self.heads)?,
            heads(cx, ins.floats(2)?, self.heads)?,
        ])
    }
}

/// Adds the part of the bias that begins at `from`.
fn biased(cx: &Cx<'_>, x: Floats, bias: Option<&Floats>, from: usize) -> KResult<Floats> {
    let Some(bias) = bias else { return Ok(x) };
    let [_, h, _, d] = last(&x)?;
    let part = bias.view(|t| t.narrow(0, from, h * d)?.reshape((1, h, 1, d)))?;
    super::binary::zip_floats(cx, x, part, &|x, b| x + b)
}

fn multi(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    if cx.wants(3) {
        return Err("the scores (output 3) are not computed".into());
    }
    Ok(Box::new(Multi {
        heads: cx.need_int("num_heads")?,
        causal: cx.flag("unidirectional"),
        off: cx.float("mask_filter_value", -10000.0),
        scale: cx.float("scale", 0.0),
        wants_present: cx.wants(1) || cx.wants(2),
    }))
}

/// `com.microsoft::GroupQueryAttention(q, k?, v?, past k?, past v?, seqlens, total, cos?, sin?, positions?, scores?, sink?)`: causal, with a
/// cache and rotary embeddings. Batch entry `b` has `seqlens[b] + 1` valid keys, the queries' among them.
struct Grouped {
    heads: i64,
    kv: i64,
    scale: f32,
    softcap: f32,
    window: i64,
    rotary: bool,
    interleaved: bool,
    smooth: bool,
}

impl Kernel for Grouped {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let heads = super::size_of(self.heads)?;
        let sink = match ins.dense_opt(11, cx)? {
            Some(s) => Some(s.to_vec()?),
            None => self.smooth.then(|| vec![0.0; heads]),
        };
        if sink.as_ref().is_some_and(|s| s.len() != heads) {
            return Err(Fault(format!(
                "sinks for another number of heads than {heads}"
            )));
        }
        let extra = ins.dense_opt(10, cx)?;
        let positions = ins.ints_opt(9)?;
        let tables = match (ins.dense_opt(7, cx)?, ins.dense_opt(8, cx)?) {
            (Some(c), Some(s)) => Some((c, s)),
            _ => None,
        };
        let total = *ins.ints(6)?.first().ok_or("an empty total length")?;
        let total = super::size_of(total)?;
        let lens = ins.ints(5)?;
        let past_v = ins.dense_opt(4, cx)?;
        let past_k = ins.dense_opt(3, cx)?;
        let (q, k, v) = self.parts(cx, &mut ins)?;
        let ([batch, _, seq, dim], kv) = (last(&q)?, last(&k)?[1]);
        if lens.len() != batch {
            return Err(Fault(format!(
                "{} lengths for {batch} batch entries",
                lens.len()
            )));
        }
        let prompt = seq == total;
        // Keys in the cache, for each batch entry.
        let before: Vec<usize> = lens
            .iter()
            .map(|&l| {
                if prompt {
                    Ok(0)
                } else {
                    super::size_of(l + 1 - seq as i64)
                }
            })
            .collect::<KResult<_>>()?;
        let row = |b: usize, s: usize| match &positions {
            Some(p) => p.get(b * seq + s).map_or(0, |&p| p.max(0) as usize),
            None => before[b] + s,
        };
        let q = self.turned(cx, q, tables.as_ref(), &row)?;
        let k = self.turned(cx, k, tables.as_ref(), &row)?;
        let room = past_k
            .as_ref()
            .map_or(Ok(0), |p| last(p).map(|d| d[2]))?
            .max(total);
        let k = place(cx, past_k, k, (batch, kv, room), &before)?;
        let v = place(cx, past_v, v, (batch, kv, room), &before)?;
        let window = usize::try_from(self.window).unwrap_or(usize::MAX);
        let visible = |b: usize, i: usize| {
            let end = (before[b] + i + 1).min(room);
            end.saturating_sub(window)..end
        };
        let read = extra.as_ref().map(Floats::read);
        let view = read
            .as_ref()
            .map(crate::runtime::value::FloatRead::view)
            .transpose()?;
        let rule = Scores {
            scale: usual(self.scale, dim),
            softcap: self.softcap,
            visible: &visible,
            bias: view.as_ref(),
            sink: sink.as_deref(),
            keep: None,
        };
        let y = attend(cx, &q, &k, &v, &rule)?;
        Ok(vec![
            Some(merged(cx, y)?.into()),
            Some(k.into()),
            Some(v.into()),
        ])
    }
}

/// The cache with new keys (or values) written behind the valid ones of each batch entry.
fn place(
    cx: &Cx<'_>,
    past: Option<Floats>,
    new: Floats,
    (batch, kv, room): (usize, usize, usize),
    before: &[usize],
) -> KResult<Floats> {
    let [_, _, seq, dim] = last(&new)?;
    let new = cx.dense(new)?;
    let dims = [batch, kv, room, dim];
    let mut out = cx.zeros(count(&dims)?);
    let read = new.read();
    let fresh = read.slice()?;
    let old_read = past.as_ref().map(Floats::read);
    let old = old_read
        .as_ref()
        .map(crate::runtime::value::FloatRead::slice)
        .transpose()?;
    let kept = past.as_ref().map_or(0, |p| p.dims()[2]);
    for i in 0..batch * kv {
        let at = before[i / kv.max(1)];
        if at > kept || at + seq > room {
            return Err(Fault(format!(
                "{at} cached and {seq} new keys, {kept} and {room} places"
            )));
        }
        let block = &mut out[i * room * dim..(i + 1) * room * dim];
        if let Some(old) = old {
            block[..at * dim].copy_from_slice(&old[i * kept * dim..(i * kept + at) * dim]);
        }
        block[at * dim..(at + seq) * dim]
            .copy_from_slice(&fresh[i * seq * dim..(i + 1) * seq * dim]);
    }
    cx.floats(out, &dims, new.dtype())
}

impl Grouped {
    fn parts(&self, cx: &Cx<'_>, ins: &mut Ins) -> KResult<(Floats, Floats, Floats)> {
        let (n, kv) = (super::size_of(self.heads)?, super::size_of(self.kv)?);
        if ins.has(1) {
            let v = heads(cx, ins.floats(2)?, self.kv)?;
            let k = heads(cx, ins.floats(1)?, self.kv)?;
            return Ok((heads(cx, ins.floats(0)?, self.heads)?, k, v));
        }
        let all = heads(cx, ins.floats(0)?, self.heads + 2 * self.kv)?;
        let part = |from: usize, len: usize| all.view(|t| t.narrow(1, from, len));
        Ok((part(0, n)?, part(n, kv)?, part(n + kv, kv)?))
    }

    fn turned(
        &self,
        cx: &Cx<'_>,
        x: Floats,
        tables: Option<&(Floats, Floats)>,
        row: &(impl Fn(usize, usize) -> usize + Sync),
    ) -> KResult<Floats> {
        let Some((cos, sin)) = tables.filter(|_| self.rotary) else {
            return Ok(x);
        };
        let dims = last(&x)?;
        let half = cos.dims().last().copied().unwrap_or(0);
        let size = count(cos.dims())? / half.max(1);
        let far = (0..dims[0]).any(|b| (0..dims[2]).any(|s| row(b, s) >= size));
        if 2 * half > dims[3] || cos.dims() != sin.dims() || far {
            return Err(Fault(format!(
                "tables of {:?} and {:?} for {dims:?}",
                cos.dims(),
                sin.dims()
            )));
        }
        let dtype = x.dtype();
        let mut v = cx.buffer(x)?;
        let (c, s) = (cos.read(), sin.read());
        let positions: Vec<usize> = (0..dims[0])
            .flat_map(|b| (0..dims[2]).map(move |s| row(b, s)))
            .collect();
        let layout = Layout::of(&dims, 0)?;
        let tables = (c.slice()?, s.slice()?);
        rotate(&mut v, layout, tables, half, self.interleaved, &positions)?;
        cx.floats(v, &dims, dtype)
    }
}

fn grouped(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    if cx.int("do_rotary", 0) != 0 && cx.n_in < 9 {
        return Err("do_rotary without tables".into());
    }
    Ok(Box::new(Grouped {
        heads: cx.need_int("num_heads")?,
        kv: cx.need_int("kv_num_heads")?,
        scale: cx.float("scale", 0.0),
        softcap: cx.float("softcap", 0.0),
        window: cx.int("local_window_size", -1),
        rotary: cx.flag("do_rotary"),
        interleaved: cx.flag("rotary_interleaved"),
        smooth: cx.int("smooth_softmax", 0) > 0,
    }))
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "Attention", standard),
    (MS, "Attention", packed),
    (MS, "MultiHeadAttention", multi),
    (MS, "GroupQueryAttention", grouped),
];
