//! Pictures stay in their box whatever they show, and look as they did: `golden/` holds some of them.
//! `OPEN_SPANNER_REGENERATE=1 cargo test --lib chart::` writes them anew.

use super::*;
use proptest::prelude::*;

fn of(kind: Kind, rows: &[Vec<Option<Quantity>>]) -> Chart {
    let buckets = rows.first().map_or(0, Vec::len);
    Chart {
        id: "c".into(),
        title: "T <b>".into(),
        unit: "u".into(),
        zone: Zone::UTC,
        kind,
        buckets: (0..buckets)
            .map(|at| Bucket { label: at.to_string(), name: at.to_string(), link: format!("/e?x=1&y={at}") })
            .collect(),
        series: rows.iter().map(|row| Series::new("\"s\"", row.clone())).collect(),
        compare: None,
        limits: vec![(Quantity::from(7), "limit".into())],
        is_running: true,
        adds_up: true,
        pruned: 0,
    }
}

fn chart(kind: Kind, values: &[Vec<Option<i64>>]) -> Chart {
    let row = |row: &Vec<Option<i64>>| row.iter().map(|value| value.map(Quantity::from)).collect();
    of(kind, &values.iter().map(row).collect::<Vec<_>>())
}

#[test]
fn text_is_escaped() {
    let svg = chart(Kind::Bar, &[vec![Some(1), Some(2)]]).plot().to_string();
    assert!(svg.contains("T &lt;b&gt;") && svg.contains("&quot;s&quot;") && svg.contains("x=1&amp;y=0"));
    assert!(!svg.contains("<b>"));
}

#[test]
fn axis_numbers_are_short() {
    for (value, text) in
        [(0.0, "0"), (1500.0, "1.5k"), (2e6, "2M"), (0.25, "0.25"), (1e18, "1.0e18"), (-3000.0, "-3k")]
    {
        assert_eq!(compact(value), text);
    }
    assert_eq!([nice(0.0), nice(3.0), nice(20.0), nice(0.03)], [1.0, 5.0, 20.0, 0.05]);
}

#[test]
fn one_sentence_says_what_is_seen() {
    let counted = chart(Kind::Stacked, &[vec![Some(10), Some(5), Some(1)], vec![Some(2), Some(1), None]]);
    assert_eq!(
        counted.description(),
        "Total 19 u in 3 buckets; highest 12 u at 0, lowest 6 u at 1; first 12, last whole one 6 (-50.0 %)."
    );
    // averages are never added
    let averaged = Chart { adds_up: false, ..chart(Kind::Line, &[vec![Some(10), None, Some(30), Some(1)]]) };
    assert_eq!(
        averaged.description(),
        "4 buckets; highest 30 u at 2, lowest 10 u at 0; first 10, last whole one 30 (+200.0 %)."
    );
    let mut several = Chart { adds_up: false, ..chart(Kind::Line, &[vec![Some(3)], vec![Some(4)]]) };
    assert_eq!(
        several.description(),
        "2 series in 1 bucket; highest 4 u at 0 (\"s\"), lowest 3 u at 0 (\"s\")."
    );
    several.series.clear();
    assert_eq!(several.description(), "No values.");
    assert_eq!(chart(Kind::Bar, &[vec![None, None]]).description(), "No values.");
}

#[test]
fn cells_lead_to_their_events() {
    let mut chart = chart(Kind::Bar, &[vec![Some(1), Some(0), None]]);
    let link = |chart: &Chart, at: usize| chart.cell_link(&chart.series[0], &at);
    assert_eq!(link(&chart, 0), "/e?x=1&y=0");
    assert_eq!((link(&chart, 1), link(&chart, 2)), (String::new(), String::new()));
    chart.series[0].narrow = Some(Link::to("").with("meter", "a b").with("f", "subject:eq:x"));
    assert_eq!(link(&chart, 0), "/e?x=1&y=0&meter=a+b&f=subject%3Aeq%3Ax");
    chart.series[0].narrow = None;
    assert_eq!(link(&chart, 0), "");
}

#[test]
fn names_beside_the_end_do_not_touch() {
    let rows: Vec<Vec<Option<i64>>> = (0..9).map(|n| vec![Some(100 + n % 3)]).collect();
    let chart = Chart { is_running: false, ..chart(Kind::Line, &rows) };
    let heights: Vec<f64> = chart.end_labels().iter().map(|(y, ..)| *y).collect();
    // nine series and a limit
    assert_eq!(heights.len(), 10);
    assert!(heights.windows(2).all(|pair| pair[1] - pair[0] >= END_HEIGHT - 0.01), "{heights:?}");
    assert!(heights.iter().all(|y| (0.0..=HEIGHT).contains(y)), "{heights:?}");
    assert!(super::tests::chart(Kind::Bar, &[vec![Some(1)]]).end_labels().len() == 1, "the limit alone");
}

/// Series that differ by more than their colour.
#[test]
fn series_differ_without_colours() {
    let rows: Vec<Vec<Option<i64>>> = (1..=8).map(|n| vec![Some(n), Some(n), Some(n)]).collect();
    let bars = Chart { pruned: 1, ..chart(Kind::Stacked, &rows) }.plot().to_string();
    for class in 2..=8 {
        assert!(bars.contains(&format!("fill=\"url(#c-p{class})\"")), "{class}");
        assert!(bars.contains(&format!("<pattern id=\"c-p{class}\"")), "{class}");
    }
    assert!(bars.contains("fill=\"url(#c-run)\"") && bars.contains("class=\"pruned\" width=\"333.3\""));
    let lines = chart(Kind::Line, &rows).plot().to_string();
    assert!((1..=8).all(|class| lines.contains(&format!("line l{class} d{class}"))));
}

/// A hidden series is missing from the picture and from its scale, and changes neither colours nor numbers.
#[test]
fn hidden_series_are_not_drawn() {
    let rows = [vec![Some(1), Some(1)], vec![Some(1000), Some(1000)], vec![Some(2), Some(2)]];
    for kind in [Kind::Bar, Kind::Stacked, Kind::Line, Kind::Area] {
        let whole = chart(kind, &rows);
        let mut some = whole.clone();
        some.series[1].is_hidden = true;
        some.series[1].toggle = "/usage".to_owned();
        assert!(whole.scale().1 >= 1000.0 && some.scale().1 < 20.0, "{kind:?}");
        let plot = some.plot().to_string();
        let marks =
            |class: usize| [format!("fill=\"url(#c-p{class})\" d="), format!("line l{class} d{class}")];
        assert!(!marks(2).iter().any(|mark| plot.contains(mark)), "{kind:?}: {plot}");
        assert!(marks(3).iter().any(|mark| plot.contains(mark)), "{kind:?}: {plot}");
        assert_eq!(some.description(), format!("{} The picture shows 2 of 3 series.", whole.description()));
        assert_eq!(some.cell(&some.series[1], &0), "1,000");
        let keys: Vec<(bool, String)> =
            some.legend().into_iter().take(3).map(|key| (key.is_hidden, key.toggle)).collect();
        let shown = (false, String::new());
        assert_eq!(keys, [shown.clone(), (true, "/usage".to_owned()), shown]);
    }
}

/// Shares fill the height of each bucket that holds something, those that are hidden included.
#[test]
fn shares_are_of_all_that_a_bucket_holds() {
    let rows = [vec![Some(1), Some(0), Some(30)], vec![Some(3), None, Some(-10)]];
    let mut shares = chart(Kind::Share, &rows);
    let of =
        |chart: &Chart, series: usize| (0..3).map(|at| chart.height(&chart.series[series], at)).collect();
    let (first, second): (Vec<Option<f64>>, Vec<Option<f64>>) = (of(&shares, 0), of(&shares, 1));
    assert_eq!((first, second), (vec![Some(25.0), None, Some(100.0)], vec![Some(75.0), None, Some(0.0)]));
    assert_eq!(shares.scale(), (0.0, 100.0, 25.0));
    assert!(shares.y_axis().to_string().contains(">100 %<"));
    shares.series[1].is_hidden = true;
    assert_eq!(shares.height(&shares.series[0], 0), Some(25.0));
    // the numbers stay what they are
    assert_eq!(shares.cell(&shares.series[0], &2), "30");
    assert!(!chart(Kind::Table, &rows).has_picture());
}

#[expect(clippy::disallowed_methods, reason = "asked for by hand only")]
fn golden(name: &str, chart: &Chart) {
    let path = format!("{}/src/dashboard/chart/golden/{name}.svg", env!("CARGO_MANIFEST_DIR"));
    let whole = [Some(chart.y_axis()), Some(chart.plot()), Some(chart.x_axis()), chart.ends()];
    let legend = chart.legend().into_iter().map(|key| format!("{} {}\n", key.swatch, key.name));
    let fresh: String = whole
        .into_iter()
        .flatten()
        .map(|svg| format!("{svg}\n").replace("><", ">\n<"))
        .chain(legend)
        .collect();
    if std::env::var("OPEN_SPANNER_REGENERATE").is_ok() {
        std::fs::write(&path, &fresh).expect("written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == fresh, "{path} is another: OPEN_SPANNER_REGENERATE=1 cargo test --lib chart::");
}

#[test]
fn pictures_are_the_checked_in_ones() {
    let rows = [vec![Some(3), None, Some(5), Some(8)], vec![Some(1), Some(2), None, Some(4)]];
    let before = Some(Series::other("Before", vec![Some(Quantity::from(4)); 4]));
    golden("bar", &Chart { limits: Vec::new(), ..chart(Kind::Bar, &rows[..1]) });
    golden("stacked", &Chart { pruned: 2, compare: before, ..chart(Kind::Stacked, &rows) });
    golden("line", &Chart { adds_up: false, ..chart(Kind::Line, &rows) });
    golden("area", &Chart { is_running: false, ..chart(Kind::Area, &rows) });
    golden("nothing", &chart(Kind::Bar, &[]));
}

/// Numbers of every size a quantity may have.
fn quantity() -> impl Strategy<Value = Quantity> {
    let parsed = |text: String| Quantity::from_plain(&text).unwrap_or_else(Quantity::zero);
    prop_oneof![
        (-1_000_000i64..1_000_000_000).prop_map(Quantity::from),
        "-?[0-9]{1,20}\\.[0-9]{1,20}".prop_map(parsed),
        "-?[1-9]0{250,300}".prop_map(parsed),
        "-?0\\.0{250,300}[1-9]".prop_map(parsed),
    ]
}

proptest! {
    #[test]
    fn pictures_stay_in_their_box(
        rows in prop::collection::vec(prop::collection::vec(prop::option::of(quantity()), 1..40), 1..10),
        kind in prop::sample::select(vec![Kind::Bar, Kind::Stacked, Kind::Line, Kind::Area, Kind::Share]),
        (adds_up, is_running, pruned) in (any::<bool>(), any::<bool>(), 0usize..50),
    ) {
        let shortest = rows.iter().map(Vec::len).min().unwrap_or(0);
        let rows: Vec<Vec<_>> = rows.into_iter().map(|row| row.into_iter().take(shortest).collect()).collect();
        let compare = rows.first().map(|row| Series::other("Before", row.clone()));
        let chart = Chart { adds_up, is_running, pruned, compare, ..of(kind, &rows) };
        let svg = chart.plot().to_string();
        let ends = chart.ends().map(|svg| svg.to_string()).unwrap_or_default();
        for text in [&svg, &ends, &chart.y_axis().to_string(), &chart.x_axis().to_string()] {
            prop_assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        }
        let drawn = svg.split("</pattern>").last().unwrap_or_default();
        for path in drawn.split(" d=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            for number in path.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-')).filter(|n| !n.is_empty()) {
                let number: f64 = number.parse().expect("a number");
                prop_assert!((0.0..=WIDTH).contains(&number), "{number} in {path}");
            }
        }
        for rect in drawn.split("<rect").skip(1).filter_map(|rest| rest.split('>').next()) {
            let read = |name: &str| -> f64 {
                let value = rect.split(&format!(" {name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
                value.map_or(0.0, |value| value.parse().expect("a number"))
            };
            prop_assert!(read("x") >= 0.0 && read("x") + read("width") <= WIDTH + 0.11, "{rect}");
        }
        prop_assert!(chart.y_axis().to_string().matches("<text").count() <= 13);
        prop_assert!(!chart.description().contains("NaN"));
        let _ = chart.legend();
    }
}
