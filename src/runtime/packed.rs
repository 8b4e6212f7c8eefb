//! Floats that are stored as small integers: a matrix of codes, and scales by tensor, row, column or block. Rows are widened when they
//! are asked for, so that a product needs a panel of the matrix at a time and never all of it.

use super::value::{Fault, KResult, Value};
use super::walk::{self, count};
use crate::ir::DType;
use bytes::Bytes;
use half::{bf16, f16};
use std::sync::Arc;

/// What a code stands for, before its scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Code {
    /// `u8`, or `i8` by its bits.
    Byte {
        /// Whether it is an `i8`.
        signed: bool,
    },
    /// Numbers of 1, 2, 4 or 8 bits from the low bits of each byte up.
    Low {
        /// Bits of one.
        bits: usize,
        /// Whether the highest bit is a sign.
        signed: bool,
    },
    /// Four bits, the first number in the high ones: an index into a table.
    Table(&'static [f32; 16]),
}

impl Code {
    fn bits(self) -> usize {
        match self {
            Code::Byte { .. } => 8,
            Code::Low { bits, .. } => bits,
            Code::Table(_) => 4,
        }
    }

    /// The i-th number of packed bytes.
    pub(crate) fn get(self, bytes: &[u8], i: usize) -> f32 {
        match self {
            Code::Byte { signed: true } => f32::from(bytes[i] as i8),
            Code::Byte { signed: false } => f32::from(bytes[i]),
            Code::Low { bits, signed } => {
                let bit = i * bits;
                let x = i32::from(bytes[bit / 8] >> (bit % 8)) & ((1 << bits) - 1);
                let sign = 1 << (bits - 1);
                (if signed { (x ^ sign) - sign } else { x }) as f32
            }
            Code::Table(table) => {
                let byte = bytes[i / 2];
                table[usize::from(if i.is_multiple_of(2) {
                    byte >> 4
                } else {
                    byte & 15
                })]
            }
        }
    }
}

/// Which scale an element has.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Group {
    /// One for all.
    One,
    /// One for each row.
    Row,
    /// One for each column.
    Column,
    /// For each row, one for so many columns.
    RowBlock(usize),
    /// For each column, one for so many rows.
    ColumnBlock(usize),
    /// For each row, one for the columns of each of so many groups, by the number that a column has here.
    Ordered(usize, Arc<[u32]>),
    /// One for so many elements, whatever row they are in.
    Flat(usize),
}

/// Floats in memory, or in the file and read from there.
#[derive(Clone, Debug)]
pub(crate) enum Numbers {
    Held(Arc<[f32]>),
    Stored(DType, Bytes),
}

impl Numbers {
    /// The elements of a value; those of a constant are not copied.
    pub(crate) fn of(v: &Value) -> KResult<Self> {
        let file = match v {
            Value::Weight(w) => w.shared(),
            Value::Float(_) | Value::Host(_) => None,
        };
        Ok(match (file, v.dtype()) {
            (Some(b), t @ (DType::Float | DType::Float16 | DType::Bfloat16)) => {
                Numbers::Stored(t, b)
            }
            _ => Numbers::Held(v.to_f32()?.into()),
        })
    }

    fn len(&self) -> usize {
        match self {
            Numbers::Held(v) => v.len(),
            Numbers::Stored(DType::Float, b) => b.len() / 4,
            Numbers::Stored(_, b) => b.len() / 2,
        }
    }

    fn get(&self, i: usize) -> f32 {
        match self {
            Numbers::Held(v) => v[i],
            Numbers::Stored(DType::Float, b) => f32::from_le_bytes(b.as_chunks().0[i]),
            Numbers::Stored(DType::Float16, b) => f16::from_le_bytes(b.as_chunks().0[i]).to_f32(),
            Numbers::Stored(_, b) => bf16::from_le_bytes(b.as_chunks().0[i]).to_f32(),
        }
    }
}

/// What stands for zero.
#[derive(Clone, Debug)]
pub(crate) enum Zeros {
    /// The same for all.
    One(f32),
    /// As many as scales.
    Each(Numbers),
    /// As many as scales, of so many bits; so many of them are a row, which is filled up to a byte.
    Codes(Bytes, usize, usize),
}

/// A matrix of codes.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    bytes: Bytes,
    code: Code,
    rows: usize,
    cols: usize,
    scales: Numbers,
    zeros: Zeros,
    group: Group,
    /// Bits from one row to the next.
    row_bits: usize,
}

impl Packed {
    /// A matrix, with everything that has to fit checked. `row` is the number of codes in which a row is stored, where it is filled up.
    pub(crate) fn new(
        bytes: Bytes,
        code: Code,
        [rows, cols]: [usize; 2],
        row: usize,
        group: Group,
        scales: Numbers,
        zeros: Zeros,
    ) -> KResult<Self> {
        let blocks = |n: usize, of: usize| match of {
            0 => Err(Fault("blocks without elements".into())),
            of => Ok(n.div_ceil(of)),
        };
        let want = match &group {
            Group::One => 1,
            Group::Row => rows,
            Group::Column => cols,
            Group::RowBlock(of) => count(&[rows, blocks(cols, *of)?])?,
            Group::ColumnBlock(of) => count(&[blocks(rows, *of)?, cols])?,
            Group::Ordered(groups, of) => {
                if of.len() < cols || of.iter().any(|&g| g as usize >= *groups) {
                    return Err(Fault(format!(
                        "an order of {} columns in {groups} groups, for {cols} columns",
                        of.len()
                    )));
                }
                count(&[rows, *groups])?
            }
            Group::Flat(of) => blocks(count(&[rows, cols])?, *of)?,
        };
        let bits = count(&[rows, row, code.bits()])?;
        let fits = bytes.len() == bits.div_ceil(8)
            && row >= cols
            && scales.len() == want
            && match &zeros {
                Zeros::One(_) => true,
                Zeros::Each(z) => z.len() == want,
                Zeros::Codes(z, bits, row) => {
                    *row > 0 && z.len() == (want / row).saturating_mul((row * bits).div_ceil(8))
                }
            };
        if !fits {
            return Err(Fault(format!(
                "{} bytes and {} scales, expected {} and {want} for {rows} x {cols}, with as many zero points or none",
                bytes.len(),
                scales.len(),
                bits.div_ceil(8)
            )));
        }
        Ok(Packed {
            bytes,
            code,
            rows,
            cols,
            scales,
            zeros,
            group,
            row_bits: row * code.bits(),
        })
    }

    /// Rows and columns.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    fn zero(&self, g: usize) -> f32 {
        match &self.zeros {
            Zeros::One(z) => *z,
            Zeros::Each(z) => z.get(g),
            Zeros::Codes(z, bits, row) => {
                let code = Code::Low {
                    bits: *bits,
                    signed: false,
                };
                code.get(&z[g / row * (row * bits).div_ceil(8)..], g % row)
            }
        }
    }

    /// A row from a column on, as floats.
    pub(crate) fn row(&self, r: usize, from: usize, out: &mut [f32]) {
        // A row that does not begin with a byte is read from the byte that it begins in.
        let bit = r * self.row_bits;
        let each = self.code.bits();
        let (bytes, ahead) = (&self.bytes[bit / 8..], bit % 8 / each);
        match self.code {
            Code::Byte { signed: true } => {
                let codes = &bytes[from..from + out.len()];
                out.iter_mut()
                    .zip(codes)
                    .for_each(|(o, &b)| *o = f32::from(b as i8));
            }
            Code::Byte { signed: false } => {
                let codes = &bytes[from..from + out.len()];
                out.iter_mut()
                    .zip(codes)
                    .for_each(|(o, &b)| *o = f32::from(b));
            }
            code => {
                for (i, o) in out.iter_mut().enumerate() {
                    *o = code.get(bytes, ahead + from + i);
                }
            }
        }
        let one = |g: usize, o: &mut [f32]| {
            let (z, s) = (self.zero(g), self.scales.get(g));
            for x in o {
                *x = (*x - z) * s;
            }
        };
        let each = |out: &mut [f32], group: &dyn Fn(usize) -> usize| {
            for (i, o) in out.iter_mut().enumerate() {
                let g = group(from + i);
                *o = (*o - self.zero(g)) * self.scales.get(g);
            }
        };
        match &self.group {
            Group::One => one(0, out),
            Group::Row => one(r, out),
            Group::Column => each(out, &|c| c),
            Group::RowBlock(of) => {
                let first = r * self.cols.div_ceil(*of);
                if from.is_multiple_of(*of) {
                    for (b, o) in out.chunks_mut(*of).enumerate() {
                        one(first + from / of + b, o);
                    }
                } else {
                    each(out, &|c| first + c / of);
                }
            }
            Group::ColumnBlock(of) => each(out, &|c| r / of * self.cols + c),
            Group::Ordered(groups, order) => each(out, &|c| r * groups + order[c] as usize),
            Group::Flat(of) => each(out, &|c| (r * self.cols + c) / of),
        }
    }

    /// Elements in row-major order from `start` on.
    pub(crate) fn read(&self, start: usize, out: &mut [f32]) {
        let mut done = 0;
        while done < out.len() {
            let (r, c) = ((start + done) / self.cols, (start + done) % self.cols);
            let len = (self.cols - c).min(out.len() - done);
            self.row(r, c, &mut out[done..done + len]);
            done += len;
        }
    }

    /// All elements.
    pub(crate) fn all(&self, out: &mut [f32]) {
        walk::rows(out, self.cols, |r, o| self.row(r, 0, o));
    }
}

#[cfg(test)]
mod tests {
    use super::{Code, Group, Numbers, Packed, Zeros};

    #[test]
    fn rows_are_read_from_any_column() {
        // Rows of three numbers of four bits: the second one begins inside a byte.
        let code = Code::Low {
            bits: 4,
            signed: false,
        };
        let bytes = vec![0x21, 0x43, 0x65].into();
        // The zero points of a row are two numbers of four bits.
        let zeros = Zeros::Codes(vec![0x10, 0x10].into(), 4, 2);
        let scales = Numbers::Held([1.0, 2.0, 1.0, 2.0].into());
        let m = Packed::new(bytes, code, [2, 3], 3, Group::RowBlock(2), scales, zeros).unwrap();
        let mut all = [0.0; 6];
        m.all(&mut all);
        assert_eq!(
            all.map(f32::to_bits),
            [1f32, 2.0, 4.0, 4.0, 5.0, 10.0].map(f32::to_bits)
        );
        let mut some = [0.0; 3];
        m.read(1, &mut some);
        assert_eq!(some.map(f32::to_bits), [2f32, 4.0, 4.0].map(f32::to_bits));
    }

    #[test]
    fn sizes_have_to_fit() {
        let code = Code::Byte { signed: true };
        let made = |bytes: usize, scales: usize, group| {
            let bytes = vec![0; bytes].into();
            let scales = Numbers::Held(vec![1.0; scales].into());
            Packed::new(bytes, code, [2, 3], 3, group, scales, Zeros::One(0.0)).is_ok()
        };
        assert!(made(6, 3, Group::Column) && made(6, 2, Group::Row));
        assert!(!made(5, 3, Group::Column) && !made(6, 2, Group::Column));
        assert!(!made(6, 1, Group::Flat(0)));
    }
}
