"""Conversion of PyTorch checkpoints beside copying their files."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

from internvideo_jax.launch.benchmarks.checkpoints import WRITERS, Shapes, checkpoint_shapes
from internvideo_jax.launch.benchmarks.runner import (
    Row,
    Sample,
    interleave,
    run_command,
    say,
    timed,
)
from internvideo_jax.launch.benchmarks.workdir import working_folder
from internvideo_jax.models import stage1, video_vit


def benchmark_convert(*, workdir: Path, repeats: int) -> list[Row]:
    """Times `internvideo-jax convert` of random 1B checkpoints, in turns with copies of them.

    They are float32, a `.safetensors` and a `.pth` file; each, its copy and the converted model lie
    on one disk. Before each run, not timed, the system writes out what earlier runs left, free
    memory is touched and the file is read: all start from a quiet disk, a cached file, and memory
    that a virtual machine has (a host that lends it on first use takes up to four times as long as
    the copy itself, and now one side pays, now the other). Neither side waits until its own output
    has reached the disk. Our time includes the start of the program.

    Args:
      workdir: where to make a folder for all files; it is removed at the end, come what may.
      repeats: timed runs of each side, for either format.

    Raises:
      UsageError: too little room.
      ChildProcessError: the conversion failed.
    """
    shapes = checkpoint_shapes(stage1.stage1_student(video_vit.internvideo2_1b()))
    return [_benchmark_format(suffix, shapes, workdir, repeats) for suffix in WRITERS]


def _benchmark_format(suffix: str, shapes: Shapes, workdir: Path, repeats: int) -> Row:
    name = f"convert/1b.{suffix}"
    size = sum(4 * math.prod(shape) for shape in shapes.values())
    # The checkpoint, one output at a time, and a tenth to spare.
    with working_folder(workdir, 2.1 * size) as folder:
        source, copied, converted = (folder / n for n in (f"source.{suffix}", "copy", "model"))
        say(f"{name}: writing a checkpoint of {size / 1e9:.2f} GB in {folder}")
        WRITERS[suffix](source, shapes)

        def convert() -> Sample:
            _settle(source, 3 * size)
            sample = run_command("convert", str(source), f"--output={converted}")
            shutil.rmtree(converted)
            return sample

        def copy() -> Sample:
            _settle(source, 3 * size)
            seconds, cpu_seconds = timed(lambda: shutil.copyfile(source, copied))
            copied.unlink()
            return Sample(seconds, cpu_seconds, peak_rss_gb=None)

        runs = {"convert": convert, "copying the file": copy}
        return interleave(name, runs, repeats, {"checkpoint_gb": size / 1e9})


def _settle(source: Path, nbytes: int) -> None:
    """The same start for every run: no writes on their way, `nbytes` of memory at hand, the file in
    the system's cache."""
    os.sync()
    # In a process of its own, whose end gives the memory back.
    subprocess.run([sys.executable, "-c", _TOUCH_MEMORY, str(nbytes)], check=False)
    with open(source, "rb", buffering=0) as file:
        buffer = bytearray(1 << 24)
        while file.readinto(buffer):
            pass


# Leaves a tenth of what is free.
_TOUCH_MEMORY = """
import mmap, os, sys
free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
size = min(int(sys.argv[1]), free * 9 // 10) >> 20 << 20
memory = mmap.mmap(-1, size)
for start in range(0, size, 1 << 20):
    memory[start : start + (1 << 20)] = bytes(1 << 20)
"""
