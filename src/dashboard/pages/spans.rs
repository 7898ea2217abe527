//! Ranges of `/usage` that hang on what is stored: all of a meter's time, and the period of the plan that a subject has.
//! They are read anew whenever a view is opened, like every range that is a word.

use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::ask;
use crate::dashboard::grammar::{self, PERIOD, Range, STORED_RANGES};
use crate::dashboard::pages::usage_view::UsageView;
use crate::db::Conn;
use crate::entitlements::progress;
use crate::error::{Error, Result};
use crate::http::extract::Params;
use crate::metering::calendar::{Buckets, Zone};
use crate::metering::meter::Meter;
use crate::metering::time::{BucketSize, Timestamp, Window};
use crate::usage::query::Query;

const BUCKETS_MAX: usize = 10_000;
/// As far as buckets of years may reach back, nearly: nothing was metered before.
const YEARS_SEARCHED: i32 = 48;

/// What an address asks for, whatever its range is.
pub async fn read(
    app: &App,
    caller: &Caller,
    meter: Meter,
    params: &Params,
    home: &Zone,
) -> Result<UsageView> {
    let word = params.get("range").trim();
    let has_times = ["from", "to"].iter().any(|name| !params.get(name).trim().is_empty());
    if has_times || !is_stored(word) {
        return UsageView::parse(meter, params, home);
    }
    // a bucket may be right for this time alone
    let mut asked = UsageView::parse(meter, &params.without(&["range", "bucket"]), home)?;
    let now = Timestamp::now();
    let window = match word {
        PERIOD => period(app, caller, &asked, now).await?,
        _ => everything(app, &asked, now).await?,
    };
    let zone = asked.calendar.zone.clone();
    asked.range = Range { word: word.to_owned(), is_running: window.to > now, window, zone };
    asked.bucket = params.get("bucket").to_owned();
    asked.calendar.size = grammar::bucket(&asked.bucket, window)?;
    Buckets::of(asked.calendar.clone(), window)?;
    Ok(asked)
}

/// Whether a range means something on `/usage` alone.
pub fn is_stored(word: &str) -> bool {
    STORED_RANGES.iter().any(|(known, _)| *known == word)
}

/// The period that runs now, of the limit that the subject's plan puts on the meter.
async fn period(app: &App, caller: &Caller, asked: &UsageView, now: Timestamp) -> Result<Window> {
    if asked.subject.is_empty() {
        return Err(Error::invalid("range period is the plan period of one subject: name a subject"));
    }
    let (workspace_id, subject) = (caller.workspace_id, asked.subject.clone());
    let read = move |conn: &mut Conn| progress::of_subject(conn, workspace_id, &subject, now);
    let (_, items) = app.store.read("entitlements::progress", read).await?.unzip();
    let own = items.unwrap_or_default().into_iter().find(|item| item.meter.name == asked.meter.name);
    own.map(|item| item.window).ok_or_else(|| {
        Error::invalid(format!("range period: no plan limits {} for {}", asked.meter.name, asked.subject))
    })
}

/// From the month of the first event to the end of today.
async fn everything(app: &App, asked: &UsageView, now: Timestamp) -> Result<Window> {
    let zone = &asked.calendar.zone;
    let whole = Range::parse_in(zone, &Params::parse("range=all"), "", now)?.window;
    let start = |size| ask::calendar(size, zone).around(now).from;
    let oldest = ask::calendar(BucketSize::Year, zone).around(now.plus_months(-12 * YEARS_SEARCHED)).from;
    let searched = Window::new(oldest.max(whole.from), whole.to)?;
    let Some(year) = first(app, asked, searched, BucketSize::Year).await? else {
        return Window::new(start(BucketSize::Month), whole.to);
    };
    let end = ask::calendar(BucketSize::Year, zone).around(year).to.min(whole.to);
    let month = first(app, asked, Window::new(year, end)?, BucketSize::Month).await?;
    Window::new(month.unwrap_or(year), whole.to)
}

/// The start of the first bucket that holds something.
async fn first(app: &App, asked: &UsageView, window: Window, size: BucketSize) -> Result<Option<Timestamp>> {
    let calendar = ask::calendar(size, &asked.calendar.zone);
    let query = Query { buckets: Some(Buckets::of(calendar, window)?), ..asked.query(window, false, false)? };
    let rows = ask::buckets(app, query, BUCKETS_MAX).await?;
    Ok(rows.iter().map(|row| row.bucket_start.at.max(window.from)).min())
}
