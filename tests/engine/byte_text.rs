//! A text of which each byte is a token of byte models, and what `eval` finds on its windows.

use std::path::Path;

use crate::program::json;

pub const WINDOW: usize = 32;

/// Writes `text` of so many windows into `dir`.
pub fn write(dir: &Path, n_windows: usize) {
    let letter = |i: usize| char::from(b'a' + ((i * i * 31 + i / 7) % 26) as u8);
    // One byte is a token; the first of all is in front of them.
    let text: String = (0..WINDOW * n_windows).map(letter).collect();
    std::fs::write(dir.join("text"), text).unwrap();
}

/// The arguments for its first windows.
pub fn text(n_windows: usize) -> String {
    format!("--calibration text --window {WINDOW} --tokens {}", n_windows * WINDOW)
}

/// The sum of KL divergences of `out` from `m.gguf`, and the scored tokens, of the first windows.
pub fn sum_of_kl(dir: &Path, out: &str, n_windows: usize) -> (f64, f64) {
    let found = json(dir, &format!("eval {out} --parent m.gguf {}", text(n_windows)));
    let n = found["tokens_scored"].as_f64().unwrap();
    (n * found["kl_divergence"]["mean"].as_f64().unwrap(), n)
}
