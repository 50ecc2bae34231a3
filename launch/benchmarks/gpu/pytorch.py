"""PyTorch's side of the comparison on a GPU, in a process of its own."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from internvideo_jax.launch.benchmarks import torch_video_vit
from internvideo_jax.launch.benchmarks.gpu.cases import (
    Attention,
    Case,
    Encoder,
    Row,
    measured,
    milliseconds,
)
from internvideo_jax.launch.benchmarks.runner import say
from internvideo_jax.launch.benchmarks.torch_video_vit import TorchVideoViT

_BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "FlashAttention-2": SDPBackend.FLASH_ATTENTION}
# What a CPU has, for rehearsals.
_CPU_BACKENDS = {"math": SDPBackend.MATH}

COMPILED, REMAT = "PyTorch compiled, cuDNN", "PyTorch compiled, cuDNN, remat"
EAGER = "PyTorch eager, FlashAttention-2"


def measure(
    cases: Sequence[Case],
    clip: tuple[int, ...],
    shapes: Mapping[str, tuple[int, ...]],
    samples: int,
    limit_s: float,
) -> list[Row]:
    """Times all cases on the GPU, or without one on the CPU.

    Args:
      cases: what.
      clip: `(T, H, W, 3)`.
      shapes: of the encoder's parameters by their paths.
      samples: of each time.
      limit_s: no case is begun after that.
    """
    is_gpu = torch.cuda.is_available()
    tasks: list[tuple[Row, Callable[[], Row]]] = []
    for case in cases:
        if isinstance(case, Attention):
            for name, backend in (_BACKENDS if is_gpu else _CPU_BACKENDS).items():
                row = Row(case, "peer", f"PyTorch {name}")
                tasks.append((row, functools.partial(_attention, row, backend, samples)))
            continue
        for way in (COMPILED, *([REMAT] if case.is_trained else []), EAGER):
            row = Row(case, "peer", way)
            tasks.append((row, functools.partial(_encoder, row, clip, shapes, samples)))
    return list(measured(tasks, limit_s, say))


def _attention(row: Row, backend: SDPBackend, samples: int) -> Row:
    case = row.case
    assert isinstance(case, Attention)
    device = _device()
    kv_heads = case.kv_heads or case.heads
    q, k, v = (
        torch.randn(
            (case.batch, case.tokens, heads, case.head_dim), dtype=torch.bfloat16, device=device
        )
        for heads in (case.heads, kv_heads, kv_heads)
    )
    d_out = torch.randn_like(q)

    def forward() -> Tensor:
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(
                *(x.transpose(1, 2) for x in (q, k, v)),
                is_causal=case.is_causal,
                enable_gqa=kv_heads != case.heads,
            )
        return out.transpose(1, 2)

    def gradients() -> Any:
        return torch.autograd.grad(forward(), (q, k, v), d_out)

    row = row._replace(forward_ms=_graph_milliseconds(forward, samples))
    if case.is_trained:
        for x in (q, k, v):
            x.requires_grad_()
        row = row._replace(forward_backward_ms=_graph_milliseconds(gradients, samples))
    return row


def _graph_milliseconds(run: Callable[[], Any], samples: int) -> float:
    """Time of an operation replayed from a CUDA graph, which leaves Python's time out."""
    if torch.cuda.is_available():
        # As PyTorch asks for it: warm on another stream, then captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = run()
        run = graph.replay
        run()
        ms = milliseconds(run, _wait, is_short=True, samples=samples)
        # The results' memory belongs to the graph.
        del kept
        return ms
    run()
    return milliseconds(run, _wait, is_short=True, samples=samples)


def _encoder(
    row: Row, clip: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], samples: int
) -> Row:
    case = row.case
    assert isinstance(case, Encoder)
    device = _device()
    model = TorchVideoViT(
        {
            path: 0.02 * torch.randn(shape, dtype=torch.bfloat16, device=device)
            for path, shape in shapes.items()
        }
    )
    video = torch.randn((case.batch, *clip), dtype=torch.bfloat16, device=device)
    kept = None
    if case.kept is not None:
        num_patches = shapes["pos_embed"][1] - 1
        drawn = [torch.randperm(num_patches)[: case.kept - 1] for _ in range(case.batch)]
        kept = F.pad(torch.stack(drawn).sort(dim=1).values + 1, (1, 0)).to(device)
    weights = model.parameters()
    for weight in weights:
        weight.requires_grad_(case.is_trained)
    if row.implementation != EAGER:
        # Blocks are alike: one is compiled, for all. Without a GPU nothing is, but traced.
        torch._dynamo.reset()
        options: dict[str, Any] = {} if torch.cuda.is_available() else {"backend": "aot_eager"}
        model.run_block = torch.compile(torch_video_vit.block, dynamic=False, **options)
    if row.implementation == REMAT:
        model.run_block = functools.partial(checkpoint, model.run_block, use_reentrant=False)

    def run() -> Any:
        if not case.is_trained:
            with torch.inference_mode():
                return model(video, kept)
        loss = sum(x.float().square().mean() for x in model(video, kept))
        return torch.autograd.grad(loss, weights)

    with _attention_of(row.implementation):
        for _ in range(2):
            run()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        ms = milliseconds(run, _wait, is_short=False, samples=samples)
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    return row.timed(ms, peak)


@contextlib.contextmanager
def _attention_of(implementation: str) -> Iterator[None]:
    if not torch.cuda.is_available():
        yield
        return
    # The pooler's one query may be none of theirs.
    order = [_BACKENDS["FlashAttention-2" if implementation == EAGER else "cuDNN"], SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        yield


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wait(result: Any) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
