//! Names: of repositories, revisions and files. Those that a server says are believed only when they are harmless.

use super::{IntoError, fail};
use crate::error::Result;
use crate::fence;
use fancy_regex::Regex;
use std::fmt;

/// What a repository holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Models, tokenizers, adapters.
    #[default]
    Model,
    /// Datasets.
    Dataset,
}

impl Kind {
    /// As the API says it in paths: `models`, `datasets`.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        }
    }

    /// What stands before the name in addresses of pages and files.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Kind::Model => "",
            Kind::Dataset => "datasets/",
        }
    }

    /// `model`, `dataset`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Dataset => "dataset",
        }
    }
}

/// A repository at a revision, and a path in it: `org/name`, `org/name@v1`, `datasets/org/name@main:main/train-*.parquet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// What it holds.
    pub kind: Kind,
    /// `org/name` or `name`.
    pub repo: String,
    /// Branch, tag or commit; `main` unless given.
    pub revision: String,
    /// A file, a folder or a pattern.
    pub path: Option<String>,
}

impl Reference {
    /// Reads a reference. A prefix `hub:` may stand before it.
    ///
    /// # Errors
    /// Names that no repository, revision or file can have.
    pub(crate) fn parse(text: &str) -> Result<Reference> {
        let rest = text.strip_prefix("hub:").unwrap_or(text);
        let (rest, path) = match rest.split_once(':') {
            Some((rest, path)) => (rest, Some(path.trim_end_matches('/').to_owned())),
            None => (rest, None),
        };
        let (rest, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let (kind, repo) = match rest.split_once('/') {
            Some(("datasets", repo)) => (Kind::Dataset, repo),
            Some(("models", repo)) if repo.contains('/') => (Kind::Model, repo),
            Some(_) | None => (Kind::Model, rest),
        };
        let refuse = |what: String| {
            fail("hub-reference", what)
                .at(text.to_owned())
                .help("`org/name`, `org/name@revision`, `org/name:path`, and `datasets/` before the name of a dataset")
                .into_error()
        };
        if !repo_id(repo) {
            return Err(refuse(format!("`{repo}` cannot be a repository")));
        }
        if !revision_name(revision) {
            return Err(refuse(format!("`{revision}` cannot be a revision")));
        }
        if let Some(path) = path.as_deref().filter(|p| !harmless(p)) {
            return Err(refuse(format!("`{path}` cannot be a path in a repository")));
        }
        Ok(Reference {
            kind,
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            path,
        })
    }

    /// The same repository at another revision.
    #[must_use]
    pub(crate) fn at(&self, revision: &str) -> Reference {
        Reference {
            revision: revision.to_owned(),
            ..self.clone()
        }
    }

    /// `datasets/org/name`, as a page's address has it.
    pub(crate) fn page(&self) -> String {
        format!("{}{}", self.kind.prefix(), self.repo)
    }

    /// Name of the repository's folder in the cache that Hugging Face's tools share.
    pub(super) fn cached(&self) -> String {
        format!("{}--{}", self.kind.plural(), self.repo).replace('/', "--")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.page(), self.revision)?;
        match &self.path {
            Some(path) => write!(f, ":{path}"),
            None => Ok(()),
        }
    }
}

/// Whether a repository can have this name.
pub(super) fn repo_id(text: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && !p.starts_with(['.', '-'])
            && !p.ends_with(['.', '-'])
            && !p.contains("..")
            && !p.contains("--")
    };
    text.len() <= 96 && text.split('/').count() <= 2 && text.split('/').all(part)
}

/// Whether a branch, tag or commit can have this name. It is a path in the cache.
pub(super) fn revision_name(text: &str) -> bool {
    harmless(text)
        && text.len() <= 255
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-/+=".contains(&b))
}

/// Whether a relative path stays where it is put: no way up, no root, no drive, nothing that a terminal would obey.
pub(super) fn harmless(path: &str) -> bool {
    path.len() <= 1024
        && !path
            .chars()
            .any(|c| c.is_control() || unseen(c) || c == '\\')
        && path
            .split('/')
            .all(|p| !matches!(p, "" | "." | "..") && p.len() <= 255)
        && path.as_bytes().get(1) != Some(&b':')
}

/// Whether a character is not seen, or changes how the ones around it are seen: marks of direction, joiners, breaks of lines.
fn unseen(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

/// Names of folders and files that a program reads on its own wherever it finds them, and does what they say: version control, shells, ssh,
/// editors, package managers.
const ACTING: [&str; 36] = [
    ".git",
    ".gitmodules",
    ".gitconfig",
    ".hg",
    ".hgrc",
    ".svn",
    ".bzr",
    ".jj",
    ".ssh",
    ".gnupg",
    ".aws",
    ".kube",
    ".docker",
    ".cargo",
    ".config",
    ".local",
    ".husky",
    ".vscode",
    ".idea",
    ".devcontainer",
    ".env",
    ".envrc",
    ".bashrc",
    ".bash_profile",
    ".bash_login",
    ".bash_logout",
    ".profile",
    ".zshrc",
    ".zshenv",
    ".zprofile",
    ".inputrc",
    ".vimrc",
    ".exrc",
    ".netrc",
    ".npmrc",
    ".pypirc",
];

/// Whether a file of this path acts on who receives it. Names are compared as file systems do that know no case, and that leave out dots and
/// spaces at the end; `git~1` is the short name of `.git` on Windows.
pub(super) fn acts(path: &str) -> bool {
    path.split('/').any(|part| {
        let plain = part.split(':').next().unwrap_or(part);
        let plain = plain.trim_end_matches(['.', ' ']).to_lowercase();
        ACTING.contains(&plain.as_str()) || plain == "git~1"
    })
}

/// Whether a server's hash can be the name of a file.
pub(super) fn etag_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && !text.starts_with('.')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Whether a text is a full commit hash.
pub(super) fn commit_hash(text: &str) -> bool {
    (text.len() == 40 || text.len() == 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A shell pattern as Python's `fnmatch` reads it, and as Python a regular expression: `*` also crosses folders, `?`, `[a-z]`, `[!a]`; a
/// bracket that is not closed is a character. One that ends with `/` means all in the folder. One that is too long matches nothing.
#[derive(Clone, Debug)]
pub(crate) struct Pattern(Option<Regex>);

impl Pattern {
    /// Reads one.
    pub(crate) fn new(text: &str) -> Pattern {
        let mut out = String::from(r"(?s)\A");
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            match c {
                // Stars behind each other are one.
                '*' if out.ends_with(".*") => {}
                '*' => out.push_str(".*"),
                '?' => out.push('.'),
                '[' => match class(rest) {
                    Some((set, behind)) => {
                        out.push_str(&set);
                        rest = behind;
                    }
                    None => out.push_str(r"\["),
                },
                c => out.push_str(&literal(c)),
            }
        }
        if text.ends_with('/') {
            out.push_str(".*");
        }
        out.push_str(r"\z");
        // A file that is not ours says what is matched, and a library matches it.
        Pattern(fence::guarded(|| Regex::new(&out).ok()).ok().flatten())
    }

    /// Whether it matches a path.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let Some(regex) = &self.0 else {
            return false;
        };
        fence::guarded(|| regex.is_match(path)).is_ok_and(|found| found.unwrap_or(false))
    }
}

/// The class that a text begins with, behind its bracket, as a regular expression; and what follows it.
fn class(text: &str) -> Option<(String, &str)> {
    let (negation, own) = match text.strip_prefix('!') {
        Some(own) => ("^", own),
        None => ("", text),
    };
    // A bracket that comes first is one of the characters.
    let first = own.chars().next()?.len_utf8();
    let end = first + own[first..].find(']')?;
    let set: Vec<char> = own[..end].chars().collect();
    let (mut inner, mut i) = (String::new(), 0);
    while i < set.len() {
        if i + 2 < set.len() && set[i + 1] == '-' {
            // One that ends before it begins has no characters.
            if set[i] <= set[i + 2] {
                inner += &format!("{}-{}", literal(set[i]), literal(set[i + 2]));
            }
            i += 3;
        } else {
            inner += &literal(set[i]);
            i += 1;
        }
    }
    let whole = match (inner.is_empty(), negation.is_empty()) {
        (true, true) => r"[^\s\S]".to_owned(),
        (true, false) => ".".to_owned(),
        (false, _) => format!("[{negation}{inner}]"),
    };
    Some((whole, &own[end + 1..]))
}

/// A character that stands for itself in a regular expression, in a class and outside.
fn literal(c: char) -> String {
    format!(r"\x{{{:x}}}", u32::from(c))
}

/// A path for an address: what is not plain is written in hexadecimal.
pub(super) fn encoded(path: &str, slash: bool) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) || (slash && b == b'/') {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_four_parts() {
        let r = Reference::parse("hub:datasets/openai/gsm8k@refs/convert:main/train-*.parquet")
            .unwrap();
        assert_eq!(r.kind, Kind::Dataset);
        assert_eq!(
            (r.repo.as_str(), r.revision.as_str()),
            ("openai/gsm8k", "refs/convert")
        );
        assert_eq!(r.path.as_deref(), Some("main/train-*.parquet"));
        assert_eq!(
            r.to_string(),
            "datasets/openai/gsm8k@refs/convert:main/train-*.parquet"
        );
        let r = Reference::parse("gpt2").unwrap();
        assert_eq!(
            (r.repo.as_str(), r.revision.as_str(), r.path),
            ("gpt2", "main", None)
        );
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in [
            "",
            "/",
            "a/b/c",
            "../x",
            "a/..",
            "a/b@../../x",
            "a/b@/etc",
            "a/b:../x",
            "a/b:/etc/passwd",
            "a/b:x\\y",
            "a/b:x//y",
            "a--b/c",
            "a b/c",
            "a/b:C:/x",
            "a/b@x\ny",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
        assert!(
            !etag_name("../x") && !etag_name("") && !etag_name(".hidden") && etag_name("0a-b_c")
        );
    }

    #[test]
    fn names_that_act_on_the_receiver_are_known() {
        for bad in [
            ".git/config",
            "a/.GIT/hooks/post-checkout",
            ".git./config",
            ".git /x",
            ".git::$INDEX_ALLOCATION/config",
            "GIT~1/config",
            ".ssh/authorized_keys",
            ".Bashrc",
            "x/.vscode/tasks.json",
        ] {
            assert!(acts(bad), "{bad:?}");
        }
        for good in [
            ".gitattributes",
            ".gitignore",
            "git/config",
            "a.git/x",
            ".eval_results/a.yaml",
            "config",
        ] {
            assert!(!acts(good), "{good:?}");
        }
        assert!(
            !harmless("a\u{202e}txt.exe") && !harmless("\u{200b}x") && harmless("mödel ☃.onnx")
        );
    }

    #[test]
    fn patterns_are_those_of_fnmatch() {
        for (pattern, path, yes) in [
            ("*.onnx", "onnx/model.onnx", true),
            ("onnx/", "onnx/model.onnx", true),
            ("onnx/*", "model.onnx", false),
            ("train-?????.parquet", "train-00000.parquet", true),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[x", "[x", true),
            ("*a*b", "xaxxb", true),
            ("*a*b", "xaxxbc", false),
            ("", "", true),
            ("[]a]", "]", true),
            ("[!]a]", "]", false),
            ("[^a]", "^", true),
            ("[z-a]x", "bx", false),
            ("[!z-a]x", "bx", true),
            ("a{b,c}.(x|y)+$", "a{b,c}.(x|y)+$", true),
            ("**/x", "x", false),
            ("\\*", "\\a", true),
        ] {
            assert_eq!(Pattern::new(pattern).matches(path), yes, "{pattern} {path}");
        }
    }

    #[test]
    fn addresses_are_encoded() {
        assert_eq!(encoded("a b/ü#?.txt", true), "a%20b/%C3%BC%23%3F.txt");
        assert_eq!(encoded("refs/pr/1", false), "refs%2Fpr%2F1");
    }
}
