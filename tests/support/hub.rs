//! A small server that speaks the Hub's API, on this machine: repositories in memory, a store at another address, and faults on demand.

use serde_json::{Value, json};
use sha1::Digest;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub(crate) const TOKEN: &str = "hf_verySecretToken123";
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// `hub` or `store`.
    pub(crate) at: &'static str,
    pub(crate) line: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What goes wrong, once.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// This status.
    Status(u16),
    /// The body ends after so many bytes.
    Cut(usize),
    /// Nothing comes after so many bytes, and the connection stays open.
    Stall(usize),
    /// This body instead.
    Body(Vec<u8>),
    /// A header.
    Header(&'static str, String),
    /// Too many requests, with a wait in seconds.
    Busy(String),
    /// A redirect.
    Moved(String),
}

#[derive(Default)]
pub(crate) struct State {
    /// Content, and whether it is in the store.
    pub(crate) files: BTreeMap<String, (Vec<u8>, bool)>,
    /// Further names in the list of files.
    pub(crate) names: Vec<String>,
    pub(crate) commit: Option<String>,
    /// Faults by a part of the request line, each used once.
    pub(crate) faults: Vec<(String, Fault)>,
    pub(crate) seen: Vec<Seen>,
    /// Objects of the store.
    pub(crate) objects: BTreeMap<String, Vec<u8>>,
    /// Parts of this size.
    pub(crate) parts: Option<usize>,
    /// Lines of commits.
    pub(crate) commits: Vec<Vec<Value>>,
    pub(crate) ignores_ranges: bool,
    /// A file without a size whose body does not end.
    pub(crate) endless: Option<String>,
    /// The store has the Hub's address.
    pub(crate) one_host: bool,
    /// What the Hub says of the token.
    pub(crate) auth: Value,
}

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) store: String,
    pub(crate) state: Arc<Mutex<State>>,
}

struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

fn reply(status: u16, body: impl Into<Vec<u8>>) -> Reply {
    Reply {
        status,
        headers: Vec::new(),
        body: body.into(),
    }
}

impl Reply {
    fn with(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |out, b| format!("{out}{b:02x}"))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

pub(crate) fn git_sha1(bytes: &[u8]) -> String {
    let mut h = sha1::Sha1::new();
    h.update(format!("blob {}\0", bytes.len()));
    h.update(bytes);
    hex(&h.finalize())
}

impl Server {
    pub(crate) fn new(files: &[(&str, &[u8], bool)]) -> Server {
        let state = Arc::new(Mutex::new(State::default()));
        for (path, bytes, lfs) in files {
            let entry = (bytes.to_vec(), *lfs);
            state
                .lock()
                .unwrap()
                .files
                .insert((*path).to_owned(), entry);
        }
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (hub, store) = (bind(), bind());
        let address = |l: &TcpListener| format!("http://{}", l.local_addr().unwrap());
        let server = Server {
            url: address(&hub),
            store: address(&store),
            state,
        };
        for (at, listener) in [("hub", hub), ("store", store)] {
            let state = server.state.clone();
            let (url, store) = (server.url.clone(), server.store.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, url, store) = (state.clone(), url.clone(), store.clone());
                    std::thread::spawn(move || serve(at, stream, &state, &url, &store));
                }
            });
        }
        server
    }

    pub(crate) fn fault(&self, part: &str, fault: Fault) {
        self.state
            .lock()
            .unwrap()
            .faults
            .push((part.to_owned(), fault));
    }

    /// Requests whose line has this part.
    pub(crate) fn seen(&self, part: &str) -> Vec<Seen> {
        let state = self.state.lock().unwrap();
        state
            .seen
            .iter()
            .filter(|s| s.line.contains(part))
            .cloned()
            .collect()
    }
}

fn request(at: &'static str, stream: &TcpStream) -> Option<Seen> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        match header.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.insert(name.to_ascii_lowercase(), value.trim().to_owned())
            }
            None => break,
        };
    }
    let length = headers
        .get("content-length")
        .and_then(|l| l.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Seen {
        at,
        line: line.trim_end().to_owned(),
        headers,
        body,
    })
}

fn serve(at: &'static str, mut stream: TcpStream, state: &Mutex<State>, url: &str, store: &str) {
    let Some(seen) = request(at, &stream) else {
        return;
    };
    let mut state = state.lock().unwrap();
    state.seen.push(seen.clone());
    let fault = state
        .faults
        .iter()
        .position(|(part, _)| format!("{at} {}", seen.line).contains(part.as_str()));
    let fault = fault.map(|i| state.faults.remove(i).1);
    if let Some(name) = state.endless.as_ref().filter(|n| seen.line.contains(&***n)) {
        let head = format!(
            "HTTP/1.1 200 X\r\nConnection: close\r\nTransfer-Encoding: chunked\r\netag: \"{name}\"\r\nx-repo-commit: {COMMIT}\r\n\r\n"
        );
        let body = !seen.line.starts_with("HEAD");
        drop(state);
        let _ = stream.write_all(head.as_bytes());
        let chunk = [&b"10000\r\n"[..], &vec![b'x'; 1 << 16], b"\r\n"].concat();
        while body && stream.write_all(&chunk).is_ok() {}
        return;
    }
    let mut reply = match at {
        "hub" => hub(&mut state, &seen, url, store),
        _ => objects(&mut state, &seen),
    };
    drop(state);
    let (mut end, mut stall) = (None, false);
    match fault {
        Some(Fault::Status(status)) => reply = self::reply(status, "").with("x-request-id", "1"),
        Some(Fault::Cut(n)) => end = Some(n),
        Some(Fault::Stall(n)) => (end, stall) = (Some(n), true),
        Some(Fault::Body(body)) => reply.body = body,
        Some(Fault::Busy(wait)) => reply = self::reply(429, "").with("retry-after", wait),
        Some(Fault::Moved(to)) => reply = self::reply(307, "").with("location", to),
        Some(Fault::Header(name, value)) => {
            reply.headers.retain(|(n, _)| n != name);
            reply.headers.push((name.to_owned(), value));
        }
        None => {}
    }
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(n, _)| n == "content-length") {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    let _ = stream.write_all(head.as_bytes());
    if !seen.line.starts_with("HEAD") {
        let end = end.unwrap_or(reply.body.len()).min(reply.body.len());
        let _ = stream.write_all(&reply.body[..end]);
    }
    let _ = stream.flush();
    if stall {
        // The other side goes first.
        let _ = stream.read(&mut [0; 1]);
    }
}

fn ranged(reply_to: &Seen, bytes: &[u8], ignore: bool) -> Reply {
    let from = reply_to.header("range").and_then(|r| {
        r.strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse::<usize>()
            .ok()
    });
    match from {
        Some(from) if !ignore && from >= bytes.len() => reply(416, ""),
        Some(from) if !ignore => reply(206, &bytes[from..]).with(
            "content-range",
            format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()),
        ),
        _ => reply(200, bytes),
    }
}

fn hub(state: &mut State, seen: &Seen, url: &str, store: &str) -> Reply {
    let mut words = seen.line.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let path = target.split('?').next().unwrap();
    let known = seen.header("authorization") == Some(&format!("Bearer {TOKEN}"));
    if seen.header("authorization").is_some() && !known {
        let said = format!(
            "Invalid credentials in Authorization header: {}",
            seen.header("authorization").unwrap()
        );
        return reply(401, "").with("x-error-message", said);
    }
    if path.contains("org/gated") && !known {
        return reply(403, "")
            .with("x-error-code", "GatedRepo")
            .with("x-error-message", "Access to this is restricted.");
    }
    if path.contains("org/none") || (path.contains("org/private") && !known) {
        return reply(401, "").with("x-error-code", "RepoNotFound");
    }
    if path.contains("/revision/")
        && !path.ends_with("/revision/main")
        && !path.ends_with(COMMIT)
        && !path.ends_with("v%2F1")
    {
        return reply(404, "")
            .with("x-error-code", "RevisionNotFound")
            .with("x-error-message", "Invalid rev id");
    }
    let commit = state.commit.clone().unwrap_or_else(|| COMMIT.to_owned());
    if path == "/api/whoami-v2" {
        return if known {
            let me = json!({"name": "me", "orgs": [], "auth": state.auth});
            reply(200, me.to_string())
        } else {
            reply(401, "").with("x-error-message", "Invalid username or password.")
        };
    }
    if method == "GET" && path.starts_with("/api/") {
        let mut siblings: Vec<Value> = state
            .files
            .iter()
            .map(|(p, (b, _))| json!({"rfilename": p, "size": b.len()}))
            .collect();
        siblings.extend(state.names.iter().map(|n| json!({"rfilename": n})));
        return reply(
            200,
            json!({"sha": commit, "siblings": siblings}).to_string(),
        );
    }
    if method == "POST" {
        return posted(state, seen, path, url, store);
    }
    if path.starts_with("/get/") {
        return objects(state, seen);
    }
    let Some((_, rest)) = path.split_once("/resolve/") else {
        return reply(404, "");
    };
    let file = rest.split_once('/').unwrap().1.replace("%20", " ");
    let Some((bytes, lfs)) = state.files.get(&file) else {
        return reply(404, "").with("x-error-code", "EntryNotFound");
    };
    if !lfs {
        let etag = format!("\"{}\"", git_sha1(bytes));
        let answer = ranged(seen, bytes, state.ignores_ranges);
        return answer.with("etag", etag).with("x-repo-commit", commit);
    }
    let oid = sha256(bytes);
    let store = if state.one_host { url } else { store };
    reply(302, "")
        .with(
            "location",
            format!("{store}/get/{oid}?X-Signature=signedSecret"),
        )
        .with("x-linked-etag", format!("\"{oid}\""))
        .with("x-linked-size", bytes.len().to_string())
        .with("etag", "\"other\"")
        .with("x-repo-commit", commit)
}

fn posted(state: &mut State, seen: &Seen, path: &str, url: &str, store: &str) -> Reply {
    if seen.header("authorization").is_none() {
        return reply(401, "").with("x-error-message", "no token");
    }
    if path.contains("/commit/") {
        let text = String::from_utf8(seen.body.clone()).unwrap();
        let lines = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        state.commits.push(lines);
        let mut answer =
            json!({"success": true, "commitOid": COMMIT, "commitUrl": format!("{url}/c")});
        if seen.line.contains("create_pr=1") {
            answer["pullRequestUrl"] = format!("{url}/org/repo/discussions/1").into();
        }
        return reply(200, answer.to_string());
    }
    if path.ends_with("/verify") {
        return reply(200, "");
    }
    if path.starts_with("/complete") {
        return reply(200, "{}");
    }
    let body: Value = serde_json::from_slice(&seen.body).unwrap();
    if path == "/api/repos/create" {
        return reply(200, json!({"url": url}).to_string());
    }
    if path.contains("/preupload/") {
        let files = body["files"].as_array().unwrap().iter().map(|f| {
            let name = f["path"].as_str().unwrap();
            let lfs = [".safetensors", ".bin"].iter().any(|e| name.ends_with(e));
            let there = state.files.get(name).map(|(b, lfs)| if *lfs { sha256(b) } else { git_sha1(b) });
            json!({"path": name, "uploadMode": if lfs { "lfs" } else { "regular" }, "shouldIgnore": false, "oid": there})
        });
        return reply(200, json!({"files": files.collect::<Vec<_>>()}).to_string());
    }
    if path.ends_with("/info/lfs/objects/batch") {
        let objects = body["objects"].as_array().unwrap().iter().map(|o| {
            let (oid, size) = (o["oid"].as_str().unwrap(), o["size"].as_u64().unwrap() as usize);
            if state.objects.contains_key(oid) {
                return json!({"oid": oid, "size": size});
            }
            let mut upload = json!({"href": format!("{store}/put/{oid}?X-Signature=signedSecret")});
            if let Some(part) = state.parts {
                upload["href"] = format!("{url}/complete/{oid}").into();
                upload["header"] = json!({"chunk_size": part.to_string()});
                for n in 1..=size.div_ceil(part) {
                    upload["header"][n.to_string()] = format!("{store}/put/{oid}?partNumber={n}").into();
                }
            }
            json!({"oid": oid, "size": size, "actions": {"upload": upload, "verify": {"href": format!("{url}/org/repo/verify")}}})
        });
        return reply(
            200,
            json!({"transfer": "basic", "objects": objects.collect::<Vec<_>>()}).to_string(),
        );
    }
    reply(404, "")
}

fn objects(state: &mut State, seen: &Seen) -> Reply {
    let target = seen.line.split(' ').nth(1).unwrap();
    let oid = target
        .split('?')
        .next()
        .unwrap()
        .rsplit('/')
        .next()
        .unwrap()
        .to_owned();
    if seen.line.starts_with("PUT") {
        state.objects.entry(oid).or_default().extend(&seen.body);
        return reply(200, "").with("etag", "\"part\"");
    }
    let found = state.files.values().find(|(b, _)| sha256(b) == oid);
    match found {
        Some((bytes, _)) => ranged(seen, bytes, state.ignores_ranges),
        None => reply(404, ""),
    }
}
