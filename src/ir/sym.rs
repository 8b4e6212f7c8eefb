//! Symbolic sizes: polynomials with integer coefficients over named symbols.
//!
//! Shape arithmetic in exported graphs adds, multiplies and divides sizes; keeping it symbolic tells `[batch, seq, heads * 8]`
//! from an unknown shape. Inference makes three kinds of symbols of its own: `?7` is a size nobody knows, equal only to itself; `#7`
//! is an integer nobody knows, which need not be a size; `floor(seq / 2)`, `min(seq, 128)` and `broadcast(a, b)` are sizes that are
//! no polynomials.

use std::collections::BTreeMap;
use std::fmt;

const MAX_TERMS: usize = 64;
const MAX_FACTORS: usize = 16;

/// A symbolic size.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sym(BTreeMap<Vec<Box<str>>, i64>);

impl From<i64> for Sym {
    fn from(n: i64) -> Self {
        let mut terms = BTreeMap::new();
        if n != 0 {
            terms.insert(Vec::new(), n);
        }
        Sym(terms)
    }
}

impl Sym {
    /// The size of this name.
    pub(crate) fn symbol(name: &str) -> Self {
        Sym(BTreeMap::from([(vec![name.into()], 1)]))
    }

    /// The number, if it is one.
    pub(crate) fn as_const(&self) -> Option<i64> {
        match self.0.len() {
            0 => Some(0),
            1 => self.0.get(&Vec::new()).copied(),
            _ => None,
        }
    }

    /// Whether it is exactly this number.
    pub(crate) fn is(&self, n: i64) -> bool {
        self.as_const() == Some(n)
    }

    /// Names of the symbols, with repetitions.
    pub(crate) fn symbols(&self) -> impl Iterator<Item = &str> {
        self.0.keys().flatten().map(|s| &**s)
    }

    /// The symbol, if it is exactly one.
    pub(crate) fn as_symbol(&self) -> Option<&str> {
        let mut terms = self.0.iter();
        match (terms.next(), terms.next()) {
            (Some((key, 1)), None) if key.len() == 1 => key.first().map(|s| &**s),
            _ => None,
        }
    }

    /// Whether it cannot be negative, whatever the sizes are.
    pub(crate) fn is_size(&self) -> bool {
        self.0.values().all(|c| *c >= 0) && !self.symbols().any(|s| s.contains('#'))
    }

    /// Whether it is a polynomial over the file's own symbols: nothing in it is unknown or opaque.
    pub(crate) fn is_plain(&self) -> bool {
        !self.symbols().any(|s| s.contains(['?', '#', '(']))
    }

    /// Sum; `None` on overflow or when it grows beyond 64 terms.
    pub(crate) fn add(&self, other: &Sym) -> Option<Sym> {
        let mut out = self.0.clone();
        for (k, c) in &other.0 {
            let e = out.entry(k.clone()).or_insert(0);
            *e = e.checked_add(*c)?;
        }
        (out.len() <= MAX_TERMS).then(|| Sym(out).normal())
    }

    /// Difference; `None` on overflow.
    pub(crate) fn sub(&self, other: &Sym) -> Option<Sym> {
        self.add(&other.mul(&Sym::from(-1))?)
    }

    /// Product; `None` on overflow or when it grows beyond 64 terms or 16 factors.
    pub(crate) fn mul(&self, other: &Sym) -> Option<Sym> {
        let mut out: BTreeMap<Vec<Box<str>>, i64> = BTreeMap::new();
        for (ka, ca) in &self.0 {
            for (kb, cb) in &other.0 {
                if ka.len() + kb.len() > MAX_FACTORS {
                    return None;
                }
                let mut key: Vec<Box<str>> = ka.iter().chain(kb).cloned().collect();
                key.sort_unstable();
                let e = out.entry(key).or_insert(0);
                *e = e.checked_add(ca.checked_mul(*cb)?)?;
            }
        }
        (out.len() <= MAX_TERMS).then(|| Sym(out).normal())
    }

    /// Quotient, where the division by a single term is exact.
    pub(crate) fn div(&self, other: &Sym) -> Option<Sym> {
        if self == other && !self.is(0) {
            return Some(Sym::from(1));
        }
        let mut divisor = other.0.iter();
        let (Some((dk, dc)), None) = (divisor.next(), divisor.next()) else {
            return None;
        };
        let mut out = BTreeMap::new();
        for (k, c) in &self.0 {
            if c.checked_rem(*dc)? != 0 {
                return None;
            }
            let mut key = k.clone();
            for s in dk {
                let at = key.iter().position(|x| x == s)?;
                key.remove(at);
            }
            out.insert(key, c.checked_div(*dc)?);
        }
        Some(Sym(out).normal())
    }

    fn normal(mut self) -> Self {
        self.0.retain(|_, c| *c != 0);
        self
    }
}

impl fmt::Display for Sym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("0");
        }
        for (i, (key, c)) in self.0.iter().rev().enumerate() {
            if i > 0 {
                f.write_str(if *c < 0 { " - " } else { " + " })?;
            } else if *c < 0 {
                f.write_str("-")?;
            }
            let n = c.unsigned_abs();
            if key.is_empty() {
                write!(f, "{n}")?;
            } else {
                if n != 1 {
                    write!(f, "{n}*")?;
                }
                f.write_str(&key.join("*"))?;
            }
        }
        Ok(())
    }
}

/// What is known of a value before it is computed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fact {
    /// Element type.
    pub dtype: Option<super::DType>,
    /// Shape, when the rank is known.
    pub dims: Option<Vec<Sym>>,
    /// The elements of a small integer tensor (rank 0 or 1), where they are known symbolically: shapes, axes, indices.
    pub ints: Option<Vec<Sym>>,
}

impl Fact {
    /// Rank, when it is known.
    pub fn rank(&self) -> Option<usize> {
        self.dims.as_ref().map(Vec::len)
    }

    /// The size of one axis (negative counts from the end), when it is a known number.
    pub fn size(&self, axis: i64) -> Option<i64> {
        let dims = self.dims.as_ref()?;
        let at = if axis < 0 {
            axis + dims.len() as i64
        } else {
            axis
        };
        dims.get(usize::try_from(at).ok()?)?.as_const()
    }
}
