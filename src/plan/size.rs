//! Metadata that says how large the model is: the output's, by the conventions of `gguf-py`. Pure.

use super::Tensors;
use crate::gguf::{EntryOut, TensorOut, ValueOut};

/// Number of weights.
const COUNT: &str = "general.parameter_count";

/// The size class in a model's name, such as `7B` or `8x7B`.
const LABEL: &str = "general.size_label";

/// The entries with the sizes of an output of these tensors. One that no convention is known for is left out.
pub(super) fn set<'a>(entries: Vec<EntryOut<'a>>, tensors: &Tensors<'_>) -> Vec<EntryOut<'a>> {
    let size = Size::of(tensors.planned.iter().map(|(out, _)| out));
    let sized = |entry: EntryOut<'a>| {
        let value = match entry.key() {
            COUNT => ValueOut::integer(entry.value_type(), size.n_total)?,
            LABEL => ValueOut::string(&size.label_like(entry.value().as_str().ok()?)?),
            _ => return Some(entry),
        };
        let is_same = value.raw() == entry.value_raw();
        Some(match is_same {
            true => entry,
            false => EntryOut::new(entry.key().to_owned(), value),
        })
    };
    entries.into_iter().filter_map(sized).collect()
}

/// How many weights there are (`gguf_writer.py: get_total_parameter_count`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    n_total: u64,
    /// Those that are not of one expert among others.
    n_shared: u64,
    /// Those of one expert in each block.
    n_expert: u64,
    /// Experts of a block, on average.
    n_experts: u64,
}

impl Size {
    fn of<'t>(tensors: impl Iterator<Item = &'t TensorOut<'t>>) -> Self {
        let mut size = Self::default();
        let (mut sum, mut n) = (0u64, 0u64);
        for tensor in tensors {
            let n_elements = tensor.n_elements();
            size.n_total = size.n_total.saturating_add(n_elements);
            match n_experts(tensor) {
                Some(n_experts) => {
                    size.n_expert = size.n_expert.saturating_add(n_elements / n_experts);
                    sum = sum.saturating_add(n_experts);
                    n += 1;
                }
                None => size.n_shared = size.n_shared.saturating_add(n_elements),
            }
        }
        size.n_experts = sum.checked_div(n).unwrap_or(0);
        size
    }

    /// The label in the form that the input's has: `7B`, or `8x7B` of experts (`utility.py: size_label`). `None` of another
    /// form, or of experts where there are none.
    fn label_like(&self, label: &str) -> Option<String> {
        let Some((n, of_one)) = label.split_once('x') else {
            return is_size(label).then(|| rounded(self.n_total));
        };
        let is_count = !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit());
        let n_weights = self.n_shared.saturating_add(self.n_expert);
        (is_count && is_size(of_one) && self.n_experts > 0)
            .then(|| format!("{}x{}", self.n_experts, rounded(n_weights)))
    }
}

/// Experts of a tensor that holds several.
fn n_experts(tensor: &TensorOut<'_>) -> Option<u64> {
    let name = tensor.name();
    if !name.contains("_exps.") {
        return None;
    }
    let dim = if name.contains(".bias") { 1 } else { 2 };
    let dims = tensor.dims();
    (tensor.n_dims() > dim).then_some(dims[dim]).filter(|&n| n > 0)
}

/// Whether a label is a number with a unit, such as `1.5B`.
fn is_size(label: &str) -> bool {
    let number = label.strip_suffix(['K', 'M', 'B', 'T']);
    number.is_some_and(|number| {
        number.starts_with(|c: char| c.is_ascii_digit()) && number.parse::<f64>().is_ok()
    })
}

/// A number of weights with its unit, at least two digits (`utility.py: model_weight_count_rounded_notation`).
fn rounded(n_weights: u64) -> String {
    let n = n_weights as f64;
    let (scaled, unit) = match n {
        _ if n >= 1e12 => (n * 1e-12, 'T'),
        _ if n >= 1e9 => (n * 1e-9, 'B'),
        _ if n >= 1e6 => (n * 1e-6, 'M'),
        _ => (n * 1e-3, 'K'),
    };
    let whole = scaled.round_ties_even();
    let digits = match whole {
        _ if whole >= 10.0 => 0,
        _ if whole >= 1.0 => 1,
        _ => 2,
    };
    format!("{scaled:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::TensorType;

    #[test]
    fn sizes_are_rounded_as_gguf_py_rounds_them() {
        // What utility.py gives.
        for (n, label) in [
            (0, "0.00K"),
            (499, "0.50K"),
            (999, "1.0K"),
            (70_048, "70K"),
            (999_999, "1000K"),
            (1_000_000, "1.0M"),
            (9_499_999, "9.5M"),
            (9_500_000, "10M"),
            (124_439_808, "124M"),
            (1_235_814_432, "1.2B"),
            (8_030_261_312, "8.0B"),
            (70_553_706_496, "71B"),
            (1_026_470_731_056, "1.0T"),
        ] {
            assert_eq!(rounded(n), label);
        }
    }

    fn size(tensors: &[(&str, &[u64])]) -> Size {
        let tensors: Vec<TensorOut<'_>> = tensors
            .iter()
            .map(|(name, dims)| TensorOut::new(*name, dims, TensorType::F32).unwrap())
            .collect();
        Size::of(tensors.iter())
    }

    #[test]
    fn a_label_keeps_its_form_or_goes() {
        let dense = size(&[("blk.0.ffn_up.weight", &[1000, 70])]);
        assert_eq!(dense.label_like("8B"), Some("70K".to_owned()));
        assert_eq!(dense.label_like("0.5B"), Some("70K".to_owned()));
        for other in ["8x7B", "large", "E4B", "30B-A3B", "7b", "", "B", "infB"] {
            assert_eq!(dense.label_like(other), None, "{other}");
        }
        let experts = size(&[
            ("blk.0.ffn_up_exps.weight", &[100, 10, 8]),
            ("blk.0.ffn_up_exps.bias", &[100, 8]),
            ("blk.0.attn_q.weight", &[400]),
        ]);
        assert_eq!(experts, Size { n_total: 9200, n_shared: 400, n_expert: 1100, n_experts: 8 });
        assert_eq!(experts.label_like("8x7B"), Some("8x1.5K".to_owned()));
        assert_eq!(experts.label_like("47B"), Some("9.2K".to_owned()));
    }
}
