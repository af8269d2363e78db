//! What messages between gateways cost a Redis Cluster: classic Pub/Sub, which hands each of them to every node, and segments, each of which is on one.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::task::JoinSet;

use super::instances::{Cluster, Figures};
use crate::crowd::Crowd;
use crate::frame::{self, EVENT};
use crate::report::{Measurement, Report};
use crate::server::{Testbed, guest};

const BYTES: usize = 128;
/// Requests that wait for their answer at a time.
const AT_ONCE: usize = 64;
/// How long gateways may take until they know of each other that all are on segments.
const LIMIT: Duration = Duration::from_secs(60);

/// Gateways with people, of whom none is at the first: each message that it is asked for goes over Redis.
struct Subject {
    cluster: Cluster,
    crowd: Crowd,
    sent: u64,
    figures: Figures,
}

impl Subject {
    fn start(testbed: &Testbed, sharded: bool) -> Result<Self> {
        let cluster = Cluster::start_clustered(testbed, testbed.sizes.clustered, sharded)?;
        let expected = f64::from(u8::from(sharded));
        let began = Instant::now();
        let of = |name| cluster.gateways.iter().map(move |one| one.metric(name));
        while !of("signal_bus_sharded").all(|metric| metric == Some(expected)) {
            ensure!(
                began.elapsed() < LIMIT,
                "not all gateways are on segments after {LIMIT:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        let tokens = testbed.tokens(testbed.sizes.people);
        let guests = tokens.iter().map(|token| guest(token, None)).collect();
        let crowd = Crowd::spread(&cluster.addresses()[1..], guests)?;
        Ok(Self {
            cluster,
            crowd,
            sent: 0,
            figures: Figures::default(),
        })
    }

    /// A message to each person, asked of the first gateway.
    fn messages(&mut self, testbed: &Testbed, client: &reqwest::Client, token: &str) -> Result<()> {
        self.sent += 1;
        let address = self.cluster.gateways[0].address;
        let body = json!({ "event": EVENT, "data": frame::data(self.sent, BYTES) }).to_string();
        let request = |user: usize| {
            client
                .post(format!(
                    "http://{address}/socket/websocket/users/user-{user}/messages"
                ))
                .bearer_auth(token)
                .header("content-type", "application/json")
                .body(body.clone())
                .timeout(Duration::from_secs(10))
                .send()
        };
        let count = self.crowd.len();
        let crowd = &mut self.crowd;
        let cpu = self.cluster.measured(|| {
            let began = Instant::now();
            testbed.runtime.block_on(async {
                let mut requests = JoinSet::new();
                for user in 0..count {
                    if requests.len() == AT_ONCE {
                        accepted(&mut requests).await?;
                    }
                    requests.spawn(request(user));
                }
                while !requests.is_empty() {
                    accepted(&mut requests).await?;
                }
                anyhow::Ok(())
            })?;
            crowd.receive(1, began).map(drop)
        })?;
        self.figures.note(cpu, count as f64);
        Ok(())
    }
}

/// Waits for one of the answers.
async fn accepted(requests: &mut JoinSet<reqwest::Result<reqwest::Response>>) -> Result<()> {
    let answer = requests.join_next().await.context("no request waits")?;
    let status = answer??.status();
    ensure!(status.as_u16() == 202, "the message was answered {status}");
    Ok(())
}

pub(crate) fn run(testbed: &Testbed, report: &mut Report) -> Result<()> {
    let mut classic = Subject::start(testbed, false)?;
    let mut sharded = Subject::start(testbed, true)?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let token = testbed.admin_token();
    for round in 0..=testbed.sizes.rounds {
        for subject in [&mut classic, &mut sharded] {
            subject
                .cluster
                .rest(&mut subject.crowd, testbed.sizes.at_rest / 5)?;
            for _ in 0..2 {
                subject.messages(testbed, &client, &token)?;
            }
            if round == 0 {
                subject.figures.clear();
            }
        }
    }
    let count = testbed.sizes.clustered;
    let (own, base) = (&sharded.figures, &classic.figures);
    for (who, own, base) in [
        ("all six nodes", &own.redis, &base.redis),
        ("all of them", &own.gateways, &base.gateways),
    ] {
        report.add(
            &Measurement::new(
                format!("{count} gateways: to one user elsewhere, {who}"),
                "us per message",
                own,
            )
            .against("classic", base),
        );
    }
    Ok(())
}
