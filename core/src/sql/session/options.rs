//! What sessions have set, and how they end.

use std::time::Duration;

use super::Session;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::sql::execution::session_time_ms;
use crate::sql::settings::{Setting, TimeSetting};
use crate::workload::SessionEnd;

impl Session {
    /// Changes `statement_timeout`, `idle_session_timeout` or `application_name` as SET does; `None` is the
    /// default.
    ///
    /// # Errors
    /// 42704 for another name, 22023 for a wrong value.
    pub fn set_option(&self, name: &str, value: Option<&str>) -> Result<()> {
        let setting = Setting::parse(name).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                SqlState::UNDEFINED_OBJECT,
                format!("setting \"{name}\" does not exist"),
            )
        })?;
        let value = setting.value(value)?;
        self.view()?.set(&value);
        Ok(())
    }

    /// Returns the names and values of what [`Session::set_option`] changes, as SHOW shows them.
    ///
    /// # Errors
    /// 28000 when the user no longer exists.
    pub fn options(&self) -> Result<Vec<(&'static str, String)>> {
        let view = self.view()?;
        Ok(Setting::ALL.into_iter().map(|setting| (setting.name(), view.setting(setting))).collect())
    }

    /// Counts a call of the client as activity.
    ///
    /// # Errors
    /// 57P05 when the session did nothing for longer than its `idle_session_timeout`, which ends it; 57P01,
    /// 57P05 or 08000 when it has ended.
    pub fn touch(&self) -> Result<()> {
        self.end_if_idle();
        self.inner.info.check()?;
        self.inner.info.touch();
        Ok(())
    }

    /// Ends the session if it has done nothing for longer than its `idle_session_timeout`.
    pub fn end_if_idle(&self) {
        let info = &self.inner.info;
        let Some(idle) = info.idle_time() else { return };
        let idle_ms_max = session_time_ms(TimeSetting::IdleSession, &self.inner.ctx, info);
        if idle_ms_max > 0 && idle > Duration::from_millis(idle_ms_max) {
            self.inner.ctx.end_session(info, SessionEnd::Idle);
        }
    }

    /// Ends the session with its statements and live queries.
    pub fn close(&self) {
        self.inner.ctx.end_session(&self.inner.info, SessionEnd::Closed);
    }

    /// Whether the session has ended: closed, by KILL SESSION or because it was idle.
    pub fn has_ended(&self) -> bool {
        self.inner.info.ended().is_some()
    }
}
