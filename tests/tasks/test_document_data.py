"""Tasks that read annotated documents: the same corpus as PubTator, BioC and brat gives the same examples."""

import pytest

from megabert.config.parser import compose
from megabert.errors import InputError, InputWarning
from megabert.formats.documents.convert_documents import read_documents, write_documents
from megabert.formats.documents.losses import Losses
from megabert.tasks.relation_extraction import RelationExtraction, RelationExtractionSettings
from megabert.tasks.task_data import load_training_data
from megabert.tasks.token_classification import TokenClassification, TokenClassificationSettings
from megabert.tokenizers.wordpiece import SPECIAL_TOKENS, Tokenizer

TOKENIZER = Tokenizer([*SPECIAL_TOKENS, *"abcdefghijklmnopqrstuvwxyz", "."])
CORPUS = """7|t|Aspirin helps pain.
7|a|Codeine and aspirin caused nausea. Pain went.
7\t0\t7\tAspirin\tChemical\tC1
7\t14\t18\tpain\tSpecificDisease\tD1
7\t20\t27\tCodeine\tChemical\tC2
7\t32\t39\taspirin\tChemical\tC1
7\t47\t53\tnausea\tDiseaseClass\tD2
7\t55\t59\tPain\tSpecificDisease\tD1
7\tCID\tC1\tD2

"""


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "a.pubtator"
    file.write_text(CORPUS, encoding="utf-8")
    paths = [file]
    for name, ending in (("bioc", "a.bioc.xml"), ("bioc-json", "a.bioc.json"), ("jsonl", "a.documents.jsonl"),
                         ("brat", "brat")):  # fmt: skip
        paths.append(tmp_path / ending)
        write_documents(read_documents([file]), paths[-1], name, Losses())
    return paths


def test_tags_are_read_from_every_format(corpus):
    words = ["model.dataset.entity_types={Chemical:Drug,*:Disease}"]
    settings, _ = compose(TokenClassificationSettings, words, owner="token_classification")
    read = [TokenClassification(settings).read(path) for path in corpus]
    words = [[(example.text, example.words, example.tags) for example in examples] for examples in read]
    assert words[0] == words[1] == words[2] == words[3] == words[4]
    assert [example.tags for example in read[0]] == [
        ("B-Drug", "O", "B-Disease", "O"),
        ("B-Drug", "O", "B-Drug", "O", "B-Disease", "O"),
        ("B-Disease", "O", "O"),
    ]


def test_documents_of_other_endings_are_no_raw_text(corpus, tmp_path):
    """NCBI's files have the ending .txt, PubTator's service writes .biocxml."""
    task = TokenClassification(TokenClassificationSettings())
    with pytest.raises(InputError, match=r"has PubTator's documents. Give it that ending, .pubtator"):
        task.read(corpus[0].rename(tmp_path / "NCBItrainset_corpus.txt"))
    assert len(task.read(corpus[1].rename(tmp_path / "export.biocxml"))) == 3
    with pytest.raises(InputError, match=r"annotated documents end in .pubtator, .bioc.xml"):
        task.read((tmp_path / "export.biocxml").rename(tmp_path / "export.xml"))


def test_a_folder_of_brat_s_is_a_data_file_and_other_folders_are_not(corpus, tmp_path):
    settings = TokenClassificationSettings()
    settings.model.train_ds.file = settings.model.validation_ds.file = str(corpus[-1])

    def load():
        task = TokenClassification(settings)
        task.check_files()
        load_training_data(task, TOKENIZER, settings.model, tmp_path / "cache", learn_labels=True)
        return len(list((tmp_path / "cache").iterdir()))

    assert load() == 1
    assert load() == 1  # of the cache
    (corpus[-1] / "7.ann").write_text("T1\tChemical 0 7\tAspirin\n", encoding="utf-8")
    assert load() == 2
    settings.model.train_ds.file = str(tmp_path)
    with pytest.raises(InputError, match="is a folder"):
        TokenClassification(settings).check_files()


def test_types_that_are_not_chosen_are_noted(corpus):
    settings = TokenClassificationSettings()
    settings.model.dataset.entity_types = {"Chemical": "Chemical"}
    task = TokenClassification(settings)
    with pytest.warns(InputWarning, match=r"a.pubtator: 3 entities of other types left out\."):
        task.read(corpus[0])


def test_pairs_are_read_from_documents(corpus):
    settings = RelationExtractionSettings()
    settings.model.dataset.entity_types = {"Chemical": "Chemical", "*": "Disease"}
    for scope, expected in (
        ("sentence", {"7.T3.T4": "false", "7.T5.T7": "false", "7.T6.T7": "CID"}),
        ("document", {"7.C1.D1": "false", "7.C1.D2": "CID", "7.C2.D1": "false", "7.C2.D2": "false"}),
    ):
        settings.model.dataset.scope = scope
        examples = RelationExtraction(settings).read(corpus[0])
        assert {example.id: example.labels[0] for example in examples} == expected
        assert "@CHEMICAL$" in examples[-1].text
        assert "@DISEASE$" in examples[-1].text


def test_pairs_do_not_depend_on_the_relations_of_the_file_that_is_predicted(corpus, tmp_path):
    """Pairs of types that the training data relate are predicted where no relation is known."""
    settings, plain = RelationExtractionSettings(), tmp_path / "plain.pubtator"
    settings.model.train_ds.file = [str(plain), str(corpus[0])]
    plain.write_text(CORPUS.replace("7\tCID\tC1\tD2\n", ""), encoding="utf-8")
    task = RelationExtraction(settings)
    with pytest.raises(InputError, match=r"plain.pubtator: which types of entities make pairs is learnt"):
        task.read(plain)
    with pytest.warns(InputWarning, match="1 related pairs of mentions in different sentences, left out"):
        examples = task.read_data(settings.model.train_ds)
    ids = ["7.T5.T7", "7.T6.T7"]
    assert [item.id for item in examples] == [*ids, *ids]
    assert [item.labels for item in examples] == [("false",)] * 3 + [("CID",)]
    restored = RelationExtraction(settings)
    restored.restore_state({"labels": [], "weights": [], "problem": "single_label", **task.state()})
    assert [(item.id, item.labels) for item in restored.read(plain)] == [(name, None) for name in ids]
    plain.write_text("9|t|Nothing.\n\n", encoding="utf-8")
    with pytest.warns(InputWarning, match="plain.pubtator: no pair of entities is read"):
        assert restored.read(plain) == []
    with pytest.raises(InputError, match="the training data have no pair of entities"):
        task.learn_labels([])
