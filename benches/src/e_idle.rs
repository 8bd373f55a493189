//! E1: what does an idle server cost, and how soon is it ready?
//!
//! Runs the real `kalamdb` program from the directory of the benchmark's binary: on an empty data directory,
//! and with tables before and after a restart.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::report::{Report, Row, show};
use crate::wire::{Wire, resident_bytes};
use crate::{Result, Scale};

const PASSWORD: &str = "bench-password";
const MB: u64 = 1_000_000;

/// A server process and the time it took to listen.
struct Server {
    child: Child,
    address: SocketAddr,
    ready: Duration,
}

impl Server {
    fn start(data_dir: &Path) -> Result<Self> {
        let binary = std::env::current_exe()?.with_file_name("kalamdb");
        let begin = Instant::now();
        let mut child = Command::new(&binary)
            .args(["serve", "--listen", "127.0.0.1:0", "--http-listen", "off", "--data-dir"])
            .arg(data_dir)
            .env("KALAMDB_ROOT_PASSWORD", PASSWORD)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("{}: {error}", binary.display()))?;
        let stdout = child.stdout.take().ok_or("the server's stdout is not a pipe")?;
        let line = BufReader::new(stdout)
            .lines()
            .map_while(std::result::Result::ok)
            .find_map(|line| line.split_once("listening on ").map(|(_, address)| address.trim().to_owned()));
        let ready = begin.elapsed();
        let address = line.ok_or("the server ended before it listened")?.parse()?;
        Ok(Self { child, address, ready })
    }

    fn resident_bytes(&self) -> u64 {
        resident_bytes(&self.child.id().to_string())
    }

    fn stop(mut self) -> Result<()> {
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the server ended with {status}").into()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After `stop` the process is gone and `kill` fails.
        drop(self.child.kill());
    }
}

pub(crate) async fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let binary = std::env::current_exe()?;
    let place = binary.parent().ok_or("the binary has no directory")?;
    let folder = tempfile::Builder::new().prefix("kalamdb-bench-").tempdir_in(place)?;
    let mut empty = Vec::new();
    for number in 0..scale.rounds {
        let server = Server::start(&folder.path().join(number.to_string()))?;
        empty.push(server.ready);
        server.stop()?;
    }
    empty.sort_unstable();
    let empty = empty.get(empty.len() / 2).copied().unwrap_or_default();

    let data_dir = folder.path().join("tables");
    let server = Server::start(&data_dir)?;
    // Long enough for background work to run once.
    tokio::time::sleep(scale.round * 2).await;
    let idle = server.resident_bytes();
    let mut wire = Wire::connect(server.address, "root", PASSWORD).await?;
    for table in 0..scale.tables {
        let columns: Vec<String> = (0..19).map(|column| format!("c{column} TEXT")).collect();
        let create = format!("CREATE TABLE t{table} (id BIGINT PRIMARY KEY, {})", columns.join(", "));
        wire.update_text(&create).await?;
    }
    drop(wire);
    server.stop()?;
    let server = Server::start(&data_dir)?;
    let (full, with_tables) = (server.ready, server.resident_bytes());
    server.stop()?;
    report.add(Row {
        id: "E1",
        what: format!("idle server; ready on an empty directory, and with {} tables", scale.tables),
        measured: format!(
            "{} MB resident ({} MB with the tables); ready after {} and {}",
            idle / MB,
            with_tables / MB,
            show(empty),
            show(full)
        ),
        floor: String::new(),
        ratio: None,
        target: "<= 80 MB; <= 100 ms empty, <= 1 s with 1,000 tables",
        met: Some(idle <= 80 * MB && empty <= Duration::from_millis(100) && full <= Duration::from_secs(1)),
    });
    Ok(())
}
