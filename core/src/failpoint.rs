//! Named points at which a test ends the process or makes a step fail, so that every such point is tested.
//!
//! They exist only with the feature `failpoints` of the crate `fail`, which test builds enable; in other
//! builds a point compiles to nothing. The environment variable `FAILPOINTS`, read once at start, or
//! `fail::cfg` sets what happens at a point:
//!
//! ```text
//! FAILPOINTS='flush::committed=return(kill);commit::write=2*off->return(error)'
//!   return(kill)    the process ends at once, as by kill -9
//!   return(error)   the step fails with 58030; only at points of ERROR_POINTS
//!   sleep(N), pause, N*off->...    as in the documentation of `fail`
//! ```
//!
//! Invariant: each point is in one of the two lists and at one place in the code. In addition, tests in the
//! same process can hold a statement between its plan and its commit; see [`PLANNED`].

use crate::error::{Error, ErrorKind, Result, SqlState};

/// Points where a step can also fail, in the order of the code.
pub const ERROR_POINTS: &[&str] = &[
    "commit::write",
    "segment::create",
    "segment::written",
    "segment::synced",
    "segment::renamed",
    "segment::published",
    "segment::verified",
    "flush::committed",
    "flush::clean",
    "compact::committed",
    "publish::write",
    "publish::written",
    "publish::removed",
    "retire::remove",
    "retire::removed",
    "trim::commit",
    "trim::committed",
    "expiry::delete",
    "expiry::deleted",
    "open::format",
    "open::secret",
    "open::root",
    "recover::epoch",
    "recover::recovered",
    "recover::jobs",
    "sweep::remove",
    "reopen::open",
    "reopen::opened",
    "reopen::recovered",
    "backup::claimed",
    "backup::store",
    "backup::segment",
    "backup::synced",
    "backup::written",
];

/// Points where only the process can end.
pub const KILL_POINTS: &[&str] =
    &["commit::written", "commit::installed", "commit::answered", "recover::swept"];

/// Faults that tests plant in the planner, to see whether the guards find them: `FAILPOINTS='name=return'`.
pub const FAULTS: &[&str] = &[
    "casts_cut_off",
    "filters_go_by_name",
    "key_bounds_are_open",
    "literals_stay_left",
    "not_in_without_null",
    "offset_forgets_order",
    "simplified_without_null",
    "subqueries_as_datafusion_has_them",
    "union_shares_its_limit",
    "using_takes_the_left",
];

/// Prefix of the points at which a test holds a statement that is planned but not committed. The qualified
/// name of its table follows, or the name of the object that it defines, so a test holds only its own
/// statements.
pub const PLANNED: &str = "statement::planned ";

/// Lets a test hold a statement that is about to commit: the point's callback runs and may wait.
#[inline]
pub(crate) fn planned(object: impl FnOnce() -> String) {
    if fail::has_failpoints() {
        fail::eval(&format!("{PLANNED}{}", object()), |_| ());
    }
}

/// Returns whether a test planted the fault; always false in programs built without failpoints.
#[inline]
pub(crate) fn is_planted(fault: &'static str) -> bool {
    fail::has_failpoints() && fail::eval(fault, |_| ()).is_some()
}

/// Passes a point at which a step can fail.
///
/// # Errors
/// 58030 when a test set it so.
#[inline]
pub(crate) fn step(point: &'static str) -> Result<()> {
    if !fail::has_failpoints() {
        return Ok(());
    }
    match fail::eval(point, |action| action) {
        None => Ok(()),
        Some(action) if action.as_deref() == Some("kill") => kill(point),
        Some(_) => {
            eprintln!("failpoint \"{point}\": the step fails");
            Err(Error::new(
                ErrorKind::Unavailable,
                SqlState::IO_ERROR,
                format!("a failpoint made the step \"{point}\" fail"),
            )
            .hint("this program was built for tests; set no FAILPOINTS"))
        }
    }
}

/// Passes a point at which only the process can end.
#[inline]
pub(crate) fn kill_point(point: &'static str) {
    if fail::has_failpoints() && fail::eval(point, |_| ()).is_some() {
        kill(point);
    }
}

/// Reads the environment variable `FAILPOINTS`. A program built without failpoints ignores it.
///
/// # Errors
/// 22023 for an unknown point or an invalid action.
pub fn configure_from_environment() -> Result<()> {
    if !fail::has_failpoints() {
        return Ok(());
    }
    let settings = std::env::var("FAILPOINTS").unwrap_or_default();
    for setting in settings.split(';').map(str::trim).filter(|setting| !setting.is_empty()) {
        let (point, actions) =
            setting.split_once('=').ok_or_else(|| unusable(setting, "it has no action"))?;
        let is_error = actions.contains("return") && !actions.contains("return(kill)");
        let is_known = ERROR_POINTS.contains(&point) || FAULTS.contains(&point);
        if !is_known && (is_error || !KILL_POINTS.contains(&point)) {
            return Err(unusable(setting, "there is no such point, or no step there can fail"));
        }
        fail::cfg(point, actions).map_err(|why| unusable(setting, &why))?;
    }
    Ok(())
}

fn kill(point: &str) -> ! {
    eprintln!("failpoint \"{point}\": the process ends");
    std::process::abort()
}

fn unusable(setting: &str, why: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        SqlState::INVALID_PARAMETER_VALUE,
        format!("the failpoint \"{setting}\" cannot be set: {why}"),
    )
    .hint("points are listed in docs/testing.md")
}
