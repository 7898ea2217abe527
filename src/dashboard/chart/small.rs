//! Pictures the size of a word or of a line: sparkline, quota bar, share bar.

use std::fmt::Write;

use super::{Svg, escape};

/// A small picture of a run of values.
pub fn sparkline(values: &[f64], words: &str) -> Svg {
    let most = values.iter().copied().fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let slot = 100.0 / values.len().max(1) as f64;
    let mut path = String::new();
    for (at, value) in values.iter().enumerate().filter(|(_, value)| **value > 0.0) {
        let (x, height) = (at as f64 * slot, (value / most * 22.0).max(1.0));
        let _ = write!(path, "M{x:.1} 24V{:.1}H{:.1}V24Z", 24.0 - height, x + slot * 0.8);
    }
    Svg(format!(
        "<svg class=\"spark\" viewBox=\"0 0 100 24\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\"><path class=\"f1\" d=\"{path}\"/><path class=\"axis\" d=\"M0 24H100\"/></svg>",
        escape(words)
    ))
}

/// How much of a limit is used: the bar goes past the limit when more is used than that.
pub fn quota(percent: f64, warning_percent: f64, pace_percent: Option<f64>, state: &str) -> Svg {
    let full = percent.max(100.0) * 1.02;
    let at = |value: f64| (value / full * 100.0).clamp(0.0, 100.0);
    let mut text = format!(
        "<svg class=\"quota\" viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{percent:.0} % used\"><rect class=\"track\" width=\"{:.2}\" height=\"10\" rx=\"1\"/>",
        at(100.0)
    );
    let _ = write!(
        text,
        "<rect class=\"used {}\" width=\"{:.2}\" height=\"10\" rx=\"1\"/>",
        escape(state),
        at(percent)
    );
    let _ = write!(
        text,
        "<path class=\"mark\" vector-effect=\"non-scaling-stroke\" d=\"M{0:.2} 0V10\"/>",
        at(warning_percent)
    );
    if let Some(pace) = pace_percent {
        let _ = write!(
            text,
            "<path class=\"pace\" vector-effect=\"non-scaling-stroke\" d=\"M{0:.2} 0V10\"/>",
            at(pace)
        );
    }
    let _ = write!(text, "<path class=\"limit\" d=\"M{0:.2} 0V10\"/></svg>", at(100.0));
    Svg(text)
}

/// A horizontal bar, as long as its share of the largest.
pub fn share_bar(share: f64) -> Svg {
    Svg(format!(
        "<svg class=\"quota\" viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><rect class=\"track\" width=\"100\" height=\"10\"/><rect class=\"f1\" width=\"{:.2}\" height=\"10\"/></svg>",
        (share * 100.0).clamp(0.5, 100.0)
    ))
}
