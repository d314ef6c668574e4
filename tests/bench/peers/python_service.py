#!/usr/bin/env python3
"""What one would write in an afternoon: grpcio, raw bytes, FlexAttention with ALiBi, one lock.

  python_service.py [PORT]

Serves flashbias.v1.AttentionService/Attend for transport_bench's `python` subject: a request is q, k and v
of [tokens, 50, 32] float16 one after the other, without any framing; the answer is o. Causal, seed slopes.
Needs torch with CUDA and grpcio. Prints `ready` once it serves.
"""
import sys
import threading
from concurrent import futures

import grpc
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

HEADS, HEAD_DIM = 50, 32
slopes = torch.exp2(-8.0 * torch.arange(1, HEADS + 1, device="cuda") / HEADS)
lock = threading.Lock()
masks = {}


def alibi(score, batch, head, q, k):
    return score + slopes[head] * (k - q)


def causal(batch, head, q, k):
    return q >= k


attention = torch.compile(flex_attention, dynamic=False)


def mask_of(tokens):
    if tokens not in masks:
        masks[tokens] = create_block_mask(causal, None, None, tokens, tokens, device="cuda")
    return masks[tokens]


def attend(request, context):
    tensors = torch.frombuffer(bytearray(request), dtype=torch.float16).view(3, -1, HEADS, HEAD_DIM)
    with lock, torch.inference_mode():
        q, k, v = tensors.cuda().permute(0, 2, 1, 3).unsqueeze(1).unbind(0)
        o = attention(q, k, v, score_mod=alibi, block_mask=mask_of(q.shape[2]))
        return o[0].permute(1, 0, 2).contiguous().cpu().numpy().tobytes()


def main():
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8500
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=unlimited)
    handler = grpc.unary_unary_rpc_method_handler(attend)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("flashbias.v1.AttentionService", {"Attend": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    for tokens in (128, 1024, 4096):  # compiles
        attend(bytes(3 * tokens * HEADS * HEAD_DIM * 2), None)
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
