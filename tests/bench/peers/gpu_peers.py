"""The attention that PyTorch offers on a GPU, for gpu_attention.py. Needs torch with CUDA.

Every method takes the same random q, k, v, [1, heads, tokens, head_dim] float16, and computes causal
attention, with ALiBi unless its name ends in none. What a user would prepare once (masks, factors,
dense biases) is prepared outside the timed call.

Backward, the same call is made once with gradients wanted; what is timed is autograd from a random d_o to dq, dk
and dv, again and again over the graph that it keeps.
"""
import math
import statistics

import torch
import torch._dynamo
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

# Each shape is compiled for itself, which is the fastest that FlexAttention gets.
torch._dynamo.config.cache_size_limit = 256
compiled_flex = torch.compile(flex_attention, dynamic=False)
sdpa = torch.nn.functional.scaled_dot_product_attention

FLUSH_BYTES = 256 << 20
# Keeps the device busy until the host has enqueued the call, so that events do not time the host.
SLEEP_CYCLES = 1_000_000
# ALiBi makes keys beyond this many nats weigh under 3e-20: the window an expert would cut by hand.
WINDOW_NATS = 45.0
DENSE_BIAS_MAX_TOKENS = 4096
REFERENCE_ROWS = 16
REFERENCE_BLOCK = 256


class Inputs:
    def __init__(self, heads, head_dim, tokens, backward=False):
        self.heads, self.head_dim, self.tokens = heads, head_dim, tokens
        generator = torch.Generator("cuda").manual_seed(1)
        self.q, self.k, self.v, self.d_o = (
            torch.randn(1, heads, tokens, head_dim, device="cuda", dtype=torch.float16, generator=generator)
            for _ in range(4))
        if backward:
            for tensor in (self.q, self.k, self.v):
                tensor.requires_grad_()
        self.slopes = torch.tensor([2 ** (-8 * k / heads) for k in range(1, heads + 1)], device="cuda")
        self.scale = 1 / math.sqrt(head_dim)


class Timer:
    """Median of launches that are each alone between two events, the L2 cache flushed before."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def _run(self, call, repeats):
        events = []
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()
            torch.cuda._sleep(SLEEP_CYCLES)
            begin.record()
            call()
            end.record()
            events.append((begin, end))
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in events]

    def milliseconds(self, call):
        call()
        estimate = min(self._run(call, 3))
        return statistics.median(self._run(call, max(5, min(50, int(self.seconds * 1e3 / estimate)))))


class Reference:
    """Sampled rows of every head in float64."""

    def __init__(self, x, alibi):
        rows = torch.randint(x.tokens, (REFERENCE_ROWS,), generator=torch.Generator().manual_seed(2))
        rows[0], rows[1] = 0, x.tokens - 1
        self.rows = rows.cuda()
        logits = x.q[0, :, self.rows].double() @ x.k[0].double().transpose(1, 2) * x.scale
        distance = self.rows[:, None] - torch.arange(x.tokens, device="cuda")[None, :]
        if alibi:
            logits -= x.slopes.double()[:, None, None] * distance
        logits.masked_fill_(distance < 0, float("-inf"))
        self.o = torch.softmax(logits, dim=-1) @ x.v[0].double()

    def relative_error(self, o):
        return ((o[0, :, self.rows].double() - self.o).norm() / self.o.norm()).item()


class GradientReference:
    """Sampled rows of dq, dk and dv of the first and the last head in float64, block by block of queries."""

    def __init__(self, x, alibi):
        rows = torch.randint(x.tokens, (REFERENCE_ROWS,), generator=torch.Generator().manual_seed(2))
        rows[0], rows[1] = 0, x.tokens - 1
        self.rows = rows.cuda()
        self.heads = torch.tensor(sorted({0, x.heads - 1}), device="cuda")
        q, k, v, d_o = (t.detach()[0, self.heads].double() for t in (x.q, x.k, x.v, x.d_o))
        slopes = x.slopes[self.heads].double()[:, None, None]
        keys = torch.arange(x.tokens, device="cuda")
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        dq = torch.empty_like(q)
        for begin in range(0, x.tokens, REFERENCE_BLOCK):
            block = keys[begin:begin + REFERENCE_BLOCK]
            distance = block[:, None] - keys[None, :]
            logits = q[:, block] @ k.transpose(1, 2) * x.scale
            if alibi:
                logits -= slopes * distance
            p = torch.softmax(logits.masked_fill_(distance < 0, float("-inf")), dim=-1)
            d_p = d_o[:, block] @ v.transpose(1, 2)
            d_logits = p * (d_p - (p * d_p).sum(-1, keepdim=True)) * x.scale
            dq[:, block] = d_logits @ k
            dk += d_logits.transpose(1, 2) @ q[:, block]
            dv += p.transpose(1, 2) @ d_o[:, block]
        self.gradients = [t[:, self.rows] for t in (dq, dk, dv)]

    def relative_error(self, gradients):
        """The largest of the three."""
        return max(((actual[0, self.heads][:, self.rows].double() - expected).norm() / expected.norm()).item()
                   for actual, expected in zip(gradients, self.gradients))


def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def block_mask(x, windows):
    """Block i of queries sees key blocks from its window's first to i; only block i needs the mask.

    windows: distances in tokens, one a head, or one for all.
    """
    size = 128
    blocks = -(-x.tokens // size)
    i = torch.arange(blocks, device="cuda")
    first = ((i * size)[None, :] - windows[:, None]).div(size, rounding_mode="floor").clamp(min=0).int()
    order = torch.arange(blocks, device="cuda", dtype=torch.int32)
    diagonal = torch.zeros(1, len(windows), blocks, blocks, device="cuda", dtype=torch.int32)
    diagonal[..., 0] = order
    return BlockMask.from_kv_blocks(
        kv_num_blocks=torch.ones(1, len(windows), blocks, device="cuda", dtype=torch.int32),
        kv_indices=diagonal,
        full_kv_num_blocks=(order[None, :] - first)[None].contiguous(),
        full_kv_indices=(first[..., None] + order).clamp(max=blocks - 1)[None].contiguous(),
        BLOCK_SIZE=size, mask_mod=causal, seq_lengths=(x.tokens, x.tokens))


def flex(x, windows):
    slopes = x.slopes

    def alibi(score, b, h, q_idx, kv_idx):
        return score - slopes[h] * (q_idx - kv_idx)

    mask = block_mask(x, windows)
    return lambda: compiled_flex(x.q, x.k, x.v, score_mod=alibi, block_mask=mask, scale=x.scale)


def flex_alibi(x):
    return flex(x, torch.tensor([x.tokens], device="cuda"))


def flex_window(x):
    return flex(x, (WINDOW_NATS / x.slopes).ceil().long())


def fa2_alibi(x):
    """The FlashAttention-2 kernels that PyTorch carries; its builds may leave ALiBi out."""
    q, k, v = (t.transpose(1, 2).contiguous() for t in (x.q, x.k, x.v))
    return lambda: torch.ops.aten._flash_attention_forward(
        q, k, v, None, None, x.tokens, x.tokens, 0.0, True, False, scale=x.scale,
        alibi_slopes=x.slopes)[0].transpose(1, 2)


def sdpa_factors(x):
    """FlashBias by SDPA: q' = [q * scale, slope * (-i, 1)], k' = [k, (1, j)], float16, zeros up to a multiple of 8.

    With the scale in q rather than in the call, the factors are as small as they can be.
    """
    columns = -(-(x.head_dim + 2) // 8) * 8
    position = torch.arange(x.tokens, device="cuda", dtype=torch.float32)

    def widen(tensor, factors=()):
        wide = torch.zeros(1, x.heads, x.tokens, columns, device="cuda", dtype=torch.float16)
        wide[..., :x.head_dim] = tensor
        for n, factor in enumerate(factors):
            wide[..., x.head_dim + n] = factor
        return wide

    slopes = x.slopes[:, None]
    q = widen(x.q.float() * x.scale, (-slopes * position, slopes))
    k = widen(x.k, (torch.ones_like(position), position))
    v = widen(x.v)
    return lambda: sdpa(q, k, v, is_causal=True, scale=1.0)[..., :x.head_dim]


def sdpa_dense_bias(x):
    if x.tokens > DENSE_BIAS_MAX_TOKENS:
        raise ValueError(f"a dense bias is run up to {DENSE_BIAS_MAX_TOKENS} tokens")
    position = torch.arange(x.tokens, device="cuda")
    distance = position[:, None] - position[None, :]
    bias = (-x.slopes[:, None, None] * distance).masked_fill_(distance < 0, float("-inf")).half()[None]
    return lambda: sdpa(x.q, x.k, x.v, attn_mask=bias, scale=x.scale)


def sdpa_none(x):
    return lambda: sdpa(x.q, x.k, x.v, is_causal=True, scale=x.scale)


def forced(backend):
    def method(x):
        def call():
            with sdpa_kernel([backend]):
                return sdpa(x.q, x.k, x.v, is_causal=True, scale=x.scale)
        return call
    return method


# Method: (what prepares its call, has ALiBi).
METHODS = {
    "flex_alibi": (flex_alibi, True),
    "flex_window": (flex_window, True),
    "fa2_alibi": (fa2_alibi, True),
    "sdpa_factors": (sdpa_factors, True),
    "sdpa_dense_bias": (sdpa_dense_bias, True),
    "sdpa_none": (sdpa_none, False),
    "sdpa_none_flash": (forced(SDPBackend.FLASH_ATTENTION), False),
    "sdpa_none_cudnn": (forced(SDPBackend.CUDNN_ATTENTION), False),
}


# Those whose gradients are measured. Not fa2_alibi, whose slopes autograd's formula does not take, nor sdpa_factors,
# whose graph holds what was prepared once, too.
BACKWARD_METHODS = ["flex_alibi", "flex_window", "sdpa_dense_bias", "sdpa_none", "sdpa_none_flash",
                    "sdpa_none_cudnn"]


def measure(prepare, x, reference, timer):
    """(milliseconds, relative error)."""
    call = prepare(x)
    error = reference.relative_error(call())
    return timer.milliseconds(call), error


def measure_backward(prepare, x, reference, timer):
    """(milliseconds, relative error) of dq, dk and dv; the forward call is made once and not timed."""
    with torch.enable_grad():
        o = prepare(x)()

        def gradients():
            return torch.autograd.grad(o, (x.q, x.k, x.v), x.d_o, retain_graph=True)

        error = reference.relative_error(gradients())
        return timer.milliseconds(gradients), error
