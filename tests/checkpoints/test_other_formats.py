"""Folders and files of other programs are named, with what helps."""

import json

import pytest
import torch

import megabert
from megabert.checkpoints.files.weight_files import open_file
from megabert.checkpoints.open import open_checkpoint
from megabert.cli import main
from megabert.errors import CheckpointError

CONFIG = json.dumps({"model_type": "bert"})
OTHERS = {
    "sentence-transformers": {"modules.json": "[]", "0_Transformer/config.json": CONFIG},
    "spaCy": {"meta.json": "{}", "config.cfg": "[nlp]", "transformer/model": "x"},
    "ONNX": {"config.json": CONFIG, "onnx/model.onnx": "x"},
    "OpenVINO": {"config.json": CONFIG, "openvino_model.xml": "<net/>", "openvino_model.bin": "x"},
    "llama.cpp": {"bert.gguf": "GGUF"},
    "TensorFlow": {"config.json": CONFIG, "tf_model.h5": "x"},
    "of TensorFlow": {"bert_config.json": "{}", "bert_model.ckpt.index": "x", "bert_model.ckpt.meta": "x"},
    "Flax": {"config.json": CONFIG, "flax_model.msgpack": "x"},
    "FSDP": {"pytorch_model_fsdp_0/.metadata": "x"},
    "DeepSpeed": {"zero/bert.pooler.dense.weight/fp32.pt": "x"},
    "training by transformers": {"checkpoint-5/config.json": CONFIG},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_another_program_is_named(tmp_path, name, capsys):
    for file, text in OTHERS[name].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    with pytest.raises(CheckpointError, match=name):
        megabert.load_encoder(tmp_path)
    with pytest.raises(CheckpointError, match=name):
        megabert.load(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 66 and name in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("file", ["final-model.pt", "pytorch_model.bin"])
def test_a_model_of_flair_is_named(tmp_path, file):
    state = {
        "embeddings.model.embeddings.word_embeddings.weight": torch.zeros(5, 2),
        "linear.weight": torch.zeros(3, 2),
    }
    torch.save({"state_dict": state, "tag_dictionary": ["O"], "__cls__": "SequenceTagger"}, tmp_path / file)
    for path in (tmp_path, tmp_path / file):
        with pytest.raises(CheckpointError, match=r"flair.*save_pretrained"):
            open_checkpoint(path)


def test_a_file_of_another_name_beside_a_configuration_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 9,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp16.safetensors")
    (tmp_path / "training_args.bin").write_bytes(b"x")
    assert open_checkpoint(tmp_path).config.num_layers == 1
    tensors = {name: item.read() for name, item in open_file(tmp_path / "model.fp16.safetensors").content.items()}
    torch.save({"state_dict": tensors}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"Of last\.ckpt, model\.fp16\.safetensors give one that name"):
        open_checkpoint(tmp_path)
