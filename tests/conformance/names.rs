//! Names: any Unicode but most control characters, and every one a volume or snapshot of its own.

use std::collections::BTreeMap;

use tonic::Code;

use super::session::{Session, refused};
use super::target::{Controller, Need};
use super::{Check, check};

const SNAPSHOTS: Need = Need::Controller(Controller::CreateDeleteSnapshot);

pub fn checks() -> Vec<Check> {
    vec![
        check!(any_unicode_names_a_volume_of_its_own),
        check!(any_unicode_names_a_snapshot_of_its_own, SNAPSHOTS),
        check!(control_characters_are_refused_in_volume_names),
        check!(control_characters_are_refused_in_snapshot_names, SNAPSHOTS),
        check!(an_empty_name_is_refused),
    ]
}

/// Names that are good, and look like something else somewhere.
const NAMES: &[&str] = &[
    "a/b",
    "a@b",
    "a/b@c",
    "@",
    "/",
    "//",
    "../../etc/passwd",
    "..",
    ".",
    "-rf",
    "--help",
    "🦀",
    "👩‍👩‍👧‍👦",
    "名前",
    "عربى",
    "\u{202e}txt",
    "tab\there",
    "line\nbreak",
    "car\rriage",
    " ",
    " lead",
    "trail ",
    "a b",
    "%s%n%x",
    "$(id)",
    "`id`",
    "a'b\"c",
    "a\\b",
    "a;b",
    "a|b",
    "a*b?",
    "a:b",
    "a,b",
    "a=b",
    "x.deleted",
    "x.snap",
    "csi-",
    "rbd_header.1",
    "é",
    "e\u{301}",
    "A",
    "a",
    "ａ",
    "\u{a0}",
    "\u{feff}",
    "\u{fffd}",
    "\u{e000}",
    "\u{10ffff}",
    "\u{ad}",
    "null",
    "0",
];

/// U+0000–0008, 000B, 000C, 000E–001F, 007F–009F.
fn forbidden() -> impl Iterator<Item = char> {
    (0..0x20)
        .chain(0x7f..0xa0)
        .filter_map(char::from_u32)
        .filter(|c| !matches!(c, '\t' | '\n' | '\r'))
}

async fn any_unicode_names_a_volume_of_its_own(session: &Session) {
    let mut ids = BTreeMap::new();
    for name in NAMES {
        let request = session.new_volume(name);
        let volume = session
            .create(request.clone())
            .await
            .unwrap_or_else(|status| panic!("{name:?}: {status:?}"));
        let again = session.create(request).await.unwrap();
        assert_eq!(again.volume_id, volume.volume_id, "{name:?} again");
        let other = ids.insert(volume.volume_id, name);
        assert_eq!(other, None, "{name:?} is the same volume");
        // One at a time, so that a driver with little room can be tried.
        if ids.len() % 10 != 0 {
            continue;
        }
        for id in ids.keys() {
            session.delete_volume(id).await.unwrap();
        }
    }
}

async fn any_unicode_names_a_snapshot_of_its_own(session: &Session) {
    let volume = session.volume("source").await;
    let mut ids = BTreeMap::new();
    for name in NAMES {
        let request = session.snapshot_named(&session.name(name), &volume.volume_id);
        let snapshot = session
            .cut(request.clone())
            .await
            .unwrap_or_else(|status| panic!("{name:?}: {status:?}"));
        let again = session.cut(request).await.unwrap();
        assert_eq!(again.snapshot_id, snapshot.snapshot_id, "{name:?} again");
        let other = ids.insert(snapshot.snapshot_id, name);
        assert_eq!(other, None, "{name:?} is the same snapshot");
    }
}

async fn control_characters_are_refused_in_volume_names(session: &Session) {
    for c in forbidden() {
        for name in
            [format!("{c}"), session.name(&format!("a{c}")), session.name(&format!("a{c}b"))]
        {
            refused(
                &format!("{name:?}"),
                session.create(session.volume_named(&name)).await,
                &[Code::InvalidArgument],
            );
        }
    }
}

async fn control_characters_are_refused_in_snapshot_names(session: &Session) {
    let volume = session.volume("source").await;
    for c in forbidden() {
        let request = session.snapshot_named(&session.name(&format!("a{c}b")), &volume.volume_id);
        refused(&format!("{c:?}"), session.cut(request).await, &[Code::InvalidArgument]);
    }
}

async fn an_empty_name_is_refused(session: &Session) {
    refused("no name", session.create(session.volume_named("")).await, &[Code::InvalidArgument]);
    if session.target.has(SNAPSHOTS) {
        let volume = session.volume("source").await;
        let request = session.snapshot_named("", &volume.volume_id);
        refused("no name", session.cut(request).await, &[Code::InvalidArgument]);
        refused(
            "no source",
            session.cut(session.snapshot_named("s", "")).await,
            &[Code::InvalidArgument],
        );
    }
}
