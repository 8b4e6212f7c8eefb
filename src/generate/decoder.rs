//! From tokens to the logits of the next one, with a memory of what was computed before.
//!
//! Rows of a batch may have different lengths: shorter ones are filled up behind their end, which no earlier position sees, and
//! positions are counted for each row. So a row is computed exactly as it is alone.

use super::failed;
use crate::adapters::whole_row_adapters;
use crate::analyze::logits::logits;
use crate::analyze::positions::attention_window;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::contract;
use crate::ir::{DType, Dim, OpId, Type};
use crate::rewrite::Pipeline;
use crate::rewrite::passes::cache::{Part, new_name, past_name};
use crate::rewrite::pipelines::{self, Mode};
use crate::runtime::cache::{Grown, first_positions};
use crate::runtime::{CompileOptions, Feeds, Outputs, Plan, Value, caches};
use crate::select::Selection;
use serde::Serialize;
use std::sync::OnceLock;

/// What it means that there is no cache.
const WHOLE: &str = "the whole text is computed for every token";

/// How a model is prepared.
#[derive(Clone, Debug, Default)]
pub(crate) struct DecoderOptions {
    /// Whether keys and values are kept, where that is possible.
    pub use_cache: bool,
    /// Runs the graph as it is, without fused kernels.
    pub portable: bool,
    /// First token of an encoder-decoder's text.
    pub decoder_start_token_id: Option<i64>,
    /// Sizes that the graph does not declare of its own cache: heads and width of a head.
    pub cache_size: Option<[usize; 2]>,
    /// How plans are compiled.
    pub compile: CompileOptions,
}

/// What is kept from step to step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// Nothing: the whole text is computed for every token.
    None,
    /// Keys and values, by inputs and outputs that the graph has.
    Own,
    /// Keys and values, by inputs and outputs that [`AddCache`](crate::rewrite::passes::cache::AddCache) gave it.
    Added,
}

/// A causal or an encoder-decoder language model, ready to generate.
#[derive(Debug)]
pub(crate) struct Decoder {
    model: Verified,
    options: DecoderOptions,
    logits: String,
    whole: OnceLock<Plan>,
    engine: Engine,
    /// Whether rows of different lengths can be computed together.
    ragged: bool,
    warnings: Vec<Diagnostic>,
    /// Parameters that plans are fed with.
    given: Feeds,
}

#[derive(Debug)]
enum Engine {
    Whole,
    Own {
        plan: Plan,
        parts: Vec<OwnPart>,
    },
    Added {
        first: Plan,
        step: Plan,
        layers: usize,
        window: Option<u64>,
    },
}

/// A tensor of a graph's own cache.
#[derive(Debug)]
struct OwnPart {
    input: String,
    output: String,
    dtype: DType,
    heads: usize,
    head: usize,
}

/// Logits of the next token, for each row.
#[derive(Clone, Debug)]
pub(crate) struct Logits {
    data: Vec<f32>,
    vocab: usize,
}

impl Logits {
    /// Those of a row.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        let start = row * self.vocab;
        self.data.get(start..start + self.vocab).unwrap_or_default()
    }
}

impl Decoder {
    /// Prepares a model. `selection` says where its attentions are; without it, or where the graph does not allow it, the whole text
    /// is computed for every token, and [`warnings`](Self::warnings) says why.
    pub(crate) fn new(
        model: Verified,
        selection: Option<&Selection>,
        options: DecoderOptions,
    ) -> Result<Self> {
        let g = &model.model().graph;
        let id = logits(g, None).map_err(|d| Error::new(ErrorKind::Run, d))?;
        let logits = g.name_of(id).to_owned();
        let full = whole_row_adapters(model.model())?;
        let chosen = pipelines::choosing(logits.clone()).run(model)?.model;
        let mut out = Decoder {
            model: chosen,
            options,
            logits,
            whole: OnceLock::new(),
            engine: Engine::Whole,
            ragged: full.is_empty(),
            warnings: Vec::new(),
            given: Feeds::new(),
        };
        let own = out.own_parts()?;
        if !own.is_empty() {
            let plan = out.compile(&pipelines::inference(out.mode()))?;
            let fed = |name: &str| plan.feeds().iter().any(|f| f.name == name && f.used);
            // An operator that counts positions by the mask takes a row's tokens to be without gaps.
            let grouped = OpId::new("com.microsoft", "GroupQueryAttention");
            let g = &out.model.model().graph;
            let counts = g.nodes().any(|n| g.node(n).op == grouped);
            out.ragged &= fed(contract::POSITION_IDS) && !counts;
            out.engine = Engine::Own { plan, parts: own };
        } else if let Some(input) = out.other_cache() {
            let message = format!(
                "keys and values are not kept: `{input}` is an input for a cache, and no output is known to be the cache behind it"
            );
            let d = Diagnostic::warning("cache", message).note(WHOLE);
            out.warnings.push(d.help("export the model with Optimum's names: `past_key_values.0.key` and `present.0.key`"));
        } else if let Some(selection) = selection
            && out.options.use_cache
            && !out.is_encoder_decoder()
        {
            if full.is_empty() {
                match out.added(selection) {
                    Ok(engine) => out.engine = engine,
                    Err(e) => out.warn(&e),
                }
            } else {
                let message = format!(
                    "the effect of {} depends on the whole text",
                    full.join(", ")
                );
                let d = Diagnostic::warning("cache", message);
                out.warnings.push(d.note(WHOLE));
            }
        }
        Ok(out)
    }

    /// Gives parameters other values than those of the file. They are the variables of [`DecoderOptions::compile`].
    pub(crate) fn give(&mut self, values: Feeds) {
        self.given = values;
    }

    fn warn(&mut self, e: &Error) {
        let why = e
            .findings()
            .first()
            .map_or_else(String::new, |f| f.message.clone());
        let at = e
            .findings()
            .first()
            .map_or_else(String::new, |f| f.path.clone());
        let d = Diagnostic::warning("cache", format!("keys and values are not kept: {why}")).at(at);
        self.warnings.push(d.note(WHOLE));
    }

    /// What is kept from step to step.
    pub(crate) fn memory(&self) -> Memory {
        match &self.engine {
            Engine::Whole => Memory::None,
            Engine::Own { .. } => Memory::Own,
            Engine::Added { .. } => Memory::Added,
        }
    }

    /// Whether rows of different lengths can be computed together.
    pub(crate) fn ragged(&self) -> bool {
        self.ragged
    }

    /// Why something is not as it might be.
    pub(crate) fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }

    /// Whether the text has its own decoder.
    pub(crate) fn is_encoder_decoder(&self) -> bool {
        let g = &self.model.model().graph;
        g.find(contract::DECODER_INPUT_IDS)
            .is_some_and(|v| g.is_input(v))
    }

    fn mode(&self) -> Mode {
        if self.options.portable {
            Mode::Portable
        } else {
            Mode::Native
        }
    }

    /// The plan of what a pipeline makes of the model.
    fn compile(&self, pipeline: &Pipeline) -> Result<Plan> {
        let model = pipeline.run(self.model.clone())?.model;
        let g = &model.model().graph;
        let kept = |name: &str| {
            name == self.logits
                || name.starts_with(contract::PRESENT)
                || name.starts_with(contract::NEW)
        };
        let names = g.outputs().iter().map(|p| g.name_of(p.value).to_owned());
        let options = CompileOptions {
            outputs: Some(names.filter(|n| kept(n)).collect()),
            ..self.options.compile.clone()
        };
        Plan::compile(&model, &options)
    }

    fn whole(&self) -> Result<&Plan> {
        if let Some(plan) = self.whole.get() {
            return Ok(plan);
        }
        let plan = self.compile(&pipelines::inference(self.mode()))?;
        Ok(self.whole.get_or_init(|| plan))
    }

    /// An input for a cache whose output has no name that tells.
    fn other_cache(&self) -> Option<String> {
        let g = &self.model.model().graph;
        let caches = caches(g);
        let mut inputs = g.inputs().iter();
        let found = inputs.find(|p| caches.contains_key(&p.value));
        found.map(|p| g.name_of(p.value).to_owned())
    }

    fn own_parts(&self) -> Result<Vec<OwnPart>> {
        let g = &self.model.model().graph;
        let mut out = Vec::new();
        for port in g.inputs() {
            let name = g.name_of(port.value);
            let Some(rest) = name.strip_prefix(contract::PAST) else {
                continue;
            };
            let output = format!("{}{rest}", contract::PRESENT);
            if g.find(&output).is_none_or(|v| !g.is_output(v)) {
                return Err(failed(
                    "cache",
                    format!("the graph has the input `{name}` and no output `{output}`"),
                ));
            }
            let ty = port.ty.as_ref().or(g.value(port.value).ty.as_ref());
            let size = |axis: usize| match ty.and_then(Type::dims).and_then(|d| d.get(axis)) {
                Some(Dim::Known(n)) => usize::try_from(*n).ok(),
                _ => self.options.cache_size.map(|s| s[axis / 2]),
            };
            let (Some(heads), Some(head)) = (size(1), size(3)) else {
                let d = Diagnostic::error("cache", format!("the sizes of `{name}` are not known"))
                    .help("config.json beside the model says them: num_key_value_heads, head_dim");
                return Err(Error::new(ErrorKind::Run, d));
            };
            out.push(OwnPart {
                input: name.to_owned(),
                output,
                dtype: ty.and_then(Type::dtype).unwrap_or(DType::Float),
                heads,
                head,
            });
        }
        Ok(out)
    }

    /// Gives the graph a cache, and compares once what comes out.
    fn added(&self, selection: &Selection) -> Result<Engine> {
        let decoding = |past| pipelines::decoding(selection.clone(), past, self.mode());
        let engine = Engine::Added {
            first: self.compile(&decoding(false))?,
            step: self.compile(&decoding(true))?,
            layers: selection.layers.len(),
            window: attention_window(&self.model.model().graph),
        };
        self.compare(&engine)?;
        Ok(engine)
    }

    /// Whether logits with and without the cache are the same, on a few tokens of two rows.
    fn compare(&self, engine: &Engine) -> Result<()> {
        let rows = vec![vec![0, 1, 0], vec![1]];
        let any = Some(vec![0; rows.len()]);
        let (mut with, _) = Session::begin(self, engine, (rows.clone(), any.clone()))?;
        let (mut without, _) = Session::begin(self, &Engine::Whole, (rows, any))?;
        for next in [[1, 0], [0, 1]].map(|ids| ids.map(Some)) {
            let (a, b) = (with.step(&next)?, without.step(&next)?);
            let size = b.data.iter().fold(1f32, |m, x| m.max(x.abs()));
            // Sums in another order, or operands in bfloat16.
            let allowed = size
                * if self.options.compile.precision == crate::runtime::Precision::F32 {
                    1e-3
                } else {
                    1e-1
                };
            let far = a
                .data
                .iter()
                .zip(&b.data)
                .any(|(x, y)| (x - y).abs() > allowed || x.is_nan() != y.is_nan());
            if far {
                return Err(failed(
                    "cache",
                    "the logits with a cache are others than without",
                ));
            }
        }
        Ok(())
    }

    /// The logits of the token behind each prompt. `chosen`: the task or adapter of each, where the graph chooses one.
    pub(crate) fn begin(
        &self,
        prompts: &[Vec<i64>],
        chosen: Option<Vec<i64>>,
    ) -> Result<(Session<'_>, Logits)> {
        Session::begin(self, &self.engine, (prompts.to_vec(), chosen))
    }
}

/// Texts that are being generated.
#[derive(Debug)]
pub(crate) struct Session<'d> {
    decoder: &'d Decoder,
    engine: &'d Engine,
    /// What an encoder reads.
    source: Vec<Vec<i64>>,
    rows: Vec<Vec<i64>>,
    /// The task or adapter of each row, where the graph chooses one.
    chosen: Option<Vec<i64>>,
    /// Of each row, which cached positions count.
    mask: Vec<Vec<i64>>,
    grown: Vec<Grown>,
    own: Vec<Value>,
}

impl<'d> Session<'d> {
    fn begin(
        decoder: &'d Decoder,
        engine: &'d Engine,
        (prompts, chosen): (Vec<Vec<i64>>, Option<Vec<i64>>),
    ) -> Result<(Self, Logits)> {
        if prompts.iter().any(Vec::is_empty) {
            let d = Diagnostic::error("prompt-empty", "a prompt has no tokens")
                .help("write at least one, or give the model's first token");
            return Err(Error::new(ErrorKind::Run, d));
        }
        let equal = prompts.windows(2).all(|w| w[0].len() == w[1].len());
        if !decoder.ragged && !equal {
            return Err(failed(
                "batch",
                "this graph computes rows of one length together only",
            ));
        }
        let mut out = Session {
            decoder,
            engine,
            source: Vec::new(),
            rows: prompts,
            chosen,
            mask: Vec::new(),
            grown: Vec::new(),
            own: Vec::new(),
        };
        if decoder.is_encoder_decoder() {
            let Some(start) = decoder.options.decoder_start_token_id else {
                let d = Diagnostic::error(
                    "decoder-start",
                    "the first token of the decoder is not known",
                )
                .help("--decoder-start-token-id N, or config.json beside the model");
                return Err(Error::new(ErrorKind::Run, d));
            };
            let rows = vec![vec![start]; out.rows.len()];
            out.source = std::mem::replace(&mut out.rows, rows);
        }
        let logits = match engine {
            Engine::Whole => out.compute_whole()?,
            Engine::Own { plan, parts } => {
                out.own = empty(parts, out.rows.len())?;
                let all = out.rows.clone();
                out.advance_own(plan, parts, &all)?
            }
            Engine::Added { first, layers, .. } => {
                out.grown = (0..2 * layers).map(|_| Grown::new()).collect();
                let all = out.rows.clone();
                let zero = vec![0; all.len()];
                let feeds = out.feeds(first, &all, &zero)?;
                let results = first.run(&feeds)?;
                out.keep(&results, &all)?;
                out.decoder.logits(&results, all.len())?
            }
        };
        Ok((out, logits))
    }

    /// Texts so far, prompts included.
    pub(crate) fn rows(&self) -> &[Vec<i64>] {
        &self.rows
    }

    /// Appends a token to each row, none to rows that rest; the logits of the token behind it, those of a resting row being of no use.
    pub(crate) fn step(&mut self, next: &[Option<i64>]) -> Result<Logits> {
        // Rows of one length go on together.
        let rest = |id: Option<i64>| {
            if self.decoder.ragged {
                id
            } else {
                id.or(Some(0))
            }
        };
        let new: Vec<Vec<i64>> = next
            .iter()
            .map(|&id| rest(id).into_iter().collect())
            .collect();
        for (row, ids) in self.rows.iter_mut().zip(&new) {
            row.extend(ids);
        }
        self.advance(&new)
    }

    /// Goes on with another text in the place of the only row: what both begin with is not computed again, where keys and values are
    /// kept. The logits of the token behind it, and how many of its tokens were there.
    ///
    /// # Errors
    /// Those of [`step`](Self::step).
    pub(super) fn go_on(&mut self, text: &[i64]) -> Result<(Logits, usize)> {
        let kept = self.rows.first().map_or(0, Vec::len);
        let kept = if self.cached() == Some(kept) { kept } else { 0 };
        let old = self.rows.first().map_or(&[][..], Vec::as_slice);
        let same = old.iter().zip(text).take_while(|(a, b)| a == b).count();
        // The last token is computed in any case: its logits are what is asked for.
        let same = same.min(kept).min(text.len().saturating_sub(1));
        if same == 0 {
            let given = (vec![text.to_vec()], self.chosen.clone());
            let (new, logits) = Session::begin(self.decoder, &self.decoder.engine, given)?;
            *self = new;
            return Ok((logits, 0));
        }
        self.grown.iter_mut().for_each(|g| g.truncate(same));
        for value in &mut self.own {
            *value = first_positions(value, same).map_err(|e| failed("cache", e.to_string()))?;
        }
        self.mask.iter_mut().for_each(|m| m.truncate(same));
        self.rows = vec![text.to_vec()];
        let logits = self.advance(&[text[same..].to_vec()])?;
        Ok((logits, same))
    }

    /// Number of positions whose keys and values are kept.
    fn cached(&self) -> Option<usize> {
        if !self.source.is_empty() || self.rows.len() != 1 {
            return None;
        }
        let own = self.own.first().and_then(|v| v.dims().get(2).copied());
        self.grown.first().map(Grown::len).or(own)
    }

    /// Computes new tokens, which are in the rows by now.
    fn advance(&mut self, new: &[Vec<i64>]) -> Result<Logits> {
        let engine = self.engine;
        match engine {
            Engine::Whole => self.compute_whole(),
            Engine::Own { plan, parts } => self.advance_own(plan, parts, new),
            Engine::Added { step, window, .. } => {
                let longest = self.rows.iter().map(Vec::len).max().unwrap_or(0) as u64;
                if window.is_some_and(|w| longest > w) {
                    // The graph's mask hides what a cache shows; from here on every step is a whole one.
                    self.grown.clear();
                    self.engine = &Engine::Whole;
                    return self.compute_whole();
                }
                let starts = self.starts(new);
                let mut feeds = self.feeds(step, new, &starts)?;
                feeds.insert(contract::PAST_ATTENTION_MASK, ints(&self.mask)?);
                for (i, grown) in self.grown.iter().enumerate() {
                    let part = Part::BOTH[i % 2];
                    feeds.insert(
                        &past_name(i / 2, part),
                        grown.value().map_err(|e| failed("cache", e.to_string()))?,
                    );
                }
                let results = step.run(&feeds)?;
                // A view that is held would make the next append impossible.
                drop(feeds);
                self.keep(&results, new)?;
                self.decoder.logits(&results, new.len())
            }
        }
    }

    /// Position of each row's first new token.
    fn starts(&self, new: &[Vec<i64>]) -> Vec<usize> {
        let pairs = self.rows.iter().zip(new);
        pairs.map(|(row, new)| row.len() - new.len()).collect()
    }

    fn compute_whole(&self) -> Result<Logits> {
        let plan = self.decoder.whole()?;
        let zero = vec![0; self.rows.len()];
        let results = plan.run(&self.feeds(plan, &self.rows, &zero)?)?;
        self.decoder.logits(&results, self.rows.len())
    }

    fn advance_own(&mut self, plan: &Plan, parts: &[OwnPart], new: &[Vec<i64>]) -> Result<Logits> {
        let starts = self.starts(new);
        let mut feeds = self.feeds(plan, new, &starts)?;
        self.extend_mask(new);
        if feeds.0.contains_key(contract::ATTENTION_MASK) {
            feeds.insert(contract::ATTENTION_MASK, ints(&self.mask)?);
        }
        for (part, value) in parts.iter().zip(std::mem::take(&mut self.own)) {
            feeds.insert(&part.input, value);
        }
        let mut results = plan.run(&feeds)?;
        drop(feeds);
        let logits = self.decoder.logits(&results, new.len())?;
        let mut own = Vec::with_capacity(parts.len());
        for part in parts {
            let found = results.shift_remove(&part.output);
            let found =
                found.ok_or_else(|| failed("cache", format!("no output `{}`", part.output)))?;
            own.push(found.0);
        }
        self.own = own;
        Ok(logits)
    }

    /// Keeps the keys and values of new positions.
    fn keep(&mut self, results: &Outputs, new: &[Vec<i64>]) -> Result<()> {
        for (i, grown) in self.grown.iter_mut().enumerate() {
            let name = new_name(i / 2, Part::BOTH[i % 2]);
            let value = results
                .get(&name)
                .ok_or_else(|| failed("cache", format!("no output `{name}`")))?;
            grown
                .append(&value.0)
                .map_err(|e| failed("cache", e.to_string()))?;
        }
        self.extend_mask(new);
        Ok(())
    }

    fn extend_mask(&mut self, new: &[Vec<i64>]) {
        self.mask.resize(new.len(), Vec::new());
        let width = new.iter().map(Vec::len).max().unwrap_or(0);
        for (mask, row) in self.mask.iter_mut().zip(new) {
            mask.extend((0..width).map(|i| i64::from(i < row.len())));
        }
    }

    /// The inputs of a plan for rows of new tokens, each from its position on. The logits are those behind the last token of a row.
    fn feeds(&self, plan: &Plan, new: &[Vec<i64>], starts: &[usize]) -> Result<Feeds> {
        let lengths = |rows: &[Vec<i64>]| rows.iter().map(|r| vec![1; r.len()]).collect::<Vec<_>>();
        let width = new.iter().map(Vec::len).max().unwrap_or(0) as i64;
        let mut feeds = Feeds::new();
        for spec in plan.feeds() {
            let value = match spec.name.as_str() {
                contract::INPUT_IDS if !self.source.is_empty() => ints(&self.source)?,
                contract::ATTENTION_MASK if !self.source.is_empty() => {
                    ints(&lengths(&self.source))?
                }
                contract::INPUT_IDS | contract::DECODER_INPUT_IDS => ints(new)?,
                // A graph that packs: each row is one segment.
                contract::ATTENTION_MASK
                | contract::DECODER_ATTENTION_MASK
                | contract::SEGMENT_IDS => ints(&lengths(new))?,
                contract::POSITION_IDS => {
                    let row = |(r, s): (&Vec<i64>, &usize)| (*s as i64..).take(r.len()).collect();
                    ints(&new.iter().zip(starts).map(row).collect::<Vec<_>>())?
                }
                contract::TOKEN_TYPE_IDS => {
                    ints(&new.iter().map(|r| vec![0; r.len()]).collect::<Vec<_>>())?
                }
                contract::TASK_IDS | contract::ADAPTER_IDS => match &self.chosen {
                    Some(ids) => Value::from_i64(&[ids.len()], ids.clone())
                        .map_err(|e| failed("chosen", e.to_string()))?,
                    None => continue,
                },
                // From the end: virtual tokens may stand in front.
                contract::LOGIT_POSITIONS => ints(
                    &new.iter()
                        .map(|r| vec![(r.len() as i64 - 1 - width).max(-width)])
                        .collect::<Vec<_>>(),
                )?,
                name => match self.decoder.given.0.get(name) {
                    Some(value) => value.clone(),
                    None => match spec.empty_cache(new.len()) {
                        Some(empty) => empty,
                        None => continue,
                    },
                },
            };
            feeds.insert(&spec.name, value);
        }
        Ok(feeds)
    }
}

impl Decoder {
    fn logits(&self, results: &Outputs, rows: usize) -> Result<Logits> {
        let value = results
            .get(&self.logits)
            .ok_or_else(|| failed("logits", format!("no output `{}`", self.logits)))?;
        let dims = value.dims();
        let [batch, 1, vocab] = *dims else {
            return Err(failed(
                "logits",
                format!(
                    "`{}` has the shape {dims:?}; [batch, positions, vocabulary] is needed",
                    self.logits
                ),
            ));
        };
        if batch != rows {
            return Err(failed(
                "logits",
                format!("{batch} rows of logits for {rows} of tokens"),
            ));
        }
        let data = value
            .to_f32()
            .map_err(|e| failed("logits", e.to_string()))?;
        Ok(Logits { data, vocab })
    }
}

/// Rows as a tensor, filled up with zeros behind their end.
fn ints(rows: &[Vec<i64>]) -> Result<Value> {
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut data = vec![0; rows.len() * width];
    for (row, to) in rows.iter().zip(data.chunks_mut(width.max(1))) {
        to[..row.len()].copy_from_slice(row);
    }
    Value::from_i64(&[rows.len(), width], data).map_err(|e| failed("batch", e.to_string()))
}

/// A cache of no positions.
fn empty(parts: &[OwnPart], batch: usize) -> Result<Vec<Value>> {
    let make = |p: &OwnPart| {
        let dims = [batch, p.heads, 0, p.head];
        match Value::from_f32(&dims, Vec::new()) {
            Ok(Value::Float(x)) => Ok(Value::Float(x.tagged(p.dtype))),
            Ok(other) => Ok(other),
            Err(e) => Err(failed("cache", e.to_string())),
        }
    };
    parts.iter().map(make).collect()
}
