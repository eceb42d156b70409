"""Checkpoints written in the background while the GPU computes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from megabert.checkpoints.native.run_checkpoints import Contents
from megabert.training.saver import Saver


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("free", [0, 2**40])  # no room for a copy on the GPU, and room
def test_a_checkpoint_is_a_snapshot_of_the_weights_at_its_step(monkeypatch, free):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
    weight = torch.zeros(2**20, device="cuda")
    written = []
    with torch.cuda.stream(torch.cuda.Stream()), Saver(in_background=True) as saver:
        for number in range(3):
            weight.fill_(number)
            contents = Contents(tensors={"model": {"weight": weight}}, documents={"number": number})
            saver.save(contents, lambda kept: written.append((kept.documents, kept.tensors["model"]["weight"].cpu())))
            weight.fill_(-1)
        saver.wait()
    assert [(documents["number"], float(item.min()), float(item.max())) for documents, item in written] == [
        (number, number, number) for number in range(3)
    ]


def test_an_error_while_writing_is_raised():
    def fail(contents):
        raise OSError("the disk is full")

    saver = Saver(in_background=False)
    with pytest.raises(OSError, match="full"):
        saver.save(Contents(tensors={}, documents={}), fail)


def test_an_error_of_the_background_writer_is_reported_before_the_next_save():
    saver = Saver(in_background=True)
    assert not saver.has_failed
    with ThreadPoolExecutor(1) as executor:
        saver._last = executor.submit(lambda: 1 / 0)
    assert saver.has_failed
    with pytest.raises(ZeroDivisionError):
        saver.wait()
    assert not saver.has_failed
