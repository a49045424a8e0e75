//! What others wrote, as messages show it: never so long that it buries the message.

/// Longest name of anything in Kubernetes, in bytes: a DNS subdomain (RFC 1123).
const NAME_BYTES_MAX: usize = 253;

/// A name, cut where it is longer than any name should be.
pub(crate) fn shortened(name: &str) -> String {
    cut(name, NAME_BYTES_MAX)
}

/// `text`, cut after `bytes_max` bytes, with its length told then.
pub(crate) fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = (0..=bytes_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}... ({} bytes)", &text[..end], text.len())
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_text_is_cut_between_characters_and_its_length_told() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("\u{e9}\u{e9}\u{e9}", 3), "\u{e9}... (6 bytes)");
        assert_eq!(cut("\u{1f980}", 2), "... (4 bytes)");
    }
}
