//! Source files as the tidy tests read them.
//!
//! A [`Source`] is one Rust file three times: as written, without comments and the insides of
//! literals, and without what is only compiled for tests. That is a scanner, not a parser; it
//! knows as much of the language as the rules in `tests/tidy.rs` and the count of the trusted
//! base need. Rules about crates are read from cargo itself, see [`crate::crates`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Folders that hold Rust code of ours.
const FOLDERS: [&str; 4] = ["trusted", "device", "service", "tools"];

/// The folder of the workspace.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// One Rust file of the workspace.
#[derive(Debug, Clone)]
pub struct Source {
    /// Path from the root of the workspace.
    pub path: String,
    /// As written.
    pub text: String,
    /// Comments and the insides of string and character literals blanked out; same lines.
    pub code: String,
    /// As `code`, and without what is only compiled for tests; empty for test files.
    pub product: String,
}

impl Source {
    fn new(path: String, text: String) -> Self {
        let code = without_comments(&text);
        let product = if in_test_folder(&path) {
            String::new()
        } else {
            without_tests(&code)
        };
        Self {
            path,
            text,
            code,
            product,
        }
    }

    /// Lines of the product that hold code.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.product
            .lines()
            .filter(|l| !l.trim().is_empty())
            .count()
    }

    /// Whether the file lies in the folder.
    #[must_use]
    pub fn is_in(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }
}

/// Every Rust file of the workspace, in order of path.
///
/// # Errors
/// The system's.
pub fn sources() -> io::Result<Vec<Source>> {
    let root = root();
    let mut paths = Vec::new();
    for folder in FOLDERS {
        collect(&root, Path::new(folder), &mut paths)?;
    }
    paths.sort();
    let mut sources = Vec::with_capacity(paths.len());
    for path in paths {
        match fs::read_to_string(root.join(&path)) {
            Ok(text) => sources.push(Source::new(path, text)),
            // An editor may replace a file while we look.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let tests: BTreeSet<String> = sources.iter().flat_map(test_files).collect();
    for source in &mut sources {
        if tests.contains(&source.path) {
            source.product.clear();
        }
    }
    Ok(sources)
}

/// Numbers of the lines in which `word` stands, as a whole word; `word` may hold punctuation.
pub fn lines_with<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.lines()
        .enumerate()
        .filter(move |(_, line)| count(line, word) > 0)
        .map(|(index, _)| index + 1)
}

/// How often `word` stands in `code`, as a whole word.
#[must_use]
pub fn count(code: &str, word: &str) -> usize {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .filter(|(at, _)| {
            let before = code[..*at].chars().next_back();
            let after = code[at + word.len()..].chars().next();
            let begins = !before.is_some_and(part) || !word.starts_with(part);
            let ends = !after.is_some_and(part) || !word.ends_with(part);
            begins && ends
        })
        .count()
}

/// Names of the test functions of a file.
#[must_use]
pub fn tests(source: &Source) -> Vec<String> {
    let mut names = Vec::new();
    let mut marked = false;
    for line in source.code.lines().map(str::trim) {
        marked |= line.starts_with("#[test]");
        let name = line
            .strip_prefix("fn ")
            .or_else(|| line.strip_prefix("async fn "));
        if let Some(name) = name {
            if marked {
                names.extend(name.split(['(', '<']).next().map(str::to_owned));
            }
            marked = false;
        }
    }
    names
}

fn in_test_folder(path: &str) -> bool {
    path.contains("/tests/") || path.contains("/benches/")
}

/// Files that a source includes for tests only: `#[cfg(test)] mod name;`.
fn test_files(source: &Source) -> Vec<String> {
    let (folder, name) = source.path.rsplit_once('/').unwrap_or(("", &source.path));
    let folder = match name {
        "lib.rs" | "main.rs" | "mod.rs" => folder.to_owned(),
        other => format!("{folder}/{}", other.trim_end_matches(".rs")),
    };
    let mut files = Vec::new();
    for (at, mark) in source.code.match_indices(TEST_MARK) {
        let item = source.code[at + mark.len()..].trim_start();
        let item = item.split(['{', ';']).next().unwrap_or_default();
        if let Some(name) = item.split("mod ").nth(1) {
            let name = name.trim();
            files.push(format!("{folder}/{name}.rs"));
            files.push(format!("{folder}/{name}/mod.rs"));
        }
    }
    files
}

fn collect(root: &Path, folder: &Path, paths: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() && entry.file_name() != "target" {
            collect(root, &path, paths)?;
        } else if kind.is_file() && path.extension().is_some_and(|e| e == "rs") {
            paths.push(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

const TEST_MARK: &str = "#[cfg(test)]";

/// Blanks out each item marked `#[cfg(test)]`, from the mark to the end of its block.
fn without_tests(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find(TEST_MARK) {
        let (before, marked) = rest.split_at(at);
        out.push_str(before);
        let end = item_end(marked);
        out.extend(marked[..end].chars().map(blank));
        rest = &marked[end..];
    }
    out.push_str(rest);
    out
}

/// Where the item that begins here ends: at its closing brace, or at a semicolon before any.
fn item_end(code: &str) -> usize {
    let mut depth = 0usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

fn blank(c: char) -> char {
    if c == '\n' { '\n' } else { ' ' }
}

/// Blanks out comments and the insides of literals.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = skipped(rest, out.chars().next_back());
        if length == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            out.extend(rest[..length].chars().map(blank));
            rest = &rest[length..];
        }
    }
    out
}

/// Length of the comment or literal that begins here; zero if none does.
fn skipped(rest: &str, before: Option<char>) -> usize {
    let whole = rest.len();
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(whole);
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    if let Some(inside) = rest.strip_prefix('"') {
        return 1 + quoted(inside, '"');
    }
    if let Some(inside) = rest.strip_prefix('\'') {
        // A lifetime has no closing quote after its first character.
        let mut chars = inside.chars();
        let escaped = chars.next() == Some('\\');
        return if escaped || chars.next() == Some('\'') {
            1 + quoted(inside, '\'')
        } else {
            0
        };
    }
    let raw = rest.trim_start_matches(['b', 'c']);
    let in_name = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if !in_name && rest.len() - raw.len() <= 1 && raw.starts_with('r') {
        let hashes = raw[1..].len() - raw[1..].trim_start_matches('#').len();
        if raw[1 + hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let begin = rest.len() - raw.len() + 2 + hashes;
            let end = rest[begin..].find(&close);
            return end.map_or(whole, |at| begin + at + close.len());
        }
    }
    0
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0usize;
    let bytes = rest.as_bytes();
    let mut at = 0;
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => {
                depth += 1;
                at += 2;
            }
            b"*/" => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    rest.len()
}

/// Length up to and with the closing quote.
fn quoted(inside: &str, close: char) -> usize {
    let mut escaped = false;
    for (at, c) in inside.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == close => return at + 1,
            _ => {}
        }
    }
    inside.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_not_code() {
        for (text, want) in [
            ("a // unsafe\nb", "a          \nb"),
            ("a /* x /* y */ */ b", "a                 b"),
            ("f(\"un\\\"safe\") + 1", "f(          ) + 1"),
            ("r#\"a\"b\"# c", "         c"),
            ("br\"x\" c", "      c"),
            ("for r in x", "for r in x"),
            ("&'a str, 'x', '\\'', b'\"'", "&'a str,    ,     , b   "),
        ] {
            assert_eq!(without_comments(text), want, "{text}");
        }
    }

    #[test]
    fn test_modules_are_not_product() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { {} } }\nfn c() {}\n#[cfg(test)]\nmod d;\n";
        let left = without_tests(code);
        assert_eq!(
            left.split_whitespace().collect::<String>(),
            "fna(){}fnc(){}"
        );
        assert_eq!(left.lines().count(), code.lines().count());
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(count("unsafe_code unsafe { not_unsafe }", "unsafe"), 1);
        assert_eq!(
            count("xstd::fs::write, std::fs::write(", "std::fs::write"),
            1
        );
        assert_eq!(count("todo!() mytodo!()", "todo!"), 1);
    }

    #[test]
    fn files_of_test_modules_are_found_beside_their_parent() {
        let source = |path: &str| {
            let text = "#[cfg(test)]\npub(crate) mod testing;\n#[cfg(test)]\nmod tests {}\n";
            test_files(&Source::new(path.to_owned(), text.to_owned()))
        };
        assert_eq!(source("a/src/lib.rs")[0], "a/src/testing.rs");
        assert_eq!(source("a/src/b.rs")[0], "a/src/b/testing.rs");
    }
}
