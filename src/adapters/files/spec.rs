//! Adapters as users name them: `NAME=SPEC`, where SPEC is a configuration string, a configuration file, or a saved adapter's folder.

use crate::adapters::folder::{AdapterFolder, file, is_fusion};
use crate::adapters::onnx_adapter::{self, EXTENSION};
use crate::adapters::peft::{self, PeftFolder};
use crate::adapters::{Adapter, Config, Setup, UnknownKeys, identifiers};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What a specification means.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there are a handful of them")]
pub enum Spec {
    /// A fresh adapter.
    Fresh {
        /// Its name.
        name: String,
        /// Its configuration.
        config: Config,
    },
    /// A saved one.
    Saved {
        /// The name that was given, if one was.
        name: Option<String>,
        /// The folder.
        folder: PathBuf,
    },
}

/// Reads `NAME=SPEC` or `SPEC`.
///
/// A fresh adapter without a name is called after its method. A path is a folder with weights, a folder with a configuration alone,
/// or a JSON file; everything else is a configuration string. A file or folder that is called as an identifier is meant by `./lora` only.
///
/// # Errors
/// [`ErrorKind::Method`], with the nearest name where one was mistyped.
pub(crate) fn parse(text: &str) -> Result<Spec> {
    let (name, spec) = split(text);
    let path = Path::new(spec);
    let identifier = is_identifier(spec);
    if path.is_dir() && !identifier {
        if is_fusion(path) {
            let found =
                format!("`{spec}` holds an AdapterFusion, which mixes adapters and is none");
            return Err(Error::new(
                ErrorKind::Method,
                Diagnostic::error("spec-fusion", found)
                    .help("give it with --fusion, and the adapters with --adapter"),
            ));
        }
        let weights = [
            file::SAFETENSORS,
            file::TORCH,
            peft::file::SAFETENSORS,
            peft::file::TORCH,
        ];
        let weights = weights.iter().any(|f| path.join(f).exists());
        if weights {
            return Ok(Spec::Saved {
                name: name.map(str::to_owned),
                folder: path.to_owned(),
            });
        }
        return fresh(name, &path.join(file::CONFIG));
    }
    if path.is_file() && !identifier {
        if is_served(path) {
            return Ok(Spec::Saved {
                name: name.map(str::to_owned),
                folder: path.to_owned(),
            });
        }
        return fresh(name, path);
    }
    let config = Config::parse(spec)
        .map_err(|e| path_like(spec).map_or(e, |d| Error::new(ErrorKind::Method, d)))?;
    Ok(Spec::Fresh {
        name: name.map_or_else(|| default_name(spec), str::to_owned),
        config,
    })
}

/// Reads a setup as users name it: in AdapterHub's notation, as JSON, or the path of an `adapter_setup.json` or of its folder, which then holds
/// its adapters in folders of their names.
///
/// # Errors
/// [`ErrorKind::Usage`] for what is no setup, [`ErrorKind::Io`].
pub(crate) fn setup(text: &str) -> Result<(Setup, Option<PathBuf>)> {
    let wrong = |d: Diagnostic| Error::new(ErrorKind::Usage, d);
    let json = |text: &str| -> Result<Setup> {
        let value: Value = serde_json::from_str(text)
            .map_err(|e| wrong(Diagnostic::error("setup-json", e.to_string())))?;
        let own = value.get(file::SETUP_KEY).unwrap_or(&value);
        Setup::from_json(own).map_err(wrong)
    };
    let mut path = PathBuf::from(text);
    if path.is_dir() {
        path.push(file::SETUP);
    }
    if path.is_file() {
        let text = disk::text(&path).map_err(|e| Error::io(&path, "cannot be read", e))?;
        let setup = json(&text).map_err(|e| e.within(path.display().to_string()))?;
        return Ok((setup, path.parent().map(Path::to_owned)));
    }
    if text.trim_start().starts_with('{') {
        return json(text).map(|setup| (setup, None));
    }
    let setup = Setup::parse(text).map_err(wrong)?;
    Ok((setup, None))
}

/// Reads a fusion as users name it: `NAME=SPEC` or `SPEC`, where SPEC is the folder of a saved one, a JSON file, or a configuration such as
/// `static`. A fresh one without a name has none yet.
///
/// # Errors
/// [`ErrorKind::Method`] and [`ErrorKind::Io`].
pub(crate) fn fusion(text: &str) -> Result<Adapter> {
    let (name, spec) = split(text);
    let path = Path::new(spec);
    let fresh = |config| Adapter::fresh(name.unwrap_or_default(), config);
    if path.is_dir() {
        if !is_fusion(path) {
            let found = format!("there is no {} in `{spec}`", file::FUSION_CONFIG);
            return Err(Error::new(
                ErrorKind::Method,
                Diagnostic::error("spec-fusion", found)
                    .help("give the folder of a saved AdapterFusion, or `dynamic` or `static`"),
            ));
        }
        return Ok(AdapterFolder::read(path)?.into_adapter(name));
    }
    if path.is_file() {
        let text = disk::text(path).map_err(|e| Error::io(path, "cannot be read", e))?;
        return Config::of_fusion(&text)
            .map(fresh)
            .map_err(|e| e.within(path.display().to_string()));
    }
    Config::parse_fusion(spec)
        .map(fresh)
        .map_err(|e| path_like(spec).map_or(e, |d| Error::new(ErrorKind::Method, d)))
}

/// The part before the first `=` is a name, if that `=` is not inside brackets.
pub(crate) fn split(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, spec)) if !name.contains('[') => (Some(name.trim()), spec.trim()),
        _ => (None, text.trim()),
    }
}

/// Whether a specification is a method's identifier, whatever stands in the working folder.
pub(crate) fn is_identifier(spec: &str) -> bool {
    identifiers().any(|i| i == spec)
}

/// Where a specification is an identifier and an adapter's folder is called so too.
pub(crate) fn shadowed(text: &str) -> Option<Diagnostic> {
    let (_, spec) = split(text);
    let there = is_identifier(spec) && Path::new(spec).join(file::CONFIG).exists();
    there.then(|| {
        Diagnostic::warning(
            "spec-folder",
            format!("`{spec}` is taken as the method, and the adapter in the folder {spec}/ is not loaded"),
        )
        .help(format!("`--adapter ./{spec}` loads it"))
    })
}

fn default_name(spec: &str) -> String {
    let word = spec.split(['[', '|']).next().unwrap_or(spec).trim();
    word.replace(['+', '.'], "_")
}

/// Whether a path is that of one of ONNX Runtime's adapter files.
pub(crate) fn is_served(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == EXTENSION) && path.is_file()
}

/// One of ONNX Runtime's adapter files, as PEFT has it.
///
/// # Errors
/// A file that cannot be read, is none, or holds what PEFT has no words for.
pub(crate) fn read_served(path: &Path) -> Result<PeftFolder> {
    let bytes = disk::tensors(path).map_err(|e| Error::io(path, "cannot be read", e))?;
    let read = onnx_adapter::read(&bytes.into()).and_then(|file| peft::from_served(&file));
    read.map_err(|e| e.within(path.display().to_string()))
}

/// The adapter in a folder of AdapterHub's or of PEFT's, or in a file of ONNX Runtime's. The last two carry no name; theirs is the
/// folder's or the file's.
///
/// # Errors
/// Those of [`AdapterFolder::read`]; what a folder of PEFT's says that is not understood.
pub(crate) fn read_folder(folder: &Path) -> Result<AdapterFolder> {
    if is_served(folder) {
        let name = folder_name(&folder.with_extension(""));
        let read = read_served(folder)?;
        return peft::from_peft(&read, &name, None)
            .map_err(|e| e.within(folder.display().to_string()));
    }
    if !peft::is_peft(folder) {
        return AdapterFolder::read(folder);
    }
    let at = |e: Error| e.within(folder.display().to_string());
    let read = PeftFolder::read(folder)?;
    peft::from_peft(&read, &folder_name(folder), None).map_err(at)
}

/// The name of a folder, as far as an adapter may be called so.
pub(crate) fn folder_name(folder: &Path) -> String {
    let whole = folder.canonicalize();
    let name = whole.as_deref().unwrap_or(folder).file_name();
    let name = name.map(|n| n.to_string_lossy().replace(['.', ','], "_"));
    name.unwrap_or_else(|| "adapter".into())
}

/// What somebody probably meant as a path.
fn path_like(spec: &str) -> Option<Diagnostic> {
    let looks =
        Path::new(spec).extension().is_some_and(|e| e == "json") || spec.contains(['/', '\\']);
    looks.then(|| {
        Diagnostic::error("spec", format!("there is no file or folder `{spec}`"))
            .help("give a folder of a saved adapter, an adapter_config.json, or a configuration such as lora[r=8]")
    })
}

fn fresh(name: Option<&str>, path: &Path) -> Result<Spec> {
    let (saved, config) = read_config(path)?;
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned());
    let own = name.map(str::to_owned).or(saved).or(stem);
    Ok(Spec::Fresh {
        name: own.unwrap_or_else(|| "adapter".into()),
        config,
    })
}

/// The configuration in a JSON file, alone or as the `config` of a saved adapter, and the name there.
///
/// # Errors
/// [`ErrorKind::Io`] and [`ErrorKind::Method`].
pub(crate) fn read_config(path: &Path) -> Result<(Option<String>, Config)> {
    let text = disk::text(path).map_err(|e| Error::io(path, "cannot be read", e))?;
    let at = |e: Error| e.within(path.display().to_string());
    let value: Value = serde_json::from_str(&text).map_err(|e| {
        at(Error::new(
            ErrorKind::Method,
            Diagnostic::error("json", e.to_string()),
        ))
    })?;
    if let Value::Object(map) = &value
        && map.contains_key("peft_type")
    {
        return Ok((None, peft::config_alone(map).map_err(at)?));
    }
    let Some(inner) = value.get("config") else {
        return Ok((
            None,
            Config::from_dict(&value, UnknownKeys::Refuse).map_err(at)?,
        ));
    };
    // The library's own files may be of a version with more fields.
    let unknown = if value.get("version").is_some() {
        UnknownKeys::Keep
    } else {
        UnknownKeys::Refuse
    };
    let name = value.get("name").and_then(Value::as_str).map(str::to_owned);
    Ok((name, Config::from_dict(inner, unknown).map_err(at)?))
}

impl Spec {
    /// The adapter: fresh, or read from its folder.
    ///
    /// # Errors
    /// Those of [`AdapterFolder::read`].
    pub fn load(self) -> Result<Adapter> {
        match self {
            Spec::Fresh { name, config } => Ok(Adapter::fresh(name, config)),
            Spec::Saved { name, folder } => Ok(read_folder(&folder)?.into_adapter(name.as_deref())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn name(text: &str) -> String {
        match parse(text).unwrap() {
            Spec::Fresh { name, .. } => name,
            Spec::Saved { .. } => unreachable!(),
        }
    }

    #[test]
    fn names_come_from_the_text_or_the_method() {
        assert_eq!(name("a=lora[r=4]"), "a");
        assert_eq!(name("lora[r=4]"), "lora");
        assert_eq!(name("compacter++"), "compacter__");
        assert_eq!(name("x = lora | par_bn"), "x");
    }

    #[test]
    fn a_missing_path_is_called_one() {
        let e = parse("a=./no/such/folder").unwrap_err().to_string();
        assert!(
            e.contains("there is no file or folder `./no/such/folder`"),
            "{e}"
        );
    }

    #[test]
    fn a_configuration_file_is_read_bare_or_wrapped() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::parse("lora[r=3]").unwrap();
        let bare = dir.path().join("bare.json");
        fs::write(&bare, config.to_dict().to_string()).unwrap();
        assert_eq!(read_config(&bare).unwrap(), (None, config.clone()));
        let wrapped = dir.path().join("w.json");
        fs::write(
            &wrapped,
            serde_json::json!({"config": config.to_dict(), "name": "n"}).to_string(),
        )
        .unwrap();
        assert_eq!(read_config(&wrapped).unwrap(), (Some("n".into()), config));
        fs::write(&bare, r#"{"architecture": "lora", "rank": 3}"#).unwrap();
        assert!(
            read_config(&bare)
                .unwrap_err()
                .to_string()
                .contains("no field `rank`")
        );
    }
}
