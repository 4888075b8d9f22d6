//! Properties of any bytes read as an importance matrix, and any removal.

use gguf_shorten::error::message;
use gguf_shorten::model::BlockId;
use gguf_shorten::model::block::BlockSet;
use gguf_shorten::model::renumbering::Renumbering;
use gguf_shorten::plan::imatrix::Imatrix;

/// Bytes after the file: the blocks that go, one bit each, and how many blocks there are.
const N_REQUEST_BYTES: usize = 9;

/// Renumbers a matrix from all bytes but the last, which choose blocks. An error is one line. What is planned, once written,
/// reads back as the entries that are left. Without removed blocks the older form is written back bit for bit.
pub fn check(bytes: &[u8]) {
    let Some((bytes, request)) = bytes.split_last_chunk::<N_REQUEST_BYTES>() else {
        return;
    };
    if let Err(error) = renumber(bytes, *request) {
        let text = message(&error);
        let one_line = !text.is_empty() && text.len() < 1000 && !text.chars().any(char::is_control);
        assert!(one_line, "{text:?}");
        // A name in the file may say anything.
        let is_bug = text.contains("bug: ") && !bytes.windows(4).any(|w| w == b"bug:");
        assert!(!is_bug, "{text}");
    }
}

fn renumber(bytes: &[u8], request: [u8; N_REQUEST_BYTES]) -> anyhow::Result<()> {
    let _ = Imatrix::looks_like_legacy(bytes);
    let imatrix = Imatrix::parse(bytes)?;
    let [blocks @ .., n_blocks] = request;
    let n_blocks = usize::from(n_blocks);
    let removed: BlockSet =
        (0..n_blocks).filter(|i| u64::from_le_bytes(blocks) >> (i % 64) & 1 != 0).map(BlockId::new).collect();
    let renumbering = Renumbering::new(n_blocks, &removed);

    let planned = imatrix.plan(&renumbering)?;
    if planned.n_bytes() > 1 << 22 {
        return Ok(());
    }
    let mut out = Vec::new();
    planned.write(&mut out).expect("a plan can be written");
    assert_eq!(out.len() as u64, planned.n_bytes());
    let written = Imatrix::parse(&out).expect("what was written can be read");
    let expected: Vec<(String, u64)> = imatrix
        .entries()
        .iter()
        .filter_map(|entry| {
            let block = (0..n_blocks).find_map(|i| {
                let rest = entry.name.strip_prefix(&format!("blk.{i}."))?;
                Some((BlockId::new(i), rest))
            });
            let name = match block {
                Some((block, rest)) => format!("blk.{}.{rest}", renumbering.number(block)?),
                None => entry.name.to_owned(),
            };
            Some((name, entry.n_values))
        })
        .collect();
    let found = written.entries();
    let found: Vec<_> = found.iter().map(|e| (e.name.to_owned(), e.n_values)).collect();
    assert_eq!(found, expected);
    assert_eq!(planned.n_entries, expected.len());
    assert_eq!(planned.n_entries + planned.n_removed, imatrix.entries().len());

    if removed.is_empty() && !bytes.starts_with(b"GGUF") {
        assert!(out == bytes, "written differently");
    }
    Ok(())
}
