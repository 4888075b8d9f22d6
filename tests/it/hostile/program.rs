//! Mutants of small models through the program as a user runs it. Each gives a valid result or one error line, in little memory
//! and time.
//!
//! The limits are set on the process. Its address space may grow to the size of the files and 256 MiB, of which the program
//! needs about 24 MiB to start, llama.cpp included. It may use one second of processor time.

use std::ops::Range;

use gguf_shorten::gguf::{EntryOut, File, Layout, TensorOut, ValueOut, ValueType};
use gguf_shorten::model::Model;

use super::INCOMPLETE;
use super::mutant::{head_len, mutant, seeds};
use crate::make::{Make, Random, Raw, array, write_parts};
use crate::util::{Dir, Output};

/// Mutants of each seed.
const N_MUTANTS: usize = 320;

/// The commands that a mutant gets, as `m.gguf`. `p.gguf` is the file that it comes from, `s.gguf` that file without its block 0.
const COMMANDS: &[&str] = &[
    "show m.gguf --tensors",
    "show m.gguf --json -",
    "m.gguf --blocks 0 -o out.gguf --json out.json",
    "m.gguf --blocks 1 --dry-run --json -",
    "m.gguf --drop 1 --method sequential --keep 0 -o out.gguf",
    "m.gguf --drop 40% --method reverse --trust-any-cut --dry-run",
    "verify s.gguf --parent m.gguf",
];

/// The commands that a mutant gets of `s.gguf`.
const VERIFY: &str = "verify m.gguf --parent p.gguf";

/// The program with these arguments, under limits for `len` bytes of file.
fn run<'d>(dir: &'d Dir, arguments: &str, len: usize) -> Output<'d> {
    let memory = (len >> 10) + (256 << 10);
    dir.sh(&format!("ulimit -v {memory}; ulimit -t 1; exec $PROGRAM {arguments}")).output()
}

/// Runs a command on `m.gguf`. `Ok` if it did what it was asked, and then what it wrote is well-formed. Else one error
/// line, and nothing written.
fn check(dir: &Dir, arguments: &str, len: usize) -> bool {
    let output = run(dir, arguments, len);
    if !output.status.success() {
        // What differs is shown before it is an error.
        if !arguments.starts_with("verify") {
            output.check_refused();
        }
        output.check(matches!(output.status.code(), Some(1 | 2)), "status 1 or 2");
        output.check_error_lines();
        output.check_untouched();
        return false;
    }
    let is_said =
        |line: &str| line.starts_with("gguf-shorten: note: ") || line.starts_with("gguf-shorten: warning: ");
    let notes = output.stderr.lines().all(is_said);
    output.check(notes, "nothing but notes and warnings on stderr");
    if dir.exists("out.gguf") {
        let bytes = dir.read("out.gguf");
        let model = File::parse(&bytes).map(|file| Model::new(vec![file]).is_ok());
        output.check(matches!(model, Ok(true)), "a model in out.gguf");
        for name in ["out.gguf", "out.json"] {
            let _ = std::fs::remove_file(dir.path(name));
        }
    }
    true
}

/// Where a file stores numbers: counts, lengths, types, dimensions, offsets, and values of metadata.
fn fields(bytes: &[u8]) -> Vec<Range<usize>> {
    let file = File::parse(bytes).unwrap();
    let layout = Layout::new(
        file.header().version,
        file.alignment(),
        file.metadata().iter().map(EntryOut::keep).collect(),
        file.tensors().iter().map(TensorOut::keep).collect(),
        file.ends_padded(),
    )
    .unwrap();
    let mut fields = vec![0..4, 4..8, 8..16, 16..24];
    let mut add = |at: u64, lens: &[usize]| {
        lens.iter().fold(at as usize, |at, len| {
            fields.push(at..at + len);
            at + len
        });
    };
    for planned in layout.metadata() {
        let (at, key) = (planned.position().0, planned.entry().key().len() as u64);
        add(at, &[8]);
        match planned.entry().value_type() {
            // Value type, element type, number of elements, first element or its length.
            ValueType::Array => add(at + 8 + key, &[4, 4, 8, 4]),
            ValueType::String => add(at + 8 + key, &[4, 8]),
            _ => add(at + 8 + key, &[4, planned.entry().value_raw().len()]),
        }
    }
    for planned in layout.tensors() {
        let (at, name) = (planned.info_position().0, planned.tensor().name().len() as u64);
        add(at, &[8]);
        // Number of dimensions, those, type, offset.
        add(at + 8 + name, &[4]);
        let n_dims = planned.tensor().n_dims();
        let mut lens = vec![8; n_dims];
        lens.extend([4, 8]);
        add(at + 12 + name, &lens);
    }
    fields
}

/// A mutant of a whole file. Bits are flipped anywhere, fields set to the extremes or to one another's values, the file is cut
/// off, regions change places.
fn whole_mutant(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let fields = fields(bytes);
    let field = |random: &mut Random| fields[random.below(fields.len())].clone();
    let mut changed = bytes.to_vec();
    match random.below(10) {
        // Mostly in names and values, so that the file is still read.
        0..=4 => {
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len());
                changed[at] ^= 1 << random.below(8);
            }
        }
        5 => {
            for _ in 0..1 + random.below(2) {
                let extremes = [
                    0,
                    1,
                    2,
                    31,
                    33,
                    511,
                    512,
                    513,
                    1 << 31,
                    u64::from(u32::MAX),
                    1 << 32,
                    (1 << 63) - 1,
                    1 << 63,
                    u64::MAX - 31,
                    u64::MAX,
                ];
                let number = extremes[random.below(extremes.len())].to_le_bytes();
                let at = field(random);
                let len = at.len();
                changed[at].copy_from_slice(&number[..len]);
            }
        }
        6 => {
            let (from, to) = (field(random), field(random));
            let len = from.len().min(to.len());
            let value = bytes[from][..len].to_vec();
            changed[to][..len].copy_from_slice(&value);
        }
        7 => changed.truncate(random.below(bytes.len())),
        8 => {
            let len = 1 + random.below(48);
            // Mostly of the head, where more depends on it.
            let end = [head_len(bytes), bytes.len()][usize::from(random.below(4) == 0)];
            let (a, b) = (random.below(end - len), random.below(end - len));
            let (first, second) = (a.min(b), a.max(b));
            let len = len.min(second - first);
            let (left, right) = changed.split_at_mut(second);
            left[first..first + len].swap_with_slice(&mut right[..len]);
        }
        _ => changed = mutant(bytes, random),
    }
    changed
}

/// More small models: kinds of blocks that metadata or the block's number decides.
fn more_seeds() -> Vec<Vec<u8>> {
    vec![
        Make::new("qwen3next", 8).set("qwen3next.full_attention_interval", ValueOut::u32(4)).bytes(),
        Make::new("smollm3", 9).alignment(64).bytes(),
        Make::new("deepseek2", 5)
            .set("deepseek2.leading_dense_block_count", ValueOut::u32(2))
            .without_end_padding()
            .bytes(),
        Make::new("jamba", 6)
            .set("jamba.attention.head_count_kv", ValueOut::u32s(&[0, 4, 0, 0, 4, 0]))
            .bytes(),
    ]
}

/// Runs mutants of one seed. Returns how many commands did what they were asked, and how many were refused.
fn run_mutants(seed: &[u8], random: &mut Random) -> [usize; 2] {
    let dir = Dir::new();
    dir.write("p.gguf", seed);
    let made = dir.run("p.gguf --blocks 0 -o s.gguf").output();
    let short = made.status.success().then(|| dir.read("s.gguf"));
    if short.is_none() {
        dir.write("s.gguf", seed);
    }
    let mut counts = [0, 0];
    for i in 0..N_MUTANTS {
        let n_commands = COMMANDS.len() + usize::from(short.is_some());
        let (from, command) = match (i % n_commands, &short) {
            (at, _) if at < COMMANDS.len() => (seed, COMMANDS[at]),
            (_, Some(short)) => (&short[..], VERIFY),
            (_, None) => unreachable!(),
        };
        let mutant = whole_mutant(from, random);
        dir.write("m.gguf", &mutant);
        let done = check(&dir, command, mutant.len() + from.len());
        counts[usize::from(!done)] += 1;
    }
    counts
}

#[test]
fn every_mutant_of_a_file_ends_in_a_result_or_one_error_line() {
    let start = std::time::Instant::now();
    let seeds = [seeds(), more_seeds()].concat();
    let counts: Vec<[usize; 2]> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                let seeds = &seeds;
                scope.spawn(move || {
                    let mut random = Random::new(17 + thread);
                    let share = seeds.iter().skip(thread as usize).step_by(2);
                    share.map(|seed| run_mutants(seed, &mut random)).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let [done, refused] = [0, 1].map(|i| counts.iter().map(|count| count[i]).sum::<usize>());
    println!("{done} done, {refused} refused, in {:.1} s", start.elapsed().as_secs_f64());
    // The mutants reach both the checks and what follows them.
    assert!(done > 200 && refused > 800, "{done} done, {refused} refused");
}

#[test]
fn every_mutant_of_a_split_model_ends_in_a_result_or_one_error_line() {
    let dir = Dir::new();
    let parts = Make::new("llama", 4).split(3);
    write_parts(&dir, &parts);
    let mut random = Random::new(23);
    let mut counts = [0, 0];
    for i in 0..240 {
        let part = i % parts.len();
        let name = crate::make::part_name(part, parts.len());
        let bytes = parts[part].bytes();
        let mutant = whole_mutant(&bytes, &mut random);
        dir.write(&name, &mutant);
        let command = [
            "show m-00002-of-00003.gguf",
            "m-00001-of-00003.gguf --blocks 1 -o out.gguf",
            "m-00003-of-00003.gguf --drop 2 --method reverse --dry-run",
        ][i / parts.len() % 3];
        let done = check(&dir, command, 3 * bytes.len() + mutant.len());
        counts[usize::from(!done)] += 1;
        dir.write(&name, &bytes);
    }
    assert!(counts[0] > 40 && counts[1] > 40, "{counts:?}");
}

#[test]
fn a_choice_among_many_blocks_that_no_set_allows_takes_less_than_a_second() {
    let dir = Dir::new();
    let flags = ValueOut::bools(&[true; 512]);
    // Both a recurrent and an attention block must stay. In the second model a first block must have no window.
    let last = Make::new("qwen3next", 512);
    let none = Make::new("laguna", 512)
        .set("laguna.attention.sliding_window", ValueOut::u32(8))
        .set("laguna.attention.sliding_window_pattern", flags);
    for (make, n) in [(last, 511), (none, 256)] {
        make.write(&dir, "m.gguf");
        let arguments = format!("m.gguf --drop {n} --method sequential --dry-run");
        run(&dir, &arguments, make.bytes().len()).check_refused();
    }
}

#[test]
fn the_program_refuses_a_model_cut_off_anywhere() {
    let bytes = Make::new("llama", 2).bytes();
    let dir = Dir::new();
    for len in (0..bytes.len() - 32).step_by(97) {
        dir.write("m.gguf", &bytes[..len]);
        let output = dir.run("m.gguf --blocks 0 -o out.gguf").refused();
        output.check(output.status.code() == Some(1) && output.hint() == INCOMPLETE, "status 1 and the hint");
    }
}

#[test]
fn hostile_counts_in_a_large_file_need_little_memory() {
    let dir = Dir::new();
    // 32 MB of zeros after the head, where counts and lengths lead.
    let n = 32 << 20;
    let pad = |raw: Raw| {
        let mut bytes = raw.bytes();
        bytes.resize(bytes.len() + n, 0);
        bytes
    };
    let mut tensors = Raw::model();
    tensors.n_tensors = Some(1 << 20);
    let mut entries = Raw::model();
    entries.n_entries = Some(1 << 21);
    let strings = Raw::model().entry(b"k", 9, &array(8, 1 << 21, b""));
    let arrays = Raw::model().entry(b"k", 9, &array(9, 1 << 21, b""));
    for raw in [tensors, entries, strings, arrays] {
        dir.write("m.gguf", &pad(raw));
        let limit = (n >> 10) + (256 << 10);
        dir.sh(&format!("ulimit -v {limit}; exec $PROGRAM m.gguf --blocks 0 -o out.gguf")).refused();
    }
}
