//! What holds of any bytes that are taken for a model. And of any blocks of it that are to go.

use std::collections::BTreeSet;

use gguf_shorten::choose::removal;
use gguf_shorten::error::message;
use gguf_shorten::gguf::{self, File};
use gguf_shorten::model::block::BlockSet;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::{Constraints, Cut, Method, Plan};

/// Bytes after the file that choose what is done with it. See [`Request`].
const N_REQUEST_BYTES: usize = 16;

/// Maximum blocks of a model that is searched for the best set. More would take too long for a fuzzer.
const MAX_SEARCHED: usize = 40;
/// A request to a model.
pub struct Request {
    /// Block `i` is to go if bit `i % 64` is set.
    pub blocks: u64,
    /// The end of the model's first part, if inside the file.
    pub part_len: u32,
    /// Bit 0: take any cut on the user's word. Bit 1: drop the prediction blocks, if there are any.
    pub flags: u32,
}

impl Request {
    fn read(bytes: [u8; N_REQUEST_BYTES]) -> Self {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Self {
            blocks: u64::from(u32_at(0)) | u64::from(u32_at(4)) << 32,
            part_len: u32_at(8),
            flags: u32_at(12),
        }
    }
}

/// Plans a removal from the model in all bytes but the last. Those are a [`Request`]. An error is one line; a plan, once
/// written, reads back as the kept tensors of the model under their new numbers.
pub fn check(bytes: &[u8]) {
    let Some((bytes, request)) = bytes.split_last_chunk::<N_REQUEST_BYTES>() else {
        return;
    };
    if let Err(error) = shorten(bytes, &Request::read(*request)) {
        check_error(&error, bytes);
    }
}

#[track_caller]
fn check_error(error: &anyhow::Error, bytes: &[u8]) {
    let text = message(error);
    let one_line = !text.is_empty() && text.len() < 1000 && !text.chars().any(char::is_control);
    assert!(one_line, "{text:?}");
    // A name in the file may say anything.
    let is_bug = text.contains("bug: ") && !bytes.windows(4).any(|w| w == b"bug:");
    assert!(!is_bug, "{text}");
}

fn shorten(bytes: &[u8], request: &Request) -> anyhow::Result<()> {
    let (first, second) = bytes
        .split_at_checked(request.part_len as usize)
        .filter(|(first, second)| !first.is_empty() && !second.is_empty())
        .unwrap_or((bytes, &[]));
    let mut files = vec![File::parse(first)?];
    if !second.is_empty() {
        files.push(File::parse(second)?);
    }
    let model = Model::new(files)?;
    let mut constraints = Constraints::new(&model, request.flags & 1 != 0)?;
    if request.flags & 2 != 0 {
        constraints = constraints.dropping_prediction_blocks()?;
    }
    (0..model.n_blocks()).for_each(|i| drop(constraints.kinds.words(i)));
    let wanted: BlockSet =
        (0..model.n_blocks()).filter(|i| request.blocks >> (i % 64) & 1 != 0).map(BlockId::new).collect();
    let removed = match constraints.check(&wanted) {
        Ok(()) => wanted,
        Err(error) => {
            check_error(&error, bytes);
            match allowed(&constraints, &wanted, bytes) {
                Some(removed) => removed,
                None => return Err(error),
            }
        }
    };
    let plan = Plan::new(&model, &constraints, &Cut::new(removed, "blocks"), blake3::hash(b"parent"))?;
    let _ = constraints.lists_needed(&plan.renumbering);
    // An alignment of megabytes makes a long file of a short one.
    if plan.layout.file_len() <= 1 << 22 {
        check_output(&model, &plan);
    }
    Ok(())
}

/// Another set of the same size. The nearest that is allowed, and the one that a method chooses. Whatever these find,
/// the constraints allow.
fn allowed(constraints: &Constraints, wanted: &BlockSet, bytes: &[u8]) -> Option<BlockSet> {
    if constraints.n_trunk_blocks > MAX_SEARCHED {
        return None;
    }
    // Those that go with any cut are not asked for.
    let wanted = &(wanted - &constraints.dropped);
    let chosen = removal::choose(constraints, Method::Sequential, None, &BTreeSet::new(), wanted.len());
    match &chosen {
        Ok(set) => assert!(set.len() == wanted.len() && constraints.check(set).is_ok()),
        Err(error) => check_error(error, bytes),
    }
    let nearest = removal::nearest(constraints, wanted);
    if let Some(set) = &nearest {
        assert!(set.len() == wanted.len());
        assert!(constraints.check(set).is_ok());
    }
    // A trusted run allows any set that leaves a block. Nothing then searches for another.
    assert!(constraints.trusted || nearest.is_some() == chosen.is_ok());
    nearest
}

/// The planned file, written to memory. Its tensors are those that stay, its metadata what was kept or planned.
fn check_output(model: &Model<'_>, plan: &Plan<'_>) {
    let mut bytes = Vec::new();
    let n_bytes = gguf::write(&plan.layout, &mut bytes, |i, out| plan.data[i].write(model, out))
        .expect("a plan can be written");
    assert_eq!((n_bytes, n_bytes), (bytes.len() as u64, plan.layout.file_len()));
    let file = File::parse(&bytes).expect("what was written can be read");
    let written = Model::new(vec![file]).expect("what was written is a model");

    assert_eq!(written.architecture(), model.architecture());
    assert_eq!(written.n_blocks(), plan.renumbering.kept().len());
    assert_eq!(written.n_parameters(), plan.n_parameters);
    let mut kept = model
        .tensors()
        .iter()
        .filter(|tensor| tensor.block.is_none_or(|(block, _)| !plan.removed.contains(&block)));
    for tensor in written.tensors() {
        let source = kept.next().expect("no tensor is added");
        assert_eq!(tensor.info.bytes(), source.info.bytes());
        assert_eq!(tensor.info.dims(), source.info.dims());
        assert_eq!(tensor.info.n_dims(), source.info.n_dims());
        assert_eq!(tensor.info.tensor_type(), source.info.tensor_type());
        let number = source.block.map(|(block, rest)| (plan.renumbering.number(block), rest));
        let found = tensor.block.map(|(block, rest)| (Some(block.index()), rest));
        assert_eq!(found, number);
        assert!(found.is_some() || tensor.info.name() == source.info.name());
    }
    assert!(kept.next().is_none(), "no tensor is lost");

    assert_eq!(written.metadata().iter().count(), plan.layout.metadata().len());
    for (entry, planned) in written.metadata().iter().zip(plan.layout.metadata()) {
        assert_eq!(entry.key(), planned.entry().key());
        assert_eq!(entry.value().raw(), planned.entry().value_raw());
        if planned.entry().is_kept() {
            assert_eq!(entry.raw(), model.metadata().get(entry.key()).unwrap().raw());
        }
    }
}
