"""Readers of dictionaries: small files in each format, the real ones, and what is wrong in a file."""

import gzip

import pytest

from megabert.errors import InputError
from megabert.formats.dictionaries.concept import DictionaryOptions
from megabert.formats.dictionaries.curies import to_curie
from megabert.formats.dictionaries.dictionary_formats import detect, read_concepts

OBO = """format-version: 1.2

[Term]
id: DOID:1
name: breast cancer
synonym: "mammary \\"cancer\\"" EXACT [MESH:1]
synonym: "neoplasm" BROAD []
alt_id: DOID:2

[Term]
id: DOID:3
name: gone
is_obsolete: true

[Typedef]
id: part_of
name: part of
"""
RRF = "".join(
    f"{cui}|{lat}|{ts}|L|{stt}|S|{pref}|A|||C|{sab}|PT|X|{name}|0|{supp}||\n"
    for cui, lat, ts, stt, pref, sab, name, supp in (
        ("C0000001", "ENG", "S", "PF", "N", "MSH", "Cancer, Breast", "N"),
        ("C0000001", "ENG", "P", "PF", "Y", "SNOMEDCT_US", "Breast cancer", "N"),
        ("C0000001", "GER", "P", "PF", "Y", "MSHGER", "Brustkrebs", "N"),
        ("C0000001", "ENG", "S", "PF", "N", "MSH", "Old name", "O"),
        ("C0000002", "ENG", "P", "PF", "Y", "MSH", "Asthma", "N"),
    )
)
MESH_XML = """<?xml version="1.0"?><!DOCTYPE DescriptorRecordSet SYSTEM "x.dtd"><DescriptorRecordSet><DescriptorRecord>
<DescriptorUI>D001249</DescriptorUI><DescriptorName><String>Asthma</String></DescriptorName><ConceptList><Concept>
<ConceptName><String>Asthma</String></ConceptName><TermList><Term><String>Asthma</String></Term>
<Term><String>Asthma, Bronchial</String></Term></TermList></Concept></ConceptList></DescriptorRecord>
</DescriptorRecordSet>"""
MESH_ASCII = """*NEWRECORD
RECTYPE = D
MH = Asthma
ENTRY = Asthma, Bronchial|T047|NON|EQV
PRINT ENTRY = Bronchial Asthma|T047
UI = D001249

*NEWRECORD
NM = alpha-x
SY = alpha x|T109
UI = C000001
"""
CTD = """# CTD
# Fields:
# DiseaseName\tDiseaseID\tAltDiseaseIDs\tDefinition\tParentIDs\tTreeNumbers\tParentTreeNumbers\tSynonyms\tSlimMappings
#
Asthma\tMESH:D001249\tDO:DOID:2841|OMIM:600807\t\t\t\t\tBronchial Asthma|Asthmas\t
"""
GENE = """#tax_id\tGeneID\tSymbol\tLocusTag\tSynonyms\tdescription\tOther_designations
9606\t7157\tTP53\t-\tP53|LFS1\ttumor protein p53\tcellular tumor antigen p53
10090\t22059\tTrp53\t-\tp53\ttransformation related protein 53\t-
10090\t99\tNEWENTRY\t-\t-\t-\t-
"""
TAXONOMY = (
    "9606\t|\thuman\t|\t\t|\tgenbank common name\t|\n9606\t|\tHomo sapiens\t|\t\t|\tscientific name\t|\n"
    "9606\t|\tHomo sapiens Linnaeus, 1758\t|\t\t|\tauthority\t|\n10090\t|\tMus musculus\t|\t\t|\tscientific name\t|\n"
)
BIOSYN = "C||Diseases\nD001249|600807||Asthma|Down&apos;s Syndrome\n"
TABLE = "id\tname\tsynonyms\tspecies\nMESH:D001249\tAsthma\tBronchial Asthma | Asthmas\t9606\n"
PUBTATOR = """1|t|Tumor necrosis factor (TNF) and asthma.
1|a|
1\t0\t21\tTumor necrosis factor\tGene\t7124
1\t23\t26\tTNF\tGene\t7124
1\t32\t38\tasthma\tDisease\tD001249|D000001
"""
FILES = {  # name -> format, content, concepts as (identifiers, names, species), what is left out
    "a.obo": ("obo", OBO, [(("doid:1", "doid:2"), ("breast cancer", 'mammary "cancer"'), 0)], 2),
    "MRCONSO.RRF": ("rrf", RRF, [(("umls:C0000001",), ("Breast cancer", "Cancer, Breast"), 0),
                                 (("umls:C0000002",), ("Asthma",), 0)], 2),
    "desc.xml": ("mesh-xml", MESH_XML, [(("mesh:D001249",), ("Asthma", "Asthma", "Asthma, Bronchial"), 0)], 0),
    "d.bin": ("mesh-ascii", MESH_ASCII, [(("mesh:D001249",), ("Asthma", "Asthma, Bronchial", "Bronchial Asthma"), 0),
                                         (("mesh:C000001",), ("alpha-x", "alpha x"), 0)], 0),
    "CTD_diseases.tsv": ("ctd", CTD, [(("mesh:D001249", "doid:2841", "omim:600807"),
                                       ("Asthma", "Bronchial Asthma", "Asthmas"), 0)], 0),
    "CTD_diseases.csv": ("ctd", CTD.replace("Asthma\t", '"Asthma, Bronchial"\t').replace("\t", ","),
                         [(("mesh:D001249", "doid:2841", "omim:600807"),
                           ("Asthma, Bronchial", "Bronchial Asthma", "Asthmas"), 0)], 0),
    "gene_info": ("gene", GENE, [(("ncbigene:7157",), ("TP53", "tumor protein p53", "P53", "LFS1",
                                                       "cellular tumor antigen p53"), 9606),
                                 (("ncbigene:22059",), ("Trp53", "transformation related protein 53", "p53"), 10090)],
                  1),
    "names.dmp": ("taxonomy", TAXONOMY, [(("ncbitaxon:9606",), ("Homo sapiens", "human"), 9606),
                                         (("ncbitaxon:10090",), ("Mus musculus",), 10090)], 1),
    "medic.txt": ("biosyn", BIOSYN, [(("mesh:C",), ("Diseases",), 0),
                                     (("mesh:D001249", "omim:600807"), ("Asthma", "Down's Syndrome"), 0)], 0),
    "own.tsv": ("table", TABLE, [(("mesh:D001249",), ("Asthma", "Bronchial Asthma", "Asthmas"), 9606)], 0),
    "a.pubtator": ("mentions", PUBTATOR, [(("ncbigene:7124",), ("Tumor necrosis factor",), 0),
                                          (("ncbigene:7124",), ("TNF", "Tumor necrosis factor"), 0),
                                          (("mesh:D000001+mesh:D001249",), ("asthma",), 0)], 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_format_is_recognized_and_read(tmp_path, name, is_compressed):
    form, content, expected, num_dropped = FILES[name]
    file = tmp_path / (f"{name}.gz" if is_compressed else name)
    file.write_bytes(gzip.compress(content.encode()) if is_compressed else content.encode())
    assert detect(file) == form
    options = DictionaryOptions(prefix="ncbigene" if form == "mentions" else None)
    found = list(read_concepts(file, form, options))
    assert [((item.id, *item.alternatives), item.names, item.species) for item in found] == expected
    assert sum(options.dropped.values()) == num_dropped


def test_columns_that_are_no_names_are_left_out_and_named(tmp_path):
    header = "hgnc_id\tsymbol\tname\tlocus_group\tstatus\talias_symbol\tentrez_id"
    row = 'HGNC:5\tA1BG\talpha-1-B glycoprotein\tprotein-coding gene\tApproved\t"A1B|ABG"\t1'
    (tmp_path / "hgnc.tsv").write_text(f"{header}\n{row}\n")
    options = DictionaryOptions()
    (found,) = read_concepts(tmp_path / "hgnc.tsv", "table", options)
    assert (found.id, found.names) == ("hgnc:5", ("A1BG", "alpha-1-B glycoprotein", "A1B", "ABG"))
    assert options.dropped == {"columns that are no names (locus_group, status, entrez_id)": 3}


def test_the_header_of_a_table_says_what_its_columns_are(tmp_path):
    (tmp_path / "own.csv").write_text("name,definition,DO id,species,synonyms\nAsthma,A disease,DOID:1,9606,a|b\n")
    (found,) = read_concepts(tmp_path / "own.csv", "table", DictionaryOptions())
    assert (found.id, found.names, found.species) == ("doid:1", ("Asthma", "a", "b"), 9606)
    (tmp_path / "own.tsv").write_text("LAB:1\tfat id\nLAB:2\tx\n")  # no header: it has an identifier
    assert [item.id for item in read_concepts(tmp_path / "own.tsv", "table", DictionaryOptions())] == ["LAB:1", "LAB:2"]


def test_sources_and_languages_of_the_umls_are_chosen(tmp_path):
    (tmp_path / "MRCONSO.RRF").write_text(RRF)
    options = DictionaryOptions(sources=frozenset(["MSH", "MSHGER"]), languages=frozenset())
    found = {item.id: item.names for item in read_concepts(tmp_path / "MRCONSO.RRF", "rrf", options)}
    assert found == {"umls:C0000001": ("Brustkrebs", "Cancer, Breast"), "umls:C0000002": ("Asthma",)}
    assert options.dropped == {"names of other sources": 1, "obsolete names": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("own.tsv", "Asthma\tBronchial\n", ":1: 'Asthma' shows no vocabulary"),
        ("own.tsv", "MESH:D1\n", ":1: one column"),
        ("own.tsv", "id\tname\tspecies\nMESH:D1\tx\thuman\n", ":2: species 'human' is no number"),
        ("own.csv", 'id,name\nMESH:D1,"x\n', "not CSV"),
        ("MRCONSO.RRF", RRF + "C0000003|ENG|\n", ":6: 2 columns"),
        ("gene_info", GENE + "9606\t1\n", ":5: 2 columns; the file has 7"),
        ("a.obo", "format-version: 1.2\n\n[Term]\nid: DOID:1\nname breast\n", ":5: 'name breast' is no line"),
        ("a.obo", "format-version: 1.2\n\n[Term]\nname: breast\n", ":3: the identifier is missing"),
        ("names.dmp", TAXONOMY + "x\n", ":5: 'x' is no line of names.dmp"),
        ("medic.txt", BIOSYN + "D2\n", ":3: no || between"),
        ("CTD_diseases.tsv", CTD + "a\tb\n", ":6: 2 columns; the file has 9"),
        ("desc.xml", MESH_XML.replace("D001249", ""), "has no DescriptorUI"),
        ("d.bin", MESH_ASCII.replace("UI = C000001\n", ""), ":8: the record has no line UI"),
        ("empty.tsv", "\n", "is empty"),
        ("own.tsv", "name\tid\nasthma\n", ":2: one column"),
        ("a.owl", '<?xml version="1.0"?>\n<rdf:RDF xmlns="x"/>\n', "OWL or JSON"),
        ("a.json", '{"graphs": []}', "OWL or JSON"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(InputError) as caught:
        list(read_concepts(file, detect(file), DictionaryOptions()))
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("written", "prefix", "curie"),
    [
        ("MESH:D003924", None, "mesh:D003924"), ("D003924", None, "mesh:D003924"), ("C0000001", None, "umls:C0000001"),
        ("NCBI Gene:3577", None, "ncbigene:3577"), ("NCBIGene:3577", None, "ncbigene:3577"),
        ("3577", "Gene", "ncbigene:3577"), ("3577", None, ""), ("-1", "mesh", ""), ("OMIM:1", None, "omim:1"),
        ("LAB:7", None, "LAB:7"), ("DB00001", None, "drugbank:DB00001"), ("NCBITaxon:9606", None, "ncbitaxon:9606"),
    ],
)  # fmt: skip
def test_identifiers_become_curies(written, prefix, curie):
    assert to_curie(written, prefix) == curie


def test_the_real_dictionaries_have_their_published_sizes(datasets):
    folder = datasets("linking_dictionaries")
    sizes = {
        "medic_06Jul2012.txt": ("biosyn", 11915, 76237, {}),
        "drugbank_vocabulary_names.csv": ("table", 19853, 72064, {}),
        "ncbi_taxon_common_names.tsv": ("table", 32389, 32389, {}),
        "symp.obo": ("obo", 1020 - 125, None, {"obsolete terms": 125}),
    }
    for name, (form, num_concepts, num_names, dropped) in sizes.items():
        options = DictionaryOptions(prefix="ncbitaxon")
        concepts = list(read_concepts(folder / name, detect(folder / name), options))
        assert detect(folder / name) == form
        assert len({item.id for item in concepts}) == num_concepts
        assert num_names in (None, sum(len(item.names) for item in concepts))
        assert options.dropped == dropped


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ("id\tpreferred\tsynonyms\tsource\nX:1\tcancer\ttumour|tumor\tWHO", ("cancer", "tumour", "tumor")),
        ("id\tsource\tprefLabel\taltLabel\nX:1\tWHO\tcancer\ttumour", ("cancer", "tumour")),
        ("id\tterm\tabbreviation\nX:1\tcancer\tCA", ("cancer", "CA")),
        ("id\tname\tfurther\nX:1\tcancer\ttumour", ("cancer", "tumour")),
        ("id\tde\tfr\nX:1\tKrebs\tcancer", ("Krebs", "cancer")),
        ('X:1\t"a"|"b" factor\t"c|d"', ('"a"', '"b" factor', "c", "d")),
    ],
)
def test_columns_of_names_are_kept_whatever_the_first_is_called(tmp_path, table, names):
    (tmp_path / "x.tsv").write_text(f"{table}\n")
    (found,) = read_concepts(tmp_path / "x.tsv", "table", DictionaryOptions())
    assert found.names == names
