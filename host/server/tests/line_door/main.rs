//! Another protocol is served with public items of the server's crates alone: a folder with the door
//! is all that it takes.

mod door;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use door::{LineDoor, LineEncoder};
use switchyard_config::listen::ListenAddress;
use switchyard_config::{Config, EngineSource};
use switchyard_hub::encoding::Encoding;
use switchyard_server::connection_setup::ConnectionSetup;
use switchyard_server::door::Door;
use switchyard_server::drain::drain;
use switchyard_server::listener::{Listener, listen};
use switchyard_server::prepare::prepare;
use switchyard_server::session::Services;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// A server with this door only.
struct Server {
    address: SocketAddr,
    services: Services,
    setup: ConnectionSetup,
    _ending: watch::Sender<bool>,
    _served: mpsc::Sender<()>,
}

fn start() -> Result<Server> {
    let mut config = Config::default();
    config.engine.source = EngineSource::Native;
    let (live, services, _) = prepare(&config)?;
    let encoding = Encoding::add(&LineEncoder).context("there are few encodings")?;
    let door = live.open_door(LineDoor::NAME, None, &services.stats)?;
    let ((ending, is_ending), (kept, _)) = (watch::channel(false), mpsc::channel(1));
    let served = kept.downgrade();
    let (config, live, of) = (Arc::new(config), Arc::new(live), services.clone());
    let setup = ConnectionSetup { config, services: of, live, door, is_ending, served };
    let free = ListenAddress::Tcp(([127, 0, 0, 1], 0).into());
    let socket = listen::<LineDoor>(&free, &[], &setup.config)?;
    let ListenAddress::Tcp(address) = socket.address()? else { unreachable!("it is TCP") };
    let listener = Listener::new(Arc::new(LineDoor(encoding)), setup.clone());
    tokio::spawn(listener.accept(Arc::new(socket)));
    Ok(Server { address, services, setup, _ending: ending, _served: kept })
}

struct Client(BufReader<TcpStream>);

impl Client {
    async fn connect(server: &Server) -> Result<Client> {
        Ok(Client(BufReader::new(TcpStream::connect(server.address).await?)))
    }

    async fn send(&mut self, lines: &str) -> Result<()> {
        Ok(self.0.get_mut().write_all(lines.as_bytes()).await?)
    }

    async fn next(&mut self) -> Result<String> {
        let mut line = String::new();
        timeout(PATIENCE, self.0.read_line(&mut line)).await.context("no line came")??;
        Ok(line)
    }

    async fn expect(&mut self, expected: &[&str]) -> Result<()> {
        for line in expected {
            let next = self.next().await?;
            ensure!(next == format!("{line}\n"), "{next:?} instead of {line:?}");
        }
        Ok(())
    }
}

#[tokio::test]
async fn clients_subscribe_publish_and_leave() -> Result<()> {
    let server = start()?;
    let (mut one, mut two) = (Client::connect(&server).await?, Client::connect(&server).await?);
    one.send("SUB news\nSUB sport\n").await?;
    one.expect(&["+1", "+2"]).await?;
    two.send("SUB news\nPUB news it rains\nPUB sport 1:0\nWHAT\nPUB none x\n").await?;
    let why = "-BADLINE there is SUB channel, PUB channel text, and QUIT";
    // The publisher's own copy comes after the reply.
    two.expect(&["+1", "+2", "news it rains", "+1", why, "+0"]).await?;
    one.expect(&["news it rains", "sport 1:0"]).await?;
    ensure!(server.setup.door.stats.accepted() == 2);
    one.send("QUIT\n").await?;
    one.expect(&["+"]).await?;
    let mut rest = String::new();
    timeout(PATIENCE, one.0.read_to_string(&mut rest)).await??;
    two.send("PUB sport 2:0\n").await?;
    two.expect(&["+0"]).await
}

#[tokio::test]
async fn a_burst_longer_than_the_time_budget_is_executed_in_order() -> Result<()> {
    let server = start()?;
    let mut client = Client::connect(&server).await?;
    client.send("SUB a\n").await?;
    client.expect(&["+1"]).await?;
    let lines: String = (0..5_000).map(|number| format!("PUB a {number}\n")).collect();
    let (mut reader, mut writer) = client.0.into_inner().into_split();
    let writing =
        tokio::spawn(async move { writer.write_all(lines.as_bytes()).await.map(|()| writer) });
    let mut received = Vec::new();
    let expected: String = (0..5_000).map(|number| format!("+1\na {number}\n")).collect();
    while received.len() < expected.len() {
        let count = timeout(PATIENCE, reader.read_buf(&mut received)).await??;
        ensure!(count > 0, "closed after {} of {} bytes", received.len(), expected.len());
    }
    ensure!(received == expected.as_bytes());
    writing.await??;
    Ok(())
}

#[tokio::test]
async fn a_line_that_is_too_long_and_a_drain_end_the_connection_with_a_reason() -> Result<()> {
    let server = start()?;
    let mut client = Client::connect(&server).await?;
    client.send(&"x".repeat(70 << 10)).await?;
    let last = client.next().await?;
    ensure!(last.starts_with('-'), "{last}");
    let mut client = Client::connect(&server).await?;
    client.send("SUB a\n").await?;
    client.expect(&["+1"]).await?;
    drain(server.services.hub.connections(), &server.setup.config.shutdown).await;
    let last = client.next().await?;
    ensure!(last.starts_with("-shutting"), "{last}");
    Ok(())
}
