//! A tokenizer with what stands beside it: special tokens by role, and the chat template.

use super::chat::{ChatOptions, ChatTemplate, chosen};
use super::fields;
use super::growth::Growth;
use super::settings::{self, Ends, Files, MORE, ROLES, content};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::fence;
use indexmap::IndexMap;
use serde_json::{Map, Value};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tokenizers::{ModelWrapper, PaddingDirection};

/// The file of a chat template beside a tokenizer, or in the folder of an adapter that was trained with it.
pub(crate) const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// Whether a chat template is given as a file: it names one, and a template has braces.
pub(crate) fn is_template_file(template: &str) -> bool {
    !template.contains(['{', '\n'])
}

/// The source of a template that is given as text or as a file.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn template_source(given: &str) -> Result<String> {
    if !is_template_file(given) {
        return Ok(given.to_owned());
    }
    let path = Path::new(given);
    disk::text(path).map_err(|e| Error::io(path, "cannot read the chat template", e))
}

/// Share of unknown tokens above which a tokenizer is suspected to be another model's.
pub(crate) const SUSPECT: f64 = 0.1;

/// Turns text into token ids and back.
pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    growth: Growth,
    path: PathBuf,
    special: Map<String, Value>,
    pad: Option<i64>,
    eos: Option<i64>,
    bos: Option<i64>,
    unknown: Option<i64>,
    max_length: Option<usize>,
    chat: IndexMap<String, String>,
    pads_left: Option<bool>,
    target: Option<Ends>,
    fill: Option<String>,
}

/// One token of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// Its id.
    pub id: i64,
    /// Its segment, where the tokenizer tells the texts of a pair apart.
    pub type_id: i64,
    /// Which text it comes from: 0, or 1 for the second of a pair; none for a token that the post-processor added.
    pub text: Option<u8>,
    /// The bytes of the text it stands for.
    pub span: Range<usize>,
    /// The word it is of, counted in its text.
    pub word: Option<usize>,
}

/// The tokens of an encoding.
fn listed(encoding: &tokenizers::Encoding) -> Vec<Token> {
    let texts = encoding.get_sequence_ids();
    let (ids, types) = (encoding.get_ids(), encoding.get_type_ids());
    let (added, spans) = (encoding.get_special_tokens_mask(), encoding.get_offsets());
    let words = encoding.get_word_ids();
    let token = |i: usize| Token {
        id: i64::from(ids[i]),
        type_id: i64::from(types[i]),
        text: (added[i] == 0).then(|| u8::from(texts[i] == Some(1))),
        span: spans[i].0..spans[i].1,
        word: words[i].map(|w| w as usize),
    };
    (0..ids.len()).map(token).collect()
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// From a `tokenizer.json`, or the folder that holds one. A `tokenizer_config.json` beside it names the special tokens and may hold
    /// a chat template, as may `chat_template.jinja`. A truncation or padding that the file itself sets is not in force.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let path = if path.is_dir() {
            path.join("tokenizer.json")
        } else {
            path.to_path_buf()
        };
        let read = fence::guarded(|| Self::read(path.clone()));
        read.unwrap_or_else(|f| Err(failed(&path, format!("not a readable tokenizer.json: {f}"))))
    }

    fn read(path: PathBuf) -> Result<Self> {
        let bytes =
            disk::bytes(&path).map_err(|e| Error::io(&path, "cannot read the tokenizer", e))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|e| failed(&path, format!("not a readable tokenizer.json: {e}")))?;
        let beside = |name: &str| json(&path.with_file_name(name));
        let files = Files {
            config: beside("tokenizer_config.json")?,
            special: beside("special_tokens_map.json")?,
            added: beside("added_tokens.json")?,
            model: beside("config.json")?,
        };
        let wrong = fields::wrong(&files);
        if !wrong.is_empty() {
            let one = |(file, message): (&str, String)| {
                let at = path.with_file_name(file).display().to_string();
                Diagnostic::error("tokenizer", message).at(at)
            };
            let findings = wrong.into_iter().map(one).collect();
            return Err(Error::many(ErrorKind::Train, findings));
        }
        let settings = files.settings(&inner).map_err(|e| unsupported(&path, e))?;
        let padding = inner.get_padding().map(|p| i64::from(p.pad_id));
        let padded_left = inner
            .get_padding()
            .map(|p| matches!(p.direction, PaddingDirection::Left));
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| failed(&path, e.to_string()))?;
        let target = settings::apply(&mut inner, &files, &settings);
        let target = target.map_err(|e| failed(&path, e))?;
        let config = &settings.config;
        let mut special = Map::new();
        for role in ROLES {
            if let Some(token) = config.get(role).and_then(content) {
                special.insert(role.to_owned(), Value::from(token));
            }
        }
        if let Some(Value::Array(list)) = config.get(MORE) {
            let tokens: Vec<&str> = list.iter().filter_map(content).collect();
            special.insert(MORE.to_owned(), Value::from(tokens));
        }
        for (role, token) in settings.extra() {
            special.insert(role.clone(), Value::from(token));
        }
        let id = |role: &str| {
            let token = special.get(role)?.as_str()?;
            inner.token_to_id(token).map(i64::from)
        };
        let (pad, eos) = (id("pad_token").or(padding), id("eos_token"));
        let bos = id("bos_token");
        // What the configuration names may be another role's token, and be made by no text.
        let token = |text: &str| inner.token_to_id(text).map(i64::from);
        let unknown = match inner.get_model() {
            ModelWrapper::BPE(m) => m.get_unk_token().as_deref().and_then(token),
            ModelWrapper::WordPiece(m) => token(&m.unk_token),
            ModelWrapper::WordLevel(m) => token(&m.unk_token),
            ModelWrapper::Unigram(_) => id("unk_token"),
        };
        // Hugging Face writes 1e30 where there is no limit.
        let limit = config.get("model_max_length").and_then(Value::as_f64);
        let max_length = limit.filter(|n| (1.0..1e9).contains(n)).map(|n| n as usize);
        let chat = chat_sources(&path, config)?;
        let pads_left = settings.pads_left(padded_left);
        Ok(Tokenizer {
            growth: Growth::of(&inner),
            inner,
            path,
            special,
            pad,
            eos,
            bos,
            unknown,
            max_length,
            chat,
            pads_left,
            target,
            fill: settings.fill(),
        })
    }

    /// Number of ids that stand for what the vocabulary does not have.
    pub(crate) fn unknown(&self, ids: &[i64]) -> u64 {
        ids.iter().filter(|id| self.unknown == Some(**id)).count() as u64
    }

    /// Number of tokens, those that were added included.
    pub(crate) fn size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The ids of a text; `special` adds the special tokens of the tokenizer's post-processor.
    pub(crate) fn encode(&self, text: &str, special: bool) -> Result<Vec<i64>> {
        self.check_fill(text)?;
        let encoding = self.fenced(&[text], || self.inner.encode_fast(text, special))?;
        Ok(encoding.get_ids().iter().map(|&i| i64::from(i)).collect())
    }

    /// What the tokenizer makes of texts.
    fn fenced<T>(&self, texts: &[&str], work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
        let fail = |message: String| failed(&self.path, message);
        let checked = || texts.iter().try_for_each(|text| self.growth.check(text));
        let work = || checked().map(|()| work());
        let done =
            fence::guarded(work).map_err(|f| fail(format!("a text cannot be tokenized: {f}")))?;
        done.map_err(fail)?.map_err(|e| fail(e.to_string()))
    }

    /// Refuses a text that the class would take apart, as it is to be filled in at a token.
    fn check_fill(&self, text: &str) -> Result<()> {
        let Some(fill) = self.fill.as_deref().filter(|fill| text.contains(fill)) else {
            return Ok(());
        };
        let message =
            format!("the text has `{fill}`, a gap that is to be filled in, which is not supported");
        let d = Diagnostic::error("tokenizer", message)
            .at(self.path.display().to_string())
            .help("give rows of `input_ids`, with the tokens in front of prefix, suffix and middle; where the text means the word itself, set `fill_token` to null in tokenizer_config.json");
        Err(Error::new(ErrorKind::Train, d))
    }

    /// The tokens of a text, or of a pair of texts, with what each stands for.
    pub(crate) fn tokens(
        &self,
        text: &str,
        pair: Option<&str>,
        special: bool,
    ) -> Result<Vec<Token>> {
        if pair.is_none() {
            self.check_fill(text)?;
        }
        let texts: Vec<&str> = [Some(text), pair].into_iter().flatten().collect();
        let encoding = self.fenced(&texts, || match pair {
            Some(pair) => self.inner.encode((text, pair), special),
            None => self.inner.encode(text, special),
        })?;
        Ok(listed(&encoding))
    }

    /// The tokens of a text that is to be said in the target language, where the tokenizer tells languages apart.
    ///
    /// # Errors
    /// A tokenizer that does, and does not say which it is.
    pub(crate) fn target(&self, text: &str, special: bool) -> Result<Vec<Token>> {
        let Some([front, back]) = self.target.as_ref().filter(|_| special) else {
            return self.tokens(text, None, special);
        };
        if back.is_empty() {
            let d = Diagnostic::error("tokenizer", "the target's language is not said")
                .at(self.path.display().to_string())
                .help("set `tgt_lang` in tokenizer_config.json");
            return Err(Error::new(ErrorKind::Train, d));
        }
        let added = |ids: &[u32]| {
            let one = |&id: &u32| Token {
                id: i64::from(id),
                type_id: 0,
                text: None,
                span: 0..0,
                word: None,
            };
            ids.iter().map(one).collect::<Vec<_>>()
        };
        let said = self.tokens(text, None, false)?;
        Ok([added(front), said, added(back)].concat())
    }

    /// Tokens of a text that is cut into words already. Each says which word it is of.
    ///
    /// # Errors
    /// Words that cannot be tokenized.
    pub(crate) fn words(&self, words: &[String], special: bool) -> Result<Vec<Token>> {
        let texts: Vec<&str> = words.iter().map(String::as_str).collect();
        let encoding = self.fenced(&texts, || self.inner.encode(words, special))?;
        Ok(listed(&encoding))
    }

    /// Ids of the tokens that are no text.
    pub(crate) fn special_ids(&self) -> Vec<i64> {
        let added = self.inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, t)| t.special);
        let mut ids: Vec<i64> = special.map(|(id, _)| i64::from(*id)).collect();
        ids.sort_unstable();
        ids
    }

    /// The id that stands for a masked token, if one is declared.
    pub(crate) fn mask_id(&self) -> Option<i64> {
        let text = self.special.get("mask_token")?;
        self.token_id(text.as_str()?)
    }

    /// The text of ids.
    pub(crate) fn decode(&self, ids: &[i64], skip_special: bool) -> Result<String> {
        let ids: std::result::Result<Vec<u32>, _> = ids.iter().map(|&i| u32::try_from(i)).collect();
        let ids = ids.map_err(|_| failed(&self.path, "a negative token id".to_owned()))?;
        let length = |&id: &u32| self.inner.id_to_token(id).map_or(0, |t| t.len());
        let grown = self.growth.check_decoded(|| ids.iter().map(length).sum());
        grown.map_err(|e| failed(&self.path, e))?;
        let done = fence::guarded(|| self.inner.decode(&ids, skip_special));
        let done =
            done.map_err(|f| failed(&self.path, format!("tokens cannot be decoded: {f}")))?;
        done.map_err(|e| failed(&self.path, e.to_string()))
    }

    /// The text of a conversation in the tokenizer's own form; `add_generation_prompt` ends it where the assistant's turn begins.
    ///
    /// # Errors
    /// A tokenizer without a chat template, and what the template says about the messages.
    pub(crate) fn chat(
        &self,
        messages: &[Value],
        kwargs: &Map<String, Value>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let options = ChatOptions {
            add_generation_prompt,
            kwargs: Some(kwargs),
            ..ChatOptions::default()
        };
        let template = match chosen(kwargs)? {
            Some(given) => self.template(given)?,
            None => self.chat_template()?,
        };
        let (template, _) = template.dated(None)?;
        Ok(template.render(messages, options)?.text)
    }

    /// Takes the chat template of an adapter folder, if one lies there, in place of its own: the adapter was trained with it. Whether
    /// there was one.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn adopt_template(&mut self, folder: &Path) -> Result<bool> {
        if !folder.join(CHAT_TEMPLATE).exists() {
            return Ok(false);
        }
        self.chat = chat_sources(&folder.join("tokenizer.json"), &Map::new())?;
        Ok(true)
    }

    /// Takes a chat template in place of its own: a text, the name of one of its own, or a file.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn set_template(&mut self, given: &str) -> Result<()> {
        let source = match self.chat.get(given) {
            Some(named) => named.clone(),
            None => template_source(given)?,
        };
        self.chat = IndexMap::from([("default".to_owned(), source)]);
        Ok(())
    }

    /// The chat template, compiled.
    ///
    /// # Errors
    /// A tokenizer without one, and one that does not parse.
    pub(crate) fn chat_template(&self) -> Result<ChatTemplate> {
        let at = |e: Error| {
            let file = self.path.with_file_name("the chat template");
            e.within(file.display().to_string())
        };
        let named = |name: &str| {
            let source = self.chat.get(name);
            source.map(|s| ChatTemplate::new(s, self.special.clone()).map_err(at))
        };
        let tools = named("tool_use").transpose()?;
        match (named("default").transpose()?, tools) {
            (Some(usual), tools) => Ok(usual.with_tools(tools)),
            (None, Some(tools)) => Ok(tools.only_with_tools()),
            (None, None) => Err(self.no_template()),
        }
    }

    /// The tokenizer's chat template of this name, or this text as a template.
    ///
    /// # Errors
    /// One that does not parse, and a name that the tokenizer does not have.
    pub(crate) fn template(&self, given: &str) -> Result<ChatTemplate> {
        let named = self.chat.get(given);
        if named.is_none() && is_template_file(given) {
            let names: Vec<&str> = self.chat.keys().map(String::as_str).collect();
            let d = Diagnostic::error(
                "chat-template",
                format!("the tokenizer has no chat template `{given}`"),
            );
            let help = match names.as_slice() {
                [] => "it has none at all; give a file or a text by `chat_template`".to_owned(),
                names => format!("its templates are {}", names.join(", ")),
            };
            return Err(Error::new(ErrorKind::Train, d.help(help)));
        }
        let source = named.map_or(given, String::as_str);
        ChatTemplate::new(source, self.special.clone())
    }

    /// The chat template of this name, where the tokenizer has several.
    ///
    /// # Errors
    /// One that does not parse.
    pub(crate) fn named_template(&self, name: &str) -> Result<Option<ChatTemplate>> {
        let source = self.chat.get(name);
        source
            .map(|s| ChatTemplate::new(s, self.special.clone()))
            .transpose()
    }

    fn no_template(&self) -> Error {
        let d = Diagnostic::error("chat-template", "the tokenizer has no chat template")
            .at(self.path.display().to_string());
        let help = if self.chat.is_empty() {
            "put the model's tokenizer_config.json or chat_template.jinja beside tokenizer.json, or give `chat_template`".to_owned()
        } else {
            let names: Vec<&str> = self.chat.keys().map(String::as_str).collect();
            format!(
                "none of its templates is the default one; give `chat_template` one of their names: {}",
                names.join(", ")
            )
        };
        Error::new(ErrorKind::Train, d.help(help))
    }

    /// Where the configuration says that padding goes: to the left, or not.
    pub(crate) fn pads_left(&self) -> Option<bool> {
        self.pads_left
    }

    /// Whether there is a chat template.
    pub(crate) fn has_chat_template(&self) -> bool {
        !self.chat.is_empty()
    }

    /// The special tokens by role, as text.
    pub(crate) fn special_tokens(&self) -> &Map<String, Value> {
        &self.special
    }

    /// The id of a token, if the vocabulary has it.
    pub(crate) fn token_id(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// The id of the padding token, if one is declared.
    pub(crate) fn pad_id(&self) -> Option<i64> {
        self.pad
    }

    /// The id that ends a sequence, if one is declared.
    pub(crate) fn eos_id(&self) -> Option<i64> {
        self.eos
    }

    /// The id that begins a sequence, if one is declared.
    pub(crate) fn bos_id(&self) -> Option<i64> {
        self.bos
    }

    /// The longest sequence the model was made for, where the configuration says so.
    pub(crate) fn max_length(&self) -> Option<usize> {
        self.max_length
    }
}

/// The chat templates beside a tokenizer by their names: files of their own first, as in Transformers.
fn chat_sources(path: &Path, config: &Map<String, Value>) -> Result<IndexMap<String, String>> {
    let read = |file: &Path| {
        let text = disk::text(file);
        text.map_err(|e| Error::io(file, "cannot read the chat template", e))
    };
    let usual = "default".to_owned();
    let file = path.with_file_name(CHAT_TEMPLATE);
    let more = path.with_file_name("additional_chat_templates");
    if file.exists() || more.is_dir() {
        let mut out = IndexMap::new();
        if file.exists() {
            out.insert(usual, read(&file)?);
        }
        let listed = std::fs::read_dir(&more).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = listed.map(|f| f.path()).collect();
        files.sort();
        for file in files {
            if let (Some("jinja"), Some(name)) = (
                file.extension().and_then(|e| e.to_str()),
                file.file_stem().and_then(|n| n.to_str()),
            ) {
                out.insert(name.to_owned(), read(&file)?);
            }
        }
        return Ok(out);
    }
    let own = json(&path.with_file_name("chat_template.json"))?;
    let source = [own.get("chat_template"), config.get("chat_template")];
    Ok(match source.into_iter().flatten().next() {
        // Several templates by name.
        Some(Value::Array(list)) => {
            let text = |t: &Value, key: &str| t.get(key)?.as_str().map(str::to_owned);
            let both = |t: &Value| Some((text(t, "name")?, text(t, "template")?));
            list.iter().filter_map(both).collect()
        }
        Some(Value::Object(named)) => {
            let text = |(k, v): (&String, &Value)| Some((k.clone(), v.as_str()?.to_owned()));
            named.iter().filter_map(text).collect()
        }
        Some(other) => {
            let text = other.as_str().map(|t| (usual, t.to_owned()));
            text.into_iter().collect()
        }
        None => IndexMap::new(),
    })
}

fn json(path: &Path) -> Result<Value> {
    if !path.exists() {
        return Ok(Value::Null);
    }
    let text = disk::text(path)
        .map_err(|e| Error::io(path, "cannot read the tokenizer's configuration", e))?;
    serde_json::from_str(&text).map_err(|e| failed(path, e.to_string()))
}

fn unsupported(path: &Path, message: String) -> Error {
    let help = "if tokenizer.json is all there is to it, write \"tokenizer_class\": \"PreTrainedTokenizerFast\" in tokenizer_config.json";
    let d = Diagnostic::error("tokenizer-class", message).at(path.display().to_string());
    Error::new(ErrorKind::Train, d.help(help))
}

fn failed(path: &Path, message: String) -> Error {
    Error::new(
        ErrorKind::Train,
        Diagnostic::error("tokenizer", message).at(path.display().to_string()),
    )
}
