//! Where the keys of a JSON text stand, for messages.

/// Line and column (from 1) of every key, by dotted path. The text is known to be JSON.
#[derive(Debug, Default)]
pub(super) struct Positions {
    keys: Vec<(String, (usize, usize))>,
    duplicates: Vec<String>,
}

enum Open {
    Object,
    Array,
}

impl Positions {
    /// Finds all keys, in linear time and without recursion.
    pub(super) fn of(text: &str) -> Self {
        let mut out = Positions::default();
        let mut open: Vec<Open> = Vec::new();
        let mut path: Vec<String> = Vec::new();
        let (mut line, mut start) = (1, 0);
        let bytes = text.as_bytes();
        let mut at = 0;
        let mut key_next = false;
        while let Some(&b) = bytes.get(at) {
            match b {
                b'\n' => (line, start) = (line + 1, at + 1),
                b'{' | b'[' => {
                    let object = b == b'{';
                    open.push(if object { Open::Object } else { Open::Array });
                    path.push(String::new());
                    key_next = object;
                }
                b'}' | b']' => {
                    open.pop();
                    path.pop();
                }
                b',' => key_next = matches!(open.last(), Some(Open::Object)),
                b'"' => {
                    let end = string_end(bytes, at);
                    if key_next {
                        let raw = text.get(at..=end).unwrap_or("\"\"");
                        let key: String = serde_json::from_str(raw).unwrap_or_default();
                        if let Some(last) = path.last_mut() {
                            *last = key;
                        }
                        let parts: Vec<&str> = path
                            .iter()
                            .map(String::as_str)
                            .filter(|p| !p.is_empty())
                            .collect();
                        let column = text.get(start..at).map_or(0, |s| s.chars().count()) + 1;
                        out.keys.push((parts.join("."), (line, column)));
                        key_next = false;
                    }
                    at = end;
                }
                _ => {}
            }
            at += 1;
        }
        out.keys.sort();
        out.duplicates = out
            .keys
            .windows(2)
            .filter(|w| w[0].0 == w[1].0)
            .map(|w| w[0].0.clone())
            .collect();
        out
    }

    /// Line and column of a key.
    pub(super) fn get(&self, path: &str) -> Option<(usize, usize)> {
        let at = self.keys.partition_point(|(k, _)| k.as_str() < path);
        self.keys.get(at).filter(|(k, _)| k == path).map(|k| k.1)
    }

    /// Paths given more than once.
    pub(super) fn duplicates(&self) -> &[String] {
        &self.duplicates
    }
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&b) = bytes.get(at) {
        match b {
            b'\\' => at += 1,
            b'"' => return at,
            _ => {}
        }
        at += 1;
    }
    bytes.len().saturating_sub(1)
}
