//! The purpose of each window of the calibration text.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::hidden_state::Token;

/// The windows of a text by their purpose. None of one purpose is the same as one of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Windows that weights are fitted to.
    ///
    /// First to one fold, with the ridge that is best on the other, then to both.
    pub folds: [Vec<usize>; 2],
    /// Validation windows, on which losses are measured: neither weights nor the ridge see them.
    pub validation: Vec<usize>,
    /// Windows that occur more than once, whose repetitions take no part.
    pub n_repeated: usize,
    /// Tokens that take part in the fit.
    pub n_tokens: usize,
    /// How many of them differ from all others, their three predecessors counted.
    pub n_distinct: usize,
}

/// The share of validation windows.
const VALIDATION_SHARE: f64 = 0.2;

/// The most validation windows, about: each candidate is measured on all of them.
const MAX_VALIDATION: f64 = 12.0;

/// The fewest texts of which one is held out.
///
/// What helps on windows of the texts that were fitted to need not help elsewhere.
const TEXTS: usize = 4;

/// One validation window, and one for each fold.
pub const MIN_WINDOWS: usize = 3;

impl Split {
    /// Splits `windows`, each of them from the text with that number.
    ///
    /// The folds are of different texts where there are several, else of different halves of the one. For a ridge is to be good
    /// for text that is not quite like what the weights were fitted to. Of four texts or more the one is held out for validation
    /// whose words are least like those of the others. That is never `own`, which the model wrote: no text is more worth fitting
    /// to.
    #[must_use]
    pub fn of(windows: &[&[Token]], texts: &[usize], own: Option<usize>) -> Self {
        let mut seen = BTreeSet::new();
        let distinct: Vec<usize> =
            (0..windows.len()).filter(|&window| seen.insert(windows[window])).collect();
        let several = distinct.iter().any(|&window| texts.get(window) != texts.first());
        let held_out = held_out_text(windows, texts, own, &distinct);
        let may_validate = |window: &usize| held_out.is_none_or(|text| texts.get(*window) == Some(&text));
        let (candidates, mut fit): (Vec<usize>, Vec<usize>) =
            distinct.iter().copied().partition(may_validate);
        let mut validation = Vec::new();
        let share = if held_out.is_some() { 1.0 } else { VALIDATION_SHARE };
        let share = (MAX_VALIDATION / candidates.len().max(1) as f64).min(share);
        // Evenly spread, and not in step with texts that take turns.
        let mut part = 0.5;
        for window in candidates {
            if part < share {
                validation.push(window);
            } else if held_out.is_none() {
                fit.push(window);
            }
            part = (part + 0.618_033_988_749_895_f64).fract();
        }
        if validation.is_empty() {
            validation.extend(fit.pop());
        }
        let half = fit.len() / 2;
        let mut folds = [Vec::new(), Vec::new()];
        for (i, &window) in fit.iter().enumerate() {
            let fold = match several {
                true => texts.get(window).copied().unwrap_or(0) % 2,
                false => usize::from(i >= half),
            };
            folds[fold].push(window);
        }
        if folds.iter().any(Vec::is_empty) {
            let (first, second) = fit.split_at(half);
            folds = [first.to_vec(), second.to_vec()];
        }
        let mut contexts = BTreeSet::new();
        let mut n_tokens = 0;
        for &window in &fit {
            let tokens = windows[window];
            n_tokens += tokens.len();
            contexts.extend((0..tokens.len()).map(|end| &tokens[end.saturating_sub(3)..=end]));
        }
        Self {
            folds,
            validation,
            n_repeated: windows.len() - distinct.len(),
            n_tokens,
            n_distinct: contexts.len(),
        }
    }

    /// All windows that take part, in order.
    #[must_use]
    pub fn all(&self) -> Vec<usize> {
        let mut all = [&self.folds[0][..], &self.folds[1][..], &self.validation[..]].concat();
        all.sort_unstable();
        all
    }

    /// Whether there is a window for each purpose.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        !self.validation.is_empty() && self.folds.iter().all(|fold| !fold.is_empty())
    }
}

/// The held-out text, whose words are least like those of the others.
///
/// Compared is how often words occur (Bhattacharyya's coefficient). Texts so short that they would say little, or so long that
/// little were left to fit to, are not held out. `None` of fewer than [`TEXTS`], and if there is no such.
fn held_out_text(windows: &[&[Token]], texts: &[usize], own: Option<usize>, of: &[usize]) -> Option<usize> {
    #[derive(Default)]
    struct Text {
        n_windows: usize,
        counts: BTreeMap<Token, f64>,
    }
    let mut each: BTreeMap<usize, Text> = BTreeMap::new();
    let mut totals: BTreeMap<Token, f64> = BTreeMap::new();
    for &window in of {
        let own = each.entry(*texts.get(window)?).or_default();
        own.n_windows += 1;
        for &token in windows[window] {
            *own.counts.entry(token).or_default() += 1.0;
            *totals.entry(token).or_default() += 1.0;
        }
    }
    let n_texts = each.len();
    if n_texts < TEXTS {
        return None;
    }
    let is_fit_for_it = |text: &Text| {
        let n = text.n_windows;
        n.saturating_mul(2 * n_texts) >= of.len() && n.saturating_mul(n_texts) <= of.len() * 2
    };
    let n_all: f64 = totals.values().sum();
    let likeness = |text: &Text| {
        let n: f64 = text.counts.values().sum();
        let common = text.counts.iter();
        let common = common.map(|(token, count)| count * (totals[token] - count));
        common.map(f64::sqrt).sum::<f64>() / (n * (n_all - n)).sqrt()
    };
    each.iter()
        .filter(|&(&number, text)| Some(number) != own && is_fit_for_it(text))
        .map(|(&number, text)| (likeness(text), number))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(n: usize) -> Vec<Vec<Token>> {
        let token = |i: usize| Token::try_from(i).unwrap();
        (0..n).map(|w| (0..8).map(|t| token(w * 8 + t)).collect()).collect()
    }

    fn split(windows: &[Vec<Token>], texts: &[usize]) -> Split {
        let windows: Vec<&[Token]> = windows.iter().map(Vec::as_slice).collect();
        Split::of(&windows, texts, None)
    }

    #[test]
    fn every_window_has_one_purpose_and_each_purpose_a_window() {
        for n in 0..60 {
            let split = split(&windows(n), &vec![0; n]);
            assert_eq!(split.all(), (0..n).collect::<Vec<_>>());
            assert_eq!(split.is_enough(), n >= MIN_WINDOWS, "{n}");
            assert!(split.validation.len() <= 1 + n / 4);
        }
    }

    #[test]
    fn most_of_much_text_is_fitted_to() {
        for n in [90, 200, 1000] {
            let split = split(&windows(n), &vec![0; n]);
            assert!((11..=13).contains(&split.validation.len()), "{n}");
        }
    }

    #[test]
    fn folds_are_of_different_texts_and_validation_windows_of_all() {
        let texts: Vec<usize> = (0..60).map(|i| i % 3).collect();
        let split = split(&windows(60), &texts);
        assert!(split.folds[0].iter().all(|w| w % 3 != 1));
        assert!(split.folds[1].iter().all(|w| w % 3 == 1));
        let validated: BTreeSet<usize> = split.validation.iter().map(|w| w % 3).collect();
        assert_eq!(validated.len(), 3);
    }

    #[test]
    fn of_many_texts_the_one_that_is_least_like_the_others_is_held_out() {
        for (held_out, n) in [(0, 60), (2, 60), (3, 12), (3, 200)] {
            let texts: Vec<usize> = (0..n).map(|i| i % 4).collect();
            // The others are of the same words in another order.
            let mut windows = windows(n);
            for (w, window) in windows.iter_mut().enumerate() {
                for token in window {
                    *token = match w % 4 == held_out {
                        true => *token,
                        false => *token * 7 % 61 + 5000,
                    };
                }
            }
            let split = split(&windows, &texts);
            assert!(split.validation.iter().all(|w| w % 4 == held_out));
            assert!(((n / 4).min(11)..=13).contains(&split.validation.len()), "{n}");
            let fitted = split.folds.concat();
            assert!(fitted.iter().all(|w| w % 4 != held_out));
            assert!(split.is_enough());
            // But not what the model wrote.
            let windows: Vec<&[Token]> = windows.iter().map(Vec::as_slice).collect();
            let split = Split::of(&windows, &texts, Some(held_out));
            assert!(split.validation.iter().all(|w| w % 4 != held_out));
        }
    }

    #[test]
    fn a_text_that_is_nearly_nothing_or_nearly_all_is_not_held_out() {
        // Of four texts the first is one window, or all but three.
        for (n, first) in [(60, 1), (60, 57)] {
            let texts: Vec<usize> = (0..n).map(|w| if w < first { 0 } else { 1 + w % 3 }).collect();
            let split = split(&windows(n), &texts);
            let fitted = split.folds.concat();
            assert!(fitted.iter().any(|&w| w < first), "{first}");
            assert!(fitted.len() >= n * 3 / 5, "{first}");
        }
    }

    #[test]
    fn repetitions_are_found() {
        let mut all = windows(4);
        all.extend(windows(4));
        let split = split(&all, &[0; 8]);
        assert_eq!((split.n_repeated, split.all().len()), (4, 4));
        let same = vec![vec![7; 64], vec![8; 64], vec![9; 64], vec![10; 64]];
        let split = self::split(&same, &[0; 4]);
        assert_eq!((split.n_tokens, split.n_distinct), (192, 12));
        let fresh = self::split(&windows(6), &[0; 6]);
        assert_eq!(fresh.n_tokens, fresh.n_distinct);
    }
}
