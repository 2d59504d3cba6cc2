//! `cinderblock serve` as its operator meets it: what wrong arguments and configurations say, and
//! how it ends. No Ceph is needed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const CONFIG: &str = "- clusterID: lab\n  monitors: [\"127.0.0.1:1\"]\n";

fn serve(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cinderblock"))
        .arg("serve")
        .args(arguments)
        .env_remove("CSI_ENDPOINT")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn endpoint(directory: &Path) -> String {
    format!("unix://{}/csi.sock", directory.display())
}

#[test]
fn wrong_arguments_are_refused_at_once_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    std::fs::write(&config, CONFIG).unwrap();
    let config = config.to_str().unwrap();
    let endpoint = &endpoint(directory.path());
    let controller = ["--role", "controller", "--config", config];
    for (arguments, words) in [
        (controller.to_vec(), "--endpoint <URL>"),
        ([&controller[..], &["--endpoint", "tcp://0.0.0.0:9000"]].concat(), "unix://"),
        ([&controller[..], &["--endpoint", "unix://relative.sock"]].concat(), "absolute"),
        ([&controller[..], &["--endpoint", "unix:///tmp/csi"]].concat(), ".sock"),
        (vec!["--endpoint", endpoint, "--role", "controller"], "--config <FILE>"),
        (
            vec!["--endpoint", endpoint, "--config", config, "--role", "both"],
            "possible values: controller, node, all",
        ),
        (vec!["--endpoint", endpoint, "--config", config, "--role", "node"], "--node-id <ID>"),
        (
            vec!["--endpoint", endpoint, "--config", config, "--node-id", ""],
            "a node's id has 1 to 256 bytes, this one 0",
        ),
        (
            vec!["--endpoint", endpoint, "--config", config, "--node-id", &"n".repeat(257)],
            "a node's id has 1 to 256 bytes, this one 257",
        ),
        (
            [&controller[..], &["--endpoint", endpoint, "--topology", "zone"]].concat(),
            "expected KEY=VALUE",
        ),
        (
            [&controller[..], &["--endpoint", endpoint, "--instance", "a/b"]].concat(),
            "an instance is 1 to 32",
        ),
        (
            [&controller[..], &["--endpoint", endpoint, "--driver-name", "1.x"]].concat(),
            "a letter at both ends",
        ),
        ([&controller[..], &["--endpoint", endpoint, "--rpc-timeout", "0"]].concat(), "1..=86400"),
        (
            [&controller[..], &["--endpoint", endpoint, "--log-level", "a=b=c"]].concat(),
            "--log-level",
        ),
    ] {
        let output = serve(&arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error:?} lacks {words:?}");
    }
}

#[test]
fn a_wrong_configuration_is_refused_at_once_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.yaml");
    for (text, words) in [
        (None, "cannot read the configuration"),
        (Some("- {clusterID: a}"), "give its monitors"),
        (Some("- {clusterID: a, monitors: [m], moniters: [m]}"), "unknown field `moniters`"),
        (Some("{"), "is wrong"),
    ] {
        match text {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => assert!(!path.exists()),
        }
        let endpoint = endpoint(directory.path());
        let output = serve(&[
            "--role",
            "controller",
            "--endpoint",
            &endpoint,
            "--config",
            path.to_str().unwrap(),
        ]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text:?}: {error}");
        assert!(
            error.contains(words) && error.contains("config.yaml"),
            "{text:?}: {error:?} lacks {words:?}"
        );
    }
}

/// Starts the driver and waits until `log` has a line with these words.
fn serve_until(words: &str, kubeconfig: Option<&Path>) {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    std::fs::write(&config, CONFIG).unwrap();
    let log = directory.path().join("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderblock"));
    command.args([
        "serve",
        "--role",
        "controller",
        "--endpoint",
        &endpoint(directory.path()),
        "--config",
    ]);
    command
        .arg(&config)
        .stderr(std::fs::File::create(&log).unwrap())
        .env_remove("KUBERNETES_SERVICE_HOST");
    if let Some(kubeconfig) = kubeconfig {
        command.arg("--kubernetes").env("KUBECONFIG", kubeconfig);
    }
    let mut driver = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_mins(5);
    let text = loop {
        let text = std::fs::read_to_string(&log).unwrap();
        if text.contains(words) && text.contains("serving CSI") || Instant::now() > deadline {
            break text;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    driver.kill().unwrap();
    driver.wait().unwrap();
    assert!(text.contains(words) && text.contains("serving CSI"), "no {words:?}: {text}");
}

#[test]
fn it_says_whether_it_speaks_to_kubernetes_and_needs_no_api_server_for_that() {
    serve_until("runs without Kubernetes", None);
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    let cluster = "clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]";
    let context = "contexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c";
    std::fs::write(&kubeconfig, format!("apiVersion: v1\nkind: Config\n{cluster}\n{context}\n"))
        .unwrap();
    serve_until("https://127.0.0.1:1/", Some(&kubeconfig));
}

#[test]
fn without_a_way_to_kubernetes_nothing_that_needs_it_starts() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    std::fs::write(&config, CONFIG).unwrap();
    let endpoint = endpoint(directory.path());
    let serve = [
        "serve",
        "--kubernetes",
        "--role",
        "controller",
        "--endpoint",
        &endpoint,
        "--config",
        config.to_str().unwrap(),
    ];
    for arguments in [&serve[..], &["find", "shop/data"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
            .args(arguments)
            .env("KUBECONFIG", directory.path().join("missing"))
            .env_remove("KUBERNETES_SERVICE_HOST")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(error.contains("set KUBECONFIG"), "{arguments:?}: {error}");
    }
}

#[test]
fn it_serves_without_a_cluster_refuses_a_second_and_leaves_no_socket() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    std::fs::write(&config, CONFIG).unwrap();
    let arguments = [
        "--role",
        "controller",
        "--endpoint",
        &endpoint(directory.path()),
        "--config",
        config.to_str().unwrap(),
    ];
    let mut first = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
        .arg("serve")
        .args(arguments)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let socket = directory.path().join("csi.sock");
    let deadline = Instant::now() + Duration::from_mins(5);
    while !socket.exists() {
        assert!(Instant::now() < deadline, "no socket");
        std::thread::sleep(Duration::from_millis(10));
    }
    let second = serve(&arguments);
    let error = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{error}");
    assert!(error.contains("another process serves this socket"), "{error}");
    assert!(socket.exists());

    let probe = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
        .args(["call", "--endpoint", &endpoint(directory.path()), "--output", "json", "probe"])
        .output()
        .unwrap();
    // The truth about a cluster that is not there, at once.
    assert_eq!(String::from_utf8_lossy(&probe.stdout).trim(), r#"{"ready":false}"#);

    // Keys are in its memory.
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", first.id())).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"]);

    let pid = nix::unistd::Pid::from_raw(first.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(first.wait().unwrap().success());
    assert!(!socket.exists());
}

/// One literal header of HPACK, neither indexed nor compressed.
fn header(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

/// What gRPC's C core sends to a Unix socket: HTTP/2 with the socket's path as the authority.
fn request_of_the_c_core(socket: &str) -> Vec<u8> {
    let headers = [
        header(":method", "POST"),
        header(":scheme", "http"),
        header(":path", "/csi.v1.Identity/Probe"),
        header(":authority", socket),
        header("content-type", "application/grpc"),
        header("te", "trailers"),
    ]
    .concat();
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), frame(1, 4, 1, &headers)]
        .concat()
}

#[test]
fn a_client_whose_authority_is_a_path_is_told_of_once() {
    let directory = tempfile::tempdir().unwrap();
    let (config, log) = (directory.path().join("config.yaml"), directory.path().join("log"));
    std::fs::write(&config, CONFIG).unwrap();
    let mut driver = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
        .args(["serve", "--role", "controller", "--config", config.to_str().unwrap()])
        .args(["--endpoint", &endpoint(directory.path()), "--log-level", "warn"])
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let socket = directory.path().join("csi.sock");
    let deadline = Instant::now() + Duration::from_mins(1);
    let mut told = 0;
    // Twice more after the first is told of.
    let mut more = 2;
    while Instant::now() < deadline && more > 0 {
        if let Ok(mut client) = UnixStream::connect(&socket) {
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            client.write_all(&request_of_the_c_core(socket.to_str().unwrap())).unwrap();
            // SETTINGS and the reset of the stream: 9 bytes at least each.
            let mut answer = [0; 18];
            client.read_exact(&mut answer).unwrap();
            told = std::fs::read_to_string(&log)
                .unwrap()
                .matches("grpc.default_authority=localhost")
                .count();
            more -= i32::from(told > 0);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    driver.kill().unwrap();
    driver.wait().unwrap();
    assert_eq!((told, more), (1, 0), "{}", std::fs::read_to_string(&log).unwrap());
}
