//! What Python's string functions do where Rust's differ.

/// The code points of zero in the scripts that have decimal digits (general category Nd); nine more digits follow each.
const ZEROS: [u32; 68] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50,
    0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40,
    0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x11066,
    0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950,
    0x11c50, 0x11d50, 0x11da0, 0x11f50, 0x16a60, 0x16ac0, 0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec,
    0x1d7f6, 0x1e140, 0x1e2f0, 0x1e4f0, 0x1e950, 0x1fbf0,
];

/// Is this white space to `str.strip`, `str.split` and `\s`? Unlike in Rust, four separators of ASCII are.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.strip()`.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// The decimal digit of any script, as ASCII.
pub(crate) fn digit(c: char) -> Option<char> {
    let at = ZEROS.partition_point(|&zero| zero <= u32::from(c)).checked_sub(1)?;
    char::from_digit(u32::from(c) - ZEROS[at], 10)
}

/// `int(text)`, printed again: the sign only where it is minus, no zeros in front. As many digits as there are.
pub(crate) fn int(text: &str) -> Option<String> {
    let text = strip(text);
    let (negative, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    // Underscores stand between digits, one at a time.
    let mut plain = String::with_capacity(digits.len());
    for part in digits.split('_') {
        if part.is_empty() {
            return None;
        }
        for c in part.chars() {
            plain.push(digit(c)?);
        }
    }
    let plain = plain.trim_start_matches('0');
    Some(match (plain, negative) {
        ("", _) => "0".into(),
        (plain, true) => format!("-{plain}"),
        (plain, false) => plain.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_as_python_reads_them() {
        let cases = [
            ("18", Some("18")),
            (" \u{1f}\u{3000}+007\n", Some("7")),
            ("-0", Some("0")),
            ("1_000", Some("1000")),
            ("٣٤", Some("34")),
            ("𝟗", Some("9")),
            ("1__0", None),
            ("_1", None),
            ("1_", None),
            ("", None),
            ("+", None),
            ("--1", None),
            ("18.0", None),
            ("1e3", None),
            ("²", None),
            ("1 8", None),
        ];
        for (text, number) in cases {
            assert_eq!(int(text).as_deref(), number, "{text:?}");
        }
        assert_eq!(int(&"9".repeat(5000)).map(|digits| digits.len()), Some(5000));
    }

    #[test]
    fn the_table_of_zeros_is_in_order() {
        assert!(ZEROS.is_sorted());
        assert_eq!(digit('/'), None);
        assert_eq!(digit(':'), None);
    }
}
