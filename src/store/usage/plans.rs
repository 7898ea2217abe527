//! SQLite finds what a query sums up by index, never by reading a table.

use super::*;
use crate::filter::Filter;
use crate::store::statement::plan;
use crate::usage::GroupField;

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
        version: 1,
        event_retention_days: 90,
        pruned_before: None,
        created_at: Micros(0),
    };
    Query {
        meter: Arc::new(meter),
        window: Window { from: Micros(0), to: Micros(30 * DAY) },
        subject: None,
        group_by: Vec::new(),
        filter: None,
        bucket_size: Some(BucketSize::Day),
        only_valued: false,
    }
}

fn sum(query: &Query, subjects: Subjects) -> Sum<'_> {
    let named = query.names_subjects();
    Sum { query, subjects, named, hour_by_hour: false, left_out: None, cells: Cells::first(100) }
}

fn rollup_plan(query: &Query, subjects: Subjects) -> String {
    let (_directory, mut conn) = plan::empty_database();
    let mut statement = Statement::new(&conn);
    let sql = sum(query, subjects).rollup_sql(&mut statement, Grain::Hour, query.window, true);
    plan::of(statement, &mut conn, &sql)
}

#[test]
fn sums_of_a_meter_and_of_a_subject_come_from_one_range_of_rollups() {
    let range = "USING PRIMARY KEY (meter_id=? AND subject_id=? AND grain=? AND start>? AND start<?)";
    for subjects in [Subjects::All, Subjects::Only(vec![5]), Subjects::Only(vec![5, 6])] {
        let plan = rollup_plan(&query(), subjects);
        assert!(plan.contains(&format!("SEARCH rollups {range}")), "{plan}");
        assert!(!plan.contains("SCAN rollups"), "{plan}");
    }
}

#[test]
fn sums_of_all_subjects_read_the_window_only() {
    let query = Query { group_by: vec![GroupField::Subject], ..query() };
    let plan = rollup_plan(&query, Subjects::Each);
    assert!(
        plan.contains("SEARCH rollups USING INDEX rollups_subject_time (meter_id=? AND start>? AND start<?)"),
        "{plan}"
    );
}

#[test]
fn raw_events_come_by_meter_and_time() {
    let filter = Filter::metadata_text("a", "b").ok();
    let query = Query { filter, group_by: vec![GroupField::Subject], ..query() };
    let (_directory, mut conn) = plan::empty_database();
    for subjects in [Subjects::Each, Subjects::Only(vec![5])] {
        let mut statement = Statement::new(&conn);
        let sql = sum(&query, subjects).raw_sql(&mut statement, query.window, None);
        let plan = plan::of(statement, &mut conn, &sql);
        assert!(plan.contains("SEARCH e USING INDEX"), "{plan}");
        assert!(plan.contains("event_time>? AND event_time<?"), "{plan}");
        assert!(!plan.contains("SCAN"), "{plan}");
    }
}
