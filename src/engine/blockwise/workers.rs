//! Workers that evaluate several windows at the same time.

use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::Scope;

use anyhow::{Context as _, Result, ensure};

use super::states::States;
use crate::engine::hidden_state::{Passage, Position, Token};
use crate::engine::llama::Halves;
use crate::engine::segment::{BlockSegment, Evaluated, FrontSegment, SegmentOf};
use crate::model::BlockId;

/// Windows that a worker has at most: the one that it evaluates, and the next.
const AT_ONCE: usize = 2;

/// Hidden states that a worker shows before they are received.
const AHEAD: usize = 2;

/// A hidden state before a block, and what the block makes of it.
type Passed = (Vec<f32>, Evaluated);

/// A thread that evaluates one window after the other.
struct Worker {
    states: Sender<Vec<f32>>,
    results: Receiver<Result<Passed>>,
}

impl Worker {
    fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        segment: &'scope mut BlockSegment,
        halves: Option<&'scope Halves>,
    ) -> Self {
        let (states, to_evaluate) = channel::<Vec<f32>>();
        let (evaluated, results) = channel();
        scope.spawn(move || {
            for before in to_evaluate {
                let after = segment.run_collecting(&before, halves, None);
                // Nobody waits for it after an error.
                if evaluated.send(after.map(|after| (before, after))).is_err() {
                    break;
                }
            }
        });
        Self { states, results }
    }

    fn give(&self, state: Vec<f32>) -> Result<()> {
        self.states.send(state).context("bug: a worker is gone")
    }

    fn result(&self) -> Result<Passed> {
        self.results.recv().context("bug: a worker is gone")?
    }
}

/// Evaluates a block on all windows of `states`, each of `segments` one at a time. The states after it take their places.
///
/// Each result goes to `visit` first, in the order of windows, while the workers go on.
///
/// # Errors
/// As [`BlockSegment::run_collecting`]; the visitor's; states that cannot be kept.
pub(super) fn evaluate(
    block: BlockId,
    segments: &mut [BlockSegment],
    halves: Option<&Halves>,
    states: &mut States,
    n_windows: usize,
    visit: &mut dyn FnMut(Passage<'_>) -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let workers: Vec<Worker> =
            segments.iter_mut().map(|segment| Worker::start(scope, segment, halves)).collect();
        // In turn, so that results come in order.
        let of = |window: usize| &workers[window % workers.len()];
        let ahead = AT_ONCE * workers.len();
        for window in 0..n_windows.min(ahead) {
            of(window).give(states.take(window)?)?;
        }
        for window in 0..n_windows {
            let (before, (middle, after)) = of(window).result()?;
            if window + ahead < n_windows {
                of(window + ahead).give(states.take(window + ahead)?)?;
            }
            visit(Passage { block, window, before: &before, middle: middle.as_deref(), after: &after })?;
            states.write(window, after)?;
        }
        Ok(())
    })
}

/// A hidden state and its position in the stream.
type Shown = (Position, Vec<f32>);

/// Evaluates all blocks on all windows, each of `fronts` one window at a time.
///
/// Each block's result goes to `visit`, of each block in the order of windows, while the workers go on.
///
/// # Errors
/// As [`FrontSegment::visit`]; the visitor's.
pub(super) fn evaluate_windows(
    fronts: &mut [FrontSegment<'_>],
    n_blocks: usize,
    windows: &[&[Token]],
    visit: &mut dyn FnMut(Passage<'_>) -> Result<()>,
) -> Result<()> {
    let n_workers = fronts.len().max(1);
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for (number, front) in fronts.iter_mut().enumerate() {
            let (sender, shown) = sync_channel(AHEAD);
            let windows = windows.iter().skip(number).step_by(n_workers);
            scope.spawn(move || {
                for window in windows {
                    let mut send = |position, state: &[f32]| Ok(sender.send(Ok((position, state.to_vec())))?);
                    if let Err(error) = front.visit(window, &mut send) {
                        // Nobody waits for it after an error of another.
                        let _ = sender.send(Err(error.context(SegmentOf::First(n_blocks))));
                        break;
                    }
                }
            });
            workers.push(shown);
        }
        for (first, windows) in (0..).step_by(n_workers).zip(windows.chunks(n_workers)) {
            let mut before = vec![Vec::new(); windows.len()];
            // Block after block, each in turn, so that nobody waits long.
            for _ in 0..n_blocks {
                for (number, before) in before.iter_mut().enumerate() {
                    passage(&workers[number], first + number, before, visit)?;
                }
            }
        }
        Ok(())
    })
}

/// Receives states up to the output of the block that comes next, whose input becomes that output.
fn passage(
    shown: &Receiver<Result<Shown>>,
    window: usize,
    before: &mut Vec<f32>,
    visit: &mut dyn FnMut(Passage<'_>) -> Result<()>,
) -> Result<()> {
    let mut middle = None;
    loop {
        let (position, state) = shown.recv().context("bug: a worker is gone")??;
        match position {
            Position::Input => *before = state,
            Position::Middle(_) => middle = Some(state),
            Position::Output(block) => {
                ensure!(
                    !before.is_empty(),
                    "llama.cpp's graph does not show the hidden state before block {block}"
                );
                visit(Passage { block, window, before, middle: middle.as_deref(), after: &state })?;
                *before = state;
                return Ok(());
            }
        }
    }
}
