//! Evaluation of one window of tokens, tapped or for its logits.

use std::any::Any;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use crate::fault::{AtWork, Work};
use crate::threadpool::ThreadPool;
use crate::{Error, Model, Node, Token, log};

/// Whether an evaluation goes on after a node was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Evaluate the rest of the graph.
    Continue,
    /// Nothing later is needed: stop the evaluation.
    Stop,
}

/// Looks at the nodes of a graph while it is evaluated.
pub trait Tap {
    /// Whether `node` is to be read. Asked once for every node in order of evaluation, before it is computed.
    fn wants(&mut self, node: Node<'_>) -> bool;

    /// Reads a node that was asked for: it and its living operands are computed.
    fn read(&mut self, node: Node<'_>) -> Flow;
}

/// How a context evaluates.
#[derive(Clone, Copy, Debug)]
pub struct ContextOptions {
    /// The longest window, in tokens. A whole window is one batch.
    pub window: usize,
    /// CPU threads.
    pub threads: usize,
}

/// What a window is given as.
#[derive(Clone, Copy, Debug)]
pub enum WindowInput<'a> {
    /// Tokens.
    Tokens(&'a [Token]),
    /// Input of block 0, `[n_tokens, n_embd]`, in place of embedded tokens. Rows are as wide as the model's input
    /// ([`Model::n_embd_inp`]).
    HiddenStates(&'a [f32]),
}

/// What the C callbacks see. It has one fixed place in memory as long as its context lives.
struct EvalState {
    /// The tap of the evaluation that is running.
    tap: Option<NonNull<dyn Tap>>,
    /// The tap has seen all it needs.
    stopped: bool,
    /// A panic caught in a callback, resumed outside of C.
    panic: Option<Box<dyn Any + Send>>,
}

/// Evaluates windows of one model, each on its own from position 0.
pub struct Context<'model> {
    raw: NonNull<sys::llama_context>,
    state: NonNull<EvalState>,
    window: usize,
    n_vocab: usize,
    n_embd: usize,
    /// Used by `raw`, so it goes after it.
    threads: Arc<ThreadPool>,
    /// The model, if nobody else keeps it alive.
    _shared: Option<Arc<Model>>,
    model: PhantomData<&'model Model>,
}

// SAFETY: the C object is used by whoever borrows the context mutably, in whatever thread. What it shares with others, weights
// and threads, is only read, or locked while a graph is evaluated. The tap is there during an evaluation alone.
unsafe impl Send for Context<'_> {}

impl<'model> Context<'model> {
    /// Makes a context for windows of at most `options.window` tokens.
    ///
    /// # Errors
    /// [`Error::Context`] with llama.cpp's reason, such as not enough memory.
    pub fn new(model: &'model Model, options: ContextOptions) -> Result<Self, Error> {
        let threads = Arc::new(ThreadPool::new(options.threads)?);
        let mut context = Self::with_threads(model, options.window, &threads)?;
        context.allocate_outputs()?;
        Ok(context)
    }

    /// As [`Context::new`], with threads that several contexts share. Threads look for work for a while between evaluations, so
    /// each context with threads of its own would keep the others waiting.
    ///
    /// # Errors
    /// As [`Context::new`].
    pub fn with_threads(
        model: &'model Model,
        window: usize,
        threads: &Arc<ThreadPool>,
    ) -> Result<Self, Error> {
        Self::with_outputs(model, window, window, threads)
    }

    /// As [`Context::with_threads`], with room for the logits of at most `n_outputs` tokens. Room for logits is a large part of
    /// a context.
    ///
    /// # Errors
    /// As [`Context::new`].
    pub fn with_outputs(
        model: &'model Model,
        window: usize,
        n_outputs: usize,
        threads: &Arc<ThreadPool>,
    ) -> Result<Self, Error> {
        let too_large = |_| Error::Context { reason: "the window is too large".to_owned() };
        let n_tokens = u32::try_from(window).map_err(too_large)?;
        let n_outputs = u32::try_from(n_outputs.max(1)).map_err(too_large)?;
        let state = NonNull::from(Box::leak(Box::new(EvalState { tap: None, stopped: false, panic: None })));
        // SAFETY: no arguments.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = n_tokens;
        // One window is one batch: every block is evaluated once for it. An evaluation that stops early leaves nothing half
        // done.
        params.n_batch = n_tokens;
        params.n_ubatch = n_tokens;
        params.n_seq_max = 1;
        params.n_outputs_max = n_outputs;
        params.n_threads = threads.n_threads();
        params.n_threads_batch = threads.n_threads();
        params.pooling_type = sys::LLAMA_POOLING_TYPE_NONE;
        params.no_perf = true;
        params.cb_eval = Some(on_node);
        params.cb_eval_user_data = state.as_ptr().cast();
        params.abort_callback = Some(on_abort_query);
        params.abort_callback_data = state.as_ptr().cast();
        log::clear();
        let at_work = AtWork::new(Work::Preparing);
        // SAFETY: the model outlives the context by the lifetime `'model`; the callbacks' state is freed after the
        // context. A failure is a null pointer, checked below.
        let raw = unsafe { sys::llama_init_from_model(model.as_ptr(), params) };
        drop(at_work);
        let Some(raw) = NonNull::new(raw) else {
            // SAFETY: leaked above, and no context was made that could still use it.
            drop(unsafe { Box::from_raw(state.as_ptr()) });
            return Err(Error::Context {
                reason: log::last_error().unwrap_or_else(|| "no reason given".to_owned()),
            });
        };
        // SAFETY: both are alive; the pool is freed after the context.
        unsafe {
            sys::llama_attach_threadpool(raw.as_ptr(), threads.as_ptr(), std::ptr::null_mut());
        }
        let context = Self {
            raw,
            state,
            window,
            n_vocab: model.n_vocab(),
            n_embd: model.n_embd_inp(),
            threads: Arc::clone(threads),
            _shared: None,
            model: PhantomData,
        };
        if n_outputs < n_tokens && !context.has_memory() {
            // Every token is an output; see `logits_of`.
            drop(context);
            return Self::with_outputs(model, window, window, threads);
        }
        Ok(context)
    }

    /// Whether the model remembers tokens from one batch to the next. One whose attention looks ahead does not.
    fn has_memory(&self) -> bool {
        // SAFETY: the context is alive. Without a memory the pointer is null.
        let memory = unsafe { sys::llama_get_memory(self.raw.as_ptr()) };
        !memory.is_null()
    }

    /// As [`Context::with_outputs`], for a model that the context keeps alive.
    ///
    /// # Errors
    /// As [`Context::new`].
    pub fn of_shared(
        model: &Arc<Model>,
        window: usize,
        n_outputs: usize,
        threads: &Arc<ThreadPool>,
    ) -> Result<Context<'static>, Error> {
        // SAFETY: the reference is used while the context lives, which holds the model by `_shared`, as the C object
        // has one fixed place.
        let borrowed = unsafe { NonNull::from(Arc::as_ref(model)).as_ref() };
        let mut context = Context::<'static>::with_outputs(borrowed, window, n_outputs, threads)?;
        context._shared = Some(Arc::clone(model));
        Ok(context)
    }

    /// Has llama.cpp allocate and clear its buffer for outputs now. Else the first evaluation of a whole window does so, and
    /// the buffer is large (`n_tokens * n_vocab` floats). That evaluation stops at once.
    fn allocate_outputs(&mut self) -> Result<(), Error> {
        struct Nothing;
        impl Tap for Nothing {
            fn wants(&mut self, _node: Node<'_>) -> bool {
                false
            }
            fn read(&mut self, _node: Node<'_>) -> Flow {
                Flow::Stop
            }
        }
        let tokens = vec![0; self.window];
        self.run(WindowInput::Tokens(&tokens), &mut Nothing, true)
    }

    /// Evaluates one window as a sequence. Its graph is shown to `tap`. All rows are requested as outputs, so that the last
    /// block computes them all; a tap that stops after it saves the output head.
    ///
    /// # Errors
    /// [`Error::Evaluate`] if llama.cpp fails.
    ///
    /// # Panics
    /// With the tap's panic, if it had one; if the batch is empty or longer than the context's window.
    pub fn evaluate(&mut self, batch: WindowInput<'_>, tap: &mut dyn Tap) -> Result<(), Error> {
        self.run(batch, tap, false)
    }

    /// As [`Context::evaluate`]; `stopped` from the start computes nothing.
    fn run(&mut self, batch: WindowInput<'_>, tap: &mut dyn Tap, stopped: bool) -> Result<(), Error> {
        // SAFETY: only the lifetime changes. The pointer is used by callbacks during `decode` alone and taken away
        // below before `tap` goes out of scope.
        let tap: NonNull<dyn Tap + 'static> =
            unsafe { std::mem::transmute::<NonNull<dyn Tap + '_>, _>(NonNull::from(tap)) };
        self.with_state(|state| {
            state.tap = Some(tap);
            state.stopped = stopped;
        });
        let status = self.decode(batch, None);
        let (panic, stopped) = self.with_state(|state| {
            state.tap = None;
            (state.panic.take(), std::mem::take(&mut state.stopped))
        });
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        match status {
            0 => Ok(()),
            // The evaluation was stopped, as the tap asked.
            2 if stopped => Ok(()),
            status => Err(evaluate_error(status)),
        }
    }

    /// Evaluates one window as a sequence of its own. Returns the logits of every token, `[n_tokens, n_vocab]`.
    ///
    /// # Errors
    /// [`Error::Evaluate`] if llama.cpp fails or the model has no output head.
    ///
    /// # Panics
    /// If `tokens` is empty or longer than the context's window.
    pub fn logits(&mut self, tokens: &[Token]) -> Result<&[f32], Error> {
        self.logits_of(WindowInput::Tokens(tokens), 0..tokens.len())
    }

    /// Evaluates one window as a sequence of its own. Returns the logits of the tokens at `rows`, `[rows.len(), n_vocab]`.
    ///
    /// # Errors
    /// [`Error::Evaluate`] if llama.cpp fails or the model has no output head.
    ///
    /// # Panics
    /// If the batch is empty or longer than the context's window, or `rows` is empty or not inside of it.
    pub fn logits_of(&mut self, batch: WindowInput<'_>, rows: Range<usize>) -> Result<&[f32], Error> {
        assert!(!rows.is_empty(), "the logits of no token");
        let n_rows = rows.len();
        // Without a memory every token is an output (`llama-context.cpp: llama_context::encode`).
        let before = if self.has_memory() { 0 } else { rows.start };
        let status = self.decode(batch, Some(rows));
        if status != 0 {
            return Err(evaluate_error(status));
        }
        // SAFETY: the context is alive; the call waits for the evaluation to end.
        let logits = unsafe { sys::llama_get_logits(self.raw.as_ptr()) };
        if logits.is_null() {
            return Err(Error::Evaluate { status, reason: "the model gives no logits".to_owned() });
        }
        // SAFETY: the buffer holds a row of `n_vocab` floats for each output, and so at least `before + n_rows` of them.
        let logits = unsafe { logits.add(before * self.n_vocab) };
        // SAFETY: as above; it is next written by an evaluation, which borrows the context mutably.
        Ok(unsafe { std::slice::from_raw_parts(logits, n_rows * self.n_vocab) })
    }

    /// Calls `llama_decode` on the window, from an empty memory. Outputs are the tokens at `rows` (`None`: all). Returns its
    /// status.
    fn decode(&mut self, batch: WindowInput<'_>, rows: Option<Range<usize>>) -> i32 {
        let n = match batch {
            WindowInput::Tokens(tokens) => tokens.len(),
            WindowInput::HiddenStates(states) => {
                assert!(
                    states.len().is_multiple_of(self.n_embd),
                    "{} numbers are no hidden states of {}",
                    states.len(),
                    self.n_embd
                );
                states.len() / self.n_embd
            }
        };
        assert!(
            n > 0 && n <= self.window,
            "a window of {n} tokens, but the context holds 1 to {}",
            self.window
        );
        let rows = rows.unwrap_or(0..n);
        assert!(rows.end <= n, "outputs {rows:?} of {n} tokens");
        let n_tokens = i32::try_from(n).unwrap_or(i32::MAX);
        let (mut token, mut embd) = match batch {
            WindowInput::Tokens(tokens) => (tokens.to_vec(), Vec::new()),
            WindowInput::HiddenStates(states) => (Vec::new(), states.to_vec()),
        };
        let mut pos: Vec<sys::llama_pos> = (0..n_tokens).collect();
        let mut n_seq_id = vec![1; n];
        let mut seq: [sys::llama_seq_id; 1] = [0];
        let mut seq_id = vec![seq.as_mut_ptr(); n];
        let mut outputs: Vec<i8> = (0..n).map(|i| i8::from(rows.contains(&i))).collect();
        let batch = sys::llama_batch {
            n_tokens,
            token: pointer(&mut token),
            embd: pointer(&mut embd),
            pos: pos.as_mut_ptr(),
            n_seq_id: n_seq_id.as_mut_ptr(),
            seq_id: seq_id.as_mut_ptr(),
            logits: outputs.as_mut_ptr(),
        };
        log::clear();
        // SAFETY: the context is alive.
        let memory = unsafe { sys::llama_get_memory(self.raw.as_ptr()) };
        if !memory.is_null() {
            // SAFETY: belongs to the living context.
            unsafe { sys::llama_memory_clear(memory, true) };
        }
        let _turn = self.threads.turn();
        let _at_work = AtWork::new(Work::Evaluating);
        // SAFETY: every array of the batch has `n_tokens` entries (`embd` as many rows of what the model takes) and outlives the call, which copies them.
        unsafe { sys::llama_decode(self.raw.as_ptr(), batch) }
    }

    fn with_state<R>(&mut self, f: impl FnOnce(&mut EvalState) -> R) -> R {
        // SAFETY: the state lives as long as the context; callbacks use it only inside `decode`, which does not run
        // now because it borrows the context mutably too.
        f(unsafe { self.state.as_mut() })
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `llama_init_from_model`, freed once.
        unsafe { sys::llama_free(self.raw.as_ptr()) };
        // SAFETY: leaked in `new`; the context that used it is gone.
        drop(unsafe { Box::from_raw(self.state.as_ptr()) });
    }
}

/// Where the values are, or null where there are none.
fn pointer<T>(values: &mut [T]) -> *mut T {
    if values.is_empty() {
        return std::ptr::null_mut();
    }
    values.as_mut_ptr()
}

/// The error of an evaluation: its `status` and llama.cpp's last message.
pub(crate) fn evaluate_error(status: i32) -> Error {
    let reason = match status {
        1 => "no room in the cache".to_owned(),
        _ => log::last_error().unwrap_or_else(|| "no reason given".to_owned()),
    };
    Error::Evaluate { status, reason }
}

/// The evaluation callback: asked for every node, then called with those that are wanted. Returning false to a node
/// that was computed would end only a part of the graph, so the way to stop is [`on_abort_query`].
unsafe extern "C" fn on_node(tensor: *mut sys::ggml_tensor, ask: bool, state: *mut c_void) -> bool {
    // SAFETY: `state` is what `Context::new` passed; nothing else borrows it while C runs the evaluation.
    let state = unsafe { &mut *state.cast::<EvalState>() };
    if state.stopped || state.panic.is_some() {
        return !ask;
    }
    let Some(mut tap) = state.tap else {
        return !ask;
    };
    // SAFETY: ggml passes a living node of the graph that it evaluates.
    let Some(node) = (unsafe { Node::from_raw(tensor) }) else {
        return !ask;
    };
    // SAFETY: the tap outlives the evaluation that calls back, and is used by this callback alone.
    let tap = unsafe { tap.as_mut() };
    let result = catch_unwind(AssertUnwindSafe(|| {
        if ask {
            return (tap.wants(node), Flow::Continue);
        }
        (true, tap.read(node))
    }));
    match result {
        Ok((answer, flow)) => {
            state.stopped = flow == Flow::Stop;
            answer
        }
        Err(panic) => {
            state.panic = Some(panic);
            !ask
        }
    }
}

/// The abort callback: true stops the evaluation before the next node.
unsafe extern "C" fn on_abort_query(state: *mut c_void) -> bool {
    // SAFETY: `state` is what `Context::new` passed. Worker threads of ggml read these two fields while the thread
    // that may write them computes nothing but waits at a barrier or runs `on_node` between two graph parts.
    let state = unsafe { &*state.cast::<EvalState>() };
    state.stopped || state.panic.is_some()
}
