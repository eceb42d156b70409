"""Launching the processes of a training: their number and exit codes."""

import pytest

from megabert.config.schema import ParallelSettings, Settings, TrainerSettings
from megabert.errors import ConfigError
from megabert.parallel.launch import ProcessesFailed, _exit_code, count_to_start, launch


def settings(parallel=None, **trainer):
    return Settings(trainer=TrainerSettings(accelerator="cpu", **trainer), parallel=parallel or ParallelSettings())


def test_processes_are_launched_unless_a_launcher_did():
    assert count_to_start(settings(), {}) == 0
    assert count_to_start(settings(devices=3), {}) == 3
    assert count_to_start(settings(devices=-1), {}) == 0  # one process without GPUs
    assert count_to_start(settings(devices=3), {"RANK": "0", "WORLD_SIZE": "3"}) == 0
    assert count_to_start(settings(devices=3), {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "3"}) == 0


def test_impossible_settings_are_rejected_before_the_launch():
    with pytest.raises(ConfigError, match="torchrun"):
        count_to_start(settings(num_nodes=2, devices=2), {})
    with pytest.raises(ConfigError, match=r"parallel\.tensor=3"):
        count_to_start(settings(ParallelSettings(tensor=3), devices=2), {})


@pytest.mark.parametrize(("codes", "code"), [([0, 0], 0), ([0, 75], 75), ([76, -9], 76), ([-9, 0], 76), ([64, 64], 64)])
def test_exit_codes_are_combined_into_one(codes, code):
    assert _exit_code(codes) == code


def test_processes_that_a_signal_ended_are_interrupted():
    assert _exit_code([-15, 76], was_interrupted=True) == 75
    assert _exit_code([0, 65], was_interrupted=True) == 65
    assert _exit_code([0, 0], was_interrupted=True) == 0


def test_failed_processes_raise_an_error_that_is_not_printed_again(capfd):
    with pytest.raises(ProcessesFailed) as caught:
        launch(["no_such_command"], 2)
    assert (caught.value.exit_code, caught.value.is_reported) == (64, True)
    assert "no_such_command" in capfd.readouterr().err
