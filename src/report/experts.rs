//! The scores of experts as a table for a person.

use std::fmt::Write as _;

use crate::measure::experts::{BlockOfExperts, ExpertScores};

/// Experts of a line.
const PER_LINE: usize = 16;

/// The REAP of every expert, in thousandths of its block's largest.
#[must_use]
pub fn table(blocks: &[BlockOfExperts]) -> String {
    let mut text = String::from(
        "experts  REAP in thousandths of the largest of each block; - for those to which no token was routed\n",
    );
    let n = blocks.iter().map(|block| block.experts.len()).max().unwrap_or(0).min(PER_LINE);
    let _ = write!(text, "{:>6}{:>12}{:>9}{:>7}", "block", "largest", "±", "from");
    (0..n).for_each(|expert| {
        let _ = write!(text, "{:>6}", format!("+{expert}"));
    });
    text.push('\n');
    for block in blocks {
        let by_reap = |a: &&ExpertScores, b: &&ExpertScores| a.reap.total_cmp(&b.reap);
        let Some(largest) = block.experts.iter().max_by(by_reap) else {
            continue;
        };
        let stderr = largest.reap_stderr.map_or_else(|| "-".to_owned(), |error| format!("{error:.4}"));
        for (line, experts) in block.experts.chunks(PER_LINE).enumerate() {
            let _ = match line {
                0 => write!(text, "{:>6}{:>12.4}{stderr:>9}", block.block.index(), largest.reap),
                _ => write!(text, "{:>27}", ""),
            };
            let _ = write!(text, "{:>7}", line * PER_LINE);
            for expert in experts {
                let _ = write!(text, "{:>6}", thousandths(expert, largest.reap));
            }
            text.push('\n');
        }
    }
    text
}

fn thousandths(expert: &ExpertScores, largest: f64) -> String {
    match expert.tokens {
        0 => "-".to_owned(),
        _ if largest == 0.0 => "0".to_owned(),
        _ => format!("{:.0}", 1000.0 * expert.reap / largest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BlockId;

    #[test]
    fn every_expert_has_its_place() {
        let expert = |tokens: u64, reap: f64| ExpertScores {
            tokens,
            reap,
            reap_stderr: Some(0.25),
            frequency: 0.5,
            frequency_stderr: None,
            gate: 0.5,
            gate_stderr: None,
        };
        let mut experts = vec![expert(3, 0.5), expert(0, 0.0), expert(9, 2.0)];
        let small = BlockOfExperts { block: BlockId::new(1), experts: experts.clone() };
        experts.extend((0..15).map(|_| expert(1, 1.0)));
        let large = BlockOfExperts { block: BlockId::new(2), experts };
        let found = table(&[small, large]);
        let lines: Vec<Vec<&str>> =
            found.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..6], ["block", "largest", "±", "from", "+0", "+1"]);
        assert_eq!(lines[1], ["1", "2.0000", "0.2500", "0", "250", "-", "1000"]);
        assert_eq!(lines[2][..8], ["2", "2.0000", "0.2500", "0", "250", "-", "1000", "500"]);
        assert_eq!(lines[2].len(), 20);
        assert_eq!(lines[3], ["16", "500", "500"]);
    }
}
