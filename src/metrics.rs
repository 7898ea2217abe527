//! Prometheus text on a private listener of its own, so that it is never public by accident; on the API's port as well when
//! the operator says so. No workspace, subject,
//! meter or key ever becomes a label.

pub mod table;

use std::net::TcpListener;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use actix_web::{App, HttpResponse, web};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::blocking;
use crate::config::{Role, VERSION};
use crate::error::{Error, Result};
use crate::net::{self, Port};
use table::{Kind, TABLE};

const SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];
const EVENTS: [f64; 8] = [1.0, 4.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// What this process counts, once it does.
static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Prometheus text of this process; `None` when it counts nothing.
pub fn text() -> Option<String> {
    HANDLE.get().map(|handle| {
        for look in looks().iter() {
            look();
        }
        metrics_process::Collector::default().collect();
        handle.render()
    })
}

type Look = Box<dyn Fn() + Send>;

fn looks() -> std::sync::MutexGuard<'static, Vec<Look>> {
    static LOOKS: Mutex<Vec<Look>> = Mutex::new(Vec::new());
    LOOKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets gauges whenever somebody asks for the metrics. Must not wait for anything.
pub fn at_every_look(look: impl Fn() + Send + 'static) {
    looks().push(Box::new(look));
}

/// How often what histograms were given is counted.
const UPKEEP: Duration = Duration::from_secs(5);

/// Makes every `metrics::…!` in the process count; call once, before the first of them.
pub fn install(role: Role) -> Result<()> {
    use metrics_exporter_prometheus::Matcher::Suffix;
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| builder.set_buckets_for_metric(Suffix("_events".to_owned()), &EVENTS))
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(Error::internal)?;
    let recorded = handle.clone();
    let _ = HANDLE.set(handle);
    announce(role);
    // until somebody counts them, every single value stays in memory: nobody may ever ask for the metrics
    blocking::thread("metrics", move || {
        loop {
            blocking::pause(UPKEEP);
            recorded.run_upkeep();
        }
    })?;
    Ok(())
}

/// Says what each metric means, and that nothing has happened yet.
fn announce(role: Role) {
    for metric in TABLE {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
        for series in metric.zeroes {
            match metric.kind {
                Kind::Counter => metrics::counter!(metric.name, *series).increment(0),
                Kind::Gauge => metrics::gauge!(metric.name, *series).set(0.0),
                Kind::Histogram => {}
            }
        }
    }
    let (version, commit) = VERSION.split_once(' ').unwrap_or((VERSION, ""));
    let commit = commit.trim_matches(['(', ')']);
    metrics::gauge!("open_spanner_build_info", "version" => version, "commit" => commit, "role" => role.name())
        .set(1.0);
}

/// Serves `GET /metrics`, and what else is for operators only, until the process ends.
pub fn listen(
    listener: TcpListener,
    port: Port,
    more: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
) -> std::io::Result<()> {
    let answer = || async { HttpResponse::Ok().content_type(CONTENT_TYPE).body(text().unwrap_or_default()) };
    let application = move || App::new().configure(more.clone()).route("/metrics", web::get().to(answer));
    net::http::serve(application, listener, port, 1, Duration::ZERO).map(drop)
}
