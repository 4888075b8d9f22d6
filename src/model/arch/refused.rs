//! Architectures of llama.cpp that cannot be shortened.

use Refused::{Because, DraftHead};

/// Why an architecture cannot be shortened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is a draft head.
    DraftHead,
    /// As this says.
    Because(&'static str),
}

impl Refused {
    /// That of the architecture of that name, if it is refused.
    pub(super) fn find(name: &str) -> Option<Self> {
        REFUSED.iter().find(|(refused, _)| *refused == name).map(|(_, why)| *why)
    }

    /// The reason in words.
    pub(super) fn why(self) -> &'static str {
        match self {
            DraftHead => "it is a draft head, bound to blocks of the model that it drafts for",
            Because(why) => why,
        }
    }
}

/// Architectures that cannot be shortened, each with the reason.
const REFUSED: &[(&str, Refused)] = &[
    ("clip", Because("it is a projector for images or sound, not a text model")),
    ("t5", Because("it has blocks of an encoder and of a decoder, and one number does not say which")),
    ("gptj", Because("llama.cpp names it but cannot evaluate it")),
    ("wavtokenizer-dec", Because("it is no stack of residual blocks")),
    ("eagle3", DraftHead),
    ("dflash", DraftHead),
    ("gemma4-assistant", DraftHead),
    ("clef", Because("its blocks feed a decision head")),
    (
        "glm-dsa",
        Because(
            "some of its blocks attend to what an earlier block chose, and which sets keep them together is not \
                 worked out (glm-dsa.cpp)",
        ),
    ),
    (
        "hy_v4",
        Because(
            "some of its blocks attend to what an earlier block chose, and which sets keep them together is not \
                 worked out (hy-v4.cpp)",
        ),
    ),
    (
        "glm5-next",
        Because(
            "some of its blocks attend to what an earlier block chose, and which sets keep them together is not \
                 worked out (glm5-next.cpp)",
        ),
    ),
    (
        "qwen4exp",
        Because(
            "an embedding of its own enters at one block by its number, and which sets keep that is not worked \
                 out (qwen4exp.cpp)",
        ),
    ),
    (
        "hrm_text",
        Because(
            "two stacks of its blocks run in turns, and their numbers of blocks depend on each other (hrm-text.cpp)",
        ),
    ),
    ("baichuan", Because("llama.cpp chooses its position embedding by the number of blocks (baichuan.cpp)")),
    (
        "minimax-01",
        Because(
            "the decay of its blocks depends on their numbers and on how many there are (minimax-01.cpp)",
        ),
    ),
    ("minicpm3", Because("llama.cpp scales its blocks by their number (minicpm3.cpp)")),
];
