//! Evaluation of all windows of a text, perhaps beside the parent.

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::divergence::{Divergence, TokenDivergence};
use super::log_softmax::Row;
use super::perplexity::Perplexity;
use crate::engine::hidden_state::Token;
use crate::engine::scored::{MIN_WINDOW, ScoredLogits, scored};

/// What was measured on all windows.
#[derive(Clone, Debug, PartialEq)]
pub struct Quality {
    /// How well the model predicts the text.
    pub perplexity: Perplexity,
    /// How it compares with its parent, if there is one.
    pub divergence: Option<Divergence>,
}

impl Quality {
    /// Evaluates every window with the model, and its parent if any. `progress` is called with the tokens of each finished
    /// window. Rows are worked on by the threads of the current pool.
    ///
    /// In memory are a few numbers of every scored token, and the logits that `model` and `parent` hold for one window.
    ///
    /// # Errors
    /// Those of `model` and `parent`; logits that are not finite; windows that are too short.
    pub fn measure<'w>(
        model: &mut dyn ScoredLogits,
        mut parent: Option<&mut dyn ScoredLogits>,
        windows: impl Iterator<Item = &'w [Token]>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let (mut nlls, mut tokens) = (Vec::new(), Vec::new());
        for (number, window) in windows.enumerate() {
            let place = Place { number, window };
            match &mut parent {
                Some(parent) => {
                    let (parents, _) = place.predictions(&mut **parent)?;
                    tokens.extend(place.divergences(model, &parents)?);
                }
                None => nlls.extend(place.predictions(model)?.1),
            }
            progress(window.len());
        }
        ensure!(!nlls.is_empty() || !tokens.is_empty(), "the text has no window");
        Ok(match parent {
            Some(_) => Self::against_parent(&tokens),
            None => Self { perplexity: Perplexity::of(&nlls), divergence: None },
        })
    }

    /// Of all scored tokens.
    pub(super) fn against_parent(tokens: &[TokenDivergence]) -> Self {
        let nlls: Vec<f64> = tokens.iter().map(|token| token.nll).collect();
        Self { perplexity: Perplexity::of(&nlls), divergence: Some(Divergence::of(tokens)) }
    }
}

/// A window, for what is read of it and said about it.
pub(super) struct Place<'w> {
    /// Counted from 0.
    pub(super) number: usize,
    pub(super) window: &'w [Token],
}

impl Place<'_> {
    /// The tokens that are predicted, one for each scored token.
    fn targets(&self) -> &[Token] {
        let scored = scored(self.window.len());
        &self.window[scored.start + 1..scored.end + 1]
    }

    /// A row per scored token, and the predicted ones' negative log-likelihoods.
    pub(super) fn predictions<'l>(
        &self,
        logits: &'l mut dyn ScoredLogits,
    ) -> Result<(Vec<Row<'l>>, Vec<f64>)> {
        let name = logits.name();
        let rows = self.rows(logits).with_context(|| name.clone())?;
        let nlls = rows.iter().zip(self.targets()).enumerate();
        let nll = |(i, (row, &next)): (usize, (&Row<'_>, &Token))| {
            let nll = row.nll(next);
            self.check_nll(i, nll).map(|()| nll)
        };
        let nlls = nlls.map(nll).collect::<Result<_>>().context(name)?;
        Ok((rows, nlls))
    }

    /// What `model` makes of the window, against its parent's rows.
    pub(super) fn divergences(
        &self,
        model: &mut dyn ScoredLogits,
        parents: &[Row<'_>],
    ) -> Result<Vec<TokenDivergence>> {
        let name = model.name();
        let mut found = || -> Result<_> {
            let rows = self.rows(model)?;
            let found: Vec<_> = (rows.par_iter().zip(parents).zip(self.targets()))
                .map(|((row, parent), &next)| TokenDivergence::of(row, parent, next))
                .collect();
            for (i, token) in found.iter().enumerate() {
                self.check_nll(i, token.nll)?;
                self.check_kl(i, token.kl)?;
            }
            Ok(found)
        };
        found().context(name)
    }

    /// One row for each scored token.
    fn rows<'l>(&self, logits: &'l mut dyn ScoredLogits) -> Result<Vec<Row<'l>>> {
        let n_tokens = self.window.len();
        ensure!(
            n_tokens >= MIN_WINDOW,
            "window {} has {n_tokens} tokens, expected {MIN_WINDOW} or more",
            self.number
        );
        let n_vocab = logits.n_vocab();
        let is_token = |&token: &Token| usize::try_from(token).is_ok_and(|token| token < n_vocab);
        ensure!(
            self.targets().iter().all(is_token),
            "window {} has a token that is not one of the {n_vocab} of the vocabulary",
            self.number
        );
        let scored = scored(n_tokens);
        let logits = logits.logits(self.window)?;
        ensure!(
            logits.len() == scored.len() * n_vocab,
            "window {} has {} logits, expected {} tokens of {n_vocab}",
            self.number,
            logits.len(),
            scored.len()
        );
        logits
            .par_chunks_exact(n_vocab)
            .enumerate()
            .map(|(i, logits)| {
                Row::new(logits)
                    .with_context(|| format!("after token {} of window {}", scored.start + i, self.number))
            })
            .collect()
    }

    /// A token that the model holds to be impossible, and that comes.
    fn check_nll(&self, i: usize, nll: f64) -> Result<()> {
        ensure!(
            nll.is_finite(),
            "token {} of window {} has the probability 0, so the perplexity is infinite",
            scored(self.window.len()).start + i + 1,
            self.number
        );
        Ok(())
    }

    /// Refuses a token that is impossible for the model alone.
    fn check_kl(&self, i: usize, kl: f64) -> Result<()> {
        ensure!(
            kl.is_finite(),
            "after token {} of window {} something has the probability 0 that is possible for the parent, so the KL \
             divergence is infinite",
            scored(self.window.len()).start + i,
            self.number
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::measure::quality::recorded::{Recorded, quality, windows};

    /// The probabilities of a row by the textbook formula.
    fn softmax(row: &[f32]) -> Vec<f64> {
        let exps: Vec<f64> = row.iter().map(|&logit| f64::from(logit).exp()).collect();
        let sum: f64 = exps.iter().sum();
        exps.iter().map(|exp| exp / sum).collect()
    }

    #[test]
    fn figures_equal_the_naive_twin() {
        for (n_tokens, n_scored) in [(3, 1), (4, 1), (5, 2), (10, 4), (11, 5)] {
            let (n_windows, n_vocab) = (3, 37);
            let windows = windows(n_windows, n_tokens, n_vocab);
            let model = Recorded::random(1, n_windows, n_tokens, n_vocab);
            let parent = Recorded::random(2, n_windows, n_tokens, n_vocab);
            let (mut n, mut nll, mut kl, mut same, mut dp, mut dp2) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
            for (w, window) in windows.iter().enumerate() {
                for t in n_tokens / 2..n_tokens - 1 {
                    let (q, p) = (softmax(model.row(w, t)), softmax(parent.row(w, t)));
                    let next = usize::try_from(window[t + 1]).unwrap();
                    n += 1.0;
                    nll -= q[next].ln();
                    kl += p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
                    let top = |p: &[f64]| (0..p.len()).max_by(|&a, &b| p[a].total_cmp(&p[b]));
                    same += f64::from(u8::from(top(&p) == top(&q)));
                    dp += q[next] - p[next];
                    dp2 += (q[next] - p[next]).powi(2);
                }
            }
            let found = quality(model, Some(parent), &windows).unwrap();
            assert_eq!(found.perplexity.n_tokens, n_windows * n_scored);
            let divergence = found.divergence.unwrap();
            for (found, naive) in [
                (found.perplexity.value, (nll / n).exp()),
                (divergence.kl.mean, kl / n),
                (divergence.same_top.mean, same / n),
                (divergence.probability_change.mean, dp / n),
                (divergence.probability_change_rms.mean, (dp2 / n).sqrt()),
            ] {
                assert!((found / naive - 1.0).abs() < 1e-12 || found == naive, "{found} {naive}");
            }
        }
    }

    #[test]
    fn a_parent_changes_nothing_of_the_perplexity() {
        let windows = windows(2, 8, 19);
        let model = Recorded::random(1, 2, 8, 19);
        let alone = quality(model.clone(), None, &windows).unwrap();
        let beside = quality(model.clone(), Some(Recorded::random(2, 2, 8, 19)), &windows).unwrap();
        assert_eq!(alone.divergence, None);
        assert_eq!(alone.perplexity, beside.perplexity);
        let itself = quality(model.clone(), Some(model), &windows).unwrap();
        let divergence = itself.divergence.unwrap();
        assert_eq!((divergence.kl.mean, divergence.kl_max), (0.0, 0.0));
        assert_eq!(divergence.same_top.mean, 1.0);
        assert_eq!(divergence.parent, itself.perplexity);
        assert_eq!(divergence.log_ratio.mean, 0.0);
    }

    #[test]
    fn the_first_half_and_the_last_token_are_not_scored() {
        let windows = windows(1, 8, 19);
        let model = Recorded::random(1, 1, 8, 19);
        let mut other = model.clone();
        other.windows[0][..4 * 19].fill(f32::NAN);
        other.windows[0][7 * 19..].fill(f32::NAN);
        assert_eq!(quality(model, None, &windows).unwrap(), quality(other, None, &windows).unwrap());
    }

    #[test]
    fn logits_that_are_not_finite_are_an_error_with_their_place() {
        let windows = windows(2, 8, 19);
        let good = Recorded::random(1, 2, 8, 19);
        for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
            let mut bad = good.clone();
            bad.windows[1][5 * 19 + 3] = value;
            let error = quality(bad.clone(), None, &windows).unwrap_err();
            let place = format!("after token 5 of window 1: the logit of vocabulary entry 3 is {shown}");
            assert_eq!(format!("{error:#}"), format!("m.gguf: {place}"));
            bad.name = "parent.gguf";
            let error = quality(good.clone(), Some(bad), &windows).unwrap_err();
            assert_eq!(format!("{error:#}"), format!("parent.gguf: {place}"));
        }
    }

    #[test]
    fn what_is_impossible_is_an_error_where_it_comes_or_the_parent_expects_it() {
        let windows = windows(1, 8, 19);
        let good = Recorded::random(1, 1, 8, 19);
        let next = usize::try_from(windows[0][6]).unwrap();
        let mut bad = good.clone();
        bad.windows[0][5 * 19 + next] = f32::NEG_INFINITY;
        let error = quality(bad, None, &windows).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "m.gguf: token 6 of window 0 has the probability 0, so the perplexity is infinite"
        );
        let mut bad = good.clone();
        bad.windows[0][5 * 19 + (next + 1) % 19] = f32::NEG_INFINITY;
        assert!(quality(bad.clone(), None, &windows).is_ok());
        // For both impossible, or for the parent alone: nothing is lost.
        assert!(quality(bad.clone(), Some(bad.clone()), &windows).is_ok());
        assert!(quality(good.clone(), Some(bad.clone()), &windows).is_ok());
        let error = format!("{:#}", quality(bad, Some(good), &windows).unwrap_err());
        assert!(error.starts_with("m.gguf: after token 5 of window 0 something"), "{error}");
    }
}
