//! The rules of the house that a compiler does not check: who may import whom, how long files are, and that tables are complete.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The files of the library; a file that holds only tests is none of them.
fn sources() -> Vec<(PathBuf, String)> {
    files_of("src")
}

/// The same of the package in a folder.
fn files_of(root: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
    let mut folders = vec![root];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs")
                && !["tests.rs", "testing.rs"].iter().any(|t| path.ends_with(t))
            {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found.sort();
    found
}

/// What lies below everything: any module may name it.
const GROUND: [&str; 7] = [
    "error", "diag", "budget", "disk", "draw", "fence", "staging",
];

/// Module → the modules of this crate it may name, besides itself and the [ground](GROUND).
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("error", &["diag"][..]),
        ("diag", &[]),
        ("budget", &[]),
        ("disk", &["budget"]),
        ("draw", &[]),
        ("fence", &[]),
        ("staging", &[]),
        ("ir", &[]),
        ("onnx", &["ir", "infer"]),
        ("ops", &["ir"]),
        ("infer", &["ops", "ir"]),
        ("analyze", &["infer", "ir"]),
        ("select", &["analyze", "infer", "ir"]),
        ("adapters", &["select", "analyze", "infer", "ir"]),
        (
            "rewrite",
            &["adapters", "select", "analyze", "ops", "infer", "ir"],
        ),
        ("runtime", &["ops", "infer", "ir", "adapters"]),
        ("picture", &["adapters", "select", "analyze", "infer", "ir"]),
        ("options", &[]),
        ("text", &[]),
        ("hub", &["onnx"]),
        (
            "train",
            &[
                "options", "text", "runtime", "rewrite", "adapters", "select", "analyze", "infer",
                "ir",
            ],
        ),
        (
            "generate",
            &[
                "options", "text", "runtime", "rewrite", "adapters", "select", "analyze", "infer",
                "ir",
            ],
        ),
        (
            "api",
            &[
                "train", "text", "runtime", "rewrite", "adapters", "select", "analyze", "infer",
                "ir", "onnx",
            ],
        ),
        (
            "job",
            &[
                "api", "picture", "train", "generate", "hub", "options", "text", "runtime",
                "rewrite", "adapters", "select", "analyze", "infer", "ir", "onnx",
            ],
        ),
        (
            "cli",
            &[
                "job", "api", "train", "generate", "hub", "options", "text", "runtime", "rewrite",
                "adapters", "select", "infer", "ir", "onnx",
            ],
        ),
        (
            "fuzz",
            &[
                "job", "train", "text", "adapters", "select", "infer", "ir", "onnx",
            ],
        ),
        ("lib", &[]),
        ("main", &[]),
    ])
}

/// The code of a file, without comments and without its test module.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    text.lines()
        .map(|l| l.split("//").next().unwrap_or(""))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn modules_import_downwards_only() {
    let allowed = allowed();
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let rel = path
            .strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
            .unwrap()
            .to_path_buf();
        let first = rel
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_string_lossy()
            .replace(".rs", "");
        let Some(may) = allowed.get(first.as_str()) else {
            wrong.push(format!(
                "{}: module `{first}` is not in the table of tests/tidy.rs",
                rel.display()
            ));
            continue;
        };
        let code = code(&text);
        for (i, _) in code.match_indices("crate::") {
            let name: String = code[i + 7..]
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            let known = allowed.contains_key(name.as_str());
            if known
                && name != first
                && !GROUND.contains(&name.as_str())
                && !may.contains(&name.as_str())
            {
                wrong.push(format!(
                    "{}: `{first}` may not import `{name}`",
                    rel.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_runtime_knows_candle_and_only_the_cli_knows_clap() {
    let owners = [
        ("candle_core", &["runtime"][..]),
        ("onnx_graft_kernels", &["runtime"]),
        ("clap", &["cli"]),
        ("prost", &["onnx"]),
        ("petgraph", &["ir"]),
    ];
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let rel = path
            .strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
            .unwrap()
            .to_path_buf();
        let first = rel
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_string_lossy()
            .replace(".rs", "");
        for (krate, owner) in owners {
            let named = code(&text).contains(&format!("{krate}::"));
            if named && !owner.contains(&first.as_str()) {
                wrong.push(format!(
                    "{}: `{krate}` belongs to {}",
                    rel.display(),
                    owner.join(", ")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// One module opens foreign files and puts files in the place of others; who else touches them, and why.
#[test]
fn files_are_opened_and_replaced_in_one_place() {
    let others = [
        // Asks the system how much memory there is.
        ("budget.rs", "fs::read_to_string("),
        // A folder is opened to be locked.
        ("staging.rs", "File::open("),
        // A folder is opened to be synced.
        ("train/checkpoint.rs", "File::open("),
    ];
    let calls = [
        "fs::read(",
        "fs::read_to_string(",
        "File::open(",
        ".persist(",
        ".persist_noclobber(",
    ];
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        if name == "disk.rs" || name.contains("/tests/") {
            continue;
        }
        let code = code(&text);
        let found = calls.iter().filter(|c| code.contains(**c));
        let found = found.filter(|c| !others.contains(&(name, c)));
        wrong.extend(found.map(|c| format!("{name}: `{c}` belongs to disk.rs")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Third-party code that takes bytes or programs of strangers: who may name the crate, and behind whose fence it works there.
const STRANGERS: [(&str, &[(&str, &str)]); 10] = [
    (
        "tokenizers",
        &[
            ("text/tokenizer.rs", "text/tokenizer.rs"),
            ("text/settings.rs", "text/tokenizer.rs"),
            ("text/growth.rs", "text/tokenizer.rs"),
        ],
    ),
    ("minijinja", &[("text/template.rs", "text/template.rs")]),
    (
        "minijinja_contrib",
        &[("text/template.rs", "text/template.rs")],
    ),
    ("tract_onnx", &[("runtime/tract.rs", "runtime/tract.rs")]),
    (
        "parquet",
        &[(
            "train/data/source/parquet.rs",
            "train/data/source/parquet.rs",
        )],
    ),
    (
        "csv",
        &[("train/data/source/table.rs", "train/data/source/mod.rs")],
    ),
    (
        "flate2",
        &[("train/data/source/mod.rs", "train/data/source/mod.rs")],
    ),
    (
        "safetensors",
        &[
            ("adapters/files/folder.rs", "adapters/files/folder.rs"),
            ("runtime/io.rs", "runtime/io.rs"),
        ],
    ),
    (
        "yaml_rust2",
        &[("train/data/splits/card.rs", "train/data/splits/card.rs")],
    ),
    (
        "fancy_regex",
        &[
            (
                "adapters/methods/lora/targets.rs",
                "adapters/methods/lora/targets.rs",
            ),
            ("train/data/splits/glob.rs", "train/data/splits/glob.rs"),
            ("hub/name.rs", "hub/name.rs"),
        ],
    ),
];

/// Files that use such a crate on what we made ourselves.
const OURS: [(&str, &str, &str); 3] = [
    (
        "minijinja",
        "train/watch/report/mod.rs",
        "our own template of the report",
    ),
    (
        "minijinja",
        "train/watch/report/compare.rs",
        "the same, of several runs",
    ),
    (
        "parquet",
        "train/data/source/mod.rs",
        "our own module of this name",
    ),
];

#[test]
fn strangers_stand_behind_the_fence() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files: BTreeMap<String, String> = sources()
        .into_iter()
        .map(|(path, text)| {
            let rel = path.strip_prefix(&src).unwrap().display().to_string();
            (rel, code(&text))
        })
        .filter(|(rel, _)| !rel.contains("/tests/"))
        .collect();
    let mut wrong = Vec::new();
    for (krate, places) in STRANGERS {
        for (file, code) in &files {
            let name = format!("{krate}::");
            let mut before = code.match_indices(&name).map(|(at, _)| {
                let word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
                !code[..at].ends_with(word)
            });
            if !before.any(|whole| whole) || OURS.iter().any(|o| (o.0, o.1) == (krate, file)) {
                continue;
            }
            match places.iter().find(|(place, _)| place == file) {
                None => wrong.push(format!("{file}: `{krate}` is in no table of tests/tidy.rs")),
                Some((_, fence)) if !files[*fence].contains("fence::") => {
                    wrong.push(format!("{fence}: no fence for `{krate}` in {file}"));
                }
                Some(_) => {}
            }
        }
        for (place, _) in places {
            let named = files
                .get(*place)
                .is_some_and(|c| c.contains(&format!("{krate}::")));
            assert!(named, "{place} does not name `{krate}`");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_has_a_name_is_staged_and_panics_are_caught_in_one_place() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    // A file without a name is gone with its process.
    let allowed = [
        ("tempfile::", "staging.rs"),
        ("tempfile::", "disk.rs"),
        ("tempfile::", "train/data/dataset.rs"),
        ("catch_unwind", "fence/mod.rs"),
        ("catch_unwind", "cli/mod.rs"),
        // A kernel for whose buffer there is no memory.
        ("catch_unwind", "runtime/exec.rs"),
        ("set_hook", "fence/mod.rs"),
        ("set_hook", "cli/faults.rs"),
    ];
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let file = path.strip_prefix(&src).unwrap().display().to_string();
        if file.contains("/tests/") {
            continue;
        }
        for what in ["tempfile::", "catch_unwind", "set_hook"] {
            if code(&text).contains(what) && !allowed.contains(&(what, file.as_str())) {
                wrong.push(format!("{file}: {what}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Inside of the kernels: file → the files of the product that it may name; one that is not listed names all of them.
#[test]
fn kernels_of_the_product_do_not_name_each_other() {
    let below = BTreeMap::from([
        ("block.rs", &[][..]),
        ("raw.rs", &[]),
        ("matrix.rs", &["raw"]),
        ("portable.rs", &["raw"]),
        ("avx512.rs", &["raw", "block"]),
        ("blocked.rs", &["raw", "block", "avx512"]),
        ("packed.rs", &["raw", "block", "avx512", "portable"]),
    ]);
    let parts = [
        "block", "raw", "matrix", "portable", "avx512", "blocked", "packed", "bf16",
    ];
    let mut seen = 0;
    for (path, text) in files_of("kernels/src/gemm") {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some(may) = below.get(name.as_str()) else {
            continue;
        };
        seen += 1;
        for part in parts.iter().filter(|part| !may.contains(part)) {
            let named = code(&text).contains(&format!("use super::{part}"));
            assert!(!named, "{}: `{part}` is not below it", path.display());
        }
    }
    assert_eq!(seen, below.len());
}

#[test]
fn files_are_short() {
    let long: Vec<String> = sources()
        .iter()
        .chain(&files_of("kernels/src"))
        .filter(|(path, _)| !path.ends_with("onnx/proto.rs"))
        .filter(|(_, text)| text.lines().count() > 800)
        .map(|(path, text)| format!("{}: {} lines", path.display(), text.lines().count()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn invariants_are_named() {
    let bare: Vec<String> = sources()
        .iter()
        .flat_map(|(path, text)| {
            code(text)
                .lines()
                .filter(|l| l.contains(".expect(\"") && !l.contains(".expect(\"invariant: "))
                .map(|l| format!("{}: {}", path.display(), l.trim()))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(bare.is_empty(), "{}", bare.join("\n"));
}

/// A new method is one file and one word: nothing else in the library names a method, but for files that are about one.
#[test]
fn methods_are_named_in_their_own_files_only() {
    // What the file is about.
    let exempt = [
        ("select/family.rs", "the words of interfaces"),
        (
            "adapters/config/mod.rs",
            "older identifiers, and unions that have a name",
        ),
        (
            "adapters/files/folder.rs",
            "corrections of files of old versions",
        ),
        (
            "adapters/mod.rs",
            "the family of an interface that lists none",
        ),
        (
            "adapters/plan/naming.rs",
            "a module of the library that is called like a method",
        ),
        ("adapters/files/peft/fields.rs", "PEFT's methods"),
        ("adapters/files/peft/flags.rs", "PEFT's LoRA"),
        ("adapters/files/peft/read.rs", "PEFT's methods"),
        (
            "adapters/files/peft/served.rs",
            "methods that other tools' files have",
        ),
        ("adapters/files/peft/write.rs", "PEFT's methods"),
        ("adapters/files/average.rs", "sums of LoRA's products"),
        (
            "adapters/files/weighted.rs",
            "PEFT's sums of LoRA's factors",
        ),
        ("api/eject.rs", "prefixes as parameters"),
    ];
    let types = [
        "Bottleneck",
        "Lora",
        "MtlLora",
        "Reft",
        "PrefixTuning",
        "PromptTuning",
    ];
    let names = [
        "bottleneck",
        "lora",
        "mtl_lora",
        "reft",
        "prefix_tuning",
        "prompt_tuning",
    ];
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let rel = path.strip_prefix(src).unwrap().display().to_string();
        if rel.starts_with("adapters/methods/") || exempt.iter().any(|e| e.0 == rel) {
            continue;
        }
        let code = code(&text);
        let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        let as_type = words.filter(|w| types.contains(w)).map(str::to_owned);
        let literal = |n: &&str| code.contains(&format!("\"{n}\""));
        let as_text = names.iter().filter(|n| literal(n)).map(|n| (*n).to_owned());
        wrong.extend(as_type.chain(as_text).map(|w| format!("{rel}: {w}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Most public items that the front may have, fields and re-exports not counted. Raise it only with an item that users need.
const FRONT_ITEMS: usize = 432;

/// Number of public items in a file's code. `unreachable_pub` is an error, so each of them is part of the front.
fn public_items(text: &str) -> usize {
    const KINDS: [&str; 10] = [
        "fn ",
        "const ",
        "unsafe fn ",
        "struct ",
        "enum ",
        "trait ",
        "type ",
        "static ",
        "mod ",
        "union ",
    ];
    let item = |line: &&str| {
        let rest = line.trim_start().strip_prefix("pub ");
        rest.is_some_and(|rest| KINDS.iter().any(|k| rest.starts_with(k)))
    };
    code(text).lines().filter(item).count()
}

#[test]
fn the_front_is_small_and_closed() {
    const CLOSED: [&str; 3] = ["ops", "options", "text"];
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = 0;
    // What is generated lies in a module of the crate; doors for fuzzing are in no build of a user.
    let written = |(path, _): &(PathBuf, String)| {
        !path.ends_with("onnx/proto.rs") && !path.ends_with("src/fuzz.rs")
    };
    for (path, text) in sources().into_iter().filter(written) {
        let n = public_items(&text);
        all += n;
        let room = path.strip_prefix(&src).unwrap();
        let open = n == 0 || !CLOSED.iter().any(|c| room.starts_with(c));
        assert!(open, "{}: {n} public items", room.display());
    }
    assert!(all <= FRONT_ITEMS, "{all} public items");
}

#[test]
fn nothing_is_imported_through_the_root() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let code = code(&text);
        for (i, _) in code.match_indices("crate::") {
            let own = code[..i].ends_with('$');
            let name = code[i + 7..].chars().next().unwrap_or(' ');
            if !own && name.is_uppercase() {
                wrong.push(format!(
                    "{}: name the module of it, not the re-export",
                    path.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_are_declared_where_rustfmt_looks() {
    for (path, text) in sources() {
        assert!(
            !code(&text).contains("mod $"),
            "{}: a macro declares modules",
            path.display()
        );
    }
}

/// Pages for readers: path from the root of the repository, and text.
fn pages() -> BTreeMap<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["", "docs", "schemas", "kernels"];
    let entries = folders
        .iter()
        .flat_map(|f| fs::read_dir(root.join(f)).unwrap());
    entries
        .map(|e| e.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.strip_prefix(root).unwrap().to_path_buf(), text)
        })
        .collect()
}

/// The text of a page without its blocks of code.
fn prose(text: &str) -> String {
    let mut inside = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// What a heading is called in links to it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        _ if c.is_alphanumeric() => Some(c),
        _ => None,
    });
    kept.collect::<String>().to_lowercase()
}

fn anchors(text: &str) -> Vec<String> {
    let prose = prose(text);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| anchor(line.trim_start_matches('#')))
        .collect()
}

/// Targets of the links and pictures of a page, but for those to other sites.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let after = prose.match_indices("](").map(|(i, _)| &prose[i + 2..]);
    let targets = after.filter_map(|rest| rest.split([')', ' ', '\n']).next());
    targets
        .filter(|t| !t.contains("://"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn links_of_pages_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = pages();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (page, text) in &pages {
        for link in links(text) {
            seen += 1;
            let (file, place) = link.split_once('#').unwrap_or((&link, ""));
            let path = if file.is_empty() {
                root.join(page)
            } else {
                root.join(page).parent().unwrap().join(file)
            };
            let found = path.canonicalize().ok().filter(|p| {
                place.is_empty()
                    || fs::read_to_string(p)
                        .is_ok_and(|text| anchors(&text).contains(&place.to_owned()))
            });
            if found.is_none() {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 50, "only {seen} links found");
}

/// What makes a figure is named by its path, so the path has to be there.
#[test]
fn files_that_pages_name_exist() {
    const FOLDERS: [&str; 7] = [
        "benches/",
        "examples/",
        "fixtures/",
        "schemas/",
        "scripts/",
        "src/",
        "tests/",
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (page, text) in pages() {
        // Older versions' files may be gone.
        if page.ends_with("CHANGELOG.md") {
            continue;
        }
        let prose = prose(&text);
        // Every other piece is code.
        for code in prose.split('`').skip(1).step_by(2) {
            let Some(path) = code.split_whitespace().next() else {
                continue;
            };
            let pattern = path.contains(['*', '<', '{', '…']);
            if pattern || !FOLDERS.iter().any(|f| path.starts_with(f)) {
                continue;
            }
            seen += 1;
            if !root.join(path).exists() {
                wrong.push(format!("{}: {path}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 30, "only {seen} paths found");
}

#[test]
fn the_readme_is_short_and_the_index_whole() {
    let pages = pages();
    let readme = &pages[Path::new("README.md")];
    let lines = readme.lines().count();
    assert!(lines < 300, "{lines} lines: what is more belongs to docs/");
    let wide = readme.lines().find(|line| line.chars().count() > 150);
    assert!(wide.is_none(), "too wide: {}", wide.unwrap_or_default());
    let index = links(&pages[Path::new("docs/README.md")]);
    for page in pages.keys().filter(|p| p.starts_with("docs")) {
        let name = page.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(
            name == "README.md" || index.contains(&name),
            "docs/README.md does not list {name}"
        );
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    let version = manifest
        .split_once("rust-version = \"")
        .and_then(|(_, rest)| rest.split('"').next())
        .unwrap();
    let stated = format!("Rust {version} or newer");
    assert!(
        readme.contains(&stated),
        "the README does not say: {stated}"
    );
}

/// A file of the repository.
fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The oldest compiler that is promised, as the manifest has it: "1.91".
fn oldest() -> String {
    let manifest = file("Cargo.toml");
    let line = manifest.lines().find(|l| l.starts_with("rust-version"));
    line.unwrap().split('"').nth(1).unwrap().to_owned()
}

#[test]
fn the_oldest_compiler_is_the_same_everywhere() {
    let oldest = oldest();
    for (name, said) in [
        ("README.md", format!("Rust {oldest} or newer")),
        ("clippy.toml", format!("msrv = \"{oldest}\"")),
        (".github/workflows/ci.yml", format!("cargo +{oldest} check")),
    ] {
        assert!(file(name).contains(&said), "{name} does not say `{said}`");
    }
}

#[test]
fn no_dependency_needs_a_newer_compiler() {
    let out = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    if !out.status.success() {
        // Another system, where not all of these packages were fetched.
        return;
    }
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let version = |text: &str| -> Vec<u32> { text.split('.').flat_map(str::parse).collect() };
    let oldest = version(&oldest());
    let newer: Vec<String> = packages
        .iter()
        .filter(|p| version(p["rust_version"].as_str().unwrap_or("1.0")) > oldest)
        .map(|p| format!("{} needs {}", p["name"], p["rust_version"]))
        .collect();
    assert!(packages.len() > 100 && newer.is_empty(), "{newer:?}");
}

/// What the code embeds goes into the package, and fixtures do not.
#[test]
fn the_package_is_what_a_build_needs() {
    let list = |package: &str| -> Vec<String> {
        let out = std::process::Command::new(env!("CARGO"))
            .args([
                "package",
                "--list",
                "--allow-dirty",
                "--offline",
                "--package",
                package,
            ])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let text = String::from_utf8(out.stdout).unwrap();
        text.lines().map(|l| l.replace('\\', "/")).collect()
    };
    let files = list("onnx-graft");
    for needed in [
        "README.md",
        "LICENSE-MIT",
        "src/train/watch/report/page.html",
        "src/text/classes.json",
        "schemas/interfaces/qwen3.json",
    ] {
        assert!(files.iter().any(|f| f == needed), "{needed}");
    }
    let spare = ["fixtures/", "tests/", "benches/", "fuzz/", "python/", "."];
    let found = files
        .iter()
        .filter(|f| spare.iter().any(|s| f.starts_with(s)));
    let found: Vec<_> = found.filter(|f| *f != ".cargo_vcs_info.json").collect();
    assert!(found.is_empty(), "{found:?}");
    let size = |f: &String| {
        fs::metadata(Path::new(env!("CARGO_MANIFEST_DIR")).join(f)).map_or(0, |m| m.len())
    };
    assert!(files.iter().map(size).sum::<u64>() < 6 << 20);
    let kernels = list("onnx-graft-kernels");
    assert!(
        kernels.iter().any(|f| f == "LICENSE-MIT") && kernels.len() < 60,
        "{kernels:?}"
    );
}
