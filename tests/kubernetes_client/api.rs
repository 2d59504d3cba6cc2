//! An API server in memory: it keeps objects by their paths, lists them in pages, takes events as
//! strictly as the real one, and can be away.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It answers.
    Up,
    /// It answers nothing.
    Hanging,
    /// It answers every request with this code.
    Refusing(u16),
}

/// The server. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Api(Arc<Mutex<State>>);

struct State {
    mood: Mood,
    objects: BTreeMap<String, Value>,
    /// Where nothing can be created any more.
    ending: BTreeSet<String>,
    requests: Vec<String>,
    made: usize,
}

impl Api {
    pub(crate) fn new() -> Api {
        let state = State {
            mood: Mood::Up,
            objects: BTreeMap::new(),
            ending: BTreeSet::new(),
            requests: Vec::new(),
            made: 0,
        };
        Api(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        self.state().mood = mood;
    }

    /// From now on the namespace takes no new objects.
    pub(crate) fn end_namespace(&self, namespace: &str) {
        self.state().ending.insert(namespace.to_string());
    }

    /// All requests so far, as `METHOD /path`.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    pub(crate) fn put(&self, path: &str, mut object: Value) {
        object["metadata"]["name"] = path.rsplit_once('/').unwrap().1.into();
        self.state().objects.insert(path.to_string(), object);
    }

    pub(crate) fn remove(&self, path: &str) {
        self.state().objects.remove(path).unwrap();
    }

    pub(crate) fn claim(&self, namespace: &str, name: &str) {
        let metadata = json!({"namespace": namespace, "uid": format!("uid of {name}")});
        self.put(
            &format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"),
            json!({
                "metadata": metadata,
                "spec": {"storageClassName": "fast"},
                "status": {"phase": "Pending"},
            }),
        );
    }

    pub(crate) fn volume(
        &self,
        name: &str,
        driver: &str,
        handle: &str,
        claim: Option<(&str, &str)>,
    ) {
        let claim = claim.map(|(namespace, name)| {
            json!({"kind": "PersistentVolumeClaim", "namespace": namespace, "name": name,
                   "uid": format!("uid of {name}"), "resourceVersion": "7"})
        });
        self.put(
            &format!("/api/v1/persistentvolumes/{name}"),
            json!({
                "metadata": {"uid": format!("uid of {name}")},
                "spec": {
                    "csi": {"driver": driver, "volumeHandle": handle},
                    "claimRef": claim,
                    "storageClassName": "fast",
                },
                "status": {"phase": "Bound"},
            }),
        );
    }

    pub(crate) fn attachment(&self, name: &str, volume: &str, node: &str, attached: bool) {
        self.put(
            &format!("/apis/storage.k8s.io/v1/volumeattachments/{name}"),
            json!({
                "metadata": {},
                "spec": {"attacher": "a", "nodeName": node, "source": {"persistentVolumeName": volume}},
                "status": {"attached": attached},
            }),
        );
    }

    /// A node, on which the driver has this id.
    pub(crate) fn node(&self, name: &str, driver: &str, id: &str, taints: &[&str]) {
        let taints: Vec<_> = taints
            .iter()
            .map(|key| json!({"key": key, "value": "nodeshutdown", "effect": "NoExecute"}))
            .collect();
        self.put(
            &format!("/api/v1/nodes/{name}"),
            json!({"metadata": {"uid": format!("uid of {name}")}, "spec": {"taints": taints}}),
        );
        let drivers = json!([{"name": "other.csi", "nodeID": "x"}, {"name": driver, "nodeID": id}]);
        self.put(
            &format!("/apis/storage.k8s.io/v1/csinodes/{name}"),
            json!({"metadata": {}, "spec": {"drivers": drivers}}),
        );
    }

    /// What kubelet says of a node: whether it is Ready, and which volumes are in use.
    pub(crate) fn status(&self, name: &str, ready: bool, volumes: &[String]) {
        let ready = if ready { "True" } else { "Unknown" };
        let condition = json!({"type": "Ready", "status": ready, "lastTransitionTime": null});
        self.state().objects.get_mut(&format!("/api/v1/nodes/{name}")).unwrap()["status"] =
            json!({"conditions": [condition], "volumesInUse": volumes});
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        let state = self.state();
        let events = state.objects.iter().filter(|(path, _)| path.contains("/events/"));
        events.map(|(_, event)| event.clone()).collect()
    }

    /// The one event with this reason, if there is one.
    pub(crate) fn event(&self, reason: &str) -> Option<Value> {
        let mut events = self.events();
        events.retain(|event| event["reason"] == reason);
        assert!(events.len() <= 1, "{events:#?}");
        events.pop()
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_string();
        self.state().requests.push(format!("{} {path}", parts.method));
        let mood = self.state().mood;
        match mood {
            Mood::Up => {}
            Mood::Hanging => std::future::pending().await,
            Mood::Refusing(code) => return status(code, "no, says the test"),
        }
        let body = body.collect_bytes().await.unwrap();
        let body: Value =
            if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        let mut state = self.state();
        match parts.method {
            Method::GET if path.rsplit('/').next().is_some_and(|last| KINDS.contains(&last)) => {
                state.list(&path, parts.uri.query().unwrap_or_default())
            }
            Method::GET => match state.objects.get(&path) {
                Some(object) => found(200, object),
                None => status(404, &format!("{path} not found")),
            },
            Method::POST => state.create_event(&path, body),
            Method::PATCH => match state.objects.get_mut(&path) {
                Some(object) => {
                    for (key, value) in body.as_object().unwrap() {
                        object[key] = value.clone();
                    }
                    found(200, object)
                }
                None => status(404, &format!("{path} not found")),
            },
            method => panic!("{method} {path}: the driver has no right to that"),
        }
    }
}

/// What can be listed.
const KINDS: [&str; 4] =
    ["persistentvolumes", "persistentvolumeclaims", "csinodes", "volumeattachments"];

impl State {
    fn list(&self, path: &str, query: &str) -> Response<Body> {
        let parameter = |name: &str| {
            query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value)
        };
        let limit: usize = parameter("limit").expect("a list without a limit").parse().unwrap();
        let from: usize = parameter("continue").map_or(0, |token| token.parse().unwrap());
        let label = parameter("labelSelector").and_then(|label| label.split_once("%3D"));
        let has = |object: &Value| {
            label.is_none_or(|(name, value)| object["metadata"]["labels"][name] == value)
        };
        let mut items: Vec<_> = self
            .objects
            .iter()
            .filter(|(of, object)| is_listed(path, of) && has(object))
            .map(|(_, object)| object)
            .collect();
        let rest = items.split_off(from.min(items.len()));
        let page: Vec<_> = rest.iter().take(limit).collect();
        let token = if rest.len() > limit { (from + limit).to_string() } else { String::new() };
        found(200, &json!({"metadata": {"continue": token}, "items": page}))
    }

    /// As strict as the real one about where an event is.
    fn create_event(&mut self, path: &str, mut event: Value) -> Response<Body> {
        let namespace = path
            .strip_prefix("/api/v1/namespaces/")
            .and_then(|rest| rest.strip_suffix("/events"))
            .unwrap();
        if self.ending.contains(namespace) {
            return status(403, &format!("namespace {namespace} is being terminated"));
        }
        let about = &event["involvedObject"];
        let wanted = about["namespace"].as_str().unwrap_or("default");
        assert_eq!(
            (namespace, event["metadata"]["namespace"].as_str()),
            (wanted, Some(wanted)),
            "{event:#}"
        );
        for field in ["kind", "name", "uid", "apiVersion"] {
            assert!(about[field].is_string(), "{field}: {event:#}");
        }
        assert!(event["message"].as_str().unwrap().len() <= 1024);
        self.made += 1;
        let name =
            format!("{}{:05}", event["metadata"]["generateName"].as_str().unwrap(), self.made);
        event["metadata"]["name"] = name.clone().into();
        self.objects.insert(format!("{path}/{name}"), event.clone());
        found(201, &event)
    }
}

/// Whether the list at `path` has the object `of`: claims are in namespaces, and listed in all.
fn is_listed(path: &str, of: &str) -> bool {
    let (before, _) = of.rsplit_once('/').unwrap();
    let everywhere = "/api/v1/persistentvolumeclaims";
    let is_claim =
        before.starts_with("/api/v1/namespaces/") && before.ends_with("/persistentvolumeclaims");
    before == path || (path == everywhere && is_claim)
}

fn found(code: u16, object: &Value) -> Response<Body> {
    Response::builder().status(code).body(Body::from(object.to_string().into_bytes())).unwrap()
}

fn status(code: u16, message: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "message": message, "reason": if code == 404 { "NotFound" } else { "Test" }, "code": code});
    found(code, &status)
}
