//! Path patterns (`SHEAF_PATHS`, `SHEAF_EXCLUDE`): which absolute paths are checkpoints.
//!
//! `?` is one character, `*` any run of characters inside a component, `[a-z]` and `[!a-z]` a class, `\` takes the next
//! character literally, and a component `**` is any number of components (at least one when it is the last). A name
//! starting with a dot is matched like any other. Matching is iterative: time is bounded by the product of the lengths.

/// Why a pattern was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatternError {
    /// Patterns are absolute: they start with `/`.
    NotAbsolute,
    /// A component is `.` or `..`, or two slashes follow each other.
    NotNormal,
    /// A `[` has no `]`, or the pattern ends in `\`.
    Unfinished,
    /// Nothing but `/`: there is no directory that could hold the store.
    Empty,
}

impl PatternError {
    /// What is accepted instead, as the end of an error line.
    pub fn advice(self) -> &'static str {
        match self {
            PatternError::NotAbsolute => "a pattern must be an absolute path",
            PatternError::NotNormal => "a pattern must not contain '.', '..' or empty components",
            PatternError::Unfinished => "a '[' needs its ']' and a '\\' needs a character after it",
            PatternError::Empty => "a pattern must name something below '/'",
        }
    }
}

/// Checks a pattern's form.
///
/// # Errors
/// Says what is wrong with it; see [`PatternError`].
pub fn validate(pattern: &[u8]) -> Result<(), PatternError> {
    if pattern.first() != Some(&b'/') {
        return Err(PatternError::NotAbsolute);
    }
    if pattern.len() == 1 {
        return Err(PatternError::Empty);
    }
    for component in components(pattern) {
        if component.is_empty() || component == b"." || component == b".." {
            return Err(PatternError::NotNormal);
        }
        validate_component(component)?;
    }
    Ok(())
}

fn validate_component(component: &[u8]) -> Result<(), PatternError> {
    let mut rest = component;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = match byte {
            b'\\' if tail.is_empty() => return Err(PatternError::Unfinished),
            b'\\' => tail.get(1..).unwrap_or(&[]),
            b'[' => class_end(tail).and_then(|end| tail.get(end..)).ok_or(PatternError::Unfinished)?,
            _ => tail,
        };
    }
    Ok(())
}

/// The directory that holds everything a valid pattern can match: the components before the first that has a special
/// character, and never the last component. `/` when there are none.
pub fn fixed_prefix(pattern: &[u8]) -> &[u8] {
    let mut end = 0;
    let mut start = 1;
    while let Some(length) = pattern.get(start..).and_then(|rest| rest.iter().position(|&byte| byte == b'/')) {
        let component = pattern.get(start..start + length).unwrap_or(&[]);
        if component.iter().any(|byte| b"*?[\\".contains(byte)) {
            break;
        }
        end = start + length;
        start = end + 1;
    }
    if end == 0 { b"/" } else { pattern.get(..end).unwrap_or(b"/") }
}

/// Whether `path` (absolute and canonical) matches a valid `pattern`.
pub fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let mut wanted = components(pattern);
    let mut given = components(path);
    // Where to go on when a later component does not match: after the last `**`, with one more component skipped.
    let mut retry: Option<(Components, Components)> = None;
    loop {
        let next_given = given.clone().next();
        let fits = match wanted.clone().next() {
            Some(b"**") => {
                let mut after = wanted.clone();
                after.next();
                if after.clone().next().is_none() {
                    return next_given.is_some();
                }
                retry = Some((after.clone(), given.clone()));
                wanted = after;
                continue;
            }
            Some(component) => next_given.is_some_and(|name| component_matches(component, name)),
            None if next_given.is_none() => return true,
            None => false,
        };
        if fits {
            wanted.next();
            given.next();
            continue;
        }
        let Some((after, from)) = retry.as_mut() else { return false };
        if from.next().is_none() {
            return false;
        }
        wanted = after.clone();
        given = from.clone();
    }
}

/// Whether a path below `directory` could match a valid `pattern`. May say yes too often, never no too often.
pub fn may_contain(pattern: &[u8], directory: &[u8]) -> bool {
    let mut wanted = components(pattern);
    if directory != b"/" {
        for name in components(directory) {
            match wanted.next() {
                Some(b"**") => return true,
                Some(component) if component_matches(component, name) => {}
                _ => return false,
            }
        }
    }
    wanted.next().is_some()
}

/// The components of an absolute path, without copying.
#[derive(Clone, Debug)]
pub struct Components<'a> {
    rest: Option<&'a [u8]>,
}

/// Splits an absolute path into its components; the leading slash is not one.
pub fn components(path: &[u8]) -> Components<'_> {
    Components { rest: path.strip_prefix(b"/") }
}

impl<'a> Iterator for Components<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        match rest.iter().position(|&byte| byte == b'/') {
            Some(slash) => {
                self.rest = rest.get(slash + 1..);
                rest.get(..slash)
            }
            None => {
                self.rest = None;
                Some(rest)
            }
        }
    }
}

/// Matches one component: `*`, `?`, classes and escapes.
fn component_matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut wanted, mut given) = (pattern, name);
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        match wanted.split_first() {
            Some((b'*', tail)) => {
                retry = Some((tail, given));
                wanted = tail;
                continue;
            }
            None if given.is_empty() => return true,
            Some((&byte, tail)) if !given.is_empty() => {
                if let Some((after_pattern, after_name)) = match_one(byte, tail, given) {
                    wanted = after_pattern;
                    given = after_name;
                    continue;
                }
            }
            _ => {}
        }
        match retry {
            Some((after, from)) if !from.is_empty() => {
                let shorter = from.get(1..).unwrap_or(&[]);
                retry = Some((after, shorter));
                wanted = after;
                given = shorter;
            }
            _ => return false,
        }
    }
}

/// Matches the single-character element that starts with `byte` (its rest in `tail`) against the start of `given`.
fn match_one<'p, 'n>(byte: u8, tail: &'p [u8], given: &'n [u8]) -> Option<(&'p [u8], &'n [u8])> {
    let (&first, after) = given.split_first()?;
    match byte {
        b'?' => Some((tail, given.get(character_length(given)..)?)),
        b'[' => {
            let end = class_end(tail)?;
            let class = tail.get(..end - 1)?;
            class_contains(class, first).then_some((tail.get(end..)?, after))
        }
        b'\\' => {
            let (&literal, rest) = tail.split_first()?;
            (literal == first).then_some((rest, after))
        }
        literal => (literal == first).then_some((tail, after)),
    }
}

/// Bytes of the UTF-8 character at the start of `text`; 1 for a byte that starts none.
fn character_length(text: &[u8]) -> usize {
    let length = match text.first() {
        Some(0xC2..=0xDF) => 2,
        Some(0xE0..=0xEF) => 3,
        Some(0xF0..=0xF4) => 4,
        _ => 1,
    };
    let whole = text.get(1..length).is_some_and(|rest| rest.iter().all(|byte| (0x80..0xC0).contains(byte)));
    if whole { length } else { 1 }
}

/// The offset just after the `]` that closes the class whose text starts at `tail`. A `]` that comes first is literal.
fn class_end(tail: &[u8]) -> Option<usize> {
    let negation = usize::from(matches!(tail.first(), Some(b'!' | b'^')));
    let from = negation + usize::from(tail.get(negation) == Some(&b']'));
    let length = tail.get(from..)?.iter().position(|&byte| byte == b']')?;
    Some(from + length + 1)
}

fn class_contains(class: &[u8], byte: u8) -> bool {
    let (negated, mut rest) = match class.split_first() {
        Some((b'!' | b'^', tail)) => (true, tail),
        _ => (false, class),
    };
    let mut found = false;
    while let Some((&low, tail)) = rest.split_first() {
        if let [b'-', high, after @ ..] = tail {
            found |= (low..=*high).contains(&byte);
            rest = after;
        } else {
            found |= low == byte;
            rest = tail;
        }
    }
    found != negated
}

/// Where the last slash of a path is; looked for in eight bytes at a time, because every call on a path elsewhere pays
/// for it.
#[inline]
pub fn last_slash(path: &[u8]) -> Option<usize> {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    const SLASHES: u64 = 0x2f2f_2f2f_2f2f_2f2f;
    let mut rest = path;
    while let Some((before, word)) = rest.split_last_chunk() {
        let differs = u64::from_le_bytes(*word) ^ SLASHES;
        // The high bit of each byte that is a slash. No carry leaves a byte, so no other is mistaken for one.
        let found = !(((differs & LOW) + LOW) | differs | LOW);
        if found != 0 {
            return Some(rest.len() - 1 - found.leading_zeros() as usize / 8);
        }
        rest = before;
    }
    rest.iter().rposition(|&byte| byte == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn common_patterns() {
        for (pattern, path, expected) in [
            ("/scratch/run1/ckpt/**", "/scratch/run1/ckpt/a", true),
            ("/scratch/run1/ckpt/**", "/scratch/run1/ckpt/a/b/c", true),
            ("/scratch/run1/ckpt/**", "/scratch/run1/ckpt", false),
            ("/scratch/run1/ckpt/**", "/scratch/run1/ckpt2/a", false),
            ("/s/restart.*", "/s/restart.100", true),
            ("/s/restart.*", "/s/restart.100/x", false),
            ("/s/**/r?.dat", "/s/r7.dat", true),
            ("/s/**/r?.dat", "/s/a/b/r7.dat", true),
            ("/s/**/r?.dat", "/s/a/b/r77.dat", false),
            ("/s/[a-c]*[!0-9]", "/s/bx", true),
            ("/s/[a-c]*[!0-9]", "/s/b1", false),
            ("/s/a\\*", "/s/a*", true),
            ("/s/a\\*", "/s/ab", false),
            ("/s/?", "/s/\u{e9}", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), expected, "{pattern} against {path}");
        }
    }

    #[test]
    fn fixed_prefixes() {
        for (pattern, prefix) in [
            ("/scratch/run1/ckpt/**", "/scratch/run1/ckpt"),
            ("/scratch/run1/restart.*", "/scratch/run1"),
            ("/scratch/run1/one.file", "/scratch/run1"),
            ("/scratch/run?/x/*", "/scratch"),
            ("/*", "/"),
            ("/a", "/"),
        ] {
            assert_eq!(fixed_prefix(pattern.as_bytes()), prefix.as_bytes(), "{pattern}");
        }
    }

    #[test]
    fn directories_that_may_contain_a_match() {
        for (pattern, directory, expected) in [
            ("/s/ckpt/**", "/s/ckpt", true),
            ("/s/ckpt/**", "/s/ckpt/step1/deep", true),
            ("/s/ckpt/**", "/s", true),
            ("/s/ckpt/**", "/", true),
            ("/s/ckpt/**", "/s/other", false),
            ("/s/r.*", "/s", true),
            ("/s/r.*", "/s/r.d", false),
            ("/s/r.*/x", "/s/r.d", true),
        ] {
            assert_eq!(may_contain(pattern.as_bytes(), directory.as_bytes()), expected, "{pattern} in {directory}");
        }
    }

    #[test]
    fn refused_patterns() {
        assert_eq!(validate(b"ckpt/*"), Err(PatternError::NotAbsolute));
        assert_eq!(validate(b"/"), Err(PatternError::Empty));
        assert_eq!(validate(b"/a//b"), Err(PatternError::NotNormal));
        assert_eq!(validate(b"/a/../b"), Err(PatternError::NotNormal));
        assert_eq!(validate(b"/a/[b"), Err(PatternError::Unfinished));
        assert_eq!(validate(b"/a/b\\"), Err(PatternError::Unfinished));
        assert_eq!(validate(b"/a/[]x]/**"), Ok(()));
    }

    fn oracle(pattern: &str) -> Option<globset::GlobMatcher> {
        // globset lets a negated class match the separator; no component of ours can hold one.
        let pattern = pattern.replace("[!a]", "[!a/]");
        let glob = globset::GlobBuilder::new(&pattern).literal_separator(true).backslash_escape(true).build().ok()?;
        Some(glob.compile_matcher())
    }

    /// Components from a small alphabet, so that matches are common.
    fn pattern_text() -> impl Strategy<Value = String> {
        let element = prop_oneof![
            4 => "[ab]",
            2 => Just("*".to_string()),
            1 => Just("?".to_string()),
            1 => Just("[ab]".to_string()),
            1 => Just("[!a]".to_string()),
            1 => Just("\\*".to_string()),
        ];
        let plain = proptest::collection::vec(element, 1..4)
            .prop_map(|parts| parts.concat())
            // `**` beside other characters is not a component of its own: globset reads it otherwise.
            .prop_filter("no inner double star", |text| !text.contains("**"));
        let component = prop_oneof![4 => plain, 1 => Just("**".to_string())];
        proptest::collection::vec(component, 1..5)
            // globset folds repeated `**`; one is enough to say the same.
            .prop_filter("no doubled double star", |parts| {
                !parts.windows(2).any(|pair| pair[0] == "**" && pair[1] == "**")
            })
            .prop_map(|parts| format!("/{}", parts.join("/")))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn agrees_with_globset(pattern in pattern_text(), path in "(/[ab*]{1,3}){1,5}") {
            let Some(oracle) = oracle(&pattern) else { return Ok(()) };
            prop_assert!(validate(pattern.as_bytes()).is_ok());
            prop_assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), oracle.is_match(&path), "{} {}", pattern, path);
        }

        #[test]
        fn a_match_lies_in_directories_that_may_contain_it(pattern in pattern_text(), path in "(/[ab*]{1,3}){1,5}") {
            if matches(pattern.as_bytes(), path.as_bytes()) {
                let directory = &path[..path.rfind('/').unwrap().max(1)];
                prop_assert!(may_contain(pattern.as_bytes(), directory.as_bytes()));
                prop_assert!(path.as_bytes().starts_with(fixed_prefix(pattern.as_bytes())));
            }
        }

        #[test]
        fn any_bytes_are_matched_without_panic(pattern in proptest::collection::vec(any::<u8>(), 0..64),
                                               path in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = validate(&pattern);
            let _ = matches(&pattern, &path);
            let _ = may_contain(&pattern, &path);
            let _ = fixed_prefix(&pattern);
        }
    }

    #[test]
    fn the_last_slash_is_found_among_bytes_that_are_nearly_one() {
        for length in 0..40 {
            for filling in [0x2e, 0x30, 0xaf, 0x2f ^ 0x80, 0, 0xff, b'a'] {
                let mut path = [filling; 40];
                assert_eq!(last_slash(&path[..length]), None);
                for place in 0..length {
                    path[place] = b'/';
                    assert_eq!(last_slash(&path[..length]), Some(place), "{filling} {length}");
                }
            }
        }
    }
}
