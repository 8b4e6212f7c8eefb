//! `Einsum`: operands are multiplied pairwise as batched matrix products.

use super::matmul::matmul;
use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, one, to_floats};
use crate::runtime::value::{Fault, Floats, KResult, Value};
use crate::runtime::walk::count;

/// Subscripts; an ellipsis is not supported.
struct Einsum {
    inputs: Vec<Vec<char>>,
    output: Vec<char>,
}

/// A tensor with a letter for each axis.
struct Term {
    x: Floats,
    axes: Vec<char>,
}

impl Kernel for Einsum {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        if ins.len() != self.inputs.len() {
            return Err(Fault(format!(
                "{} operands for {} terms",
                ins.len(),
                self.inputs.len()
            )));
        }
        let mut terms = Vec::new();
        for (i, axes) in self.inputs.iter().enumerate() {
            let x = to_floats(ins.take(i)?, i)?;
            if x.dims().len() != axes.len() {
                return Err(Fault(format!(
                    "operand {i} of shape {:?} for {axes:?}",
                    x.dims()
                )));
            }
            terms.push(Term {
                x,
                axes: axes.clone(),
            });
        }
        terms.reverse();
        let mut acc = terms.pop().ok_or("no operands")?;
        while let Some(next) = terms.pop() {
            let later =
                |c: char| self.output.contains(&c) || terms.iter().any(|t| t.axes.contains(&c));
            acc = pair(cx, acc, next, &later)?;
        }
        let acc = summed(cx, acc, &|c| self.output.contains(&c))?;
        let perm = self
            .output
            .iter()
            .map(|c| acc.axes.iter().position(|a| a == c))
            .collect::<Option<Vec<usize>>>()
            .ok_or("an output letter that no operand has")?;
        one(acc.x.view(|t| t.permute(perm))?)
    }
}

/// Sums over the axes that nothing needs any more.
fn summed(cx: &Cx<'_>, t: Term, needed: &dyn Fn(char) -> bool) -> KResult<Term> {
    let keep: Vec<usize> = (0..t.axes.len()).filter(|&i| needed(t.axes[i])).collect();
    if keep.len() == t.axes.len() {
        return Ok(t);
    }
    let gone: Vec<usize> = (0..t.axes.len()).filter(|i| !keep.contains(i)).collect();
    let dims: Vec<usize> = keep.iter().map(|&i| t.x.dims()[i]).collect();
    let order: Vec<usize> = gone.iter().chain(&keep).copied().collect();
    let x = t.x.view(|x| x.permute(order))?;
    let x = super::gradient::sum_to(cx, x, &dims)?;
    Ok(Term {
        x,
        axes: keep.iter().map(|&i| t.axes[i]).collect(),
    })
}

fn pair(cx: &Cx<'_>, a: Term, b: Term, later: &dyn Fn(char) -> bool) -> KResult<Term> {
    let in_b = b.axes.clone();
    let in_a = a.axes.clone();
    let a = summed(cx, a, &|c| later(c) || in_b.contains(&c))?;
    let b = summed(cx, b, &|c| later(c) || in_a.contains(&c))?;
    let shared = |c: &char| a.axes.contains(c) && b.axes.contains(c);
    let batch: Vec<char> = a
        .axes
        .iter()
        .copied()
        .filter(|c| shared(c) && later(*c))
        .collect();
    let inner: Vec<char> = a
        .axes
        .iter()
        .copied()
        .filter(|c| shared(c) && !later(*c))
        .collect();
    let left: Vec<char> = a.axes.iter().copied().filter(|c| !shared(c)).collect();
    let right: Vec<char> = b.axes.iter().copied().filter(|c| !shared(c)).collect();
    let size = |c: &char| -> usize {
        let of = |t: &Term| t.axes.iter().position(|x| x == c).map(|i| t.x.dims()[i]);
        of(&a).or(of(&b)).unwrap_or(1)
    };
    let sizes = |l: &[char]| l.iter().map(size).collect::<Vec<_>>();
    let (nb, nk) = (count(&sizes(&batch))?, count(&sizes(&inner))?);
    let lay = |t: &Term, groups: [&[char]; 3], dims: [usize; 3]| -> KResult<Value> {
        let order: Vec<usize> = groups
            .iter()
            .flat_map(|g| g.iter())
            .filter_map(|c| t.axes.iter().position(|x| x == c))
            .collect();
        let turned = t.x.view(|x| x.permute(order))?;
        super::shape::reshaped(cx, Value::Float(turned), dims.to_vec())
    };
    let (nl, nr) = (count(&sizes(&left))?, count(&sizes(&right))?);
    let x = lay(&a, [&batch, &left, &inner], [nb, nl, nk])?;
    let y = lay(&b, [&batch, &inner, &right], [nb, nk, nr])?;
    let out = matmul(cx, x, y, 1.0)?;
    let axes: Vec<char> = batch.iter().chain(&left).chain(&right).copied().collect();
    let dims = sizes(&axes);
    Ok(Term {
        x: out.view(|t| t.reshape(dims))?,
        axes,
    })
}

fn make(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let text: String = cx
        .node
        .str("equation")
        .ok_or("the attribute `equation` is missing")?
        .chars()
        .filter(|c| !c.is_whitespace())
        .collect();
    let (left, right) = text
        .split_once("->")
        .map_or((&*text, None), |(l, r)| (l, Some(r)));
    let inputs: Vec<Vec<char>> = left.split(',').map(|t| t.chars().collect()).collect();
    let bad = || Fault(format!("equation = \"{text}\""));
    let plain = |t: &[char]| {
        t.iter()
            .enumerate()
            .all(|(i, c)| c.is_ascii_alphabetic() && !t[..i].contains(c))
    };
    let output: Vec<char> = match right {
        Some(r) => r.chars().collect(),
        None => {
            // Letters that occur once, in alphabetical order.
            let mut all: Vec<char> = inputs.iter().flatten().copied().collect();
            all.sort_unstable();
            let once = |c: &char| all.iter().filter(|x| *x == c).count() == 1;
            all.iter().copied().filter(once).collect()
        }
    };
    if !inputs.iter().all(|t| plain(t)) || !plain(&output) {
        return Err(bad());
    }
    Ok(Box::new(Einsum { inputs, output }))
}

pub(super) const KERNELS: &[Entry] = &[("", "Einsum", make)];
