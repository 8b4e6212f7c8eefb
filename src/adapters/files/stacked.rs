//! Parameters of many adapters in one tensor, a row for each: how they are put there, and how each is got back as it was.

use super::store::Param;
use crate::adapters::naming::renamed;
use crate::adapters::param::decays;
use crate::ir::TensorData;
use serde::{Deserialize, Serialize};

/// What stands for an adapter's name in the name of a parameter that many have.
const ANY: &str = "{}";

/// One adapter's parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member<'a> {
    /// The adapter's id.
    pub id: usize,
    /// Its name.
    pub adapter: &'a str,
    /// The parameter's name.
    pub name: &'a str,
    /// The parameter.
    pub param: &'a Param,
}

/// Which rows of a tensor are whose.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Rows {
    like: Vec<Like>,
}

/// Parameters of one form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Like {
    /// The name, with a mark for the adapter's.
    name: String,
    /// The shape.
    dims: Vec<u64>,
    /// Further names in files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
    /// First row, first id, and how many there are behind each other.
    rows: Vec<[usize; 3]>,
}

impl Like {
    /// The form of one parameter.
    fn of(m: &Member<'_>) -> Like {
        let marked = |name: &str| {
            let marked = renamed(name, m.adapter, ANY);
            let back = renamed(&marked, ANY, m.adapter);
            if back == name {
                marked
            } else {
                name.to_owned()
            }
        };
        Like {
            name: marked(m.name),
            dims: m.param.tensor.dims.to_vec(),
            aliases: m.param.aliases.iter().map(|a| marked(a)).collect(),
            rows: Vec::new(),
        }
    }

    fn is_like(&self, other: &Like) -> bool {
        (&self.name, &self.dims, &self.aliases) == (&other.name, &other.dims, &other.aliases)
    }
}

/// One tensor of all parameters, `[members, 1, …, largest size of each axis]` with `rank` axes, filled up with zeros, and the text that says
/// which row is whose. `None` where the elements are not there, types differ, or a parameter has too many axes.
pub(crate) fn stacked(members: &[Member<'_>], rank: usize) -> Option<(TensorData, String)> {
    let first = &members.first()?.param.tensor;
    let axes = first.dims.len();
    let mut largest = vec![0usize; axes];
    let mut rows = Rows::default();
    for (row, m) in members.iter().enumerate() {
        let tensor = &m.param.tensor;
        if tensor.dtype != first.dtype || tensor.dims.len() != axes {
            return None;
        }
        for (most, d) in largest.iter_mut().zip(&tensor.dims) {
            *most = (*most).max(usize::try_from(*d).ok()?);
        }
        let like = Like::of(m);
        let at = rows.like.iter().position(|l| l.is_like(&like));
        let at = at.unwrap_or_else(|| {
            rows.like.push(like);
            rows.like.len() - 1
        });
        match rows.like[at].rows.last_mut() {
            Some([r, i, n]) if *r + *n == row && *i + *n == m.id => *n += 1,
            _ => rows.like[at].rows.push([row, m.id, 1]),
        }
    }
    let size = usize::try_from(first.dtype.bytes_for(1)?).ok()?;
    let row: usize = largest.iter().product::<usize>() * size;
    let mut bytes = vec![0u8; row * members.len()];
    for (m, out) in members.iter().zip(bytes.chunks_mut(row.max(1))) {
        let tensor = &m.param.tensor;
        let own = tensor.bytes()?;
        let dims: Vec<usize> = tensor.dims.iter().map(|d| *d as usize).collect();
        if own.len() != dims.iter().product::<usize>() * size {
            return None;
        }
        for (from, to, len) in lines(&dims, &largest) {
            let (from, to, len) = (from * size, to * size, len * size);
            out[to..to + len].copy_from_slice(&own[from..from + len]);
        }
    }
    let mut dims = vec![members.len() as u64];
    dims.resize((rank).checked_sub(axes)?, 1);
    dims.extend(largest.iter().map(|d| *d as u64));
    let text = serde_json::to_string(&rows).ok()?;
    Some((TensorData::raw(first.dtype, dims, bytes.into()), text))
}

/// The parameters in the rows of a tensor, with their names. `adapters` are the names by id. What the text says and the tensor does not
/// hold is left out: files are not trusted.
pub(crate) fn unstacked(
    tensor: &TensorData,
    text: &str,
    adapters: &[String],
) -> Vec<(String, Param)> {
    let Ok(rows) = serde_json::from_str::<Rows>(text) else {
        return Vec::new();
    };
    let mut out = Vec::new();
    for like in &rows.like {
        for [row, id, count] in &like.rows {
            for at in 0..(*count).min(adapters.len()) {
                let (Some(row), Some(id)) = (row.checked_add(at), id.checked_add(at)) else {
                    break;
                };
                let own = adapters.get(id).zip(row_of(tensor, row, &like.dims));
                let Some((adapter, tensor)) = own else {
                    continue;
                };
                let name = renamed(&like.name, ANY, adapter);
                let aliases = like.aliases.iter();
                let param = Param {
                    adapter: adapter.as_str().into(),
                    tensor,
                    // It is no initializer of the graph, which training could change.
                    trainable: false,
                    idle: false,
                    decay: decays(&name),
                    to_identity: None,
                    aliases: aliases.map(|a| renamed(a, ANY, adapter).into()).collect(),
                };
                out.push((name, param));
            }
        }
    }
    out
}

/// The part of a row that has these sizes.
fn row_of(tensor: &TensorData, row: usize, dims: &[u64]) -> Option<TensorData> {
    let all: Option<Vec<usize>> = tensor
        .dims
        .iter()
        .map(|d| usize::try_from(*d).ok())
        .collect();
    let all = all?;
    let (count, rest) = all.split_first()?;
    let padded = rest.len().checked_sub(dims.len())?;
    let (between, largest) = rest.split_at(padded);
    let wanted: Option<Vec<usize>> = dims.iter().map(|d| usize::try_from(*d).ok()).collect();
    let wanted = wanted?;
    let fits = row < *count && between.iter().all(|d| *d == 1);
    if !fits || wanted.iter().zip(largest).any(|(w, l)| w > l) {
        return None;
    }
    let size = usize::try_from(tensor.dtype.bytes_for(1)?).ok()?;
    let bytes = tensor.bytes()?;
    let len = largest.iter().try_fold(size, |n, d| n.checked_mul(*d))?;
    let begin = row.checked_mul(len)?;
    let own = bytes.get(begin..begin.checked_add(len)?)?;
    if wanted == largest {
        let own = bytes.slice(begin..begin + len);
        return Some(TensorData::raw(tensor.dtype, dims, own));
    }
    let mut out = Vec::with_capacity(wanted.iter().product::<usize>() * size);
    for (_, at, len) in lines(&wanted, largest) {
        out.extend_from_slice(&own[at * size..(at + len) * size]);
    }
    Some(TensorData::raw(tensor.dtype, dims, out.into()))
}

/// The stretches of a tensor of sizes `dims`: where each begins there and in a tensor of sizes `largest`, and how long it is.
fn lines<'d>(
    dims: &'d [usize],
    largest: &'d [usize],
) -> impl Iterator<Item = (usize, usize, usize)> + 'd {
    let (len, outer) = match dims.split_last() {
        Some((len, outer)) => (*len, outer),
        None => (1, dims),
    };
    let count: usize = outer.iter().product();
    (0..count).map(move |i| {
        let (mut rest, mut to, mut stride) = (i, 0, largest.last().copied().unwrap_or(1));
        for (d, most) in outer.iter().zip(largest).rev() {
            to += rest % d * stride;
            rest /= d;
            stride *= most;
        }
        (i * len, to, len)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn param(dims: [u64; 2], data: &[f32]) -> Param {
        Param {
            adapter: "".into(),
            tensor: TensorData::from_f32(dims, data),
            trainable: true,
            idle: false,
            decay: true,
            to_identity: None,
            aliases: Vec::new(),
        }
    }

    /// Rows are filled up with zeros, and come back as they were, by the names of their adapters.
    #[test]
    fn parameters_come_back_from_a_stack() {
        let (a, b) = (param([1, 2], &[1., 2.]), param([2, 1], &[3., 4.]));
        let name = |n: &str| format!("layers.0.q_proj.loras.{n}.lora_A");
        let (names, adapters) = (["a", "none", "b"].map(name), ["a", "none", "b"]);
        let members = [(0, &a), (2, &b)].map(|(id, param)| Member {
            id,
            adapter: adapters[id],
            name: &names[id],
            param,
        });
        let (tensor, text) = stacked(&members, 4).unwrap();
        assert_eq!(*tensor.dims, [2, 1, 2, 2]);
        let want = [1., 2., 0., 0., 3., 0., 4., 0.];
        assert_eq!(tensor.to_f32().unwrap(), want);
        let back = unstacked(&tensor, &text, &adapters.map(str::to_owned));
        let found: Vec<(&str, &TensorData)> = back.iter().map(|(n, p)| (&**n, &p.tensor)).collect();
        assert_eq!(found, [(&*names[0], &a.tensor), (&*names[2], &b.tensor)]);
    }

    /// A text that says more than the tensor holds gives nothing, and no panic.
    #[test]
    fn texts_are_not_trusted() {
        let tensor = TensorData::from_f32([1, 2], &[1., 2.]);
        let names = ["a".to_owned()];
        for text in [
            "",
            r#"{"like":[{"name":"x.{}.y","dims":[3],"rows":[[0,0,1]]}]}"#,
            r#"{"like":[{"name":"x.{}.y","dims":[1,1,1],"rows":[[0,0,1]]}]}"#,
            r#"{"like":[{"name":"x.{}.y","dims":[2],"rows":[[1,0,1],[0,1,1],[18446744073709551615,0,5]]}]}"#,
        ] {
            assert!(unstacked(&tensor, text, &names).is_empty(), "{text}");
        }
    }
}
