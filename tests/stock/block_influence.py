"""Block Influence of a `llama` model, computed with numpy from dequantized weights: a twin of the program's scores.

    block_influence.py MODEL TOKENS [--json FILE] [--perplexity] [--check RESULT.json [--tolerance 0.01]]

TOKENS holds one window of token ids a line (what `logits --tokens --window N` prints), or a JSON list of windows.
Every window is one causal sequence from position 0. X_i is the residual stream before block i, X_{i+1} the one after it
(before the final norm). Over every token of every window:

    bi                   1 - E[cos(X_i, X_{i+1})]           equation 2 of arXiv:2403.03853
    relative_magnitude   E[|f| / |x + f|],  x = X_i, f = X_{i+1} - X_i

Weights and states are f32, statistics f64. llama.cpp also quantizes activations, so the two agree to a tolerance only.
--check compares with the `blocks` of the program's --json and exits 1 above the tolerance. --perplexity also scores the
second half of every window, as llama-perplexity does. Run it with OPENBLAS_NUM_THREADS=1 to stay on one core.
"""

import argparse
import json
import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize


class Model:
    """Settings and dequantized tensors of a `llama` GGUF. Tensors are [n_out, n_in] and made anew at every call."""

    def __init__(self, path):
        self.reader = GGUFReader(path)
        self.tensors = {t.name: t for t in self.reader.tensors}
        if self.get("general.architecture") != "llama":
            raise ValueError(f"architecture is '{self.get('general.architecture')}', expected 'llama'")
        if "blk.0.ffn_gate_inp.weight" in self.tensors:
            raise ValueError("experts are not supported")
        if self.get("llama.rope.scaling.type", "none") not in ("none", "linear"):
            raise ValueError(f"RoPE scaling '{self.get('llama.rope.scaling.type')}' is not supported")
        self.n_blocks = self.get("llama.block_count")
        self.n_head = self.get("llama.attention.head_count")
        self.n_head_kv = self.get("llama.attention.head_count_kv", self.n_head)
        self.n_embd = self.get("llama.embedding_length")
        self.head_dim = self.get("llama.attention.key_length", self.n_embd // self.n_head)
        self.eps = self.get("llama.attention.layer_norm_rms_epsilon")
        self.attention_scale = self.get("llama.attention.scale", 0.0) or 1.0 / np.sqrt(self.head_dim)

    def get(self, key, default=None):
        field = self.reader.get_field(key)
        return default if field is None else field.contents()

    def tensor(self, name):
        if name not in self.tensors:
            raise ValueError(f"tensor '{name}' is missing")
        tensor = self.tensors[name]
        return dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)

    def linear(self, name, x):
        """x @ W^T + b, with the bias where there is one. [n_tokens, n_in] -> [n_tokens, n_out]"""
        y = x @ self.tensor(f"{name}.weight").T
        return y + self.tensor(f"{name}.bias") if f"{name}.bias" in self.tensors else y

    def norm(self, name, x):
        """RMSNorm. [n_tokens, n_embd]"""
        mean_square = np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True)
        return (x / np.sqrt(mean_square + self.eps)).astype(np.float32) * self.tensor(f"{name}.weight")

    def angles(self, n_tokens):
        """cos and sin of every position and pair, [n_tokens, 1, head_dim / 2]."""
        if self.get("llama.rope.dimension_count", self.head_dim) != self.head_dim:
            raise ValueError("RoPE over a part of the head is not supported")
        frequency = self.get("llama.rope.freq_base", 10000.0) ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        if "rope_freqs.weight" in self.tensors:
            frequency = frequency / self.tensor("rope_freqs.weight")
        if self.get("llama.rope.scaling.type") == "linear":
            frequency = frequency / self.get("llama.rope.scaling.factor", 1.0)
        angle = np.arange(n_tokens)[:, None, None] * frequency
        return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def block(self, i, x, n_windows):
        """Block i. [n_windows * n_tokens, n_embd] -> the same after attention, and after all of it"""
        a = self.norm(f"blk.{i}.attn_norm", x)
        q, k, v = (self.linear(f"blk.{i}.attn_{name}", a) for name in "qkv")
        mixed = [self.attention(*heads) for heads in zip(*(np.split(y, n_windows) for y in (q, k, v)))]
        x = x + self.linear(f"blk.{i}.attn_output", np.concatenate(mixed))

        a = self.norm(f"blk.{i}.ffn_norm", x)
        gate = self.linear(f"blk.{i}.ffn_gate", a)
        up = self.linear(f"blk.{i}.ffn_up", a)
        return x, x + self.linear(f"blk.{i}.ffn_down", gate / (1 + np.exp(-gate)) * up)

    def attention(self, q, k, v):
        """Causal attention of one window. [n_tokens, n_heads * head_dim] -> [n_tokens, n_head * head_dim]"""
        n_tokens = len(q)
        cos, sin = self.angles(n_tokens)
        q = rotate(q.reshape(n_tokens, self.n_head, -1), cos, sin)
        k = rotate(k.reshape(n_tokens, self.n_head_kv, -1), cos, sin)
        v = v.reshape(n_tokens, self.n_head_kv, -1)
        future = np.triu(np.ones((n_tokens, n_tokens), bool), 1)
        mixed = []
        for head in range(self.n_head):
            head_kv = head * self.n_head_kv // self.n_head
            scores = q[:, head] @ k[:, head_kv].T * np.float32(self.attention_scale)
            scores[future] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            total = weights.sum(axis=1, dtype=np.float64, keepdims=True)
            mixed.append((weights / total).astype(np.float32) @ v[:, head_kv])
        return np.concatenate(mixed, axis=1)

    def log_probability(self, x, next_tokens):
        """Natural log of the probability of each next token after the hidden state x, in f64. [n_tokens]"""
        head = "output" if "output.weight" in self.tensors else "token_embd"
        logits = self.linear(head, self.norm("output_norm", x)).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        return logits[np.arange(len(x)), next_tokens] - np.log(np.exp(logits).sum(axis=1))


def rotate(x, cos, sin):
    """RoPE over neighbouring pairs (2j, 2j + 1), the order that a `llama` GGUF permutes q and k for."""
    even, odd = x[..., 0::2], x[..., 1::2]
    rotated = np.empty_like(x)
    rotated[..., 0::2] = even * cos - odd * sin
    rotated[..., 1::2] = even * sin + odd * cos
    return rotated


def scores(before, after):
    """Block Influence and relative magnitude of one block, from the streams before and after it."""
    before, after = before.astype(np.float64), after.astype(np.float64)
    norm_before, norm_after = np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1)
    if not (norm_before.all() and norm_after.all()):
        raise ValueError("a token's hidden state is all zero, so its cosine is not defined")
    cosine = np.sum(before * after, axis=1) / (norm_before * norm_after)
    return 1 - cosine.mean(), np.mean(np.linalg.norm(after - before, axis=1) / norm_after)


def read_windows(path):
    """Token ids [n_windows, n_tokens]."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if text.lstrip().startswith("["):
        windows = json.loads(text)
    else:
        windows = [[int(word) for word in line.split()] for line in text.splitlines() if line.strip()]
    if not windows or len({len(window) for window in windows}) != 1:
        raise ValueError(f"{path}: expected windows of equal length")
    return np.array(windows)


def measure(model, windows, perplexity):
    """What the program's --json holds, as far as it is measured here."""
    n_windows, n_tokens = windows.shape
    x = model.tensor("token_embd.weight")[windows.ravel()]
    blocks = []
    for i in range(model.n_blocks):
        middle, after = model.block(i, x, n_windows)
        row = {"block": i}
        for half, pair in (("", (x, after)), ("attention_", (x, middle)), ("ffn_", (middle, after))):
            row[half + "bi"], row[half + "relative_magnitude"] = scores(*pair)
        blocks.append(row)
        x = after
    result = {"windows": n_windows, "window": n_tokens, "tokens": windows.size, "blocks": blocks}
    if perplexity:
        scored = slice(n_tokens // 2, n_tokens - 1)
        states = x.reshape(n_windows, n_tokens, -1)
        logs = [model.log_probability(states[w, scored], windows[w, 1:][scored]) for w in range(n_windows)]
        result["perplexity"] = np.exp(-np.mean(logs))
    return result


def check(ours, path, tolerance):
    """Prints the relative difference of every score to the program's; returns whether all are within `tolerance`."""
    with open(path, encoding="utf-8") as file:
        theirs = json.load(file)
    n_tokens = (theirs.get("calibration") or {}).get("tokens", ours["tokens"])
    if n_tokens != ours["tokens"]:
        raise ValueError(f"{path}: is of {n_tokens} tokens, not of {ours['tokens']}")
    if [b["block"] for b in theirs["blocks"]] != [b["block"] for b in ours["blocks"]]:
        raise ValueError(f"{path}: has other blocks")
    largest = 0.0
    keys = [half + score for half in ("", "attention_", "ffn_") for score in ("bi", "relative_magnitude")]
    # Halves are there if they were asked for: for all blocks or for none.
    keys = [key for key in keys if any(b.get(key) is not None for b in theirs["blocks"])]
    print("block" + "        bi     theirs  rel.diff       rm     theirs  rel.diff" * (len(keys) // 2))
    for a, b in zip(ours["blocks"], theirs["blocks"]):
        line = f"{a['block']:5}"
        for key in keys:
            difference = abs(b[key] - a[key]) / abs(a[key])
            # Halves change the stream less, so that rounded activations weigh more: twice the tolerance for them.
            weight = 0.5 if key.startswith(("attention_", "ffn_")) else 1
            largest = np.maximum(largest, weight * difference)  # keeps a NaN
            line += f" {a[key]:9.6f}  {b[key]:9.6f} {difference:9.6f}"
        print(line)
    print(f"tokens {ours['tokens']} scores {len(keys)} largest {largest:.6f} tolerance {tolerance}")
    return bool(largest <= tolerance)


def main():
    parser = argparse.ArgumentParser(description="Block Influence of a llama model, from dequantized weights.")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("tokens", metavar="TOKENS", help="one window of token ids a line, or a JSON list of windows")
    parser.add_argument("--json", metavar="FILE", help="write the result here, not to stdout")
    parser.add_argument("--perplexity", action="store_true", help="also score the second half of every window")
    parser.add_argument("--check", metavar="RESULT", help="compare with the program's --json")
    parser.add_argument("--tolerance", type=float, default=0.01, help="largest relative difference for --check (0.01)")
    args = parser.parse_args()

    result = measure(Model(args.model), read_windows(args.tokens), args.perplexity)
    text = json.dumps(result, indent=1)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    elif not args.check:
        print(text)
    return not args.check or check(result, args.check, args.tolerance)


if __name__ == "__main__":
    try:
        sys.exit(0 if main() else 1)
    except (OSError, ValueError) as error:
        sys.exit(f"block_influence.py: {error}")
