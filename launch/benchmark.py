"""`internvideo-jax benchmark`: how fast and how large our parts are."""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from internvideo_jax import environment
from internvideo_jax.files import write_json
from internvideo_jax.launch import arguments
from internvideo_jax.launch.benchmarks.runner import machine, machine_line

if TYPE_CHECKING:
    from internvideo_jax.launch.benchmarks.figures import Figures
    from internvideo_jax.launch.benchmarks.int8 import Int8Row
    from internvideo_jax.launch.benchmarks.runner import Row
    from internvideo_jax.launch.benchmarks.start import StartRow
    from internvideo_jax.launch.benchmarks.tpu.attention import AttentionRow
    from internvideo_jax.launch.benchmarks.tpu.tuning import TunedRow

SUMMARY = "measure parts of the library beside peers, or against what is asked of them"

EPILOG = """\
A row of times has the median of our runs and of the peer's, which take turns in one session, and
their ratio: 2 means that we need half of the peer's time. Peak memory is that of a process that
does nothing else. GB are 10^9 bytes. The table goes to the standard output, progress to the other.

  encoder_forward/b14   InternVideo2-B14 on 4 clips of 8x224x224, float32, compiled; the peer is
                        the same model in PyTorch, with the same weights: its outputs must agree
  text_encoder/large    19 text layers of BERT-large, as stage 2 has them, on 64 texts of 32 tokens,
                        float32, compiled; the peer is the same model in transformers
  convert/1b.*          a full-size stage-1 1B checkpoint with random weights, .safetensors and
                        .pth, converted by the command of that name; the peer is copying the file
  extract/b14           features of one clip of 5 s by the command of that name, with a B14 of
  encode/b14            random weights, and by `load` and `encode` in Python; the peer is a program
                        that loads the model, decodes the frames, compiles the forward and runs it
  rerank/b14            match scores of 2 clips with 8 texts by a stage-2 model of a B14 and a text
                        tower of BERT-base's size; the peer encodes the clip for every pair
  int8                  no times: what the demo's students reach after its teachers, and after the
                        image teacher in int8; exit code 1 where the means of the latter are outside
                        of what the seeds of the former reach
  start                 no times: R@1 of the demo's stage 2 after a few steps from its stage 1, and
                        after as many from the encoder that stage 1 started from
  decode/clips          8 evenly spread frames of every clip of a folder, as 224x224 views, on one
                        CPU; the peer is a plain decord loop that does the same

Estimates are not times: the TPU compiler counts the cycles of a program on a machine without one.

  attention             of one clip on kinds of TPUs, forward and with gradients: our kernels, JAX's
                        flash attention, XLA, and recorded figures of splash attention. A row takes
                        minutes and is printed, and written to the file of --json, when it is there

Figures have bounds beside them; the exit code is 1 where one is not kept.

  encode_video/b14      embeddings of 8 clips in files by a warm `encode_video` with a B14, beside
                        its compiled encoder on frames that are decoded already; and the start of a
                        program that loads the model and embeds one clip, its programs being cached
  contrastive/8192x512  memory that each of 8 virtual devices needs for the contrastive loss and its
                        gradients, by XLA's analysis of the program, beside that of comparing all
                        pairs on every device; and how far the gradients of both are apart
  search/1000000x512    a query of an index of random vectors, on two CPUs: compared with all of
                        them, and with those of the nearest clusters, which must find 95 % of the
                        true ten best; and how long clustering takes
  gpu                   on a GPU in bfloat16, in a table of its own: attention at our shapes, and
                        InternVideo2-1B forward, with gradients, and with those of masked clips; the
                        peer is PyTorch with cuDNN's attention, blocks compiled, by its best row
  lists/10000000        the start of a run on three lists with captions, on one CPU: reading them,
                        and once they have been read, opening them and any record; memory but for
                        what is mapped

examples:
  internvideo-jax benchmark encoder
  internvideo-jax benchmark encoder --threads=8 --repeats=9 --json=encoder.json
  internvideo-jax benchmark text_encoder --size=base
  internvideo-jax benchmark extract --repeats=1
  internvideo-jax benchmark encode_video
  internvideo-jax benchmark convert --workdir=/scratch --json=convert.json
  internvideo-jax benchmark contrastive
  internvideo-jax benchmark lists --lines=1000000
  internvideo-jax benchmark search --vectors=200000
  internvideo-jax benchmark decode --clips=videos
  internvideo-jax benchmark start --repeats=5
  internvideo-jax benchmark int8
  internvideo-jax benchmark attention --chip=v5e,v6e --shape=417x16x88
  internvideo-jax benchmark attention --chip=v5e --blocks --json=blocks.json
  internvideo-jax benchmark attention --chip=v6e --shape=2049x25x128 --tune
  internvideo-jax benchmark gpu --json=gpu.json
  internvideo-jax benchmark gpu --rehearse
"""


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs one benchmark; returns 0, or 1 where a bound is not kept."""
    args = _parser().parse_args(argv)
    arguments.new_output_file(args.json, "--json")
    if args.subject == "gpu":
        from internvideo_jax.launch.benchmarks.gpu.comparison import benchmark_gpu

        if args.rehearse:
            os.environ["JAX_PLATFORMS"] = "cpu"
        print(f"{machine_line()}\n")
        return benchmark_gpu(rehearse=args.rehearse, limit_s=args.limit, json=args.json)
    # A device would be waited for here and is not used: what is measured runs on the CPU.
    os.environ["JAX_PLATFORMS"] = "cpu"
    print(f"{machine_line()}\n")
    if args.subject == "attention":
        return _attention(args)
    rows = _measure(args)
    if args.json:
        write_json(args.json, [row.to_json() | {"machine": machine()} for row in rows])
    print("\n\n".join(row.table() for row in rows))
    return 0 if all(row.holds for row in rows) else 1


def _attention(args: argparse.Namespace) -> int:
    from internvideo_jax.launch.benchmarks.tpu import attention, tuning

    arguments.require_tpu_compiler()
    chips, shapes, implementations = attention.check_names(
        args.chip, args.shape, args.implementation
    )
    found: Iterator[AttentionRow] | Iterator[TunedRow]
    if args.tune:
        found = tuning.tune_attention(chips, shapes)
    else:
        found = attention.benchmark_attention(chips, shapes, implementations, blocks=args.blocks)
    rows: list[AttentionRow | TunedRow] = []
    for row in found:
        rows.append(row)
        if args.json:
            # Rows take minutes: those that are there outlive the end of the run.
            write_json(args.json, [row.to_json() | {"machine": machine()} for row in rows])
    print(attention.table(rows))
    return 0


def _measure(args: argparse.Namespace) -> "Sequence[Row | Figures | StartRow | Int8Row]":
    if args.subject == "encoder":
        from internvideo_jax.launch.benchmarks.encoder import benchmark_encoder

        return [benchmark_encoder(threads=args.threads, repeats=args.repeats)]
    if args.subject == "text_encoder":
        from internvideo_jax.launch.benchmarks.text_encoder import benchmark_text_encoder

        return [benchmark_text_encoder(size=args.size, threads=args.threads, repeats=args.repeats)]
    if args.subject == "extract":
        from internvideo_jax.launch.benchmarks.extract import benchmark_extract

        return benchmark_extract(repeats=args.repeats)
    if args.subject == "encode_video":
        from internvideo_jax.launch.benchmarks.encode_video import benchmark_encode_video

        return [benchmark_encode_video(repeats=args.repeats)]
    if args.subject == "convert":
        from internvideo_jax.launch.benchmarks.convert import benchmark_convert

        workdir = args.workdir or environment.home()
        return benchmark_convert(workdir=workdir, repeats=args.repeats)
    if args.subject == "rerank":
        from internvideo_jax.launch.benchmarks.rerank import benchmark_rerank

        return [benchmark_rerank(repeats=args.repeats)]
    if args.subject == "contrastive":
        from internvideo_jax.launch.benchmarks.contrastive import benchmark_contrastive

        return [benchmark_contrastive(batch_size=args.batch_size, width=args.width)]
    if args.subject == "lists":
        from internvideo_jax.launch.benchmarks.lists import benchmark_lists

        return [benchmark_lists(lines=args.lines, workdir=args.workdir or environment.home())]
    if args.subject == "search":
        from internvideo_jax.launch.benchmarks.search import benchmark_search

        workdir = args.workdir or environment.home()
        return [benchmark_search(vectors=args.vectors, width=args.width, workdir=workdir)]
    if args.subject == "int8":
        from internvideo_jax.launch.benchmarks.int8 import benchmark_int8

        size = "fast" if args.fast else "full"
        return [
            benchmark_int8(demo=args.demo, size=size, repeats=args.repeats, workdir=args.workdir)
        ]
    if args.subject == "start":
        from internvideo_jax.launch.benchmarks.start import benchmark_start

        return [
            benchmark_start(
                demo=args.demo,
                size="fast" if args.fast else "full",
                steps=args.steps,
                repeats=args.repeats,
                workdir=args.workdir,
            )
        ]
    from internvideo_jax.launch.benchmarks.decode import benchmark_decode

    return [benchmark_decode(clips=args.clips, repeats=args.repeats)]


def _parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("benchmark", SUMMARY, EPILOG)
    subjects = parser.add_subparsers(
        dest="subject",
        metavar="encoder|text_encoder|extract|encode_video|convert|rerank|contrastive|search|lists"
        "|decode|start|int8|attention|gpu",
        required=True,
    )
    encoder = subjects.add_parser("encoder", help="forward of the video encoder, beside PyTorch")
    text_encoder = subjects.add_parser("text_encoder", help="forward of BERT, beside transformers")
    extract = subjects.add_parser("extract", help="features of one clip, beside a bare forward")
    encode_video = subjects.add_parser(
        "encode_video", help="embeddings of clips in files, beside a bare forward"
    )
    convert = subjects.add_parser("convert", help="conversion of a checkpoint, beside a copy")
    rerank = subjects.add_parser("rerank", help="match scores, beside encoding for every pair")
    contrastive = subjects.add_parser("contrastive", help="memory of the loss, beside all pairs")
    search = subjects.add_parser("search", help="queries of an index of a million windows")
    lists = subjects.add_parser("lists", help="the start of a run on millions of clips")
    decode = subjects.add_parser("decode", help="sampling frames of clips, beside decord")
    start = subjects.add_parser(
        "start", help="stage 2 from stage 1, and from the untrained encoder"
    )
    int8 = subjects.add_parser("int8", help="the demo's stage 1 after an image teacher in int8")
    attention = subjects.add_parser("attention", help="TPU kernels, by the compiler's estimates")
    gpu = subjects.add_parser("gpu", help="attention and the 1B encoder on a GPU, beside PyTorch")
    gpu.add_argument(
        "--rehearse",
        action="store_true",
        help="small cases on the CPU, to see that all of it works; their times say nothing",
    )
    gpu.add_argument(
        "--limit",
        type=arguments.positive_int,
        default=225,
        metavar="SECONDS",
        help="begin no more cases after that, on each side (default: %(default)s)",
    )
    for subject in subjects.choices.values():
        subject.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    timed = {encoder: 5, text_encoder: 5, extract: 3, encode_video: 3, convert: 3, rerank: 3}
    timed |= {decode: 5, start: 3, int8: 3}
    for subject, repeats in timed.items():
        subject.add_argument(
            "--repeats",
            type=arguments.positive_int,
            default=repeats,
            metavar="N",
            help="runs of each side (default: %(default)s)",
        )
    for subject in (encoder, text_encoder):
        subject.add_argument(
            "--threads",
            type=arguments.positive_int,
            default=2,
            metavar="N",
            help="threads of each side, on so many CPUs (default: %(default)s)",
        )
    text_encoder.add_argument(
        "--size",
        choices=("large", "base"),
        default="large",
        help="19 text layers of BERT-large, or 9 of BERT-base (default: %(default)s)",
    )
    for subject, size in ((convert, "9"), (search, "2"), (lists, "6")):
        subject.add_argument(
            "--workdir",
            type=Path,
            metavar="DIR",
            help=f"where to put {size} GB for a while (default: $INTERNVIDEO_HOME or the user's"
            " cache)",
        )
    for subject, option, default, what in (
        (contrastive, "--batch_size", 8192, "examples on all 8 devices"),
        (contrastive, "--width", 512, "of the embeddings"),
        (search, "--vectors", 1_000_000, "in the index"),
        (search, "--width", 512, "of the vectors"),
    ):
        subject.add_argument(
            option,
            type=arguments.positive_int,
            default=default,
            metavar="N",
            help=f"{what} (default: %(default)s)",
        )
    lists.add_argument(
        "--lines",
        type=arguments.positive_int,
        default=10_000_000,
        metavar="N",
        help="clips of all lists together (default: %(default)s)",
    )
    for subject in (start, int8):
        subject.add_argument(
            "--workdir", type=Path, metavar="DIR", help="where to put models for a while"
        )
        subject.add_argument(
            "--demo",
            type=Path,
            metavar="DIR",
            help="output of a demo (default: $INTERNVIDEO_HOME/demo)",
        )
        subject.add_argument("--fast", action="store_true", help="of `internvideo-jax demo --fast`")
    start.add_argument(
        "--steps",
        type=arguments.positive_int,
        default=150,
        metavar="N",
        help="of each run (default: %(default)s)",
    )
    attention.add_argument(
        "--chip",
        default="v5e,v6e,v5p,tpu7x",
        metavar="NAME[,NAME]",
        help="kinds of TPUs (default: %(default)s)",
    )
    attention.add_argument(
        "--shape", metavar="NxHxD[,...]", help="tokens, heads, channels (default: all that matter)"
    )
    attention.add_argument(
        "--implementation",
        metavar="NAME[,NAME]",
        help="pallas_tpu (ours), jax_flash, xla, splash (recorded) (default: all)",
    )
    attention.add_argument(
        "--blocks", action="store_true", help="whole layers around attention instead"
    )
    attention.add_argument(
        "--tune", action="store_true", help="search the best block sizes of our kernels instead"
    )
    decode.add_argument(
        "--clips",
        type=Path,
        metavar="DIR",
        help="folder to search for videos (default: rendered ones)",
    )
    return parser
