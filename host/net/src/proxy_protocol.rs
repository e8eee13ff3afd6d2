//! The PROXY protocol: a header in which a proxy says from which address a connection comes
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).
//!
//! `read` finds the end of the header, so that not one byte after it is read; the crate
//! `proxy-header` parses it.

use std::io;
use std::net::SocketAddr;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What a header of version 1 begins with.
const V1: &[u8] = b"PROXY ";
/// The maximum length of a header of version 1, with its line end.
const V1_BYTES_MAX: usize = 107;
/// What a header of version 2 begins with.
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The command `LOCAL` of version 2: the proxy connects for itself.
const V2_LOCAL: u8 = 0x20;

/// Reads a header of version 1 or 2, and nothing after it. A header of version 2 may have
/// `v2_bytes_max` bytes in all. Returns the address of the client; none: the proxy connects for
/// itself (`LOCAL`), or does not know the address (`UNKNOWN`, `AF_UNSPEC`, `AF_UNIX`).
///
/// # Errors
///
/// The stream broke or ended, or it does not begin with such a header (`InvalidData`).
pub async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
    v2_bytes_max: usize,
) -> io::Result<Option<SocketAddr>> {
    // Both versions have more bytes than this.
    let mut header = Vec::with_capacity(V1_BYTES_MAX);
    while header.len() < V2.len() {
        let mut left = (&mut *stream).take((V2.len() - header.len()) as u64);
        if left.read_buf(&mut header).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = header.len().min(V1.len());
        if !V2.starts_with(&header) && header.get(..length) != V1.get(..length) {
            return Err(invalid("it is no PROXY protocol header"));
        }
    }
    match header.starts_with(V2) {
        false => {
            read_line(stream, &mut header).await?;
            if !is_line(&header) {
                return Err(invalid("the PROXY protocol header is malformed"));
            }
        }
        true => {
            let command = read_block(stream, &mut header, v2_bytes_max).await?;
            if command == V2_LOCAL {
                return Ok(None);
            }
        }
    }
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    match ProxyHeader::parse(&header, config) {
        Ok((parsed, length)) if length == header.len() => {
            let canonical =
                |from: SocketAddr| SocketAddr::new(from.ip().to_canonical(), from.port());
            Ok(parsed.proxied_address().map(|address| canonical(address.source)))
        }
        Ok(_) | Err(_) => Err(invalid("the PROXY protocol header is malformed")),
    }
}

/// Reads the rest of a header of version 1. Its length is not known, so it is read byte by byte.
async fn read_line<S: AsyncRead + Unpin>(stream: &mut S, header: &mut Vec<u8>) -> io::Result<()> {
    while header.last() != Some(&b'\n') {
        if header.len() == V1_BYTES_MAX {
            return Err(invalid("a PROXY protocol header of version 1 has over 107 bytes"));
        }
        header.push(stream.read_u8().await?);
    }
    Ok(())
}

/// Whether a header of version 1 has the fields that the specification allows. The crate reads them
/// as the standard library does, which allows more, such as a sign before a port.
fn is_line(header: &[u8]) -> bool {
    let Some(line) = header.strip_suffix(b"\r\n") else { return false };
    let mut fields = line.split(|byte| *byte == b' ').skip(1);
    let is_address: fn(&u8) -> bool = match fields.next() {
        // What follows is not used, whatever it is.
        Some(b"UNKNOWN") => return true,
        Some(b"TCP4") => |byte| byte.is_ascii_digit() || *byte == b'.',
        // Proxies write an IPv4 address that is mapped with dots, as `inet_ntop` does.
        Some(b"TCP6") => |byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'),
        _ => return false,
    };
    let [source, destination] = [fields.next(), fields.next()];
    let ports = [fields.next(), fields.next()];
    [source, destination].iter().all(|field| field.is_some_and(|it| it.iter().all(is_address)))
        && ports.iter().all(|field| field.is_some_and(is_port))
        && fields.next().is_none()
}

/// Whether it is a decimal number without leading zeros; the crate checks the range.
fn is_port(field: &[u8]) -> bool {
    field.iter().all(u8::is_ascii_digit) && (field.first() != Some(&b'0') || field == b"0")
}

/// Reads the rest of a header of version 2. Returns its byte of version and command.
async fn read_block<S: AsyncRead + Unpin>(
    stream: &mut S,
    header: &mut Vec<u8>,
    bytes_max: usize,
) -> io::Result<u8> {
    let mut fixed = [0; 4];
    stream.read_exact(&mut fixed).await?;
    let [command, _, high, low] = fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    header.extend(fixed);
    if header.len() + length > bytes_max {
        return Err(invalid("the PROXY protocol header has over security.proxy_header_bytes_max"));
    }
    let read = (&mut *stream).take(length as u64).read_to_end(header).await?;
    if read < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(command)
}

fn invalid(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::ReadBuf;

    use super::*;

    /// Returns at most `step` bytes for each read.
    struct Trickle<'a> {
        bytes: &'a [u8],
        step: usize,
    }

    impl AsyncRead for Trickle<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let length = self.step.min(buffer.remaining()).min(self.bytes.len());
            let (now, later) = self.bytes.split_at(length);
            buffer.put_slice(now);
            self.bytes = later;
            Poll::Ready(Ok(()))
        }
    }

    const MAX: usize = 300;

    /// Reads the header with all steps, and checks that what follows it is left.
    async fn outcome(header: &[u8]) -> Result<Option<String>, io::ErrorKind> {
        let bytes = [header, b"*1\r\n$4\r\nPING\r\n"].concat();
        let mut found = None;
        for step in [1, 2, 5, 11, 12, 13, 1000] {
            let mut stream = Trickle { bytes: &bytes, step };
            let read = read(&mut stream, MAX).await;
            if read.is_ok() {
                assert_eq!(bytes.len() - stream.bytes.len(), header.len(), "{step} {header:?}");
            }
            let read = read
                .map(|address| address.map(|address| address.to_string()))
                .map_err(|error| error.kind());
            assert_eq!(*found.get_or_insert_with(|| read.clone()), read, "{step} {header:?}");
        }
        found.expect("there are steps")
    }

    async fn is_from(header: impl AsRef<[u8]>, expected: Option<&str>) {
        let header = header.as_ref();
        assert_eq!(outcome(header).await, Ok(expected.map(str::to_owned)), "{header:?}");
    }

    async fn is_refused(header: impl AsRef<[u8]>) {
        let header = header.as_ref();
        assert_eq!(outcome(header).await, Err(io::ErrorKind::InvalidData), "{header:?}");
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [V2.as_slice(), &[command, family], &length, rest].concat()
    }

    fn v4_block() -> Vec<u8> {
        [[192, 0, 2, 7], [10, 0, 0, 1], [0x12, 0x34, 0, 80]].concat()
    }

    fn v6_block(source: &str) -> Vec<u8> {
        let source: std::net::Ipv6Addr = source.parse().expect("an address");
        [&source.octets()[..], &[0; 16], &[0x12, 0x34, 0, 80]].concat()
    }

    #[tokio::test]
    async fn version_1() {
        is_from("PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\r\n", Some("192.0.2.7:4660")).await;
        is_from("PROXY TCP6 2001:db8::7 ::1 4660 80\r\n", Some("[2001:db8::7]:4660")).await;
        is_from("PROXY TCP6 ::ffff:192.0.2.7 ::1 4660 80\r\n", Some("192.0.2.7:4660")).await;
        is_from("PROXY TCP4 192.0.2.7 10.0.0.1 0 0\r\n", Some("192.0.2.7:0")).await;
        is_from("PROXY UNKNOWN\r\n", None).await;
        is_from("PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None).await;
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(91));
        is_from(&longest, None).await;
        is_refused(longest.replace("UNKNOWN ", "UNKNOWN f")).await;
        for wrong in [
            "PROXY TCP4 192.0.2.7 10.0.0.1 4660\r\n",
            "PROXY TCP4 192.0.2.256 10.0.0.1 4660 80\r\n",
            "PROXY TCP4 2001:db8::7 ::1 4660 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 65536 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 +1 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 4660 +80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 04660 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 4660 00\r\n",
            "PROXY TCP4 192.0.2.07 10.0.0.1 4660 80\r\n",
            "PROXY TCP4  192.0.2.7 10.0.0.1 4660 80\r\n",
            "PROXY TCP6 2001:db8::7%1 ::1 4660 80\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY UNKNOWN\rx\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 4660 80 \r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\n",
            "PROXY UDP4 192.0.2.7 10.0.0.1 4660 80\r\n",
            "proxy TCP4 192.0.2.7 10.0.0.1 4660 80\r\n",
            "PROXYTCP4 192.0.2.7 10.0.0.1 4660 80\r\n",
            "GET /ws HTTP/1.1\r\n",
            "*1\r\n$4\r\nPING\r\n",
        ] {
            is_refused(wrong).await;
        }
    }

    #[tokio::test]
    async fn version_2() {
        is_from(v2(0x21, 0x11, &v4_block()), Some("192.0.2.7:4660")).await;
        is_from(v2(0x21, 0x21, &v6_block("2001:db8::7")), Some("[2001:db8::7]:4660")).await;
        is_from(v2(0x21, 0x21, &v6_block("::ffff:192.0.2.7")), Some("192.0.2.7:4660")).await;
        // What follows the addresses is not used, whatever it is.
        for tlvs in [&[0x04, 0, 3, 1, 2, 3][..], &[0xEA, 0, 200], &[0; 200]] {
            let block = [&v4_block(), tlvs].concat();
            is_from(v2(0x21, 0x11, &block), Some("192.0.2.7:4660")).await;
        }
        // The proxy itself, whatever follows.
        is_from(v2(0x20, 0, &[]), None).await;
        is_from(v2(0x20, 0x11, &v4_block()), None).await;
        is_from(v2(0x20, 0x21, &[1, 2, 3]), None).await;
        // The client has no address.
        is_from(v2(0x21, 0, &[]), None).await;
        is_from(v2(0x21, 0x31, &[0; 216]), None).await;
        is_from(
            v2(0x21, 0x11, &[&v4_block()[..], &[0; MAX - 28]].concat()),
            Some("192.0.2.7:4660"),
        )
        .await;
        is_refused(v2(0x21, 0x11, &[&v4_block()[..], &[0; MAX - 27]].concat())).await;
        is_refused(v2(0x21, 0x11, &v4_block()[..11])).await;
        is_refused(v2(0x21, 0x21, &v4_block())).await;
        is_refused(v2(0x11, 0x11, &v4_block())).await;
        is_refused(v2(0x22, 0x11, &v4_block())).await;
        is_refused(v2(0x21, 0x41, &v4_block())).await;
        is_refused([&V2[..11], b"\r"].concat()).await;
    }

    #[tokio::test]
    async fn a_header_that_ends_early_is_no_header() {
        for whole in
            [b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\r\n".to_vec(), v2(0x21, 0x11, &v4_block())]
        {
            for length in 0..whole.len() {
                let read = read(&mut &whole[..length], MAX).await.map_err(|error| error.kind());
                assert_eq!(read, Err(io::ErrorKind::UnexpectedEof), "{length} of {whole:?}");
            }
        }
    }
}
