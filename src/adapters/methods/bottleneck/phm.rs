//! The two projections of a bottleneck: full matrices, or sums of Kronecker products (PHM layers, Compacter).
//!
//! `y = x·H + b` with `H = Σ_i P_i ⊗ W_i`, `P_i` of size `n x n`, `W_i` of size `in/n x out/n`.

use super::{Bottleneck, ReductionFactor};
use crate::adapters::param::{Init, ParamSpec, Size};
use crate::adapters::place::{BuildCx, Params};
use crate::diag::Diagnostic;
use crate::ir::Val;

/// The default number of Kronecker products.
pub(super) fn dim() -> usize {
    4
}

/// Refuses settings that contradict each other.
pub(super) fn check(config: &Bottleneck) -> Result<(), Diagnostic> {
    if !config.phm_layer {
        return Ok(());
    }
    let error = |message: &str, help: &str| Err(Diagnostic::error("phm", message).help(help));
    if config.phm_dim == 0 || config.phm_rank == Some(0) {
        return error(
            "`phm_dim` and `phm_rank` must be at least 1",
            "the defaults are 4 and 1",
        );
    }
    let one_width = matches!(config.reduction_factor, ReductionFactor::One(_));
    if config.shared_w_phm == Some(true) && !one_width {
        return error(
            "`shared_W_phm` shares projections between layers of different widths",
            "give one `reduction_factor` for all layers",
        );
    }
    match config.phm_c_init.as_deref() {
        Some("normal" | "uniform") => Ok(()),
        _ => error("`phm_c_init` is unknown", "use normal or uniform"),
    }
}

/// Widths that cannot be cut into `n` blocks, with settings near these that can.
fn indivisible(d: usize, k: usize, n: usize) -> Diagnostic {
    let finding = Diagnostic::error(
        "phm-width",
        format!(
            "the hidden size {d} and the bottleneck's width {k} must both be divisible by `phm_dim` = {n}"
        ),
    );
    let divides = |m: &usize| d.is_multiple_of(*m) && k.is_multiple_of(*m);
    let dim = (1..=n).rev().find(divides).unwrap_or(1);
    if !d.is_multiple_of(n) {
        return finding.help(format!("`phm_dim={dim}` divides both"));
    }
    // The nearest width above that fits both this `phm_dim` and a whole factor.
    let fits = |w: &usize| w.is_multiple_of(n) && d.is_multiple_of(*w);
    let width = (k.max(1)..=d).find(fits).unwrap_or(d);
    finding.help(format!(
        "`reduction_factor={}` gives the width {width}; or `phm_dim={dim}` divides both",
        d / width
    ))
}

/// Projections as full matrices: names and values of weight and bias.
pub(super) struct Full {
    pub(super) down: [(String, Val); 2],
    pub(super) up: [(String, Val); 2],
}

/// The projections of a configuration.
#[expect(clippy::struct_excessive_bools, reason = "independent settings")]
pub(super) struct Projections<'a> {
    config: &'a Bottleneck,
    factorized_w: bool,
    shared_w: bool,
    factorized_rule: bool,
    shared_rule: bool,
    dim: Size,
    rank: Size,
}

impl<'a> Projections<'a> {
    pub(super) fn new(config: &'a Bottleneck) -> Self {
        Projections {
            config,
            factorized_w: config.factorized_phm_w == Some(true),
            shared_w: config.shared_w_phm == Some(true),
            factorized_rule: config.factorized_phm_rule == Some(true),
            shared_rule: config.shared_phm_rule == Some(true),
            dim: Size::new("phm_dim", config.phm_dim),
            rank: Size::new("phm_rank", config.phm_rank.unwrap_or(1)),
        }
    }

    /// Name of the down projection: an own layer norm is the first entry of the same `nn.Sequential`.
    fn down_name(&self) -> &'static str {
        if self.config.ln_before {
            "adapter_down.1"
        } else {
            "adapter_down.0"
        }
    }

    /// Parameters of one place, from width `d` to `k` and back.
    pub(super) fn params(&self, d: &Size, k: &Size) -> Result<Vec<ParamSpec>, Diagnostic> {
        if !self.config.phm_layer {
            return Ok(self.full(d, k));
        }
        let n = self.config.phm_dim;
        if !d.get().is_multiple_of(n) || !k.get().is_multiple_of(n) {
            return Err(indivisible(d.get(), k.get(), n));
        }
        let mut out = Vec::new();
        for (name, d_in, d_out) in [(self.down_name(), d, k), ("adapter_up", k, d)] {
            if !self.shared_rule {
                out.extend(self.rule(&format!("{name}."), 0.01, 0.01));
            }
            if !self.shared_w {
                out.extend(self.factors(&format!("{name}.W"), d_in, d_out));
            }
            if self.config.phm_bias == Some(true) {
                out.push(ParamSpec::new(format!("{name}.b"), &[d_out], Init::Zeros));
            }
        }
        Ok(out)
    }

    /// Parameters that all places share.
    pub(super) fn shared(&self, d: &Size, k: &Size) -> Vec<ParamSpec> {
        let mut out = Vec::new();
        if self.shared_w {
            out.extend(self.factors("W_down", d, k));
            out.extend(self.factors("W_up", k, d));
        }
        if self.shared_rule {
            out.extend(self.rule("", self.config.phm_init_range.unwrap_or(0.0001), 1.0));
        }
        out
    }

    fn full(&self, d: &Size, k: &Size) -> Vec<ParamSpec> {
        let normal = || Init::bert();
        let cut = || Init::TruncatedNormal { std: 0.01 };
        let (down, up) = match &*self.config.init_weights {
            "mam_adapter" => (Init::linear(d), Init::Zeros),
            "houlsby" => (cut(), cut()),
            _ => (normal(), normal()),
        };
        let name = self.down_name();
        vec![
            ParamSpec::new(format!("{name}.weight"), &[k, d], down),
            ParamSpec::new(format!("{name}.bias"), &[k], Init::Zeros),
            ParamSpec::new("adapter_up.weight", &[d, k], up),
            ParamSpec::new("adapter_up.bias", &[d], Init::Zeros),
        ]
    }

    fn rule(&self, prefix: &str, std: f64, bound: f64) -> Vec<ParamSpec> {
        let (n, one) = (&self.dim, &Size::from(1));
        let init = || match self.config.phm_c_init.as_deref() {
            Some("uniform") => Init::Uniform { bound },
            _ => Init::Normal { std },
        };
        if self.factorized_rule {
            return vec![
                ParamSpec::new(format!("{prefix}phm_rule_left"), &[n, n, one], init()),
                ParamSpec::new(format!("{prefix}phm_rule_right"), &[n, one, n], init()),
            ];
        }
        vec![ParamSpec::new(
            format!("{prefix}phm_rule"),
            &[n, n, n],
            init(),
        )]
    }

    fn factors(&self, name: &str, d_in: &Size, d_out: &Size) -> Vec<ParamSpec> {
        let (n, r) = (&self.dim, &self.rank);
        let (i, o) = (&d_in.over(n), &d_out.over(n));
        if self.factorized_w {
            return vec![
                ParamSpec::new(format!("{name}_left"), &[n, i, r], Init::xavier(i, r)),
                ParamSpec::new(format!("{name}_right"), &[n, r, o], Init::xavier(r, o)),
            ];
        }
        vec![ParamSpec::new(name, &[n, i, o], Init::xavier(i, o))]
    }

    /// The projections as full matrices, by the names that those have. A projection without a bias has one of zeros then.
    pub(super) fn as_full(&self, p: &Params<'_>, cx: &BuildCx<'_>) -> Full {
        let of = |name: &'static str, shared: &str| {
            let named = |inner: &str| format!("{name}.{inner}");
            if !self.config.phm_layer {
                return ["weight", "bias"].map(|inner| (named(inner), p.get(&named(inner))));
            }
            let b = cx.b;
            let weight = b.transpose(self.matrix(p, cx, name, shared), &[1, 0]);
            let zeros = || b.scale(b.reduce_sum(weight, &[1], false), 0.0);
            let bias = p.find(&named("b")).unwrap_or_else(zeros);
            [(named("weight"), weight), (named("bias"), bias)]
        };
        Full {
            down: of(self.down_name(), "W_down"),
            up: of("adapter_up", "W_up"),
        }
    }

    /// The down projection.
    pub(super) fn down(&self, x: Val, p: &Params<'_>, cx: &BuildCx<'_>) -> Val {
        self.project(x, p, cx, self.down_name(), "W_down")
    }

    /// The up projection.
    pub(super) fn up(&self, x: Val, p: &Params<'_>, cx: &BuildCx<'_>) -> Val {
        self.project(x, p, cx, "adapter_up", "W_up")
    }

    fn project(&self, x: Val, p: &Params<'_>, cx: &BuildCx<'_>, name: &str, shared: &str) -> Val {
        if !self.config.phm_layer {
            return cx.linear(x, p, name);
        }
        let y = cx.b.matmul(x, self.matrix(p, cx, name, shared));
        match p.find(&format!("{name}.b")) {
            Some(bias) => cx.b.add(y, bias),
            None => y,
        }
    }

    /// The sum of Kronecker products: `[in, out]`.
    fn matrix(&self, p: &Params<'_>, cx: &BuildCx<'_>, name: &str, shared: &str) -> Val {
        let b = cx.b;
        let own = format!("{name}.W");
        let w = |suffix: &str| {
            if self.shared_w {
                p.shared(&format!("{shared}{suffix}"))
            } else {
                p.get(&format!("{own}{suffix}"))
            }
        };
        let w = if self.factorized_w {
            b.matmul(w("_left"), w("_right"))
        } else {
            w("")
        };
        let rule = |suffix: &str| {
            if self.shared_rule {
                p.shared(&format!("phm_rule{suffix}"))
            } else {
                p.get(&format!("{name}.phm_rule{suffix}"))
            }
        };
        let rule = if self.factorized_rule {
            b.matmul(rule("_left"), rule("_right"))
        } else {
            rule("")
        };
        self.kronecker_sum(rule, w, cx)
    }

    /// `Σ_i P_i ⊗ W_i` of `[n, n, n]` and `[n, i, o]`, as one product over the summed index.
    fn kronecker_sum(&self, rule: Val, w: Val, cx: &BuildCx<'_>) -> Val {
        let b = cx.b;
        let n = self.config.phm_dim as i64;
        let p = b.transpose(b.reshape(rule, b.ints(&[n, n * n])), &[1, 0]);
        let shape = b.shape(w);
        let inner = b.slice(shape, 0, 1, 3);
        let flat = b.reshape(w, b.ints(&[n, -1]));
        let blocks = b.reshape(b.matmul(p, flat), b.concat(&[b.ints(&[n, n]), inner], 0));
        let rows = b.transpose(blocks, &[0, 2, 1, 3]);
        let sizes = b.mul(inner, b.int(n));
        b.reshape(rows, sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::indivisible;

    #[test]
    fn indivisible_widths_come_with_settings_that_fit() {
        let help = |d, k, n| indivisible(d, k, n).help.unwrap_or_default();
        assert_eq!(
            help(32, 1, 4),
            "`reduction_factor=8` gives the width 4; or `phm_dim=1` divides both"
        );
        assert_eq!(
            help(768, 26, 4),
            "`reduction_factor=24` gives the width 32; or `phm_dim=2` divides both"
        );
        assert_eq!(help(30, 2, 4), "`phm_dim=2` divides both");
    }
}
