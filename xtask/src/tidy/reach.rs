//! Every Rust file is compiled by something: reachable by `mod` from the root of a target.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;

use super::{Complaint, File};

/// Rust files that no target reaches.
pub(super) fn unreachable(files: &[File]) -> anyhow::Result<Vec<Complaint>> {
    let rust: BTreeMap<&str, &File> =
        files.iter().filter(|file| file.is_rust()).map(|file| (file.path.as_str(), file)).collect();
    let mut reached = BTreeSet::new();
    let mut open = roots(files, &rust)?;
    while let Some(path) = open.pop() {
        let Some(file) = rust.get(path.as_str()) else { continue };
        if reached.insert(file.path.as_str()) {
            open.extend(children(file, &rust));
        }
    }
    let dead = rust.values().filter(|file| !reached.contains(file.path.as_str()));
    Ok(dead.map(|file| file.complaint(1, "no target compiles this file: declare it with `mod` or delete it")).collect())
}

/// Files that cargo hands to the compiler: those it finds by itself and those a manifest names.
fn roots(files: &[File], rust: &BTreeMap<&str, &File>) -> anyhow::Result<Vec<String>> {
    let mut roots = Vec::new();
    for manifest in files.iter().filter(|file| file.path.ends_with("Cargo.toml")) {
        let package = manifest.path.trim_end_matches("Cargo.toml");
        let parsed: toml::Table = manifest.text.parse().with_context(|| manifest.path.clone())?;
        if !parsed.contains_key("package") {
            continue;
        }
        for fixed in ["src/lib.rs", "src/main.rs", "build.rs"] {
            roots.push(format!("{package}{fixed}"));
        }
        for path in rust.keys().filter_map(|path| path.strip_prefix(package)) {
            let found = ["src/bin/", "tests/", "benches/", "examples/"].iter().any(|directory| {
                path.strip_prefix(directory).is_some_and(|rest| {
                    !rest.contains('/') || rest.split_once('/').is_some_and(|(_, r)| r == "main.rs")
                })
            });
            if found {
                roots.push(format!("{package}{path}"));
            }
        }
        for kind in ["lib", "bin", "test", "bench", "example", "package"] {
            let tables: Vec<&toml::Value> = match parsed.get(kind) {
                Some(toml::Value::Array(tables)) => tables.iter().collect(),
                Some(table) => vec![table],
                None => vec![],
            };
            let named = if kind == "package" { "build" } else { "path" };
            for path in tables.iter().filter_map(|table| table.get(named)?.as_str()) {
                roots.push(format!("{package}{path}"));
            }
        }
    }
    Ok(roots)
}

/// Files that `file` declares as modules or includes.
fn children(file: &File, rust: &BTreeMap<&str, &File>) -> Vec<String> {
    let (directory, name) = file.path.rsplit_once('/').map_or(("", file.path.as_str()), |(d, n)| (d, n));
    let is_root = matches!(name, "main.rs" | "lib.rs" | "mod.rs" | "build.rs")
        || ["/bin", "/tests", "/benches", "/examples"].iter().any(|end| directory.ends_with(end));
    let beside = |path: &str| if directory.is_empty() { path.to_owned() } else { format!("{directory}/{path}") };
    let stem = name.trim_end_matches(".rs");

    let mut children = Vec::new();
    let mut path_attribute = None;
    for line in file.text.lines().map(str::trim) {
        if let Some(path) = quoted_after(line, "#[path = ") {
            path_attribute = Some(path);
            continue;
        }
        if let Some(path) = quoted_after(line, "include!(") {
            children.push(beside(path));
        }
        let Some(module) = declared_module(line) else {
            if !line.starts_with('#') {
                path_attribute = None;
            }
            continue;
        };
        let candidates = match path_attribute.take() {
            Some(path) => vec![beside(path)],
            None if is_root => vec![beside(&format!("{module}.rs")), beside(&format!("{module}/mod.rs"))],
            None => vec![beside(&format!("{stem}/{module}.rs")), beside(&format!("{stem}/{module}/mod.rs"))],
        };
        children.extend(candidates.into_iter().filter(|path| rust.contains_key(path.as_str())));
    }
    children
}

/// The name in `mod name;`, with any visibility.
fn declared_module(line: &str) -> Option<&str> {
    let mut rest = line.split("//").next()?.trim();
    if let Some(after) = rest.strip_prefix("pub") {
        rest = after.trim_start();
        if rest.starts_with('(') {
            rest = rest.split_once(')')?.1.trim_start();
        }
    }
    rest.strip_prefix("mod ")?.strip_suffix(';').map(str::trim)
}

fn quoted_after<'a>(line: &'a str, before: &str) -> Option<&'a str> {
    line.split_once(before)?.1.strip_prefix('"')?.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_file_without_mod_is_found_and_one_with_mod_is_not() {
        let files = [
            file("a/Cargo.toml", "[package]\nname = \"a\"\n[[bin]]\nname = \"x\"\npath = \"odd/x.rs\"\n"),
            file("a/src/lib.rs", "pub(crate) mod used;\n#[path = \"elsewhere.rs\"]\nmod third;\n"),
            file("a/src/used.rs", "mod inner; // with a word\n"),
            file("a/src/used/inner.rs", ""),
            file("a/src/elsewhere.rs", ""),
            file("a/src/dead.rs", ""),
            file("a/src/bin/tool.rs", ""),
            file("a/tests/it.rs", "mod part;\n"),
            file("a/tests/part.rs", ""),
            file("a/odd/x.rs", ""),
        ];
        let dead: Vec<String> = unreachable(&files).unwrap().into_iter().map(|complaint| complaint.file).collect();
        assert_eq!(dead, ["a/src/dead.rs"]);
    }
}
