use super::*;
use crate::csi::config::Config;
use crate::rbd::OmapUpdate;
use crate::rbd::ceph::Timeouts;
use crate::rbd::model::Model;
use crate::volume::{Journal, Suspect};
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn an_entry_that_does_not_say_when_it_was_written_is_as_old_as_it_is_known() {
    let suspect = |image_id: &str| Suspect {
        pool: "rbd".into(),
        namespace: String::new(),
        image_id: image_id.into(),
        image: "i".into(),
        snapshot: None,
        child: None,
        is_foreign: false,
    };
    let model = Model::new();
    model.create_pool("rbd");
    let pool = model.connect().cluster().pool("rbd", "").unwrap();
    let journal = Journal::new(pool.clone(), "default");
    let undated = r#"{"version": 1, "written": "w", "pool": "rbd", "namespace": "", "image_id": "a", "image": "i",
                      "snapshot": null, "child": null}"#;
    let set = vec![("a@#".to_owned(), undated.as_bytes().to_vec())];
    let update = OmapUpdate { set, ..OmapUpdate::default() };
    pool.omap_update("cinderblock.default.journal", &update).unwrap();
    let mut state = State::default();
    let entries = journal.entries().unwrap();
    assert_eq!((entries.len(), entries[0].since()), (1, None));
    let (before, seen) = (now(), state.oldest(&entries).unwrap());
    assert!(seen >= before);
    // Known for a while.
    *state.undated.values_mut().next().unwrap() -= 100;
    journal.add(&[Entry::new(suspect("b"))]).unwrap();
    let entries = journal.entries().unwrap();
    assert!(entries[1].since().is_some_and(|since| since >= before), "{entries:?}");
    assert_eq!(state.oldest(&entries), Some(seen - 100));
    assert_eq!(state.oldest(&entries[1..]), entries[1].since());
    assert_eq!((state.oldest(&[]), state.undated.len()), (None, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_sweep_of_a_place_has_the_credentials_of_the_request() {
    const PLACES: usize = 2000;
    let model = Model::new();
    model.create_pool("rbd");
    let session = model.connect();
    let connected = Arc::new(AtomicUsize::new(0));
    let count = connected.clone();
    let clusters = Arc::new(Clusters::new(
        Config::parse("- {clusterID: lab, monitors: [m]}").unwrap(),
        "default",
        Timeouts::default(),
        Box::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(session.cluster())
        }),
        Box::new(|_| ()),
    ));
    let cluster = parameters::cluster(clusters.config(), "lab").unwrap();
    let key = "AQAbc2Rl5YW8LxAAXGtO8bq8mcZnUEOKzcbHtw==";
    let secrets = [("userID", "csi"), ("userKey", key)];
    let secrets = secrets.map(|(name, value)| (name.to_string(), value.to_string())).into();
    let credentials = clusters.credentials(cluster, &secrets).unwrap();
    let sweeper = Sweeper::new(clusters.clone(), Permits::default());
    for number in 0..PLACES {
        let (sweeper, credentials) = (sweeper.clone(), credentials.clone());
        let (cluster, pool) = ("lab".into(), "rbd".into());
        let location = Location { cluster, pool, namespace: number.to_string() };
        // As operations do, from a thread that does not run the sweeper's tasks.
        tokio::task::spawn_blocking(move || {
            sweeper.hand_over(&location, credentials, Vec::new());
        })
        .await
        .unwrap();
    }
    // A sweep without them connects to nothing, and the next one comes after a minute.
    let deadline = Instant::now() + INTERVAL / 2;
    while connected.load(Ordering::Relaxed) < PLACES {
        let connected = connected.load(Ordering::Relaxed);
        assert!(Instant::now() < deadline, "{connected} of {PLACES} were swept");
        tokio::time::sleep(LOOK).await;
    }
}
