//! Disks in an object store, over a network that is not always good.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Lab, Namespace, POOL, wait_until};
use crate::disk::{Disks, MIB, assert_same, disk, images, read, snapshots};
use crate::program::configuration;
use crate::server::{ACCESS_KEY, Forecast, S3, SECRET_KEY, Weather, way};

fn command(config: &Path, store: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderblock"));
    command
        .arg("image")
        .args(arguments)
        .arg("--config")
        .arg(config)
        .env("AWS_ENDPOINT", format!("http://{store}"))
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    command
}

fn run(config: &Path, store: SocketAddr, arguments: &[&str]) -> Output {
    let output = command(config, store, arguments).output().unwrap();
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    assert!(!String::from_utf8_lossy(&said).contains(SECRET_KEY), "a secret is told");
    output
}

fn succeed(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn refused(output: &Output, code: i32, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(words), "{said}");
}

#[test]
fn disks_go_to_s3_and_come_back() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let (disks, s3) = (Disks::new(), S3::start());
    let config = configuration(&disks, &lab);
    let spec = |name: &str| format!("{POOL}/{}/{name}", namespace.name);
    let bytes = disk(31, 33 * MIB + 777);
    let path = disks.sparse("disk", &bytes).display().to_string();
    succeed(&run(&config, s3.address, &["import", &path, &spec("image")]));
    // Several parts, and one that is short.
    succeed(&run(&config, s3.address, &["export", &spec("image"), "s3://disks/disk.raw"]));
    assert_same(&std::fs::read(s3.file("disk.raw")).unwrap(), &bytes, "the object");
    assert_eq!(s3.files(), ["disk.raw"]);
    let again = run(&config, s3.address, &["export", &spec("image"), "s3://disks/disk.raw"]);
    refused(&again, 3, "exists, and is not replaced");

    let sum = format!("blake3:{}", blake3::hash(&bytes));
    let arguments = ["import", "s3://disks/disk.raw", &spec("back"), "--checksum", &sum];
    succeed(&run(&config, s3.address, &arguments));
    assert_same(&read(&*pool, "back"), &bytes, "from the object");

    succeed(&run(&config, s3.address, &["export", &spec("image"), "s3://disks/disk.qcow2"]));
    succeed(&run(&config, s3.address, &["import", "s3://disks/disk.qcow2", &spec("qcow2")]));
    let converted = read(&*pool, "qcow2");
    assert_same(&converted[..bytes.len()], &bytes, "from qcow2");

    let absent = run(&config, s3.address, &["import", "s3://disks/absent", &spec("absent")]);
    refused(&absent, 3, "is not there");
    for name in ["image", "back", "qcow2"] {
        succeed(&run(&config, s3.address, &["rm", &spec(name)]));
    }
    namespace.assert_empty();
}

#[test]
fn a_bad_network_is_got_over() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let (disks, s3) = (Disks::new(), S3::start());
    let config = configuration(&disks, &lab);
    let spec = |name: String| format!("{POOL}/{}/{name}", namespace.name);
    let bytes = disk(32, 25 * MIB + 1);
    let path = disks.sparse("disk", &bytes).display().to_string();
    succeed(&run(&config, s3.address, &["import", &path, &spec("image".into())]));
    let weathers: [(&str, Forecast); 4] = [
        ("slow", |_| Weather::Slow(Duration::from_millis(2))),
        ("busy", |number| if number < 3 { Weather::Busy } else { Weather::Fair }),
        // The first are cut within a block, or a part.
        ("cut", |number| if number < 6 { Weather::Cut(3 << 20) } else { Weather::Fair }),
        ("silent", |number| if number == 1 { Weather::Silent } else { Weather::Fair }),
    ];
    for (name, weather) in weathers {
        let way = way(s3.address, weather);
        let object = format!("s3://disks/{name}");
        let output = run(&config, way, &["export", &spec("image".into()), &object]);
        assert!(output.status.success(), "{name}: {output:?}");
        assert_same(&std::fs::read(s3.file(name)).unwrap(), &bytes, name);
    }
    assert_eq!(s3.files(), ["busy", "cut", "silent", "slow"]);
    for (name, weather) in weathers {
        let way = way(s3.address, weather);
        let object = format!("s3://disks/{name}");
        let output = run(&config, way, &["import", &object, &spec(name.into())]);
        assert!(output.status.success(), "{name}: {output:?}");
        assert_same(&read(&*pool, name), &bytes, name);
        succeed(&run(&config, s3.address, &["rm", &spec(name.into())]));
    }
    succeed(&run(&config, s3.address, &["rm", &spec("image".into())]));
    namespace.assert_empty();
}

#[test]
fn a_server_that_goes_leaves_nothing() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let (disks, s3) = (Disks::new(), S3::start());
    let config = configuration(&disks, &lab);
    let spec = format!("{POOL}/{}/image", namespace.name);
    let bytes = disk(33, 25 * MIB);
    std::fs::write(s3.file("disk"), &bytes).unwrap();
    // Something comes, and then nothing any more.
    let going: Forecast = |number| if number < 3 { Weather::Cut(1 << 20) } else { Weather::Busy };
    let output = run(
        &config,
        way(s3.address, going),
        &["import", "s3://disks/disk", &spec, "--format", "raw"],
    );
    refused(&output, 1, "cannot read s3://disks/disk");
    assert!(images(&*pool).is_empty());

    let path = disks.sparse("disk", &bytes).display().to_string();
    succeed(&run(&config, s3.address, &["import", &path, &spec]));
    let output = run(&config, way(s3.address, going), &["export", &spec, "s3://disks/new"]);
    refused(&output, 1, "s3://disks/new");
    assert_eq!(images(&*pool), ["image"]);
    assert!(snapshots(&*pool, "image").is_empty());
    assert!(!s3.file("new").exists());
    succeed(&run(&config, s3.address, &["rm", &spec]));
    namespace.assert_empty();
}

#[test]
fn a_killed_upload_is_ended_by_the_next_run() {
    let lab = Lab::from_environment();
    let namespace = Namespace::new(&lab);
    let pool = namespace.pool(&*lab.connect());
    let (disks, s3) = (Disks::new(), S3::start());
    let config = configuration(&disks, &lab);
    let spec = format!("{POOL}/{}/image", namespace.name);
    let bytes = disk(34, 65 * MIB);
    let path = disks.sparse("disk", &bytes).display().to_string();
    succeed(&run(&config, s3.address, &["import", &path, &spec]));
    let slow = way(s3.address, |_| Weather::Slow(Duration::from_millis(20)));
    let mut export = command(&config, slow, &["export", &spec, "s3://disks/disk"])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("parts are there", || {
        let files = s3.files();
        if files.len() > 2 { Ok(()) } else { Err(files) }
    });
    kill(Pid::from_raw(export.id().cast_signed()), Signal::SIGKILL).unwrap();
    assert!(!export.wait().unwrap().success());
    assert!(!s3.file("disk").exists() && s3.file("disk.partial").exists());

    succeed(&run(&config, s3.address, &["export", &spec, "s3://disks/disk"]));
    assert_same(&std::fs::read(s3.file("disk")).unwrap(), &bytes, "the object");
    assert_eq!(s3.files(), ["disk"], "in {}", s3.folder().display());
    // The killed one's watch was waited for.
    assert_eq!(images(&*pool), ["image"]);
    assert!(snapshots(&*pool, "image").is_empty());
    succeed(&run(&config, s3.address, &["rm", &spec]));
    namespace.assert_empty();
}
