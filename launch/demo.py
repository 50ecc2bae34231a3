"""`internvideo-jax demo`: a PyTorch checkpoint, video files and training in miniature."""

import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from internvideo_jax import environment
from internvideo_jax.files import write_json
from internvideo_jax.launch import arguments
from internvideo_jax.launch.demonstration.commands import as_typed, run_command

if TYPE_CHECKING:
    from internvideo_jax.data.synthetic.scenes import Scene

SUMMARY = "convert, verify and use a small checkpoint, then train stages 1 and 2 in miniature"

ASSETS = Path(__file__).parent / "assets"

EPILOG = """\
what it does:
  A checkpoint of PyTorch becomes a model that is verified and extracts features:
    internvideo-jax convert demo_checkpoint.pth --output=$INTERNVIDEO_HOME/demo/model
    internvideo-jax verify $INTERNVIDEO_HOME/demo/model --reference=demo_reference.safetensors
    internvideo-jax extract clips/ --model=$INTERNVIDEO_HOME/demo/model --output=features/
  That model has 0.14 M random parameters: it shows that every step works.
  Then two teachers and a stage-1 student are trained on clips that it makes, by the loop of
  `internvideo-jax train` and the configs in configs/demo, and probed on clips that no model has
  seen. From the student's encoder, stage 2 learns what captions and sounds say of the clips, and
  finds unseen ones by `internvideo-jax evaluate`. Exit code 1: the student reads motion less than
  10 points better than untrained, or stage 2 finds less than docs/demo.md asks for.

examples:
  internvideo-jax demo
  internvideo-jax demo --output=/tmp/demo --fast

OUTPUT/report.html has the findings. A demo that was interrupted goes on where it stopped; one that
was finished starts anew, but for the clips, which stay in $INTERNVIDEO_HOME/demo. docs/demo.md has
more.
"""

# Marks folders of the demo's own, which it may clear.
_MARKER = ".internvideo-jax-demo"


# Runs whose models are offered at the end: an encoder, a classifier, and one that finds clips.
_SHOWN = ("stage 1", "video teacher", "stage 2")


def _scenes(fast: bool) -> "dict[str, Scene]":
    from internvideo_jax.data.synthetic.scenes import Scene

    scenes = {
        "red_circle_right": Scene("circle", "red", "right", "gradient"),
        "blue_cross_clockwise": Scene("cross", "blue", "clockwise"),
        "green_ring_growing": Scene("ring", "green", "growing", "checkerboard"),
    }
    return dict(list(scenes.items())[:1]) if fast else scenes


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the demo; returns 1 if the models have not learnt what they must."""
    parser = arguments.make_parser("demo", SUMMARY, EPILOG)
    parser.add_argument(
        "--output",
        type=Path,
        help="new or empty folder, or one of an earlier demo (default: $INTERNVIDEO_HOME/demo)",
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="a few clips and steps: shows that everything runs, and proves nothing",
    )
    args = parser.parse_args(argv)
    environment.keep_freed_memory()

    from internvideo_jax.configs.demo import common
    from internvideo_jax.launch.demonstration import report, retrieval, training

    started = time.perf_counter()
    home = common.home()
    output = _output_dir(args.output, home)
    environment.compile_plainly()
    numbers = itertools.count(1)

    def say(title: str) -> None:
        print(f"\n== {next(numbers)}. {title}", flush=True)

    _use_a_checkpoint(home, output, args.fast, say)
    size = "fast" if args.fast else "full"
    found = training.run(size, home, output, say)
    print(f"\n{report.as_text(found)}\n")
    print(f"models    {', '.join(str(run.model) for run in found.runs)}")
    print(f"report    {output / training.REPORT_PAGE}")
    student, teacher, finder = (next(r.model for r in found.runs if r.name == n) for n in _SHOWN)
    print("\nUse what was trained:")
    for command in (
        ("predict", str(output / "clips"), f"--model={teacher}", "--top=2"),
        ("extract", str(output / "clips"), f"--model={student}", "--output=stage_1_features"),
        ("evaluate", *retrieval.arguments_of("clips_1", size, finder, Path("found"))),
    ):
        print(f"$ {as_typed(*command)}")
    print(f"\nDemo finished in {time.perf_counter() - started:.0f} s: {found.verdict}.")
    return 0 if found.has_passed else 1


def _output_dir(path: Path | None, home: Path) -> Path:
    """The folder for results, which is the demo's own.

    Raises:
      arguments.UsageError: it holds other files.
    """
    output = home if path is None else path
    if path is None or (path / _MARKER).is_file():
        output.mkdir(parents=True, exist_ok=True)
    else:
        arguments.new_output_dir(path)
    (output / _MARKER).touch()
    return output


def _use_a_checkpoint(home: Path, output: Path, fast: bool, say: Callable[[str], None]) -> None:
    """Converts a checkpoint, verifies it, and extracts features of rendered clips."""
    from internvideo_jax.data.synthetic import scenes as synthetic
    from internvideo_jax.launch import convert, extract, verify

    model, clips, features = home / "model", output / "clips", output / "features"
    for folder in (model, clips, features):
        shutil.rmtree(folder, ignore_errors=True)
    clips.mkdir(parents=True)

    say("Convert a PyTorch checkpoint (no torch needed)")
    run_command("convert", convert.main, [str(ASSETS / "demo_checkpoint.pth"), f"--output={model}"])

    say("Verify it against activations of the original PyTorch model")
    reference = ASSETS / "demo_reference.safetensors"
    run_command("verify", verify.main, [str(model), f"--reference={reference}"])

    say("Render clips")
    for name, scene in _scenes(fast).items():
        synthetic.write_video(clips / f"{name}.mp4", synthetic.render(scene))
        print(f"{clips / name}.mp4")

    say("Extract their features")
    run_command("extract", extract.main, [str(clips), f"--model={model}", f"--output={features}"])

    say("See where the pooler looks (these weights are random, and so are the places)")
    rows = _draw_attention(model, sorted(clips.glob("*.mp4")), output / "attention.png")
    summary = {"model": str(model), "features": str(features), "clips": rows}
    write_json(output / "summary.json", summary)
    for row in rows:
        print(
            f"{row['clip']}: |pooled| = {row['norm']:.3f}, looks most at"
            f" {row['peak_seconds']:.2f} s ({row['peak']:.0%} of its attention)"
        )
    print(f"picture   {output / 'attention.png'}")
    print(f"features  {features}")
    print(f"summary   {output / 'summary.json'}")


def _draw_attention(model_dir: Path, videos: Sequence[Path], picture: Path) -> list[dict[str, Any]]:
    """Saves a contact sheet of the pooler's attention; returns a row of figures per video."""
    import jax

    from internvideo_jax import models, saved_model
    from internvideo_jax.evaluation.features import ClipFeatures, extract_features
    from internvideo_jax.evaluation.figures.attention import AttendedClip, attention_figure
    from internvideo_jax.preprocessing import normalize

    model = saved_model.load(model_dir)
    preprocessing = model.preprocessing.require_video()
    grid = models.video_encoder(model.module, model.variables)[0].config.grid
    results = extract_features(videos, model)
    samples = [result.clip for result in results if isinstance(result, ClipFeatures)]

    @jax.jit
    def encode(variables: Any, frames: jax.Array) -> Any:
        video = normalize(frames, preprocessing)
        return models.encode(model.module, variables, video, return_pooler_attention=True)

    encoded = encode(model.variables, np.stack([s.frames for s in samples]))
    # The class token's share is left out: it belongs to no patch.
    attention = np.asarray(encoded.pooler_attention)[:, 1:].reshape(-1, *grid)
    figure = attention_figure(
        [
            AttendedClip(v.stem.replace("_", " "), s.frames, s.timestamps, a)
            for v, s, a in zip(videos, samples, attention, strict=True)
        ]
    )
    figure.savefig(picture, dpi=120)
    rows = []
    for video, sample, heat, pooled in zip(
        videos, samples, attention, np.asarray(encoded.pooled), strict=True
    ):
        per_step = heat.sum((1, 2)) / heat.sum()
        peak = int(per_step.argmax())
        rows.append(
            {
                "clip": video.stem,
                "norm": float(np.linalg.norm(pooled)),
                "peak": float(per_step[peak]),
                "peak_seconds": float(sample.timestamps[peak * len(sample.timestamps) // grid[0]]),
            }
        )
    return rows
