//! Invertible adapters behind the embeddings, and their inverse in front of the vocabulary projection. Pfeiffer et al. 2020 (MAD-X).
//!
//! NICE: `y1 = x1 + F(x2)`, `y2 = x2 + G(y1)`. GLOW: `y1 = e(s2)·x1 + t2`, `y2 = e(s1)·x2 + t1` with `[s2, t2] = s2(x2)`,
//! `[s1, t1] = s1(y1)` and `e(s) = exp(3.18·atan(s/5))`. The library's GLOW block raises on every input (it cuts along the sequence),
//! so no file depends on its numbers: here it is the published block, over channels.

use super::super::act;
use super::super::detail::Detail;
use super::Bottleneck;
use crate::adapters::naming::Route;
use crate::adapters::param::{Init, ParamSpec, Size};
use crate::adapters::place::{At, BuildCx, Params, Place, Surroundings};
use crate::diag::Diagnostic;
use crate::ir::Val;

const LOCATION: &str = "inv_adapter";

pub(super) fn check(config: &Bottleneck) -> Result<(), Diagnostic> {
    match config.inv_adapter.as_deref() {
        None => Ok(()),
        Some("nice" | "glow") => match config
            .inv_adapter_reduction_factor
            .as_ref()
            .and_then(serde_json::Number::as_f64)
        {
            Some(f) if f > 0.0 => Ok(()),
            _ => Err(Diagnostic::error(
                "config-value",
                "`inv_adapter` needs an `inv_adapter_reduction_factor` greater than 0",
            )
            .help("the library's default is 2")),
        },
        Some(other) => Err(Diagnostic::error(
            "config-value",
            format!("`inv_adapter` is `{other}`"),
        )
        .help("use nice, glow or null")),
    }
}

/// The place behind the embeddings, and the one in front of the vocabulary projection.
pub(super) fn places<'s>(
    config: &Bottleneck,
    around: &Surroundings<'_, 's>,
) -> Result<(Option<Place<'s>>, Option<Place<'s>>), Diagnostic> {
    if config.inv_adapter.is_none() {
        return Ok((None, None));
    }
    let selection = around.selection;
    // The library's own classes hook what enters the first layer: position embeddings, norm and dropout included.
    let value = if around.route.inverts_embeddings() {
        selection.embeddings.first().map(|e| e.output)
    } else {
        selection.layers.first().map(|l| l.input)
    };
    let scope = around.scope(&around.route.invertible(selection), "");
    let place = |at, detail| Place::new(at, None, LOCATION, &*scope).with(detail);
    // The library's own classes invert in its flexible heads only, which no exported Hugging Face model has.
    let head = match around.route {
        Route::Plugin => selection.output_embeddings.as_ref(),
        Route::Native { .. } => None,
    };
    if selection.lacks_first_stack() {
        // The embeddings are those of the encoder, in another file; what is undone at the head is undone here.
        let at = |h| place(At::HeadInput(h), Detail::Width(h.d_in));
        return Ok((None, head.map(at)));
    }
    let Some(value) = value else {
        return Err(Diagnostic::error(
            "site-missing",
            "an invertible adapter sits behind the embeddings, which this graph does not have",
        )
        .help(
            "export the model from its token ids, or use a configuration without `inv_adapter`",
        ));
    };
    let detail = around.width(value).map_or(Detail::None, Detail::Width);
    Ok((
        Some(place(At::Embeddings(value), detail.clone())),
        head.map(|h| place(At::HeadInput(h), detail)),
    ))
}

/// Widths of the two halves.
fn halves(width: usize) -> (usize, usize) {
    (width / 2, width - width / 2)
}

pub(super) fn params(config: &Bottleneck, place: &Place<'_>) -> Result<Vec<ParamSpec>, Diagnostic> {
    let Some(width) = place.detail.width() else {
        return Err(Diagnostic::error(
            "width-unknown",
            "the width of the embeddings is not known",
        ));
    };
    let (c1, c2) = halves(width);
    let factor = config
        .inv_adapter_reduction_factor
        .as_ref()
        .and_then(serde_json::Number::as_f64);
    let hidden = |n: usize| {
        let size = (n as f64 / factor.unwrap_or(1.0)).floor() as usize;
        // Of an odd width, the halves differ, and so do these.
        let half = if n == c1 { "d/2" } else { "(d - d/2)" };
        Size::free(format!("{half}/inv_adapter_reduction_factor"), size)
    };
    let half = |n| Size::new("d/2", n);
    let whole = |n| Size::new("d", 2 * n);
    let nets = if glow(config) {
        [("s1", c1, whole(c2)), ("s2", c2, whole(c1))]
    } else {
        [("F", c2, half(c1)), ("G", c1, half(c2))]
    };
    let mut out = Vec::new();
    for (name, d_in, d_out) in &nets {
        let (k, d_in) = (&hidden(*d_in), &half(*d_in));
        for (i, rows, columns) in [(0, k, d_in), (2, d_out, k)] {
            out.push(ParamSpec::new(
                format!("{name}.{i}.weight"),
                &[rows, columns],
                Init::bert(),
            ));
            out.push(ParamSpec::new(
                format!("{name}.{i}.bias"),
                &[rows],
                Init::Zeros,
            ));
        }
    }
    Ok(out)
}

fn glow(config: &Bottleneck) -> bool {
    config.inv_adapter.as_deref() == Some("glow")
}

pub(super) fn step(
    config: &Bottleneck,
    place: &Place<'_>,
    x: Val,
    p: &Params<'_>,
    cx: &BuildCx<'_>,
) -> Val {
    let b = cx.b;
    let (c1, c2) = halves(place.detail.width().unwrap_or_default());
    let (c1, c2) = (c1 as i64, c2 as i64);
    let cut = |v: Val, at: i64, end: i64| (b.slice(v, -1, 0, at), b.slice(v, -1, at, end));
    let net = |name: &str, v: Val| {
        let h = act::apply(
            b,
            config.non_linearity.as_deref(),
            cx.linear(v, p, &format!("{name}.0")),
        );
        cx.linear(h, p, &format!("{name}.2"))
    };
    let grow = |s: Val| {
        b.unary(
            "Exp",
            b.scale(b.unary("Atan", b.scale(s, 0.2)), 5.0 * 0.636),
        )
    };
    let inverse = matches!(place.at, At::HeadInput(_));
    let (x1, x2) = cut(x, c1, c1 + c2);
    let (y1, y2) = match (glow(config), inverse) {
        (false, false) => {
            let y1 = b.add(x1, net("F", x2));
            (y1, b.add(x2, net("G", y1)))
        }
        (false, true) => {
            let y2 = b.sub(x2, net("G", x1));
            (b.sub(x1, net("F", y2)), y2)
        }
        (true, false) => {
            let (s2, t2) = cut(net("s2", x2), c1, 2 * c1);
            let y1 = b.add(b.mul(grow(s2), x1), t2);
            let (s1, t1) = cut(net("s1", y1), c2, 2 * c2);
            (y1, b.add(b.mul(grow(s1), x2), t1))
        }
        (true, true) => {
            let (s1, t1) = cut(net("s1", x1), c2, 2 * c2);
            let y2 = b.div(b.sub(x2, t1), grow(s1));
            let (s2, t2) = cut(net("s2", y2), c1, 2 * c1);
            (b.div(b.sub(x1, t2), grow(s2)), y2)
        }
    };
    b.concat(&[y1, y2], -1)
}
