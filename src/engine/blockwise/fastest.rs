//! The conversion with which blocks are evaluated fastest on this machine.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::engine::conversion::Conversion;
use crate::engine::segment::{BlockSegment, Segments};
use crate::model::BlockId;
use crate::plan::ChangedTensors;

/// Evaluations of which the fastest counts.
const N_TRIALS: usize = 3;

/// Tokens of these, at most. Kernels for many tokens are as fast for so many.
const N_TOKENS: usize = 128;

/// The fastest conversion for a text of `n_tokens`, timed on the largest block: its loading, and its evaluation.
///
/// Only those count with which a block takes at most `spare` more bytes, and which save a tenth of the time.
///
/// # Errors
/// A block that llama.cpp does not take alone.
pub(super) fn fastest(segments: &Segments<'_, '_>, spare: u64, n_tokens: usize) -> Result<Conversion> {
    let Some((block, n_bytes)) = segments.largest()? else {
        return Ok(Conversion::None);
    };
    let mut candidates = Vec::new();
    for conversion in [Conversion::NoRepack, Conversion::Q8_0, Conversion::F32, Conversion::Bf16] {
        let converted = segments.clone().converted(conversion);
        if converted.may_gain(block, conversion) && converted.n_bytes(block)? <= n_bytes.saturating_add(spare)
        {
            candidates.push(conversion);
        }
    }
    if candidates.is_empty() {
        return Ok(Conversion::None);
    }
    // What is read first may come from the disk.
    drop(segments.block(block, &ChangedTensors::new())?);
    let trial = Trial { segments, block, n_tokens };
    let mut best = (Conversion::None, trial.time(Conversion::None, Duration::MAX)?.mul_f64(0.9));
    for conversion in candidates {
        let took = trial.time(conversion, best.1)?;
        if took < best.1 {
            best = (conversion, took);
        }
    }
    Ok(best.0)
}

/// A block that stands for all.
struct Trial<'t, 'm, 'a> {
    segments: &'t Segments<'m, 'a>,
    block: BlockId,
    /// Tokens of the text.
    n_tokens: usize,
}

impl Trial<'_, '_, '_> {
    /// How long the text takes. Evaluations end where the first says that it is far above `limit`.
    fn time(&self, conversion: Conversion, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        let segments = self.segments.clone().converted(conversion);
        let mut segment: BlockSegment = segments.block(self.block, &ChangedTensors::new())?;
        let loading = start.elapsed();
        // Time does not depend on values, as long as none is special.
        let values = (0..8191u16).cycle().map(|i| (f32::from(i) * 0.7).sin());
        let n_tokens = segments.window().min(N_TOKENS);
        let state: Vec<f32> = values.take(n_tokens * segment.n_embd()).collect();
        let share = self.n_tokens as f64 / n_tokens as f64;
        let mut least = Duration::MAX;
        for _ in 0..N_TRIALS {
            let start = Instant::now();
            segment.run(&state)?;
            least = least.min(loading.saturating_add(start.elapsed().mul_f64(share)));
            if least > limit.saturating_mul(2) {
                break;
            }
        }
        Ok(least)
    }
}
