"""`megabert inspect` reports the content of the files, and detects the layout of the weights."""

import json
from argparse import Namespace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from megabert import cli
from megabert.checkpoints.mapping import QKV_LAYOUTS
from megabert.checkpoints.open import open_checkpoint
from megabert.diagnostics.qkv_check import check_qkv_layout
from megabert.model.config import EncoderConfig
from tests.checkpoints.networks import VOCABULARY, new_pretraining_model, write
from tests.checkpoints.test_convert import to
from tests.checkpoints.test_genuine import NAMES


def inspect(capsys, *words):
    code = cli.main(["inspect", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_report_has_all_facts(genuine_checkpoints, capsys):
    folder = genuine_checkpoints / "v2.6_tp2_pp2"
    code, out, _ = inspect(capsys, folder, "--json", "--vocab-file", genuine_checkpoints / "vocab.txt")
    report = json.loads(out)
    assert code == 0
    assert report["format"] == "Megatron-LM, v2.1 to v2.6"
    assert report["iteration"] == 7
    assert report["checkpoint_version"] == 3.0
    assert report["parallel"] == {"tensor_parallel": 2, "pipeline_parallel": 2, "interleaved": 1}
    assert report["qkv_layout"] == "heads_3_dim"
    assert report["architecture"]["num_layers"] == 4
    assert report["architecture"]["kind"] == "Megatron-BERT"
    assert (report["vocabulary"]["rows"], report["vocabulary"]["tokens"]) == (512, 500)
    assert report["heads"] == ["pooler", "sentence-order head", "language-model head"]
    # by hand: embeddings, layers, final norm; then pooler, order head, dense, norm, bias
    encoder = (512 + 40 + 2) * 64 + 4 * (12 * 64 * 64 + 13 * 64) + 128
    assert report["num_encoder_parameters"] == encoder
    assert report["num_parameters"] == encoder + 2 * (64 * 64 + 64) + 130 + 128 + 512
    assert report["dtypes"] == {"float32": 62}
    assert report["surprises"] == []
    assert "numpy.dtype" in report["unknown_globals"]
    assert "gelu: tanh (bias_gelu_fusion)" in report["assumptions"]


def test_the_text_report_has_the_same_facts(genuine_checkpoints, capsys):
    _, out, _ = inspect(capsys, genuine_checkpoints / "v1.0_gpt_tp1", "--quick", "--sha256")
    assert "GPT-2: 2 layers x 64 x 4 heads" in out
    assert "query-key-value rows: 3_heads_dim (no checkpoint_version: version 0)" in out
    assert "the true size is not known (--vocab-file FILE)" in out
    assert "iter_0000007/mp_rank_00/model_optim_rng.pt" in out
    assert "surprises" not in out


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_genuine_checkpoints_are_the_original_s(genuine_checkpoints, tmp_path, capsys, name):
    oracle_file = genuine_checkpoints / name / "oracle.safetensors"
    code, _, err = inspect(capsys, genuine_checkpoints / name, "--logits", oracle_file, tmp_path / "out.safetensors")
    assert code == 0, err
    actual, oracle = (safetensors.torch.load_file(file) for file in (tmp_path / "out.safetensors", oracle_file))
    is_real = oracle["attention_mask"].bool()
    assert actual["lm_logits"].shape == (4, 24, 512)
    torch.testing.assert_close(actual["lm_logits"][is_real], oracle["lm_logits"][is_real], atol=1e-6, rtol=0)
    assert ("binary_logits" in actual) == ("binary_logits" in oracle)
    if "binary_logits" in actual:
        torch.testing.assert_close(actual["binary_logits"], oracle["binary_logits"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", ["megatron-bert", "gpt"])
def test_a_mask_with_holes_hides_exactly_its_tokens(tmp_path, capsys, architecture):
    transformers = pytest.importorskip("transformers")
    write(tmp_path / "ours", architecture)
    folder = to(tmp_path / "ours", tmp_path / "hub", "huggingface")
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 0, 1, 0, 1, 1], [1, 0, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0, 1]])
    tensors = {"input_ids": torch.randint(5, 50, (4, 7)), "attention_mask": mask}
    safetensors.torch.save_file(tensors, tmp_path / "in.safetensors")
    code, _, err = inspect(
        capsys, tmp_path / "ours", "--logits", tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    )
    assert code == 0, err
    actual = safetensors.torch.load_file(tmp_path / "out.safetensors")["lm_logits"]
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    theirs = getattr(transformers, name).from_pretrained(folder).eval()
    positions = torch.arange(7).expand(4, 7)
    with torch.inference_mode():
        output = theirs(input_ids=tensors["input_ids"], attention_mask=mask, position_ids=positions)
    expected = output.prediction_logits if "prediction_logits" in output else output.logits
    torch.testing.assert_close(actual[mask.bool()], expected[mask.bool()], atol=2e-5, rtol=1e-5)


def test_a_headless_network_gives_its_vectors(tmp_path, capsys):
    write(tmp_path / "ours", "headless")
    ids = {"input_ids": torch.randint(0, 50, (2, 9))}
    safetensors.torch.save_file(ids, tmp_path / "in.safetensors")
    _, out, _ = inspect(
        capsys, tmp_path / "ours", "--json", "--logits", tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    )
    assert json.loads(out) == {"hidden": [2, 9, 16]}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"ids": torch.zeros(2, 3, dtype=torch.long)}, "holds no tensor input_ids"),
        ({"input_ids": torch.zeros(2, 3)}, "input_ids is torch.float32"),
        ({"input_ids": torch.zeros(2, 13, dtype=torch.long)}, "with 1 to 12 tokens"),
        ({"input_ids": torch.zeros(3, dtype=torch.long)}, "expected [rows, tokens]"),
        ({"input_ids": torch.full((1, 3), 50)}, "reaches from 50 to 50; expected 0 to 49"),
        ({"input_ids": torch.full((1, 3), -1)}, "reaches from -1 to -1"),
        (
            {"input_ids": torch.zeros(1, 3, dtype=torch.long), "tokentype_ids": torch.full((1, 3), 2)},
            "tokentype_ids reaches from 2 to 2; expected 0 to 1",
        ),
        (
            {"input_ids": torch.zeros(1, 3, dtype=torch.long), "attention_mask": torch.ones(1, 4, dtype=torch.long)},
            "expected integers of (1, 3)",
        ),
    ],
)
def test_wrong_inputs_are_refused(tmp_path, capsys, tensors, message):
    write(tmp_path / "ours", "megatron-bert")
    safetensors.torch.save_file(tensors, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    code, _, err = inspect(capsys, tmp_path / "ours", "--logits", tmp_path / "in.safetensors", out)
    assert code == 65
    assert message in err
    assert not out.exists()


def test_surprises_are_all_listed(tmp_path, capsys):
    write(tmp_path / "ours", "megatron-bert")
    folder = to(tmp_path / "ours", tmp_path / "theirs", "megatron")
    file = folder / "release" / "mp_rank_00" / "model_optim_rng.pt"
    content = torch.load(file, weights_only=False)
    encoder = content["model"]["language_model"]["encoder"]
    encoder["layers.1.mlp.dense_h_to_4h.weight"][0, 0] = float("nan")
    encoder["layers.2.mlp.dense_h_to_4h.bias"][1] = float("inf")
    encoder["layers.3.mlp.dense_h_to_4h.weight"].zero_()
    encoder["final_layernorm.weight"][0] = 500.0
    torch.save(content, file)
    code, out, _ = inspect(capsys, folder, "--json")
    assert code == 0
    surprises = json.loads(out)["surprises"]
    expected = [
        "layers.1.mlp.dense_h_to_4h.weight holds 1 values that are NaN or infinite",
        "layers.2.mlp.dense_h_to_4h.bias holds 1 values",
        "layers.3.mlp.up.weight holds one number only, 0",
        "final_norm.weight reaches from",
    ]
    for part in expected:
        assert any(part in surprise for surprise in surprises), part
    assert len(surprises) == 4


# --- The query-key-value layout ---

WORDS = VOCABULARY.split()
CONFIG = EncoderConfig(
    vocabulary_size=len(WORDS), num_layers=2, hidden_size=32, num_heads=4, ffn_size=64, max_positions=26
)
TEXT = "\n".join(" ".join([word] * 24) for word in WORDS[5:])


@pytest.fixture(scope="module")
def trained():
    """Train a network on lines that repeat one word; returns its tensors."""
    model = new_pretraining_model(CONFIG, 0, language_model=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    smooth = 9.0
    while smooth > 0.3:  # independent of rounding on this machine
        starts = torch.randint(0, 45, (16, 1), generator=generator)
        words = 5 + starts.expand(16, 24)
        is_masked = torch.rand(words.shape, generator=generator) < 0.15
        ids = torch.cat([torch.full((16, 1), 2), words.masked_fill(is_masked, 4), torch.full((16, 1), 3)], dim=1)
        logits = model(ids)[0][:, 1:-1][is_masked]
        loss = F.cross_entropy(logits, words[is_masked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        smooth = 0.9 * smooth + 0.1 * loss.item()
    return {name: item.detach() for name, item in model.named_parameters()}


VERSIONS = {"3_heads_dim": 0, "heads_dim_3": 1.0, "heads_3_dim": 3.0}


PARTS = {
    "attention_norm": "input_layernorm",
    "attention.qkv": "attention.query_key_value",
    "attention.out": "attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
}


def write_megatron(folder, tensors, layout, claim, *, head=True):
    """Write a Megatron-LM file with one layout of the rows, and a version that claims another."""
    encoder = {}
    for number in range(CONFIG.num_layers):
        ours, theirs = f"encoder.layers.{number}", f"layers.{number}"
        for mine, name in PARTS.items():
            for kind in ("weight", "bias"):
                item = tensors[f"{ours}.{mine}.{kind}"]
                if mine == "attention.qkv":
                    (item,) = QKV_LAYOUTS[layout].write(item, CONFIG.head_dim)
                encoder[f"{theirs}.{name}.{kind}"] = item
    for kind in ("weight", "bias"):
        encoder[f"final_layernorm.{kind}"] = tensors[f"encoder.final_norm.{kind}"]
    embedding = {
        f"{theirs}_embeddings": {"weight": tensors[f"encoder.embeddings.{mine}.weight"]}
        for mine, theirs in (("word", "word"), ("position", "position"), ("segment", "tokentype"))
    }
    model = {"language_model": {"embedding": embedding, "transformer": encoder}}
    if head:
        model["lm_head"] = {
            "bias": tensors["language_model.vocabulary.bias"],
            "dense.weight": tensors["language_model.dense.weight"],
            "dense.bias": tensors["language_model.dense.bias"],
            "layernorm.weight": tensors["language_model.norm.weight"],
            "layernorm.bias": tensors["language_model.norm.bias"],
        }
    folder.mkdir()
    content = {"model": model, "args": Namespace(num_attention_heads=4, num_layers=2), "checkpoint_version": claim}
    torch.save(content, folder / "model_optim_rng.pt")
    (folder / "vocab.txt").write_text(VOCABULARY)
    return folder


@pytest.mark.parametrize("head", [True, False], ids=["with head", "headless"])
@pytest.mark.parametrize("claim", VERSIONS)
@pytest.mark.parametrize("layout", VERSIONS)
def test_the_layout_is_detected_whatever_the_file_claims(tmp_path, trained, layout, claim, head):
    folder = write_megatron(tmp_path / "x", trained, layout, VERSIONS[claim], head=head)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.facts["qkv_claimed"] == claim
    # the weights override the claim already when the file is opened
    assert checkpoint.facts["qkv_layout"] == layout
    for name, expected in trained.items():
        if head or name.startswith("encoder."):
            assert torch.equal(checkpoint.tensors[name].read(), expected)
    for read_as in VERSIONS:
        opened = open_checkpoint(folder, qkv_layout=read_as)
        result = check_qkv_layout(opened, lambda wanted: open_checkpoint(folder, qkv_layout=wanted), TEXT)
        assert result.by_bias == layout
        assert result.by_loss == (layout if head else None)
        assert result.agrees == (layout == claim)
        assert result.verdict.startswith("WARNING") == (layout != claim or read_as != layout)


def test_the_command_warns(tmp_path, trained, capsys):
    folder = write_megatron(tmp_path / "x", trained, "heads_dim_3", 3.0)
    (tmp_path / "text").write_text(TEXT)
    code, out, err = inspect(capsys, folder, "--check-language-model", tmp_path / "text", "--json")
    actual = json.loads(out)["language_model_check"]
    assert code == 0
    assert actual["found"] == "heads_dim_3"
    assert actual["agrees"] is False
    assert actual["losses"]["heads_dim_3"] < 1.0 < actual["losses"]["heads_3_dim"]
    assert "WARNING: the weights were trained as heads_dim_3 and are read so, but the file claims heads_3_dim" in err


def test_a_text_of_short_lines_leaves_the_biases_as_evidence(tmp_path, trained):
    folder = write_megatron(tmp_path / "x", trained, "heads_dim_3", 1.0)
    text = "\n".join(TEXT.split())
    result = check_qkv_layout(open_checkpoint(folder), lambda wanted: open_checkpoint(folder, qkv_layout=wanted), text)
    assert (result.found, result.losses) == ("heads_dim_3", {})
    assert any("No line of the text has more than 7 tokens" in line for line in result.evidence)


def test_an_untrained_network_is_undecided(tmp_path):
    model = new_pretraining_model(CONFIG, 0, language_model=True)
    tensors = {name: item.detach() for name, item in model.named_parameters()}
    folder = write_megatron(tmp_path / "x", tensors, "heads_dim_3", 1.0)
    result = check_qkv_layout(open_checkpoint(folder), lambda wanted: open_checkpoint(folder, qkv_layout=wanted), TEXT)
    assert result.found is None
    assert result.verdict.startswith("undecided")
    assert any("all biases are 0" in line for line in result.evidence)


@pytest.mark.parametrize("name", NAMES)
def test_no_genuine_checkpoint_contradicts_its_metadata(genuine_checkpoints, capsys, name):
    words = ["--check-language-model", "--quick", "--json", "--vocab-file", genuine_checkpoints / "vocab.txt"]
    _, out, _ = inspect(capsys, genuine_checkpoints / name, *words)
    result = json.loads(out)["language_model_check"]
    assert result["found"] in (None, result["read"])


def test_gpt_2_s_text_is_read_by_its_own_tokenizer(tmp_path, capsys):
    write(tmp_path / "ours", "gpt")
    folder = to(tmp_path / "ours", tmp_path / "theirs", "megatron")
    letters = [chr(code) for code in range(97, 123)] + ["Ġ"]
    pairs = ["a b", "c d"]
    (folder / "vocab.json").write_text(
        json.dumps({token: number for number, token in enumerate([*letters, "ab", "cd"])})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in pairs))
    _, out, _ = inspect(capsys, folder, "--check-language-model", "abc d cd ab ab abcd cab", "--quick", "--json")
    report = json.loads(out)
    assert len(report["language_model_check"]["losses"]) == 3
    assert report["vocabulary"]["tokens"] == 29
