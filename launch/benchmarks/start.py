"""What stage 1 is worth to stage 2: equally short runs from its encoder and from the untrained one.

The models, the clips and the measurements are those of `internvideo-jax demo`.
"""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from internvideo_jax.launch import arguments
from internvideo_jax.launch.benchmarks.runner import say

# Measured of each model.
MEASURED = ("clips_1", "clips_2", "crossed")
# Where the video towers start: folders beside each other in that of the demo's stage 1.
STARTS = {"stage 1": "model", "untrained": "untrained"}
# Of the first pair of runs; no other run of the demo has it.
_FIRST_SEED = 100


@dataclasses.dataclass(frozen=True)
class StartRow:
    """R@1 of texts in percent, by embeddings.

    Attributes:
      steps: of each run.
      recalls: by start and by measurement, of each pair of runs.
    """

    steps: int
    recalls: Mapping[str, Mapping[str, list[float]]]
    # It is an answer, of which nothing is asked.
    holds: ClassVar[bool] = True

    def differences(self) -> dict[str, tuple[float, float]]:
        """By measurement, and of their mean: points that stage 1 is ahead, and their standard error
        over the pairs (NaN of a single one)."""
        first, second = self.recalls.values()
        ahead = {name: np.subtract(first[name], second[name]) for name in first}
        ahead["mean"] = np.mean(list(ahead.values()), axis=0)
        return {name: (float(x.mean()), _standard_error(x)) for name, x in ahead.items()}

    def to_json(self) -> dict[str, Any]:
        """The row, ready for JSON."""
        ahead = {name: points for name, (points, _) in self.differences().items()}
        return {
            "name": "start",
            "unit": "%",
            "steps": self.steps,
            "recalls": self.recalls,
            "ahead": ahead,
        }

    def table(self) -> str:
        """The row as a Markdown table."""
        lines = [f"| R@1 after {self.steps} steps | {' | '.join(self.recalls)} | ahead |"]
        lines.append("|---" * (len(self.recalls) + 2) + "|")
        for name, (points, error) in self.differences().items():
            means = (
                np.mean(list(found.values()) if name == "mean" else found[name])
                for found in self.recalls.values()
            )
            values = " | ".join(f"{mean:.1f}" for mean in means)
            lines.append(f"| {name} | {values} | {points:+.1f} ±{error:.1f} |")
        return "\n".join(lines)


def benchmark_start(
    *, demo: Path | None, size: str, steps: int, repeats: int, workdir: Path | None
) -> StartRow:
    """Trains pairs of models and measures them.

    Args:
      demo: output of a finished demo; None is the folder where it is by default.
      size: of that demo.
      steps: of each run.
      repeats: pairs, each with a seed of its own.
      workdir: where models lie meanwhile; None is the system's folder for such.

    Raises:
      ValueError: the demo is not there.
      OSError: files cannot be written.
      arguments.Terminated: SIGTERM.
    """
    from internvideo_jax.configs.demo import common
    from internvideo_jax.data.synthetic.world import make_world
    from internvideo_jax.launch import train as command
    from internvideo_jax.launch.demonstration import retrieval, runs
    from internvideo_jax.launch.demonstration.clips import cache_dir
    from internvideo_jax.training.outputs import MODEL

    stage1 = runs.find_folder(size, (demo or common.home()) / "training") / "stage_1"
    if not (stage1 / MODEL).is_dir():
        raise ValueError(
            f"expected the models of a finished demo, found none in {stage1}; run `internvideo-jax"
            " demo` first, or name its output with --demo"
        )
    world = make_world(common.SIZES[size].world, common.home())
    data = {"annotations": str(world.annotations("train")), "cache_dir": str(cache_dir(world))}
    recalls: dict[str, dict[str, list[float]]] = {
        start: {name: [] for name in MEASURED} for start in STARTS
    }
    with tempfile.TemporaryDirectory(dir=workdir) as temporary:
        folder = Path(temporary)
        for number in range(repeats):
            seed = _FIRST_SEED + number
            train = {"steps": steps, "warmup_steps": steps // 10, "seed": seed}
            for start, name in STARTS.items():
                words, stage = runs.stage2_fields(folder, world, stage1 / name)
                run = runs.recipe("stage 2", size, data | words, stage, train)
                own = folder / f"{start}-{seed}"
                if not command.train(run, own):
                    raise arguments.Terminated
                found = retrieval.measure(size, own / MODEL, own / "found", MEASURED)
                for result in found:
                    recalls[start][result.name].append(result.recalls["similarity"])
                said = ", ".join(f"{r.name} {r.recalls['similarity']:.1f}" for r in found)
                say(f"pair {number + 1} of {repeats}, from {start}: {said}")
    return StartRow(steps, recalls)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")
