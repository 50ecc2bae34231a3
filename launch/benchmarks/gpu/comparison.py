"""`internvideo-jax benchmark gpu`: both sides in turns, their rows, and how they compare."""

import dataclasses
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from internvideo_jax.config import to_dict
from internvideo_jax.environment import usable_cpus
from internvideo_jax.files import write_json
from internvideo_jax.launch.benchmarks.figures import Figure, Figures
from internvideo_jax.launch.benchmarks.gpu import cases
from internvideo_jax.launch.benchmarks.gpu.cases import Attention, Encoder, Row
from internvideo_jax.launch.benchmarks.runner import machine, run_apart, say

# Of the peer's best time: in the geometric mean of all operations, and of each; and how many times
# faster than upstream's way, eager with FlashAttention-2, every encoder's work should be.
_MEAN, _LEAST, _UPSTREAM = 0.95, 0.85, 1.5


def benchmark_gpu(*, rehearse: bool, limit_s: float, json: Path | None) -> int:
    """Times both sides, prints what came out, and judges it.

    Args:
      rehearse: small cases on the CPU, whose times say nothing and are not judged.
      limit_s: each side begins no case after that.
      json: file for the rows; None for none.

    Returns:
      The exit code: 1 where a goal is missed.

    Raises:
      ValueError: there is no GPU.
      ChildProcessError: a process has died.
    """
    chip, rows = _measure(rehearse, limit_s)
    if json:
        write_json(json, [row.to_json(chip) | {"machine": machine()} for row in rows])
    print(_table(chip, rows))
    judged = figures(rows)
    if judged is None:
        return 0
    print(f"\n{judged.table()}")
    return 0 if rehearse or judged.holds else 1


def _measure(rehearse: bool, limit_s: float) -> tuple[str, list[Row]]:
    from internvideo_jax.launch.benchmarks.gpu import ours
    from internvideo_jax.models.video_vit import internvideo2_1b

    config = internvideo2_1b()
    work: list[cases.Case] = [*cases.ENCODERS, *cases.ATTENTION]
    device, samples = "gpu", cases.SAMPLES
    if rehearse:
        work, device, samples = [*cases.SMALL_ENCODERS, *cases.SMALL_ATTENTION], "cpu", 1
        config = dataclasses.replace(
            config,
            width=16,
            depth=2,
            num_heads=2,
            mlp_dim=32,
            image_size=28,
            num_frames=2,
            pooled_dim=8,
            pooler_heads=2,
        )
    threads = usable_cpus()
    found = run_apart(
        ours.measure, work, to_dict(config), device, samples, limit_s, threads=threads
    )
    rows: list[Row] = found.rows
    if importlib.util.find_spec("torch") is None:
        say("PyTorch is not installed: pip install 'internvideo-jax[torch]' for the comparison")
        return found.chip, rows
    from internvideo_jax.launch.benchmarks.gpu import pytorch

    clip = (config.num_frames, config.image_size, config.image_size, 3)
    arguments = (work, clip, found.shapes, samples, limit_s)
    rows += run_apart(pytorch.measure, *arguments, threads=threads)
    return found.chip, rows


def figures(rows: Sequence[Row]) -> Figures | None:
    """How many times faster than the peer we are, with goals; None without a peer.

    Only the rows of ours count that need no more memory than the peer's best one.
    """
    shown: list[Figure] = []
    ratios = []
    for case in dict.fromkeys(row.case for row in rows):
        of_case = [row for row in rows if row.case == case]
        peers = [row for row in of_case if row.side == "peer"]
        if not peers:
            return None
        if isinstance(case, Attention):
            ratios += _operation_ratios(of_case)
            continue
        shown += _encoder_figures(case, of_case)
    if ratios:
        logarithms = [math.log(ratio) if ratio > 0 else -math.inf for ratio in ratios]
        mean = math.exp(sum(logarithms) / len(ratios))
        shown.insert(0, Figure("attention, geometric mean", mean, "x", at_least=_MEAN))
        shown.insert(1, Figure("attention, least", min(ratios), "x", at_least=_LEAST))
    return Figures("gpu", shown)


def _operation_ratios(rows: Sequence[Row]) -> list[float]:
    """Of the forward pass, and with gradients if these are timed; 0 where we have no time."""
    found = []
    for field in ("forward_ms", "forward_backward_ms"):
        best = {
            side: min(
                (ms for row in rows if row.side == side and (ms := getattr(row, field))),
                default=math.inf,
            )
            for side in ("ours", "peer")
        }
        if math.isfinite(best["peer"]):
            found.append(best["peer"] / best["ours"])
    return found


def _encoder_figures(case: Encoder, rows: Sequence[Row]) -> list[Figure]:
    ours = [row for row in rows if row.side == "ours"]
    peers = [row for row in rows if row.side == "peer"]
    best = min(peers, key=lambda row: row.ms)
    allowed = [row for row in ours if (row.peak_gb or 0) <= (best.peak_gb or math.inf)]
    pairs = [("best", allowed, best, case.faster)]
    for way, name, at_least in (("remat", "remat", 1.0), ("eager", "upstream's way", _UPSTREAM)):
        other = next((row for row in peers if way in row.implementation), None)
        same = [row for row in ours if "remat=full" in row.implementation]
        if other is not None:
            pairs.append((name, same if way == "remat" else ours, other, at_least))
    return [
        Figure(
            f"{case.name}, beside {name}",
            peer.ms / min((row.ms for row in mine), default=math.inf),
            "x",
            at_least=at_least,
        )
        for name, mine, peer, at_least in pairs
        if math.isfinite(peer.ms)
    ]


def _table(chip: str, rows: Sequence[Row]) -> str:
    """All rows as a Markdown table, cases together."""
    lines: list[tuple[str, ...]] = [
        ("work", "batch", "implementation", "forward ms", "with gradients ms", "peak GB", "status")
    ]
    order = list(dict.fromkeys(row.case for row in rows))
    for row in sorted(rows, key=lambda row: order.index(row.case)):
        values: dict[str, Any] = row.to_json(chip)
        numbers = (values[key] for key in ("forward_ms", "forward_backward_ms", "peak_gb"))
        shown = ("" if x is None else f"{x:.4g}" for x in numbers)
        texts = (values["shape"], str(row.case.batch), row.implementation)
        lines.append((*texts, *shown, row.status))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    table = ("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
    return "\n".join((f"{chip}, bfloat16", "", *table))
