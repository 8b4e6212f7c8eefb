//! Why the attention of a graph is none between projections.

use super::Structure;
use crate::ir::NodeId;

impl Structure<'_> {
    /// That a convolution makes projections. Of one point and in groups it would be several linears side by side.
    fn convolved(&self, n: NodeId) -> String {
        let op = self.view.op(n);
        match self.view.node(n).int("group", 1) {
            1 => format!("are made by {op}, which is no linear"),
            groups => format!("are made by {op} in {groups} groups, which is no linear"),
        }
    }

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
                    Some(n) => self.convolved(n),
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
