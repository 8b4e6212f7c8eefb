//! AdapterHub configurations: one type for each architecture (in [`methods`](super::methods)), unions of them, the dictionary form,
//! the configuration hash, and the string form `lora[r=8]|seq_bn`.

pub(crate) mod json;
pub(super) mod keys;
mod literal;

pub(crate) use keys::UnknownKeys;

use keys::unknown_key;

use super::methods::{Method, MethodConfig, Preset};
use crate::diag::{Diagnostic, nearest};
use crate::error::{Error, ErrorKind, Result};
use serde_json::{Map, Value};
use sha1::{Digest, Sha1};
use std::fmt::Write;
use std::sync::Arc;

/// The configuration of one adapter: one method, or several that are active together under one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Config(pub(crate) Members);

/// What a configuration consists of.
#[expect(clippy::large_enum_variant, reason = "there are a handful of them")]
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Members {
    /// One method.
    One(MethodConfig),
    /// `ConfigUnion`: all members work together, each at its own places.
    Union(Vec<MethodConfig>),
}

/// The identifiers of AdapterHub that older versions used, and what they mean now.
const ALIASES: [(&str, &str); 6] = [
    ("pfeiffer", "seq_bn"),
    ("houlsby", "double_seq_bn"),
    ("parallel", "par_bn"),
    ("scaled_parallel", "scaled_par_bn"),
    ("pfeiffer+inv", "seq_bn_inv"),
    ("houlsby+inv", "double_seq_bn_inv"),
];

/// Unions that have an identifier of their own, as configuration strings.
const NAMED_UNIONS: [(&str, &str); 2] = [
    ("mam", "prefix_tuning[bottleneck_size=800]|par_bn"),
    (
        "unipelt",
        "prefix_tuning[prefix_length=10, use_gating=True]|seq_bn[use_gating=True]|lora[r=8, alpha=2, use_gating=True]",
    ),
];

/// Keys that do not count for the hash at these values, so that hashes stay those of the library's second version.
fn hash_defaults() -> [(&'static str, Value); 14] {
    [
        ("phm_layer", Value::Bool(true)),
        ("phm_dim", 4.into()),
        ("factorized_phm_W", Value::Bool(true)),
        ("shared_W_phm", Value::Bool(false)),
        ("shared_phm_rule", Value::Bool(true)),
        ("factorized_phm_rule", Value::Bool(false)),
        ("phm_c_init", "normal".into()),
        ("phm_init_range", 0.0001.into()),
        ("learn_phm", Value::Bool(true)),
        ("hypercomplex_nonlinearity", "glorot-uniform".into()),
        ("phm_rank", 1.into()),
        ("phm_bias", Value::Bool(true)),
        ("init_weights", "bert".into()),
        ("scaling", 1.0.into()),
    ]
}

impl From<MethodConfig> for Config {
    fn from(method: MethodConfig) -> Self {
        Config(Members::One(method))
    }
}

impl Config {
    /// A method of another crate.
    pub fn custom(method: Arc<dyn Method>) -> Config {
        MethodConfig::Custom(method).into()
    }

    /// One method.
    pub(crate) fn one(method: impl Into<MethodConfig>) -> Config {
        Config(Members::One(method.into()))
    }

    /// Several methods that are active together.
    pub(crate) fn union(methods: Vec<MethodConfig>) -> Config {
        Config(Members::Union(methods))
    }

    /// The one method; `None` of a union.
    pub(crate) fn only(&self) -> Option<&MethodConfig> {
        match &self.0 {
            Members::One(m) => Some(m),
            Members::Union(_) => None,
        }
    }

    /// The architecture of fusions.
    pub(crate) const FUSION: &str = MethodConfig::FUSION;

    /// Reads the configuration of a fusion: `dynamic`, `static`, or one of them with fields, `static[query_before_ln=True]`.
    pub(crate) fn parse_fusion(text: &str) -> Result<Config> {
        let at = |e: Error| e.within(format!("`{text}`"));
        let (name, pairs) = fields(text.trim()).map_err(at)?;
        let Some(preset) = MethodConfig::fusions().find(|p| p.name == name) else {
            let all: Vec<&str> = MethodConfig::fusions().map(|p| p.name).collect();
            let found = format!("`{name}` is not a known configuration of a fusion");
            let found = Diagnostic::error("config-identifier", found);
            let help = format!(
                "known are {}, or a saved fusion's folder",
                all.join(" and ")
            );
            return Err(Error::new(ErrorKind::Method, found.help(help)));
        };
        let config = override_fields(&preset, pairs)
            .map(Config::from)
            .map_err(at)?;
        config.validate().map_err(at)?;
        Ok(config)
    }

    /// Reads the JSON text of a fusion's configuration, alone or as the `config` of its file.
    pub(crate) fn of_fusion(text: &str) -> Result<Config> {
        let value: Value = serde_json::from_str(text).map_err(|e| invalid(e.to_string()))?;
        let own = value.get("config").unwrap_or(&value);
        let mut dict = match own {
            Value::Object(map) => map.clone(),
            Value::String(name) => return Config::parse_fusion(name),
            _ => return Err(invalid("a fusion's configuration is a JSON object")),
        };
        dict.insert("architecture".into(), Self::FUSION.into());
        Config::from_dict(&Value::Object(dict), UnknownKeys::Refuse)
    }

    /// The adapters that it mixes, where it is a fusion.
    pub(crate) fn fuses(&self) -> Option<&[String]> {
        self.only().and_then(MethodConfig::fuses)
    }

    /// A fusion whose temperature training has brought to this.
    #[must_use]
    pub(crate) fn cooled(self, now: f32) -> Config {
        match self.0 {
            Members::One(m) => m.cooled(now).into(),
            Members::Union(_) => self,
        }
    }

    /// A fusion of these adapters, in a model with this dropout of attentions.
    #[must_use]
    pub(crate) fn fusing(self, adapters: Vec<String>, model_dropout: f64) -> Config {
        match self.0 {
            Members::One(m) => m.fusing(adapters, model_dropout).into(),
            Members::Union(_) => self,
        }
    }

    /// A fusion whose value matrix training pulls towards the identity, or does not.
    #[cfg(test)]
    pub(crate) fn regularised(self, regularization: bool) -> Config {
        match self.0 {
            Members::One(m) => m.regularised(regularization).into(),
            Members::Union(_) => self,
        }
    }

    /// The members: one, or those of the union.
    pub(crate) fn methods(&self) -> &[MethodConfig] {
        match &self.0 {
            Members::One(m) => std::slice::from_ref(m),
            Members::Union(members) => members,
        }
    }

    /// A warning for each member with fields that its type does not have.
    pub(crate) fn unknown(&self) -> Vec<Diagnostic> {
        let of = |m: &MethodConfig| {
            let extra = m.extra();
            let mut known = m.fields();
            known.retain(|f| !extra.contains(f));
            keys::kept(&extra, m.name(), &known)
        };
        self.methods().iter().filter_map(of).collect()
    }

    /// `architecture` as the library's summary shows it: `bottleneck` where the key is absent.
    pub fn architecture(&self) -> &'static str {
        match &self.0 {
            Members::One(m) => m.name(),
            Members::Union(_) => "union",
        }
    }

    /// What people call it: of each member the identifier that is nearest to it, `prefix_tuning + par_bn`, or its architecture.
    pub(crate) fn called(&self) -> String {
        let word = |m: &MethodConfig| {
            let own = m.to_dict();
            let same = MethodConfig::presets().map(|p| (p.name, (p.make)()));
            let same = same.filter(|(_, other)| other.name() == m.name());
            let differs = |(name, other): (&'static str, MethodConfig)| {
                let other = other.to_dict();
                let keys = own.as_object().into_iter().flatten();
                (keys.filter(|(k, v)| other[k] != **v).count(), name)
            };
            let nearest = same.map(differs).min_by_key(|(n, _)| *n);
            nearest.map_or(m.name(), |(_, name)| name)
        };
        self.methods()
            .iter()
            .map(word)
            .collect::<Vec<_>>()
            .join(" + ")
    }

    /// The dictionary that the library's `to_dict` gives, keys sorted.
    pub fn to_dict(&self) -> Value {
        match &self.0 {
            Members::One(m) => m.to_dict(),
            Members::Union(members) => {
                let mut map = Map::new();
                map.insert("architecture".into(), "union".into());
                let members = members.iter().map(|m| m.to_dict()).collect();
                map.insert("configs".into(), Value::Array(members));
                Value::Object(map)
            }
        }
    }

    /// The library's `get_adapter_config_hash`: SHA-1 of the items that are not at their defaults, 16 hex digits.
    pub(crate) fn hash(&self) -> String {
        self.hash_without(&[])
    }

    /// The same hash without some fields: the library's `ignore_params`. In a union, without those of every member.
    pub(crate) fn hash_without(&self, ignored: &[&str]) -> String {
        let items = match &self.0 {
            Members::One(m) => match m.to_dict() {
                Value::Object(map) => map,
                _ => Map::new(),
            },
            Members::Union(members) => union_items(members),
        };
        let mut items = minimized(items);
        let field = |key: &str| {
            let member = key.split_once('.');
            let in_member = member.filter(|(n, _)| n.bytes().all(|b| b.is_ascii_digit()));
            ignored.contains(&in_member.map_or(key, |(_, field)| field))
        };
        items.retain(|key, _| !field(key));
        for (key, default) in hash_defaults() {
            if items.get(key).is_some_and(|v| python_eq(v, &default)) {
                items.remove(key);
            }
        }
        let digest = Sha1::digest(json::compact(&Value::Object(items)).as_bytes());
        digest[..8].iter().fold(String::new(), |mut hex, b| {
            let _ = write!(hex, "{b:02x}");
            hex
        })
    }

    /// Reads the dictionary form.
    pub(crate) fn from_dict(value: &Value, unknown: UnknownKeys) -> Result<Config> {
        let map = match value {
            Value::Object(map) => map,
            // The library's first versions wrote an identifier.
            Value::String(text) => return Config::parse(text),
            _ => {
                return Err(invalid(
                    "a configuration is a JSON object, or an identifier",
                ));
            }
        };
        if let Some(Value::String(base)) = map.get("using") {
            return Config::over(base, map, unknown);
        }
        let members = if map.get("architecture").and_then(Value::as_str) == Some("union") {
            let Some(Value::Array(members)) = map.get("configs") else {
                return Err(invalid("a union has a list `configs`"));
            };
            let members = members
                .iter()
                .enumerate()
                .map(|(i, m)| {
                    MethodConfig::from_dict(m, unknown)
                        .map_err(|e| e.within(format!("configs[{i}]")))
                })
                .collect::<Result<Vec<_>>>()?;
            Members::Union(members)
        } else {
            Members::One(MethodConfig::from_dict(value, unknown)?)
        };
        let config = Config(members);
        config.validate()?;
        Ok(config)
    }

    /// What the library's first versions wrote: fields over those of an identifier.
    fn over(base: &str, own: &Map<String, Value>, unknown: UnknownKeys) -> Result<Config> {
        let Value::Object(mut fields) = Config::parse(base)?.to_dict() else {
            return Err(invalid("`using` names no configuration"));
        };
        let own = own.iter().filter(|(key, _)| *key != "using");
        fields.extend(own.map(|(key, value)| (key.clone(), value.clone())));
        Config::from_dict(&Value::Object(fields), unknown)
    }

    /// Reads the string form: `identifier`, `identifier[key=value, …]`, several joined by `|` to a union.
    ///
    /// ```
    /// use onnx_graft::adapters::Config;
    /// let config = Config::parse("lora[r=4, alpha=8]|par_bn")?;
    /// assert_eq!(config.architecture(), "union");
    /// # Ok::<(), onnx_graft::Error>(())
    /// ```
    pub fn parse(text: &str) -> Result<Config> {
        let mut members = Vec::new();
        for chunk in parts(text) {
            match parse_chunk(chunk.trim())
                .map_err(|e| e.within(format!("`{text}`")))?
                .0
            {
                Members::One(m) => members.push(m),
                Members::Union(more) => members.extend(more),
            }
        }
        let members = match (members.pop(), members.is_empty()) {
            (Some(only), true) => Members::One(only),
            (Some(last), false) => {
                members.push(last);
                Members::Union(members)
            }
            (None, _) => return Err(invalid("an empty configuration")),
        };
        let config = Config(members);
        config
            .validate()
            .map_err(|e| e.within(format!("`{text}`")))?;
        Ok(config)
    }

    /// Checks each member, and that a union's members do not meet at one place.
    pub(crate) fn validate(&self) -> Result<()> {
        let mut found = Vec::new();
        for m in self.methods() {
            found.extend(m.validate().err());
        }
        if let Members::Union(members) = &self.0 {
            found.extend(union_conflicts(members));
        }
        if found.is_empty() {
            Ok(())
        } else {
            Err(Error::many(ErrorKind::Method, found))
        }
    }
}

/// Every identifier that [`Config::parse_fusion`] knows: configurations for a `Fuse`.
pub(crate) fn fusion_identifiers() -> impl Iterator<Item = &'static str> {
    MethodConfig::fusions().map(|p| p.name)
}

/// The usual configurations of all methods, by their identifiers.
pub(crate) fn presets() -> impl Iterator<Item = (&'static str, Config)> {
    MethodConfig::presets().map(|p| (p.name, (p.make)().into()))
}

/// Every identifier that [`Config::parse`] knows, deprecated ones last.
pub(crate) fn identifiers() -> impl Iterator<Item = &'static str> {
    MethodConfig::presets()
        .map(|p| p.name)
        .chain(NAMED_UNIONS.iter().map(|u| u.0))
        .chain(ALIASES.iter().map(|a| a.0))
}

/// The Python literal that begins at a byte of a text, and where it ends; where it is wrong, and why.
pub(super) fn literal_at(text: &str, at: usize) -> Result<(Value, usize), (usize, String)> {
    literal::value_at(text, at).map_err(|e| (e.at, e.what))
}

/// What an older name or the name of a union stands for.
pub(crate) fn expansion(identifier: &str) -> Option<&'static str> {
    let mut all = ALIASES.iter().chain(&NAMED_UNIONS);
    all.find(|(name, _)| *name == identifier)
        .map(|(_, text)| *text)
}

/// The members of a configuration string, as they are written; of an identifier that stands for others, those.
pub(super) fn chunks(text: &str) -> Vec<&str> {
    let text = text.trim();
    match expansion(text) {
        Some(full) => chunks(full),
        None => parts(text).map(str::trim).collect(),
    }
}

/// What stands between the `|` of a configuration string. One inside a text in quotes is part of it.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut quote = None;
    text.split(move |c: char| match (quote, c) {
        (None, '\'' | '"') => {
            quote = Some(c);
            false
        }
        (Some(q), c) => {
            if q == c {
                quote = None;
            }
            false
        }
        (None, c) => c == '|',
    })
}

/// The name of a configuration, and the fields in brackets behind it.
fn fields(chunk: &str) -> Result<(&str, Map<String, Value>)> {
    let (name, body) = match chunk.split_once('[') {
        None => (chunk, ""),
        Some((name, rest)) => match rest.strip_suffix(']') {
            Some(body) => (name, body),
            None => return Err(invalid(format!("`{chunk}` does not end with `]`"))),
        },
    };
    let name = name.trim();
    let pairs = literal::pairs(body).map_err(|e| {
        let mark = format!("{}^", " ".repeat(body[..e.at].chars().count()));
        Error::new(
            ErrorKind::Method,
            Diagnostic::error("config-string", e.what)
                .note(body.to_owned())
                .note(mark)
                .help("fields are written `name=value`; values are numbers, 'text', True, False, None, [lists] and {'k': v}"),
        )
    })?;
    Ok((name, pairs))
}

fn parse_chunk(chunk: &str) -> Result<Config> {
    let (name, pairs) = fields(chunk)?;
    let name = ALIASES
        .iter()
        .find(|(old, _)| *old == name)
        .map_or(name, |(_, new)| *new);
    if let Some((_, text)) = NAMED_UNIONS.iter().find(|(n, _)| *n == name) {
        if !pairs.is_empty() {
            return Err(invalid(format!("`{name}` is a union and takes no fields"))
                .help_with(format!("write its members: {text}")));
        }
        return Config::parse(text);
    }
    let Some(preset) = MethodConfig::presets().find(|p| p.name == name) else {
        return Err(unknown_identifier(name));
    };
    override_fields(&preset, pairs).map(Config::from)
}

fn unknown_identifier(name: &str) -> Error {
    let mut d = Diagnostic::error(
        "config-identifier",
        format!("`{name}` is not a known adapter configuration"),
    );
    if let Some(near) = nearest(name, identifiers()) {
        d = d.note(format!("the nearest one is `{near}`"));
    }
    let all: Vec<&str> = MethodConfig::presets().map(|p| p.name).collect();
    Error::new(
        ErrorKind::Method,
        d.help(format!("known are {}, or a file", all.join(", "))),
    )
}

/// Sets fields one by one, so that an error names the one at fault.
fn override_fields(preset: &Preset, pairs: Map<String, Value>) -> Result<MethodConfig> {
    let method = (preset.make)();
    let mut dict = match method.to_dict() {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let known = method.fields();
    for (key, value) in pairs {
        if !known.contains(&key) {
            return Err(unknown_key(
                &key,
                preset.name,
                known.iter().map(String::as_str),
            ));
        }
        dict.insert(key.clone(), value);
        MethodConfig::from_dict(&Value::Object(dict.clone()), UnknownKeys::Refuse)
            .map_err(|e| e.within(format!("`{key}`")))?;
    }
    MethodConfig::from_dict(&Value::Object(dict), UnknownKeys::Refuse)
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Method, Diagnostic::error("config", message))
}

/// `to_dict` items of a union, as the hash sees them: `"0.alpha"`, …
fn union_items(members: &[MethodConfig]) -> Map<String, Value> {
    let mut out = Map::new();
    for (i, m) in members.iter().enumerate() {
        if let Value::Object(map) = m.to_dict() {
            out.extend(map.into_iter().map(|(k, v)| (format!("{i}.{k}"), v)));
        }
    }
    out
}

/// Drops what is false in Python's eyes, in dictionaries at every depth.
fn minimized(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .filter(|(_, v)| truthy(v))
        .map(|(k, v)| match v {
            Value::Object(inner) => (k, Value::Object(minimized(inner))),
            v => (k, v),
        })
        .collect()
}

fn truthy(v: &Value) -> bool {
    match v {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

/// Python's `==`: `1 == 1.0 == True`.
fn python_eq(a: &Value, b: &Value) -> bool {
    let number = |v: &Value| match v {
        Value::Bool(b) => Some(f64::from(u8::from(*b))),
        Value::Number(n) => n.as_f64(),
        _ => None,
    };
    match (number(a), number(b)) {
        (Some(x), Some(y)) => x == y,
        _ => a == b,
    }
}

/// The library refuses two members of one architecture, unless they are bottlenecks at different places or leave layers out.
fn union_conflicts(members: &[MethodConfig]) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (i, a) in members.iter().enumerate() {
        for b in &members[i + 1..] {
            if a.name() == b.name() && !a.disjoint(b) {
                let what = a.name();
                found.push(
                    Diagnostic::error("union", format!("two members of this union are {what}"))
                        .help("members of one architecture must be at different places, or leave layers out"),
                );
            }
        }
    }
    found
}

trait HelpWith {
    fn help_with(self, help: String) -> Error;
}

impl HelpWith for Error {
    fn help_with(self, help: String) -> Error {
        let findings = self
            .findings()
            .iter()
            .cloned()
            .map(|d| d.help(help.clone()));
        Error::many(self.kind(), findings.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(text: &str) -> String {
        Config::parse(text).unwrap().hash()
    }

    #[test]
    fn a_configuration_is_called_by_the_nearest_identifier() {
        for (spec, called) in [
            ("lora[r=2,alpha=3,dropout=0.1]", "lora"),
            ("dora[r=2]", "dora"),
            ("ia3", "ia3"),
            ("par_bn[reduction_factor=4]", "par_bn"),
            ("mam", "prefix_tuning + par_bn"),
        ] {
            let config: Config = Config::parse(spec).unwrap();
            assert_eq!(config.called(), called, "{spec}");
        }
    }

    #[test]
    fn configurations_of_the_librarys_first_versions_are_read() {
        let read = |text: &str| {
            let value: Value = serde_json::from_str(text).unwrap();
            Config::from_dict(&value, UnknownKeys::Keep)
        };
        for name in ["pfeiffer", "houlsby", "pfeiffer+inv", "parallel", "lora"] {
            let named = read(&format!("{name:?}")).unwrap();
            assert_eq!(named, Config::parse(name).unwrap(), "{name}");
        }
        let over = read(r#"{"using": "houlsby", "reduction_factor": 4}"#).unwrap();
        let same = Config::parse("double_seq_bn[reduction_factor=4]").unwrap();
        assert_eq!(over, same);
        assert!(read(r#""pfeifer""#).is_err());
        assert!(read("7").is_err());
    }

    #[test]
    fn fields_that_are_not_known_are_named() {
        let unknown = |extra: &str| {
            let text = format!(r#"{{"architecture": "lora", "r": 4{extra}}}"#);
            let value: Value = serde_json::from_str(&text).unwrap();
            let config = Config::from_dict(&value, UnknownKeys::Keep).unwrap();
            config.unknown().first().map(ToString::to_string)
        };
        assert_eq!(unknown(""), None);
        assert_eq!(unknown(r#", "attention_type": "x""#), None);
        let said = unknown(r#", "alpah": 4, "new_in_2": true"#).unwrap();
        assert!(
            said.contains("`alpah`, `new_in_2`, which `lora` does not know")
                && said.contains("`alpah` is near to `alpha`"),
            "{said}"
        );
        for name in identifiers() {
            assert!(Config::parse(name).unwrap().unknown().is_empty(), "{name}");
        }
    }

    /// Values that the library's own function gives.
    #[test]
    fn hashes_are_the_librarys() {
        let listed = [
            ("seq_bn", "9076f36a74755ac4"),
            ("double_seq_bn", "b1017368d7a97b11"),
            ("par_bn", "211b85d66ae909db"),
            ("seq_bn_inv", "9ed5b5a29de19b71"),
            ("double_seq_bn_inv", "bcdbfdc759d7abf1"),
            ("adapterplus", "fd517df084609354"),
            ("compacter++", "cfa13994accfb5f4"),
            ("compacter", "934efc0c1022a56f"),
            ("lora", "625403edad0bf919"),
            ("ia3", "1ebb5af107e576c0"),
            ("vera", "2be4e8738bf1b672"),
            ("dora", "045575c920686296"),
            ("dvora", "54bac59257d09af0"),
            ("mtl_lora", "b37172df6259ff89"),
            ("loreft", "141e29e6c21f7261"),
            ("noreft", "df69f184fdb72464"),
            ("direft", "df69f184fdb72464"),
            ("prefix_tuning", "648bf22f5afeaaa6"),
            ("prompt_tuning", "8e35d5049bb12364"),
            ("mam", "97453c0dbc2dbc97"),
            ("unipelt", "67ac4937c601ad56"),
        ];
        for (text, expected) in listed {
            assert_eq!(hash(text), expected, "{text}");
        }
    }

    #[test]
    fn every_identifier_round_trips_through_its_dictionary() {
        for name in identifiers() {
            let config = Config::parse(name).unwrap();
            let again = Config::from_dict(&config.to_dict(), UnknownKeys::Refuse).unwrap();
            assert_eq!(config, again, "{name}");
            assert_eq!(config.hash(), again.hash());
        }
    }

    #[test]
    fn an_unknown_name_gets_the_nearest() {
        let text = |t: &str| Config::parse(t).unwrap_err().to_string();
        assert!(text("lorra").contains("nearest one is `lora`"));
        assert!(text("lora[rank=4]").contains("`lora` has no field `rank`"));
        assert!(text("lora[alfa=4]").contains("nearest one is `alpha`"));
        assert!(text("lora[r='x']").contains("in `lora[r='x']`, `r`"));
        assert!(text("lora[r=4").contains("does not end with `]`"));
        assert!(text("lora|ia3").contains("two members of this union are lora"));
    }

    #[test]
    fn integers_and_floats_stay_apart() {
        assert_ne!(
            hash("seq_bn[reduction_factor=16]"),
            hash("seq_bn[reduction_factor=16.0]")
        );
        assert_eq!(hash("pfeiffer"), hash("seq_bn"));
    }
}
