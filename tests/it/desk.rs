//! The command at work in a folder of its own.

use super::support::fixture;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A folder to run the command in. It is gone with the test.
pub(crate) struct Desk {
    folder: TempDir,
    env: Vec<(&'static str, Option<String>)>,
}

impl Desk {
    /// An empty folder.
    pub(crate) fn new() -> Desk {
        Desk {
            folder: tempfile::tempdir().unwrap(),
            env: Vec::new(),
        }
    }

    /// A folder with a model, its interface, and inputs for it.
    pub(crate) fn with(model: &str) -> Desk {
        let desk = Desk::new();
        fs::copy(fixture(model), desk.path("model.onnx")).unwrap();
        let arch = fixture(model).parent().unwrap().to_owned();
        for file in ["interface.json", "inputs.safetensors"] {
            fs::copy(arch.join(file), desk.path(file)).unwrap();
        }
        desk
    }

    /// The same of Qwen3, with a fresh adapter attached to it.
    pub(crate) fn attached(adapter: &str) -> Desk {
        let desk = Desk::with("qwen3/model.onnx");
        desk.ok(&["-i", "interface.json", "-a", adapter, "model.onnx"]);
        desk
    }

    /// Sets a variable for the commands to come, or takes it away.
    pub(crate) fn env(&mut self, name: &'static str, value: Option<String>) {
        self.env.push((name, value));
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn command(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rewrite"));
        command.args(args).current_dir(self.folder());
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.output().unwrap()
    }

    /// Exit 0; what is on stdout.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let out = self.command(args);
        assert!(out.status.success(), "{args:?}\n{}", stderr(&out));
        String::from_utf8(out.stdout).unwrap()
    }

    pub(crate) fn json(&self, args: &[&str]) -> Json {
        let out = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}\n{out}"))
    }

    /// The command with something on its standard input.
    pub(crate) fn piped(&self, args: &[&str], input: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rewrite"));
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let pipes = pipes.stderr(Stdio::piped()).args(args);
        let mut child = pipes.current_dir(self.folder()).spawn().unwrap();
        // Whoever does not read to the end closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// The events of a command that writes them, one a line.
    pub(crate) fn events(&self, args: &[&str]) -> Vec<Json> {
        lines(&self.ok(&[args, &["--json"]].concat()))
    }

    /// What `generate` writes: the event at its end, and its answers as `results`.
    pub(crate) fn generated(&self, args: &[&str]) -> Json {
        let events = self.events(args);
        let mut end = events.last().unwrap().clone();
        assert_eq!(end["event"], "end", "{args:?}");
        let answers = events.into_iter().filter(|e| e["event"] == "answer");
        end["results"] = answers.collect();
        end
    }

    /// Exit 1, nothing on stdout, and no file made or changed; the message.
    pub(crate) fn fails(&self, args: &[&str]) -> String {
        let message = self.ends(args, 1);
        assert!(message.contains("error["), "{args:?}\n{message}");
        message
    }

    /// The message of a command whose arguments are wrong.
    pub(crate) fn misused(&self, args: &[&str]) -> String {
        self.ends(args, 2)
    }

    /// The message of a command that ends with this code, and leaves nothing behind.
    fn ends(&self, args: &[&str], code: i32) -> String {
        let before = self.files();
        let out = self.command(args);
        let message = stderr(&out);
        assert_eq!(out.status.code(), Some(code), "{args:?}\n{message}");
        assert!(out.stdout.is_empty(), "{args:?}");
        assert!(!message.contains("panicked"), "{args:?}\n{message}");
        assert!(self.files() == before, "{args:?} left something behind");
        message
    }

    /// Every file below the folder, with its bytes.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut folders = vec![self.folder().to_owned()];
        let mut found = BTreeMap::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    found.insert(path.clone(), Vec::new());
                    folders.push(path);
                } else {
                    found.insert(path.clone(), fs::read(&path).unwrap());
                }
            }
        }
        found
    }
}

/// Lines of JSON.
pub(crate) fn lines(text: &str) -> Vec<Json> {
    let parse = |l: &str| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"));
    text.lines().map(parse).collect()
}

pub(crate) fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}
