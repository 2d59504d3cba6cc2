//! Which claim, PersistentVolume and nodes belong together.

use cinderblock::kube::volumes::{self, Attachment, Claim, Volume};

use crate::DRIVER;
use crate::api::{Api, Mood};

#[tokio::test]
async fn the_chain_is_read_for_every_volume_of_the_driver() {
    let api = Api::new();
    // More than fit in a page.
    for number in 0..1100 {
        api.volume(
            &format!("pv-{number:04}"),
            DRIVER,
            &format!("lab/rbd/csi-pv-{number:04}"),
            None,
        );
    }
    api.volume("foreign", "other.example.com", "lab/rbd/csi-x", None);
    api.volume("pvc-1", DRIVER, "lab/rbd/csi-pvc-1", Some(("shop", "data")));
    api.attachment("csi-b", "pvc-1", "node-b", false);
    api.attachment("csi-a", "pvc-1", "node-a", true);
    api.attachment("csi-c", "foreign", "node-c", true);
    let found = volumes::all(&api.client(), DRIVER).await.unwrap();
    assert_eq!(found.len(), 1101);
    let volume = found.iter().find(|volume| volume.name == "pvc-1").unwrap();
    let attachment = |node: &str, attached| Attachment { node: node.to_string(), attached };
    assert_eq!(
        *volume,
        Volume {
            claim: Some(Claim { namespace: "shop".to_string(), name: "data".to_string() }),
            storage_class: Some("fast".to_string()),
            name: "pvc-1".to_string(),
            phase: "Bound".to_string(),
            id: "lab/rbd/csi-pvc-1".to_string(),
            attachments: vec![attachment("node-a", true), attachment("node-b", false)],
        }
    );
    assert!(found.iter().all(|volume| volume.name != "foreign"));
}

#[tokio::test]
async fn a_claim_without_a_volume_is_known_as_such() {
    let api = Api::new();
    api.claim("shop", "waiting");
    let waiting = volumes::claim(&api.client(), "shop", "waiting").await.unwrap().unwrap();
    assert_eq!(
        (waiting.phase.as_str(), waiting.storage_class.as_deref()),
        ("Pending", Some("fast"))
    );
    assert_eq!(volumes::claim(&api.client(), "shop", "other").await.unwrap(), None);
    api.set_mood(Mood::Refusing(403));
    volumes::claim(&api.client(), "shop", "other").await.unwrap_err();
    volumes::all(&api.client(), DRIVER).await.unwrap_err();
}
