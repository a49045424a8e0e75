//! How much a pod may send and receive, as its annotations say.
//!
//! The kubelet reads them once, when it makes a pod, and refuses one that it cannot read; whoever
//! edits them later is heard by nobody but us. So what cannot be read is no reason to refuse a pod
//! that runs, nor to guess: that direction stays as the container runtime told it, and a warning
//! names the annotation.

use std::collections::BTreeMap;

use dataplane::pacing::{RATE_BITS_MAX, RATE_BITS_MIN};

use crate::shown::shortened;

/// The annotation of a Pod that limits what goes to it, in bits a second (a Kubernetes quantity).
pub const INGRESS_BANDWIDTH: &str = "kubernetes.io/ingress-bandwidth";
/// The annotation of a Pod that limits what it sends.
pub const EGRESS_BANDWIDTH: &str = "kubernetes.io/egress-bandwidth";

/// Digits that are read of a quantity: more than Kubernetes keeps.
const DIGITS: usize = 27;

/// One annotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnnotatedRate {
    /// Bits a second, within the bounds of [`dataplane::pacing`].
    Bits(u64),
    /// It is no quantity, or out of bounds.
    Unreadable(Box<str>),
}

impl AnnotatedRate {
    fn of(text: &str) -> Self {
        match bits_per_second(text) {
            Ok(bits) => Self::Bits(bits),
            Err(_) => Self::Unreadable(shortened(text).into()),
        }
    }

    /// The rate, if it can be read.
    #[must_use]
    pub fn bits(&self) -> Option<u64> {
        match self {
            Self::Bits(bits) => Some(*bits),
            Self::Unreadable(_) => None,
        }
    }
}

/// What a pod's annotations say of its bandwidth.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodBandwidth {
    /// [`INGRESS_BANDWIDTH`].
    pub ingress: Option<AnnotatedRate>,
    /// [`EGRESS_BANDWIDTH`].
    pub egress: Option<AnnotatedRate>,
}

impl PodBandwidth {
    /// Reads an object's annotations; `None` where there is neither, as for nearly every pod.
    #[must_use]
    pub fn of(annotations: Option<&BTreeMap<String, String>>) -> Option<Box<Self>> {
        let annotations = annotations?;
        let read = |key: &str| annotations.get(key).map(|text| AnnotatedRate::of(text));
        let read = Self { ingress: read(INGRESS_BANDWIDTH), egress: read(EGRESS_BANDWIDTH) };
        (read != Self::default()).then(|| Box::new(read))
    }

    /// What is wrong with the annotations, and what to write.
    pub fn complaints(&self) -> impl Iterator<Item = String> + '_ {
        let of = |(key, rate): (&'static str, &Option<AnnotatedRate>)| {
            let Some(AnnotatedRate::Unreadable(text)) = rate else { return None };
            Some(format!(
                "annotation {key} says {text:?}: write bits a second from 1k to 1P, such as 10M; \
                 it limits nothing"
            ))
        };
        [(INGRESS_BANDWIDTH, &self.ingress), (EGRESS_BANDWIDTH, &self.egress)]
            .into_iter()
            .filter_map(of)
    }
}

/// A text names no rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write bits a second from 1k to 1P, such as 10M, 1500k or 1Gi")]
pub struct RateError;

/// Reads a rate as Kubernetes does: a quantity of bits a second, within the kubelet's bounds
/// (`pkg/util/bandwidth`).
///
/// # Errors
/// [`RateError`].
pub fn bits_per_second(text: &str) -> Result<u64, RateError> {
    let bits = quantity(text).and_then(|bits| u64::try_from(bits).ok()).ok_or(RateError)?;
    (RATE_BITS_MIN..=RATE_BITS_MAX).contains(&bits).then_some(bits).ok_or(RateError)
}

/// A quantity that is not negative, rounded up to a whole number
/// (`k8s.io/apimachinery/pkg/api/resource`).
fn quantity(text: &str) -> Option<u128> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > DIGITS || fraction.contains('.') {
        return None;
    }
    let mantissa: u128 = digits.parse().ok()?;
    let (times, shift) = scale(suffix)?;
    let exponent = shift - i32::try_from(fraction.len()).ok()?;
    let power = 10u128.checked_pow(exponent.unsigned_abs())?;
    let scaled = mantissa.checked_mul(times)?;
    if exponent < 0 { Some(scaled.div_ceil(power)) } else { scaled.checked_mul(power) }
}

/// What a suffix multiplies by: a power of two, and an exponent of ten.
fn scale(suffix: &str) -> Option<(u128, i32)> {
    let binary = |power: u32| Some((1u128 << power, 0));
    let decimal = |exponent| Some((1, exponent));
    match suffix {
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            decimal(digits.parse().ok().filter(|exponent| (-27..=27).contains(exponent))?)
        }
    }
}

/// A rate as people write it, exactly: 10M, 1500k, 1234567.
#[must_use]
pub fn rate_text(bits: u64) -> String {
    let units = [(1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    let fits = units.into_iter().find(|(unit, _)| bits > 0 && bits.is_multiple_of(*unit));
    fits.map_or_else(|| bits.to_string(), |(unit, name)| format!("{}{name}", bits / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_the_kubelet_reads_them() {
        for (text, bits) in [
            ("10M", 10_000_000),
            ("+10M", 10_000_000),
            ("1k", 1_000),
            ("1P", RATE_BITS_MAX),
            ("1.5G", 1_500_000_000),
            (".5G", 500_000_000),
            ("1.G", 1_000_000_000),
            ("1Mi", 1 << 20),
            ("1000", 1_000),
            ("1e6", 1_000_000),
            ("1E6", 1_000_000),
            ("12e+3", 12_000),
            ("123456789e-3", 123_457),
            ("1000000m", 1_000),
            ("1000000.5m", 1_001),
        ] {
            assert_eq!(bits_per_second(text), Ok(bits), "{text}");
        }
        let long = "1".repeat(100);
        for text in [
            "",
            "M",
            ".",
            "1.2.3",
            "10Mbit",
            "10 M",
            "ten",
            "-10M",
            "10m",
            "999",
            "1.1P",
            "1E",
            "1e99",
            "1e",
            "1ee3",
            "10K",
            "\u{661}0M",
            "0",
            &long,
        ] {
            assert_eq!(bits_per_second(text), Err(RateError), "{text}");
        }
    }

    #[test]
    fn annotations_are_read_and_what_is_no_rate_is_told_with_name_and_value() {
        let of = |pairs: &[(&str, &str)]| {
            let owned = pairs.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned()));
            PodBandwidth::of(Some(&owned.collect()))
        };
        assert_eq!(PodBandwidth::of(None), None);
        assert_eq!(of(&[("note", "10M")]), None);
        let read = of(&[(INGRESS_BANDWIDTH, "10M"), (EGRESS_BANDWIDTH, "ten")]).unwrap();
        assert_eq!(read.ingress, Some(AnnotatedRate::Bits(10_000_000)));
        assert_eq!(read.egress.as_ref().and_then(AnnotatedRate::bits), None);
        let told: Vec<String> = read.complaints().collect();
        assert_eq!(told.len(), 1);
        assert!(told[0].contains(EGRESS_BANDWIDTH) && told[0].contains("\"ten\""), "{told:?}");
        let long = "9".repeat(10_000);
        let told: String = of(&[(EGRESS_BANDWIDTH, &long)]).unwrap().complaints().collect();
        assert!(told.len() < 500);
    }

    #[test]
    fn a_rate_is_written_exactly() {
        for (bits, text) in [
            (10_000_000, "10M"),
            (1_500_000, "1500k"),
            (1_000_000_000, "1G"),
            (1_234_567, "1234567"),
            (0, "0"),
        ] {
            assert_eq!(rate_text(bits), text);
        }
    }
}
