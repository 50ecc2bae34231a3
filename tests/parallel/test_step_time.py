from pathlib import Path

from internvideo_jax.parallel import step_time

# The forms in which libtpu 0.0.52 prints them, cut down to what matters.
PROGRAM = Path(__file__).with_name("tpu_times.hlo").read_text()


def test_loops_count_by_their_trips_and_branches_by_the_dearest():
    program = step_time.estimate(PROGRAM)
    blocks, branch, unknown = [loop for depth, loop in program.walk() if depth == 1]
    assert (blocks.trips, blocks.own_cycles, blocks.cycles) == (48, 40, 48 * (40 + 3 * 7))
    assert (branch.trips, branch.cycles) == (1, 100)
    assert (unknown.trips, unknown.trips_known, unknown.cycles) == (1, False, 5)
    assert program.own_cycles == 1000
    assert program.cycles == 1000 + blocks.cycles + 100 + 5


def test_the_dearest_operations_are_named_by_our_scopes():
    blocks, tiles = list(step_time.estimate(PROGRAM).walk())[1:3]
    assert blocks[1].source == "jvp(Vit)/blocks"
    assert [operation.name for operation in blocks[1].operations] == ["large", "small"]
    assert blocks[1].operations[0].source == "Vit/blocks/fc1/dot_general"
    assert (tiles[0], tiles[1].source, tiles[1].trips) == (2, "attn", 48 * 3)


def test_kernels_without_an_estimate_are_counted():
    assert step_time.estimate(PROGRAM).kernel_runs == 48 * 3


def test_kernels_whose_cycles_the_caller_knows_count_like_other_operations():
    seen = []

    def cycles(kernel):
        seen.append(kernel)
        return 20

    program = step_time.estimate(PROGRAM, cycles)
    arrays = ("bf16", (400, 88, 257)), ("bf16", (400, 88, 9))
    assert seen == [step_time.Kernel("flash.7", arrays)]
    assert (program.kernel_runs, program.kernel_cycles) == (0, 48 * 3 * 20)
    assert program.cycles == step_time.estimate(PROGRAM).cycles + 48 * 3 * 20
    _, _, (_, tiles), *_ = program.walk()
    assert tiles.operations[0] == step_time.Operation("flash.7", "flash", 20, is_kernel=True)
