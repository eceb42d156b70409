import numpy as np

from megabert.text.batch import Features
from megabert.text.loader import Loader, evaluation_batches


def texts(count):
    return [Features(np.full(1 + index % 3, index), np.zeros(1 + index % 3, dtype=np.int64)) for index in range(count)]


def loader(count=10, batch_size=3, **changes):
    values = {"row_length": 9, "pad_id": 0, "seed": 7, "shuffle": True, "drop_last": False} | changes
    return Loader(texts(count), batch_size, **values)


def epoch(of, number):
    return [index for batch in range(len(of)) for index in of.indices(number * len(of) + batch).tolist()]


def test_an_epoch_shows_every_text_once():
    assert len(loader()) == 4
    assert sorted(epoch(loader(), 0)) == list(range(10))
    assert sorted(epoch(loader(), 5)) == list(range(10))


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    assert epoch(loader(), 1) == epoch(loader(), 1)
    assert epoch(loader(), 0) != epoch(loader(), 1)
    assert epoch(loader(), 0) != epoch(loader(seed=8), 0)
    # another batch size cuts the same order
    assert epoch(loader(batch_size=5), 1) == epoch(loader(), 1)


def test_a_batch_can_be_made_without_those_before_it():
    first = loader()
    for number in range(9):
        first.indices(number)
    assert first.indices(9).tolist() == loader().indices(9).tolist()


def test_drop_last_leaves_the_rest_out():
    assert len(loader(drop_last=True)) == 3
    assert len(loader(count=2, drop_last=True)) == 1  # what there is, where it fills no batch


def test_without_shuffle_the_file_s_order_is_kept():
    assert epoch(loader(shuffle=False), 3) == list(range(10))


def test_evaluation_covers_every_text_once():
    seen = [index for group, _ in evaluation_batches(texts(10), 4, 9, 0) for index in group]
    assert sorted(seen) == list(range(10))
