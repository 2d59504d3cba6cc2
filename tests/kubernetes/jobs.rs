//! What kubelet does with the pod of a Job, played: its containers run as processes of this machine,
//! one after the other, under the pod's ServiceAccount.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine;
use serde_json::{Value, json};

use super::api::{list, text, wait_until};
use super::field::{Field, token};
use super::processes::{Place, program, words};

/// Where a pod finds its token.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The folder that stands for the volumes of that name, in all Jobs of these tests.
pub(crate) fn volume(field: &Field, name: &str) -> PathBuf {
    let folder = field.folder().join("jobs").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Waits for a Job's pod, runs it, and removes both when the Job is complete. Returns what each
/// container wrote.
pub(crate) fn run(field: &Field, namespace: &str, job: &str) -> Vec<String> {
    let pod = wait_until(&format!("the Job {job} has a pod"), || {
        let pods = field.api.list("Pod", namespace);
        let of_it = |pod: &&Value| pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == job;
        pods.iter().find(of_it).cloned().ok_or_else(|| format!("{} pods", pods.len()))
    });
    let name = text(&pod, "/metadata/name");
    let spec = &pod["spec"];
    fill_volumes(field, namespace, spec);
    let containers = list(spec, "/initContainers").iter().chain(list(spec, "/containers"));
    let said = containers.map(|container| {
        let output = run_container(field, namespace, spec, name, container);
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        let at = format!("{job}, {}: {}", text(container, "/name"), output.status);
        assert!(output.status.success(), "{at}: {said}");
        assert!(!said.contains(field.lab.key.expose()), "{at} told a key");
        said
    });
    let said = said.collect();
    field.api.patch_status("Pod", namespace, name, &json!({"status": {"phase": "Succeeded"}}));
    wait_until(&format!("the Job {job} is complete"), || {
        let job = field.api.get("Job", namespace, job);
        let is_complete = list(&job, "/status/conditions")
            .iter()
            .any(|condition| condition["type"] == "Complete" && condition["status"] == "True");
        if is_complete { Ok(()) } else { Err(job["status"].to_string()) }
    });
    field.api.delete("Job", namespace, job);
    field.api.delete("Pod", namespace, name);
    said
}

/// Puts what Secrets and ConfigMaps hold where the containers find it.
fn fill_volumes(field: &Field, namespace: &str, spec: &Value) {
    for mounted in list(spec, "/volumes") {
        let folder = volume(field, text(mounted, "/name"));
        if mounted.get("configMap").is_some() {
            // As the lab has it: with its monitors, and the file of its key.
            std::fs::copy(field.configuration(), folder.join("clusters.yaml")).unwrap();
        }
        if mounted.get("secret").is_some() {
            let secret = text(mounted, "/secret/secretName");
            for (key, value) in secret_data(field, namespace, secret) {
                std::fs::write(folder.join(key), value).unwrap();
            }
        }
    }
}

fn secret_data(field: &Field, namespace: &str, name: &str) -> Vec<(String, String)> {
    let secret = field.api.get("Secret", namespace, name);
    let engine = base64::engine::general_purpose::STANDARD;
    let decoded = secret["data"].as_object().unwrap().iter().map(|(key, value)| {
        let value = engine.decode(value.as_str().unwrap()).unwrap();
        (key.clone(), String::from_utf8(value).unwrap())
    });
    decoded.collect()
}

fn run_container(
    field: &Field,
    namespace: &str,
    spec: &Value,
    pod: &str,
    container: &Value,
) -> Output {
    let mut container = container.clone();
    for variable in container["env"].as_array_mut().into_iter().flatten() {
        let secret = text(variable, "/valueFrom/secretKeyRef/name").to_owned();
        if !secret.is_empty() {
            let wanted = text(variable, "/valueFrom/secretKeyRef/key").to_owned();
            let data = secret_data(field, namespace, &secret);
            let (_, value) = data.into_iter().find(|(key, _)| *key == wanted).unwrap();
            variable["value"] = value.into();
        }
    }
    let volumes = field.folder().join("jobs");
    let place = Place {
        volumes: &volumes,
        logs: Path::new("/nowhere"),
        fields: [("metadata.namespace", namespace.to_owned()), ("metadata.name", pod.to_owned())]
            .into(),
    };
    let (arguments, environment) = words(&container, &place);
    let mut command = Command::new(program(text(&container, "/image")));
    command.args(arguments).envs(environment).env_remove("KUBECONFIG");
    if list(&container, "/volumeMounts").iter().any(|mount| text(mount, "/mountPath") == TOKEN) {
        command.env("KUBECONFIG", token(namespace, text(spec, "/serviceAccountName")));
    }
    command.output().unwrap()
}
