//! The interactive mode of `kalamdb sql`: statements of several lines, ended by a semicolon, with history.

use std::path::PathBuf;

use arrow_flight::sql::client::FlightSqlServiceClient;
use kalamdb_core::sql::split_statements;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tokio::runtime::Runtime;

use super::client::AuthorizedChannel;
use super::statement::run_statement;
use super::{Failure, OutputStyle};

const HELP: &str = "A statement ends with a semicolon and may span lines.
  \\d        lists the tables
  \\d NAME   lists the columns of a table
  \\?        shows this help
  \\q        quits (also Ctrl-D); Ctrl-C cancels the statement or the input";

/// Reads and runs statements until the input ends.
pub(super) fn run(
    runtime: &Runtime,
    mut client: FlightSqlServiceClient<AuthorizedChannel>,
    style: OutputStyle,
) -> Result<(), Failure> {
    let mut editor = DefaultEditor::new()?;
    let history = history_file();
    if let Some(path) = &history {
        // The first session has no history file.
        let _ = editor.load_history(path);
    }
    eprintln!("kalamdb {}; \\? for help", env!("CARGO_PKG_VERSION"));
    let mut text = String::new();
    loop {
        let prompt = if text.is_empty() { "kalamdb> " } else { "      -> " };
        match editor.readline(prompt) {
            Ok(line) => {
                // `\q` works even inside an open quote.
                if is_end(&line) && (text.is_empty() || line.trim_start().starts_with('\\')) {
                    break;
                }
                text.push_str(&line);
                text.push('\n');
            }
            Err(ReadlineError::Interrupted) => {
                text.clear();
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        }
        let Some(statements) = complete(&text) else { continue };
        let entry = text.trim().to_owned();
        text.clear();
        if entry.is_empty() {
            continue;
        }
        editor.add_history_entry(&entry)?;
        for statement in statements {
            if let Err(failure) =
                runtime.block_on(run_statement(&mut client, &statement, style, interrupted()))
            {
                eprintln!("{}", super::describe(failure.as_ref()));
                break;
            }
        }
    }
    if let Some(path) = &history
        && let Err(error) = editor.save_history(path)
    {
        eprintln!("cannot save the history to \"{}\": {error}", path.display());
    }
    Ok(())
}

/// Completes at Ctrl-C.
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without the signal nothing interrupts the statement.
        std::future::pending::<()>().await;
    }
}

fn is_end(line: &str) -> bool {
    matches!(line.trim().trim_end_matches(';').to_ascii_lowercase().as_str(), "\\q" | "exit" | "quit")
}

/// Returns the statements of `text`, or `None` while the last one is incomplete.
fn complete(text: &str) -> Option<Vec<String>> {
    let trimmed = text.trim();
    if let Some(command) = trimmed.strip_prefix('\\') {
        return Some(match command.split_once(char::is_whitespace) {
            None if command == "d" => vec!["SHOW TABLES".to_owned()],
            Some(("d", name)) => vec![format!("DESCRIBE {}", name.trim())],
            _ => {
                eprintln!("{HELP}");
                Vec::new()
            }
        });
    }
    let split = split_statements(text);
    split.rest.is_empty().then_some(split.statements)
}

fn history_file() -> Option<PathBuf> {
    std::env::home_dir().map(|home| home.join(".kalamdb_history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_complete_at_its_own_semicolon() {
        for open in ["SELECT 1", "SELECT ';", "SELECT ';'", "SELECT 1 -- ;", "SELECT 1 /* ;", "SELECT \"a;"] {
            assert_eq!(complete(open), None, "{open}");
        }
        assert_eq!(complete("SELECT 1;\n").map(|statements| statements.len()), Some(1));
        assert_eq!(complete("SELECT ';';\nSELECT 2;").map(|statements| statements.len()), Some(2));
    }

    #[test]
    fn short_commands_are_statements() {
        assert_eq!(complete("\\d"), Some(vec!["SHOW TABLES".to_owned()]));
        assert_eq!(complete("\\d app.notes\n"), Some(vec!["DESCRIBE app.notes".to_owned()]));
        assert!(is_end("exit;") && is_end("\\q") && !is_end("SELECT 1;"));
    }
}
