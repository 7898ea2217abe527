use super::*;

fn q(text: &str) -> Quantity {
    Quantity::parse(text).expect(text)
}

fn terms(comparator: &str, threshold: &str, group_by: &str) -> RuleSpec {
    let input = format!(
        r#"{{"name":"r","comparator":"{comparator}","threshold":{threshold},"group_by":"{group_by}"}}"#
    );
    RuleSpec::new(&serde_json::from_str(&input).expect("json")).expect("valid")
}

fn kinds(step: &Step) -> Vec<Kind> {
    step.crossings.iter().map(|crossing| crossing.kind).collect()
}

const T: Timestamp = Timestamp(0);

#[test]
fn comparators_on_both_sides_of_the_threshold() {
    let cases = [
        ("gt", "11", true),
        ("gt", "12", false),
        ("gte", "12", true),
        ("gte", "12.000000000000000000001", false),
        ("lt", "12.000000000000000000001", true),
        ("lt", "12", false),
        ("lte", "12", true),
        ("lte", "11", false),
        ("eq", "12.0", true),
        ("eq", "11", false),
        ("neq", "11", true),
        ("neq", "12", false),
    ];
    for (comparator, threshold, fires) in cases {
        let step = step(&terms(comparator, threshold, ""), &[], &Observation::Total(Some(q("12"))), T);
        assert_eq!(step.states[0].firing, fires, "{comparator} {threshold}");
        assert_eq!(kinds(&step), if fires { vec![Kind::Triggered] } else { vec![] });
    }
}

/// Value seen (`-` nothing, `!` failure), status and events after it, step by step.
#[test]
fn an_ungrouped_rule_moves_as_the_table_says() {
    use Kind::{EvaluationFailed as Failed, Resolved, Triggered};
    use Status::{Alerting, Error, NoData, Ok};
    let table: [&[(&str, Status, &[Kind])]; 6] = [
        &[("5", Ok, &[]), ("10", Alerting, &[Triggered]), ("11", Alerting, &[]), ("9", Ok, &[Resolved])],
        &[("-", NoData, &[]), ("10", Alerting, &[Triggered]), ("-", NoData, &[Resolved]), ("-", NoData, &[])],
        &[("10", Alerting, &[Triggered]), ("!", Error, &[Failed]), ("10", Alerting, &[])],
        &[("10", Alerting, &[Triggered]), ("!", Error, &[Failed]), ("!", Error, &[]), ("1", Ok, &[Resolved])],
        &[("!", Error, &[Failed]), ("10", Alerting, &[Triggered])],
        &[("!", Error, &[Failed]), ("1", Ok, &[]), ("-", NoData, &[])],
    ];
    let terms = terms("gte", "10", "");
    for rows in table {
        let mut states: Vec<State> = Vec::new();
        for (at, (value, status, events)) in rows.iter().enumerate() {
            let seen = match *value {
                "-" => Observation::Total(None),
                "!" => Observation::Failed("broken".to_owned()),
                value => Observation::Total(Some(q(value))),
            };
            let next = step(&terms, &states, &seen, Timestamp(at as i64));
            assert_eq!((next.states.len(), next.states[0].status), (1, *status), "{rows:?} at {at}");
            assert_eq!(kinds(&next), *events, "{rows:?} at {at}");
            states = next.states;
        }
    }
}

fn groups(pairs: &[(&str, &str)]) -> Observation {
    Observation::Groups(pairs.iter().map(|(group, value)| ((*group).to_owned(), q(value))).collect())
}

fn shape(states: &[State]) -> Vec<(String, Status)> {
    let mut shape: Vec<_> = states
        .iter()
        .map(|state| (state.group.as_ref().map_or("*".to_owned(), |g| g.value.clone()), state.status))
        .collect();
    shape.sort();
    shape
}

#[test]
fn groups_live_their_own_lives() {
    let terms = terms("gte", "10", "subject");
    let first = step(&terms, &[], &groups(&[]), T);
    assert_eq!(shape(&first.states), [("*".to_owned(), Status::NoData)]);
    let second = step(&terms, &first.states, &groups(&[("a", "12"), ("b", "3")]), T);
    assert_eq!(shape(&second.states), [("a".to_owned(), Status::Alerting), ("b".to_owned(), Status::Ok)]);
    assert_eq!(kinds(&second), [Kind::Triggered]);
    let third = step(&terms, &second.states, &groups(&[("b", "10")]), T);
    assert_eq!(shape(&third.states), [("a".to_owned(), Status::NoData), ("b".to_owned(), Status::Alerting)]);
    let resolved = third.crossings.iter().find(|c| c.kind == Kind::Resolved).expect("a is resolved");
    assert_eq!(
        (resolved.state.group.as_ref().map(|g| g.value.as_str()), &resolved.state.value),
        (Some("a"), &q("0"))
    );
    let failed = step(&terms, &third.states, &Observation::Failed("broken".to_owned()), T);
    assert_eq!((failed.states.len(), kinds(&failed)), (3, vec![Kind::EvaluationFailed]));
    let after = step(&terms, &failed.states, &groups(&[("b", "10")]), T);
    assert_eq!((after.states.len(), kinds(&after)), (2, vec![]), "the error is gone, b fired all along");
}

#[test]
fn a_firing_group_is_never_cut_off() {
    let terms = terms("gte", "10", "subject");
    let low = step(&terms, &[], &groups(&[("small", "10")]), T);
    let names: Vec<String> = (0..2_000).map(|n| format!("g{n:04}")).collect();
    let mut many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "99")).collect();
    many.push(("small", "10"));
    let next = step(&terms, &low.states, &groups(&many), T);
    assert_eq!(next.states.len(), GROUPS_MAX);
    assert!(next.crossings.iter().all(|c| c.kind == Kind::Triggered), "nothing is resolved by the cut");
    assert!(next.states.iter().any(|s| s.group.as_ref().is_some_and(|g| g.value == "small")));
    let again = step(&terms, &next.states, &groups(&many), T);
    assert_eq!(kinds(&again), []);
}

#[test]
fn the_largest_groups_are_kept_and_their_order_is_the_names() {
    let terms = terms("gte", "100", "subject");
    let names: Vec<String> = (0..3_000).map(|n| format!("g{n:04}")).collect();
    let values: Vec<String> = (0..3_000).map(|n| (n % 50).to_string()).collect();
    let many: Vec<(&str, &str)> =
        names.iter().map(String::as_str).zip(values.iter().map(String::as_str)).collect();
    let next = step(&terms, &[], &groups(&many), T);
    let kept: Vec<(&Quantity, &str)> = next.states.iter().map(|s| (&s.value, s.key().1)).collect();
    let mut wanted: Vec<(Quantity, &str)> = many.iter().map(|(name, value)| (q(value), *name)).collect();
    wanted.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let wanted: Vec<(&Quantity, &str)> =
        wanted.iter().take(GROUPS_MAX).map(|(value, name)| (value, *name)).collect();
    assert_eq!(kept, wanted);
}

#[test]
fn long_values_have_names_of_their_own() {
    let long = |end: &str| format!("{}{end}", "x".repeat(8_000));
    let [one, other] = ["a", "b"].map(|end| group_name(long(end)));
    assert_ne!(one, other, "they differ far behind what is shown");
    assert!(one.starts_with(&"x".repeat(256)) && one.contains('…'), "{one}");
    assert!(one.len() < 300 && one.len() > 256);
    let short = "x".repeat(256);
    assert_eq!(group_name(short.clone()), short);
    assert_ne!(group_name(one.clone()), one, "a value that looks like a name has another one");
    // a letter is not cut in two
    assert!(group_name("ü".repeat(200).replacen('ü', "u", 1)).starts_with("uü"));
}

#[test]
fn closing_resolves_what_fires_and_nothing_else() {
    let terms = terms("gte", "10", "subject");
    let states = step(&terms, &[], &groups(&[("a", "12"), ("b", "3")]), T).states;
    let closed = close(&states, "the rule was disabled", Timestamp(7));
    assert_eq!(closed.len(), 1);
    assert_eq!((closed[0].kind, closed[0].state.status), (Kind::Resolved, Status::Ok));
    assert_eq!(primary(&states).map(|state| state.status), Some(Status::Alerting));
    let regrouped =
        step(&RuleSpec { group_by: None, ..terms }, &states, &Observation::Total(Some(q("1"))), T);
    assert_eq!((regrouped.states.len(), kinds(&regrouped)), (1, vec![Kind::Resolved]));
}

#[test]
fn unchanged_states_keep_their_time() {
    let terms = terms("gte", "10", "");
    let first = step(&terms, &[], &Observation::Total(Some(q("12"))), Timestamp(1));
    let second = step(&terms, &first.states, &Observation::Total(Some(q("12"))), Timestamp(2));
    assert_eq!(second.states[0].updated_at, Timestamp(1));
    assert_eq!(first.states[0].message, "value 12 is at or above threshold 10");
}

#[test]
fn a_failure_is_told_once_for_each_reason() {
    let terms = terms("gte", "10", "subject");
    let fails = |before: &[State], reason: &str, at: i64| {
        step(&terms, before, &Observation::Failed(reason.to_owned()), Timestamp(at))
    };
    let first = fails(&[], "broken", 1);
    let second = fails(&first.states, "broken", 2);
    assert_eq!((second.is_failure(), kinds(&second)), (true, vec![]));
    assert_eq!(second.states, first.states, "nothing of it is written");
    let other = fails(&second.states, "slow", 3);
    assert_eq!((kinds(&other), other.states[0].updated_at), (vec![Kind::EvaluationFailed], Timestamp(3)));
    let healed = step(&terms, &other.states, &groups(&[("a", "1")]), Timestamp(4));
    assert!(!healed.is_failure());
    assert_eq!(kinds(&fails(&healed.states, "slow", 5)), [Kind::EvaluationFailed], "it fails anew");
}

#[test]
fn rules_are_checked() {
    let with = |json: &str| RuleSpec::new(&serde_json::from_str(json).expect("json"));
    for bad in [
        r#"{}"#,
        r#"{"name":" "}"#,
        r#"{"name":"r","comparator":">"}"#,
        r#"{"name":"r","window_seconds":59}"#,
        r#"{"name":"r","window_seconds":31622401}"#,
        r#"{"name":"r","evaluation_interval_seconds":86401}"#,
        r#"{"name":"r","subject":"a b"}"#,
        r#"{"name":"r","group_by":"a b"}"#,
        r#"{"name":"r","metadata":{"a":" "}}"#,
        r#"{"name":"r","metadata":{"metadata.":"x"}}"#,
    ] {
        assert!(with(bad).is_err(), "{bad}");
    }
    let terms = with(r#"{"name":" r ","window_seconds":-5,"metadata":{"metadata.region":" east "},"group_by":"metadata.zone.id"}"#)
        .expect("valid");
    assert_eq!((terms.name.as_str(), terms.window_seconds), ("r", 3600));
    assert_eq!(terms.metadata.get("region").map(String::as_str), Some("east"));
    assert_eq!(terms.group_by.as_deref(), Some("zone.id"));
    let same = terms
        .changed(&serde_json::from_str(r#"{"name":"","comparator":"","window_seconds":0}"#).expect("json"));
    assert_eq!(same.expect("valid"), terms);
    let cleared = terms
        .changed(&serde_json::from_str(r#"{"metadata":{},"group_by":""}"#).expect("json"))
        .expect("valid");
    assert!(cleared.metadata.is_empty() && cleared.group_by.is_none());
}
