//! `Expand` and `Tile`: repeated elements; their gradients sum over the repetitions.

use super::kit::infer::MAX_INTS;
use super::kit::{Differentiated, Inferred, no_gradient, wrong};
use super::{GradCx, InferCx, OpDef};
use crate::ir::{DType, Sym, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Expand", 2..=2, infer_expand).gradient(grad_expand),
    OpDef::new("Tile", 2..=2, infer_tile).gradient(grad_tile),
];

fn infer_expand(cx: &mut InferCx<'_>) -> Inferred {
    cx.expect_dtype(1, &[DType::Int64])?;
    let dtype = cx.dtype(0);
    let shape: Option<Vec<Sym>> = match (cx.ints(1), cx.len_of(1)) {
        (Some(v), _) => Some(v.iter().map(|s| cx.as_size(s)).collect()),
        (None, Some(n)) => Some(cx.unknown_dims(n)),
        (None, None) => None,
    };
    let dims = match (cx.dims(0), shape) {
        (Some(d), Some(s)) => Some(cx.broadcast(d, &s)?),
        _ => None,
    };
    let ints = cx.ints(0).and_then(|v| {
        let n = match dims.as_deref()? {
            [] => 1,
            [n] => usize::try_from(n.as_const()?).ok()?,
            _ => return None,
        };
        match v.as_slice() {
            [one] if n <= MAX_INTS => Some(vec![one.clone(); n]),
            _ => (v.len() == n).then_some(v),
        }
    });
    cx.set(0, dtype, dims);
    cx.set_ints(ints);
    Ok(())
}

fn grad_expand(cx: &mut GradCx<'_>) -> Differentiated {
    if cx.wants(0) {
        let g = cx.grad()?;
        cx.set(0, cx.unbroadcast(0, g)?);
    }
    Ok(())
}

fn infer_tile(cx: &mut InferCx<'_>) -> Inferred {
    cx.expect_dtype(1, &[DType::Int64])?;
    let dtype = cx.dtype(0);
    let dims = match (cx.dims(0), cx.ints_or_unknown(1)) {
        (Some(d), Some(r)) => {
            if d.len() != r.len() {
                return wrong(format!(
                    "{} repeats for a tensor of rank {}",
                    r.len(),
                    d.len()
                ));
            }
            let size = |(d, r): (&Sym, &Sym)| {
                if r.is_size() { d.mul(r) } else { None }.unwrap_or_else(|| cx.unknown())
            };
            Some(d.iter().zip(&r).map(size).collect())
        }
        (Some(d), None) => Some(cx.unknown_dims(d.len())),
        (None, Some(r)) => Some(cx.unknown_dims(r.len())),
        (None, None) => None,
    };
    let ints = match (cx.ints(0), cx.const_ints(1).as_deref(), cx.rank(0)) {
        (Some(v), Some([r]), Some(1)) => usize::try_from(*r)
            .ok()
            .filter(|r| r.saturating_mul(v.len()) <= MAX_INTS)
            .map(|r| (0..r).flat_map(|_| v.iter().cloned()).collect()),
        _ => None,
    };
    cx.set(0, dtype, dims);
    cx.set_ints(ints);
    Ok(())
}

/// The gradient in shape `[r0, d0, r1, d1, …]`, summed over the `r`.
fn grad_tile(cx: &mut GradCx<'_>) -> Differentiated {
    if !cx.wants(0) {
        return Ok(());
    }
    let (b, g) = (cx.b, cx.grad()?);
    let Some(rank) = cx.fact(0).rank().or(cx.out_fact(0).rank()) else {
        return no_gradient("the rank of the input is not known");
    };
    let sizes: Option<Vec<i64>> = (0..rank as i64).map(|a| cx.fact(0).size(a)).collect();
    let shape: Val = if let (Some(r), Some(d)) = (cx.const_ints(1), sizes) {
        let pairs: Vec<i64> = r.iter().zip(&d).flat_map(|(r, d)| [*r, *d]).collect();
        b.ints(&pairs)
    } else {
        let columns = [
            b.unsqueeze(cx.input(1)?, &[1]),
            b.unsqueeze(cx.input_shape(0)?, &[1]),
        ];
        b.reshape(b.concat(&columns, 1), b.ints(&[-1]))
    };
    let repeats: Vec<i64> = (0..rank as i64).map(|i| 2 * i).collect();
    let back = if rank == 0 {
        g
    } else {
        b.reduce_sum(b.reshape(g, shape), &repeats, false)
    };
    cx.set(0, back);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{backward, infer};
    use crate::ir::{Builder, TensorData, Val};

    /// How torch writes `expand`: -1 stands for "as it is", told apart by a comparison.
    fn torch_expand(b: &Builder, x: Val, like: Val) -> Val {
        let shape = b.concat(&[b.slice(b.shape(like), 0, 0, 2), b.ints(&[-1])], 0);
        let one = TensorData::ints(&[1]);
        let ones = b.op("ConstantOfShape", &[b.ints(&[3])], &[("value", one.into())]);
        let keep = b.op("Equal", &[shape, b.mul(ones, b.int(-1))], &[]);
        let target = b.op("Where", &[keep, ones, shape], &[]);
        b.op("Expand", &[x, target], &[])
    }

    #[test]
    fn expand_broadcasts() {
        let got = infer(&["f32[1, 1, 8]", "f32[batch, seq]"], |b, v| {
            vec![torch_expand(b, v[0], v[1])]
        });
        assert_eq!(got, ["f32[batch, seq, 8]"]);
        let got = infer(&["f32[batch, 1]", "i64[3]"], |b, v| {
            vec![b.op("Expand", v, &[])]
        });
        assert_eq!(got, ["f32[?, broadcast(?, batch), ?]"]);
    }

    #[test]
    fn gradient_of_expand_sums() {
        let got = backward(18, &["f32[1, 1, 8]", "f32[batch, seq]"], |b, v| {
            vec![torch_expand(b, v[0], v[1])]
        });
        assert_eq!(got, "ReduceSum: ReduceSum(g0, [0, 1])\nda = ReduceSum");
    }

    #[test]
    fn tile() {
        let got = infer(&["f32[batch, 8]"], |b, v| {
            vec![b.op("Tile", &[v[0], b.ints(&[2, 3])], &[])]
        });
        assert_eq!(got, ["f32[2*batch, 24]"]);
        let got = backward(18, &["f32[4, 8]"], |b, v| {
            vec![b.op("Tile", &[v[0], b.ints(&[2, 3])], &[])]
        });
        assert_eq!(
            got,
            "Reshape: Reshape(g0, [2, 4, 3, 8])\nReduceSum: ReduceSum(Reshape, [0, 2])\nda = ReduceSum"
        );
    }
}
