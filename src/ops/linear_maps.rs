//! `Trilu`, `CumSum` and `Pad`: linear maps whose gradient is an operator of the same kind.

use super::kit::infer::{normal_axes, normal_axis, same_as_input};
use super::kit::{Differentiated, Inferred, no_gradient, wrong};
use super::{GradCx, InferCx, InferError, OpDef};
use crate::ir::{Attr, OpId, Sym, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Trilu", 1..=2, infer_trilu).gradient(grad_trilu),
    OpDef::new("CumSum", 2..=2, infer_cumsum).gradient(grad_cumsum),
    OpDef::new("Pad", 1..=4, infer_pad).gradient(grad_pad),
];

fn infer_trilu(cx: &mut InferCx<'_>) -> Inferred {
    if let Some(r) = cx.rank(0).filter(|r| *r < 2) {
        return wrong(format!("a tensor of rank {r}, expected at least 2"));
    }
    same_as_input(cx)
}

fn grad_trilu(cx: &mut GradCx<'_>) -> Differentiated {
    if !cx.wants(0) {
        return Ok(());
    }
    let upper = [("upper", Attr::from(cx.node().int("upper", 1)))];
    let inputs: Vec<Val> = [Some(cx.grad()?), cx.optional(1)]
        .into_iter()
        .flatten()
        .collect();
    cx.set(0, cx.b.op("Trilu", &inputs, &upper));
    Ok(())
}

fn infer_cumsum(cx: &mut InferCx<'_>) -> Inferred {
    if let (Some(r), Some([axis])) = (cx.rank(0), cx.const_ints(1).as_deref()) {
        normal_axis(*axis, r)?;
    }
    same_as_input(cx)
}

/// The sum from the other side.
fn grad_cumsum(cx: &mut GradCx<'_>) -> Differentiated {
    if cx.wants(0) {
        let attrs = [
            ("exclusive", Attr::from(cx.node().int("exclusive", 0))),
            ("reverse", Attr::from(1 - cx.node().int("reverse", 0))),
        ];
        let inputs = [cx.grad()?, cx.input(1)?];
        cx.set(0, cx.b.op("CumSum", &inputs, &attrs));
    }
    Ok(())
}

fn infer_pad(cx: &mut InferCx<'_>) -> Inferred {
    let dtype = cx.dtype(0);
    let dims = match cx.dims(0) {
        Some(d) => Some(padded(cx, d)?),
        None => None,
    };
    cx.set(0, dtype, dims);
    Ok(())
}

fn padded(cx: &InferCx<'_>, dims: &[Sym]) -> Result<Vec<Sym>, InferError> {
    let pads = match cx.node.ints("pads") {
        Some(p) => Some(p.iter().copied().map(Sym::from).collect()),
        None => cx.ints_or_unknown(1),
    };
    let axes = match (cx.input(3), cx.const_ints(3)) {
        (None, _) => Some((0..dims.len()).collect()),
        (Some(_), Some(a)) => Some(normal_axes(&a, dims.len())?),
        (Some(_), None) => None,
    };
    let (Some(pads), Some(axes)): (Option<Vec<Sym>>, Option<Vec<usize>>) = (pads, axes) else {
        return Ok(cx.unknown_dims(dims.len()));
    };
    if pads.len() != 2 * axes.len() {
        return wrong(format!("{} pads for {} axes", pads.len(), axes.len()));
    }
    let mut out = dims.to_vec();
    for (i, &a) in axes.iter().enumerate() {
        let size = dims[a]
            .add(&pads[i])
            .and_then(|d| d.add(&pads[axes.len() + i]));
        out[a] = match size {
            Some(d) if d.as_const().is_some_and(|n| n < 0) => {
                return wrong(format!("pads make axis {a} of size {}", dims[a]));
            }
            Some(d) if !d.symbols().any(|s| s.contains('#')) => d,
            Some(d) => cx.as_size(&d),
            None => cx.unknown(),
        };
    }
    Ok(out)
}

/// What was padded is cut away: by a slice where the pads are known, else by negative pads.
fn grad_pad(cx: &mut GradCx<'_>) -> Differentiated {
    if !cx.wants(0) {
        return Ok(());
    }
    let mode = cx.node().str("mode").unwrap_or("constant");
    if mode != "constant" {
        return no_gradient(format!("there is no rule for mode `{mode}`"));
    }
    let g = cx.grad()?;
    let (axes, known) = (cx.optional(3), cx.const_ints(1));
    let named = match axes {
        Some(_) => cx.const_ints(3),
        None => known.as_ref().map(|p| (0..p.len() as i64 / 2).collect()),
    };
    let back = match (known, named) {
        (Some(pads), Some(named)) if pads.iter().all(|p| *p >= 0) => cut(cx, g, &pads, &named),
        (known, _) => {
            let negated = match known {
                Some(p) => {
                    let p: Vec<i64> = p.iter().map(|p| p.saturating_neg()).collect();
                    cx.b.ints(&p)
                }
                None => cx.b.neg(cx.input(1)?),
            };
            let mut inputs = vec![Some(g), Some(negated)];
            if axes.is_some() {
                inputs.extend([None, axes]);
            }
            cx.b.node_n(OpId::onnx("Pad"), &inputs, &[], 1)[0]
        }
    };
    cx.set(0, back);
    Ok(())
}

/// The inner part of a padded tensor; begins and ends of the axes in `Pad`'s order.
fn cut(cx: &GradCx<'_>, g: Val, pads: &[i64], axes: &[i64]) -> Val {
    let (before, after) = pads.split_at(pads.len() / 2);
    let sides = axes.iter().zip(before.iter().zip(after));
    let padded: Vec<(i64, i64, i64)> = sides
        .filter(|(_, (b, a))| **b > 0 || **a > 0)
        .map(|(axis, (b, a))| (*axis, *b, if *a == 0 { i64::MAX } else { -a }))
        .collect();
    if padded.is_empty() {
        return g;
    }
    let column = |f: fn(&(i64, i64, i64)) -> i64| {
        let v: Vec<i64> = padded.iter().map(f).collect();
        cx.b.ints(&v)
    };
    let inputs = [g, column(|c| c.1), column(|c| c.2), column(|c| c.0)];
    cx.b.op("Slice", &inputs, &[])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{backward, infer};

    #[test]
    fn pads_add_up() {
        let got = infer(&["f32[batch, seq]"], |b, v| {
            vec![
                b.op("Pad", &[v[0], b.ints(&[0, 1, 0, 2])], &[]),
                b.op("Pad", &[v[0], b.ints(&[0, 0, 0, -1])], &[]),
            ]
        });
        assert_eq!(got, ["f32[batch, seq + 3]", "f32[batch, seq - 1]"]);
        let got = infer(&["f32[batch, seq]"], |b, v| {
            vec![b.op("Pad", &[v[0], b.ints(&[0, 1])], &[])]
        });
        assert_eq!(got, ["error: Pad: 2 pads for 2 axes"]);
    }

    #[test]
    fn gradients() {
        let got = backward(18, &["f32[batch, seq]"], |b, v| {
            vec![b.op("Pad", &[v[0], b.ints(&[0, 1, 0, 2])], &[])]
        });
        assert_eq!(got, "Slice: Slice(g0, [1], [-2], [1])\nda = Slice");
        let got = backward(18, &["f32[batch, seq]"], |b, v| {
            vec![b.op(
                "Pad",
                &[v[0], b.ints(&[0, 1, 0, 2])],
                &[("mode", "edge".into())],
            )]
        });
        assert_eq!(got, "error: there is no rule for mode `edge`");
    }
}
