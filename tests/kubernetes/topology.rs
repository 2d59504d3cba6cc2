//! A cluster that only the nodes of one zone reach: volumes of it are made for those, pods go
//! there, and the room that is left is published there for the scheduler.

use serde_json::json;

use super::api::{list, text, wait_until};
use super::chart::NAMESPACE;
use super::field::Field;
use super::nodes::{NODES, ZONE};
use super::space::Space;

pub(crate) fn volumes_and_the_room_are_where_their_cluster_is_reached() {
    let more = json!({
        "clusters": {"prod": {"topology": {ZONE: "near"}}},
        "node": {"topology": {ZONE: "near"}},
    });
    let field = Field::install(&more, Some(["near", "far"]));
    let space = Space::new(&field, "zones");
    for class in ["immediate", "first-consumer"] {
        space.claim(class, class, "1Gi", &json!({}));
        space.pod(class, None, &[class]);
        space.attached(class, NODES[0]);
        let expression = "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0";
        let volume = space.bound(class);
        assert_eq!(text(&volume, &format!("{expression}/key")), ZONE);
        assert_eq!(volume.pointer(&format!("{expression}/values")), Some(&json!(["near"])));
    }
    space.claim("unreached", "first-consumer", "1Gi", &json!({}));
    space.pod("unreached", Some(NODES[1]), &["unreached"]);
    space.told("unreached", &["FailedScheduling"]);

    let published = wait_until("there is room near, and none far", || {
        let mut all = field.api.list("CSIStorageCapacity", NAMESPACE);
        all.retain(|object| text(object, "/storageClassName") == "first-consumer");
        let in_zone =
            |zone: &str| all.iter().find(|o| o["nodeTopology"]["matchLabels"][ZONE] == zone);
        let room =
            |zone: &str| in_zone(zone).is_some_and(|o| !["", "0"].contains(&text(o, "/capacity")));
        if room("near") && !room("far") {
            Ok(in_zone("near").cloned().unwrap())
        } else {
            Err(format!("{all:?}"))
        }
    });
    let owners: Vec<_> =
        list(&published, "/metadata/ownerReferences").iter().map(|o| text(o, "/kind")).collect();
    assert_eq!(owners, ["Deployment"], "it would stay when the release goes");
    // More than an image can have: the scheduler does not even try.
    space.claim("vast", "first-consumer", "1Pi", &json!({}));
    space.pod("vast", None, &["vast"]);
    space.told("vast", &["FailedScheduling", "not have enough free storage"]);

    for name in ["immediate", "first-consumer", "unreached", "vast"] {
        space.delete("Pod", name);
    }
    for name in ["immediate", "first-consumer"] {
        space.detached(name);
    }
    for name in ["immediate", "first-consumer", "unreached", "vast"] {
        space.remove_claim(name);
    }
    space.finish();
    field.uninstall();
}
