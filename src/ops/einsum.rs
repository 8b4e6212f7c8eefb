//! `Einsum`.
//!
//! The gradient of an operand is the `Einsum` of the output's gradient with the other operands. An index that only this operand has was
//! summed over: the gradient is the same along it, by `Expand`. Where a term repeats an index the gradient is on the diagonal, by a
//! matrix of ones there. `...` becomes letters where the ranks are known; an axis of size 1 that another term has at full size is no
//! index of its term.
//!
//! A product of matrices, in a row of batches perhaps, can be written as one: `bind,bjnd->bnij` is a `MatMul` of transposed operands.

use super::kit::infer::shape_text;
use super::kit::{DOMAIN, Differentiated, Inferred, MANY, no_gradient, wrong};
use super::{Definition, ExpandCx, GradCx, GradError, InferCx, InferError, OpDef};
use crate::ir::{Node, Sym, Val};
use std::collections::BTreeMap;

pub(super) const OPS: &[OpDef] = &[OpDef::new("Einsum", 1..=MANY, infer)
    .gradient(gradient)
    .plain(|node| product(node).map(|_| spell as Definition))];

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
    let eq = spelled(cx, parse(eq).map_err(GradError)?)?;
    for slot in 0..eq.terms.len() {
        if cx.wants(slot) {
            let g = operand(cx, &eq, slot)?;
            cx.set(slot, g);
        }
    }
    Ok(())
}

/// A product of matrices: which operand is on the left, and the axes of both and of the result.
struct Product {
    left: usize,
    axes: [Vec<i64>; 2],
    result: Vec<i64>,
}

/// What makes an equation a product of matrices: two terms that share one index which is summed over, have one index each of their own,
/// and all others in common with the output. The operand whose own index comes first in the output is on the left.
fn product(node: &Node) -> Option<Product> {
    let eq = parse(node.str("equation")?).ok()?;
    let [a, b] = &eq.terms[..] else { return None };
    let distinct = |t: &[Ix]| (1..t.len()).all(|i| !t[..i].contains(&t[i]));
    if ![a, b, &eq.out]
        .into_iter()
        .all(|t| distinct(t) && !t.contains(&Ix::Dots))
    {
        return None;
    }
    let only = |indices: Vec<Ix>| <[Ix; 1]>::try_from(indices).ok().map(|[i]| i);
    let of = |t: &[Ix], wanted: &dyn Fn(&Ix) -> bool| t.iter().copied().filter(wanted).collect();
    let summed = only(of(a, &|i| !eq.out.contains(i)))?;
    if only(of(b, &|i| !eq.out.contains(i)))? != summed {
        return None;
    }
    let own = [
        only(of(a, &|i| eq.out.contains(i) && !b.contains(i)))?,
        only(of(b, &|i| eq.out.contains(i) && !a.contains(i)))?,
    ];
    let batch: Vec<Ix> = of(&eq.out, &|i| !own.contains(i));
    let place = |i: &Ix, t: &[Ix]| t.iter().position(|j| j == i).map(|at| at as i64);
    let left = usize::from(place(&own[0], &eq.out) > place(&own[1], &eq.out));
    let order = |slot: usize, last: [Ix; 2]| -> Option<Vec<i64>> {
        let axes = batch.iter().chain(&last);
        axes.map(|i| place(i, &eq.terms[slot])).collect()
    };
    let made: Vec<Ix> = batch
        .iter()
        .copied()
        .chain([own[left], own[1 - left]])
        .collect();
    let result = eq
        .out
        .iter()
        .map(|i| place(i, &made))
        .collect::<Option<_>>()?;
    Some(Product {
        left,
        axes: [
            order(left, [own[left], summed])?,
            order(1 - left, [summed, own[1 - left]])?,
        ],
        result,
    })
}

/// The product as `MatMul` between `Transpose`.
fn spell(cx: &ExpandCx<'_>) -> Result<Vec<Option<Val>>, GradError> {
    let Some(product) = product(cx.node()) else {
        return no_gradient("the equation is no product of matrices");
    };
    let arranged = |v: Val, axes: &[i64]| {
        let moves = axes.iter().zip(0..).any(|(a, at)| *a != at);
        if moves { cx.b.transpose(v, axes) } else { v }
    };
    let left = arranged(cx.input(product.left)?, &product.axes[0]);
    let right = arranged(cx.input(1 - product.left)?, &product.axes[1]);
    let made = cx.b.op("MatMul", &[left, right], &[]);
    Ok(vec![Some(arranged(made, &product.result))])
}

/// Letters that an equation does not use.
fn free(eq: &Equation) -> impl Iterator<Item = Ix> {
    let used: Vec<Ix> = eq.terms.iter().flatten().chain(&eq.out).copied().collect();
    let all = ('a'..='z').chain('A'..='Z').map(Ix::Letter);
    all.filter(move |l| !used.contains(l))
}

/// The equation with letters in the place of each ellipsis, counted from the last axis.
fn spelled(cx: &GradCx<'_>, eq: Equation) -> Result<Equation, GradError> {
    if !eq.terms.iter().flatten().any(|i| *i == Ix::Dots) {
        return Ok(eq);
    }
    let mut ranks = Vec::new();
    for (slot, term) in eq.terms.iter().enumerate() {
        let letters = term.iter().filter(|i| **i != Ix::Dots).count();
        let has = term.contains(&Ix::Dots);
        ranks.push(if has {
            cx.rank(slot)?.saturating_sub(letters)
        } else {
            0
        });
    }
    let most = ranks.iter().copied().max().unwrap_or(0);
    let mut letters: Vec<Ix> = free(&eq).take(most).collect();
    if letters.len() < most {
        return no_gradient("there are not enough letters for `...`");
    }
    letters.reverse();
    let spell = |term: &[Ix], rank: usize| -> Vec<Ix> {
        let each = term.iter().map(|i| match i {
            Ix::Dots => letters[most - rank..].to_vec(),
            Ix::Letter(_) => vec![*i],
        });
        each.flatten().collect()
    };
    let terms = eq.terms.iter().zip(&ranks).map(|(t, r)| spell(t, *r));
    Ok(Equation {
        terms: terms.collect(),
        out: spell(&eq.out, most),
    })
}

/// Another operand and its term, without axes of size 1 that have another size in the term that is differentiated.
fn other(
    cx: &GradCx<'_>,
    eq: &Equation,
    slot: usize,
    s: usize,
) -> Result<(Val, Vec<Ix>), GradError> {
    let (mine, term) = (&eq.terms[slot], &eq.terms[s]);
    let one = |slot: usize, axis: usize| cx.fact(slot).size(axis as i64) == Some(1);
    let gone: Vec<i64> = (0..term.len())
        .filter(|&a| {
            let at = mine.iter().position(|i| *i == term[a]);
            one(s, a) && at.is_some_and(|at| !one(slot, at))
        })
        .map(|a| a as i64)
        .collect();
    let v = cx.input(s)?;
    if gone.is_empty() {
        return Ok((v, term.clone()));
    }
    let stays = (0..term.len()).filter(|a| !gone.contains(&(*a as i64)));
    Ok((cx.b.squeeze(v, &gone), stays.map(|a| term[a]).collect()))
}

fn operand(cx: &GradCx<'_>, eq: &Equation, slot: usize) -> Result<Val, GradError> {
    let mine = &eq.terms[slot];
    let (mut terms, mut inputs) = (vec![eq.out.clone()], vec![cx.grad()?]);
    for s in (0..eq.terms.len()).filter(|s| *s != slot) {
        let (v, term) = other(cx, eq, slot, s)?;
        inputs.push(v);
        terms.push(term);
    }
    // Each index that repeats gets a letter of its own, and a matrix that is one where both are the same.
    let mut fresh = free(eq);
    let mut own: Vec<Ix> = Vec::new();
    for (axis, i) in mine.iter().enumerate() {
        if !mine[..axis].contains(i) {
            own.push(*i);
            continue;
        }
        let letter = fresh
            .next()
            .ok_or_else(|| GradError("there are not enough letters".into()))?;
        own.push(letter);
        terms.push(vec![*i, letter]);
        inputs.push(diagonal(cx, slot, axis)?);
    }
    let elsewhere = |i: &Ix| terms.iter().any(|t| t.contains(i));
    let have: Vec<Ix> = own.iter().copied().filter(elsewhere).collect();
    let lost: Vec<i64> = (0..own.len() as i64)
        .filter(|i| !elsewhere(&own[*i as usize]))
        .collect();
    let left: Vec<String> = terms.iter().map(|t| text(t)).collect();
    let full = format!("{}->{}", left.join(","), text(&have));
    let mut g = cx.b.op("Einsum", &inputs, &[("equation", (&*full).into())]);
    if !lost.is_empty() {
        g = cx.b.unsqueeze(g, &lost);
        g = cx.b.op("Expand", &[g, cx.input_shape(slot)?], &[]);
    }
    if !broadcasts(cx, slot) {
        return Ok(g);
    }
    let shape = cx.input_shape(slot)?;
    Ok(cx.b.op_in(DOMAIN, "SumTo", &[g, shape], &[]))
}

/// Ones where row and column are the same, of the size of an axis.
fn diagonal(cx: &GradCx<'_>, slot: usize, axis: usize) -> Result<Val, GradError> {
    let b = cx.b;
    let at = b.ints(&[axis as i64]);
    let size = b.op(
        "Gather",
        &[b.shape(cx.input(slot)?), at],
        &[("axis", 0i64.into())],
    );
    let size = b.squeeze(size, &[0]);
    let range = b.op("Range", &[b.int(0), size, b.int(1)], &[]);
    let same = b.op("Equal", &[b.unsqueeze(range, &[1]), range], &[]);
    Ok(b.cast(same, cx.float(slot)))
}

/// Whether a size of 1 of this operand may meet a larger one.
fn broadcasts(cx: &GradCx<'_>, slot: usize) -> bool {
    cx.fact(slot).dims.is_none_or(|d| d.iter().any(|s| s.is(1)))
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
        assert!(
            trace.contains("Equal(Unsqueeze, Range)"),
            "the gradient is on the diagonal: {trace}"
        );
    }
}
