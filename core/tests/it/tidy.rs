//! Rules that the compiler does not check: which module may use which, how long files and functions may be.

use std::fs;
use std::path::{Path, PathBuf};

/// The core's modules. Each may use only modules before it.
const ORDER: [&str; 23] = [
    "ids",
    "error",
    "failpoint",
    "config",
    "clock",
    "access",
    "casts",
    "types",
    "platform",
    "storage",
    "cold_storage",
    "schema_registry",
    "change_log",
    "hot_tier",
    "commit",
    "tables",
    "maintenance",
    "live_query",
    "jobs",
    "system_tables",
    "app_context",
    "sql",
    "database",
];

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn is_test(&self) -> bool {
        self.path.components().any(|part| part.as_os_str() == "tests")
            || self.path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"))
    }

    /// The lines before the file's tests.
    fn body(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.text.find("#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        self.text.get(..end).unwrap_or_default().lines().enumerate().map(|(number, line)| (number + 1, line))
    }
}

fn sources(crate_dir: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(crate_dir).join("src");
    let mut folders = vec![root];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                sources.push(Source { path, text });
            }
        }
    }
    assert!(!sources.is_empty());
    sources
}

fn all_sources() -> Vec<Source> {
    ["core", "proto", "flight-server", "benches"].into_iter().flat_map(sources).collect()
}

fn report(broken: &[String]) {
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn a_module_names_only_what_stands_before_it() {
    let place = |module: &str| ORDER.iter().position(|name| *name == module);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join("core").join("src");
    let mut broken = Vec::new();
    for source in sources("core").iter().filter(|source| !source.is_test()) {
        let inside = source.path.strip_prefix(&root).unwrap();
        let module = inside.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned();
        let Some(own) = place(&module) else { continue };
        for (number, line) in source.body().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for named in line.split("crate::").skip(1) {
                let name: String =
                    named.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                if place(&name).is_some_and(|place| place > own) {
                    broken.push(format!("{}:{number}: \"{module}\" names \"{name}\"", inside.display()));
                }
            }
        }
    }
    report(&broken);
}

#[test]
fn rocksdb_time_and_tonic_stay_where_they_belong() {
    let mut broken = Vec::new();
    for source in sources("core") {
        for (number, line) in source.body().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            // `pub use rocksdb::` in `storage/mod.rs` names our own module.
            let own_module = source.path.ends_with("storage/mod.rs") && line.starts_with("pub use rocksdb::");
            let misplaced =
                (line.contains("rocksdb::") && !own_module && !source.path.ends_with("storage/rocksdb.rs"))
                    || (line.contains("SystemTime::now") && !source.path.ends_with("clock.rs"))
                    || line.contains("tonic::");
            if misplaced {
                broken.push(format!("{}:{number}: {line}", source.path.display()));
            }
        }
    }
    report(&broken);
}

#[test]
fn every_file_says_what_it_is_for_and_can_be_read_in_one_go() {
    let mut broken = Vec::new();
    for source in all_sources() {
        let lines = source.body().count();
        if !source.text.starts_with("//!") {
            broken.push(format!("{}: does not open with //!", source.path.display()));
        }
        if lines > FILE_LINES_MAX {
            broken.push(format!("{}: {lines} lines, {FILE_LINES_MAX} are the most", source.path.display()));
        }
    }
    report(&broken);
}

#[test]
fn functions_fit_a_screen() {
    let mut broken = Vec::new();
    for source in all_sources().iter().filter(|source| !source.is_test()) {
        let mut open: Option<(usize, usize)> = None;
        for (number, line) in source.body() {
            let indent = line.len() - line.trim_start().len();
            let starts = ["fn ", "pub fn ", "async fn ", "pub async fn ", "pub(crate) fn ", "pub(super) fn "]
                .iter()
                .any(|start| line.trim_start().starts_with(start));
            if open.is_none() && starts && !line.trim_end().ends_with(';') {
                open = Some((number, indent));
            }
            if let Some((start, at)) = open
                && indent == at
                && line.trim_start().starts_with('}')
            {
                if number - start >= FUNCTION_LINES_MAX {
                    broken.push(format!("{}:{start}: {} lines", source.path.display(), number - start + 1));
                }
                open = None;
            }
        }
    }
    report(&broken);
}

#[test]
fn every_failpoint_is_listed_and_stands_in_one_place() {
    let mut found: Vec<String> = Vec::new();
    for source in sources("core").iter().filter(|source| !source.path.ends_with("failpoint.rs")) {
        for call in ["failpoint::step(\"", "failpoint::moment(\""] {
            let points = source.text.split(call).skip(1).filter_map(|rest| rest.split('"').next());
            found.extend(points.map(str::to_owned));
        }
    }
    found.sort();
    let mut listed = [kalamdb_core::failpoint::CAN_FAIL, kalamdb_core::failpoint::CAN_END].concat();
    listed.sort_unstable();
    assert_eq!(found, listed);
}

/// Returns the items of a Markdown list, each with its continuation lines.
fn list_items(text: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("- "), line.strip_prefix("  ")) {
            (Some(item), _) => items.push(item.to_owned()),
            (None, Some(more)) => items.last_mut().unwrap().push_str(&format!(" {more}")),
            (None, None) => {}
        }
    }
    items
}

#[test]
fn every_difference_from_postgresql_has_its_records() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let docs = fs::read_to_string(root.join("docs/sql.md")).unwrap();
    let (_, section) = docs.split_once("\n## Differences from PostgreSQL\n").unwrap();
    let items = list_items(section.split("\n## ").next().unwrap());
    let path = root.join("flight-server/tests/slt/sql/differences.slt");
    let records = fs::read_to_string(path).unwrap();
    // The first comment describes the file itself.
    let parts: Vec<&str> = records.split("\n# ").skip(1).collect();
    let mut broken = Vec::new();
    for (item, part) in items.iter().zip(&parts) {
        let (comment, records) = part.split_once('\n').unwrap();
        let has_record = records.contains("\nquery ") || records.contains("\nstatement ");
        if comment.len() < 12 || !item.starts_with(comment) || !has_record {
            broken.push(format!("docs/sql.md: \"{item}\"; differences.slt: \"{comment}\""));
        }
    }
    report(&broken);
    assert!(items.len() >= 30 && items.len() == parts.len(), "{} lines, {} parts", items.len(), parts.len());
}
