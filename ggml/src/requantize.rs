//! Quantizing a whole model, by llama.cpp's own routine.

use std::cell::RefCell;
use std::ffi::c_char;
use std::path::Path;
use std::rc::Rc;
use std::str::FromStr;

use llama_cpp_sys_2 as sys;

use crate::enums::number;
use crate::error::c_path;
use crate::fault::{AtWork, Work};
use crate::{Backend, Error, log};

/// Bytes of a piece of a tensor at most. The default of llama.cpp is 8 GiB, as much as some machines have. What comes out does
/// not depend on it.
const MAX_BUFFER: usize = 256 << 20;

/// What `general.file_type` says and llama-quantize takes: a mixture of tensor types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileType {
    name: &'static str,
    number: sys::llama_ftype,
}

/// Every type by llama-quantize's name for it (`tools/quantize/quantize.cpp: QUANT_OPTIONS`), from large to small.
const FILE_TYPES: &[(&str, sys::llama_ftype)] = &[
    ("F32", sys::LLAMA_FTYPE_ALL_F32),
    ("BF16", sys::LLAMA_FTYPE_MOSTLY_BF16),
    ("F16", sys::LLAMA_FTYPE_MOSTLY_F16),
    ("Q8_0", sys::LLAMA_FTYPE_MOSTLY_Q8_0),
    ("Q6_K", sys::LLAMA_FTYPE_MOSTLY_Q6_K),
    ("Q5_1", sys::LLAMA_FTYPE_MOSTLY_Q5_1),
    ("Q5_K_M", sys::LLAMA_FTYPE_MOSTLY_Q5_K_M),
    ("Q5_K_S", sys::LLAMA_FTYPE_MOSTLY_Q5_K_S),
    ("Q5_0", sys::LLAMA_FTYPE_MOSTLY_Q5_0),
    ("Q4_1", sys::LLAMA_FTYPE_MOSTLY_Q4_1),
    ("Q4_K_M", sys::LLAMA_FTYPE_MOSTLY_Q4_K_M),
    ("Q4_K_S", sys::LLAMA_FTYPE_MOSTLY_Q4_K_S),
    ("IQ4_NL", sys::LLAMA_FTYPE_MOSTLY_IQ4_NL),
    ("Q4_0", sys::LLAMA_FTYPE_MOSTLY_Q4_0),
    ("IQ4_XS", sys::LLAMA_FTYPE_MOSTLY_IQ4_XS),
    ("MXFP4_MOE", sys::LLAMA_FTYPE_MOSTLY_MXFP4_MOE),
    ("Q3_K_L", sys::LLAMA_FTYPE_MOSTLY_Q3_K_L),
    ("Q3_K_M", sys::LLAMA_FTYPE_MOSTLY_Q3_K_M),
    ("IQ3_M", sys::LLAMA_FTYPE_MOSTLY_IQ3_M),
    ("IQ3_S", sys::LLAMA_FTYPE_MOSTLY_IQ3_S),
    ("Q3_K_S", sys::LLAMA_FTYPE_MOSTLY_Q3_K_S),
    ("IQ3_XS", sys::LLAMA_FTYPE_MOSTLY_IQ3_XS),
    ("IQ3_XXS", sys::LLAMA_FTYPE_MOSTLY_IQ3_XXS),
    ("Q2_K", sys::LLAMA_FTYPE_MOSTLY_Q2_K),
    ("Q2_K_S", sys::LLAMA_FTYPE_MOSTLY_Q2_K_S),
    ("IQ2_M", sys::LLAMA_FTYPE_MOSTLY_IQ2_M),
    ("IQ2_S", sys::LLAMA_FTYPE_MOSTLY_IQ2_S),
    ("IQ2_XS", sys::LLAMA_FTYPE_MOSTLY_IQ2_XS),
    ("IQ2_XXS", sys::LLAMA_FTYPE_MOSTLY_IQ2_XXS),
    ("TQ2_0", sys::LLAMA_FTYPE_MOSTLY_TQ2_0),
    ("TQ1_0", sys::LLAMA_FTYPE_MOSTLY_TQ1_0),
    ("IQ1_M", sys::LLAMA_FTYPE_MOSTLY_IQ1_M),
    ("IQ1_S", sys::LLAMA_FTYPE_MOSTLY_IQ1_S),
];

/// Other names that llama-quantize takes.
const ALIASES: &[(&str, &str)] = &[("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M")];

impl FileType {
    /// Its name, such as `Q4_K_M`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Its number, as in `general.file_type`.
    #[must_use]
    pub fn number(self) -> u32 {
        number(self.number)
    }

    /// The type with a number; `None` for one that is not known.
    #[must_use]
    pub fn of_number(wanted: u64) -> Option<Self> {
        let found = FILE_TYPES.iter().find(|(_, known)| u64::from(number(*known)) == wanted);
        found.map(|&(name, number)| Self { name, number })
    }
}

impl FromStr for FileType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.trim().to_ascii_uppercase();
        let alias = ALIASES.iter().find(|(alias, _)| *alias == upper);
        let wanted = alias.map_or(upper.as_str(), |(_, name)| name);
        let found = FILE_TYPES.iter().find(|(name, _)| *name == wanted);
        found.map(|&(name, number)| Self { name, number }).ok_or_else(|| {
            "expected a type of llama-quantize such as Q6_K, Q4_K_M, Q3_K_M or Q2_K".to_owned()
        })
    }
}

/// Told how many of how many tensors have been begun.
pub type Progress = Rc<dyn Fn(usize, usize)>;

thread_local! {
    /// The progress callback of this thread's quantization.
    static PROGRESS: RefCell<Option<Progress>> = const { RefCell::new(None) };

    /// Where the types go that this thread asks for.
    static TYPES: RefCell<Option<Rc<RefCell<Told>>>> = const { RefCell::new(None) };
}

/// Quantizes the model at `input` to one file, `output`, without importance matrix. Of a split model `input` is the first part.
/// The input may be quantized already.
///
/// llama.cpp does not notice a disk that is full while it writes: whether the output is whole is for the caller to check.
///
/// # Errors
/// [`Error::Path`], or [`Error::Quantize`] with llama.cpp's reason, such as a type that needs an importance matrix. What
/// has been written to `output` by then stays.
pub fn requantize(
    _backend: &Backend,
    input: &Path,
    output: &Path,
    file_type: FileType,
    threads: usize,
    progress: Progress,
) -> Result<(), Error> {
    // SAFETY: no arguments.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.nthread = i32::try_from(threads).unwrap_or(i32::MAX);
    params.ftype = file_type.number;
    params.allow_requantize = true;
    params.max_buf_size = MAX_BUFFER;
    PROGRESS.with(|slot| slot.replace(Some(progress)));
    let result = run(input, output, &params);
    PROGRESS.with(|slot| slot.replace(None));
    result
}

/// The types that [`requantize`] would give the tensors of the model at `input`, by their names, of those in another type now. The
/// data of tensors is not read. With an importance matrix some mixtures have other types; which numbers it has decides nothing.
///
/// # Errors
/// As [`requantize`].
pub fn types(
    _backend: &Backend,
    input: &Path,
    file_type: FileType,
    has_importance: bool,
) -> Result<Vec<(String, String)>, Error> {
    // SAFETY: no arguments.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.nthread = 1;
    params.ftype = file_type.number;
    params.allow_requantize = true;
    params.dry_run = true;
    // One entry, of a tensor that no model has, and one without a name, which ends the list.
    let number = [1.0f32];
    let entry = |name: *const c_char| sys::llama_model_imatrix_data { name, data: number.as_ptr(), size: 1 };
    let matrix = [entry(c"gguf-shorten.none".as_ptr()), entry(std::ptr::null())];
    if has_importance {
        params.imatrix = matrix.as_ptr();
    }
    let found: Rc<RefCell<Told>> = Rc::default();
    TYPES.with(|slot| slot.replace(Some(Rc::clone(&found))));
    let result = run(input, Path::new(""), &params);
    TYPES.with(|slot| slot.replace(None));
    result?;
    Ok(found.take().types)
}

/// Calls `llama_model_quantize`.
pub(crate) fn run(
    input: &Path,
    output: &Path,
    params: &sys::llama_model_quantize_params,
) -> Result<(), Error> {
    let (input, output) = (c_path(input)?, c_path(output)?);
    log::clear();
    let _at_work = AtWork::new(Work::Quantizing);
    // SAFETY: both paths are NUL-terminated and, as all that `params` points to, outlive the call.
    let status = unsafe { sys::llama_model_quantize(input.as_ptr(), output.as_ptr(), params) };
    if status != 0 {
        let reason = log::last_error().unwrap_or_else(|| "no reason given".to_owned());
        let reason = reason.strip_prefix("failed to quantize: ").map(str::to_owned).unwrap_or(reason);
        return Err(Error::Quantize { reason });
    }
    Ok(())
}

/// Finds in llama.cpp's lines on this thread those that begin a tensor. They read `[  12/ 272] name - ...` (`llama-quant.cpp:
/// llama_model_quantize_impl`).
pub(crate) fn watch(line: &str) {
    if let Some(types) = TYPES.with(|slot| slot.borrow().clone()) {
        types.borrow_mut().read(line);
    }
    let Some((done, total)) = counts(line) else {
        return;
    };
    // A clone, so that the slot is not borrowed during the call. Only the setter clears the slot.
    let progress = PROGRESS.with(|slot| slot.borrow().clone());
    if let Some(progress) = progress {
        progress(done, total);
    }
}

/// The types that llama.cpp tells of, in two pieces for each tensor: `[   1/ 272] token_embd.weight - [576, 49152, 1, 1], type =
/// q4_1, ` and `size = 16.88 MiB -> 15.19 MiB (q4_K)`. Of a tensor that keeps its type the second names none.
#[derive(Default)]
struct Told {
    /// The tensor of the first piece.
    name: Option<String>,
    types: Vec<(String, String)>,
}

impl Told {
    fn read(&mut self, piece: &str) {
        if counts(piece).is_some() {
            let head = piece.split_once("] ").and_then(|(_, rest)| rest.rsplit_once("], type = "));
            let name = head.and_then(|(head, _)| head.rsplit_once(" - ["));
            self.name = name.map(|(name, _)| name.trim_end().to_owned());
        }
        let new =
            piece.split_once(" -> ").and_then(|(_, new)| new.trim_end().strip_suffix(')')?.rsplit_once('('));
        if let Some((_, new)) = new
            && let Some(name) = self.name.take()
        {
            self.types.push((name, new.to_owned()));
        }
    }
}

fn counts(line: &str) -> Option<(usize, usize)> {
    let (done, total) = line.strip_prefix('[')?.split_once(']')?.0.split_once('/')?;
    Some((done.trim().parse().ok()?, total.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_found_by_name_and_number() {
        for &(name, number) in FILE_TYPES {
            let by_name: FileType = name.parse().unwrap();
            assert_eq!((by_name.name(), by_name.number()), (name, number));
            let by_number = FileType::of_number(number.into()).unwrap();
            assert_eq!(by_number, by_name, "{name}: two types with one number");
        }
        assert_eq!("q4_k".parse::<FileType>().unwrap().name(), "Q4_K_M");
        assert_eq!("Q4_K_M".parse::<FileType>().unwrap().number(), 15);
        for wrong in ["", "Q4", "Q4_K_XL", "COPY", "15"] {
            assert!(wrong.parse::<FileType>().is_err(), "{wrong}");
        }
        assert_eq!(FileType::of_number(4), None);
        assert_eq!(FileType::of_number(u64::MAX), None);
    }

    #[test]
    fn types_are_read_from_pieces_of_lines() {
        let mut told = Told::default();
        for piece in [
            "llama_model_quantize_impl: model size  =   16.88 MiB -> 15.19 MiB (q4_K)\n",
            "[   1/ 272] blk.0.a - [b.weight                    - [   576, 49152,     1,     1], type =   q4_1, ",
            "size =    16.88 MiB ->    15.19 MiB (q4_K)\n",
            "[   2/ 272] output_norm.weight  - [   576,     1,     1,     1], type =    f32, ",
            "size =    0.002 MiB\n",
            "[   3/ 272] x  - [   576,     1,     1,     1], type =    f32, size =    1.00 MiB ->    0.50 MiB (f16)\n",
            "size =    16.88 MiB ->    15.19 MiB (q4_K)\n",
        ] {
            told.read(piece);
        }
        let expected = [("blk.0.a - [b.weight", "q4_K"), ("x", "f16")];
        assert_eq!(told.types, expected.map(|(name, to)| (name.to_owned(), to.to_owned())));
    }

    #[test]
    fn lines_of_progress_are_told_from_others() {
        assert_eq!(counts("[  12/ 272] blk.0.attn_k.weight"), Some((12, 272)));
        assert_eq!(counts("[1/2]"), Some((1, 2)));
        for other in ["", "[12]", "[a/b] x", "size = 1 [1/2]", "[1/2 x"] {
            assert_eq!(counts(other), None, "{other}");
        }
    }
}
