"""Heads of folders that other programs wrote: labels, problems and lengths are theirs, what has none is named."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import megabert
from megabert.cli import main
from tests.export.test_huggingface_export import LABELS, foreign, named, read_json

transformers = pytest.importorskip("transformers")


@pytest.fixture
def changed(tmp_path, vocab_file):
    """A function that writes a folder with changes of config.json, an entry None without it, and returns the folder."""

    def write(end="ForTokenClassification", config=None, **changes):
        foreign(tmp_path / "hub", vocab_file, "bert", end, **(config or named(LABELS)))
        entries = read_json(tmp_path / "hub" / "config.json") | changes
        entries = {key: value for key, value in entries.items() if value is not None}
        (tmp_path / "hub" / "config.json").write_text(json.dumps(entries))
        return tmp_path / "hub"

    return write


def refusal(capsys, path):
    assert main(["predict", str(path), "text=paris"]) == 66
    return " ".join(capsys.readouterr().err.split())


def test_labels_are_those_of_label2id_where_it_stands_alone(changed):
    ours = megabert.load(changed(id2label=None), accelerator="cpu")
    assert ours.labels == {"tag": LABELS}


def test_each_file_of_the_weights_counts_in_the_digest(changed):
    folder = changed()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    digests = set()
    for number in range(4):
        torch.save({"state_dict": {name: item + number // 2 for name, item in state.items()}}, folder / "last.ckpt")
        (folder / "optimizer.pt").write_bytes(b"x" * number)
        digests.add(megabert.load(folder, accelerator="cpu").digest)
    assert len(digests) == 2


def test_labels_may_be_numbers(changed):
    numbers = {"id2label": {str(n): n for n in range(5)}, "label2id": {str(n): n for n in range(5)}}
    assert megabert.load(changed(**numbers), accelerator="cpu").labels == {"tag": list("01234")}


def test_neighbours_of_equal_labels_without_prefixes_are_one_entity(changed):
    """O, PER, LOC: the entities are those of transformers' pipelines."""
    folder = changed(**named(["O", "PER", "LOC", "ORG", "MISC"]))
    text = "marie curie found radium in paris, the city in france. who was born in warsaw?"
    theirs = transformers.pipeline("token-classification", model=str(folder), aggregation_strategy="first")(text)
    ours = megabert.load(folder, accelerator="cpu")
    assert len(theirs) > 1
    found = [(span.type, span.start, span.end) for span in ours.predict(text=text).spans]
    assert found == [(item["entity_group"], item["start"], item["end"]) for item in theirs]
    assert any("group_equal_tags" in note for note in ours.notes)


def test_contradicting_tables_of_labels_are_noted(changed):
    folder = changed(label2id={label: 4 - number for number, label in enumerate(LABELS)})
    ours = megabert.load(folder, accelerator="cpu")
    assert ours.labels == {"tag": LABELS}
    assert any("label2id of config.json contradicts id2label" in note for note in ours.notes)


def test_several_labels_of_which_there_is_one(changed):
    """transformers takes the sigmoid of the only output, which may be predicted or not."""
    ours = megabert.load(changed("ForSequenceClassification", named(["toxic"]) | {
        "problem_type": "multi_label_classification"}), accelerator="cpu")  # fmt: skip
    prediction = ours.predict(text="marie found it")
    (feature,) = ours.task.features([ours.task.example(text="marie found it")], ours.tokenizer, with_targets=False)
    (logits,) = ours.run([feature]).logits
    assert prediction.probabilities == {"toxic": pytest.approx(float(1 / (1 + np.exp(-logits[0]))), abs=1e-6)}
    assert prediction.labels == (("toxic",) if logits[0] > 0 else ())


def test_the_choices_of_a_short_network_leave_room_for_the_passage(changed):
    ours = megabert.load(changed("ForMultipleChoice", {"num_labels": 2}), accelerator="cpu")
    assert ours.task.settings.model.dataset.max_qa_length == 16
    assert ours.predict(passage="marie found radium", question="who", choices=["marie", "paris"]).label in (0, 1)


@pytest.mark.parametrize(
    ("end", "changes", "message"),
    [
        ("ForTokenClassification", {"architectures": None}, '"architectures": ["BertForTokenClassification"]'),
        ("ForTokenClassification", {"architectures": ["BertForSequenceClassification"]},
         "bert.pooler.dense.weight, bert.pooler.dense.bias is missing; transformers would draw it at random"),
        ("ForSequenceClassification", {"problem_type": "regression"}, "regression has one, single_label"),
        ("ForTokenClassification", {"quantization_config": {"load_in_8bit": True}}, "model.dequantize()"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_place_and_the_remedy(changed, capsys, end, changes, message):
    assert message in refusal(capsys, changed(end, **changes))


def test_folders_that_are_no_trained_model_are_named(changed, tmp_path, capsys):
    hub = changed()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    assert "is an adapter (LoRA" in refusal(capsys, adapter)
    shutil.copytree(hub, tmp_path / "training" / "checkpoint-500")
    assert "training/checkpoint-500" in refusal(capsys, tmp_path / "training")
    (tmp_path / "model.nemo").write_bytes(b"")
    assert "megabert inspect" in refusal(capsys, tmp_path / "model.nemo")
    (tmp_path / "megatron" / "mp_rank_00").mkdir(parents=True)
    assert "is a checkpoint of Megatron-LM, which has no head" in refusal(capsys, tmp_path / "megatron")
    assert "does not exist" in refusal(capsys, adapter / "nothing")
    assert main(["convert", str(hub), str(tmp_path / "encoder"), "--to", "megabert"]) == 0
    assert "holds an encoder without the head of a task" in refusal(capsys, tmp_path / "encoder")


def test_an_output_of_its_own_matters_only_where_there_is_one(changed, capsys):
    assert megabert.load(changed(tie_word_embeddings=False), accelerator="cpu").labels == {"tag": LABELS}
    folder = changed("ForMaskedLM", {"num_labels": 2}, tie_word_embeddings=False)
    assert "tie_word_embeddings is False" in refusal(capsys, folder)  # the output is missing
    tensors = load_file(folder / "model.safetensors")
    words = tensors["bert.embeddings.word_embeddings.weight"]
    for output, is_read in ((words.clone(), True), (words + torch.eye(*words.shape), False)):
        save_file(tensors | {"cls.predictions.decoder.weight": output}, folder / "model.safetensors")
        code = main(["predict", str(folder), "text=marie [MASK] radium"])
        assert code == (0 if is_read else 66)
    assert "untied embeddings" in " ".join(capsys.readouterr().err.split())
