//! What can be adapted in a model, and with which methods: for who looks at a file before choosing.

use super::attach::{find_interface, usual_route};
use super::opened;
use crate::adapters::plan::places_of;
use crate::adapters::{Adapter, presets};
use crate::diag::Diagnostic;
use crate::error::{Error, Result};
use crate::infer::Verified;
use crate::select::{Interface, Selection};
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// What can be adapted.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Prospects {
    /// Where the interface comes from; `None` where there is none.
    pub interface: Option<String>,
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Linears that can be chosen by their names.
    pub linears: usize,
    /// What is missing, or has to be known.
    pub notes: Vec<String>,
    /// Every method in its usual configurations.
    pub methods: Vec<Prospect>,
}

/// What a model holds for one method.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Prospect {
    /// Its identifier.
    pub method: &'static str,
    /// Number of places for it.
    pub places: usize,
    /// Why there are none.
    pub why: Option<String>,
    /// What helps.
    pub help: Option<String>,
}

/// Looks at a model with an interface, or with the one that it would be adapted with. Nothing is attached.
///
/// # Errors
/// Operators whose definitions do not verify.
pub(crate) fn prospects(
    model: &Verified,
    file: &Path,
    interface: Option<&Interface>,
) -> Result<Prospects> {
    let (plain, _) = opened(super::shown(model.clone())?, false)?;
    let found = match interface {
        Some(interface) => Ok(interface.clone()),
        None => find_interface(&plain, Some(file)),
    };
    let selected = found.and_then(|i| Ok((i.select(&plain)?, i)));
    let (selection, interface) = match selected {
        Ok(selected) => selected,
        Err(e) => return Ok(Prospects::without(&plain, &all_findings(&e))),
    };
    let route = usual_route(&interface, Some(file));
    let mut whole: Option<(Verified, Selection)> = None;
    let mut methods = Vec::new();
    for (name, config) in presets() {
        let opens = config.methods().iter().any(|m| m.opens_attention());
        let hidden = selection.hides_projections()
            && config.methods().iter().any(|m| m.adapts_projections());
        let mut adapter = Adapter::fresh(name, config);
        adapter.route = route.clone();
        if (opens || hidden) && whole.is_none() {
            let (all, _) = opened(plain.clone(), true)?;
            whole = interface.select(&all).ok().map(|s| (all, s));
        }
        let found = match whole.as_ref().filter(|_| opens || hidden) {
            Some((model, selection)) => places_of(&adapter, selection, model),
            None => places_of(&adapter, &selection, &plain),
        };
        methods.push(Prospect::of(name, found));
    }
    Ok(Prospects {
        interface: Some(interface.source.clone()),
        layers: selection.layers.len(),
        hidden_size: selection.hidden_size,
        linears: selection.modules.len(),
        notes: said(&selection.misses),
        methods,
    })
}

/// The findings of an error, and of what caused it.
fn all_findings(error: &Error) -> Vec<Diagnostic> {
    let mut found = error.findings().to_vec();
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        if let Some(own) = e.downcast_ref::<Error>() {
            found.extend(own.findings().iter().cloned());
        }
        cause = e.source();
    }
    found
}

fn said(findings: &[Diagnostic]) -> Vec<String> {
    let lines = findings.iter().map(|d| {
        let notes = d.notes.iter().map(|n| format!("; {n}"));
        format!("{}{}", d.message, notes.collect::<String>())
    });
    lines.collect()
}

impl Prospect {
    fn of(method: &'static str, found: Result<usize, Diagnostic>) -> Prospect {
        let (places, why) = match found {
            Ok(places) => (places, None),
            Err(d) => (0, Some(d)),
        };
        Prospect {
            method,
            places,
            help: why.as_ref().and_then(|d| d.help.clone()),
            why: why.map(|d| d.message),
        }
    }
}

impl Prospects {
    /// A model in which no layers are found: linears by their names are all there is.
    fn without(model: &Verified, findings: &[Diagnostic]) -> Prospects {
        let bare = Interface::bare().select(model);
        Prospects {
            interface: None,
            layers: 0,
            hidden_size: 0,
            linears: bare.map_or(0, |s| s.modules.len()),
            notes: said(findings),
            methods: Vec::new(),
        }
    }
}

impl fmt::Display for Prospects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.interface {
            Some(source) => writeln!(
                f,
                "adapting    by the interface `{source}`: {} layers of width {}",
                self.layers, self.hidden_size
            )?,
            None => writeln!(f, "adapting    no layers are found")?,
        }
        writeln!(
            f,
            "  by name   {} linears, which `target_modules` chooses from",
            self.linears
        )?;
        for note in &self.notes {
            writeln!(f, "  note      {note}")?;
        }
        let possible = self.methods.iter().filter(|m| m.why.is_none());
        let possible: Vec<String> = possible
            .map(|m| format!("{} ({})", m.method, m.places))
            .collect();
        if !possible.is_empty() {
            writeln!(f, "  methods, with the number of their places")?;
            for line in possible.chunks(6) {
                writeln!(f, "            {}", line.join(", "))?;
            }
        }
        // Configurations with one reason stand together.
        let mut open: Vec<(&str, Option<&str>, Vec<&str>)> = Vec::new();
        for m in &self.methods {
            let Some(why) = m.why.as_deref() else {
                continue;
            };
            match open.iter_mut().find(|(w, ..)| *w == why) {
                Some((_, _, names)) => names.push(m.method),
                None => open.push((why, m.help.as_deref(), vec![m.method])),
            }
        }
        for (why, help, names) in open {
            writeln!(f, "  not       {}: {why}", names.join(", "))?;
            if let Some(help) = help {
                writeln!(f, "            {help}")?;
            }
        }
        Ok(())
    }
}
