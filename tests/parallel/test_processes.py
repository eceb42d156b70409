"""Training on 2 and 4 processes against one process: losses, gradients, weights."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.parallel.processes import CHECKS, FORKING, LAYOUTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of each check, by its name."""
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "tests.parallel.processes", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=FORKING, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return {name: np.load(folder / f"{name}.npz") for name in CHECKS}


def named(*kinds):
    return [name for name in CHECKS if name.partition(".")[2] in kinds and not name.startswith("one.")]


def largest_difference(one, other, kind):
    assert set(one.files) == set(other.files)
    return max(np.abs(one[name] - other[name]).max() for name in one.files if name.startswith(kind))


@pytest.mark.parametrize("name", named("bert", "gpt", "post", "five_words", "three_sequences", "clipped", "lora"))
def test_losses_gradients_and_weights_match_one_process(results, name):
    one, several = results[f"one.{name.partition('.')[2]}"], results[name]
    np.testing.assert_allclose(several["metrics"], one["metrics"], rtol=1e-6, atol=1e-6)
    assert largest_difference(one, several, "gradient/") < 1e-6
    assert largest_difference(one, several, "weight/") < 1e-5


def test_a_loss_compares_the_sequences_of_all_processes(results):
    one, two = results["one.contrastive"], results["data2.contrastive"]
    np.testing.assert_allclose(two["metrics"], one["metrics"], rtol=1e-6)
    assert one["metrics"][0, 1] > 10  # of the gradients' norm the differences are a millionth
    assert largest_difference(one, two, "gradient/") < 5e-5
    assert largest_difference(one, two, "weight/") < 1e-4


@pytest.mark.parametrize("name", named("bf16", "16", "lora_bf16"))
def test_lower_precision_is_close_to_one_process(results, name):
    one, several = results[f"one.{name.partition('.')[2]}"], results[name]
    np.testing.assert_allclose(several["metrics"], one["metrics"], rtol=3e-2)
    gradients = [name for name in one.files if name.startswith("gradient/")]
    expected = np.concatenate([one[name].ravel() for name in gradients])
    difference = np.concatenate([several[name].ravel() for name in gradients]) - expected
    assert np.linalg.norm(difference) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", named("replicas"))
def test_replicas_stay_bit_identical(results, name):
    sums = results[name]["sums"]
    assert len(sums) == LAYOUTS[name.partition(".")[0]][0]
    assert (sums == sums[0]).all()


def test_an_overflow_in_one_process_skips_the_step_in_all(results):
    assert results["tensor2.overflow"]["reports"].tolist() == [[1.0, 2.0**15], [1.0, 2.0**15]]
    np.testing.assert_allclose(results["tensor2.overflow"]["metrics"][0], results["one.16"]["metrics"][1], rtol=3e-2)


@pytest.mark.parametrize("name", named("predictions"))
def test_predictions_match_one_process(results, name):
    np.testing.assert_allclose(results[name]["predictions"], results["one.predictions"]["predictions"], atol=1e-6)


def test_replicas_were_compared_with_dropout(results):
    assert not np.allclose(results["data2.replicas"]["metrics"], results["data2.bert"]["metrics"], rtol=1e-3)
