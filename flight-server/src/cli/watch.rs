//! `kalamdb watch`: prints a live query and reconnects by itself after a lost connection or a server restart.
//!
//! Invariant: after a reconnect the stream continues after the last completely printed commit, or a line on
//! stderr says that the result restarts. Only rows of a partly printed commit are printed again.

use std::io::{Stdout, Write};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt8Type};
use arrow::error::ArrowError;
use arrow::ipc::convert::try_schema_from_ipc_buffer;
use arrow::ipc::reader::StreamDecoder;
use bytes::Bytes;
use clap::Args;
use kalamdb_core::live_query::{token_from_text, token_to_text};
use kalamdb_proto::live::v1::frame::Body;
use kalamdb_proto::live::v1::subscribe_request::Start;
use kalamdb_proto::live::v1::{Frame, SnapshotMode, SubscribeRequest};
use tonic::{Code, Status};

use super::client::{ConnectArgs, Connection, explain_status};
use super::output::Printer;
use super::ticker::Ticker;
use super::{Failure, OutputFormat, OutputStyle, runtime};

/// The first and the longest wait before a reconnect.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Shows a query's result and then every change to it, until Ctrl-C.
#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// SELECT expressions FROM one table [WHERE condition]
    query: String,
    #[command(flatten)]
    connect: ConnectArgs,
    /// Output format; the default is table on a terminal, otherwise csv
    #[arg(long, value_enum)]
    format: Option<OutputFormat>,
    /// Whether to print the existing rows first
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    snapshot: bool,
    /// Resume token that an earlier watch of the same query printed at its end
    #[arg(long, value_name = "TOKEN")]
    resume: Option<String>,
    /// Ends after this many rows
    #[arg(long, value_name = "ROWS")]
    limit: Option<u64>,
}

/// How a stream ended.
enum End {
    /// As requested: the limit was reached, or the server sent OK.
    Done,
    /// The stream can continue later from the last token.
    Lost(Status),
}

/// Watches until Ctrl-C, the limit, or an error that a retry does not cure.
pub(super) fn run(args: &WatchArgs) -> Result<(), Failure> {
    let token = args.resume.as_deref().map(token_from_text).transpose()?;
    let mut watch = Watch {
        args,
        printer: ChangePrinter { format: OutputFormat::or_default(args.format), output: None },
        token,
        rows_left: args.limit.unwrap_or(u64::MAX),
    };
    runtime()?.block_on(async {
        tokio::select! {
            done = watch.run() => done?,
            asked = tokio::signal::ctrl_c() => asked?,
        }
        watch.printer.finish()?;
        if let (Some(token), None) = (&watch.token, args.limit) {
            eprintln!("to continue from here: --resume {}", token_to_text(token));
        }
        Ok(())
    })
}

struct Watch<'a> {
    args: &'a WatchArgs,
    printer: ChangePrinter,
    /// The resume token of the last completely printed frame.
    token: Option<Bytes>,
    rows_left: u64,
}

impl Watch<'_> {
    async fn run(&mut self) -> Result<(), Failure> {
        let mut connection = self.args.connect.connect().await?;
        let mut backoff = BACKOFF_FIRST;
        loop {
            match self.stream(&connection, &mut backoff).await? {
                End::Done => return Ok(()),
                End::Lost(status) => eprintln!("connection lost ({}); trying again", status.message()),
            }
            loop {
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
                match self.args.connect.connect().await {
                    Ok(again) => {
                        connection = again;
                        break;
                    }
                    Err(failure) => eprintln!("{}; trying again", super::describe(failure.as_ref())),
                }
            }
        }
    }

    async fn stream(&mut self, connection: &Connection, backoff: &mut Duration) -> Result<End, Failure> {
        let mode = if self.args.snapshot { SnapshotMode::Include } else { SnapshotMode::Skip };
        let request = SubscribeRequest {
            sql: self.args.query.clone(),
            snapshot: mode.into(),
            start: self.token.clone().map(Start::ResumeToken),
            label: "kalamdb watch".to_owned(),
            ..Default::default()
        };
        let mut frames = match connection.live_query().subscribe(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return lost_or_failed(status),
        };
        let mut decoder = StreamDecoder::new();
        loop {
            match frames.message().await {
                Ok(Some(frame)) => {
                    *backoff = BACKOFF_FIRST;
                    let retry = self.take(frame, &mut decoder)?;
                    if self.rows_left == 0 {
                        return Ok(End::Done);
                    }
                    if let Some(message) = retry {
                        return Ok(End::Lost(Status::unavailable(message)));
                    }
                }
                Ok(None) => return Ok(End::Done),
                Err(status) => return lost_or_failed(status),
            }
        }
    }

    /// Prints a frame. Returns the reason if the stream ended and a retry makes sense.
    fn take(&mut self, frame: Frame, decoder: &mut StreamDecoder) -> Result<Option<String>, Failure> {
        match frame.body {
            Some(Body::Started(started)) => {
                *decoder = StreamDecoder::new();
                // The decoder processes a message without a body only when the next message arrives.
                let schema = Arc::new(try_schema_from_ipc_buffer(&started.schema_ipc)?);
                decoder.decode(&mut Buffer::from(started.schema_ipc))?;
                self.printer.start(&schema)?;
            }
            Some(Body::Snapshot(batch) | Body::Delta(batch)) => {
                if let Some(rows) = decoder.decode(&mut Buffer::from(batch.ipc))? {
                    let wanted = usize::try_from(self.rows_left).unwrap_or(usize::MAX).min(rows.num_rows());
                    self.printer.write(&rows.slice(0, wanted))?;
                    self.rows_left -= wanted as u64;
                }
            }
            Some(Body::Reset(reset)) => {
                eprintln!("the result restarts ({})", reset.reason().as_str_name().to_ascii_lowercase());
            }
            Some(Body::Notice(notice)) => eprintln!("{}", notice.message),
            Some(Body::Closed(closed)) if closed.retryable => return Ok(Some(closed.message)),
            Some(Body::Closed(_) | Body::SnapshotEnd(_) | Body::Progress(_)) | None => {}
        }
        if !frame.resume_token.is_empty() && !frame.more {
            self.token = Some(frame.resume_token);
        }
        Ok(None)
    }
}

fn lost_or_failed(status: Status) -> Result<End, Failure> {
    match status.code() {
        // The codes of a broken connection and of a restarting server.
        Code::Unavailable | Code::Unknown | Code::Aborted => Ok(End::Lost(status)),
        _ => Err(explain_status(&status)),
    }
}

/// Prints changes; a stream with other columns starts a new output.
struct ChangePrinter {
    format: OutputFormat,
    output: Option<(SchemaRef, Output)>,
}

enum Output {
    Lines(Ticker<Stdout>),
    Rows(Printer<Stdout>),
}

impl ChangePrinter {
    /// Starts to print rows of `wire`, the schema that the server announced.
    fn start(&mut self, wire: &SchemaRef) -> Result<(), Failure> {
        let schema = match self.format {
            OutputFormat::Arrow => Arc::clone(wire),
            OutputFormat::Table | OutputFormat::Csv | OutputFormat::Json => readable_schema(wire),
        };
        if let Some((known, _)) = &self.output
            && known.fields() == schema.fields()
        {
            return Ok(());
        }
        self.finish()?;
        let output = match self.format {
            OutputFormat::Table => Output::Lines(Ticker::new(std::io::stdout())),
            format => {
                let style = OutputStyle { format, full: true };
                Output::Rows(Printer::new(style, &schema, std::io::stdout())?)
            }
        };
        self.output = Some((schema, output));
        Ok(())
    }

    fn write(&mut self, rows: &RecordBatch) -> Result<(), Failure> {
        let (schema, output) = self.output.as_mut().ok_or("the server sent rows before their schema")?;
        match output {
            Output::Lines(ticker) => ticker.write(&readable(rows, schema)?),
            Output::Rows(printer) => {
                match self.format {
                    OutputFormat::Arrow => printer.write(rows)?,
                    _ => printer.write(&readable(rows, schema)?)?,
                }
                printer.flush()
            }
        }
    }

    fn finish(&mut self) -> Result<(), Failure> {
        match self.output.take() {
            Some((_, Output::Rows(printer))) => printer.finish().map(|_| ()),
            Some((_, Output::Lines(_))) | None => Ok(std::io::stdout().flush()?),
        }
    }
}

/// Returns the wire schema with the operation as text.
fn readable_schema(wire: &SchemaRef) -> SchemaRef {
    let mut fields: Vec<Arc<Field>> = wire.fields().iter().map(Arc::clone).collect();
    if let Some(op) = fields.first_mut() {
        *op = Arc::new(Field::new(op.name(), DataType::Utf8, false));
    }
    Arc::new(Schema::new(fields))
}

fn readable(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
    if let Some(op) = columns.first_mut()
        && let Some(codes) = op.as_primitive_opt::<UInt8Type>()
    {
        let words = codes.iter().map(|code| match code {
            Some(1) => "insert",
            Some(2) => "delete",
            Some(3) => "update",
            _ => "unknown",
        });
        *op = Arc::new(words.map(Some).collect::<StringArray>());
    }
    RecordBatch::try_new(Arc::clone(schema), columns)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, UInt8Array};

    use super::*;

    #[test]
    fn operations_are_printed_as_words() {
        let columns: [(&str, ArrayRef); 2] = [
            ("_op", Arc::new(UInt8Array::from(vec![1, 2, 3]))),
            ("_seq", Arc::new(Int64Array::from(vec![7, 8, 9]))),
        ];
        let wire = RecordBatch::try_from_iter(columns).expect("batch");
        let rows = readable(&wire, &readable_schema(&wire.schema())).expect("rows");
        let words: Vec<_> = rows.column(0).as_string::<i32>().iter().flatten().collect();
        assert_eq!(words, ["insert", "delete", "update"]);
    }
}
