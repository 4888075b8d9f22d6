//! Goals in place of a number of blocks. How many go is what the goal allows, or asks for.
//!
//! Sets grow one after another ([`Growth`]): those of a search, or those that a method names for each number of blocks. Losses
//! need not grow with the number of blocks, so nothing is bisected. [`most`] goes up to the first set that breaks the goal,
//! [`fewest`] up to the first that meets it, and [`fastest`] as far as anything can be won.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;

use super::draft::{BytesPerToken, Draft};
use super::{Measure, Measured, Search, measured};
use crate::measure::loss::Objective;
use crate::model::block::BlockSet;

/// The goal that decides how many blocks are removed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// As few as bring the files to this many bytes.
    Size(u64),
    /// As many as keep the perplexity within this.
    Perplexity(PerplexityLimit),
    /// As many as keep the mean KL divergence within this, in nats.
    Kl(f64),
    /// As many as make the parent fastest with this draft model.
    SpeedUp,
}

impl Goal {
    /// The flag that asks for it.
    #[must_use]
    pub fn flag(&self) -> &'static str {
        match self {
            Self::Size(_) => "target-size",
            Self::Perplexity(_) => "max-ppl",
            Self::Kl(_) => "max-kl",
            Self::SpeedUp => "draft",
        }
    }

    /// The figure of `measured` that a goal is about, and its limit. `None` for others.
    #[must_use]
    pub fn figure(&self, measured: &Measured) -> Option<(f64, f64)> {
        let loss = &measured.loss;
        match self {
            Self::Perplexity(limit) => Some((loss.perplexity(), limit.of(loss.parent_perplexity()))),
            Self::Kl(limit) => Some((loss.kl_divergence(), *limit)),
            Self::Size(_) | Self::SpeedUp => None,
        }
    }
}

/// The most that a perplexity may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PerplexityLimit {
    /// This many percent above the parent's.
    Above(f64),
    /// This.
    Value(f64),
}

impl PerplexityLimit {
    /// The limit for a parent of this perplexity.
    #[must_use]
    pub fn of(&self, parent: f64) -> f64 {
        match self {
            Self::Above(percent) => parent * (1.0 + percent / 100.0),
            Self::Value(value) => *value,
        }
    }
}

impl fmt::Display for PerplexityLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Above(percent) => write!(f, "+{percent}%"),
            Self::Value(value) => write!(f, "{value}"),
        }
    }
}

impl FromStr for PerplexityLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "'{text}' is not a limit; expected a share above the parent's perplexity such as +10%, or a perplexity such \
                 as 25.3"
            )
        };
        let number = |text: &str| number(text).ok_or_else(expected);
        match text.strip_prefix('+') {
            Some(share) => {
                let share = share.strip_suffix('%').ok_or_else(expected)?;
                Ok(Self::Above(number(share)?))
            }
            None => match number(text)? {
                value if value >= 1.0 => Ok(Self::Value(value)),
                _ => Err("no perplexity is below 1".to_owned()),
            },
        }
    }
}

/// The most that a mean KL divergence may be, in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KlLimit(pub f64);

impl FromStr for KlLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        number(text)
            .map(Self)
            .ok_or_else(|| format!("'{text}' is not a number of nats, expected one such as 0.1"))
    }
}

/// A number in digits, 0 or more.
fn number(text: &str) -> Option<f64> {
    let in_digits = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: f64 = text.parse().ok().filter(|_| in_digits)?;
    number.is_finite().then_some(number)
}

/// A condition that a set must fulfil.
pub trait Bound {
    /// Whether `removed` may fulfil it, as far as known without measuring.
    ///
    /// # Errors
    /// A set that cannot be planned.
    fn may(&mut self, removed: &BlockSet) -> Result<bool>;

    /// Whether `measured` does so.
    ///
    /// # Errors
    /// A set that cannot be planned.
    fn holds(&mut self, measured: &Measured) -> Result<bool>;
}

/// No condition.
pub struct Unbound;

impl Bound for Unbound {
    fn may(&mut self, _removed: &BlockSet) -> Result<bool> {
        Ok(true)
    }

    fn holds(&mut self, _measured: &Measured) -> Result<bool> {
        Ok(true)
    }
}

/// A loss of at most what the goal says.
pub struct LossBound(pub Goal);

impl Bound for LossBound {
    fn may(&mut self, _removed: &BlockSet) -> Result<bool> {
        Ok(true)
    }

    fn holds(&mut self, measured: &Measured) -> Result<bool> {
        let figure = self.0.figure(measured);
        Ok(figure.is_none_or(|(value, limit)| value <= limit))
    }
}

/// At most so many bytes.
pub struct SizeBound<'s> {
    /// The bytes of the files without some blocks.
    pub n_bytes: &'s dyn Fn(&BlockSet) -> Result<u64>,
    /// The most.
    pub limit: u64,
}

impl Bound for SizeBound<'_> {
    fn may(&mut self, removed: &BlockSet) -> Result<bool> {
        Ok((self.n_bytes)(removed)? <= self.limit)
    }

    fn holds(&mut self, measured: &Measured) -> Result<bool> {
        self.may(&measured.removed)
    }
}

/// Sets of more and more blocks.
pub trait Growth {
    /// The next set, with more blocks than the one before. `None` if no more may go.
    ///
    /// # Errors
    /// Those of `measure`.
    fn grow(&mut self, measure: &mut dyn Measure) -> Result<Option<Measured>>;

    /// A set of that size that costs less within `bound`, or `from`.
    ///
    /// # Errors
    /// Those of `measure` and `bound`.
    fn improve(
        &mut self,
        measure: &mut dyn Measure,
        from: &Measured,
        bound: &mut dyn Bound,
    ) -> Result<Measured>;
}

/// The sets of a search.
pub struct Greedy<'s, 'c> {
    /// The search.
    pub search: Search<'c>,
    /// At most so many blocks are removed.
    pub most: usize,
    /// Called with each set.
    pub progress: &'s mut dyn FnMut(&Measured),
}

impl Growth for Greedy<'_, '_> {
    fn grow(&mut self, measure: &mut dyn Measure) -> Result<Option<Measured>> {
        if !self.search.step(measure, self.most)? {
            return Ok(None);
        }
        (self.progress)(self.search.best());
        Ok(Some(self.search.best().clone()))
    }

    fn improve(
        &mut self,
        measure: &mut dyn Measure,
        from: &Measured,
        bound: &mut dyn Bound,
    ) -> Result<Measured> {
        self.search.swap(measure, from, bound, self.progress)
    }
}

/// The sets that a method names for each number of blocks.
pub struct Named<'s> {
    /// The set of so many blocks; `None` if none is allowed.
    pub sets: &'s mut dyn FnMut(usize) -> Result<Option<BlockSet>>,
    /// How many blocks went last.
    pub n: usize,
    /// The objective, which may need more than losses on windows.
    pub objective: Objective,
    /// At most so many go.
    pub most: usize,
    /// Called with each set.
    pub progress: &'s mut dyn FnMut(&Measured),
}

impl Growth for Named<'_> {
    fn grow(&mut self, measure: &mut dyn Measure) -> Result<Option<Measured>> {
        while self.n < self.most {
            self.n += 1;
            if let Some(removed) = (self.sets)(self.n)? {
                let measured = measured(measure, removed, self.objective)?;
                (self.progress)(&measured);
                return Ok(Some(measured));
            }
        }
        Ok(None)
    }

    fn improve(
        &mut self,
        _measure: &mut dyn Measure,
        from: &Measured,
        _bound: &mut dyn Bound,
    ) -> Result<Measured> {
        Ok(from.clone())
    }
}

/// The sets that were measured before a goal was reached.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trajectory {
    /// Every set, in order.
    pub steps: Vec<Measured>,
    /// The one that was chosen; `None` if none meets the goal.
    pub chosen: Option<Measured>,
}

/// The last set before the first that breaks `bound`, improved.
///
/// A set that breaks it gets a chance to improve. Where that is enough, the next ones grow from what it was before, as where a
/// number of blocks is asked for.
///
/// # Errors
/// Those of `growth` and `bound`.
pub fn most(growth: &mut dyn Growth, measure: &mut dyn Measure, bound: &mut dyn Bound) -> Result<Trajectory> {
    let mut trajectory = Trajectory::default();
    let mut held: Option<(Measured, bool)> = None;
    while let Some(next) = growth.grow(measure)? {
        trajectory.steps.push(next.clone());
        if bound.holds(&next)? {
            held = Some((next, false));
            continue;
        }
        let better = growth.improve(measure, &next, bound)?;
        if better.removed == next.removed {
            break;
        }
        trajectory.steps.push(better.clone());
        if !bound.holds(&better)? {
            break;
        }
        held = Some((better, true));
    }
    trajectory.chosen = match held {
        Some((set, false)) => Some(growth.improve(measure, &set, bound)?),
        Some((set, true)) => Some(set),
        None => None,
    };
    Ok(trajectory)
}

/// The first set that meets `bound`, improved within it.
///
/// # Errors
/// Those of `growth` and `bound`.
pub fn fewest(
    growth: &mut dyn Growth,
    measure: &mut dyn Measure,
    bound: &mut dyn Bound,
) -> Result<Trajectory> {
    let mut trajectory = Trajectory::default();
    while let Some(next) = growth.grow(measure)? {
        trajectory.steps.push(next.clone());
        if bound.holds(&next)? {
            trajectory.chosen = Some(growth.improve(measure, &next, bound)?);
            break;
        }
    }
    Ok(trajectory)
}

/// The set whose model is worth most as a draft, improved.
///
/// Ends where no set of up to `n_most` blocks can be worth more. The best so far is compared with such a set as if that were
/// accepted as often as the last one. With more blocks gone, acceptance is taken to rise no more.
///
/// # Errors
/// Those of `growth`.
pub fn fastest(
    growth: &mut dyn Growth,
    measure: &mut dyn Measure,
    bytes: &BytesPerToken,
    n_most: usize,
) -> Result<Trajectory> {
    let smallest = bytes.smallest_ratio(n_most);
    let mut trajectory = Trajectory::default();
    let mut best: Option<(Measured, f64)> = None;
    while let Some(next) = growth.grow(measure)? {
        trajectory.steps.push(next.clone());
        let found = draft(&next, bytes);
        if best.as_ref().is_none_or(|(_, speed_up)| found.speed_up > *speed_up) {
            best = Some((next, found.speed_up));
        }
        let bound = Draft::new(found.acceptance, smallest).speed_up;
        if best.as_ref().is_some_and(|(_, best)| bound < *best) {
            break;
        }
    }
    if let Some((set, speed_up)) = best {
        let better = growth.improve(measure, &set, &mut Unbound)?;
        let is_better = draft(&better, bytes).speed_up > speed_up;
        trajectory.chosen = Some(if is_better { better } else { set });
    }
    Ok(trajectory)
}

/// The worth as a draft of the model without those blocks.
#[must_use]
pub fn draft(measured: &Measured, bytes: &BytesPerToken) -> Draft {
    Draft::new(measured.loss.same_top(), bytes.ratio(&measured.removed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choose::search::Settings;
    use crate::choose::search::tests::{N_BLOCKS, Priced, constraints, settings};
    use crate::measure::loss::Loss;
    use crate::model::BlockId;
    use crate::model::block::blocks;

    /// The result of a search for exactly `n` blocks.
    fn exactly(n: usize, settings: &Settings) -> Measured {
        let constraints = constraints();
        let mut search = Search::new(&constraints, settings.clone());
        search.remove(&mut Priced::new(2, 0.3), n, &mut |_| {}).unwrap()
    }

    fn greedy<'s, 'c>(
        constraints: &'c crate::plan::Constraints,
        settings: &Settings,
        progress: &'s mut dyn FnMut(&Measured),
    ) -> Greedy<'s, 'c> {
        Greedy { search: Search::new(constraints, settings.clone()), most: N_BLOCKS - 1, progress }
    }

    #[test]
    fn a_search_for_a_loss_ends_with_what_asking_for_its_number_gives() {
        let constraints = constraints();
        for swaps in [0, 2] {
            let settings = settings(swaps);
            let exact: Vec<Measured> = (1..N_BLOCKS).map(|n| exactly(n, &settings)).collect();
            let losses = exact.iter().map(|found| found.loss.kl_divergence());
            let mut limits: Vec<f64> = losses.collect();
            limits.extend([0.0, 1e9]);
            for limit in limits {
                let goal = Goal::Kl(limit);
                let trajectory = most(
                    &mut greedy(&constraints, &settings, &mut |_| {}),
                    &mut Priced::new(2, 0.3),
                    &mut LossBound(goal),
                )
                .unwrap();
                let expected = exact.iter().take_while(|found| found.loss.kl_divergence() <= limit).last();
                let of = |set: &Measured| set.removed.clone();
                assert_eq!(trajectory.chosen.as_ref().map(of), expected.map(of), "{limit}");
                assert!(!trajectory.steps.is_empty());
            }
        }
    }

    #[test]
    fn sets_of_a_method_end_at_the_first_that_breaks_the_goal() {
        // Without block 1 it is worse than without two more.
        struct Bumpy;
        impl Measure for Bumpy {
            fn n_windows(&self) -> usize {
                1
            }
            fn losses(&mut self, _n_windows: usize, sets: &[BlockSet]) -> Result<Vec<Loss>> {
                let loss = |set: &BlockSet| Loss {
                    n_tokens: 1,
                    nll: [0.0, 1.0, 3.0, 0.0, 2.0][set.len()],
                    parent_nll: 1.0,
                    ..Loss::default()
                };
                Ok(sets.iter().map(loss).collect())
            }
        }
        let mut asked = Vec::new();
        let mut sets = |n: usize| {
            asked.push(n);
            // Three may not go.
            Ok((n != 3).then(|| (0..n).map(BlockId::new).collect()))
        };
        let limit = PerplexityLimit::Above(100.0);
        let mut growth =
            Named { sets: &mut sets, n: 0, most: 4, objective: Objective::Kl, progress: &mut |_| {} };
        let mut bound = LossBound(Goal::Perplexity(limit));
        let trajectory = most(&mut growth, &mut Bumpy, &mut bound).unwrap();
        assert_eq!(trajectory.chosen.unwrap().removed, blocks(&[0]));
        assert_eq!(trajectory.steps.len(), 2);
        assert_eq!(asked, [1, 2]);
        // Where everything is allowed all goes, but no number that may not.
        let mut sets = |n: usize| Ok((n != 3).then(|| (0..n).map(BlockId::new).collect()));
        let mut growth =
            Named { sets: &mut sets, n: 0, most: 4, objective: Objective::Kl, progress: &mut |_| {} };
        let mut bound = LossBound(Goal::Perplexity(PerplexityLimit::Value(21.0)));
        let trajectory = most(&mut growth, &mut Bumpy, &mut bound).unwrap();
        assert_eq!(trajectory.chosen.unwrap().removed.len(), 4);
        let numbers: Vec<usize> = trajectory.steps.iter().map(|step| step.removed.len()).collect();
        assert_eq!(numbers, [1, 2, 4]);
    }

    #[test]
    fn a_search_for_a_size_takes_the_first_that_is_small_enough_and_stays_so() {
        let constraints = constraints();
        // Blocks of several sizes. So an exchange may make the output larger.
        let n_bytes = |removed: &BlockSet| -> Result<u64> {
            let size = |block: usize| 100 + 10 * ((block as u64 * 7) % 9);
            let kept = (0..N_BLOCKS).filter(|&i| !removed.contains(&BlockId::new(i)));
            Ok(kept.map(size).sum())
        };
        let whole = n_bytes(&BlockSet::new()).unwrap();
        for limit in (0..whole).step_by(17) {
            let mut bound = SizeBound { n_bytes: &n_bytes, limit };
            let trajectory = fewest(
                &mut greedy(&constraints, &settings(20), &mut |_| {}),
                &mut Priced::new(1, 0.3),
                &mut bound,
            )
            .unwrap();
            let sizes = trajectory.steps.iter().map(|step| n_bytes(&step.removed).unwrap());
            let sizes: Vec<u64> = sizes.collect();
            let Some(chosen) = trajectory.chosen else {
                assert!(sizes.iter().all(|size| *size > limit));
                assert_eq!(sizes.len(), N_BLOCKS - 1);
                continue;
            };
            assert!(n_bytes(&chosen.removed).unwrap() <= limit);
            assert_eq!(chosen.removed.len(), sizes.len());
            assert!(sizes[..sizes.len() - 1].iter().all(|size| *size > limit));
        }
    }

    #[test]
    fn the_number_of_blocks_is_that_with_the_largest_speed_up() {
        let constraints = constraints();
        let settings = Settings { objective: Objective::Draft, ..settings(0) };
        for rest in [0.0, 1.0, 30.0] {
            let bytes = BytesPerToken::new(vec![10.0; N_BLOCKS], rest);
            let trajectory = fastest(
                &mut greedy(&constraints, &settings, &mut |_| {}),
                &mut Priced::new(2, 0.0),
                &bytes,
                N_BLOCKS - 1,
            )
            .unwrap();
            let all: Vec<Measured> = (1..N_BLOCKS)
                .map(|n| {
                    let mut search = Search::new(&constraints, settings.clone());
                    search.remove(&mut Priced::new(2, 0.0), n, &mut |_| {}).unwrap()
                })
                .collect();
            let best = all.iter().map(|set| draft(set, &bytes).speed_up).fold(0.0, f64::max);
            let chosen = trajectory.chosen.unwrap();
            assert_eq!(draft(&chosen, &bytes).speed_up, best);
            // Draft models ask for agreement, which here falls with the loss.
            let kl = Settings { objective: Objective::Kl, ..settings.clone() };
            let mut search = Search::new(&constraints, kl);
            let n = chosen.removed.len();
            let same = search.remove(&mut Priced::new(2, 0.0), n, &mut |_| {});
            assert_eq!(same.unwrap().removed, chosen.removed);
        }
    }

    #[test]
    fn limits_are_shares_above_the_parent_or_values() {
        let of = |text: &str| text.parse::<PerplexityLimit>();
        assert_eq!(of("+10%"), Ok(PerplexityLimit::Above(10.0)));
        assert_eq!(of("+0.5%"), Ok(PerplexityLimit::Above(0.5)));
        assert_eq!(of("25.3"), Ok(PerplexityLimit::Value(25.3)));
        assert!((of("+10%").unwrap().of(20.0) - 22.0).abs() < 1e-12);
        assert_eq!(of("25.3").unwrap().of(20.0), 25.3);
        assert_eq!(of("+2.50%").unwrap().to_string(), "+2.5%");
        for wrong in ["", "+", "+%", "+10", "10%", "-10%", "+-1%", "0.9", "nan", "inf", "1e3", ".", "+.%"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
        assert_eq!("0".parse(), Ok(KlLimit(0.0)));
        assert_eq!(".25".parse(), Ok(KlLimit(0.25)));
        for wrong in ["", "-1", "x", "5%", "inf", "NaN", "+1"] {
            assert!(wrong.parse::<KlLimit>().is_err(), "{wrong}");
        }
    }
}
