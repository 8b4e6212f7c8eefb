//! Matrix products with transposed operands, scales and sums: what gradients and adapters are made of.

use super::super::super::pass::{Pass, PassCx, PassError};
use super::super::super::patch::Uses;
use crate::analyze::view::View;
use crate::ir::{Attr, NodeId, OpId, Val, ValueId};
use crate::ops::DOMAIN;

/// Folds transpositions of operands, constant scales and sums into matrix products.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FuseProducts;

impl Pass for FuseProducts {
    fn name(&self) -> &'static str {
        "fuse-products"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        for step in [fold_transposes, fold_sums] {
            let candidates: Vec<NodeId> = cx.model().graph.nodes().collect();
            for n in candidates {
                if cx.model().graph.get_node(n).is_some() {
                    step(cx, n)?;
                }
            }
        }
        Ok(())
    }
}

/// `op(a)·op(b)·alpha` as one node.
#[derive(Clone, Copy)]
struct Product {
    a: ValueId,
    b: ValueId,
    trans_a: bool,
    trans_b: bool,
    alpha: f32,
}

impl Product {
    fn read(view: &View<'_>, n: NodeId) -> Option<Product> {
        let node = view.graph.node(n);
        let (a, b) = view.pair(n)?;
        if node.op.is_onnx("MatMul") {
            return Some(Product {
                a,
                b,
                trans_a: false,
                trans_b: false,
                alpha: 1.0,
            });
        }
        let fused = &*node.op.domain == "com.microsoft" && &*node.op.op_type == "FusedMatMul";
        let plain = node.int("transBatchA", 0) == 0 && node.int("transBatchB", 0) == 0;
        (fused && plain).then(|| Product {
            a,
            b,
            trans_a: node.int("transA", 0) == 1,
            trans_b: node.int("transB", 0) == 1,
            alpha: node.float("alpha", 1.0),
        })
    }

    fn attrs(&self) -> [(&'static str, Attr); 3] {
        [
            ("alpha", self.alpha.into()),
            ("transA", i64::from(self.trans_a).into()),
            ("transB", i64::from(self.trans_b).into()),
        ]
    }
}

fn fold_transposes(cx: &mut PassCx<'_>, n: NodeId) -> Result<(), PassError> {
    let view = View::new(&cx.model().graph, cx);
    let Some(mut p) = Product::read(&view, n) else {
        return Ok(());
    };
    let (a, b) = (view.untransposed(p.a), view.untransposed(p.b));
    if a.is_none() && b.is_none() {
        return Ok(());
    }
    if let Some(x) = a {
        (p.a, p.trans_a) = (x, !p.trans_a);
    }
    if let Some(x) = b {
        (p.b, p.trans_b) = (x, !p.trans_b);
    }
    let Some(y) = view.out(n) else { return Ok(()) };
    let dead: Vec<NodeId> = [(a, view.graph.input(n, 0)), (b, view.graph.input(n, 1))]
        .into_iter()
        .filter_map(|(folded, operand)| {
            folded?;
            let operand = operand?;
            view.only_use(operand)?;
            view.graph.producer(operand).map(|t| t.0)
        })
        .collect();
    let name = view.graph.name_of(y).to_owned();
    let mut patch = cx.patch("transposed product", Some(n));
    let builder = patch.builder();
    builder.set_scope(&format!("{name}/fused"));
    let out = builder.op_in(
        "com.microsoft",
        "FusedMatMul",
        &[Val::Old(p.a), Val::Old(p.b)],
        &p.attrs(),
    );
    patch.redirect(y, out, Uses::All);
    patch.remove_node(n);
    for t in dead {
        patch.remove_node(t);
    }
    patch.import("com.microsoft", 1);
    cx.commit(patch)?;
    Ok(())
}

/// `c + alpha·a·b` with a matrix `b`.
fn fold_sums(cx: &mut PassCx<'_>, add: NodeId) -> Result<(), PassError> {
    let view = View::new(&cx.model().graph, cx);
    let Some(found) = sum(&view, add) else {
        return Ok(());
    };
    let Some(y) = view.out(add) else {
        return Ok(());
    };
    let name = view.graph.name_of(y).to_owned();
    let mut patch = cx.patch("product added", Some(add));
    let b = patch.builder();
    b.set_scope(&format!("{name}/fused"));
    let inputs = [found.c, found.product.a, found.product.b].map(|v| Some(Val::Old(v)));
    let out = b.node_n(
        OpId::new(DOMAIN, "MatMulAdd"),
        &inputs,
        &found.product.attrs(),
        1,
    );
    patch.redirect(y, out[0], Uses::All);
    for n in found.removes {
        patch.remove_node(n);
    }
    patch.import(DOMAIN, 1);
    cx.commit(patch)?;
    Ok(())
}

struct Sum {
    c: ValueId,
    product: Product,
    removes: Vec<NodeId>,
}

fn sum(view: &View<'_>, add: NodeId) -> Option<Sum> {
    if !view.graph.node(add).op.is_onnx("Add") {
        return None;
    }
    let (x, y) = view.pair(add)?;
    if x == y {
        return None;
    }
    let candidates = [(x, y), (y, x)].into_iter().filter_map(|(c, v)| {
        let (product, removes) = scaled_product(view, v)?;
        let depth = view.size(product.b, if product.trans_b { -1 } else { -2 });
        Some((depth.unwrap_or(i64::MAX), c, v, product, removes))
    });
    // The thinner product joins the sum: the other one computes into it.
    let (_, c, v, product, mut removes) = candidates.min_by_key(|k| k.0)?;
    if view.rank(product.b)? != 2
        || (product.trans_a && view.rank(product.a)? != 2)
        || !shapes_agree(view, c, v, &product)
    {
        return None;
    }
    removes.push(add);
    Some(Sum {
        c,
        product,
        removes,
    })
}

/// Values made by this pass have no facts yet; the product's shape then follows from its operands.
fn shapes_agree(view: &View<'_>, c: ValueId, v: ValueId, p: &Product) -> bool {
    let dims = |v: ValueId| view.fact(v).and_then(|f| f.dims.clone());
    let product = || {
        let (mut a, b) = (dims(p.a)?, dims(p.b)?);
        if p.trans_a {
            a.reverse();
        }
        a.pop()?;
        a.push(b.get(usize::from(!p.trans_b))?.clone());
        Some(a)
    };
    let made = |v: ValueId| {
        dims(v).or_else(|| {
            let (n, _) = view.graph.producer(v)?;
            let p = Product::read(view, n)?;
            let (mut a, b) = (dims(p.a)?, dims(p.b)?);
            if b.len() != 2 || (p.trans_a && a.len() != 2) {
                return None;
            }
            if p.trans_a {
                a.reverse();
            }
            a.pop()?;
            a.push(b.get(usize::from(!p.trans_b))?.clone());
            Some(a)
        })
    };
    match (made(c), dims(v).or_else(product)) {
        (Some(c), Some(v)) => c == v,
        _ => false,
    }
}

fn scaled_product(view: &View<'_>, v: ValueId) -> Option<(Product, Vec<NodeId>)> {
    view.only_use(v)?;
    let (n, _) = view.graph.producer(v)?;
    if let Some(p) = Product::read(view, n) {
        return Some((p, vec![n]));
    }
    if !view.graph.node(n).op.is_onnx("Mul") {
        return None;
    }
    let (a, b) = view.pair(n)?;
    let (inner, s) = view
        .scalar(b)
        .map(|s| (a, s))
        .or_else(|| view.scalar(a).map(|s| (b, s)))?;
    view.only_use(inner)?;
    let (m, _) = view.graph.producer(inner)?;
    let mut p = Product::read(view, m)?;
    p.alpha *= s;
    Some((p, vec![n, m]))
}
