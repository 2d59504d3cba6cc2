//! The chart as Helm renders it for these tests, and what follows from its objects.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::api::{Api, list, text};

/// The namespace of the release.
pub(crate) const NAMESPACE: &str = "cinderblock";

/// Roles of every sidecar; the driver has no business with them. Any other is of the container it
/// is named after.
const SHARED_ROLES: &[&str] = &["leader-election", "secrets"];
/// But for these.
const ROLES_OF: &[(&str, &str)] = &[("storage-capacity", "provisioner")];

/// The objects of a YAML text.
pub(crate) fn objects(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// The objects of the release with these files of values.
pub(crate) fn render(values: &[&Path]) -> Vec<Value> {
    let helm = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin/helm");
    assert!(helm.is_file(), "helm is not built; run: make tools");
    let output = Command::new(helm)
        .args([
            "template",
            "cinderblock",
            "charts/cinderblock",
            "--namespace",
            NAMESPACE,
            "--skip-tests",
        ])
        .args(values.iter().flat_map(|file| [Path::new("--values"), file]))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    objects(&String::from_utf8(output.stdout).unwrap())
}

/// The pod of the rendered object of this kind.
pub(crate) fn pod<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let object = objects.iter().find(|object| text(object, "/kind") == kind);
    &object.unwrap_or_else(|| panic!("the chart renders no {kind}"))["spec"]["template"]["spec"]
}

/// Whether a container is given the pod's token.
pub(crate) fn talks_to_kubernetes(container: &Value) -> bool {
    list(container, "/volumeMounts").iter().any(|mount| text(mount, "/name").contains("token"))
}

/// The rendering with the rights of the one ServiceAccount that all containers of a pod share given
/// to one ServiceAccount for each container, named as the container is. So a container that uses a
/// right which the chart means for another is found out.
pub(crate) fn with_rights_apart(rendered: &[Value]) -> Vec<Value> {
    let pod = pod(rendered, "Deployment");
    let talkers: Vec<_> =
        list(pod, "/containers").iter().filter(|c| talks_to_kubernetes(c)).collect();
    let names: Vec<_> = talkers.iter().map(|container| text(container, "/name")).collect();
    let account =
        |name: &str| json!({"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE});
    let mut objects = rendered.to_vec();
    for object in &mut objects {
        if !text(object, "/kind").ends_with("RoleBinding")
            || text(object, "/subjects/0/name") != text(pod, "/serviceAccountName")
        {
            continue;
        }
        let role = text(object, "/roleRef/name").strip_prefix("cinderblock-").unwrap().to_owned();
        object["subjects"] = if SHARED_ROLES.contains(&role.as_str()) {
            names.iter().filter(|name| **name != "driver").map(|name| account(name)).collect()
        } else {
            let owner = ROLES_OF
                .iter()
                .find(|(of, _)| *of == role)
                .map_or(role.as_str(), |(_, owner)| owner);
            assert!(names.contains(&owner), "whose is the role {role}? {names:?}");
            json!([account(owner)])
        };
    }
    objects.extend(names.iter().map(|name| {
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}})
    }));
    objects
}

/// Applies objects in their order; in `namespace`, unless they name another.
pub(crate) fn apply(api: &Api, objects: &[Value], namespace: &str) {
    for object in objects {
        api.apply(object, namespace);
    }
}

/// Asks for the end of objects, the last first.
pub(crate) fn delete(api: &Api, objects: &[Value]) {
    for object in objects.iter().rev() {
        let namespace =
            object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or(NAMESPACE);
        api.delete(text(object, "/kind"), namespace, text(object, "/metadata/name"));
    }
}
