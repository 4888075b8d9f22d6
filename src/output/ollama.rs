//! `--ollama NAME`: a Modelfile beside the output, and `ollama create`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::error::{Hint, Usage};
use crate::files::shell::shell;
use crate::files::staged::Staged;
use crate::model::Model;
use crate::model::input::Input;
use crate::model::stores::ollama::{Kind, Name, StoredModel};
use crate::output::modelfile::{self, Modelfile};
use crate::output::save::stage_text;
use crate::watch::Watch;

/// Name of the Modelfile.
const MODELFILE: &str = "Modelfile";

/// A Modelfile to be, and what it is for.
pub(crate) struct Creation {
    name: String,
    path: PathBuf,
    text: String,
    notes: Vec<String>,
}

/// Checks a name as `ollama create` takes it.
///
/// # Errors
/// [`Usage`] for another.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if Name::parse(name).is_err() {
        bail!(Usage(format!(
            "--ollama '{}' is not a name of the form NAME, NAME:TAG or NAMESPACE/NAME:TAG",
            name.escape_debug()
        )));
    }
    Ok(())
}

impl Creation {
    /// Plans the Modelfile of the shortened model at `output`, named `name`.
    ///
    /// # Errors
    /// A text of the parent's that is missing, or that no Modelfile can hold.
    pub(crate) fn plan(model: &Model<'_>, input: &Input, name: &str, output: &Path) -> Result<Self> {
        let path = output.with_file_name(MODELFILE);
        let mut notes = Vec::new();
        let modelfile = match input.ollama() {
            Some(parent) => {
                of_parent(parent, input, &mut notes).with_context(|| format!("ollama:{}", parent.name()))?
            }
            None => {
                if model.metadata().get("tokenizer.chat_template").is_none() {
                    notes.push(
                        "the model has no chat template, so Ollama passes prompts on as they are".to_owned(),
                    );
                }
                Modelfile::default()
            }
        };
        let file = output.file_name().and_then(|name| name.to_str());
        let file = file
            .with_context(|| format!("{}: a Modelfile holds no name that is not UTF-8", output.display()))?;
        let mut from = vec![format!("./{file}")];
        from.extend(modelfile.from);
        let modelfile = Modelfile { from, ..modelfile };
        let text = modelfile.text().with_context(|| format!("{}: cannot be written", path.display()))?;
        Ok(Self { name: name.to_owned(), path, text, notes })
    }

    /// The name of the model.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where the Modelfile goes.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes for the user.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Writes it beside its place, ready to be committed.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn stage(&self, input: &Input, force: bool) -> Result<Staged> {
        let staged = stage_text(&self.path, &self.text, input, force);
        staged.with_context(|| format!("{}: nothing was written", self.path.display()))
    }

    /// Runs `ollama create`. Returns whether there is an `ollama`.
    ///
    /// # Errors
    /// Its failure; the output is complete all the same.
    pub(crate) fn run(&self, watch: &dyn Watch) -> Result<bool> {
        let mut command = Command::new("ollama");
        command.arg("create").arg(&self.name).arg("-f").arg(&self.path);
        command.stdin(Stdio::null());
        // Results alone go to stdout.
        match watch.is_quiet() {
            true => command.stdout(Stdio::null()).stderr(Stdio::null()),
            false => command.stdout(std::io::stderr()),
        };
        let shown = format!("ollama create {} -f {}", self.name, shell(&self.path.display().to_string()));
        match command.status() {
            Ok(status) if status.success() => Ok(true),
            Ok(status) => bail!(
                anyhow::anyhow!("'{shown}' failed ({status}); the output is complete")
                    .context(Hint("it can be run again by hand".to_owned()))
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                watch.note(&format!("there is no 'ollama' in PATH; where there is: {shown}"));
                Ok(false)
            }
            Err(error) => Err(error).context(shown),
        }
    }
}

/// The content of the parent's manifest beside its weights.
fn of_parent(parent: &StoredModel, input: &Input, notes: &mut Vec<String>) -> Result<Modelfile> {
    let last = |kind| -> Result<Option<String>> { Ok(parent.texts(kind)?.pop()) };
    let config = parent.config()?;
    let said = |text: String| Some(text).filter(|text| !text.is_empty());
    let mut modelfile = Modelfile {
        template: last(Kind::Template)?,
        system: last(Kind::System)?,
        renderer: said(config.renderer),
        parser: said(config.parser),
        requires: said(config.requires),
        licenses: parent.texts(Kind::License)?,
        ..Modelfile::default()
    };
    for json in parent.texts(Kind::Params)? {
        let json = json_of(&json, "parameters")?;
        modelfile.parameters.extend(modelfile::parameters(&json).context("parameters")?);
    }
    for json in parent.texts(Kind::Messages)? {
        let messages = json_of(&json, "messages")?;
        for message in messages.as_array().into_iter().flatten() {
            let text = |key: &str| message[key].as_str().unwrap_or_default().to_owned();
            modelfile.messages.push((text("role"), text("content")));
        }
    }
    for projector in parent.files(Kind::Projector)? {
        let path = std::path::absolute(&projector)?;
        match path.to_str() {
            Some(path) => modelfile.from.push(path.to_owned()),
            None => notes.push("the projector's path is not UTF-8, so it is left out".to_owned()),
        }
    }
    if parent.n_files(Kind::Adapter) > 0 {
        notes.push("the parent's adapter was made for all of its blocks and is left out".to_owned());
    }
    if input.converted().is_some_and(|converted| !converted.left_out.is_empty()) {
        notes.push("the model that Ollama makes of it takes text alone".to_owned());
    }
    Ok(modelfile)
}

fn json_of(text: &str, what: &str) -> Result<serde_json::Value> {
    let json = serde_json::from_str(text);
    json.map_err(|error| {
        anyhow::anyhow!(
            "the {what} are not well-formed JSON: line {}, column {}",
            error.line(),
            error.column()
        )
    })
}
