//! Redis that fails over: behind sentinels and in a cluster, two gateways find each other again by themselves.

use std::net::SocketAddr;

use futures_util::future::select_all;
use serde_json::{Value, json};
use signal_tests::gateway::Builder;
use signal_tests::services;
use signal_tests::wait::until;
use signal_tests::{Client, Emitter, Gateway, Issuer};

use crate::admin;

/// Two gateways on one Redis, with a client of user 17 on the first and one of user 18 on the second.
struct Two {
    issuer: Issuer,
    gateways: Vec<Gateway>,
    clients: [Client; 2],
}

impl Two {
    async fn start(on_redis: impl FnOnce(Builder) -> Builder) -> Self {
        let issuer = Issuer::start().await;
        let gateways = on_redis(Gateway::build().trust(&issuer))
            .start_many(2)
            .await;
        let first = Client::open_encrypted(gateways[0].address(), &issuer.token("17")).await;
        let second = Client::open_encrypted(gateways[1].address(), &issuer.token("18")).await;
        Self {
            issuer,
            gateways,
            clients: [first, second],
        }
    }

    /// Sends both ways across the gateways by REST, and sees it arrive.
    async fn expect_to_cross(&mut self, event: &str) {
        for (from, to) in [(0, 1), (1, 0)] {
            let path = format!(
                "/socket/websocket/clients/{}/messages",
                self.clients[to].id()
            );
            // Once, where it is taken: what is taken must arrive.
            until("the other gateway's client is found", || async {
                let body: Value = json!({"event": event, "data": {"from": from}});
                let answer = self.gateways[from]
                    .rest("POST", &path, &admin(&self.issuer), Some(body))
                    .await;
                (answer.status == 202).then_some(())
            })
            .await;
            assert_eq!(self.clients[to].expect(event).await.data["from"], from);
        }
    }

    /// Waits until both use every segment.
    async fn expect_segments(&self) {
        for gateway in &self.gateways {
            for (name, wanted) in [("signal_bus_segments", 16.0), ("signal_bus_sharded", 1.0)] {
                until(name, || async {
                    (gateway.metric(name, "").await == Some(wanted)).then_some(())
                })
                .await;
            }
        }
    }

    /// An outside service reaches both users.
    async fn expect_received(&mut self, emitter: &mut Emitter, event: &str) {
        for (client, user) in self.clients.iter_mut().zip(["17", "18"]) {
            emitter
                .to_user(user, event, json!({}))
                .await
                .expect("Redis answers");
            client.expect(event).await;
        }
    }
}

#[tokio::test]
async fn a_failover_of_sentinels_is_followed_and_pushes_cross_again() {
    let Some(redis) = services::watched_redis().await else {
        return;
    };
    let mut two = Two::start(|settings| settings.sentinels(redis.sentinels())).await;
    two.expect_to_cross("before").await;
    redis.kill_master().await;
    for client in &mut two.clients {
        client.expect("resync").await;
    }
    for gateway in &two.gateways {
        gateway.expect_ready().await;
    }
    two.expect_to_cross("after").await;
    let mut emitter = Emitter::connect(redis.replica()).await.unwrap();
    two.expect_received(&mut emitter, "from outside").await;
}

/// What a node answers to a command.
async fn ask(node: SocketAddr, command: &[&str]) -> String {
    let client = redis::Client::open(format!("redis://{node}")).expect("an address");
    let mut connection = client
        .get_multiplexed_async_connection()
        .await
        .expect("the node answers");
    redis::cmd(command[0])
        .arg(&command[1..])
        .query_async(&mut connection)
        .await
        .expect("text")
}

/// Whether any gateway is subscribed through this node.
async fn is_subscribed_through(node: SocketAddr) -> bool {
    !ask(node, &["CLIENT", "LIST", "TYPE", "pubsub"])
        .await
        .trim()
        .is_empty()
}

#[tokio::test]
async fn when_the_subscribed_node_of_a_cluster_is_lost_gateways_subscribe_through_another() {
    survive_the_loss_of_a_node(false).await;
}

#[tokio::test]
async fn with_sharded_pubsub_messages_cross_on_segments_before_and_after_a_node_is_lost() {
    survive_the_loss_of_a_node(true).await;
}

async fn survive_the_loss_of_a_node(is_sharded: bool) {
    let Some(cluster) = services::redis_cluster().await else {
        return;
    };
    let nodes = cluster.addresses().to_vec();
    let on_cluster = |settings: Builder| {
        settings
            .cluster(&nodes)
            .set("redis.sharded_pubsub", is_sharded)
    };
    let mut two = Two::start(on_cluster).await;
    if is_sharded {
        two.expect_segments().await;
    }
    two.expect_to_cross("before").await;
    // Any node hands messages to all others.
    for &node in &nodes[..3] {
        let mut emitter = Emitter::connect(node).await.expect("the node answers");
        two.expect_received(&mut emitter, "through any node").await;
    }
    let mut victim = None;
    for (number, &node) in nodes.iter().enumerate() {
        if is_subscribed_through(node).await {
            victim = Some(number);
            break;
        }
    }
    let victim = victim.expect("the gateways are subscribed through some node");
    cluster.kill(victim).await;
    // A gateway that was subscribed through it sends its clients `resync`; the other may not have noticed.
    select_all(
        two.clients
            .iter_mut()
            .map(|client| Box::pin(client.expect("resync"))),
    )
    .await;
    let survivor = *nodes
        .iter()
        .enumerate()
        .find(|(number, _)| *number != victim)
        .expect("five are left")
        .1;
    until("a replica has taken over", || async {
        let known = ask(survivor, &["CLUSTER", "NODES"]).await;
        let masters = known
            .lines()
            .filter(|line| line.contains("master") && !line.contains("fail"))
            .count();
        let is_ok = ask(survivor, &["CLUSTER", "INFO"])
            .await
            .contains("cluster_state:ok");
        ((masters, is_ok) == (3, true)).then_some(())
    })
    .await;
    for gateway in &two.gateways {
        gateway.expect_ready().await;
    }
    if is_sharded {
        two.expect_segments().await;
    }
    two.expect_to_cross("after").await;
    let mut emitter = Emitter::connect(survivor).await.expect("the node answers");
    two.expect_received(&mut emitter, "from outside").await;
}
