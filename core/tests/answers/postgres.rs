//! PostgreSQL as the reference engine: a private cluster in a temporary folder.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::cells::{Answer, Failure};

/// The folders in which packages of PostgreSQL 15 install the server's programs.
const FOLDERS: [&str; 3] =
    ["/usr/lib/postgresql/15/bin", "/opt/homebrew/opt/postgresql@15/bin", "/usr/pgsql-15/bin"];

pub(crate) struct Postgres {
    server: Child,
    pub(crate) client: Client,
    _folder: TempDir,
}

/// Returns the folder of PostgreSQL's programs, if it is installed.
pub(crate) fn programs() -> Option<PathBuf> {
    FOLDERS.iter().map(PathBuf::from).find(|folder| folder.join("initdb").exists())
}

impl Postgres {
    pub(crate) async fn start(programs: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("kalamdb-postgres").tempdir().unwrap();
        let data = folder.path().join("data");
        // PostgreSQL refuses to run as root.
        let is_root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.starts_with(b"0"));
        if is_root {
            let owned = Command::new("chown").arg("postgres").arg(folder.path()).status();
            assert!(
                owned.is_ok_and(|status| status.success()),
                "the folder of PostgreSQL cannot be given away"
            );
        }
        // The server ends with this process, even if the process is killed.
        let command = |program: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "INT"]);
            if is_root {
                command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"]);
            }
            command.arg("--").arg(programs.join(program));
            command
        };
        let created = command("initdb")
            .args([
                "--locale=C",
                "--lc-ctype=C.UTF-8",
                "--encoding=UTF8",
                "--auth=trust",
                "--username=postgres",
                "--no-sync",
                "-D",
            ])
            .arg(&data)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(created.status.success(), "initdb: {}", String::from_utf8_lossy(&created.stderr));
        let mut server = command("postgres");
        server.arg("-D").arg(&data).arg("-k").arg(folder.path());
        for setting in [
            "listen_addresses=",
            "TimeZone=UTC",
            "fsync=off",
            "statement_timeout=2s",
            "max_parallel_workers_per_gather=0",
            "jit=off",
        ] {
            server.arg("-c").arg(setting);
        }
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let server = server.stdout(Stdio::null()).stderr(log).current_dir(folder.path()).spawn().unwrap();
        let client = connect(folder.path()).await;
        Self { server, client, _folder: folder }
    }

    /// Runs statements that must succeed.
    pub(crate) async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("PostgreSQL: {sql}: {error:?}"));
    }

    /// Returns the rows of a query as texts, or why it failed.
    pub(crate) async fn ask(&self, sql: &str) -> Answer {
        match self.client.simple_query(sql).await {
            Ok(messages) => Answer::Rows(
                messages
                    .iter()
                    .filter_map(|message| match message {
                        SimpleQueryMessage::Row(row) => {
                            Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
                        }
                        _ => None,
                    })
                    .collect(),
            ),
            Err(error) => Answer::Failed(failure(&error)),
        }
    }

    /// Returns how many rows a write changes and the rows of `table` after it, then rolls back.
    pub(crate) async fn try_write(&self, sql: &str, table: &str) -> Result<(u64, Answer), Failure> {
        self.run("BEGIN").await;
        let changed = self.client.execute_raw(sql, std::iter::empty::<&str>()).await;
        let after = match &changed {
            Ok(_) => self.ask(&format!("SELECT * FROM {table}")).await,
            Err(_) => Answer::Rows(Vec::new()),
        };
        self.run("ROLLBACK").await;
        changed.map(|rows| (rows, after)).map_err(|error| failure(&error))
    }
}

fn failure(error: &tokio_postgres::Error) -> Failure {
    match error.as_db_error() {
        Some(error) => Failure { sqlstate: error.code().code().to_owned(), text: error.message().to_owned() },
        // Without the server nothing can be compared, so nothing may count as passed.
        None => panic!("PostgreSQL is gone: {error:?}"),
    }
}

async fn connect(folder: &Path) -> Client {
    let settings = format!("host={} user=postgres dbname=postgres", folder.display());
    for _ in 0..600 {
        if let Ok((client, connection)) = tokio_postgres::connect(&settings, NoTls).await {
            tokio::spawn(connection);
            return client;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
    panic!("PostgreSQL does not start: {log}");
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-INT", &self.server.id().to_string()]).status();
        let _ = self.server.wait();
    }
}
