//! The embedded broker: librdkafka's mock cluster behind a forwarder, so that the port can be chosen and clients of every make can connect.
//!
//! Input: requests of producers and of the pipeline's consumer over TCP. Output: their answers. It speaks Kafka's protocol, so the pipeline uses it like
//! any broker. It keeps nothing when the process ends.

use std::ffi::{CStr, CString};
use std::net::{Ipv4Addr, SocketAddr};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rdkafka::ClientConfig;
use rdkafka::bindings as sys;
use rdkafka::producer::{BaseProducer, Producer as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::forward::forward;

/// The id of the only broker; the mock cluster counts from 1.
const BROKER: i32 = 1;
/// Most connections at the same time.
const MAX_CONNECTIONS: usize = 256;
/// Pause after a failed accept, which usually means a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running mock cluster of one broker. It ends when this is dropped.
pub(super) struct Broker {
    cluster: NonNull<sys::rd_kafka_mock_cluster_t>,
    /// The address on which the mock cluster listens.
    mock_address: SocketAddr,
    /// Owns the threads that serve the cluster, so it is dropped after it.
    _owner: BaseProducer,
}

impl Broker {
    /// Starts a broker that advertises the address `front`, and creates `topics`.
    ///
    /// # Errors
    /// librdkafka cannot start it or create a topic.
    #[expect(
        unsafe_code,
        reason = "the safe wrapper of the mock cluster cannot set a broker's address"
    )]
    pub(super) fn start(
        front: SocketAddr,
        topics: &[String],
        partitions: i32,
    ) -> anyhow::Result<Self> {
        let owner: BaseProducer = ClientConfig::new()
            .set("client.id", "signal-dev-broker")
            .create()?;
        // SAFETY: the handle is alive, and `owner` outlives the cluster: `drop` destroys the cluster before fields are dropped.
        let cluster =
            unsafe { sys::rd_kafka_mock_cluster_new(owner.client().native_ptr(), BROKER) };
        let cluster = NonNull::new(cluster).context("librdkafka cannot start its mock cluster")?;
        // SAFETY: the cluster was made above; it owns the text, which is copied at once.
        let bootstraps =
            unsafe { CStr::from_ptr(sys::rd_kafka_mock_cluster_bootstraps(cluster.as_ptr())) }
                .to_str()?
                .to_owned();
        let broker = Self {
            cluster,
            mock_address: bootstraps
                .parse()
                .with_context(|| format!("not an address: {bootstraps}"))?,
            _owner: owner,
        };
        let host = CString::new(front.ip().to_string())?;
        // SAFETY: the cluster is alive, and both calls copy the text they are given.
        unsafe {
            sys::rd_kafka_mock_broker_set_host_port(
                cluster.as_ptr(),
                BROKER,
                host.as_ptr(),
                front.port().into(),
            );
            // Real brokers wait for more members; here there is only one.
            sys::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster.as_ptr(), 0);
        }
        for topic in topics {
            let name = CString::new(topic.as_str())?;
            // SAFETY: as above.
            let result = unsafe {
                sys::rd_kafka_mock_topic_create(cluster.as_ptr(), name.as_ptr(), partitions, 1)
            };
            anyhow::ensure!(
                result == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR,
                "topic {topic} cannot be created: {result:?}"
            );
        }
        Ok(broker)
    }

    /// Forwards requests and answers between `listener` and the broker, for as long as it is polled.
    pub(super) fn forward(
        &self,
        listener: TcpListener,
    ) -> impl Future<Output = ()> + Send + 'static {
        let mock_address = self.mock_address;
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        async move {
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                };
                let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                    continue;
                };
                tokio::spawn(async move {
                    // However it ends, the client sees the end of its connection and reconnects.
                    let _ = forward(client, mock_address).await;
                    drop(permit);
                });
            }
        }
    }
}

impl Drop for Broker {
    #[expect(
        unsafe_code,
        reason = "the cluster was created without a safe wrapper, so it is destroyed without one"
    )]
    fn drop(&mut self) {
        // SAFETY: made by `start`, destroyed once, while its owner is still alive.
        unsafe { sys::rd_kafka_mock_cluster_destroy(self.cluster.as_ptr()) }
    }
}

/// Returns the broker's address, which is always loopback.
pub(super) fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
