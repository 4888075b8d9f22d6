//! Architectures of llama.cpp that cannot be shortened.

/// Architectures that cannot be shortened, each with the reason.
pub(super) const REFUSED: &[(&str, &str)] = &[
    ("clip", "it is a projector for images or sound, not a text model"),
    ("t5", "it has blocks of an encoder and of a decoder, and one number does not say which"),
    ("gptj", "llama.cpp names it but cannot evaluate it"),
    ("wavtokenizer-dec", "it is no stack of residual blocks"),
    ("eagle3", "it is a draft head, bound to blocks of the model that it drafts for"),
    ("dflash", "it is a draft head, bound to blocks of the model that it drafts for"),
    ("gemma4-assistant", "it is a draft head, bound to blocks of the model that it drafts for"),
    ("clef", "its blocks feed a decision head"),
    (
        "glm-dsa",
        "some of its blocks attend to what an earlier block chose, and which sets keep them together is not worked out \
         (glm-dsa.cpp)",
    ),
    (
        "hy_v4",
        "some of its blocks attend to what an earlier block chose, and which sets keep them together is not worked out \
         (hy-v4.cpp)",
    ),
    (
        "glm5-next",
        "some of its blocks attend to what an earlier block chose, and which sets keep them together is not worked out \
         (glm5-next.cpp)",
    ),
    (
        "qwen4exp",
        "an embedding of its own enters at one block by its number, and which sets keep that is not worked out (qwen4exp.cpp)",
    ),
    (
        "hrm_text",
        "two stacks of its blocks run in turns, and their numbers of blocks depend on each other (hrm-text.cpp)",
    ),
    ("baichuan", "llama.cpp chooses its position embedding by the number of blocks (baichuan.cpp)"),
    (
        "minimax-01",
        "the decay of its blocks depends on their numbers and on how many there are (minimax-01.cpp)",
    ),
    ("minicpm3", "llama.cpp scales its blocks by their number (minicpm3.cpp)"),
];
