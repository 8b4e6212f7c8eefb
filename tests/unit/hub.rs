//! The Hub's client against a server on this machine: what is asked, what is believed, where things land, and what nobody gets to see.

use super::support::hub::{COMMIT, Fault, Server, TOKEN, git_sha1, sha256};
use onnx_graft::hub::{
    Hub, HubOptions, Kind, Pulled, PushFile, PushOptions, Reference, Select, Source, Token, Want,
    folder,
};
use onnx_graft::{Error, Result};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

struct Desk {
    server: Server,
    home: TempDir,
}

impl Desk {
    fn new(files: &[(&str, &[u8], bool)]) -> Desk {
        Desk {
            server: Server::new(files),
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn options(&self) -> HubOptions {
        HubOptions {
            endpoint: self.server.url.clone(),
            token: Token::new(TOKEN),
            cache: self.home.path().join("hub"),
            offline: false,
            retries: 3,
            retry_delay: Duration::ZERO,
            // Long enough for a busy machine; only a connection that stalls waits for it.
            timeout: Duration::from_secs(5),
        }
    }

    fn hub(&self) -> Hub {
        Hub::new(self.options()).unwrap()
    }

    fn pull(&self, patterns: &[&str]) -> Result<Pulled> {
        pull(&self.hub(), patterns)
    }

    fn repo(&self) -> std::path::PathBuf {
        self.home.path().join("hub/models--org--repo")
    }

    /// The names of blobs.
    fn blobs(&self) -> Vec<String> {
        let list = fs::read_dir(self.repo().join("blobs"));
        let mut names: Vec<String> = list
            .into_iter()
            .flatten()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn reference() -> Reference {
    Reference::parse("org/repo").unwrap()
}

fn pull(hub: &Hub, patterns: &[&str]) -> Result<Pulled> {
    let include = patterns.iter().map(|p| (*p).to_owned()).collect();
    let select = Select {
        include,
        exclude: Vec::new(),
    };
    hub.pull(&reference(), &select, &mut |_| {})
}

fn code(e: &Error) -> &'static str {
    e.findings()[0].code
}

static BIG: [u8; 50_000] = [7; 50_000];

#[test]
fn a_pull_lands_in_pythons_cache_and_is_not_repeated() {
    let desk = Desk::new(&[
        ("config.json", b"{}", false),
        ("sub dir/w.safetensors", &BIG, true),
    ]);
    let pulled = desk.pull(&[]).unwrap();
    assert_eq!(
        (pulled.commit.as_str(), pulled.repo.as_str()),
        (COMMIT, "org/repo")
    );
    let snapshot = desk.repo().join("snapshots").join(COMMIT);
    assert_eq!(pulled.folder, snapshot);
    assert_eq!(
        fs::read(snapshot.join("sub dir/w.safetensors")).unwrap(),
        BIG
    );
    assert_eq!(
        fs::read_to_string(desk.repo().join("refs/main")).unwrap(),
        COMMIT
    );
    let mut expected = vec![git_sha1(b"{}"), sha256(&BIG)];
    expected.sort();
    assert_eq!(desk.blobs(), expected);
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(snapshot.join("sub dir/w.safetensors")).unwrap(),
        Path::new("../../../blobs").join(sha256(&BIG))
    );

    let before = desk.server.seen("resolve").len();
    let again = desk.pull(&["config.json"]).unwrap();
    assert!(again.files[0].cached);
    assert_eq!(
        desk.server.seen("resolve").len(),
        before,
        "nothing is asked for twice"
    );
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_the_store() {
    let desk = Desk::new(&[("w.bin", &BIG, true)]);
    desk.pull(&[]).unwrap();
    let seen = desk.server.seen("");
    assert!(seen.iter().any(|s| s.at == "store"));
    for s in seen {
        assert_eq!(s.header("authorization").is_some(), s.at == "hub", "{s:?}");
    }
}

#[test]
fn a_mirror_may_be_its_own_store() {
    let desk = Desk::new(&[("w.bin", &BIG, true)]);
    desk.server.state.lock().unwrap().one_host = true;
    let pulled = desk.pull(&[]).unwrap();
    assert_eq!(fs::read(pulled.folder.join("w.bin")).unwrap(), BIG);
}

#[test]
fn offline_is_the_cache_or_an_error() {
    let desk = Desk::new(&[("a.json", b"{}", false), ("b.json", b"{}", false)]);
    desk.pull(&["a.json"]).unwrap();
    let asked = desk.server.seen("").len();
    let offline = Hub::new(HubOptions {
        offline: true,
        ..desk.options()
    })
    .unwrap();
    let pulled = pull(&offline, &[]).unwrap();
    assert_eq!((pulled.commit.as_str(), pulled.files.len()), (COMMIT, 1));
    let e = pull(&offline, &["b.json"]).unwrap_err();
    assert_eq!(code(&e), "hub-file");
    let other = Reference::parse("org/other").unwrap();
    let e = offline
        .pull(&other, &Select::default(), &mut |_| {})
        .unwrap_err();
    assert_eq!(code(&e), "hub-offline");
    let e = offline
        .push(&reference(), &[], &PushOptions::default(), &mut |_| {})
        .unwrap_err();
    assert_eq!(code(&e), "hub-offline");
    assert_eq!(desk.server.seen("").len(), asked, "nobody is asked");
}

#[test]
fn revisions_are_branches_tags_and_commits() {
    let desk = Desk::new(&[("a", b"1", false)]);
    let hub = desk.hub();
    let select = Select::default();
    for revision in ["v/1", COMMIT] {
        let r = reference().at(revision);
        assert_eq!(hub.pull(&r, &select, &mut |_| {}).unwrap().commit, COMMIT);
    }
    assert_eq!(
        fs::read_to_string(desk.repo().join("refs/v/1")).unwrap(),
        COMMIT
    );
    let e = hub
        .pull(&reference().at("nope"), &select, &mut |_| {})
        .unwrap_err();
    assert_eq!(code(&e), "hub-revision");
}

#[test]
fn a_model_comes_with_its_data_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/onnx");
    let read = |n: &str| fs::read(folder.join(n)).unwrap();
    let names = ["external.onnx", "external.onnx.data", "weights/more.bin"];
    let content = names.map(read);
    let paths = names.map(|n| format!("onnx/{n}"));
    let mut files: Vec<(&str, &[u8], bool)> = std::iter::zip(&paths, &content)
        .map(|(p, c)| (p.as_str(), c.as_slice(), true))
        .collect();
    files.push(("other", b"x", false));
    let desk = Desk::new(&files);
    let pulled = desk.pull(&["*.onnx"]).unwrap();
    assert_eq!(
        pulled.files.iter().map(|f| &f.path).collect::<Vec<_>>(),
        paths.each_ref()
    );
    // Every file of a snapshot is a link to a blob of its repository; a link to another place is none.
    let model = pulled.folder.join(&paths[0]);
    onnx_graft::open(&model).unwrap();
    #[cfg(unix)]
    {
        let data = pulled.folder.join(&paths[1]);
        let elsewhere = desk.home.path().join("elsewhere");
        fs::write(&elsewhere, &content[1]).unwrap();
        fs::remove_file(&data).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &data).unwrap();
        assert_eq!(
            code(&onnx_graft::open(&model).unwrap_err()),
            "external-data-path"
        );
    }

    let desk = Desk::new(&files[..1]);
    assert_eq!(code(&desk.pull(&[]).unwrap_err()), "hub-data");
}

#[test]
fn what_broke_is_tried_again_from_where_it_broke() {
    for fault in [Fault::Status(500), Fault::Status(429), Fault::Cut(20_000)] {
        let desk = Desk::new(&[("w.bin", &BIG, true)]);
        desk.server.fault("store GET", fault.clone());
        let pulled = desk.pull(&[]).unwrap();
        assert_eq!(fs::read(pulled.folder.join("w.bin")).unwrap(), BIG);
        let gets = desk.server.seen("GET /get/");
        assert_eq!(gets.len(), 2);
        let range = gets[1].header("range");
        match fault {
            Fault::Cut(n) => assert_eq!(range, Some(&*format!("bytes={n}-"))),
            _ => assert_eq!(range, None),
        }
    }
}

#[test]
fn a_connection_that_stalls_is_broken() {
    let desk = Desk::new(&[("w.bin", &BIG, true)]);
    desk.server.fault("store GET", Fault::Stall(30_000));
    let options = HubOptions {
        timeout: Duration::from_millis(300),
        ..desk.options()
    };
    let pulled = pull(&Hub::new(options).unwrap(), &[]).unwrap();
    assert_eq!(fs::read(pulled.folder.join("w.bin")).unwrap(), BIG);
    assert_eq!(
        desk.server.seen("GET /get/")[1].header("range"),
        Some("bytes=30000-")
    );
}

#[test]
fn half_a_file_never_has_a_name_and_is_gone_on_with() {
    let desk = Desk::new(&[("w.bin", &BIG, true)]);
    desk.server.fault("store GET", Fault::Cut(10_000));
    let once = Hub::new(HubOptions {
        retries: 0,
        ..desk.options()
    })
    .unwrap();
    let e = pull(&once, &[]).unwrap_err();
    assert_eq!(code(&e), "hub-download");
    assert!(e.to_string().contains("10000 of 50000 bytes"), "{e}");
    assert_eq!(desk.blobs(), [format!("{}.incomplete", sha256(&BIG))]);
    assert!(!desk.repo().join("snapshots").exists() && !desk.repo().join("refs").exists());
    let pulled = pull(&once, &[]).unwrap();
    assert_eq!(fs::read(pulled.folder.join("w.bin")).unwrap(), BIG);
    assert_eq!(desk.blobs(), [sha256(&BIG)]);
}

#[test]
fn a_server_without_ranges_starts_over() {
    let desk = Desk::new(&[("w.bin", &BIG, true)]);
    desk.server.state.lock().unwrap().ignores_ranges = true;
    desk.server.fault("store GET", Fault::Cut(10_000));
    let pulled = desk.pull(&[]).unwrap();
    assert_eq!(fs::read(pulled.folder.join("w.bin")).unwrap(), BIG);
}

#[test]
fn a_server_that_breaks_off_holds_no_pull() {
    // Without ranges each attempt brings bytes, and never more of them.
    let desk = Desk::new(&[("w.bin", &BIG, true)]);
    desk.server.state.lock().unwrap().ignores_ranges = true;
    for _ in 0..100 {
        desk.server.fault("store GET", Fault::Cut(10));
    }
    let e = desk.pull(&[]).unwrap_err();
    assert_eq!(code(&e), "hub-download", "{e}");
    assert_eq!(desk.server.seen("GET /get/").len(), 4);
    // With ranges each attempt brings some more, and never enough.
    let desk = Desk::new(&[("w.bin", &BIG, true)]);
    for _ in 0..100 {
        desk.server.fault("store GET", Fault::Cut(10));
    }
    let e = desk.pull(&[]).unwrap_err();
    assert!(e.to_string().contains("only 40 of 50000 bytes"), "{e}");
    assert_eq!(desk.server.seen("GET /get/").len(), 4);
}

#[test]
fn a_wait_that_is_too_long_is_an_error() {
    let desk = Desk::new(&[("w.bin", &BIG, true)]);
    let busy = |wait: &str| {
        desk.server.fault("GET /api/", Fault::Busy(wait.to_owned()));
    };
    busy("0");
    desk.pull(&[]).unwrap();
    for wait in ["61", "99999999999", "18446744073709551615"] {
        busy(wait);
        let e = desk.pull(&[]).unwrap_err();
        assert_eq!(code(&e), "hub-busy");
        assert!(
            e.to_string().contains(&format!("a wait of {wait} s")),
            "{e}"
        );
    }
}

#[test]
fn a_file_whose_size_nobody_says_has_an_end() {
    let desk = Desk::new(&[]);
    let name = "endless.bin";
    desk.server
        .state
        .lock()
        .unwrap()
        .names
        .push(name.to_owned());
    desk.server.state.lock().unwrap().endless = Some(name.to_owned());
    let e = desk.pull(&[]).unwrap_err();
    assert_eq!(code(&e), "hub-answer", "{e}");
    assert!(e.to_string().contains("did not say how many"), "{e}");
    assert_eq!(desk.blobs(), Vec::<String>::new());
}

#[test]
fn names_that_act_on_the_receiver_are_not_written() {
    for name in [
        ".git/config",
        "sub/.GIT/hooks/post-checkout",
        ".ssh/authorized_keys",
        ".bashrc",
    ] {
        let desk = Desk::new(&[("ok", b"1", false), (name, b"evil", false)]);
        let e = desk.pull(&[]).unwrap_err();
        assert_eq!(code(&e), "hub-name", "{name}");
        assert!(!desk.home.path().join("hub").exists());
        // The rest can be had.
        desk.pull(&["ok"]).unwrap();
    }
    for name in ["a\u{202e}txt.exe", "a\u{200b}"] {
        let desk = Desk::new(&[("ok", b"1", false), (name, b"evil", false)]);
        assert_eq!(code(&desk.pull(&[]).unwrap_err()), "hub-name", "{name:?}");
    }
}

#[test]
fn other_bytes_than_promised_are_refused() {
    for (bytes, expected) in [
        (vec![8; 50_000], "hub-hash"),
        (vec![7; 50_001], "hub-answer"),
    ] {
        let desk = Desk::new(&[("w.bin", &BIG, true)]);
        desk.server.fault("store GET", Fault::Body(bytes));
        let e = desk.pull(&[]).unwrap_err();
        assert_eq!(code(&e), expected, "{e}");
        assert_eq!(desk.blobs(), Vec::<String>::new());
    }
    let desk = Desk::new(&[("c.json", b"{}", false)]);
    desk.server
        .fault("GET /org/repo/resolve", Fault::Body(b"[]".to_vec()));
    assert_eq!(code(&desk.pull(&[]).unwrap_err()), "hub-hash");
}

#[test]
fn names_of_a_server_lead_nowhere() {
    for name in [
        "../evil",
        "/tmp/evil",
        "a/../../evil",
        "a\\b",
        "a//b",
        "C:/x",
        "nul\u{0}l",
        "\u{1b}[2Jx",
    ] {
        let desk = Desk::new(&[("ok", b"1", false)]);
        desk.server
            .state
            .lock()
            .unwrap()
            .names
            .push(name.to_owned());
        let e = desk.pull(&["ok"]).unwrap_err();
        assert_eq!(code(&e), "hub-name", "{name:?}");
        assert!(!e.to_string().contains('\u{1b}'));
        assert!(!desk.home.path().join("hub").exists());
    }
    for (header, value) in [
        ("etag", "\"../../../evil\""),
        ("etag", "\"\""),
        ("etag", "\".hidden\""),
        ("x-repo-commit", "../../evil"),
        ("x-repo-commit", "ffffffffffffffffffffffffffffffffffffffff"),
    ] {
        let desk = Desk::new(&[("ok", b"1", false)]);
        desk.server
            .fault("HEAD", Fault::Header(header, value.to_owned()));
        assert_eq!(
            code(&desk.pull(&[]).unwrap_err()),
            "hub-answer",
            "{header} {value}"
        );
    }
    let desk = Desk::new(&[("ok", b"1", false)]);
    desk.server.state.lock().unwrap().commit = Some("../../x".into());
    assert_eq!(code(&desk.pull(&[]).unwrap_err()), "hub-answer");
}

#[test]
fn a_name_that_is_a_file_and_a_folder_is_an_error() {
    let desk = Desk::new(&[("a", b"1", false), ("a/b", b"2", false)]);
    assert_eq!(code(&desk.pull(&[]).unwrap_err()), "io");
}

#[test]
fn refusals_say_what_to_do() {
    let desk = Desk::new(&[]);
    let nobody = Hub::new(HubOptions {
        token: None,
        ..desk.options()
    })
    .unwrap();
    let list = |hub: &Hub, repo: &str| hub.list(&Reference::parse(repo).unwrap()).unwrap_err();
    let e = list(&nobody, "org/gated");
    assert_eq!(code(&e), "hub-gated");
    let text = e.to_string();
    assert!(
        text.contains("/org/gated; no token was sent") && text.contains("restricted"),
        "{text}"
    );
    let e = list(&nobody, "org/private");
    assert_eq!(code(&e), "hub-repo");
    let e = list(&desk.hub(), "datasets/org/none");
    assert!(
        e.to_string().contains("there is no dataset `org/none`"),
        "{e}"
    );
    desk.server
        .fault("GET /api", Fault::Body(b"<html>".to_vec()));
    assert_eq!(code(&list(&desk.hub(), "org/repo")), "hub-answer");
    let e = desk.pull(&["*.onnx"]).unwrap_err();
    assert_eq!(code(&e), "hub-file");
}

#[test]
fn a_host_that_is_not_there_is_an_error_with_a_way_out() {
    let desk = Desk::new(&[]);
    // The port of a listener that is gone.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let e = pull(
        &Hub::new(HubOptions {
            endpoint,
            ..desk.options()
        })
        .unwrap(),
        &[],
    )
    .unwrap_err();
    assert_eq!(code(&e), "hub-connection");
    assert!(e.to_string().contains("HF_HUB_OFFLINE"), "{e}");
    for bad in ["huggingface.co", "ftp://x", "https://user:pass@host", ""] {
        let e = Hub::new(HubOptions {
            endpoint: bad.into(),
            ..desk.options()
        })
        .unwrap_err();
        assert!(!e.to_string().contains("pass@"), "{e}");
    }
}

#[test]
fn nobody_sees_the_token() {
    let secret = "hf_notTheRightOne";
    let desk = Desk::new(&[("w.bin", &BIG, true)]);
    let hub = Hub::new(HubOptions {
        token: Token::new(secret),
        ..desk.options()
    })
    .unwrap();
    // This server repeats what it got.
    let e = hub.list(&reference()).unwrap_err();
    assert_eq!(code(&e), "hub-token");
    let shown = format!("{e} {e:?} {:?} {hub:?}", std::error::Error::source(&e));
    assert!(
        shown.contains("Invalid credentials") && !shown.contains(secret),
        "{shown}"
    );
    // Neither the signature of the store's address.
    desk.server.fault("store GET", Fault::Status(403));
    let e = desk.pull(&[]).unwrap_err();
    let shown = format!("{e} {e:?} {:?}", std::error::Error::source(&e));
    assert!(
        !shown.contains("signedSecret") && !shown.contains(TOKEN),
        "{shown}"
    );
}

#[test]
fn an_export_is_a_folder_of_its_own() {
    let desk = Desk::new(&[("config.json", b"{}", false), ("onnx/w.bin", &BIG, true)]);
    let pulled = desk.pull(&[]).unwrap();
    let out = desk.home.path().join("out");
    pulled.export(&out, false).unwrap();
    assert_eq!(fs::read(out.join("onnx/w.bin")).unwrap(), BIG);
    assert!(
        fs::symlink_metadata(out.join("config.json"))
            .unwrap()
            .is_file()
    );
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join(".hub.json")).unwrap()).unwrap();
    assert_eq!(
        (&record["commit"], &record["repo"]),
        (&COMMIT.into(), &"org/repo".into())
    );
    pulled.export(&out, false).unwrap();
    fs::write(out.join("config.json"), "mine").unwrap();
    let e = pulled.export(&out, false).unwrap_err();
    assert_eq!(code(&e), "exists");
    assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), "mine");
    pulled.export(&out, true).unwrap();
    assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), "{}");
}

#[cfg(unix)]
#[test]
fn an_export_does_not_follow_links_out_of_its_folder() {
    let desk = Desk::new(&[("onnx/w.bin", &BIG, true)]);
    let pulled = desk.pull(&[]).unwrap();
    let (out, elsewhere) = (
        desk.home.path().join("out"),
        desk.home.path().join("elsewhere"),
    );
    fs::create_dir(&out).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, out.join("onnx")).unwrap();
    assert_eq!(code(&pulled.export(&out, true).unwrap_err()), "hub-name");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn references_stand_for_files() {
    let desk = Desk::new(&[
        ("adapter_config.json", b"{}", false),
        ("adapter.safetensors", &BIG, true),
        ("pytorch_adapter.bin", &BIG, true),
    ]);
    let find = |text: &str, want: Want| {
        desk.hub()
            .find(&Reference::parse(text).unwrap(), want.into(), &mut |_| {})
    };
    let adapter = find("hub:org/repo", Want::Adapter).unwrap();
    assert!(adapter[0].join("adapter.safetensors").exists());
    assert!(
        !adapter[0].join("pytorch_adapter.bin").exists(),
        "the same weights are not pulled twice"
    );
    assert_eq!(
        code(&find("hub:org/repo", Want::Model).unwrap_err()),
        "hub-file"
    );
}

// ---- push ----

fn files() -> Vec<PushFile> {
    let file = |path: &str, bytes: &[u8]| PushFile {
        path: path.into(),
        source: Source::Bytes(bytes.to_vec()),
    };
    vec![
        file("adapter_config.json", b"{\"a\": 1}"),
        file("adapter.safetensors", &BIG),
    ]
}

fn options() -> PushOptions {
    PushOptions {
        message: "Upload".into(),
        ..PushOptions::default()
    }
}

#[test]
fn a_push_is_one_commit_with_large_files_in_the_store() {
    let desk = Desk::new(&[]);
    let o = PushOptions {
        create: true,
        private: true,
        description: "why".into(),
        ..options()
    };
    let pushed = desk
        .hub()
        .push(&reference(), &files(), &o, &mut |_| {})
        .unwrap();
    assert_eq!(pushed.commit.as_deref(), Some(COMMIT));
    assert_eq!(pushed.files, ["adapter_config.json", "adapter.safetensors"]);
    let state = desk.server.state.lock().unwrap();
    assert_eq!(state.objects[&sha256(&BIG)], BIG);
    let commit = serde_json::json!([
        {"key": "header", "value": {"summary": "Upload", "description": "why"}},
        {"key": "file", "value": {"path": "adapter_config.json", "encoding": "base64", "content": "eyJhIjogMX0="}},
        {"key": "lfsFile", "value": {"path": "adapter.safetensors", "algo": "sha256", "oid": sha256(&BIG), "size": BIG.len()}},
    ]);
    assert_eq!(
        serde_json::json!(state.commits),
        serde_json::json!([commit])
    );
    drop(state);
    let created = &desk.server.seen("/api/repos/create")[0];
    let body: serde_json::Value = serde_json::from_slice(&created.body).unwrap();
    assert_eq!(
        body,
        serde_json::json!({"name": "repo", "organization": "org", "private": true})
    );
    assert_eq!(desk.server.seen("/verify").len(), 1);
    assert!(
        desk.server
            .seen("")
            .iter()
            .all(|s| s.at == "hub" || s.header("authorization").is_none())
    );
}

#[test]
fn parts_are_sent_in_order_and_joined() {
    let desk = Desk::new(&[]);
    desk.server.state.lock().unwrap().parts = Some(20_000);
    let folder = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..50_000u32).map(|i| (i % 251) as u8).collect();
    fs::write(folder.path().join("w.safetensors"), &content).unwrap();
    desk.server.fault("partNumber=2", Fault::Status(503));
    // The part that fails has arrived; this server keeps what came.
    let hub = Hub::new(HubOptions {
        retries: 0,
        ..desk.options()
    })
    .unwrap();
    let list = onnx_graft::hub::folder(folder.path()).unwrap();
    assert_eq!(
        code(
            &hub.push(&reference(), &list, &options(), &mut |_| {})
                .unwrap_err()
        ),
        "hub-server"
    );
    assert!(
        desk.server.state.lock().unwrap().commits.is_empty(),
        "no commit without its files"
    );
    desk.server.state.lock().unwrap().objects.clear();
    let mut last = 0;
    hub.push(&reference(), &list, &options(), &mut |t| last = t.done)
        .unwrap();
    assert_eq!(last, 50_000);
    let state = desk.server.state.lock().unwrap();
    assert_eq!(state.objects[&sha256(&content)], content);
    drop(state);
    let done: serde_json::Value =
        serde_json::from_slice(&desk.server.seen("/complete")[0].body).unwrap();
    assert_eq!(done["parts"].as_array().unwrap().len(), 3);
}

#[test]
fn what_is_there_is_not_sent_again() {
    let desk = Desk::new(&[
        ("adapter_config.json", b"{\"a\": 1}", false),
        ("adapter.safetensors", &BIG, true),
    ]);
    let pushed = desk
        .hub()
        .push(&reference(), &files(), &options(), &mut |_| {})
        .unwrap();
    assert_eq!((pushed.commit, pushed.unchanged.len()), (None, 2));
    assert!(desk.server.state.lock().unwrap().commits.is_empty());
    assert!(desk.server.seen("batch").is_empty());
}

#[test]
fn a_pull_request_has_a_page() {
    let desk = Desk::new(&[]);
    let o = PushOptions {
        pull_request: true,
        ..options()
    };
    let pushed = desk
        .hub()
        .push(&reference(), &files(), &o, &mut |_| {})
        .unwrap();
    assert!(pushed.pull_request.unwrap().ends_with("/discussions/1"));
    assert_eq!(desk.server.seen("/commit/main?create_pr=1").len(), 1);
}

#[test]
fn a_commit_is_not_made_twice() {
    let desk = Desk::new(&[]);
    desk.server.fault("/commit/", Fault::Status(500));
    let e = desk
        .hub()
        .push(&reference(), &files(), &options(), &mut |_| {})
        .unwrap_err();
    assert_eq!(code(&e), "hub-server");
    assert_eq!(desk.server.seen("/commit/").len(), 1);
}

#[test]
fn an_answer_without_a_commit_is_none() {
    let answers = [
        "{}",
        "{\"commitOid\": null}",
        "{\"commitOid\": \"../../x\"}",
        "[]",
        "",
    ];
    for answer in answers {
        let desk = Desk::new(&[]);
        desk.server
            .fault("/commit/", Fault::Body(answer.as_bytes().to_vec()));
        let pushed = desk
            .hub()
            .push(&reference(), &files(), &options(), &mut |_| {});
        assert_eq!(code(&pushed.unwrap_err()), "hub-answer", "{answer}");
        assert_eq!(desk.server.seen("/commit/").len(), 1);
    }
    // Another host does not answer for the Hub.
    let desk = Desk::new(&[]);
    let elsewhere = format!("{}/commit", desk.server.store);
    desk.server.fault("/commit/", Fault::Moved(elsewhere));
    let pushed = desk
        .hub()
        .push(&reference(), &files(), &options(), &mut |_| {});
    assert_eq!(code(&pushed.unwrap_err()), "hub-answer");
    assert!(desk.server.seen("POST /commit").is_empty());
}

#[test]
fn a_push_needs_a_token_and_a_repository() {
    let desk = Desk::new(&[]);
    let nobody = Hub::new(HubOptions {
        token: None,
        ..desk.options()
    })
    .unwrap();
    let e = nobody
        .push(&reference(), &files(), &options(), &mut |_| {})
        .unwrap_err();
    assert_eq!(code(&e), "hub-token");
    assert!(desk.server.seen("").is_empty());
    let missing = Reference::parse("org/none").unwrap();
    let e = desk
        .hub()
        .push(&missing, &files(), &options(), &mut |_| {})
        .unwrap_err();
    assert_eq!(code(&e), "hub-repo");
    assert!(Reference::target("org/repo:file").is_err());
    assert_eq!(
        Reference::target("datasets/org/x@dev").unwrap().kind,
        Kind::Dataset
    );
}

#[cfg(unix)]
#[test]
fn a_folder_is_pushed_without_what_is_hidden_or_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    let inside = root.path().join("f");
    fs::create_dir_all(inside.join("sub/.git")).unwrap();
    for name in ["a", ".env", "sub/b", "sub/.git/x"] {
        fs::write(inside.join(name), name).unwrap();
    }
    let names: Vec<String> = folder(&inside)
        .unwrap()
        .into_iter()
        .map(|f| f.path)
        .collect();
    assert_eq!(names, ["a", "sub/b"]);
    fs::write(root.path().join("secret"), "s").unwrap();
    std::os::unix::fs::symlink("../secret", inside.join("c")).unwrap();
    assert_eq!(code(&folder(&inside).unwrap_err()), "hub-folder");
    assert!(folder(&root.path().join("nope")).is_err());
}
