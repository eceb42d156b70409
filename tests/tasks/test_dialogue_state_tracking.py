"""Dialogue states: questions and labels, the tracker's oracle on real dialogues, losses, decoding, files, commands."""

import copy
import json

import numpy as np
import pytest

from megabert.cli import main
from megabert.config.parser import compose
from megabert.errors import InputError
from megabert.formats.dialogues import read_dialogues, to_dialogues
from megabert.metrics.dialogue_state import ALL, DialogueScorer
from megabert.tasks import dialogue_questions as q
from megabert.tasks import registry
from megabert.tasks.dialogue_questions import dialogue_questions, loss_weights
from megabert.tasks.dialogue_settings import is_of_part
from megabert.tasks.dialogue_tracker import FrameAnswer, label_frames, learn_relations, track, turn_text
from megabert.tokenizers.wordpiece import Tokenizer
from tests.conftest import WORDS

TOKENIZER = Tokenizer(WORDS)
KIND = registry.find("dialogue_state_tracking")


def slot(name, *values):
    return {"name": name, "description": f"the {name}", "is_categorical": bool(values), "possible_values": list(values)}


SCHEMA = [
    {"service_name": "Trips_1", "description": "trips", "slots": [slot("city"), slot("river", "seine", "none")],
     "intents": [{"name": "Find", "description": "a city", "required_slots": ["city"], "optional_slots": ["river"]}]},
    {"service_name": "Homes_1", "description": "homes", "slots": [slot("where"), slot("age")],
     "intents": [{"name": "Live", "description": "born", "required_slots": ["where"], "optional_slots": {}}]},
]  # fmt: skip


def user(utterance, *frames):
    return {"speaker": "USER", "utterance": utterance, "frames": [
        {"service": service, "slots": [], "state":
            {"active_intent": intent, "requested_slots": requested, "slot_values": values}}
        for service, intent, requested, values in frames]}  # fmt: skip


def system(utterance, service, name, value):
    actions = [{"act": "OFFER", "slot": name, "values": [value]}]
    return {"speaker": "SYSTEM", "utterance": utterance, "frames": [{"service": service, "actions": actions}]}


TURNS = [
    user("the seine in paris", ("Trips_1", "Find", [], {"city": ["paris"], "river": ["seine"]})),
    system("warsaw is a city", "Trips_1", "city", "warsaw"),
    user("who", ("Trips_1", "Find", ["city"], {"city": ["paris"], "river": ["dontcare"]})),
    system("born", "Trips_1", "city", "warsaw"),
    user("when is that", ("Trips_1", "NONE", [], {"city": ["warsaw"], "river": ["dontcare"]})),
    system("a", "Trips_1", "river", "none"),
    user("radium there", ("Homes_1", "Live", ["age"], {"where": ["warsaw"]})),
]
DIALOGUE = {"dialogue_id": "1_00000", "services": ["Trips_1", "Homes_1"], "turns": TURNS}


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "dev"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "schema.json").write_text(json.dumps(SCHEMA))
        (tmp_path / split / "dialogues_001.json").write_text(to_dialogues([DIALOGUE]))
    return tmp_path


def task_of(*words):
    return KIND(compose(KIND.settings_type, ["model.dataset.max_seq_length=24", *words], owner=KIND.name())[0])


def trained_task(folder, *words):
    task = task_of(f"model.dataset.data_dir={folder}", *words)
    examples = task.read_data(task.settings.model.train_ds)
    task.learn_labels(examples)
    return task, examples


def right_answers(dialogue):
    """The answers that a perfect network gives."""
    answers = {}
    for (number, service), labels in label_frames(dialogue).items():
        text, _ = turn_text(dialogue, number)
        found = {name: text[slice(*span)] for name, span in labels.spans.items()}
        answers[number, service] = FrameAnswer(
            labels.answer.intent, labels.answer.requested, {**labels.answer.updates, **found}
        )
    return answers


def test_no_state_of_real_dialogues_is_unreachable(datasets):
    """With right answers to all questions the states are the golden ones; without values carried over they are not."""
    dialogues = read_dialogues(datasets("sgd_more") / "train" / "dialogues_086.json")
    relations = learn_relations(dialogues)
    assert relations["Homes_1 visit_date"] == [["Calendar_1", "event_date"]]
    gold = {item.id: item.to_json() for item in dialogues}
    scorer = DialogueScorer({name: service for item in dialogues for name, service in item.schema.items()})
    joint = []
    for tracker in ("carry_over", "nemotracker", "baseline"):
        found = {item.id: item.to_json(track(item, right_answers(item), tracker=tracker, relations=relations))
                 for item in dialogues}  # fmt: skip
        scores = scorer.score(gold, found)[ALL]
        assert scores["active_intent_accuracy"] == scores["requested_slots_f1"] == 1
        joint.append(scores["joint_goal_accuracy"])
    assert joint[0] == 1 > joint[1] > joint[2] > 0.5


def test_questions_and_their_labels(folder):
    (dialogue,) = read_dialogues(folder / "dev")
    frames = {(turn, service): questions for turn, service, questions in dialogue_questions(dialogue)}
    first = {(item.kind, item.name, item.value): item for item in frames[0, "Trips_1"]}
    assert {key: item.label for key, item in first.items()} == {
        (q.INTENT, "NONE", ""): 0, (q.INTENT, "Find", ""): 1, (q.REQUESTED, "city", ""): 0,
        (q.REQUESTED, "river", ""): 0, (q.FREE, "city", ""): q.ACTIVE, (q.CATEGORICAL, "river", ""): q.ACTIVE,
        (q.VALUE, "river", "seine"): 1, (q.VALUE, "river", "none"): 0,
    }  # fmt: skip
    assert first[q.FREE, "city", ""].span == (13, 18) and first[q.FREE, "city", ""].text == "city the city"
    assert first[q.VALUE, "river", "none"].text == "river none"
    second = {(item.kind, item.name): item for item in frames[2, "Trips_1"]}
    assert second[q.FREE, "city"].label == q.OFF and second[q.CATEGORICAL, "river"].label == q.INDIFFERENT
    assert second[q.REQUESTED, "city"].label == 1 and second[q.VALUE, "river"].label == q.NO_LABEL
    third = {(item.kind, item.name): item for item in frames[4, "Trips_1"]}
    assert third[q.FREE, "city"].label == q.ACTIVE and third[q.FREE, "city"].span is None  # it was two turns before
    last = {(item.kind, item.name): item for item in frames[6, "Homes_1"]}
    assert (q.FREE, "age") not in last and last[q.REQUESTED, "age"].label == 1  # no intent takes it


def test_training_leaves_out_questions_without_answer(folder):
    task, (dialogue,) = trained_task(folder)
    assert (
        dialogue.is_training and task.trained == ["Homes_1", "Trips_1"] and set(task.schema) == {"Trips_1", "Homes_1"}
    )
    kinds = [item.kind for *_, questions in dialogue_questions(dialogue) for item in questions]
    counts = [kinds.count(kind) for kind in range(5)]
    assert counts == [8, 8, 3, 2, 4]  # values of the first turn only
    spans = 3
    expected = [sum(counts) / 7 / count for count in counts] + [sum(counts) * 2 / 7 / spans]
    assert task.loss_weights == pytest.approx(expected)
    fewer = [item for *_, questions in dialogue_questions(dialogue, subsample=True) for item in questions]
    assert sum(item.kind == q.CATEGORICAL for item in fewer) == 3 and len(fewer) <= len(kinds)
    assert loss_weights([dialogue], subsample=True)[q.INTENT] > 0


def test_sequences(folder):
    task, (dialogue,) = trained_task(folder)
    features = task.features([dialogue], TOKENIZER, with_targets=True)
    shown = {}
    for feature, length in zip(features, features.lengths(), strict=True):
        assert len(feature) == length <= 24
        shown[feature.notes.turn, feature.notes.question[:3]] = feature
    free = shown[0, (q.FREE, "city", "")]
    assert TOKENIZER.decode(free.token_ids.tolist()) == "[CLS] city the city [SEP] the seine in paris [SEP]"
    paris = WORDS.index("paris")
    assert free.token_ids[free.targets["start"]] == free.token_ids[free.targets["end"]] == paris
    assert free.segment_ids.tolist() == [0] * 5 + [1] * 5
    assert free.weight == pytest.approx(task.loss_weights[q.FREE] + task.loss_weights[5])
    requested = shown[2, (q.REQUESTED, "city", "")]  # without the system's utterance
    assert TOKENIZER.decode(requested.token_ids.tolist()) == "[CLS] city the city [SEP] who [SEP]"
    carried = shown[4, (q.FREE, "city", "")]
    assert carried.targets["start"] == carried.targets["end"] == 0 and carried.targets["span_weight"] > 0
    short = task_of("model.dataset.max_seq_length=10")
    with pytest.warns(UserWarning, match="sequences lack the first tokens of their utterances"):
        features = short.features([dialogue], TOKENIZER, with_targets=False)
    assert max(map(len, features)) == 10
    assert features[0].token_ids[-2] == paris  # the end is read


def test_the_loss_is_the_mean_of_seven_means(folder):
    import torch
    from torch.nn import functional as F

    from megabert.data.packing import pack

    task, dialogues = trained_task(folder)
    features = list(task.features(dialogues, TOKENIZER, with_targets=True))
    batch = pack(features, 24, 0)
    logits = torch.randn(batch.num_tokens, 8)
    losses = {}
    for feature, own in zip(features, logits.split([len(item) for item in features]), strict=True):
        kind, label = feature.targets["kind"], feature.targets["label"]
        if kind in q.COLUMNS:
            loss = F.binary_cross_entropy_with_logits(own[0, q.COLUMNS[kind]], torch.tensor(float(label)))
        else:
            loss = F.cross_entropy(own[0, q.STATUS], torch.tensor(label))
        losses.setdefault(kind, []).append(loss)
        if feature.targets["span_weight"]:
            for column, name in enumerate(("start", "end")):
                loss = F.cross_entropy(own[:, q.SPANS][:, column], torch.tensor(feature.targets[name]))
                losses.setdefault(name, []).append(loss)
    expected = torch.stack([torch.stack(items).mean() for items in losses.values()]).mean()
    assert len(losses) == 7
    assert (task.loss(logits, batch) / batch.weight).item() == pytest.approx(expected.item(), rel=1e-5)
    assert task.loss(logits, batch.emptied(0)).item() == 0


def perfect_logits(features):
    """Logits that give each question its right answer."""
    logits = []
    for feature in features:
        own = np.zeros((len(feature), 8), dtype=np.float32)
        kind, label = feature.targets["kind"], feature.targets["label"]
        if kind in q.COLUMNS:
            own[0, q.COLUMNS[kind]] = 5 if label else -5
        else:
            own[0, q.STATUS.start + label] = 5
        own[feature.targets["start"], 6] = own[feature.targets["end"], 7] = 9
        logits.append(own)
    return logits


def test_states_of_right_logits_are_the_golden_ones(folder):
    task, _ = trained_task(folder)
    assert task.relations == {"Homes_1 where": [["Trips_1", "city"]]}
    (dialogue,) = task.read(folder / "dev")
    features = task.features([dialogue], TOKENIZER, with_targets=True)
    (prediction,) = task.decode([dialogue], features, perfect_logits(features))
    for turn, expected in zip(prediction.turns, TURNS, strict=True):
        for frame, golden in zip(turn["frames"], expected["frames"], strict=True):
            assert frame.get("state") == golden.get("state") and (turn["speaker"] == "SYSTEM" or "slots" not in frame)
    scores = task.score([dialogue], [prediction])
    assert scores["joint_goal_accuracy"] == scores["trained/joint_goal_accuracy"] == 100
    assert "unseen/joint_goal_accuracy" not in scores and scores["dialogues_missing"] == 0
    (written,) = json.loads(task.write_predictions([dialogue], [prediction])["dialogues_001.json"])
    assert written["turns"] == prediction.turns and set(written) == set(DIALOGUE)
    other = task_of("model.dataset.state_tracker=nemotracker")
    (without,) = other.decode([dialogue], features, perfect_logits(features))
    assert without.turns[6]["frames"][0]["state"]["slot_values"] == {}  # the value is another service's
    assert without.training == {"Trips_1": "unseen", "Homes_1": "unseen"}


def test_another_wording_changes_what_is_read_and_not_what_is_predicted(folder):
    other = copy.deepcopy(SCHEMA)
    other[0]["service_name"], other[0]["slots"][0]["name"] = "Trips_11", "paris"
    other[0]["intents"][0] |= {"description": "france", "required_slots": ["paris"]}
    (folder / "other.json").write_text(json.dumps(other))
    task = task_of(f"model.dataset.schema_file={folder / 'other.json'}")
    (dialogue,) = task.read(folder / "dev")
    features = task.features([dialogue], TOKENIZER, with_targets=True)
    texts = {item.notes.question.text for item in features}
    assert {"paris the city", "Find france"} <= texts and "city the city" not in texts
    (prediction,) = task.decode([dialogue], features, perfect_logits(features))
    assert prediction.turns[0]["frames"][0]["state"] == TURNS[0]["frames"][0]["state"]


def test_files_of_nemo_s_parts(folder):
    files = {number: folder / f"dialogues_{number:03d}.json" for number in (1, 7, 8, 43, 44)}
    for name, split, expected in (
        ("sgd_all", "train", [1, 7, 8, 43, 44]), ("sgd_single_domain", "train", [1, 7, 8, 43]),
        ("sgd_single_domain", "dev", [1, 7]), ("sgd_multi_domain", "dev", [8, 43, 44]),
        ("sgd_all_single", "train", [1, 7, 8, 43, 44]), ("sgd_all_single", "dev", [1, 7]), ("debug_sample", "dev", [1]),
    ):  # fmt: skip
        assert [number for number, file in files.items() if is_of_part(name, split, file)] == expected
    task = task_of(f"model.dataset.data_dir={folder}", "model.test_ds.ds_item=[train,dev]")
    assert [file.split("/")[-2] for file in task.files(task.settings.model.test_ds)] == ["train", "dev"]
    task = task_of(f"model.test_ds.file={folder / 'dev'}")
    assert task.files(task.settings.model.test_ds) == [str(folder / "dev" / "dialogues_001.json")]


def test_a_dialogue_of_plain_utterances_and_a_new_service():
    task = task_of()
    dialogue = task.example(turns='["in paris", "who", "born"]', services="Trips_1", schema=json.dumps(SCHEMA))
    assert [turn["speaker"] for turn in dialogue.turns] == ["USER", "SYSTEM", "USER"] and not dialogue.is_labelled
    features = task.features([dialogue], TOKENIZER, with_targets=False)
    (prediction,) = task.decode([dialogue], features, [np.zeros((len(item), 8), dtype=np.float32) for item in features])
    assert prediction.turns[0]["frames"][0]["state"]["active_intent"] in ("NONE", "Find")
    row = task.to_row(dialogue, prediction)
    assert row["text"] == "in paris\nwho\nborn" and "gold" not in row
    with pytest.raises(InputError, match="has no state"):
        task.features([dialogue], TOKENIZER, with_targets=True)
    for fields, message in (
        ({"turns": ["a"]}, "services is missing"),
        ({"turns": ["a"], "services": ["x"], "text": "b"}, "text is missing or unexpected"),
        ({"turns": ["a"], "services": ["x"]}, "there is no schema of the services"),
        ({"turns": "[", "services": ["x"]}, "is no list in JSON"),
        ({"turns": [3], "services": ["Trips_1"], "schema": SCHEMA}, "turn 0 is a JSON int"),
        ({"turns": ["a"], "services": ["Trips"], "schema": SCHEMA}, "'Trips' is not in the schema"),
    ):
        with pytest.raises(InputError, match=message):
            task.example(**fields)


def score(capsys, *words):
    code = main(["score", KIND.name(), *map(str, words)])
    output = capsys.readouterr()
    return code, json.loads(output.out) if code == 0 else output.err


def test_files_of_predictions_are_scored(folder, capsys):
    found = copy.deepcopy(DIALOGUE)
    found["turns"][0]["frames"][0]["state"]["slot_values"] = {"city": ["pariss", "x"], "unheard": ["y"]}
    second = DIALOGUE | {"dialogue_id": "1_00001"}
    (folder / "dev" / "dialogues_002.json").write_text(to_dialogues([second]))
    (folder / "OUT").mkdir()
    (folder / "OUT" / "dialogues_001.json").write_text(to_dialogues([found]))
    code, scores = score(capsys, folder / "dev", folder / "OUT")
    assert code == 0 and scores["joint_goal_accuracy"] == pytest.approx(75)
    assert scores["official"][ALL]["joint_noncat_accuracy"] == pytest.approx((0.91 + 3) / 4)
    assert (scores["dialogues_missing"], scores["frames_missing"], scores["joint_goal_accuracy_of_all"]) == (1, 4, 37.5)
    assert (scores["slots_of_several_values"], scores["slots_not_in_schema"]) == (1, 1)
    assert scores["seen/joint_goal_accuracy"] == scores["joint_goal_accuracy"]  # train/schema.json stands beside
    _, strict = score(capsys, folder / "dev", folder / "OUT", "model.dataset.use_fuzzy_match=false")
    assert strict["official"][ALL]["joint_noncat_accuracy"] == pytest.approx(3 / 4)
    del found["turns"][0]["frames"][0]["state"]
    (folder / "OUT" / "dialogues_001.json").write_text(to_dialogues([found]))
    code, message = score(capsys, folder / "dev", folder / "OUT")
    assert code == 65 and "a frame of the user has no state" in message
    (folder / "EMPTY").mkdir()
    code, message = score(capsys, folder / "dev", folder / "EMPTY")
    assert code == 65 and "has no files of dialogues" in message
