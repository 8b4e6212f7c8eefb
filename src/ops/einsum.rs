//! `Einsum`.
//!
//! The gradient of an operand is the `Einsum` of the output's gradient with the other operands. An index that only this operand has was
//! summed over: the gradient is the same along it, by `Expand`. Repeated indices in one term and `...` over different ranks have no
//! rule.

use super::kit::infer::shape_text;
use super::kit::{DOMAIN, Differentiated, Inferred, MANY, no_gradient, wrong};
use super::{GradCx, GradError, InferCx, InferError, OpDef};
use crate::ir::{Sym, Val};
use std::collections::BTreeMap;

pub(super) const OPS: &[OpDef] = &[OpDef::new("Einsum", 1..=MANY, infer).gradient(gradient)];

/// An index: a letter, or the ellipsis, which stands for several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ix {
    Dots,
    Letter(char),
}

struct Equation {
    terms: Vec<Vec<Ix>>,
    out: Vec<Ix>,
}

fn term(text: &str) -> Result<Vec<Ix>, String> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(r) = rest.strip_prefix("...") {
            if out.contains(&Ix::Dots) {
                return Err(format!("term `{text}` has two ellipses"));
            }
            out.push(Ix::Dots);
            rest = r;
        } else if c.is_ascii_alphabetic() {
            out.push(Ix::Letter(c));
            rest = &rest[1..];
        } else {
            return Err(format!("`{c}` in term `{text}`"));
        }
    }
    Ok(out)
}

fn parse(equation: &str) -> Result<Equation, String> {
    let plain: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match plain.split_once("->") {
        Some((l, r)) => (l, Some(r)),
        None => (&*plain, None),
    };
    let terms = left.split(',').map(term).collect::<Result<Vec<_>, _>>()?;
    let out = if let Some(r) = right {
        term(r)?
    } else {
        // Implicit output: the ellipsis, then the indices that occur once, in alphabetical order.
        let mut count: BTreeMap<Ix, usize> = BTreeMap::new();
        for i in terms.iter().flatten() {
            *count.entry(*i).or_insert(0) += 1;
        }
        count
            .into_iter()
            .filter(|(i, n)| *n == 1 || *i == Ix::Dots)
            .map(|(i, _)| i)
            .collect()
    };
    if let Some(i) = out
        .iter()
        .find(|i| !terms.iter().flatten().any(|t| t == *i))
    {
        return Err(format!("output index {i:?} is in no term"));
    }
    Ok(Equation { terms, out })
}

fn equation(cx: &InferCx<'_>) -> Result<Equation, InferError> {
    let Some(text) = cx.node.str("equation") else {
        return wrong("attribute `equation` is missing");
    };
    let eq = parse(text).or_else(|e| wrong(format!("equation `{text}`: {e}")))?;
    if eq.terms.len() != cx.inputs.len() {
        return wrong(format!(
            "equation `{text}` has {} terms for {} inputs",
            eq.terms.len(),
            cx.inputs.len()
        ));
    }
    Ok(eq)
}

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let dtype = cx.same_dtype(0..cx.inputs.len())?;
    let eq = equation(cx)?;
    let dims = out_dims(cx, &eq)?;
    cx.set(0, dtype, dims);
    Ok(())
}

fn out_dims(cx: &InferCx<'_>, eq: &Equation) -> Result<Option<Vec<Sym>>, InferError> {
    let mut sizes: BTreeMap<char, Sym> = BTreeMap::new();
    let mut dots: Vec<Sym> = Vec::new();
    for (slot, t) in eq.terms.iter().enumerate() {
        let Some(d) = cx.dims(slot) else {
            return Ok(None);
        };
        let letters = t.iter().filter(|i| **i != Ix::Dots).count();
        let extra = d.len().checked_sub(letters);
        let Some(extra) = extra.filter(|e| *e == 0 || t.contains(&Ix::Dots)) else {
            return wrong(format!(
                "input {slot} has shape {}, its term {letters} indices",
                shape_text(d)
            ));
        };
        let mut at = 0;
        for i in t {
            match i {
                Ix::Dots => {
                    dots = cx.broadcast(&dots, &d[at..at + extra])?;
                    at += extra;
                }
                Ix::Letter(c) => {
                    let merged = match sizes.get(c) {
                        Some(s) => cx.broadcast_dim(s, &d[at]).ok_or_else(|| {
                            InferError(format!("index `{c}` has sizes {s} and {}", d[at]))
                        })?,
                        None => d[at].clone(),
                    };
                    sizes.insert(*c, merged);
                    at += 1;
                }
            }
        }
    }
    let mut out = Vec::new();
    for i in &eq.out {
        match i {
            Ix::Dots => out.extend(dots.iter().cloned()),
            Ix::Letter(c) => out.push(sizes[c].clone()),
        }
    }
    Ok(Some(out))
}

fn text(t: &[Ix]) -> String {
    let one = |i: &Ix| match i {
        Ix::Dots => "...".to_owned(),
        Ix::Letter(c) => c.to_string(),
    };
    t.iter().map(one).collect()
}

fn gradient(cx: &mut GradCx<'_>) -> Differentiated {
    let Some(eq) = cx.node().str("equation") else {
        return no_gradient("attribute `equation` is missing");
    };
    let eq = parse(eq).map_err(GradError)?;
    for slot in 0..eq.terms.len() {
        if cx.wants(slot) {
            let g = operand(cx, &eq, slot)?;
            cx.set(slot, g);
        }
    }
    Ok(())
}

fn operand(cx: &GradCx<'_>, eq: &Equation, slot: usize) -> Result<Val, GradError> {
    let mine = &eq.terms[slot];
    if (1..mine.len()).any(|i| mine[..i].contains(&mine[i])) {
        return no_gradient("there is no rule for an index that one term repeats");
    }
    if eq.terms.iter().flatten().any(|i| *i == Ix::Dots) {
        let ranks = |s: usize| {
            let letters = eq.terms[s].iter().filter(|i| **i != Ix::Dots).count();
            cx.fact(s).rank().map(|r| r - letters.min(r))
        };
        let all: Vec<Option<usize>> = (0..eq.terms.len()).map(ranks).collect();
        if !eq.out.contains(&Ix::Dots) || all.iter().any(|r| r.is_none() || *r != all[0]) {
            return no_gradient("there is no rule for `...` of different ranks");
        }
    }
    if narrower_elsewhere(cx, eq, slot) {
        return no_gradient("there is no rule for an index that another term broadcasts");
    }
    let (mut terms, mut inputs) = (vec![text(&eq.out)], vec![cx.grad()?]);
    for (s, t) in eq.terms.iter().enumerate().filter(|(s, _)| *s != slot) {
        terms.push(text(t));
        inputs.push(cx.input(s)?);
    }
    let elsewhere = |i: &Ix| {
        eq.out.contains(i)
            || eq
                .terms
                .iter()
                .enumerate()
                .any(|(s, t)| s != slot && t.contains(i))
    };
    let have: Vec<Ix> = mine.iter().copied().filter(elsewhere).collect();
    let full = format!("{}->{}", terms.join(","), text(&have));
    let mut g = cx.b.op("Einsum", &inputs, &[("equation", (&*full).into())]);
    let lost: Vec<i64> = (0..mine.len() as i64)
        .filter(|i| !elsewhere(&mine[*i as usize]))
        .collect();
    if !lost.is_empty() {
        if mine.contains(&Ix::Dots) {
            return no_gradient("there is no rule for `...` beside an index that is summed");
        }
        g = cx.b.unsqueeze(g, &lost);
        g = cx.b.op("Expand", &[g, cx.input_shape(slot)?], &[]);
    }
    if !broadcasts(cx, eq, slot) {
        return Ok(g);
    }
    let shape = cx.input_shape(slot)?;
    Ok(cx.b.op_in(DOMAIN, "SumTo", &[g, shape], &[]))
}

/// Whether an index that is summed has size 1 in another term and not in this one.
fn narrower_elsewhere(cx: &GradCx<'_>, eq: &Equation, slot: usize) -> bool {
    let size = |s: usize, i: Ix| {
        let at = eq.terms[s].iter().position(|t| *t == i)?;
        let before_dots = !eq.terms[s][..at].contains(&Ix::Dots);
        let from_end = at as i64 - eq.terms[s].len() as i64;
        cx.fact(s)
            .size(if before_dots { at as i64 } else { from_end })
    };
    let summed = eq.terms[slot].iter().filter(|i| !eq.out.contains(i));
    summed.copied().any(|i| {
        size(slot, i) != Some(1) && (0..eq.terms.len()).any(|s| s != slot && size(s, i) == Some(1))
    })
}

/// Whether a size of 1 of this operand may meet a larger one.
fn broadcasts(cx: &GradCx<'_>, eq: &Equation, slot: usize) -> bool {
    cx.fact(slot).dims.is_none_or(|d| d.iter().any(|s| s.is(1)))
        || eq.terms[slot].contains(&Ix::Dots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equations() {
        let out = |e: &str| parse(e).map(|e| text(&e.out));
        assert_eq!(out("bid, bjd -> bij"), Ok("bij".into()));
        assert_eq!(out("ij,jk"), Ok("ik".into()), "implicit output");
        assert_eq!(out("...ab,...b"), Ok("...a".into()));
        assert!(out("ij->k").is_err(), "unknown output index");
        assert!(out("i1->i").is_err());
    }
}

#[cfg(test)]
mod gradient_tests {
    use super::super::testing::{backward, infer};
    use crate::ir::{Builder, Val};

    fn einsum(b: &Builder, equation: &str, v: &[Val]) -> Vec<Val> {
        vec![b.op("Einsum", v, &[("equation", equation.into())])]
    }

    #[test]
    fn sizes() {
        let of = |e: &str| {
            infer(&["f32[batch, h, s, 8]", "f32[batch, h, t, 8]"], |b, v| {
                einsum(b, e, v)
            })
        };
        assert_eq!(of("bhid,bhjd->bhij"), ["f32[batch, h, s, t]"]);
        assert_eq!(of("...id,...jd->...ij"), ["f32[batch, h, s, t]"]);
        assert_eq!(
            of("bid,bhjd->bij"),
            ["error: Einsum: input 0 has shape [batch, h, s, 8], its term 3 indices"]
        );
    }

    #[test]
    fn gradients() {
        let of = |e: &str| {
            backward(18, &["f32[b, 2, 8]", "f32[b, 3, 8]"], |b, v| {
                einsum(b, e, v)
            })
        };
        assert_eq!(
            of("bid,bjd->bij"),
            "Einsum: Einsum(g0, b)\nEinsum_1: Einsum(g0, a)\nda = Einsum\ndb = Einsum_1"
        );
        assert!(
            of("bid,bjd->bj").contains("Unsqueeze(Einsum, [1])"),
            "the lost index is spread"
        );
        let trace = backward(18, &["f32[b, 8, 8]", "f32[b, 8]"], |b, v| {
            einsum(b, "bii,bj->bj", v)
        });
        assert_eq!(
            trace,
            "error: there is no rule for an index that one term repeats"
        );
    }
}
