//! How a value is printed.

/// The shortest decimal form that reads back to the same double: `3`, `0.1`, `1e300`, `-0`, `inf`, `-inf`, `nan`.
///
/// The form has an exponent from 1e16 up and below 1e-4. `runtime.c` prints the same.
pub fn shortest(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    let mut text = format!("{value:?}");
    if let Some(whole) = text.strip_suffix(".0") {
        text.truncate(whole.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::shortest;

    #[test]
    fn values_print_in_their_shortest_form() {
        let table = [
            (3.0, "3"),
            (-0.0, "-0"),
            (0.1, "0.1"),
            (102_334_155.0, "102334155"),
            (1e15, "1000000000000000"),
            (1e16, "1e16"),
            (1.5e300, "1.5e300"),
            (0.0001, "0.0001"),
            (0.000_01, "1e-5"),
            (5e-324, "5e-324"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (-f64::NAN, "nan"),
        ];
        for (value, text) in table {
            assert_eq!(shortest(value), text);
        }
    }
}
