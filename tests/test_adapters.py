"""Adapters: frozen bases, exact resuming, digests, merging, and PEFT's format against the peft library."""

import json
import threading
import time
import weakref

import pytest
import torch

from megabert.build import load_run
from megabert.checkpoints.native import run_checkpoints as run
from megabert.cli import main
from megabert.model.lora import LoraConfig, LoraLinear, add_lora, base_digest, find_targets, initialize_lora
from megabert.weights import share_weights

from .conftest import WORDS

LINES = "marie B-P\ncurie I-P\nwas O\nin O\nparis B-L\n\nwarsaw B-L\nis O\nthe O\nwho O\n\n" * 4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny base in transformers' format."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.MegatronBertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)
    folder = tmp_path_factory.mktemp("base")
    model = transformers.MegatronBertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    return folder


def words(base, folder, *more):
    return [
        f"model.train_ds.file={folder.parent / 'train.txt'}", f"model.validation_ds.file={folder.parent / 'train.txt'}",
        f"model.language_model.pretrained_model_name={base}", "model.train_ds.batch_size=4", "trainer.max_steps=6",
        "trainer.val_check_interval=3", "exp_manager.checkpoint_callback_params.save_top_k=-1", "model.optim.lr=1e-2",
        "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "exp_manager.create_tensorboard_logger=false",
        "model.peft.peft_scheme=lora", "model.peft.lora_tuning.adapter_dim=4", "model.dataset.max_seq_length=64",
        f"exp_manager.explicit_log_dir={folder}", *more,
    ]  # fmt: skip


def train(base, folder, *more):
    (folder.parent / "train.txt").write_text(LINES, encoding="utf-8")
    assert main(["train", "token_classification", *words(base, folder, *more)]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    dropout = "model.peft.lora_tuning.adapter_dropout=0.1"
    return train(base, tmp_path_factory.mktemp("runs") / "lora", dropout)


def tensors(folder, groups=("model", "optimizer")):
    return run.read(run.find_last(folder).path, groups=groups).tensors


def test_a_run_holds_adapters_and_head_alone(trained):
    names = set(tensors(trained)["model"])
    assert {name.rpartition(".")[2] for name in names if name.startswith("encoder.")} == {"lora_a", "lora_b"}
    assert len([name for name in names if name.startswith("encoder.")]) == 2 * 4 * 2
    assert any(name.startswith("head.") for name in names)
    moments = {key.partition("/")[0] for key in tensors(trained)["optimizer"]}
    assert moments == names


def test_resuming_from_the_middle_gives_the_same_bits(base, trained, tmp_path):
    import shutil

    (tmp_path / "train.txt").write_text(LINES, encoding="utf-8")
    shutil.copytree(trained, tmp_path / "lora")
    assert main(["train", "token_classification", "--resume", str(tmp_path / "lora"), "--step", "3"]) == 0
    before, after = tensors(trained), tensors(tmp_path / "lora")
    assert before.keys() == after.keys()
    for group in before:
        for name, item in before[group].items():
            assert torch.equal(item, after[group][name]), name


def test_another_base_is_refused(base, trained, tmp_path, capsys):
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(base, other)
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values())).mul_(1.1)
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    word = f"model.language_model.pretrained_model_name={other}"
    assert main(["merge", str(trained), word, "-o", str(tmp_path / "merged")]) == 66
    assert "digest" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_convert_and_full_training_point_to_merge(base, trained, tmp_path, capsys):
    assert main(["convert", str(trained), str(tmp_path / "out"), "--to", "huggingface"]) == 66
    assert "megabert merge" in capsys.readouterr().err


def outputs(path):
    """Logits of fixed token ids, by the run's network."""
    predictor = load_run(path, accelerator="cpu")
    return network_logits(predictor.session.model)


IDS = torch.arange(5, 25)


@torch.no_grad()
def network_logits(model):
    ends = torch.tensor([0, 20], dtype=torch.int32)
    return model(IDS, torch.arange(20), torch.zeros(20, dtype=torch.long), ends, 20)


def test_merged_weights_give_the_same_logits(trained, tmp_path):
    assert main(["merge", str(trained), "-o", str(tmp_path / "merged")]) == 0
    before, after = outputs(trained), outputs(tmp_path / "merged")
    assert (before - after).abs().max() < 1e-6 * max(1.0, float(before.abs().max()))
    assert main(["convert", str(tmp_path / "merged"), str(tmp_path / "hf"), "--to", "huggingface"]) == 0


def test_an_export_has_the_merged_weights(trained, tmp_path):
    assert main(["export", str(trained), "--to", "huggingface", "-o", str(tmp_path / "out")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    texts, paths = ["Marie Curie was born in Warsaw", "who found radium"], (trained, tmp_path / "out")
    before, after = (load_run(path, accelerator="cpu").predict(text=texts) for path in paths)
    assert [item.tags for item in before] == [item.tags for item in after]
    for first, second in zip(before, after, strict=True):
        assert [span.score for span in first.spans] == pytest.approx([span.score for span in second.spans], abs=1e-4)


def test_a_server_holds_one_base_of_several_adapters(base, trained, tmp_path):
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    from megabert.serve.server_parts import LoadedRun
    from tests.serve.running_server import running

    other = train(base, tmp_path / "other", "seed=9", "trainer.max_steps=1", "trainer.val_check_interval=0")
    runs = [LoadedRun(name, load_run(path, accelerator="cpu")) for name, path in (("a", trained), ("b", other))]
    texts = ["Marie Curie was born in Warsaw", "who found radium"]
    alone = [run.predictor.embed(texts) for run in runs]
    models = [run.predictor.session.model for run in runs]
    shared = share_weights(models[1], models[:1])
    base_bytes = sum(item.numel() * 4 for name, item in models[0].named_parameters() if name in frozen(models[0]))
    assert shared == base_bytes
    memory = {item.data_ptr(): item.numel() * 4 for model in models for item in model.parameters()}
    own = [sum(item.numel() * 4 for name, item in m.named_parameters() if name not in frozen(m)) for m in models]
    assert sum(memory.values()) == base_bytes + sum(own)
    with running(runs) as server:
        answers = [server.post(f"/models/{name}/embed", inputs=texts, normalize=False) for name in ("a", "b", "a")]
    for answer, expected in zip(answers, (alone[0], alone[1], alone[0]), strict=True):
        assert torch.tensor(answer).numpy() == pytest.approx(expected, abs=1e-5)
    assert abs(alone[0] - alone[1]).max() > 1e-3


def test_a_batch_of_several_adapters_gives_each_request_its_own_answer(base, trained, tmp_path):
    """Other task, rank, layers and head: answers under load are those alone, and batches are shared."""
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    from concurrent.futures import ThreadPoolExecutor

    from megabert.serve.server_parts import LoadedRun
    from tests.serve.running_server import running
    from tests.serve.test_routes import same

    (tmp_path / "topics.tsv").write_text("marie curie\ta\nwarsaw is\tb\nin paris\tb\n" * 4, encoding="utf-8")
    lora = ("model.peft.lora_tuning.adapter_dim=7", "model.peft.lora_tuning.target_modules=[attention_qkv,mlp_fc2]")
    more = [*words(base, tmp_path / "topics", *lora, "trainer.max_steps=3", "trainer.val_check_interval=0")]
    files = {"model.train_ds.file": tmp_path / "topics.tsv", "model.validation_ds.file": tmp_path / "topics.tsv"}
    more += [f"{name}={path}" for name, path in files.items()]
    assert main(["train", "text_classification", *more]) == 0
    runs = [
        LoadedRun(name, load_run(path, accelerator="cpu"))
        for name, path in (("a", trained), ("b", tmp_path / "topics"))
    ]
    models = [run.predictor.session.model for run in runs]
    assert share_weights(models[1], models[:1]) > 0
    texts = [" ".join(WORDS[5 + (7 * number + k) % 20] for k in range(1 + number % 9)) for number in range(48)]
    tasks = [run.predictor.task for run in runs]
    alone = [
        {**json.loads(json.dumps(tasks[n % 2].to_json(runs[n % 2].predictor.predict(text=text)))), "id": "1"}
        for n, text in enumerate(texts)
    ]
    vectors = runs[1].predictor.embed(texts)
    with running(runs) as server:
        gate, shared, compute = threading.Event(), [], server.queue._run

        def run(jobs):
            assert gate.wait(10)
            shared.append({job.lane for job in jobs})
            return compute(jobs)

        server.queue._run = run

        def ask(number):
            if number % 6 == 5:
                return server.post("/models/b/embed", inputs=texts[number], normalize=False)
            route = ("/v1/entities", "/v1/classes")[number % 2]
            return server.post(route, model="ab"[number % 2], text=texts[number])["results"][0]

        with ThreadPoolExecutor(16) as threads:
            futures = [threads.submit(ask, number) for number in range(len(texts))]
            while sum(map(len, server.queue._waiting.values())) < 8:
                time.sleep(0.001)
            gate.set()
            answers = [future.result(20) for future in futures]
    for number, answer in enumerate(answers):
        if number % 6 == 5:
            assert torch.tensor(answer[0]).numpy() == pytest.approx(vectors[number], abs=1e-5)
        else:
            assert same(alone[number], {key: value for key, value in answer.items() if key in alone[number]}), number
    assert {"a/head", "b/head"} <= max(shared, key=len)


def frozen(model):
    """Names of the base's parameters."""
    return {name for name, _ in model.encoder.named_parameters(prefix="encoder") if ".lora_" not in name}


def test_peft_reads_what_is_written_and_is_read_back(base, trained, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    assert main(["merge", str(trained), "--peft", "-o", str(tmp_path / "peft")]) == 0
    mine = outputs(trained)
    plain = transformers.AutoModelForTokenClassification.from_pretrained(base, num_labels=mine.shape[1])
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "peft").eval()
    with torch.no_grad():
        assert (theirs(input_ids=IDS[None]).logits[0] - mine).abs().max() < 1e-5
    more = f"model.peft.restore_from_path={tmp_path / 'peft'}", "trainer.max_steps=1", "model.optim.lr=1e-12"
    again = train(base, tmp_path / "again", *more)
    assert (outputs(again) - mine).abs().max() < 1e-5


def test_separate_adapters_of_peft_become_blocks(base, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    plain = transformers.AutoModelForTokenClassification.from_pretrained(base, num_labels=4)
    config = peft.LoraConfig("TOKEN_CLS", r=4, lora_alpha=6, use_rslora=True, target_modules=["query", "value"])
    model = peft.get_peft_model(plain, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
        model.save_pretrained(tmp_path / "peft")
        theirs = model(input_ids=IDS[None]).logits[0]
    from megabert.adapters import load_peft
    from megabert.build import load_encoder
    from megabert.checkpoints.huggingface.peft_adapter import open_peft, write_peft
    from megabert.model.heads import TaskModel, TokenHead

    encoder, _ = load_encoder(str(base), home=tmp_path)
    adapter = open_peft(tmp_path / "peft", encoder.config, task="token_classification")
    head = TokenHead(32, 4, num_layers=1, dropout=0.1, activation="relu")
    network = TaskModel(encoder, head).eval()
    load_peft(network, adapter)
    assert (network_logits(network) - theirs).abs().max() < 1e-5
    (tmp_path / "back").mkdir()
    write_peft(tmp_path / "back", adapter, encoder.config, task="token_classification", base=str(base))
    back = peft.PeftModel.from_pretrained(
        transformers.AutoModelForTokenClassification.from_pretrained(base, num_labels=4), tmp_path / "back"
    ).eval()
    with torch.no_grad():
        assert (back(input_ids=IDS[None]).logits[0] - theirs).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [({"peft_type": "IA3"}, "only LORA"), ({"use_dora": True}, "use_dora"), ({"r": 0}, "lacks r")],
)
def test_other_adapters_of_peft_are_refused(tmp_path, change, message):
    from megabert.checkpoints.huggingface.peft_adapter import open_peft
    from megabert.errors import CheckpointError
    from megabert.model.config import EncoderConfig

    document = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | change
    (tmp_path / "adapter_config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=message):
        open_peft(tmp_path, EncoderConfig(50, 1, 16, 2, 32, 32, 2), task="glue")


def test_scaling_and_digest():
    from megabert.model.config import EncoderConfig
    from megabert.model.encoder import Encoder, initialize

    assert LoraConfig(4, 8.0).scaling == 2 and LoraConfig(4, 8.0, rank_stabilized=True).scaling == 4
    encoder = Encoder(EncoderConfig(50, 1, 16, 2, 32, 32, 2))
    initialize(encoder, torch.Generator().manual_seed(1), num_layers=1)
    ids = torch.arange(10)
    before, digest = encoder.eval()(ids), base_digest(encoder)
    add_lora(encoder, dict.fromkeys(find_targets(encoder, ["mlp", "attention_qkv"]), 3), LoraConfig(3, 6.0))
    initialize_lora(encoder, torch.Generator().manual_seed(2))
    assert torch.equal(before, encoder(ids))
    assert sum(isinstance(module, LoraLinear) for module in encoder.modules()) == 3
    assert digest == base_digest(encoder) == base_digest(encoder.to(torch.bfloat16))


def test_eight_bit_inference_keeps_the_adapters():
    from megabert.model.config import EncoderConfig
    from megabert.model.encoder import Encoder
    from megabert.model.fp8 import use_fp8

    encoder = Encoder(EncoderConfig(50, 1, 16, 2, 32, 32, 2))
    add_lora(encoder, {"layers.0.attention.qkv": 3, "layers.0.mlp.up": 3}, LoraConfig(3, 6.0))
    for module in (encoder.layers[0].attention.qkv, encoder.layers[0].mlp.up):
        torch.nn.init.ones_(module.lora_a), torch.nn.init.ones_(module.lora_b)
    wanted = [encoder.layers[0].attention.qkv.weight + 6, encoder.layers[0].mlp.up.weight + 6]
    use_fp8(encoder)
    weights = dict(encoder.named_parameters())
    for name, expected in zip(("attention.qkv", "mlp.up"), wanted, strict=True):
        assert torch.equal(weights[f"layers.0.{name}.weight"], expected)
    assert not any("lora" in name for name in weights)


def test_a_sharded_base_is_read_tensor_by_tensor(base, tmp_path, monkeypatch):
    """At no time are more tensors of its files in memory than make one weight (query, key and value)."""
    from safetensors.torch import load_file, save_file

    from megabert.adapters import Placement
    from megabert.build import load_language_model
    from megabert.checkpoints.files.lazy_tensor import LazyTensor
    from megabert.config.schema import LanguageModelSettings, ModelSettings

    tensors, places = load_file(base / "model.safetensors"), {}
    for number, name in enumerate(sorted(tensors)):
        places[name] = f"model-{number // 4 + 1:05d}-of-{-(-len(tensors) // 4):05d}.safetensors"
        save_file({key: tensors[key] for key in places if places[key] == places[name]}, tmp_path / places[name])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for name in ("config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((base / name).read_bytes())
    live, most, read = 0, [0], LazyTensor.read

    def counted(item):
        nonlocal live
        tensor = read(item)
        size = tensor.nbytes

        def freed():
            nonlocal live
            live -= size

        weakref.finalize(tensor, freed)
        live += size
        most.append(live)
        return tensor

    monkeypatch.setattr(LazyTensor, "read", counted)
    settings = ModelSettings(language_model=LanguageModelSettings(pretrained_model_name=str(tmp_path)))
    encoder = load_language_model(settings, home=tmp_path, seed=0, place=Placement(torch.bfloat16, "cpu")).encoder
    assert all(item.dtype == torch.bfloat16 for item in encoder.parameters())
    assert torch.equal(encoder.embeddings.word.weight, tensors["embeddings.word_embeddings.weight"].bfloat16())
    largest = max(item.numel() for item in encoder.parameters()) * 4
    assert (
        len(most) > len(list(encoder.parameters()))
        and max(most) <= largest < sum(t.nbytes for t in tensors.values()) / 4
    )
