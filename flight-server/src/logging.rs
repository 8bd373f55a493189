//! Log lines: they go to stderr and carry the node's name.
//!
//! Invariant: every line names the node, including lines of libraries and spawned tasks, because the
//! formatter adds the name.

use std::fmt;
use std::io::IsTerminal;

use kalamdb_core::ids::NodeId;
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{ConfigError, LogFormat};

/// Sends log lines to stderr for the rest of the process's life. `RUST_LOG` overrides `level`.
///
/// # Errors
/// When the level is malformed, or logging was started before.
pub fn start(node_id: &NodeId, level: &str, format: LogFormat) -> Result<(), ConfigError> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text),
        _ => EnvFilter::try_new(level),
    };
    let filter = filter.map_err(|error| format!("log level: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            let inner = Format::default().with_ansi(colours);
            builder.with_ansi(colours).event_format(NodeLine { node_id: node_id.clone(), inner }).try_init()
        }
        LogFormat::Json => builder
            .with_ansi(false)
            .fmt_fields(JsonFields::new())
            .event_format(NodeObject { node_id: node_id.clone(), inner: Format::default().json() })
            .try_init(),
    };
    started.map_err(|error| ConfigError::from(format!("cannot start logging: {error}")))
}

/// Text lines that end with the node's name.
struct NodeLine {
    node_id: NodeId,
    inner: Format<Full>,
}

impl<S, N> FormatEvent<S, N> for NodeLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        writeln!(writer, "{} node_id={}", line.trim_end(), self.node_id)
    }
}

/// JSON lines that begin with the node's name.
struct NodeObject {
    node_id: NodeId,
    inner: Format<Json>,
}

impl<S, N> FormatEvent<S, N> for NodeObject
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        // A node's name contains no character that JSON escapes.
        let fields = line.trim_start().strip_prefix('{').ok_or(fmt::Error)?;
        write!(writer, "{{\"node_id\":\"{}\",{fields}", self.node_id)
    }
}
