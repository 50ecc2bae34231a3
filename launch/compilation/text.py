"""A compilation report as text."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

LABEL = "static estimate from the compiler, nothing has run"
_COLLECTIVE_COLUMNS = ("program", "kind", "group", "ops", "runs", "MiB", "MiB sent")
_TIME_COLUMNS = ("program", "loops and dearest operations", "runs", "ms each", "s")
# Loops and operations below this share of a program are left to --json; how many operations of a
# loop, and how many letters of a source, are shown.
_SHOWN_SHARE = 0.01
_SHOWN_OPERATIONS = 4
_SHOWN_LETTERS = 64


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    programs = report["programs"]
    limit, frozen = report["hbm_bytes_per_device"], report["frozen_parameters"]
    lines = [
        f"{report['label']} (libtpu {report['versions']['libtpu']},"
        f" jax {report['versions']['jax']})",
        "",
        f"model      {report['model']['architecture']}, {report['parameters'] / 1e6:,.1f} M"
        f" parameters, {_gib(report['parameter_bytes'])}"
        + (f", {frozen / 1e6:,.1f} M frozen ones" if frozen else ""),
        f"topology   {report['topology']} ({report['chip']}), {report['devices']} devices with"
        f" {_gib(limit)} each",
        "mesh       " + " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items()),
        *_batch_lines(report),
        *(f"note       {note}" for note in report["kept_whole"]),
        "",
        f"{'':34}" + "".join(f"{name:>14}" for name in programs),
    ]

    def row(title: str, value: Callable[[dict[str, Any]], str]) -> None:
        lines.append(f"{title:34}" + "".join(f"{value(p):>14}" for p in programs.values()))

    row("lowered in", lambda p: f"{p['lower_seconds']:.1f} s")
    row("compiled in", lambda p: f"{p['compile_seconds']:.1f} s")
    row("analytic FLOPs per clip", lambda p: f"{p['analytic_flops_per_clip'] / 1e12:.3f} T")
    parts = [part for program in programs.values() for part in program["analytic_flops_by_part"]]
    for part in dict.fromkeys(parts) if frozen else ():
        row(f"  {part}", functools.partial(_flops_of_part, part))
    row("analytic FLOPs per device", lambda p: f"{p['analytic_flops_per_device'] / 1e12:.3f} T")
    for part in ("arguments", "outputs", "temporaries", "program", "total"):
        row(f"memory per device: {part}", functools.partial(_memory, part))
    row("of the device's memory", lambda p: _share(p, limit))
    row("estimated time", lambda p: _estimated(p, "seconds"))
    if any(p["estimate"] and p["estimate"]["kernel_seconds"] for p in programs.values()):
        row("  of it our own kernels", lambda p: _estimated(p, "kernel_seconds"))
    row("  products alone, at peak", lambda p: _seconds(p["seconds_at_peak"]))
    row("  collectives alone, at best", lambda p: _seconds(p["seconds_on_the_wire"]))

    lines += _time_lines(programs)
    lines += ["", "collectives per device and step"]
    rows = [
        _collective_row(name, c) for name, p in programs.items() for c in p["collectives"] or ()
    ]
    lines += _table([_COLLECTIVE_COLUMNS, *rows]) if rows else ["  none"]
    for name, program in programs.items():
        if program["note"]:
            lines.append(f"  {name}: {program['note']}")
        if not program["fits"]:
            lines += ["", f"{name}: DOES NOT FIT. {program['overflow']}"]
    return "\n".join(lines)


def _time_lines(programs: dict[str, dict[str, Any]]) -> list[str]:
    """What the estimated time is made of: loops, indented by their depth, and their operations."""
    rows, kernel_runs = [], 0
    for name, program in programs.items():
        estimate = program["estimate"]
        if estimate is None:
            continue
        kernel_runs += estimate["kernel_runs"]
        least = _SHOWN_SHARE * estimate["seconds"]
        for loop in estimate["loops"]:
            if loop["depth"] and loop["seconds"] < least:
                continue
            indent = "  " * loop["depth"]
            runs = str(loop["trips"]) + ("" if loop["trips_known"] else "+")
            title = f"{indent}{_tail(loop['source'])}" if loop["depth"] else "all"
            each = 1e3 * loop["seconds_per_trip"]
            rows.append((name, title, runs, f"{each:,.3f}", f"{loop['seconds']:.3f}"))
            for operation in loop["dearest"][:_SHOWN_OPERATIONS]:
                total = operation["seconds"] * loop["trips"]
                if total >= least:
                    title = f"{indent}  - {_tail(operation['source'] or operation['name'])}"
                    each = 1e3 * operation["seconds"]
                    rows.append((name, title, runs, f"{each:,.3f}", f"{total:.3f}"))
    if not rows:
        return []
    lines = ["", "estimated time, one operation after the other, collectives left out"]
    lines += _table([_TIME_COLUMNS, *rows])
    if kernel_runs:
        lines.append(f"  left out, too: {kernel_runs} runs of our own kernels of unknown cycles")
    return lines


def _tail(source: str) -> str:
    """The end of a source, which tells more than its beginning."""
    return source if len(source) <= _SHOWN_LETTERS else f"…{source[1 - _SHOWN_LETTERS :]}"


def _estimated(program: dict[str, Any], part: str) -> str:
    return _seconds(program["estimate"] and program["estimate"][part])


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f} s"


def _batch_lines(report: dict[str, Any]) -> list[str]:
    """A line for the batch of all programs, or for that of each."""
    kept, micro_batches = report["kept_tokens"], report["micro_batches"]
    batches = {}
    for name, program in report["programs"].items():
        fields = (
            f"{field} {'x'.join(map(str, shape))}" for field, shape in program["clip"].items()
        )
        batches[name] = f"{program['batch_size']} clips of {', '.join(fields)}"
    if len(set(batches.values())) == 1:
        batches = {"": batches.popitem()[1]}
    return [
        "batch      "
        + (f"{name}: " if name else "")
        + batch
        + (f", {kept} tokens kept" if kept else "")
        + (f" in {micro_batches} micro-batches" if micro_batches > 1 else "")
        for name, batch in batches.items()
    ]


def _flops_of_part(part: str, program: dict[str, Any]) -> str:
    flops = program["analytic_flops_by_part"].get(part)
    return "-" if flops is None else f"{flops / 1e12:.3f} T"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _memory(part: str, program: dict[str, Any]) -> str:
    return _gib(program["memory"][part]) if program["memory"] else "-"


def _share(program: dict[str, Any], limit: int) -> str:
    used = program["memory"]["total"] if program["memory"] else program["required_bytes"]
    return "unknown" if used is None else f"{100 * used / limit:.0f} %"


def _collective_row(name: str, c: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        c["kind"],
        str(c["group"]),
        str(c["operations"]),
        str(c["executions"]) + ("" if c["trips_known"] else "+"),
        f"{c['bytes'] / 2**20:,.1f}",
        f"{c['wire_bytes'] / 2**20:,.1f}",
    )


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of columns two blanks apart: two of names, then numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: tuple[str, ...]) -> str:
        cells = [
            f"{cell:{width}}" if number < 2 else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  " + "  ".join(cells)

    return [line(row) for row in rows]
