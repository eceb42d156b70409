"""A folder with a small file for every name that the documented commands use, so that each runs as written."""

import json
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file
from tokenizers import ByteLevelBPETokenizer

from megabert.formats.documents.convert_documents import read_documents, write_documents
from megabert.formats.documents.losses import Losses
from megabert.sample import squad_file
from tests.conftest import WORDS, squad_document
from tests.documented_commands import ROOT

SENTENCES = ["Marie Curie found radium in Paris.", "The Seine is a river in France.", "Warsaw is a city in Poland."]
SPLITS = ("train", "dev", "test")
# Folder -> NeMo's label file: tags, or a mark and a case for each word
LABELS = {"DATA": "B-PER I-PER\nO B-LOC\n", "MARKS": "OU OU\nOO .U\n"}
COLUMNS = "Marie\tB-PER\nCurie\tI-PER\nfound\tO\n\nParis\tB-LOC\n"
PAIRS = "1\t1\t2\tIn Paris.\tIn France.\n0\t3\t4\tParis.\tWarsaw.\n"
RELATION = {"text": "Aspirin inhibits COX.", "head": {"start": 0, "end": 7, "type": "CHEMICAL"},
            "tail": {"start": 17, "end": 20, "type": "GENE"}}  # fmt: skip
TINY = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 512}
MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
MNLI = "index\tpromptID\tpairID\tgenre\ts1b\ts2b\ts1p\ts2p\tsentence1\tsentence2\tlabel1\tgold_label\n"
CHEMPROT = {
    "A.tsv": "1\tTitle.\tAspirin inhibits COX, not TNF.\n",
    "E.tsv": "1\tT1\tCHEMICAL\t7\t14\tAspirin\n1\tT2\tGENE-Y\t24\t27\tCOX\n1\tT3\tGENE-Y\t33\t36\tTNF\n",
    "R.tsv": "1\tCPR:4\tY \tINHIBITOR\tArg1:T1\tArg2:T2\n",
}
RACE = json.dumps({"article": "Marie Curie found radium.", "questions": ["Who found _ ?"], "answers": ["A"],
                   "options": [["radium", "tin", "gold", "iron"]]})  # fmt: skip
# Two documents with mentions, identifiers and a relation
PUBTATOR = """1|t|Aspirin and asthma.
1|a|Aspirin causes asthma. Naproxen was given.
1\t0\t7\tAspirin\tChemical\tD001241
1\t12\t18\tasthma\tDisease\tD001249
1\t43\t51\tNaproxen\tChemical\tD009288
1\tCID\tD001241\tD001249

2|t|Radium.
2|a|Marie Curie found radium in Paris.
2\t0\t6\tRadium\tChemical\tD011883

"""
OBO = """format-version: 1.2

[Term]
id: MESH:D001249
name: asthma
synonym: "bronchial asthma" EXACT []

[Term]
id: MESH:D003920
name: diabetes
"""
PUBMED = """<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID Version="1">7</PMID><Article>
<ArticleTitle>Radium in Paris.</ArticleTitle><Abstract><AbstractText>Marie Curie found radium.</AbstractText></Abstract>
</Article></MedlineCitation></PubmedArticle></PubmedArticleSet>
"""


SGD = "dstc8-schema-guided-dialogue"


def furnish(folder: Path, page: str) -> None:
    """Write the files; `page` decides what a train.tsv contains."""
    for name, content in files(page).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    write_documents(read_documents([folder / "train.pubtator"]), folder / "dev.bioc.xml", "bioc", Losses())
    save_file({"input_ids": np.array([[2, 50, 51, 3]])}, folder / "IN.safetensors")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(SENTENCES, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save_model(str(folder))


def files(page: str) -> dict[str, str]:
    """List the files as name -> content."""
    squad = json.dumps(squad_document())
    predictions = json.dumps({"0.0": "Warsaw", "0.1": "radium", "1.0": "The Seine", "1.1": "France"})
    articles = json.loads(squad_file("train").read_text(encoding="utf-8"))["data"]
    # As the README says: the paragraphs of the sample, one a line
    text = "".join(f"{paragraph['context']}\n" for article in articles for paragraph in article["paragraphs"])
    return {
        **dict.fromkeys(("TRAIN.json", "DEV.json", "train.json", "dev.json", "MORE.json", "OTHER.json"), squad),
        "QUESTIONS.json": squad,
        "PREDICTIONS.json": predictions,
        "FOLDER/predictions.json": predictions,
        "SETTINGS.yaml": yaml.safe_dump({"trainer": {"max_epochs": 1}}),
        "config.json": json.dumps(TINY),
        "vocab.txt": "".join(f"{word}\n" for word in WORDS),
        **dict.fromkeys(("TEXT.txt", "TEXT", "train.txt", "dev.txt"), text),
        **dict.fromkeys(("train.conll", "dev.conll", "test.conll"), COLUMNS),
        **{f"{folder}/text_{split}.txt": "marie curie\nin paris\n" for folder in LABELS for split in SPLITS},
        **{f"{folder}/labels_{split}.txt": LABELS[folder] for folder in LABELS for split in SPLITS},
        **dict.fromkeys(("train.tsv", "dev.tsv", "test.tsv"), tables(page)),
        **dict.fromkeys(("MRPC/train.tsv", "MRPC/dev.tsv"), MRPC + PAIRS),
        "MRPC/test.tsv": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tIn Paris.\tIn France.\n1\t3\t4\tA.\tB.\n",
        **dict.fromkeys(("MNLI/train.tsv", "MNLI/dev_matched.tsv"), MNLI + inference()),
        "topics.tsv": "text\tlabel\nthe seine\triver\nparis\tcity\n",
        **{f"atis/{split}/{name}": content for split in SPLITS for name, content in atis().items()},
        **CHEMPROT,
        **dict.fromkeys(("corpus.pubtator", "CORPUS.pubtator", "train.pubtator", "corrected.pubtator"), PUBTATOR),
        **dict.fromkeys(("pubmed/abstracts.xml", "part1.xml", "corpus.xml"), PUBMED),
        "diseases.obo": OBO,
        "names.txt": "D001249||asthma\n" * 40 + "D003920||diabetes with asthma\n" * 20,
        "dev.pubtator": PUBTATOR,
        "notes.csv": "note_id,TEXT\n1,Marie Curie found radium.\n",
        "article.nxml": "<article><body><p>Marie Curie found radium.</p></body></article>",
        "project/1.txt": "Marie Curie found radium.\n",
        "project/1.ann": "T1\tPerson 0 11\tMarie Curie\n",
        **dict.fromkeys(("train.jsonl", "dev.jsonl"), relations()),
        "LAMBADA.jsonl": "".join(json.dumps({"text": sentence}) + "\n" for sentence in SENTENCES),
        **dict.fromkeys((f"RACE/{split}/high/1.txt" for split in SPLITS), RACE),
        **dict.fromkeys(("golden/7B1.json", "golden/9B1.json", "9B1_golden.json"), bioasq()),
        **{f"{SGD}/{split}/{name}": content for split in SPLITS for name, content in sgd().items()},
        **searches(),
    }  # fmt: skip


def sgd() -> dict[str, str]:
    """A dialogue of two turns and the schema of its service, as in Schema-Guided Dialogue."""
    slot = {"name": "city", "description": "the city", "is_categorical": False, "possible_values": []}
    intent = {"name": "Pay", "description": "pay", "required_slots": ["city"], "optional_slots": {}}
    service = {"service_name": "Banks_1", "description": "a bank", "slots": [slot], "intents": [intent]}
    state = {"active_intent": "Pay", "requested_slots": [], "slot_values": {"city": ["paris"]}}
    turns = [
        {"speaker": "USER", "utterance": "in paris", "frames": [{"service": "Banks_1", "state": state}]},
        {"speaker": "SYSTEM", "utterance": "in france", "frames": []},
    ]
    dialogue = {"dialogue_id": "1_00000", "services": ["Banks_1"], "turns": turns}
    return {"schema.json": json.dumps([service]), "dialogues_001.json": json.dumps([dialogue])}


def bioasq() -> str:
    """A question of each kind in BioASQ's format."""
    answers = {"yesno": "yes", "factoid": [["radium"]], "list": [["Marie Curie"], ["radium"]]}
    question = {"body": "What is it?", "snippets": [{"text": SENTENCES[0]}]}
    rows = [question | {"id": kind, "type": kind, "exact_answer": answer} for kind, answer in answers.items()]
    return json.dumps({"questions": rows})


def searches() -> dict[str, str]:
    """Two passages, two queries, judgements and a ranking."""
    passages, queries = (
        "p1\tMarie Curie found radium in Paris.\np2\tThe Seine is a river without radium.\n",
        "q1\tradium\nq2\triver in Paris\n",
    )
    ranking = "q1 Q0 p2 1 2.0 a\nq1 Q0 p1 2 1.0 a\nq2 Q0 p1 1 1.0 a\n"
    names = ("queries.tsv", *(f"queries.{split}.tsv" for split in SPLITS))
    judged = ("qrels.txt", *(f"qrels.{split}.txt" for split in SPLITS))
    return {
        **dict.fromkeys(("collection.tsv", "PASSAGES.tsv"), passages),
        **dict.fromkeys(names, queries),
        **dict.fromkeys(judged, "q1 0 p1 1\nq2 0 p2 1\n"),
        "bm25.trec": ranking,
        "negatives.tsv": "q1\tp1\tp2\nq2\tp2\tp1\n",
        "synonyms.tsv": "C0000001\tparis\tthe city\nC0000002\tseine\tthe river\n",
        "answers.dev.jsonl": '{"id": "q1", "answers": ["radium"]}\n',
    }


def relations() -> str:
    """A related pair of entities and one that is not."""
    return "".join(json.dumps(RELATION | {"label": label}) + "\n" for label in ("CPR:4", "false"))


def tables(page: str) -> str:
    """A table as the page's task reads it."""
    if "custom_task" in page:
        return "ham\tin paris\nspam\tin warsaw\n"
    return "text\tlabel\nin paris\tyes\nin warsaw\tno\n"


def inference() -> str:
    """Rows of natural-language inference in MNLI's columns."""
    row = "{}\t1\t1\tfiction\ta\tb\tc\td\t{}\t{}\tneutral\t{}\n"
    labelled = enumerate(("entailment", "neutral", "contradiction"))
    return "".join(row.format(number, "In Paris.", "In France.", label) for number, label in labelled)


def atis() -> dict[str, str]:
    """Two utterances with slots and intents."""
    return {
        "seq.in": "flights to paris\nwhat is in warsaw\n",
        "seq.out": "O O B-city\nO O O B-city\n",
        "label": "flight\nquestion\n",
    }
