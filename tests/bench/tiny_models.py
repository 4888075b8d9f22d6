"""Trains a tiny llama of bytes and writes it as GGUF: a mixture of experts, or a dense one.

    pip install torch gguf==0.19.0
    tiny_models.py train mixture|dense OUT.gguf MINUTES TEXT...
    tiny_models.py loss MODEL.gguf TEXT [WINDOWS]

`train` takes the time given, whatever the machine: the rate of learning falls with it. The last twentieth of each text
is kept back for the losses that it prints. OUT.gguf is written every five minutes and at the end; one that is there
already is trained further. `loss` reads such a file back and prints the mean nats per byte and the perplexity over
windows of 256 bytes, of each the second half, as llama.cpp's perplexity tool counts them. Matrices are multiplied in
bfloat16 while training, all else is 32 bits wide.
"""

import math
import os
import sys
import time
from dataclasses import dataclass

import gguf
import numpy
import torch
import torch.nn.functional as F

CONTEXT, BATCH, EPSILON, ROPE_BASE = 256, 16, 1e-6, 10000.0
SAVE_EVERY = 300
# Places for an expert's tokens while training, of an even share. Tokens over it pass by the expert.
ROOM = 1.5


@dataclass
class Shape:
    width: int
    blocks: int
    heads: int
    ff: int
    experts: int = 0
    used: int = 0


SHAPES = {"mixture": Shape(128, 6, 2, ff=64, experts=32, used=4), "dense": Shape(256, 8, 4, ff=768)}


def new_weights(shape):
    """Tensors by their names in the file, of PyTorch's order of dimensions."""
    torch.manual_seed(1)
    d, ff, small = shape.width, shape.ff, 0.02 / math.sqrt(2 * shape.blocks)

    def normal(*size, std=0.02):
        return torch.randn(*size) * std

    weights = {"token_embd": normal(256, d), "output": normal(256, d), "output_norm": torch.ones(d)}
    for i in range(shape.blocks):
        block = {"attn_norm": torch.ones(d), "ffn_norm": torch.ones(d), "attn_output": normal(d, d, std=small)}
        block |= {f"attn_{x}": normal(d, d) for x in "qkv"}
        if shape.experts:
            n = shape.experts
            block |= {"ffn_gate_inp": normal(n, d), "ffn_down_exps": normal(n, d, ff, std=small)}
            block |= {"ffn_gate_exps": normal(n, ff, d), "ffn_up_exps": normal(n, ff, d)}
        else:
            block |= {"ffn_gate": normal(ff, d), "ffn_up": normal(ff, d), "ffn_down": normal(d, ff, std=small)}
        weights |= {f"blk.{i}.{name}": tensor for name, tensor in block.items()}
    return {name + ".weight": tensor for name, tensor in weights.items()}


def stays_exact(name, tensor):
    return tensor.ndim == 1 or "gate_inp" in name


class Norm(torch.autograd.Function):
    """RMS norm of rows, with few passes over memory."""

    @staticmethod
    def forward(ctx, x, weight):
        scale = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1] + EPSILON).rsqrt_()
        y = x * scale
        ctx.save_for_backward(y, scale, weight)
        return y * weight

    @staticmethod
    def backward(ctx, g):
        y, scale, weight = ctx.saved_tensors
        gy = g * y
        inner = (gy @ weight / y.shape[-1])[:, None]
        return (g * weight).sub_(y * inner).mul_(scale), gy.sum(0)


def rotate(x, turns):
    """Rotary positions of [batch, head, position, of head], by neighbours."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


def attention(x, w, shape, turns):
    q, k, v = (
        F.linear(x, w[f"attn_{part}"]).view(-1, CONTEXT, shape.heads, shape.width // shape.heads).transpose(1, 2)
        for part in "qkv"
    )
    y = F.scaled_dot_product_attention(rotate(q, turns), rotate(k, turns), v, is_causal=True)
    return F.linear(y.transpose(1, 2).reshape(x.shape), w["attn_output"])


def dense(x, w):
    return F.linear(F.silu(F.linear(x, w["ffn_gate"])) * F.linear(x, w["ffn_up"]), w["ffn_down"])


def mixture(x, probabilities, w, shape):
    """The experts' output, and how far from even the experts are used: 1 when even."""
    n, used = shape.experts, shape.used
    gates, chosen = probabilities.topk(used)
    gates = gates / gates.sum(-1, keepdim=True)
    with torch.no_grad():
        expert, order = chosen.flatten().sort(stable=True)
        counts = expert.bincount(minlength=n)
        room = math.ceil(ROOM * len(order) / n) if w["ffn_up_exps"].requires_grad else int(counts.max())
        rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[expert]
        fits = rank < room
        # The token of each place, and the place of each choice.
        place = expert * room + rank.clamp(max=room - 1)
        tokens = torch.zeros(n * room, dtype=torch.long)
        tokens[place[fits]] = order[fits] // used
        places, weighs = torch.empty_like(order), torch.empty(len(order))
        places[order], weighs[order] = place, fits.float()
    y = F.embedding(tokens, x).view(n, room, -1)
    y = F.silu(y @ w["ffn_gate_exps"].mT) * (y @ w["ffn_up_exps"].mT)
    y = F.embedding(places, (y @ w["ffn_down_exps"].mT).flatten(0, 1)).view(len(x), used, -1)
    y = (y * (gates * weighs.view_as(gates)).to(y.dtype)[..., None]).sum(1)
    return y, n * (counts / len(order) * probabilities.mean(0)).sum()


def forward(tokens, weights, shape):
    """Logits of windows, and the mean unevenness of the experts."""
    head = shape.width // shape.heads
    angles = torch.outer(torch.arange(CONTEXT), ROPE_BASE ** (-torch.arange(0, head, 2) / head))
    turns, uneven = torch.polar(torch.ones_like(angles), angles), 0.0
    x, dtype = F.embedding(tokens.flatten(), weights["token_embd.weight"]), weights["output.weight"].dtype
    for i in range(shape.blocks):
        prefix = f"blk.{i}."
        w = {name[len(prefix) : -len(".weight")]: tensor for name, tensor in weights.items() if name.startswith(prefix)}
        x = x + attention(Norm.apply(x, w["attn_norm"]).to(dtype), w, shape, turns)
        y = Norm.apply(x, w["ffn_norm"])
        if shape.experts:
            y, more = mixture(y.to(dtype), F.linear(y, w["ffn_gate_inp"]).softmax(-1), w, shape)
            uneven += more / shape.blocks
        else:
            y = dense(y.to(dtype), w)
        x = x + y
    return F.linear(Norm.apply(x, weights["output_norm.weight"]).to(dtype), weights["output.weight"]).float(), uneven


class Optimizer:
    """Muon for the matrices of blocks, AdamW for all else."""

    def __init__(self, weights):
        others = [w for name, w in weights.items() if not self.is_inner(name, w)]
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.inner = [(w, torch.zeros_like(w)) for name, w in weights.items() if self.is_inner(name, w)]

    @staticmethod
    def is_inner(name, w):
        return name.startswith("blk.") and not stays_exact(name, w)

    @torch.no_grad()
    def step(self, rate):
        self.adam.param_groups[0]["lr"] = 0.003 * rate
        self.adam.step()
        for w, momentum in self.inner:
            momentum.lerp_(w.grad, 0.05)
            x = w.grad.lerp(momentum, 0.95).bfloat16()
            turned = x.shape[-2] > x.shape[-1]
            x = x.mT if turned else x
            x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                x = 3.4445 * x + (2.0315 * (a @ a) - 4.775 * a) @ x
            x = x.mT if turned else x
            w.mul_(1 - 0.002 * rate).sub_(x, alpha=0.02 * rate * max(1, w.shape[-2] / w.shape[-1]) ** 0.5)


def byte_letters():
    """The letters by which GPT-2's tokenizer writes the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def save(path, weights, shape):
    out, head = gguf.GGUFWriter(path, "llama"), shape.width // shape.heads
    out.add_name("tiny bytes")
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    out.add_block_count(shape.blocks)
    out.add_context_length(CONTEXT)
    out.add_embedding_length(shape.width)
    out.add_feed_forward_length(shape.ff)
    out.add_head_count(shape.heads)
    out.add_head_count_kv(shape.heads)
    out.add_layer_norm_rms_eps(EPSILON)
    out.add_rope_freq_base(ROPE_BASE)
    out.add_rope_dimension_count(head)
    out.add_vocab_size(256)
    if shape.experts:
        out.add_expert_count(shape.experts)
        out.add_expert_used_count(shape.used)
    letters = byte_letters()
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(letters)
    out.add_token_types([gguf.TokenType.NORMAL] * 256)
    # llama.cpp wants at least one merge: of a byte that UTF-8 never has.
    out.add_token_merges([f"{letters[0xC0]} {letters[0xC0]}"])
    out.add_bos_token_id(0)
    out.add_eos_token_id(0)
    out.add_add_bos_token(False)
    for name, tensor in weights.items():
        dtype = numpy.float32 if stays_exact(name, tensor) else numpy.float16
        out.add_tensor(name, tensor.detach().numpy().astype(dtype))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def load(path):
    reader = gguf.GGUFReader(path)
    weights = {t.name: torch.from_numpy(t.data.astype(numpy.float32)) for t in reader.tensors}
    return weights, SHAPES["mixture" if "llama.expert_count" in reader.fields else "dense"]


def read(path):
    with open(path, "rb") as text:
        return torch.frombuffer(bytearray(text.read()), dtype=torch.uint8).long()


@torch.no_grad()
def loss_of(windows, weights, shape):
    """Mean nats per byte over the second half of each window, the first byte of which has none before it."""
    total = 0.0
    for window in windows.split(BATCH):
        logits = forward(window, weights, shape)[0].view(*window.shape, -1)[:, CONTEXT // 2 : -1]
        total += F.cross_entropy(logits.flatten(0, 1), window[:, CONTEXT // 2 + 1 :].flatten(), reduction="sum").item()
    return total / (len(windows) * (CONTEXT // 2 - 1))


def windows_of(text, limit):
    n = min(limit, len(text) // CONTEXT)
    return text[: n * CONTEXT].view(n, CONTEXT)


def train(kind, path, minutes, texts):
    shape = SHAPES[kind]
    texts = [read(text) for text in texts]
    kept_back = [windows_of(text[-(len(text) // 20) :], BATCH) for text in texts]
    data = torch.cat([text[: -(len(text) // 20)] for text in texts])
    weights = load(path)[0] if os.path.exists(path) else new_weights(shape)
    weights = {name: w.requires_grad_() for name, w in weights.items()}
    optimizer = Optimizer(weights)
    print(f"{kind}: {sum(w.numel() for w in weights.values())} weights, {len(data)} bytes of text", flush=True)
    start, saved, step, done, mean = time.monotonic(), 0.0, 0, 0.0, 0.0
    while done < 1:
        step, done = step + 1, (time.monotonic() - start) / (60 * minutes)
        starts = torch.randint(len(data) - CONTEXT, (BATCH,)).tolist()
        tokens = torch.stack([data[at : at + CONTEXT + 1] for at in starts])
        short = {name: w if stays_exact(name, w) or "embd" in name else w.bfloat16() for name, w in weights.items()}
        logits, uneven = forward(tokens[:, :-1], short, shape)
        loss = F.cross_entropy(logits, tokens[:, 1:].flatten())
        for w in weights.values():
            w.grad = None
        (loss + 0.01 * uneven).backward()
        optimizer.step(min(step / 50, 1.0, max(0.0, 1.02 - done) / 0.7))
        mean = loss.item() if step == 1 else 0.95 * mean + 0.05 * loss.item()
        if step % 20 == 0:
            seconds, uneven = time.monotonic() - start, torch.as_tensor(uneven).item()
            print(f"{seconds:6.0f} s  step {step}  loss {mean:.4f}  uneven {uneven:.3f}", flush=True)
        if time.monotonic() - saved > SAVE_EVERY or done >= 1:
            saved = time.monotonic()
            save(path, weights, shape)
            losses = " ".join(f"{loss_of(windows, weights, shape):.4f}" for windows in kept_back)
            print(f"{saved - start:6.0f} s  step {step}  kept back: {losses}", flush=True)


def main():
    match sys.argv[1:]:
        case ["train", kind, path, minutes, *texts] if kind in SHAPES and texts:
            train(kind, path, float(minutes), texts)
        case ["loss", path, text, *limit] if len(limit) < 2:
            weights, shape = load(path)
            windows = windows_of(read(text), int(limit[0]) if limit else sys.maxsize)
            loss = loss_of(windows, weights, shape)
            print(f"{len(windows)} windows, {loss:.5f} nats per byte, perplexity {math.exp(loss):.4f}")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
