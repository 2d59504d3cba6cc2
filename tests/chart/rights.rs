//! What the chart may ask of Kubernetes, written down a second time: a template that asks for more
//! fails. And where secrets are.

use std::collections::BTreeSet;

use super::{NAMESPACE, RENDERINGS, list, objects, parameters, strings, text};

/// `role: group/resource verbs`; a group of its own for the core one. The sidecars' code at the
/// versions of values.yaml needs these, with the features that are on.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("provisioner", "/persistentvolumes", "get list watch create patch delete"),
    ("provisioner", "/persistentvolumeclaims", "get list watch update"),
    ("provisioner", "/events", "create update patch"),
    ("provisioner", "storage.k8s.io/storageclasses", "get list watch"),
    ("provisioner", "storage.k8s.io/volumeattachments", "get list watch"),
    ("provisioner", "storage.k8s.io/volumeattributesclasses", "get list watch"),
    ("provisioner", "/nodes", "get list watch"),
    ("provisioner", "storage.k8s.io/csinodes", "get list watch"),
    ("provisioner", "snapshot.storage.k8s.io/volumesnapshots", "get list watch update"),
    ("provisioner", "snapshot.storage.k8s.io/volumesnapshotcontents", "get list"),
    ("attacher", "/persistentvolumes", "get list watch patch"),
    ("attacher", "storage.k8s.io/csinodes", "get list watch"),
    ("attacher", "storage.k8s.io/volumeattachments", "get list watch patch"),
    ("attacher", "storage.k8s.io/volumeattachments/status", "patch"),
    ("resizer", "/persistentvolumes", "get list watch patch"),
    ("resizer", "/persistentvolumeclaims", "get list watch"),
    ("resizer", "/persistentvolumeclaims/status", "patch"),
    ("resizer", "/events", "create update patch"),
    ("resizer", "storage.k8s.io/volumeattributesclasses", "get list watch"),
    ("snapshotter", "/events", "create update patch"),
    ("snapshotter", "snapshot.storage.k8s.io/volumesnapshotclasses", "get list watch"),
    (
        "snapshotter",
        "snapshot.storage.k8s.io/volumesnapshotcontents",
        "get list watch update patch",
    ),
    ("snapshotter", "snapshot.storage.k8s.io/volumesnapshotcontents/status", "update patch"),
    ("snapshotter", "groupsnapshot.storage.k8s.io/volumegroupsnapshotclasses", "get list watch"),
    (
        "snapshotter",
        "groupsnapshot.storage.k8s.io/volumegroupsnapshotcontents",
        "get list watch update patch",
    ),
    (
        "snapshotter",
        "groupsnapshot.storage.k8s.io/volumegroupsnapshotcontents/status",
        "update patch",
    ),
    ("snapshot-metadata", "cbt.storage.k8s.io/snapshotmetadataservices", "get"),
    ("snapshot-metadata", "authentication.k8s.io/tokenreviews", "create"),
    ("snapshot-metadata", "authorization.k8s.io/subjectaccessreviews", "create"),
    ("snapshot-metadata", "snapshot.storage.k8s.io/volumesnapshots", "get"),
    ("snapshot-metadata", "snapshot.storage.k8s.io/volumesnapshotcontents", "get"),
    ("snapshot-metadata", "snapshot.storage.k8s.io/volumesnapshotclasses", "get list"),
    (
        "storage-capacity",
        "storage.k8s.io/csistoragecapacities",
        "get list watch create update patch delete",
    ),
    ("storage-capacity", "/pods", "get"),
    ("storage-capacity", "apps/replicasets", "get"),
    ("driver", "/events", "create patch"),
    ("driver", "/persistentvolumes", "get list"),
    ("driver", "/persistentvolumeclaims", "get"),
    ("driver", "/nodes", "get"),
    ("driver", "storage.k8s.io/csinodes", "get list"),
    ("driver", "storage.k8s.io/volumeattachments", "list"),
    ("driver", "snapshot.storage.k8s.io/volumesnapshots", "get"),
    ("driver", "snapshot.storage.k8s.io/volumesnapshotcontents", "get"),
    ("leader-election", "coordination.k8s.io/leases", "get create update"),
    ("leader-election", "/events", "create patch"),
    ("secrets", "/secrets", "get"),
    ("backup", "/persistentvolumes", "get"),
    ("backup", "/persistentvolumeclaims", "get list"),
    ("backup", "storage.k8s.io/storageclasses", "get"),
];

#[test]
fn no_secret_is_in_any_object() {
    for (rendering, object) in objects() {
        assert_ne!(text(object, "/kind"), "Secret", "{:?}", rendering.values);
        let whole = object.to_string();
        // The name of the Secret's entry, where a key is mounted.
        let whole = whole.replace(r#""key":"userKey""#, "");
        assert!(!whole.contains("userKey"), "{:?}: {whole}", rendering.values);
    }
}

#[test]
fn sidecars_may_do_what_is_allowed_here_and_no_more() {
    let mut used = BTreeSet::new();
    for (rendering, object) in
        objects().filter(|(_, object)| text(object, "/kind").ends_with("Role"))
    {
        let role = text(object, "/metadata/name").strip_prefix("cinderblock-").unwrap();
        for rule in list(object, "/rules") {
            let [group] = &strings(rule, "/apiGroups")[..] else {
                panic!("{object}: one group per rule")
            };
            for resource in strings(rule, "/resources") {
                let what = format!("{group}/{resource}");
                let allowed =
                    ALLOWED.iter().find(|(allowed, to, _)| *allowed == role && *to == what);
                let Some(allowed) = allowed else {
                    panic!("{:?}: {role} may touch {what}", rendering.values)
                };
                for verb in strings(rule, "/verbs") {
                    let granted = allowed.2.split(' ').any(|granted| granted == verb);
                    assert!(granted, "{:?}: {role} may {verb} {what}", rendering.values);
                }
                used.insert(allowed);
            }
            let any_secret = rendering.has("rbac.anySecret=true");
            if role == "secrets" && !any_secret {
                assert_eq!(text(object, "/kind"), "Role", "{:?}", rendering.values);
                assert!(
                    !list(rule, "/resourceNames").is_empty(),
                    "{:?}: every secret",
                    rendering.values
                );
            }
        }
    }
    assert_eq!(used, ALLOWED.iter().collect(), "what is allowed here and asked for nowhere");
    for (rendering, object) in
        objects().filter(|(_, object)| text(object, "/kind").ends_with("RoleBinding"))
    {
        let account = match text(object, "/metadata/name") {
            "cinderblock-backup" | "cinderblock-backup-nonroot-v2" => "cinderblock-backup",
            "cinderblock-node-privileged" => "cinderblock-node",
            _ => "cinderblock-controller",
        };
        for subject in list(object, "/subjects") {
            let subject =
                (text(subject, "/kind"), text(subject, "/name"), text(subject, "/namespace"));
            assert_eq!(subject, ("ServiceAccount", account, NAMESPACE), "{:?}", rendering.values);
        }
    }
}

/// One who may make pods in a namespace of claims must not become one who reads all claims.
#[test]
fn a_backup_sees_claims_of_the_namespaces_that_are_named_and_of_no_others() {
    let mut seen = BTreeSet::new();
    for rendering in RENDERINGS.iter().filter(|rendering| !rendering.has("rbac.create=false")) {
        let named = |object: &&serde_json::Value, kind: &str| {
            text(object, "/kind") == kind && text(object, "/metadata/name") == "cinderblock-backup"
        };
        let of = |kind: &str| {
            rendering.objects.iter().filter(|object| named(object, kind)).collect::<Vec<_>>()
        };
        let jobs = of("CronJob");
        let [job] = jobs[..] else { continue };
        let arguments = strings(job, "/spec/jobTemplate/spec/template/spec/initContainers/0/args");
        let asked: BTreeSet<_> = arguments
            .iter()
            .filter_map(|argument| argument.strip_prefix("--claim-namespace="))
            .collect();
        let allowed: BTreeSet<_> =
            of("Role").into_iter().map(|role| text(role, "/metadata/namespace")).collect();
        assert_eq!(asked, allowed, "{:?}", rendering.values);
        let everywhere = of("ClusterRole")[0].to_string().contains("persistentvolumeclaims");
        assert_eq!(everywhere, asked.is_empty(), "{:?}", rendering.values);
        seen.insert(everywhere);
    }
    assert_eq!(seen.len(), 2, "both kinds are rendered");
}

#[test]
fn on_openshift_each_account_may_use_the_constraints_that_its_pods_need() {
    for rendering in RENDERINGS.iter() {
        let used: BTreeSet<_> = rendering
            .objects
            .iter()
            .filter(|object| text(object, "/kind") == "RoleBinding")
            .map(|object| text(object, "/roleRef/name"))
            .filter_map(|role| role.strip_prefix("system:openshift:scc:"))
            .collect();
        if !rendering.has("openshift.enabled=true") {
            assert_eq!(used, BTreeSet::new(), "{:?}", rendering.values);
        } else if !rendering.has("controller.enabled=false") {
            assert_eq!(used, BTreeSet::from(["nonroot-v2", "privileged"]));
        }
    }
}

#[test]
fn sidecars_can_read_every_secret_that_a_class_names() {
    for rendering in RENDERINGS.iter() {
        let mut readable = BTreeSet::new();
        let mut everything = false;
        let mut named = BTreeSet::new();
        for object in &rendering.objects {
            if text(object, "/metadata/name") == "cinderblock-secrets" {
                everything |= text(object, "/kind") == "ClusterRole";
                for name in strings(object, "/rules/0/resourceNames") {
                    readable.insert((text(object, "/metadata/namespace").to_owned(), name));
                }
            }
            if text(object, "/kind").ends_with("Class") {
                let parameters = parameters(object);
                for (key, name) in
                    parameters.iter().filter(|(key, _)| key.ends_with("-secret-name"))
                {
                    named.insert((
                        parameters[&key.replace("-name", "-namespace")].clone(),
                        name.clone(),
                    ));
                }
            }
        }
        let off = ["rbac.create=false", "controller.enabled=false", "off"]
            .iter()
            .any(|value| rendering.has(value));
        assert!(
            off || everything || named.is_subset(&readable),
            "{:?}: {named:?} {readable:?}",
            rendering.values
        );
    }
}
