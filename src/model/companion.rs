//! GGUF files that are no language models. What a file is, such as what belongs to a model, shows in its first metadata
//! entries. Pure.

use std::fmt;

use crate::gguf::Entry;
use crate::model::arch::Architecture;

/// `general.type` of an importance matrix (`tools/imatrix/imatrix.cpp`).
pub const IMATRIX: &str = "imatrix";

/// A kind of file that is no language model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Companion<'a> {
    /// Low-rank changes of weights (`llama-adapter.cpp`).
    Adapter {
        /// The architecture of the model that it is for.
        architecture: Option<&'a str>,
    },
    /// Directions that are added to the stream after some blocks (`common.cpp: common_control_vector_load`).
    ControlVector {
        /// The architecture of the model that it is for.
        architecture: Option<&'a str>,
    },
    /// An encoder of images or sound (`tools/mtmd/clip.cpp`).
    Projector {
        /// Whether it feeds several blocks of the model, not its input alone.
        feeds_blocks: bool,
    },
    /// An importance matrix.
    Imatrix,
    /// A small model that drafts from a large one's hidden states.
    DraftHead {
        /// Its own architecture.
        architecture: &'a str,
    },
    /// A diffusion model of images or videos.
    Diffusion {
        /// Its architecture, where the file names one.
        architecture: Option<&'a str>,
    },
}

/// Architectures of image and video models, as their converters name them (`ComfyUI-GGUF: loader.py, tools/convert.py`).
const DIFFUSION: &[&str] = &[
    "flux",
    "sd1",
    "sdxl",
    "sd3",
    "aura",
    "hidream",
    "cosmos",
    "ltxv",
    "hyvid",
    "wan",
    "lumina2",
    "qwen_image",
    "z_image",
    "chroma",
    "pig",
];

/// Prefixes of tensor names in checkpoints of image and video models.
const DIFFUSION_TENSORS: &[&str] = &[
    "model.diffusion_model.",
    "first_stage_model.",
    "double_blocks.",
    "single_blocks.",
    "double_layers.",
    "joint_blocks.",
    "joint_transformer_blocks.",
    "transformer_blocks.",
    "double_stream_blocks.",
    "down_blocks.",
    "input_blocks.",
    "noise_refiner.",
    "patch_embedding.",
    "x_embedder.",
    "time_embed.",
];

impl<'a> Companion<'a> {
    /// The kind of file with these entries, if it is no model.
    #[must_use]
    pub fn of(entries: &[Entry<'a>]) -> Option<Self> {
        let find = |key: &str| entries.iter().find(|entry| entry.key() == key);
        let text = |key: &str| find(key)?.value().as_str().ok();
        let architecture = text("general.architecture");
        match text("general.type") {
            Some("adapter") => return Some(Self::Adapter { architecture }),
            Some(IMATRIX) => return Some(Self::Imatrix),
            Some("mmproj" | "clip-vision") => {}
            _ if architecture == Some("clip") => {}
            _ => {
                let architecture = architecture?;
                if architecture == "controlvector" {
                    return Some(Self::ControlVector { architecture: text("controlvector.model_hint") });
                }
                if DIFFUSION.contains(&architecture) {
                    return Some(Self::Diffusion { architecture: Some(architecture) });
                }
                return Architecture::is_draft_head(architecture).then_some(Self::DraftHead { architecture });
            }
        }
        let flags = find("clip.vision.is_deepstack_layers").map(|entry| entry.value());
        let flags = flags.and_then(|value| value.as_array().ok());
        Some(Self::Projector {
            feeds_blocks: flags.is_some_and(|flags| flags.bools().any(|flag| flag.unwrap_or(false))),
        })
    }

    /// The kind of file without a block count, by tensor names.
    #[must_use]
    pub fn of_tensors<'n>(mut names: impl Iterator<Item = &'n str>) -> Option<Self> {
        let is_diffusion = |name: &str| DIFFUSION_TENSORS.iter().any(|start| name.starts_with(start));
        names.any(is_diffusion).then_some(Self::Diffusion { architecture: None })
    }

    /// What it is and what it is not.
    #[must_use]
    pub fn sentence(&self) -> String {
        let article = self.article();
        match self {
            Self::Diffusion { .. } => format!("is {article} {self}, not a language model"),
            _ => format!("is {article} {self}, not a model"),
        }
    }

    /// The article of its name.
    fn article(&self) -> &'static str {
        match self {
            Self::Imatrix | Self::Diffusion { .. } => "an",
            _ => "a",
        }
    }

    /// Whether it depends on numbers of blocks. Then it no longer fits a model of this architecture without some.
    #[must_use]
    pub fn is_stale(&self, model_architecture: &str) -> bool {
        match self {
            Self::Adapter { architecture } | Self::ControlVector { architecture } => {
                architecture.is_none_or(|architecture| architecture == model_architecture)
            }
            Self::Projector { feeds_blocks } => *feeds_blocks,
            Self::Imatrix | Self::DraftHead { .. } => true,
            Self::Diffusion { .. } => false,
        }
    }

    /// What can be done with it in place of shortening it.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Adapter { .. } => {
                Some("llama-export-lora merges an adapter into its model, which can then be shortened")
            }
            Self::Imatrix => Some("--imatrix IN OUT renumbers it together with its model"),
            Self::ControlVector { .. }
            | Self::Projector { .. }
            | Self::DraftHead { .. }
            | Self::Diffusion { .. } => None,
        }
    }
}

impl fmt::Display for Companion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adapter { .. } => f.write_str("LoRA adapter"),
            Self::ControlVector { .. } => f.write_str("control vector"),
            Self::Projector { .. } => f.write_str("projector for images or sound"),
            Self::Imatrix => f.write_str("importance matrix"),
            Self::DraftHead { architecture } => write!(f, "draft head ({architecture})"),
            Self::Diffusion { architecture } => match architecture {
                Some(architecture) => write!(f, "image or video model ({architecture})"),
                None => f.write_str("image or video model"),
            },
        }
    }
}
