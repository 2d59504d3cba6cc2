//! What pods run, with which rights, arguments and probes.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use super::{RENDERINGS, Rendering, list, objects, rendering, strings, text};

/// The flags of Kubernetes' sidecars that the chart uses, at the versions of values.yaml.
const SIDECAR_FLAGS: &[(&str, &str)] = &[
    (
        "provisioner",
        "csi-address timeout leader-election leader-election-namespace kube-api-qps kube-api-burst http-endpoint v feature-gates \
         default-fstype extra-create-metadata prevent-volume-mode-conversion enable-capacity capacity-ownerref-level",
    ),
    (
        "attacher",
        "csi-address timeout leader-election leader-election-namespace kube-api-qps kube-api-burst http-endpoint v default-fstype",
    ),
    (
        "resizer",
        "csi-address timeout leader-election leader-election-namespace kube-api-qps kube-api-burst http-endpoint v feature-gates \
         handle-volume-inuse-error",
    ),
    (
        "snapshotter",
        "csi-address timeout leader-election leader-election-namespace kube-api-qps kube-api-burst http-endpoint v feature-gates \
         extra-create-metadata",
    ),
    ("snapshot-metadata", "csi-address port tls-cert tls-key http-endpoint v"),
    ("registrar", "csi-address kubelet-registration-path v"),
    ("livenessprobe", "csi-address http-endpoint probe-timeout v"),
];

/// Every pod specification, with the kind of object it is in.
fn pods() -> impl Iterator<Item = (&'static Rendering, &'static str, &'static Value)> {
    objects().filter_map(|(rendering, object)| {
        let spec = match text(object, "/kind") {
            "Deployment" | "DaemonSet" => object.pointer("/spec/template/spec")?,
            "CronJob" => object.pointer("/spec/jobTemplate/spec/template/spec")?,
            "Pod" => object.pointer("/spec")?,
            _ => return None,
        };
        Some((rendering, text(object, "/kind"), spec))
    })
}

fn containers() -> impl Iterator<Item = (&'static Rendering, &'static str, &'static Value)> {
    pods().flat_map(|(rendering, kind, pod)| {
        let all = list(pod, "/initContainers").iter().chain(list(pod, "/containers"));
        all.map(move |container| (rendering, kind, container))
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
            assert!(
                container["resources"]["requests"].get(needed).is_some(),
                "{at} requests no {needed}"
            );
        }
        assert!(
            container["resources"].pointer("/limits/cpu").is_none(),
            "{at} has a limit for CPU"
        );
        // A limit would end the I/O of the daemons in it.
        let node_driver = kind == "DaemonSet" && text(container, "/name") == "driver";
        assert_eq!(container["resources"].pointer("/limits/memory").is_none(), node_driver, "{at}");
        let (_, tag) = text(container, "/image").rsplit_once(':').unwrap_or_default();
        assert!(
            !tag.is_empty() && tag != "latest",
            "{at} has the image {}",
            text(container, "/image")
        );
    }
}

#[test]
fn every_image_may_come_from_one_registry() {
    let output = super::template(&[
        "-f".to_owned(),
        super::file_of("everything"),
        "--set".to_owned(),
        "global.imageRegistry=registry.example:5000/mirror/".to_owned(),
    ]);
    let objects = super::yaml(&String::from_utf8(output.stdout).unwrap());
    let mut images = BTreeSet::new();
    for object in &objects {
        for pod in ["/spec/jobTemplate/spec/template/spec", "/spec/template/spec", "/spec"] {
            for kind in ["/initContainers", "/containers"] {
                let containers = object.pointer(pod).map(|pod| list(pod, kind));
                images.extend(containers.unwrap_or_default().iter().map(|one| text(one, "/image")));
            }
        }
    }
    assert!(images.len() > 7, "{images:?}");
    for image in &images {
        let path = image.strip_prefix("registry.example:5000/mirror/").unwrap_or_default();
        assert!(path.starts_with("cinderblock:") || path.starts_with("sig-storage/"), "{image}");
    }
}

#[test]
fn tokens_reach_only_those_who_talk_to_kubernetes() {
    for (rendering, kind, container) in containers() {
        let token =
            list(container, "/volumeMounts").iter().any(|mount| text(mount, "/name") == "token");
        let talks = match text(container, "/name") {
            "provisioner" | "attacher" | "resizer" | "snapshotter" | "snapshot-metadata"
            | "backup" => true,
            "driver" => {
                strings(container, "/args").iter().any(|argument| argument == "--kubernetes")
            }
            _ => false,
        };
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
    assert!(
        !words.iter().any(|word| word.contains("$(")),
        "{words:?} names what is not in the environment"
    );
    words
}

#[test]
fn the_binary_takes_every_argument() {
    let mut tried = BTreeSet::new();
    let ours = ["driver", "backup", "prune"];
    for (_, _, container) in
        containers().filter(|(_, _, container)| ours.contains(&text(container, "/name")))
    {
        tried.insert(expanded(container, "/args"));
        if container.get("livenessProbe").is_some() {
            let probe = expanded(container, "/livenessProbe/exec/command");
            assert_eq!(probe[0], "cinderblock");
            tried.insert(probe[1..].to_vec());
        }
    }
    assert!(tried.len() >= 4, "{tried:?}");
    for arguments in tried {
        let output = Command::new(env!("CARGO_BIN_EXE_cinderblock"))
            .args(&arguments)
            .arg("--help")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn sidecars_are_given_flags_they_have() {
    let flags: BTreeMap<_, BTreeSet<_>> = SIDECAR_FLAGS
        .iter()
        .map(|(name, flags)| (*name, flags.split_whitespace().collect()))
        .collect();
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
        assert_eq!(alive.is_some(), kind == "Deployment" || restartable(rendering), "{at}");
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

/// Whether this rendering may restart node plugins under volumes.
fn restartable(rendering: &Rendering) -> bool {
    if rendering.has("node.restartable=true") || rendering.has("node.restartable=false") {
        return rendering.has("node.restartable=true");
    }
    // krbd's connections end with the network namespace they were made in.
    if rendering.has("node.hostNetwork=false") {
        return false;
    }
    let classes: Vec<_> =
        rendering.objects.iter().filter(|object| text(object, "/kind") == "StorageClass").collect();
    !classes.is_empty() && classes.iter().all(|class| text(class, "/parameters/mounter") == "rbd")
}

#[test]
fn node_plugins_are_rolled_out_only_where_volumes_outlive_them() {
    let mut seen = BTreeSet::new();
    for (rendering, object) in objects().filter(|(_, object)| text(object, "/kind") == "DaemonSet")
    {
        let strategy = text(object, "/spec/updateStrategy/type");
        let expected = if restartable(rendering) { "RollingUpdate" } else { "OnDelete" };
        assert_eq!(strategy, expected, "{:?}", rendering.values);
        seen.insert(strategy);
    }
    assert_eq!(seen.len(), 2);
}

#[test]
fn sidecars_leave_volume_attributes_classes_alone_where_kubernetes_has_no_version_they_know() {
    for (rendering, _, container) in containers() {
        if !["provisioner", "resizer"].contains(&text(container, "/name")) {
            continue;
        }
        let off = strings(container, "/args")
            .contains(&"--feature-gates=VolumeAttributesClass=false".to_owned());
        for version in &rendering.versions {
            assert_eq!(off, *version < "1.34", "{:?} on {version}", rendering.values);
        }
    }
}

#[test]
fn the_room_is_asked_for_where_it_is_published_and_where_the_driver_can_tell() {
    let is = |object: &&Value, kind: &str| text(object, "/kind") == kind;
    for rendering in RENDERINGS.iter() {
        let at = &rendering.values;
        let Some(driver) = rendering.objects.iter().find(|object| is(object, "CSIDriver")) else {
            continue;
        };
        let Some(deployment) = rendering.objects.iter().find(|object| is(object, "Deployment"))
        else {
            continue;
        };
        let publishes = deployment.to_string().contains("--enable-capacity");
        assert_eq!(driver["spec"]["storageCapacity"], publishes, "{at:?}");
        let forced =
            rendering.has("storageCapacity=true") || rendering.has("storageCapacity=false");
        let all = rendering.has("everything") || rendering.has("since-1.35");
        assert_eq!(
            publishes,
            if forced { rendering.has("storageCapacity=true") } else { all },
            "{at:?}"
        );
        let may = rendering.objects.iter().any(|object| {
            is(&object, "Role") && text(object, "/metadata/name").ends_with("-storage-capacity")
        });
        assert_eq!(may, publishes && !rendering.has("rbac.create=false"), "{at:?}");
    }
}

#[test]
fn nodes_say_where_they_are_as_the_release_or_their_labels_have_it() {
    let arguments = |names: &[&str]| -> Vec<String> {
        let objects = &rendering(names).objects;
        let node = objects.iter().find(|object| text(object, "/kind") == "DaemonSet").unwrap();
        let driver = &node["spec"]["template"]["spec"]["containers"][0];
        let said = strings(driver, "/args")
            .into_iter()
            .filter(|argument| argument.starts_with("--topology="));
        let labels = list(driver, "/env")
            .iter()
            .map(|variable| text(variable, "/valueFrom/fieldRef/fieldPath").to_owned())
            .filter(|path| path.starts_with("metadata.labels"));
        said.chain(labels).collect()
    };
    let of_the_release = [
        "--topology=topology.kubernetes.io/region=here",
        "--topology=topology.kubernetes.io/zone=a",
    ];
    assert_eq!(arguments(&["everything"]), of_the_release);
    let of_labels = [
        "--topology=topology.kubernetes.io/zone=$(TOPOLOGY_0)",
        "--topology=topology.kubernetes.io/region=$(TOPOLOGY_1)",
        "metadata.labels['topology.kubernetes.io/zone']",
        "metadata.labels['topology.kubernetes.io/region']",
    ];
    assert_eq!(arguments(&["available", "since-1.35"]), of_labels);
    assert!(arguments(&["one"]).is_empty());
}

#[test]
fn whoever_is_let_in_finds_an_open_port_and_nobody_else_is_let_in() {
    for rendering in RENDERINGS.iter() {
        let of_kind = |kind: &'static str| {
            rendering.objects.iter().filter(move |object| text(object, "/kind") == kind)
        };
        let Some(deployment) = of_kind("Deployment").next() else { continue };
        let ports: BTreeMap<_, _> = list(deployment, "/spec/template/spec/containers")
            .iter()
            .flat_map(|container| list(container, "/ports"))
            .map(|port| (text(port, "/name"), &port["containerPort"]))
            .collect();
        let called: BTreeSet<_> = of_kind("Service")
            .flat_map(|service| list(service, "/spec/ports"))
            .map(|port| ports[text(port, "/targetPort")].to_string())
            .collect();
        for policy in of_kind("NetworkPolicy") {
            let rules = list(policy, "/spec/ingress");
            let admitted: BTreeSet<_> = rules
                .iter()
                .flat_map(|rule| list(rule, "/ports"))
                .map(|port| port["port"].to_string())
                .collect();
            assert_eq!(admitted, called, "{:?}", rendering.values);
            // A rule without ports admits to all of them.
            assert!(
                rules.iter().all(|rule| !list(rule, "/ports").is_empty()),
                "{:?}",
                rendering.values
            );
        }
        let monitored: BTreeSet<_> = of_kind("ServiceMonitor")
            .flat_map(|monitor| list(monitor, "/spec/endpoints"))
            .map(|endpoint| text(endpoint, "/port"))
            .collect();
        assert!(
            monitored.iter().all(|port| ports.contains_key(port)),
            "{:?}: {monitored:?}",
            rendering.values
        );
    }
}
