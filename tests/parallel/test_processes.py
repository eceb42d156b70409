"""Training laid out over 2 and 4 processes against one process: losses, gradients, weights."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.parallel.processes import CHECKS, FORKING, LAYOUTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each check left, by its name."""
    folder = tmp_path_factory.mktemp("found")
    command = [sys.executable, "-m", "tests.parallel.processes", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=FORKING, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return {name: np.load(folder / f"{name}.npz") for name in CHECKS}


def named(*kinds):
    return [name for name in CHECKS if name.partition(".")[2] in kinds and not name.startswith("one.")]


def largest_difference(one, other, kind):
    assert set(one.files) == set(other.files)
    return max(np.abs(one[name] - other[name]).max() for name in one.files if name.startswith(kind))


@pytest.mark.parametrize("name", named("bert", "gpt", "post", "five_words", "three_texts", "clipped"))
def test_loss_and_gradients_are_those_of_one_process(found, name):
    one, several = found[f"one.{name.partition('.')[2]}"], found[name]
    np.testing.assert_allclose(several["figures"], one["figures"], rtol=1e-6, atol=1e-6)
    assert largest_difference(one, several, "gradient/") < 1e-6
    assert largest_difference(one, several, "weight/") < 1e-5


@pytest.mark.parametrize("name", named("bf16", "16"))
def test_lower_precision_learns_alike(found, name):
    one, several = found[f"one.{name.partition('.')[2]}"], found[name]
    np.testing.assert_allclose(several["figures"], one["figures"], rtol=3e-2)
    gradients = [name for name in one.files if name.startswith("gradient/")]
    expected = np.concatenate([one[name].ravel() for name in gradients])
    difference = np.concatenate([several[name].ravel() for name in gradients]) - expected
    assert np.linalg.norm(difference) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", named("copies"))
def test_what_several_processes_hold_stays_the_same_to_the_last_bit(found, name):
    sums = found[name]["sums"]
    assert len(sums) == LAYOUTS[name.partition(".")[0]][0]
    assert (sums == sums[0]).all()


def test_an_overflow_in_one_process_is_one_in_all(found):
    assert found["tensor2.overflow"]["said"].tolist() == [[1.0, 2.0**15], [1.0, 2.0**15]]
    np.testing.assert_allclose(found["tensor2.overflow"]["figures"][0], found["one.16"]["figures"][1], rtol=3e-2)


@pytest.mark.parametrize("name", named("answers"))
def test_answers_are_those_of_one_process(found, name):
    np.testing.assert_allclose(found[name]["guesses"], found["one.answers"]["guesses"], atol=1e-6)


def test_dropout_was_on_where_copies_were_compared(found):
    assert not np.allclose(found["data2.copies"]["figures"], found["data2.bert"]["figures"], rtol=1e-3)
