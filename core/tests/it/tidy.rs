//! Rules that the compiler does not check: which file may use which, how long lines, functions and files may
//! be, which names in the documentation must exist.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::Table;

const PACKAGES: [&str; 5] = ["core", "proto", "flight-server", "benches", "client-examples/rust"];
/// Dependencies that only generated code names.
const GENERATED: [(&str, &str); 1] = [("proto", "tonic-prost")];
const FILE_LINES_MAX: usize = 500;
const TEST_FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 110;
/// Functions that each part of the code tour may name.
const TOUR_STOPS_MAX: usize = 10;

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn is_test(&self) -> bool {
        self.path.components().any(|part| part.as_os_str() == "tests")
            || self.path.file_stem().is_some_and(|stem| stem == "tests")
    }

    /// The lines before the file's tests.
    fn body(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.text.find("#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        self.text.get(..end).unwrap_or_default().lines().enumerate().map(|(number, line)| (number + 1, line))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the Rust files of a folder of the repository; none if the folder is not there.
fn sources(folder: &str) -> Vec<Source> {
    let mut folders = vec![root().join(folder)];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root()).unwrap().to_owned();
                sources.push(Source { path, text });
            }
        }
    }
    sources
}

fn all_sources() -> Vec<Source> {
    let sources: Vec<Source> = PACKAGES
        .iter()
        .flat_map(|package| ["src", "tests"].map(|folder| format!("{package}/{folder}")))
        .flat_map(|folder| sources(&folder))
        .collect();
    assert!(sources.len() > 300, "{} files", sources.len());
    sources
}

fn report(broken: &[String]) {
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn an_entry_of_a_folder_names_only_what_stands_below_it() {
    let output = Command::new("python3").arg(root().join(".ci/structure")).arg("--check").output();
    let output = output.expect("python3, which runs .ci/structure");
    let broken = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "\n{broken}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn rocksdb_time_blocking_work_and_tonic_stay_where_they_belong() {
    let mut broken = Vec::new();
    for source in sources("core/src") {
        for (number, line) in source.body().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            // `pub use rocksdb::` in `storage/mod.rs` names our own module.
            let own_module = source.path.ends_with("storage/mod.rs") && line.starts_with("pub use rocksdb::");
            let may_use_rocksdb = own_module || source.path.starts_with("core/src/storage/rocksdb");
            let misplaced = (line.contains("rocksdb::") && !may_use_rocksdb)
                || (line.contains("SystemTime::now") && !source.path.ends_with("clock.rs"))
                || (line.contains("spawn_blocking") && !source.path.ends_with("storage/mod.rs"))
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
        let lines_max = if source.is_test() { TEST_FILE_LINES_MAX } else { FILE_LINES_MAX };
        if !source.text.starts_with("//!") {
            broken.push(format!("{}: does not open with //!", source.path.display()));
        }
        if lines > lines_max {
            broken.push(format!("{}: {lines} lines, {lines_max} are the most", source.path.display()));
        }
    }
    report(&broken);
}

#[test]
fn lines_are_as_short_as_the_formatter_makes_code() {
    let mut broken = Vec::new();
    for source in all_sources() {
        // Tests may have long lines of data.
        let is_long = |line: &&str| line.chars().count() > COLUMNS_MAX;
        let own = source.body().filter(|(_, line)| !source.is_test() || line.trim_start().starts_with("//"));
        for (number, line) in own.filter(|(_, line)| is_long(line)) {
            broken.push(format!("{}:{number}: {} columns", source.path.display(), line.chars().count()));
        }
    }
    report(&broken);
}

fn begins_function(line: &str) -> bool {
    let line = match line.strip_prefix("pub(").and_then(|rest| rest.split_once(") ")) {
        Some((_, rest)) => rest,
        None => line.strip_prefix("pub ").unwrap_or(line),
    };
    let line = line.strip_prefix("const ").unwrap_or(line);
    line.strip_prefix("async ").unwrap_or(line).starts_with("fn ")
}

#[test]
fn functions_fit_a_screen() {
    let mut broken = Vec::new();
    for source in all_sources().iter().filter(|source| !source.is_test()) {
        let mut open: Option<(usize, usize)> = None;
        for (number, line) in source.body() {
            let indent = line.len() - line.trim_start().len();
            if open.is_none() && begins_function(line.trim_start()) && !line.trim_end().ends_with(';') {
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
    for source in sources("core/src").iter().filter(|source| !source.path.ends_with("failpoint.rs")) {
        for call in ["failpoint::step(\"", "failpoint::kill_point(\""] {
            let points = source.text.split(call).skip(1).filter_map(|rest| rest.split('"').next());
            found.extend(points.map(str::to_owned));
        }
    }
    found.sort();
    let mut listed = [kalamdb_core::failpoint::ERROR_POINTS, kalamdb_core::failpoint::KILL_POINTS].concat();
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
    let docs = read("docs/sql.md");
    let (_, section) = docs.split_once("\n## Differences from PostgreSQL\n").unwrap();
    let items = list_items(section.split("\n## ").next().unwrap());
    let records = read("flight-server/tests/slt/sql/differences.slt");
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

#[test]
fn the_documentation_names_files_that_exist() {
    let mut pages =
        ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"].map(str::to_owned).to_vec();
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            pages.push(format!("docs/{name}"));
        }
    }
    let folders =
        ["benches/", "client-examples/", "core/", "docs/", "flight-server/", "packaging/", "proto/", ".ci/"];
    let is_path = |span: &&str| {
        folders.iter().any(|folder| span.starts_with(folder))
            && span.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
    };
    let mut broken = Vec::new();
    for page in pages {
        let text = read(&page);
        for path in text.split('`').skip(1).step_by(2).filter(is_path) {
            if !root().join(path).exists() {
                broken.push(format!("{page}: there is no {path}"));
            }
        }
    }
    report(&broken);
}

/// Returns the path and the function at the start of each item of a numbered list.
fn tour_stops(section: &str) -> Vec<(&str, &str)> {
    let items = section.lines().map(|line| line.trim_start_matches(|c: char| c.is_ascii_digit()));
    let items = items.filter_map(|item| item.strip_prefix(". `"));
    items.map(|item| item.split('`').next().unwrap().split_once("::").unwrap()).collect()
}

#[test]
fn the_code_tour_names_functions_that_exist() {
    let page = read("docs/code-tour.md");
    let mut broken = Vec::new();
    for section in page.split("\n## ").skip(1) {
        let title = section.lines().next().unwrap();
        let stops = tour_stops(section);
        if stops.is_empty() || stops.len() > TOUR_STOPS_MAX {
            broken.push(format!("{title}: {} functions, 1 to {TOUR_STOPS_MAX} are right", stops.len()));
        }
        for (path, function) in stops {
            let text = fs::read_to_string(root().join(path)).unwrap_or_default();
            let found = ['(', '<'].iter().any(|next| text.contains(&format!("fn {function}{next}")));
            if !found {
                broken.push(format!("{title}: there is no {path}::{function}"));
            }
        }
    }
    report(&broken);
}

/// Returns the names of the dependencies in a section of a manifest, also of those for one platform.
fn dependencies(manifest: &Table, section: &str) -> Vec<String> {
    let platforms = manifest.get("target").and_then(|target| target.as_table()).into_iter().flatten();
    let tables = platforms.filter_map(|(_, table)| table.as_table()).chain([manifest]);
    let sections = tables.filter_map(|table| table.get(section)?.as_table());
    sections.flat_map(|section| section.keys().cloned()).collect()
}

#[test]
fn every_dependency_is_used_where_its_package_says() {
    let manifest: Table = read("Cargo.toml").parse().unwrap();
    let workspace = manifest["workspace"].as_table().unwrap();
    let mut unused: HashSet<String> = dependencies(workspace, "dependencies").into_iter().collect();
    let mut broken = Vec::new();
    for package in PACKAGES {
        let manifest: Table = read(&format!("{package}/Cargo.toml")).parse().unwrap();
        let program = sources(&format!("{package}/src"));
        let tests = sources(&format!("{package}/tests"));
        let build = fs::read_to_string(root().join(package).join("build.rs")).unwrap_or_default();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for dependency in dependencies(&manifest, section) {
                unused.remove(&dependency);
                let library =
                    if dependency == "md-5" { "md5".to_owned() } else { dependency.replace('-', "_") };
                let path = format!("{library}::");
                let names = |sources: &[Source]| sources.iter().any(|source| source.text.contains(&path));
                let is_used = match section {
                    "dependencies" => names(&program) || GENERATED.contains(&(package, dependency.as_str())),
                    "dev-dependencies" => names(&program) || names(&tests),
                    _ => build.contains(&path),
                };
                if !is_used {
                    broken
                        .push(format!("{package}/Cargo.toml: {section}: \"{dependency}\" is not used there"));
                }
            }
        }
    }
    broken.extend(unused.iter().map(|dependency| format!("Cargo.toml: no package uses \"{dependency}\"")));
    report(&broken);
}
