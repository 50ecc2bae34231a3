"""What int8 teachers change for the student: stage 1 of the demo after its image teacher in int8.

The models, the clips and the measurements are those of `internvideo-jax demo`.
"""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from internvideo_jax.launch import arguments
from internvideo_jax.launch.benchmarks.runner import say

if TYPE_CHECKING:
    from internvideo_jax.configs.demo.common import Size

# What a probe reads off the student, in percent, and its last loss.
MEASURED = ("motion", "shape", "loss")
TEACHERS = ("float32", "int8")
# Of the first run; no other run of the demo has it.
_FIRST_SEED = 200
# Clips that the teacher is calibrated on, and how many at a time.
_CALIBRATED, _TOGETHER = 64, 16


@dataclasses.dataclass(frozen=True)
class Int8Row:
    """What students of both kinds of teachers reach.

    Attributes:
      targets: mean 1 - cos of the teacher's targets in int8.
      agreement: share of the masks' tokens that are alike.
      found: by `TEACHERS` and by `MEASURED`, of each seed.
    """

    targets: float
    agreement: float
    found: Mapping[str, Mapping[str, list[float]]]

    @property
    def holds(self) -> bool:
        """Whether the means of int8 lie within what the seeds of float32 reach."""
        plain, int8 = (self.found[name] for name in TEACHERS)
        return all(min(plain[name]) <= np.mean(int8[name]) <= max(plain[name]) for name in plain)

    def to_json(self) -> dict[str, Any]:
        """The row, ready for JSON."""
        return {"name": "int8", "holds": self.holds, **dataclasses.asdict(self)}

    def table(self) -> str:
        """The row as a Markdown table: means, and the least and largest of the seeds."""
        plain, int8 = (self.found[name] for name in TEACHERS)
        lines = [f"| of the student | {' | '.join(TEACHERS)} |", "|---" * 3 + "|"]
        for name in plain:
            cells = (
                f"{np.mean(x):.4g} ({min(x):.4g} to {max(x):.4g})"
                for x in (plain[name], int8[name])
            )
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(
            [
                *lines,
                "",
                f"targets change by {self.targets:.1e} (1 - cos),"
                f" {100 * self.agreement:.1f} % of the masks' tokens are alike; means of int8"
                f" {'lie' if self.holds else 'DO NOT LIE'} within the seeds of float32",
            ]
        )


def benchmark_int8(*, demo: Path | None, size: str, repeats: int, workdir: Path | None) -> Int8Row:
    """Trains students of the teachers as they are, and in int8, and measures them.

    Args:
      demo: output of a finished demo; None is the folder where it is by default.
      size: of that demo.
      repeats: runs with each kind, with the same seeds.
      workdir: where models lie meanwhile; None is the system's folder for such.

    Raises:
      ValueError: the demo is not there.
      OSError: files cannot be written.
      arguments.Terminated: SIGTERM.
    """
    from internvideo_jax.configs.demo import common
    from internvideo_jax.data.synthetic.world import make_world
    from internvideo_jax.launch import train as command
    from internvideo_jax.launch.demonstration import features, runs
    from internvideo_jax.launch.demonstration.clips import cache_dir, read_clips
    from internvideo_jax.launch.demonstration.probe import draw_labels, probe
    from internvideo_jax.training.metrics import METRICS, read_metrics
    from internvideo_jax.training.outputs import MODEL

    of_demo = runs.find_folder(size, (demo or common.home()) / "training")
    image, video = (of_demo / f"{name}_teacher" / MODEL for name in ("image", "video"))
    for model in (image, video):
        if not model.is_dir():
            raise ValueError(
                f"expected the models of a finished demo, found none in {model}; run"
                " `internvideo-jax demo` first, or name its output with --demo"
            )
    scale = common.SIZES[size]
    world = make_world(scale.world, common.home())
    clips = {
        split: read_clips(world, split, common.data(None)) for split in ("train", "probe", "test")
    }
    data = {"annotations": str(world.annotations("train")), "cache_dir": str(cache_dir(world))}
    drawn = draw_labels(len(clips["probe"].video), scale.probe_labels, scale.probe_draws, 0)
    found: dict[str, dict[str, list[float]]] = {
        name: {measured: [] for measured in MEASURED} for name in TEACHERS
    }
    int8 = _InInt8(scale, clips["train"].video[:_CALIBRATED])
    with tempfile.TemporaryDirectory(dir=workdir) as temporary:
        folder = Path(temporary)
        adaptations: dict[str, Any] = dict(zip(TEACHERS, (lambda x: x, int8), strict=True))
        for name, adapt in adaptations.items():
            made = features.teacher_features(
                scale, image, video, clips["train"].video, adapt_image=adapt
            )
            of_teacher = {**data, "features_dir": features.save(made, folder / name)}
            for number in range(repeats):
                train = {"seed": _FIRST_SEED + number}
                start, own = (folder / f"{kind}-{name}-{number}" for kind in ("start", "run"))
                run = runs.recipe("stage 1", size, of_teacher, {"initial": str(start)}, train)
                runs.save_untrained(start, run.stage, run.train.seed)
                if not command.train(run, own):
                    raise arguments.Terminated
                learnt, judged = (
                    features.probe_features(own / MODEL, clips[split].video)
                    for split in ("probe", "test")
                )
                reached = {"loss": read_metrics(own / METRICS)[-1]["loss"]}
                for attribute in ("motion", "shape"):
                    labels = (getattr(clips[s], f"{attribute}s") for s in ("probe", "test"))
                    known, true = labels
                    reached[attribute] = probe(learnt, known, drawn, judged, true).mean
                for measured, value in reached.items():
                    found[name][measured].append(value)
                said = ", ".join(f"{measured} {value:.4g}" for measured, value in reached.items())
                say(f"{name}, run {number + 1} of {repeats}: {said}")
    return Int8Row(*int8.changes, found)


class _InInt8:
    """Makes int8 variables of the demo's image teacher, and keeps what that changes."""

    def __init__(self, size: "Size", video: np.ndarray) -> None:
        self._size, self._video = size, video
        # 1 - cos of the targets, and the share of the masks' tokens that are alike.
        self.changes = (float("nan"), float("nan"))

    def __call__(self, variables: Any) -> Any:
        import flax.linen as nn
        import jax

        from internvideo_jax.configs.demo import common
        from internvideo_jax.models import TeacherConfig
        from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
        from internvideo_jax.parallel.rules import DEFAULT_RULES
        from internvideo_jax.training.masking import MaskConfig
        from internvideo_jax.training.stages import calibration
        from internvideo_jax.training.stages.int8_teachers import quantize
        from internvideo_jax.training.stages.teachers import FrozenTeacher

        layers = common.aligned_layers(self._size)
        config = TeacherConfig(common.image_encoder(self._size), layers, per_frame=True)
        stride = common.encoder(self._size).tubelet_size
        teacher = FrozenTeacher("clip_teacher", config, None, stride)
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        parts = range(0, len(self._video), _TOGETHER)
        videos = [jax.numpy.asarray(self._video[i : i + _TOGETHER]) for i in parts]
        clips = calibration.Clips(videos, MaskConfig(), mesh, DEFAULT_RULES)
        found, report = calibration.calibrate(teacher, variables, clips)
        chosen = report.tried[found.products]
        self.changes = (chosen.of_targets(layers), chosen.agreement)
        boxes = jax.eval_shape(teacher.init_wide, jax.random.key(0))
        with jax.set_mesh(mesh), nn.logical_axis_rules(()):
            return quantize(variables, boxes, found, mesh, DEFAULT_RULES)
