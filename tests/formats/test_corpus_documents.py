import gzip
import lzma

import pytest

from megabert.errors import InputError
from megabert.formats.corpus_documents import corpus_files, read_documents

TEXT = "One line.\nTwo lines.\n\n\nA second.\r\n \nÉté.\n"
EXPECTED = ["One line.\nTwo lines.", "A second.", "Été."]
PUBMED = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2023//EN" "http://dtd.example/pubmed.dtd">
<PubmedArticleSet>
<PubmedArticle><MedlineCitation Status="MEDLINE"><PMID>1</PMID><Article>
<ArticleTitle>Effects of <i>BRCA1</i> &amp; p53.</ArticleTitle>
<Abstract><AbstractText Label="BACKGROUND">One.</AbstractText><AbstractText>Two
 lines.</AbstractText></Abstract></Article></MedlineCitation><PubmedData/></PubmedArticle>
<PubmedArticle><MedlineCitation><Article><ArticleTitle>A title alone.</ArticleTitle></Article></MedlineCitation>
</PubmedArticle>
<PubmedArticle><MedlineCitation><Article><ArticleTitle/></Article></MedlineCitation></PubmedArticle>
</PubmedArticleSet>"""


def read(path):
    return list(read_documents(path))


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_text_json_and_xml_compressed_or_not(suffix, pack, tmp_path):
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(TEXT.encode()))
    (tmp_path / f"b.jsonl{suffix}").write_bytes(pack(b'{"text": "One."}\n\n{"text": " "}\n{"text": "Two\\nlines"}'))
    (tmp_path / f"c.xml{suffix}").write_bytes(pack(PUBMED.encode()))
    assert read(tmp_path / f"a.txt{suffix}") == EXPECTED
    assert read(tmp_path / f"b.jsonl{suffix}") == ["One.", "Two\nlines"]
    assert read(tmp_path / f"c.xml{suffix}") == ["Effects of BRCA1 & p53.\nOne.\nTwo lines.", "A title alone."]
    assert [file.name for file in corpus_files([tmp_path])] == [f"a.txt{suffix}", f"b.jsonl{suffix}", f"c.xml{suffix}"]


def test_medline_xml(tmp_path):
    (tmp_path / "x.xml").write_text(
        "<MedlineCitationSet><MedlineCitation><Article><ArticleTitle>T.</ArticleTitle></Article></MedlineCitation>"
        "</MedlineCitationSet>"
    )
    assert read(tmp_path / "x.xml") == ["T."]


BOMB = (
    "<!DOCTYPE a ["
    + "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10 if n else 'x' * 100}'>" for n in range(9))
    + "]><PubmedArticleSet><PubmedArticle><ArticleTitle>&e8;</ArticleTitle></PubmedArticle></PubmedArticleSet>"
)
ENTITY = '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><PubmedArticleSet><PubmedArticle><ArticleTitle>&e;' \
         "</ArticleTitle></PubmedArticle></PubmedArticleSet>"  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"good\nb\xffd\n", r"x.txt:2: not UTF-8 text: byte 0xff"),
        ("x.txt", b"good\nb\0d\n", r"x.txt:2: a NUL character"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', r"x.jsonl:2: not JSON"),
        ("x.jsonl", b'{"body": "a"}\n', r"x.jsonl:1: there is no string under 'text'"),
        ("x.jsonl", b'["a"]\n', r"x.jsonl:1: there is no string"),
        ("x.jsonl", b'{"text": 3}\n', r"x.jsonl:1: there is no string"),
        ("x.jsonl", b"[" * 100_000, r"x.jsonl:1: not JSON"),
        ("x.jsonl", b'{"text": ' + b"1" * 5000 + b"}", r"x.jsonl:1: not JSON"),
        ("x.jsonl", b'{"text": "\\ud800"}', r"x.jsonl:1: invalid Unicode: a lone surrogate"),
        ("x.xml", b'<?xml version="1.0" encoding="klingon"?><a/>', r"x.xml.* encoding"),
        ("x.xml", b'<?xml version="1.0" encoding="shift_jis"?><a/>', r"x.xml:1: not XML: multi-byte encodings"),
        ("x.xml", b'<?xml version="1.0" encoding="base64"?><a/>', r"x.xml.* encod"),
        ("x.xml", b"<a>" * 100_000, r"x.xml:1: elements are nested more than 200 deep"),
        ("x.xml", b"<PubmedArticleSet>\n<PubmedArticle>", r"x.xml:2: not XML"),
        ("x.xml", BOMB.encode(), r"x.xml:1: the file declares the entity &e0;"),
        ("x.xml", ENTITY.encode(), r"x.xml:1: the file declares the entity &e;"),
        ("x.txt.gz", gzip.compress(b"good\n" * 1000, mtime=0)[:-9], r"x.txt.gz is damaged or truncated"),
        ("x.txt.gz", b"no gzip", r"x.txt.gz is damaged or truncated"),
        ("x.txt.xz", lzma.compress(b"good\n" * 1000)[:-9], r"x.txt.xz is damaged or truncated"),
        ("x.txt.xz", b"no xz", r"x.txt.xz is damaged or truncated"),
    ],
)
def test_errors_name_file_and_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"a" * 2000, "x.txt:1: a line of more than 0.001 MB.*--max_document_mb"),
        ("x.txt", b"word\n" * 1000, "x.txt:15: a document, which blank lines would end, of more than 0.001 MB"),
        ("x.jsonl", b'{"text": "' + b"a" * 2000, "x.jsonl:1: a line of more than 0.001 MB"),
        ("x.txt.gz", gzip.compress(b"a" * 10**8), "x.txt.gz:1: a line of more than 0.001 MB"),
        ("x.xml", b"<PubmedArticle>" + b"<b/>" * 1000, "x.xml:1: an element of more than 0.001 MB.*--max_document_mb"),
    ],
)
def test_endless_lines_and_documents_are_bounded_by_a_setting(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_documents(tmp_path / name, max_mb=0.001))


def test_many_articles_of_xml_are_no_long_document(tmp_path):
    article = "<PubmedArticle><Article><ArticleTitle>T.</ArticleTitle></Article></PubmedArticle>"
    (tmp_path / "x.xml").write_text(f"<PubmedArticleSet>{article * 40_000}</PubmedArticleSet>")  # 3.2 MB
    assert len(list(read_documents(tmp_path / "x.xml", max_mb=2))) == 40_000


def test_paths_without_documents(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        corpus_files([tmp_path / "none.txt"])
    with pytest.raises(InputError, match=r"holds no .txt"):
        corpus_files([tmp_path])


def test_half_of_a_character_is_an_error_with_its_line(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "ok \\ud83d\\ude00"}\n{"text": "asthma \\ud83d"}\n')
    documents = read_documents(file)
    assert next(documents) == "ok \U0001f600"
    with pytest.raises(InputError, match=r"x.jsonl:2: invalid Unicode: a lone surrogate at character 7"):
        next(documents)
