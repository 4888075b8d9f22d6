//! Integration tests.
#[test]
fn a() {}
