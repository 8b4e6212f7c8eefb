//! Where a method attaches and which parameters it has there: asked of the method itself, in a small decoder.

use crate::adapters::methods::MethodConfig;
use crate::adapters::naming::{Route, Sublayer, scope};
use crate::adapters::param::ParamSpec;
use crate::adapters::place::{At, Place, Surroundings};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::text;
use crate::select::{Interface, Selection};
use serde_json::{Value, json};

/// The model that is asked.
pub(super) struct Example {
    model: Verified,
    selection: Selection,
}

/// A place where a method attaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlaceDoc {
    /// AdapterHub's location key.
    pub location: &'static str,
    /// What is there.
    pub what: String,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParamDoc {
    /// Its key in a file: `I` stands for the layer, `NAME` for the adapter.
    pub key: String,
    /// Its shape.
    pub shape: Vec<String>,
    /// Its initial value.
    pub initial: String,
    /// `trained`, `frozen`, or `not read`.
    pub role: &'static str,
    /// Who else has it.
    pub shared: &'static str,
}

impl ParamDoc {
    fn new(scope: &str, spec: &ParamSpec, shared: &'static str) -> Self {
        let scope = spec.scopes.first().map_or(scope, |s| s);
        ParamDoc {
            key: any_layer(&format!("{scope}.{}", spec.suffix)),
            shape: spec.shape.iter().map(ToString::to_string).collect(),
            initial: spec.init.to_string(),
            role: match (spec.trainable, spec.idle) {
                (true, _) => "trained",
                (false, true) => "not read",
                (false, false) => "frozen",
            },
            shared,
        }
    }

    /// `[r, in]`.
    pub(crate) fn dims(&self) -> String {
        format!("[{}]", self.shape.join(", "))
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "key": self.key, "shape": self.shape, "initial": self.initial, "trained": self.role == "trained",
            "role": self.role, "shared": self.shared,
        })
    }
}

/// What a place is, for people; paths with `I` for the layer.
fn what(place: &Place<'_>) -> String {
    match &place.at {
        At::Linear(site) => format!("the linear {}", any_layer(&site.path)),
        At::Sublayer(site) => {
            let which = match site.which {
                Sublayer::Attention => "the attention's output",
                Sublayer::Cross => "the cross-attention's output",
                Sublayer::Output => "the feed-forward block's output",
            };
            match site.stream {
                Some(_) => format!("{which}, behind the residual"),
                None => format!("{which}, before the residual is added"),
            }
        }
        At::Layer(_) => "the output of a layer".into(),
        At::Embeddings(_) => "the output of the embeddings".into(),
        At::Input(site) => format!("the input of {}", any_layer(&site.path)),
        At::Table(site) => format!("the table {}", site.path),
        At::Parameter(site) => format!("{}.{}", any_layer(&site.module), site.name),
        At::HeadInput(_) => "what the language model's head reads, inverted".into(),
        At::Sequence(_) => "the embedded sequence, which grows".into(),
        At::Mask(_) => "the attention mask, which grows".into(),
        At::Attention(_) => "keys and values of an attention".into(),
    }
}

fn any_layer(path: &str) -> String {
    path.replace("layers.0.", "layers.I.")
}

impl Example {
    pub(super) fn new() -> Result<Self> {
        let model = text::parse(include_str!("decoder.txt"))?;
        let model = Verified::check(model).map_err(Error::from)?;
        let selection = Interface::resolve("llama")?.select(&model)?;
        Ok(Example { model, selection })
    }

    fn places<'s>(
        &'s self,
        method: &MethodConfig,
        name: &str,
        fused: &[(String, Place<'s>)],
    ) -> std::result::Result<Vec<Place<'s>>, Diagnostic> {
        method.places(&Surroundings {
            selection: &self.selection,
            graph: &self.model.model().graph,
            route: &Route::Plugin,
            name,
            has: None,
            foreign: false,
            by_columns: true,
            known: &self.model,
            fused,
        })
    }

    /// Places and parameters of a method.
    pub(super) fn ask(&self, method: &MethodConfig) -> Result<(Vec<PlaceDoc>, Vec<ParamDoc>)> {
        const NAME: &str = "NAME";
        let wrong = |d| Error::new(ErrorKind::Method, d);
        // What mixes others stands where those do: the first method that can be mixed.
        let mut others = MethodConfig::presets().map(|p| (p.make)());
        let mixed = others.find(|m| method.fuses().is_some() && m.fusible().is_some());
        let fused = match mixed {
            Some(other) => self.places(&other, NAME, &[]).map_err(wrong)?,
            None => Vec::new(),
        };
        let fused: Vec<_> = fused.into_iter().map(|p| (NAME.to_owned(), p)).collect();
        let places = self.places(method, NAME, &fused).map_err(wrong)?;
        let mut at: Vec<PlaceDoc> = Vec::new();
        let mut params: Vec<ParamDoc> = Vec::new();
        let mut add = |doc: ParamDoc| {
            if params.iter().all(|p| p.key != doc.key) {
                params.push(doc);
            }
        };
        for place in places.iter().filter(|p| p.layer.is_none_or(|l| l == 0)) {
            let doc = PlaceDoc {
                location: place.location,
                what: what(place),
            };
            if !at.contains(&doc) {
                at.push(doc);
            }
            for spec in method.params(place).map_err(wrong)? {
                let shared = if place.detail.pool().is_some() && !spec.scopes.is_empty() {
                    "all layers"
                } else if method.task_shared().contains(&&*spec.suffix) {
                    "the tasks of a MultiTask"
                } else {
                    ""
                };
                add(ParamDoc::new(&place.scope, &spec, shared));
            }
        }
        let elsewhere = method.elsewhere().into_iter();
        at.extend(elsewhere.map(|(location, what)| PlaceDoc {
            location,
            what: what.to_owned(),
        }));
        let base = &self.selection.base_prefix;
        let shared = scope(&format!("{base}shared_parameters"), "", NAME);
        for spec in method.shared(&places).map_err(wrong)? {
            add(ParamDoc::new(&shared, &spec, "all places"));
        }
        Ok((at, params))
    }
}
