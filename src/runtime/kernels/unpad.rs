//! `TokenIndices`, `UnpadInput` and `PadInput`: rows of a batch without their padding, and with it again.

use super::{Cx, Entry, Ins, Kernel, OWN, Outs, one, size_of};
use crate::ir::DType;
use crate::runtime::value::{Data, Fault, Floats, Host, KResult};
use crate::runtime::walk::{self, count};

struct Tokens;
struct Unpad;
struct Pad;

impl Kernel for Tokens {
    fn run(&self, _: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let mask = ins.take(0)?;
        let &[_, width] = mask.dims() else {
            return Err(Fault(format!("a mask of {:?}", mask.dims())));
        };
        let seen: Vec<bool> = mask.to_f32()?.into_iter().map(|x| x != 0.0).collect();
        let mut rows = seen.chunks(width.max(1));
        let right = rows.all(|row| row.is_sorted_by(|a, b| a >= b));
        let tokens = (0..seen.len()).filter(|i| !right || seen[*i]);
        let tokens: Vec<i64> = tokens.map(|i| i as i64).collect();
        let dims = vec![1, tokens.len()];
        one(Host::new(DType::Int64, dims, Data::I64(tokens))?)
    }
}

/// What the operators read besides: positions in order, and the sizes of the batch.
struct Places {
    at: Vec<usize>,
    batch: [usize; 2],
}

impl Places {
    fn read(ins: &Ins) -> KResult<Places> {
        let sizes = ins.ints(2)?;
        let [b, s] = sizes[..] else {
            return Err(Fault(format!("{} sizes of a batch", sizes.len())));
        };
        let batch = [size_of(b)?, size_of(s)?];
        let all = count(&batch)?;
        let place = |i: i64| {
            let at = usize::try_from(i).ok().filter(|at| *at < all);
            at.ok_or_else(|| Fault(format!("token {i} of {all}")))
        };
        let at: Vec<usize> = ins
            .ints(1)?
            .into_iter()
            .map(place)
            .collect::<KResult<_>>()?;
        if at.windows(2).any(|w| w[0] >= w[1]) {
            return Err("tokens are counted in order, each once".into());
        }
        Ok(Places { at, batch })
    }

    /// Whether there is no padding.
    fn is_all(&self) -> bool {
        self.at.len() == self.batch[0] * self.batch[1]
    }
}

impl Kernel for Unpad {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let places = Places::read(&ins)?;
        let x = ins.floats(0)?;
        if x.dims().get(..2) != Some(&places.batch[..]) {
            return Err(Fault(format!(
                "{:?} for a batch of {:?}",
                x.dims(),
                places.batch
            )));
        }
        let mut dims = x.dims().to_vec();
        (dims[0], dims[1]) = (1, places.at.len());
        moved(cx, x, dims, &places, |i| Some(places.at[i]))
    }
}

impl Kernel for Pad {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let places = Places::read(&ins)?;
        let y = ins.floats(0)?;
        if y.dims().get(..2) != Some(&[1, places.at.len()][..]) {
            return Err(Fault(format!(
                "{:?} for {} tokens",
                y.dims(),
                places.at.len()
            )));
        }
        let mut dims = y.dims().to_vec();
        [dims[0], dims[1]] = places.batch;
        // Where each position comes from.
        let mut from = vec![None; count(&places.batch)?];
        for (i, at) in places.at.iter().enumerate() {
            from[*at] = Some(i);
        }
        moved(cx, y, dims, &places, |i| from[i])
    }
}

/// Vectors at other places, with zeros where none comes from; without padding, a view.
fn moved(
    cx: &Cx<'_>,
    x: Floats,
    dims: Vec<usize>,
    places: &Places,
    from: impl Fn(usize) -> Option<usize> + Sync,
) -> KResult<Outs> {
    let x = cx.dense(x)?;
    if places.is_all() {
        return one(x.view(|t| t.reshape(dims))?);
    }
    let width = count(&dims[2..])?;
    let mut out = cx.alloc(count(&dims)?);
    let read = x.read();
    let src = read.slice()?;
    walk::rows(&mut out, width, |i, row| match from(i) {
        Some(from) => row.copy_from_slice(&src[from * width..(from + 1) * width]),
        None => row.fill(0.0),
    });
    cx.one(out, &dims, x.dtype())
}

pub(super) const KERNELS: &[Entry] = &[
    (OWN, "TokenIndices", |_| Ok(Box::new(Tokens))),
    (OWN, "UnpadInput", |_| Ok(Box::new(Unpad))),
    (OWN, "PadInput", |_| Ok(Box::new(Pad))),
];
