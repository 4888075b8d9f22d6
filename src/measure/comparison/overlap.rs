//! How much of the scored text had a part in choosing. A score on the text that chose looks better than it is.

use std::collections::HashSet;

use crate::engine::hidden_state::Token;

/// As many tokens in a row are hardly the same by chance.
const RUN: usize = 32;

/// Share of `scored` tokens that `choosing` has too, 0 to 1.
///
/// Counted are tokens in a run of 32 (or of a whole window, if that is shorter) that a window of `choosing` has.
/// The first token of a window counts for none of the two: it may be the one that begins every text.
#[must_use]
pub fn share(scored: &[&[Token]], choosing: &[&[Token]]) -> f64 {
    let shortest = scored.iter().chain(choosing).map(|window| body(window).len());
    let run = shortest.min().unwrap_or(0).min(RUN);
    if run == 0 {
        return 0.0;
    }
    let known: HashSet<&[Token]> = choosing.iter().flat_map(|window| body(window).windows(run)).collect();
    let (mut n_tokens, mut n_shared) = (0, 0);
    for window in scored {
        let window = body(window);
        n_tokens += window.len();
        // Tokens before this one are counted.
        let mut counted = 0;
        for (start, tokens) in window.windows(run).enumerate() {
            if known.contains(tokens) {
                n_shared += start + run - counted.max(start);
                counted = start + run;
            }
        }
    }
    n_shared as f64 / n_tokens as f64
}

/// A window without its first token.
fn body(window: &[Token]) -> &[Token] {
    window.get(1..).unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::noise::{below, noise};

    fn of(scored: &[Vec<Token>], choosing: &[Vec<Token>]) -> f64 {
        let [scored, choosing] =
            [scored, choosing].map(|set| set.iter().map(Vec::as_slice).collect::<Vec<_>>());
        share(&scored, &choosing)
    }

    /// Every token, by every run that holds it.
    fn naive(scored: &[Vec<Token>], choosing: &[Vec<Token>]) -> f64 {
        let shortest = scored.iter().chain(choosing).map(|w| w.len() - 1).min();
        let run = shortest.unwrap().min(RUN);
        let is_known = |tokens: &[Token]| {
            choosing.iter().any(|window| {
                let last = window.len() - run;
                (1..=last).any(|start| &window[start..start + run] == tokens)
            })
        };
        let (mut n, mut n_shared) = (0, 0);
        for window in scored {
            for at in 1..window.len() {
                n += 1;
                let holds =
                    |start: usize| start <= at && at < start + run && is_known(&window[start..start + run]);
                n_shared += i32::from((1..=window.len() - run).any(holds));
            }
        }
        f64::from(n_shared) / f64::from(n)
    }

    #[test]
    fn shares_are_those_of_the_naive_twin() {
        let mut next = noise(3);
        let mut seen = [false; 3];
        for case in 0..60 {
            let mut number = |n| below(&mut next, n);
            let text: Vec<Token> = (0..400).map(|_| Token::try_from(number(9)).unwrap()).collect();
            // Windows of several lengths and shifts of one text. Some are of their own.
            let mut cut = |n: usize, own: usize| -> Vec<Vec<Token>> {
                let length = if case % 3 == 0 { 2 + number(9) } else { 40 + number(30) };
                (0..n)
                    .map(|i| {
                        let start = number(300);
                        let mut window = text[start..start + length].to_vec();
                        if i < own {
                            window.iter_mut().for_each(|token| *token += 1000);
                        }
                        window
                    })
                    .collect()
            };
            let (scored, choosing) = (cut(3, case % 4), cut(4, 0));
            let (found, expected) = (of(&scored, &choosing), naive(&scored, &choosing));
            assert!((found - expected).abs() < 1e-12, "{case}: {found} {expected}");
            let kind = match found {
                0.0 => 0,
                1.0 => 2,
                _ => 1,
            };
            seen[kind] = true;
        }
        assert_eq!(seen[..2], [true; 2]);
    }

    #[test]
    fn the_same_text_is_shared_whole_and_another_not_at_all() {
        let text: Vec<Token> = (0..300).collect();
        let windows = |shift: usize| -> Vec<Vec<Token>> {
            text[shift..].chunks_exact(50).map(<[Token]>::to_vec).collect()
        };
        assert_eq!(of(&windows(0), &windows(0)), 1.0);
        let other: Vec<Vec<Token>> = vec![(1000..1050).collect()];
        assert_eq!(of(&windows(0), &other), 0.0);
        assert_eq!(of(&other, &[]), 0.0);
        assert_eq!(of(&[vec![1]], &[vec![1]]), 0.0);
    }
}
