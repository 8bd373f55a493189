//! A sqllogictest connection over Flight SQL.
//!
//! A connection's name tells who logs in: no name is `root`; `alice` is user `alice` with password
//! `alice-password`; `alice:secret` is `alice` with that password; a suffix after `#` distinguishes
//! connections of one user. Lines `-- bind TYPE value` at the start of a statement are its parameters, in
//! order; `-- bind TYPE` is NULL.

use std::fmt::{self, Display};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow_flight::FlightInfo;
use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use async_trait::async_trait;
use futures::TryStreamExt;
use sqllogictest::{AsyncDB, Connection, DBOutput};
use tonic::transport::{Channel, Endpoint};

use crate::format::{self, WireType};
use crate::server::ROOT_PASSWORD;

pub(crate) struct FlightConnection {
    client: FlightSqlServiceClient<Channel>,
}

/// The server's error, or an error in the record.
#[derive(Debug)]
pub(crate) struct SltError(String);

impl Display for SltError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for SltError {}

fn error(source: impl Display) -> SltError {
    SltError(source.to_string())
}

/// Returns the server's message without the client library's wrapping.
fn answer(source: FlightError) -> SltError {
    match source {
        FlightError::Tonic(status) => SltError(status.message().to_owned()),
        other => error(other),
    }
}

impl FlightConnection {
    pub(crate) async fn open(address: &str, connection: &Connection) -> Result<FlightConnection, SltError> {
        let (user, password) = credentials(connection);
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .map_err(error)?
            .connect()
            .await
            .map_err(error)?;
        let mut client = FlightSqlServiceClient::new(channel);
        client.handshake(&user, &password).await.map_err(answer)?;
        Ok(FlightConnection { client })
    }

    /// Flushes all tables and waits for the jobs.
    pub(crate) async fn flush_all(&mut self) -> Result<(), SltError> {
        self.run("FLUSH ALL TABLES").await?;
        let unfinished = "SELECT job_id FROM system.jobs \
                          WHERE job_type = 'flush' AND status NOT IN ('completed', 'failed', 'cancelled')";
        loop {
            match self.run(unfinished).await? {
                DBOutput::Rows { rows, .. } if rows.is_empty() => break,
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
        let failed =
            "SELECT error_message FROM system.jobs WHERE job_type = 'flush' AND status <> 'completed'";
        match self.run(failed).await? {
            DBOutput::Rows { rows, .. } if rows.is_empty() => Ok(()),
            DBOutput::Rows { rows, .. } => Err(SltError(format!("{rows:?}"))),
            _ => Err(SltError("a query gave no rows".to_owned())),
        }
    }

    async fn read(&mut self, info: FlightInfo) -> Result<DBOutput<WireType>, SltError> {
        let advertised = info.clone().try_decode_schema().map_err(error)?;
        let types = advertised.fields().iter().map(|field| WireType::of(field.data_type())).collect();
        let mut rows = Vec::new();
        for endpoint in info.endpoint {
            let ticket = endpoint.ticket.ok_or_else(|| error("an endpoint without a ticket"))?;
            let mut stream = self.client.do_get(ticket).await.map_err(answer)?;
            while let Some(batch) = stream.try_next().await.map_err(answer)? {
                // Clients such as ADBC refuse a stream whose schema differs from the advertised one.
                same_fields(&advertised, &batch.schema())?;
                rows.extend(format::rows(&batch).map_err(error)?);
            }
        }
        Ok(DBOutput::Rows { types, rows })
    }
}

#[async_trait]
impl AsyncDB for FlightConnection {
    type Error = SltError;
    type ColumnType = WireType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<WireType>, SltError> {
        let (parameters, sql) = split_parameters(sql)?;
        if is_ddl(&sql) {
            let count = self.client.execute_update(sql, None).await.map_err(answer)?;
            return Ok(DBOutput::StatementComplete(count.max(0).unsigned_abs()));
        }
        let mut prepared = self.client.prepare(sql.clone(), None).await.map_err(answer)?;
        let is_query = !prepared.dataset_schema().map_err(answer)?.fields().is_empty();
        let bound = parameters.is_some();
        if let Some(parameters) = parameters {
            prepared.set_parameters(parameters).map_err(answer)?;
        }
        let result = if !is_query {
            prepared
                .execute_update()
                .await
                .map(|count| DBOutput::StatementComplete(count.max(0).unsigned_abs()))
                .map_err(answer)
        } else {
            let info = if bound { prepared.execute().await } else { self.client.execute(sql, None).await };
            self.read(info.map_err(answer)?).await
        };
        prepared.close().await.map_err(answer)?;
        result
    }

    async fn shutdown(&mut self) {
        // Closing a client sends nothing, so it cannot fail.
        drop(self.client.close().await);
    }

    async fn sleep(duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn error_sql_state(error: &SltError) -> Option<String> {
        let bytes = error.0.as_bytes();
        bytes.windows(7).find_map(|window| match window {
            [b'[', state @ .., b']']
                if state.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase()) =>
            {
                Some(String::from_utf8_lossy(state).into_owned())
            }
            _ => None,
        })
    }
}

/// DDL runs ad hoc: a statement that sets the own password also ends the token that Close would need.
fn is_ddl(sql: &str) -> bool {
    sql.split_whitespace().next().is_some_and(|word| matches!(word, "CREATE" | "ALTER" | "DROP"))
}

fn credentials(connection: &Connection) -> (String, String) {
    match connection {
        Connection::Default => ("root".to_owned(), ROOT_PASSWORD.to_owned()),
        Connection::Named(name) => {
            let name = name.split('#').next().unwrap_or_default();
            match name.split_once(':') {
                Some((user, password)) => (user.to_owned(), password.to_owned()),
                None => (name.to_owned(), format!("{name}-password")),
            }
        }
    }
}

/// Checks names, types and nullability; metadata may differ.
fn same_fields(advertised: &Schema, actual: &Schema) -> Result<(), SltError> {
    let strip = |schema: &Schema| -> Vec<(String, DataType, bool)> {
        schema
            .fields()
            .iter()
            .map(|field| (field.name().clone(), field.data_type().clone(), field.is_nullable()))
            .collect()
    };
    let (advertised, actual) = (strip(advertised), strip(actual));
    if advertised == actual {
        return Ok(());
    }
    Err(SltError(format!("the stream's schema {actual:?} is not the advertised one {advertised:?}")))
}

fn split_parameters(sql: &str) -> Result<(Option<RecordBatch>, String), SltError> {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    let mut rest = Vec::new();
    for line in sql.lines() {
        let Some(binding) = line.strip_prefix("-- bind ") else {
            rest.push(line);
            continue;
        };
        let (name, value) = match binding.split_once(' ') {
            Some((name, value)) => (name, Some(value)),
            None => (binding, None),
        };
        let data_type = bind_type(name)?;
        let text = StringArray::from(vec![value]);
        columns.push(cast(&text, &data_type).map_err(error)?);
        fields.push(Field::new((fields.len() + 1).to_string(), data_type, true));
    }
    let sql = rest.join("\n");
    if fields.is_empty() {
        return Ok((None, sql));
    }
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(error)?;
    Ok((Some(batch), sql))
}

fn bind_type(name: &str) -> Result<DataType, SltError> {
    Ok(match name {
        "BOOLEAN" => DataType::Boolean,
        "SMALLINT" => DataType::Int16,
        "INTEGER" => DataType::Int32,
        "BIGINT" => DataType::Int64,
        "REAL" => DataType::Float32,
        "DOUBLE" => DataType::Float64,
        "TEXT" => DataType::Utf8,
        "DATE" => DataType::Date32,
        "TIMESTAMP" => DataType::Timestamp(TimeUnit::Microsecond, None),
        other => return Err(SltError(format!("the runner cannot bind a {other}"))),
    })
}
