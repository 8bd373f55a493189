//! `kalamdb restore` and `kalamdb check`, which work on a data directory that no server has open.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use kalamdb_core::maintenance::{self, BackupUrl, CheckReport};

use super::{Failure, runtime};

/// Credentials of an object store come from the environment (AWS_..., GOOGLE_..., AZURE_...).
#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// Where the backup is: file:///directory, s3://bucket/path, gs://bucket/path or az://container/path
    #[arg(long, value_name = "URL")]
    from: String,
    /// The data directory to restore into; it must be empty or not exist
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

/// Restores a backup.
pub(super) fn restore(args: &RestoreArgs) -> Result<(), Failure> {
    let url = BackupUrl::parse(&args.from)?;
    let restored = runtime()?.block_on(maintenance::restore(&url, &args.data_dir))?;
    println!(
        "restored database {} as of commit {} from {} objects ({} bytes); it is now database {}",
        restored.from, restored.seq, restored.objects, restored.bytes, restored.database
    );
    Ok(())
}

/// Reads everything and changes nothing.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The data directory, while no server uses it
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

/// Checks a database; prints its contents and its problems.
pub(super) fn check(args: &CheckArgs) -> Result<(), Failure> {
    let report = runtime()?.block_on(maintenance::check(&args.data_dir))?;
    let CheckReport { database, epoch, seq, tables, orphans, problems, more_problems } = &report;
    let mut out = std::io::stdout().lock();
    writeln!(out, "database {database}, epoch {epoch}, commit {seq}")?;
    for table in tables {
        writeln!(out, "table {table}")?;
    }
    for orphan in orphans {
        writeln!(out, "orphan: \"{orphan}\" is removed at the next start")?;
    }
    for problem in problems {
        writeln!(out, "problem: {problem}")?;
    }
    out.flush()?;
    match problems.len() as u64 + more_problems {
        0 => Ok(writeln!(out, "sound")?),
        1 => Err("1 problem was found".into()),
        count => Err(format!("{count} problems were found").into()),
    }
}
