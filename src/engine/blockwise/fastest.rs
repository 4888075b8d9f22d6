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

/// The fastest conversion, timed on the largest block.
///
/// Only those count with which a block takes at most `spare` more bytes, and which save a tenth of the time.
///
/// # Errors
/// A block that llama.cpp does not take alone.
pub(super) fn fastest(segments: &Segments<'_, '_>, spare: u64) -> Result<Conversion> {
    let Some((block, n_bytes)) = segments.largest()? else {
        return Ok(Conversion::None);
    };
    let mut candidates = Vec::new();
    for conversion in [Conversion::Q8_0, Conversion::F32, Conversion::Bf16] {
        let converted = segments.clone().converted(conversion).n_bytes(block)?;
        // Of the same size is what has no weights to convert.
        if converted != n_bytes && converted <= n_bytes.saturating_add(spare) {
            candidates.push(conversion);
        }
    }
    if candidates.is_empty() {
        return Ok(Conversion::None);
    }
    let limit = seconds(segments, block, Conversion::None, Duration::MAX)?.mul_f64(0.9);
    let mut best = (Conversion::None, limit);
    for conversion in candidates {
        let took = seconds(segments, block, conversion, best.1)?;
        if took < best.1 {
            best = (conversion, took);
        }
    }
    Ok(best.0)
}

/// How long one evaluation takes. Trials end where the first says that it is far above `limit`.
fn seconds(
    segments: &Segments<'_, '_>,
    block: BlockId,
    conversion: Conversion,
    limit: Duration,
) -> Result<Duration> {
    let unchanged = ChangedTensors::new();
    let mut segment: BlockSegment = segments.clone().converted(conversion).block(block, &unchanged)?;
    // Time does not depend on values, as long as none is special.
    let values = (0..8191u16).cycle().map(|i| (f32::from(i) * 0.7).sin());
    let state: Vec<f32> = values.take(segments.window().min(N_TOKENS) * segment.n_embd()).collect();
    let mut least = Duration::MAX;
    for _ in 0..N_TRIALS {
        let start = Instant::now();
        segment.run(&state)?;
        least = least.min(start.elapsed());
        if least > limit.saturating_mul(2) {
            break;
        }
    }
    Ok(least)
}
