//! Reads all counters around a load and turns them into a line of the report.

use crate::Outcome;
use crate::client::Load;
use crate::database::Place;
use crate::machine::{self, SyncProbe};
use crate::report::{Row, percentile};
use crate::server::Server;

/// What a path is counted in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Events,
    Requests,
}

struct Clocks {
    client: u64,
    server: u64,
    database: u64,
    machine: u64,
}

impl Clocks {
    fn read(place: &Place, server: &Server) -> Clocks {
        Clocks {
            client: machine::cpu_of(std::process::id()),
            server: machine::cpu_of(server.pid()),
            database: place.cpu(),
            machine: machine::cpu_of_machine(),
        }
    }
}

/// Runs while a load does. Loads that come in pieces add up the pieces: what happens between [`Gauge::pause`] and
/// [`Gauge::resume`] does not count.
pub struct Gauge<'a> {
    place: &'a Place,
    server: &'a Server,
    probe: SyncProbe,
    since: Clocks,
    spent: Clocks,
}

impl<'a> Gauge<'a> {
    pub fn start(place: &'a Place, server: &'a Server) -> Outcome<Gauge<'a>> {
        machine::forget_peak(server.pid());
        let probe = SyncProbe::start(place.dir())?;
        let spent = Clocks { client: 0, server: 0, database: 0, machine: 0 };
        Ok(Gauge { place, server, probe, since: Clocks::read(place, server), spent })
    }

    pub fn resume(&mut self) {
        self.since = Clocks::read(self.place, self.server);
    }

    pub fn pause(&mut self) {
        let now = Clocks::read(self.place, self.server);
        self.spent.client += now.client.saturating_sub(self.since.client);
        self.spent.server += now.server.saturating_sub(self.since.server);
        self.spent.database += now.database.saturating_sub(self.since.database);
        self.spent.machine += now.machine.saturating_sub(self.since.machine);
    }

    /// Call after a pause.
    pub fn finish(self, path: &str, unit: Unit, load: &mut Load) -> Row {
        let spent = self.spent;
        let units = if unit == Unit::Events { load.events } else { load.requests }.max(1) as f64;
        let known = spent.client + spent.server + spent.database;
        let available = load.elapsed.as_micros() as f64 * machine::processors() as f64;
        Row {
            database: self.place.name(),
            path: path.to_owned(),
            rate: if unit == Unit::Events { load.events_per_second() } else { load.requests_per_second() },
            unit: if unit == Unit::Events { "events" } else { "requests" },
            p50: percentile(&mut load.micros, 50.0) / 1e3,
            p99: percentile(&mut load.micros, 99.0) / 1e3,
            client: spent.client as f64 / units,
            server: spent.server as f64 / units,
            db: spent.database as f64 / units,
            peak: machine::memory_of(self.server.pid()).1,
            ceiling: None,
            sync: self.probe.finish(),
            others: (spent.machine.saturating_sub(known) as f64 / available).min(1.0),
            note: if load.refused > 0 { format!("{} answered 503", load.refused) } else { String::new() },
        }
    }
}
