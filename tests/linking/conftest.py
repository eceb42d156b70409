"""A small dictionary of diseases, built once."""

from pathlib import Path

import pytest

from megabert.linking.dictionary import Dictionary
from megabert.linking.dictionary_builder import BuildOptions, build_dictionary

DISEASES = """D001943|114480||Breast Neoplasms|Breast Cancer|Cancer, Breast|Mammary Carcinoma
D010051||Ovarian Neoplasms|Ovarian Cancer
D020388||Muscular Dystrophy, Duchenne|Duchenne Muscular Dystrophy|DMD
D001249||Asthma|Bronchial Asthma
D003920||Diabetes Mellitus|Diabetes
D006258||Head and Neck Neoplasms|head and neck cancer
D019337||Hematologic Neoplasms|Hematopoietic Tumors
D009223||Myotonic Dystrophy|Dystrophia Myotonica|DM
"""


def build(folder: Path, content: str = DISEASES, name: str = "diseases.txt", **options):
    (folder / name).write_text(content, encoding="utf-8")
    build_dictionary([folder / name], folder / "diseases.dict", BuildOptions(**options))
    return Dictionary.open(folder / "diseases.dict")


@pytest.fixture(scope="session")
def diseases(tmp_path_factory):
    return build(tmp_path_factory.mktemp("diseases"))
