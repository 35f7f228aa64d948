//! Documents that say what the sources say: each is compared with its origin.

use std::collections::BTreeSet;
use std::fs;

use sim::{callers, tidy};

use super::none;

#[test]
fn the_caller_table_is_written_from_the_endpoint_types() {
    let (written, wanted) = (read("docs/callers.md"), callers::document());
    let (have, want): (BTreeSet<_>, BTreeSet<_>) =
        (written.lines().collect(), wanted.lines().collect());
    let gone = have.difference(&want).map(|line| format!("- {line}"));
    let new = want.difference(&have).map(|line| format!("+ {line}"));
    none(
        "docs/callers.md differs: make callers",
        &gone.chain(new).collect::<Vec<_>>(),
    );
    assert!(
        written == wanted,
        "docs/callers.md differs in order: make callers"
    );
}

#[test]
fn every_endpoint_is_in_the_caller_table() {
    let listed: BTreeSet<(String, String)> = callers::rows()
        .iter()
        .map(|row| (row.name.0.to_owned(), row.name.1.to_owned()))
        .collect();
    let mut declared = BTreeSet::new();
    for source in tidy::sources().unwrap() {
        let Some(file) = source.path.strip_prefix("trusted/contract/src/api/") else {
            continue;
        };
        for call in source.code.split("endpoint!(").skip(1) {
            let name = call.trim_start().split(':').next().unwrap_or_default();
            declared.insert((file.trim_end_matches(".rs").to_owned(), name.to_owned()));
        }
    }
    assert_eq!(
        listed, declared,
        "tools/sim/src/callers.rs and the contract differ"
    );
}

#[test]
fn wardens_capabilities_are_those_of_the_document() {
    let text = read("docs/privileges.md");
    let constants = warden::privileges::KEPT
        .iter()
        .chain([&warden::privileges::AT_THE_END]);
    let wanted: BTreeSet<String> = constants
        .flat_map(|(set, why)| {
            set.iter_names()
                .map(move |(name, _)| format!("| `CAP_{name}` | {why} |"))
        })
        .collect();
    let written: BTreeSet<String> = text
        .lines()
        .filter(|line| line.starts_with("| `CAP_"))
        .map(str::to_owned)
        .collect();
    assert_eq!(
        written, wanted,
        "docs/privileges.md and warden::privileges differ"
    );
}

#[test]
fn each_invariant_names_a_test_that_exists() {
    let text = read("ARCHITECTURE.md");
    let section = text.split("## Invariants").nth(1).unwrap();
    let rows: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(1)
        .collect();
    let tests: BTreeSet<String> = tidy::sources()
        .unwrap()
        .iter()
        .flat_map(tidy::tests)
        .collect();
    let mut findings = Vec::new();
    for row in &rows {
        let proof = row
            .trim_end_matches(" |")
            .rsplit('|')
            .next()
            .unwrap_or_default();
        let names: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        if names.is_empty() || names.iter().any(|name| !tests.contains(*name)) {
            findings.push((*row).to_owned());
        }
    }
    assert!(rows.len() > 8, "the table is not there");
    none("no such test", &findings);
}

#[test]
fn links_lead_somewhere() {
    let root = tidy::root();
    let mut findings = Vec::new();
    for path in documents() {
        let folder = root.join(&path);
        let folder = folder.parent().unwrap();
        for target in read(&path)
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains(':') && !folder.join(file).exists() {
                findings.push(format!("{path}: {target}"));
            }
        }
    }
    none("links into nothing", &findings);
}

#[test]
fn decisions_are_pages() {
    for path in documents()
        .iter()
        .filter(|path| path.starts_with("docs/decisions/"))
    {
        let text = read(path);
        for heading in ["# ", "## Context", "## Choice", "## Consequence"] {
            assert!(
                text.lines().any(|line| line.starts_with(heading)),
                "{path}: {heading}"
            );
        }
        assert!(text.lines().count() <= 60, "{path} is more than a page");
    }
    assert!(
        read("docs/adding-an-endpoint.md").lines().count() < 15,
        "the design has a fault"
    );
}

#[test]
fn each_recipe_has_its_line_of_help() {
    let text = read("Makefile");
    let phony: Vec<&str> = text
        .lines()
        .filter_map(|l| l.strip_prefix(".PHONY: "))
        .collect();
    let helped: Vec<&str> = text
        .lines()
        .filter(|line| line.contains(": ## "))
        .filter_map(|line| line.split(':').next())
        .collect();
    assert_eq!(phony, helped);
}

/// Our documents, by path from the root.
fn documents() -> Vec<String> {
    let root = tidy::root();
    let mut found = Vec::new();
    for folder in ["", "docs/", "docs/decisions/"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            if name.ends_with(".md") {
                found.push(format!("{folder}{name}"));
            }
        }
    }
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(tidy::root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}
