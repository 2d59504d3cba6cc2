//! What is known of the volumes behind claims.

use cinderblock::kube::claims::{Found, Known, named, of_volume, with_labels};
use serde_json::{Value, json};

use crate::DRIVER;
use crate::api::{Api, Mood};

/// A claim with the label `backup: nightly`, bound to the volume `pvc-NAME` of `driver`.
fn claim(api: &Api, namespace: &str, name: &str, driver: &str) {
    let volume = format!("pvc-{name}");
    api.put(
        &format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"),
        json!({
            "metadata": {"namespace": namespace, "labels": {"backup": "nightly"}},
            "spec": {"volumeName": volume},
            "status": {"phase": "Bound"},
        }),
    );
    api.volume(&volume, driver, &format!("prod/rbd/csi-{volume}"), Some((namespace, name)));
}

fn class(api: &Api) {
    api.put(
        "/apis/storage.k8s.io/v1/storageclasses/fast",
        json!({"metadata": {}, "provisioner": DRIVER, "parameters": {"pool": "rbd", "clusterID": "prod"}}),
    );
}

fn claims(found: &[Found]) -> Vec<String> {
    let shown = |found: &Found| match found {
        Found::Volume(known) => format!("{} {}", known.claim.as_ref().unwrap().name, known.id),
        Found::Nothing { claim, why } => format!("{} {why}", claim.name),
    };
    found.iter().map(shown).collect()
}

#[tokio::test]
async fn claims_are_found_by_their_labels_and_namespaces() {
    let api = Api::new();
    class(&api);
    claim(&api, "shop", "data", DRIVER);
    claim(&api, "bank", "books", DRIVER);
    claim(&api, "bank", "strange", "other.example.com");
    // Of the driver, and without the label.
    api.volume("pvc-cache", DRIVER, "prod/rbd/csi-pvc-cache", Some(("shop", "cache")));
    api.claim("shop", "cache");
    api.put(
        "/api/v1/namespaces/shop/persistentvolumeclaims/waiting",
        json!({
            "metadata": {"namespace": "shop", "labels": {"backup": "nightly"}},
            "spec": {},
            "status": {"phase": "Pending"},
        }),
    );
    let client = api.client();
    let found = with_labels(&client, DRIVER, &[], "backup=nightly").await.unwrap();
    assert_eq!(
        claims(&found),
        [
            "books prod/rbd/csi-pvc-books",
            "strange has the PersistentVolume pvc-strange, which is none of rbd.csi.cinderblock.dev",
            "data prod/rbd/csi-pvc-data",
            "waiting is Pending and has no volume",
        ]
    );
    // A namespace that is named twice is looked at once.
    let shop = ["shop".to_owned(), "shop".to_owned()];
    let found = with_labels(&client, DRIVER, &shop, "backup=nightly").await.unwrap();
    assert_eq!(
        claims(&found),
        ["data prod/rbd/csi-pvc-data", "waiting is Pending and has no volume"]
    );
    assert_eq!(with_labels(&client, DRIVER, &[], "backup=weekly").await.unwrap(), []);
    // Nothing but claims is listed: that is all the chart's role allows.
    let listed = |request: &String| {
        request.ends_with("/persistentvolumes") || request.ends_with("/storageclasses")
    };
    assert_eq!(api.requests().iter().find(|request| listed(request)), None);
    api.set_mood(Mood::Refusing(403));
    with_labels(&client, DRIVER, &[], "backup=nightly").await.unwrap_err();
}

#[tokio::test]
async fn a_volume_is_known_as_it_can_be_created_again() {
    let api = Api::new();
    class(&api);
    claim(&api, "shop", "data", DRIVER);
    let client = api.client();
    let Some(Found::Volume(known)) = named(&client, DRIVER, "shop", "data").await.unwrap() else {
        panic!("it has a volume")
    };
    assert_eq!(
        of_volume(&client, DRIVER, "prod/rbd/csi-pvc-data").await.unwrap(),
        Some((*known).clone())
    );
    let Known { id, name, claim, storage_class, parameters, object } = *known;
    assert_eq!((id.as_str(), name.as_str()), ("prod/rbd/csi-pvc-data", "pvc-data"));
    let claim = claim.unwrap();
    assert_eq!((claim.namespace.as_str(), claim.name.as_str()), ("shop", "data"));
    assert_eq!(storage_class.as_deref(), Some("fast"));
    assert_eq!(parameters["clusterID"], "prod");
    assert_eq!(object["kind"], "PersistentVolume");
    assert_eq!(object["metadata"], json!({"name": "pvc-data"}));
    assert_eq!(object["spec"]["csi"]["volumeHandle"], "prod/rbd/csi-pvc-data");
    // A claim that is made again has another uid, and is taken by its name.
    let reference = &object["spec"]["claimRef"];
    assert_eq!((&reference["namespace"], &reference["name"]), (&json!("shop"), &json!("data")));
    assert_eq!((&reference["uid"], &reference["resourceVersion"]), (&Value::Null, &Value::Null));
    assert_eq!(object.get("status"), None);
    assert_eq!(named(&client, DRIVER, "shop", "absent").await.unwrap(), None);
    assert_eq!(of_volume(&client, DRIVER, "prod/rbd/absent").await.unwrap(), None);
}

#[tokio::test]
async fn a_class_that_is_gone_has_no_parameters_and_one_that_is_not_told_is_an_error() {
    let api = Api::new();
    claim(&api, "shop", "data", DRIVER);
    let client = api.client();
    let Some(Found::Volume(known)) = named(&client, DRIVER, "shop", "data").await.unwrap() else {
        panic!("it has a volume")
    };
    assert!(known.parameters.is_empty(), "{known:?}");
    api.set_mood(Mood::Refusing(403));
    named(&client, DRIVER, "shop", "data").await.unwrap_err();
}
