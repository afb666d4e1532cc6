//! The smallest bytes that still fail.
//!
//! Decisions are read in order, so that one byte less changes the meaning of all that follow. Whole ranges are therefore
//! removed or set to zero, large ones first: a zero is the simplest decision and leaves the others in their place.

use std::time::{Duration, Instant};

/// How often a smaller input is tried, and how long: of a hang, each try takes as long as it may.
const TRIES: usize = 3_000;
const TIME: Duration = Duration::from_secs(20 * 60);

/// Makes bytes smaller that fail, as long as they do; gives them and how the smallest fails.
pub(crate) fn shrink(
    mut bytes: Vec<u8>,
    mut reason: String,
    fails: impl Fn(&[u8]) -> Result<(), String>,
) -> (Vec<u8>, String) {
    let (mut tries, begun) = (0, Instant::now());
    loop {
        let before = bytes.clone();
        let mut size = bytes.len().next_power_of_two();
        while size > 0 {
            let mut start = 0;
            while start < bytes.len() {
                let length = bytes.len();
                let end = length.min(start + size);
                for candidate in candidates(&bytes, start, end) {
                    tries += 1;
                    if tries > TRIES || begun.elapsed() > TIME {
                        return (bytes, reason);
                    }
                    if let Err(found) = fails(&candidate) {
                        (bytes, reason) = (candidate, found);
                        break;
                    }
                }
                // What follows a removed range has moved to its place.
                if bytes.len() == length {
                    start = end;
                }
            }
            size /= 2;
        }
        if bytes == before {
            return (bytes, reason);
        }
    }
}

/// The bytes without a range, and with zeros in it.
fn candidates(bytes: &[u8], start: usize, end: usize) -> Vec<Vec<u8>> {
    let without = [&bytes[..start], &bytes[end..]].concat();
    if bytes[start..end].iter().all(|byte| *byte == 0) {
        return vec![without];
    }
    let mut zeros = bytes.to_vec();
    zeros[start..end].fill(0);
    vec![without, zeros]
}
