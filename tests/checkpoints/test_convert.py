"""Conversions are exact: any format to any, any layout to any, and other programs agree."""

import itertools
import json
import subprocess
import sys
import tarfile
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import yaml

from megabert import cli
from megabert.checkpoints.convert import WRITERS, Target, convert
from megabert.checkpoints.files.lazy_tensor import Derived
from megabert.checkpoints.megatron.write_megatron import ModelParallelLayout
from megabert.checkpoints.native.manifest_folder import Contents, write_manifest_folder
from megabert.checkpoints.open import open_checkpoint
from megabert.checkpoints.tensor_names import encoder_shapes
from megabert.checkpoints.vocabulary_rows import fit_vocabulary
from megabert.errors import CheckpointError, ConfigError
from megabert.model.attention import PackedSequences
from tests.checkpoints.networks import ARCHITECTURES, VOCABULARY, WORDS, network, write
from tests.checkpoints.test_genuine import NAMES, build, logits

PARALLEL = ("megatron", "megatron-core", "nemo")
LAYOUTS = (
    ModelParallelLayout(1, 1),
    ModelParallelLayout(2, 1),
    ModelParallelLayout(4, 1),
    ModelParallelLayout(1, 2),
    ModelParallelLayout(2, 4),
)


def to(source, dest, name, layout=ModelParallelLayout(), num_tokens=None, dtype=None):  # noqa: B008  (frozen)
    convert(open_checkpoint(source), dest, Target(name, layout, dtype), num_tokens=num_tokens, progress=None)
    return dest


def assert_same(folder, tensors, num_tokens=None):
    read = open_checkpoint(folder)
    actual = read.tensors if num_tokens is None else fit_vocabulary(read, num_tokens, "test")
    assert actual.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert actual[name].dtype == expected.dtype
        assert torch.equal(actual[name].read(), expected), name


REASONS = {
    **{("bert", name): "huggingface or megabert" for name in PARALLEL},
    **{("normed residual", name): "takes residuals from before the layer norm" for name in ("megatron-core", "nemo")},
    **{("openai gelu", name): "has erf GELU in BERT's language-model head" for name in ("megatron-core", "nemo")},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", WRITERS)
def test_a_round_trip_through_every_format_is_exact(tmp_path, architecture, name):
    tensors = write(tmp_path / "ours", architecture)
    if (architecture, name) in REASONS:
        with pytest.raises(ConfigError, match=REASONS[architecture, name]):
            to(tmp_path / "ours", tmp_path / "theirs", name, num_tokens=50)
        assert [path.name for path in tmp_path.iterdir()] == ["ours"]
        return
    config = open_checkpoint(tmp_path / "ours").config
    theirs = to(tmp_path / "ours", tmp_path / "theirs", name, num_tokens=50)
    assert_same(theirs, tensors, num_tokens=50)
    back = to(theirs, tmp_path / "back", "megabert", num_tokens=50)
    assert_same(back, tensors)
    assert open_checkpoint(back).config == config


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.tensor_parallel}x{layout.pipeline_parallel}")
@pytest.mark.parametrize("name", PARALLEL)
@pytest.mark.parametrize("architecture", ["megatron-bert", "gpt"])
def test_every_layout_is_written_read_and_rewritten(tmp_path, architecture, name, layout):
    tensors = write(tmp_path / "ours", architecture)
    cut = to(tmp_path / "ours", tmp_path / "cut", name, layout, num_tokens=50)
    facts = open_checkpoint(cut).facts
    assert (facts["tensor_parallel"], facts["pipeline_parallel"]) == (layout.tensor_parallel, layout.pipeline_parallel)
    again = to(cut, tmp_path / "again", "megatron", ModelParallelLayout(2, 2), num_tokens=50)
    assert_same(again, tensors, num_tokens=50)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", WRITERS)
def test_every_dtype_keeps_its_bits(tmp_path, name, dtype):
    tensors = write(tmp_path / "ours", "megatron-bert", dtype)
    assert_same(to(tmp_path / "ours", tmp_path / "theirs", name, num_tokens=50), tensors, num_tokens=50)


def test_another_dtype_is_rounded_once(tmp_path):
    tensors = write(tmp_path / "ours", "megatron-bert")
    half = to(tmp_path / "ours", tmp_path / "half", "huggingface", dtype=torch.bfloat16)
    assert_same(half, {name: item.bfloat16() for name, item in tensors.items()})
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("name", WRITERS)
def test_genuine_checkpoints_keep_their_tensors_and_logits(genuine_checkpoints, tmp_path, source, name):
    layouts = [ModelParallelLayout(), ModelParallelLayout(4, 2)] if name in PARALLEL else [ModelParallelLayout()]
    original = open_checkpoint(genuine_checkpoints / source)
    if original.config.norm_place != "pre" and name in ("megatron-core", "nemo"):
        with pytest.raises(ConfigError, match=REASONS["normed residual", name]):
            to(genuine_checkpoints / source, tmp_path / "0", name)
        return
    tensors = {key: item.read() for key, item in original.tensors.items()}
    for number, layout in enumerate(layouts):
        folder = to(genuine_checkpoints / source, tmp_path / str(number), name, layout)
        assert_same(folder, tensors)
    oracle = safetensors.torch.load_file(genuine_checkpoints / source / "oracle.safetensors")
    is_real = oracle["attention_mask"].bool()
    ours = logits(build(open_checkpoint(tmp_path / "0")), oracle)[0]
    torch.testing.assert_close(ours[is_real], oracle["lm_logits"][is_real], atol=1e-6, rtol=0)


def rank_files(folder):
    return [torch.load(file, weights_only=False) for file in sorted(folder.rglob("model_optim_rng.pt"))]


@pytest.mark.parametrize("name", ["megatron", "megatron-core"])
@pytest.mark.parametrize("architecture", ["headless", "no segments", "megatron-bert", "openai gelu"])
def test_megatron_s_loader_finds_what_it_wants(tmp_path, architecture, name):
    if (architecture, name) in (*REASONS, ("headless", "megatron")):
        return
    tensors = write(tmp_path / "ours", architecture)
    source = open_checkpoint(tmp_path / "ours")
    notes = convert(source, tmp_path / "theirs", Target(name), num_tokens=50, progress=None)
    (content,) = rank_files(tmp_path / "theirs")
    names = set(flat(content["model"]))
    # num_tokentypes = 2 if args.bert_binary_head else 0; the pooler comes with the binary head.
    has_binary_head = content["args"].bert_binary_head
    assert has_binary_head == (architecture != "no segments")
    for part in ("tokentype_embeddings.weight", "pooler.dense.weight", "binary_head.weight"):
        assert any(key.endswith(part) for key in names) == has_binary_head, part
    assert "lm_head.dense.weight" in names
    missing = {"headless": "no language-model head and no sentence-order head", "openai gelu": "no sentence-order head"}
    assert any(missing.get(architecture, "?") in note for note in notes) == (architecture in missing)
    assert_same(tmp_path / "theirs", tensors, num_tokens=50)


def flat(tree, prefix=""):
    return {
        key: item
        for name, value in tree.items()
        for key, item in (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        ).items()
    }


def test_an_added_head_that_was_trained_since_is_read(tmp_path):
    write(tmp_path / "ours", "headless")
    folder = to(tmp_path / "ours", tmp_path / "theirs", "megatron-core", num_tokens=50)
    assert open_checkpoint(folder).heads == []
    file = folder / "release" / "mp_rank_00" / "model_optim_rng.pt"
    content = torch.load(file, weights_only=False)
    for key in [key for key in content["model"] if key.startswith(("lm_head.", "output_layer."))]:
        content["model"][key] += 0.5
    torch.save(content, file)
    assert open_checkpoint(folder).heads == ["language-model head"]


def test_three_segments_and_a_causal_network_with_segments_are_refused(tmp_path):
    for number, changes in enumerate([{"num_segments": 3}, {"is_causal": True, "num_segments": 2}]):
        config = replace(ARCHITECTURES["headless"][0], **changes)
        tensors = {name: torch.rand(shape) for name, shape in encoder_shapes(config).items()}
        write_manifest_folder(
            tmp_path / str(number), Contents({"model": tensors}, {"encoder": config.to_dict()}, {}), {}
        )
        for name in PARALLEL:
            with pytest.raises(ConfigError, match="segments"):
                to(tmp_path / str(number), tmp_path / "theirs", name)


@pytest.mark.parametrize(("architecture", "fused"), [("megatron-bert", False), ("fused gelu", True), ("gpt", True)])
def test_nemo_s_configuration_says_what_its_layers_compute(tmp_path, architecture, fused):
    write(tmp_path / "ours", architecture, torch.float16)
    path = to(tmp_path / "ours", tmp_path / "x.nemo", "nemo", num_tokens=50)
    with tarfile.open(path) as archive:
        config = yaml.safe_load(archive.extractfile("./model_config.yaml"))
    assert (config["bias_gelu_fusion"], config["bias_activation_fusion"]) == (fused, fused)
    assert config["precision"] == 16
    assert config["transformer_block_type"] == "pre_ln"
    assert config["bert_binary_head"] == (architecture != "gpt")
    assert config["optim"]["name"]  # MegatronBaseModel reads it before anything else


def test_numbers_that_float16_does_not_reach_are_reported_and_leave_nothing(tmp_path, capsys):
    tensors = write(tmp_path / "ours", "megatron-bert")
    large = {name: item * 1e6 if name == "encoder.layers.1.mlp.up.weight" else item for name, item in tensors.items()}
    config = ARCHITECTURES["megatron-bert"][0]
    write_manifest_folder(tmp_path / "large", Contents({"model": large}, {"encoder": config.to_dict()}, {}), {})
    for name in WRITERS:
        words = ["convert", str(tmp_path / "large"), str(tmp_path / "theirs"), "--to", name, "--dtype", "float16"]
        assert cli.main(words) == 64
        message = capsys.readouterr().err
        assert "encoder.layers.1.mlp.up.weight reaches" in message
        assert "more than the 65504 of torch.float16" in message
        assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "ours"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_failed_comparison_leaves_nothing(tmp_path, name):
    write(tmp_path / "ours", "megatron-bert")
    source = open_checkpoint(tmp_path / "ours")
    stored, count = source.tensors["encoder.final_norm.bias"], itertools.count()
    unstable = Derived(tuple(stored.shape), stored.dtype, lambda: stored.read() + next(count))
    source = replace(source, tensors={**source.tensors, "encoder.final_norm.bias": unstable})
    with pytest.raises(CheckpointError, match=r"theirs: encoder\.final_norm\.bias does not read back"):
        convert(source, tmp_path / "theirs", Target(name), num_tokens=None, progress=None)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_vocabulary_padding_is_replaced_by_that_of_the_new_layout(tmp_path):
    write(tmp_path / "ours", "megatron-bert")
    wide = to(tmp_path / "ours", tmp_path / "wide", "megatron", ModelParallelLayout(4, 1), num_tokens=50)
    assert open_checkpoint(wide).shape["vocabulary_size"] == 512
    narrow = to(wide, tmp_path / "narrow", "megatron", num_tokens=50)
    assert open_checkpoint(narrow).shape["vocabulary_size"] == 128
    assert open_checkpoint(to(narrow, tmp_path / "hub", "huggingface", num_tokens=50)).shape["vocabulary_size"] == 50
    with pytest.raises(CheckpointError, match="no padding leads from one to the other"):
        to(narrow, tmp_path / "wrong", "huggingface", num_tokens=300)


def test_padding_rows_that_fit_are_kept(tmp_path, genuine_checkpoints):
    source = genuine_checkpoints / "v2.6_tp2"
    same = to(source, tmp_path / "same", "megatron", ModelParallelLayout(2, 1), num_tokens=500)
    word = "encoder.embeddings.word.weight"
    assert torch.equal(open_checkpoint(same).tensors[word].read(), open_checkpoint(source).tensors[word].read())


# --- Other programs ---


def test_the_files_have_the_structure_that_megatron_loads(tmp_path):
    tensors = write(tmp_path / "ours", "megatron-bert")
    folder = to(tmp_path / "ours", tmp_path / "theirs", "megatron", ModelParallelLayout(2, 2), num_tokens=50)
    assert (folder / "latest_checkpointed_iteration.txt").read_text() == "release"
    first, last = (
        torch.load(folder / "release" / f"mp_rank_01_00{stage}" / "model_optim_rng.pt", weights_only=False)
        for stage in (0, 1)
    )
    assert first["checkpoint_version"] == 3.0
    arguments = vars(first["args"])
    assert arguments["num_layers"] == 4
    assert arguments["padded_vocab_size"] == 256
    assert arguments["pipeline_model_parallel_size"] == 2
    assert set(first["model"]) == {"language_model"}
    assert set(last["model"]) == {"language_model", "lm_head", "binary_head", "word_embeddings_for_head"}
    assert set(last["model"]["language_model"]) == {"encoder", "pooler"}
    word = tensors["encoder.embeddings.word.weight"]
    rows = first["model"]["language_model"]["embedding"]["word_embeddings"]["weight"]
    assert rows.shape == (128, 16)
    assert not rows.any()  # the second half of 256 rows for 50 words
    assert torch.equal(last["model"]["word_embeddings_for_head"]["weight"], rows)
    qkv = last["model"]["language_model"]["encoder"]["layers.1.self_attention.query_key_value.weight"]
    assert torch.equal(qkv, tensors["encoder.layers.3.attention.qkv.weight"][24:])  # heads 2 and 3
    assert torch.equal(last["model"]["lm_head"]["bias"], torch.zeros(128))
    assert word.shape == (50, 16)


def inputs():
    torch.manual_seed(1)
    ids = torch.randint(5, 50, (2, 12))
    segments = (torch.arange(12) > 5).long().expand(2, 12)
    return ids, segments, torch.tensor([[1] * 12, [1] * 7 + [0] * 5])


@pytest.mark.parametrize("architecture", ["megatron-bert", "openai gelu", "headless", "no segments", "bert", "gpt"])
def test_transformers_loads_what_is_written_and_gives_equal_logits(tmp_path, architecture):
    transformers = pytest.importorskip("transformers")
    write(tmp_path / "ours", architecture, vocabulary=VOCABULARY)
    folder = to(tmp_path / "ours", tmp_path / "hub", "huggingface", num_tokens=50)
    config = json.loads((folder / "config.json").read_text())
    theirs, report = getattr(transformers, config["architectures"][0]).from_pretrained(folder, output_loading_info=True)
    # The pooler of MegatronBertModel is the one tensor that a headless checkpoint does not have.
    assert all("pooler" in name for name in report["missing_keys"])
    assert not report["unexpected_keys"]
    ids, segments, mask = inputs()
    model = network(architecture)
    with torch.inference_mode():
        if architecture == "gpt":
            actual = theirs.eval()(ids, attention_mask=mask).logits
            expected = model(ids, documents=PackedSequences.of_rows(mask))[0]
        elif architecture == "headless":
            actual = theirs.eval()(ids, token_type_ids=segments, attention_mask=mask).last_hidden_state
            expected = model.encoder(ids, segment_ids=segments, documents=PackedSequences.of_rows(mask))
        else:
            segments = None if architecture == "no segments" else segments
            output = theirs.eval()(ids, token_type_ids=segments, attention_mask=mask)
            actual = output.prediction_logits if "prediction_logits" in output else output.logits
            ours = {} if segments is None else {"segment_ids_BL": segments}
            expected = model(ids, documents=PackedSequences.of_rows(mask), **ours)[0]
    is_real = mask.bool()
    torch.testing.assert_close(actual[is_real], expected[is_real], atol=2e-5, rtol=1e-5)


def test_transformers_finds_the_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    write(tmp_path / "ours", "megatron-bert", vocabulary=VOCABULARY)
    folder = to(tmp_path / "ours", tmp_path / "hub", "huggingface", num_tokens=50)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("W1 w2")["input_ids"] == [WORDS.index(word) for word in ("[CLS]", "w1", "w2", "[SEP]")]


def test_a_normed_residual_is_not_loaded_as_something_else(tmp_path):
    transformers = pytest.importorskip("transformers")
    write(tmp_path / "ours", "normed residual")
    source = open_checkpoint(tmp_path / "ours")
    notes = convert(source, tmp_path / "hub", Target("huggingface"), num_tokens=None, progress=None)
    assert any("takes its residuals after the layer norm" in note for note in notes)
    with pytest.raises(ValueError, match="residual-post-layernorm"):
        transformers.AutoModel.from_pretrained(tmp_path / "hub")


def test_large_weights_are_split_into_shards_with_an_index(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("megabert.checkpoints.huggingface.write_huggingface.LARGEST_SHARD", 10_000)
    tensors = write(tmp_path / "ours", "megatron-bert")
    folder = to(tmp_path / "ours", tmp_path / "hub", "huggingface")
    assert len(list(folder.glob("model-0*.safetensors"))) > 2
    assert_same(folder, tensors)
    theirs = transformers.MegatronBertForPreTraining.from_pretrained(folder)
    assert torch.equal(theirs.bert.embeddings.word_embeddings.weight, tensors["encoder.embeddings.word.weight"])


# --- The command ---


def test_the_command_converts_and_reports(tmp_path, capsys):
    tensors = write(tmp_path / "ours", "megatron-bert", vocabulary=VOCABULARY)
    words = [str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "megatron", "--tensor-parallel", "2"]
    assert cli.main(["convert", *words]) == 0
    assert "reads back bit for bit" in capsys.readouterr().err
    assert (tmp_path / "theirs" / "vocab.txt").read_text() == VOCABULARY
    assert_same(tmp_path / "theirs", tensors, num_tokens=50)
    assert cli.main(["convert", *words]) == 64
    assert "exists. Give a new name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "megatron", "--tensor-parallel", "3"], "4 attention heads cannot be cut into 3 equal parts"),
        (["--to", "megatron", "--pipeline-parallel", "3"], "4 layers cannot be cut into 3"),
        (["--to", "megatron", "--tensor-parallel", "0"], "cannot be cut into 0"),
        (["--to", "huggingface", "--tensor-parallel", "2"], "has no parallel layout"),
        (["--to", "onnx"], "invalid choice"),
        (["--to", "megatron", "--dtype", "int8"], "invalid choice"),
        (["--to", "megatron", "--qkv-layout", "qkv"], "is unknown. Choose one of"),
    ],
)
def test_wrong_options_are_reported_and_nothing_is_written(tmp_path, capsys, words, message):
    write(tmp_path / "ours", "megatron-bert", vocabulary=VOCABULARY)
    assert cli.main(["convert", str(tmp_path / "ours"), str(tmp_path / "theirs"), *words]) == 64
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_tensor_that_cannot_be_read_leaves_nothing_behind(tmp_path, genuine_checkpoints):
    folder = to(genuine_checkpoints / "v1.0_tp1", tmp_path / "theirs", "megatron", ModelParallelLayout(2, 1))
    file = folder / "release" / "mp_rank_01" / "model_optim_rng.pt"
    content = torch.load(file, weights_only=False)
    content["model"]["language_model"]["encoder"]["final_layernorm.weight"][3] = float("nan")
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"final_layernorm\.weight should be equal in all shards"):
        to(folder, tmp_path / "again", "huggingface")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


MEASURE = """
import resource, sys
from pathlib import Path
from megabert.checkpoints.convert import Target, convert
from megabert.checkpoints.open import open_checkpoint
from megabert.checkpoints.files.lazy_tensor import Derived
from megabert.checkpoints.megatron.write_megatron import ModelParallelLayout
from megabert.checkpoints.native.manifest_folder import Contents, write_manifest_folder
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
source, dest, name, tensor_parallel = sys.argv[1:]
before = peak()
target = Target(name, ModelParallelLayout(int(tensor_parallel)))
convert(open_checkpoint(Path(source)), Path(dest), target, num_tokens=None, progress=None)
print(peak() - before)
"""


@pytest.mark.parametrize(("name", "parts"), [("huggingface", 1), ("megatron", 8)])
def test_memory_is_one_file_of_the_target_and_no_more(tmp_path, name, parts):
    from dataclasses import replace

    from megabert.checkpoints.native.manifest_folder import Contents, write_manifest_folder
    from tests.checkpoints.networks import MEGATRON

    # 8 layers of 512 in float32: 104 MB, of which no tensor has more than 4.2 MB.
    config = replace(MEGATRON, num_layers=8, hidden_size=512, num_heads=8, ffn_size=2048, vocabulary_size=1024)
    from megabert.checkpoints.files.lazy_tensor import in_memory, num_bytes
    from megabert.checkpoints.tensor_names import encoder_shapes

    tensors = {key: in_memory(torch.full(shape, 0.5)) for key, shape in encoder_shapes(config).items()}
    total = sum(map(num_bytes, tensors.values()))
    write_manifest_folder(tmp_path / "ours", Contents({"model": tensors}, {"encoder": config.to_dict()}), {})
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "ours"), str(tmp_path / "theirs"), name, str(parts)],
        capture_output=True,
        text=True,
        check=True,
    )
    largest_file = total / parts if name == "megatron" else 0
    assert int(done.stdout) < 1.2 * largest_file + 50e6, (int(done.stdout), total)


# --- Fine-tuned runs ---


def write_run(folder, task, head, architecture="megatron-bert"):
    """Write a checkpoint of training as `megabert train` does, with a head of random numbers."""
    from megabert.checkpoints.native.manifest_folder import Contents, write_manifest_folder

    config, _ = ARCHITECTURES[architecture]
    tensors = {f"encoder.{name}": item.detach() for name, item in network(architecture).encoder.named_parameters()}
    torch.manual_seed(3)
    tensors |= {f"head.{name}": torch.randn(shape) for name, shape in head.items()}
    documents = {"encoder": config.to_dict(), "tokenizer": {"lower_case": True}, "run": {"task": task, "mode": "max"}}
    write_manifest_folder(folder, Contents({"model": tensors}, documents, {"vocab.txt": VOCABULARY}), {"step": 3})
    return tensors


ONE_LAYER = {"out.weight": (2, 16), "out.bias": (2,)}
TWO_LAYERS = {"hidden.0.weight": (16, 16), "hidden.0.bias": (16,), **ONE_LAYER}
HEADS = {
    "question_answering": (ONE_LAYER, "ForQuestionAnswering"),
    "token_classification": (ONE_LAYER, "ForTokenClassification"),
    "text_classification": (TWO_LAYERS, "ForSequenceClassification"),
}


@pytest.mark.parametrize("architecture", ["megatron-bert", "bert"])
@pytest.mark.parametrize("task", HEADS)
def test_heads_of_fine_tuned_runs_become_transformers_heads(tmp_path, task, architecture):
    transformers = pytest.importorskip("transformers")
    head, class_end = HEADS[task]
    tensors = write_run(tmp_path / "run", task, head, architecture)
    folder = to(tmp_path / "run", tmp_path / "hub", "huggingface", num_tokens=50)
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    assert name.endswith(class_end)
    theirs, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids, segments, mask = inputs()
    with torch.inference_mode():
        output = theirs.eval()(ids, token_type_ids=segments, attention_mask=mask)
        hidden = network(architecture).encoder(ids, segment_ids=segments, documents=PackedSequences.of_rows(mask))
        if task == "text_classification":
            hidden = torch.tanh(hidden[:, 0] @ tensors["head.hidden.0.weight"].T + tensors["head.hidden.0.bias"])
        expected = hidden @ tensors["head.out.weight"].T + tensors["head.out.bias"]
    if task == "question_answering":
        actual, is_real = torch.stack([output.start_logits, output.end_logits], dim=-1), mask.bool()
    else:
        actual, is_real = output.logits, mask.bool() if task == "token_classification" else slice(None)
    torch.testing.assert_close(actual[is_real], expected[is_real], atol=1e-4, rtol=1e-5)


def test_a_head_that_transformers_does_not_have_is_refused(tmp_path):
    write_run(tmp_path / "run", "question_answering", TWO_LAYERS)
    with pytest.raises(ConfigError, match=r"has a head of head\.out only"):
        to(tmp_path / "run", tmp_path / "hub", "huggingface", num_tokens=50)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_encoder_of_a_run_converts_to_every_other_format(tmp_path):
    tensors = write_run(tmp_path / "run", "question_answering", ONE_LAYER)
    encoder = {name: item for name, item in tensors.items() if name.startswith("encoder.")}
    for name in ("megatron", "megatron-core", "nemo", "megabert"):
        source = open_checkpoint(tmp_path / "run")
        notes = convert(source, tmp_path / name, Target(name), num_tokens=50, progress=None)
        assert any("the head of the fine-tuned run has no place" in note for note in notes)
        assert_same(tmp_path / name, encoder, num_tokens=50)
