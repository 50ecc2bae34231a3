"""Retrieval by the demo's stage-2 model, as the command `evaluate` measures it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from internvideo_jax.configs.demo.retrieval import MEASUREMENTS
from internvideo_jax.evaluation.retrieval.metrics import DIRECTIONS
from internvideo_jax.files import read_json
from internvideo_jax.launch import evaluate
from internvideo_jax.launch.demonstration.commands import run_command

# R@1 in percent that embeddings alone must reach; of unseen clips, the mean of both lists.
REQUIRED_CLIPS, REQUIRED_CROSSED, REQUIRED_SOUNDS = 60.0, 40.0, 40.0
# Points of R@1 by which sound must help where clips differ in the voice alone.
REQUIRED_HEARING = 10.0

CONTACT_SHEET = "contact_sheet.png"

_TITLES = {
    "clips_1": "text to video, unseen clips (1)",
    "clips_2": "text to video, unseen clips (2)",
    "crossed": "text to video, all motions of every look",
    "sounds": "text to audio, unseen clips (1)",
    "both": "text to audio+video, unseen clips (1)",
    "voices_seen": "text to video, differing in the voice alone",
    "voices_heard": "text to audio+video, the same clips",
}
NOTE = (
    "R@1 in percent: how often a text finds its clip among all of the list, by embeddings alone,"
    " with the dual softmax over all texts, and reranked by the fusion layer. No training has seen"
    " these clips. Half of the unseen ones show combinations that it never shows; no two of (1), or"
    " of (2), show the same. Of every look, colour, shape and size alone would find one clip in"
    " eight. To audio, every clip that sounds alike is right. Clips that differ in the voice alone"
    " come in threes: who does not hear them finds one of three at best."
)


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """A measurement.

    Attributes:
      name: key of `configs.demo.retrieval.MEASUREMENTS`.
      clips: of the list.
      recalls: R@1 of texts in percent by kind of scores: "similarity", "dsl" and perhaps "rerank".
      chance: what guessing reaches.
    """

    name: str
    clips: int
    recalls: Mapping[str, float]
    chance: float


@dataclasses.dataclass(frozen=True)
class Gate:
    """Something that the demo must show.

    Attributes:
      text: what was found.
      value: the same as a number.
      least: what it must reach.
    """

    text: str
    value: float
    least: float

    @property
    def has_passed(self) -> bool:
        """Whether it is enough."""
        return self.value >= self.least


def arguments_of(name: str, size: str, model: Path, output: Path) -> list[str]:
    """What makes `evaluate` take a measurement.

    Args:
      name: of the measurement.
      size: of the demo.
      model: a saved stage-2 model.
      output: where to.
    """
    of_size = "" if size == "full" else f",{size}"
    return [
        f"--model={model}",
        f"--config=configs/eval/retrieval.py:demo,{name}{of_size}",
        f"--output={output}",
    ]


def measure(
    size: str, model: Path, folder: Path, names: Sequence[str] = tuple(MEASUREMENTS)
) -> list[Retrieval]:
    """Takes measurements, those that are not there yet.

    Args:
      size: of the demo, whose clips are used.
      model: a saved stage-2 model.
      folder: gets a folder of results for each.
      names: of the measurements.

    Raises:
      SystemExit: one of them failed.
    """
    for name in names:
        output = folder / name
        # Written last.
        if not (output / "result.json").exists():
            argv = arguments_of(name, size, model, output)
            run_command("evaluate", evaluate.main, argv, is_silent=True)
    return [read_result(name, folder / name) for name in names]


def read_result(name: str, folder: Path) -> Retrieval:
    """What a measurement has found.

    Args:
      name: of it.
      folder: output of `evaluate`.
    """
    card = read_json(folder / "result.json")
    direction, _ = DIRECTIONS[MEASUREMENTS[name].medium]
    found = f"/{direction}_r1"
    recalls = {
        key.removesuffix(found): value
        for key, value in card["metrics"].items()
        if key.endswith(found)
    }
    texts = (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    right = np.mean([len(json.loads(text)["clips"]) for text in texts])
    return Retrieval(name, card["clips"], recalls, 100 * float(right) / card["clips"])


def gates(retrievals: Sequence[Retrieval]) -> list[Gate]:
    """What must come out."""
    plain = {found.name: found.recalls["similarity"] for found in retrievals}
    clips = (plain["clips_1"] + plain["clips_2"]) / 2
    crossed, sounds = plain["crossed"], plain["sounds"]
    heard = plain["voices_heard"] - plain["voices_seen"]
    return [
        Gate(f"texts find {clips:.1f} % of unseen clips", clips, REQUIRED_CLIPS),
        Gate(f"{crossed:.1f} % among all motions of every look", crossed, REQUIRED_CROSSED),
        Gate(f"{sounds:.1f} % of sounds", sounds, REQUIRED_SOUNDS),
        Gate(f"{heard:+.1f} points by hearing voices", heard, REQUIRED_HEARING),
    ]


def cells(retrievals: Sequence[Retrieval]) -> list[list[str]]:
    """The table."""
    kinds = {"similarity": "embeddings", "dsl": "dual softmax", "rerank": "rerank"}
    rows = [["R@1 of texts", "clips", *kinds.values(), "chance"]]
    for found in retrievals:
        values = [f"{found.recalls[k]:.1f}" if k in found.recalls else "" for k in kinds]
        rows.append([_TITLES[found.name], str(found.clips), *values, f"{found.chance:.1f}"])
    return rows
