//! Where the data of tensors lies: one after another, in any order.
//!
//! Owns the checks of tensors against each other. That each lies inside the file is checked before.

use super::error::{Error, ErrorKind};
use super::place::shortened;
use super::position::{FileOffset, align_up};
use super::tensor::TensorInfo;

/// Checks that tensors, in any order, are contiguous except for padding.
///
/// Two that share a byte are damage. More room than padding means that the type of the tensor before is a larger one to whoever
/// wrote the file. Besides, llama.cpp wants the order of the tensor infos (`gguf.cpp: gguf_init_from_reader`).
pub(super) fn check_places(
    tensors: &[TensorInfo<'_>],
    alignment: u64,
    data_start: FileOffset,
) -> Result<(), Error> {
    let mut sorted: Vec<&TensorInfo<'_>> = tensors.iter().filter(|tensor| tensor.n_bytes() > 0).collect();
    sorted.sort_by_key(|tensor| tensor.position());
    if let Some(first) = sorted.first()
        && first.position() != data_start
    {
        return Err(first.error(ErrorKind::LateStart { offset: first.offset().0 }));
    }
    for (before, after) in sorted.iter().zip(sorted.iter().skip(1)) {
        if after.position() < before.end() {
            let kind = ErrorKind::Overlap {
                start: after.position(),
                other: shortened(before.name()),
                other_end: before.end(),
            };
            return Err(after.error(kind));
        }
        let room = after.position().0.saturating_sub(before.position().0);
        if align_up(before.n_bytes(), alignment).is_some_and(|padded| padded < room) {
            return Err(before.error(ErrorKind::Gap {
                tensor_type: before.tensor_type(),
                n_bytes: before.n_bytes(),
                room,
            }));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::File;
    use super::super::testing::Builder;
    use super::*;

    #[test]
    fn tensors_do_not_overlap() {
        let builder = Builder::new().tensor("a", &[40], 24, &[0; 40]).tensor_at("b", 32, b"y");
        let start = builder.head().len();
        let message = format!(
            "tensor 'b' starts at byte {}, inside tensor 'a', which ends at byte {}",
            start + 32,
            start + 40
        );
        let error = File::parse(&builder.build()).unwrap_err();
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn any_order_and_tensors_of_no_bytes_are_fine() {
        let builder = Builder::new()
            .tensor_at("b", 32, b"bb")
            .tensor_at("none", 32, b"")
            .tensor_at("a", 0, b"aa")
            .tensor_at("none too", 0, b"");
        let mut bytes = builder.head();
        let start = bytes.len();
        bytes.resize(start + 34, 0);
        bytes[start..start + 2].copy_from_slice(b"aa");
        bytes[start + 32..].copy_from_slice(b"bb");
        let file = File::parse(&bytes).unwrap();
        assert_eq!(file.tensors().get("b").unwrap().bytes(), b"bb");
        assert_eq!(file.tensors().get("a").unwrap().bytes(), b"aa");
        assert_eq!(file.tensors().get("none").unwrap().bytes(), b"");
        assert!(!file.ends_padded());
    }

    #[test]
    fn more_room_than_a_type_takes_is_refused_in_any_order() {
        let error = |at_a: u64, at_b: u64| {
            let builder = Builder::new().tensor_at("b", at_b, b"bb").tensor_at("a", at_a, b"aa");
            let mut bytes = builder.head();
            bytes.resize(bytes.len() + 256, 0);
            File::parse(&bytes).map(|_| ()).map_err(|error| {
                assert_eq!(error.hint().is_some(), matches!(error.kind(), ErrorKind::Gap { .. }));
                error.to_string()
            })
        };
        assert_eq!(error(0, 32), Ok(()));
        assert_eq!(error(32, 0), Ok(()));
        let gap = |name: &str, room: u64| {
            Err(format!(
                "tensor '{name}' has type 24 (I8), 2 bytes, but the next tensor starts {room} bytes after its start"
            ))
        };
        assert_eq!(error(0, 64), gap("a", 64));
        assert_eq!(error(96, 0), gap("b", 96));
        assert_eq!(
            error(32, 64),
            Err("tensor 'a' has data offset 32, but no tensor lies before it".to_owned())
        );
    }
}
