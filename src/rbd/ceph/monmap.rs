use std::net::SocketAddr;

use serde::Deserialize;

use crate::rbd::{Errno, Error, Monitor, Result};

#[derive(Deserialize)]
struct Dump {
    mons: Vec<Mon>,
}

#[derive(Deserialize)]
struct Mon {
    rank: i64,
    name: String,
    #[serde(default)]
    public_addrs: AddressVector,
    /// All that clusters before Nautilus have; later ones repeat one of the vector here.
    addr: Option<String>,
}

#[derive(Deserialize, Default)]
struct AddressVector {
    addrvec: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    r#type: String,
    addr: String,
}

/// The monitors in the JSON output of `mon dump`, in rank order.
///
/// `EBADMSG` for what is no monmap, a monitor with a host name for an address included: a monmap
/// holds socket addresses only.
pub(crate) fn parse(json: &[u8]) -> Result<Vec<Monitor>> {
    let mut dump: Dump =
        serde_json::from_slice(json).map_err(|error| invalid(&error.to_string()))?;
    dump.mons.sort_by_key(|mon| mon.rank);
    dump.mons.into_iter().map(monitor).collect()
}

fn monitor(mon: Mon) -> Result<Monitor> {
    let mut monitor = Monitor { name: mon.name, v2: None, v1: None };
    for address in &mon.public_addrs.addrvec {
        match address.r#type.as_str() {
            "v2" => monitor.v2 = Some(socket_address(&address.addr)?),
            "v1" => monitor.v1 = Some(socket_address(&address.addr)?),
            _ => {}
        }
    }
    if mon.public_addrs.addrvec.is_empty() {
        let address =
            mon.addr.ok_or_else(|| invalid(&format!("monitor {} has no address", monitor.name)))?;
        monitor.v1 = Some(socket_address(&address)?);
    }
    Ok(monitor)
}

/// `IP:PORT` or `[IP]:PORT`, with or without a `/NONCE` behind it.
fn socket_address(text: &str) -> Result<SocketAddr> {
    let address = text.split_once('/').map_or(text, |(address, _nonce)| address);
    address.parse().map_err(|_| invalid(&format!("{text:?} is not an address")))
}

fn invalid(why: &str) -> Error {
    Error::new(Errno::EBADMSG, "mon dump", format!("monmap ({why})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitors(json: &str) -> Vec<(String, Option<String>, Option<String>)> {
        let text = |address: Option<SocketAddr>| address.map(|address| address.to_string());
        parse(json.as_bytes())
            .unwrap()
            .into_iter()
            .map(|m| (m.name, text(m.v2), text(m.v1)))
            .collect()
    }

    #[test]
    fn both_protocols_and_ipv6_in_rank_order() {
        let json = r#"{"epoch":3,"fsid":"x","mons":[
            {"rank":1,"name":"b","public_addrs":{"addrvec":[
                {"type":"v2","addr":"[fd00::2]:3300","nonce":0},{"type":"v1","addr":"[fd00::2]:6789","nonce":0}]},
             "addr":"[fd00::2]:6789/0","public_addr":"[fd00::2]:6789/0"},
            {"rank":0,"name":"a","public_addrs":{"addrvec":[{"type":"v2","addr":"10.0.0.1:3300","nonce":0}]},
             "addr":"10.0.0.1:3300/0"}]}"#;
        assert_eq!(
            monitors(json),
            [
                ("a".into(), Some("10.0.0.1:3300".into()), None),
                ("b".into(), Some("[fd00::2]:3300".into()), Some("[fd00::2]:6789".into())),
            ]
        );
    }

    #[test]
    fn clusters_before_nautilus() {
        let json = r#"{"mons":[{"rank":0,"name":"a","addr":"[::1]:6789/0"},
            {"rank":1,"name":"b","addr":"127.0.0.1:6792/0"},{"rank":2,"name":"c","addr":"127.0.0.1:6791"}]}"#;
        assert_eq!(
            monitors(json),
            [
                ("a".into(), None, Some("[::1]:6789".into())),
                ("b".into(), None, Some("127.0.0.1:6792".into())),
                ("c".into(), None, Some("127.0.0.1:6791".into())),
            ]
        );
    }

    #[test]
    fn what_is_no_monmap_is_refused_and_named() {
        let host_name = r#"{"mons":[{"rank":0,"name":"c","addr":"example.com:6791/0"}]}"#;
        let no_address = r#"{"mons":[{"rank":0,"name":"d"}]}"#;
        for (json, named) in
            [(host_name, "example.com:6791/0"), (no_address, "monitor d"), ("[", "EOF")]
        {
            let error = parse(json.as_bytes()).unwrap_err();
            assert_eq!(error.errno, Errno::EBADMSG);
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
