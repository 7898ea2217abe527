//! What expressions come to, and what is refused where.

use proptest::prelude::*;

use super::*;
use crate::metering::json::parse_object;

fn eval(text: &str, quantity: &str, metadata: &str) -> std::result::Result<String, String> {
    let sent = Quantity::parse(quantity).ok();
    let metadata = parse_object(metadata).expect("an object");
    let expression = Expression::parse(text).map_err(|error| error.message)?;
    expression.quantity(sent.as_ref(), &metadata).map(|q| q.to_json()).map_err(|error| error.message)
}

#[test]
fn values_are_exact() {
    let metadata = r#"{"tokens":{"in":1000,"out":250},"cached":true,"model":"large","price":0.1,"a-b":3}"#;
    for (text, expected) in [
        ("quantity", "7"),
        ("quantity * 2 + 1", "15"),
        ("1 + 2 * 3 - -4", "11"),
        ("(1 + 2) * 3", "9"),
        ("metadata.price * 3", "0.3"),
        ("metadata.tokens.in + 4 * metadata.tokens.out", "2000"),
        ("metadata.a-b", "3"),
        ("10 / 4", "2.5"),
        ("1 / 3", "0.3333333333333333333333333333333333"),
        ("if(metadata.cached, quantity / 10, quantity)", "0.7"),
        ("if(metadata.model = 'large' and quantity >= 7, 3, 1)", "3"),
        ("if(not (metadata.model == \"small\"), 1, 2)", "1"),
        ("if(metadata.nothing > 3 or false, 1, 2)", "2"),
        ("if(metadata.nothing = null, 5, 6)", "5"),
        ("coalesce(metadata.nothing, metadata.tokens.nothing, quantity)", "7"),
        ("coalesce(metadata.nothing * 3, 4)", "4"),
        ("min(quantity, 3, 9) + max(1, 2) + abs(0 - 4)", "9"),
        ("floor(2.7) + ceil(2.1) + round(2.5) + round(1.005, 2)", "8"),
    ] {
        assert_eq!(eval(text, "7", metadata).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn errors_say_where() {
    for (text, place) in [
        ("", "position 1"),
        ("quantity +", "position 11"),
        ("quantity quantity", "position 10"),
        ("cost(1)", "position 1"),
        ("(1", "position 3"),
        ("'abc", "position 1"),
        ("1 + if(true, 1)", "position 5"),
        ("quantity / (3 - 3)", "position 10"),
        ("quantity + metadata.model", "position 12"),
        ("metadata.model > 3", "position 16"),
        ("metadata.", "position 1"),
        ("1.2.3", "position 1"),
    ] {
        let message = eval(text, "7", r#"{"model":"m"}"#).expect_err(text);
        assert!(message.contains(place), "{text}: {message}");
    }
    assert!(eval("metadata.x", "1", "{}").is_err(), "no value");
    assert!(eval("quantity > 1", "1", "{}").is_err(), "no number");
}

#[test]
fn size_and_depth_are_bounded() {
    let deep = format!("{}1{}", "(".repeat(2 * DEPTH_MAX), ")".repeat(2 * DEPTH_MAX));
    assert!(Expression::parse(&deep).is_err());
    assert!(Expression::parse(&"-".repeat(500)).is_err());
    assert!(Expression::parse(&format!("1{}", "+1".repeat(NODES_MAX))).is_err());
    assert!(Expression::parse(&"1".repeat(LENGTH_MAX + 1)).is_err());
    let grows = format!("quantity{}", "*quantity".repeat(100));
    let message = eval(&grows, "123456789012345678901234567890", "{}").expect_err("too many digits");
    assert!(message.contains("too many digits"), "{message}");
}

proptest! {
    /// The same numbers, computed by the quantities themselves.
    #[test]
    fn arithmetic_is_that_of_quantities(a in 1i64..1_000_000, b in 1i64..1_000_000, c in -1000i64..1000) {
        let metadata = format!(r#"{{"b":{b},"c":{c}}}"#);
        let got = eval("quantity * metadata.b + metadata.c / 8", &a.to_string(), &metadata);
        let q = |n: i64| Quantity::from(n);
        let expected = &(&q(a) * &q(b)) + &q(c).divide(&q(8));
        prop_assert_eq!(got, Ok(expected.to_json()));
    }
}
