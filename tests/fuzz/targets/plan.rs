#![no_main]

#[path = "../plan.rs"]
mod plan;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| plan::check(bytes));
