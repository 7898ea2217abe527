//! What can be seen in the text of the SQL: SQLite takes `$2` for a name and numbers names as it meets them, so a
//! statement for both databases must mention its parameters in the order in which they are bound.

use std::path::{Path, PathBuf};

#[test]
fn parameters_come_in_order() {
    let mut sources = Vec::new();
    rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut sources);
    let mut wrong = Vec::new();
    for path in &sources {
        let source = std::fs::read_to_string(path).expect("a source file");
        // every second part is inside quotes; a text with escaped quotes is cut, which only makes its parts shorter
        for text in source.split('"').skip(1) {
            let met = first_mentions(text);
            if !met.is_sorted() {
                wrong.push(format!("{}: {met:?} in {}", path.display(), text.trim()));
            }
        }
    }
    assert!(sources.len() > 50, "the sources are found: {sources:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The numbers of `$1`, `$2` … in a text, each where it is met first.
fn first_mentions(text: &str) -> Vec<u32> {
    let mut met = Vec::new();
    for part in text.split('$').skip(1) {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        match part[..digits].parse() {
            Ok(number) if !met.contains(&number) => met.push(number),
            _ => {}
        }
    }
    met
}

#[test]
fn mentions_are_found() {
    assert_eq!(first_mentions("a = $2 AND b = $1 AND c = $2"), [2, 1]);
    assert_eq!(first_mentions("macro $conn costs 1$ or $10"), [10]);
}
