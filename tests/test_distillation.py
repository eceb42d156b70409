"""Distillation: losses and alignments computed by hand, every task's student, exact resuming, wrong teachers."""

import functools
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from megabert.checkpoints.native.fewer_layers import kept_layers
from megabert.checkpoints.native.run_checkpoints import find_last, read
from megabert.cli import main
from megabert.config.parser import compose
from megabert.data.fingerprint import fingerprint
from megabert.data.packing import STATE_WEIGHT, STATES, TEACHER, Features, pack
from megabert.distillation import DistillationLoss
from megabert.errors import ConfigError, InputError
from megabert.model.distillation_loss import binary_divergences, divergences, similarity_divergences, squared_errors
from megabert.parallel.process_group import World
from megabert.tasks import registry
from megabert.tasks.answer_spans import NO_MASS, ContextWindow, aligned_spans
from megabert.tokenizers.load import read_tokenizer
from megabert.training.new_stepper import make_stepper
from megabert.training.saver import Saver, save_checkpoint
from megabert.training.setup import set_up
from tests.conftest import WORDS
from tests.tasks.test_contract import CASES

TAUGHT = [
    "question_answering", "text_classification", "several labels", "a number", "token_classification",
    "relation_extraction", "text_embedding", "two encoders", "text_ranking",
]  # fmt: skip


def task_of(name, *words):
    kind = registry.find(name)
    return kind(compose(kind.settings_type, words, owner=name)[0])


def test_the_list_of_cases_has_every_task_that_can_teach():
    able = {name for name in registry.NAMES if registry.find(name).can_distil}
    assert {CASES[name].task for name in TAUGHT} == able


def test_divergences_are_those_computed_by_hand():
    teacher = torch.tensor([[math.log(4.0), 0.0], [float("nan")] * 2])
    logits = torch.zeros(2, 2, requires_grad=True)
    # At T = 2 the teacher's probabilities are 2/3 and 1/3, the student's halves.
    expected = 4 * (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3))
    losses = divergences(logits, teacher, 2.0)
    assert losses.tolist() == pytest.approx([expected, 0.0])
    losses.sum().backward()
    # T^2 * (1/T) * (student - teacher)
    assert logits.grad.flatten().tolist() == pytest.approx([-1 / 3, 1 / 3, 0, 0])
    # Two classes that hold independently: probability 2/3 and 1/2 of the teacher, halves of the student
    assert binary_divergences(torch.zeros(1, 2), teacher[:1], 2.0).item() == pytest.approx(expected / 2)
    values = torch.tensor([[1.0, 2.0], [1.0, 1.0]], requires_grad=True)
    losses = squared_errors(values, torch.tensor([[0.0, 4.0], [float("nan")] * 2]))
    losses.sum().backward()
    assert (losses.tolist(), values.grad.tolist()) == ([2.5, 0.0], [[1.0, -2.0], [0.0, 0.0]])


def test_similarities_leave_out_a_text_itself_and_fillers():
    vectors = torch.tensor([[1.0, 0], [1, 0], [0, 1], [5, 5]])
    teacher = torch.tensor([[1.0, 0], [0, 1], [1, 0], [float("nan")] * 2])
    rows = torch.tensor([True, False, False, True])
    found = similarity_divergences(vectors, teacher, rows, scale=1.0, temperature=1.0)
    high = 1 / (1 + math.exp(-1))  # of two similarities, 1 and 0
    assert found.item() == pytest.approx((2 * high - 1) * math.log(high / (1 - high)))


def test_words_align_logits_of_two_vocabularies(tmp_path):
    """`marie` is one token of the one vocabulary and five of the other; each word has its first token's logits."""
    task = task_of("token_classification", "model.dataset.max_seq_length=16")
    task.labels = ["O", "B-P"]
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    (tmp_path / "letters.txt").write_text("\n".join(WORDS[: WORDS.index("the")]))
    large, small = (read_tokenizer(tmp_path / f"{name}.txt", None, lower_case=True) for name in ("words", "letters"))
    examples = [task.example(tokens=["marie", "was", "in", "the", "paris"])]
    own = task.features(examples, large, with_targets=False)  # [CLS] marie was in the paris [SEP]
    student = task.unlabelled_features(examples, small)  # 5 + 3 + 2 + 3 + 5 letters: windows of 14
    assert [len(item) for item in own] == [7]
    assert [len(item) for item in student] == [16, 13]
    logits = [np.stack([np.arange(7.0), -np.arange(7.0)], axis=1).astype(np.float32)]
    aligned = task.aligned_logits(examples, own, logits, student)
    places = [np.flatnonzero(~np.isnan(item[:, 0])).tolist() for item in aligned]
    assert places == [[1, 6, 9, 11], [7]]  # paris begins with token 13, the second window with token 7
    assert [item[place].tolist() for item, place in zip(aligned, places, strict=True)] == [
        [[1, -1], [2, -2], [3, -3], [4, -4]], [[5, -5]]
    ]  # fmt: skip
    assert [item.weight for item in student] == [4, 1]


def span_window(offsets, question=1):
    ids = np.arange(question + len(offsets) + 3)
    edges = np.ones((len(offsets), 2), dtype=bool)
    notes = ContextWindow(0, question + 2, np.array(offsets), np.ones(len(offsets), dtype=int), edges)
    return Features(ids, ids * 0, notes=notes)


def test_spans_align_by_characters():
    """Context `ab cd ef`: the teacher reads a, b, cd, ef; the student ab, c, d, and does not show ef."""
    own, student = span_window([(0, 1), (1, 2), (3, 5), (6, 8)]), span_window([(0, 2), (3, 4), (4, 5)], question=2)
    probabilities = np.array([[1, 1], [0, 0], [0, 0], [2, 1], [1, 3], [3, 2], [2, 1], [1, 2]]) + 1e-9
    found = np.exp(aligned_spans(own, np.log(probabilities).astype(np.float32), student))
    # [CLS] gets its own, what the student does not show (2, 1) and the last [SEP] (1, 2)
    expected = [[4, 4], [0, 0], [0, 0], [0, 0], [3, 4], [3, 0], [0, 2], [0, 0]]
    assert found == pytest.approx(np.array(expected), abs=1e-5)
    assert np.exp(np.float32(NO_MASS)) == 0


def test_windows_that_differ_share_their_mean():
    task = task_of("text_classification")
    student = [Features(np.arange(3), np.zeros(3), notes=number) for number in (0, 0, 1)]
    logits = [np.array([1.0, 3.0]), np.array([5.0, 6.0]), np.array([7.0, 8.0])]
    own = [Features(np.arange(3), np.zeros(3), notes=number) for number in (0, 1, 1)]
    aligned = task.aligned_logits([None, None], own, logits, student)
    assert [item.tolist() for item in aligned] == [[1, 3], [1, 3], [6, 7]]


def test_the_loss_weighs_labels_logits_and_hidden_states():
    settings = task_of("token_classification").settings.model.distillation
    settings.weight, settings.temperature, settings.hidden_weight = 0.25, 1.0, 2.0
    task = task_of("token_classification")
    task.labels, task.weights = ["O", "B-P"], [1.0, 1.0]
    targets = {
        "tag": np.array([-100, 0]),
        TEACHER: np.array([[np.nan] * 2, [math.log(3.0), 0.0]], dtype=np.float32),
        STATES: np.array([[np.nan] * 2, [1, 0]], dtype=np.float16),
        STATE_WEIGHT: np.array([0, 1], dtype=np.float32),
    }
    batch = pack([Features(np.arange(2), np.zeros(2, dtype=int), {}, targets)], 4, 0)
    found = DistillationLoss(task, settings)(torch.zeros(2, 4), batch)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert found.item() == pytest.approx(0.75 * math.log(2) + 0.25 * divergence + 2.0 * 0.5)


def test_layers_are_chosen_evenly():
    assert kept_layers(12, 6) == [0, 2, 4, 7, 9, 11]
    assert kept_layers(6, 3) == [0, 2, 5]
    assert [kept_layers(4, 1), kept_layers(3, 3)] == [[0], [0, 1, 2]]


SMALL = (
    "model.language_model.config={hidden_size: 16, num_layers: 2, num_attention_heads: 2, max_position_embeddings: 64}"
)


def set_up_case(name, folder, vocab_file, *more):
    """Set a case's training up as the command does, with accumulation of gradients and without dropout."""
    case, file = CASES[name], folder / CASES[name].file
    folder.mkdir(exist_ok=True)
    file.write_text(case.content, encoding="utf-8")
    words = [
        f"model.train_ds.file={file}", "model.language_model.pretrained_model_name=null", SMALL, *case.words,
        f"model.tokenizer.vocab_file={vocab_file}", "model.dataset.max_seq_length=64", "model.train_ds.batch_size=2",
        "model.language_model.hidden_dropout=0", "model.language_model.attention_dropout=0",
        "trainer.accumulate_grad_batches=2", "trainer.max_epochs=1", "trainer.accelerator=cpu", *more,
    ]  # fmt: skip
    settings = compose(registry.find(case.task).settings_type, words, owner=case.task)[0]
    for head in ("head", "classifier_head"):
        if hasattr(getattr(settings.model, head, None), "fc_dropout"):
            getattr(settings.model, head).fc_dropout = 0.0
    world = World(torch.device("cpu"))
    return set_up(case.task, settings, folder / "run", world, home=folder, resumed=None, log=lambda line: None)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, vocab_file):
    """A function that makes the run of a case, with random weights that tell examples apart."""

    def make(name):
        setup = set_up_case(name, tmp_path_factory.mktemp("teacher"), vocab_file)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in setup.model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
        stepper = make_stepper(setup)
        with Saver(in_background=False) as saver:
            save_checkpoint(setup, setup.start, stepper, saver, is_last=True)
        return setup.folder

    return functools.cache(make)


def first_step(setup):
    """Make a step with a learning rate of 0; returns loss and gradient norm."""
    setup.model.train()
    return make_stepper(setup).step(setup.load_step(0)[0], 0.0, 0).tolist()


@pytest.mark.parametrize("name", TAUGHT)
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(name, teacher, tmp_path, vocab_file):
    is_embedding = registry.find(CASES[name].task).is_embedding
    words = ["model.distillation.weight=1", "model.distillation.temperature=1", "trainer.max_epochs=1"]
    words += [f"model.distillation.teacher={teacher(name)}", f"model.distillation.unlabelled={tmp_path / 'more'}*"]
    (tmp_path / f"more-{CASES[name].file}").write_text(CASES[name].content, encoding="utf-8")
    if not is_embedding:
        words.append("model.distillation.hidden_weight=1")
    setup = set_up_case(name, tmp_path / "a", vocab_file, f"pretrained_model={teacher(name)}", *words)
    loss, norm = first_step(setup)
    assert (loss, norm) == pytest.approx((0, 0), abs=2e-3)  # hidden states are kept in float16
    # A network with another vocabulary has, from labelled and from unlabelled sequences alike.
    letters = tmp_path / "letters.txt"
    letters.write_text("\n".join(WORDS[: WORDS.index("the")]), encoding="utf-8")
    if name == "question_answering":  # compares hidden states of the same tokens only
        words[-1] = "model.distillation.hidden_weight=0"
    other = set_up_case(name, tmp_path / "b", letters, "seed=7", *words)
    assert first_step(other)[1] > 1e-2
    batch = other.train_sampler.step(0)[0]
    taught = {**batch.targets, **batch.token_targets}[TEACHER]
    assert any(note.startswith("the teacher alone teaches") for note in other.task.notes)
    assert taught.dtype == torch.float32


def train(folder, *words):
    (folder.parent / "x.conll").write_text(CASES["token_classification"].content * 2, encoding="utf-8")
    return main([
        "train", "token_classification", f"model.train_ds.file={folder.parent / 'x.conll'}", "trainer.accelerator=cpu",
        "model.dataset.max_seq_length=32", "model.train_ds.batch_size=2", "trainer.accumulate_grad_batches=2",
        "trainer.max_steps=3", "exp_manager.checkpoint_callback_params.every_n_train_steps=1", "model.optim.lr=1e-2",
        "trainer.val_check_interval=0", "exp_manager.checkpoint_callback_params.save_top_k=-1",
        "exp_manager.create_tensorboard_logger=false", f"exp_manager.explicit_log_dir={folder}", *words,
    ])  # fmt: skip


def test_a_student_of_fewer_layers_resumes_exactly(teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEGABERT_HOME", str(tmp_path / "home"))
    run = shutil.copytree(teacher("token_classification"), tmp_path / "teacher")
    (tmp_path / "more.txt").write_text("Who found radium in Paris?\nThe Seine is a river.\n", encoding="utf-8")
    words = [f"model.distillation.teacher={run}", f"model.distillation.unlabelled=[{tmp_path / 'more.txt'}]"]
    words += ["model.distillation.student_layers=1", "model.distillation.hidden_weight=0.5"]
    assert train(tmp_path / "a", *words) == 0
    assert "Starting from layers 1 of" in capsys.readouterr().err
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "home")  # without the cache the teacher computes its logits again
    moved = run.rename(tmp_path / "moved")
    more = ["--resume", str(tmp_path / "b"), "--step", "2", f"model.distillation.teacher={moved}"]
    assert main(["train", "token_classification", *more]) == 0
    last, again = (read(find_last(tmp_path / name).path, groups=("model", "optimizer")) for name in "ab")
    assert last.documents["progress"]["step"] > 2
    for group, tensors in last.tensors.items():
        assert all(torch.equal(item, again.tensors[group][name]) for name, item in tensors.items())
    assert not any(name.startswith("encoder.layers.1.") for name in last.tensors["model"])


def test_layers_of_the_teacher_are_copied(teacher, tmp_path, vocab_file):
    words = f"model.distillation.teacher={teacher('question_answering')}", "model.distillation.student_layers=1"
    setup = set_up_case("question_answering", tmp_path / "a", vocab_file, *words)
    stored = read(find_last(teacher("question_answering")).path, groups=("model",)).tensors["model"]
    names = [name for name, item in setup.model.named_parameters() if torch.equal(item, stored[name])]
    assert names == [name for name in stored if not name.startswith("encoder.layers.1.")]


WIDER = "{hidden_size:32,num_layers:1,num_attention_heads:2}"
WRONG = [
    ("", "weight=0.5 student_layers=1", "has no teacher. Give a finished run"),
    ("nowhere", "", "nowhere does not exist. Give the folder of a finished run of token_class"),
    ("question_answering", "", "is a run of question_answering. Give one of token_classific"),
    ("token_classification", "weight=2", "give a share from 0 to 1"),
    ("token_classification", "unlabelled=none.txt", "none.txt is not a file"),
    ("token_classification", "student_layers=3", "the teacher has 2"),
    (
        "token_classification",
        "hidden_weight=1 config={hidden_size:32,num_layers:1,num_attention_heads:2}",
        "of the tea",
    ),
    ("token_classification", "labels", "lacks tag B-NEW of the student; it has O, B-LOC"),
]


@pytest.mark.parametrize(("name", "settings", "message"), WRONG)
def test_a_wrong_teacher_is_refused(name, settings, message, teacher, tmp_path, vocab_file, monkeypatch):
    words = [f"model.distillation.teacher={teacher(name) if name in CASES else name}"] if name else []
    words += [f"model.distillation.{word}" for word in settings.split() if "=" in word]
    words = [word.replace("distillation.config", "language_model.config") for word in words]
    if settings == "labels":
        case = CASES[name]
        monkeypatch.setitem(CASES, name, replace(case, content=case.content.replace("B-PER", "B-NEW")))
    with pytest.raises((ConfigError, InputError), match=re.escape(message)):
        set_up_case("token_classification", tmp_path / "a", vocab_file, *words)


def test_another_teacher_is_another_training():
    targets = {TEACHER: np.ones(2, dtype=np.float32), "label": np.int64(1)}
    one = [Features(np.arange(3), np.zeros(3), targets)]
    rounded = [Features(np.arange(3), np.zeros(3), targets | {TEACHER: np.full(2, 1.001, dtype=np.float32)})]
    assert fingerprint(one, "a") == fingerprint(rounded, "a") != fingerprint(one, "b")
