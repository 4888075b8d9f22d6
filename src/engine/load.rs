//! Load: a model's file brought to llama.cpp, and text cut into its windows.
//!
//! Every evaluation loads its model here.

use crate::engine::conversion::Conversion;
use crate::engine::hidden_state::Token;
use crate::engine::logits::LlamaLogits;
use crate::engine::memory_file::MemoryFile;
use crate::engine::own_text::Order;
use crate::engine::recoded::Recoded;
use crate::engine::scored::MIN_WINDOW;
use crate::engine::settings::Calibration;
use crate::engine::text::{CalibrationSet, Cut, Texts};
use crate::engine::{llama, logits, openings, own_text};
use crate::error::Hint;
use crate::files::cache::{Files, OWN_TEXT};
use crate::gguf::Quoted;
use crate::model::input::Input;
use crate::model::{Model, hashes, warning};
use crate::watch::{Unit, Watch};
use anyhow::{Context, Error, Result, ensure};
use ggml::rpc::Servers;
use ggml::{Backend, ModelOptions};
use std::path::Path;

/// Looks at the files as a model whose predictions mean something.
pub fn parse_causal(input: &Input) -> Result<Model<'_>> {
    let at_path = || input.path().display().to_string();
    let model = Model::new(input.parse()?).with_context(at_path)?;
    logits::check_causal(&model).with_context(at_path)?;
    Ok(model)
}

/// A model that is loaded, and the input that it came from.
pub struct LoadedModel<'i> {
    /// The model.
    pub engine: ggml::Model,
    /// Its input.
    pub input: &'i Input,
}

impl<'i> LoadedModel<'i> {
    /// Loads the model of `input`, or its vocabulary alone, as `options` say.
    ///
    /// # Errors
    /// llama.cpp's; a model without a tokenizer, or one that does not predict the next token.
    pub fn load(input: &'i Input, options: &Calibration, weights: Weights) -> Result<Self> {
        let how = ModelOptions { vocab_only: weights == Weights::None, ..model_options(options)? };
        let engine = load_named(input.path(), &|| load(input, how))?;
        Ok(Self { engine, input })
    }

    /// What errors call it: its path.
    #[must_use]
    pub fn name(&self) -> String {
        self.input.path().display().to_string()
    }

    /// Its logits of windows of at most so many tokens.
    ///
    /// # Errors
    /// llama.cpp's, if it cannot set up the evaluation.
    pub fn logits(&self, window: usize, threads: usize) -> Result<LlamaLogits<'_>> {
        LlamaLogits::new(&self.engine, self.input.path(), window, threads)
    }

    /// Cuts the text into windows that the model can take. A text that the model writes itself is written now, or taken from
    /// the cache.
    ///
    /// # Errors
    /// A window longer than the model's context; a text that gives less than one window.
    pub fn cut(&self, texts: &Texts, options: &Calibration, watch: &dyn Watch) -> Result<CalibrationSet> {
        let mut window = options.window;
        let n_ctx = context_length(self.input, &self.engine)?;
        if window > n_ctx && n_ctx > 0 {
            ensure!(
                options.window_is_default,
                "a window of {window} tokens is longer than the model's context of {n_ctx}"
            );
            window = n_ctx;
        }
        let own = match texts.source().seed() {
            Some(seed) => {
                let n_windows = texts.n_own_windows(options.tokens / window.max(1), window);
                self.own_text(Order { window, n_windows, seed }, options, watch)?
            }
            None => Vec::new(),
        };
        let cut = Cut { window, tokens: options.tokens, bos: self.engine.bos() };
        CalibrationSet::new(texts, own, cut, &|text| Ok(self.engine.tokenize(text)?))
    }

    /// The model's own text, from the cache or written now.
    ///
    /// It rests on the model, the order, the openings, and the version of this program and of llama.cpp.
    fn own_text(&self, order: Order, options: &Calibration, watch: &dyn Watch) -> Result<Vec<Token>> {
        own_text::first_token(&self.engine)?;
        let n_tokens = order.n_windows.saturating_mul(order.window);
        let files = options.cache.then(|| Files::of(OWN_TEXT)).flatten();
        let mut key = blake3::Hasher::new();
        let model = hashes::of(self.input, options.cache, watch);
        key.update(model.as_bytes());
        key.update(openings::fingerprint().as_bytes());
        for number in [order.seed, order.window as u64, order.n_windows as u64] {
            key.update(&number.to_le_bytes());
        }
        key.update(env!("CARGO_PKG_VERSION").as_bytes());
        key.update(ggml::backend::llama_cpp_version().as_bytes());
        let key = key.finalize();
        let found = files.as_ref().map_or(Ok(None), |files| files.get(&key));
        if let Some(bytes) = found.unwrap_or_else(|error| {
            watch.note(&format!("a text in the cache is damaged and is written again: {error:#}"));
            None
        }) {
            let (tokens, rest) = bytes.as_chunks::<4>();
            let tokens: Vec<Token> = tokens.iter().copied().map(Token::from_le_bytes).collect();
            let known = |&token: &Token| usize::try_from(token).is_ok_and(|i| i < self.engine.n_vocab());
            if tokens.len() == n_tokens && rest.is_empty() && tokens.iter().all(known) {
                return Ok(tokens);
            }
        }
        let bar = watch.begin("writing text".into(), Unit::Tokens, n_tokens as u64);
        let tokens = own_text::write(&self.engine, order, options.threads, &mut |n| bar.advance(n as u64));
        drop(bar);
        let tokens = tokens?;
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        if let Some(Err(error)) = files.map(|files| files.put(&key, &bytes)) {
            watch.note(&format!("the model's own text is not kept for the next time: {error:#}"));
        }
        Ok(tokens)
    }
}

/// The context that a model was trained for, in tokens. 0 where it is not known. A vocabulary alone does not say it.
fn context_length(input: &Input, engine: &ggml::Model) -> Result<usize> {
    match engine.n_ctx_train() {
        0 => Ok(Model::new(input.parse()?)?.count("context_length")?.unwrap_or(0)),
        n_ctx => Ok(n_ctx),
    }
}

/// Loads a model, which errors call `name`.
pub fn load_named(name: &Path, load: &dyn Fn() -> Result<ggml::Model>) -> Result<ggml::Model> {
    let at_path = || name.display().to_string();
    let backend = Backend::init();
    backend.on_abort(&format!("gguf-shorten: {}: ", at_path()));
    let engine = load().with_context(at_path)?;
    ensure!(
        engine.has_tokenizer(),
        "{}: the model has no tokenizer, so it cannot be evaluated on text",
        at_path()
    );
    logits::check_predicts(&engine).with_context(at_path)?;
    Ok(engine)
}

/// Checks that a model takes these windows, and that tokens are scored.
pub fn check_window(set: &CalibrationSet, engine: &ggml::Model) -> Result<()> {
    // Of a vocabulary alone it is 0; then the windows were cut by the file's.
    let (window, n_ctx) = (set.window, engine.n_ctx_train());
    ensure!(
        window >= MIN_WINDOW,
        "the model's context of {n_ctx} tokens leaves no token to score, expected {MIN_WINDOW} or more"
    );
    ensure!(
        n_ctx == 0 || window <= n_ctx,
        "a window of {window} tokens is longer than the model's context of {n_ctx}"
    );
    Ok(())
}

/// How `options` says that a model is loaded. Servers are reached now.
///
/// # Errors
/// A server that cannot be.
pub fn model_options(options: &Calibration) -> Result<ModelOptions> {
    let rpc = match options.rpc.is_empty() {
        true => None,
        false => Some(Servers::reach(Backend::init(), &options.rpc)?),
    };
    Ok(ModelOptions { gpu_layers: options.gpu_layers, rpc, ..ModelOptions::default() })
}

/// What is loaded of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// None: the vocabulary alone.
    None,
    /// All as they are.
    AsTheyAre,
    /// All, perhaps [`Recoded`], which scores do not see.
    ForScores,
}

impl Weights {
    /// Those that scores are taken from.
    pub fn of_scores(options: &Calibration) -> Self {
        match options.conversion {
            Some(Conversion::None) => Self::AsTheyAre,
            _ => Self::ForScores,
        }
    }
}

/// A model in llama.cpp, and a text in its tokens.
pub struct Loaded {
    /// The model.
    pub engine: ggml::Model,
    /// The text.
    pub set: CalibrationSet,
    /// What the weights of its blocks were converted to.
    pub conversion: Conversion,
}

/// Loads the model of `input` and cuts the text into windows.
pub fn load_and_cut(
    input: &Input,
    model: &Model<'_>,
    options: &Calibration,
    watch: &dyn Watch,
    weights: Weights,
) -> Result<Loaded> {
    let path = input.path();
    let texts = Texts::read(options.source.clone())?;
    let at_path = || path.display().to_string();
    let backend = Backend::init();
    backend.on_abort(&format!("gguf-shorten: {}: ", path.display()));
    ggml::log::echo(watch.is_verbose());
    let how = model_options(options)?;
    let unconverted = |engine| (engine, Conversion::None);
    let (engine, conversion) = match weights {
        Weights::None => load(input, ModelOptions { vocab_only: true, ..how }).map(unconverted),
        Weights::AsTheyAre => load(input, how).map(unconverted),
        Weights::ForScores => load_for_scores(model, input.for_llama()?, how),
    }
    .with_context(at_path)?;
    ensure!(
        engine.has_tokenizer(),
        anyhow::anyhow!("{}: the model has no tokenizer, so it cannot be calibrated on text", path.display())
            .context(Hint("--blocks, and --method sequential or reverse, need no calibration".to_owned()))
    );
    warning::of_tokenizer(input, model, watch);
    let loaded = LoadedModel { engine, input };
    let set = loaded.cut(&texts, options, watch).with_context(at_path)?;
    Ok(Loaded { engine: loaded.engine, set, conversion })
}

/// Loads the model of `input` with its block counts ([`llama::counts`]).
///
/// # Errors
/// llama.cpp's reason for not loading it.
pub fn load(input: &Input, options: ModelOptions) -> Result<ggml::Model> {
    let model = Model::new(input.parse()?)?;
    load_as(&model, input.for_llama()?, options)
}

/// Loads the file at `path`, which has the blocks of `model`.
///
/// # Errors
/// llama.cpp's reason for not loading it.
pub fn load_as(model: &Model<'_>, path: &Path, options: ModelOptions) -> Result<ggml::Model> {
    check_types(model)?;
    let options = ModelOptions { counts: llama::counts(model), ..options };
    ggml::Model::load(Backend::init(), path, options).map_err(|error| {
        let is_missing = |block| !model.has_tensors(block);
        match model.prediction_blocks().any(is_missing) {
            true => Error::from(error).context(Hint(
                "metadata counts prediction blocks (MTP) that are not in the file; --drop-mtp alone writes it without them"
                    .to_owned(),
            )),
            false => error.into(),
        }
    })
}

/// Checks that llama.cpp reads the types of all tensors.
///
/// # Errors
/// The first of another program's type.
pub fn check_types(model: &Model<'_>) -> Result<()> {
    let foreign = model.tensors().iter().find(|tensor| !tensor.info.tensor_type().is_read());
    let Some(tensor) = foreign else {
        return Ok(());
    };
    let what = format!(
        "tensor {} is of type {} of ik_llama.cpp, which llama.cpp does not evaluate",
        Quoted(tensor.info.name()),
        tensor.info.tensor_type()
    );
    Err(anyhow::anyhow!(what).context(Hint(
        "--blocks and --layers copy it as it is; which blocks go can be measured on another quantization of the model".to_owned(),
    )))
}

/// Loads `model`, which lies at `path`, for scores.
///
/// It is [`Recoded`] where that gains time and the CPU evaluates all of it, else as it is, with `options`. Returns which.
///
/// # Errors
/// llama.cpp's reason for not loading it.
pub fn load_for_scores(
    model: &Model<'_>,
    path: &Path,
    options: ModelOptions,
) -> Result<(ggml::Model, Conversion)> {
    let backend = Backend::init();
    let has_gpu = options.rpc.is_some() || backend.supports_gpu_offload();
    if options.gpu_layers == Some(0) || !has_gpu {
        // A failure to recode, such as no room, does not prevent loading.
        if let Ok(Some(engine)) = load_recoded(model) {
            return Ok((engine, Conversion::Q8_0));
        }
    }
    Ok((load_as(model, path, options)?, Conversion::None))
}

fn load_recoded(model: &Model<'_>) -> Result<Option<ggml::Model>> {
    let Some(recoded) = Recoded::of(model)? else {
        return Ok(None);
    };
    let file = MemoryFile::write(&recoded.layout, &mut |i, out| recoded.write(model, i, out))?;
    let options = ModelOptions { counts: llama::counts(model), ..ModelOptions::default() };
    Ok(Some(file.load(options)?))
}
