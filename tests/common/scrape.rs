//! What a driver's port for monitoring says.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::driver::Driver;
use super::wait_until;

/// Arguments that have a driver choose a port for monitoring, which [`Driver::monitoring`] tells.
pub const MONITORED: [&str; 2] = ["--metrics-address", "127.0.0.1:0"];

/// How long an answer may take. It waits for nothing, so this only ends tests that fail.
const AT_ONCE: Duration = Duration::from_secs(10);

impl Driver {
    /// Where its port for monitoring is, as its log says.
    pub fn monitoring(&self) -> SocketAddr {
        wait_until("the port for monitoring is served", || {
            let log = self.log();
            let address = log
                .lines()
                .find(|line| line.contains("serving /metrics"))
                .and_then(|line| line.split("127.0.0.1:").nth(1))
                .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
            address.map(|port: u16| SocketAddr::from(([127, 0, 0, 1], port))).ok_or(log)
        })
    }

    /// All its metrics now.
    pub fn scrape(&self) -> Scrape {
        let (status, body) = get(self.monitoring(), "/metrics");
        assert_eq!(status, 200, "{body}");
        Scrape::parse(&body)
    }
}

/// Asks for `path` over HTTP. Gives the status and the body.
pub fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, AT_ONCE).unwrap();
    stream.set_read_timeout(Some(AT_ONCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(began.elapsed() < AT_ONCE, "{path} took {:?}", began.elapsed());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// One series.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    pub name: String,
    pub labels: BTreeMap<String, String>,
}

/// All series at one moment, with their values.
#[derive(Debug)]
pub struct Scrape {
    pub text: String,
    pub values: BTreeMap<Series, f64>,
}

impl Scrape {
    fn parse(text: &str) -> Scrape {
        assert!(text.ends_with("# EOF\n"), "cut off: {text}");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let values = lines
            .map(|line| {
                let (series, value) = line.rsplit_once(' ').unwrap();
                (Series::parse(series), value.parse().unwrap())
            })
            .collect();
        Scrape { text: text.to_owned(), values }
    }

    /// The sum of the series with this name and these labels among theirs.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let is_it = |series: &Series| {
            let has = |(label, value): &(&str, &str)| {
                series.labels.get(*label).is_some_and(|found| found == value)
            };
            series.name == format!("cinderblock_{name}") && labels.iter().all(has)
        };
        self.values.iter().filter(|(series, _)| is_it(series)).map(|(_, value)| value).sum()
    }
}

impl Series {
    /// Reads `name{label="value",…}`.
    pub fn parse(text: &str) -> Series {
        let (name, labels) = text.trim_end_matches('}').split_once('{').unwrap_or((text, ""));
        let labels = labels.split("\",").filter(|label| !label.is_empty()).map(|label| {
            let (label, value) = label.split_once("=\"").unwrap();
            (label.trim().to_owned(), value.trim_end_matches('"').to_owned())
        });
        Series { name: name.to_owned(), labels: labels.collect() }
    }
}
