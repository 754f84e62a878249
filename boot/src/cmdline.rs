//! The form of a command line, as Xen's: words of `name`, `no-name` or `name=value`, where a value may be quoted.

/// One word of a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word<'a> {
    /// The name, without `no-`.
    pub name: &'a str,
    /// What stands behind `=`, without its quotes.
    pub value: Option<&'a str>,
    /// The name was preceded by `no-`.
    pub negated: bool,
    /// The word as it was written.
    pub text: &'a str,
}

impl<'a> Word<'a> {
    fn new(text: &'a str) -> Self {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(unquoted(value))),
            None => (text, None),
        };
        match name.strip_prefix("no-") {
            Some(name) => Self { name, value, negated: true, text },
            None => Self { name, value, negated: false, text },
        }
    }

    /// The word as a switch: `name` and `name=on` are true, `no-name` and `name=off` false; `None` if the value is neither.
    pub fn as_bool(&self) -> Option<bool> {
        let value = match self.value {
            Some(value) => boolean(value)?,
            None => true,
        };
        Some(value != self.negated)
    }
}

/// Xen's words for true and false.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "yes" | "on" | "true" | "enable" => Some(true),
        "0" | "no" | "off" | "false" | "disable" => Some(false),
        _ => None,
    }
}

fn unquoted(text: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = text.strip_prefix(quote) {
            return inner.strip_suffix(quote).unwrap_or(inner);
        }
    }
    text
}

/// The words of a command line. A blank inside quotes does not end a word.
pub fn words(line: &str) -> impl Iterator<Item = Word<'_>> {
    let mut rest = line;
    core::iter::from_fn(move || {
        rest = rest.trim_start();
        let mut quote = None;
        let end = rest
            .char_indices()
            .find(|&(_, c)| match quote {
                Some(open) => {
                    if c == open {
                        quote = None;
                    }
                    false
                }
                None if c == '"' || c == '\'' => {
                    quote = Some(c);
                    false
                }
                None => c.is_whitespace(),
            })
            .map_or(rest.len(), |(at, _)| at);
        let (word, tail) = rest.split_at(end);
        rest = tail;
        (!word.is_empty()).then(|| Word::new(word))
    })
}

/// A number as Xen reads it: decimal, or hexadecimal with `0x`.
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A size in bytes: a number with an optional `k`, `M`, `G` or `T`; without one it counts KiB, as in Xen.
pub fn size(text: &str) -> Option<u64> {
    let unit = text.bytes().last()?.to_ascii_lowercase();
    let shift = match unit {
        b'b' => 0,
        b'k' => 10,
        b'm' => 20,
        b'g' => 30,
        b't' => 40,
        _ => return number(text)?.checked_mul(1024),
    };
    number(text.get(..text.len().checked_sub(1)?)?)?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(line: &str) -> Vec<(&str, Option<&str>, bool)> {
        words(line).map(|w| (w.name, w.value, w.negated)).collect()
    }

    #[test]
    fn words_are_names_with_optional_values() {
        assert_eq!(
            list("  placeholder dom0_mem=512M,max:1G  noreboot\tno-smt x= "),
            [
                ("placeholder", None, false),
                ("dom0_mem", Some("512M,max:1G"), false),
                ("noreboot", None, false),
                ("smt", None, true),
                ("x", Some(""), false)
            ]
        );
        assert_eq!(list(""), []);
    }

    #[test]
    fn quotes_keep_blanks_together() {
        assert_eq!(
            list("a=\"one two\" b='3 4' c=\"open end"),
            [("a", Some("one two"), false), ("b", Some("3 4"), false), ("c", Some("open end"), false)]
        );
    }

    #[test]
    fn a_switch_understands_every_spelling_of_yes_and_no() {
        let value = |text| words(text).next().expect("a word").as_bool();
        for yes in ["x", "x=1", "x=on", "x=true", "x=yes", "x=enable", "no-x=off"] {
            assert_eq!(value(yes), Some(true), "{yes}");
        }
        for no in ["no-x", "x=0", "x=off", "x=false", "x=no", "x=disable", "no-x=1"] {
            assert_eq!(value(no), Some(false), "{no}");
        }
        assert_eq!(value("x=maybe"), None);
    }

    #[test]
    fn sizes_have_units_and_default_to_kib() {
        assert_eq!(size("128k"), Some(128 << 10));
        assert_eq!(size("2M"), Some(2 << 20));
        assert_eq!(size("64"), Some(64 << 10));
        assert_eq!(size("0x10b"), Some(0x10));
        assert_eq!(size(""), None);
        assert_eq!(size("k"), None);
        assert_eq!(size("99999999999999T"), None);
    }
}
