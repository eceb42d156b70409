import pytest
import torch

from megabert.errors import ConfigError
from megabert.parallel.mesh import check_layout, find_device, find_precision, seed_step
from megabert.settings import TrainerSettings


def test_precision_is_settled_by_the_device():
    cpu = torch.device("cpu")
    assert find_precision("auto", cpu) == "32"
    assert find_precision("bf16-mixed", cpu) == "bf16"
    assert find_precision("16", cpu) == "16"


def test_layouts_that_are_not_there_are_refused():
    check_layout(TrainerSettings())
    with pytest.raises(ConfigError, match="one device"):
        check_layout(TrainerSettings(num_nodes=2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_told():
    assert find_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match="sees no GPU"):
        find_device("gpu")


def test_dropout_of_a_step_is_a_function_of_seed_and_number():
    def draw(seed, number):
        seed_step(seed, number)
        return torch.rand(4).tolist()

    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(seed, number)) for seed in range(3) for number in range(20)}) == 60
