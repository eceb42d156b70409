"""The encoders included in the package: opened by name, small, with a model card, equal in every format."""

import itertools

import pytest
import torch

from megabert.build import load_encoder
from megabert.checkpoints import catalog
from megabert.checkpoints.open import open_checkpoint
from megabert.checkpoints.published import published_checkpoints
from megabert.cli import main

NAMES = [name for name, row in published_checkpoints().items() if row.is_shipped]


def test_there_are_two():
    assert NAMES == ["megabert-mini-uncased", "biomegabert-mini-uncased"]
    assert sorted(folder.name for folder in catalog.SHIPPED.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_encoder_opens_by_its_name_without_a_cache(name, tmp_path):
    encoder, tokenizer = load_encoder(name, home=tmp_path / "nothing")
    assert sum(parameter.numel() for parameter in encoder.parameters()) == published_checkpoints()[name].num_parameters
    assert len(tokenizer) == published_checkpoints()[name].vocabulary.size == encoder.config.vocabulary_size
    assert tokenizer.lower_case
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_encoder_is_small_and_has_a_model_card(name):
    folder = catalog.SHIPPED / name
    assert (folder / "model.safetensors").stat().st_size <= 25e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    for part in ("## Training data", "licence", "## Training", "steps", "H100", "perplexity", "## Limits"):
        assert part in card


# The encoders have one architecture and one vocabulary, so each format is written of one of them.
@pytest.mark.parametrize(
    ("name", "form"), zip(itertools.cycle(NAMES), ["huggingface", "megatron", "megatron-core", "nemo"], strict=False)
)
def test_a_shipped_encoder_converts_to_every_format_and_back(name, form, tmp_path):
    there, back = tmp_path / f"there{'.nemo' if form == 'nemo' else ''}", tmp_path / "back"
    assert main(["convert", str(catalog.SHIPPED / name), str(there), "--to", form]) == 0
    assert main(["convert", str(there), str(back), "--to", "megabert"]) == 0
    before, after = (open_checkpoint(path).tensors for path in (catalog.SHIPPED / name, back))
    assert before.keys() == after.keys()
    for key, item in before.items():
        assert torch.equal(item.read(), after[key].read()), key


def test_each_encoder_has_the_lower_loss_in_its_domain(tmp_path):
    """Each has the lower masked-language-model loss on a passage of its own domain."""
    from megabert.build import load_language_model, new_task_model
    from megabert.config.parser import compose
    from megabert.inference import Predictor
    from megabert.tasks import registry
    from megabert.torch_session import TorchSession

    passages = {
        "megabert-mini-uncased": "The president of the United States spoke to the members of the Congress about the "
        "war and the peace of the world. He was the son of a farmer and lived in the city of New York for years.",
        "biomegabert-mini-uncased": "The patients were treated with the drug for six weeks in a randomized, placebo "
        "controlled clinical trial. The expression of the gene was measured in the liver cells of mice.",
    }
    kind = registry.find("masked_language_model")
    losses = {}
    for name in NAMES:
        words = [f"model.language_model.pretrained_model_name={name}"]
        task = kind(compose(kind.settings_type, words, owner="masked_language_model")[0])
        language_model = load_language_model(task.settings.model, home=tmp_path, seed=0)
        model = new_task_model(task, language_model, seed=0).eval()
        session = TorchSession(model, task.loss, torch.device("cpu"))
        predictor = Predictor(task, language_model.tokenizer, session)
        for text_of, text in passages.items():
            examples = [task.example(text=text, id=str(number)) for number in range(20)]  # with different masks
            losses[name, text_of] = predictor.evaluate(examples).scores["lm_loss"]
    general, biomedical = NAMES
    assert losses[general, general] < losses[biomedical, general] - 0.5
    assert losses[biomedical, biomedical] < losses[general, biomedical] - 0.5
    assert losses[general, general] < 4 and losses[biomedical, biomedical] < 4
