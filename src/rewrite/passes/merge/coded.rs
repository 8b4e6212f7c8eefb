//! Weights that are stored as codes: what these stand for, and the codes of other values by the same scheme.
//!
//! A scheme is what an exporter or quantizer chose and a merge keeps: bits, groups with a scale each, where zero lies, the range of codes
//! that are used. The codes of a group of elements are written anew only where its values are other ones; its scale stays, or is what the
//! scheme's own quantizer makes of the new values, whichever is nearer to these (design 0018).

use crate::ir::{DType, TensorData};
use std::sync::Arc;

/// How a code is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Code {
    /// An integer of 1, 2, 4, 8, 16 or 32 bits, from the low bits of each byte up.
    Int {
        /// Bits of one.
        bits: usize,
        /// Whether the highest bit is a sign.
        signed: bool,
    },
    /// Four bits, the first number in the high ones: an index into a table.
    Table(&'static [f32; 16]),
}

impl Code {
    /// Bits of one code.
    pub(super) fn bits(self) -> usize {
        match self {
            Code::Int { bits, .. } => bits,
            Code::Table(_) => 4,
        }
    }

    /// The integers of an element type.
    pub(super) fn of(dtype: DType) -> Option<Self> {
        let signed = matches!(
            dtype,
            DType::Int2 | DType::Int4 | DType::Int8 | DType::Int16 | DType::Int32
        );
        let unsigned = matches!(
            dtype,
            DType::Uint2 | DType::Uint4 | DType::Uint8 | DType::Uint16
        );
        let bits = usize::try_from(dtype.bits()).ok()?;
        (signed || unsigned).then_some(Code::Int { bits, signed })
    }

    /// The least and the greatest integer.
    fn range(self) -> [f32; 2] {
        match self {
            Code::Table(_) => [0.0, 15.0],
            Code::Int { bits, signed } => {
                let all = 2f32.powi(bits as i32);
                if signed {
                    [-all / 2.0, all / 2.0 - 1.0]
                } else {
                    [0.0, all - 1.0]
                }
            }
        }
    }

    /// The i-th code: an integer, or an index. `bytes` have to hold it.
    pub(super) fn get(self, bytes: &[u8], i: usize) -> i32 {
        match self {
            Code::Table(_) => {
                let byte = bytes[i / 2];
                i32::from(if i.is_multiple_of(2) {
                    byte >> 4
                } else {
                    byte & 15
                })
            }
            Code::Int { bits, signed } if bits < 8 => {
                let bit = i * bits;
                let x = i32::from(bytes[bit / 8] >> (bit % 8)) & ((1 << bits) - 1);
                let sign = 1 << (bits - 1);
                if signed { (x ^ sign) - sign } else { x }
            }
            Code::Int { bits, signed } => {
                let at = &bytes[i * bits / 8..][..bits / 8];
                let mut wide = [if signed && at[at.len() - 1] >= 128 {
                    255
                } else {
                    0
                }; 4];
                wide[..at.len()].copy_from_slice(at);
                i32::from_le_bytes(wide)
            }
        }
    }

    /// Writes the i-th code.
    pub(super) fn put(self, bytes: &mut [u8], i: usize, x: i32) {
        match self {
            Code::Table(_) => {
                let (byte, x) = (&mut bytes[i / 2], (x & 15) as u8);
                *byte = if i.is_multiple_of(2) {
                    *byte & 0x0f | x << 4
                } else {
                    *byte & 0xf0 | x
                };
            }
            Code::Int { bits, .. } if bits < 8 => {
                let (bit, mask) = (i * bits, (1u32 << bits) - 1);
                let byte = &mut bytes[bit / 8];
                let x = ((x as u32) & mask) << (bit % 8);
                *byte = *byte & !((mask << (bit % 8)) as u8) | x as u8;
            }
            Code::Int { bits, .. } => {
                let n = bits / 8;
                bytes[i * n..][..n].copy_from_slice(&x.to_le_bytes()[..n]);
            }
        }
    }
}

/// Which elements of a matrix have a scale together.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Group {
    /// All.
    One,
    /// Each row.
    Row,
    /// Each column.
    Column,
    /// So many columns of each row.
    RowBlock(usize),
    /// So many rows of each column.
    ColumnBlock(usize),
    /// For each row, the columns of each of these lists.
    Ordered(Arc<[Vec<u32>]>),
    /// So many elements, whatever row they are in.
    Flat(usize),
}

/// The elements of a group, as places in the matrix.
struct Members<'a> {
    start: usize,
    stride: usize,
    len: usize,
    order: Option<&'a [u32]>,
}

impl Members<'_> {
    fn each(&self) -> impl Iterator<Item = usize> + Clone + '_ {
        (0..self.len).map(|i| match self.order {
            Some(order) => self.start + order[i] as usize,
            None => self.start + i * self.stride,
        })
    }
}

impl Group {
    /// Number of groups; `None` for blocks without elements, and on overflow.
    pub(super) fn count(&self, [rows, cols]: [usize; 2]) -> Option<usize> {
        let blocks = |n: usize, of: usize| (of > 0).then(|| n.div_ceil(of));
        match self {
            Group::One => Some(1),
            Group::Row => Some(rows),
            Group::Column => Some(cols),
            Group::RowBlock(of) => rows.checked_mul(blocks(cols, *of)?),
            Group::ColumnBlock(of) => blocks(rows, *of)?.checked_mul(cols),
            Group::Ordered(lists) => rows.checked_mul(lists.len()),
            Group::Flat(of) => blocks(rows.checked_mul(cols)?, *of),
        }
    }

    /// Whether a quantizer in blocks made them: it uses the lowest code for the value of greatest size.
    fn is_block(&self) -> bool {
        !matches!(self, Group::One | Group::Row | Group::Column)
    }

    fn members(&self, g: usize, [rows, cols]: [usize; 2]) -> Members<'_> {
        let run = |start: usize, stride: usize, len: usize| Members {
            start,
            stride,
            len,
            order: None,
        };
        match self {
            Group::One => run(0, 1, rows * cols),
            Group::Row => run(g * cols, 1, cols),
            Group::Column => run(g, cols, rows),
            Group::RowBlock(of) => {
                let each = cols.div_ceil(*of);
                let first = g % each * of;
                run(g / each * cols + first, 1, (*of).min(cols - first))
            }
            Group::ColumnBlock(of) => {
                let first = g / cols * of;
                run(first * cols + g % cols, cols, (*of).min(rows - first))
            }
            Group::Ordered(lists) => {
                let list = &lists[g % lists.len()];
                Members {
                    order: Some(list),
                    ..run(g / lists.len() * cols, 1, list.len())
                }
            }
            Group::Flat(of) => run(g * of, 1, (*of).min(rows * cols - g * of)),
        }
    }
}

/// What stands for zero.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Zeros {
    /// The same for all, and not to be moved: it is implied, or there are fewer of them than scales.
    Fixed(f32),
    /// As many as scales: codes of this kind, or floats of this type.
    Codes(Vec<f32>, Code),
    Floats(Vec<f32>, DType),
}

impl Zeros {
    fn get(&self, g: usize) -> f32 {
        match self {
            Zeros::Fixed(z) => *z,
            Zeros::Codes(z, _) | Zeros::Floats(z, _) => z[g],
        }
    }
}

/// A matrix of codes, with its scales.
#[derive(Clone, Debug)]
pub(super) struct Coded {
    pub(super) shape: [usize; 2],
    /// Number of codes in which a row is stored, where it is filled up.
    pub(super) row: usize,
    pub(super) code: Code,
    pub(super) bytes: Vec<u8>,
    pub(super) group: Group,
    pub(super) scales: Vec<f32>,
    pub(super) scale_type: DType,
    pub(super) zeros: Zeros,
    /// Whether scales and zero points have to stay, because codes elsewhere count in them and cannot follow.
    pub(super) keeps_scales: bool,
}

/// A sum of squares, and the greatest size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spread {
    /// Number of elements.
    pub(crate) count: u64,
    /// Sum of squares.
    pub(crate) squares: f64,
    /// The greatest size.
    pub(crate) most: f64,
}

impl Spread {
    pub(super) fn add(&mut self, x: f64) {
        self.count += 1;
        self.squares += x * x;
        self.most = self.most.max(x.abs());
    }

    /// Both together.
    pub(crate) fn and(self, other: Self) -> Self {
        Spread {
            count: self.count + other.count,
            squares: self.squares + other.squares,
            most: self.most.max(other.most),
        }
    }

    /// The root of the mean square.
    pub(crate) fn rms(&self) -> f64 {
        (self.squares / (self.count as f64).max(1.0)).sqrt()
    }
}

/// What became of values that were to be stored as codes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rounded {
    /// What the codes stood for.
    pub(super) base: Spread,
    /// The change that was wanted.
    pub(super) change: Spread,
    /// The distance of what they stand for now from what was wanted.
    pub(super) error: Spread,
    /// Groups whose codes, scale or zero point are other ones, and among them those with another scale.
    pub(super) groups: usize,
    pub(super) rescaled: usize,
}

/// A scale and what stands for zero.
type Scale = (f32, f32);

/// Changes below this share of the greatest value are those of arithmetic in `f32`, and no changes.
const ROUNDING: f32 = 1e-6;

impl Coded {
    /// Whether everything fits: sizes of codes, scales and zero points.
    pub(super) fn fits(&self) -> bool {
        let [rows, cols] = self.shape;
        let bits = rows.checked_mul(self.row);
        let bits = bits.and_then(|n| n.checked_mul(self.code.bits()));
        let zeros = match &self.zeros {
            Zeros::Fixed(_) => true,
            Zeros::Codes(z, _) | Zeros::Floats(z, _) => z.len() == self.scales.len(),
        };
        let ordered = |lists: &[Vec<u32>]| {
            let all: usize = lists.iter().map(Vec::len).sum();
            all == cols && lists.iter().flatten().all(|c| (*c as usize) < cols)
        };
        let complete = match &self.group {
            Group::Ordered(lists) => ordered(lists),
            _ => true,
        };
        let whole = rows.checked_mul(cols).is_some_and(|n| n > 0);
        whole
            && complete
            && zeros
            && self.row >= cols
            && bits.is_some_and(|b| b.div_ceil(8) == self.bytes.len())
            && self.group.count(self.shape) == Some(self.scales.len())
    }

    /// Whether these are sums of products, in whose scales they count.
    pub(super) fn counts(&self) -> bool {
        self.code.bits() == 32
    }

    /// Whether a bias has a scale for each output as this weight has one, or one as this has one.
    pub(super) fn has_outputs(&self, bias: &Coded) -> bool {
        let groups = matches!(self.group, Group::One | Group::Row | Group::Column);
        groups && self.scales.len() == bias.scales.len()
    }

    /// Where the code of an element is.
    fn place(&self, at: usize) -> usize {
        let cols = self.shape[1];
        if self.row == cols {
            return at;
        }
        at / cols * self.row + at % cols
    }

    fn meant(&self, code: i32, (scale, zero): Scale) -> f32 {
        match self.code {
            Code::Table(table) => table[(code & 15) as usize] * scale,
            Code::Int { .. } => (code as f32 - zero) * scale,
        }
    }

    fn groups(&self) -> impl Iterator<Item = (usize, Members<'_>, Scale)> {
        let scales = self.scales.iter().enumerate();
        scales.map(|(g, s)| {
            (
                g,
                self.group.members(g, self.shape),
                (*s, self.zeros.get(g)),
            )
        })
    }

    /// What the codes stand for, in rows.
    pub(super) fn floats(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.shape[0] * self.shape[1]];
        for (_, members, scale) in self.groups() {
            for i in members.each() {
                out[i] = self.meant(self.code.get(&self.bytes, self.place(i)), scale);
            }
        }
        out
    }

    /// Has the codes stand for these values as nearly as the scheme can. `None` where a value, or a scale that it needs, is not finite.
    pub(super) fn take(&mut self, wanted: &[f32]) -> Option<Rounded> {
        if wanted.len() != self.shape[0] * self.shape[1] || wanted.iter().any(|x| !x.is_finite()) {
            return None;
        }
        let rule = Rule::of(self);
        let mut done = Rounded::default();
        let mut writes: Vec<(usize, Scale)> = Vec::new();
        for (g, members, former) in self.groups() {
            let now = |i: usize| self.meant(self.code.get(&self.bytes, self.place(i)), former);
            let (mut moved, mut size) = (0f32, 0f32);
            for i in members.each() {
                let old = now(i);
                done.base.add(f64::from(old));
                done.change.add(f64::from(wanted[i]) - f64::from(old));
                moved = moved.max((wanted[i] - old).abs());
                size = size.max(old.abs());
            }
            if moved <= ROUNDING * size {
                for i in members.each() {
                    done.error.add(f64::from(wanted[i]) - f64::from(now(i)));
                }
                continue;
            }
            let values = || members.each().map(|i| wanted[i]);
            let error = |scale: Scale| self.error(values(), scale, &rule);
            let fresh = (!self.keeps_scales)
                .then(|| rule.fresh(self, g, values()))
                .flatten();
            let kept = error(former);
            let better = fresh
                .map(|s| (s, error(s)))
                .filter(|(_, e)| e.squares < kept.squares);
            let (scale, error) = better.unwrap_or((former, kept));
            if !error.squares.is_finite() {
                return None;
            }
            done.error = done.error.and(error);
            let code = |i: usize| self.code.get(&self.bytes, self.place(i));
            let other = better.is_some()
                || members
                    .each()
                    .any(|i| code(i) != self.nearest(wanted[i], scale, &rule));
            if other {
                done.groups += 1;
                done.rescaled += usize::from(better.is_some());
                writes.push((g, scale));
            }
        }
        for (g, scale) in writes {
            self.write(g, scale, wanted, &rule);
        }
        Some(done)
    }

    fn write(&mut self, g: usize, scale: Scale, wanted: &[f32], rule: &Rule) {
        let group = self.group.clone();
        for i in group.members(g, self.shape).each() {
            let (code, place) = (self.nearest(wanted[i], scale, rule), self.place(i));
            self.code.put(&mut self.bytes, place, code);
        }
        self.scales[g] = scale.0;
        match &mut self.zeros {
            Zeros::Fixed(_) => {}
            Zeros::Codes(z, _) | Zeros::Floats(z, _) => z[g] = scale.1,
        }
    }

    /// Has the scales grow as others did that they count in, and the codes stand for these values by them.
    pub(super) fn follow(&mut self, former: &[f32], now: &[f32], wanted: &[f32]) {
        let rule = Rule::of(self);
        for (g, (former, now)) in former.iter().zip(now).enumerate() {
            let grown = self.scales[g] * now / former;
            let scale = rounded(grown, self.scale_type);
            let usable = scale.is_finite() && scale != 0.0;
            let scale = if usable { scale } else { self.scales[g] };
            self.write(g, (scale, self.zeros.get(g)), wanted, &rule);
        }
    }

    fn error(&self, values: impl Iterator<Item = f32>, scale: Scale, rule: &Rule) -> Spread {
        let mut out = Spread::default();
        for x in values {
            let stored = self.meant(self.nearest(x, scale, rule), scale);
            out.add(f64::from(stored) - f64::from(x));
        }
        out
    }

    /// The code that stands for the nearest value.
    fn nearest(&self, x: f32, (scale, zero): Scale, rule: &Rule) -> i32 {
        match self.code {
            Code::Table(table) => {
                let x = if scale == 0.0 { 0.0 } else { x / scale };
                let far = |c: &usize| (table[*c] - x).abs();
                let least = (0..16).min_by(|a, b| far(a).total_cmp(&far(b)));
                least.unwrap_or(0) as i32
            }
            Code::Int { .. } => {
                let code = if scale == 0.0 { zero } else { x / scale + zero };
                code.round_ties_even().clamp(rule.low, rule.high) as i32
            }
        }
    }
}

/// How a scheme's own quantizer finds scales.
struct Rule {
    low: f32,
    high: f32,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// The greatest size of all values.
    Largest,
    /// Zero stays; the value of greatest size has the lowest code, whatever its sign is: onnxruntime's quantizer in blocks.
    Lowest,
    /// Zero stays; both ends of the range hold.
    Balanced,
    /// Zero moves, so that the values take up the range.
    Moving,
}

impl Rule {
    fn of(coded: &Coded) -> Rule {
        let [mut low, mut high] = coded.code.range();
        let Code::Int { bits, signed } = coded.code else {
            let kind = Kind::Largest;
            return Rule { low, high, kind };
        };
        let middle = if signed {
            0.0
        } else {
            2f32.powi(bits as i32 - 1)
        };
        let fixed = match &coded.zeros {
            Zeros::Fixed(_) => true,
            Zeros::Codes(z, _) | Zeros::Floats(z, _) => z.iter().all(|z| same(*z, middle)),
        };
        let all = 0..coded.shape[0] * coded.shape[1];
        let codes = all.map(|i| coded.code.get(&coded.bytes, coded.place(i)) as f32);
        let (mut least, mut most) = (high, low);
        for code in codes {
            (least, most) = (least.min(code), most.max(code));
        }
        // Quantizers leave a bit unused (onnxruntime's `reduce_range`), or the code that has no negative.
        if bits == 8 && signed && least >= -64.0 && most <= 64.0 {
            (low, high) = (-64.0, 64.0);
        } else if bits == 8 && !signed && most <= 127.0 {
            high = 127.0;
        } else if bits > 1 && fixed && same(coded.zeros.get(0), middle) && least > low {
            low = 2.0 * middle - high;
        }
        let kind = if !fixed {
            Kind::Moving
        } else if coded.group.is_block() && same(low, coded.code.range()[0]) {
            Kind::Lowest
        } else {
            Kind::Balanced
        };
        Rule { low, high, kind }
    }

    /// The scale and the zero point of these values; `None` where there is none, or none that is finite.
    fn fresh(&self, coded: &Coded, g: usize, values: impl Iterator<Item = f32>) -> Option<Scale> {
        let (mut least, mut most) = (0f32, 0f32);
        for x in values {
            (least, most) = (least.min(x), most.max(x));
        }
        let zero = coded.zeros.get(g);
        let share = |x: f32, end: f32| match end {
            0.0 => 0.0,
            end => (x / end).max(0.0),
        };
        let scale = match self.kind {
            Kind::Largest => most.max(-least),
            Kind::Lowest => {
                let greatest = if most > -least { most } else { least };
                greatest / (self.low - zero)
            }
            Kind::Balanced => share(most, self.high - zero).max(share(least, self.low - zero)),
            Kind::Moving => (most - least) / (self.high - self.low),
        };
        let scale = rounded(scale, coded.scale_type);
        if scale == 0.0 || !scale.is_finite() {
            return None;
        }
        let moved = self.low - least / scale;
        let zero = match &coded.zeros {
            _ if self.kind != Kind::Moving => zero,
            Zeros::Fixed(z) => *z,
            Zeros::Codes(..) => moved.round_ties_even().clamp(self.low, self.high),
            Zeros::Floats(_, dtype) => rounded(moved, *dtype),
        };
        zero.is_finite().then_some((scale, zero))
    }
}

/// Whether both are one number.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits()
}

/// A number as an element type holds it.
fn rounded(x: f32, dtype: DType) -> f32 {
    if dtype == DType::Float {
        return x;
    }
    let held = TensorData::from_floats(dtype, [1], &[x]).and_then(|t| t.to_f32());
    held.and_then(|x| x.first().copied()).unwrap_or(f32::NAN)
}

#[cfg(test)]
mod tests {
    use super::{Code, Coded, Group, Zeros};
    use crate::ir::DType;
    use crate::ops::{FP4, NF4};

    const INT4: Code = Code::Int {
        bits: 4,
        signed: false,
    };
    const INT8: Code = Code::Int {
        bits: 8,
        signed: true,
    };

    /// A matrix of the codes that a rule gives, and the same scale and zero point for all groups.
    fn coded(code: Code, group: Group, zeros: f32, each: impl Fn(usize) -> i32) -> Coded {
        let shape = [3, 20];
        let row = match group {
            Group::RowBlock(of) => 20usize.next_multiple_of(of),
            _ => 20,
        };
        let mut bytes = vec![0; (3 * row * code.bits()).div_ceil(8)];
        for i in 0..60 {
            code.put(&mut bytes, i / 20 * row + i % 20, each(i));
        }
        let groups = group.count(shape).unwrap();
        let coded = Coded {
            shape,
            row,
            code,
            bytes,
            group,
            scales: vec![0.5; groups],
            scale_type: DType::Float16,
            zeros: Zeros::Codes(vec![zeros; groups], code),
            keeps_scales: false,
        };
        assert!(coded.fits());
        coded
    }

    fn all() -> Vec<Coded> {
        let lists: Vec<Vec<u32>> = (0..2).map(|g| (g..20).step_by(2).collect()).collect();
        let table = |t| coded(Code::Table(t), Group::Flat(8), 0.0, |i| (i * 7 % 16) as i32);
        let spread = |i: usize| (i * 7 % 16) as i32;
        let bytes = |i: usize| (i * 37 % 255) as i32 - 127;
        let word = Code::Int {
            bits: 16,
            signed: true,
        };
        vec![
            coded(INT4, Group::RowBlock(16), 8.0, spread),
            coded(INT4, Group::RowBlock(16), 5.0, spread),
            coded(INT4, Group::Ordered(lists.into()), 8.0, spread),
            coded(INT4, Group::ColumnBlock(2), 8.0, spread),
            coded(INT8, Group::One, 0.0, bytes),
            coded(INT8, Group::Row, 0.0, bytes),
            coded(INT8, Group::Column, 3.0, bytes),
            coded(word, Group::Column, 0.0, |i| i as i32 * 100 - 3000),
            table(&FP4),
            table(&NF4),
        ]
    }

    #[test]
    fn codes_are_written_as_they_are_read() {
        for (bits, signed) in [
            (1, false),
            (2, true),
            (4, true),
            (4, false),
            (8, true),
            (16, true),
            (32, true),
        ] {
            let code = Code::Int { bits, signed };
            let [low, high] = code.range();
            let n = 16;
            let mut bytes = vec![0xa5; n * bits / 8];
            let value = |i: usize| {
                let steps = (high - low) / (n - 1) as f32;
                (low + (i as f32 * steps).floor()) as i32
            };
            (0..n).rev().for_each(|i| code.put(&mut bytes, i, value(i)));
            let read: Vec<i32> = (0..n).map(|i| code.get(&bytes, i)).collect();
            assert_eq!(read, (0..n).map(value).collect::<Vec<_>>(), "{code:?}");
        }
    }

    #[test]
    fn values_that_are_there_change_nothing() {
        for mut one in all() {
            let (before, floats) = (one.clone(), one.floats());
            let done = one.take(&floats).unwrap();
            assert_eq!((done.groups, done.change.squares), (0, 0.0));
            assert_eq!(one.bytes, before.bytes);
            assert_eq!(one.zeros, before.zeros);
        }
    }

    #[test]
    fn only_groups_that_change_are_written_and_no_error_is_above_the_change() {
        for mut one in all() {
            let (before, floats) = (one.clone(), one.floats());
            let mut wanted = floats.clone();
            // The last row: with scales of columns or blocks of rows in all groups of it, with others in its own.
            wanted[40..]
                .iter_mut()
                .enumerate()
                .for_each(|(i, x)| *x += (i as f32).sin());
            let done = one.take(&wanted).unwrap();
            assert!(done.groups > 0, "{:?}", one.group);
            let after = one.floats();
            let far: f64 = after
                .iter()
                .zip(&wanted)
                .map(|(a, w)| f64::from(a - w).powi(2))
                .sum();
            // Sums of the same numbers in another order.
            assert!(
                (far - done.error.squares).abs() < 1e-6 * (1.0 + far),
                "{:?}",
                one.group
            );
            assert!(done.error.squares <= done.change.squares, "{:?}", one.group);
            if one.group != Group::One {
                let apart = matches!(one.group, Group::Column | Group::ColumnBlock(_));
                let kept = if apart { 0 } else { 32 };
                assert_eq!(after[..kept], floats[..kept]);
                assert!(done.groups < before.scales.len() || apart);
            }
        }
    }

    #[test]
    fn what_does_not_fit_the_range_gets_another_scale() {
        // Sixteen bits hold eight times the values.
        for mut one in all().into_iter().filter(|c| c.code.bits() < 16) {
            let wanted: Vec<f32> = one.floats().iter().map(|x| x * 8.0).collect();
            let step = one.scales[0] * 8.0;
            let done = one.take(&wanted).unwrap();
            assert!(done.rescaled > 0, "{:?} {:?}", one.group, one.code);
            // A step: the lowest code has no negative. And what f16 rounds off a scale.
            let bound = f64::from(step) * 1.01;
            assert!(
                done.error.most <= bound,
                "{:?}: {}",
                one.group,
                done.error.most
            );
        }
    }

    #[test]
    fn a_scale_that_has_to_stay_stays() {
        let mut one = all().remove(5);
        one.keeps_scales = true;
        let wanted: Vec<f32> = one.floats().iter().map(|x| x * 1.5).collect();
        let done = one.take(&wanted).unwrap();
        assert_eq!(
            (done.rescaled, one.scales[0].to_bits()),
            (0, 0.5f32.to_bits())
        );
    }

    #[test]
    fn integers_follow_the_scales_that_they_count_in() {
        let word = Code::Int {
            bits: 32,
            signed: true,
        };
        let mut one = coded(word, Group::Column, 0.0, |i| i as i32 * 1000 - 20_000);
        one.scale_type = DType::Float;
        let floats = one.floats();
        let (former, now) = (vec![0.5; 20], vec![0.75; 20]);
        one.follow(&former, &now, &floats);
        assert!(one.scales.iter().all(|s| s.to_bits() == 0.75f32.to_bits()));
        let off = one.floats().into_iter().zip(floats);
        // Half a step.
        assert!(off.into_iter().all(|(a, b)| (a - b).abs() <= 0.375));
    }

    #[test]
    fn a_range_that_leaves_a_bit_unused_is_kept() {
        let mut one = coded(INT8, Group::Row, 0.0, |i| (i * 5 % 129) as i32 - 64);
        let wanted: Vec<f32> = one.floats().iter().map(|x| x * 3.0).collect();
        one.take(&wanted).unwrap();
        let codes = (0..60).map(|i| INT8.get(&one.bytes, i));
        assert!(codes.into_iter().all(|c| (-64..=64).contains(&c)));
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        for mut one in all() {
            for wrong in [f32::NAN, f32::INFINITY, f32::MAX] {
                let mut wanted = one.floats();
                wanted[0] = wrong;
                let before = one.bytes.clone();
                let done = one.take(&wanted);
                // The greatest float has no scale in f16: it is cut off at the end of the range.
                assert!(done.is_none() || wrong.is_finite());
                assert!(done.is_some() || one.bytes == before);
            }
        }
    }
}
