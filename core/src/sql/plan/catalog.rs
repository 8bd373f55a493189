//! The tables of a snapshot as DataFusion's catalog: providers for the planner, and `information_schema`.
//!
//! Invariant: `information_schema` shows nothing that the principal may not read.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::information_schema::InformationSchemaProvider;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::Result as DataFusionResult;
use datafusion::datasource::TableType;
use futures::FutureExt;

use crate::error::{Error, Result};
use crate::schema_registry::{TableDefinition, TableKind};
use crate::sql::execution::{Execution, TableVisibility};
use crate::sql::{CATALOG, INFORMATION_SCHEMA};
use crate::system_tables::{self, SystemSources};
use crate::tables::{KalamTable, RowSchema};

/// Returns the provider of a table that the principal may read.
pub(crate) fn provider(
    execution: &Execution,
    definition: &Arc<TableDefinition>,
    visibility: TableVisibility,
) -> Result<Arc<dyn TableProvider>> {
    let shown = if visibility.target == Some(definition.id) {
        RowSchema::Write
    } else if visibility.names_seq {
        RowSchema::Full
    } else {
        RowSchema::Visible
    };
    let schemas = execution.schemas(definition);
    let scope = definition.scope_for(execution.principal.user_id);
    let snapshot = Arc::clone(&execution.snapshot);
    if definition.kind == TableKind::System
        && let Some(rows) = system_tables::batch(&system_sources(execution), &schemas)?
    {
        return Ok(Arc::new(KalamTable::computed(snapshot, schemas, shown, vec![rows])?));
    }
    Ok(Arc::new(KalamTable::stored(snapshot, schemas, shown, scope, execution.now_us)))
}

/// Returns the sources of the rows of system tables, for a statement's principal.
pub(crate) fn system_sources(execution: &Execution) -> SystemSources<'_> {
    let ctx = execution.ctx();
    SystemSources {
        principal: &execution.principal,
        statements: &ctx.statements,
        sessions: &ctx.sessions,
        snapshot: &execution.snapshot,
        committer: &ctx.committer,
        registry: &ctx.schema_registry,
        live_queries: &ctx.live_queries,
        jobs: &ctx.jobs,
        node_id: &ctx.node_id,
        clock: &*ctx.clock,
        opened_at: ctx.started_at,
    }
}

/// Returns the provider of a table in `information_schema`.
pub(crate) fn information_schema(execution: &Execution, table: &str) -> Result<Arc<dyn TableProvider>> {
    let catalogs: Arc<dyn CatalogProviderList> = Arc::new(Catalogs(Arc::new(Namespaces(execution.clone()))));
    let tables = InformationSchemaProvider::new(catalogs);
    // The provider is ready at once; its rows are made when they are read.
    let found = tables.table(table).now_or_never().transpose()?.flatten();
    found.ok_or_else(|| Error::table_not_found(format!("{INFORMATION_SCHEMA}.{table}")))
}

#[derive(Debug)]
struct Catalogs(Arc<Namespaces>);

impl CatalogProviderList for Catalogs {
    fn register_catalog(&self, _: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == CATALOG).then(|| Arc::clone(&self.0) as Arc<dyn CatalogProvider>)
    }
}

struct Namespaces(Execution);

impl std::fmt::Debug for Namespaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Namespaces").field("seq", &self.0.snapshot.seq).finish_non_exhaustive()
    }
}

impl CatalogProvider for Namespaces {
    fn schema_names(&self) -> Vec<String> {
        let names = self.0.readable_namespaces().into_iter();
        names.filter(|name| &**name != INFORMATION_SCHEMA).map(|name| name.to_string()).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let namespace = self.0.readable_namespaces().into_iter().find(|known| &**known == name)?;
        Some(Arc::new(Tables { execution: self.0.clone(), namespace }))
    }
}

struct Tables {
    execution: Execution,
    namespace: Arc<str>,
}

impl Tables {
    fn find(&self, name: &str) -> Option<&Arc<TableDefinition>> {
        let table = self.execution.snapshot.catalog.table(&self.namespace, name)?;
        self.execution.may_read(table).then_some(table)
    }
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

#[async_trait]
impl SchemaProvider for Tables {
    fn table_names(&self) -> Vec<String> {
        let tables = self.execution.snapshot.catalog.tables_in(&self.namespace);
        tables.filter(|table| self.execution.may_read(table)).map(|table| table.name.to_string()).collect()
    }

    async fn table(&self, name: &str) -> DataFusionResult<Option<Arc<dyn TableProvider>>> {
        match self.find(name) {
            Some(table) => Ok(Some(provider(&self.execution, table, TableVisibility::default())?)),
            None => Ok(None),
        }
    }

    async fn table_type(&self, name: &str) -> DataFusionResult<Option<TableType>> {
        Ok(self.find(name).map(|_| TableType::Base))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.find(name).is_some()
    }
}
