//! Changed blocks, as a backup program learns of them: Kubernetes' own client library asks
//! csi-snapshot-metadata over TLS, which asks the driver.

use std::net::TcpStream;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::api::{list, wait_until};
use super::chart;
use super::field::{DRIVER, Field, free_port, token};
use super::kubelet::{Mounted, pattern};
use super::processes::program;
use super::space::{Space, from};

const MIB: usize = 1 << 20;
const SIZE: usize = 64 * MIB;
/// What Ceph keeps of an image in one object, which is how finely the driver can tell.
const OBJECT: usize = 4 * MIB;

/// Where csi-snapshot-metadata serves, and the certificate it does so with.
pub(crate) struct Service {
    port: u16,
    certificate: String,
}

impl Service {
    /// Makes a key and a certificate in the folder that is mounted of the Secret the chart refers
    /// to.
    pub(crate) fn make(tls: &Path) -> Service {
        std::fs::create_dir_all(tls).unwrap();
        let output = Command::new("openssl")
            .args(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
                    .split(' '),
            )
            .args([
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost,IP:127.0.0.1",
            ])
            .args(["-keyout", "tls.key", "-out", "tls.crt"])
            .current_dir(tls)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Service {
            port: free_port(),
            certificate: std::fs::read_to_string(tls.join("tls.crt")).unwrap(),
        }
    }

    /// The chart's values.
    pub(crate) fn values(&self) -> Value {
        json!({"enabled": true, "tlsSecret": "snapshot-metadata", "caCert": self.certificate})
    }

    /// Puts the ports of this machine into the rendering: no kube-proxy runs the Service there.
    pub(crate) fn put_address(&self, rendered: &mut [Value]) {
        for object in rendered {
            if object["kind"] == "SnapshotMetadataService" {
                object["spec"]["address"] = json!(format!("127.0.0.1:{}", self.port));
            }
            if object["kind"] == "Deployment" {
                let containers =
                    object["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap();
                let container =
                    containers.iter_mut().find(|o| o["name"] == "snapshot-metadata").unwrap();
                let arguments = container["args"].as_array_mut().unwrap();
                arguments.retain(|argument| argument != "--port=50051");
                arguments.push(json!(format!("--port={}", self.port)));
                arguments.push(json!(format!("--http-endpoint=127.0.0.1:{}", free_port())));
            }
        }
    }
}

pub(crate) fn changed_blocks_are_told_to_who_may_read_the_snapshots(field: &Field) {
    let space = Space::new(field, "backups");
    let rights = chart::objects(include_str!("backup.yaml"));
    chart::apply(space.api(), &rights, &space.name);

    let mut bytes = vec![0; SIZE];
    space.claim("data", "immediate", "64Mi", &json!({"volumeMode": "Block"}));
    space.mounted("data", |volume| {
        write(volume, &mut bytes, 0, 700);
        write(volume, &mut bytes, 9 * MIB, 5 * MIB);
        write(volume, &mut bytes, SIZE - 1536, 1536);
    });
    space.snapshot("sunday", "snapshots", "data");
    space.ready("VolumeSnapshot", "sunday");
    let sunday = bytes.clone();
    space.mounted("data", |volume| {
        volume.discard(8 * MIB, OBJECT);
        bytes[8 * MIB..][..OBJECT].fill(0);
        write(volume, &mut bytes, 20 * MIB + 5000, 512);
    });
    space.snapshot("monday", "snapshots", "data");
    space.ready("VolumeSnapshot", "monday");
    space.mounted("data", |volume| volume.write_at(40 * MIB, &pattern(0, MIB)));

    wait_until("csi-snapshot-metadata listens", || {
        TcpStream::connect(("127.0.0.1", field.snapshot_metadata.port))
            .map(drop)
            .map_err(|e| e.to_string())
    });
    let backup = Client { kubeconfig: token(&space.name, "backup"), namespace: &space.name };
    let mut copy = vec![0; SIZE];
    let allocated = backup.ask(&["--snapshot=sunday"]).unwrap();
    assert_eq!(objects(&allocated), [0, 2, 3, 15], "{allocated:?}");
    take(&mut copy, &sunday, &allocated);
    assert!(copy == sunday, "something written is in no block: {allocated:?}");

    let mut what = from("VolumeSnapshot", "monday");
    what["volumeMode"] = json!("Block");
    space.claim("restored", "immediate", "64Mi", &what);
    let monday = space.read("restored", SIZE);
    assert!(monday == bytes, "the later snapshot has other bytes than were written");
    let changed = backup.ask(&["--snapshot=monday", "--previous=sunday"]).unwrap();
    assert_eq!(objects(&changed), [2, 5], "{changed:?}");
    take(&mut copy, &monday, &changed);
    assert!(copy == monday, "something changed is in no block: {changed:?}");

    // Its token is in order, and it knows where to ask; but it may not read snapshots.
    let stranger = Client { kubeconfig: token(&space.name, "stranger"), namespace: &space.name };
    let refusal = stranger.ask(&["--snapshot=sunday", &format!("--driver={DRIVER}")]).unwrap_err();
    assert!(refusal.contains("code = PermissionDenied"), "{refusal}");

    for claim in ["restored", "data"] {
        space.remove_claim(claim);
    }
    for snapshot in ["sunday", "monday"] {
        space.delete("VolumeSnapshot", snapshot);
        space.gone("VolumeSnapshot", snapshot);
    }
    chart::delete(space.api(), &rights);
    space.finish();
}

/// A backup program.
struct Client<'a> {
    kubeconfig: PathBuf,
    namespace: &'a str,
}

impl Client<'_> {
    /// The blocks it is told of, or what it is told instead.
    fn ask(&self, what: &[&str]) -> Result<Vec<Range<usize>>, String> {
        let output = Command::new(program("changed-blocks"))
            .arg(format!("--namespace={}", self.namespace))
            .args(what)
            .env("KUBECONFIG", &self.kubeconfig)
            .output()
            .unwrap();
        if !output.status.success() {
            return Err(String::from_utf8(output.stderr).unwrap());
        }
        let records: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        assert!(
            records.iter().all(|record| record["volume_capacity_bytes"] == SIZE),
            "{records:?}"
        );
        let blocks = records.iter().flat_map(|record| list(record, "/block_metadata"));
        // Go leaves out what is zero.
        let number = |block: &Value, name: &str| {
            usize::try_from(block.get(name).map_or(0, |number| number.as_u64().unwrap())).unwrap()
        };
        let range = |block: &Value| {
            let start = number(block, "byte_offset");
            start..start + number(block, "size_bytes")
        };
        Ok(blocks.map(range).collect())
    }
}

/// Writes to the volume and to what is known of it.
fn write(volume: &Mounted<'_>, bytes: &mut [u8], offset: usize, length: usize) {
    let written = pattern(offset, length);
    volume.write_at(offset, &written);
    bytes[offset..][..length].copy_from_slice(&written);
}

/// Copies blocks.
fn take(copy: &mut [u8], from: &[u8], blocks: &[Range<usize>]) {
    for block in blocks {
        copy[block.clone()].copy_from_slice(&from[block.clone()]);
    }
}

/// The objects that blocks are in, each once per block.
fn objects(blocks: &[Range<usize>]) -> Vec<usize> {
    blocks.iter().flat_map(|block| block.start / OBJECT..block.end.div_ceil(OBJECT)).collect()
}
