"""`python -m tests.fuzz`: runs the targets, prints a table, and keeps what was found."""

import argparse
import dataclasses
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from internvideo_jax.environment import printable, usable_cpus
from tests.fuzz.harness import KINDS, Result, Target, all_targets, fuzz


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 if there was any fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--first", type=int, default=0, help="number of each one's first input")
    parser.add_argument("--target", action="append", metavar="NAME", help="only this one; repeat")
    parser.add_argument("--jobs", type=int, default=usable_cpus(), help="processes at a time")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="for report.json and the inputs of faults"
    )
    args = parser.parse_args(argv)
    known = all_targets()
    if unknown := set(args.target or ()) - known.keys():
        parser.error(f"no target {', '.join(unknown)} (targets: {', '.join(known)})")
    chosen = [known[name] for name in args.target or known]
    started = time.monotonic()
    print(_row(_HEADER), flush=True)
    results = []
    weights = sum(target.weight for target in chosen)
    for target in chosen:
        inputs = math.ceil(args.inputs * target.weight / weights)
        result = fuzz(target, inputs, args.first, args.jobs)
        results.append(result)
        print(_row(_cells(result)), flush=True)
        for fault in result.faults:
            text = f"  {fault.kind} x{fault.count}: {fault.place}: {fault.example}"
            print(printable(f"{text} (inputs {fault.numbers})"), flush=True)
        if args.output is not None:
            # Seeds may start threads, beside which nothing more is to be forked.
            keeper = multiprocessing.Process(target=_keep, args=(target, result, args.output))
            keeper.start()
            keeper.join()
    seconds = time.monotonic() - started
    inputs = sum(result.inputs for result in results)
    faults = sum(len(result.faults) for result in results)
    print(f"{inputs:,} inputs in {seconds:.0f} s, {faults} different faults")
    if args.output is not None:
        report = {
            "seconds": round(seconds, 1),
            "first": args.first,
            "python": sys.version.split()[0],
            "targets": [dataclasses.asdict(result) for result in results],
        }
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return 1 if faults else 0


_HEADER = ("target", "inputs", "read", "refused", *KINDS, "slowest", "memory", "inputs/s")


def _cells(result: Result) -> tuple[str, ...]:
    return (
        result.target,
        *(f"{n:,}" for n in (result.inputs, result.accepted, result.refused)),
        *(f"{result.count(kind):,}" for kind in KINDS),
        f"{result.slowest:.2f} s",
        f"{result.peak_bytes / 2**20:.0f} MB",
        f"{result.inputs / max(result.seconds, 1e-9):,.0f}",
    )


def _row(cells: Sequence[str]) -> str:
    return f"{cells[0]:24}" + "".join(f"{cell:>11}" for cell in cells[1:])


def _keep(target: Target, result: Result, folder: Path) -> None:
    seeds = tuple(target.seeds())
    for fault in result.faults:
        for number in fault.numbers:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{target.name}-{number}").write_bytes(target.input(seeds, number))


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    sys.exit(main())
