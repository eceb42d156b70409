import pytest
import torch

from megabert.config.schema import ParallelSettings, TrainerSettings
from megabert.errors import ConfigError
from megabert.model.precision import resolve_precision
from megabert.parallel.process_group import connect, count_processes, resolve_device, resolve_mesh_axes
from megabert.parallel.rendezvous import LaunchEnvironment, first_host, read_launch_environment
from megabert.training.step import seed_step


def test_auto_precision_depends_on_the_device():
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) == "32"
    assert resolve_precision("bf16-mixed", cpu) == "bf16"
    assert resolve_precision("16", cpu) == "16"


@pytest.mark.parametrize(
    ("size", "words", "axes"),
    [
        (1, {}, (1, 1, 1)),
        (8, {}, (8, 1, 1)),
        (8, {"tensor": 2}, (4, 1, 2)),
        (8, {"tensor": 2, "fsdp": 2}, (2, 2, 2)),
        (8, {"tensor": 2, "fsdp": -1}, (1, 4, 2)),
    ],
)
def test_the_mesh_has_three_axes(size, words, axes):
    assert resolve_mesh_axes(size, ParallelSettings(**words)) == axes


@pytest.mark.parametrize(
    ("size", "words", "message"),
    [
        (4, {"tensor": 3}, "parallel.tensor=3 does not divide the 4"),
        (4, {"tensor": 2, "fsdp": 4}, "parallel.fsdp=4 does not divide the 2"),
        (4, {"sequence": True}, "Set parallel.tensor to 2 or more"),
        (4, {"tensor": 0}, "parallel.tensor=0"),
    ],
)
def test_axes_that_do_not_divide_are_rejected(size, words, message):
    with pytest.raises(ConfigError, match=message):
        resolve_mesh_axes(size, ParallelSettings(**words))


def test_launchers_are_recognized():
    assert (
        read_launch_environment({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None
    )  # a shell in a job
    assert read_launch_environment({}) is None
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "5"}
    assert read_launch_environment(torchrun) == LaunchEnvironment(3, 4, 1, "here", 5, has_store=False)
    slurm = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "2007",
             "SLURM_STEP_NODELIST": "gpu[03-04,7]"}  # fmt: skip
    assert read_launch_environment(slurm) == LaunchEnvironment(9, 16, 1, "gpu03", 29507, has_store=False)


@pytest.mark.parametrize(("nodes", "first"), [("a", "a"), ("a,b", "a"), ("n[1-4]", "n1"), ("n[07,9],m", "n07")])
def test_the_first_host_of_a_slurm_node_list(nodes, first):
    assert first_host(nodes) == first


def test_another_number_of_processes_than_requested_is_rejected():
    one = {"RANK": "0", "WORLD_SIZE": "1"}
    four = connect(TrainerSettings(devices=2, num_nodes=2), ParallelSettings(), one)
    with pytest.raises(ConfigError, match=r"requests 4 processes, but 1 was started"), four:
        pass
    alone = connect(TrainerSettings(), ParallelSettings(), {"RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match=r"requests 1 processes, but 2 were started"), alone:
        pass
    with pytest.raises(ConfigError, match=r"trainer.devices=0"):
        count_processes(TrainerSettings(devices=0))


def test_one_process_is_a_world_of_size_one():
    with connect(TrainerSettings(accelerator="cpu"), ParallelSettings(), {}) as world:
        assert (world.size, world.is_rank_zero, world.any_rank(True), world.any_rank(False)) == (1, True, True, False)
        assert world.all_gather_text("ä") == ["ä"]
        assert world.broadcast_text("b") == "b"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_rejected():
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match="finds no GPU"):
        resolve_device("gpu")


def test_dropout_is_a_function_of_seed_and_micro_batch_number():
    def draw(seed, number):
        seed_step(seed, number)
        return torch.rand(4).tolist()

    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(seed, number)) for seed in range(3) for number in range(20)}) == 60
