//! `Einsum`: operands are multiplied pairwise as batched matrix products. An ellipsis becomes letters of its own, counted from the last
//! axis; a letter that a term repeats is read along the diagonal; an axis of size 1 that another term has at full size is left out.

use super::matmul::matmul;
use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, one, to_floats};
use crate::runtime::value::{Fault, Floats, KResult, Value};
use crate::runtime::walk::{self, View, count};

/// Stands for an ellipsis.
const DOTS: char = '.';
/// The first of the letters that an ellipsis becomes, the last axis first.
const FIRST: u32 = 0x1_0000;

/// Subscripts; `None` for an output that follows from the terms.
struct Einsum {
    inputs: Vec<Vec<char>>,
    output: Option<Vec<char>>,
}

/// A term with letters in the place of its ellipsis, which stands for `rank` axes.
fn lettered(term: &[char], rank: usize) -> Vec<char> {
    let letters = || {
        (0..rank as u32)
            .rev()
            .filter_map(|i| char::from_u32(FIRST + i))
    };
    let each = term
        .iter()
        .map(|&c| if c == DOTS { Err(()) } else { Ok(c) });
    each.flat_map(|c| match c {
        Ok(c) => vec![c],
        Err(()) => letters().collect(),
    })
    .collect()
}

/// The operand with each letter once: what repeats is read along the diagonal.
fn distinct(cx: &Cx<'_>, x: Floats, axes: &[char]) -> KResult<Term> {
    let once: Vec<char> = (0..axes.len())
        .filter(|&i| !axes[..i].contains(&axes[i]))
        .map(|i| axes[i])
        .collect();
    if once.len() == axes.len() {
        return Ok(Term { x, axes: once });
    }
    let (mut dims, mut strides) = (Vec::new(), Vec::new());
    let read = x.read();
    let view = read.view()?;
    for c in &once {
        let of: Vec<usize> = (0..axes.len()).filter(|&i| axes[i] == *c).collect();
        let size = view.dims[of[0]];
        if of.iter().any(|&i| view.dims[i] != size) {
            return Err(Fault(format!("a diagonal of {:?}", view.dims)));
        }
        dims.push(size);
        strides.push(of.iter().map(|&i| view.strides[i]).sum());
    }
    let mut out = cx.alloc(count(&dims)?);
    let diagonal = View {
        data: view.data,
        dims: dims.as_slice().into(),
        strides: strides.as_slice().into(),
    };
    walk::copy(&diagonal, &mut out);
    let x = cx.floats(out, &dims, x.dtype())?;
    Ok(Term { x, axes: once })
}

/// Leaves out axes of size 1 of a term that have another size in another one.
fn narrowed(terms: Vec<Term>) -> KResult<Vec<Term>> {
    let sizes: Vec<(char, usize)> = terms
        .iter()
        .flat_map(|t| t.axes.iter().copied().zip(t.x.dims().iter().copied()))
        .collect();
    let wide = |c: char| sizes.iter().any(|&(d, n)| d == c && n != 1);
    terms
        .into_iter()
        .map(|t| {
            let stays = |i: &usize| t.x.dims()[*i] != 1 || !wide(t.axes[*i]);
            let keep: Vec<usize> = (0..t.axes.len()).filter(stays).collect();
            let dims: Vec<usize> = keep.iter().map(|&i| t.x.dims()[i]).collect();
            let dense = t.x.view(|x| x.reshape(dims))?;
            Ok(Term {
                x: dense,
                axes: keep.iter().map(|&i| t.axes[i]).collect(),
            })
        })
        .collect()
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
        let (mut terms, mut most) = (Vec::new(), 0);
        for (i, term) in self.inputs.iter().enumerate() {
            let x = to_floats(ins.take(i)?, i)?;
            let letters = term.iter().filter(|c| **c != DOTS).count();
            let rank = x.dims().len().checked_sub(letters);
            let rank = rank.filter(|&r| r == 0 || term.contains(&DOTS));
            let rank = rank.ok_or_else(|| {
                Fault(format!("operand {i} of shape {:?} for {term:?}", x.dims()))
            })?;
            most = most.max(if term.contains(&DOTS) { rank } else { 0 });
            terms.push(distinct(cx, x, &lettered(term, rank))?);
        }
        let output = match &self.output {
            Some(out) => lettered(out, most),
            None => implied(&self.inputs, most),
        };
        let mut terms = narrowed(terms)?;
        terms.reverse();
        let mut acc = terms.pop().ok_or("no operands")?;
        while let Some(next) = terms.pop() {
            let later = |c: char| output.contains(&c) || terms.iter().any(|t| t.axes.contains(&c));
            acc = pair(cx, acc, next, &later)?;
        }
        let acc = summed(cx, acc, &|c| output.contains(&c))?;
        let perm = output
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

/// The output where it is not written: the ellipsis, then the letters that occur once, in alphabetical order.
fn implied(inputs: &[Vec<char>], rank: usize) -> Vec<char> {
    let all: Vec<char> = inputs
        .iter()
        .flatten()
        .copied()
        .filter(|c| *c != DOTS)
        .collect();
    let once = |c: &char| all.iter().filter(|x| *x == c).count() == 1;
    let mut out: Vec<char> = all.iter().copied().filter(once).collect();
    out.sort_unstable();
    lettered(&[&[DOTS], &*out].concat(), rank)
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
    let term = |t: &str| t.replace("...", ".").chars().collect::<Vec<char>>();
    let inputs: Vec<Vec<char>> = left.split(',').map(term).collect();
    let output = right.map(term);
    let valid = |t: &Vec<char>| {
        let dots = t.iter().filter(|c| **c == DOTS).count();
        dots <= 1 && t.iter().all(|c| c.is_ascii_alphabetic() || *c == DOTS)
    };
    if !inputs.iter().chain(&output).all(valid) {
        return Err(Fault(format!("equation = \"{text}\"")));
    }
    Ok(Box::new(Einsum { inputs, output }))
}

pub(super) const KERNELS: &[Entry] = &[("", "Einsum", make)];
