//! `usage query` and `events tail`: what was recorded, from a server. Quantities are passed on digit by digit.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::cli::client::Server;
use crate::cli::{Outcome, table};
use crate::config::Config;
use crate::config::commands::{EventsTail, UsageQuery};
use crate::error::{Error, Result};
use crate::metering::time::{DAY, Timestamp};
use crate::output::print;

#[derive(Deserialize)]
struct Bucket {
    bucket_start: String,
    quantity: Box<RawValue>,
    unit: String,
    #[serde(default)]
    group: BTreeMap<String, String>,
}

fn query_string<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

pub async fn query(config: &Config, asked: &UsageQuery) -> Result<Outcome> {
    let now = Timestamp::now();
    let from = asked.from.clone().unwrap_or_else(|| now.plus(-30 * DAY).to_string());
    let to = asked.to.clone().unwrap_or_else(|| now.to_string());
    let mut pairs = vec![
        ("meter", asked.meter.as_str()),
        ("from", &from),
        ("to", &to),
        ("bucket_size", asked.bucket.as_str()),
    ];
    let calendar =
        [("time_zone", &asked.time_zone), ("anchor", &asked.anchor), ("week_start", &asked.week_start)];
    pairs.extend(calendar.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))));
    pairs.extend(asked.subject.as_deref().map(|subject| ("subject", subject)));
    pairs.extend(asked.group_by.iter().map(|field| ("group_by", field.as_str())));
    let path = format!("/v1/usages?{}", query_string(pairs));
    let server = Server::of(config)?;
    if asked.json.json {
        let rows: Box<RawValue> = server.get(&path).await?;
        print(&format!("{}\n", rows.get()));
        return Ok(Outcome::Done);
    }
    let buckets: Vec<Bucket> = server.get(&path).await?;
    let rows = buckets.into_iter().map(|bucket| {
        let group: Vec<String> =
            bucket.group.iter().map(|(field, value)| format!("{field}={value}")).collect();
        [bucket.bucket_start, group.join(" "), format!("{} {}", bucket.quantity.get(), bucket.unit)]
    });
    print(&table(["FROM", "GROUP", "QUANTITY"], &rows.collect::<Vec<_>>()));
    Ok(Outcome::Done)
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Known {
    id: String,
}

const POLL: Duration = Duration::from_secs(1);
/// Events of one look, and how many ids are remembered: more come again within a second only of a flood.
const LOOK: usize = 200;
const REMEMBERED: usize = 50 * LOOK;

/// Prints events as they come, one JSON object per line, until the reader goes away or so many were printed.
pub async fn tail(config: &Config, asked: &EventsTail) -> Result<Outcome> {
    let server = Server::of(config)?;
    let limit = LOOK.to_string();
    let mut pairs = vec![("limit", limit.as_str())];
    pairs.extend(asked.meter.as_deref().map(|meter| ("meter", meter)));
    pairs.extend(asked.subject.as_deref().map(|subject| ("subject", subject)));
    let path = format!("/v1/usageevents?{}", query_string(pairs));
    let (mut seen, mut order) = (HashSet::new(), VecDeque::new());
    let (mut is_first, mut left) = (true, asked.count.unwrap_or(u64::MAX));
    loop {
        let page: Page = server.get(&path).await?;
        // the newest is first
        for item in page.items.iter().rev() {
            let known: Known = serde_json::from_str(item.get())
                .map_err(|error| Error::unavailable(format_args!("an event without an id: {error}")))?;
            if !seen.insert(known.id.clone()) {
                continue;
            }
            order.push_back(known.id);
            if order.len() > REMEMBERED {
                order.pop_front().map(|id| seen.remove(&id));
            }
            if is_first && !asked.all {
                continue;
            }
            if !try_print(item.get()) {
                return Ok(Outcome::Done);
            }
            left -= 1;
            if left == 0 {
                return Ok(Outcome::Done);
            }
        }
        is_first = false;
        tokio::time::sleep(POLL).await;
    }
}

/// False when nobody reads any more.
fn try_print(line: &str) -> bool {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
}
