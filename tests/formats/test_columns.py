"""What a column file is: recognized by its ending or its tags; which columns are words and tags; what is refused."""

from pathlib import Path

import pytest

from megabert.errors import InputError, InputWarning
from megabert.formats.columns import ColumnLayout, are_columns, column_sentences
from megabert.formats.tag_schemes import chosen_tags, find_scheme, single_word_tags, to_iob2
from megabert.metrics.tagging import entity_scores

TAGGED = "acute B-Disease\nnephritis I-Disease\nafter O\n\n"


def sentences(content, name="x.conll", **layout):
    return column_sentences(Path(name), content.split("\n"), ColumnLayout(**layout))


def recognize(content, name):
    return are_columns(Path(name), content.split("\n"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.txt", TAGGED, True),
        ("x.raw", TAGGED, True),
        ("x", TAGGED, True),
        ("x.TSV", TAGGED.replace(" ", "\t"), True),
        ("x.txt", TAGGED * 3 + "ibuprofen\n", True),  # one line is damaged: an error, not raw text
        ("x.txt", "O show\nB-Disease acute\n", True),
        ("x.txt", "acute B-Disease 0.98\nafter O 0.99\n", True),
        ("x.txt", "no O\nentity O\n", True),
        ("x.tsv", "acute\tb-disease\nafter\to\n", True),
        ("x.CONLL.gz", "any words\n", True),
        ("x.txt", "Dx:\tasthma and acute liver failure\nRx:\taspirin daily\nDx:\tgout\n", False),
        ("x.text", "Rx aspirin\n\nDx asthma\n", False),
        ("x.txt", "vitamin B-12\nvitamin B-6\n\n", False),
        ("note", "Cisplatin causes nephrotoxicity in rats.\n", False),
        ("x.txt", "type O\nblood of type O is rare\nand so on\n", False),
        ("x.txt", "dose NOUN\nworked VERB\n\n", False),
    ],
)
def test_columns_are_recognized_by_ending_or_by_their_tags(name, content, expected):
    assert recognize(content, name) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.tsv", "PMID\tabstract\n123\tCisplatin causes nephrotoxicity.\n"),
        ("x.csv", "text,label\naspirin,good\n"),
        ("x.ann", "T1\tDisease 0 6\tasthma\nT2\tDrug 8 15\taspirin\n"),
        ("x.xml", "<collection>\n<document/>\n</collection>\n"),
    ],
)
def test_tables_and_markup_without_tags_are_neither_text_nor_columns(name, content):
    with pytest.raises(InputError, match=rf"{name}: no column has tags .*model.dataset.format=text"):
        recognize(content, name)


def test_germeval_s_words_are_in_the_second_column():
    content = "#\thttp://x [2009]\n1\tAkute\tB-Disease\tO\n2\tNephritis\tI-Disease\tO\n\n1\tnach\tO\tO\n"
    with pytest.raises(InputError, match=r":2: the tags stand in column 3 of 4.*tag_column=3; tag_column=-1"):
        sentences(content)
    first, second = sentences(content, tag=3)
    assert (first.words, first.tags, second.words) == (("Akute", "Nephritis"), ("B-Disease", "I-Disease"), ("nach",))
    assert sentences(content, tag=-1)[0].tags == ("O", "O")


def test_conll_u_has_comments_contracted_words_and_empty_nodes():
    rest = "\t_" * 6
    rows = ["1-2\tvámonos\t_\t_", "1\tvamos\tir\tVERB", "2\tnos\tnosotros\tPRON", "2.1\tx\tx\tX"]
    content = "# text = vámonos\n" + "".join(f"{row}{rest}\n" for row in rows)
    (sentence,) = sentences(content, "x.conllu")
    assert (sentence.words, sentence.tags) == (("vamos", "nos"), ("VERB", "PRON"))
    with pytest.raises(InputError, match="is not CoNLL-U"):
        sentences("a\tb\nc\td\n", "x.conllu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("O\tshow\nB-Disease\tacute\n", r"column 1 of 2.*tag_column=1 model.dataset.word_column=2"),
        ("acute B-Disease 0.98\nafter O 0.99\n", r"column 2 of 3, not in the last. Set model.dataset.tag_column=2"),
        ("acute 0.98\nafter 0.99\n", "the last column has no tags"),
        (TAGGED * 3 + "ibuprofen\n", ":13: 1 columns where other lines have 2"),
        ("word tag\n" + TAGGED, ":1: 'tag' is no tag.*If the line is a header, remove it"),
        ("acute B-Disease\nafter NONE\n", ":2: the tag 'NONE' .*model.dataset.pad_label=NONE"),
        ("bc/x 0 In O\nbc/x 1 Paris B-GPE\n\nbc/x 0 on O\n", ":1: column 1 has the same in all .*word_column=N"),
        ("acute B-Disease\nafter NULL\n", ":2: the tag 'NULL' .*model.dataset.pad_label=\"'NULL'\""),
    ],
)
def test_other_layouts_are_refused_with_the_setting_that_reads_them(content, message):
    with pytest.raises(InputError, match=message):
        sentences(content)


@pytest.mark.parametrize(
    ("separator", "comment"),
    [(" ", "# id 1"), ("\t", "# id 1\n#\tdomain=a b"), ("\t", "###MEDLINE:95369245\n"), (" ", "# id domain=train")],
)
def test_comments_before_sentences_are_left_out_and_counted(separator, comment):
    words = ["EU _ B-ORG", "# _ O", "", comment, "# _ O", "#tag _ B-ORG", "won _ O", ""]
    content = "\n".join([comment, *words]).replace(" _ ", f"{separator}_{separator}")
    num_lines = 2 * len(comment.splitlines())
    with pytest.warns(InputWarning, match=f": {num_lines} lines that begin with # .* left out as comments"):
        found = sentences(content)
    assert [item.words for item in found] == [("EU", "#"), ("#", "#tag", "won")]
    assert [item.tags for item in found] == [("B-ORG", "O"), ("O", "B-ORG", "O")]


def test_words_with_a_number_sign_are_no_comments():
    content = "#\tSYM\n1\tNUM\n\n#x\tNOUN\n"
    assert [item.words for item in sentences(content)] == [("#", "1"), ("#x",)]


def test_swapped_columns_are_read_by_settings():
    (sentence,) = sentences("O\tshow\nB-Disease\tacute\n", tag=1, word=2)
    assert (sentence.words, sentence.tags) == (("show", "acute"), ("O", "B-Disease"))
    with pytest.raises(InputError, match=r"has 2 columns; model.dataset.tag_column=3 is none"):
        sentences("O\tshow\n", tag=3)


def test_words_with_blanks_stand_between_tabs():
    assert sentences("1 000\tO\nvitamin C\tB-Chemical\u00a0\n")[0] == sentences("1 000\tO\nvitamin C\tB-Chemical\n")[0]
    assert sentences("1 000\tO\nvitamin C\tB-Chemical\n")[0].words == ("1 000", "vitamin C")


def test_parts_of_speech_are_read_from_files_with_an_ending_of_columns():
    assert sentences("dose NOUN\nworked VERB\n")[0].tags == ("NOUN", "VERB")


@pytest.mark.parametrize(
    ("name", "tags", "expected"),
    [
        ("IOB1", "I-A I-A B-A O I-B O", "B-A I-A B-A O B-B O"),
        ("IOBES", "B-A E-A S-A O S-B O", "B-A I-A B-A O B-B O"),
        ("BILOU", "B-A I-A L-A O U-B O", "B-A I-A I-A O B-B O"),
        ("only units", "U-A O U-A U-B O O", "B-A O B-A B-B O O"),
        ("BMES", "B-A M-A E-A O S-B O", "B-A I-A I-A O B-B O"),
        ("lower case", "b-a i-a o O b-b i-b", "B-a I-a O O B-b I-b"),
        ("suffix", "A-B A-I O O B-B B-I", "B-A I-A O O B-B I-B"),
        ("suffixed units", "A-U O A-B A-I A-L O", "B-A O B-A I-A I-A O"),
        ("without types", "B I O O I B", "B-_ I-_ O O B-_ B-_"),
        ("parts of speech", "NOUN VERB O X DET PUNCT", "NOUN VERB O X DET PUNCT"),
        ("names with a hyphen", "e-mail O e-mail O O O", "e-mail O e-mail O O O"),
        ("sizes", "S M L S M L", "S M L S M L"),
    ],
)
def test_every_scheme_is_converted_to_iob2(name, tags, expected):
    given = tags.split()
    assert to_iob2(given, find_scheme(given, "O"), "O", "here") == tuple(expected.split())


def test_another_outside_tag():
    given = ("B-A", "NULL", "I-B")
    assert to_iob2(given, find_scheme(given, "NULL"), "NULL", "here") == ("B-A", "NULL", "B-B")


def printed(file):
    """Parse conlleval's output: accuracy, and precision, recall and F1 overall and by type."""
    numbers = {}
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        name, _, rest = line.strip().partition(":")
        values = rest.replace("%", "").replace(";", "").replace(":", "").split()
        if name == "accuracy":
            numbers |= {"word_accuracy": values[0], "precision": values[2], "recall": values[4], "f1": values[6]}
        else:
            numbers |= {
                f"{name}/{score}": values[place] for score, place in (("precision", 1), ("recall", 3), ("f1", 5))
            }
    return numbers


@pytest.mark.parametrize("name", ["conll2000_output", "bc5cdr_dev400", "bc2gm_dev400"])
def test_scores_are_conlleval_s_to_the_digit(name, datasets, tmp_path):
    from megabert.tasks.token_classification import TokenClassification

    folder = datasets("conlleval_scorer")
    lines = [line.split() for line in (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()]
    for column, file in ((-2, "gold"), (-1, "predicted")):
        content = "".join(f"{line[0]} {line[column]}\n" if line else "\n" for line in lines)
        (tmp_path / f"{file}.conll").write_text(content, encoding="utf-8")
    scores = TokenClassification.score_files(tmp_path / "gold.conll", tmp_path / "predicted.conll")
    expected = printed(folder / f"{name}.conlleval.txt")
    assert {key: f"{scores[key]:.2f}" for key in expected} == expected


@pytest.mark.parametrize("name", ["bc5cdr_dev400", "bc2gm_dev400"])
def test_tags_without_prefixes_are_scored_as_conlleval_r_does(name, datasets):
    folder = datasets("conlleval_scorer")
    gold, predicted = [], []
    for block in (folder / f"{name}.txt").read_text(encoding="utf-8").strip().split("\n\n"):
        rows = [line.split() for line in block.splitlines()]
        for side, column in ((gold, -2), (predicted, -1)):
            side.append(single_word_tags([row[column].removeprefix("B-").removeprefix("I-") for row in rows], "O"))
    scores = entity_scores(gold, predicted)
    expected = printed(folder / f"{name}.conlleval_raw.txt")
    del expected["word_accuracy"]
    assert {key: f"{scores[key]:.2f}" for key in expected} == expected


def test_types_of_tags_are_chosen_and_renamed():
    tags = ("B-SpecificDisease", "I-SpecificDisease", "B-Chemical", "O", "B-Disease", "NOUN")
    expected = ("B-Disease", "I-Disease", "O", "O", "B-Disease", "NOUN")
    assert chosen_tags(tags, {"SpecificDisease": "Disease"}, "O") == expected
    assert chosen_tags(tags, {"SpecificDisease": "Disease", "*": "X"}, "O")[2] == "B-X"
    assert chosen_tags(tags, {}, "O") == tags


def test_words_are_never_the_numbers_before_them():
    for start, gap in ((0, 0), (1, 0), (1, 2)):  # from 0 or 1 in each sentence, or going on through the file
        content = "".join(
            f"{start + number}\t{word}\t{tag}\n" for number, word, tag in ((0, "acute", "B-D"), (1, "pain", "I-D"))
        )
        content += f"\n{start + gap}\tnow\tO\n"
        assert [item.words for item in sentences(content)] == [("acute", "pain"), ("now",)]
    with pytest.raises(InputError, match=r"x.conll:1: column 1 has nothing but numbers.*model.dataset.word_column=N"):
        sentences("101 acute B-D\n101 pain I-D\n\n102 now O\n")
