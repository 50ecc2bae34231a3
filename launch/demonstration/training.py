"""From clips to a verdict: world, teachers, stage 1, probes, stage 2, retrieval, report."""

import contextlib
import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from internvideo_jax.configs.demo import common
from internvideo_jax.data import pipeline
from internvideo_jax.data.annotations.lists import read_annotations
from internvideo_jax.data.synthetic.world import MOTIONS, SPLITS, Split, World, make_world
from internvideo_jax.environment import usable_cpus
from internvideo_jax.evaluation.classification import confusion_counts, top_k_accuracy
from internvideo_jax.evaluation.figures.confusion import confusion_figure
from internvideo_jax.files import write_json
from internvideo_jax.launch.common.progress import Progress
from internvideo_jax.launch.common.run_config import Run as Recipe
from internvideo_jax.launch.demonstration import features, retrieval, runs
from internvideo_jax.launch.demonstration.baseline import (
    constant_cross_modal_losses,
    constant_losses,
)
from internvideo_jax.launch.demonstration.clips import Clips, cache_dir, read_clips
from internvideo_jax.launch.demonstration.figures import loss_figure, mask_figure, world_figure
from internvideo_jax.launch.demonstration.meter import Part, matmul_gflops, measured
from internvideo_jax.launch.demonstration.probe import draw_labels, probe
from internvideo_jax.launch.demonstration.report import ProbeRow, Report, Run, as_html, as_json
from internvideo_jax.training.masking import attention_guided_kept, kept_to_mask
from internvideo_jax.training.stages.alignment import AlignmentStage
from internvideo_jax.training.stages.cross_modal import CrossModalStage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_PAGE = "report.html"
REPORT_DATA = "report.json"

# Splits whose pixels the demo itself looks at.
_READ: tuple[Split, ...] = ("train", "probe", "test")
# Batches that the constant predictor is fitted to.
_BASELINE_BATCHES = 8
_PROBE_SEED = 4
# Of 8 frames one of the two next to the middle, where a frame says nothing of the motion.
_MIDDLE = 4
_CLIPS_SHOWN = 6
_MASKS_SHOWN = 4


def run(size_name: str, home: Path, output: Path, say: Callable[[str], None]) -> Report:
    """Trains and judges; goes on where a run that did not finish has stopped.

    Args:
      size_name: of `configs.demo.common.SIZES`.
      home: folder for the world's files, which stay for further runs.
      output: folder for the models and the report.
      say: takes headlines.

    Raises:
      arguments.Terminated: stopped by SIGTERM, after a checkpoint.
      OSError, ValueError: as `training.loop.train`.
    """
    size = common.SIZES[size_name]
    folder = runs.open_folder(size_name, output / "training")
    parts: list[Part] = []

    say("Make a world: mp4 files with sound, captions and labels; decode their frames")
    gflops = matmul_gflops()
    with measured(parts, "world"):
        world, clips = _make_clips(size, home)
    print(f"{sum(len(split.video) for split in clips.values())} clips in {world.directory}")
    seen = clips["train"]
    train = functools.partial(runs.train, size=size_name, folder=folder)
    cached = {"cache_dir": str(cache_dir(world))}
    motions, looks = (
        {**cached, "annotations": str(annotations("train"))}
        for annotations in (world.annotations, world.look_annotations)
    )

    say("Train an image teacher: single frames, labelled with colour, shape and size")
    with measured(parts, "image teacher") as part:
        image_teacher = train("image teacher", part=part, data=looks)

    say("Train a video teacher: clips, labelled with their motion")
    with measured(parts, "video teacher") as part:
        video_teacher = train("video teacher", part=part, data=motions)

    say("Stage 1: a masked student follows both teachers, without labels")
    with measured(parts, "teachers' features"):
        targets = features.teacher_features(
            size, image_teacher.model, video_teacher.model, seen.video
        )
        data = {**motions, "features_dir": features.save(targets, folder / "features")}
    with measured(parts, "stage 1") as part:
        student = train("stage 1", part=part, data=data)

    say("Control: the same student follows the teachers as they were before their training")
    with measured(parts, "control") as part:
        untrained = features.teacher_features(
            size, image_teacher.untrained, video_teacher.untrained, seen.video
        )
        features_dir = features.save(untrained, folder / "control_features")
        control = train("control", part=part, data={**motions, "features_dir": features_dir})

    say("Stage 2: clips, sounds and texts together, from stage 1's encoder")
    with measured(parts, "stage 2") as part:
        words, start = runs.stage2_fields(folder, world, student.model)
        finder = train("stage 2", part=part, data=motions | words, stage=start)

    say("Texts look for clips and sounds that no training has seen")
    with measured(parts, "retrieval"):
        retrievals = retrieval.measure(size_name, finder.model, folder / "retrieval")

    say("Probe the frozen encoders on held-out clips")
    with measured(parts, "probes and report"):
        rows = _probe_all(size, clips, student, control, video_teacher, image_teacher)
        stage1 = runs.recipe("stage 1", size_name, data)
        assert isinstance(stage1.stage, AlignmentStage)
        test = clips["test"]
        results = [
            image_teacher.judged(_constant(seen.looks), _accuracy(image_teacher, test, test.looks)),
            video_teacher.judged(
                _constant(seen.motions), _accuracy(video_teacher, test, test.motions)
            ),
            student.judged(_constants(stage1)),
            finder.judged(_constants(runs.recipe("stage 2", size_name, motions | words, start))),
        ]
        guesses = features.class_scores(video_teacher.model, test.video).argmax(-1)
        confusions = {
            "video teacher": _confusion(test.motions, guesses),
            "stage 1": _confusion(test.motions, rows[0].motion.predictions),
        }
        pictures: dict[str, Figure | Path] = {
            "losses.png": _draw_losses(results),
            "masks.png": _draw_masks(stage1.stage, seen, targets["attention"]),
            "confusion.png": confusion_figure(confusions["stage 1"], MOTIONS),
            "teacher_confusion.png": confusion_figure(confusions["video teacher"], MOTIONS),
            "world.png": _draw_world(world, seen),
            "retrieval.png": folder / "retrieval/clips_1" / retrieval.CONTACT_SHEET,
            "voices.png": folder / "retrieval/voices_heard" / retrieval.CONTACT_SHEET,
        }
    report = Report(
        size_name,
        size.probe_labels,
        rows,
        results,
        confusions,
        retrievals,
        parts,
        gflops,
        usable_cpus(),
    )
    _write(report, pictures, output)
    runs.close_folder(folder)
    return report


def _make_clips(size: common.Size, home: Path) -> tuple[World, dict[Split, Clips]]:
    """Files and pixels of all splits; whatever is there already stays."""
    count = sum(size.world.num_clips(split) for split in SPLITS)
    with Progress(count, "clip", "write") as bar:
        world = make_world(size.world, home, report=bar.update)
    return world, {split: read_clips(world, split, common.data(None)) for split in _READ}


def _probe_all(
    size: common.Size,
    clips: Mapping[Split, Clips],
    student: Run,
    control: Run,
    video_teacher: Run,
    image_teacher: Run,
) -> list[ProbeRow]:
    """The table of probes, stage 1 and its start first."""
    drawn = draw_labels(len(clips["probe"].video), size.probe_labels, size.probe_draws, _PROBE_SEED)
    learnt, judged = clips["probe"], clips["test"]

    def row(name: str, model: Path, is_still: bool = False) -> ProbeRow:
        read = [
            features.probe_features(model, _still(c.video) if is_still else c.video)
            for c in (learnt, judged)
        ]
        motion = probe(read[0], learnt.motions, drawn, read[1], judged.motions)
        return ProbeRow(name, motion, probe(read[0], learnt.shapes, drawn, read[1], judged.shapes))

    return [
        row("stage 1", student.model),
        row("untrained, where stage 1 started", student.untrained),
        row("stage 1 after untrained teachers", control.model),
        row("video teacher", video_teacher.model),
        row("image teacher", image_teacher.model),
        row("stage 1, one frame repeated", student.model, is_still=True),
        row("untrained, one frame repeated", student.untrained, is_still=True),
    ]


def _still(video: np.ndarray) -> np.ndarray:
    """Clips `[N, T, S, S, 3]` whose frames are all the middle one."""
    return np.repeat(video[:, _MIDDLE : _MIDDLE + 1], video.shape[1], axis=1)


def _accuracy(classifier: Run, clips: Clips, labels: np.ndarray) -> float:
    return top_k_accuracy(features.class_scores(classifier.model, clips.video), labels, 1)


def _constant(labels: np.ndarray) -> dict[str, float]:
    """Cross-entropy of always stating the shares of the classes."""
    shares = np.bincount(labels) / len(labels)
    return {"loss": float(-np.sum(shares[shares > 0] * np.log(shares[shares > 0])))}


def _constants(run: Recipe) -> dict[str, float]:
    """The same of the losses of stages 1 and 2."""
    ((stage, rows),) = run.kinds().values()
    fields = tuple(stage.example_batch(1))
    batches = pipeline.train_batches(run.data, fields, batch_size=rows, seed=0)
    with contextlib.closing(batches):
        if isinstance(stage, CrossModalStage):
            return constant_cross_modal_losses(stage, batches, _BASELINE_BATCHES)
        assert isinstance(stage, AlignmentStage)
        return constant_losses(stage, batches, _BASELINE_BATCHES)


def _draw_losses(results: Sequence[Run]) -> "Figure":
    curves = []
    for run in results:
        # Of several terms the sum would only flatten the rest.
        terms = {n: x for n, x in run.constants.items() if n != "loss"} or run.constants
        curves.append((run.name, run.metrics(), terms))
    return loss_figure(curves)


def _draw_masks(stage: AlignmentStage, clips: Clips, attention: np.ndarray) -> "Figure":
    """Masks as training draws them, of the first clips."""
    grid = stage.config.encoder.grid
    shown = []
    for number in range(min(_MASKS_SHOWN, len(clips.video))):
        weights = attention[number]
        draws = jax.random.exponential(jax.random.key(number), weights.shape)
        kept = attention_guided_kept(weights, draws, stage.mask.ratio, batch_size=1)
        dropped = np.asarray(kept_to_mask(kept, stage.config.encoder.num_tokens))[0, 1:]
        frames = clips.video[number, :: stage.teacher_stride]
        shown.append((frames, weights.reshape(grid), ~dropped.reshape(grid)))
    return mask_figure(shown)


def _confusion(motions: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Counts `[motions, motions]` of predictions `[..., N]` for clips of motions `[N]`."""
    labels = np.broadcast_to(motions, predictions.shape)
    return confusion_counts(labels.ravel(), predictions.ravel(), len(MOTIONS))


def _draw_world(world: World, clips: Clips) -> "Figure":
    captions = [record.captions[0] for record in read_annotations(world.annotations("train"))]
    count = min(_CLIPS_SHOWN, len(clips.video))
    return world_figure([(captions[i], clips.video[i]) for i in range(count)])


_CAPTIONS = {
    "losses.png": "Losses. Dashed: the best that a predictor reaches that never looks at the clip.",
    "masks.png": "Clips at the student's time steps, the image teacher's attention, and the tokens"
    " that the student keeps, drawn in proportion to it.",
    "confusion.png": "Motions as the probes of stage 1 read them off the test clips.",
    "teacher_confusion.png": "The same as the video teacher's own head tells them.",
    "world.png": "Training clips with their captions, as the models see them. What a caption says"
    " of a voice can only be heard.",
    "retrieval.png": "Captions of unseen clips, and the best of 200 clips for each as the fusion"
    " layer ranks them; green frames are right.",
    "voices.png": "Captions of clips that come in threes, which differ in the voice alone, and the"
    " best clips for each with their sound.",
}


def _write(report: Report, pictures: Mapping[str, "Figure | Path"], output: Path) -> None:
    """Writes the report; pictures are figures to draw, or files to copy."""
    for name, picture in pictures.items():
        if isinstance(picture, Path):
            shutil.copyfile(picture, output / name)
        else:
            picture.savefig(output / name, dpi=110)
    write_json(output / REPORT_DATA, as_json(report))
    page = as_html(report, [(name, _CAPTIONS[name]) for name in pictures])
    (output / REPORT_PAGE).write_text(page, encoding="utf-8")
