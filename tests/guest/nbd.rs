//! The mounter `rbd-nbd`: images krbd does not take, and its process may go and come back under
//! I/O.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use cinderblock::node::{Access, Illness, Node};

use crate::lab::{Volume, pattern, rbd};

#[test]
fn an_image_with_a_feature_krbd_lacks_is_taken() {
    let volume = Volume::new(16, Access::Block);
    let (done, text) = rbd(&["feature", "enable", &volume.image.to_string(), "journaling"]);
    assert!(done, "{text}");
    volume.stage().unwrap();
    volume.assert_attached_once();
    volume.unstage().unwrap();
    volume.finish();
}

#[test]
fn a_process_that_was_killed_is_replaced_under_io() {
    let mut volume = Volume::new(16, Access::Block);
    volume.map_options = Some("nbd:reattach-timeout=120".into());
    volume.stage().unwrap();
    volume.publish("target", false).unwrap();
    let data = pattern(5, 1 << 20);
    let file = OpenOptions::new().write(true).open(volume.path("target")).unwrap();
    let write = |offset| file.write_all_at(&data, offset).and_then(|()| file.sync_all());
    write(0).unwrap();
    volume.end_nbd_server();
    assert!(matches!(volume.illness("target"), Some(Illness::DeviceGone(_))));
    // A restarted driver, which knows nothing but what the kernel tells.
    volume.node = Node::new(&volume.path("state")).unwrap();
    std::thread::scope(|scope| {
        // Written while no process serves: the write waits, and does not fail.
        let writer = scope.spawn(|| write(4 << 20));
        volume.stage().unwrap();
        writer.join().unwrap().unwrap();
    });
    drop(file);
    volume.assert_attached_once();
    let mut back = vec![0; data.len()];
    for offset in [0, 4 << 20] {
        File::open(volume.path("target")).unwrap().read_exact_at(&mut back, offset).unwrap();
        assert!(back == data);
    }
    volume.unpublish("target").unwrap();
    volume.unstage().unwrap();
    volume.finish();
}
