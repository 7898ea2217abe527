//! SQLite reads a page of events off the end of an index, without sorting.

use super::*;
use crate::db::statement::plan;

#[test]
fn pages_come_sorted_from_an_index() {
    let (_directory, mut conn) = plan::empty_database();
    let after = Some(Position { time: Timestamp(5), id: Uuid::nil() });
    let ranges = [
        (Of::Meter, "SEARCH e USING INDEX events_meter_time (meter_id=?"),
        (Of::Subject, "SEARCH e USING INDEX events_subject_time (hour=? AND subject_id=?"),
    ];
    for (of, range) in ranges {
        for after in [None, after] {
            let streams = Streams { of, ids: vec![1], meters: None, prefiltered: true };
            let mut statement = Statement::new(&conn);
            let sql = streams.sql(&mut statement, &Search::default(), after, 100, &[1]);
            let plan = plan::of(statement, &mut conn, &sql);
            assert!(plan.contains(range), "{plan}");
            let days = "SEARCH d USING PRIMARY KEY (day=? AND subject_id=?)";
            assert_eq!(plan.contains(days), of == Of::Subject, "{plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{plan}");
            assert!(!plan.contains("SCAN events"), "{plan}");
        }
    }
}
