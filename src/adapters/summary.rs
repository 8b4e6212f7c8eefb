//! The table of the library's `adapter_summary`.

use super::AdapterStore;
use crate::adapters::Config;
use crate::diag::grouped;
use crate::ir::contract;

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name of the adapter.
    pub name: String,
    /// Its architecture.
    pub architecture: String,
    /// Number of parameters. Buffers do not count.
    pub params: u64,
    /// Percentage of the base model's.
    pub percent: f64,
    /// Whether it is active.
    pub active: bool,
    /// Whether all its parameters are trained.
    pub train: bool,
}

/// The summary of a model's adapters.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// One row for each adapter.
    pub rows: Vec<Row>,
    /// Number of parameters of the base model, without adapters and head.
    pub full: u64,
    /// Whether the base model is trained.
    pub full_train: bool,
}

impl Summary {
    /// Counts. `graph` are the parameters that the graph has: those of active adapters. `full` is the number of parameters of the base
    /// model.
    pub(crate) fn new<'a>(
        adapters: impl IntoIterator<Item = (&'a str, &'a Config)>,
        store: &AdapterStore,
        graph: &AdapterStore,
        full: u64,
    ) -> Self {
        let rows = adapters.into_iter().map(|(name, config)| {
            let own = store.of(name);
            let counted: Vec<_> = own.iter().filter(|(key, _)| !is_buffer(key)).collect();
            let params = counted
                .iter()
                .filter_map(|(_, p)| p.tensor.count())
                .sum::<u64>();
            Row {
                name: name.to_owned(),
                architecture: config.architecture().to_owned(),
                params,
                percent: if full == 0 {
                    0.0
                } else {
                    params as f64 / full as f64 * 100.0
                },
                active: !graph.of(name).is_empty(),
                train: !counted.is_empty() && counted.iter().all(|(_, p)| p.trainable || p.idle),
            }
        });
        Summary {
            rows: rows.collect(),
            full,
            full_train: false,
        }
    }

    /// The table, byte for byte as the library prints it.
    pub fn table(&self) -> String {
        const WIDTH: usize = 80;
        let (double, single) = ("=".repeat(WIDTH), "-".repeat(WIDTH));
        let line = |cells: [String; 6]| {
            let [name, architecture, params, percent, active, train] = cells;
            format!("{name:<25}{architecture:<15}{params:>12}{percent:>12}{active:>8}{train:>8}")
        };
        let flag = |b: bool| u8::from(b).to_string();
        let header = [
            "Name",
            "Architecture",
            "#Param",
            "%Param",
            "Active",
            "Train",
        ];
        let mut out = vec![
            double.clone(),
            line(header.map(str::to_owned)),
            single.clone(),
        ];
        out.extend(self.rows.iter().map(|r| {
            line([
                r.name.clone(),
                r.architecture.clone(),
                grouped(r.params),
                format!("{:.3}", r.percent),
                flag(r.active),
                flag(r.train),
            ])
        }));
        out.push(single);
        out.push(line([
            "Full model".into(),
            String::new(),
            grouped(self.full),
            "100.000".into(),
            String::new(),
            flag(self.full_train),
        ]));
        out.push(double);
        out.join("\n")
    }
}

/// LoReFT's basis and the temperature of a fusion are kept, but are no parameters.
fn is_buffer(key: &str) -> bool {
    key.ends_with(".parametrizations.weight.0.base")
        || key.starts_with(contract::FUSION_TEMPERATURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_librarys() {
        let summary = Summary {
            rows: vec![Row {
                name: "a".into(),
                architecture: "lora".into(),
                params: 896,
                percent: 896.0 / 12_345.0 * 100.0,
                active: true,
                train: true,
            }],
            full: 12_345,
            full_train: true,
        };
        let expected = "\
================================================================================
Name                     Architecture         #Param      %Param  Active   Train
--------------------------------------------------------------------------------
a                        lora                    896       7.258       1       1
--------------------------------------------------------------------------------
Full model                                    12,345     100.000               1
================================================================================";
        assert_eq!(summary.table(), expected);
    }
}
