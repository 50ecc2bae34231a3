"""`internvideo-jax shard`: the clips of a list, or of class folders, into a few large files."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from internvideo_jax.environment import usable_cpus
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common.progress import Progress

if TYPE_CHECKING:
    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.data.sources.shards import ShardIndex

SUMMARY = "pack the clips of a list or of class folders into ArrayRecord shards, or check such"

EPILOG = """\
DIR gets ArrayRecord files with the clips' files as they are, their labels, captions and times, in
the order of the annotations, and index.json with the number of records, the size and the checksum
of every shard. It appears under its name when all is written. Every clip is opened, and its first
and last frame decoded, before it is stored; those that cannot be read are listed and nothing is
written, or, with --skip_broken, they are left out.

A clip that states times is stored with its whole file: cut long files into their clips first.

examples:
  internvideo-jax shard train.jsonl --output=shards/train
  internvideo-jax shard train.csv --root=/data/k400 --shard_mb=500 --output=shards/train
  internvideo-jax shard clips/train --output=shards/train
  internvideo-jax shard --check=shards/train

Train on them with --config.data.shards=shards/train instead of --config.data.annotations; where
labels are names, as those of folders are, with a file of them in --config.data.classes. In Python:
internvideo_jax.data.sources.shard_writer.
"""

DEFAULT_SHARD_MB = 1000


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0."""
    parser = _parser()
    args = parser.parse_args(argv)
    workers = args.workers or usable_cpus()
    if args.check is not None:
        if args.annotations or args.output:
            parser.error("--check=DIR takes neither annotations nor --output")
        from internvideo_jax.data.sources.shards import check_shards

        print(f"{_summary(check_shards(args.check, workers=workers))}: as written")
        return 0
    if args.annotations is None or args.output is None:
        parser.error("expected ANNOTATIONS and --output=DIR, or --check=DIR")

    from internvideo_jax.data.config import ClipSet
    from internvideo_jax.data.sources.clips import RecordSource, open_source
    from internvideo_jax.data.sources.shard_writer import describe_broken, write_shards

    named = ClipSet(annotations=args.annotations, **arguments.annotation_options(args))
    source = open_source(named, num_classes=args.num_classes)
    assert isinstance(source, RecordSource)
    records = source.records
    if args.num_shards and args.num_shards > len(records):
        print(f"{len(records)} shards: not more than there are clips", file=sys.stderr)
    num_shards = args.num_shards or _num_shards(records, args.shard_mb or DEFAULT_SHARD_MB)
    started = time.perf_counter()
    with Progress(len(records), "clip") as bar:
        written = write_shards(
            records,
            args.output,
            num_shards=num_shards,
            workers=workers,
            skip_broken=args.skip_broken,
            on_clip=bar.update,
        )
    if written.broken:
        print(f"left out: {describe_broken(written.broken)}", file=sys.stderr)
    seconds = time.perf_counter() - started
    print(f"{_summary(written.index)} in {seconds:.1f} s -> {args.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("shard", SUMMARY, EPILOG)
    parser.add_argument(
        "annotations",
        nargs="?",
        metavar="ANNOTATIONS|DIR",
        help="a list, or a folder that holds a folder of videos for each class",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--check", type=Path, metavar="DIR", help="read all shards here and compare checksums"
    )
    arguments.add_annotation_arguments(parser)
    parser.add_argument(
        "--num_classes",
        type=arguments.positive_int,
        help="every clip needs a label, and one below this number",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--num_shards", type=arguments.positive_int, help="how many files to write")
    size.add_argument(
        "--shard_mb",
        type=arguments.positive_int,
        help=f"about how large they should be, in 10^6 bytes (default: {DEFAULT_SHARD_MB})",
    )
    parser.add_argument(
        "--workers", type=arguments.positive_int, help="threads (default: all cores)"
    )
    parser.add_argument(
        "--skip_broken", action="store_true", help="leave out clips that cannot be read"
    )
    return parser


def _num_shards(records: "Sequence[ClipRecord]", shard_mb: int) -> int:
    """How many shards of that size the clips fill."""
    return max(1, round(sum(map(_size, records)) / (shard_mb * 10**6)))


def _size(record: "ClipRecord") -> int:
    """Bytes of a clip's files; 0 if it cannot be read, of which writing will tell."""
    from internvideo_jax.data.decode.clips import image_names

    try:
        names = image_names(record) or [record.path]
        return sum(Path(name).stat().st_size for name in names)
    except (ValueError, OSError):
        return 0


def _summary(index: "ShardIndex") -> str:
    size = sum(shard.bytes for shard in index.shards) / 1e6
    return f"{index.num_records} clips, {size:.1f} MB, {len(index.shards)} shards"
