//! Every known architecture on a tiny model. A shortened file computes the parent without those blocks, bit for bit, and the
//! hidden states are found.

use std::collections::BTreeSet;
use std::path::Path;

use ggml::Backend;
use gguf_shorten::choose::removal::nearest;
use gguf_shorten::engine::hidden_state::Position;
use gguf_shorten::model::arch::{Architecture, Stream};
use gguf_shorten::model::block::BlockSet;
use gguf_shorten::model::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::Constraints;

use crate::random_model::Spec;
use crate::support::{hidden_states, n_different, outputs, shorten, state_after, zero};

/// Architectures that the bundled llama.cpp cannot evaluate. plm gives its cache values of two dimensions where it takes three,
/// and a check fails (`plm.cpp`, `ggml_set_rows`).
pub const NOT_EVALUATED: &[&str] = &["plm"];

/// Blocks of a tiny model whose blocks differ: two periods of gemma3's six and more.
const N_BLOCKS: u32 = 14;

/// Sets of blocks to remove, of `n` blocks: single ones, the first and last among them, and runs.
fn sets(n: usize) -> [Vec<usize>; 4] {
    [vec![1, n - 1], vec![0, 2, n - 2], (1..n - 1).collect(), (n / 3..2 * n / 3).collect()]
}

/// The rules of the model at `path`.
pub fn constraints(path: &Path) -> Result<Constraints, String> {
    let input = Input::open(path).map_err(|error| format!("{error:#}"))?;
    let model = Model::new(input.parse().unwrap()).map_err(|error| format!("{error:#}"))?;
    Constraints::of(&model).map_err(|error| format!("{error:#}"))
}

/// Those sets for a model, or the nearest that are allowed.
pub fn allowed_sets(constraints: &Constraints) -> BTreeSet<Vec<usize>> {
    let mut allowed = BTreeSet::new();
    for set in sets(constraints.n_trunk_blocks) {
        let blocks: BlockSet = set.iter().copied().map(BlockId::new).collect();
        let blocks = match constraints.check(&blocks) {
            Ok(()) => Some(blocks),
            Err(_) => nearest(constraints, &blocks),
        };
        allowed.extend(blocks.map(|blocks| blocks.iter().map(|block| block.index()).collect()));
    }
    allowed
}

pub fn n_blocks(architecture: &Architecture) -> u32 {
    // Its first 20 stay.
    if architecture.name == "gemma3n" {
        return 27;
    }
    let differ = architecture.window().is_some()
        || architecture.recurrent().is_some()
        || architecture.positions().next().is_some()
        || architecture.leading().next().is_some();
    if differ { N_BLOCKS } else { 5 }
}

/// Whether zeroing its output projections makes a block the identity. Not where the stream itself passes a norm.
pub fn zeroing_is_identity(architecture: &Architecture) -> bool {
    architecture.stream != Stream::LayerOutputNorm
}

/// llama.cpp's numbers of the tiny models' weight types (`llama.h: llama_ftype`).
const FILE_TYPES: [(&str, Option<u32>); 5] =
    [("F32", None), ("Q4_0", Some(2)), ("Q8_0", Some(7)), ("Q4_K_M", Some(15)), ("Q6_K", Some(18))];

/// Architectures with weights of three dimensions that multiply a permuted operand. Kernels for repacked weights (AMX) do not
/// take that, and llama.cpp gives up on such weights if they are not F32, where a processor has these kernels.
const NOT_QUANTIZED: &[&str] = &[
    "bailingmoe3",
    "deepseek2",
    "deepseek32",
    "deepseek4",
    "dots3note",
    "kimi-k3",
    "kimi-linear",
    "mistral4",
];

/// The type of an architecture's `variant`-th model: chance, but always the same.
pub fn file_type(name: &str, variant: usize) -> (&'static str, Option<u32>) {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    if NOT_QUANTIZED.contains(&name) {
        return FILE_TYPES[0];
    }
    FILE_TYPES[((hash >> 33) as usize + variant) % FILE_TYPES.len()]
}

/// Tests one architecture on every variant of its tiny model. Returns types, sets tried and floats compared.
fn check(architecture: &Architecture, dir: &Path) -> Result<(String, usize, usize), String> {
    let backend = Backend::init();
    let [plain, parent] = ["plain", "parent"].map(|name| dir.join(format!("{name}.gguf")));
    let (mut types, mut n_sets, mut n_floats) = (Vec::new(), 0, 0);
    let variants = Spec::variants(architecture.name, n_blocks(architecture));
    for (variant, spec) in variants.into_iter().enumerate() {
        let (name, file_type) = file_type(architecture.name, variant);
        let check = || {
            match file_type {
                None => spec.save(backend, &parent)?,
                Some(file_type) => {
                    spec.save(backend, &plain)?;
                    ggml::testing::quantize(backend, &plain, &parent, file_type)
                        .map_err(|error| error.to_string())?;
                }
            }
            check_parent(architecture, backend, &parent)
        };
        let (sets, floats) = check().map_err(|error| format!("variant {variant} in {name}: {error}"))?;
        types.push(name);
        n_sets += sets;
        n_floats += floats;
    }
    Ok((types.join(" "), n_sets, n_floats))
}

/// Compares shortened files with the zeroed parent, for every set of blocks. Where zeroing is not the identity, llama.cpp's own
/// removal of layers takes its place. Returns sets tried and floats compared.
fn check_parent(
    architecture: &Architecture,
    backend: &Backend,
    parent: &Path,
) -> Result<(usize, usize), String> {
    let [short, reference] = ["short", "reference"].map(|name| parent.with_file_name(name));
    let constraints = constraints(parent)?;
    let n_blocks = constraints.n_trunk_blocks;
    let (mut n_sets, mut n_floats) = (0, 0);
    for set in allowed_sets(&constraints) {
        shorten(parent, &set, &short)?;
        if zeroing_is_identity(architecture) {
            zero(parent, &set, &reference);
        } else {
            let layers: Vec<i32> = set.iter().map(|&b| b as i32).collect();
            ggml::testing::prune_layers(backend, parent, &reference, &layers)
                .map_err(|error| error.to_string())?;
        }
        let (found, expected) = if has_more_than_sums(&constraints, &set) {
            // Such blocks are after all that stay: what those compute is what the parent computes so far.
            let last = (0..n_blocks).rfind(|block| !set.contains(block)).unwrap();
            let n_kept = n_blocks - set.len();
            (state_after(&short, n_kept - 1)?, state_after(&reference, last)?)
        } else {
            (outputs(&short)?, outputs(&reference)?)
        };
        let n_different = n_different(&found, &expected);
        if n_different > 0 {
            return Err(format!("blocks {set:?}: {n_different} of {} floats differ", found.len()));
        }
        n_sets += 1;
        n_floats += found.len();
    }
    if n_sets == 0 {
        return Err("no set is allowed".to_owned());
    }
    check_states(architecture, &constraints, parent, &reference)?;
    Ok((n_sets, n_floats))
}

/// Whether a block of `set` does more than add to the stream. Zeros do not silence that.
pub fn has_more_than_sums(constraints: &Constraints, set: &[usize]) -> bool {
    let kinds = constraints.kinds.by_position.iter();
    kinds.filter(|kind| kind.in_period).any(|kind| set.iter().any(|&block| kind.holds(block)))
}

/// Checks that hidden states come in order and differ by block. Around a zeroed block they are the same.
fn check_states(
    architecture: &Architecture,
    constraints: &Constraints,
    parent: &Path,
    zeroed: &Path,
) -> Result<(), String> {
    let n_blocks = constraints.n_trunk_blocks;
    let n_loops = if matches!(architecture.stream, Stream::Looped { .. }) { 2 } else { 1 };
    let unchanged = |path: &Path| -> Result<Vec<usize>, String> {
        let states = hidden_states(path)?;
        let states = &states.windows[0];
        assert_eq!(states[0].0, Position::Input);
        let outputs: Vec<_> = states
            .iter()
            .filter_map(|(position, _)| match position {
                Position::Output(block) => Some(block.index()),
                Position::Input | Position::Middle(_) => None,
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
        let mut set = match architecture.name {
            // Only blocks that may go can be made the identity.
            "gemma3n" => vec![20, n_blocks - 3, n_blocks - 1],
            _ => vec![0, n_blocks / 2, n_blocks - 1],
        };
        set.retain(|&block| !has_more_than_sums(constraints, &[block]));
        zero(parent, &set, zeroed);
        let of_zeroed = unchanged(zeroed)?;
        let expected: Vec<usize> = (0..n_loops).flat_map(|_| set.clone()).collect();
        if of_zeroed != expected {
            return Err(format!("blocks {set:?} were zeroed, but {of_zeroed:?} change nothing"));
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
        if only.as_deref().is_some_and(|only| only.split(',').all(|only| only != architecture.name))
            || NOT_EVALUATED.contains(&architecture.name)
        {
            continue;
        }
        match check(architecture, dir.path()) {
            Ok((types, n_sets, n_floats)) => {
                println!("{:<16}{types:<14}{n_sets} sets, {n_floats} floats, 0 differ", architecture.name);
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
