//! The choice of one rung for each tensor: the least sum of losses within a number of bytes. Pure.
//!
//! This is the multiple-choice knapsack problem. Partial choices go from group to group; of those none stays that another one
//! beats in bytes and loss, or whose lower bound reaches the best choice known. The bound is that of the relaxed problem, in
//! which the last step may be taken in part: steps along the lower convex hull of each group, by their gain per byte
//! (Sinha and Zoltners, The Multiple-Choice Knapsack Problem, Operations Research 27, 1979).

/// One way to store a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Option {
    /// Its bytes.
    pub bytes: u64,
    /// What it costs, in nats per token.
    pub loss: f64,
}

/// One option for each group.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The number of the option, group by group.
    pub picks: Vec<usize>,
    /// The sum of their bytes.
    pub bytes: u64,
    /// The sum of their losses.
    pub loss: f64,
    /// Whether no other choice is better by more than [`TOLERANCE`].
    pub exact: bool,
}

/// The share of loss up to which choices count as equally good.
pub const TOLERANCE: f64 = 1e-6;

/// Partial choices that are kept; of more, the best of each range of bytes.
const MAX_STATES: usize = 100_000;

/// A step up to the next option on a group's hull.
#[derive(Clone, Copy, Debug)]
struct Step {
    group: usize,
    to: usize,
    bytes: u64,
    gain: f64,
}

/// The first groups with their options.
#[derive(Clone, Copy, Debug)]
struct State {
    bytes: u64,
    loss: f64,
    /// The state before, and the option of the last group.
    before: u32,
    pick: u32,
}

/// The least loss within `budget` bytes; `None` if even the smallest options take more.
#[must_use]
pub fn choose(groups: &[Vec<Option>], budget: u64) -> std::option::Option<Choice> {
    let fronts: Vec<Vec<usize>> = groups.iter().map(|options| front(options)).collect();
    let smallest: u64 = groups.iter().zip(&fronts).map(|(options, front)| options[front[0]].bytes).sum();
    if smallest > budget {
        return None;
    }
    let mut steps = steps(groups, &fronts);
    steps.sort_by(|a, b| (b.gain * a.bytes as f64).total_cmp(&(a.gain * b.bytes as f64)));
    let greedy = greedy(groups, &fronts, &steps, budget - smallest);
    let (states, exact) = Layers { groups, fronts: &fronts, steps: &steps, budget }.run(greedy.loss);
    Some(match best(groups, &states) {
        Some(found) if found.loss < greedy.loss => Choice { exact, ..found },
        _ => Choice { exact, ..greedy },
    })
}

/// The options that no other one beats, from small to large.
pub(super) fn front(options: &[Option]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..options.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (options[a], options[b]);
        a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss))
    });
    let mut front: Vec<usize> = Vec::new();
    for number in order {
        if front.last().is_none_or(|&last| options[number].loss < options[last].loss) {
            front.push(number);
        }
    }
    front
}

/// The steps along the lower convex hulls of all groups.
fn steps(groups: &[Vec<Option>], fronts: &[Vec<usize>]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (group, (options, front)) in groups.iter().zip(fronts).enumerate() {
        let mut hull: Vec<Step> = Vec::new();
        let mut from = options[front[0]];
        for &to in &front[1..] {
            let mut step =
                Step { group, to, bytes: options[to].bytes - from.bytes, gain: from.loss - options[to].loss };
            // Not on the hull: the step before gains less per byte than both together.
            while let Some(last) = hull.last().copied()
                && last.gain * step.bytes as f64 <= step.gain * last.bytes as f64
            {
                hull.pop();
                step = Step { bytes: last.bytes + step.bytes, gain: last.gain + step.gain, ..step };
            }
            hull.push(step);
            from = options[to];
        }
        steps.extend(hull);
    }
    steps
}

/// The steps that gain most per byte, as long as they fit.
fn greedy(groups: &[Vec<Option>], fronts: &[Vec<usize>], steps: &[Step], mut left: u64) -> Choice {
    let mut picks: Vec<usize> = fronts.iter().map(|front| front[0]).collect();
    let mut stopped = vec![false; groups.len()];
    for step in steps {
        if stopped[step.group] || step.bytes > left {
            stopped[step.group] = true;
            continue;
        }
        left -= step.bytes;
        picks[step.group] = step.to;
    }
    sum(groups, picks)
}

fn sum(groups: &[Vec<Option>], picks: Vec<usize>) -> Choice {
    let of = |(options, &pick): (&Vec<Option>, &usize)| options[pick];
    let bytes = groups.iter().zip(&picks).map(of).map(|option| option.bytes).sum();
    let loss = groups.iter().zip(&picks).map(of).map(|option| option.loss).sum();
    Choice { picks, bytes, loss, exact: true }
}

/// The groups one after another.
struct Layers<'g> {
    groups: &'g [Vec<Option>],
    fronts: &'g [Vec<usize>],
    /// By their gain per byte.
    steps: &'g [Step],
    budget: u64,
}

impl Layers<'_> {
    /// The states of each layer that may lead below `known`. Also whether none was left out that might.
    fn run(&self, known: f64) -> (Vec<Vec<State>>, bool) {
        let mut exact = true;
        let mut layers: Vec<Vec<State>> = Vec::new();
        let mut states = vec![State { bytes: 0, loss: 0.0, before: 0, pick: 0 }];
        for (group, front) in self.fronts.iter().enumerate() {
            let relaxed = Relaxed::of(self, group + 1);
            let mut next: Vec<State> = Vec::with_capacity(states.len() * front.len());
            for (before, state) in states.iter().enumerate() {
                for &pick in front {
                    let option = self.groups[group][pick];
                    let (bytes, loss) = (state.bytes + option.bytes, state.loss + option.loss);
                    let Some(bound) = relaxed.bound(self.budget.checked_sub(bytes)) else {
                        continue;
                    };
                    if loss + bound < known * (1.0 - TOLERANCE) {
                        #[expect(clippy::cast_possible_truncation, reason = "no more than MAX_STATES")]
                        next.push(State { bytes, loss, before: before as u32, pick: pick as u32 });
                    }
                }
            }
            next.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)));
            let mut least = f64::INFINITY;
            next.retain(|state| {
                let is_better = state.loss < least;
                least = least.min(state.loss);
                is_better
            });
            if next.len() > MAX_STATES {
                exact = false;
                next = thinned(&next);
            }
            states = next.clone();
            layers.push(next);
        }
        (layers, exact)
    }
}

/// The best state of each range of bytes.
fn thinned(states: &[State]) -> Vec<State> {
    let n = states.len().div_ceil(MAX_STATES);
    // The last of a front has the lowest loss.
    states.chunks(n).filter_map(|range| range.last().copied()).collect()
}

/// The best full choice that the layers lead to.
fn best(groups: &[Vec<Option>], layers: &[Vec<State>]) -> std::option::Option<Choice> {
    let last = layers.last()?;
    let mut state = *last.iter().min_by(|a, b| a.loss.total_cmp(&b.loss))?;
    let mut picks = vec![0; groups.len()];
    for group in (0..groups.len()).rev() {
        picks[group] = state.pick as usize;
        if group > 0 {
            state = layers[group - 1][state.before as usize];
        }
    }
    Some(sum(groups, picks))
}

/// The last groups, whose last step may be taken in part.
struct Relaxed {
    smallest: u64,
    /// The loss of the smallest options.
    loss: f64,
    /// Bytes and gain of the first steps, and of all before them.
    steps: Vec<(u64, f64)>,
}

impl Relaxed {
    /// Of the groups from `first` on.
    fn of(layers: &Layers<'_>, first: usize) -> Self {
        let rest = || layers.groups[first..].iter().zip(&layers.fronts[first..]);
        let (mut bytes, mut gain) = (0, 0.0);
        let mut steps = vec![(0, 0.0)];
        for step in layers.steps.iter().filter(|step| step.group >= first) {
            bytes += step.bytes;
            gain += step.gain;
            steps.push((bytes, gain));
        }
        Self {
            smallest: rest().map(|(options, front)| options[front[0]].bytes).sum(),
            loss: rest().map(|(options, front)| options[front[0]].loss).sum(),
            steps,
        }
    }

    /// The least loss within `left` bytes, at most the true one; `None` if they do not fit.
    fn bound(&self, left: std::option::Option<u64>) -> std::option::Option<f64> {
        let left = left?.checked_sub(self.smallest)?;
        let after = self.steps.partition_point(|(bytes, _)| *bytes <= left);
        let (bytes, gain) = self.steps[after - 1];
        let part = self.steps.get(after).map_or(0.0, |(next_bytes, next_gain)| {
            (next_gain - gain) * (left - bytes) as f64 / (next_bytes - bytes) as f64
        });
        Some(self.loss - gain - part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random and are always the same.
    fn numbers() -> impl Iterator<Item = u64> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        std::iter::repeat_with(move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        })
    }

    fn random(numbers: &mut impl Iterator<Item = u64>, n_groups: usize, n_options: u64) -> Vec<Vec<Option>> {
        let mut next = |n: u64| numbers.next().unwrap() % n;
        let option = |next: &mut dyn FnMut(u64) -> u64| {
            let bytes = 10 + next(90);
            Option {
                bytes,
                loss: (100 - bytes) as f64 * (1 + next(7)) as f64 / 64.0 + next(50) as f64 / 100.0,
            }
        };
        (0..n_groups).map(|_| (0..1 + next(n_options)).map(|_| option(&mut next)).collect()).collect()
    }

    /// All choices.
    fn brute(groups: &[Vec<Option>], budget: u64) -> std::option::Option<f64> {
        match groups {
            [] => Some(0.0),
            [first, rest @ ..] => first
                .iter()
                .filter_map(|option| Some(option.loss + brute(rest, budget.checked_sub(option.bytes)?)?))
                .min_by(f64::total_cmp),
        }
    }

    #[test]
    fn the_choice_is_the_best_of_all() {
        let mut numbers = numbers();
        for case in 0..300 {
            let groups = random(&mut numbers, 1 + case % 6, 5);
            let budget = 20 + numbers.next().unwrap() % 400;
            let found = choose(&groups, budget);
            let expected = brute(&groups, budget);
            assert_eq!(found.is_some(), expected.is_some(), "{case}");
            let Some((found, expected)) = found.zip(expected) else { continue };
            assert!(found.exact && found.bytes <= budget);
            assert!(
                (found.loss - expected).abs() <= 2.0 * TOLERANCE * expected,
                "{case}: {} {expected}",
                found.loss
            );
            assert_eq!(sum(&groups, found.picks.clone()).loss, found.loss);
        }
    }

    /// By bytes, one after another.
    fn by_bytes(groups: &[Vec<Option>], budget: usize) -> f64 {
        let mut least = vec![0.0; budget + 1];
        for options in groups {
            let bytes = |option: &Option| usize::try_from(option.bytes).unwrap();
            let of = |left: usize| {
                let loss = |option: &Option| Some(option.loss + least[left.checked_sub(bytes(option))?]);
                options.iter().filter_map(loss).fold(f64::INFINITY, f64::min)
            };
            least = (0..=budget).map(of).collect();
        }
        least[budget]
    }

    #[test]
    fn many_groups_are_chosen_as_a_table_of_all_bytes_chooses_them() {
        let mut numbers = numbers();
        for budget in [3_000, 6_000, 9_000] {
            let groups = random(&mut numbers, 150, 7);
            let smallest: u64 =
                groups.iter().map(|options| options.iter().map(|option| option.bytes).min().unwrap()).sum();
            let budget = budget.max(smallest);
            let found = choose(&groups, budget).unwrap();
            let expected = by_bytes(&groups, usize::try_from(budget).unwrap());
            assert!(found.exact && found.bytes <= budget);
            assert!(
                (found.loss - expected).abs() <= 2.0 * TOLERANCE * expected.max(1e-9),
                "{} {expected}",
                found.loss
            );
        }
    }

    #[test]
    fn what_does_not_fit_is_no_choice() {
        let option = |bytes, loss| Option { bytes, loss };
        let groups = vec![vec![option(5, 1.0), option(3, 2.0)], vec![option(4, 1.0)]];
        assert_eq!(choose(&groups, 6), None);
        assert_eq!(choose(&groups, 7).unwrap().picks, [1, 0]);
        assert_eq!(choose(&groups, 9).unwrap().picks, [0, 0]);
        assert_eq!(choose(&[], 0).unwrap().loss, 0.0);
    }
}
