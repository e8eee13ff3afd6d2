//! The control: a tokio server that sends back what it is sent, and nothing else.

use std::net::Ipv4Addr;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Echoes until the process is ended.
pub fn serve(port: u16) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
        loop {
            // Without descriptors it waits for one, as a server does.
            let Ok((mut stream, _)) = listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            };
            tokio::spawn(async move {
                let mut buffer = [0; 16 << 10];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    let Some(bytes) = buffer.get(..read) else { return };
                    if stream.write_all(bytes).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}
