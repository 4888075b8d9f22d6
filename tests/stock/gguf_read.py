"""Reads a GGUF file with the PyPI package gguf, a reader that shares no code with this project.

    gguf_read.py MODEL                              every metadata entry and tensor as text, for a diff
    gguf_read.py --compare PARENT OUT 0-11,19-29    is OUT its parent's tensors under new numbers, byte for byte?

The list names the parent's number of each kept block, in order. Exit status: 0 yes, 1 no or failed. Tensors of no block
must be the same too, so a model with a global tensor that has one slice per block (gemma3n, gemma4) is reported.
"""

import hashlib
import re
import sys

import numpy as np
from gguf import GGUFReader

BLOCK = re.compile(r"^blk\.(\d+)\.")


def block_list(text):
    """'3,7-9' as [3, 7, 8, 9]."""
    blocks = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        blocks += range(int(first), int(last or first) + 1)
    return blocks


def tensor_bytes(reader, tensor):
    """A tensor's bytes as they lie in the file."""
    found = reader.data[tensor.data_offset : tensor.data_offset + tensor.n_bytes]
    if len(found) != tensor.n_bytes:
        raise ValueError(f"'{tensor.name}' ends after the end of the file")
    return found


def digest(data):
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def describe(field):
    """Type and value of a metadata entry in one line; what is too long for that also with a digest."""
    types = " of ".join(t.name.lower() for t in field.types)
    value = field.contents()
    if isinstance(value, list):
        types += f" [{len(value)}]"
    text = repr(value)
    return f"{types} = {text}" if len(text) <= 200 else f"{types} = {text[:80]}... blake2b {digest(text.encode())}"


def show(path):
    reader = GGUFReader(path)
    for name, field in reader.fields.items():
        print(f"{name}: {describe(field)}")
    for tensor in reader.tensors:
        shape = " x ".join(str(n) for n in tensor.shape)
        print(f"{tensor.name}: {tensor.tensor_type.name} [{shape}] {digest(tensor_bytes(reader, tensor))}")


def differences(parent, out, kept):
    """What is wrong with `out` as the blocks `kept` of `parent`, one line each."""
    architecture = parent.get_field("general.architecture").contents()
    key = f"{architecture}.block_count"
    if parent.get_field(key).contents() <= max(kept):
        yield f"the parent has no block {max(kept)}: '{key}' is {parent.get_field(key).contents()}"
    if out.get_field(key) is None or out.get_field(key).contents() != len(kept):
        yield f"'{key}' is {out.get_field(key) and out.get_field(key).contents()}, expected {len(kept)}"

    renumbering = {old: new for new, old in enumerate(kept)}
    expected = {}
    for tensor in parent.tensors:
        match = BLOCK.match(tensor.name)
        if not match:
            expected[tensor.name] = tensor
        elif int(match[1]) in renumbering:
            expected[f"blk.{renumbering[int(match[1])]}.{tensor.name[match.end():]}"] = tensor

    found = {tensor.name: tensor for tensor in out.tensors}
    for name in sorted(found.keys() - expected.keys()):
        yield f"'{name}' is extra"
    for name, old in expected.items():
        new = found.get(name)
        was = f"'{name}' (parent's '{old.name}')"
        if new is None:
            yield f"{was} is missing"
        elif new.tensor_type != old.tensor_type or list(new.shape) != list(old.shape):
            old_form, new_form = (f"{t.tensor_type.name} {t.shape.tolist()}" for t in (old, new))
            yield f"{was} is {new_form}, expected {old_form}"
        elif not np.array_equal(tensor_bytes(out, new), tensor_bytes(parent, old)):
            yield f"{was} has other bytes"


def compare(parent_path, out_path, kept):
    if kept != sorted(set(kept)):
        raise ValueError("the kept blocks must be in ascending order, each once")
    parent, out = GGUFReader(parent_path), GGUFReader(out_path)
    found = list(differences(parent, out, kept))
    for line in found:
        print(line)
    print(f"tensors {len(out.tensors)} bytes {sum(t.n_bytes for t in out.tensors)} differences {len(found)}")
    return 1 if found else 0


def main(args):
    if len(args) == 4 and args[0] == "--compare":
        return compare(args[1], args[2], block_list(args[3]))
    if len(args) == 1:
        return show(args[0])
    sys.exit("usage: gguf_read.py MODEL | --compare PARENT OUT KEPT_BLOCKS")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"gguf_read.py: {error}")
