//! Many connections to a listener that send half a request and wait; each is made
//! again as soon as it is closed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::{PATIENCE, within};

/// The least time between two connections of one task, so that the flood leaves some of
/// the machine to the server.
const PACE: Duration = Duration::from_millis(50);

/// What each of them sends.
pub const HALF: &str = "GET /ws HTTP/1.1\r\nHost: x\r\n";

/// A flood. It ends when it is dropped.
pub struct Flood {
    _tasks: JoinSet<()>,
}

/// Connects from a certain address of the loopback.
pub async fn connect_from(from: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    Ok(within(PATIENCE, "a connection", socket.connect(to)).await??)
}

/// The address of the loopback with this number.
pub fn loopback(number: usize) -> IpAddr {
    Ipv4Addr::new(127, 1, (number >> 8) as u8, number as u8).into()
}

impl Flood {
    /// So many connections at once, each from the address that `from` names.
    pub async fn start(
        to: SocketAddr,
        connections: usize,
        from: impl Fn(usize) -> IpAddr,
    ) -> Result<Flood> {
        let mut tasks = JoinSet::new();
        let (begun, mut began) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..connections {
            let (from, begun) = (from(number), begun.clone());
            tasks.spawn(async move {
                let mut pace = tokio::time::interval(PACE);
                loop {
                    pace.tick().await;
                    // Where it cannot connect, the next attempt is a moment later.
                    let Ok(mut stream) = connect_from(from, to).await else { continue };
                    let _ = begun.send(());
                    let _ = stream.write_all(HALF.as_bytes()).await;
                    let mut answer = [0; 1024];
                    while matches!(stream.read(&mut answer).await, Ok(1..)) {}
                }
            });
        }
        within(PATIENCE, "the flood", async {
            for _ in 0..connections {
                began.recv().await;
            }
        })
        .await?;
        Ok(Flood { _tasks: tasks })
    }
}
