"""`internvideo-jax verify`: a saved model against activations of the original."""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from internvideo_jax.files import write_json
from internvideo_jax.launch import arguments

SUMMARY = "check a converted model against activations of the original"

EPILOG = """\
examples:
  internvideo-jax verify models/b14-k400 --reference=b14-k400-activations.safetensors
  internvideo-jax verify models/stage2-1b --known_answer=example1.mp4

--known_answer ranks the ten texts of stage 2's published demo for its clip, which lies in the
original's repository (InternVideo2/multi_modality/demo/example1.mp4 of OpenGVLab/InternVideo).

The reference is a .safetensors file with inputs in/* and the original model's outputs out/*, which
`internvideo-jax reference` makes (docs/verifying.md):
  video models   in/video [B, 3, T, H, W], normalised; students also in/mask [B, N], true where
                 dropped; out/logits, out/hidden/blocks.0, ...
  BERT           in/input_ids [B, N], in/attention_mask, in/encoder_hidden_states;
                 out/text_last, ...
  LLaMA towers   in/input_ids [B, N], padded on the right; out/text_embed, ...
  BEATs          in/fbank [B, T, M], normalised; out/features, ...
The checksums of the model's arrays are compared first. It runs in float32 at the highest matmul
precision. Exit code 1: an output differs by more than the tolerance, or is not finite.
"""


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = arguments.make_parser("verify", SUMMARY, EPILOG)
    parser.add_argument("model", metavar="MODEL", help="a converted model: a folder or a name")
    judges = parser.add_mutually_exclusive_group(required=True)
    judges.add_argument("--reference", type=Path, metavar="FILE.safetensors")
    judges.add_argument(
        "--known_answer",
        type=Path,
        metavar="CLIP.mp4",
        help="the clip of stage 2's published demo, whose probabilities InternVideo2-Stage2 1B must"
        " reproduce",
    )
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        default=1e-5,
        help="largest error, relative to an output's largest value (default: %(default)g)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table here, too")
    args = parser.parse_args(argv)
    if args.json and not args.json.parent.is_dir():
        raise arguments.UsageError(
            f"--json={args.json}: expected a file in a folder that exists, found no"
            f" {args.json.parent}; make it first"
        )
    if args.known_answer:
        return _known_answer(args)

    from internvideo_jax.convert.engine import verify
    from internvideo_jax.convert.library import model_directory
    from internvideo_jax.saved_model import load

    reference = verify.load_reference(args.reference)
    values = verify.run_reference(
        load(model_directory(args.model), dtype="float32", check=True), reference
    )
    rows = verify.compare(values, reference, args.tolerance)
    unchecked = sorted(reference.outputs.keys() - values.keys())
    print(verify.format_table(rows, unchecked))
    failed = [row.name for row in rows if not row.ok]
    if args.json:
        table = [dataclasses.asdict(row) | {"ok": row.ok} for row in rows]
        for row in table:
            # JSON has neither infinity, which stands for what cannot be compared, nor NaN.
            for name in ("max_error", "scale", "allowed"):
                row[name] = row[name] if math.isfinite(row[name]) else None
        write_json(args.json, {"outputs": table, "not_checked": unchecked})
    if not rows:
        raise arguments.UsageError(
            f"{args.reference} holds no output that can be checked; it has"
            f" {', '.join(sorted(reference.outputs))}"
        )
    worst = max(rows, key=lambda row: row.relative_error)
    verdict = f"{len(failed)} FAILED" if failed else "all agree"
    print(
        f"{len(rows)} outputs, {verdict}; largest relative error {worst.relative_error:.2g}"
        f" ({worst.name})"
    )
    return 1 if failed else 0


def _known_answer(args: argparse.Namespace) -> int:
    """Runs the published demo of stage 2; returns the exit code."""
    from internvideo_jax.convert.library import model_directory
    from internvideo_jax.evaluation.known_answer import TOLERANCE, check_known_answer
    from internvideo_jax.saved_model import load

    model = load(model_directory(args.model), dtype="float32", check=True)
    answers = check_known_answer(model, args.known_answer)
    print("published   found")
    for answer in sorted(answers, key=lambda answer: -answer.expected):
        verdict = "ok" if answer.ok else "FAILED"
        print(f"{answer.expected:9.4f}  {answer.found:6.4f}  {verdict:6}  {answer.text}")
    if args.json:
        write_json(args.json, {"texts": [dataclasses.asdict(a) | {"ok": a.ok} for a in answers]})
    failed = sum(not answer.ok for answer in answers)
    verdict = f"{failed} FAILED" if failed else "all agree"
    print(f"{len(answers)} probabilities, {verdict} within {TOLERANCE:g}")
    return 1 if failed else 0


def _tolerance(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, found {text}")
    return value
