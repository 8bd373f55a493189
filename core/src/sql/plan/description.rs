//! What is known of a statement before it runs: its parameters and the schema of its result.

use std::collections::HashMap;

use datafusion::arrow::datatypes::FieldRef;

use super::parameter_types::{ParameterTypes, ParameterUse, announced};
use crate::sql::result::ResultSchema;
use crate::sql::text::statement::Parsed;

/// The kind of a statement's result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StatementKind {
    /// Rows.
    #[default]
    Query,
    /// A count.
    Update,
    /// An endless stream of frames.
    Subscribe,
}

/// The description of a statement before it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Description {
    pub(crate) kind: StatementKind,
    pub(crate) schema: Option<ResultSchema>,
    /// One field per parameter, of a type that every driver can set.
    pub(crate) parameters: Vec<FieldRef>,
    /// The types of the parameters in the plan of a query.
    pub(crate) types: ParameterTypes,
    /// The uses of the parameters.
    pub(crate) uses: HashMap<String, ParameterUse>,
    /// The statement can run once per row of parameters.
    pub(crate) takes_rows: bool,
}

impl Description {
    /// Describes a statement without parameters that returns a count.
    pub(crate) fn of_change() -> Self {
        Self { kind: StatementKind::Update, ..Self::default() }
    }

    /// Describes an INSERT, UPDATE or DELETE with parameters of these types.
    pub(crate) fn of_write(parsed: &Parsed, types: &ParameterTypes) -> Self {
        Self { parameters: announce(parsed, types), takes_rows: true, ..Self::of_change() }
    }

    /// Describes a statement without parameters that returns rows of this schema.
    pub(crate) fn of_rows(schema: ResultSchema) -> Self {
        Self { kind: StatementKind::Query, schema: Some(schema), ..Self::default() }
    }
}

/// Returns the name of a parameter as clients see it.
fn parameter_name(parsed: &Parsed, index: usize) -> String {
    parsed.parameters.names.get(index).cloned().unwrap_or_else(|| format!("${}", index + 1))
}

/// Returns the parameters of a statement as clients see them; `planned` are the types in its plan.
pub(crate) fn announce(parsed: &Parsed, planned: &ParameterTypes) -> Vec<FieldRef> {
    (0..parsed.parameters.count)
        .map(|index| {
            let ty = planned.get(&format!("${}", index + 1)).and_then(Option::as_ref);
            announced(parameter_name(parsed, index), ty)
        })
        .collect()
}
