//! The Hugging Face Hub: models, datasets and adapters from it and to it.
//!
//! What is pulled lies in the cache that Python's `huggingface_hub` uses, in its layout, so that each file is on the machine once.
//! The transfer is our own: it checks every file's size and hash before the file has its
//! name, goes on where a broken download ended, sends the token to the Hub alone and not to the store that the Hub redirects to, and
//! believes no name that a server says.
//!
//! The environment is Python's: `HF_ENDPOINT`, `HF_TOKEN` (else the token file), `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`.
//!
//! Nothing here prints. The token is in no message, and not in what `Debug` shows.

mod cache;
mod http;
mod name;
mod pace;
mod pull;
mod push;
mod resolve;

pub(crate) use name::{Kind, Pattern, Reference};
pub(crate) use pull::{Listing, Pulled, PulledFile, RemoteFile, Select};
pub(crate) use push::{PushFile, PushOptions, Pushed, Source, folder};
pub(crate) use resolve::{Sought, Want, resolve};

use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A secret: `Debug` does not show it, and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(Box<str>);

impl Token {
    /// A token, if there is one in the text.
    pub(crate) fn new(text: &str) -> Option<Token> {
        let text = text.trim();
        (!text.is_empty()).then(|| Token(text.into()))
    }

    fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where the Hub is, who asks, and where files are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HubOptions {
    /// Address of the Hub or of a mirror.
    pub endpoint: String,
    /// Who asks.
    pub token: Option<Token>,
    /// The cache: the folder with `models--org--name` in it.
    pub cache: PathBuf,
    /// Only what is in the cache.
    pub offline: bool,
    /// How often a request is sent again when the connection broke or the server is busy.
    pub retries: u32,
    /// Wait before the first repetition; doubled each time.
    pub retry_delay: Duration,
    /// A connection on which nothing comes for so long, or hardly anything, is broken.
    pub timeout: Duration,
}

impl HubOptions {
    /// Python's environment variables, as `var` gives them.
    ///
    /// # Errors
    /// No home folder and no `HF_HOME`; a token that is no header value.
    pub(crate) fn new(var: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| var(name).filter(|v| !v.trim().is_empty());
        let yes = |name: &str| {
            set(name).is_some_and(|v| {
                ["1", "true", "yes", "on"].contains(&v.to_ascii_lowercase().as_str())
            })
        };
        let home = || {
            if let Some(home) = set("HF_HOME") {
                return Ok(PathBuf::from(home));
            }
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")));
            cache.map(|c| c.join("huggingface")).ok_or_else(|| {
                fail("hub-cache", "there is no home folder for the cache")
                    .help("set HF_HOME to a folder")
                    .into_error()
            })
        };
        let cache = match set("HF_HUB_CACHE") {
            Some(path) => PathBuf::from(path),
            None => home()?.join("hub"),
        };
        let token = match set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")) {
            Some(token) => Token::new(&token),
            None if yes("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            None => token_file(set("HF_TOKEN_PATH").map(PathBuf::from), &cache, home),
        };
        if token
            .as_ref()
            .is_some_and(|t| !t.secret().bytes().all(|b| b.is_ascii_graphic()))
        {
            return Err(
                fail("hub-token", "the token has characters that no token has")
                    .help("HF_TOKEN, or the token file, holds one word of letters and digits")
                    .into_error(),
            );
        }
        Ok(HubOptions {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token,
            cache,
            offline: yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE"),
            retries: 5,
            retry_delay: Duration::from_secs(1),
            timeout: Duration::from_secs(30),
        })
    }

    /// The environment of the process.
    ///
    /// # Errors
    /// See [`HubOptions::new`].
    pub(crate) fn from_env() -> Result<Self> {
        Self::new(|name| std::env::var(name).ok())
    }
}

/// The token that a login left.
fn token_file(
    path: Option<PathBuf>,
    cache: &std::path::Path,
    home: impl Fn() -> Result<PathBuf>,
) -> Option<Token> {
    let path = match path {
        Some(path) => path,
        None => match home() {
            Ok(home) => home.join("token"),
            // Without a home, beside the cache.
            Err(_) => cache.with_file_name("token"),
        },
    };
    Token::new(&disk::text(path).ok()?)
}

/// How far the transfer of one file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transfer<'a> {
    /// Its path in the repository.
    pub file: &'a str,
    /// Bytes that are there.
    pub done: u64,
    /// All bytes, where that is known.
    pub total: Option<u64>,
}

/// Receives progress.
pub(crate) type OnTransfer<'a> = &'a mut dyn FnMut(Transfer<'_>);

/// The Hub, or a server that speaks its API.
#[derive(Debug)]
pub(crate) struct Hub {
    client: http::Client,
    cache: PathBuf,
    offline: bool,
}

impl Hub {
    /// A client. Nothing is sent yet.
    ///
    /// # Errors
    /// An endpoint that is no address.
    pub(crate) fn new(options: HubOptions) -> Result<Hub> {
        Ok(Hub {
            cache: options.cache.clone(),
            offline: options.offline,
            client: http::Client::new(options)?,
        })
    }

    /// A client after the environment of the process.
    ///
    /// # Errors
    /// See [`HubOptions::from_env`] and [`Hub::new`].
    pub(crate) fn from_env() -> Result<Hub> {
        Hub::new(HubOptions::from_env()?)
    }
}

/// A finding about the Hub.
fn fail(code: &'static str, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error(code, message)
}

/// Makes an error of a finding.
trait IntoError {
    fn into_error(self) -> Error;
}

impl IntoError for Diagnostic {
    fn into_error(self) -> Error {
        Error::new(ErrorKind::Hub, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vars: &[(&str, &str)]) -> Result<HubOptions> {
        let vars: Vec<(String, String)> = vars
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        HubOptions::new(move |name| vars.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    #[test]
    fn the_environment_is_pythons() {
        let home = tempfile::tempdir().unwrap();
        let at = home.path().to_str().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let o = options(&[("HF_HOME", at)]).unwrap();
        assert_eq!(o.cache, home.path().join("hub"));
        assert_eq!(o.token, Token::new("hf_file"));
        assert_eq!(o.endpoint, "https://huggingface.co");
        assert!(!o.offline);
        let o = options(&[
            ("HF_HOME", at),
            ("HF_HUB_CACHE", "elsewhere"),
            ("HF_TOKEN", "hf_var"),
            ("HF_HUB_OFFLINE", "True"),
            ("HF_ENDPOINT", "http://127.0.0.1:1"),
        ])
        .unwrap();
        assert_eq!(o.cache, PathBuf::from("elsewhere"));
        assert_eq!(o.token, Token::new("hf_var"));
        assert!(o.offline);
        let o = options(&[("HF_HOME", at), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).unwrap();
        assert_eq!(o.token, None);
        let e = options(&[("HF_HOME", at), ("HF_TOKEN", "hf_a b")]).unwrap_err();
        assert!(!e.to_string().contains("hf_a"), "{e}");
    }

    #[test]
    fn a_token_is_not_shown() {
        let o = options(&[("HF_HOME", "h"), ("HF_TOKEN", "hf_secret")]).unwrap();
        let hub = Hub::new(o.clone()).unwrap();
        let shown = format!("{o:?} {o:#?} {hub:?} {hub:#?}");
        assert!(!shown.contains("hf_secret"), "{shown}");
    }
}
