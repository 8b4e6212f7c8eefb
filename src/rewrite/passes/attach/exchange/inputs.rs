//! The inputs of a graph with exchanged adapters: names, sizes, what they are where nothing is given, and what each adapter gives.

use super::Tensors;
use crate::adapters::convert;
use crate::adapters::manifest::Exchangeable;
use crate::adapters::methods::MethodConfig;
use crate::adapters::param::{ParamSpec, exchanged};
use crate::diag::Diagnostic;
use crate::ir::{DType, Dim, Graph, TensorData, Type};
use serde_json::Value;

/// One input.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) name: Box<str>,
    pub(super) dtype: DType,
    /// Whether its axes are exchanged.
    pub(super) transposed: bool,
    /// What it is where nothing is given, with its axes as the graph has them.
    pub(super) default: TensorData,
    config: MethodConfig,
    /// The name that it would have if no other kind had it.
    wanted: Box<str>,
    spec: ParamSpec,
    /// What its kind is called in names of sizes: runtimes take sizes of one name to be equal, and those of two kinds are not.
    kind: Box<str>,
    /// Values by adapter, with the library's axes.
    given: Vec<(usize, TensorData)>,
    role: Role,
    /// Its sizes, with the library's axes.
    dims: Vec<Dim>,
}

/// What varies of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Values and free sizes.
    Free,
    /// Values alone: its sizes are those of a constant beside it.
    Sized,
    /// Nothing: all adapters have the same.
    Constant,
}

impl Input {
    pub(super) fn is_constant(&self) -> bool {
        self.role == Role::Constant
    }

    /// Its type, with its axes as the graph has them.
    pub(super) fn ty(&self) -> Type {
        let mut dims = self.dims.clone();
        if self.transposed {
            dims.reverse();
        }
        Type::tensor(self.dtype, dims)
    }

    /// Sizes: a name where adapters have their own.
    fn sizes(&self) -> Result<Vec<Dim>, Diagnostic> {
        let actual = self.given.first().map(|(_, t)| &*t.dims);
        let actual = actual.unwrap_or_default();
        let axes = self.spec.shape.len();
        let differs = |t: &TensorData| {
            t.dims.len() != axes
                || self
                    .spec
                    .shape
                    .iter()
                    .zip(&t.dims)
                    .zip(actual)
                    .any(|((s, d), first)| {
                        let known = if s.is_free() { *first } else { s.get() as u64 };
                        let free = s.is_free() && self.role == Role::Free;
                        !free && *d != known
                    })
        };
        if let Some((_, other)) = self.given.iter().find(|(_, t)| differs(t)) {
            let wanted: Vec<String> = self.spec.shape.iter().map(ToString::to_string).collect();
            let found = format!(
                "`{}` is {:?}, and should be [{}]",
                self.name,
                other.dims,
                wanted.join(", ")
            );
            return Err(Diagnostic::error("exchange-shape", found));
        }
        let sizes = self.spec.shape.iter().zip(actual).map(|(size, d)| {
            if size.is_free() && self.role == Role::Free {
                let plain = |c: char| if c.is_alphanumeric() { c } else { '_' };
                let name: String = size.to_string().chars().map(plain).collect();
                Dim::Symbol(format!("{}.{name}", self.kind).into())
            } else {
                Dim::Known(i64::try_from(*d).unwrap_or(i64::MAX))
            }
        });
        Ok(sizes.collect())
    }

    /// Values that change nothing.
    fn neutral(&self, graph: &Graph) -> Result<TensorData, Diagnostic> {
        let size = |d: &Dim| match d {
            Dim::Known(n) => u64::try_from(*n).unwrap_or(0),
            Dim::Symbol(_) | Dim::Unknown => 0,
        };
        let dims: Vec<u64> = self.dims.iter().map(size).collect();
        let counts: Vec<usize> = dims.iter().map(|d| *d as usize).collect();
        let values = self.spec.init.neutral(&counts, graph).ok_or_else(|| {
            let found = format!(
                "what leaves the model as it is depends, for `{}`, on a base weight that is not stored as floats",
                self.name
            );
            Diagnostic::error("exchange-neutral", found).help("use a method that does not read the base weights (lora, ia3), or a float export")
        })?;
        Ok(TensorData::from_f32(dims, &values))
    }

    /// A tensor in its type, with its axes as the graph has them.
    fn laid_out(&self, tensor: &TensorData) -> Option<TensorData> {
        if !self.transposed {
            return convert(tensor, self.dtype);
        }
        let [rows, columns] = tensor.dims[..] else {
            return None;
        };
        let values = exchanged(&tensor.to_f32()?, [rows as usize, columns as usize]);
        convert(&TensorData::from_f32([columns, rows], &values), self.dtype)
    }
}

/// All inputs.
#[derive(Debug)]
pub(super) struct Inputs {
    all: Vec<Input>,
    dtype: DType,
    /// What a graph has already: configurations, and names.
    known: Vec<(Value, Vec<String>)>,
}

impl Inputs {
    pub(super) fn new(known: &[Exchangeable], dtype: DType) -> Self {
        let known = known.iter().map(|k| (k.config.clone(), k.inputs.clone()));
        Inputs {
            all: Vec::new(),
            dtype,
            known: known.collect(),
        }
    }

    pub(super) fn at(&self, index: usize) -> &Input {
        &self.all[index]
    }

    /// Those that a graph has.
    pub(super) fn of_graph(&self) -> impl Iterator<Item = &Input> {
        self.all.iter().filter(|i| !i.is_constant())
    }

    /// The input of a parameter: the one that it has at another place, unless that is one of `apart`, or else a new one.
    pub(super) fn find(
        &mut self,
        config: &MethodConfig,
        (wanted, spec, transposed): (&str, &ParamSpec, bool),
        apart: &[usize],
    ) -> usize {
        let same = |(i, input): &(usize, &Input)| {
            *input.wanted == *wanted && input.config == *config && !apart.contains(i)
        };
        if let Some((i, _)) = self.all.iter().enumerate().find(same) {
            return i;
        }
        self.all.push(Input {
            name: self.free_name(config, wanted).into(),
            dtype: self.dtype,
            transposed,
            default: TensorData::from_f32([], &[0.0]),
            config: config.clone(),
            wanted: wanted.into(),
            spec: spec.clone(),
            kind: "".into(),
            given: Vec::new(),
            role: Role::Free,
            dims: Vec::new(),
        });
        self.all.len() - 1
    }

    /// The name that a graph has for it already; else one that no other kind has.
    fn free_name(&self, config: &MethodConfig, wanted: &str) -> String {
        let dict = config.to_dict();
        let mut names = std::iter::once(wanted.to_owned())
            .chain((2usize..).map(|n| format!("{wanted}_{n}")))
            .take(self.all.len() + self.known.len() + 1);
        let taken = |n: &String| self.all.iter().any(|i| *i.name == **n);
        let there = |n: &String| {
            let of = self.known.iter().filter(|(c, _)| *c == dict);
            of.flat_map(|(_, inputs)| inputs).any(|i| i == n)
        };
        let known = names.clone().find(|n| there(n) && !taken(n));
        known
            .or_else(|| names.find(|n| !taken(n)))
            .unwrap_or_default()
    }

    /// Takes an adapter's values.
    pub(super) fn give(&mut self, index: usize, adapter: usize, tensor: TensorData) {
        let given = &mut self.all[index].given;
        if given.iter().all(|(a, _)| *a != adapter) {
            given.push((adapter, tensor));
        }
    }

    /// Keeps in the graph what training leaves alone and all adapters have the same of; the sizes of what stands beside it are then its own.
    pub(super) fn settle(&mut self, of_kind: &[usize]) {
        let equal = |input: &Input| {
            let mut pairs = input.given.windows(2);
            !input.spec.trainable && pairs.all(|w| w[0].1 == w[1].1)
        };
        let kind = of_kind.first().map(|i| self.all[*i].name.clone());
        for i in of_kind {
            let input = &mut self.all[*i];
            if input.kind.is_empty() {
                input.kind = kind.clone().unwrap_or_default();
            }
        }
        let constant: Vec<usize> = of_kind
            .iter()
            .copied()
            .filter(|i| equal(&self.all[*i]))
            .collect();
        for i in &constant {
            self.all[*i].role = Role::Constant;
        }
        for i in of_kind.iter().filter(|_| !constant.is_empty()) {
            let input = &mut self.all[*i];
            if input.role == Role::Free {
                input.role = Role::Sized;
            }
        }
    }

    /// Decides sizes, and what inputs are where nothing is given.
    pub(super) fn finish(&mut self, graph: &Graph) -> Result<(), Diagnostic> {
        for input in &mut self.all {
            input.dims = input.sizes()?;
            let stored = match (input.role, input.given.first()) {
                (Role::Constant, Some((_, tensor))) => tensor.clone(),
                _ => input.neutral(graph)?,
            };
            let laid_out = input.laid_out(&stored);
            input.default = laid_out.ok_or_else(|| unreadable(&input.name))?;
        }
        Ok(())
    }

    /// What each adapter gives.
    pub(super) fn files(&self, adapters: usize) -> Result<Vec<Tensors>, Diagnostic> {
        let mut out = vec![Tensors::new(); adapters];
        for input in self.of_graph() {
            for (adapter, tensor) in &input.given {
                let tensor = input.laid_out(tensor);
                let tensor = tensor.ok_or_else(|| unreadable(&input.name))?;
                out[*adapter].insert(input.name.clone(), tensor);
            }
        }
        Ok(out)
    }

    /// What the manifest says: each configuration once.
    pub(super) fn exchangeable(&self) -> Vec<Exchangeable> {
        let mut out: Vec<Exchangeable> = Vec::new();
        for input in self.of_graph() {
            let config = input.config.to_dict();
            let name = input.name.to_string();
            match out.iter_mut().find(|e| e.config == config) {
                Some(there) => there.inputs.push(name),
                None => out.push(Exchangeable {
                    config,
                    inputs: vec![name],
                }),
            }
        }
        out
    }
}

fn unreadable(name: &str) -> Diagnostic {
    Diagnostic::error("exchange", format!("the values of `{name}` cannot be read"))
}
