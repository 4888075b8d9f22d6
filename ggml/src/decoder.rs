//! Batches of several sequences, and the logits of chosen tokens. Sequences go on from one batch to the next.

use std::marker::PhantomData;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use crate::context::evaluate_error;
use crate::fault::{AtWork, Work};
use crate::threadpool::ThreadPool;
use crate::{Error, Model, Token, log};

/// How much a decoder holds.
#[derive(Clone, Copy, Debug)]
pub struct DecoderOptions {
    /// Tokens of all sequences together, and of one batch.
    pub tokens: usize,
    /// Sequences; more than one share the tokens that they have in common.
    pub sequences: usize,
    /// Tokens of a batch whose logits are asked for, at most. Memory for them is `outputs * n_vocab` floats.
    pub outputs: usize,
    /// CPU threads.
    pub threads: usize,
}

/// Tokens that are evaluated together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    tokens: Vec<Token>,
    positions: Vec<usize>,
    sequences: Vec<Vec<usize>>,
    outputs: Vec<bool>,
}

impl Batch {
    /// Adds a token at `position` of every one of `sequences`. `output` asks for its logits.
    pub fn push(&mut self, token: Token, position: usize, sequences: &[usize], output: bool) {
        self.tokens.push(token);
        self.positions.push(position);
        self.sequences.push(sequences.to_vec());
        self.outputs.push(output);
    }

    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether no token was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    fn n_outputs(&self) -> usize {
        self.outputs.iter().filter(|&&output| output).count()
    }
}

/// Evaluates batches with one model. What a sequence held in earlier batches, it still holds, until [`Decoder::clear`].
pub struct Decoder<'model> {
    raw: NonNull<sys::llama_context>,
    options: DecoderOptions,
    n_vocab: usize,
    /// Used by `raw`, so it goes after it.
    threads: ThreadPool,
    model: PhantomData<&'model Model>,
}

impl<'model> Decoder<'model> {
    /// Makes a decoder.
    ///
    /// # Errors
    /// [`Error::Context`] with llama.cpp's reason, such as not enough memory.
    pub fn new(model: &'model Model, options: DecoderOptions) -> Result<Self, Error> {
        // Only a unified cache lets a token belong to several sequences.
        Self::with_context(model, options, options.tokens, options.sequences > 1)
    }

    /// Makes a decoder of `sequences` separate sequences, each up to `length` tokens. A batch holds one token of each. Separate
    /// caches keep attention from looking at the other sequences.
    ///
    /// # Errors
    /// As [`Decoder::new`].
    pub fn apart(
        model: &'model Model,
        sequences: usize,
        length: usize,
        threads: usize,
    ) -> Result<Self, Error> {
        let options = DecoderOptions { tokens: sequences, sequences, outputs: sequences, threads };
        Self::with_context(model, options, sequences.saturating_mul(length), false)
    }

    fn with_context(
        model: &'model Model,
        options: DecoderOptions,
        n_ctx: usize,
        unified: bool,
    ) -> Result<Self, Error> {
        let number = |n: usize, what: &str| {
            u32::try_from(n).map_err(|_| Error::Context { reason: format!("{what} is too large") })
        };
        let n_tokens = number(options.tokens, "the number of tokens")?;
        let threads = ThreadPool::new(options.threads)?;
        // SAFETY: no arguments.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = number(n_ctx, "the number of tokens")?;
        params.n_batch = n_tokens;
        params.n_ubatch = n_tokens;
        params.n_seq_max = number(options.sequences, "the number of sequences")?;
        params.kv_unified = unified;
        // One for each sequence at least, which llama.cpp checks (`llama-context.cpp: output_reserve`).
        let n_outputs = options.outputs.max(options.sequences);
        params.n_outputs_max = number(n_outputs, "the number of outputs")?;
        params.n_threads = threads.n_threads();
        params.n_threads_batch = threads.n_threads();
        params.pooling_type = sys::LLAMA_POOLING_TYPE_NONE;
        params.no_perf = true;
        log::clear();
        let at_work = AtWork::new(Work::Preparing);
        // SAFETY: the model outlives the context by the lifetime `'model`. A failure is a null pointer, checked below.
        let raw = unsafe { sys::llama_init_from_model(model.as_ptr(), params) };
        drop(at_work);
        let raw = NonNull::new(raw).ok_or_else(|| Error::Context {
            reason: log::last_error().unwrap_or_else(|| "no reason given".to_owned()),
        })?;
        // SAFETY: both are alive; the pool is freed after the context.
        unsafe {
            sys::llama_attach_threadpool(raw.as_ptr(), threads.as_ptr(), std::ptr::null_mut());
        }
        Ok(Self { raw, options, n_vocab: model.n_vocab(), threads, model: PhantomData })
    }

    /// Forgets all sequences.
    pub fn clear(&mut self) {
        // SAFETY: the context is alive. A model without a memory (an encoder) returns null.
        let memory = unsafe { sys::llama_get_memory(self.raw.as_ptr()) };
        if !memory.is_null() {
            // SAFETY: belongs to the living context.
            unsafe { sys::llama_memory_clear(memory, true) };
        }
    }

    /// Forgets one sequence.
    ///
    /// # Panics
    /// If the decoder does not hold that sequence.
    pub fn forget(&mut self, sequence: usize) {
        assert!(sequence < self.options.sequences, "a sequence that is not held");
        // SAFETY: the context is alive. A model without a memory (an encoder) returns null.
        let memory = unsafe { sys::llama_get_memory(self.raw.as_ptr()) };
        if !memory.is_null() {
            let sequence = i32::try_from(sequence).unwrap_or(i32::MAX);
            // SAFETY: belongs to the living context, which holds the sequence as just checked; a whole sequence can
            // always be removed.
            unsafe { sys::llama_memory_seq_rm(memory, sequence, -1, -1) };
        }
    }

    /// Evaluates a batch. Returns the logits of the tokens that were marked as outputs, in their order,
    /// `[n_outputs, n_vocab]`.
    ///
    /// # Errors
    /// [`Error::Evaluate`] if llama.cpp fails or the model gives no logits.
    ///
    /// # Panics
    /// If the batch has no token, or more tokens, outputs or sequences than the decoder holds.
    pub fn decode(&mut self, batch: &Batch) -> Result<&[f32], Error> {
        self.evaluate(batch)?;
        self.logits(batch.n_outputs())
    }

    /// As [`Decoder::decode`], and lets the threads sleep until the next batch. Otherwise they look for work for a while,
    /// which takes time from whatever is done with the logits.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    ///
    /// # Panics
    /// As [`Decoder::decode`].
    pub fn decode_and_rest(&mut self, batch: &Batch) -> Result<&[f32], Error> {
        let result = self.evaluate(batch);
        self.rest();
        result?;
        self.logits(batch.n_outputs())
    }

    /// Lets the threads sleep until the next batch.
    pub fn rest(&self) {
        self.threads.pause();
    }

    fn evaluate(&mut self, batch: &Batch) -> Result<(), Error> {
        let n_outputs = batch.n_outputs();
        assert!(
            !batch.is_empty() && batch.len() <= self.options.tokens && n_outputs <= self.options.outputs,
            "a batch of {} tokens and {n_outputs} outputs for {:?}",
            batch.len(),
            self.options
        );
        let n_sequences = self.options.sequences;
        assert!(
            batch.sequences.iter().all(|ids| !ids.is_empty() && ids.iter().all(|&id| id < n_sequences)),
            "a token of a sequence that the decoder does not hold"
        );
        match self.run(batch) {
            0 => Ok(()),
            status => Err(evaluate_error(status)),
        }
    }

    /// The logits of the last evaluation, which had `n_outputs` outputs.
    fn logits(&mut self, n_outputs: usize) -> Result<&[f32], Error> {
        if n_outputs == 0 {
            return Ok(&[]);
        }
        // SAFETY: the context is alive; the call waits for the evaluation to end.
        let logits = unsafe { sys::llama_get_logits(self.raw.as_ptr()) };
        if logits.is_null() {
            return Err(Error::Evaluate { status: 0, reason: "the model gives no logits".to_owned() });
        }
        // SAFETY: the buffer holds a row of `n_vocab` floats for each token that was marked as an output, in their order. It is
        // next written by an evaluation, which borrows the decoder mutably.
        Ok(unsafe { std::slice::from_raw_parts(logits, n_outputs * self.n_vocab) })
    }

    /// Calls `llama_decode`, whose status it returns.
    fn run(&mut self, batch: &Batch) -> i32 {
        // Each number is below a count already checked to fit 32 bits.
        let int = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let mut tokens = batch.tokens.clone();
        let mut positions: Vec<sys::llama_pos> = batch.positions.iter().map(|&at| int(at)).collect();
        let mut n_seq_id: Vec<i32> = batch.sequences.iter().map(|ids| int(ids.len())).collect();
        let mut ids: Vec<Vec<sys::llama_seq_id>> =
            batch.sequences.iter().map(|ids| ids.iter().map(|&id| int(id)).collect()).collect();
        let mut seq_id: Vec<_> = ids.iter_mut().map(Vec::as_mut_ptr).collect();
        let mut outputs: Vec<i8> = batch.outputs.iter().map(|&output| output.into()).collect();
        let raw_batch = sys::llama_batch {
            n_tokens: int(tokens.len()),
            token: tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: positions.as_mut_ptr(),
            n_seq_id: n_seq_id.as_mut_ptr(),
            seq_id: seq_id.as_mut_ptr(),
            logits: outputs.as_mut_ptr(),
        };
        log::clear();
        let _at_work = AtWork::new(Work::Evaluating);
        // SAFETY: every array of the batch has `n_tokens` entries, each list of sequences as many as `n_seq_id` says;
        // all outlive the call, which copies them.
        unsafe { sys::llama_decode(self.raw.as_ptr(), raw_batch) }
    }
}

impl Drop for Decoder<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `llama_init_from_model`, freed once.
        unsafe { sys::llama_free(self.raw.as_ptr()) };
    }
}
