//! Lines on a goal, a draft model and tasks.

use crate::choose::outcome::DraftReport;
use crate::choose::outcome::GoalReport;
use crate::choose::outcome::TaskReport;
use crate::choose::outcome::figure;
use crate::choose::outcome::named;
use indicatif::HumanCount;

/// A goal on one line.
pub(super) fn line(goal: &GoalReport) -> String {
    let value = figure(goal.value);
    let Some(limit) = goal.limit else {
        return String::new();
    };
    let limit = figure(limit);
    let broken = goal.steps.iter().find(|step| step.holds == Some(false));
    match (goal.goal, broken) {
        ("target-size", _) => format!("at most {limit} bytes: {value}"),
        (flag, broken) => {
            let what = if flag == "max-ppl" { "perplexity" } else { "KL divergence" };
            let next = match broken {
                Some(step) => {
                    format!("; without {} it would be {}", named(&step.removed), figure(step.value))
                }
                None => ", and no more blocks may go".to_owned(),
            };
            format!("{what} at most {limit}: {value}{next}")
        }
    }
}

/// A draft model's worth on one line.
pub(super) fn draft_line(draft: &DraftReport) -> String {
    let verdict = if draft.speed_up < 1.0 {
        ": slower than the model alone, so no set that was tried is worth it"
    } else {
        ""
    };
    format!(
        "computed: {:.1} % of its tokens taken, {:.1} % of the model's bytes for each; with {} at a time decoding is {:.2} \
         times as fast{verdict}",
        draft.acceptance * 100.0,
        draft.cost_ratio * 100.0,
        draft.tokens,
        draft.speed_up
    )
}

/// Tasks on one line.
pub(super) fn task_line(tasks: &TaskReport) -> String {
    format!(
        "{} of {}: cross entropy {:.4} (whole model {:.4}), {:.1} % right (whole model {:.1} %, guessing {:.1} %)",
        HumanCount(tasks.tasks),
        tasks.source,
        tasks.cross_entropy,
        tasks.parent_cross_entropy,
        tasks.accuracy * 100.0,
        tasks.parent_accuracy * 100.0,
        tasks.chance * 100.0
    )
}
