//! However a file or a directory is replaced, it is applied, or refused with a reason and tried
//! again; and no kind of file stops the server from noticing the next change.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::swap::{Echo, probe};
use crate::support::admin::Operator;
use crate::support::components::{self, write_atomically};
use crate::support::server::{Launch, Server};
use crate::support::{PATIENCE, within};
use crate::tls::Authority;

const CONFIG: &str = "
    shutdown.timeout_ms = 100
    plugins.debounce_ms = 1
    plugins.poll_ms = 20
";
const WATCHED: &str = "changes of files are watched";
const REFUSED: &str = "a plugin was refused";

/// Replaces a link atomically.
fn link(to: impl AsRef<Path>, at: &Path) -> Result<()> {
    let new = at.with_file_name("new-link");
    symlink(to, &new)?;
    Ok(fs::rename(new, at)?)
}

fn pipe(at: &Path) -> Result<()> {
    ensure!(std::process::Command::new("mkfifo").arg(at).status()?.success());
    Ok(())
}

/// Waits until a client may use names of this length and no longer ones.
async fn name_bytes_max_is(server: &Server, bytes: usize) -> Result<()> {
    let mut client = server.client().await?;
    within(PATIENCE, "the setting", async {
        loop {
            let fits = client.call(json!(["SUBSCRIBE", "x".repeat(bytes)])).await?;
            let is_longer = client.call(json!(["SUBSCRIBE", "x".repeat(bytes + 1)])).await?;
            let is_accepted = |answer: &Value| answer.get(0) == Some(&json!("OK"));
            if is_accepted(&fits) && !is_accepted(&is_longer) {
                return anyhow::Ok(());
            }
        }
    })
    .await?
}

/// A server with the plugin `10-probe` in a plugin directory that can be replaced.
struct House {
    home: TempDir,
    server: Server,
    echo: Echo,
}

fn stamping() -> Value {
    json!({"on_publish": "stamp"})
}

impl House {
    /// `lay_out` makes `plugins` in the directory that it is given.
    async fn new(lay_out: impl FnOnce(&Path) -> Result<()>) -> Result<House> {
        let home = components::directory()?;
        lay_out(home.path())?;
        let plugins = Some(home.path().join("plugins"));
        let server = Launch { plugins, ..Launch::with_config(CONFIG) }.start().await?;
        // Of plugins and of the config file.
        server.wait_for_logs(WATCHED, 2).await?;
        let echo = Echo::on(&server).await?;
        Ok(House { home, server, echo })
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }

    /// Waits until the plugin has this stamp.
    async fn has(&mut self, stamp: u32) -> Result<()> {
        let expected = format!("x@{stamp:08x}");
        let became = within(PATIENCE, "the plugin", async {
            while self.echo.of("a", "x").await? != expected {}
            anyhow::Ok(())
        });
        became.await?
    }
}

fn install(directory: &Path, stamp: u32) -> Result<()> {
    fs::create_dir_all(directory)?;
    components::install(directory, "10-probe", &probe(stamp)?, &stamping())
}

#[tokio::test]
async fn a_plugin_directory_may_be_replaced_in_any_way() -> Result<()> {
    let mut house = House::new(|home| install(&home.join("plugins"), 1)).await?;
    house.has(1).await?;

    // Another directory of the same name; and what is in it is noticed later, too.
    fs::rename(house.at("plugins"), house.at("old"))?;
    install(&house.at("new"), 2)?;
    fs::rename(house.at("new"), house.at("plugins"))?;
    house.has(2).await?;
    install(&house.at("plugins"), 3)?;
    house.has(3).await?;

    // Removed and made again.
    fs::remove_dir_all(house.at("plugins"))?;
    house.server.wait_for_log("the plugin directory was not read").await?;
    house.has(3).await?;
    install(&house.at("plugins"), 4)?;
    house.has(4).await?;

    // A link to a directory, which is switched.
    install(&house.at("releases/5"), 5)?;
    install(&house.at("releases/6"), 6)?;
    fs::rename(house.at("plugins"), house.at("old/4"))?;
    link("releases/5", &house.at("plugins"))?;
    house.has(5).await?;
    link("releases/6", &house.at("plugins"))?;
    house.has(6).await?;

    // A file in its place.
    fs::remove_file(house.at("plugins"))?;
    fs::write(house.at("plugins"), "")?;
    house.server.wait_for_log("Not a directory").await?;
    house.has(6).await?;
    fs::remove_file(house.at("plugins"))?;
    install(&house.at("plugins"), 7)?;
    house.has(7).await?;
    house.server.stop().await
}

/// What a build, a package manager and Kubernetes do.
#[tokio::test]
async fn a_plugin_behind_links_is_swapped_however_its_target_changes() -> Result<()> {
    let mut house = House::new(|home| {
        install(&home.join("v1"), 1)?;
        install(&home.join("v2"), 2)?;
        fs::create_dir(home.join("plugins"))?;
        link("../v1", &home.join("plugins/..data"))?;
        for name in ["10-probe.wasm", "10-probe.toml"] {
            link(Path::new("..data").join(name), &home.join("plugins").join(name))?;
        }
        Ok(())
    })
    .await?;
    house.has(1).await?;
    link("../v2", &house.at("plugins/..data"))?;
    house.has(2).await?;
    // The target is renamed over, and then written in place.
    write_atomically(&house.at("v2/10-probe.wasm"), &probe(3)?)?;
    house.has(3).await?;
    fs::write(house.at("v2/10-probe.wasm"), probe(4)?)?;
    house.has(4).await?;
    // The settings.
    let settings = json!({"settings": {"on_publish": ["stamp", "stamp"]}});
    components::configure(&house.at("v2"), "10-probe", &settings)?;
    within(PATIENCE, "the settings", async {
        while house.echo.of("a", "x").await? != "x@00000004@00000004" {}
        anyhow::Ok(())
    })
    .await??;
    // A link to nothing changes nothing, and neither does a circle.
    for target in ["nowhere", "10-probe.wasm"] {
        link(target, &house.at("plugins/10-probe.wasm"))?;
        ensure!(house.echo.of("a", "x").await? == "x@00000004@00000004");
    }
    link("../v1/10-probe.wasm", &house.at("plugins/10-probe.wasm"))?;
    within(PATIENCE, "the link", async {
        while house.echo.of("a", "x").await? != "x@00000001@00000001" {}
        anyhow::Ok(())
    })
    .await??;
    house.server.stop().await
}

#[tokio::test]
async fn what_is_no_plugin_file_is_refused_with_a_reason_and_the_next_change_is_applied()
-> Result<()> {
    let mut house = House::new(|home| install(&home.join("plugins"), 1)).await?;
    for (step, name) in ["10-probe.wasm", "10-probe.toml"].into_iter().cycle().take(14).enumerate()
    {
        let (file, bad) = (house.at("plugins").join(name), house.at("bad"));
        let good = fs::read(&file)?;
        let no_file = "it is not a regular file";
        let is_toml = name.ends_with("toml");
        let mut _socket = None;
        let expected = match step / 2 {
            0 => pipe(&bad).map(|()| no_file)?,
            1 => symlink("/dev/zero", &bad).map(|()| no_file)?,
            2 => {
                // 5 GB that take no room on the disk.
                File::create(&bad)?.set_len(5 << 30)?;
                "it has 5368709120 bytes or more"
            }
            3 => {
                _socket = Some(UnixListener::bind(&bad)?);
                no_file
            }
            4 => fs::create_dir(&bad).map(|()| no_file)?,
            5 => {
                File::create(&bad)?;
                if is_toml { "it is empty" } else { "not a WebAssembly file" }
            }
            _ => {
                fs::write(&bad, good.get(..good.len() / 2).unwrap_or_default())?;
                if is_toml { "line " } else { "unexpected" }
            }
        };
        let refusals = |server: &Server| {
            let log = server.log();
            let is_meant = |line: &&str| {
                line.contains(REFUSED) && line.contains(name) && line.contains(expected)
            };
            log.lines().filter(is_meant).count()
        };
        let before = refusals(&house.server);
        // A directory does not replace a file.
        fs::remove_file(&file)?;
        fs::rename(&bad, &file)?;
        within(PATIENCE, format!("{name} to be refused: {expected}"), async {
            while refusals(&house.server) == before {
                tokio::task::yield_now().await;
            }
        })
        .await?;
        house.has(1).await?;
        if file.is_dir() {
            fs::remove_dir(&file)?;
        }
        write_atomically(&file, &good)?;
    }
    install(&house.at("plugins"), 2)?;
    house.has(2).await?;
    house.server.stop().await
}

/// Without descriptors there are no notifications, and nothing can be read.
#[tokio::test]
async fn a_lack_of_descriptors_ends_no_watch() -> Result<()> {
    let mut house = House::new(|home| install(&home.join("plugins"), 1)).await?;
    let pid = Pid::from_raw(i32::try_from(house.server.id())?);
    let before = prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), maximum: None });
    let before = match before {
        Ok(before) => before,
        // Only root may keep the hard limit as it is by naming a higher one.
        Err(_) => {
            let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
            prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), maximum: hard })?
        }
    };
    fs::rename(house.at("plugins"), house.at("old"))?;
    install(&house.at("new"), 2)?;
    fs::rename(house.at("new"), house.at("plugins"))?;
    let line = house.server.wait_for_log("does not notify of changes of files").await?;
    ensure!(line.contains("WARN") && line.contains("they are polled"), "{line}");
    let line = house.server.wait_for_log("the plugin directory was not read").await?;
    ensure!(line.contains("Too many open files"), "{line}");
    house.has(1).await?;
    prlimit(pid, Resource::Nofile, before)?;
    house.has(2).await?;
    // There are notifications again.
    house.server.wait_for_logs(WATCHED, 3).await?;
    house.server.stop().await
}

#[tokio::test]
async fn a_configuration_behind_links_is_applied_however_it_changes() -> Result<()> {
    let config = |bytes: usize| format!("{CONFIG}\nlimits.name_bytes_max = {bytes}\n");
    let server = Launch::with_config(&config(5)).start().await?;
    server.wait_for_log(WATCHED).await?;
    name_bytes_max_is(&server, 5).await?;
    let at = |name: &str| server.home().join(name);
    let file = at("switchyard.toml");

    fs::create_dir(at("build"))?;
    fs::write(at("build/out.toml"), config(6))?;
    link("build/out.toml", &file)?;
    name_bytes_max_is(&server, 6).await?;
    fs::write(at("build/out.toml"), config(7))?;
    name_bytes_max_is(&server, 7).await?;
    write_atomically(&at("build/out.toml"), config(8).as_bytes())?;
    name_bytes_max_is(&server, 8).await?;

    // The directory of the file is a link that is switched.
    fs::create_dir(at("other"))?;
    fs::write(at("other/out.toml"), config(9))?;
    link("other", &at("current"))?;
    link("current/out.toml", &file)?;
    name_bytes_max_is(&server, 9).await?;
    link("build", &at("current"))?;
    name_bytes_max_is(&server, 8).await?;

    // What is no file, too large, half written or missing changes nothing.
    fs::remove_file(&file)?;
    server.wait_for_log("No such file").await?;
    pipe(&file)?;
    server.wait_for_log("it is not a regular file").await?;
    fs::remove_file(&file)?;
    File::create(&file)?.set_len(5 << 30)?;
    server.wait_for_log("it has 5368709120 bytes or more").await?;
    fs::write(&file, "limits.name_bytes_")?;
    server.wait_for_log("line 1").await?;
    name_bytes_max_is(&server, 8).await?;
    fs::write(&file, config(10))?;
    name_bytes_max_is(&server, 10).await?;
    server.stop().await
}

/// The tokens of the admin API, while it is used.
#[tokio::test]
async fn tokens_are_replaced_with_their_file() -> Result<()> {
    let config = format!("{CONFIG}\nadmin.tokens_file = 'tokens'\n");
    let files = vec![("tokens".to_owned(), "ops:0123456789abcdef".to_owned())];
    let server = Launch { files, ..Launch::with_config(&config) }.start().await?;
    server.wait_for_log(WATCHED).await?;
    let file = server.home().join("tokens");
    let status = async |token: &str| -> Result<u16> {
        let operator = Operator::of(&server).await?.with_token(token);
        Ok(operator.ask("GET", "/v1/plugins", None)?.0)
    };
    assert_eq!(status("0123456789abcdef").await?, 200);
    fs::create_dir(server.home().join("secrets"))?;
    fs::write(server.home().join("secrets/one"), "ops:fedcba9876543210")?;
    link("secrets/one", &file)?;
    server.wait_for_log("the tokens of the admin API were replaced").await?;
    assert_eq!(status("0123456789abcdef").await?, 401);
    assert_eq!(status("fedcba9876543210").await?, 200);

    // The error names this file and its setting, and not the config file.
    write_atomically(&server.home().join("secrets/one"), b"ops")?;
    let line = server.wait_for_log("the current one stays in use").await?;
    ensure!(line.contains("admin.tokens_file: ") && line.contains("/tokens: token 1"), "{line}");
    assert_eq!(status("fedcba9876543210").await?, 200);
    fs::remove_file(&file)?;
    pipe(&file)?;
    let line = server.wait_for_log("it is not a regular file").await?;
    ensure!(line.contains("admin.tokens_file: cannot read"), "{line}");
    fs::remove_file(&file)?;
    fs::write(&file, "ops:0011223344556677")?;
    server.wait_for_logs("the tokens of the admin API were replaced", 2).await?;
    assert_eq!(status("0011223344556677").await?, 200);
    server.stop().await
}

#[tokio::test]
async fn an_engine_behind_a_link_is_swapped_and_what_is_none_is_refused() -> Result<()> {
    let home = components::directory()?;
    let at = |name: &str| home.path().join(name);
    let engine =
        |salt| Ok::<_, anyhow::Error>(components::rehashed(components::built("guest-core")?, salt));
    fs::write(at("build.wasm"), engine(0)?)?;
    link("build.wasm", &at("engine.wasm"))?;
    let config = format!("{CONFIG}\nengine.file = {:?}", at("engine.wasm"));
    let server = Launch::with_config(&config).start().await?;
    server.wait_for_logs(WATCHED, 2).await?;
    let mut echo = Echo::on(&server).await?;
    write_atomically(&at("build.wasm"), &engine(1)?)?;
    server.wait_for_logs("the engine was swapped", 1).await?;
    fs::write(at("build.wasm"), engine(2)?)?;
    server.wait_for_logs("the engine was swapped", 2).await?;
    fs::remove_file(at("engine.wasm"))?;
    pipe(&at("engine.wasm"))?;
    let line = server.wait_for_log("it is not a regular file").await?;
    ensure!(line.contains("the one in use stays"), "{line}");
    echo.is("x").await?;
    fs::remove_file(at("engine.wasm"))?;
    fs::write(at("engine.wasm"), engine(3)?)?;
    server.wait_for_logs("the engine was swapped", 3).await?;
    echo.is("x").await?;
    server.stop().await
}

/// A start does not wait for a pipe either.
#[tokio::test]
async fn a_start_with_what_is_no_file_ends_with_a_reason() -> Result<()> {
    let home = components::directory()?;
    let at = |name: &str| home.path().join(name);
    pipe(&at("pipe"))?;
    fs::create_dir(at("plugins"))?;
    pipe(&at("plugins/10-x.wasm"))?;
    for (setting, says) in [
        ("admin.tokens_file = 'pipe'", "admin.tokens_file: cannot read"),
        (
            "cluster.url = 'redis://127.0.0.1:1'\ncluster.password_file = 'pipe'",
            "cluster.password_file",
        ),
        ("http.tls.certificate = 'pipe'\nhttp.tls.key = 'pipe'", "cannot use a certificate"),
        ("engine.file = 'pipe'", "cannot read the engine"),
        ("plugins.directory = 'plugins'", "10-x.wasm"),
    ] {
        fs::write(at("config.toml"), setting)?;
        let config = at("config.toml").display().to_string();
        let mut server = Server::run_with(&["serve", "--check", "--config", &config])?;
        let (status, _) = server.exit().await?;
        let log = server.log();
        ensure!(status.code() == Some(64), "{setting}: {status}: {log}");
        ensure!(log.contains(says) && log.contains("it is not a regular file"), "{log}");
    }
    let path = at("pipe").display().to_string();
    let mut server = Server::run_with(&["serve", "--check", "--config", &path])?;
    let (status, _) = server.exit().await?;
    ensure!(status.code() == Some(64), "{status}");
    ensure!(server.log().contains("it is not a regular file"), "{}", server.log());
    ensure!(server.log().contains("so it must be one"), "{}", server.log());
    Ok(())
}

/// However many notifications a change causes, and although certificates are read again with the
/// configuration that names them.
#[tokio::test]
async fn a_refusal_is_logged_once_for_a_change_and_once_for_a_request() -> Result<()> {
    const REJECTED: &str = "the configuration was rejected";
    const KEPT: &str = "the certificate was not replaced";
    let authority = Authority::new()?;
    let (certificate, key) = authority.sign("server")?;
    let files = [("server.pem", certificate), ("server.key", key)];
    let config =
        format!("{CONFIG}http.tls.certificate = 'server.pem'\nhttp.tls.key = 'server.key'\n");
    let server = Launch {
        files: files.map(|(name, text)| (name.to_owned(), text)).into(),
        ..Launch::with_config(&config)
    }
    .start()
    .await?;
    server.wait_for_logs(WATCHED, 2).await?;
    let file = server.home().join("switchyard.toml");
    let config = fs::read_to_string(&file)?;
    let mut accepted = 0;
    let mut counts = [0, 0];
    let written = |bytes: usize| format!("{config}\nlimits.name_bytes_max = {bytes}\n");
    for round in 1..=3 {
        write_atomically(&file, b"nonsense = 1\n")?;
        counts[0] += 1;
        server.wait_for_logs(REJECTED, counts[0]).await?;
        let nonsense = format!("nonsense {round}\n");
        write_atomically(&server.home().join("server.pem"), nonsense.as_bytes())?;
        counts[1] += 1;
        server.wait_for_logs(KEPT, counts[1]).await?;
        // Requested: said again.
        server.signal("HUP")?;
        counts = [counts[0] + 1, counts[1] + 1];
        server.wait_for_logs(REJECTED, counts[0]).await?;
        server.wait_for_logs(KEPT, counts[1]).await?;
        // What is accepted was read later than all that was refused.
        let (certificate, key) = authority.sign("server")?;
        for bytes in [100 + round, 200 + round] {
            write_atomically(&file, written(bytes).as_bytes())?;
            accepted += 1;
            server.wait_for_logs("settings were changed", accepted).await?;
        }
        let log = server.log();
        for (words, count) in [REJECTED, KEPT].into_iter().zip(counts) {
            ensure!(log.matches(words).count() == count, "round {round}, {words}: {log}");
        }
        write_atomically(&server.home().join("server.key"), key.as_bytes())?;
        write_atomically(&server.home().join("server.pem"), certificate.as_bytes())?;
        server.wait_for_logs("the certificate was replaced", round).await?;
        counts[1] = server.log().matches(KEPT).count();
    }
    server.stop().await
}

#[tokio::test]
async fn two_paths_of_one_socket_are_refused() -> Result<()> {
    let home = components::directory()?;
    let at = home.path().display();
    fs::create_dir(home.path().join("real"))?;
    link("real", &home.path().join("linked"))?;
    for (one, other) in [
        (format!("{at}/a.sock"), format!("{at}/./a.sock")),
        (format!("{at}/a.sock"), format!("{at}/real/../a.sock")),
        (format!("{at}/real/a.sock"), format!("{at}/linked/a.sock")),
    ] {
        let (one, other) = (format!("unix:{one}"), format!("unix:{other}"));
        let words = ["serve", "--check", "--http", &one, "--resp", &other, "--admin", "off"];
        let mut server = Server::run_with(&words)?;
        let (status, _) = server.exit().await?;
        let log = server.log();
        ensure!(status.code() == Some(64), "{one} {other}: {status}: {log}");
        ensure!(log.contains("http.listen has this one already"), "{log}");
    }
    Ok(())
}
