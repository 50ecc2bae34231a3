"""`internvideo-jax benchmark`: how fast and how large our parts are, beside a peer."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from internvideo_jax import environment
from internvideo_jax.files import write_json
from internvideo_jax.launch import arguments
from internvideo_jax.launch.benchmarks.runner import machine, machine_line

SUMMARY = "time the encoder, features, the converter, reranking and the decoder beside peers"

EPILOG = """\
Each row has the median of our runs and of the peer's, which take turns in one session, and their
ratio: 2 means that we need half of the peer's time. Peak memory is that of a process that does
nothing else. GB are 10^9 bytes. The table goes to the standard output, progress to the other.

  encoder_forward/b14   InternVideo2-B14 on 4 clips of 8x224x224, float32, compiled; the peer is
                        the same model in PyTorch, with the same weights: its outputs must agree
  convert/1b.*          a full-size stage-1 1B checkpoint with random weights, .safetensors and
                        .pth, converted by the command of that name; the peer is copying the file
  extract/b14           features of one clip of 5 s by the command of that name, with a B14 of
  encode/b14            random weights, and by `load` and `encode` in Python; the peer is a program
                        that loads the model, decodes the frames, compiles the forward and runs it
  rerank/b14            match scores of 2 clips with 8 texts by a stage-2 model of a B14 and a text
                        tower of BERT-base's size; the peer encodes the clip for every pair
  decode/clips          8 evenly spread frames of every clip of a folder, as 224x224 views, on one
                        CPU; the peer is a plain decord loop that does the same

examples:
  internvideo-jax benchmark encoder
  internvideo-jax benchmark encoder --threads=8 --repeats=9 --json=encoder.json
  internvideo-jax benchmark extract --repeats=1
  internvideo-jax benchmark convert --workdir=/scratch --json=convert.json
  internvideo-jax benchmark rerank
  internvideo-jax benchmark decode --clips=videos
"""


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs one benchmark; returns 0."""
    args = _parser().parse_args(argv)
    arguments.new_output_file(args.json, "--json")
    # A device would be waited for here and is not used: what is measured runs on the CPU.
    os.environ["JAX_PLATFORMS"] = "cpu"
    with arguments.without_reader():
        print(f"{machine_line()}\n")
    if args.subject == "encoder":
        from internvideo_jax.launch.benchmarks.encoder import benchmark_encoder

        rows = [benchmark_encoder(threads=args.threads, repeats=args.repeats)]
    elif args.subject == "extract":
        from internvideo_jax.launch.benchmarks.extract import benchmark_extract

        rows = benchmark_extract(repeats=args.repeats)
    elif args.subject == "rerank":
        from internvideo_jax.launch.benchmarks.rerank import benchmark_rerank

        rows = [benchmark_rerank(repeats=args.repeats)]
    elif args.subject == "decode":
        from internvideo_jax.launch.benchmarks.decode import benchmark_decode

        rows = [benchmark_decode(clips=args.clips, repeats=args.repeats)]
    else:
        from internvideo_jax.launch.benchmarks.convert import benchmark_convert

        workdir = args.workdir or environment.home()
        rows = benchmark_convert(workdir=workdir, repeats=args.repeats)
    if args.json:
        write_json(args.json, [row.to_json() | {"machine": machine()} for row in rows])
    print("\n\n".join(row.table() for row in rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("benchmark", SUMMARY, EPILOG)
    subjects = parser.add_subparsers(
        dest="subject", metavar="encoder|extract|convert|rerank|decode", required=True
    )
    encoder = subjects.add_parser("encoder", help="forward of the video encoder, beside PyTorch")
    extract = subjects.add_parser("extract", help="features of one clip, beside a bare forward")
    convert = subjects.add_parser("convert", help="conversion of a checkpoint, beside a copy")
    rerank = subjects.add_parser("rerank", help="match scores, beside encoding for every pair")
    decode = subjects.add_parser("decode", help="sampling frames of clips, beside decord")
    for subject, repeats in ((encoder, 5), (extract, 3), (convert, 3), (rerank, 3), (decode, 5)):
        subject.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
        subject.add_argument(
            "--repeats",
            type=arguments.positive_int,
            default=repeats,
            metavar="N",
            help="timed runs of each side (default: %(default)s)",
        )
    encoder.add_argument(
        "--threads",
        type=arguments.positive_int,
        default=2,
        metavar="N",
        help="threads of each side, on so many CPUs (default: %(default)s)",
    )
    convert.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="where to put 9 GB for a while (default: $INTERNVIDEO_HOME or the user's cache)",
    )
    decode.add_argument(
        "--clips",
        type=Path,
        metavar="DIR",
        help="folder to search for videos (default: rendered ones)",
    )
    return parser
