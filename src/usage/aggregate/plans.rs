//! SQLite finds what a query sums up by index, never by reading a table.

use super::*;
use crate::db::statement::plan;
use crate::metering::calendar::{Buckets, Wish, Zone};
use crate::metering::filter::Filter;
use crate::usage::query::GroupField;

fn query() -> Query {
    let meter = Meter {
        id: 1,
        public_id: String::new(),
        workspace_id: 1,
        name: "m".to_owned(),
        description: String::new(),
        unit: "u".to_owned(),
        aggregation: Aggregation::Sum,
        dimensions: Vec::new(),
        options: Default::default(),
        version: 1,
        event_retention_days: 90,
        pruned_before: None,
        created_at: Timestamp(0),
    };
    Query {
        meter: Arc::new(meter),
        window: Window { from: Timestamp(0), to: Timestamp(30 * DAY) },
        subject: None,
        group_by: Vec::new(),
        filter: None,
        buckets: Some(Buckets::plain(BucketSize::Day)),
        skip_missing: false,
        exact: true,
    }
}

fn sum(query: &Query, subjects: Subjects) -> Sum<'_> {
    let named = query.names_subjects();
    Sum {
        query,
        subjects,
        named,
        hour_by_hour: false,
        left_out: None,
        cover: None,
        cells: GroupedAggregates::first(100),
    }
}

#[test]
fn totals_of_a_meter_come_from_one_range_of_rollups() {
    let range = "SEARCH r USING PRIMARY KEY (meter_id=? AND grain=? AND start>? AND start<?)";
    for grain in [Grain::MeterHour, Grain::MeterDay] {
        let (_directory, mut conn) = plan::empty_database();
        let (mut statement, query) = (Statement::new(&conn), query());
        let sql = sum(&query, Subjects::All).totals_sql(&mut statement, grain, query.window);
        let plan = plan::of(statement, &mut conn, &sql);
        assert!(plan.contains(range), "{plan}");
        assert!(!plan.contains("SCAN r"), "{plan}");
    }
}

#[test]
fn raw_events_come_by_time() {
    let filter = Filter::metadata_text("a", "b").ok();
    let query = Query { filter, group_by: vec![GroupField::Subject], ..query() };
    let (_directory, mut conn) = plan::empty_database();
    let ranges = [
        (Subjects::Each, "events_meter_time (meter_id=? AND event_time>? AND event_time<?)"),
        (
            Subjects::Only(vec![5]),
            "events_subject_time (hour=? AND subject_id=? AND event_time>? AND event_time<?)",
        ),
    ];
    for (subjects, range) in ranges {
        let mut statement = Statement::new(&conn);
        let sql = sum(&query, subjects).raw_sql(&mut statement, &Source::Whole(query.window), None);
        let plan = plan::of(statement, &mut conn, &sql);
        assert!(plan.contains(&format!("SEARCH e USING INDEX {range}")), "{plan}");
        assert!(!plan.contains("SCAN e"), "{plan}");
    }
}

/// Days of a zone off the hour.
fn kolkata() -> Query {
    let wish = Wish { time_zone: "Asia/Kolkata", ..Wish::default() };
    let calendar = wish.calendar(&Zone::UTC).expect("a calendar");
    let buckets = Buckets::of(calendar, query().window).expect("a month");
    Query { buckets: Some(buckets), ..query() }
}

#[test]
fn buckets_of_a_zone_come_from_a_range_for_each_piece() {
    let (_directory, mut conn) = plan::empty_database();
    let query = kolkata();
    let cover = pieces::cover(query.window, query.odd_buckets().expect("odd"), Timestamp(0), HOUR);
    let mut statement = Statement::new(&conn);
    let sql = sum(&query, Subjects::All).pieces_sql(&mut statement, &cover.stored);
    let plan = plan::of(statement, &mut conn, &sql);
    let range = "SEARCH r USING PRIMARY KEY (meter_id=? AND grain=? AND start>? AND start<?)";
    assert!(plan.contains(range) && !plan.contains("SCAN r"), "{plan}");
    let cases = [
        (
            Subjects::All,
            "SEARCH e USING INDEX events_meter_time (meter_id=? AND event_time>? AND event_time<?)",
        ),
        (
            Subjects::Only(vec![5]),
            "SEARCH e USING INDEX events_subject_time (hour=? AND subject_id=? AND event_time>? AND event_time<?)",
        ),
    ];
    for (subjects, range) in cases {
        let cut = pieces::split(cover.cut_windows(), query.odd_buckets().expect("odd"));
        let mut statement = Statement::new(&conn);
        let sql = sum(&query, subjects).raw_sql(&mut statement, &Source::Pieces(cut), None);
        let plan = plan::of(statement, &mut conn, &sql);
        assert!(plan.contains(range) && !plan.contains("SCAN e"), "{plan}");
    }
}
