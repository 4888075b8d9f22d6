//! Healed weights, beside those of least squares in loops over tokens.

use std::path::Path;

use ggml::Token;
use gguf_shorten::engine::hidden_state::{HiddenStates, Position};
use gguf_shorten::engine::llama::{Halves, LlamaHiddenStates, StreamGraph};
use gguf_shorten::gguf::TensorType;
use gguf_shorten::heal::Weighting;
use gguf_shorten::heal::healer::stepwise::Order;
use gguf_shorten::heal::healer::{HealType, Healer};
use gguf_shorten::heal::split::Split;
use gguf_shorten::measure::loss::Objective;
use gguf_shorten::model::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::Constraints;

use crate::heal::{WINDOW, heal, prepare, windows};
use crate::support::{load, setup, zero};

fn floats(path: &Path, tensor: &str) -> Vec<f32> {
    let input = Input::open(path).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let tensors = model.tensors();
    let tensor = tensors.iter().find(|of| of.info.name() == tensor).unwrap();
    let floats = tensor.info.bytes().chunks_exact(4);
    floats.map(|float| f32::from_le_bytes(float.try_into().unwrap())).collect()
}

/// The hidden states of each window at these places.
fn states<const N: usize>(path: &Path, windows: &[Vec<Token>], places: [Position; N]) -> Vec<[Vec<f32>; N]> {
    let input = Input::open(path).unwrap();
    let engine = load(path).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let constraints = Constraints::of(&model).unwrap();
    let stream = constraints.rules.stream;
    let options = ggml::ContextOptions { window: WINDOW, threads: 1 };
    let halves = Halves::of(&model, constraints.rules, &constraints.kinds).unwrap();
    let graph = StreamGraph::of(&model, &engine, stream).unwrap();
    let mut states = LlamaHiddenStates::new(&engine, options, graph).unwrap().with_halves(Some(halves));
    let mut found = Vec::new();
    for window in windows {
        let mut of_window = [const { Vec::new() }; N];
        states
            .visit(window, &mut |position, state| {
                if let Some(at) = places.iter().position(|place| *place == position) {
                    state.clone_into(&mut of_window[at]);
                }
                Ok(())
            })
            .unwrap();
        found.push(of_window);
    }
    found
}

/// The numbers of a token.
fn row(state: &[f32], token: usize, n: usize) -> Vec<f64> {
    let row = &state[token * n..(token + 1) * n];
    row.iter().map(|&x| f64::from(x)).collect()
}

fn difference(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// Solves `a x = b` for all columns by Gaussian elimination.
fn eliminate(mut a: Vec<Vec<f64>>, mut b: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let n = a.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|&x, &y| a[x][i].abs().total_cmp(&a[y][i].abs())).unwrap();
        a.swap(i, pivot);
        b.swap(i, pivot);
        for row in i + 1..n {
            let factor = a[row][i] / a[i][i];
            let (above, below) = a.split_at_mut(row);
            below[0][i..].iter_mut().zip(&above[i][i..]).for_each(|(x, y)| *x -= factor * y);
            let (above, below) = b.split_at_mut(row);
            below[0].iter_mut().zip(&above[i]).for_each(|(x, y)| *x -= factor * y);
        }
    }
    for i in (0..n).rev() {
        for o in 0..b[i].len() {
            let known: f64 = (i + 1..n).map(|j| a[i][j] * b[j][o]).sum();
            b[i][o] = (b[i][o] - known) / a[i][i];
        }
    }
    b
}

/// A token of a fit. What a matrix multiplies, what is left to add, and how much it counts.
type Shown = (Vec<f64>, Vec<f64>, f64);

/// The least-squares change with a ridge, by loops over tokens, `[n_in][n_out]`.
fn least_squares(tokens: &[Shown], ridge: f64) -> Vec<Vec<f64>> {
    let (n_in, n_out) = (tokens[0].0.len(), tokens[0].1.len());
    let mut sums = vec![vec![0.0; n_in]; n_in];
    let mut products = vec![vec![0.0; n_out]; n_in];
    for (inputs, residuals, weight) in tokens {
        for (i, input) in inputs.iter().enumerate() {
            let input = weight * input;
            for (sum, other) in sums[i].iter_mut().zip(inputs) {
                *sum += input * other;
            }
            for (product, residual) in products[i].iter_mut().zip(residuals) {
                *product += input * residual;
            }
        }
    }
    let mean = (0..n_in).map(|i| sums[i][i]).sum::<f64>() / n_in as f64;
    for (i, row) in sums.iter_mut().enumerate() {
        row[i] += ridge * mean;
    }
    eliminate(sums, products)
}

/// A token's weight in a fit, by its stream in the parent. The variant of the fit begins with the name of the weighting.
fn weight(variant: &str, target: &[f64]) -> f64 {
    let square = target.iter().map(|t| t * t).sum::<f64>();
    match variant.split(',').next().unwrap() {
        "plain" => 1.0,
        "length" => 1.0 / square.sqrt(),
        "direction" => 1.0 / square,
        other => panic!("{other}"),
    }
}

/// Checks that the weights `new` are `old` and `change`, but for rounding.
fn check_change(new: &[f32], old: &[f32], change: &[Vec<f64>]) {
    let n_in = change.len();
    let (mut error, mut size) = (0.0, 0.0);
    for (i, change) in change.iter().enumerate() {
        for (o, change) in change.iter().enumerate() {
            let at = o * n_in + i;
            error += (f64::from(new[at]) - f64::from(old[at]) - change).powi(2);
            size += change.powi(2);
        }
    }
    assert!(size > 0.0 && error < 1e-4 * size, "{error} of {size}");
}

#[test]
fn weights_are_the_least_squares_of_a_loop_over_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let json = heal(dir, "linear --heal-type F32 -o out.gguf");
    assert_eq!(json["heal"]["method"], "linear", "{:#}", json["heal"]);
    let first = &json["heal"]["tensors"][0];
    assert_eq!(first["name"], "blk.1.ffn_down.weight");
    let ridge = first["ridge"].as_f64().unwrap();
    let variant = json["heal"]["variant"].as_str().unwrap();

    let parent = dir.join("parent.gguf");
    let all = windows(&parent, &dir.join("text.txt"));
    let slices: Vec<&[Token]> = all.iter().map(Vec::as_slice).collect();
    let split = Split::of(&slices, &vec![0; all.len()], None);
    let places = [
        Position::Middle(BlockId::new(1)),
        Position::Output(BlockId::new(1)),
        Position::Output(BlockId::new(3)),
    ];
    let states = states(&parent, &all, places);
    let [norm, gate, up] =
        ["ffn_norm", "ffn_gate", "ffn_up"].map(|name| floats(&parent, &format!("blk.1.{name}.weight")));
    let n_embd = norm.len();
    let n_in = gate.len() / n_embd;
    let mut tokens: Vec<Shown> = Vec::new();
    for &window in split.folds.iter().flatten() {
        for t in 0..WINDOW {
            let [x, output, target] = states[window].each_ref().map(|state| row(state, t, n_embd));
            let square = x.iter().map(|x| x * x).sum::<f64>() / n_embd as f64;
            let length = (square + 1e-5).sqrt();
            let z: Vec<f64> = x.iter().zip(&norm).map(|(x, w)| x / length * f64::from(*w)).collect();
            let times = |matrix: &[f32], i: usize| -> f64 {
                let row = &matrix[i * n_embd..(i + 1) * n_embd];
                row.iter().zip(&z).map(|(w, z)| f64::from(*w) * z).sum()
            };
            let h: Vec<f64> = (0..n_in)
                .map(|i| {
                    let g = times(&gate, i);
                    g / (1.0 + (-g).exp()) * times(&up, i)
                })
                .collect();
            let counts = weight(variant, &target);
            tokens.push((h, difference(&target, &output), counts));
        }
    }
    let name = "blk.1.ffn_down.weight";
    let (old, new) = (floats(&parent, name), floats(&dir.join("out.gguf"), name));
    check_change(&new, &old, &least_squares(&tokens, ridge));
    let held_out = &json["heal"]["held_out"];
    assert!(held_out["loss_healed"].as_f64() < held_out["loss_none"].as_f64());
}

#[test]
fn what_attention_writes_is_fitted_to_the_stream_between_the_halves() {
    const FITTED: usize = 4;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let parent = dir.join("parent.gguf");
    let input = Input::open(&parent).unwrap();
    let engine = load(&parent).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let constraints = Constraints::of(&model).unwrap();
    // Few letters, so that attention's view tells much of what is missing.
    let letters = |seed: u32| {
        let mut state = seed.wrapping_mul(2_654_435_761);
        let letter = std::iter::repeat_with(move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Token::try_from(state >> 30).unwrap() + 97
        });
        letter.take(WINDOW).collect()
    };
    let all: Vec<Vec<Token>> = (1..61).map(letters).collect();
    let slices: Vec<&[Token]> = all.iter().map(Vec::as_slice).collect();
    let split = Split::of(&slices, &vec![0; all.len()], None);
    let setup = setup(&model, &constraints, &engine, slices, &split);
    let mut healer = Healer::new(setup).unwrap();
    let order = Order {
        weightings: vec![Weighting::InverseNorm],
        before: true,
        with_block: false,
        patience: 1,
        heal_type: HealType::To(TensorType::F32),
        objective: Objective::Kl,
    };
    let removed = [2, 3].map(BlockId::new).into();
    let steps = healer.fit(&removed, None, &order).unwrap();
    let step = steps.iter().find(|step| step.variant.ends_with("attention of block 4")).unwrap();
    let (candidate, _) = step.measured.as_ref().unwrap();
    let name = format!("blk.{FITTED}.attn_output.weight");
    let tensors = model.tensors();
    let source = tensors.iter().position(|of| of.info.name() == name).unwrap();
    let ridge = candidate.fitted.last().unwrap();
    assert_eq!(ridge.source, source);

    // The model before that step, and with the identity as that matrix.
    let [student, open] = ["student.gguf", "open.gguf"].map(|name| dir.join(name));
    zero(&parent, &[2, 3], &student);
    let mut bytes = std::fs::read(&student).unwrap();
    let mut put = |source: usize, changed: &[u8]| {
        let start = tensors[source].info.position().0 as usize;
        bytes[start..start + changed.len()].copy_from_slice(changed);
        bytes.clone()
    };
    for (&other, changed) in candidate.tensors.iter().filter(|(of, _)| **of != source) {
        std::fs::write(&student, put(other, &changed.bytes)).unwrap();
    }
    let [n_in, n_embd] = [0, 1].map(|i| tensors[source].info.dims()[i] as usize);
    assert_eq!(n_in, n_embd);
    let identity = (0..n_in * n_in).map(|i| if i % (n_in + 1) == 0 { 1.0_f32 } else { 0.0 });
    let identity: Vec<u8> = identity.flat_map(f32::to_le_bytes).collect();
    std::fs::write(&open, put(source, &identity)).unwrap();

    let middle = Position::Middle(BlockId::new(FITTED));
    let before = Position::Output(BlockId::new(FITTED - 1));
    let targets = states(&parent, &all, [middle]);
    let middles = states(&student, &all, [middle]);
    let opened = states(&open, &all, [middle, before]);
    let mut tokens: Vec<Shown> = Vec::new();
    for &window in split.folds.iter().flatten() {
        for t in 0..WINDOW {
            let [target] = targets[window].each_ref().map(|state| row(state, t, n_embd));
            let [found] = middles[window].each_ref().map(|state| row(state, t, n_embd));
            let [sum, before] = opened[window].each_ref().map(|state| row(state, t, n_embd));
            let counts = weight(&step.variant, &target);
            tokens.push((difference(&sum, &before), difference(&target, &found), counts));
        }
    }
    let new = ggml::quantize::dequantize(TensorType::F32.id(), &candidate.tensors[&source].bytes);
    let change = least_squares(&tokens, ridge.ridge);
    check_change(&new.unwrap(), &floats(&parent, &name), &change);
}
