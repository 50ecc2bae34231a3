"""`internvideo-jax calibrate`: measures a frozen teacher on clips, for products of int8 values."""

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from internvideo_jax.files import write_json
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common.run_config import Run, parse_run

if TYPE_CHECKING:
    from internvideo_jax.training.stages.calibration import Report
    from internvideo_jax.training.stages.teachers import FrozenTeacher

SUMMARY = "measure a frozen teacher on clips, for products of int8 values"

EPILOG = """\
Takes the config of a run with a video-ViT teacher (InternVL-6B, InternVideo2), its saved model and
some of the clips to train on. Writes int8.npz into the teacher's folder: the largest inputs of each
linear layer, and which layers may multiply int8 values without changing the targets. Prints what
each layer changes behind each block. Then train with --config.stage.NAME.quantization=int8.

examples:
  internvideo-jax calibrate --config=configs/stage1/pretrain.py:1b \\
      --config.stage.clip_teacher_path=models/internvl-6b \\
      --config.data.annotations=clips.csv --config.data.root=videos
"""


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0."""
    parser = arguments.make_parser("calibrate", SUMMARY, EPILOG)
    arguments.add_config_argument(parser)
    parser.add_argument(
        "--clips",
        type=arguments.positive_int,
        default=64,
        metavar="N",
        help="how many clips to measure, rounded up to a multiple of the devices (default: 64)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the report to this file")
    args, leftover = parser.parse_known_args(argv)
    arguments.new_output_file(args.json, "--json")
    run = parse_run(arguments.parse_config(args, leftover))
    teacher = _teacher(run)

    # Import JAX.
    import jax

    from internvideo_jax.parallel.mesh import make_mesh
    from internvideo_jax.parallel.rules import DEFAULT_RULES
    from internvideo_jax.training.stages import calibration
    from internvideo_jax.training.stages.int8_teachers import write_calibration
    from internvideo_jax.training.stages.teachers import load_teachers

    mesh = make_mesh(run.train.mesh, jax.devices())
    config: Any = teacher.config
    teacher = dataclasses.replace(teacher, config=dataclasses.replace(config, quantization="none"))
    variables = load_teachers([teacher], mesh, DEFAULT_RULES)[teacher.name]
    videos = _videos(run, args.clips, mesh)
    stage: Any = run.stage
    clips = calibration.Clips(videos, stage.mask, mesh, DEFAULT_RULES)
    found, report = calibration.calibrate(teacher, variables, clips)
    layers = config.layers
    if jax.process_index() == 0:
        file = write_calibration(str(teacher.path), found)
        print("\n".join(_table(report)))
        chosen = report.tried[found.products]
        print(
            f"{file}: {', '.join(found.products)} in int8, measured on"
            f" {sum(map(len, videos))} clips; targets change by {chosen.of_targets(layers):.1e}"
            f" (1 - cos), {100 * chosen.agreement:.1f} % of the masks' tokens are alike"
        )
        if args.json:
            write_json(args.json, _json(report, layers))
    return 0


def _teacher(run: Run) -> "FrozenTeacher":
    """The teacher that can be in int8.

    Raises:
      UsageError: the run has none, or takes its features from a cache.
    """
    teachers: Sequence[FrozenTeacher] = getattr(run.stage, "teachers", ())
    able = [teacher for teacher in teachers if teacher.is_vit]
    if not able or getattr(run.stage, "is_cached", False):
        raise arguments.UsageError(
            "expected a run with a frozen video-ViT teacher, such as"
            " configs/stage1/pretrain.py:1b, found one without; name another --config"
        )
    if not run.data.has_clips:
        raise arguments.UsageError(
            "expected clips to measure the teacher on, found none; set"
            " --config.data.annotations=FILE and --config.data.root=DIR"
        )
    return able[0]


def _videos(run: Run, count: int, mesh: Any) -> list[Any]:
    """So many clips to train on, or a few more, in batches of one for each device."""
    import jax

    from internvideo_jax.data import pipeline
    from internvideo_jax.parallel.rules import DEFAULT_RULES
    from internvideo_jax.training.batches import abstract_batch, to_devices

    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    inputs = abstract_batch(run.stage, rows, mesh, DEFAULT_RULES)
    batches = pipeline.train_batches(
        run.data,
        tuple(inputs),
        batch_size=rows,
        seed=run.train.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with contextlib.closing(batches):
        taken = itertools.islice(batches, -(-count // rows))
        return [to_devices(batch, inputs)["video"] for batch in taken]


def _table(report: "Report") -> list[str]:
    """What int8 changes behind each block: of each layer alone, and of all together."""
    from internvideo_jax.nn.smoothing import PRODUCTS

    columns = {**report.alone, "all": report.tried[PRODUCTS]}
    lines = ["1 - cos behind each block, one layer in int8, and all", ""]
    lines.append("block" + "".join(f"{name:>10}" for name in columns))
    for block in range(len(columns["all"].blocks)):
        cells = (f"{deviation.blocks[block]:10.1e}" for deviation in columns.values())
        lines.append(f"{block:5}" + "".join(cells))
    shares = (f"{100 * deviation.agreement:8.1f} %" for deviation in columns.values())
    return [*lines, "masks" + "".join(shares), ""]


def _json(report: "Report", layers: Sequence[int]) -> dict[str, Any]:
    def row(products: Sequence[str], deviation: Any) -> dict[str, Any]:
        return {
            "int8": list(products),
            "blocks": [float(x) for x in deviation.blocks],
            "targets": deviation.of_targets(layers),
            "mask_agreement": deviation.agreement,
        }

    return {
        "alone": [row([product], deviation) for product, deviation in report.alone.items()],
        "tried": [row(products, deviation) for products, deviation in report.tried.items()],
    }
