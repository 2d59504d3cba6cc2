//! A pool at its quota: nothing can be made there, and everything can be deleted.

use cinderblock::rbd::{Errno, ImageOptions};
use tonic::Code;

use crate::common::{Lab, OwnLab, POOL, wait_until};
use crate::family::{Family, From, refusal};

/// A pool that is at its quota until this is dropped.
struct Full<'a>(&'a Lab);

impl Full<'_> {
    fn new(lab: &Lab) -> Full<'_> {
        let full = Full(lab);
        full.set_quota(1);
        full
    }

    /// Sets the quota to so many bytes, 0 for none, and waits until the pool knows it.
    fn set_quota(&self, bytes: u32) {
        self.0.run("ceph", &["osd", "pool", "set-quota", POOL, "max_bytes", &bytes.to_string()]);
        // In another namespace, so that where the volumes are nothing was ever removed.
        let pool = self.0.connect().pool(POOL, "").unwrap();
        wait_until("the pool knows its quota", || {
            let made = pool.create_image("probe", 4096, &ImageOptions::default());
            if made.is_ok() {
                pool.remove_image("probe").unwrap();
            }
            let is_full = made.as_ref().is_err_and(|error| error.errno == Errno::EDQUOT);
            if is_full == (bytes > 0) { Ok(()) } else { Err(made) }
        });
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        self.set_quota(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_pool_at_its_quota_nothing_is_made_and_everything_can_be_deleted() {
    let lab = OwnLab::up();
    for format in ["1", "2"] {
        let mut family = Family::new(&lab, "").await;
        family.set("cloneFormat", format);
        for name in ["A", "D"] {
            family.create(name).await;
        }
        family.snapshot("A", "s1").await;
        family.snapshot("A", "s2").await;
        family.write("A", 0, "later");
        family.clone_volume("A", "B").await;
        family.restore("s1", "C").await;
        let all = "A [snap-s1*, snap-s2*, B.clone_snap*] ; B <- A@B.clone_snap ; C <- A@snap-s1";
        family.assert(&format!("{all} ; D"));

        let full = Full::new(&lab);
        let (code, message) = refusal(family.make("E", None, 3).await);
        assert_eq!(code, Code::ResourceExhausted, "{message}");
        assert!(message.contains("Quota exceeded"), "{message}");
        for source in [From::Volume("A"), From::Snapshot("s1")] {
            let (code, message) = refusal(family.make("F", Some(source), 0).await);
            assert_eq!(code, Code::ResourceExhausted, "{message}");
            assert!(message.contains("quota") || message.contains("Quota"), "{message}");
        }
        family.assert(&format!("{all} ; D"));
        family.delete("D").await;
        family.assert(all);
        family.delete_snapshot("s2").await;
        family.assert("A [snap-s1*, B.clone_snap*] ; B <- A@B.clone_snap ; C <- A@snap-s1");
        family.delete("A").await;
        family.assert(
            "A.deleted [snap-s1*, B.clone_snap*] ; B <- A.deleted@B.clone_snap ; C <- A.deleted@snap-s1",
        );
        family.delete_snapshot("s1").await;
        let s1 = "snap-s1.deleted";
        family.assert(&format!(
            "A.deleted [{s1}*, B.clone_snap*] ; B <- A.deleted@B.clone_snap ; C <- A.deleted@{s1}"
        ));
        family.delete("B").await;
        family.assert(&format!("A.deleted [{s1}*] ; C <- A.deleted@{s1}"));
        family.delete("C").await;
        drop(full);
        family.end();
    }
}
