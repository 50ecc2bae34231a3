from pathlib import Path

import pytest

from internvideo_jax.parallel.hlo import Collective, collectives, totals

# The forms in which libtpu 0.0.51 prints them, cut down to what matters.
PROGRAM = Path(__file__).with_name("tpu_program.hlo").read_text()


def test_every_collective_is_found_once():
    found = sorted(collectives(PROGRAM), key=lambda c: (c.kind, c.bytes))
    assert found == [
        # Its loop's length is not known.
        Collective("all-gather", 4, 1, False, 32),
        # Asynchronous, two operands: only the results count.
        Collective("all-gather", 4, 1, True, (8 + 12) * 4),
        # A quarter of a mesh axis.
        Collective("all-gather", 4, 1, True, 400),
        # Two clones in a loop of 40.
        Collective("all-gather", 8, 40, True, 64 * 64 * 2),
        Collective("all-reduce", 16, 1, True, 4 + 14 * 2),
        Collective("all-to-all", 16, 1, True, 4 * 8 * 4),
        # Two of one channel and size that differ in shape.
        Collective("collective-permute", 16, 1, True, 6 * 16 * 2),
        Collective("collective-permute", 16, 1, True, 6 * 16 * 2),
        # Four-bit numbers; the operand counts, which is 16 results.
        Collective("reduce-scatter", 16, 1, True, 5 * 16),
        # An all-reduce in a fusion called so; its groups are listed.
        Collective("reduce-scatter", 8, 40, True, 64 * 64 * 4),
    ]


def test_totals_count_loops_and_put_the_most_traffic_first():
    first, second, *_ = totals(collectives(PROGRAM))
    assert (first.kind, first.group, first.operations, first.executions) == (
        "reduce-scatter",
        8,
        1,
        40,
    )
    assert first.bytes == 40 * 64 * 64 * 4
    assert first.wire_bytes == first.bytes * 7 / 8
    assert second.kind == "all-gather"
    open_loop = next(t for t in totals(collectives(PROGRAM)) if not t.trips_known)
    assert (open_loop.kind, open_loop.group, open_loop.operations) == ("all-gather", 4, 3)


@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        ("all-gather", 0.75),
        ("reduce-scatter", 0.75),
        ("all-to-all", 0.75),
        ("all-reduce", 1.5),
        ("collective-permute", 1),
    ],
)
def test_wire_bytes_of_a_ring_of_four(kind, factor):
    assert Collective(kind, 4, 1, True, 1000).wire_bytes == 1000 * factor


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        collectives("HloModule empty\n")
