//! What is attacked: the server in a control group, or the control.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Args;

/// What is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The server.
    Switchyard,
    /// The control.
    Echo,
}

/// Where it listens. The control listens on one port.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub http: u16,
    pub resp: u16,
    pub admin: u16,
}

/// A process that is attacked. Dropping it ends it.
pub struct Under {
    child: Child,
    /// Where it listens.
    pub ports: Ports,
    group: Option<PathBuf>,
    _home: tempfile::TempDir,
}

/// How often it is started.
const STARTS_MAX: usize = 3;
/// How long it may take to listen.
const START_TIME_MAX: Duration = Duration::from_secs(30);

/// A key for tokens that no attack has: any P-256 key does.
const PUBLIC_KEY: &str = "\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9
q9UU8I5mEovUf86QZ7kOBIjJwqnzD1omageEHWwHdBO6B+dFabmdT9POxg==
-----END PUBLIC KEY-----
";

/// Whether commands of Redis clients are executed: the server listens before it does so.
fn is_served(port: u16) -> bool {
    let ping = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.write_all(b"PING\r\n")?;
        stream.read_exact(&mut [0; 6])
    };
    ping().is_ok()
}

impl Under {
    /// Starts it on the first core. A free port may be occupied before the process listens on it,
    /// so this is tried a few times.
    pub fn start(args: &Args, target: Target, is_tls: bool) -> Result<Under> {
        let mut started = Under::start_once(args, target, is_tls);
        for _ in 1..STARTS_MAX {
            if started.is_ok() {
                break;
            }
            started = Under::start_once(args, target, is_tls);
        }
        started
    }

    fn start_once(args: &Args, target: Target, is_tls: bool) -> Result<Under> {
        let home = tempfile::tempdir()?;
        let ports = Ports { http: free_port()?, resp: free_port()?, admin: free_port()? };
        let (words, ports) = match target {
            Target::Echo => {
                let program = std::env::current_exe()?;
                let port = ports.resp;
                let words = vec![path(&program), "--echo".to_owned(), port.to_string()];
                (words, Ports { http: port, resp: port, admin: port })
            }
            Target::Switchyard => (command(args, home.path(), ports, is_tls)?, ports),
        };
        let group = match (target, args.memory_mib) {
            (Target::Echo, _) | (_, 0) => None,
            (Target::Switchyard, mib) => Some(memory_group(mib)?),
        };
        // The shell enters the group before it becomes the server.
        let script = match &group {
            Some(group) => format!("echo $$ >{}/cgroup.procs && exec \"$@\"", group.display()),
            None => "exec \"$@\"".to_owned(),
        };
        let mut child = Command::new("taskset")
            .args(["-c", "0", "sh", "-c", &script, "sh"])
            .args(words)
            .current_dir(home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start taskset")?;
        let stderr = child.stderr.take().context("it is piped")?;
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if std::env::var_os("SHOW_LOG").is_some() || line.contains("panicked") {
                    eprintln!("{line}");
                }
            }
        });
        let mut under = Under { child, ports, group, _home: home };
        let started = Instant::now();
        while !is_served(ports.resp) {
            if let Some(end) = under.has_ended()? {
                bail!("the server did not start: {end}; SHOW_LOG=1 shows its log");
            }
            ensure!(started.elapsed() < START_TIME_MAX, "the server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(under)
    }

    /// How it ended; none: it runs.
    pub fn has_ended(&mut self) -> Result<Option<String>> {
        Ok(self.child.try_wait()?.map(|status| status.to_string()))
    }

    /// The most memory that it had resident.
    pub fn peak_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let kibibytes = status.ok().and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            line.trim().split(' ').next()?.parse::<u64>().ok()
        });
        kibibytes.unwrap_or(0) << 10
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(group) = &self.group {
            let _ = fs::remove_dir(group);
        }
    }
}

fn command(args: &Args, home: &Path, ports: Ports, is_tls: bool) -> Result<Vec<String>> {
    let root = args.root.canonicalize().context("--root")?;
    let switchyard = root.join(&args.switchyard).canonicalize().context("--switchyard")?;
    let plugins = home.join("plugins");
    fs::create_dir(&plugins)?;
    fs::copy(root.join("target/components/jwt-auth.wasm"), plugins.join("05-jwt-auth.wasm"))?;
    let settings = format!(
        "[settings]\nwithout_token = \"allow\"\n[[settings.keys]]\nalgorithm = \"ES256\"\n\
         pem = \"\"\"\n{PUBLIC_KEY}\"\"\"\n"
    );
    fs::write(plugins.join("05-jwt-auth.toml"), settings)?;
    let mut config = format!(
        "http.listen = \"0.0.0.0:{}\"\nresp.listen = \"0.0.0.0:{}\"\n\
         admin.listen = \"127.0.0.1:{}\"\nlimits.uncounted_networks = []\n\
         security.open_to_all = true\n",
        ports.http, ports.resp, ports.admin
    );
    if is_tls {
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
        fs::write(home.join("server.pem"), key.cert.pem())?;
        fs::write(home.join("server.key"), key.signing_key.serialize_pem())?;
        config += "http.tls.certificate = \"server.pem\"\nhttp.tls.key = \"server.key\"\n";
    }
    let file = home.join("switchyard.toml");
    fs::write(&file, config)?;
    let words = [path(&switchyard), "serve".to_owned(), "--config".to_owned(), path(&file)];
    Ok(words.into_iter().chain(["--plugins".to_owned(), path(&plugins)]).collect())
}

/// A control group of version 1 or 2 with so much memory.
fn memory_group(mib: u64) -> Result<PathBuf> {
    let name = format!("switchyard-bench-{}", std::process::id());
    let v1 = Path::new("/sys/fs/cgroup/memory");
    let (group, limit) = match v1.is_dir() {
        true => (v1.join(name), "memory.limit_in_bytes"),
        false => (Path::new("/sys/fs/cgroup").join(name), "memory.max"),
    };
    let why = "cannot make a control group (are you root?); --memory-mib 0 does without";
    fs::create_dir_all(&group).context(why)?;
    fs::write(group.join(limit), (mib << 20).to_string()).context(why)?;
    Ok(group)
}

/// Connects to a port of this machine, from this address.
pub fn connect_from(address: Ipv4Addr, port: u16) -> Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::V4(SocketAddrV4::new(address, 0)).into())?;
    let target = if address.octets()[1] == 0 { Ipv4Addr::LOCALHOST } else { address };
    socket.connect(&SocketAddr::V4(SocketAddrV4::new(target, port)).into())?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
