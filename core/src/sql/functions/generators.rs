//! Generators of identifiers (`SNOWFLAKE_ID()`, `UUID_V7()`, `ULID()`). They are volatile: one value per row.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use datafusion::arrow::array::{ArrayRef, Int64Array, StringArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::Result as DataFusionResult;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::clock::Clock;
use crate::ids::NodeId;

/// The epoch of snowflake ids, 2024-01-01, in milliseconds since 1970.
const SNOWFLAKE_EPOCH_MS: i64 = 1_704_067_200_000;
const SNOWFLAKE_SEQUENCE_MAX: i64 = 0xFFF;

/// Generates identifiers.
pub(crate) struct Generator {
    clock: Arc<dyn Clock>,
    /// Ten bits of the node id, shifted to their position.
    worker: i64,
    last_snowflake: AtomicI64,
}

impl Generator {
    pub(crate) fn new(clock: Arc<dyn Clock>, node: &NodeId) -> Self {
        let worker = node.0.bytes().fold(0_i64, |sum, byte| (sum * 31 + i64::from(byte)) & 0x3FF) << 12;
        Self { clock, worker, last_snowflake: AtomicI64::new(0) }
    }

    fn now_ms(&self) -> i64 {
        self.clock.now_us() / 1_000
    }

    /// Returns the next id: 41 bits of milliseconds, 10 of the node, 12 of a sequence. Ids always increase:
    /// when the clock goes back or a millisecond's sequence is used up, they run ahead of the clock.
    pub(crate) fn snowflake_id(&self) -> i64 {
        let fresh = ((self.now_ms() - SNOWFLAKE_EPOCH_MS).max(0) << 22) | self.worker;
        let next = |last: i64| {
            let after = if last & SNOWFLAKE_SEQUENCE_MAX == SNOWFLAKE_SEQUENCE_MAX {
                (((last >> 22) + 1) << 22) | self.worker
            } else {
                last + 1
            };
            fresh.max(after)
        };
        let previous =
            self.last_snowflake.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
        next(previous.unwrap_or_else(|last| last))
    }

    pub(crate) fn uuid_v7(&self) -> uuid::Uuid {
        let ms = u64::try_from(self.now_ms()).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(ms, &rand::random::<[u8; 10]>()).into_uuid()
    }

    pub(crate) fn ulid(&self) -> String {
        let ms = u64::try_from(self.now_ms()).unwrap_or(0);
        ulid::Ulid::from_parts(ms, rand::random::<u128>()).to_string()
    }

    /// Returns one id per row.
    pub(crate) fn snowflake_ids(&self, rows: usize) -> ArrayRef {
        Arc::new(Int64Array::from_iter_values((0..rows).map(|_| self.snowflake_id())))
    }

    /// Returns one UUID per row, as text.
    pub(crate) fn uuids(&self, rows: usize) -> ArrayRef {
        Arc::new(StringArray::from_iter_values((0..rows).map(|_| self.uuid_v7().to_string())))
    }

    /// Returns one ULID per row.
    pub(crate) fn ulids(&self, rows: usize) -> ArrayRef {
        Arc::new(StringArray::from_iter_values((0..rows).map(|_| self.ulid())))
    }

    fn column(&self, kind: Generated, rows: usize) -> ArrayRef {
        match kind {
            Generated::SnowflakeId => self.snowflake_ids(rows),
            Generated::UuidV7 => self.uuids(rows),
            Generated::Ulid => self.ulids(rows),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Generated {
    SnowflakeId,
    UuidV7,
    Ulid,
}

/// A generator as a scalar function.
struct GeneratorFunction {
    generator: Arc<Generator>,
    kind: Generated,
    signature: Signature,
}

impl GeneratorFunction {
    fn udf(generator: &Arc<Generator>, kind: Generated) -> Arc<ScalarUDF> {
        Arc::new(ScalarUDF::new_from_impl(Self {
            generator: Arc::clone(generator),
            kind,
            signature: Signature::nullary(Volatility::Volatile),
        }))
    }
}

impl PartialEq for GeneratorFunction {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

impl Eq for GeneratorFunction {}

impl Hash for GeneratorFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kind.hash(state);
    }
}

impl fmt::Debug for GeneratorFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl ScalarUDFImpl for GeneratorFunction {
    fn name(&self) -> &str {
        match self.kind {
            Generated::SnowflakeId => "snowflake_id",
            Generated::UuidV7 => "uuid_v7",
            Generated::Ulid => "ulid",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DataFusionResult<DataType> {
        Ok(match self.kind {
            Generated::SnowflakeId => DataType::Int64,
            Generated::UuidV7 | Generated::Ulid => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        Ok(ColumnarValue::Array(self.generator.column(self.kind, args.number_rows)))
    }
}

/// Returns the generators as functions to register.
pub(crate) fn generators(generator: &Arc<Generator>) -> Vec<Arc<ScalarUDF>> {
    [Generated::SnowflakeId, Generated::UuidV7, Generated::Ulid]
        .into_iter()
        .map(|kind| GeneratorFunction::udf(generator, kind))
        .collect()
}
