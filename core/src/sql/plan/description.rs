//! What is known of a statement before it runs: its parameters and the schema of its result.

use std::collections::HashMap;

use datafusion::arrow::datatypes::{DataType, FieldRef};

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

    /// Returns the memory that the description takes, in bytes. A schema of the registry is not its own.
    pub(crate) fn size(&self) -> usize {
        /// What an entry of a map takes beside its name and its type.
        const ENTRY_BYTES: usize = 64;
        let field = |field: &FieldRef| size_of::<FieldRef>() + field.size();
        let own = self.schema.as_ref().filter(|schema| schema.ipc.is_none());
        let columns: usize = own.iter().flat_map(|own| own.schema.fields()).map(field).sum();
        let parameters: usize = self.parameters.iter().map(field).sum();
        let types = self.types.iter();
        let types: usize = types
            .map(|(name, ty)| ENTRY_BYTES + name.capacity() + ty.as_ref().map_or(0, DataType::size))
            .sum();
        let uses: usize = self.uses.keys().map(|name| ENTRY_BYTES + name.capacity()).sum();
        size_of::<Self>() + columns + parameters + types + uses
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
