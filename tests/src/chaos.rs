//! A TCP proxy that can be cut, stalled, slowed and restored, to stand before Redis, PostgreSQL, Kafka or an issuer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the proxy does with bytes and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Traffic {
    Open,
    /// Connections are dropped, new ones too.
    Cut,
    /// Connections stay and are accepted, and no byte passes.
    Stalled,
    /// What is read at once waits this long before it passes.
    Slow(Duration),
}

/// A running proxy; dropping it drops its connections.
pub struct Proxy {
    address: SocketAddr,
    traffic: Arc<watch::Sender<Traffic>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free loopback port and forwards to `upstream`.
    ///
    /// # Panics
    /// When no port can be bound.
    pub async fn to(upstream: SocketAddr) -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), upstream).await
    }

    /// The same at an address that is known before, such as one that a broker advertises.
    ///
    /// # Panics
    /// When it is taken.
    pub async fn at(address: SocketAddr, upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound address");
        let traffic = Arc::new(watch::channel(Traffic::Open).0);
        let task = tokio::spawn(accept(listener, upstream, Arc::clone(&traffic)));
        Self {
            address,
            traffic,
            task,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Drops every connection and every new one, until [`Proxy::restore`].
    pub fn cut(&self) {
        self.traffic.send_replace(Traffic::Cut);
    }

    /// Lets no byte pass, until [`Proxy::restore`]; what was sent meanwhile passes then.
    pub fn stall(&self) {
        self.traffic.send_replace(Traffic::Stalled);
    }

    /// Delays what passes by this much in each direction, and so bounds its rate, until [`Proxy::restore`].
    pub fn slow(&self, by: Duration) {
        self.traffic.send_replace(Traffic::Slow(by));
    }

    /// Forwards again.
    pub fn restore(&self) {
        self.traffic.send_replace(Traffic::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, upstream: SocketAddr, traffic: Arc<watch::Sender<Traffic>>) {
    while let Ok((client, _)) = listener.accept().await {
        if *traffic.borrow() == Traffic::Cut {
            continue;
        }
        let (out, back) = (traffic.subscribe(), traffic.subscribe());
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(upstream).await else {
                return;
            };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let ((client_read, client_write), (server_read, server_write)) =
                (client.into_split(), server.into_split());
            // When one direction ends, both do: half-open connections are not what is tested through here.
            tokio::select! {
                () = copy(client_read, server_write, out) => {}
                () = copy(server_read, client_write, back) => {}
            }
        });
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut traffic: watch::Receiver<Traffic>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = tokio::select! {
            _ = traffic.wait_for(|traffic| *traffic == Traffic::Cut) => return,
            read = from.read(&mut buffer) => match read {
                Ok(length) if length > 0 => length,
                _ => return,
            },
        };
        match traffic
            .wait_for(|traffic| *traffic != Traffic::Stalled)
            .await
            .map(|traffic| *traffic)
        {
            Ok(Traffic::Open) => {}
            Ok(Traffic::Slow(by)) => tokio::time::sleep(by).await,
            _ => return,
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::within;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = socket.into_split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        address
    }

    async fn ask(socket: &mut TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
        socket.write_all(text).await?;
        let mut answer = vec![0; text.len()];
        socket.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn a_cut_drops_connections_old_and_new_until_it_is_restored() {
        let proxy = Proxy::to(echo().await).await;
        let mut old = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(within("echo", ask(&mut old, b"one")).await.unwrap(), b"one");
        proxy.cut();
        assert!(
            within("end of the old connection", ask(&mut old, b"two"))
                .await
                .is_err()
        );
        let mut new = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(
            within("end of a new connection", ask(&mut new, b"three"))
                .await
                .is_err()
        );
        proxy.restore();
        let mut third = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(
            within("echo", ask(&mut third, b"four")).await.unwrap(),
            b"four"
        );
    }

    #[tokio::test]
    async fn a_stall_holds_bytes_back_and_delivers_them_later() {
        let proxy = Proxy::to(echo().await).await;
        let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(
            within("echo", ask(&mut socket, b"one")).await.unwrap(),
            b"one"
        );
        proxy.stall();
        socket.write_all(b"two").await.unwrap();
        let mut answer = [0; 3];
        let early =
            tokio::time::timeout(Duration::from_millis(100), socket.read_exact(&mut answer)).await;
        assert!(early.is_err(), "nothing passes while stalled");
        proxy.restore();
        within("what was held back", socket.read_exact(&mut answer))
            .await
            .unwrap();
        assert_eq!(&answer, b"two");
    }

    #[tokio::test]
    async fn a_slow_way_delays_what_passes_until_it_is_restored() {
        let proxy = Proxy::to(echo().await).await;
        let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
        proxy.slow(Duration::from_millis(50));
        let begun = tokio::time::Instant::now();
        assert_eq!(
            within("echo", ask(&mut socket, b"one")).await.unwrap(),
            b"one"
        );
        assert!(begun.elapsed() >= Duration::from_millis(100), "both ways");
        proxy.restore();
        assert_eq!(
            within("echo", ask(&mut socket, b"two")).await.unwrap(),
            b"two"
        );
    }
}
