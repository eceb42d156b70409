import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from megabert.errors import ExamplesWarning, InputError, MegabertError
from megabert.formats import parallel_passes, record_streams
from megabert.formats.parallel_passes import by_parts, find_repeated, forked_map, is_divided, several_processes
from megabert.formats.record_streams import derived, large_files_streamed, numbered
from megabert.formats.text_lines import data_lines

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
WARNING = ExamplesWarning("{count} of {total}; the first is {first}", "a", 9, count=2)


@pytest.fixture(autouse=True)
def two_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(parallel_passes, "MIN_SIZE", 0)
    monkeypatch.setattr(parallel_passes.os, "sched_getaffinity", lambda _: {0, 1})
    with several_processes([]):
        yield


def squared(number):
    if number == 3:
        raise InputError("x.tsv:3: it is three.")
    if number == 2:
        warnings.warn(WARNING, stacklevel=2)
    return number * number, os.getpid()


def test_results_are_those_of_other_processes_in_order():
    results = list(forked_map(squared, [0, 1, 4, 5, 6]))
    assert [value for value, _ in results] == [0, 1, 16, 25, 36]
    assert len({pid for _, pid in results} - {os.getpid()}) == 2


def test_warnings_and_errors_arrive_at_their_items():
    results = forked_map(squared, range(9))
    assert [next(results)[0] for _ in range(2)] == [0, 1]
    with pytest.warns(ExamplesWarning, match="2 of 9; the first is a") as caught:
        assert next(results)[0] == 4
    assert vars(caught[0].message) == vars(WARNING)
    with pytest.raises(InputError, match=r"x\.tsv:3: it is three"):
        next(results)


def test_a_process_that_is_killed_is_an_error():
    with pytest.raises(MegabertError, match="a process that reads data ended unexpectedly"):
        list(forked_map(lambda _: os.kill(os.getpid(), signal.SIGKILL), range(3)))


def test_a_process_that_is_killed_while_it_waits_is_an_error():
    pids = []

    def items():
        yield from range(4)
        os.kill(pids[0], signal.SIGKILL)
        while is_running(pids[0]):
            time.sleep(0.01)
        yield 4

    with pytest.raises(MegabertError, match="a process that reads data ended unexpectedly"):
        pids.extend(forked_map(lambda _: os.getpid(), items()))


def test_a_process_that_cannot_be_started_is_an_error(monkeypatch):
    def full():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", full)
    with pytest.raises(MegabertError, match=r"data cannot be started \(Resource temporarily unavailable\)"):
        list(forked_map(squared, [0, 1]))


SLEEPER = """
import os, signal, sys, time
from megabert.formats.parallel_passes import _num_processes, forked_map
_num_processes.set(2)
for pid in forked_map(lambda number: time.sleep(number / 4) or os.getpid(), range(200)):
    print(pid, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_processes_end_with_the_one_that_waits(number):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    with process:
        pids = [int(process.stdout.readline()) for _ in range(2)]
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as the terminal does
        else:
            process.kill()
    while any(map(is_running, pids)):  # whoever computes ends when nobody takes the result
        time.sleep(0.01)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


TEXT = "\ufeff\nname\n" + "".join(f"{n % 7}\n{'' if n % 5 else chr(10)}" for n in range(40)) + "end"


@pytest.mark.parametrize("size", [1, 7, 10**6])
@pytest.mark.parametrize("unit", ["line", "sentence"])
def test_parts_together_are_all_lines_with_their_numbers(size, unit, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel_passes, "PART_SIZE", size)
    (tmp_path / "x.txt").write_text(TEXT)
    monkeypatch.setattr(record_streams, "MAX_HELD", -1)
    with large_files_streamed([]):
        lines = data_lines(tmp_path / "x.txt")
    stream = derived(lines, numbered, unit)
    expected = list(enumerate(TEXT.removeprefix("\ufeff").split("\n"), start=1))
    assert list(stream) == expected
    assert is_divided(stream)
    parts = list(by_parts(stream, list))
    assert [item for part in parts for item in part] == expected
    assert (len(parts) > 3) == (size < 60)
    assert unit == "line" or all(not part[-1][1].strip() for part in parts[:-1])
    assert len(stream) == len(expected)
    assert [row for part in by_parts(stream[1:], list) for row in part] == expected[1:]
    assert not is_divided(stream[2:]) and not is_divided(derived(stream, numbered, "file"))
    first = next(n for n, (_, line) in enumerate(expected) if line in {line for _, line in expected[:n]})
    assert find_repeated(derived(stream, lambda rows: (line for _, line in rows)))[0] == first


@pytest.mark.parametrize("blank", ["\u00a0", "\u3000", "\ufeff\x1c", " "])
def test_lines_of_any_white_space_before_a_header_are_in_its_part(blank, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel_passes, "PART_SIZE", 1)
    monkeypatch.setattr(record_streams, "MAX_HELD", -1)
    (tmp_path / "x.tsv").write_text(f"{blank}\n{blank[-1]}\ntext\na\nb\n")
    with large_files_streamed([]):
        lines = data_lines(tmp_path / "x.tsv")
    records = derived(lines, lambda lines: (line for line in lines if line.strip()))
    assert [list(part) for part in by_parts(records[1:], list)] == [[], ["a"], ["b"]]
