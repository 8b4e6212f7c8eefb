//! One line of the text form, read from left to right.

use super::super::attr::{Attr, AttrValue};
use super::super::node::{Metadata, OpId};
use super::super::tensor::{External, Payload, TensorData, Typed, f32_to_bf16, f32_to_f16};
use super::super::types::{DType, Dim, Type, TypeKind};
use super::{HASH, bare_len, word_len};
use crate::diag::Diagnostic;
use crate::draw;
use crate::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use indexmap::IndexMap;
use std::sync::Arc;

/// Elements that `fill`, `iota` and `seed` may make.
const MAX_MADE: u64 = 1 << 20;

/// A port of a signature: name and type.
pub(super) type Port = (Box<str>, Option<Type>);

/// A line that is not understood.
pub(super) fn wrong(line: usize, message: impl Into<String>) -> Error {
    Error::new(
        ErrorKind::Decode,
        Diagnostic::error("graph-text", message).at(format!("line {line}")),
    )
}

/// The unread rest of a line.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'t> {
    pub(super) text: &'t str,
    pub(super) line: usize,
}

impl<'t> Cursor<'t> {
    pub(super) fn new(text: &'t str, line: usize) -> Self {
        Cursor { text, line }
    }

    pub(super) fn error(&self, expected: &str) -> Error {
        let found: String = self.text.chars().take(30).collect();
        let found = if found.is_empty() {
            "the line ends".to_owned()
        } else {
            format!("it says `{found}`")
        };
        wrong(self.line, format!("{expected} is expected where {found}"))
    }

    pub(super) fn space(&mut self) {
        self.text = self.text.trim_start();
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.text.chars().next()
    }

    pub(super) fn eat(&mut self, token: &str) -> bool {
        match self.text.strip_prefix(token) {
            Some(rest) => {
                self.text = rest;
                true
            }
            None => false,
        }
    }

    /// A token, with the space around it.
    pub(super) fn token(&mut self, token: &str) -> Result<()> {
        self.space();
        if !self.eat(token) {
            return Err(self.error(&format!("`{token}`")));
        }
        self.space();
        Ok(())
    }

    pub(super) fn end(&mut self) -> Result<()> {
        self.space();
        if self.text.is_empty() {
            Ok(())
        } else {
            Err(self.error("the end of the line"))
        }
    }

    pub(super) fn take(&mut self, len: usize) -> &'t str {
        let (head, tail) = self.text.split_at(len);
        self.text = tail;
        head
    }

    pub(super) fn word(&mut self) -> Result<&'t str> {
        self.space();
        match word_len(self.text) {
            0 => Err(self.error("a word")),
            n => Ok(self.take(n)),
        }
    }

    /// A word, or any text in quotes.
    pub(super) fn name(&mut self) -> Result<Box<str>> {
        if self.peek() == Some('"') {
            return self.string().map(Into::into);
        }
        self.word().map(Into::into)
    }

    pub(super) fn value_name(&mut self) -> Result<Box<str>> {
        self.space();
        if !self.eat("%") {
            return Err(self.error("a value name with `%`"));
        }
        if self.peek() == Some('"') {
            return self.string().map(Into::into);
        }
        match bare_len(self.text) {
            0 => Err(self.error("a value name")),
            n => Ok(self.take(n).into()),
        }
    }

    pub(super) fn string(&mut self) -> Result<String> {
        self.space();
        if !self.eat("\"") {
            return Err(self.error("a text in quotes"));
        }
        let mut out = String::new();
        let mut chars = self.text.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.text = &self.text[at + 1..];
                    return Ok(out);
                }
                '\\' => out.push(
                    escape(&mut chars)
                        .ok_or_else(|| wrong(self.line, "an escape in quotes is unknown"))?,
                ),
                c => out.push(c),
            }
        }
        Err(wrong(self.line, "a text in quotes does not end"))
    }

    pub(super) fn hex(&mut self) -> Result<Bytes> {
        if !self.eat("x\"") {
            return Err(self.error("bytes, as in x\"00ff\""));
        }
        let Some((digits, rest)) = self.text.split_once('"') else {
            return Err(wrong(self.line, "bytes in quotes do not end"));
        };
        self.text = rest;
        let pairs = digits.as_bytes().chunks(2).map(|pair| {
            let text = std::str::from_utf8(pair).ok().filter(|t| t.len() == 2)?;
            u8::from_str_radix(text, 16).ok()
        });
        let bytes: Option<Vec<u8>> = pairs.collect();
        bytes
            .map(Into::into)
            .ok_or_else(|| wrong(self.line, "bytes are pairs of hexadecimal digits"))
    }

    /// Text in quotes or bytes.
    pub(super) fn bytes(&mut self) -> Result<Bytes> {
        if self.text.starts_with("x\"") {
            return self.hex();
        }
        self.string().map(|s| s.into_bytes().into())
    }

    /// The characters of a number, or of `nan`, `inf`, `true`, `false`.
    pub(super) fn number(&mut self) -> Result<&'t str> {
        self.space();
        let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
        let mut len: usize = self
            .text
            .chars()
            .take_while(plain)
            .map(char::len_utf8)
            .sum();
        if self.text.starts_with("nan(") {
            len = self.text.find(')').map_or(len, |at| at + 1);
        }
        if len == 0 {
            return Err(self.error("a number"));
        }
        Ok(self.take(len))
    }

    pub(super) fn int<T: std::str::FromStr>(&mut self) -> Result<T> {
        let here = *self;
        let text = self.number()?;
        text.parse().map_err(|_| here.error("an integer"))
    }

    pub(super) fn opset(&mut self) -> Result<(Box<str>, i64)> {
        let domain = self.string()?;
        Ok((domain.into(), self.int()?))
    }

    pub(super) fn meta(&mut self) -> Result<(Box<str>, Box<str>)> {
        let key = self.string()?;
        self.token("=")?;
        Ok((key.into(), self.string()?.into()))
    }

    pub(super) fn op(&mut self) -> Result<OpId> {
        let mut op = OpId::onnx(&self.name()?);
        if self.eat("::") {
            op = OpId {
                domain: op.op_type,
                ..OpId::onnx(&self.name()?)
            };
        }
        if self.eat(":") {
            op.overload = self.name()?;
        }
        Ok(op)
    }

    pub(super) fn slots(&mut self) -> Result<Vec<Option<Box<str>>>> {
        let mut slots = Vec::new();
        loop {
            self.space();
            slots.push(if self.eat("_") {
                None
            } else {
                Some(self.value_name()?)
            });
            self.space();
            if !self.eat(",") {
                return Ok(slots);
            }
        }
    }

    pub(super) fn signature(&mut self) -> Result<(Vec<Port>, Vec<Port>)> {
        let inputs = self.ports()?;
        self.token("->")?;
        Ok((inputs, self.ports()?))
    }

    pub(super) fn ports(&mut self) -> Result<Vec<Port>> {
        self.token("(")?;
        let mut ports = Vec::new();
        if self.eat(")") {
            return Ok(ports);
        }
        loop {
            let name = self.value_name()?;
            self.space();
            let ty = if self.eat(":") {
                Some(self.ty()?)
            } else {
                None
            };
            ports.push((name, ty));
            self.space();
            if !self.eat(",") {
                self.token(")")?;
                return Ok(ports);
            }
        }
    }

    /// A list behind its opening bracket, up to and with its closing one.
    pub(super) fn list<T>(
        &mut self,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut items = Vec::new();
        self.space();
        if self.eat(close) {
            return Ok(items);
        }
        loop {
            self.space();
            items.push(item(self)?);
            self.space();
            if self.eat(close) {
                return Ok(items);
            }
            self.token(",")?;
        }
    }

    pub(super) fn dtype(&mut self) -> Result<DType> {
        let here = *self;
        DType::from_name(self.word()?).ok_or_else(|| here.error("an element type such as `f32`"))
    }

    pub(super) fn ty(&mut self) -> Result<Type> {
        self.space();
        if self.eat("other ") {
            let exact = Some(self.hex()?);
            return Ok(Type {
                kind: TypeKind::Other,
                exact,
            });
        }
        let dtype = self.dtype()?;
        self.token("[")?;
        if self.eat("..]") {
            let kind = TypeKind::Tensor { dtype, dims: None };
            return Ok(Type { kind, exact: None });
        }
        let dims = self.list("]", |c| match c.peek() {
            Some('"') => c.string().map(|s| Dim::Symbol(s.into())),
            Some('?') => {
                c.eat("?");
                Ok(Dim::Unknown)
            }
            Some(ch) if ch.is_alphabetic() || ch == '_' => c.word().map(|s| Dim::Symbol(s.into())),
            _ => c.int().map(Dim::Known),
        })?;
        Ok(Type::tensor(dtype, dims))
    }

    pub(super) fn stamps(&mut self) -> Result<Metadata> {
        let mut stamps = Metadata::new();
        loop {
            self.space();
            if !self.eat("+") {
                return Ok(stamps);
            }
            let key = self.name()?;
            self.token("=")?;
            stamps.insert(key, self.string()?.into());
        }
    }

    pub(super) fn node_name(&mut self) -> Result<Box<str>> {
        self.space();
        if !self.eat("//") {
            self.end()?;
            return Ok("".into());
        }
        self.space();
        if self.peek() == Some('"') {
            let name = self.string()?;
            self.end()?;
            return Ok(name.into());
        }
        Ok(self.take(self.text.len()).into())
    }

    // ---- attributes and tensors --------------------------------------------------------------------------------------------

    pub(super) fn attributes(&mut self) -> Result<IndexMap<Box<str>, Attr>> {
        self.space();
        if !self.eat("{") {
            return Ok(IndexMap::new());
        }
        let line = self.line;
        let pairs = self.list("}", |c| {
            let name = c.name()?;
            c.token("=")?;
            Ok((name, c.attribute()?))
        })?;
        let mut attrs = IndexMap::with_capacity(pairs.len());
        for (name, value) in pairs {
            if attrs.insert(name.clone(), value.into()).is_some() {
                return Err(wrong(
                    line,
                    format!("the attribute `{name}` is there twice"),
                ));
            }
        }
        Ok(attrs)
    }

    pub(super) fn attribute(&mut self) -> Result<AttrValue> {
        if self.eat("tensor ") {
            return self.tensor().map(AttrValue::Tensor);
        }
        if self.eat("other ") {
            return self.hex().map(AttrValue::Other);
        }
        for (text, empty) in [
            ("floats[]", AttrValue::Floats(Vec::new())),
            ("ints[]", AttrValue::Ints(Vec::new())),
            ("strings[]", AttrValue::Strings(Vec::new())),
            ("tensors[]", AttrValue::Tensors(Vec::new())),
            ("graphs[]", AttrValue::Graphs(Vec::new())),
        ] {
            if self.eat(text) {
                return Ok(empty);
            }
        }
        if self.eat("@") {
            let name = self.name()?;
            self.token(":")?;
            return Ok(AttrValue::Ref {
                name,
                kind: self.int()?,
            });
        }
        if self.eat("[") {
            return self.attribute_list();
        }
        match self.peek() {
            Some('"') => self.bytes().map(AttrValue::String),
            Some('x') => self.hex().map(AttrValue::String),
            _ => match self.scalar()? {
                Scalar::Int(i) => Ok(AttrValue::Int(i)),
                Scalar::Float(x) => Ok(AttrValue::Float(x)),
            },
        }
    }

    pub(super) fn attribute_list(&mut self) -> Result<AttrValue> {
        self.space();
        if self.text.starts_with("tensor ") {
            let tensors = self.list("]", |c| {
                c.token("tensor")?;
                c.tensor()
            })?;
            return Ok(AttrValue::Tensors(tensors));
        }
        if self.text.starts_with(['"', 'x']) {
            return self.list("]", Cursor::bytes).map(AttrValue::Strings);
        }
        let line = self.line;
        let scalars = self.list("]", Cursor::scalar)?;
        if scalars.is_empty() {
            return Err(wrong(
                line,
                "an empty list is written `ints[]`, `floats[]` or `strings[]`",
            ));
        }
        let ints: Option<Vec<i64>> = scalars
            .iter()
            .map(|s| {
                if let Scalar::Int(i) = s {
                    Some(*i)
                } else {
                    None
                }
            })
            .collect();
        if let Some(ints) = ints {
            return Ok(AttrValue::Ints(ints));
        }
        let floats: Option<Vec<f32>> = scalars
            .iter()
            .map(|s| {
                if let Scalar::Float(x) = s {
                    Some(*x)
                } else {
                    None
                }
            })
            .collect();
        floats
            .map(AttrValue::Floats)
            .ok_or_else(|| wrong(line, "a list holds either integers or floats (`1.0`)"))
    }

    pub(super) fn scalar(&mut self) -> Result<Scalar> {
        let here = *self;
        let text = self.number()?;
        if let Ok(i) = text.parse::<i64>() {
            return Ok(Scalar::Int(i));
        }
        float_bits(text)
            .map(Scalar::Float)
            .ok_or_else(|| here.error("a value"))
    }

    /// From the element type on.
    pub(super) fn tensor(&mut self) -> Result<TensorData> {
        self.space();
        let dtype = self.dtype()?;
        self.token("[")?;
        let dims: Box<[u64]> = self.list("]", Cursor::int)?.into();
        self.space();
        let placeholder = |entry: Option<&str>| TensorData {
            dtype,
            dims: dims.clone(),
            payload: Payload::External(External {
                entries: entry
                    .map(|hash| (Box::from(HASH), Box::from(hash)))
                    .into_iter()
                    .collect(),
                bytes: Bytes::new(),
                folder: None,
            }),
            residue: Bytes::new(),
        };
        if self.eat("blake3:") {
            return Ok(placeholder(Some(self.word()?)));
        }
        if self.eat("missing") || self.eat("...") {
            return Ok(placeholder(None));
        }
        self.token("=")?;
        self.constant(dtype, dims)
    }

    pub(super) fn constant(&mut self, dtype: DType, dims: Box<[u64]>) -> Result<TensorData> {
        let line = self.line;
        let count = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let count = count.ok_or_else(|| wrong(line, "the dimensions overflow"))?;
        if self.text.starts_with("x\"") && dtype != DType::String {
            return Ok(TensorData::raw(dtype, dims, self.hex()?));
        }
        if let Some(make) = self.maker()? {
            if count > MAX_MADE {
                return Err(wrong(
                    line,
                    format!("at most {MAX_MADE} elements can be made"),
                ));
            }
            let made = |n: u64| self.encoded(dtype, (0..n).map(|i| make.element(i, dtype)));
            let bytes = match make {
                Maker::Fill(_) => made(1)?.repeat(count as usize),
                Maker::Iota | Maker::Seed(_) => made(count)?,
            };
            return Ok(TensorData::raw(dtype, dims, bytes.into()));
        }
        if dtype == DType::String {
            let strings = if self.eat("{") {
                self.list("}", Cursor::bytes)?
            } else {
                vec![self.bytes()?]
            };
            let right = strings.len() as u64 == count;
            return right
                .then(|| TensorData {
                    dtype,
                    dims,
                    payload: Payload::Typed(Typed::String(Arc::from(strings))),
                    residue: Bytes::new(),
                })
                .ok_or_else(|| wrong(line, format!("{count} strings are expected")));
        }
        let texts = if self.eat("{") {
            self.list("}", Cursor::number)?
        } else {
            vec![self.number()?]
        };
        if texts.len() as u64 != count {
            return Err(wrong(
                line,
                format!("{count} elements are expected, {} are there", texts.len()),
            ));
        }
        let bytes = self.encoded(dtype, texts)?;
        Ok(TensorData::raw(dtype, dims, bytes.into()))
    }

    pub(super) fn maker(&mut self) -> Result<Option<Maker<'t>>> {
        let maker = if self.eat("iota") {
            return Ok(Some(Maker::Iota));
        } else if self.eat("fill(") {
            Maker::Fill(self.number()?)
        } else if self.eat("seed(") {
            Maker::Seed(self.int()?)
        } else {
            return Ok(None);
        };
        self.token(")")?;
        Ok(Some(maker))
    }

    /// The bytes of elements.
    fn encoded<T: AsRef<str>>(
        &self,
        dtype: DType,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for text in texts {
            let text = text.as_ref();
            element(dtype, text, &mut bytes).ok_or_else(|| {
                wrong(self.line, format!("`{text}` is no element of type {dtype}"))
            })?;
        }
        Ok(bytes)
    }
}

pub(super) enum Scalar {
    Int(i64),
    Float(f32),
}

/// A constant that tests make without writing its elements.
pub(super) enum Maker<'t> {
    Fill(&'t str),
    Iota,
    Seed(u64),
}

impl Maker<'_> {
    fn element(&self, i: u64, dtype: DType) -> String {
        match self {
            Maker::Fill(text) => (*text).to_owned(),
            Maker::Iota => i.to_string(),
            Maker::Seed(seed) => {
                let bits = draw::at(draw::at(*seed, 0) ^ i, 0);
                if dtype.is_float() {
                    // 2^-23 times 24 random bits, less one: uniform in [-1, 1).
                    let x = (bits >> 40) as f32 / 8_388_608.0 - 1.0;
                    format!("{x:?}")
                } else if dtype == DType::Bool {
                    (bits & 1 == 1).to_string()
                } else {
                    (bits % 10).to_string()
                }
            }
        }
    }
}

fn nan_bits(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("nan(0x")?.strip_suffix(')')?;
    u64::from_str_radix(digits, 16).ok()
}

fn float_bits(text: &str) -> Option<f32> {
    match nan_bits(text) {
        Some(bits) => Some(f32::from_bits(u32::try_from(bits).ok()?)),
        None if text == "nan" => Some(f32::from_bits(0x7fc0_0000)),
        None => text.parse().ok(),
    }
}

fn element(dtype: DType, text: &str, out: &mut Vec<u8>) -> Option<()> {
    let half = |narrow: fn(f32) -> u16| match nan_bits(text) {
        Some(bits) => u16::try_from(bits).ok(),
        None => Some(narrow(text.parse().ok()?)),
    };
    match dtype {
        DType::Float => out.extend(float_bits(text)?.to_le_bytes()),
        DType::Double => out.extend(match nan_bits(text) {
            Some(bits) => bits.to_le_bytes(),
            None => text.parse::<f64>().ok()?.to_le_bytes(),
        }),
        DType::Float16 => out.extend(half(f32_to_f16)?.to_le_bytes()),
        DType::Bfloat16 => out.extend(half(f32_to_bf16)?.to_le_bytes()),
        DType::Int64 => out.extend(text.parse::<i64>().ok()?.to_le_bytes()),
        DType::Int32 => out.extend(text.parse::<i32>().ok()?.to_le_bytes()),
        DType::Int16 => out.extend(text.parse::<i16>().ok()?.to_le_bytes()),
        DType::Int8 => out.extend(text.parse::<i8>().ok()?.to_le_bytes()),
        DType::Uint64 => out.extend(text.parse::<u64>().ok()?.to_le_bytes()),
        DType::Uint32 => out.extend(text.parse::<u32>().ok()?.to_le_bytes()),
        DType::Uint16 => out.extend(text.parse::<u16>().ok()?.to_le_bytes()),
        DType::Uint8 => out.push(text.parse().ok()?),
        DType::Bool => out.push(u8::from(text.parse::<bool>().ok()?)),
        _ => return None,
    }
    Some(())
}

fn escape(chars: &mut std::str::CharIndices<'_>) -> Option<char> {
    Some(match chars.next()?.1 {
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        c @ ('"' | '\\') => c,
        'u' => {
            if chars.next()?.1 != '{' {
                return None;
            }
            let mut code = 0u32;
            loop {
                match chars.next()?.1 {
                    '}' => return char::from_u32(code),
                    c => code = code.checked_mul(16)?.checked_add(c.to_digit(16)?)?,
                }
            }
        }
        _ => return None,
    })
}
