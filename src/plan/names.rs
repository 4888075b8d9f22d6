//! Fates of tensor names in files of some blocks, and outputs.

use std::collections::HashMap;

use super::{TensorData, Tensors};
use crate::gguf::EntryOut;
use crate::model::Model;
use crate::model::names::{Fate, Names, fate_in_block};
use crate::model::renumbering::Renumbering;

/// Why statements about a tensor may not hold for its parts.
const CUT: &str = "stands for a tensor of which only parts stay";

/// Of a file of some blocks, in which all other tensors stay. Of those that a cut would take parts of, it is not clear.
pub(super) fn of_blocks<'n>(model: &'n Model<'_>, renumbering: &'n Renumbering) -> Names<'n> {
    let prefix = model.block_prefix();
    let is_cut =
        |name: &str| model.rules().is_some_and(|rules| rules.parts().any(|parts| parts.name == name));
    let tensors = model.tensors().iter().map(move |tensor| {
        let name = tensor.info.name();
        let fate = match tensor.block {
            Some(_) => fate_in_block(name, prefix, renumbering).unwrap_or(Fate::Same),
            None if is_cut(name) => Fate::Unclear(CUT),
            None => Fate::Same,
        };
        (name, fate)
    });
    Names::new(tensors, Some((prefix, renumbering)))
}

/// Of an output with these tensors.
pub(super) fn of_output<'n>(
    model: &'n Model<'_>,
    renumbering: &'n Renumbering,
    tensors: &Tensors<'_>,
) -> Names<'n> {
    let mut outs: HashMap<usize, Vec<(&str, bool)>> = HashMap::new();
    for (out, data) in &tensors.planned {
        if let Some(source) = data.source() {
            let is_cut = matches!(data, TensorData::Sliced { .. });
            outs.entry(source).or_default().push((out.name(), is_cut));
        }
    }
    let tensors = model.tensors().iter().enumerate().map(|(source, tensor)| {
        let name = tensor.info.name();
        let fate = match outs.get(&source).map_or(&[][..], Vec::as_slice) {
            [] => Fate::Gone,
            [(_, true)] => Fate::Unclear(CUT),
            [(new, false)] if *new == name => Fate::Same,
            [(new, false)] => Fate::Renamed((*new).to_owned()),
            _ => Fate::Unclear("stands for a tensor that several blocks get"),
        };
        (name, fate)
    });
    Names::new(tensors, Some((model.block_prefix(), renumbering)))
}

/// The key of the first entry naming a block or its tensor.
pub(crate) fn first_entry<'a>(model: &Model<'a>) -> Option<&'a str> {
    let nothing = Renumbering::in_order(model.n_blocks(), Vec::new());
    let names = of_blocks(model, &nothing);
    let mut entries = model.metadata().iter();
    Some(entries.find(|entry| names.names_any_of(&EntryOut::keep(entry)))?.key())
}
