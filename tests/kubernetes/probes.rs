//! What kubelet's readiness probes ask: livenessprobe, beside the driver's socket.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::api::wait_until;
use super::field::Field;

pub(crate) fn both_pods_are_ready(field: &Field) {
    for port in field.health {
        wait_until(&format!("port {port} answers that the driver is ready"), || {
            let answer = healthz(port).map_err(|error| error.to_string())?;
            if answer.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(answer) }
        });
    }
}

fn healthz(port: u16) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(("127.0.0.1", port))?;
    connection
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}
