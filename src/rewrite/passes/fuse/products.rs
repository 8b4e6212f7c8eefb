//! Matrix products with transposed operands, scales and sums: what gradients and adapters are made of.

use super::super::super::pass::{Pass, PassCx, PassError};
use super::{Fused, Fusion, Input, Shared, run};
use crate::analyze::pattern::{Fit, Picture, any, op, op_in, or, scalar};
use crate::analyze::view::View;
use crate::ir::{Attr, NodeId, OpId, ValueId};
use crate::ops::DOMAIN;

/// Folds transpositions of operands, constant scales and sums into matrix products.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FuseProducts;

impl Pass for FuseProducts {
    fn name(&self) -> &'static str {
        "fuse-products"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        run(cx, TRANSPOSED.finder())?;
        run(cx, ADDED.finder())
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

    /// The product of a picture, with its scale.
    fn of(view: &View<'_>, fit: &Fit) -> Option<Product> {
        let mut p = Product::read(view, fit.node("product")?)?;
        if let Some(scale) = fit.value("scale") {
            p.alpha *= view.scalar(scale)?;
        }
        Some(p)
    }

    /// How many numbers a number of the result is summed of; the greatest number where it is not known.
    fn depth(&self, view: &View<'_>) -> i64 {
        let axis = if self.trans_b { -1 } else { -2 };
        view.size(self.b, axis).unwrap_or(i64::MAX)
    }

    fn attrs(&self) -> [(&'static str, Attr); 3] {
        [
            ("alpha", self.alpha.into()),
            ("transA", i64::from(self.trans_a).into()),
            ("transB", i64::from(self.trans_b).into()),
        ]
    }
}

/// `a·b`, as ONNX or ONNX Runtime spells it.
fn product(a: &Picture, b: &Picture) -> Picture {
    let operands = || [a.clone(), b.clone()];
    or([
        op("MatMul", operands()).called("product"),
        op_in("com.microsoft", "FusedMatMul", operands()).called("product"),
    ])
}

/// `a·b` or `a·b·scale`.
fn scaled_product() -> Picture {
    let product = product(&any("a"), &any("b"));
    or([
        product.clone(),
        op("Mul", [product, scalar("scale")]).called("scaled"),
    ])
}

/// `aᵀ·b`, `a·bᵀ` or `aᵀ·bᵀ`.
const TRANSPOSED: Fusion = Fusion {
    why: "transposed product",
    shared: Shared::Stays,
    picture: || {
        let a = op("Transpose", [any("a")]).called("aᵀ");
        let b = op("Transpose", [any("b")]).called("bᵀ");
        product(&or([a, any("a")]), &or([b, any("b")]))
    },
    fused: |view, fit| {
        let mut p = Product::read(view, fit.node("product")?)?;
        let (a, b) = (fit.node("aᵀ"), fit.node("bᵀ"));
        if a.is_none() && b.is_none() {
            return None;
        }
        let matrix = |t: NodeId| view.untransposed(view.out(t)?);
        if let Some(t) = a {
            (p.a, p.trans_a) = (matrix(t)?, !p.trans_a);
        }
        if let Some(t) = b {
            (p.b, p.trans_b) = (matrix(t)?, !p.trans_b);
        }
        Some(Fused {
            op: OpId::new("com.microsoft", "FusedMatMul"),
            inputs: [p.a, p.b].map(|v| Some(Input::Is(v))).into(),
            attrs: p.attrs().into(),
            n_out: 1,
        })
    },
};

/// `c + a·b` or `c + a·b·scale` with a matrix `b`.
const ADDED: Fusion = Fusion {
    why: "product added",
    shared: Shared::Forbids,
    picture: || op("Add", [any("c"), scaled_product()]),
    fused: |view, fit| {
        let (c, p) = (fit.value("c")?, Product::of(view, fit)?);
        let summand = view.out(fit.node("scaled").or(fit.node("product"))?)?;
        // The thinner product joins the sum: the other one computes into it.
        let rival = scaled_product().fit(view, c).filter(|other| {
            let mut made = other.nodes.iter().filter_map(|n| view.out(*n));
            made.all(|v| view.only_use(v).is_some())
        });
        let rival = rival.and_then(|other| Product::of(view, &other));
        let fits = c != summand
            && rival.is_none_or(|other| p.depth(view) <= other.depth(view))
            && view.rank(p.b)? == 2
            && (!p.trans_a || view.rank(p.a)? == 2)
            && shapes_agree(view, c, summand, &p);
        fits.then(|| Fused {
            op: OpId::new(DOMAIN, "MatMulAdd"),
            inputs: [c, p.a, p.b].map(|v| Some(Input::Is(v))).into(),
            attrs: p.attrs().into(),
            n_out: 1,
        })
    },
};

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
