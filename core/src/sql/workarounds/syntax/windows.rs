//! Named windows. The planner ignores the base window of `OVER (w ...)`, and does not find the window of
//! `OVER w` in a subquery that becomes a join. So each window is written out where it is named.

use datafusion::sql::sqlparser::ast::{
    Function, Ident, NamedWindowExpr, Select, WindowFrame, WindowFrameBound, WindowFrameUnits, WindowSpec,
    WindowType,
};

use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::sql::syntax_tree::fold;

/// The windows of a SELECT, each written out.
pub(super) type Windows = Vec<(String, WindowSpec)>;

/// Returns the windows that a SELECT names.
///
/// # Errors
/// 42704 for an unknown base window, 42P20 for a window defined twice or one that overrides its base window.
pub(super) fn of(select: &Select) -> Result<Windows> {
    let mut known = Windows::new();
    for definition in &select.named_window {
        let name = fold(&definition.0);
        if known.iter().any(|(other, _)| *other == name) {
            return Err(wrong(format!("window \"{name}\" is defined twice")));
        }
        let spec = match &definition.1 {
            NamedWindowExpr::NamedWindow(other) => find(other, &known)?.clone(),
            NamedWindowExpr::WindowSpec(spec) => with_base(spec.clone(), &known)?,
        };
        known.push((name, spec));
    }
    Ok(known)
}

/// Writes out the window of a function.
///
/// # Errors
/// As [`of`].
pub(super) fn write_out(function: &mut Function, known: &Windows) -> Result<()> {
    match function.over.take() {
        Some(WindowType::NamedWindow(name)) => {
            function.over = Some(WindowType::WindowSpec(find(&name, known)?.clone()));
        }
        Some(WindowType::WindowSpec(spec)) => {
            function.over = Some(WindowType::WindowSpec(with_base(spec, known)?));
        }
        None => {}
    }
    // Without a frame, the planner counts rows instead of peers if it wrongly takes the order for unique.
    if let Some(WindowType::WindowSpec(spec)) = &mut function.over
        && !spec.order_by.is_empty()
    {
        spec.window_frame.get_or_insert(WindowFrame {
            units: WindowFrameUnits::Range,
            start_bound: WindowFrameBound::Preceding(None),
            end_bound: Some(WindowFrameBound::CurrentRow),
        });
    }
    Ok(())
}

fn find<'a>(name: &Ident, known: &'a Windows) -> Result<&'a WindowSpec> {
    let name = fold(name);
    known.iter().find(|(other, _)| *other == name).map(|(_, spec)| spec).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidSql,
            SqlState::UNDEFINED_OBJECT,
            format!("window \"{name}\" does not exist"),
        )
        .hint("define it in the WINDOW clause of the same SELECT")
    })
}

/// Completes a window from its base: takes over PARTITION BY and, unless it has one itself, ORDER BY.
fn with_base(mut spec: WindowSpec, known: &Windows) -> Result<WindowSpec> {
    let Some(name) = spec.window_name.take() else { return Ok(spec) };
    let base = find(&name, known)?;
    let name = fold(&name);
    if !spec.partition_by.is_empty() {
        return Err(wrong(format!("PARTITION BY of window \"{name}\" cannot be overridden")));
    }
    if base.window_frame.is_some() {
        return Err(wrong(format!("window \"{name}\" cannot be copied because it has a frame")));
    }
    if !spec.order_by.is_empty() && !base.order_by.is_empty() {
        return Err(wrong(format!("ORDER BY of window \"{name}\" cannot be overridden")));
    }
    spec.partition_by.clone_from(&base.partition_by);
    if spec.order_by.is_empty() {
        spec.order_by.clone_from(&base.order_by);
    }
    Ok(spec)
}

fn wrong(message: String) -> Error {
    Error::new(ErrorKind::InvalidSql, SqlState::WINDOWING, message)
}
