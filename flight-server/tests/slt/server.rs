//! One `kalamdb serve` process on a free port with its own empty data directory.
//!
//! It uses only the stable external interface: flags, environment, the `listening on` line, SIGTERM.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// Root's password in every test database.
pub(crate) const ROOT_PASSWORD: &str = "root-password";

pub(crate) struct Server {
    child: Child,
    address: String,
    folder: TempDir,
}

impl Server {
    /// Starts the binary and waits for its `listening on` line.
    pub(crate) fn start() -> Result<Server, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let log = File::create(folder.path().join("log")).map_err(|error| error.to_string())?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_kalamdb"))
            .arg("serve")
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .args(["--listen", "127.0.0.1:0", "--http-listen", "off"])
            .env("KALAMDB_ROOT_PASSWORD", ROOT_PASSWORD)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("cannot start kalamdb: {error}"))?;
        let Some(stdout) = child.stdout.take() else {
            return Err("the server's stdout is not a pipe".to_owned());
        };
        let mut server = Server { child, address: String::new(), folder };
        let mut lines = BufReader::new(stdout).lines();
        while let Some(Ok(line)) = lines.next() {
            if let Some((_, address)) = line.split_once("listening on ") {
                server.address = address.trim().to_owned();
                // Drain the rest of stdout, so that the server never blocks on a full pipe.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(server);
            }
        }
        Err(format!("the server ended before it listened:\n{}", server.log()))
    }

    /// Returns `host:port` of the Flight SQL listener.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Stops the server; returns what was wrong with its exit or its log.
    pub(crate) fn stop(mut self) -> Option<String> {
        let asked = Command::new("sh").arg("-c").arg(format!("kill -TERM {}", self.child.id())).status();
        let ended = asked.and_then(|_| self.child.wait());
        let log = self.log();
        let complaint = log.lines().find(|line| line.contains("ERROR") || line.contains("panicked"));
        match (ended, complaint) {
            (Ok(status), None) if status.success() => None,
            (Ok(status), None) => Some(format!("the server ended with {status}:\n{log}")),
            (Ok(_), Some(line)) => Some(format!("the server logged an error: {line}")),
            (Err(error), _) => Some(format!("the server could not be stopped: {error}")),
        }
    }

    fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(self.folder.path().join("log")) {
            // Treat an unreadable log as empty: the caller reports the exit status anyway.
            file.read_to_string(&mut text).unwrap_or_default();
        }
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After `stop` both calls fail, which is fine: the process is gone.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
