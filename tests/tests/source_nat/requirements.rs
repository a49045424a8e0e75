//! The list of requirements names tests that exist.

use std::path::Path;

/// Every Rust source below `folder`, in one string.
fn sources(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let texts = paths.map(|path| match path.extension() {
        _ if path.is_dir() => sources(&path),
        Some(extension) if extension == "rs" => std::fs::read_to_string(&path).expect("a source"),
        _ => String::new(),
    });
    texts.collect()
}

#[test]
fn every_test_that_the_list_of_requirements_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let list = std::fs::read_to_string(root.join("dataplane/src/nat/requirements.md"));
    let tests = sources(&root.join("tests/tests")) + &sources(&root.join("dataplane/src"));
    let list = list.expect("the list of requirements");
    let words = list.split('`').skip(1).step_by(2);
    // Names of tests are sentences.
    let names: Vec<_> = words.filter(|word| word.matches('_').count() >= 3).collect();
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        assert!(tests.contains(&format!("fn {name}(")), "there is no test {name}");
    }
}
