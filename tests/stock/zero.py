"""Makes the zeroed parent: a copy of a model in which some blocks do nothing.

    zero.py PARENT OUT 3,7,12-14
    zero.py PARENT OUT 3 7,12-14    of blocks 7 and 12 to 14 the attention alone

In a pre-norm model a block whose output projections are all zero is exactly the identity, so a stock llama.cpp must
give the same logits for the copy as for the model without those blocks. Zero bytes decode to zero in every tensor
type met so far, which is checked for the types at hand. Only bytes of the listed blocks change; the header stays.
"""

import re
import shutil
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFReader
from gguf.quants import dequantize

# What a block adds to the residual stream comes from these tensors alone.
OUTPUT_PROJECTIONS = {
    "attn_output", "ssm_out", "shortconv.out_proj", "time_mix_output",
    "ffn_down", "ffn_down_exps", "ffn_down_shexp", "ffn_down_chexps", "channel_mix_value",
}  # fmt: skip

# More that a block of these architectures adds, and a factor that must become one.
ALSO_ZERO = {"talkie": {"layer_output_scale"}, "gemma4": {"proj"}}
ALSO_ONE = {"gemma4": {"layer_output_scale"}}

# Zeroed blocks of these are not the identity: post-norm, hyper-connections, or a stream that is changed in other ways.
REFUSED = {
    "bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3",
    "deepseek4", "hy_v4", "glm5-next", "qwen4exp", "gemma3n", "minimax-01",
}  # fmt: skip


def block_list(text):
    """'3,7-9' as [3, 7, 8, 9]."""
    blocks = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        blocks += range(int(first), int(last or first) + 1)
    return blocks


def new_value(tensor, architecture, blocks, attention):
    """What every element of a tensor becomes: 0, 1, or None where it stays."""
    match = re.fullmatch(r"blk\.(\d+)\.(.+)\.(weight|bias)", tensor.name)
    if match and int(match[1]) in attention and match[2] == "attn_output":
        return 0
    if not match or int(match[1]) not in blocks:
        return None
    if match[2] in OUTPUT_PROJECTIONS | ALSO_ZERO.get(architecture, set()):
        return 0
    if match[2] in ALSO_ONE.get(architecture, set()):
        if tensor.tensor_type.name != "F32":
            raise ValueError(f"'{tensor.name}' is {tensor.tensor_type.name}, expected F32")
        return 1
    return None


def check_zero_decodes_to_zero(tensor_type):
    """Raises where a block of zero bytes does not stand for zeros."""
    _, n_bytes = GGML_QUANT_SIZES[tensor_type]
    dtype = {"F32": np.float32, "F16": np.float16}.get(tensor_type.name)
    block = np.zeros((1, n_bytes), np.uint8)
    if np.any(dequantize(block.view(dtype) if dtype else block, tensor_type)):
        raise ValueError(f"zero bytes of type {tensor_type.name} do not decode to zero")


def main(parent, out, blocks, attention):
    reader = GGUFReader(parent)
    architecture = reader.get_field("general.architecture").contents()
    if architecture in REFUSED:
        raise ValueError(f"a zeroed block of '{architecture}' is not the identity")
    split = reader.get_field("split.count")
    if split and split.contents() > 1:
        raise ValueError("the model is split into several files")
    n_blocks = reader.get_field(f"{architecture}.block_count").contents()
    missing = sorted(set(blocks + attention) - set(range(n_blocks)))
    if missing:
        raise ValueError(f"there is no block {missing[0]}: the model has {n_blocks} blocks")

    edits = [(t, value) for t in reader.tensors if (value := new_value(t, architecture, blocks, attention)) is not None]
    for tensor_type in {t.tensor_type for t, value in edits if value == 0}:
        check_zero_decodes_to_zero(tensor_type)
    # A block without any tensor (a no-op of 'deci') is the identity already.
    unchanged = set(blocks + attention) - {int(t.name.split(".")[1]) for t, _ in edits}
    for tensor in reader.tensors:
        match = re.match(r"blk\.(\d+)\.", tensor.name)
        if match and int(match[1]) in unchanged:
            raise ValueError(f"block {match[1]} has no known output projection, but has '{tensor.name}'")

    shutil.copyfile(parent, out)
    with open(out, "r+b") as file:
        for tensor, value in edits:
            file.seek(tensor.data_offset)
            file.write(np.ones(tensor.n_elements, "<f4").tobytes() if value else bytes(tensor.n_bytes))
    print(f"{out}: {len(edits)} tensors of {len(set(blocks + attention))} blocks changed", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit("usage: zero.py PARENT OUT BLOCKS [BLOCKS_WITHOUT_ATTENTION]")
    try:
        main(sys.argv[1], sys.argv[2], *(block_list(text) for text in (sys.argv[3:] + [""])[:2]))
    except (OSError, ValueError, NotImplementedError) as error:
        sys.exit(f"zero.py: {sys.argv[1]}: {error}")
