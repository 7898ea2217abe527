//! At the end both sides are added up, per meter and month, and every difference is told.

use std::collections::BTreeMap;

use super::Import;
use crate::error::Result;
use crate::import::sql::totals;
use crate::metering::event::Event;
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

type Month = Timestamp;

/// Events and their exact sum.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sum {
    events: u64,
    total: Quantity,
}

impl Sum {
    const fn none(zero: Quantity) -> Sum {
        Sum { events: 0, total: zero }
    }

    fn add(&mut self, events: u64, total: &Quantity) {
        self.events += events;
        self.total += total;
    }
}

/// What was read of theirs and is stored here, by meter and month.
#[derive(Default)]
pub struct Tally(BTreeMap<(i64, Month), Sum>);

impl Tally {
    pub fn add(&mut self, event: &Event) {
        let key = (event.meter.id, event.time.month_start());
        self.0.entry(key).or_insert_with(|| Sum::none(Quantity::zero())).add(1, &event.quantity);
    }
}

impl Import {
    pub(super) fn compare(&mut self) -> Result<()> {
        let mut meters: Vec<(String, i64)> = Vec::new();
        for ((workspace_id, name), meter) in &self.ids.meters {
            let workspace = self.ids.workspaces.iter().find(|(_, id)| *id == workspace_id);
            let workspace = workspace.map(|(public_id, _)| public_id.as_str()).unwrap_or_default();
            meters.push((format!("{workspace} {name}"), meter.id));
        }
        meters.sort();
        for (name, meter_id) in meters {
            let ours = self.months(meter_id)?;
            let theirs =
                self.tally.0.range((meter_id, Timestamp(i64::MIN))..=(meter_id, Timestamp(i64::MAX)));
            let theirs: BTreeMap<Month, Sum> =
                theirs.map(|((_, month), sum)| (*month, sum.clone())).collect();
            self.tell(&name, &theirs, &ours);
        }
        Ok(())
    }

    fn months(&mut self, meter_id: i64) -> Result<BTreeMap<Month, Sum>> {
        let mut months: BTreeMap<Month, Sum> = BTreeMap::new();
        for (day, events, total) in self.ours.read(|conn| totals::days(conn, meter_id))? {
            let month = months.entry(day.month_start());
            month.or_insert_with(|| Sum::none(Quantity::zero())).add(events, &total);
        }
        Ok(months)
    }

    fn tell(&mut self, name: &str, theirs: &BTreeMap<Month, Sum>, ours: &BTreeMap<Month, Sum>) {
        let mut all = Sum::none(Quantity::zero());
        theirs.values().for_each(|sum| all.add(sum.events, &sum.total));
        let mut is_equal = true;
        let months: std::collections::BTreeSet<&Month> = theirs.keys().chain(ours.keys()).collect();
        for month in months {
            let none = Sum::none(Quantity::zero());
            let (their, our) = (theirs.get(month).unwrap_or(&none), ours.get(month).unwrap_or(&none));
            if their == our {
                continue;
            }
            is_equal = false;
            let why = match our.events >= their.events {
                true => "the rest came to this server by other ways",
                false => "the rest was pruned here since it was brought in; its totals are kept",
            };
            self.report.note(format!(
                "{name} {:.7}: read {} events, sum {}; here {} events, sum {}: {why}",
                month.to_seconds_text(),
                their.events,
                their.total.to_plain(),
                our.events,
                our.total.to_plain()
            ));
        }
        let verdict = if is_equal { "equal on both sides in every month" } else { "differs, see above" };
        self.report.note(format!("{name}: {} events, sum {}: {verdict}", all.events, all.total.to_plain()));
    }
}
