//! Lists: pages that lose nothing and repeat nothing, also while things come and go.

use std::collections::BTreeSet;

use cinderblock::csi::proto::*;
use tonic::{Code, Status};

use super::session::{Session, answer, refused};
use super::target::{Controller, Need};
use super::{Check, check};

const VOLUMES: Need = Need::Controller(Controller::ListVolumes);
const SNAPSHOTS: Need = Need::Controller(Controller::ListSnapshots);

pub fn checks() -> Vec<Check> {
    vec![
        check!(pages_of_volumes_hold_each_once, VOLUMES),
        check!(pages_of_snapshots_hold_each_once, SNAPSHOTS),
        check!(deletions_between_pages_hide_nothing, VOLUMES),
        check!(tokens_nobody_gave_are_aborted, VOLUMES),
        check!(snapshot_tokens_nobody_gave_are_aborted, SNAPSHOTS),
        check!(negative_pages_are_refused, VOLUMES),
        check!(listed_is_what_was_created, VOLUMES),
        check!(a_volume_is_got_as_it_was_created, Need::Controller(Controller::GetVolume)),
        check!(published_nodes_are_listed, Need::Controller(Controller::ListVolumesPublishedNodes)),
        check!(capacity_is_no_negative_number, Need::Controller(Controller::GetCapacity)),
    ]
}

const TOKENS: &[&str] = &["invalid-token", "🦀", "../..", "\u{0}", "%s", "a.b", "."];

async fn page(
    session: &Session,
    max_entries: i32,
    token: &str,
) -> Result<ListVolumesResponse, Status> {
    let request = ListVolumesRequest { max_entries, starting_token: token.to_string() };
    let page = answer(session.controller().list_volumes(request).await)?;
    assert!(page.next_token.len() <= 128, "{:?}", page.next_token);
    assert!(
        max_entries <= 0
            || page.entries.len() <= usize::try_from(max_entries).unwrap_or(usize::MAX)
    );
    Ok(page)
}

/// The ids on all pages of that size, in order; other checks' volumes come and go among them.
async fn pages(session: &Session, max_entries: i32) -> Vec<String> {
    let mut ids = Vec::new();
    let mut token = String::new();
    loop {
        let page = page(session, max_entries, &token).await.unwrap();
        ids.extend(page.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id));
        token = page.next_token;
        if token.is_empty() {
            return ids;
        }
    }
}

async fn pages_of_volumes_hold_each_once(session: &Session) {
    let mut ours = BTreeSet::new();
    for number in 0..5 {
        ours.insert(session.volume(&format!("v{number}")).await.volume_id);
    }
    for max in [0, 1, 2, 1000, i32::MAX] {
        let found: Vec<_> =
            pages(session, max).await.into_iter().filter(|id| ours.contains(id)).collect();
        assert_eq!(found.len(), 5, "pages of {max}: {found:?}");
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), ours);
    }
}

async fn pages_of_snapshots_hold_each_once(session: &Session) {
    let volume = session.volume("v").await;
    let mut ours = BTreeSet::new();
    for number in 0..5 {
        ours.insert(session.snapshot(&format!("s{number}"), &volume.volume_id).await.snapshot_id);
    }
    for (max_entries, source) in [(0, ""), (1, ""), (2, ""), (2, volume.volume_id.as_str())] {
        let mut found = Vec::new();
        let mut starting_token = String::new();
        loop {
            let request = ListSnapshotsRequest {
                max_entries,
                starting_token,
                source_volume_id: source.to_string(),
                secrets: session.secrets(),
                ..ListSnapshotsRequest::default()
            };
            let page = answer(session.controller().list_snapshots(request).await).unwrap();
            found.extend(page.entries.into_iter().map(|entry| entry.snapshot.unwrap().snapshot_id));
            starting_token = page.next_token;
            if starting_token.is_empty() {
                break;
            }
        }
        found.retain(|id| ours.contains(id));
        assert_eq!(found.len(), 5, "pages of {max_entries}, of {source:?}: {found:?}");
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), ours);
    }
}

async fn deletions_between_pages_hide_nothing(session: &Session) {
    let mut ours = Vec::new();
    for number in 0..6 {
        ours.push(session.volume(&format!("v{number}")).await.volume_id);
    }
    let mut seen = BTreeSet::new();
    let mut deleted = BTreeSet::new();
    let mut token = String::new();
    loop {
        let page = page(session, 1, &token).await.unwrap();
        for id in page.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id) {
            if ours.contains(&id) {
                assert!(seen.insert(id.clone()), "{id} came twice");
                // Every other one goes as soon as it was seen, the one the token names among them.
                if seen.len() % 2 == 1 {
                    session.delete_volume(&id).await.unwrap();
                    deleted.insert(id);
                }
            }
        }
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen.len(), 6, "hidden by a deletion: {seen:?} of {ours:?}");
    let left: BTreeSet<_> =
        pages(session, 0).await.into_iter().filter(|id| ours.contains(id)).collect();
    assert_eq!(left, seen.difference(&deleted).cloned().collect());
}

async fn tokens_nobody_gave_are_aborted(session: &Session) {
    for token in TOKENS {
        refused(token, page(session, 0, token).await, &[Code::Aborted]);
    }
    let long = "t".repeat(100_000);
    refused("a long token", page(session, 0, &long).await, &[Code::Aborted, Code::InvalidArgument]);
}

async fn snapshot_tokens_nobody_gave_are_aborted(session: &Session) {
    for token in TOKENS {
        let request = ListSnapshotsRequest {
            starting_token: (*token).to_string(),
            secrets: session.secrets(),
            ..ListSnapshotsRequest::default()
        };
        refused(
            token,
            answer(session.controller().list_snapshots(request).await),
            &[Code::Aborted],
        );
    }
}

async fn negative_pages_are_refused(session: &Session) {
    for max in [-1, i32::MIN] {
        refused(&max.to_string(), page(session, max, "").await, &[Code::InvalidArgument]);
    }
    if session.target.has(SNAPSHOTS) {
        let request = ListSnapshotsRequest {
            max_entries: -1,
            secrets: session.secrets(),
            ..ListSnapshotsRequest::default()
        };
        refused(
            "-1",
            answer(session.controller().list_snapshots(request).await),
            &[Code::InvalidArgument],
        );
    }
}

async fn listed_is_what_was_created(session: &Session) {
    let volume = session.volume("v").await;
    let listed =
        page(session, 0, "").await.unwrap().entries.into_iter().filter_map(|entry| entry.volume);
    let found: Vec<_> = listed.filter(|listed| listed.volume_id == volume.volume_id).collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].capacity_bytes, volume.capacity_bytes);
}

async fn a_volume_is_got_as_it_was_created(session: &Session) {
    let volume = session.volume("v").await;
    let mut controller = session.controller();
    let request = |id: &str| ControllerGetVolumeRequest { volume_id: id.to_string() };
    let got = answer(controller.controller_get_volume(request(&volume.volume_id)).await).unwrap();
    assert_eq!(got.volume.unwrap().volume_id, volume.volume_id);
    assert!(got.status.is_some());
    refused(
        "no id",
        answer(controller.controller_get_volume(request("")).await),
        &[Code::InvalidArgument],
    );
}

async fn published_nodes_are_listed(session: &Session) {
    let volume = session.volume("v").await;
    let publication = session.publication(&volume.volume_id);
    let nodes = async || {
        let page = page(session, 0, "").await.unwrap();
        let ours = |entry: &list_volumes_response::Entry| {
            entry.volume.as_ref().is_some_and(|listed| listed.volume_id == volume.volume_id)
        };
        page.entries.into_iter().find(ours).unwrap().status.unwrap_or_default().published_node_ids
    };
    assert_eq!(nodes().await, Vec::<String>::new());
    session.publish(publication.clone()).await.unwrap();
    assert_eq!(nodes().await, std::slice::from_ref(&publication.node_id));
    session.unpublish(&volume.volume_id, &publication.node_id).await.unwrap();
    assert_eq!(nodes().await, Vec::<String>::new());
}

async fn capacity_is_no_negative_number(session: &Session) {
    let mut controller = session.controller();
    for parameters in [[].into(), session.target.description.parameters.clone()] {
        let request = GetCapacityRequest { parameters, ..GetCapacityRequest::default() };
        let answer = answer(controller.get_capacity(request).await).unwrap();
        assert!(answer.available_capacity >= 0, "{answer:?}");
        assert!(answer.maximum_volume_size.is_none_or(|size| size > 0), "{answer:?}");
    }
    let mut parameters = session.target.description.parameters.clone();
    parameters.insert("no-such-parameter".to_string(), "x".to_string());
    let request = GetCapacityRequest { parameters, ..GetCapacityRequest::default() };
    refused(
        "an unknown parameter",
        answer(controller.get_capacity(request).await),
        &[Code::InvalidArgument],
    );
}
