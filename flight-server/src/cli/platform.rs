//! Everything that depends on the operating system: signals, file permissions and the limit of open files.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

/// Requests to end the process: SIGTERM and SIGINT, or Ctrl-C where there are no signals.
pub(super) struct Termination {
    #[cfg(unix)]
    signals: [tokio::signal::unix::Signal; 2],
}

impl Termination {
    /// Starts to listen; from now on these signals no longer end the process.
    pub(super) fn listen() -> io::Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Self { signals: [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?] })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    /// Waits for the first request to end.
    pub(super) async fn asked(&mut self) -> io::Result<()> {
        #[cfg(unix)]
        {
            let [terminate, interrupt] = &mut self.signals;
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            Ok(())
        }
        #[cfg(not(unix))]
        tokio::signal::ctrl_c().await
    }
}

/// Raises the process's limit of open files to its maximum and returns it: every connection is a file, and
/// the store has many. Systems start with 1,024 for the sake of programs that use `select`.
pub(super) fn raise_open_files() -> io::Result<u64> {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(hard)
    }
    #[cfg(not(unix))]
    Ok(u64::MAX)
}

/// Writes a new file that only its owner can read, and syncs it. Fails when the file exists.
pub(super) fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
