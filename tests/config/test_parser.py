import pytest

from megabert.config.listing import list_settings
from megabert.config.parser import compose, expand_sweep
from megabert.errors import ConfigError
from megabert.tasks.question_answering import QuestionAnsweringSettings


def qa(*overrides, **more):
    return compose(QuestionAnsweringSettings, overrides, owner="question_answering", **more)[0]


def test_defaults_are_those_of_nemo():
    settings = qa()
    assert (settings.model.dataset.max_seq_length, settings.model.dataset.doc_stride) == (384, 128)
    assert (settings.model.optim.lr, settings.model.optim.sched.name) == (3e-5, "SquareRootAnnealing")
    assert settings.trainer.max_epochs == 2


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
    assert settings.model.tokenizer.do_lower_case is True
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
