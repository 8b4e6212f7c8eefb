//! Names of equal things in numbered layers, shown once: `model.layers.*.self_attn.{q_proj,v_proj}`, `0–27`.

/// A dotted path with its first number left out, and that number: `model.layers.*.mlp` and 3 of `model.layers.3.mlp`.
pub(crate) fn numbered(path: &str) -> (String, Option<usize>) {
    let mut found = None;
    let parts: Vec<&str> = path
        .split('.')
        .map(|part| match (found, number(part)) {
            (None, Some(n)) => {
                found = Some(n);
                "*"
            }
            _ => part,
        })
        .collect();
    (parts.join("."), found)
}

/// The number that a part of a path is: modules of a list have these for names.
pub(crate) fn number(part: &str) -> Option<usize> {
    let digits = part.bytes().all(|b| b.is_ascii_digit());
    part.parse().ok().filter(|_| digits)
}

/// Numbers as ranges: `0–3, 5`.
pub(crate) fn ranges(numbers: impl IntoIterator<Item = usize>) -> String {
    let mut all: Vec<usize> = numbers.into_iter().collect();
    all.sort_unstable();
    all.dedup();
    let mut out: Vec<(usize, usize)> = Vec::new();
    for n in all {
        match out.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(n) => *last = n,
            _ => out.push((n, n)),
        }
    }
    let text = out.into_iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}–{last}"),
    });
    text.collect::<Vec<_>>().join(", ")
}

/// Names of modules, those of equal layers as one: `model.layers.*.self_attn.{q_proj,v_proj}`.
pub(crate) fn folded<'m>(modules: impl Iterator<Item = &'m str>) -> Vec<String> {
    let mut out: Vec<(String, Vec<&str>)> = Vec::new();
    for module in modules {
        let (within, last) = module.rsplit_once('.').unwrap_or(("", module));
        let last = if number(last).is_some() { "*" } else { last };
        let parts = within.split('.');
        let parts = parts.map(|p| if number(p).is_some() { "*" } else { p });
        let within = parts.collect::<Vec<_>>().join(".");
        let at = out
            .iter()
            .position(|(w, _)| *w == within)
            .unwrap_or_else(|| {
                out.push((within, Vec::new()));
                out.len() - 1
            });
        if !out[at].1.contains(&last) {
            out[at].1.push(last);
        }
    }
    let name = |(within, lasts): (String, Vec<&str>)| {
        let dot = if within.is_empty() { "" } else { "." };
        match lasts[..] {
            [one] => format!("{within}{dot}{one}"),
            _ => format!("{within}{dot}{{{}}}", lasts.join(",")),
        }
    };
    out.into_iter().map(name).collect()
}

/// A text with `#` for each number of which `in_name` says so; it hears every character, and the one behind it. The first of several has
/// no number: `linear_1` is `linear`.
pub(crate) fn masked(text: &str, mut in_name: impl FnMut(char, Option<char>) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if !(in_name(c, chars.peek().copied()) && c.is_ascii_digit()) {
            out.push(c);
            continue;
        }
        while chars.next_if(char::is_ascii_digit).is_some() {}
        let ends = !chars.peek().is_some_and(|c| c.is_alphanumeric());
        if out.ends_with('_') && ends {
            out.pop();
        } else {
            out.push('#');
        }
    }
    out
}

/// A line of the text form without what differs between equal layers: numbers in names, and hashes of tensors.
pub(crate) fn without_numbers(line: &str) -> String {
    let (mut naming, mut quoted, mut comment, mut escaped) = (false, false, false, false);
    let hashes = line.split("blake3").enumerate().map(|(i, part)| match i {
        0 => part,
        _ => part.trim_start_matches(|c| !matches!(c, ' ' | ',' | ')')),
    });
    let line = hashes.collect::<Vec<_>>().join("blake3");
    masked(&line, |c, next| {
        match c {
            '"' if !escaped => quoted = !quoted,
            '%' => naming = true,
            '/' if next == Some('/') => comment = true,
            ' ' | ',' | '(' | ')' | '=' | '[' => naming = false,
            _ => {}
        }
        escaped = c == '\\' && !escaped;
        naming || quoted || comment
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_layers_are_one_name() {
        let names = [
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.self_attn.v_proj",
            "model.layers.1.self_attn.q_proj",
            "model.layers.1.mlp.up_proj",
            "lm_head",
        ];
        let want = [
            "model.layers.*.self_attn.{q_proj,v_proj}",
            "model.layers.*.mlp.up_proj",
            "lm_head",
        ];
        assert_eq!(folded(names.into_iter()), want);
        assert_eq!(folded(["layers.0", "layers.1"].into_iter()), ["layers.*"]);
    }

    #[test]
    fn numbers_and_ranges() {
        assert_eq!(numbered("a.3.b.4"), ("a.*.b.4".to_owned(), Some(3)));
        assert_eq!(numbered("a.b2"), ("a.b2".to_owned(), None));
        assert_eq!(numbered("a..b"), ("a..b".to_owned(), None));
        assert_eq!(ranges([3, 1, 0, 2, 5, 7, 8]), "0–3, 5, 7, 8");
        assert_eq!(ranges([]), "");
        assert_eq!(ranges([usize::MAX, 0]), format!("0, {}", usize::MAX));
    }

    #[test]
    fn what_differs_between_layers_is_left_out_and_what_is_a_size_stays() {
        let of = |layer: &str, val: &str, size: &str| {
            format!(
                "%val_{val} = MatMul(%m.layers.{layer}.q, %w) perm=[1, 0] // /m.{layer}/q: f32[{size}] = blake3:a{val}b"
            )
        };
        let text = without_numbers(&of("0", "17", "8"));
        assert_eq!(text, without_numbers(&of("11", "3", "8")));
        assert!(text.contains("perm=[1, 0]"), "{text}");
        let first = of("0", "17", "8").replace("val_17", "val");
        assert_eq!(text, without_numbers(&first));
        let stamped =
            |n| format!("%a = Add(%b, %c) +rows=\"{{\\\"name\\\": \\\"layers.{n}\\\"}}\"");
        assert_eq!(without_numbers(&stamped(0)), without_numbers(&stamped(7)));
        let sized = |n| format!("init %w_1: f32[{n}, 4] = fill(0.5)");
        assert_ne!(without_numbers(&sized(8)), without_numbers(&sized(9)));
    }
}
