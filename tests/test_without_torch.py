"""Reading, tokenizing, decoding and scoring need no torch: the process that runs this file cannot import it."""

import importlib
import importlib.abc
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np

WITHOUT_TORCH = ("errors", "config", "tokenizers", "formats", "metrics", "data", "tasks")


def test_examples_become_scores_without_torch(vocab_file, tmp_path):
    command = [sys.executable, "-m", "tests.test_without_torch", str(vocab_file), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [*TASKS, "done"]


class NoTorch(importlib.abc.MetaPathFinder):
    """Refuse to import torch."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError(f"{name} is imported, which only heads, losses and training may do")


def import_all():
    import megabert

    for room in WITHOUT_TORCH:
        module = importlib.import_module(f"megabert.{room}")
        for info in pkgutil.walk_packages(getattr(module, "__path__", []), f"megabert.{room}."):
            importlib.import_module(info.name)
    assert megabert.__file__ and "torch" not in sys.modules


def predict_and_score(name, content, words, tokenizer, folder, make_logits):
    """Read, tokenize, decode hand-made logits and score, as far as a task goes without a network."""
    from megabert.config.parser import compose
    from megabert.tasks import registry

    kind = registry.find(name)
    task = kind(compose(kind.settings_type, words, owner=name)[0])
    file = folder / f"{name}.txt"
    file.write_text(content, encoding="utf-8")
    examples = task.read(file)
    task.learn_labels(examples)
    restored = kind(compose(kind.settings_type, words, owner=name)[0])
    restored.restore_state(task.state())
    features = restored.features(examples, tokenizer, with_targets=True)
    predictions = restored.decode(examples, features, [make_logits(restored, item) for item in features])
    assert restored.to_json(predictions[0])
    return restored.score(examples, predictions)


def one_hot(index, size):
    return np.eye(size, dtype=np.float32)[index]


def question_logits(task, feature):
    return one_hot(feature.targets["span"], len(feature)).T


def class_logits(task, feature):
    return one_hot(feature.targets["label"], len(task.labels))


def tag_logits(task, feature):
    return one_hot(np.maximum(feature.token_targets["tag"], 0), len(task.labels))


def mark_logits(task, feature):
    marks = one_hot(np.maximum(feature.token_targets["mark"], 0), len(task.marks))
    return np.concatenate([marks, one_hot(np.maximum(feature.token_targets["case"], 0), len(task.cases))], axis=1)


SQUAD = """{"data": [{"paragraphs": [{"context": "Marie Curie was born in Warsaw.", "qas": [
    {"id": "1", "question": "Where was she born?", "answers": [{"text": "Warsaw", "answer_start": 24}]}]}]}]}"""
# The content of a data file, overrides, a function that makes the logits of the correct predictions, their main score.
TASKS = {
    "question_answering": (SQUAD, [], question_logits, "f1"),
    "text_classification": ("good one\ta\nbad\tb\n", [], class_logits, "accuracy"),
    "token_classification": ("Marie B-PER\nis O\n\nParis B-LOC\n", [], tag_logits, "f1"),
    "punctuation_capitalization": ("Good, is it?\nNo.\n", [], mark_logits, "f1"),
    "glue": ("sentence\tlabel\ngood one\t1\nbad\t0\n", ["model.task_name=sst-2"], class_logits, "glue"),
    "zero_shot": ("premise\thypothesis\tlabel\na\tb\tentailment\na\tc\tneutral\n", [], class_logits, "accuracy"),
}


def main(vocab_file, folder):
    sys.meta_path.insert(0, NoTorch())
    import_all()
    from megabert.tokenizers.wordpiece import Tokenizer

    tokenizer = Tokenizer(Path(vocab_file).read_text(encoding="utf-8").split(), lower_case=True)
    for name, (content, words, make_logits, metric) in TASKS.items():
        scores = predict_and_score(name, content, words, tokenizer, Path(folder), make_logits)
        assert scores[metric] == 100, (name, scores)
        print(name)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
