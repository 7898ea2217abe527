//! Asks a process on this machine how it is, where its own settings say that it listens: for health checks in images
//! without curl.

use std::net::IpAddr;
use std::time::Duration;

use crate::cli::Outcome;
use crate::cli::http::{cause, client};
use crate::config::commands::{Probe, ProbedRole};
use crate::config::{Config, ListenAddr};
use crate::error::{Error, Result};
use crate::output::print;

pub async fn run(config: &Config, probe: &Probe) -> Result<Outcome> {
    let path = if probe.ready { "/ready" } else { "/health" };
    // the private listener says what is in the way
    let private = config.metrics_addr.as_ref().filter(|_| probe.role == ProbedRole::Serve && probe.ready);
    let url = format!("http://{}{path}", address(private.unwrap_or_else(|| listener(config, probe.role)))?);
    let answer = client(Duration::from_secs(probe.timeout))?.get(&url).send().await;
    let answer = answer.map_err(|error| Error::unavailable(format_args!("{url}: {}", cause(&error))))?;
    if answer.status().is_success() {
        print(if probe.ready { "ready\n" } else { "alive\n" });
        return Ok(Outcome::Done);
    }
    let status = answer.status();
    let reasons = answer.text().await.unwrap_or_default();
    Err(Error::unavailable(format_args!("{url} answered {status} {reasons}")))
}

fn listener(config: &Config, role: ProbedRole) -> &ListenAddr {
    match role {
        ProbedRole::Serve => &config.http.addr,
        ProbedRole::ExportWorker => &config.workers.export.health_addr,
        ProbedRole::AlertWorker => &config.workers.alert.health_addr,
        ProbedRole::EntitlementWorker => &config.workers.entitlement.health_addr,
        ProbedRole::UsageWorker => &config.workers.usage.health_addr,
    }
}

/// Where a listener is reached from its own machine.
fn address(listener: &ListenAddr) -> Result<String> {
    let addresses =
        listener.socket_addrs().map_err(|error| Error::unavailable(format_args!("{listener}: {error}")))?;
    // every interface: IPv4 is there on more machines
    let found = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    let found = found.ok_or_else(|| Error::unavailable(format_args!("{listener} is no address")))?;
    let host = match found.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V6(ip) if ip.is_unspecified() => "[::1]".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    Ok(format!("{host}:{}", found.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_reached_from_their_own_machine() {
        for (listener, want) in [
            (":18081", "127.0.0.1:18081"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("[::1]:1", "[::1]:1"),
            ("10.0.0.7:1", "10.0.0.7:1"),
        ] {
            let listener = ListenAddr::parse(listener).expect("an address");
            assert_eq!(address(&listener).expect("resolved"), want);
        }
    }
}
