//! Nodes that are lost: their clients are fenced by the notes they made, before their volumes are
//! handed on.

use std::collections::BTreeSet;

use cinderblock::notes::Place;
use cinderblock::rbd::model::{Fault, Session};
use cinderblock::rbd::{Errno, Guard, Image, ImageKey, OmapUpdate, OpenMode, Pool};
use cinderblock::volume::Error;

use crate::lab::{BLOCK, Controller, Lab, RBD, publish_volume};

/// A node that has the image of the volume open.
struct Node {
    image: Box<dyn Image>,
    address: String,
    session: Session,
}

impl Node {
    fn opening(session: &Session, name: &str) -> Node {
        let cluster = session.cluster();
        let pool = cluster.pool(RBD.pool, RBD.namespace).unwrap();
        let image = pool.open_image(ImageKey::Name(name), OpenMode::ReadWrite).unwrap();
        Node { image, address: cluster.address().unwrap(), session: session.clone() }
    }

    /// One that has noted itself at `place`, as a node does before it writes.
    fn noted(lab: &Lab, name: &str, place: &Place) -> Node {
        let node = Node::opening(&lab.model.connect(), name);
        assert!(node.note(place));
        node
    }

    /// Whether the note is taken: by a guarded write, in the form that is stored.
    fn note(&self, place: &Place) -> bool {
        let pool = self.session.cluster().pool(RBD.pool, RBD.namespace).unwrap();
        let Some(bytes) = entry(&*pool, place) else { return false };
        let mut entry: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        if entry["token"] != place.token.as_str() {
            return false;
        }
        let client = serde_json::json!({"address": self.address, "boot": "b", "image_id": "i"});
        entry["clients"].as_array_mut().unwrap().push(client);
        let update = OmapUpdate {
            guards: vec![Guard::Equals(place.key.clone(), bytes)],
            set: vec![(place.key.clone(), entry.to_string().into_bytes())],
            remove: vec![],
        };
        pool.omap_update(&place.object, &update).is_ok()
    }

    fn write(&self) -> Result<(), Errno> {
        self.image.write_at(BLOCK, b"from the node").map_err(|error| error.errno)
    }
}

fn entry(pool: &dyn Pool, place: &Place) -> Option<Vec<u8>> {
    pool.omap_get(&place.object, &[&place.key]).unwrap().remove(&place.key)
}

fn publish(controller: &Controller, name: &str, node: &str) -> Place {
    controller.publish_noted(RBD, name, node).unwrap().unwrap()
}

#[test]
fn a_lost_node_is_fenced_by_its_notes_and_nobody_else_is() {
    let lab = Lab::new();
    for name in ["A", "B"] {
        lab.create(name);
    }
    let place = publish(&lab.controller, "A", "lost");
    let lost = Node::noted(&lab, "A", &place);
    let other = Node::noted(&lab, "B", &publish(&lab.controller, "B", "other"));
    // A mirror or a backup tool.
    let watcher = Node::opening(&lab.model.connect(), "A");
    lost.write().unwrap();
    // Not published there, or no volume.
    lab.controller.release(RBD, "A", Some("other")).unwrap();
    lab.controller.release(RBD, "C", None).unwrap();
    lost.write().unwrap();
    assert_eq!(publish(&lab.controller, "A", "lost"), place, "asked again");

    lab.controller.release(RBD, "A", Some("lost")).unwrap();
    assert_eq!(lost.write(), Err(Errno::ESHUTDOWN));
    other.write().unwrap();
    watcher.write().unwrap();
    assert!(!watcher.note(&place), "the token is gone");
    let pool = lab.model.connect().cluster().pool(RBD.pool, RBD.namespace).unwrap();
    assert_eq!(entry(&*pool, &place), None);

    let error = lab.refused(|controller| controller.publish(RBD, "A", "next"));
    assert!(
        matches!(&error, Error::InUse(text) if text.contains(&format!("osd blocklist add {}", watcher.address))),
        "{error}"
    );
    drop(watcher);
    let next = publish(&lab.controller, "A", "next");
    assert_ne!(next.token, place.token);
    Node::noted(&lab, "A", &next).write().unwrap();
    assert_eq!(lost.write(), Err(Errno::ESHUTDOWN));
}

/// A driver from before tokens would drop the token when it writes the record anew, as it does when
/// the volume grows, and the node would not be fenced. It reads no record of version 2.
#[test]
fn a_driver_of_the_version_before_cannot_read_a_record_with_a_token() {
    let lab = Lab::new();
    lab.create("A");
    let pool = lab.model.connect().cluster().pool(RBD.pool, RBD.namespace).unwrap();
    let place = publish(&lab.controller, "A", "n");
    let version = || {
        let key = "volume/A";
        let bytes = pool.omap_get(&place.object, &[key]).unwrap().remove(key).unwrap();
        serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()["version"].clone()
    };
    assert_eq!(version(), 2);
    lab.controller.grow(RBD, "A", 4).unwrap();
    assert_eq!(version(), 2);
    lab.controller.release(RBD, "A", Some("n")).unwrap();
    assert_eq!(version(), 1);
}

#[test]
fn a_client_that_is_closed_and_not_noted_any_more_is_not_fenced() {
    let lab = Lab::new();
    lab.create("A");
    lab.controller.publish(RBD, "A", "n").unwrap();
    let session = lab.model.connect();
    drop(Node::opening(&session, "A"));
    lab.controller.unpublish(RBD, "A").unwrap();
    Node::opening(&session, "A").write().unwrap();
}

#[test]
fn a_node_that_froze_before_its_note_gets_none_afterwards() {
    let lab = Lab::new();
    lab.create("A");
    let place = publish(&lab.controller, "A", "lost");
    let frozen = Node::opening(&lab.model.connect(), "A");
    lab.controller.release(RBD, "A", Some("lost")).unwrap();
    assert!(!frozen.note(&place));
    // Nor when the same node is given the volume again.
    lab.refused(|controller| controller.publish(RBD, "A", "next"));
    let address = frozen.address.clone();
    drop(frozen);
    let again = publish(&lab.controller, "A", "lost");
    let thawed = Node::opening(&lab.model.connect(), "A");
    assert_ne!(thawed.address, address);
    assert!(!thawed.note(&place));
    assert!(thawed.note(&again));
}

#[test]
fn a_client_noted_while_its_node_is_unpublished_keeps_the_volume_published() {
    let lab = Lab::new();
    lab.create("A");
    let place = publish(&lab.controller, "A", "n");
    let volumes = lab.controller.volumes(RBD).unwrap();
    let leaving = volumes.leaving("A", None, true).unwrap().unwrap();
    assert!(leaving.clients.is_empty());
    let node = Node::noted(&lab, "A", &place);
    assert!(matches!(volumes.unpublish(leaving), Err(Error::Conflict(_))));
    node.write().unwrap();
    lab.refused(|controller| controller.publish(RBD, "A", "next"));
    lab.controller.unpublish(RBD, "A").unwrap();
    assert_eq!(node.write(), Err(Errno::ESHUTDOWN));
}

#[test]
fn of_several_nodes_the_one_that_is_lost_is_fenced() {
    let lab = Lab::new();
    lab.create("A");
    let nodes = ["a", "b"].map(|node| {
        let place = lab.controller.publish_shared(RBD, "A", node).unwrap().unwrap();
        Node::noted(&lab, "A", &place)
    });
    lab.controller.release(RBD, "A", Some("a")).unwrap();
    assert_eq!(nodes[0].write(), Err(Errno::ESHUTDOWN));
    nodes[1].write().unwrap();
    let again = lab.controller.publish_shared(RBD, "A", "a").unwrap().unwrap();
    Node::noted(&lab, "A", &again).write().unwrap();
    nodes[1].write().unwrap();
}

/// Takes the token out of the record and the notes out of the catalogue, as a version without them
/// wrote it.
fn without_notes(lab: &Lab, place: &Place) {
    let pool = lab.model.connect().cluster().pool(RBD.pool, RBD.namespace).unwrap();
    let key = "volume/A";
    let bytes = pool.omap_get(&place.object, &[key]).unwrap().remove(key).unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    record["published"][0].as_object_mut().unwrap().remove("token").unwrap();
    let update = OmapUpdate {
        guards: vec![],
        set: vec![(key.to_owned(), record.to_string().into_bytes())],
        remove: vec![place.key.clone()],
    };
    pool.omap_update(&place.object, &update).unwrap();
}

#[test]
fn what_a_version_without_notes_published_is_fenced_by_its_watch() {
    let lab = Lab::new();
    lab.create("A");
    let place = publish(&lab.controller, "A", "lost");
    let lost = Node::opening(&lab.model.connect(), "A");
    without_notes(&lab, &place);
    // Nor does a repeated request hand out a token: the client that is there would never be noted
    // by it.
    assert_eq!(lab.controller.publish_noted(RBD, "A", "lost").unwrap(), None);
    let volumes = lab.controller.volumes(RBD).unwrap();
    assert!(volumes.leaving("A", None, false).unwrap().unwrap().clients.is_empty());
    lab.controller.release(RBD, "A", Some("lost")).unwrap();
    assert_eq!(lost.write(), Err(Errno::ESHUTDOWN));
    publish(&lab.controller, "A", "next");
}

#[test]
fn notes_that_a_version_without_them_left_behind_are_fenced_when_the_volume_is_handed_on() {
    let lab = Lab::new();
    lab.create("A");
    let place = publish(&lab.controller, "A", "lost");
    let lost = Node::noted(&lab, "A", &place);
    let pool = lab.model.connect().cluster().pool(RBD.pool, RBD.namespace).unwrap();
    let notes = entry(&*pool, &place).unwrap();
    lab.controller.unpublish(RBD, "A").unwrap();
    let update =
        OmapUpdate { guards: vec![], set: vec![(place.key.clone(), notes)], remove: vec![] };
    pool.omap_update(&place.object, &update).unwrap();
    publish(&lab.controller, "A", "next");
    assert_eq!(lost.write(), Err(Errno::ESHUTDOWN));
    assert_eq!(entry(&*pool, &place), None);
}

#[test]
fn a_controller_killed_while_fencing_fences_when_asked_again() {
    let set_up = || {
        let lab = Lab::new();
        lab.create("A");
        let place = publish(&lab.controller, "A", "lost");
        let lost = [Node::noted(&lab, "A", &place), Node::noted(&lab, "A", &place)];
        (lab, lost)
    };
    let points = {
        let (lab, _lost) = set_up();
        let controller = Controller::new(&lab.model);
        controller.release(RBD, "A", Some("lost")).unwrap();
        controller.session.crash_points()
    };
    assert!(points.len() >= 4, "{points:?}");
    let mut seen = BTreeSet::new();
    for (call, fault) in points.into_iter().chain([(1, Fault::CrashBefore)]) {
        let (lab, lost) = set_up();
        let victim = Controller::new(&lab.model);
        victim.session.inject(call, fault);
        let _ = victim.release(RBD, "A", Some("lost"));
        // Whatever came of it: no other node gets the volume while a lost one writes.
        let next = lab.controller.publish(RBD, "A", "next");
        let writing = lost.iter().filter(|node| node.write().is_ok()).count();
        assert!(next.is_err() || writing == 0, "{call} {fault:?}");
        seen.insert(writing);
        if next.is_err() {
            lab.controller.release(RBD, "A", Some("lost")).unwrap();
            lab.controller.publish(RBD, "A", "next").unwrap();
        }
        assert!(lost.iter().all(|node| node.write() == Err(Errno::ESHUTDOWN)), "{call} {fault:?}");
    }
    assert!(seen.len() > 1, "it was killed in one state alone: {seen:?}");
}

#[test]
fn a_publication_that_a_version_before_recorded_is_found_again() {
    let lab = Lab::new();
    lab.create("A");
    let volumes = lab.controller.volumes(RBD).unwrap();
    let now = publish_volume("A", "n", false);
    let mut before = now.clone();
    before.publication.capability.clone_from(&now.older_capability);
    let place = volumes.publish(&before).unwrap();
    assert!(place.is_some());
    assert_eq!(volumes.publish(&now).unwrap(), place);
    let mut other = now;
    other.publication.capability = "b".to_owned();
    other.older_capability = "older b".to_owned();
    assert!(matches!(volumes.publish(&other), Err(Error::AlreadyExists(_))));
}
