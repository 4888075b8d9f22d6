//! The experts that stay, by a list or by scores.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use crate::choose::settings::ExpertChoice;
use crate::files::unique::unique;
use crate::measure::experts::{BlockOfExperts, ExpertScores};
use crate::model::block::BlockSet;
use crate::model::{BlockId, Model};
use crate::plan::ExpertCut;
use crate::plan::experts::{ExpertBudget, ExpertMethod, KeptExperts, LIST, Mixture};

/// Bytes of a file of lists that are read: more than those of all experts that llama.cpp can count.
const MAX_BYTES: u64 = 16 << 20;

/// The experts that `choice` lists, checked for `model` without `removed`.
///
/// # Errors
/// A file that cannot be read, or says something else; a model without experts; experts that must stay.
pub(crate) fn listed(
    model: &Model<'_>,
    choice: &ExpertChoice,
    removed: &BlockSet,
) -> Result<Option<ExpertCut>> {
    let kept = match choice {
        ExpertChoice::All => return Ok(None),
        ExpertChoice::Lowest(budget, _) => return check(model, *budget, removed).map(|()| None),
        ExpertChoice::Same(list) => {
            let mixture = Mixture::of(model)?;
            let experts = list.numbers(mixture.n_experts).map_err(|outside| {
                let n = mixture.n_experts;
                anyhow!("cannot keep expert {outside}: each block has {n}, 0 to {}", n - 1)
            })?;
            let experts: Vec<usize> = experts.into_iter().collect();
            mixture.blocks.iter().map(|block| (*block, experts.clone())).collect()
        }
        ExpertChoice::File(path) => read(path).with_context(|| path.display().to_string())?,
    };
    Mixture::of(model)?.check(removed, &kept)?;
    Ok(Some(ExpertCut { kept, method: LIST.to_owned() }))
}

/// Checks that `budget` may go from `model` without `removed`.
///
/// # Errors
/// A model without experts; experts that must stay.
pub(crate) fn check(model: &Model<'_>, budget: ExpertBudget, removed: &BlockSet) -> Result<()> {
    let mixture = Mixture::of(model)?;
    mixture.blocks_left(removed)?;
    mixture.check_number(budget.n_kept(&mixture))
}

/// The experts that stay by the scores of `method`, without `removed`. Of each group of a block as many stay, those with the
/// highest scores, and of equal ones the first.
///
/// # Errors
/// As [`check`]; a block without scores.
pub(crate) fn highest(
    model: &Model<'_>,
    budget: ExpertBudget,
    method: ExpertMethod,
    removed: &BlockSet,
    scores: &[BlockOfExperts],
) -> Result<ExpertCut> {
    let mixture = Mixture::of(model)?;
    let n = budget.n_kept(&mixture) / mixture.n_groups;
    let of_block = |block: BlockId| -> Result<(BlockId, Vec<usize>)> {
        let found = scores.iter().find(|scores| scores.block == block);
        let experts = found.filter(|found| found.experts.len() == mixture.n_experts);
        let experts =
            &experts.with_context(|| format!("the experts of block {block} were not seen"))?.experts;
        let score = by(method, experts);
        let mut order: Vec<usize> = (0..mixture.n_experts).collect();
        order.sort_by(|&a, &b| score[b].total_cmp(&score[a]));
        let of_group = mixture.n_experts / mixture.n_groups;
        let mut kept = Vec::new();
        for group in 0..mixture.n_groups {
            kept.extend(order.iter().filter(|&&expert| expert / of_group == group).take(n));
        }
        kept.sort_unstable();
        Ok((block, kept))
    };
    let kept = mixture.blocks_left(removed)?.into_iter().map(of_block).collect::<Result<KeptExperts>>()?;
    mixture.check(removed, &kept)?;
    Ok(ExpertCut { kept, method: method.to_string() })
}

/// The scores of the experts of a block by which `method` goes.
fn by(method: ExpertMethod, experts: &[ExpertScores]) -> Vec<f64> {
    let score: fn(&ExpertScores) -> f64 = match method {
        ExpertMethod::Reap | ExpertMethod::Auto => |expert| expert.reap,
        ExpertMethod::Frequency => |expert| expert.frequency,
        ExpertMethod::Gate => |expert| expert.gate,
        ExpertMethod::Contribution => |expert| expert.reap * expert.frequency,
    };
    experts.iter().map(score).collect()
}

/// The lists of a JSON file: `{"0": [0, 3], "1": [2, 5]}`.
fn read(path: &Path) -> Result<KeptExperts> {
    let mut text = String::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= MAX_BYTES, "has more than {MAX_BYTES} bytes");
    parse(&text)
}

fn parse(text: &str) -> Result<KeptExperts> {
    let mut json = serde_json::Deserializer::from_str(text);
    let lists = unique::<_, String, Vec<usize>>(&mut json).and_then(|lists| json.end().map(|()| lists));
    let lists = lists.map_err(|error| {
        anyhow!("expected a JSON object that has for each block the list of its kept experts: {error}")
    })?;
    let mut kept = KeptExperts::new();
    for (name, mut experts) in lists {
        let block = name.parse().ok().filter(|number: &usize| number.to_string() == name);
        let block = block.with_context(|| format!("'{}' is not a block number", name.escape_default()))?;
        experts.sort_unstable();
        kept.insert(BlockId::new(block), experts);
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contribution_weighs_both_scores() {
        let of = |reap: f64, frequency: f64| ExpertScores {
            tokens: 1,
            reap,
            reap_stderr: None,
            frequency,
            frequency_stderr: None,
            gate: 0.0,
            gate_stderr: None,
        };
        // The first has the most of one score and the least of the other.
        let experts = [of(8.0, 0.125), of(3.0, 0.5), of(2.0, 0.25)];
        assert_eq!(by(ExpertMethod::Contribution, &experts), [1.0, 1.5, 0.5]);
        assert_eq!(by(ExpertMethod::Frequency, &experts), [0.125, 0.5, 0.25]);
    }

    #[test]
    fn a_file_has_a_list_for_each_block() {
        let kept = parse(r#"{"10": [3, 0], "2": []}"#).unwrap();
        let expected = [(BlockId::new(2), vec![]), (BlockId::new(10), vec![0, 3])];
        assert_eq!(kept, KeptExperts::from(expected));
        for wrong in
            ["", "[]", "{\"0\": 1}", "{\"0\": [-1]}", "{\"0\": [0.5]}", "{\"a\": [0]}", "{\"01\": [0]}", "{"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
