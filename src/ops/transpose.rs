//! `Transpose`.

use super::kit::infer::normal_axes;
use super::kit::{Differentiated, Inferred, wrong};
use super::{GradCx, InferCx, OpDef};

pub(super) const OPS: &[OpDef] = &[OpDef::new("Transpose", 1..=1, infer).gradient(gradient)];

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let dtype = cx.dtype(0);
    let perm = cx.node.ints("perm");
    let dims = match (cx.dims(0), perm) {
        (Some(d), Some(perm)) => {
            if perm.len() != d.len() {
                return wrong(format!(
                    "perm has {} entries for a tensor of rank {}",
                    perm.len(),
                    d.len()
                ));
            }
            let perm = normal_axes(perm, d.len())?;
            Some(perm.iter().map(|&a| d[a].clone()).collect())
        }
        (Some(d), None) => Some(d.iter().rev().cloned().collect()),
        (None, Some(perm)) => Some(cx.unknown_dims(perm.len())),
        (None, None) => None,
    };
    let ints = cx.ints(0);
    cx.set(0, dtype, dims);
    cx.set_ints(ints);
    Ok(())
}

fn gradient(cx: &mut GradCx<'_>) -> Differentiated {
    if !cx.wants(0) {
        return Ok(());
    }
    let g = cx.grad()?;
    let back = match cx.node().ints("perm") {
        // Without `perm` the axes are reversed, which is its own inverse.
        None => cx.b.op("Transpose", &[g], &[]),
        Some(perm) => {
            let mut inverse = vec![0; perm.len()];
            for (i, &p) in perm.iter().enumerate() {
                let p = if p < 0 { p + perm.len() as i64 } else { p };
                if let Some(slot) = usize::try_from(p).ok().and_then(|p| inverse.get_mut(p)) {
                    *slot = i as i64;
                }
            }
            cx.b.transpose(g, &inverse)
        }
    };
    cx.set(0, back);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{backward, infer};

    #[test]
    fn permutes() {
        let got = infer(&["f32[a, b, 3]"], |b, v| {
            vec![b.transpose(v[0], &[1, 2, 0]), b.unary("Transpose", v[0])]
        });
        assert_eq!(got, ["f32[b, 3, a]", "f32[3, b, a]"]);
        let got = infer(&["f32[a, b, 3]"], |b, v| vec![b.transpose(v[0], &[1, 0])]);
        assert_eq!(
            got,
            ["error: Transpose: perm has 2 entries for a tensor of rank 3"]
        );
        let got = infer(&["f32[a, b]"], |b, v| vec![b.transpose(v[0], &[1, 1])]);
        assert_eq!(got, ["error: Transpose: axis 1 is named twice"]);
    }

    #[test]
    fn gradient_is_the_inverse() {
        let got = backward(18, &["f32[a, b, 3]"], |b, v| {
            vec![b.transpose(v[0], &[1, 2, 0])]
        });
        assert_eq!(got, "Transpose: Transpose(g0)\nda = Transpose");
    }
}
