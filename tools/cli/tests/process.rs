//! The tool as a process: exit status, signals, closed pipes, against a collector of this file's
//! own that answers with what it is told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

fn tidemark(socket: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.arg("--socket").arg(socket).args(line.split(' ')).env_remove("TIDEMARK_SOCKET");
    command
}

fn run(socket: &Path, line: &str) -> Output {
    tidemark(socket, line).output().expect("the tool starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Answers each request with what `answer` makes of its first line ("GET /v1/status HTTP/1.1").
struct Collector {
    directory: tempfile::TempDir,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    fn start(answer: impl Fn(&str) -> (u16, String) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("c.sock")).expect("a socket");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        // The thread ends with the test's process; there is nothing to clean up after it.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut reader = BufReader::new(&stream);
                let mut first = String::new();
                let mut body_bytes = 0;
                reader.read_line(&mut first).expect("a request line");
                for line in reader.by_ref().lines().map_while(Result::ok) {
                    if line.is_empty() {
                        break;
                    }
                    let lower = line.to_ascii_lowercase();
                    if let Some(length) = lower.strip_prefix("content-length: ") {
                        body_bytes = length.parse().expect("a length");
                    }
                }
                let mut body = vec![0; body_bytes];
                reader.read_exact(&mut body).expect("the body");
                let (status, json) = answer(first.trim_end());
                seen.lock().expect("nobody panics").push(format!(
                    "{} {}",
                    first.trim_end(),
                    text(&body)
                ));
                let length = json.len();
                write!(&stream, "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{json}")
                    .expect("the tool waits for the answer");
            }
        });
        Self { directory, requests }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("c.sock")
    }

    fn saw(&self, start: &str) -> bool {
        self.requests.lock().expect("nobody panics").iter().any(|line| line.starts_with(start))
    }
}

fn job(state: &str) -> String {
    format!(
        r#"{{"id":5,"kind":"restore","volume":"disk","at":"5m","state_seq":1,"state_time":null,
        "target":"/srv/back.img","state":"{state}","done_bytes":1,"total_bytes":4,
        "started":"2026-01-01T00:00:00Z","finished":null,"result":null,"error":null,
        "go_on":"tidemark restore disk --at seq:1 --to /srv/back.img"}}"#
    )
}

/// What a restore would do; over a device when `destroys` names one.
fn plan(destroys: &str) -> String {
    format!(
        r#"{{"volume":"disk","state":{{"seq":1,"time":null,"point":null}},"target":"/dev/x",
        "format":"raw","destroys":{destroys},"note":"it is larger","resumes_at_bytes":1048576,
        "total_bytes":4194304}}"#
    )
}

#[test]
fn a_collector_that_is_not_there_is_named_and_the_status_is_1() {
    let output = run(Path::new("/nonexistent/c.sock"), "status");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/nonexistent/c.sock"), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
}

#[test]
fn usage_errors_end_with_2_wherever_they_are_found() {
    assert_eq!(run(Path::new("/nonexistent"), "volume shwo").status.code(), Some(2));
    let collector = Collector::start(|_| {
        let body = r#"{"error":{"kind":"invalid","message":"no AT: 'x y'","hint":"try 5m"}}"#;
        (400, body.to_owned())
    });
    let output = run(&collector.socket(), "export disk --at xy --listen unix:/tmp/x");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stderr), "tidemark: no AT: 'x y'\n  try 5m\n");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let events: Vec<String> = (0..5000)
        .map(|id| {
            format!(
                r#"{{"id":{id},"time":"2026-01-01T00:00:00Z","severity":"info","volume":null,
                "message":"something long enough to fill a pipe"}}"#
            )
        })
        .collect();
    let collector = Collector::start(move |_| (200, format!("[{}]", events.join(","))));
    let mut child = tidemark(&collector.socket(), "event list")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the tool starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn an_interrupt_cancels_the_restore_and_says_so() {
    let collector = Collector::start(|line| {
        let state = if line.starts_with("DELETE") { "cancelled" } else { "running" };
        (200, if line.contains("/plan") { plan("null") } else { job(state) })
    });
    let mut child = tidemark(&collector.socket(), "restore disk --at 5m --to back.img")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the tool starts");
    while !collector.saw("GET /v1/jobs/5") {
        assert!(child.try_wait().expect("it is our child").is_none(), "it ended on its own");
        std::thread::yield_now();
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.expect("kill runs").success());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("was cancelled at 25 %"), "{said}");
    assert!(said.contains("go on with: tidemark restore disk --at seq:1"), "{said}");
    assert!(said.contains("1.0 MiB of 4.0 MiB were written"), "{said}");
    assert!(collector.saw("DELETE /v1/jobs/5"));
    let created = collector.requests.lock().expect("nobody panics")[0].clone();
    let target = std::env::current_dir().expect("a directory").join("back.img");
    assert!(created.contains(&format!("\"target\":\"{}\"", target.display())), "{created}");
}

#[test]
fn a_device_is_not_overwritten_without_a_word() {
    let collector = Collector::start(|line| {
        let device = r#""/dev/x (4194304 bytes, ext4)""#;
        (200, if line.contains("/plan") { plan(device) } else { job("done") })
    });
    let refused = tidemark(&collector.socket(), "restore disk --at 5m --to /dev/x")
        .stdin(Stdio::null())
        .output()
        .expect("the tool starts");
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("everything on /dev/x (4194304 bytes, ext4)"), "{said}");
    assert!(said.contains("--yes"), "{said}");
    assert!(!collector.saw("POST /v1/restores HTTP"));
    let done = run(&collector.socket(), "restore disk --at 5m --to /dev/x --yes");
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(collector.saw("POST /v1/restores HTTP"));
}

#[test]
fn json_is_what_the_collector_said() {
    let collector = Collector::start(|_| (200, format!("[{}]", job("done"))));
    let output = run(&collector.socket(), "--json job list");
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(shown[0]["target"], "/srv/back.img");
    assert!(output.status.success());
}

fn volume(state: &str) -> String {
    format!(
        r#"{{"id":"v1","name":"disk","size_bytes":1048576,"block_bytes":512,"state":"{state}",
        "since":"2026-01-01T00:00:00Z","reason":"protection was paused",
        "retired":{{"since":"2026-01-01T00:00:00Z","erase_after":"2026-01-08T00:00:00Z"}},
        "policy":{{"window_seconds":86400,"journal_bytes_max":null,"point_interval_seconds":30,
        "compare_window":"00:00-06:00","verify_days":7,"resync_days":null,"own":false}},"connected":true,"agent":null,"journal":"j","timeline":1,"epoch":1,
        "durable_seq":1,"durable_time":null,"first_seq":null,"first_time":null,
        "rpo_seconds":null,"journal_bytes":2048,"segments":1,"spans":[],"copy":null,
        "differing_bytes":null,"problem":null}}"#
    )
}

#[test]
fn the_life_of_a_volume_is_told_to_the_collector() {
    let collector = Collector::start(|line| {
        let answer = match line.split(' ').nth(1).expect("a path") {
            path if path.ends_with("/policy") => {
                r#"{"window_seconds":7200,"journal_bytes_max":1073741824,
                "point_interval_seconds":null,"compare_window":"22:00-04:00","verify_days":7,
                "resync_days":null,"own":true}"#
                    .to_owned()
            }
            path if path.ends_with("/pause") => volume("paused"),
            _ if line.starts_with("DELETE") => r#"{"id":"v1","name":"disk","left":null}"#.into(),
            _ => volume("retired"),
        };
        (200, answer)
    });
    let socket = collector.socket();
    for (line, request, shown) in [
        (
            "volume policy disk --window 2h --journal-max 1GiB --point-interval 0",
            "POST /v1/volumes/disk/policy HTTP/1.1 {\"default\":false,\"window_seconds\":7200,\
             \"journal_bytes_max\":1073741824,\"point_interval_seconds\":0",
            "2 h 0 min of history, journal up to 1.0 GiB, no points by interval",
        ),
        ("volume pause disk", "POST /v1/volumes/disk/pause ", "volume disk is paused"),
        ("volume resume disk", "POST /v1/volumes/disk/resume ", "is compared first"),
        (
            "volume retire disk --grace 7d",
            "POST /v1/volumes/disk/retire HTTP/1.1 {\"grace_seconds\":604800}",
            "is erased at 2026-01-08T00:00:00Z",
        ),
        ("volume unretire disk", "POST /v1/volumes/disk/unretire ", "is taken back"),
        ("volume erase disk --yes", "DELETE /v1/volumes/disk ", "volume disk is erased"),
        ("volume show disk", "GET /v1/volumes/disk ", "retired since 2026-01-01T00:00:00Z"),
    ] {
        let output = run(&socket, line);
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        assert!(collector.saw(request), "{line}: {:?}", collector.requests.lock());
        assert!(text(&output.stdout).contains(shown), "{line}: {}", text(&output.stdout));
    }
}

#[test]
fn nothing_is_erased_that_was_not_meant() {
    let collector = Collector::start(|_| (200, volume("retired")));
    let output = run(&collector.socket(), "volume erase disk");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--yes"), "{}", text(&output.stderr));
    assert!(!collector.saw("DELETE"));
}

#[test]
fn the_filter_of_points_goes_to_the_collector() {
    let collector = Collector::start(|_| {
        let list = r#"{"volume":"disk","latest":null,"oldest":null,"points":[],"older":0}"#;
        (200, list.to_owned())
    });
    let line = "point list disk --kind crash --since 2h --until 2026-01-01T00:00:00Z --limit 5";
    assert!(run(&collector.socket(), line).status.success());
    assert!(collector.saw(
        "GET /v1/volumes/disk/points?kind=crash-consistent&since=2h&until=2026-01-01T00%3A00%3A00Z\
         &limit=5 "
    ));
}
