//! One sentence about what the rows show. Above all whether a smaller quantization would have been better than fewer
//! blocks or experts. Without one fewer experts are compared with fewer blocks.
//!
//! Two rows are compared where the answer is plain: where their sizes are about the same, or where one is smaller and
//! closer to the parent at once. Where the larger one is the closer one, nothing follows. Rows that are not smaller than
//! the parent take no part: the parent itself is better.

use indicatif::DecimalBytes;

use super::pair::{Pair, called, digits};
use super::{Kind, Point};

/// Rows of two kinds that are compared, in words.
#[derive(Clone, Copy)]
struct Sides {
    /// Those with fewer parts: `fewer blocks`.
    fewer: &'static str,
    /// The others: `all blocks`.
    others: &'static str,
}

const BLOCKS: Sides = Sides { fewer: "fewer blocks", others: "all blocks" };

const EXPERTS: Sides = Sides { fewer: "fewer experts", others: "all experts" };

const BOTH: Sides = Sides { fewer: "fewer blocks or experts", others: "all blocks and experts" };

/// Fewer experts against fewer blocks.
const EACH_OTHER: Sides = Sides { fewer: "fewer experts", others: "fewer blocks" };

/// What follows from `rows`, the parent's among them. Those that failed are left out. A row has fewer blocks or experts than the
/// parent whatever way it came in: as the parent without some, or as a file.
#[must_use]
pub fn verdict(rows: &[Point]) -> String {
    let parent = rows.iter().find(|row| row.kind == Kind::Parent);
    let others = || rows.iter().filter(|row| row.kind != Kind::Parent);
    if others().next().is_none() {
        return "no verdict: no row but the parent's was measured".to_owned();
    }
    let smaller: Vec<&Point> =
        others().filter(|row| parent.is_none_or(|parent| row.bytes < parent.bytes)).collect();
    if smaller.is_empty() {
        return "no verdict: no row is smaller than the parent, which is the better choice".to_owned();
    }
    let (n_blocks, n_experts) = parent.map_or((0, 0), |parent| (parent.n_blocks, parent.n_experts));
    let has_fewer_blocks = |row: &Point| row.kind == Kind::Drop || row.n_blocks < n_blocks;
    let has_fewer_experts = |row: &Point| row.kind == Kind::Experts || row.n_experts < n_experts;
    let (shorter, whole): (Vec<&Point>, Vec<&Point>) =
        smaller.iter().partition(|row| has_fewer_blocks(row) || has_fewer_experts(row));
    let (without_blocks, without_experts): (Vec<&Point>, Vec<&Point>) =
        shorter.iter().partition(|row| has_fewer_blocks(row));
    let sides = match (&without_blocks[..], &without_experts[..]) {
        (_, []) => BLOCKS,
        ([], _) => EXPERTS,
        _ => BOTH,
    };
    let has_file = smaller.iter().any(|row| row.kind == Kind::File);
    match (&shorter[..], &whole[..]) {
        (shorter, []) if has_file => format!("{}; {REQUANTIZE}", with_files(shorter)),
        (_, []) if sides.fewer == BOTH.fewer => {
            format!("{}; {REQUANTIZE}", of_both_kinds(&without_experts, &without_blocks, EACH_OTHER))
        }
        (shorter, []) => one_kind(&format!("rows with {}", sides.fewer), shorter, REQUANTIZE),
        ([], whole) if has_file => with_files(whole),
        ([], whole) => one_kind("other quantizations", whole, "--drop shows whether fewer blocks are better"),
        (shorter, whole) => of_both_kinds(shorter, whole, sides),
    }
}

const REQUANTIZE: &str = "--requantize shows whether a smaller quantization is better";

/// Rows with fewer parts against the others.
fn of_both_kinds(shorter: &[&Point], whole: &[&Point], sides: Sides) -> String {
    let Sides { fewer, others } = sides;
    if let Some(verdict) = strongest(shorter, whole, &format!("row with {fewer}"))
        .or_else(|| strongest(whole, shorter, &format!("row with {others}")))
    {
        return verdict;
    }
    let pairs: Vec<Pair<'_>> =
        shorter.iter().flat_map(|a| whole.iter().filter_map(|b| Pair::new(a, b))).collect();
    match pairs.is_empty() {
        true => format!(
            "no verdict: no row with {others} has about the size of one with {fewer}, or is smaller and closer to the parent \
             than one, or larger and further away"
        ),
        false => of_pairs(&pairs, shorter, sides),
    }
}

/// Rows of which the names are listed at most.
const LISTED: usize = 3;

/// For each of `rows` the closest rival that beats it. It is smaller and closer to the parent. `None` where a row has none.
fn strongest(rows: &[&Point], rivals: &[&Point], called_one: &str) -> Option<String> {
    let beats = |rival: &Point, row: &Point| {
        let pair = Pair::new(rival, row);
        rival.bytes < row.bytes && rival.kl < row.kl && pair.is_some_and(|pair| !pair.same_kl)
    };
    // Of two rows more can be said.
    if rows.len() == 1 && rivals.len() == 1 {
        return None;
    }
    let closest = |beaten: &[&Point]| {
        rivals
            .iter()
            .filter(|rival| beaten.iter().all(|row| beats(rival, row)))
            .min_by(|a, b| a.kl.total_cmp(&b.kl))
    };
    if let Some(rival) = closest(rows) {
        let beaten = match rows {
            [row] => described(row),
            _ => format!("every {called_one}"),
        };
        let rival = described(rival);
        return Some(format!("{rival} is smaller and closer than {beaten}"));
    }
    let pairs = rows.iter().map(|row| Some((closest(&[row])?, row)));
    let pairs: Vec<_> = pairs.collect::<Option<_>>()?;
    let listed: Vec<String> = pairs
        .iter()
        .take(LISTED)
        .map(|(rival, row)| format!("{} than {}", described(rival), described(row)))
        .collect();
    let more = match pairs.len().saturating_sub(LISTED) {
        0 => String::new(),
        n => format!(", and so on for {n} more"),
    };
    Some(format!("for every {called_one} another row is smaller and closer: {}{more}", listed.join(", ")))
}

/// A row with its size and distance.
fn described(row: &Point) -> String {
    let (bytes, kl) = (DecimalBytes(row.bytes), digits(row.kl));
    format!("{} ({bytes}, KL {kl})", row.name)
}

/// What the pairs of a row of `shorter` and another one show.
fn of_pairs(pairs: &[Pair<'_>], shorter: &[&Point], Sides { fewer, others }: Sides) -> String {
    let is_shorter = |row: &Point| shorter.iter().any(|&one| std::ptr::eq(one, row));
    let won_by = |by_shorter: bool| {
        let won: Vec<_> =
            pairs.iter().filter(|pair| !pair.is_tie() && is_shorter(pair.better) == by_shorter).collect();
        (closest(won.iter().copied()), won.len())
    };
    let all = match pairs.len() {
        1 => String::new(),
        2 => "both pairs that can be compared".to_owned(),
        n => format!("all {n} pairs that can be compared"),
    };
    let (by_type, n_by_type) = won_by(false);
    let (by_drop, n_by_drop) = won_by(true);
    match (by_type, by_drop) {
        (Some(by_type), Some(by_drop)) => format!(
            "it depends: {}, but {}; {others} are better in {n_by_type}, {fewer} in {n_by_drop} of {} pairs that can be compared",
            by_type.sentence(),
            by_drop.sentence(),
            pairs.len()
        ),
        (Some(one), None) | (None, Some(one)) => match (n_by_type + n_by_drop, pairs.len()) {
            (_, 1) => one.sentence(),
            (n, of) if n == of => format!("{}; it is so in {all}", one.sentence()),
            (n, _) => format!(
                "{}; it is so in {n} of {} pairs that can be compared, and the others are ties",
                one.sentence(),
                pairs.len()
            ),
        },
        (None, None) => closest(pairs.iter()).map_or_else(String::new, |tie| match pairs.len() {
            1 => tie.sentence(),
            _ => format!("{}; it is so in {all}", tie.sentence()),
        }),
    }
}

/// Files against each other and against what was made of the parent.
fn with_files(rows: &[&Point]) -> String {
    if let [row] = rows {
        return format!("no verdict: {} is the only row that is smaller than the parent", described(row));
    }
    let mut pairs = Vec::new();
    for (i, a) in rows.iter().enumerate() {
        for b in &rows[i + 1..] {
            if a.kind == Kind::File || b.kind == Kind::File {
                pairs.extend(Pair::new(a, b));
            }
        }
    }
    let decided = pairs.iter().filter(|pair| !pair.is_tie());
    match closest(decided).or(closest(pairs.iter())) {
        Some(pair) => pair.sentence(),
        None => "no verdict: of every two rows the larger one is the closer one to the parent".to_owned(),
    }
}

/// Rows with nothing to compare them with.
fn one_kind(what: &str, rows: &[&Point], hint: &str) -> String {
    let one = |row: &Point| {
        let name = called(row);
        described(&Point { name, ..row.clone() })
    };
    let rows = match rows {
        [first, .., last] => format!("from {} to {}", one(first), one(last)),
        [row] => one(row),
        [] => String::new(),
    };
    format!("no verdict: only {what} were measured, {rows}; {hint}")
}

/// The pair whose sizes differ least; of several the first.
fn closest<'r, 'p: 'r>(pairs: impl Iterator<Item = &'r Pair<'p>>) -> Option<&'r Pair<'p>> {
    pairs.min_by(|a, b| a.gap.total_cmp(&b.gap))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of so many megabytes.
    #[allow(clippy::cast_possible_truncation, reason = "some millions")]
    fn row(kind: Kind, name: &str, megabytes: f64, kl: f64) -> Point {
        Point {
            name: name.to_owned(),
            kind,
            n_blocks: 30,
            n_experts: 64,
            bytes: (megabytes * 1e6) as u64,
            kl,
            kl_stderr: Some(0.01 * kl),
        }
    }

    fn parent() -> Point {
        row(Kind::Parent, "m.gguf", 100.0, 0.0)
    }

    fn drop(n: usize, megabytes: f64, kl: f64) -> Point {
        Point { n_blocks: 30 - n, ..row(Kind::Drop, &format!("{n} blocks fewer"), megabytes, kl) }
    }

    /// A file with fewer blocks.
    fn short(name: &str, megabytes: f64, kl: f64) -> Point {
        Point { n_blocks: 23, ..row(Kind::File, name, megabytes, kl) }
    }

    fn quantized(name: &str, megabytes: f64, kl: f64) -> Point {
        row(Kind::Requantize, name, megabytes, kl)
    }

    fn file(name: &str, megabytes: f64, kl: f64) -> Point {
        row(Kind::File, name, megabytes, kl)
    }

    fn of(others: &[Point]) -> String {
        let mut rows = vec![parent()];
        rows.extend_from_slice(others);
        verdict(&rows)
    }

    #[test]
    fn the_better_of_two_of_one_size_is_named() {
        assert_eq!(
            of(&[drop(6, 71.0, 0.48), quantized("Q3_K_M", 70.0, 0.21)]),
            "at 70.00 MB Q3_K_M of the parent is better (KL 0.210) than 6 blocks fewer (0.480)"
        );
        assert_eq!(
            of(&[drop(6, 70.0, 0.0123), quantized("Q3_K_M", 71.0, 1.5)]),
            "at 70.00 MB 6 blocks fewer is better (KL 0.0123) than Q3_K_M of the parent (1.50)"
        );
    }

    #[test]
    fn smaller_and_closer_wins_at_any_size() {
        assert_eq!(
            of(&[drop(6, 80.0, 0.48), quantized("Q2_K", 50.0, 0.3)]),
            "Q2_K of the parent is smaller (50.00 MB) and better (KL 0.300) than 6 blocks fewer (80.00 MB, 0.480)"
        );
        // In either order of rows.
        assert_eq!(
            of(&[quantized("Q2_K", 80.0, 0.5), drop(6, 50.0, 0.3)]),
            "6 blocks fewer is smaller (50.00 MB) and better (KL 0.300) than Q2_K of the parent (80.00 MB, 0.500)"
        );
    }

    #[test]
    fn one_that_beats_all_speaks_for_all() {
        let rows = [drop(2, 92.0, 0.2), drop(6, 71.0, 0.48), quantized("Q3_K_M", 70.0, 0.1)];
        assert_eq!(
            of(&rows),
            "Q3_K_M (70.00 MB, KL 0.100) is smaller and closer than every row with fewer blocks"
        );
    }

    #[test]
    fn both_sides_are_heard() {
        let rows = [
            drop(1, 95.0, 0.05),
            drop(6, 71.0, 0.48),
            quantized("Q6_K", 94.0, 0.1),
            quantized("Q3_K_M", 70.0, 0.21),
        ];
        assert_eq!(
            of(&rows),
            "it depends: at 70.00 MB Q3_K_M of the parent is better (KL 0.210) than 6 blocks fewer (0.480), but at 95.00 \
             MB 1 blocks fewer is better (KL 0.0500) than Q6_K of the parent (0.100); all blocks are better in 1, fewer \
             blocks in 1 of 2 pairs that can be compared"
        );
    }

    #[test]
    fn ties_are_ties() {
        let rows = [drop(6, 71.0, 0.2), quantized("Q3_K_M", 70.0, 0.202)];
        assert_eq!(
            of(&rows),
            "at 71.00 MB 6 blocks fewer and Q3_K_M of the parent are not told apart (KL 0.200 and 0.202)"
        );
        // Where sizes differ the smaller one is still the better choice.
        let rows = [drop(6, 81.0, 0.2), quantized("Q3_K_M", 70.0, 0.202)];
        assert_eq!(
            of(&rows),
            "Q3_K_M of the parent is smaller (70.00 MB) than 6 blocks fewer (81.00 MB), and their KL is not told apart \
             (0.202 and 0.200)"
        );
        // A tie and a win.
        let rows = [drop(6, 71.0, 0.2), drop(5, 73.0, 0.3), quantized("Q3_K_M", 70.9, 0.202)];
        assert_eq!(
            of(&rows),
            "at 70.90 MB Q3_K_M of the parent is better (KL 0.202) than 5 blocks fewer (0.300); it is so in 1 of 2 pairs \
             that can be compared, and the others are ties"
        );
        // Single tokens have no error: only equals are ties.
        let mut rows = [drop(6, 71.0, 0.2), quantized("Q3_K_M", 70.0, 0.2)];
        rows.iter_mut().for_each(|row| row.kl_stderr = None);
        assert!(of(&rows).contains("not told apart"));
        rows[0].kl = 0.201;
        assert!(of(&rows).contains("Q3_K_M of the parent is better"));
    }

    #[test]
    fn no_pair_no_verdict() {
        assert_eq!(
            of(&[drop(1, 95.0, 0.05), quantized("Q2_K", 60.0, 0.9)]),
            "no verdict: no row with all blocks has about the size of one with fewer blocks, or is smaller and closer to the \
             parent than one, or larger and further away"
        );
        assert_eq!(of(&[]), "no verdict: no row but the parent's was measured");
        assert_eq!(verdict(&[]), of(&[]));
    }

    fn experts(n: usize, megabytes: f64, kl: f64) -> Point {
        Point { n_experts: 64 - n, ..row(Kind::Experts, &format!("{n} experts fewer"), megabytes, kl) }
    }

    #[test]
    fn fewer_experts_are_held_against_types_and_against_fewer_blocks() {
        assert_eq!(
            of(&[experts(16, 71.0, 0.48), quantized("Q3_K_M", 70.0, 0.21)]),
            "at 70.00 MB Q3_K_M of the parent is better (KL 0.210) than 16 experts fewer (0.480)"
        );
        // A file with fewer experts is one of that kind.
        let short = Point { n_experts: 48, ..file("short.gguf", 71.0, 0.48) };
        assert_eq!(
            of(&[short, experts(32, 72.0, 0.5), quantized("Q3_K_M", 70.0, 0.21)]),
            "Q3_K_M (70.00 MB, KL 0.210) is smaller and closer than every row with fewer experts"
        );
        assert_eq!(
            of(&[drop(6, 71.0, 0.48), experts(16, 75.0, 0.6), quantized("Q3_K_M", 70.0, 0.21)]),
            "Q3_K_M (70.00 MB, KL 0.210) is smaller and closer than every row with fewer blocks or experts"
        );
        assert_eq!(
            of(&[drop(6, 71.0, 0.48), experts(16, 70.0, 0.21)]),
            "at 70.00 MB 16 experts fewer is better (KL 0.210) than 6 blocks fewer (0.480); --requantize shows whether a smaller \
             quantization is better"
        );
        assert_eq!(
            of(&[drop(6, 71.0, 0.1), drop(3, 85.0, 0.05), experts(16, 75.0, 0.21)]),
            "6 blocks fewer (71.00 MB, KL 0.100) is smaller and closer than 16 experts fewer (75.00 MB, KL 0.210); --requantize \
             shows whether a smaller quantization is better"
        );
        assert!(
            of(&[experts(16, 75.0, 0.21)])
                .starts_with("no verdict: only rows with fewer experts were measured, 16")
        );
    }

    #[test]
    fn one_kind_alone_says_what_is_missing() {
        assert_eq!(
            of(&[drop(1, 95.0, 0.05), drop(2, 92.0, 0.1), drop(7, 80.0, 1.05)]),
            "no verdict: only rows with fewer blocks were measured, from 1 blocks fewer (95.00 MB, KL 0.0500) to 7 blocks fewer \
             (80.00 MB, KL 1.05); --requantize shows whether a smaller quantization is better"
        );
        assert_eq!(
            of(&[quantized("Q2_K", 60.0, 0.9)]),
            "no verdict: only other quantizations were measured, Q2_K of the parent (60.00 MB, KL 0.900); --drop shows \
             whether fewer blocks are better"
        );
    }

    #[test]
    fn what_is_no_smaller_than_the_parent_takes_no_part() {
        assert_eq!(
            of(&[quantized("Q8_0", 130.0, 0.001), quantized("Q6_K", 100.0, 0.002)]),
            "no verdict: no row is smaller than the parent, which is the better choice"
        );
        // Fewer blocks do not win against what nobody would take.
        assert!(
            of(&[drop(1, 95.0, 0.05), quantized("Q8_0", 130.0, 0.06)])
                .starts_with("no verdict: only rows with fewer")
        );
    }

    #[test]
    fn files_are_compared_with_all() {
        assert_eq!(
            of(&[file("b.gguf", 71.0, 0.48), file("c.gguf", 70.0, 0.21)]),
            "at 70.00 MB c.gguf is better (KL 0.210) than b.gguf (0.480)"
        );
        assert_eq!(
            of(&[file("b.gguf", 71.0, 0.48), drop(2, 90.0, 0.7), drop(3, 85.0, 0.3)]),
            "b.gguf is smaller (71.00 MB) and better (KL 0.480) than 2 blocks fewer (90.00 MB, 0.700)"
        );
        assert_eq!(
            of(&[file("b.gguf", 90.0, 0.1), file("c.gguf", 70.0, 0.21)]),
            "no verdict: of every two rows the larger one is the closer one to the parent"
        );
        assert_eq!(
            of(&[file("b.gguf", 90.0, 0.1)]),
            "no verdict: b.gguf (90.00 MB, KL 0.100) is the only row that is smaller than the parent"
        );
        assert_eq!(
            of(&[file("b.gguf", 70.0, 0.2), file("c.gguf", 70.0, 0.2)]),
            "at 70.00 MB b.gguf and c.gguf are not told apart (KL 0.200 and 0.200)"
        );
    }

    #[test]
    fn files_with_fewer_blocks_are_rows_with_fewer_blocks() {
        let files = [short("short.gguf", 450.74, 0.61), short("healed.gguf", 450.74, 0.35)];
        let parent = row(Kind::Parent, "m.gguf", 491.4, 0.0);
        let of = |others: &[Point]| {
            let rows = [std::slice::from_ref(&parent), &files[..], others].concat();
            verdict(&rows)
        };
        let types = [
            quantized("Q2_K", 338.6, 0.29),
            quantized("Q3_K_M", 432.04, 0.0784),
            quantized("Q3_K_S", 391.2, 0.15),
        ];
        assert_eq!(
            of(&types),
            "Q3_K_M (432.04 MB, KL 0.0784) is smaller and closer than every row with fewer blocks"
        );
        assert_eq!(
            verdict(&[&[parent.clone(), files[1].clone()], &types[..]].concat()),
            "Q3_K_M (432.04 MB, KL 0.0784) is smaller and closer than healed.gguf (450.74 MB, KL 0.350)"
        );
        // A file that holds all blocks is a rival, too.
        assert_eq!(
            of(&[row(Kind::File, "q3.gguf", 432.04, 0.0784)]),
            "q3.gguf (432.04 MB, KL 0.0784) is smaller and closer than every row with fewer blocks"
        );
        assert_eq!(
            of(&[]),
            "at 450.74 MB healed.gguf is better (KL 0.350) than short.gguf (0.610); --requantize shows whether a smaller \
             quantization is better"
        );
        // The other way round.
        assert_eq!(
            of(&[quantized("Q4_0", 460.0, 0.9), quantized("Q3_K_M", 470.0, 0.8)]),
            "healed.gguf (450.74 MB, KL 0.350) is smaller and closer than every row with all blocks"
        );
    }

    #[test]
    fn each_row_has_its_strongest_rival() {
        let rows = [
            drop(1, 95.0, 0.05),
            drop(6, 71.0, 0.48),
            quantized("Q6_K", 90.0, 0.01),
            quantized("Q5_K", 85.0, 0.02),
            quantized("Q3_K_M", 70.0, 0.21),
        ];
        assert_eq!(
            of(&rows),
            "for every row with fewer blocks another row is smaller and closer: Q6_K (90.00 MB, KL 0.0100) than 1 blocks \
             fewer (95.00 MB, KL 0.0500), Q3_K_M (70.00 MB, KL 0.210) than 6 blocks fewer (71.00 MB, KL 0.480)"
        );
        // Not where one pair cannot be told apart.
        let rows = [
            drop(1, 95.0, 0.05),
            drop(6, 71.0, 0.211),
            quantized("Q6_K", 90.0, 0.01),
            quantized("Q3_K_M", 70.0, 0.21),
        ];
        assert!(of(&rows).contains("it is so in"), "{}", of(&rows));
    }
}
