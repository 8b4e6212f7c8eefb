//! Requests: who gets the token, which redirects are followed, what is tried again, and what an answer means.

use super::pace::Paced;
use super::{HubOptions, IntoError, Reference, fail};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, Result};
use crate::fence;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};
use ureq::http::{Method, Request, StatusCode, Uri};
use ureq::{Agent, Proxy, SendBody};

/// An answer.
pub(super) type Answer = ureq::http::Response<ureq::Body>;

/// Longest JSON answer that is read: a list of a hundred thousand files.
const JSON_LIMIT: u64 = 32 << 20;
const REDIRECTS: usize = 8;
/// A wait is no longer than this, and neither are all waits together that a server asks for.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// Repetitions of a request begin so long after it, waits that the server asked for not counted.
const REPEATING: Duration = Duration::from_secs(20);
/// An answer in JSON may take so many times longer to come than a connection may be silent.
const JSON_PATIENCE: u32 = 10;
/// A commit may take the server so many times longer than anything else.
const COMMIT_PATIENCE: u32 = 20;

/// What is sent along.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    Empty,
    /// Bytes of a media type.
    Bytes(&'a [u8], &'static str),
    /// A part of a file.
    File {
        path: &'a Path,
        from: u64,
        len: u64,
    },
}

/// A request.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) payload: Payload<'a>,
    /// What it is about, for messages.
    pub(super) about: &'a Reference,
    /// Whether redirects to other hosts are followed. If not, the redirect is the answer.
    pub(super) follow: bool,
    /// Whether it may be sent again after it may have arrived.
    pub(super) again: bool,
    /// Statuses that are answers, not errors.
    pub(super) accept: &'static [u16],
}

impl<'a> Ask<'a> {
    pub(super) fn new(method: Method, url: String, about: &'a Reference) -> Self {
        Ask {
            method,
            url,
            headers: Vec::new(),
            payload: Payload::Empty,
            about,
            follow: true,
            again: true,
            accept: &[],
        }
    }

    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(super) fn json(mut self, body: &'a [u8]) -> Self {
        self.payload = Payload::Bytes(body, "application/json");
        self
    }
}

/// A request that failed, and whether it may go better the next time.
struct Failure {
    error: Error,
    transient: bool,
    wait: Option<Duration>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure {
            error,
            transient: false,
            wait: None,
        }
    }
}

/// The connection to the Hub.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    base: Uri,
    endpoint: String,
    options: HubOptions,
}

impl Client {
    pub(super) fn new(mut options: HubOptions) -> Result<Client> {
        let endpoint = options.endpoint.trim().trim_end_matches('/').to_owned();
        let base = endpoint.parse::<Uri>().ok().filter(|u| {
            matches!(u.scheme_str(), Some("http" | "https"))
                && u.authority().is_some_and(|a| !a.as_str().contains('@'))
                && u.query().is_none()
        });
        let Some(base) = base else {
            return Err(fail("hub-endpoint", "the Hub's address is none that can be used")
                .help("HF_ENDPOINT is `https://host` or `http://host:port`, without name and password")
                .into_error());
        };
        let local = base
            .host()
            .is_some_and(|h| h == "localhost" || h == "[::1]" || h.starts_with("127."));
        let wait = Some(options.timeout);
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(if local { None } else { Proxy::try_from_env() })
            .user_agent(concat!("onnx-graft/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(wait)
            .timeout_connect(wait)
            .timeout_recv_response(wait)
            .timeout_per_read(wait)
            .timeout_per_write(wait)
            .build()
            .new_agent();
        options.endpoint.clone_from(&endpoint);
        Ok(Client {
            agent,
            base,
            endpoint,
            options,
        })
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(super) fn has_token(&self) -> bool {
        self.options.token.is_some()
    }

    pub(super) fn retries(&self) -> u32 {
        self.options.retries
    }

    /// How long a connection may be silent.
    pub(super) fn timeout(&self) -> Duration {
        self.options.timeout
    }

    /// The wait before the `n`-th repetition.
    fn delay(&self, n: u32) -> Duration {
        let own = self.options.retry_delay.saturating_mul(1 << n.min(5));
        own.min(LONGEST_WAIT)
    }

    /// Waits before the `n`-th repetition.
    pub(super) fn pause(&self, n: u32) {
        std::thread::sleep(self.delay(n));
    }

    /// Sends a request, again where that can help, and takes nothing for an answer but success, what `accept` lists, and a
    /// redirect that was not to be followed.
    pub(super) fn send(&self, ask: &Ask<'_>, sent: &mut dyn FnMut(u64)) -> Result<Answer> {
        let began = Instant::now();
        let (mut tries, mut asked) = (0, Duration::ZERO);
        loop {
            let f = match self.once(ask, sent) {
                Ok(answer) => return Ok(answer),
                Err(f) => f,
            };
            let own = self.delay(tries);
            let wait = f.wait.unwrap_or_default();
            asked = asked.saturating_add(wait);
            let late = began.elapsed().saturating_add(own) > REPEATING.saturating_add(asked);
            let more = f.transient && ask.again && tries < self.options.retries;
            if !more || asked > LONGEST_WAIT || late {
                return Err(f.error);
            }
            std::thread::sleep(own.max(wait));
            tries += 1;
        }
    }

    /// The answer as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self, ask: &Ask<'_>) -> Result<T> {
        let answer = self.send(ask, &mut |_| {})?;
        let body = answer.into_body().into_with_config().limit(JSON_LIMIT);
        let wait = self.options.timeout;
        let total = Some(wait.saturating_mul(JSON_PATIENCE));
        let mut bytes = Vec::new();
        let read = Paced::new(body.reader(), wait, total).read_to_end(&mut bytes);
        read.map_err(|e| self.broken(ask.about, &e.into()).error)?;
        serde_json::from_slice(&bytes).map_err(|e| {
            fail(
                "hub-answer",
                format!("the answer is not what the API promises: {e}"),
            )
            .at(format!("{} on {}", ask.about, self.endpoint))
            .help("is HF_ENDPOINT the address of a Hub or of a mirror?")
            .into_error()
        })
    }

    fn once(&self, ask: &Ask<'_>, sent: &mut dyn FnMut(u64)) -> Result<Answer, Failure> {
        let mut url = parse(&ask.url, ask.about)?;
        for hop in 0..=REDIRECTS {
            let answer = self.hop(ask, &url, hop, sent)?;
            let status = answer.status();
            let to = answer
                .headers()
                .get("location")
                .filter(|_| status.is_redirection());
            let Some(to) = to.and_then(|l| l.to_str().ok()) else {
                let good = status.is_success() || ask.accept.contains(&status.as_u16());
                return if good {
                    Ok(answer)
                } else {
                    Err(self.refused(ask, answer))
                };
            };
            let next = parse(&joined(&url, to), ask.about)?;
            // A renamed repository redirects to a path; an address is the store's.
            let own = to.starts_with('/') && same_origin(&next, &url);
            if !ask.follow && !own {
                return Ok(answer);
            }
            if url.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                let d = fail(
                    "hub-redirect",
                    "the Hub redirects to an address without encryption",
                );
                return Err(d.at(ask.about.to_string()).into_error().into());
            }
            url = next;
        }
        let d = fail("hub-redirect", "the Hub redirects in circles");
        Err(d.at(ask.about.to_string()).into_error().into())
    }

    fn hop(
        &self,
        ask: &Ask<'_>,
        url: &Uri,
        hop: usize,
        sent: &mut dyn FnMut(u64),
    ) -> Result<Answer, Failure> {
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(url.clone());
        let mut own = false;
        for (name, value) in &ask.headers {
            // Secrets that belong to one address do not go to the next.
            let secret = name.eq_ignore_ascii_case("authorization");
            own |= secret;
            if !secret || hop == 0 {
                request = request.header(name, value);
            }
        }
        if let (Some(token), false, true) = (&self.options.token, own, same_origin(url, &self.base))
        {
            request = request.header("authorization", format!("Bearer {}", token.secret()));
        }
        let invalid = |_| -> Failure {
            let d = fail(
                "hub-answer",
                "the server named a header that cannot be sent",
            );
            d.at(ask.about.to_string()).into_error().into()
        };
        let run = |request: Request<SendBody<'_>>| {
            if ask.again {
                return fenced(|| self.agent.run(request));
            }
            let patience = Some(self.options.timeout.saturating_mul(COMMIT_PATIENCE));
            let config = self.agent.configure_request(request);
            let config = config.timeout_per_read(patience);
            let request = config.timeout_recv_response(patience).build();
            fenced(|| self.agent.run(request))
        };
        let answer = match ask.payload {
            Payload::Empty => run(request.body(SendBody::none()).map_err(invalid)?),
            Payload::Bytes(bytes, kind) => {
                let mut reader = bytes;
                let request = request
                    .header("content-type", kind)
                    .header("content-length", bytes.len());
                run(request
                    .body(SendBody::from_reader(&mut reader))
                    .map_err(invalid)?)
            }
            Payload::File { path, from, len } => {
                let open = || -> std::io::Result<File> {
                    let mut file = disk::open(path)?;
                    file.seek(SeekFrom::Start(from))?;
                    Ok(file)
                };
                let file = open().map_err(|e| Error::io(path, "cannot be read", e))?;
                let mut reader = Counted {
                    inner: file.take(len),
                    done: 0,
                    sent,
                };
                let request = request.header("content-length", len);
                run(request
                    .body(SendBody::from_reader(&mut reader))
                    .map_err(invalid)?)
            }
        };
        answer.map_err(|e| self.broken(ask.about, &e))
    }

    /// A connection that failed.
    fn broken(&self, about: &Reference, e: &ureq::Error) -> Failure {
        let (what, transient) = match e {
            ureq::Error::Timeout(_) => (
                format!("nothing came for {} s", self.options.timeout.as_secs_f64()),
                true,
            ),
            ureq::Error::HostNotFound => ("the host is not known".to_owned(), false),
            ureq::Error::BadUri(_) => {
                ("the server named an address that is none".to_owned(), false)
            }
            ureq::Error::Io(io) => {
                let refused = io.kind() == std::io::ErrorKind::ConnectionRefused;
                (self.scrubbed(&io.to_string()), !refused)
            }
            ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => {
                (self.scrubbed(&e.to_string()), true)
            }
            _ => (self.scrubbed(&e.to_string()), false),
        };
        let d = fail("hub-connection", format!("{}: {what}", self.endpoint))
            .at(about.to_string())
            .help("with HF_HUB_OFFLINE=1 what is in the cache is used; HF_ENDPOINT names a mirror");
        Failure {
            error: d.into_error(),
            transient,
            wait: None,
        }
    }

    /// A status that is no success.
    fn refused(&self, ask: &Ask<'_>, answer: Answer) -> Failure {
        let status = answer.status();
        let header = |name: &str| {
            let value = answer.headers().get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        let (code, mut said) = (header("x-error-code"), header("x-error-message"));
        let wait = header("retry-after")
            .and_then(|s| s.parse().ok())
            .map(Duration::from_secs);
        if said.is_none() && ask.method != Method::HEAD {
            let body = answer
                .into_body()
                .into_with_config()
                .limit(1 << 16)
                .read_to_vec();
            said = body.ok().and_then(|b| {
                let json: serde_json::Value = serde_json::from_slice(&b).ok()?;
                let text = json["error"].as_str().or(json["message"].as_str());
                text.map(str::to_owned)
            });
        }
        let said = said.map(|s| self.scrubbed(&s));
        let d = self.meaning(ask.about, status, code.as_deref(), said.as_deref());
        let d = match said {
            Some(said) => d.note(format!("the server says: {said}")),
            None => d,
        };
        let d = match wait.filter(|w| *w > LONGEST_WAIT) {
            Some(wait) => d.note(format!("it asks for a wait of {} s", wait.as_secs())),
            None => d,
        };
        Failure {
            error: d
                .at(format!("{} on {}", ask.about, self.endpoint))
                .into_error(),
            transient: matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504),
            wait,
        }
    }

    fn meaning(
        &self,
        about: &Reference,
        status: StatusCode,
        code: Option<&str>,
        said: Option<&str>,
    ) -> Diagnostic {
        let known = match &self.options.token {
            Some(_) => "a token was sent",
            None => {
                "no token was sent: set HF_TOKEN, or log in with Hugging Face's own command line"
            }
        };
        let (kind, page) = (about.kind.name(), about.page());
        match (code, status.as_u16()) {
            (Some("GatedRepo"), _) => fail(
                "hub-gated",
                format!("access to `{}` must be asked for", about.repo),
            )
            .help(format!("ask for it at {}/{page}; {known}", self.endpoint)),
            (Some("RevisionNotFound"), _) => fail(
                "hub-revision",
                format!("`{}` has no revision `{}`", about.repo, about.revision),
            )
            .help("a branch, a tag, or a commit"),
            (Some("EntryNotFound"), _) => fail(
                "hub-file",
                format!("`{}` has no such file at this revision", about.repo),
            )
            .help("a pull without a path and with `-v` lists what there is"),
            (_, 401)
                if said.is_some_and(|s| {
                    s.contains("Invalid credentials") || s.contains("Invalid username")
                }) =>
            {
                fail("hub-token", "the token was refused").help(format!(
                    "make a new one at {}/settings/tokens",
                    self.endpoint
                ))
            }
            (Some("RepoNotFound"), _) | (_, 401 | 404) => fail(
                "hub-repo",
                format!("there is no {kind} `{}`, or it is private", about.repo),
            )
            .help(format!(
                "check the name and whether it is a {kind}; {known}"
            )),
            (_, 403) => fail("hub-forbidden", "the Hub does not allow this")
                .help(format!("the token needs the right to do it; {known}")),
            (_, 409) => {
                fail("hub-conflict", "the repository changed in the meantime").help("try again")
            }
            (_, 429) => fail("hub-busy", "too many requests").help("try again later"),
            (_, 500..) => fail(
                "hub-server",
                format!("the server failed with status {}", status.as_u16()),
            )
            .help("try again later"),
            (_, other) => fail(
                "hub-status",
                format!("the server answered with status {other}"),
            ),
        }
    }

    /// A text of the server for a terminal: without the token, without control characters, short.
    pub(super) fn scrubbed(&self, text: &str) -> String {
        let hidden = match &self.options.token {
            Some(token) => text.replace(token.secret(), "…"),
            None => text.to_owned(),
        };
        let plain = hidden.chars().map(|c| if c.is_control() { ' ' } else { c });
        plain.take(300).collect::<String>().trim().to_owned()
    }
}

/// What a client of third parties does with what a server sends.
fn fenced(
    work: impl FnOnce() -> std::result::Result<Answer, ureq::Error>,
) -> std::result::Result<Answer, ureq::Error> {
    let fallen = |f: fence::Fallen| ureq::Error::Io(std::io::Error::other(f.to_string()));
    fence::guarded(work).map_err(fallen)?
}

/// Counts what is sent.
struct Counted<'a, R> {
    inner: R,
    done: u64,
    sent: &'a mut dyn FnMut(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.done += n as u64;
        (self.sent)(self.done);
        Ok(n)
    }
}

/// An address. It may be signed: no message shows it.
fn parse(url: &str, about: &Reference) -> Result<Uri> {
    let good = url
        .parse::<Uri>()
        .ok()
        .filter(|u| matches!(u.scheme_str(), Some("http" | "https")) && u.host().is_some());
    good.ok_or_else(|| {
        fail("hub-answer", "the server named an address that is none")
            .at(about.to_string())
            .into_error()
    })
}

fn joined(from: &Uri, to: &str) -> String {
    let scheme = from.scheme_str().unwrap_or("https");
    let authority = from.authority().map_or("", |a| a.as_str());
    if to.starts_with("//") {
        format!("{scheme}:{to}")
    } else if to.starts_with('/') {
        format!("{scheme}://{authority}{to}")
    } else {
        to.to_owned()
    }
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |u: &Uri| {
        u.port_u16().unwrap_or(if u.scheme_str() == Some("https") {
            443
        } else {
            80
        })
    };
    a.scheme_str() == b.scheme_str()
        && port(a) == port(b)
        && matches!((a.host(), b.host()), (Some(a), Some(b)) if a.eq_ignore_ascii_case(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_belongs_to_one_origin() {
        let uri = |t: &str| t.parse::<Uri>().unwrap();
        let hub = uri("https://hub.co");
        assert!(same_origin(&uri("https://HUB.co:443/x"), &hub));
        for other in [
            "http://hub.co/",
            "https://hub.co:444/",
            "https://cdn.hub.co/",
            "https://hub.co.evil/",
        ] {
            assert!(!same_origin(&uri(other), &hub), "{other}");
        }
    }

    #[test]
    fn redirects_are_relative_or_not() {
        let from = "https://hub.co/a/b".parse::<Uri>().unwrap();
        assert_eq!(joined(&from, "/c?d"), "https://hub.co/c?d");
        assert_eq!(joined(&from, "//cdn/c"), "https://cdn/c");
        assert_eq!(joined(&from, "http://x/"), "http://x/");
    }
}
