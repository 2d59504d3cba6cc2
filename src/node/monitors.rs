//! Addresses of monitors as ceph.conf's `mon_host` has them, taken apart for the kernel, which
//! wants those of one protocol.

use super::error::{Error, Result};

/// The ports of monitors where none is named.
const V1_PORT: u16 = 6789;
const V2_PORT: u16 = 3300;

/// One monitor: where it speaks the first and the second protocol, as `host:port`. It has one
/// address at least.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Monitor {
    pub(crate) v1: Option<String>,
    pub(crate) v2: Option<String>,
}

/// Reads a list of monitors, separated by commas: `host`, `host:port`, `v1:host:port`,
/// `v2:host:port`, or several of those for one monitor in brackets. IPv6 addresses stand in
/// brackets. `InvalidArgument` when it is none.
pub(crate) fn parse(text: &str) -> Result<Vec<Monitor>> {
    let refuse = || Error::InvalidArgument(format!("{text:?} are no addresses of monitors"));
    let mut monitors = Vec::new();
    let mut left = text.trim();
    while !left.is_empty() {
        let mut monitor = Monitor::default();
        // A vector in brackets, and not an IPv6 address in them.
        let vector = left.strip_prefix('[').filter(|inner| inner.starts_with('v'));
        if let Some(inner) = vector {
            left = inner;
            loop {
                left = address(left, &mut monitor).ok_or_else(refuse)?;
                match left.split_at_checked(1) {
                    Some((",", rest)) => left = rest,
                    Some(("]", rest)) => break left = rest,
                    _ => return Err(refuse()),
                }
            }
        } else {
            left = address(left, &mut monitor).ok_or_else(refuse)?;
        }
        monitors.push(monitor);
        match left.split_at_checked(1) {
            None => break,
            Some((",", rest)) if !rest.is_empty() => left = rest,
            Some(_) => return Err(refuse()),
        }
    }
    if monitors.is_empty() { Err(refuse()) } else { Ok(monitors) }
}

/// Reads one address off the beginning of `text` into `monitor`, and returns what follows it.
fn address<'a>(text: &'a str, monitor: &mut Monitor) -> Option<&'a str> {
    let (protocol, text) = match text.split_at_checked(3) {
        Some(("v1:", rest)) => (Some(1), rest),
        Some(("v2:", rest)) => (Some(2), rest),
        _ => (None, text),
    };
    let is_name = |host: &str| {
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let end = if text.starts_with('[') {
        let end = text.find(']')? + 1;
        let is_address =
            |host: &str| host.bytes().all(|b| b.is_ascii_hexdigit() || b":.".contains(&b));
        (end > 2 && is_address(&text[1..end - 1])).then_some(end)?
    } else {
        let end = text.find([':', ',', '/', ']']).unwrap_or(text.len());
        is_name(&text[..end]).then_some(end)?
    };
    let (host, mut text) = text.split_at(end);
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let mut port = None;
    if let Some(rest) = text.strip_prefix(':') {
        let (number, rest) = rest.split_at(digits(rest));
        port = Some(number.parse::<u16>().ok()?);
        text = rest;
    }
    // The nonce, which monitors do not have.
    if let Some(rest) = text.strip_prefix('/') {
        text = &rest[digits(rest)..];
    }
    let at = |port: u16| Some(format!("{host}:{port}"));
    match (protocol, port) {
        (Some(1), port) => monitor.v1 = at(port.unwrap_or(V1_PORT)),
        (Some(_), port) => monitor.v2 = at(port.unwrap_or(V2_PORT)),
        (None, None) => (monitor.v1, monitor.v2) = (at(V1_PORT), at(V2_PORT)),
        (None, Some(V2_PORT)) => monitor.v2 = at(V2_PORT),
        (None, Some(port)) => monitor.v1 = at(port),
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let monitor = |v1: &str, v2: &str| {
            let address = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            Monitor { v1: address(v1), v2: address(v2) }
        };
        for (text, expected) in [
            ("10.0.0.1", vec![monitor("10.0.0.1:6789", "10.0.0.1:3300")]),
            ("10.0.0.1:6789", vec![monitor("10.0.0.1:6789", "")]),
            ("10.0.0.1:3300", vec![monitor("", "10.0.0.1:3300")]),
            ("v2:10.0.0.1:7", vec![monitor("", "10.0.0.1:7")]),
            ("[v2:10.0.0.1:7/0,v1:10.0.0.1:8/0]", vec![monitor("10.0.0.1:8", "10.0.0.1:7")]),
            (
                "[v2:[fe80::1]:7,v1:[fe80::1]:8],[::1],a.b-c",
                vec![
                    monitor("[fe80::1]:8", "[fe80::1]:7"),
                    monitor("[::1]:6789", "[::1]:3300"),
                    monitor("a.b-c:6789", "a.b-c:3300"),
                ],
            ),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_list_of_monitors_is_refused() {
        for text in [
            "",
            ",",
            "10.0.0.1,",
            "10.0.0.1 name=admin",
            "10.0.0.1:port",
            "10.0.0.1:99999",
            "[v2:10.0.0.1",
            "[v2:10.0.0.1]x",
            "[]",
            "v3:10.0.0.1",
            "a/b",
        ] {
            assert!(matches!(parse(text), Err(Error::InvalidArgument(_))), "{text}");
        }
    }
}
