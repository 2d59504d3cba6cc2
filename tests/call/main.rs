//! `cinderblock call` against a driver on a socket: what it sends, what it prints, and how it
//! exits.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod fake_driver;
mod rpcs;
mod text;

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

use fake_driver::{Behaviour, FakeDriver};
use serde_json::{Value, json};
use tonic::Code;

/// Runs `cinderblock call` on `endpoint` with `arguments`.
fn call(endpoint: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cinderblock"))
        .arg("call")
        .args(arguments)
        .env("CSI_ENDPOINT", endpoint)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The text without the id of the request, which the server puts before an error's message.
fn without_id(text: &str) -> String {
    let (before, rest) = text.split_once("[request ").unwrap_or_else(|| panic!("{text}"));
    let (_, message) = rest.split_once("] ").unwrap();
    format!("{before}{message}")
}

fn answering(answer: Value) -> FakeDriver {
    FakeDriver::start(&Behaviour::Answer(vec![answer]))
}

#[test]
fn an_error_of_the_driver_is_printed_with_its_code_and_exits_with_1() {
    let driver =
        FakeDriver::start(&Behaviour::Refuse(Code::FailedPrecondition, "published on node-2 (é)"));
    let output = call(&driver.endpoint(), &["delete-volume", "v"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(without_id(&stderr(&output)), "FAILED_PRECONDITION: published on node-2 (é)\n");
    assert_eq!(stdout(&output), "");

    let output = call(&driver.endpoint(), &["delete-volume", "v", "--output", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let expected =
        json!({"error": {"code": "FAILED_PRECONDITION", "message": "published on node-2 (é)"}});
    assert_eq!(serde_json::from_str::<Value>(&without_id(&stdout(&output))).unwrap(), expected);
    assert_eq!(without_id(&stderr(&output)), "FAILED_PRECONDITION: published on node-2 (é)\n");
}

#[test]
fn the_drivers_own_unavailable_is_an_answer() {
    let driver =
        FakeDriver::start(&Behaviour::Refuse(Code::Unavailable, "the monitors do not answer"));
    let output = call(&driver.endpoint(), &["probe"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(without_id(&stderr(&output)), "UNAVAILABLE: the monitors do not answer\n");
}

#[test]
fn a_driver_that_is_not_there_exits_with_3() {
    let directory = tempfile::tempdir().unwrap();
    let endpoint = format!("unix://{}/csi.sock", directory.path().display());
    let output = call(&endpoint, &["info", "--output", "json", "--timeout", "300ms"]);
    assert_eq!(output.status.code(), Some(3));
    let message = format!("UNAVAILABLE: cannot connect to {endpoint}: ");
    assert!(stderr(&output).starts_with(&message), "{}", stderr(&output));
    assert!(stderr(&output).contains("No such file or directory"), "{}", stderr(&output));
    let printed: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(printed["error"]["code"], "UNAVAILABLE");
}

#[test]
fn a_driver_that_is_just_being_started_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("csi.sock");
    let endpoint = format!("unix://{}", path.display());
    let asked = std::thread::spawn(move || call(&endpoint, &["node-get-info"]));
    // It has found nothing there by now, or finds the driver: both must do.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let driver = answering(json!({"node_id": "worker-1"}));
    std::fs::rename(driver.endpoint().trim_start_matches("unix://"), &path).unwrap();
    let output = asked.join().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(stdout(&output).contains("worker-1"), "{output:?}");
}

#[test]
fn a_driver_that_goes_away_before_it_answers_exits_with_3() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("csi.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let driver = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        // Something of the request has come; the listener is closed with the connection.
        connection.read_exact(&mut [0; 24]).unwrap();
    });
    let output = call(&format!("unix://{}", path.display()), &["info"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(
        stderr(&output).starts_with("UNAVAILABLE: the connection broke: "),
        "{}",
        stderr(&output)
    );
    driver.join().unwrap();
}

#[test]
fn a_driver_that_does_not_answer_in_time_exits_with_1_and_was_told_the_deadline() {
    let driver = FakeDriver::start(&Behaviour::Hang);
    let output = call(&driver.endpoint(), &["info", "--timeout", "2s"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        stderr(&output).starts_with("DEADLINE_EXCEEDED: no answer within 2s"),
        "{}",
        stderr(&output)
    );
    assert!(driver.calls()[0].deadline.is_some());
}

#[test]
fn secrets_come_from_files_and_are_never_printed() {
    let driver = answering(json!({}));
    let yaml = driver.file("secrets.yaml", "userID: admin\nuserKey: from-yaml\n");
    let key = driver.file("key", "AQDcanary==\n");
    let output = call(
        &driver.endpoint(),
        &[
            "delete-volume",
            "v",
            "--secrets-file",
            yaml.to_str().unwrap(),
            "--secret-file",
            &format!("userKey={}", key.display()),
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(
        driver.calls()[0].request["secrets"],
        json!({"userID": "admin", "userKey": "AQDcanary=="})
    );
    assert_eq!(stdout(&output), "ok\n");
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_secrets_file_that_cannot_be_read_is_named_without_its_content() {
    let driver = answering(json!({}));
    let missing = driver.directory.path().join("missing").display().to_string();
    let not_a_map = driver.file("list.yaml", "- AQDcanary==\n").display().to_string();
    let nested = driver
        .file("nested.yaml", "userID: admin\nuserKey: {AQDcanary: 1}\n")
        .display()
        .to_string();
    let not_yaml = driver.file("broken.yaml", "userKey: \"AQDcanary\nx: [\n").display().to_string();
    for (flag, value, named, reason) in [
        ("--secret-file", "userKey=AQDcanary==", "the secret userKey", "No such file"),
        ("--secrets-file", &missing, &missing, "No such file"),
        ("--secrets-file", &not_a_map, &not_a_map, "not a YAML map"),
        ("--secrets-file", &nested, &nested, "not a YAML map"),
        ("--secrets-file", &not_yaml, &not_yaml, "not a YAML map"),
    ] {
        let output = call(&driver.endpoint(), &["delete-volume", "v", flag, value]);
        assert_eq!(output.status.code(), Some(2), "{value}: {output:?}");
        for part in [named, reason] {
            assert!(stderr(&output).contains(part), "{value}: {}", stderr(&output));
        }
        assert!(!stderr(&output).contains("AQDcanary"), "{value}: {}", stderr(&output));
    }
    assert!(driver.calls().is_empty());
}

#[test]
fn contexts_are_handed_on_from_the_outputs_of_earlier_calls() {
    let driver = answering(json!({}));
    let save = |name: &str, arguments: &[&str], answer: Value| {
        let output =
            call(&answering(answer).endpoint(), &[arguments, &["--output", "json"]].concat());
        driver.file(name, &stdout(&output)).to_str().unwrap().to_owned()
    };
    let volume = save(
        "volume.json",
        &["create-volume", "--name", "n"],
        json!({"volume": {"volume_id": "v", "volume_context": {"pool": "rbd", "image": "i"}}}),
    );
    let publish = save(
        "publish.json",
        &["controller-publish", "v", "--node", "n"],
        json!({"publish_context": {"hosts": "h"}}),
    );

    for arguments in [&["stage", "v", "--staging", "/s"][..], &["publish", "v", "--target", "/t"]] {
        let flags = [
            "--context-from",
            &volume,
            "--context-from",
            &publish,
            "--volume-context",
            "pool=other",
        ];
        let output = call(&driver.endpoint(), &[arguments, &flags].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let request = &driver.calls().last().unwrap().request.clone();
        assert_eq!(request["volume_context"], json!({"pool": "other", "image": "i"}));
        assert_eq!(request["publish_context"], json!({"hosts": "h"}));
    }

    let output = call(
        &driver.endpoint(),
        &["controller-publish", "v", "--node", "n", "--context-from", &volume],
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(
        driver.calls().last().unwrap().request["volume_context"],
        json!({"pool": "rbd", "image": "i"})
    );
}

#[test]
fn a_file_without_a_context_is_refused() {
    let driver = answering(json!({}));
    for (content, reason) in [
        ("not json", "not JSON"),
        ("{}", "holds no volume with a volume_context"),
        (r#"{"publish_context": {"a": 1}}"#, "not a map of texts"),
    ] {
        let path = driver.file("context.json", content);
        let path = path.to_str().unwrap();
        let output =
            call(&driver.endpoint(), &["stage", "v", "--staging", "/s", "--context-from", path]);
        assert_eq!(output.status.code(), Some(2), "{content}: {output:?}");
        assert!(stderr(&output).contains(reason), "{content}: {}", stderr(&output));
        assert!(stderr(&output).contains(path), "{content}: {}", stderr(&output));
    }
    assert!(driver.calls().is_empty());
}

#[test]
fn bad_arguments_exit_with_2_say_why_and_send_nothing() {
    let driver = answering(json!({}));
    let cases: [(&[&str], &str); 11] = [
        (&["create-volume"], "--name"),
        (&["create-volume", "--name", "n", "--size", "20GB"], "no unit of size"),
        (
            &["create-volume", "--name", "n", "--from-snapshot", "s", "--from-volume", "v"],
            "cannot be used with",
        ),
        (&["create-volume", "--name", "n", "--block", "--fs-type", "ext4"], "cannot be used with"),
        (&["create-volume", "--name", "n", "--block", "--mount-flag", "ro"], "cannot be used with"),
        (&["create-volume", "--name", "n", "--access-mode", "rwo"], "single-node-writer"),
        (&["create-volume", "--name", "n", "--parameter", "pool"], "key=value"),
        (&["create-volume", "--name", "n", "--secret", "userKey=AQD"], "--secret"),
        (&["info", "--timeout", "soon"], "60s"),
        (&["info", "--timeout", "0s"], "60s"),
        (&["info", "--endpoint", "tcp://localhost:1"], "not a unix socket"),
    ];
    for (arguments, reason) in cases {
        let output = call(&driver.endpoint(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(reason), "{arguments:?}: {}", stderr(&output));
    }
    assert!(driver.calls().is_empty());
}

#[test]
fn without_an_endpoint_it_says_how_to_give_one() {
    let output = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
        .args(["call", "info"])
        .env_remove("CSI_ENDPOINT")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--endpoint or CSI_ENDPOINT"), "{}", stderr(&output));
}

#[test]
fn an_answer_that_cannot_be_written_exits_with_4_and_a_reader_that_left_is_no_failure() {
    let driver = answering(json!({"name": "n"}));
    let run = |stdout: std::process::Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderblock"));
        command
            .args(["call", "info"])
            .env("CSI_ENDPOINT", driver.endpoint())
            .stdout(stdout)
            .output()
            .unwrap()
    };
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = run(full.into());
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(stderr(&output).contains("could not be written"), "{}", stderr(&output));

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = run(writer.into());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(stderr(&output), "");
}
