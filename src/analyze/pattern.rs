//! Pictures of a part of a graph, as data, and what fits them.
//!
//! A picture is read as the formula it is: `op("Mul", [any("a"), op("Sigmoid", [any("a")])])` is `a · σ(a)`. It is matched from its
//! outermost operator against the flow. Sums and products fit in either order. A name that stands twice is one value.

use super::view::View;
use crate::ir::{NodeId, ValueId};

/// A picture of a value.
#[derive(Clone, Debug)]
pub(crate) enum Picture {
    /// Any value.
    Any(&'static str),
    /// A constant with one element.
    Scalar(&'static str),
    /// This number.
    Number(f32),
    /// The first output of an operator; inputs behind those that are given may be there, too.
    Op {
        /// Empty for `ai.onnx`.
        domain: &'static str,
        op: &'static str,
        inputs: Vec<Picture>,
        name: Option<&'static str>,
    },
    /// The first of these that fits.
    Or(Vec<Picture>),
}

/// Any value, by a name.
pub(crate) fn any(name: &'static str) -> Picture {
    Picture::Any(name)
}

/// A constant with one element, by a name.
pub(crate) fn scalar(name: &'static str) -> Picture {
    Picture::Scalar(name)
}

/// A constant with one element that is this number.
pub(crate) fn number(number: f32) -> Picture {
    Picture::Number(number)
}

/// What an `ai.onnx` operator makes.
pub(crate) fn op(op: &'static str, inputs: impl Into<Vec<Picture>>) -> Picture {
    op_in("", op, inputs)
}

/// What an operator of another domain makes.
pub(crate) fn op_in(
    domain: &'static str,
    op: &'static str,
    inputs: impl Into<Vec<Picture>>,
) -> Picture {
    Picture::Op {
        domain,
        op,
        inputs: inputs.into(),
        name: None,
    }
}

/// One of several spellings.
pub(crate) fn or(spellings: impl Into<Vec<Picture>>) -> Picture {
    Picture::Or(spellings.into())
}

impl Picture {
    /// The same picture, with a name for its outermost node.
    #[must_use]
    pub(crate) fn called(self, name: &'static str) -> Picture {
        match self {
            Picture::Op {
                domain, op, inputs, ..
            } => Picture::Op {
                domain,
                op,
                inputs,
                name: Some(name),
            },
            Picture::Any(_) | Picture::Scalar(_) | Picture::Number(_) | Picture::Or(_) => self,
        }
    }

    /// How a value fits the picture.
    pub(crate) fn fit(&self, view: &View<'_>, v: ValueId) -> Option<Fit> {
        self.find(view, v, &mut |fit| Some(fit.clone()))
    }

    /// What is made of the first way in which a value fits the picture and that is taken.
    pub(crate) fn find<T>(
        &self,
        view: &View<'_>,
        v: ValueId,
        take: &mut dyn FnMut(&Fit) -> Option<T>,
    ) -> Option<T> {
        solve(view, vec![(self, v)], Fit::default(), take)
    }
}

/// A part of a graph that fits a picture.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fit {
    values: Vec<(&'static str, ValueId)>,
    named: Vec<(&'static str, NodeId)>,
    /// All nodes of the picture's operators.
    pub(crate) nodes: Vec<NodeId>,
}

impl Fit {
    /// The value of a name.
    pub(crate) fn value(&self, name: &str) -> Option<ValueId> {
        let found = self.values.iter().find(|(n, _)| *n == name);
        found.map(|(_, v)| *v)
    }

    /// The node of a name.
    pub(crate) fn node(&self, name: &str) -> Option<NodeId> {
        let found = self.named.iter().find(|(n, _)| *n == name);
        found.map(|(_, n)| *n)
    }

    fn bind(&mut self, name: &'static str, v: ValueId) -> bool {
        if let Some(bound) = self.value(name) {
            return bound == v;
        }
        self.values.push((name, v));
        true
    }
}

/// Goes through the ways in which all values fit their pictures, until one is taken.
fn solve<'p, T>(
    view: &View<'_>,
    mut open: Vec<(&'p Picture, ValueId)>,
    mut fit: Fit,
    take: &mut dyn FnMut(&Fit) -> Option<T>,
) -> Option<T> {
    let Some((picture, v)) = open.pop() else {
        return take(&fit);
    };
    let mut with = |more: Vec<(&'p Picture, ValueId)>, fit: Fit| {
        let mut open = open.clone();
        open.extend(more.into_iter().rev());
        solve(view, open, fit, take)
    };
    match picture {
        Picture::Any(name) => fit.bind(name, v).then(|| with(vec![], fit))?,
        Picture::Scalar(name) => {
            view.scalar(v)?;
            fit.bind(name, v).then(|| with(vec![], fit))?
        }
        Picture::Number(wanted) => {
            let same = view.scalar(v)?.to_bits() == wanted.to_bits();
            same.then(|| with(vec![], fit))?
        }
        Picture::Or(all) => all.iter().find_map(|p| with(vec![(p, v)], fit.clone())),
        Picture::Op {
            domain,
            op,
            inputs,
            name,
        } => {
            let (n, slot) = view.graph.producer(v)?;
            let id = &view.node(n).op;
            if slot != 0 || &*id.domain != *domain || &*id.op_type != *op {
                return None;
            }
            fit.nodes.push(n);
            fit.named.extend(name.map(|name| (name, n)));
            let slots = (0..inputs.len())
                .map(|slot| view.input(n, slot))
                .collect::<Option<Vec<ValueId>>>()?;
            let straight = || inputs.iter().zip(slots.iter().copied()).collect();
            let crossed = || inputs.iter().zip(slots.iter().rev().copied()).collect();
            let commutes = matches!(*op, "Add" | "Mul") && inputs.len() == 2;
            let found = with(straight(), fit.clone());
            match found {
                None if commutes => with(crossed(), fit),
                found => found,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::Verified;
    use crate::ir::text;

    fn fits(picture: &Picture, graph: &str) -> Option<Vec<(String, String)>> {
        let model = text::parse(graph).unwrap_or_else(|e| panic!("{e}"));
        let verified = Verified::check(model).unwrap_or_else(|r| panic!("{:?}", r.findings));
        let g = &verified.model().graph;
        let fit = picture.fit(&View::new(g, &verified), g.outputs()[0].value)?;
        let names = fit.values.iter();
        Some(
            names
                .map(|(n, v)| ((*n).to_owned(), g.name_of(*v).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn a_name_that_stands_twice_is_one_value_and_products_fit_in_either_order() {
        let silu = op("Mul", [any("a"), op("Sigmoid", [any("a")])]);
        let graph = |product: &str| {
            format!(
                "opset \"\" 20\ngraph g(%x: f32[2], %z: f32[2]) -> (%y: f32[2])\n  %s = Sigmoid(%x)\n  %y = {product}\n"
            )
        };
        let x = vec![("a".to_owned(), "x".to_owned())];
        assert_eq!(fits(&silu, &graph("Mul(%x, %s)")), Some(x.clone()));
        assert_eq!(fits(&silu, &graph("Mul(%s, %x)")), Some(x));
        assert_eq!(fits(&silu, &graph("Mul(%s, %z)")), None);
        assert_eq!(fits(&silu, &graph("Add(%s, %x)")), None);
    }
}
