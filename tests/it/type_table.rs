//! The project's table of tensor types against that of the bundled ggml.

use ggml::tensor_type::{COUNT, block_bytes, block_size, name};
use gguf_shorten::gguf::{ForeignType, TensorType};

#[test]
fn every_type_of_ggml_is_known_with_its_name_and_lengths() {
    for id in 0..COUNT + 8 {
        let ours = TensorType::from_id(id).filter(|found| found.is_read());
        let Some(name) = name(id) else {
            assert_eq!(ours, None, "ggml does not know type {id}");
            continue;
        };
        let ours = ours.unwrap_or_else(|| panic!("type {id}, {name}, is not known"));
        assert_eq!(ours.id(), id);
        assert_eq!(ours.name().to_lowercase(), name.to_lowercase());
        assert_eq!(ours.block_size(), block_size(id), "{name}");
        assert_eq!(ours.block_bytes(), block_bytes(id), "{name}");
    }
}

#[test]
fn every_type_that_ggml_has_removed_has_a_name_to_refuse_it_by() {
    for id in 0..COUNT {
        assert_eq!(ForeignType::from_id(id).is_some(), name(id).is_none(), "type {id}");
    }
    assert_eq!(ForeignType::from_id(COUNT), None);
}

#[test]
fn the_table_has_no_type_that_ggml_does_not_have() {
    let n = (0..COUNT).filter(|&id| name(id).is_some()).count();
    assert_eq!(TensorType::all().count(), n);
    assert!(n > 30, "ggml was asked");
}
