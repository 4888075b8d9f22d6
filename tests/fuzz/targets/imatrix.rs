#![no_main]

#[path = "../imatrix.rs"]
mod imatrix;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| imatrix::check(bytes));
