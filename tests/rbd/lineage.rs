//! Parents, children, flattening, copies.

use std::ops::ControlFlow;

use cinderblock::rbd::{Child, CloneFormat, Errno, ImageKey, ImageOptions, OpenMode, Parent};

use crate::tools::{
    MIB, OBJECT, Place, clone, create, created, errno, flatten, format, image_names, open, read,
    remove_all, shallow, snapshot_id, spec,
};

/// `image` of 1 MiB with the byte 7 at the start of every object, and its snapshot `s`.
fn parent(place: &Place) -> Box<dyn cinderblock::rbd::Image> {
    let image = created(&place.pool, "image");
    for object in 0..MIB / OBJECT {
        image.write_at(object * OBJECT, &[7]).unwrap();
    }
    image.create_snapshot("s").unwrap();
    image
}

pub(crate) fn links_are_seen_from_both_sides(place: &Place) {
    let pool = &place.pool;
    let image = parent(place);
    image.create_snapshot("childless").unwrap();
    clone(pool, "image", "s", "clone");
    let child = open(pool, "clone");
    let expected = Parent {
        pool: pool.name().to_owned(),
        namespace: pool.namespace().to_owned(),
        image_id: image.id().unwrap(),
        image: "image".to_owned(),
        in_trash: false,
        snapshot_id: snapshot_id(&*image, "s"),
        snapshot: "s".to_owned(),
    };
    assert_eq!(child.parent(None).unwrap(), Some(expected.clone()));
    assert_eq!(image.parent(None).unwrap(), None);
    let children = [Child {
        pool: pool.name().to_owned(),
        namespace: pool.namespace().to_owned(),
        image_id: child.id().unwrap(),
        image: "clone".to_owned(),
        in_trash: false,
    }];
    assert_eq!(image.children(None).unwrap(), children);
    assert_eq!(image.children(Some(expected.snapshot_id)).unwrap(), children);
    assert_eq!(image.children(Some(snapshot_id(&*image, "childless"))).unwrap(), []);
    assert_eq!(child.children(None).unwrap(), []);
    // By id, so a rename of the parent does not matter.
    pool.rename_image("image", "renamed").unwrap();
    let now = open(pool, "clone").parent(None).unwrap().unwrap();
    assert_eq!((now.image.as_str(), now.image_id), ("renamed", expected.image_id));
    drop(child);
    remove_all(pool, &["clone"]);
    image.remove_snapshot("s").unwrap();
    image.remove_snapshot("childless").unwrap();
    drop(image);
    remove_all(pool, &["renamed"]);
}

pub(crate) fn links_cross_namespaces(place: &Place) {
    let image = parent(place);
    place
        .elsewhere
        .clone_image(&spec(&place.pool, "image", "s"), "clone", &ImageOptions::default())
        .unwrap();
    let child = open(&place.elsewhere, "clone");
    let found = child.parent(None).unwrap().unwrap();
    assert_eq!((found.namespace.as_str(), found.image.as_str()), (place.pool.namespace(), "image"));
    let children = image.children(None).unwrap();
    assert_eq!(children.len(), 1);
    assert_eq!(
        (children[0].namespace.as_str(), children[0].image.as_str()),
        (place.elsewhere.namespace(), "clone")
    );
    assert_eq!(read(&*child, 0, 1), [7]);
    drop(child);
    remove_all(&place.elsewhere, &["clone"]);
    image.remove_snapshot("s").unwrap();
    drop(image);
    remove_all(&place.pool, &["image"]);
}

pub(crate) fn links_reach_into_the_trash(place: &Place) {
    let pool = &place.pool;
    let image = parent(place);
    clone(pool, "image", "s", "clone");
    let (parent_id, child_id) = (image.id().unwrap(), pool.image_id("clone").unwrap().unwrap());
    pool.trash_move("clone", 0).unwrap();
    let children = image.children(None).unwrap();
    assert_eq!((children.len(), children[0].in_trash), (1, true));
    assert_eq!((children[0].image.as_str(), &children[0].image_id), ("clone", &child_id));
    drop(image);
    pool.trash_move("image", 0).unwrap();
    let child = pool.open_image(ImageKey::Id(&child_id), OpenMode::ReadOnly).unwrap();
    let found = child.parent(None).unwrap().unwrap();
    assert_eq!(
        (found.in_trash, found.image.as_str(), &found.image_id),
        (true, "image", &parent_id)
    );
    drop(child);
    pool.trash_remove(&child_id, false).unwrap();
    pool.trash_restore(&parent_id, "image").unwrap();
    open(pool, "image").remove_snapshot("s").unwrap();
    remove_all(pool, &["image"]);
}

pub(crate) fn format_1_links_are_the_same(place: &Place) {
    let pool = &place.pool;
    let image = parent(place);
    image.protect_snapshot("s").unwrap();
    pool.clone_image(&spec(pool, "image", "s"), "clone", &format(CloneFormat::V1)).unwrap();
    let s = snapshot_id(&*image, "s");
    assert_eq!(open(pool, "clone").parent(None).unwrap().unwrap().snapshot_id, s);
    assert_eq!(image.children(Some(s)).unwrap()[0].image, "clone");
    remove_all(pool, &["clone"]);
    assert_eq!(image.children(None).unwrap(), []);
    image.unprotect_snapshot("s").unwrap();
    image.remove_snapshot("s").unwrap();
    drop(image);
    remove_all(pool, &["image"]);
}

pub(crate) fn an_image_can_have_many_children(place: &Place) {
    let pool = &place.pool;
    let image = parent(place);
    let names: Vec<String> = (0..70).map(|number| format!("clone {number:02}")).collect();
    for name in &names {
        clone(pool, "image", "s", name);
    }
    let mut children: Vec<String> =
        image.children(None).unwrap().into_iter().map(|child| child.image).collect();
    children.sort();
    assert_eq!(children, names);
    let mut listed = names.clone();
    listed.push("image".to_owned());
    assert_eq!(image_names(pool), listed);
    for name in &names {
        pool.remove_image(name).unwrap();
    }
    image.remove_snapshot("s").unwrap();
    drop(image);
    remove_all(pool, &["image"]);
}

pub(crate) fn a_deep_flatten_cuts_the_links_of_snapshots_too(place: &Place) {
    let pool = &place.pool;
    let image = parent(place);
    clone(pool, "image", "s", "clone");
    let child = open(pool, "clone");
    child.create_snapshot("k").unwrap();
    let k = snapshot_id(&*child, "k");
    let s = snapshot_id(&*image, "s");
    assert_eq!(child.parent(Some(k)).unwrap().unwrap().snapshot_id, s);
    flatten(&*child);
    assert_eq!(child.parent(None).unwrap(), None);
    assert_eq!(child.parent(Some(k)).unwrap(), None);
    assert_eq!(image.children(None).unwrap(), []);
    let mut byte = [0];
    child.read_at(Some(k), 3 * OBJECT, &mut byte).unwrap();
    assert_eq!(byte, [7]);
    image.remove_snapshot("s").unwrap();
    child.remove_snapshot("k").unwrap();
    drop((image, child));
    remove_all(pool, &["image", "clone"]);
}

pub(crate) fn without_deep_flatten_snapshots_keep_their_links(place: &Place) {
    let pool = &place.pool;
    let image = parent(place);
    pool.clone_image(&spec(pool, "image", "s"), "clone", &shallow()).unwrap();
    let child = open(pool, "clone");
    child.create_snapshot("k").unwrap();
    let k = snapshot_id(&*child, "k");
    flatten(&*child);
    assert_eq!(child.parent(None).unwrap(), None);
    assert_eq!(child.parent(Some(k)).unwrap().unwrap().image, "image");
    assert_eq!(image.children(None).unwrap().len(), 1);
    image.remove_snapshot("s").unwrap();
    assert_eq!(image.snapshots().unwrap().len(), 1, "parked for the clone's snapshot");
    child.remove_snapshot("k").unwrap();
    assert_eq!(image.snapshots().unwrap(), []);
    drop((image, child));
    remove_all(pool, &["image", "clone"]);
}

pub(crate) fn flattening_copies_what_was_shared(place: &Place) {
    let pool = &place.pool;
    let image = parent(place);
    clone(pool, "image", "s", "clone");
    let child = open(pool, "clone");
    child.write_at(OBJECT, &[9]).unwrap();
    let mut reports = Vec::new();
    child
        .flatten(&mut |done, total| {
            reports.push((done, total));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(
        !reports.is_empty() && reports.iter().all(|(done, total)| done <= total && *total > 0),
        "{reports:?}"
    );
    assert_eq!((read(&*child, 0, 1), read(&*child, OBJECT, 1)), (vec![7], vec![9]));
    assert_eq!(errno(child.flatten(&mut |_, _| ControlFlow::Continue(()))), Errno::EINVAL);
    image.remove_snapshot("s").unwrap();
    drop((image, child));
    remove_all(pool, &["image", "clone"]);
}

pub(crate) fn a_stopped_flatten_leaves_the_link(place: &Place) {
    let pool = &place.pool;
    let image = parent(place);
    clone(pool, "image", "s", "clone");
    let child = open(pool, "clone");
    let stopped = child.flatten(&mut |done, _| {
        if done < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert_eq!(errno(stopped), Errno::ECANCELED);
    assert_eq!(child.parent(None).unwrap().unwrap().image, "image");
    flatten(&*child);
    assert_eq!(child.parent(None).unwrap(), None);
    image.remove_snapshot("s").unwrap();
    drop((image, child));
    remove_all(pool, &["image", "clone"]);
}

pub(crate) fn a_panic_in_progress_reaches_the_caller(place: &Place) {
    let pool = &place.pool;
    let image = parent(place);
    clone(pool, "image", "s", "clone");
    let child = open(pool, "clone");
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        child.flatten(&mut |_, _| std::panic::resume_unwind(Box::new("from a callback")))
    }));
    assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"from a callback"));
    assert_eq!(child.parent(None).unwrap().unwrap().image, "image");
    drop(child);
    remove_all(pool, &["clone"]);
    image.remove_snapshot("s").unwrap();
    drop(image);
    remove_all(pool, &["image"]);
}

pub(crate) fn a_clone_of_a_clone_has_the_nearer_parent(place: &Place) {
    let pool = &place.pool;
    let image = parent(place);
    clone(pool, "image", "s", "middle");
    let middle = open(pool, "middle");
    middle.create_snapshot("m").unwrap();
    clone(pool, "middle", "m", "last");
    let last = open(pool, "last");
    assert_eq!(last.parent(None).unwrap().unwrap().image, "middle");
    assert_eq!(middle.parent(Some(snapshot_id(&*middle, "m"))).unwrap().unwrap().image, "image");
    assert_eq!(read(&*last, 5 * OBJECT, 1), [7]);
    create(pool, "unrelated");
    assert_eq!(open(pool, "unrelated").parent(None).unwrap(), None);
    drop(last);
    remove_all(pool, &["last", "unrelated"]);
    middle.remove_snapshot("m").unwrap();
    drop(middle);
    remove_all(pool, &["middle"]);
    image.remove_snapshot("s").unwrap();
    drop(image);
    remove_all(pool, &["image"]);
}
