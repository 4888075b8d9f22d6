//! Logits that were recorded: the twin of the engine.

use anyhow::Result;

use crate::engine::hidden_state::Token;
use crate::engine::scored::{ScoredLogits, scored};
use crate::measure::noise::noise;
use crate::measure::quality::measure::Quality;

/// The logits after every token of every window, `[n_tokens, n_vocab]` each.
#[derive(Clone)]
pub struct Recorded {
    pub name: &'static str,
    pub n_vocab: usize,
    pub windows: Vec<Vec<f32>>,
    pub next: usize,
}

impl Recorded {
    pub fn random(seed: u64, n_windows: usize, n_tokens: usize, n_vocab: usize) -> Self {
        let mut next = noise(seed);
        let mut window = || (0..n_tokens * n_vocab).map(|_| 8.0 * next()).collect();
        Self { name: "m.gguf", n_vocab, windows: (0..n_windows).map(|_| window()).collect(), next: 0 }
    }

    /// The row after token `t` of window `w`.
    pub fn row(&self, w: usize, t: usize) -> &[f32] {
        &self.windows[w][t * self.n_vocab..][..self.n_vocab]
    }
}

impl ScoredLogits for Recorded {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    fn logits(&mut self, window: &[Token]) -> Result<&[f32]> {
        let scored = scored(window.len());
        let logits = &self.windows[self.next];
        self.next += 1;
        Ok(&logits[scored.start * self.n_vocab..scored.end * self.n_vocab])
    }
}

/// Windows of tokens for them.
pub fn windows(n_windows: usize, n_tokens: usize, n_vocab: usize) -> Vec<Vec<Token>> {
    let token = |i: usize| Token::try_from((i * i * 7 + 3 * i + 1) % n_vocab).unwrap();
    (0..n_windows).map(|w| (0..n_tokens).map(|t| token(w * n_tokens + t)).collect()).collect()
}

/// What [`Quality::measure`] makes of them.
pub fn quality(mut model: Recorded, mut parent: Option<Recorded>, windows: &[Vec<Token>]) -> Result<Quality> {
    let parent = parent.as_mut().map(|parent| parent as &mut dyn ScoredLogits);
    Quality::measure(&mut model, parent, windows.iter().map(Vec::as_slice), &mut |_| {})
}
