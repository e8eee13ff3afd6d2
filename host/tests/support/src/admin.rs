//! Operating a server as people do: by its admin API, and by the command line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::server::Server;
use crate::{PATIENCE, switchyard};

/// A client of the admin API of a server.
pub struct Operator {
    url: String,
    token: Option<String>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Done {
    /// Its exit code.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A command that is under way. Dropping it kills it.
pub struct Running {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Operator {
    /// One without a token.
    pub async fn of(server: &Server) -> Result<Operator> {
        Ok(Operator { url: server.admin_url().await?, token: None })
    }

    /// The same with this token.
    pub fn with_token(self, token: &str) -> Operator {
        Operator { token: Some(token.to_owned()), ..self }
    }

    /// The authority of the API's URL.
    pub fn authority(&self) -> &str {
        self.url.strip_prefix("http://").unwrap_or(&self.url)
    }

    /// What a request is answered with: the status, and the JSON.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let body = body.map(|body| ("application/json", body.to_string().into_bytes()));
        self.ask_with(method, path, body)
    }

    /// The same with a body of any kind.
    pub fn ask_with(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<(u16, Value)> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.authority());
        if let Some(token) = &self.token {
            head += &format!("Authorization: Bearer {token}\r\n");
        }
        let (kind, body) = body.unwrap_or(("application/json", Vec::new()));
        head += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
        let (status, _, body) = self.exchange(&head, &body)?;
        let json = serde_json::from_str(&body).with_context(|| format!("no JSON: {body:?}"))?;
        Ok((status, json))
    }

    /// What these bytes are answered with: the status, the head and the body. The
    /// head is ended here.
    pub fn exchange(&self, head: &str, body: &[u8]) -> Result<(u16, String, String)> {
        let mut stream = TcpStream::connect(self.authority())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
        // It may have been answered before it was all sent.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8(answer).context("the answer is not text")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no head")?;
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let status = status.and_then(|status| status.parse().ok());
        Ok((status.context("the answer has no status")?, head.to_owned(), body.to_owned()))
    }

    /// What a `GET` that must succeed is answered with.
    pub fn get(&self, path: &str) -> Result<Value> {
        let (status, answer) = self.ask("GET", path, None)?;
        ensure!(status == 200, "{path} was answered {status} {answer}");
        Ok(answer)
    }

    /// The binary with these words, at this server.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(switchyard());
        command.args(words).args(["--admin", &self.url]).env_remove("SWITCHYARD_ADMIN_TOKEN");
        if let Some(token) = &self.token {
            command.env("SWITCHYARD_ADMIN_TOKEN", token);
        }
        command
    }

    /// How the command with these words ends.
    pub fn run(&self, words: &[&str]) -> Result<Done> {
        Done::of(self.command(words).output()?)
    }

    /// What the command with these words prints; it must succeed.
    pub fn say(&self, words: &[&str]) -> Result<String> {
        let done = self.run(words)?;
        ensure!(done.code == Some(0), "{words:?}: {done:?}");
        Ok(done.stdout)
    }

    /// What the command with these words prints as JSON; it must succeed.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.say(&[words, &["--json"]].concat())?)?)
    }

    /// Starts the command with these words.
    pub fn start(&self, words: &[&str]) -> Result<Running> {
        let mut command = self.command(words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = BufReader::new(child.stdout.take().context("stdout is a pipe")?);
        Ok(Running { child, stdout })
    }
}

impl Done {
    /// What came out of a command.
    pub fn of(output: Output) -> Result<Done> {
        Ok(Done {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8(output.stderr)?,
        })
    }
}

impl Running {
    /// Its next line as JSON; none: it has ended.
    pub fn next_line(&mut self) -> Result<Option<Value>> {
        let mut line = String::new();
        match self.stdout.read_line(&mut line)? {
            0 => Ok(None),
            _ => Ok(Some(serde_json::from_str(&line).with_context(|| line.clone())?)),
        }
    }

    /// How it ended; waits for it.
    pub fn exit(mut self) -> Result<Option<i32>> {
        Ok(self.child.wait()?.code())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
