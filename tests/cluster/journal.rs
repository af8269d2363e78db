//! Every write of a SignalCluster and of its pods, in the order in which the API server took them, and what each status says that is not so.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Deserializer, Value};

use crate::edge::Edge;

/// One write.
#[derive(Clone)]
struct Change {
    /// The resource version: of the whole API server's store, so it orders objects of several kinds.
    version: u64,
    is_deleted: bool,
    object: Value,
}

/// Where the objects are, below the API server's root.
const WATCHED: [&str; 2] = [
    "/apis/signal.dev/v1alpha1/namespaces/default/signalclusters?watch=1",
    "/api/v1/namespaces/default/pods?watch=1&labelSelector=app.kubernetes.io/instance%3Dedge,app.kubernetes.io/component%3Dgateway",
];
/// Until a watch that has ended begins again.
const PAUSE: Duration = Duration::from_millis(20);

/// Writes all of it down until it is dropped.
pub(crate) struct Journal {
    watches: Vec<(Arc<Watch>, JoinHandle<()>)>,
    changes: Arc<Mutex<Vec<Change>>>,
}

/// A watch that goes on where it ended: a new definition ends those of its objects.
#[derive(Default)]
struct Watch {
    is_over: AtomicBool,
    child: Mutex<Option<Child>>,
}

impl Watch {
    fn follow(&self, command: impl Fn(Option<u64>) -> Command, changes: &Mutex<Vec<Change>>) {
        let mut seen = None;
        while !self.is_over.load(Ordering::SeqCst) {
            let mut command = command(seen);
            command.stdout(Stdio::piped()).stderr(Stdio::null());
            let mut child = command.spawn().expect("kubectl starts");
            let output = child.stdout.take().expect("its output");
            *self.child.lock() = Some(child);
            let events = Deserializer::from_reader(output).into_iter::<Value>();
            for mut event in events.map_while(Result::ok) {
                let object = event["object"].take();
                let version = object["metadata"]["resourceVersion"].as_str();
                seen = version.and_then(|text| text.parse().ok());
                // An error has none: what there is comes again.
                let Some(version) = seen else { break };
                changes.lock().push(Change {
                    version,
                    is_deleted: event["type"] == "DELETED",
                    object,
                });
            }
            self.end();
            std::thread::sleep(PAUSE);
        }
    }

    fn end(&self) {
        if let Some(mut child) = self.child.lock().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What the checks know at one write.
#[derive(Default)]
struct Known {
    /// By name.
    pods: BTreeMap<String, Value>,
    /// By generation.
    specs: BTreeMap<i64, Value>,
    /// The newest generation that a status was about.
    observed: i64,
}

impl Journal {
    /// Begins with what there is.
    pub(crate) fn begin(edge: &Edge) -> Self {
        let changes = Arc::<Mutex<Vec<Change>>>::default();
        let watches = WATCHED.map(|path| {
            let watch = Arc::<Watch>::default();
            let follow = {
                let (watch, changes, kubectl) = (watch.clone(), changes.clone(), edge.kubectl_at());
                move || {
                    let command = |seen: Option<u64>| {
                        let from = seen.map(|version| format!("&resourceVersion={version}"));
                        let mut command = kubectl();
                        command.args([
                            "get",
                            "--raw",
                            &(path.to_owned() + &from.unwrap_or_default()),
                        ]);
                        command
                    };
                    watch.follow(command, &changes);
                }
            };
            (watch, std::thread::spawn(follow))
        });
        Self {
            watches: watches.into(),
            changes,
        }
    }

    fn in_order(&self) -> Vec<Change> {
        let mut changes = self.changes.lock().clone();
        changes.sort_by_key(|change| change.version);
        changes
    }

    /// The newest resource version that was seen.
    pub(crate) fn version(&self) -> u64 {
        self.in_order().last().map_or(0, |change| change.version)
    }

    /// Every status that was written after a resource version.
    pub(crate) fn statuses_since(&self, version: u64) -> Vec<Value> {
        let mut before = Value::Null;
        let mut written = Vec::new();
        for change in self.in_order() {
            let status = &change.object["status"];
            if change.object["kind"] == "SignalCluster" && *status != before {
                before = status.clone();
                if change.version > version {
                    written.push(status.clone());
                }
            }
        }
        written
    }

    /// What those statuses say of every condition, in short.
    pub(crate) fn conditions_since(&self, version: u64) -> Vec<String> {
        let short = |one: &Value| {
            let fields = ["type", "status", "reason"];
            fields.map(|field| text(&one[field])).join(" ")
        };
        let of = |status: Value| {
            let conditions = status["conditions"].as_array().cloned();
            let conditions: Vec<String> = conditions.iter().flatten().map(short).collect();
            format!("{} {}", status["observedGeneration"], conditions.join(", "))
        };
        self.statuses_since(version).into_iter().map(of).collect()
    }

    /// What statuses said that was not so at the moment of the write.
    pub(crate) fn lies(&self) -> Vec<String> {
        let mut known = Known::default();
        let mut lies = Vec::new();
        for change in self.in_order() {
            let name = text(&change.object["metadata"]["name"]);
            match change.object["kind"].as_str() {
                Some("Pod") if change.is_deleted => drop(known.pods.remove(&name)),
                Some("Pod") => drop(known.pods.insert(name, change.object)),
                _ => lies.extend(known.lies_of(&change)),
            }
        }
        lies
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        for (watch, thread) in self.watches.drain(..) {
            watch.is_over.store(true, Ordering::SeqCst);
            // It may be about to begin again.
            while !thread.is_finished() {
                watch.end();
                std::thread::sleep(PAUSE);
            }
            let _ = thread.join();
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Status and reason of a condition; nothing where it is not there.
pub(crate) fn condition(status: &Value, kind: &str) -> Option<(String, String)> {
    let conditions = status["conditions"].as_array()?;
    let found = conditions.iter().find(|one| one["type"] == kind)?;
    Some((text(&found["status"]), text(&found["reason"])))
}

/// Whether the kubelet says that a pod is ready.
pub(crate) fn is_ready(pod: &Value) -> bool {
    condition(&pod["status"], "Ready").is_some_and(|found| found.0 == "True")
}

impl Known {
    fn lies_of(&mut self, change: &Change) -> Vec<String> {
        let (object, status) = (&change.object, &change.object["status"]);
        let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
        self.specs.insert(generation, object["spec"].clone());
        let observed = status["observedGeneration"].as_i64().unwrap_or(0);
        let mut lies = Vec::new();
        let mut lie = |text: String| lies.push(format!("{}: {text}", change.version));
        if observed > generation || observed < self.observed {
            lie(format!(
                "observes {observed} of {generation} after {}",
                self.observed
            ));
        }
        self.observed = observed;
        for one in status["conditions"].as_array().into_iter().flatten() {
            if one["observedGeneration"] != observed {
                lie(format!("{} is of another generation", one["type"]));
            }
        }
        let is_true = |kind| condition(status, kind).is_some_and(|found| found.0 == "True");
        if is_true("Reconciling") && is_true("Stalled") {
            lie("goes on and does not".to_owned());
        }
        let Some(spec) = self.specs.get(&observed) else {
            return lies;
        };
        // One that drains is on its way out, and not ready from some moment on.
        let staying: Vec<&Value> = self
            .pods
            .values()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .filter(|pod| pod["metadata"]["labels"]["signal.dev/draining"].is_null())
            .collect();
        let ready = staying.iter().filter(|pod| is_ready(pod)).count();
        let wanted = spec["replicas"].as_u64().unwrap_or(0);
        let image = format!(
            "{}:{}",
            text(&spec["image"]["repository"]),
            text(&spec["image"]["tag"])
        );
        let is_of_spec = |pod: &&Value| pod["spec"]["containers"][0]["image"] == image;
        let is_as_wanted =
            ready as u64 >= wanted && staying.len() == ready && staying.iter().all(is_of_spec);
        if is_true("Ready") && !is_as_wanted {
            lie(format!(
                "is ready of generation {observed}, with {ready} of {} pods where {wanted} of {image} are wanted",
                staying.len()
            ));
        }
        if is_true("Available") && ready == 0 {
            lie("is available without a pod".to_owned());
        }
        lies
    }
}
