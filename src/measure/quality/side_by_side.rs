//! Several models against one parent: each window is evaluated with the parent once.

use anyhow::{Result, ensure};

use super::divergence::TokenDivergence;
use super::measure::{Place, Quality};
use super::perplexity::Perplexity;
use crate::engine::hidden_state::Token;
use crate::engine::scored::ScoredLogits;

/// What was measured.
pub struct SideBySide {
    /// The parent's perplexity.
    pub parent: Perplexity,
    /// Each model against the parent, as [`Quality::measure`] measures it. The error of one that failed.
    pub models: Vec<Result<Quality>>,
}

impl SideBySide {
    /// Evaluates every window with the parent, then each of `models`. One that has failed is left out. `progress` is called
    /// with the tokens of a window after each of them. Rows are worked on by the threads of the current pool.
    ///
    /// In memory are a few numbers of every scored token, and the logits that the parent and each model hold for one
    /// window.
    ///
    /// # Errors
    /// Those of the parent; windows that are too short. What is wrong with another model is its result.
    pub fn measure<'w>(
        parent: &mut dyn ScoredLogits,
        models: &mut [&mut dyn ScoredLogits],
        windows: impl Iterator<Item = &'w [Token]>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let mut parent_nlls = Vec::new();
        let mut found: Vec<Result<Vec<TokenDivergence>>> = models.iter().map(|_| Ok(Vec::new())).collect();
        for (number, window) in windows.enumerate() {
            let place = Place { number, window };
            let (parents, nlls) = place.predictions(parent)?;
            parent_nlls.extend(nlls);
            progress(window.len());
            for (model, found) in models.iter_mut().zip(&mut found) {
                if let Ok(tokens) = found {
                    match place.divergences(&mut **model, &parents) {
                        Ok(more) => tokens.extend(more),
                        Err(error) => *found = Err(error),
                    }
                }
                progress(window.len());
            }
        }
        ensure!(!parent_nlls.is_empty(), "the text has no window");
        Ok(Self {
            parent: Perplexity::of(&parent_nlls),
            models: found.into_iter().map(|found| Ok(Quality::against_parent(&found?))).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::quality::recorded::{Recorded, quality, windows};

    const N_WINDOWS: usize = 4;
    const N_TOKENS: usize = 11;
    const N_VOCAB: usize = 23;

    fn model(seed: u64) -> Recorded {
        Recorded::random(seed, N_WINDOWS, N_TOKENS, N_VOCAB)
    }

    fn side_by_side(mut parent: Recorded, mut models: Vec<Recorded>) -> Result<SideBySide> {
        let windows = windows(N_WINDOWS, N_TOKENS, N_VOCAB);
        let mut models: Vec<&mut dyn ScoredLogits> =
            models.iter_mut().map(|model| model as &mut dyn ScoredLogits).collect();
        let mut n_tokens = 0;
        let found =
            SideBySide::measure(&mut parent, &mut models, windows.iter().map(Vec::as_slice), &mut |n| {
                n_tokens += n
            })?;
        assert_eq!(n_tokens, N_WINDOWS * N_TOKENS * (1 + models.len()));
        Ok(found)
    }

    fn alone(model: Recorded, parent: Option<Recorded>) -> Quality {
        quality(model, parent, &windows(N_WINDOWS, N_TOKENS, N_VOCAB)).unwrap()
    }

    #[test]
    fn each_is_measured_as_if_alone() {
        let found = side_by_side(model(1), vec![model(2), model(1), model(3)]).unwrap();
        assert_eq!(found.parent, alone(model(1), None).perplexity);
        for (found, seed) in found.models.into_iter().zip([2, 1, 3]) {
            assert_eq!(found.unwrap(), alone(model(seed), Some(model(1))));
        }
        assert!(side_by_side(model(1), vec![]).unwrap().models.is_empty());
    }

    #[test]
    fn one_that_fails_leaves_the_others_alone() {
        let mut bad = model(2);
        bad.name = "bad.gguf";
        bad.windows[2][6 * N_VOCAB + 3] = f32::NAN;
        let found = side_by_side(model(1), vec![bad.clone(), model(3)]).unwrap();
        let [first, second] = found.models.try_into().unwrap();
        assert_eq!(
            format!("{:#}", first.unwrap_err()),
            "bad.gguf: after token 6 of window 2: the logit of vocabulary entry 3 is NaN"
        );
        assert_eq!(second.unwrap(), alone(model(3), Some(model(1))));
        assert!(side_by_side(bad, vec![model(3)]).is_err());
    }
}
