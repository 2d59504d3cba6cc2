//! What pods run, with which rights, arguments and probes.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use super::{Rendering, list, objects, strings, text};

/// The flags of Kubernetes' sidecars that the chart uses, at the versions of values.yaml.
const SIDECAR_FLAGS: &[(&str, &str)] = &[
    (
        "provisioner",
        "csi-address timeout leader-election leader-election-namespace v default-fstype extra-create-metadata \
         prevent-volume-mode-conversion",
    ),
    ("attacher", "csi-address timeout leader-election leader-election-namespace v default-fstype"),
    ("resizer", "csi-address timeout leader-election leader-election-namespace v handle-volume-inuse-error"),
    (
        "snapshotter",
        "csi-address timeout leader-election leader-election-namespace v extra-create-metadata feature-gates",
    ),
    ("registrar", "csi-address kubelet-registration-path v"),
    ("livenessprobe", "csi-address http-endpoint probe-timeout v"),
];

/// Every pod specification, with the kind of object it is in.
fn pods() -> impl Iterator<Item = (&'static Rendering, &'static str, &'static Value)> {
    objects().filter_map(|(rendering, object)| {
        let spec = match text(object, "/kind") {
            "Deployment" | "DaemonSet" => object.pointer("/spec/template/spec")?,
            "Pod" => object.pointer("/spec")?,
            _ => return None,
        };
        Some((rendering, text(object, "/kind"), spec))
    })
}

fn containers() -> impl Iterator<Item = (&'static Rendering, &'static str, &'static Value)> {
    pods().flat_map(|(rendering, kind, pod)| {
        list(pod, "/containers").iter().map(move |container| (rendering, kind, container))
    })
}

#[test]
fn no_container_has_more_rights_than_it_needs() {
    let mut privileged = BTreeSet::new();
    for (rendering, kind, container) in containers() {
        let at = format!("{:?}: {kind} {}", rendering.values, text(container, "/name"));
        let security = &container["securityContext"];
        assert_eq!(security["readOnlyRootFilesystem"], true, "{at}");
        if security["privileged"] == true {
            privileged.insert((kind, text(container, "/name")));
            continue;
        }
        assert_eq!(security["allowPrivilegeEscalation"], false, "{at}");
        assert_eq!(strings(security, "/capabilities/drop"), ["ALL"], "{at}");
        assert!(security.pointer("/capabilities/add").is_none(), "{at}");
    }
    assert_eq!(privileged, BTreeSet::from([("DaemonSet", "driver")]));
    for (rendering, kind, pod) in pods() {
        let at = format!("{:?}: {kind}", rendering.values);
        assert_eq!(pod["automountServiceAccountToken"], false, "{at}");
        assert_eq!(text(pod, "/securityContext/seccompProfile/type"), "RuntimeDefault", "{at}");
        assert_eq!(pod["securityContext"]["runAsNonRoot"] == true, kind != "DaemonSet", "{at}");
        for shared in ["hostPID", "hostIPC"] {
            assert!(pod.get(shared).is_none(), "{at} has {shared}");
        }
        assert!(pod.get("hostNetwork").is_none() || kind == "DaemonSet", "{at} has hostNetwork");
    }
}

#[test]
fn every_container_says_what_it_needs_and_which_image_it_is() {
    for (rendering, kind, container) in containers() {
        let at = format!("{:?}: {kind} {}", rendering.values, text(container, "/name"));
        for needed in ["cpu", "memory"] {
            assert!(container["resources"]["requests"].get(needed).is_some(), "{at} requests no {needed}");
        }
        assert!(container["resources"].pointer("/limits/cpu").is_none(), "{at} has a limit for CPU");
        // A limit would end the I/O of the daemons in it.
        let node_driver = kind == "DaemonSet" && text(container, "/name") == "driver";
        assert_eq!(container["resources"].pointer("/limits/memory").is_none(), node_driver, "{at}");
        let (_, tag) = text(container, "/image").rsplit_once(':').unwrap_or_default();
        assert!(!tag.is_empty() && tag != "latest", "{at} has the image {}", text(container, "/image"));
    }
}

#[test]
fn tokens_reach_only_those_who_talk_to_kubernetes() {
    for (rendering, kind, container) in containers() {
        let token = list(container, "/volumeMounts").iter().any(|mount| text(mount, "/name") == "token");
        let talks = ["provisioner", "attacher", "resizer", "snapshotter"].contains(&text(container, "/name"));
        assert_eq!(token, talks, "{:?}: {kind} {}", rendering.values, text(container, "/name"));
    }
}

/// The container's arguments or command, with its environment put in where Kubernetes does so.
fn expanded(container: &Value, pointer: &str) -> Vec<String> {
    let mut words = strings(container, pointer);
    for variable in list(container, "/env") {
        let name = format!("$({})", text(variable, "/name"));
        let value = variable["value"].as_str().unwrap_or("from-the-pod");
        for word in &mut words {
            *word = word.replace(&name, value);
        }
    }
    assert!(!words.iter().any(|word| word.contains("$(")), "{words:?} names what is not in the environment");
    words
}

#[test]
fn the_binary_takes_every_argument() {
    let mut tried = BTreeSet::new();
    for (_, _, container) in containers().filter(|(_, _, container)| text(container, "/name") == "driver") {
        tried.insert(expanded(container, "/args"));
        if container.get("livenessProbe").is_some() {
            let probe = expanded(container, "/livenessProbe/exec/command");
            assert_eq!(probe[0], "cinderblock");
            tried.insert(probe[1..].to_vec());
        }
    }
    assert!(tried.len() >= 4, "{tried:?}");
    for arguments in tried {
        let output =
            Command::new(env!("CARGO_BIN_EXE_cinderblock")).args(&arguments).arg("--help").output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn sidecars_are_given_flags_they_have() {
    let flags: BTreeMap<_, BTreeSet<_>> =
        SIDECAR_FLAGS.iter().map(|(name, flags)| (*name, flags.split_whitespace().collect())).collect();
    for (rendering, _, container) in containers() {
        let Some(known) = flags.get(text(container, "/name")) else { continue };
        for argument in strings(container, "/args") {
            let name = argument.trim_start_matches("--").split('=').next().unwrap();
            assert!(
                known.contains(name),
                "{:?}: {} gets {argument}",
                rendering.values,
                text(container, "/name")
            );
        }
    }
}

#[test]
fn liveness_asks_the_process_and_readiness_asks_about_ceph() {
    for (rendering, kind, container) in
        containers().filter(|(_, _, container)| text(container, "/name") == "driver")
    {
        let at = format!("{:?}: {kind}", rendering.values);
        assert_eq!(text(container, "/readinessProbe/httpGet/path"), "/healthz", "{at}");
        let alive = container.get("livenessProbe");
        let asked_for = rendering.values.iter().any(|value| value == "node.livenessProbe.enabled=true");
        assert_eq!(alive.is_some(), kind == "Deployment" || asked_for, "{at}");
        if let Some(alive) = alive {
            assert!(alive.get("exec").is_some() && alive.get("httpGet").is_none(), "{at}");
        }
    }
}

#[test]
fn selectors_are_what_they_always_were() {
    for (rendering, object) in objects() {
        let component = match text(object, "/kind") {
            "Deployment" => "controller",
            "DaemonSet" => "node",
            _ => continue,
        };
        let expected = serde_json::json!({
            "app.kubernetes.io/name": "cinderblock",
            "app.kubernetes.io/instance": "cinderblock",
            "app.kubernetes.io/component": component,
        });
        let selector = &object["spec"]["selector"]["matchLabels"];
        assert_eq!(*selector, expected, "{:?}: an upgrade would be refused", rendering.values);
        for (label, value) in selector.as_object().unwrap() {
            assert_eq!(
                object["spec"]["template"]["metadata"]["labels"][label], *value,
                "{:?}",
                rendering.values
            );
        }
    }
}
