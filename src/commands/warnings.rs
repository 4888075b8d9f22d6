//! Warnings about models, said before anything is measured.

use std::collections::BTreeSet;
use std::io::{Write, stderr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::note_layout;
use crate::input::Input;
use crate::model::Model;
use crate::options::Printing;
use crate::stores::ollama::Kind;
use crate::warning::Warning;

/// Says how the model of `input` is read, and what is doubtful about its weights.
pub(super) fn of_weights(input: &Input, model: &Model<'_>, printing: &Printing) {
    of_store(input, printing);
    // What nobody is told of need not be looked for.
    if !printing.quiet {
        say(input, Warning::of_weights(model), printing);
    }
}

/// Says how the model of `input` is read, and what of it is not.
pub(super) fn of_store(input: &Input, printing: &Printing) {
    note_layout(input, printing);
    let with_adapter = input.ollama().filter(|of| of.n_files(Kind::Adapter) > 0);
    let adapter = with_adapter.map(|stored| Warning::Adapter {
        name: stored.name().to_string(),
    });
    say(input, adapter, printing);
}

/// Says what is doubtful about how the model of `input` cuts text, before it does, and once however often it does.
pub(super) fn of_tokenizer(input: &Input, model: &Model<'_>, printing: &Printing) {
    static TOLD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.insert(input.path().to_owned()) {
        say(input, Warning::of_tokenizer(model), printing);
    }
}

/// Says that the model of `input` and its parent cut text differently.
pub(super) fn of_tokenizers(
    input: &Input,
    model: &Model<'_>,
    parent: &Model<'_>,
    printing: &Printing,
) {
    say(input, Warning::of_tokenizers(model, parent), printing);
}

fn say(input: &Input, warnings: impl IntoIterator<Item = Warning>, printing: &Printing) {
    if printing.quiet {
        return;
    }
    for warning in warnings {
        let path = input.path().display();
        // That nobody may read it any more changes nothing of what is done.
        let _ = writeln!(stderr(), "gguf-shorten: warning: {path}: {warning}");
    }
}
