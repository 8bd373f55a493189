//! The only place that knows the operating system: signals, file permissions and the number of open files.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

/// What asks the process to end: SIGTERM and SIGINT, Ctrl-C elsewhere.
pub(super) struct Termination {
    #[cfg(unix)]
    signals: [tokio::signal::unix::Signal; 2],
}

impl Termination {
    /// From now on the process is not ended by a signal but told of it.
    pub(super) fn listen() -> io::Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Self { signals: [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?] })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    /// Completes at the first request to end.
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

/// Lets the process open as many files as it may, and answers how many: every connection is one, and the store has many. Systems
/// begin with 1,024 for programs that cannot count further.
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

/// Writes a new file that only its owner can read, and makes it durable. Fails when the file exists.
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
