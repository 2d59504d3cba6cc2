//! A namespace of Kubernetes for one test, and what its user asks for and waits for in it.

use serde_json::{Value, json};

use super::api::{Api, list, text, wait_until};
use super::field::Field;
use super::kubelet::Mounted;

/// What a user has in a namespace, in an order in which it can be deleted.
const KINDS: [&str; 4] = ["Pod", "VolumeGroupSnapshot", "VolumeSnapshot", "PersistentVolumeClaim"];

/// The namespace. [`Space::finish`] ends every test; a test that fails has it emptied all the same.
pub(crate) struct Space<'a> {
    pub(crate) field: &'a Field,
    pub(crate) name: String,
    /// Whether it goes with the test.
    is_own: bool,
}

impl<'a> Space<'a> {
    pub(crate) fn new(field: &'a Field, name: &str) -> Space<'a> {
        field.api.make_namespace(name);
        Space { field, name: name.to_owned(), is_own: true }
    }

    /// Another namespace, which is there already and stays.
    pub(crate) fn elsewhere(&self, name: &str) -> Space<'a> {
        Space { field: self.field, name: name.to_owned(), is_own: false }
    }

    pub(crate) fn api(&self) -> &Api {
        &self.field.api
    }

    /// Asks for a volume of `size`, such as `1Gi`, for one node at a time, with `more` in its
    /// specification.
    pub(crate) fn claim(&self, name: &str, class: &str, size: &str, more: &Value) {
        let mut spec = json!({
            "storageClassName": class,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}},
        });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.apply("v1", "PersistentVolumeClaim", name, &spec);
    }

    /// Asks for a snapshot of a claim.
    pub(crate) fn snapshot(&self, name: &str, class: &str, claim: &str) {
        let spec = json!({"volumeSnapshotClassName": class, "source": {"persistentVolumeClaimName": claim}});
        self.apply("snapshot.storage.k8s.io/v1", "VolumeSnapshot", name, &spec);
    }

    /// Asks for a pod that uses claims, on a node or wherever the scheduler puts it.
    pub(crate) fn pod(&self, name: &str, node: Option<&str>, claims: &[&str]) {
        let volume =
            |claim: &&str| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
        let selector = node.map(|node| json!({"kubernetes.io/hostname": node}));
        let spec = json!({
            "containers": [{"name": "sleep", "image": "busybox:1.37", "command": ["sleep", "infinity"]}],
            "volumes": claims.iter().map(volume).collect::<Vec<_>>(),
            "nodeSelector": selector.unwrap_or(json!({})),
        });
        self.apply("v1", "Pod", name, &spec);
    }

    /// Makes or changes an object of the namespace.
    pub(crate) fn apply(&self, version: &str, kind: &str, name: &str, spec: &Value) {
        let object =
            json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec});
        self.api().apply(&object, &self.name);
    }

    pub(crate) fn get(&self, kind: &str, name: &str) -> Value {
        self.api().get(kind, &self.name, name)
    }

    /// Waits until an object is as `condition` wants it; a `condition` that does not hold says what
    /// is instead.
    pub(crate) fn wait(
        &self,
        kind: &str,
        name: &str,
        what: &str,
        condition: impl Fn(&Value) -> Result<(), String>,
    ) -> Value {
        wait_until(&format!("{kind} {name} is {what}"), || {
            let object = self.get(kind, name);
            let held = condition(&object);
            held.map(|()| object)
                .map_err(|instead| format!("{instead}; events: {}", self.events(name).join(" | ")))
        })
    }

    /// Waits until a claim has its volume, which is returned.
    pub(crate) fn bound(&self, claim: &str) -> Value {
        let claim = self.wait("PersistentVolumeClaim", claim, "Bound", |claim| {
            is(claim, "/status/phase", "Bound")
        });
        self.api().get("PersistentVolume", "", text(&claim, "/spec/volumeName"))
    }

    /// Waits until the volume of a claim is attached to a node, and returns its VolumeAttachment.
    pub(crate) fn attached(&self, claim: &str, node: &str) -> Value {
        let volume = text(&self.bound(claim), "/metadata/name").to_owned();
        wait_until(&format!("{claim} is attached to {node}"), || {
            let attachment =
                self.attachments(&volume).into_iter().find(|o| text(o, "/spec/nodeName") == node);
            let attachment = attachment.ok_or_else(|| self.events("").join(" | "))?;
            if attachment["status"]["attached"] == true {
                Ok(attachment)
            } else {
                Err(attachment["status"].to_string())
            }
        })
    }

    /// Waits until the volume of a claim is attached nowhere.
    pub(crate) fn detached(&self, claim: &str) {
        let volume = text(&self.bound(claim), "/metadata/name").to_owned();
        wait_until(&format!("{claim} is attached nowhere"), || {
            let left = self.attachments(&volume);
            if left.is_empty() { Ok(()) } else { Err(Value::from(left).to_string()) }
        });
    }

    fn attachments(&self, volume: &str) -> Vec<Value> {
        let all = self.api().list("VolumeAttachment", "").into_iter();
        all.filter(|o| text(o, "/spec/source/persistentVolumeName") == volume).collect()
    }

    /// Waits until a snapshot or a group of them can be restored.
    pub(crate) fn ready(&self, kind: &str, name: &str) -> Value {
        self.wait(kind, name, "ready to use", |snapshot| {
            if snapshot["status"]["readyToUse"] == true {
                Ok(())
            } else {
                Err(snapshot["status"].to_string())
            }
        })
    }

    /// Writes bytes to the volume of a claim, as a pod on node-a.
    pub(crate) fn write(&self, claim: &str, bytes: &[u8]) {
        self.mounted(claim, |volume| volume.write(bytes));
    }

    /// Reads what [`Space::write`] wrote.
    pub(crate) fn read(&self, claim: &str, length: usize) -> Vec<u8> {
        self.mounted(claim, |volume| volume.read(length))
    }

    /// What a pod on node-a does with the volume of a claim.
    pub(crate) fn mounted<T>(&self, claim: &str, work: impl FnOnce(&Mounted<'_>) -> T) -> T {
        let pod = format!("{claim}-user");
        self.pod(&pod, Some("node-a"), &[claim]);
        let attachment = self.attached(claim, "node-a");
        let mounted = self.field.kubelet.mount(&self.bound(claim), &attachment);
        let done = work(&mounted);
        mounted.unmount();
        self.delete("Pod", &pod);
        self.detached(claim);
        done
    }

    /// Notes down, as kubelet does, that the node has grown the volume of a claim to what the claim
    /// asks for.
    pub(crate) fn note_expansion(&self, claim: &str) {
        let asked =
            self.get("PersistentVolumeClaim", claim)["spec"]["resources"]["requests"]["storage"]
                .clone();
        let status = json!({"status": {
            "capacity": {"storage": asked},
            "allocatedResourceStatuses": null,
            "conditions": [],
        }});
        self.api().patch_status("PersistentVolumeClaim", &self.name, claim, &status);
    }

    /// What was said to the user of an object, wherever it is, or of all objects of the namespace
    /// when `name` is empty.
    pub(crate) fn events(&self, name: &str) -> Vec<String> {
        let events =
            self.api().list("Event", if name.is_empty() { &self.name } else { "" }).into_iter();
        let about =
            events.filter(|event| name.is_empty() || text(event, "/involvedObject/name") == name);
        about
            .map(|event| format!("{}: {}", text(&event, "/reason"), text(&event, "/message")))
            .collect()
    }

    /// Waits until the user of an object was told something with all these words in it, and returns
    /// it.
    pub(crate) fn told(&self, name: &str, words: &[&str]) -> String {
        wait_until(&format!("an event of {name} says {words:?}"), || {
            let events = self.events(name);
            let found = events.iter().find(|event| words.iter().all(|word| event.contains(word)));
            found.cloned().ok_or_else(|| events.join(" | "))
        })
    }

    /// Asks for an object's end.
    pub(crate) fn delete(&self, kind: &str, name: &str) {
        self.api().delete(kind, &self.name, name);
    }

    /// Waits until an object is gone.
    pub(crate) fn gone(&self, kind: &str, name: &str) {
        wait_until(&format!("{kind} {name} is gone"), || {
            let found = self.api().find(kind, &self.name, name);
            found.map_or(Ok(()), |object| {
                Err(format!("{object}; events: {}", self.events(name).join(" | ")))
            })
        });
    }

    /// Deletes a claim and waits until it and its volume are gone.
    pub(crate) fn remove_claim(&self, name: &str) {
        let volume = self.get("PersistentVolumeClaim", name)["spec"]["volumeName"].clone();
        self.delete("PersistentVolumeClaim", name);
        self.gone("PersistentVolumeClaim", name);
        if let Some(volume) = volume.as_str() {
            self.gone("PersistentVolume", volume);
        }
    }

    /// Fails when the test has left anything in Kubernetes or Ceph, and removes the namespace.
    pub(crate) fn finish(self) {
        for kind in KINDS {
            wait_until(&format!("no {kind} is left"), || {
                let left = self.api().list(kind, &self.name);
                let names: Vec<_> =
                    left.iter().map(|object| text(object, "/metadata/name")).collect();
                if names.is_empty() { Ok(()) } else { Err(names.join(" ")) }
            });
        }
        self.field.assert_nothing_is_left();
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        if !self.is_own {
            return;
        }
        if std::thread::panicking() {
            // So that the next test is not held responsible for what this one left.
            for kind in KINDS {
                for object in self.api().list(kind, &self.name) {
                    self.delete(kind, text(&object, "/metadata/name"));
                }
            }
        }
        self.api().delete("Namespace", "", &self.name);
    }
}

/// Whether the text at a JSON pointer is this.
pub(crate) fn is(object: &Value, pointer: &str, wanted: &str) -> Result<(), String> {
    let value = text(object, pointer);
    if value == wanted { Ok(()) } else { Err(format!("{pointer} is {value:?}")) }
}

/// A claim's dataSource, for [`Space::claim`].
pub(crate) fn from(kind: &str, name: &str) -> Value {
    let group =
        if kind == "VolumeSnapshot" { json!("snapshot.storage.k8s.io") } else { Value::Null };
    json!({"dataSource": {"apiGroup": group, "kind": kind, "name": name}})
}

/// The conditions that hold of an object.
pub(crate) fn conditions(object: &Value) -> Vec<&str> {
    let held =
        list(object, "/status/conditions").iter().filter(|condition| condition["status"] == "True");
    held.map(|condition| text(condition, "/type")).collect()
}
