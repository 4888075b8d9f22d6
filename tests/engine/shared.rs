//! gemma4: blocks that read the keys and values of others, and a tensor that only some blocks read.

use ggml::Backend;
use gguf_shorten::gguf::{File, ValueOut};

use crate::random_model::Spec;
use crate::support::{n_different, outputs, shorten, zero};

/// Cuts of 14 blocks, every third of which has no window. The first of these is block 2.
#[test]
fn gemma4_is_exact_with_any_number_of_sharing_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let [parent, short, zeroed] = ["parent", "short", "zeroed"].map(|name| dir.path().join(name));
    let sets: [(u32, &[&[usize]]); 3] = [
        // 7 and 8 hold what 9 to 13 read.
        (
            5,
            &[
                &[9, 10, 11, 12, 13],
                &[0, 1, 2, 3, 4, 5, 6],
                &[0, 5, 11],
                &[6, 9, 10, 12, 13],
                &[2, 5, 10, 12],
            ],
        ),
        // 10 and 11.
        (2, &[&[12, 13], &[12], &[13], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]),
        // None shares: the last can go, and all blocks without a window.
        (0, &[&[2, 5, 8, 11], &[13], &[11, 12, 13], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]),
    ];
    for (n_sharing, sets) in sets {
        let mut spec = Spec::new("gemma4", 14);
        spec.extra.push((".attention.shared_kv_layers", ValueOut::u32(n_sharing)));
        spec.save(Backend::init(), &parent).unwrap();
        for set in sets {
            shorten(&parent, set, &short).unwrap();
            zero(&parent, set, &zeroed);
            let [found, expected] = [&short, &zeroed].map(|path| outputs(path).unwrap());
            assert_eq!(n_different(&found, &expected), 0, "{n_sharing}, {set:?}");
            let bytes = std::fs::read(&short).unwrap();
            let has_full = (0..14).any(|block| block % 3 == 2 && !set.contains(&block));
            let file = File::parse(&bytes).unwrap();
            assert_eq!(file.tensors().get("rope_freqs.weight").is_some(), has_full);
        }
        if n_sharing > 0 {
            for owner in [12 - n_sharing, 13 - n_sharing] {
                let error = shorten(&parent, &[owner as usize], &short).unwrap_err();
                assert!(error.contains("holds the keys and values"), "{error}");
            }
        } else {
            let all_but_one: Vec<usize> = (1..14).collect();
            let error = shorten(&parent, &all_but_one, &short).unwrap_err();
            assert!(error.contains("if there are 2 blocks or more"), "{error}");
        }
    }
}
