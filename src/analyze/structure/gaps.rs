//! Why the attention of a graph is none between projections.

use super::Structure;

impl Structure<'_> {
    /// What the softmaxes between two products lack for an attention between projections, one line for each kind.
    pub(crate) fn gaps(&self) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        let softmaxes = self
            .view
            .order
            .iter()
            .filter(|n| self.view.op(**n) == "Softmax");
        for &n in softmaxes {
            let Some((operands, context)) = self.spelled(n) else {
                continue;
            };
            let named = ["queries", "keys", "values"].into_iter().zip(operands);
            let mut kinds: Vec<(String, Vec<&str>)> = Vec::new();
            for (what, v) in named.filter(|(_, v)| self.projection(*v).is_none()) {
                let conv = self.behind(v, |n| self.mixes_channels(n).then_some(n));
                let maker = match conv {
                    Some(n) => format!("are made by {}, which is no linear", self.view.op(n)),
                    None => "are made by no linear".to_owned(),
                };
                match kinds.iter_mut().find(|(m, _)| *m == maker) {
                    Some((_, of)) => of.push(what),
                    None => kinds.push((maker, vec![what])),
                }
            }
            let mut why: Vec<String> = kinds
                .into_iter()
                .map(|(maker, of)| format!("its {} {maker}", of.join(" and ")))
                .collect();
            if self.ahead(context).is_none() {
                why.push("no linear reads its result".to_owned());
            }
            let why = why.join(", ");
            if !why.is_empty() && !out.iter().any(|o| o.ends_with(&why)) {
                out.push(format!(
                    "the attention of `{}`: {why}",
                    self.view.node(n).name
                ));
            }
        }
        out
    }
}
