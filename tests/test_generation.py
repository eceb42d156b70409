"""Text generation: against an uncached forward pass, transformers' generate, and hand-computed distributions."""

import json

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer

from megabert.cli import main
from megabert.errors import ConfigError, InputError
from megabert.generation.generator import GenerationLimits, Generator
from megabert.generation.sampling import Sampling, uniform_numbers
from megabert.model.attention import PackedSequences
from megabert.model.config import EncoderConfig
from megabert.model.encoder import Encoder, initialize
from megabert.model.key_value_cache import KeyValueCache
from megabert.tokenizers.bpe import BytePairTokenizer

SENTENCES = ["Marie Curie found radium in Paris.", "The Seine is a river in France.", "Warschau heißt Warszawa. 波蘭"]
PROMPTS = ["Marie", "The Seine is a river in France and", "War", "Ra"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(SENTENCES, vocab_size=330, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save_model(str(folder))
    return folder


@pytest.fixture(scope="module")
def generator(files):
    tokenizer = BytePairTokenizer((files / "vocab.json").read_bytes(), (files / "merges.txt").read_bytes())
    config = EncoderConfig(
        vocabulary_size=len(tokenizer), num_layers=2, hidden_size=32, num_heads=4, ffn_size=64, max_positions=64,
        num_segments=0, is_causal=True,
    )  # fmt: skip
    encoder = Encoder(config).eval()
    initialize(encoder, torch.Generator().manual_seed(0), num_layers=2)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(4)  # logits that differ
    return Generator(encoder, tokenizer)


def uncached(generator, ids, count):
    """Continue one sequence greedily by whole forward passes."""
    for _ in range(count):
        hidden = generator.encoder(torch.tensor(ids)[None])[0, -1]
        ids = [*ids, int((generator.encoder.embeddings.word.weight @ hidden).argmax())]
    return ids[-count:]


def test_logits_with_the_cache_are_those_without(generator):
    torch.manual_seed(0)
    lengths, steps = [3, 1, 7], 5
    rows = [torch.randint(len(generator.tokenizer), (length + steps,)) for length in lengths]
    cache = KeyValueCache(generator.encoder.config, 3, 16, torch.float32, torch.device("cpu"))
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    cache.begin(PackedSequences(starts, 7))
    prompts = torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])
    positions = torch.cat([torch.arange(length) for length in lengths])
    with torch.inference_mode():
        hidden = [list(part) for part in generator.encoder(prompts, positions, None, cache).split(lengths)]
        cache.advance()
        for step in range(steps):
            tokens = torch.stack([row[length + step] for row, length in zip(rows, lengths, strict=True)])
            new = generator.encoder(tokens, cache.lengths_B, None, cache)
            cache.advance()
            for part, row in zip(hidden, new, strict=True):
                part.append(row)
        for part, row in zip(hidden, rows, strict=True):
            torch.testing.assert_close(torch.stack(part), generator.encoder(row[None])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_greedy_texts_are_those_of_whole_forward_passes(generator, batch_size):
    found = generator.generate(PROMPTS, limits=GenerationLimits(max_new_tokens=12, batch_size=batch_size))
    for prompt, item in zip(PROMPTS, found, strict=True):
        ids = generator.tokenizer.encode_ids([prompt])[0].tolist()
        expected = uncached(generator, ids, 12)
        if generator.tokenizer.end_id in expected:
            expected = expected[: expected.index(generator.tokenizer.end_id)]
        assert item.text == generator.tokenizer.decode(ids + expected)[len(prompt) :]
        assert item.prompt == prompt


def test_the_end_of_text_and_the_last_position_end_a_text(generator):
    (item,) = generator.generate(["Marie"], limits=GenerationLimits(max_new_tokens=1000))
    length = len(generator.tokenizer.encode_ids(["Marie"])[0])
    assert item.finish == "end" or item.num_tokens == 64 - length
    with pytest.raises(InputError, match=r"prompt 2 .* has no token"):
        generator.generate(["Marie", ""])
    with pytest.raises(InputError, match=r"prompt 1 has .* 64 positions"):
        generator.generate(["Marie " * 64])
    for prompts, message in (("Marie", "takes a list of texts"), (["Marie", None], "prompt 2 is a NoneType")):
        with pytest.raises(InputError, match=message):
            generator.generate(prompts)


def test_samples_depend_on_the_seed_alone_and_not_on_the_batch(generator):
    sampling = Sampling(temperature=1.0, top_k=50, top_p=0.95)

    def texts(batch_size, seed=1):
        limits = GenerationLimits(max_new_tokens=8, num_samples=3, batch_size=batch_size, seed=seed)
        return [(item.text, item.sample) for item in generator.generate(PROMPTS, sampling, limits)]

    assert texts(1) == texts(5) == texts(64)
    assert len(set(texts(64))) > 6
    assert texts(64) != texts(64, seed=2)
    with pytest.raises(ConfigError, match="without temperature all are the same"):
        generator.generate(PROMPTS, limits=GenerationLimits(num_samples=2))


def test_stop_strings_are_left_out_and_streamed_pieces_add_up(generator):
    (whole,) = generator.generate(["Marie"], limits=GenerationLimits(max_new_tokens=30))
    stop = whole.text[5:8]
    pieces = []
    limits = GenerationLimits(max_new_tokens=30, stop=[stop])
    (item,) = generator.generate(["Marie"], limits=limits, on_text=lambda number, text: pieces.append(text))
    assert item.text == whole.text[: whole.text.index(stop)]
    assert item.finish == "stop"
    assert "".join(pieces) == item.text
    pieces.clear()
    (item,) = generator.generate(
        ["Marie"], limits=GenerationLimits(max_new_tokens=30), on_text=lambda number, text: pieces.append(text)
    )
    assert "".join(pieces) == item.text == whole.text
    assert len(pieces) > 1


LOGITS = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=1, top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=1, top_p=0.5), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=1, top_p=0.01), [0, 1, 0, 0]),
        (Sampling(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squares
        (Sampling(), [0, 1, 0, 0]),
    ],
)
def test_the_shares_of_sampled_tokens_are_the_probabilities(sampling, expected):
    uniforms = torch.from_numpy((np.arange(9000) + 0.5) / 9000)
    chosen = sampling.choose(LOGITS.expand(9000, 4), uniforms, None)
    assert np.bincount(chosen, minlength=4) / 9000 == pytest.approx(expected, abs=1e-3)


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = torch.tensor([[2.0, 1.5, -1.0], [-1.0, -1.5, -9.0]])
    has_occurred = torch.tensor([[True, False, False], [True, False, False]])
    sampling = Sampling(repetition_penalty=2.0)
    assert sampling.choose(logits, torch.zeros(2), has_occurred).tolist() == [1, 1]


def test_numbers_of_samples_are_independent():
    numbers = np.stack([uniform_numbers(0, prompt, sample, 500) for prompt in range(4) for sample in range(4)])
    assert np.abs(np.corrcoef(numbers) - np.eye(16)).max() < 0.2
    assert 0 <= numbers.min() < numbers.max() < 1


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"repetition_penalty": 0}]
)
def test_a_value_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


@pytest.fixture(scope="module")
def gpt2(files, generator, tmp_path_factory):
    """The same network as transformers' GPT-2, and its folder."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=len(generator.tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=4, n_inner=64,
        bos_token_id=0, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.GPT2LMHeadModel(config).eval()
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((files / name).read_bytes())
    return model, folder


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_texts_equal_those_of_transformers(gpt2, penalty):
    import megabert

    model, folder = gpt2
    ours = megabert.load_generator(folder, accelerator="cpu")
    sampling, limits = Sampling(repetition_penalty=penalty), GenerationLimits(max_new_tokens=20)
    for prompt, item in zip(PROMPTS, ours.generate(PROMPTS, sampling, limits), strict=True):
        ids = torch.from_numpy(ours.tokenizer.encode_ids([prompt])[0])[None]
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, repetition_penalty=penalty,
            pad_token_id=0,
        )[0].tolist()  # fmt: skip
        assert item.text == ours.tokenizer.decode([token for token in theirs if token])[len(prompt) :]


def test_the_command(gpt2, tmp_path, capsys):
    _, folder = gpt2
    (tmp_path / "in.jsonl").write_text('{"id": 7, "prompt": "Marie"}\n\n{"prompt": "The"}\n')
    words = [f"file={tmp_path / 'in.jsonl'}", "max_new_tokens=5", "temperature=1", "num_samples=2", "accelerator=cpu"]
    assert main(["generate", str(folder), *words]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row.get("id"), row["prompt"], row["sample"]) for row in rows] == [
        (7, "Marie", 0), (7, "Marie", 1), (None, "The", 0), (None, "The", 1),
    ]  # fmt: skip
    assert main(["generate", str(folder), *words, f"output={tmp_path / 'out.jsonl'}"]) == 0
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == rows
    assert main(["generate", str(folder), "prompt=a = b", "accelerator=cpu", "max_new_tokens=3"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "a = b"
    for wrong, message in (
        (["prompt=a", "file=b"], "Give prompt="),
        (["some text"], "is not a setting"),
        (["prompt=a", "top_p=2"], "top_p"),
    ):
        assert main(["generate", str(folder), *wrong]) == 64
        assert message in capsys.readouterr().err
    assert main(["generate", "megabert-mini-uncased", "prompt=a", "accelerator=cpu"]) == 64
    assert "not causal" in capsys.readouterr().err
