"""Work done ahead in threads."""

import threading

import pytest

from internvideo_jax.evaluation.ahead import map_ahead


def test_results_come_in_order():
    gate = threading.Event()

    def slow_first(number: int) -> int:
        if number == 0:
            assert gate.wait(10)
        else:
            gate.set()
        return number * number

    assert list(map_ahead(slow_first, range(20), 3, 4)) == [n * n for n in range(20)]


def test_errors_come_where_the_result_would_have():
    results = map_ahead(lambda number: 1 // (number - 2), range(9), 2, 2)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_endless_source_is_read_a_little_ahead():
    taken = []

    def source():
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    results = map_ahead(abs, source(), 2, 3)
    assert next(results) == 0
    assert len(taken) <= 6
    results.close()
