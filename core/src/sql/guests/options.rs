//! The control of a statement among the options of its plan, where rules and functions find it.
//!
//! Invariant: the options of a statement are its own, so no plan finds the control of another.

use std::any::Any;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::{ConfigEntry, ConfigExtension, ConfigOptions, ExtensionOptions};

use crate::error::Error;
use crate::workload::StatementControl;

/// The control of a statement as an option, which has no name and no text.
#[derive(Clone, Debug)]
pub(in crate::sql) struct GuestOptions(pub(in crate::sql) Arc<StatementControl>);

impl GuestOptions {
    /// Returns the control of the statement with these options.
    pub(in crate::sql) fn control(options: &ConfigOptions) -> Option<&Arc<StatementControl>> {
        options.extensions.get::<Self>().map(|guest| &guest.0)
    }
}

impl ConfigExtension for GuestOptions {
    const PREFIX: &'static str = "kalam_guest";
}

impl ExtensionOptions for GuestOptions {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(self.clone())
    }

    fn set(&mut self, key: &str, _: &str) -> Result<()> {
        Err(Error::invalid(format!("there is no option \"{key}\"")).into())
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        Vec::new()
    }
}
