//! The pickle machine, as far as dictionaries of tensors need it (protocols 2 to 4).
//!
//! Objects live in an arena and refer to each other by index: nothing recurses, and a hostile file can only make as many objects as
//! it has bytes.

use crate::ir::{DType, TensorData};
use bytes::Bytes;
use indexmap::IndexMap;
use rustc_hash::FxHashMap;

/// torch's storage classes.
const STORAGES: [(&str, DType); 10] = [
    ("FloatStorage", DType::Float),
    ("DoubleStorage", DType::Double),
    ("HalfStorage", DType::Float16),
    ("BFloat16Storage", DType::Bfloat16),
    ("LongStorage", DType::Int64),
    ("IntStorage", DType::Int32),
    ("ShortStorage", DType::Int16),
    ("CharStorage", DType::Int8),
    ("ByteStorage", DType::Uint8),
    ("BoolStorage", DType::Bool),
];

#[derive(Clone, Copy, Debug)]
enum V {
    None,
    Bool(bool),
    Int(i64),
    Object(usize),
}

#[derive(Debug)]
enum Object {
    Text(Box<str>),
    Tuple(Vec<V>),
    Dict(Vec<(V, V)>),
    List(Vec<V>),
    Other,
    Global(Box<str>),
    Storage { dtype: DType, key: Box<str> },
    Tensor(View),
}

/// A part of a storage, by elements.
#[derive(Clone, Debug)]
struct View {
    storage: usize,
    offset: usize,
    size: Vec<usize>,
    stride: Vec<usize>,
}

/// Where the data of storages lie: by key, with the element type.
type Storages<'a> = dyn Fn(&str) -> Option<Bytes> + 'a;

/// The tensors of the dictionary that the pickle makes.
pub(super) fn tensors(
    code: &[u8],
    storage: &Storages<'_>,
    budget: usize,
) -> Result<IndexMap<Box<str>, TensorData>, String> {
    let mut machine = Machine::new(code, budget);
    let top = machine.run()?;
    machine.tensors(top, storage)
}

/// What the files of torch before 1.6 begin with: a pickle of a number, and one of the version of the format, 1001.
const MAGIC: [u8; 15] = [
    0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.',
];

/// Whether a file is in the container of torch before 1.6.
pub(super) fn is_old(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// The tensors of a file of torch before 1.6: pickles one behind the other (a number, a version, the machine, the object, the keys of its
/// storages), and then each storage with its number of elements in front.
pub(super) fn old_tensors(bytes: &Bytes) -> Result<IndexMap<Box<str>, TensorData>, String> {
    let mut machine = Machine::new(bytes, bytes.len());
    machine.at = MAGIC.len();
    let version = machine.next()?;
    if !matches!(version, V::Int(1001)) {
        return Err("it is of a version of the old container that is not known".into());
    }
    let about = machine.next()?;
    if let Some(Object::Dict(entries)) = machine.object(about) {
        let big = entries.iter().any(|(k, v)| {
            let key = machine.object(*k);
            matches!(key, Some(Object::Text(t)) if &**t == "little_endian")
                && matches!(v, V::Bool(false))
        });
        if big {
            return Err("the numbers are big-endian".into());
        }
    }
    let top = machine.next()?;
    let keys = machine.next()?;
    let Some(Object::List(keys)) = machine.object(keys) else {
        return Err(damaged());
    };
    let mut types: FxHashMap<&str, DType> = FxHashMap::default();
    for object in &machine.objects {
        if let Object::Storage { dtype, key } = object {
            types.insert(key, *dtype);
        }
    }
    let mut found: FxHashMap<&str, Bytes> = FxHashMap::default();
    let mut at = machine.at;
    for key in keys {
        let Some(Object::Text(key)) = machine.object(*key) else {
            return Err(damaged());
        };
        let dtype = types.get(&**key).ok_or_else(damaged)?;
        let count = bytes.get(at..).and_then(|b| b.first_chunk::<8>());
        let count = u64::from_le_bytes(*count.ok_or_else(cut)?);
        let size = usize::try_from(count).ok();
        let size = size.and_then(|n| n.checked_mul(dtype.bits() as usize / 8));
        let begin = at + 8;
        let end = size.and_then(|n| begin.checked_add(n));
        let end = end.filter(|e| *e <= bytes.len()).ok_or_else(cut)?;
        found.insert(key, bytes.slice(begin..end));
        at = end;
    }
    machine.tensors(top, &|key| found.get(key).cloned())
}

fn cut() -> String {
    "the file is cut off".to_owned()
}

struct Machine<'a> {
    code: &'a [u8],
    at: usize,
    stack: Vec<V>,
    marks: Vec<usize>,
    memo: FxHashMap<u32, V>,
    objects: Vec<Object>,
    /// Bytes that may still be copied.
    budget: usize,
}

impl<'a> Machine<'a> {
    fn new(code: &'a [u8], budget: usize) -> Self {
        Machine {
            code,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: FxHashMap::default(),
            objects: Vec::new(),
            budget,
        }
    }
}

impl Machine<'_> {
    /// What the next of several pickles makes.
    fn next(&mut self) -> Result<V, String> {
        self.stack.clear();
        self.marks.clear();
        self.memo.clear();
        self.run()
    }

    /// The tensors of a dictionary.
    fn tensors(
        &self,
        top: V,
        storage: &Storages<'_>,
    ) -> Result<IndexMap<Box<str>, TensorData>, String> {
        let Some(Object::Dict(entries)) = self.object(top) else {
            return Err("it does not hold a dictionary".into());
        };
        let mut out = IndexMap::new();
        let mut names = self.code.len();
        let mut budget = self.budget;
        // A tensor of several names is made once.
        let mut made: FxHashMap<usize, TensorData> = FxHashMap::default();
        for (k, v) in entries {
            let (Some(Object::Text(key)), V::Object(at), Some(Object::Tensor(view))) =
                (self.object(*k), *v, self.object(*v))
            else {
                return Err("it holds something other than named tensors".into());
            };
            // A name stands in the pickle once, however many tensors a hostile one gives it.
            names = names.checked_sub(key.len()).ok_or_else(damaged)?;
            let tensor = match made.get(&at) {
                Some(tensor) => tensor.clone(),
                None => self.tensor(view, storage, &mut budget)?,
            };
            made.insert(at, tensor.clone());
            out.insert(key.clone(), tensor);
        }
        Ok(out)
    }

    fn object(&self, v: V) -> Option<&Object> {
        match v {
            V::Object(i) => self.objects.get(i),
            V::None | V::Bool(_) | V::Int(_) => None,
        }
    }

    fn push(&mut self, o: Object) {
        self.objects.push(o);
        self.stack.push(V::Object(self.objects.len() - 1));
    }

    fn pop(&mut self) -> Result<V, String> {
        self.stack.pop().ok_or_else(damaged)
    }

    fn take(&mut self, n: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(n).ok_or_else(damaged)?;
        let bytes = self.code.get(self.at..end).ok_or_else(damaged)?;
        self.at = end;
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| damaged())
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.number::<1>()?[0])
    }

    fn line(&mut self) -> Result<&str, String> {
        let rest = self.code.get(self.at..).unwrap_or_default();
        let n = rest.iter().position(|b| *b == b'\n').ok_or_else(damaged)?;
        self.at += n + 1;
        std::str::from_utf8(&rest[..n]).map_err(|_| damaged())
    }

    fn text(&mut self, n: usize) -> Result<(), String> {
        let text: Box<str> = std::str::from_utf8(self.take(n)?)
            .map_err(|_| damaged())?
            .into();
        self.push(Object::Text(text));
        Ok(())
    }

    fn since_mark(&mut self) -> Result<Vec<V>, String> {
        let at = self.marks.pop().ok_or_else(damaged)?;
        if at > self.stack.len() {
            return Err(damaged());
        }
        Ok(self.stack.split_off(at))
    }

    fn tuple(&mut self, n: usize) -> Result<(), String> {
        let at = self.stack.len().checked_sub(n).ok_or_else(damaged)?;
        let items = self.stack.split_off(at);
        self.push(Object::Tuple(items));
        Ok(())
    }

    fn run(&mut self) -> Result<V, String> {
        loop {
            let op = self.byte()?;
            match op {
                b'.' => return self.pop(),
                0x80 => drop(self.byte()?),
                0x95 => drop(self.number::<8>()?),
                b'}' => self.push(Object::Dict(Vec::new())),
                b']' => self.push(Object::List(Vec::new())),
                b')' => self.push(Object::Tuple(Vec::new())),
                b'(' => self.marks.push(self.stack.len()),
                b'N' => self.stack.push(V::None),
                0x88 => self.stack.push(V::Bool(true)),
                0x89 => self.stack.push(V::Bool(false)),
                b'K' => {
                    let i = self.byte()?;
                    self.stack.push(V::Int(i.into()));
                }
                b'M' => {
                    let i = u16::from_le_bytes(self.number()?);
                    self.stack.push(V::Int(i.into()));
                }
                b'J' => {
                    let i = i32::from_le_bytes(self.number()?);
                    self.stack.push(V::Int(i.into()));
                }
                0x8a => {
                    let i = self.long()?;
                    self.stack.push(V::Int(i));
                }
                b'G' => {
                    self.number::<8>()?;
                    self.push(Object::Other);
                }
                b'X' => {
                    let n = u32::from_le_bytes(self.number()?);
                    self.text(n as usize)?;
                }
                0x8c => {
                    let n = self.byte()?;
                    self.text(n.into())?;
                }
                b'q' => {
                    let i = self.byte()?;
                    self.memoize(i.into())?;
                }
                b'r' => {
                    let i = u32::from_le_bytes(self.number()?);
                    self.memoize(i)?;
                }
                0x94 => self.memoize(self.memo.len() as u32)?,
                b'h' => {
                    let i = self.byte()?;
                    self.recall(i.into())?;
                }
                b'j' => {
                    let i = u32::from_le_bytes(self.number()?);
                    self.recall(i)?;
                }
                b't' => {
                    let items = self.since_mark()?;
                    self.push(Object::Tuple(items));
                }
                0x85..=0x87 => self.tuple(usize::from(op - 0x84))?,
                b'c' => {
                    let module = self.line()?.to_owned();
                    let name = format!("{module}.{}", self.line()?);
                    self.push(Object::Global(name.into()));
                }
                0x93 => self.stack_global()?,
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                // The state of an `OrderedDict`: torch keeps versions of modules there.
                b'b' => drop(self.pop()?),
                b'a' => {
                    let item = self.pop()?;
                    self.extend(&[item]);
                }
                b's' => {
                    let (v, k) = (self.pop()?, self.pop()?);
                    self.set(&[k, v])?;
                }
                b'u' => {
                    let items = self.since_mark()?;
                    self.set(&items)?;
                }
                b'e' => {
                    let items = self.since_mark()?;
                    self.extend(&items);
                }
                other => {
                    return Err(format!(
                        "its pickle has the instruction {other:#04x}, which dictionaries of tensors have no use for"
                    ));
                }
            }
        }
    }

    fn long(&mut self) -> Result<i64, String> {
        let n = usize::from(self.byte()?);
        if n > 8 {
            return Err("a number is too large".into());
        }
        let bytes = self.take(n)?;
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) {
            0xff
        } else {
            0
        };
        let mut out = [fill; 8];
        out[..n].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(out))
    }

    /// Counts bytes that were copied.
    fn spend(&mut self, copied: usize) -> Result<(), String> {
        let left = self.budget.checked_sub(copied);
        self.budget = left.ok_or_else(overlap)?;
        Ok(())
    }

    fn memoize(&mut self, i: u32) -> Result<(), String> {
        let top = self.stack.last().copied().ok_or_else(damaged)?;
        self.memo.insert(i, top);
        Ok(())
    }

    fn recall(&mut self, i: u32) -> Result<(), String> {
        let v = self.memo.get(&i).copied().ok_or_else(damaged)?;
        self.stack.push(v);
        Ok(())
    }

    fn stack_global(&mut self) -> Result<(), String> {
        let (name, module) = (self.pop()?, self.pop()?);
        let (Some(Object::Text(module)), Some(Object::Text(name))) =
            (self.object(module), self.object(name))
        else {
            return Err(damaged());
        };
        let global: Box<str> = format!("{module}.{name}").into();
        self.spend(global.len())?;
        self.push(Object::Global(global));
        Ok(())
    }

    fn set(&mut self, items: &[V]) -> Result<(), String> {
        let dict = self.stack.last().copied().ok_or_else(damaged)?;
        let V::Object(i) = dict else {
            return Err(damaged());
        };
        let Some(Object::Dict(entries)) = self.objects.get_mut(i) else {
            return Err(damaged());
        };
        entries.extend(items.as_chunks::<2>().0.iter().map(|[k, v]| (*k, *v)));
        Ok(())
    }

    /// Adds items to the list on the stack.
    fn extend(&mut self, items: &[V]) {
        if let Some(V::Object(i)) = self.stack.last()
            && let Some(Object::List(list)) = self.objects.get_mut(*i)
        {
            list.extend_from_slice(items);
        }
    }

    /// `('storage', torch.FloatStorage, key, location, count)`; in the old container with a view, which nothing has today.
    fn persistent(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let Some(Object::Tuple(items)) = self.object(id) else {
            return Err(damaged());
        };
        let ([_, class, key, _, _] | [_, class, key, _, _, V::None]) = items[..] else {
            return Err(damaged());
        };
        let (Some(Object::Global(class)), Some(Object::Text(key))) =
            (self.object(class), self.object(key))
        else {
            return Err(damaged());
        };
        let short = class.strip_prefix("torch.").unwrap_or(class);
        let known = STORAGES.iter().find(|(name, _)| *name == short);
        let (_, dtype) = known.ok_or_else(|| format!("it has a tensor of `{class}`"))?;
        let (dtype, key) = (*dtype, key.clone());
        self.spend(key.len())?;
        self.push(Object::Storage { dtype, key });
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), String> {
        let (args, function) = (self.pop()?, self.pop()?);
        let Some(Object::Tuple(args)) = self.object(args) else {
            return Err(damaged());
        };
        let Some(Object::Global(function)) = self.object(function) else {
            return Err(damaged());
        };
        match &**function {
            "collections.OrderedDict" => self.push(Object::Dict(Vec::new())),
            "torch._utils._rebuild_parameter" => {
                let tensor = args.first().copied().ok_or_else(damaged)?;
                self.stack.push(tensor);
            }
            "torch._utils._rebuild_tensor_v2" => {
                let view = self.view(args)?;
                self.push(Object::Tensor(view));
            }
            other => return Err(format!("it would call `{other}`, which is not done")),
        }
        Ok(())
    }

    /// The view of `(storage, offset, size, stride, …)`.
    fn view(&self, args: &[V]) -> Result<View, String> {
        let [V::Object(storage), V::Int(offset), size, stride, ..] = *args else {
            return Err(damaged());
        };
        let (size, stride) = (self.sizes(size)?, self.sizes(stride)?);
        if size.len() != stride.len() {
            return Err(misfit());
        }
        Ok(View {
            storage,
            offset: usize::try_from(offset).map_err(|_| damaged())?,
            size,
            stride,
        })
    }

    /// The tensor of a view. `budget` is the number of bytes that may still be copied.
    fn tensor(
        &self,
        view: &View,
        storage: &Storages<'_>,
        budget: &mut usize,
    ) -> Result<TensorData, String> {
        let View {
            offset,
            size,
            stride,
            ..
        } = view;
        let Some(Object::Storage { dtype, key }) = self.objects.get(view.storage) else {
            return Err(damaged());
        };
        let bytes =
            storage(key).ok_or_else(|| format!("the data of a tensor (data/{key}) is missing"))?;
        let width = dtype.bits() as usize / 8;
        let available = bytes.len() / width.max(1);
        let count = size
            .iter()
            .try_fold(1usize, |a, d| a.checked_mul(*d))
            .ok_or_else(damaged)?;
        if *offset > available {
            return Err(misfit());
        }
        let dims: Box<[u64]> = size.iter().map(|d| *d as u64).collect();
        if contiguous(size, stride) {
            let end = offset.checked_add(count).filter(|e| *e <= available);
            let end = end.ok_or_else(misfit)?;
            let part = bytes.slice(offset * width..end * width);
            return Ok(TensorData::raw(*dtype, dims, part));
        }
        let left = count.checked_mul(width).and_then(|n| budget.checked_sub(n));
        *budget = left.ok_or_else(overlap)?;
        let mut out = Vec::with_capacity(count * width);
        let mut index = vec![0usize; size.len()];
        for _ in 0..count {
            let at = index
                .iter()
                .zip(stride)
                .try_fold(*offset, |a, (i, s)| a.checked_add(i.checked_mul(*s)?));
            let at = at.filter(|a| *a < available).ok_or_else(misfit)?;
            out.extend(&bytes[at * width..(at + 1) * width]);
            for axis in (0..size.len()).rev() {
                index[axis] += 1;
                if index[axis] < size[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Ok(TensorData::raw(*dtype, dims, out.into()))
    }

    fn sizes(&self, v: V) -> Result<Vec<usize>, String> {
        let Some(Object::Tuple(items)) = self.object(v) else {
            return Err(damaged());
        };
        if items.len() > 64 {
            return Err("a tensor has more than 64 axes".into());
        }
        let size = |v: &V| match v {
            V::Int(i) => usize::try_from(*i).map_err(|_| damaged()),
            V::None | V::Bool(_) | V::Object(_) => Err(damaged()),
        };
        items.iter().map(size).collect()
    }
}

fn damaged() -> String {
    "its pickle is damaged".to_owned()
}

fn misfit() -> String {
    "a tensor does not fit its data".to_owned()
}

fn overlap() -> String {
    "its tensors overlap more than the file is large".to_owned()
}

fn contiguous(size: &[usize], stride: &[usize]) -> bool {
    let mut want = 1usize;
    for (d, s) in size.iter().zip(stride).rev() {
        if *d != 1 && *s != want {
            return false;
        }
        want = want.saturating_mul((*d).max(1));
    }
    true
}

/// The pickle (protocol 2) of a dictionary of tensors, whose data are the entries `data/0`, `data/1`, …
pub(super) fn write(tensors: &IndexMap<Box<str>, TensorData>) -> Result<Vec<u8>, String> {
    let mut out = vec![0x80, 2, b'}', b'('];
    for (i, (key, tensor)) in tensors.iter().enumerate() {
        let class = STORAGES.iter().find(|s| s.1 == tensor.dtype).map(|s| s.0);
        let class = class
            .ok_or_else(|| format!("`{key}` is {}, which torch files cannot hold", tensor.dtype))?;
        let count = tensor.count().ok_or("a tensor is too large")?;
        put_text(&mut out, key);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        put_text(&mut out, "storage");
        out.extend(format!("ctorch\n{class}\n").as_bytes());
        put_text(&mut out, &i.to_string());
        put_text(&mut out, "cpu");
        put_int(&mut out, count);
        out.extend(b"tQK\0(");
        tensor.dims.iter().for_each(|d| put_int(&mut out, *d));
        out.extend(b"t(");
        let mut strides: Vec<u64> = Vec::new();
        let mut step = 1;
        for d in tensor.dims.iter().rev() {
            strides.push(step);
            step = step.saturating_mul(*d.max(&1)).min(i64::MAX as u64);
        }
        strides.iter().rev().for_each(|s| put_int(&mut out, *s));
        out.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    Ok(out)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_int(out: &mut Vec<u8>, i: u64) {
    if let Ok(i) = i32::try_from(i) {
        out.push(b'J');
        out.extend(i.to_le_bytes());
    } else {
        out.extend([0x8a, 8]);
        out.extend(i.to_le_bytes());
    }
}
