"""The start of a run on lists of very many clips with captions."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from internvideo_jax.launch.benchmarks.figures import Figure, Figures
from internvideo_jax.launch.benchmarks.runner import run_apart, say
from internvideo_jax.launch.benchmarks.workdir import working_folder

if TYPE_CHECKING:
    from internvideo_jax.data.config import DataConfig

# The mixture: shares of the clips by their media, which are weights as well.
SHARES = {"video": 0.7, "audio_video": 0.2, "image": 0.1}
# Of a line, and again of what becomes of it.
_LINE_BYTES = 300
_BLOCK = 10_000
_NUM_CAPTIONS = 4096
_WORDS = ("a", "small", "red", "dog", "car", "runs", "in", "the", "snow", "with", "two", "people")
_NAMES = ("audio_captions", "asr_captions", "avs_captions")
_RECORDS = 20_000

MIN_LINES_PER_SECOND = 200_000
MAX_START_SECONDS, MAX_OWN_MB, MAX_RECORD_US = 1, 300, 50


def benchmark_lists(*, lines: int, workdir: Path) -> Figures:
    """Writes three lists, one for each kind of media of stage 2, and opens their mixture.

    The first opening reads the lists and keeps what they state; a later one, in a process of its
    own, finds that. Either has one CPU. What others do meanwhile does not count, but for the start.

    Args:
      lines: of all lists together.
      workdir: where to make a folder for them; it is removed at the end, come what may.

    Raises:
      UsageError: too little room.
      ChildProcessError: a process has died.
    """
    name = f"lists/{lines}"
    with working_folder(workdir, 2 * _LINE_BYTES * lines) as folder:
        say(f"{name}: writing {lines:,} lines in {folder}")
        counts = write_lists(folder, lines)
        say(f"{name}: reading them")
        seconds = run_apart(first_start, folder, threads=1)
        start, own_mb, record = run_apart(later_start, folder, threads=1)
    figures = (
        Figure("lines read", lines / seconds, "/CPU-s", at_least=MIN_LINES_PER_SECOND),
        Figure("later start", start, "s", at_most=MAX_START_SECONDS),
        Figure("memory of its own", own_mb, "MB", at_most=MAX_OWN_MB),
        Figure("random record", record * 1e6, "µs", at_most=MAX_RECORD_US),
    )
    return Figures(name, figures, {"lines": counts, "cpu_seconds": seconds})


def write_lists(folder: Path, lines: int) -> dict[str, int]:
    """Writes a list for each media; returns how many lines each has."""
    rng = np.random.default_rng(0)
    captions = [" ".join(rng.choice(_WORDS, rng.integers(8, 16))) for _ in range(_NUM_CAPTIONS)]
    counts = {media: max(round(lines * share), 1) for media, share in SHARES.items()}
    for media, count in counts.items():
        with (folder / f"{media}.jsonl").open("wb") as file:
            for first in range(0, count, _BLOCK):
                numbers = range(first, min(first + _BLOCK, count))
                file.writelines(_lines(media, numbers, captions, rng))
    return counts


def _lines(
    media: str, numbers: range, captions: list[str], rng: np.random.Generator
) -> Iterator[bytes]:
    encode = msgspec.json.Encoder().encode
    chosen = rng.integers(len(captions), size=(len(numbers), 4)).tolist()
    for number, drawn in zip(numbers, chosen, strict=True):
        texts = [captions[i] for i in drawn]
        path = f"{number % 1000:03}/{media}_{number:09}"
        line: dict[str, object]
        if media == "video":
            # Parts of longer videos, with one caption each.
            start = number % 600 + 0.25
            line = {"video": f"{path}.mp4", "start": start, "end": start + 8.5, "caption": texts[0]}
        elif media == "audio_video":
            named = {
                "audio_captions": texts[0],
                "asr_captions": texts[1],
                "avs_captions": texts[2:],
            }
            line = {"video": f"{path}.mp4", "caption": named}
        else:
            line = {"video": f"{path}.jpg", "caption": texts}
        yield encode(line) + b"\n"


def mixture(folder: Path) -> "DataConfig":
    """The three lists as a run of stage 2 names them."""
    from internvideo_jax.data.config import DataConfig, MixtureMember

    members = (
        MixtureMember(str(folder / f"{media}.jsonl"), media=media, weight=share)
        for media, share in SHARES.items()
    )
    return DataConfig(mixture=tuple(members), mixture_by="batch")


def first_start(folder: Path) -> float:
    """CPU-seconds until all lists are open, which nobody has read before."""
    from internvideo_jax.data.examples import Clips

    os.environ["INTERNVIDEO_HOME"] = str(folder)
    start = time.process_time()
    Clips(mixture(folder))
    return time.process_time() - start


def later_start(folder: Path) -> tuple[float, float, float]:
    """Seconds by the clock until the first examples are known, anonymous memory in MB, and
    CPU-seconds for each of many records."""
    from internvideo_jax.data.examples import Clips, ExampleOrder

    os.environ["INTERNVIDEO_HOME"] = str(folder)
    start = time.perf_counter()
    clips = Clips(mixture(folder))
    for sets in clips.kinds().values():
        clips.record(ExampleOrder(clips, sets, seed=0)[0])
    seconds = time.perf_counter() - start
    chosen = np.random.default_rng(0).integers(len(clips), size=_RECORDS).tolist()
    start = time.process_time()
    for index in chosen:
        clips.record(index)
    record = (time.process_time() - start) / _RECORDS
    # Of the whole process, but for what it maps.
    own = re.search(r"RssAnon:\s*(\d+)", Path("/proc/self/status").read_text())
    return seconds, int(own[1]) * 1024 / 1e6 if own else np.nan, record
