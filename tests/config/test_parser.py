import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from megabert.config import parser
from megabert.config.listing import list_settings
from megabert.config.parser import _parse_words, _plain_override, compose, expand_sweep
from megabert.errors import ConfigError
from megabert.tasks import registry
from megabert.tasks.question_answering import QuestionAnsweringSettings
from tests.config.nemo_configurations import CONFIGURATIONS


def qa(*overrides, **more):
    return compose(QuestionAnsweringSettings, overrides, owner="question_answering", **more)[0]


def test_defaults_are_those_of_nemo():
    settings = qa()
    assert (settings.model.dataset.max_seq_length, settings.model.dataset.doc_stride) == (384, 128)
    assert (settings.model.optim.lr, settings.model.optim.sched.name) == (3e-5, "SquareRootAnnealing")
    assert settings.trainer.max_epochs == 2


VALUES = r'"[^"]{0,5}"|[a-zA-Z0-9_.+-]{1,5}|true|Null|INF|-0|007|1_0|-12'


@given(st.from_regex(rf"[a-zA-Z_0-9.]{{1,5}}=({VALUES})", fullmatch=True))
@settings_of_hypothesis(max_examples=200, deadline=None)
def test_plain_overrides_are_parsed_as_hydra_does(word):
    if plain := _plain_override(word):
        ((_, override),) = _parse_words([word])
        assert (override.key_or_group, override.value()) == plain
        assert type(override.value()) is type(plain[1])
        assert not override.is_sweep_override()


def test_overrides_are_typed():
    settings = qa("trainer.max_epochs=5", "model.optim.betas=[0.8,0.9]", "trainer.precision=16", "model.optim.lr=1e-4")
    assert settings.trainer.max_epochs == 5
    assert settings.model.optim.betas == [0.8, 0.9]
    assert settings.trainer.precision == "16"
    assert settings.model.optim.lr == 1e-4


def test_a_data_block_can_be_set_to_its_file_as_in_nemo_s_documentation():
    assert qa("model.validation_ds=dev.json").model.validation_ds.file == "dev.json"
    assert qa("model.validation_ds.file=dev.json").model.validation_ds.file == "dev.json"


def test_val_check_interval_keeps_integers_and_fractions_apart():
    assert type(qa("trainer.val_check_interval=100").trainer.val_check_interval) is int
    assert type(qa("trainer.val_check_interval=0.5").trainer.val_check_interval) is float


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.train_ds.fiel=x", "Did you mean model.train_ds.file?"),
        ("+model.train_ds.fiel=x", "Did you mean model.train_ds.file?"),
        ("++model.dataset.max_seq_len=3", "Did you mean model.dataset.max_seq_length?"),
        ("optim.lr=1", "Did you mean model.optim.lr?"),
        ("trainer.max_epochs=many", "expected int"),
        ("trainer.max_epochs=1.5", "expected int"),
        ("trainer.precision=8", "Choose one of auto, 32, bf16, 16"),
        ("model.optim.sched.name=CosineAnealing", "Did you mean CosineAnnealing?"),
        ("model.optim=adam", "group of settings"),
        ("model.train_ds.file=a(1).json", "Quote a value"),
        ("seed=1,2", "Add -m"),
        ("~seed", "cannot be removed"),
        ("seed", "Write key=value"),
        ("model.optim.betas=0.9", "expected list"),
        ("zzzzzzz=1", "is not a setting of question_answering"),
    ],
)
def test_an_error_message_has_the_remedy(word, message):
    with pytest.raises(ConfigError) as caught:
        qa(word)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_renamed_and_ignored_keys_of_nemo_give_a_notice():
    settings, notices = compose(
        QuestionAnsweringSettings,
        ["trainer.gpus=1", "trainer.amp_level=O1", "model.dataset.do_lower_case=true"],
        owner="question_answering",
    )
    assert settings.trainer.devices == 1
    assert settings.model.tokenizer.do_lower_case is None
    assert [notice.split()[0] for notice in notices] == [
        "trainer.gpus",
        "trainer.amp_level",
        "model.dataset.do_lower_case",
    ]


def test_a_file_of_settings_is_checked_like_overrides_which_take_precedence(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("trainer: {max_epochs: 7}\nmodel:\n  optim:\n    lr: 1e-4\n  validation_ds: dev.json\n")
    settings = qa("trainer.max_epochs=8", file=file)
    assert (settings.trainer.max_epochs, settings.model.optim.lr) == (8, 1e-4)
    assert settings.model.validation_ds.file == "dev.json"
    file.write_text("trainer: {max_epoch: 7}\n")
    with pytest.raises(ConfigError, match="max_epochs"):
        qa(file=file)
    file.write_text("- not\n- settings\n")
    with pytest.raises(ConfigError, match="no settings"):
        qa(file=file)


def test_the_architecture_accepts_any_key():
    settings = qa(
        "model.language_model.config={hidden_size: 64, num_layers: 2}", "+model.language_model.config.gelu=tanh"
    )
    assert settings.model.language_model.config == {"hidden_size": 64, "num_layers": 2, "gelu": "tanh"}


def test_a_sweep_expands_to_all_combinations():
    assert expand_sweep(["seed=1,2", "trainer.max_epochs=3", "model.optim.lr=choice(1e-5,3e-5)"]) == [
        ["seed=1", "trainer.max_epochs=3", "model.optim.lr=1e-05"],
        ["seed=1", "trainer.max_epochs=3", "model.optim.lr=3e-05"],
        ["seed=2", "trainer.max_epochs=3", "model.optim.lr=1e-05"],
        ["seed=2", "trainer.max_epochs=3", "model.optim.lr=3e-05"],
    ]


def test_every_setting_has_a_type_and_a_help_sentence():
    for setting in list_settings(QuestionAnsweringSettings):
        assert setting.help.endswith("."), setting.key
        assert setting.type_name


def test_listed_defaults_are_those_of_the_task():
    listed = {setting.key: setting.default for setting in list_settings(QuestionAnsweringSettings)}
    assert listed["trainer.max_epochs"] == 2
    assert listed["model.optim.weight_decay"] == 0.0


def nemo(name, folder, *words):
    file = folder / f"{name}.yaml"
    file.write_text(CONFIGURATIONS[name])
    return compose(registry.find(name).settings_type, words, owner=name, file=file)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_key_of_nemo_s_configurations_is_accepted_and_each_note_is_one_line(name, tmp_path):
    settings, notices = nemo(name, tmp_path)
    registry.find(name)(settings)
    assert settings.model.language_model.pretrained_model_name == "bert-base-uncased"
    assert settings.trainer.accelerator == "auto"
    assert (settings.trainer.devices, settings.trainer.max_steps) == (1, -1)
    assert settings.exp_manager.exp_dir == "runs"
    assert len(notices) == len(set(notices))
    noted = " ".join(notices)
    assert "ddp" in noted and "hydra has no effect" in noted
    quiet = ("resume_from", "tokenizer_model", "pin_memory", "last_epoch", "reduce_on_plateau", "logger", "label_ids ")
    assert not any(key in noted for key in quiet)


def test_values_of_nemo_s_configurations_arrive(tmp_path):
    settings, _ = nemo("token_classification", tmp_path, "model.dataset.data_dir=DIR", "trainer.gpus=0")
    assert settings.model.dataset.data_dir == "DIR"
    assert (settings.trainer.accelerator, settings.trainer.max_epochs) == ("cpu", 5)
    assert settings.model.validation_ds.labels_file == "labels_dev.txt"
    assert (settings.model.head.num_fc_layers, settings.model.head.fc_dropout) == (2, 0.5)
    settings, _ = nemo("entity_linking", tmp_path)
    assert (settings.model.train_ds.data_file, settings.model.dataset.max_seq_length) == ("train.tsv", 128)
    settings, _ = nemo("intent_slot", tmp_path)
    assert (settings.model.data_dir, settings.model.dataset.max_seq_length) == (None, 50)
    assert (settings.model.optim.weight_decay, settings.model.optim.sched.warmup_ratio) == (0.01, 0.1)
    assert settings.model.train_ds.prefix == "train"
    settings, notices = nemo("question_answering", tmp_path)
    assert settings.model.tokenizer.do_lower_case is None
    assert any(notice.startswith("model.dataset.do_lower_case has no effect") for notice in notices)
    settings, _ = nemo("masked_language_model", tmp_path, "model.max_seq_length=64")
    assert (settings.model.dataset.max_seq_length, settings.model.dataset.sentence_order) == (64, True)
    settings, _ = nemo("glue", tmp_path, "model.task_name=mnli", "model.dataset.data_dir=MNLI")
    files = registry.find("glue")(settings).files(settings.model.validation_ds)
    assert [str(file).rpartition("/")[2].strip("']") for file in files] == ["dev_matched.tsv", "dev_mismatched.tsv"]
    assert settings.exp_manager.name == "mrpc"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.resume_from_checkpoint=last.ckpt", "Continue a run by `megabert train TASK --resume RUN`"),
        ("model.tokenizer.tokenizer_model=m.model", "SentencePiece is not supported"),
        ("model.tokenizer.vocab_fiel=v.txt", "Did you mean model.tokenizer.vocab_file?"),
        ("model.train_ds.file='${nothing}'", "Write \\\\${...} for ${...} that is meant as text"),
    ],
)
def test_what_would_change_the_result_is_not_passed_over(word, message):
    with pytest.raises(ConfigError) as caught:
        qa(word)
    assert message.replace("\\\\", "\\") in str(caught.value)


def test_all_unknown_keys_are_listed_with_the_nearest_names(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("trainer: {max_epoch: 7}\nzzzzzz: 1\nmodel: {optim: {learning_rate: 1}}\n")
    with pytest.raises(ConfigError) as caught:
        qa("model.train_ds.fiel=x", file=file)
    assert str(caught.value).splitlines() == [
        "4 keys are not settings of question_answering:",
        "  trainer.max_epoch Did you mean trainer.max_epochs?",
        "  zzzzzz",
        "  model.optim.learning_rate Did you mean model.optim.name?",
        "  model.train_ds.fiel Did you mean model.train_ds.file?",
        "`megabert config question_answering` lists them all.",
    ]


@dataclasses.dataclass
class Few:
    file: str | None = None
    """A file."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Some options."""


@settings_of_hypothesis(max_examples=50, deadline=None)
@given(st.text(alphabet="a\\$ {}:.'\"", max_size=8).map(lambda text: text + "${oc.env:HOME}") | st.text())
def test_settings_of_a_run_are_text_whatever_they_look_like(value):
    composed, _ = compose(Few, [], owner="few", base={"file": value, "options": {"a": [value]}})
    if value != "???":
        assert composed == Few(value, {"a": [value]})


def test_interpolations_of_a_file_take_the_values_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", "here")
    file = tmp_path / "x.yaml"
    file.write_text("seed: 3\ntrainer: {max_epochs: '${seed}'}\nexp_manager: {exp_dir: '${oc.env:PLACE}/${seed}'}\n")
    settings = qa("seed=4", file=file)
    assert (settings.trainer.max_epochs, settings.exp_manager.exp_dir) == (4, "here/4")


WORDS = ["accelerator=cpu", "seed=7", 'model.train_ds.file="a b.tsv"', "trainer.devices=2", "trainer.max_epochs=0.5",
         "trainer.precision=32", "trainer.precision=bf16", "model.optim.lr=1", "model.optim.sched.name=null",
         "model.train_ds.file=dev", "trainer.compile=true", "trainer.val_check_interval=7", "trainer.max_epochz=1",
         "model.optim.betas=x", "trainer.accelerator=tpu", "exp_manager.exp_dir=x", "model=x"]  # fmt: skip


@pytest.mark.parametrize("name", registry.NAMES)
def test_plain_settings_are_composed_as_omegaconf_does(name, monkeypatch):
    schema = registry.find(name).settings_type
    stored = sorted((Path(__file__).parents[1] / "runs_v1" / name).glob("run/checkpoints/*/settings.json"))[:1]
    given = [([], json.loads(path.read_text())) for path in stored] or [([], dataclasses.asdict(schema()))]
    given += [([word], None) for word in WORDS if name == "text_classification"]

    def outcome(words, base):
        try:
            return repr(compose(schema, words, owner=name, base=base))
        except ConfigError as error:
            return str(error)

    quick = [outcome(*item) for item in given]
    assert isinstance(parser._plain_instance(schema, {}, {}, []), schema)
    monkeypatch.setattr(parser, "_plain_instance", lambda *_: None)
    assert quick == [outcome(*item) for item in given]
