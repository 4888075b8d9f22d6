//! A loaded model and its tokenizer.

use std::ffi::CString;
use std::path::Path;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use crate::error::c_path;
use crate::fault::{AtWork, Work};
use crate::rpc::Servers;
use crate::{Backend, Error, log};

/// A token id of a model's vocabulary.
pub type Token = i32;

/// How a model is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelOptions {
    /// Blocks whose weights go to a GPU, as `--n-gpu-layers` of llama.cpp: `None` is llama.cpp's own default.
    pub gpu_layers: Option<i32>,
    /// Load the vocabulary only.
    pub vocab_only: bool,
    /// Read the weights into memory. The file is not needed afterwards.
    pub no_mmap: bool,
    /// Keep the rows of weights as they are, as `--no-repack` of llama.cpp.
    pub no_repack: bool,
    /// RPC servers, used like GPUs, before the devices of this machine.
    pub rpc: Option<Servers>,
    /// Counts of blocks in place of the file's.
    pub counts: Option<BlockCounts>,
}

impl ModelOptions {
    /// Takes ownership of what `load` returns. It is called with the parameters as llama.cpp takes them, and the lists that they
    /// point to are alive during the call. A failure is a null pointer.
    pub(crate) fn load_with(
        self,
        load: impl FnOnce(sys::llama_model_params) -> *mut sys::llama_model,
    ) -> Result<Model, Error> {
        // SAFETY: no arguments.
        let mut params = unsafe { sys::llama_model_default_params() };
        if let Some(layers) = self.gpu_layers {
            params.n_gpu_layers = layers;
        }
        params.vocab_only = self.vocab_only;
        if self.no_mmap {
            params.load_mode = sys::LLAMA_LOAD_MODE_NONE;
        }
        params.use_extra_bufts &= !self.no_repack;
        // A list that ends with a null pointer.
        let mut devices = self.rpc.map(Servers::with_local);
        if let Some(devices) = &mut devices {
            params.devices = devices.as_mut_ptr();
        }
        // A list that ends with an empty key.
        let overrides = self.counts.map(BlockCounts::overrides);
        if let Some(overrides) = &overrides {
            params.kv_overrides = overrides.as_ptr();
        }
        log::clear();
        let _at_work = AtWork::new(Work::Loading);
        NonNull::new(load(params)).map(|raw| Model { raw, gpu_layers: self.gpu_layers }).ok_or_else(|| {
            Error::Load { reason: log::last_error().unwrap_or_else(|| "no reason given".to_owned()) }
        })
    }
}

/// How many blocks a model has, whatever its file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCounts {
    /// `general.architecture`, which the keys begin with.
    pub architecture: &'static str,
    /// All blocks.
    pub n_blocks: usize,
    /// Those of them, the last, that predict tokens further on.
    pub n_prediction_blocks: usize,
}

impl BlockCounts {
    /// As llama.cpp takes them: an entry for each key, and an empty one.
    fn overrides(self) -> [sys::llama_model_kv_override; 3] {
        let entry = |key: &str, value: usize| {
            let mut entry = sys::llama_model_kv_override {
                tag: sys::LLAMA_KV_OVERRIDE_TYPE_INT,
                key: [0; 128],
                __bindgen_anon_1: sys::llama_model_kv_override__bindgen_ty_1 {
                    val_i64: i64::try_from(value).unwrap_or(i64::MAX),
                },
            };
            // The last byte stays 0.
            for (to, from) in entry.key[..127].iter_mut().zip(key.bytes()) {
                *to = from.cast_signed();
            }
            entry
        };
        let name = self.architecture;
        [
            entry(&format!("{name}.block_count"), self.n_blocks),
            entry(&format!("{name}.nextn_predict_layers"), self.n_prediction_blocks),
            entry("", 0),
        ]
    }
}

/// A model loaded by llama.cpp. Weights stay in the mapped file where its kernels can use them as they are.
pub struct Model {
    raw: NonNull<sys::llama_model>,
    gpu_layers: Option<i32>,
}

// SAFETY: llama.cpp documents no thread affinity of a model, and this wrapper gives only shared, read-only access
// to it.
unsafe impl Send for Model {}
// SAFETY: as above; every method that takes `&self` calls a C function that takes a pointer to const, or the
// tokenizer, which llama.cpp's own server calls from several threads.
unsafe impl Sync for Model {}

impl Model {
    /// Loads the model at `path`; of a split model, its first part.
    ///
    /// # Errors
    /// [`Error::Kernels`], [`Error::Path`], or [`Error::Load`] with llama.cpp's reason.
    pub fn load(backend: &Backend, path: &Path, options: ModelOptions) -> Result<Self, Error> {
        backend.kernels()?;
        let path = c_path(path)?;
        options.load_with(|params| {
            // SAFETY: the path is NUL-terminated and outlives the call.
            unsafe { sys::llama_model_load_from_file(path.as_ptr(), params) }
        })
    }

    /// Loads a model of one file, which `source` makes during the read. Its weights are in memory once.
    ///
    /// # Errors
    /// [`Error::Kernels`], or [`Error::Load`] with the reason of the source, or llama.cpp's; that the system cannot
    /// ([`crate::source::CAN_STREAM`]).
    pub fn load_source(
        backend: &Backend,
        source: &dyn crate::source::Source,
        options: ModelOptions,
    ) -> Result<Self, Error> {
        backend.kernels()?;
        let mut stream = crate::source::Stream::open(source)?;
        let options = ModelOptions { no_mmap: true, ..options };
        let model = options.load_with(|params| {
            // SAFETY: the stream is open during the call.
            unsafe { sys::llama_model_load_from_file_ptr(stream.as_ptr().cast(), params) }
        });
        match stream.error() {
            Some(error) => Err(Error::Load { reason: error.to_string() }),
            None => model,
        }
    }

    /// Loads the model whose files are at `paths`, under any names. They are one, or all parts of a split model in order.
    /// `counts` take the place of the files' own.
    ///
    /// # Errors
    /// [`Error::Kernels`], [`Error::Path`], or [`Error::Load`] with llama.cpp's reason.
    pub fn load_parts(
        backend: &Backend,
        paths: &[&Path],
        counts: Option<BlockCounts>,
    ) -> Result<Self, Error> {
        backend.kernels()?;
        let paths = paths.iter().map(|path| c_path(path));
        let paths: Vec<CString> = paths.collect::<Result<_, _>>()?;
        let mut pointers: Vec<_> = paths.iter().map(|path| path.as_ptr()).collect();
        ModelOptions { counts, ..ModelOptions::default() }.load_with(|params| {
            // SAFETY: pointer and length describe `pointers`; each points to a NUL-terminated path. All outlive the call, which
            // copies them.
            unsafe { sys::llama_model_load_from_splits(pointers.as_mut_ptr(), pointers.len(), params) }
        })
    }

    /// How more is loaded where this model is: as many of its blocks go to a GPU.
    #[must_use]
    pub fn options(&self) -> ModelOptions {
        ModelOptions { gpu_layers: self.gpu_layers, ..ModelOptions::default() }
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::llama_model {
        self.raw.as_ptr()
    }

    pub(crate) fn vocab(&self) -> *const sys::llama_vocab {
        // SAFETY: the model is alive; the vocabulary lives as long as the model.
        unsafe { sys::llama_model_get_vocab(self.as_ptr()) }
    }

    /// Width of the hidden state, in elements.
    #[must_use]
    pub fn n_embd(&self) -> usize {
        // SAFETY: the model is alive.
        count(unsafe { sys::llama_model_n_embd(self.as_ptr()) })
    }

    /// Width of what block 0 takes in place of tokens, in elements. It is larger than [`Model::n_embd`] where images add more.
    #[must_use]
    pub fn n_embd_inp(&self) -> usize {
        // SAFETY: the model is alive.
        count(unsafe { sys::llama_model_n_embd_inp(self.as_ptr()) })
    }

    /// Context length that the model was trained for, in tokens.
    #[must_use]
    pub fn n_ctx_train(&self) -> usize {
        // SAFETY: the model is alive.
        count(unsafe { sys::llama_model_n_ctx_train(self.as_ptr()) })
    }

    /// Number of blocks that an evaluation runs, without trailing prediction blocks.
    #[must_use]
    pub fn n_layer(&self) -> usize {
        // SAFETY: the model is alive.
        count(unsafe { sys::llama_model_n_layer(self.as_ptr()) })
    }

    /// Number of entries of the vocabulary.
    #[must_use]
    pub fn n_vocab(&self) -> usize {
        // SAFETY: the vocabulary belongs to this living model.
        count(unsafe { sys::llama_vocab_n_tokens(self.vocab()) })
    }

    /// Whether the file carries a tokenizer.
    #[must_use]
    pub fn has_tokenizer(&self) -> bool {
        // SAFETY: the vocabulary belongs to this living model.
        (unsafe { sys::llama_vocab_type(self.vocab()) }) != sys::LLAMA_VOCAB_TYPE_NONE
    }

    /// The token that begins every text, if the model uses one (`tokenizer.ggml.add_bos_token`).
    #[must_use]
    pub fn bos(&self) -> Option<Token> {
        // SAFETY: the vocabulary belongs to this living model.
        let adds_bos = unsafe { sys::llama_vocab_get_add_bos(self.vocab()) };
        // SAFETY: as above.
        let bos = unsafe { sys::llama_vocab_bos(self.vocab()) };
        (adds_bos && bos >= 0).then_some(bos)
    }

    /// The tokens of `text`, the model's start and end tokens included. So do llama-perplexity and llama-imatrix. Special
    /// tokens written out in the text are plain text.
    ///
    /// # Errors
    /// [`Error::Tokenize`] if the model has no tokenizer or the text is 2 GiB or longer.
    pub fn tokenize(&self, text: &str) -> Result<Vec<Token>, Error> {
        if !self.has_tokenizer() {
            return Err(Error::Tokenize { reason: "the model has no tokenizer".to_owned() });
        }
        let n_bytes = i32::try_from(text.len()).map_err(|_| Error::Tokenize {
            reason: format!("the text has {} bytes, at most 2147483647 are possible", text.len()),
        })?;
        // At most one token a byte, and the special tokens around them; most texts need a third of that.
        let mut tokens: Vec<Token> = vec![0; text.len() / 2 + 16];
        loop {
            let capacity = i32::try_from(tokens.len()).unwrap_or(i32::MAX);
            // SAFETY: pointer and length describe `text`, then `tokens`; both outlive the call, and the function
            // writes at most `capacity` tokens.
            let n = unsafe {
                sys::llama_tokenize(
                    self.vocab(),
                    text.as_ptr().cast(),
                    n_bytes,
                    tokens.as_mut_ptr(),
                    capacity,
                    true,
                    false,
                )
            };
            if let Ok(n) = usize::try_from(n) {
                tokens.truncate(n);
                return Ok(tokens);
            }
            // A negative count is the number of tokens that were needed; the most negative one means overflow.
            let needed = n.checked_neg().and_then(|n| usize::try_from(n).ok());
            match needed {
                Some(needed) if needed > tokens.len() => tokens.resize(needed, 0),
                _ => {
                    return Err(Error::Tokenize { reason: "the text has too many tokens".to_owned() });
                }
            }
        }
    }

    /// The text of one token, with special tokens written out. Bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn token_text(&self, token: Token) -> String {
        let mut buffer = vec![0u8; 64];
        loop {
            let capacity = i32::try_from(buffer.len()).unwrap_or(i32::MAX);
            // SAFETY: the vocabulary is alive; the function writes at most `capacity` bytes into `buffer`.
            let n = unsafe {
                sys::llama_token_to_piece(self.vocab(), token, buffer.as_mut_ptr().cast(), capacity, 0, true)
            };
            match usize::try_from(n) {
                Ok(n) => {
                    buffer.truncate(n);
                    return String::from_utf8_lossy(&buffer).into_owned();
                }
                Err(_) => buffer.resize(count(n.saturating_neg()), 0),
            }
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: made by a loading function, freed once; contexts borrow the model, so none is left.
        unsafe { sys::llama_model_free(self.as_ptr()) };
    }
}

/// A C count that is never negative.
fn count(n: i32) -> usize {
    usize::try_from(n).unwrap_or(0)
}
