//! Rust source with comments and literals blanked out, so that words in prose are no code.

/// `source` with the text of comments, strings and characters replaced by spaces. Line breaks stay,
/// so line numbers do too.
pub fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let rest = bytes.get(at..).unwrap_or_default();
        let length = blank_length(rest, at.checked_sub(1).and_then(|before| bytes.get(before)));
        if length == 0 {
            code.push(char::from(byte));
            at += 1;
            continue;
        }
        for &byte in rest.iter().take(length) {
            code.push(if byte == b'\n' { '\n' } else { ' ' });
        }
        at += length;
    }
    code
}

/// How many bytes from here are a comment or a literal; 0 when code goes on.
fn blank_length(rest: &[u8], before: Option<&u8>) -> usize {
    match rest {
        [b'/', b'/', ..] => rest.iter().take_while(|byte| **byte != b'\n').count(),
        [b'/', b'*', ..] => block_comment(rest),
        [b'"', ..] => quoted(rest, b'"'),
        // `r"`, `r#"`: a raw string, unless the letter ends an identifier; `br"` comes here too.
        [b'r', b'"' | b'#', ..] if before.is_none_or(|byte| !is_word(*byte) || *byte == b'b') => {
            raw_string(rest)
        }
        [b'\'', b'\\', ..] => quoted(rest, b'\''),
        // A character, not a lifetime, when the quote closes after one character.
        [b'\'', ..] => character(rest),
        _ => 0,
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Block comments nest.
fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match rest.get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while let Some(&byte) = rest.get(at) {
        match byte {
            b'\\' => at += 2,
            _ if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string(rest: &[u8]) -> usize {
    let hashes = rest.iter().skip(1).take_while(|byte| **byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0; // `r#type`, a raw identifier
    }
    let end: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = 2 + hashes;
    let found = rest.get(body..).unwrap_or_default().windows(end.len()).position(|w| w == end);
    found.map_or(rest.len(), |position| body + position + end.len())
}

fn character(rest: &[u8]) -> usize {
    let text = String::from_utf8_lossy(rest.get(1..rest.len().min(6)).unwrap_or_default());
    let width = text.chars().next().map_or(0, char::len_utf8);
    if rest.get(1 + width) == Some(&b'\'') { width + 2 } else { 0 }
}

/// The lines (from 1) of `code` that hold `word` with no letter, digit or `_` beside it.
pub fn lines_with_word(code: &str, word: &str) -> Vec<usize> {
    let holds = |line: &str| {
        line.match_indices(word).any(|(start, _)| {
            let byte = |at: Option<usize>| at.and_then(|at| line.as_bytes().get(at)).copied();
            !byte(start.checked_sub(1)).is_some_and(is_word)
                && !byte(Some(start + word.len())).is_some_and(is_word)
        })
    };
    let numbered = code.lines().zip(1..);
    numbered.filter(|(line, _)| holds(line)).map(|(_, number)| number).collect()
}

/// `code` without its test modules: from a `#[cfg(test)]`, or a condition that includes `test`,
/// over a `mod` to the end of the file, where this project keeps tests.
pub fn without_tests(code: &str) -> &str {
    for (start, _) in code.match_indices("#[cfg(") {
        let rest = code.get(start..).unwrap_or_default();
        let (condition, after) = rest.split_once(")]").unwrap_or((rest, ""));
        let is_module = ["mod ", "pub mod ", "pub(crate) mod ", "#[path"]
            .iter()
            .any(|opening| after.trim_start().starts_with(opening));
        if is_module && !lines_with_word(condition, "test").is_empty() {
            return code.get(..start).unwrap_or_default();
        }
    }
    code
}

#[test]
fn comments_and_literals_are_no_code() {
    let source = r####"
        // unsafe
        /* unsafe /* unsafe */ unsafe */
        let a = "unsafe \" unsafe"; let b = r#"unsafe " unsafe"#; let c = b"unsafe";
        let d = '"'; let e: &'static str = "unsafe"; let f = '\''; let g = br"unsafe";
        let unsafe_name = r#type;
    "####;
    let code = code_only(source);
    assert!(lines_with_word(&code, "unsafe").is_empty(), "{code}");
    assert!(code.contains("&'static str") && code.contains("unsafe_name = r#type"), "{code}");
    assert_eq!(code.lines().count(), source.lines().count());
}

#[test]
fn code_beside_literals_is_seen() {
    let code =
        code_only("let a = 'x';\nlet b = '\"'; unsafe { c }\nfn d<'a>() {} unsafe fn e() {}");
    assert_eq!(lines_with_word(&code, "unsafe"), [2, 3]);
}

#[test]
fn test_modules_are_left_out_and_test_imports_are_not() {
    assert_eq!(without_tests("a\n#[cfg(test)]\nmod tests { b }"), "a\n");
    assert_eq!(without_tests("a\n#[cfg(all(test, not(loom)))]\nmod tests { b }"), "a\n");
    assert_eq!(without_tests("#[cfg(test)]\nuse b;\nc"), "#[cfg(test)]\nuse b;\nc");
}
