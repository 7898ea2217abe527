//! The events a measurement writes: made from their number alone, so that nothing has to be remembered to know what
//! the server must answer afterwards. Amounts are whole hundredths, which makes the check of totals exact.

use std::fmt::Write;

use open_spanner::metering::time::Timestamp;

use crate::client::Request;

/// What idempotency keys look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Like UUIDv7: they begin with the time, so that new ones land beside each other in an index.
    Ordered,
    /// Like UUIDv4.
    Random,
}

impl Keys {
    pub const BOTH: [Keys; 2] = [Keys::Ordered, Keys::Random];

    pub fn name(self) -> &'static str {
        match self {
            Keys::Ordered => "ordered keys",
            Keys::Random => "random keys",
        }
    }
}

/// One stream of events: event `i` is the same whenever it is asked for.
#[derive(Clone, Debug)]
pub struct Workload {
    pub meter: String,
    pub keys: Keys,
    /// How many customers take turns.
    pub subjects: u64,
    /// How many values the declared dimension `model` has; `region` has three.
    pub models: u64,
    /// What users have: 20 endpoints, 6 statuses and 4 regions instead.
    pub wide: bool,
    /// Stands before each key, with a blank: the source of a CloudEvent is a part of its key.
    pub source: Option<&'static str>,
    /// Distinguishes the keys of two workloads.
    pub seed: u64,
    /// Time of the first event.
    pub from: Timestamp,
    /// Microseconds between two events.
    pub step: i64,
}

pub const REGIONS: [&str; 3] = ["eu", "us", "ap"];
/// Of the wide workload.
pub const STATUSES: [&str; 6] = ["200", "201", "400", "404", "429", "500"];
pub const WIDE_REGIONS: [&str; 4] = ["eu", "us", "ap", "sa"];
pub const ENDPOINTS: u64 = 20;
/// How many values the undeclared field `class` has.
pub const CLASSES: u64 = 20;

impl Workload {
    fn dice(&self, i: u64, salt: u64) -> u64 {
        mix(mix(self.seed ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_add(i))
    }

    pub fn at(&self, i: u64) -> Timestamp {
        self.from.plus(self.step * i as i64)
    }

    /// Between 0.01 and 20.00, in hundredths.
    pub fn cents(&self, i: u64) -> u64 {
        1 + self.dice(i, 1) % 2_000
    }

    pub fn subject(number: u64) -> String {
        format!("customer-{number:06}")
    }

    /// Appends event `i` as a JSON object.
    pub fn write(&self, i: u64, out: &mut String) {
        let (at, cents) = (self.at(i), self.cents(i));
        let (high, low) = (self.dice(i, 2), self.dice(i, 3));
        out.push_str("{\"idempotency_key\":\"");
        if let Some(source) = self.source {
            out.extend([source, " "]);
        }
        // writing to a String cannot fail
        let _ = match self.keys {
            Keys::Random => {
                write!(out, "{:08x}-{:04x}-4{:03x}", high >> 32, (high >> 16) & 0xFFFF, high & 0xFFF)
            }
            Keys::Ordered => {
                let millis = at.0 / 1_000;
                write!(out, "{:08x}-{:04x}-7{:03x}", millis >> 16, millis & 0xFFFF, high & 0xFFF)
            }
        };
        let _ = write!(out, "-{:04x}-{:012x}", low >> 48, low & 0xFFFF_FFFF_FFFF);
        let _ = write!(
            out,
            "\",\"subject\":\"{}\",\"meter\":\"{}\",\"quantity\":{}.{:02},\"timestamp\":\"{}\",\"metadata\":{{",
            Workload::subject(self.dice(i, 4) % self.subjects),
            self.meter,
            cents / 100,
            cents % 100,
            at.to_exact_text(),
        );
        self.write_metadata(i, out);
        out.push_str("}}");
    }

    /// The value of an undeclared field.
    pub fn class(&self, i: u64) -> u64 {
        self.dice(i, 5) % CLASSES
    }

    /// Appends the fields of its metadata, without the braces.
    pub fn write_metadata(&self, i: u64, out: &mut String) {
        let (class, kind, place) = (self.class(i), self.dice(i, 6), self.dice(i, 7) as usize);
        let _ = match self.wide {
            false => write!(
                out,
                "\"class\":\"c{class}\",\"model\":\"model-{}\",\"region\":\"{}\"",
                kind % self.models,
                REGIONS[place % REGIONS.len()],
            ),
            true => write!(
                out,
                "\"class\":\"c{class}\",\"endpoint\":\"/v1/things/{}\",\"status\":\"{}\",\"region\":\"{}\"",
                kind % ENDPOINTS,
                STATUSES[(kind >> 16) as usize % STATUSES.len()],
                WIDE_REGIONS[place % WIDE_REGIONS.len()],
            ),
        };
    }

    /// The first `total` events as calls of one each, dealt out to connections. `headers`: of the key.
    pub fn singles(&self, headers: &str, total: u64, connections: u64) -> Vec<Vec<Request>> {
        let mut lists: Vec<Vec<Request>> = (0..connections).map(|_| Vec::new()).collect();
        for i in 0..total {
            let mut body = String::with_capacity(256);
            self.write(i, &mut body);
            let request = Request::new("POST", "/v1/usages", headers, &body);
            lists[(i % connections) as usize].push(request.storing(1, self.cents(i)));
        }
        lists
    }

    /// The events of a bulk call as a JSON array, and the sum of their amounts.
    pub fn bulk(&self, numbers: std::ops::Range<u64>) -> (String, u64) {
        let mut text = String::with_capacity(256 * (numbers.end - numbers.start) as usize);
        let mut cents = 0;
        for i in numbers {
            text.push(if text.is_empty() { '[' } else { ',' });
            self.write(i, &mut text);
            cents += self.cents(i);
        }
        text.push(']');
        (text, cents)
    }
}

/// SplitMix64: a number that looks random, from any number.
pub fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
