//! `SoftmaxCrossEntropyLoss(scores, labels, weights?) -> (loss, log_prob?)`, opset 12 and 13; classes on axis 1.

use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs};
use crate::runtime::value::{Fault, KResult};
use crate::runtime::walk::{self, count};
use onnx_graft_kernels::softmax::log_softmax_row;

#[derive(Clone, Copy, PartialEq)]
enum Reduction {
    None,
    Sum,
    Mean,
}

struct Loss {
    reduction: Reduction,
    ignore: Option<i64>,
    wants_prob: bool,
}

impl Kernel for Loss {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let weights = ins.dense_opt(2, cx)?;
        let labels = ins.host(1)?;
        let scores = ins.dense(0, cx)?;
        let dims = scores.dims().to_vec();
        let [batch, classes, ref rest @ ..] = dims[..] else {
            return Err(Fault(format!("scores of {dims:?}")));
        };
        let mut want = vec![batch];
        want.extend_from_slice(rest);
        if labels.dims() != want {
            return Err(Fault(format!(
                "labels of {:?}, expected {want:?}",
                labels.dims()
            )));
        }
        let inner = count(rest)?;
        let read = scores.read();
        let x = read.slice()?;
        let mut prob = cx.alloc(x.len());
        prob.copy_from_slice(x);
        log_softmax(&mut prob, classes, inner);
        let weights = weights.map(|w| w.to_vec()).transpose()?;
        let mut each = Vec::with_capacity(batch * inner);
        let (mut sum, mut total) = (0f64, 0f64);
        for (i, &l) in labels.ints()?.iter().enumerate() {
            if Some(l) == self.ignore {
                each.push(0.0);
                continue;
            }
            let l = usize::try_from(l)
                .ok()
                .filter(|&l| l < classes)
                .ok_or_else(|| Fault(format!("label {l} is outside {classes} classes")))?;
            let w = match &weights {
                Some(w) => *w.get(l).ok_or("fewer weights than classes")?,
                None => 1.0,
            };
            let (b, j) = (i / inner.max(1), i % inner.max(1));
            let loss = -prob[(b * classes + l) * inner + j] * w;
            each.push(loss);
            sum += f64::from(loss);
            total += f64::from(w);
        }
        let dtype = scores.dtype();
        let loss = match self.reduction {
            Reduction::None => cx.floats(each, &want, dtype)?,
            Reduction::Sum => cx.floats(vec![sum as f32], &[], dtype)?,
            Reduction::Mean => {
                // No label at all: 0/0, as the definition gives.
                cx.floats(vec![(sum / total) as f32], &[], dtype)?
            }
        };
        let mut outs = vec![Some(loss.into())];
        if self.wants_prob {
            outs.push(Some(cx.floats(prob, &dims, dtype)?.into()));
        } else {
            cx.pool.give(prob);
        }
        Ok(outs)
    }
}

/// Log softmax over axis 1 of `[batch, classes, inner]`.
fn log_softmax(x: &mut [f32], classes: usize, inner: usize) {
    if inner == 1 {
        walk::rows(x, classes, |_, row| log_softmax_row(row));
        return;
    }
    walk::rows(x, classes * inner, |_, x| {
        let mut row = vec![0.0; classes];
        for j in 0..inner {
            let column = x.iter().skip(j).step_by(inner);
            row.iter_mut().zip(column).for_each(|(to, x)| *to = *x);
            log_softmax_row(&mut row);
            let column = x.iter_mut().skip(j).step_by(inner);
            column.zip(&row).for_each(|(to, x)| *to = *x);
        }
    });
}

fn make(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let reduction = match cx.node.str("reduction").unwrap_or("mean") {
        "none" => Reduction::None,
        "sum" => Reduction::Sum,
        "mean" => Reduction::Mean,
        other => return Err(Fault(format!("reduction = \"{other}\""))),
    };
    Ok(Box::new(Loss {
        reduction,
        ignore: cx
            .node
            .attr("ignore_index")
            .and_then(crate::ir::AttrValue::as_int),
        wants_prob: cx.wants(1),
    }))
}

pub(super) const KERNELS: &[Entry] = &[("", "SoftmaxCrossEntropyLoss", make)];
