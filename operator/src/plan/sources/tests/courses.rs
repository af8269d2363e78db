//! Random courses: pods that read late, restart and cannot fetch everything, while the spec changes all the time.

use proptest::prelude::*;

use super::*;

const PODS: usize = 3;
const NAMES: [&str; 3] = ["a", "b", "c"];
const URLS: [&str; 3] = ["one", "two", "three"];

/// One gateway as far as its sources go.
#[derive(Debug, Clone)]
struct Gateway {
    revision: usize,
    sources: Vec<RecordedSource>,
    /// Definitions whose keys it has.
    fetched: Vec<SourceDefinition>,
    ready: bool,
    answers: bool,
    there: bool,
}

#[derive(Debug, Clone)]
enum Act {
    /// The spec wants for this name an issuer and a URL, or the name no more.
    Want(usize, Option<(usize, usize)>),
    Read(usize),
    Fetch(usize),
    Restart(usize),
    There(usize, bool),
    Ready(usize, bool),
    Answers(usize, bool),
    Break(Option<usize>),
    Wait(i64),
    Plan,
    /// A plan whose result is lost.
    Crash,
}

fn act() -> impl Strategy<Value = Act> {
    // Mostly the issuer that the name has from the beginning.
    let issuer = prop_oneof![3 => Just(usize::MAX), 1 => 0..NAMES.len()];
    prop_oneof![
        3 => (0..NAMES.len(), proptest::option::weighted(0.8, (issuer, 0..URLS.len()))).prop_map(|(at, to)| Act::Want(at, to)),
        8 => (0..PODS).prop_map(Act::Read),
        6 => (0..PODS).prop_map(Act::Fetch),
        1 => (0..PODS).prop_map(Act::Restart),
        1 => (0..PODS, any::<bool>()).prop_map(|(at, on)| Act::There(at, on)),
        1 => (0..PODS, any::<bool>()).prop_map(|(at, on)| Act::Ready(at, on)),
        1 => (0..PODS, any::<bool>()).prop_map(|(at, on)| Act::Answers(at, on)),
        1 => proptest::option::of(0..URLS.len()).prop_map(Act::Break),
        2 => (0..5000_i64).prop_map(Act::Wait),
        10 => Just(Act::Plan),
        1 => Just(Act::Crash),
    ]
}

struct Simulation {
    gateways: Vec<Gateway>,
    wanted: Vec<Option<SourceDefinition>>,
    record: SourcesRecord,
    revision: usize,
    broken: Option<usize>,
    secs: i64,
}

impl Simulation {
    fn new() -> Self {
        let wanted = NAMES
            .iter()
            .map(|name| Some(definition(name, URLS[0])))
            .collect();
        let gateway = Gateway {
            revision: usize::MAX,
            sources: Vec::new(),
            fetched: Vec::new(),
            ready: true,
            answers: true,
            there: true,
        };
        let mut simulation = Self {
            gateways: vec![gateway; PODS],
            wanted,
            record: SourcesRecord::default(),
            revision: 0,
            broken: None,
            secs: 0,
        };
        let (fleet, rotation, wanted) =
            (Fleet::default(), Rotation::default(), simulation.wanted());
        let input = SourcesInput {
            wanted: &wanted,
            rotation: &rotation,
            record: &simulation.record,
            revision: None,
            shown: &[],
            fleet: &fleet,
        };
        simulation.record = plan(&input, at(0)).next;
        simulation
    }

    fn wanted(&self) -> Wanted {
        NAMES
            .iter()
            .zip(&self.wanted)
            .filter_map(|(name, wanted)| Some(((*name).to_owned(), wanted.clone()?)))
            .collect()
    }

    /// What tokens depend on: declared names and issuers.
    fn wants(&self, (name, issuer): &(Option<String>, Option<String>)) -> bool {
        self.wanted().iter().any(|(wanted, definition)| {
            Some(wanted) == name.as_ref() || Some(&definition.issuer) == issuer.as_ref()
        })
    }

    fn is_wanted(&self, source: &RecordedSource) -> bool {
        self.wanted()
            .iter()
            .any(|(name, wanted)| *name == source.declared && *wanted == source.definition)
    }

    /// Names, and issuers, that are wanted and have an accepted source.
    fn served(&self) -> BTreeSet<(Option<String>, Option<String>)> {
        let accepted = self
            .record
            .sources
            .iter()
            .filter(|source| source.stage != SourceStage::Prepared);
        let both = accepted.flat_map(|source| {
            [
                (Some(source.declared.clone()), None),
                (None, Some(source.definition.issuer.clone())),
            ]
        });
        both.filter(|served| self.wants(served)).collect()
    }

    fn of_stage(&self, stage: SourceStage) -> Vec<RecordedSource> {
        self.record
            .sources
            .iter()
            .filter(|source| source.stage == stage)
            .cloned()
            .collect()
    }

    fn observed(&self) -> Fleet {
        let pods = self
            .gateways
            .iter()
            .enumerate()
            .filter(|(_, gateway)| gateway.there)
            .map(|(at, gateway)| {
                let mut pod = pod(
                    &format!("p{at}"),
                    &gateway.revision.to_string(),
                    &record(gateway.sources.clone()),
                );
                for (source, known) in pod
                    .report
                    .as_mut()
                    .unwrap()
                    .key_sources
                    .iter_mut()
                    .zip(&gateway.sources)
                {
                    if !gateway.fetched.contains(&known.definition) {
                        (source.keys, source.error) = (Vec::new(), Some("404".into()));
                    }
                }
                pod.ready = gateway.ready;
                if gateway.answers { pod } else { silent(pod) }
            });
        Fleet {
            pods: pods.collect(),
        }
    }

    fn plan(&mut self) -> Plan<SourcesRecord> {
        self.secs += 1;
        let (fleet, wanted, revision, rotation) = (
            self.observed(),
            self.wanted(),
            self.revision.to_string(),
            Rotation::default(),
        );
        let input = SourcesInput {
            wanted: &wanted,
            rotation: &rotation,
            record: &self.record,
            revision: Some(&revision),
            shown: &[],
            fleet: &fleet,
        };
        plan(&input, at(self.secs))
    }

    fn write(&mut self) -> bool {
        let next = self.plan().next;
        let changed = next != self.record;
        if changed {
            (self.record, self.revision) = (next, self.revision + 1);
        }
        changed
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Want(name, to) => {
                let to = to.map(|(issuer, url)| {
                    definition(NAMES.get(issuer).unwrap_or(&NAMES[name]), URLS[url])
                });
                // One declared source per issuer, as the API server has it.
                let others = self
                    .wanted
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| *at != name)
                    .filter_map(|(_, other)| other.as_ref());
                if !to
                    .as_ref()
                    .is_some_and(|to| others.into_iter().any(|other| other.issuer == to.issuer))
                {
                    self.wanted[name] = to;
                }
            }
            Act::Read(at) => {
                let gateway = &mut self.gateways[at];
                (gateway.revision, gateway.sources) = (self.revision, self.record.sources.clone());
            }
            Act::Fetch(at) => {
                let broken = self.broken.map(|url| definition("", URLS[url]).url);
                let gateway = &mut self.gateways[at];
                let answers = gateway
                    .sources
                    .iter()
                    .map(|source| &source.definition)
                    .filter(|it| broken.as_ref() != Some(&it.url));
                gateway.fetched.extend(answers.cloned());
            }
            Act::Restart(at) => {
                let gateway = &mut self.gateways[at];
                (gateway.there, gateway.answers) = (true, true);
                gateway.fetched.clear();
                self.act(&Act::Read(at));
                self.act(&Act::Fetch(at));
            }
            // What comes back is another pod.
            Act::There(at, true) if !self.gateways[at].there => self.act(&Act::Restart(at)),
            Act::There(at, on) => self.gateways[at].there = on,
            Act::Ready(at, on) => self.gateways[at].ready = on,
            Act::Answers(at, on) => self.gateways[at].answers = on,
            Act::Break(url) => self.broken = url,
            Act::Wait(secs) => self.secs += secs,
            Act::Plan => _ = self.write(),
            Act::Crash => _ = self.plan(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn trust_has_no_gap_and_every_rotation_comes_to_its_end(acts in proptest::collection::vec(act(), 1..120)) {
        let mut simulation = Simulation::new();
        for act in &acts {
            let (trusted, served) = (simulation.of_stage(SourceStage::Trusted), simulation.served());
            simulation.act(act);
            for source in trusted.iter().filter(|source| simulation.is_wanted(source)) {
                prop_assert!(simulation.record.sources.contains(source), "after {:?}: {} is wanted and was trusted", act, source.name);
            }
            for it in served.iter().filter(|it| simulation.wants(it)) {
                prop_assert!(simulation.served().contains(it), "after {:?}: nothing of {:?} in {:?}", act, it, stages(&simulation.record));
            }
            let names: BTreeSet<_> = simulation.record.sources.iter().map(|source| &source.name).collect();
            prop_assert_eq!(names.len(), simulation.record.sources.len(), "names are unique");
            prop_assert!(names.len() <= MAX_SOURCES && simulation.record.revoked_sources.is_empty());
        }
        // Left alone, with everything reachable, it comes to rest at what is wanted.
        simulation.broken = None;
        for _ in 0..12 {
            for pod in 0..PODS {
                for act in [Act::Answers(pod, true), Act::Read(pod), Act::Fetch(pod), Act::Wait(3000)] {
                    simulation.act(&act);
                }
            }
            simulation.write();
        }
        prop_assert!(simulation.record.sources.iter().all(|source| source.stage == SourceStage::Trusted && simulation.is_wanted(source)));
        prop_assert_eq!(simulation.record.sources.len(), simulation.wanted().len());
        let waiting = simulation.plan().waiting;
        prop_assert!(!simulation.write() && waiting.is_none(), "{:?}", waiting);
    }

    #[test]
    fn a_new_source_is_trusted_only_when_every_ready_pod_has_its_keys(acts in proptest::collection::vec(act(), 1..120)) {
        let mut simulation = Simulation::new();
        for act in &acts {
            let prepared = simulation.of_stage(SourceStage::Prepared);
            simulation.act(act);
            for source in simulation.of_stage(SourceStage::Trusted).iter().filter(|source| prepared.iter().any(|it| it.name == source.name)) {
                let alive: Vec<_> = simulation.gateways.iter().filter(|gateway| gateway.there).collect();
                let has = |gateway: &&&Gateway| gateway.fetched.contains(&source.definition);
                prop_assert!(alive.iter().filter(|gateway| gateway.ready).all(|gateway| has(&gateway)), "{}", source.name);
                prop_assert!(alive.is_empty() || alive.iter().any(|gateway| has(&gateway)), "{}", source.name);
            }
        }
    }
}
