//! Nodes that are lost: their volumes are not handed on while they write, and with fencing they write no more.

use std::collections::BTreeSet;

use cinderblock::rbd::model::{Fault, Session};
use cinderblock::rbd::{Errno, Image, ImageKey, OpenMode};
use cinderblock::volume::Error;

use crate::lab::{BLOCK, Controller, Lab, RBD};

/// A node that has the image of the volume open.
struct Node {
    image: Box<dyn Image>,
    address: String,
}

impl Node {
    fn opening(session: &Session, name: &str) -> Node {
        let cluster = session.cluster();
        let pool = cluster.pool(RBD.pool, RBD.namespace).unwrap();
        let image = pool.open_image(ImageKey::Name(name), OpenMode::ReadWrite).unwrap();
        Node { image, address: cluster.address().unwrap() }
    }

    fn write(&self) -> Result<(), Errno> {
        self.image.write_at(BLOCK, b"from the node").map_err(|error| error.errno)
    }
}

fn fence(controller: &Controller, name: &str, node: Option<&str>) -> Vec<String> {
    let volumes = controller.volumes(RBD).unwrap();
    let Some(lingering) = volumes.lingering(name, node).unwrap() else { return Vec::new() };
    volumes.fence(&lingering).unwrap();
    lingering.addresses.into_iter().collect()
}

#[test]
fn a_volume_for_one_node_is_not_published_while_somebody_writes_to_it() {
    let lab = Lab::new();
    lab.create("A");
    let node = Node::opening(&lab.model.connect(), "A");
    let error = lab.refused(|controller| controller.publish(RBD, "A", "n"));
    let text = error.to_string();
    assert!(matches!(error, Error::InUse(_)), "{text}");
    assert!(text.contains(&format!("osd blocklist add {}", node.address)), "{text}");
    // Several may share it all the same.
    lab.controller.publish_limited(RBD, "A", "n", 5).unwrap();
    lab.controller.unpublish(RBD, "A").unwrap();
    drop(node);
    lab.controller.publish(RBD, "A", "n").unwrap();
    // The node it is published to has it open, and that is no reason to refuse it to that node.
    let _node = Node::opening(&lab.model.connect(), "A");
    lab.controller.publish(RBD, "A", "n").unwrap();
}

#[test]
fn a_lost_node_is_fenced_and_nobody_else_is() {
    let lab = Lab::new();
    for name in ["A", "B"] {
        lab.create(name);
        lab.controller.publish(RBD, name, if name == "A" { "lost" } else { "other" }).unwrap();
    }
    let lost = Node::opening(&lab.model.connect(), "A");
    let other = Node::opening(&lab.model.connect(), "B");
    lost.write().unwrap();
    // Not published there, or not at all, or no volume.
    assert!(fence(&lab.controller, "A", Some("other")).is_empty());
    assert!(fence(&lab.controller, "C", None).is_empty());
    lost.write().unwrap();

    assert_eq!(fence(&lab.controller, "A", Some("lost")), std::slice::from_ref(&lost.address));
    assert_eq!(lost.write(), Err(Errno::ESHUTDOWN));
    other.write().unwrap();
    lab.controller.unpublish(RBD, "A").unwrap();
    lab.controller.publish(RBD, "A", "next").unwrap();
    let next = Node::opening(&lab.model.connect(), "A");
    next.write().unwrap();
    assert_eq!(lost.write(), Err(Errno::ESHUTDOWN));
}

#[test]
fn who_let_go_in_good_order_is_not_fenced() {
    let lab = Lab::new();
    lab.create("A");
    lab.controller.publish(RBD, "A", "n").unwrap();
    let session = lab.model.connect();
    let node = Node::opening(&session, "A");
    drop(node);
    assert!(fence(&lab.controller, "A", Some("n")).is_empty());
    lab.controller.unpublish(RBD, "A").unwrap();
    Node::opening(&session, "A").write().unwrap();
}

#[test]
fn a_client_of_several_nodes_volume_is_nobodys() {
    let lab = Lab::new();
    lab.create("A");
    for node in ["a", "b"] {
        lab.controller.publish_limited(RBD, "A", node, 5).unwrap();
    }
    let node = Node::opening(&lab.model.connect(), "A");
    assert!(fence(&lab.controller, "A", Some("a")).is_empty());
    node.write().unwrap();
    assert_eq!(fence(&lab.controller, "A", None), [node.address]);
}

#[test]
fn a_controller_killed_while_fencing_fences_when_asked_again() {
    let set_up = || {
        let lab = Lab::new();
        lab.create("A");
        lab.controller.publish(RBD, "A", "lost").unwrap();
        let lost = [Node::opening(&lab.model.connect(), "A"), Node::opening(&lab.model.connect(), "A")];
        (lab, lost)
    };
    let ask = |controller: &Controller| {
        let volumes = controller.volumes(RBD)?;
        if let Some(lingering) = volumes.lingering("A", Some("lost"))? {
            volumes.fence(&lingering)?;
        }
        volumes.unpublish("A", Some("lost"))
    };
    let points = {
        let (lab, _lost) = set_up();
        let controller = Controller::new(&lab.model);
        ask(&controller).unwrap();
        controller.session.crash_points()
    };
    assert!(points.len() >= 4, "{points:?}");
    let mut seen = BTreeSet::new();
    for (call, fault) in points.into_iter().chain([(1, Fault::CrashBefore)]) {
        let (lab, lost) = set_up();
        let victim = Controller::new(&lab.model);
        victim.session.inject(call, fault);
        let _ = ask(&victim);
        // Whatever came of it: nobody else gets the volume while they write.
        let next = lab.controller.publish(RBD, "A", "next");
        let writing = lost.iter().filter(|node| node.write().is_ok()).count();
        assert!(next.is_err() || writing == 0, "{call} {fault:?}");
        seen.insert(writing);
        if next.is_err() {
            ask(&lab.controller).unwrap();
            lab.controller.publish(RBD, "A", "next").unwrap();
        }
        assert!(lost.iter().all(|node| node.write() == Err(Errno::ESHUTDOWN)), "{call} {fault:?}");
    }
    assert!(seen.len() > 1, "it was killed in one state alone: {seen:?}");
}
