//! Pictures of models: the modules of a graph in nested boxes, equal ones folded, adapters marked.
//!
//! A [`Picture`] is made once of a verified model, in time linear in the size of the graph: which modules there are ([`scene`]), which of
//! them are drawn and which stand for others ([`tree`]), and what flows between them ([`wires`]). Drawing it asks the graph nothing more:
//! [`layout`] places the boxes, [`svg`], [`html`] and [`dot`] write them. The same model gives the same bytes.
//!
//! All names are strangers' texts: they are cut and escaped in [`text`], and a picture is bounded whatever a file holds.

mod dot;
mod html;
mod layout;
mod parts;
mod ports;
mod route;
mod scene;
mod sites;
mod svg;
mod text;
mod tree;
mod weights;
mod wires;

use crate::adapters::AdapterStore;
use crate::adapters::manifest::Manifest;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::contract::EXCHANGED;
use crate::select::Selection;
use serde::Serialize;

/// A model by module: which modules it has, what flows between them, and which adapters are in it and where.
///
/// Equal layers are one box that says how many it stands for. Adapters have a colour and their name, their parameters with shapes, and the
/// word `trains` where training changes them.
///
/// ```
/// use onnx_graft::{Attach, Picture};
///
/// let adapted = Attach::open("fixtures/qwen3/model.onnx")?.adapter("lora[r=4]")?.run()?;
/// let picture = Picture::of(&adapted.model, Some(&adapted.selection))?;
/// assert!(picture.svg().contains("layers 0–1"));
/// assert!(picture.dot().starts_with("digraph"));
/// assert!(picture.html().contains("<svg"));
/// # Ok::<(), onnx_graft::Error>(())
/// ```
#[derive(Clone, Debug, Serialize)]
pub struct Picture {
    pub(crate) title: String,
    /// Number of nodes of the graph.
    pub(crate) nodes: usize,
    /// Number of the base model's parameters: what is in the boxes together, adapters apart.
    pub(crate) parameters: u64,
    pub(crate) adapters: Vec<AdapterRow>,
    pub(crate) model: Block,
    /// What the picture leaves out, in words.
    pub(crate) left_out: Vec<String>,
}

/// An adapter of the model, or a head that came with one.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AdapterRow {
    pub name: String,
    /// Name of its architecture.
    pub kind: String,
    /// Number of its parameters.
    pub parameters: u64,
    /// Number of those that training changes.
    pub trained: u64,
    /// Number of places where it stands.
    pub places: usize,
    /// Whether the graph has it: an adapter that is not active is in the manifest only.
    pub active: bool,
}

impl AdapterRow {
    /// Whether training changes it, in a word.
    pub(crate) fn state(&self) -> &'static str {
        match (self.active, self.trained) {
            (true, 0) if self.name == EXCHANGED => "comes with each run",
            (false, _) => "not active",
            (true, 0) => "frozen",
            (true, _) => "trains",
        }
    }
}

/// A module, or several equal ones in one box.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Block {
    /// Its name in the module around it: `q_proj`, `layers 0–27`.
    pub name: String,
    /// Its path; the first one's, of several.
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Fields of the interface that name it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// How many equal modules this is.
    pub count: usize,
    /// Number of nodes, of all of them.
    pub nodes: usize,
    /// Number of parameters, of all of them, adapters apart. A parameter that several modules read counts where it is read first.
    pub parameters: u64,
    /// Number of parameters that one of them reads.
    pub each: u64,
    /// What it does to the width, or the shape of its largest weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    /// How its weights are stored, where that is no `f32`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored: Option<String>,
    pub parts: Vec<Part>,
    pub edges: Vec<Edge>,
}

/// Something in a module.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Part {
    /// A module in it.
    Module(Block),
    /// Operators that belong to the module itself.
    Operators(Operators),
    /// An adapter.
    Adapter(Place),
    /// A graph input, or several of one form.
    Input(Port),
    /// A graph output, or several of one form.
    Output(Port),
}

/// Operators between modules.
#[derive(Clone, Debug, Default, Serialize)]
#[expect(clippy::struct_field_names, reason = "the document's own words")]
pub(crate) struct Operators {
    pub label: String,
    /// The operators, those that occur most often first.
    pub operators: Vec<(String, usize)>,
    pub nodes: usize,
    pub parameters: u64,
    /// Whether no hidden state passes: masks, positions.
    pub aside: bool,
}

/// An adapter at one place.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Place {
    /// Its row in the picture's list.
    pub adapter: usize,
    pub name: String,
    /// Its parameters here with their shapes.
    pub tensors: Vec<(String, String)>,
    pub parameters: u64,
    /// Whether training changes one of them.
    pub trains: bool,
    pub nodes: usize,
}

/// A graph input or output.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Port {
    pub name: String,
    /// Type and shape.
    pub ty: String,
    pub count: usize,
    /// Whether it is no data of its own: masks, positions, caches, parameters of adapters that come in.
    pub aside: bool,
}

/// What flows between two parts of a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Edge {
    pub from: End,
    pub to: End,
    /// Shape of the first value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<String>,
    /// Whether no hidden state flows.
    pub aside: bool,
}

/// Where an edge begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    /// What enters the module: one number for each thing that does.
    In(usize),
    /// A part, by its place.
    Part(usize),
    /// What leaves the module.
    Out,
}

impl Block {
    /// Whether it has parts that are modules, which need boxes.
    pub(crate) fn is_leaf(&self) -> bool {
        !self.parts.iter().any(|p| matches!(p, Part::Module(_)))
    }

    /// Marks the places of adapters that training changes, and no others.
    fn mark(&mut self, trained: &[bool]) {
        for part in &mut self.parts {
            match part {
                Part::Module(block) => block.mark(trained),
                Part::Adapter(place) => {
                    place.trains &= trained.get(place.adapter).copied().unwrap_or(false);
                }
                Part::Operators(_) | Part::Input(_) | Part::Output(_) => {}
            }
        }
    }

    /// The adapters that stand in it and in no part of it.
    pub(crate) fn places(&self) -> impl Iterator<Item = &Place> {
        self.parts.iter().filter_map(|p| match p {
            Part::Adapter(place) => Some(place),
            Part::Module(_) | Part::Operators(_) | Part::Input(_) | Part::Output(_) => None,
        })
    }
}

impl Picture {
    /// Makes the picture of a model's main graph. With a selection of the same model, modules say which fields of the interface name them.
    ///
    /// # Errors
    /// A manifest of adapters that cannot be read.
    pub fn of(model: &Verified, selection: Option<&Selection>) -> Result<Picture> {
        let manifest = Manifest::read(model.model());
        let manifest = manifest.map_err(|d| Error::new(ErrorKind::Method, d))?;
        Ok(parts::picture(model, &manifest, selection))
    }

    /// The same under another title; the graph's name without it.
    #[must_use]
    pub fn titled(mut self, title: &str) -> Picture {
        self.title = text::cut(title, 80);
        self
    }

    /// The same where training changes what a store says that it does.
    pub(crate) fn training(mut self, store: &AdapterStore) -> Picture {
        for row in &mut self.adapters {
            let own = store
                .iter()
                .filter(|(_, p)| p.trainable && text::cut(&p.adapter, text::NAME) == row.name);
            row.trained = own.fold(0, |n, (_, p)| {
                p.tensor.count().unwrap_or(0).saturating_add(n)
            });
        }
        let trained: Vec<bool> = self.adapters.iter().map(|a| a.trained > 0).collect();
        self.model.mark(&trained);
        self
    }

    /// As SVG, one file without scripts: light or dark as its surroundings are.
    pub fn svg(&self) -> String {
        svg::file(self)
    }

    /// The same as an element of a page.
    pub(crate) fn element(&self) -> String {
        svg::element(self)
    }

    /// As an HTML page with the picture, and tables of the adapters and modules.
    pub fn html(&self) -> String {
        html::page(self)
    }

    /// In the language of Graphviz.
    pub fn dot(&self) -> String {
        dot::graph(self)
    }
}
