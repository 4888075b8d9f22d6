//! Every known architecture on a tiny model: a shortened file computes the parent without those blocks, bit for bit, and
//! the hidden states are found.

use std::collections::BTreeSet;
use std::path::Path;

use ggml::Backend;
use gguf_shorten::arch::{Architecture, Stream};
use gguf_shorten::hidden_state::Position;
use gguf_shorten::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::{Constraints, removal::nearest};

use crate::random_model::Spec;
use crate::support::{hidden_states, n_different, outputs, shorten, zero};

/// Architectures that the bundled llama.cpp cannot evaluate: plm gives its cache values of two dimensions where it takes
/// three, and a check fails (`plm.cpp`, `ggml_set_rows`).
pub const NOT_EVALUATED: &[&str] = &["plm"];

/// Blocks of a tiny model whose blocks differ: two periods of gemma3's six and more.
const N_BLOCKS: u32 = 14;

/// Sets of blocks to remove, of `n` blocks: the first, the last, single ones, a run.
fn sets(n: usize) -> [Vec<usize>; 6] {
    [
        vec![0],
        vec![1, n - 1],
        vec![0, 2, n - 2],
        (1..n - 1).collect(),
        vec![n / 2],
        (n / 3..2 * n / 3).collect(),
    ]
}

/// Those sets for a model, each replaced by the nearest that is allowed where it is not.
pub fn allowed_sets(path: &Path, n: usize) -> Result<BTreeSet<Vec<usize>>, String> {
    let input = Input::open(path).map_err(|error| format!("{error:#}"))?;
    let model = Model::new(input.parse().unwrap()).map_err(|error| format!("{error:#}"))?;
    let constraints = Constraints::of(&model).map_err(|error| format!("{error:#}"))?;
    let mut allowed = BTreeSet::new();
    for set in sets(n) {
        let blocks: BTreeSet<BlockId> = set.iter().copied().map(BlockId::new).collect();
        let blocks = match constraints.check(&blocks) {
            Ok(()) => Some(blocks),
            Err(_) => nearest(&constraints, &blocks),
        };
        allowed.extend(blocks.map(|blocks| blocks.iter().map(|block| block.index()).collect()));
    }
    Ok(allowed)
}

pub fn n_blocks(architecture: &Architecture) -> u32 {
    let differ = architecture.window.is_some()
        || architecture.recurrent.is_some()
        || !architecture.positions.is_empty()
        || !architecture.leading.is_empty();
    if differ { N_BLOCKS } else { 5 }
}

/// Whether zeroing its output projections makes a block the identity: not where the stream itself passes a norm.
pub fn zeroing_is_identity(architecture: &Architecture) -> bool {
    architecture.stream != Stream::LayerOutputNorm
}

/// One architecture: makes a parent, then for every set compares the shortened file with the zeroed parent, or where
/// zeroing is not the identity with llama.cpp's own removal of layers. Returns sets tried and floats compared.
fn check(architecture: &Architecture, dir: &Path) -> Result<(usize, usize), String> {
    let backend = Backend::init();
    let [parent, short, reference] =
        ["parent", "short", "reference"].map(|name| dir.join(format!("{name}.gguf")));
    Spec::new(architecture.name, n_blocks(architecture)).save(backend, &parent)?;
    let n_blocks = n_blocks(architecture) as usize;
    let (mut n_sets, mut n_floats) = (0, 0);
    for set in allowed_sets(&parent, n_blocks)? {
        shorten(&parent, &set, &short)?;
        if zeroing_is_identity(architecture) {
            zero(&parent, &set, &reference);
        } else {
            let layers: Vec<i32> = set.iter().map(|&b| b as i32).collect();
            ggml::testing::prune_layers(backend, &parent, &reference, &layers)
                .map_err(|error| error.to_string())?;
        }
        let found = outputs(&short)?;
        let n_different = n_different(&found, &outputs(&reference)?);
        if n_different > 0 {
            return Err(format!(
                "blocks {set:?}: {n_different} of {} floats differ",
                found.len()
            ));
        }
        n_sets += 1;
        n_floats += found.len();
    }
    if n_sets == 0 {
        return Err("no set is allowed".to_owned());
    }
    check_states(architecture, &parent, &reference, n_blocks)?;
    Ok((n_sets, n_floats))
}

/// The hidden states come in order, differ from block to block, and around a zeroed block are the same.
fn check_states(
    architecture: &Architecture,
    parent: &Path,
    zeroed: &Path,
    n_blocks: usize,
) -> Result<(), String> {
    let n_loops = if matches!(architecture.stream, Stream::Looped { .. }) {
        2
    } else {
        1
    };
    let unchanged = |path: &Path| -> Result<Vec<usize>, String> {
        let states = hidden_states(path)?;
        let states = &states.windows[0];
        assert_eq!(states[0].0, Position::Input);
        let outputs: Vec<_> = states
            .iter()
            .filter_map(|(position, _)| match position {
                Position::Output(block) => Some(block.index()),
                Position::Input => None,
            })
            .collect();
        let expected: Vec<_> = (0..n_loops).flat_map(|_| 0..n_blocks).collect();
        assert_eq!(outputs, expected);
        let mut unchanged = Vec::new();
        for pair in states.windows(2) {
            if let Position::Output(block) = pair[1].0
                && pair[0].1 == pair[1].1
            {
                unchanged.push(block.index());
            }
        }
        Ok(unchanged)
    };
    let of_parent = unchanged(parent)?;
    if !of_parent.is_empty() {
        return Err(format!("blocks {of_parent:?} of the parent change nothing"));
    }
    if zeroing_is_identity(architecture) {
        let set = [0, n_blocks / 2, n_blocks - 1];
        zero(parent, &set, zeroed);
        let of_zeroed = unchanged(zeroed)?;
        let expected: Vec<usize> = (0..n_loops).flat_map(|_| set).collect();
        if of_zeroed != expected {
            return Err(format!(
                "blocks {set:?} were zeroed, but {of_zeroed:?} change nothing"
            ));
        }
    }
    Ok(())
}

/// Checks every `N_SHARES`-th architecture, beginning with `share`: so several threads divide them.
fn check_share(share: usize) {
    let dir = tempfile::tempdir().unwrap();
    let only = std::env::var("ARCHITECTURE").ok();
    let mut failed = Vec::new();
    for architecture in Architecture::all().iter().skip(share).step_by(N_SHARES) {
        if only
            .as_deref()
            .is_some_and(|only| only != architecture.name)
            || NOT_EVALUATED.contains(&architecture.name)
        {
            continue;
        }
        match check(architecture, dir.path()) {
            Ok((n_sets, n_floats)) => {
                println!(
                    "{:<16}{n_sets} sets, {n_floats} floats, 0 differ",
                    architecture.name
                );
            }
            Err(error) => failed.push(format!("{}: {error}", architecture.name)),
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

const N_SHARES: usize = 4;

#[test]
fn a_shortened_model_computes_the_parent_without_those_blocks_share_1() {
    check_share(0);
}

#[test]
fn a_shortened_model_computes_the_parent_without_those_blocks_share_2() {
    check_share(1);
}

#[test]
fn a_shortened_model_computes_the_parent_without_those_blocks_share_3() {
    check_share(2);
}

#[test]
fn a_shortened_model_computes_the_parent_without_those_blocks_share_4() {
    check_share(3);
}
