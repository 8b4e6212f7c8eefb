//! `ai.onnx.preview::FlexAttention(q, k, v)`: attention whose scores and probabilities go through subgraphs.

use super::cast::cast;
use super::control::run;
use super::matmul::matmul;
use super::shape::reshaped;
use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, one, to_floats};
use crate::ir::DType;
use crate::runtime::exec::Program;
use crate::runtime::value::{Fault, KResult, Value};

struct Flex {
    scale: Option<f32>,
    precision: DType,
    /// In the order of their captures: whether it changes the scores, and how.
    changes: Vec<(bool, Program)>,
}

impl Flex {
    /// A tensor of scores or probabilities, changed by the subgraph for it.
    fn changed(
        &self,
        cx: &Cx<'_>,
        v: Value,
        scores: bool,
        captures: &[Option<Value>],
    ) -> KResult<Value> {
        let mut at = 0;
        for (first, program) in &self.changes {
            let n = program.inputs.len().saturating_sub(1);
            if *first == scores {
                let mut inputs = vec![Some(v)];
                inputs.extend(captures.iter().skip(at).take(n).cloned());
                return run(program, cx, inputs)?
                    .pop()
                    .ok_or_else(|| "no result".into());
            }
            at += n;
        }
        Ok(v)
    }
}

impl Kernel for Flex {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let captures = ins.0.split_off(3);
        let (q, k, v) = (ins.take(0)?, ins.take(1)?, ins.take(2)?);
        let (dq, dk, dv) = (q.dims().to_vec(), k.dims().to_vec(), v.dims().to_vec());
        let bad = || {
            Fault(format!(
                "queries of {dq:?}, keys of {dk:?}, values of {dv:?}"
            ))
        };
        let (&[b, h, l, e], &[_, g, s, _], &[_, _, _, w]) = (&dq[..], &dk[..], &dv[..]) else {
            return Err(bad());
        };
        if g == 0 || h % g != 0 || dk != [b, g, s, e] || dv[..3] != dk[..3] {
            return Err(bad());
        }
        let dtype = q.dtype();
        let precision = match (self.precision, dtype) {
            (DType::Undefined, DType::Double) => DType::Double,
            (DType::Undefined, _) => DType::Float,
            (named, _) => named,
        };
        // Query heads in groups, in front of the key head that each reads.
        let float = |v: Value, slot: usize| Ok::<_, Fault>(Value::Float(to_floats(v, slot)?));
        let q = reshaped(cx, float(q, 0)?, vec![b, g, h / g, l, e])?;
        let k = reshaped(cx, float(k, 1)?, vec![b, g, 1, s, e])?;
        let v = reshaped(cx, float(v, 2)?, vec![b, g, 1, s, w])?;
        let scale = self.scale.unwrap_or_else(|| 1.0 / (e as f32).sqrt());
        let scores = matmul(cx, q, k.permuted(&[0, 1, 2, 4, 3])?, scale)?.tagged(DType::Float);
        let scores = reshaped(cx, Value::Float(scores), vec![b, h, l, s])?;
        let scores = self.changed(cx, cast(cx, scores, precision)?, true, &captures)?;
        let scores = cx.dense(to_floats(scores, 0)?.tagged(DType::Float))?;
        let mut p = cx.buffer(scores)?;
        for row in p.chunks_mut(s.max(1)) {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|x| *x = (*x - most).exp());
            let sum: f32 = row.iter().sum();
            row.iter_mut().for_each(|x| *x /= sum);
        }
        let p = Value::Float(cx.floats(p, &[b, h, l, s], DType::Float)?);
        let p = self.changed(cx, cast(cx, p, precision)?, false, &captures)?;
        let p = Value::Float(to_floats(p, 0)?.tagged(DType::Float));
        let p = reshaped(cx, p, vec![b, g, h / g, l, s])?;
        let y = matmul(cx, p, v, 1.0)?.tagged(DType::Float);
        let y = reshaped(cx, Value::Float(y), vec![b, h, l, w])?;
        one(cast(cx, y, dtype)?)
    }

    fn pure(&self) -> bool {
        false
    }
}

fn make(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let graphs = std::mem::take(&mut cx.graphs);
    let changes = graphs
        .into_iter()
        .map(|(name, program)| (&*name == "score_mod", program))
        .collect();
    Ok(Box::new(Flex {
        scale: cx
            .node
            .attr("scale")
            .and_then(crate::ir::AttrValue::as_float),
        precision: cx.dtype("softmax_precision", DType::Undefined)?,
        changes,
    }))
}

pub(super) const KERNELS: &[Entry] = &[("ai.onnx.preview", "FlexAttention", make)];
