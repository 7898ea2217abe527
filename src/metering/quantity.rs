//! Exact decimal quantities: parsing, printing, and a byte form that sorts like the number it holds.
//! No rounding happens here except in [`Quantity::divide`]. Never a float on the way, in either direction.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use bigdecimal::{BigDecimal, RoundingMode};
use num_bigint::{BigInt, Sign};
use num_traits::{Signed, ToPrimitive, Zero};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::value::RawValue;

/// Most significant digits of one quantity; sums may have more.
pub const DIGITS_MAX: u64 = 60;
/// The decimal exponents of 64-bit floats, which is what clients can send (rest.md 2).
const EXPONENT_MAX: i64 = 308;
const EXPONENT_MIN: i64 = -330;
/// Digits kept when a division does not end.
const QUOTIENT_DIGITS: u64 = 34;

/// An exact decimal number, without trailing zeros.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity(BigDecimal);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    NotANumber,
    TooManyDigits,
    OutOfRange,
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reject::NotANumber => f.write_str("must be a finite number"),
            Reject::TooManyDigits => write!(f, "must not have more than {DIGITS_MAX} significant digits"),
            Reject::OutOfRange => f.write_str("is out of range"),
        }
    }
}

/// The digits of plain text without the zeros around them, and how far behind the point the last one stands; `None` for
/// zero. They are counted before they become a number, which takes time with the square of their number.
fn significant(text: &str) -> Result<Option<(BigInt, i64)>, Reject> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = rest.split_once('.').unwrap_or((rest, ""));
    let digits = || whole.bytes().chain(fraction.bytes());
    if (whole.is_empty() && fraction.is_empty()) || !digits().all(|byte| byte.is_ascii_digit()) {
        return Err(Reject::NotANumber);
    }
    let Some(first) = digits().position(|digit| digit != b'0') else { return Ok(None) };
    let zeros_behind = digits().rev().take_while(|digit| *digit == b'0').count();
    let count = whole.len() + fraction.len() - first - zeros_behind;
    if count as u64 > DIGITS_MAX {
        return Err(Reject::TooManyDigits);
    }
    let sign = if negative { Sign::Minus } else { Sign::Plus };
    let kept: Vec<u8> = digits().skip(first).take(count).map(|digit| digit - b'0').collect();
    let digits = BigInt::from_radix_be(sign, &kept, 10).ok_or(Reject::NotANumber)?;
    Ok(Some((digits, fraction.len() as i64 - zeros_behind as i64)))
}

impl Quantity {
    pub fn zero() -> Self {
        Quantity(BigDecimal::zero())
    }

    /// `mantissa / 10^scale`.
    fn of_small(mut mantissa: u64, mut scale: i64, negative: bool) -> Self {
        if mantissa == 0 {
            return Quantity::zero();
        }
        while mantissa.is_multiple_of(10) {
            (mantissa, scale) = (mantissa / 10, scale - 1);
        }
        let sign = if negative { Sign::Minus } else { Sign::Plus };
        Quantity(BigDecimal::new(BigInt::from_biguint(sign, mantissa.into()), scale))
    }

    /// `digits / 10^scale`.
    pub fn of_digits(digits: i64, scale: i64) -> Self {
        Quantity::of_small(digits.unsigned_abs(), scale, digits < 0)
    }

    /// `digits / 10^scale`.
    pub fn of_long_digits(mut digits: i128, mut scale: i64) -> Self {
        if let Ok(short) = i64::try_from(digits) {
            return Quantity::of_digits(short, scale);
        }
        while digits % 10 == 0 {
            (digits, scale) = (digits / 10, scale - 1);
        }
        Quantity(BigDecimal::new(digits.into(), scale))
    }

    /// Reads up to 18 digits with or without a point, which nearly every quantity is: a fifth of the time of the
    /// general way. `None` for all other text.
    fn parse_small(text: &str) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        if whole.is_empty() || fraction.is_empty() || digits.len() > 18 {
            return None;
        }
        let scale = if digits.len() == whole.len() { 0 } else { fraction.len() as i64 };
        let mut mantissa = 0;
        for byte in whole.bytes().chain(fraction.bytes().take(scale as usize)) {
            mantissa = mantissa * 10 + u64::from(byte.checked_sub(b'0').filter(|digit| *digit < 10)?);
        }
        Some(Quantity::of_small(mantissa, scale, negative))
    }

    /// Reads decimal text as a database writes it; sums may be longer than any single quantity. `None` for text that
    /// is no number.
    pub fn from_plain(text: &str) -> Option<Self> {
        Quantity::parse_small(text).or_else(|| Some(Quantity(BigDecimal::from_str(text).ok()?.normalized())))
    }

    /// Reads the text of a JSON number within the limits of one event.
    pub fn parse(text: &str) -> Result<Self, Reject> {
        if let Some(small) = Quantity::parse_small(text) {
            return Ok(small);
        }
        // the text is bounded before it becomes digits: 1e999999999 must not allocate
        let (mantissa, exponent) = match text.find(['e', 'E']) {
            Some(at) => (&text[..at], text[at + 1..].parse::<i64>().map_err(|_| Reject::OutOfRange)?),
            None => (text, 0),
        };
        if !(-1_000_000..=1_000_000).contains(&exponent) {
            return Err(Reject::OutOfRange);
        }
        let Some((digits, scale)) = significant(mantissa)? else { return Ok(Quantity::zero()) };
        let value = Quantity(BigDecimal::new(digits, scale - exponent));
        let magnitude = value.0.digits() as i64 - value.0.fractional_digit_count() - 1;
        if !(EXPONENT_MIN..=EXPONENT_MAX).contains(&magnitude) {
            return Err(Reject::OutOfRange);
        }
        Ok(value)
    }

    /// The shortest decimal text that reads back to this float (what other clients print); NaN and infinities refused.
    pub fn from_f64(value: f64) -> Result<Self, Reject> {
        if !value.is_finite() {
            return Err(Reject::NotANumber);
        }
        Quantity::parse(&format!("{value:e}"))
    }

    pub fn is_positive(&self) -> bool {
        self.0.is_positive()
    }

    pub fn is_zero(&self) -> bool {
        self.0.is_zero()
    }

    /// Exact quotient when it ends within 34 digits, else rounded half to even there. `divisor` must not be zero.
    pub fn divide(&self, divisor: &Quantity) -> Quantity {
        if divisor.0.is_zero() {
            return Quantity::zero();
        }
        let digits = NonZeroU64::new(QUOTIENT_DIGITS).unwrap_or(NonZeroU64::MIN);
        Quantity((&self.0 / &divisor.0).with_precision_round(digits, RoundingMode::HalfEven).normalized())
    }

    /// Its size without a sign, or cut to so many digits behind the point: down, up, or to the nearest, half to even.
    pub fn rounded(&self, how: Option<(i64, std::cmp::Ordering)>) -> Quantity {
        let Some((digits, direction)) = how else { return Quantity(self.0.abs()) };
        let mode = match direction {
            std::cmp::Ordering::Less => RoundingMode::Floor,
            std::cmp::Ordering::Equal => RoundingMode::HalfEven,
            std::cmp::Ordering::Greater => RoundingMode::Ceiling,
        };
        Quantity(self.0.with_scale_round(digits, mode).normalized())
    }

    /// Rounded to so many significant digits, half to even.
    pub fn to_digits(&self, digits: u64) -> Quantity {
        let digits = NonZeroU64::new(digits).unwrap_or(NonZeroU64::MIN);
        Quantity(self.0.with_precision_round(digits, RoundingMode::HalfEven).normalized())
    }

    /// How many digits it has, and the power of ten of the first one.
    pub fn extent(&self) -> (u64, i64) {
        let digits = self.0.digits();
        (digits, digits as i64 - self.0.fractional_digit_count())
    }

    pub fn decimal(&self) -> &BigDecimal {
        &self.0
    }

    /// For metrics and messages only.
    pub fn to_f64(&self) -> f64 {
        self.to_json().parse().unwrap_or(f64::MAX)
    }

    /// Significant digits and decimal exponent: the value is `0.digits × 10^exponent`.
    fn digits(&self) -> (bool, String, i64) {
        let (digits, scale) = self.0.as_bigint_and_scale();
        if let Some(mut small) = digits.magnitude().to_u64().filter(|small| *small > 0) {
            let mut scale = scale;
            while small.is_multiple_of(10) {
                (small, scale) = (small / 10, scale - 1);
            }
            let text = small.to_string();
            let exponent = text.len() as i64 - scale;
            return (digits.sign() == Sign::Minus, text, exponent);
        }
        let normal = self.0.normalized();
        let (digits, scale) = normal.as_bigint_and_exponent();
        let text = digits.magnitude().to_string();
        let exponent = text.len() as i64 - scale;
        (digits.sign() == Sign::Minus, text, exponent)
    }

    /// As a JSON number: positional from 1e-6 up to 1e21, exponent form outside (rest.md 3), all digits kept.
    pub fn to_json(&self) -> String {
        if self.0.is_zero() {
            return "0".to_owned();
        }
        let (negative, digits, exponent) = self.digits();
        let sign = if negative { "-" } else { "" };
        if (-5..=21).contains(&exponent) {
            return format!("{sign}{}", positional(&digits, exponent));
        }
        let power = exponent - 1;
        let (head, tail) = digits.split_at(1);
        let dot = if tail.is_empty() { "" } else { "." };
        let plus = if power > 0 { "+" } else { "" };
        format!("{sign}{head}{dot}{tail}e{plus}{power}")
    }

    /// Positional, never an exponent (CSV, rest.md 10).
    pub fn to_plain(&self) -> String {
        if self.0.is_zero() {
            return "0".to_owned();
        }
        let (negative, digits, exponent) = self.digits();
        format!("{}{}", if negative { "-" } else { "" }, positional(&digits, exponent))
    }

    /// Bytes whose order is the order of the numbers: a header with sign and base-100 exponent, then pairs of
    /// digits plus one. SQLite has no exact decimals; with these, its MIN, MAX, ORDER BY and comparisons are exact.
    pub fn to_sortable(&self) -> Vec<u8> {
        if self.0.is_zero() {
            return vec![0x80, 0x00];
        }
        let (negative, mut digits, mut exponent) = self.digits();
        if exponent.rem_euclid(2) == 1 {
            digits.insert(0, '0');
            exponent += 1;
        }
        if digits.len() % 2 == 1 {
            digits.push('0');
        }
        let header = (0xC000 + exponent / 2) as u16;
        let mut bytes = Vec::with_capacity(2 + digits.len() / 2 + 1);
        bytes.extend_from_slice(&header.to_be_bytes());
        bytes.extend(digits.as_bytes().chunks(2).map(|pair| (pair[0] - b'0') * 10 + (pair[1] - b'0') + 1));
        if negative {
            bytes.iter_mut().for_each(|byte| *byte = !*byte);
            bytes.push(0xFF);
        }
        bytes
    }

    /// Reverses [`Quantity::to_sortable`]; `None` for bytes it did not make.
    pub fn from_sortable(bytes: &[u8]) -> Option<Self> {
        let (&first, &second) = (bytes.first()?, bytes.get(1)?);
        if [first, second] == [0x80, 0x00] {
            return Some(Quantity::zero());
        }
        let negative = first < 0x80;
        let flip = if negative { 0xFF } else { 0 };
        let end = if negative { bytes.len() - 1 } else { bytes.len() };
        let header = u16::from_be_bytes([first ^ flip, second ^ flip]);
        let exponent = 2 * (i64::from(header) - 0xC000);
        let pairs = bytes.get(2..end)?;
        let pair_of = |byte: &u8| (byte ^ flip).checked_sub(1).filter(|pair| *pair < 100);
        if pairs.len() <= 9 {
            let mantissa =
                pairs.iter().try_fold(0, |sum, byte| Some(sum * 100 + u64::from(pair_of(byte)?)))?;
            return Some(Quantity::of_small(mantissa, 2 * pairs.len() as i64 - exponent, negative));
        }
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in pairs {
            let pair = pair_of(byte)?;
            text.push((b'0' + pair / 10) as char);
            text.push((b'0' + pair % 10) as char);
        }
        let digits = BigInt::from_str(&text).ok()?;
        let digits = if negative { -digits } else { digits };
        Some(Quantity(BigDecimal::new(digits, text.len() as i64 - exponent).normalized()))
    }
}

fn positional(digits: &str, exponent: i64) -> String {
    let length = digits.len() as i64;
    if exponent <= 0 {
        format!("0.{}{digits}", "0".repeat(exponent.unsigned_abs() as usize))
    } else if exponent >= length {
        format!("{digits}{}", "0".repeat((exponent - length) as usize))
    } else {
        let (whole, fraction) = digits.split_at(exponent as usize);
        format!("{whole}.{fraction}")
    }
}

impl From<i64> for Quantity {
    fn from(value: i64) -> Self {
        Quantity(BigDecimal::from(value).normalized())
    }
}

impl From<BigDecimal> for Quantity {
    fn from(value: BigDecimal) -> Self {
        Quantity(value.normalized())
    }
}

impl std::ops::Add<&Quantity> for &Quantity {
    type Output = Quantity;
    fn add(self, other: &Quantity) -> Quantity {
        Quantity((&self.0 + &other.0).normalized())
    }
}

impl std::ops::AddAssign<&Quantity> for Quantity {
    fn add_assign(&mut self, other: &Quantity) {
        self.0 += &other.0;
    }
}

impl std::ops::Sub<&Quantity> for &Quantity {
    type Output = Quantity;
    fn sub(self, other: &Quantity) -> Quantity {
        Quantity((&self.0 - &other.0).normalized())
    }
}

impl std::ops::Mul<&Quantity> for &Quantity {
    type Output = Quantity;
    fn mul(self, other: &Quantity) -> Quantity {
        Quantity((&self.0 * &other.0).normalized())
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_json())
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_json()).map_err(ser::Error::custom)?.serialize(serializer)
    }
}

/// The text of a JSON number. Objects are no numbers, whatever their keys are.
pub fn number_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'de str, D::Error> {
    let text = <&RawValue>::deserialize(deserializer)?.get();
    match text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        true => Ok(text),
        false => Err(de::Error::custom("not a number")),
    }
}

/// Reads a JSON number; the limits of [`Quantity::parse`] apply. What fits no 64-bit float is not JSON here
/// (rest.md 2) and fails as such.
impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Quantity::parse(number_text(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn q(text: &str) -> Quantity {
        Quantity::parse(text).expect(text)
    }

    #[test]
    fn prints_like_the_contract() {
        let cases = [
            ("5.0", "5"),
            ("0.1", "0.1"),
            ("15.50", "15.5"),
            ("1e2", "100"),
            ("0.30000000000000004", "0.30000000000000004"),
            ("100000000000000000000", "100000000000000000000"),
            ("1e21", "1e+21"),
            ("1234500000000000000000000", "1.2345e+24"),
            ("0.000001", "0.000001"),
            ("0.0000001", "1e-7"),
            ("-2.50", "-2.5"),
            ("0e5", "0"),
            ("-0.0", "0"),
        ];
        for (text, json) in cases {
            assert_eq!(q(text).to_json(), json, "{text}");
        }
        assert_eq!(q("1e21").to_plain(), "1000000000000000000000");
        assert_eq!(q("1e-7").to_plain(), "0.0000001");
    }

    #[test]
    fn refuses_what_it_cannot_hold() {
        assert_eq!(Quantity::parse("1e309"), Err(Reject::OutOfRange));
        assert_eq!(Quantity::parse("1e99999999999999999999"), Err(Reject::OutOfRange));
        assert_eq!(Quantity::parse("1e999999999"), Err(Reject::OutOfRange));
        assert_eq!(Quantity::parse(&"1".repeat(61)), Err(Reject::TooManyDigits));
        assert_eq!(Quantity::parse("abc"), Err(Reject::NotANumber));
        assert_eq!(Quantity::from_f64(f64::NAN), Err(Reject::NotANumber));
        assert_eq!(Quantity::from_f64(f64::INFINITY), Err(Reject::NotANumber));
        assert!(Quantity::from_f64(f64::MAX).is_ok());
        assert!(Quantity::from_f64(5e-324).is_ok());
    }

    #[test]
    fn digits_are_counted_before_they_become_a_number() {
        // tens of millions would take hours
        let long = "1".repeat(33_000_000);
        assert_eq!(Quantity::parse(&long), Err(Reject::TooManyDigits));
        assert_eq!(Quantity::parse(&format!("0.{long}")), Err(Reject::TooManyDigits));
        let zeros = "0".repeat(5_000_000);
        assert_eq!(Quantity::parse(&format!("{zeros}12.50{zeros}")), Ok(q("12.5")));
        assert_eq!(Quantity::parse(&format!("-0.{zeros}")), Ok(Quantity::zero()));
        assert_eq!(Quantity::parse(&format!("1{zeros}e-5000000")), Err(Reject::OutOfRange));
        for text in ["", "-", ".", "1_000", "1.2.3", "--1", "+-1", "1 0", "0x10", "1.-5"] {
            assert_eq!(Quantity::parse(text), Err(Reject::NotANumber), "{text}");
        }
        assert_eq!(
            (q(".5"), q("5."), q("+5"), q("000000000000000000005")),
            (q("0.5"), q("5"), q("5"), q("5"))
        );
    }

    proptest! {
        #[test]
        fn long_text_is_read_like_the_library_reads_it(
            text in "-?[0-9]{0,40}(\\.[0-9]{1,40})?", power in -300i64..300,
        ) {
            let plain = BigDecimal::from_str(&text).ok().map(|value| {
                let (digits, scale) = value.into_bigint_and_exponent();
                Quantity(BigDecimal::new(digits, scale - power).normalized())
            });
            match (Quantity::parse(&format!("{text}e{power}")), plain) {
                (Ok(read), plain) => prop_assert_eq!(Some(read), plain),
                (Err(Reject::TooManyDigits), plain) => prop_assert!(plain.is_some_and(|value| value.0.digits() > DIGITS_MAX)),
                (Err(Reject::NotANumber), plain) => prop_assert!(plain.is_none()),
                (Err(Reject::OutOfRange), _) => {}
            }
        }
    }

    #[test]
    fn ten_tenths_are_one() {
        let mut sum = Quantity::zero();
        for _ in 0..10 {
            sum += &q("0.1");
        }
        assert_eq!(sum.to_json(), "1");
    }

    #[test]
    fn division_ends_or_is_rounded() {
        assert_eq!(q("10").divide(&q("4")).to_json(), "2.5");
        assert_eq!(q("10").divide(&q("3")).to_json(), "3.333333333333333333333333333333333");
        assert_eq!(q("1").divide(&Quantity::zero()).to_json(), "0");
    }

    fn numbers() -> impl Strategy<Value = String> {
        ("-?[0-9]{1,28}", "[0-9]{1,28}", -40i32..40).prop_map(|(a, b, e)| {
            let a = a.replace("-0", "-").trim_start_matches('0').to_owned();
            let a = if a.is_empty() || a == "-" { format!("{a}0") } else { a };
            format!("{a}.{b}e{e}")
        })
    }

    proptest! {
        #[test]
        fn sortable_bytes_keep_value_and_order(a in numbers(), b in numbers()) {
            let (a, b) = (q(&a), q(&b));
            prop_assert_eq!(Quantity::from_sortable(&a.to_sortable()), Some(a.clone()));
            prop_assert_eq!(a.to_sortable().cmp(&b.to_sortable()), a.cmp(&b));
        }

        #[test]
        fn short_ways_give_what_the_general_ways_give(text in "-?[0-9]{1,19}(\\.[0-9]{0,19})?") {
            let general = BigDecimal::from_str(&text).ok().map(|value| Quantity(value.normalized()));
            prop_assert_eq!(Quantity::from_plain(&text).map(|q| q.to_plain()), general.map(|q| q.to_plain()));
            if let Some(small) = Quantity::parse_small(&text) {
                let (digits, scale) = small.0.as_bigint_and_exponent();
                let normal = BigDecimal::from_str(&text).expect("a number").normalized();
                prop_assert_eq!((digits, scale), normal.into_bigint_and_exponent());
            }
        }

        #[test]
        fn text_reads_back(a in numbers()) {
            let a = q(&a);
            prop_assert_eq!(&q(&a.to_json()), &a);
            prop_assert_eq!(BigDecimal::from_str(&a.to_plain()).expect("plain"), a.0);
        }

        #[test]
        fn floats_keep_their_value(value in any::<f64>().prop_filter("finite", |v| v.is_finite())) {
            let quantity = Quantity::from_f64(value).expect("finite");
            prop_assert_eq!(quantity.to_json().parse::<f64>().expect("number"), value + 0.0);
        }
    }
}
