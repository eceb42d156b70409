import numpy as np
import pytest

from megabert.data.packing import NO_TARGET
from megabert.errors import InputError
from megabert.pretraining.indexed_dataset import InMemoryTokens
from megabert.pretraining.masked_corpus import MaskedCorpus, MaskedSequenceSettings
from megabert.pretraining.masking import Masking
from megabert.pretraining.sample_mapping import build_sample_mapping
from megabert.tokenizers.wordpiece import Tokenizer

TOKENS = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(40)), *"ab", "##a", "##b"])
DOCUMENTS = [[[5, 6, 7], [8, 9], [10, 11, 12, 13]], [[14, 15]], [[16, 17, 18], [19, 20], [21], [22, 23, 24]]]


def corpus(documents=DOCUMENTS, *, order=True, room=9, seed=3, **masking):
    held = InMemoryTokens([[np.array(sentence) for sentence in document] for document in documents])
    runs = build_sample_mapping(held, 0, len(documents), room, short_seq_prob=0.0, seed=seed)
    return MaskedCorpus(held, runs, MaskedSequenceSettings(Masking(**masking), order, seed), TOKENS, "x")


def original(item):
    """Restore the masked tokens of a sequence."""
    targets = item.token_targets["token"]
    return np.where(targets == NO_TARGET, item.token_ids, targets).tolist()


def test_without_sentence_order_a_sequence_is_a_run_of_sentences():
    made = corpus(order=False)
    assert [original(made.sequence(index, 0)) for index in range(len(made))] == [
        [2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 3],
        [2, 14, 15, 3],
        [2, 16, 17, 18, 19, 20, 21, 22, 23, 24, 3],
    ]
    assert made.lengths(0).tolist() == [11, 4, 11]
    assert set(made.sequence(0, 0).token_targets) == {"token"}


def test_segments_end_at_sentences_and_are_swapped_half_of_the_time():
    made = corpus()
    cuts = {(5, 6, 7), (5, 6, 7, 8, 9)}
    firsts, swaps = set(), 0
    for number in range(200):
        item = made.sequence(0, number)
        ids, order = original(item), item.token_targets["order"]
        end = ids.index(3)
        segments = [tuple(ids[1:end]), tuple(ids[end + 1 : -1])]
        assert item.segment_ids.tolist() == [0] * (end + 1) + [1] * (len(ids) - end - 1)
        assert order[0] in (0, 1) and (order[1:] == NO_TARGET).all()
        first, second = segments[::-1] if order[0] else segments
        firsts.add(first)
        assert first + second == (5, 6, 7, 8, 9, 10, 11, 12, 13)
        swaps += int(order[0])
    assert firsts == cuts
    assert 70 < swaps < 130  # 100 +- 4 deviations


def test_a_run_of_one_sentence_has_no_sentence_order_target():
    item = corpus().sequence(1, 0)
    assert original(item) == [2, 14, 15, 3]
    assert item.token_targets["order"].tolist() == [NO_TARGET] * 4
    assert item.token_targets["order_weight"][0] == 0


def test_the_weight_is_the_number_of_masked_positions():
    for index in range(3):
        item = corpus(masked_lm_prob=0.4).sequence(index, 1)
        num_masked = int((item.token_targets["token"] != NO_TARGET).sum())
        assert item.weight == num_masked >= 1
        assert item.token_targets["order_weight"][0] == (0 if index == 1 else num_masked)


def test_masks_are_resampled_in_each_pass_as_a_function_of_the_seed():
    made = corpus(order=False, masked_lm_prob=0.3)
    sequences = [made.sequence(0, number).token_ids.tolist() for number in range(20)]
    assert len({tuple(ids) for ids in sequences}) > 5
    assert sequences == [
        corpus(order=False, masked_lm_prob=0.3).sequence(0, number).token_ids.tolist() for number in range(20)
    ]
    assert sequences != [
        corpus(order=False, masked_lm_prob=0.3, seed=4).sequence(0, number).token_ids.tolist() for number in range(20)
    ]


def test_a_sentence_longer_than_a_sequence_is_divided_without_losing_tokens():
    made = corpus([[list(range(5, 30)), [30, 31]]], room=8)
    actual = [token for index in range(len(made)) for token in original(made.sequence(index, 0)) if token > 4]
    assert sorted(actual) == list(range(5, 32))
    assert made.lengths(0).tolist() == [len(made.sequence(index, 0)) for index in range(len(made))]


def test_tokens_beyond_the_vocabulary_are_named():
    with pytest.raises(InputError, match=r"x holds the token 99; the vocabulary has 49\. Build it with"):
        corpus([[[5, 99]]]).sequence(0, 0)


def test_the_fingerprint_depends_on_tokens_and_settings():
    same = corpus().fingerprint()
    assert corpus().fingerprint() == same
    others = [corpus(DOCUMENTS[:2]), corpus(order=False), corpus(masked_lm_prob=0.2), corpus(room=5), corpus(seed=4)]
    changed = [[[5, 6, 8], *DOCUMENTS[0][1:]], *DOCUMENTS[1:]]
    assert same not in {item.fingerprint() for item in [*others, corpus(changed)]}
