//! Date-times in the forms that Flagsmith's bodies use. All are UTC with a `Z`.

use jiff::Timestamp;
use jiff::fmt::strtime;

use crate::change::Micros;

fn format(pattern: &str, at: Micros) -> String {
    Timestamp::from_microsecond(at.0).ok().and_then(|t| strtime::format(pattern, t).ok()).unwrap_or_default()
}

/// Six decimals, always: features' `created_date`, the `timestamp` of `current`.
pub(super) fn six(at: Micros) -> String {
    format("%Y-%m-%dT%H:%M:%S.%6fZ", at)
}

/// Three decimals, cut off: the `timestamp` of `classic`.
pub(super) fn three(at: Micros) -> String {
    let cut = Micros(at.0 - at.0.rem_euclid(1000));
    format("%Y-%m-%dT%H:%M:%S.%3fZ", cut)
}

/// Six decimals unless they are all zero, then none: the rows of an audit body (Django REST framework).
pub(super) fn six_or_none(at: Micros) -> String {
    if at.0.rem_euclid(1_000_000) == 0 { format("%Y-%m-%dT%H:%M:%SZ", at) } else { six(at) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_decimals_of_their_place() {
        let at = Micros::parse("2020-03-07 13:59:07.0409+00").unwrap();
        assert_eq!(six(at), "2020-03-07T13:59:07.040900Z");
        assert_eq!(three(at), "2020-03-07T13:59:07.040Z");
        assert_eq!(six_or_none(at), "2020-03-07T13:59:07.040900Z");
        let whole = Micros::parse("2020-03-07 13:59:07+00").unwrap();
        assert_eq!(six(whole), "2020-03-07T13:59:07.000000Z");
        assert_eq!(three(whole), "2020-03-07T13:59:07.000Z");
        assert_eq!(six_or_none(whole), "2020-03-07T13:59:07Z");
    }
}
