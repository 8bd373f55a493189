//! `system.users`: who may log in. No reader sees a password hash.

use datafusion::arrow::array::RecordBatch;

use super::columns::{self, null_text, optional_text, optional_times, text, times};
use crate::error::Result;
use crate::schema_registry::{Catalog, TableSchemas};

pub(super) fn batch(catalog: &Catalog, table: &TableSchemas) -> Result<RecordBatch> {
    let users: Vec<_> = catalog.users().collect();
    let rows = users.len();
    let auth_type = |has_password: bool| if has_password { "password" } else { "none" };
    columns::batch(
        table,
        vec![
            text("user_id", users.iter().map(|user| user.id.to_string())),
            text("username", users.iter().map(|user| &*user.username)),
            text("role", users.iter().map(|user| user.role.name())),
            optional_text("email", users.iter().map(|user| user.email.as_deref())),
            text("auth_type", users.iter().map(|user| auth_type(user.password_hash.is_some()))),
            null_text("auth_data", rows),
            text("storage_mode", users.iter().map(|_| "table")),
            null_text("storage_id", rows),
            times("created_at", users.iter().map(|user| user.created_at)),
            times("updated_at", users.iter().map(|user| user.updated_at)),
            optional_times("last_login_at", users.iter().map(|user| user.last_login_at)),
            optional_times("last_seen_at", users.iter().map(|_| None)),
            optional_times("deleted_at", users.iter().map(|_| None)),
        ],
    )
}
