"""The table of published checkpoints: names, addresses, sizes and licences.

Source: names, architectures and addresses of single files are those of NeMo 1.0.2 (MEGATRON_CONFIG_MAP in
nemo/collections/nlp/modules/common/megatron/megatron_utils.py) and of NeMo 1.23 (MegatronBertModel's
list_available_models), archives those of Megatron-LM's README, pages those of NeMo's documentation; GatorTron's are
from its model cards on the Hugging Face hub, its sizes from Yang et al. 2022 (arXiv:2203.03540).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Role = Literal["vocabulary", "merges", "config", "weights"]
ROLES: tuple[Role, ...] = (
    "vocabulary",
    "merges",
    "config",
    "weights",
)  # small ones first


@dataclass(frozen=True)
class NetworkSizes:
    """The sizes of an encoder, named as in the JSON configurations of Megatron-LM and NeMo."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    max_position_embeddings: int
    num_tokentypes: int = 2


@dataclass(frozen=True)
class Vocabulary:
    """A model's vocabulary. `size` is the number of tokens without padding; None where it is unknown."""

    name: str
    size: int | None
    is_cased: bool


@dataclass(frozen=True)
class File:
    """One file of a published model. `size` (bytes) and `sha256` are None where no source gives them."""

    role: Role
    name: str
    format: Literal["torch", "zip", "nemo", "vocabulary", "json", "merges"]
    url: str
    mirrors: tuple[str, ...] = ()  # of the same bytes, verified by the SHA-256
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Published:
    """A published name. Several files of one role are alternatives, of which the first is downloaded."""

    name: str
    summary: str
    vocabulary: Vocabulary
    licence: str
    files: tuple[File, ...]
    page: str
    note: str = ""
    architecture: NetworkSizes | None = None
    aliases: tuple[str, ...] = ()
    size: int | None = None  # approximate bytes of the weights; `note` gives the source
    is_shipped: bool = False  # included in the package, in encoders/<name>

    @property
    def num_parameters(self) -> int | None:
        """Count the encoder's parameters: embeddings, layers and final norm, but neither pooler nor heads."""
        if self.architecture is None or self.vocabulary.size is None:
            return None
        shape, hidden = self.architecture, self.architecture.hidden_size
        rows = self.vocabulary.size + shape.max_position_embeddings + shape.num_tokentypes
        # A layer: qkv and out 4 h^2 + 4 h, an MLP of four times the width 8 h^2 + 5 h, two norms 4 h.
        return rows * hidden + shape.num_layers * (12 * hidden**2 + 13 * hidden) + 2 * hidden


_NGC = "https://api.ngc.nvidia.com/v2/models/nvidia"
_PAGE = "https://ngc.nvidia.com/catalog/models/nvidia"
_S3 = "https://s3.amazonaws.com/models.huggingface.co/bert"
_HUB = "https://huggingface.co"

_345M = NetworkSizes(num_layers=24, hidden_size=1024, num_attention_heads=16, max_position_embeddings=512)
_UNCASED = Vocabulary("bert-large-uncased", 30_522, is_cased=False)
_CASED = Vocabulary("bert-large-cased", 28_996, is_cased=True)

_NGC_LICENCE = "not known here: read it on the page"
_BERT_LICENCE = "Apache-2.0 (the vocabulary, from Google's BERT)"
_MAYBE_GONE = (
    "In January 2025 users reported that NGC answered 410 Gone for its archives of this model. If so, sign "
    "in on the page or ask someone who has the file. The size is an estimate: that of BioMegatron."
)
_UNCASED_VERSIONS = "NeMo took version v0.0, Megatron-LM and transformers name v0.1_uncased. "
_VOCABULARY_BESIDE = (
    "Published without heads. NeMo takes the vocab.txt beside the weights and names {} as the tokenizer. The "
    "size is that of a conversion for transformers in half precision, EMBO/{}."
)


def _bert_vocabulary(name: str, size: int, sha256: str) -> File:
    # The first address is from Megatron-LM's README. Sizes and hashes were computed from the files.
    first, mirror = f"{_S3}/{name}-vocab.txt", f"{_HUB}/google-bert/{name}/resolve/main/vocab.txt"
    return File("vocabulary", "vocab.txt", "vocabulary", first, (mirror,), size, sha256)


def _megatron_bert_345m(version: str, archive: str) -> tuple[File, File]:
    # The single file comes first: NGC does not send the length of the archive, which therefore cannot be resumed.
    folder, path = f"{_NGC}/megatron_bert_345m/versions", "files/release/mp_rank_00/model_optim_rng.pt"
    return (
        File("weights", "model_optim_rng.pt", "torch", f"{folder}/{version}/{path}"),
        File("weights", f"megatron_bert_345m_{archive}.zip", "zip", f"{folder}/{archive}/zip"),
    )


def _biomegatron_345m(casing: str) -> tuple[File, File]:
    folder = f"{_NGC}/biomegatron345m{casing}/versions/0/files"
    return (
        File("weights", "MegatronBERT.pt", "torch", f"{folder}/MegatronBERT.pt"),
        File("vocabulary", "vocab.txt", "vocabulary", f"{folder}/vocab.txt"),
    )


def _nemo_archive(model: str, file: str, *, name: str, summary: str, vocabulary: Vocabulary) -> Published:
    # The addresses of MegatronBertModel.list_available_models in NeMo 1.23.
    url = f"{_NGC}/nemo/{model}/versions/1/files/{file}.nemo"
    return Published(
        name=name,
        summary=summary,
        architecture=_345M,
        vocabulary=vocabulary,
        licence=_NGC_LICENCE,
        files=(File("weights", f"{file}.nemo", "nemo", url),),
        page=f"https://catalog.ngc.nvidia.com/orgs/nvidia/teams/nemo/models/{model}",
        note="One .nemo archive with its vocabulary in it. Its size and hash are not known here.",
        aliases=(model,),
    )


def _hub_folder(repository: str) -> tuple[File, ...]:
    address = f"{_HUB}/{repository}/resolve/main"
    return (
        File("vocabulary", "vocab.txt", "vocabulary", f"{address}/vocab.txt"),
        File("config", "config.json", "json", f"{address}/config.json"),
        File("weights", "pytorch_model.bin", "torch", f"{address}/pytorch_model.bin"),
    )


_UNCASED_FILE = _bert_vocabulary(
    "bert-large-uncased", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
)
_CASED_FILE = _bert_vocabulary(
    "bert-large-cased", 213_450, "eeaa9875b23b04b4c54ef759d03db9d1ba1554838f8fb26c5d96fa551df93d02"
)

_MINI = NetworkSizes(num_layers=6, hidden_size=320, num_attention_heads=5, max_position_embeddings=512)

_ROWS = (
    *(
        Published(
            name=f"megatron-bert-345m-{case}",
            summary=f"Megatron-BERT 345M, {case}: Wikipedia, RealNews, OpenWebText, CC-Stories",
            architecture=_345M,
            vocabulary=vocabulary,
            licence=_NGC_LICENCE,
            size=size,
            files=(*_megatron_bert_345m(version, f"v0.1_{case}"), vocabulary_file),
            page=f"{_PAGE}:megatron_bert_345m",
            note=f"{note}{_MAYBE_GONE}",
        )
        for case, vocabulary, vocabulary_file, size, version, note in (
            ("uncased", _UNCASED, _UNCASED_FILE, 668_000_000, "v0.0", _UNCASED_VERSIONS),
            ("cased", _CASED, _CASED_FILE, 665_000_000, "v0.1_cased", ""),
        )
    ),
    *(
        Published(
            name=f"biomegatron-bert-345m-{case}",
            summary=f"BioMegatron 345M, {case}: Megatron-BERT, further pre-trained on PubMed",
            architecture=_345M,
            vocabulary=vocabulary,
            licence=_NGC_LICENCE,
            size=size,
            files=_biomegatron_345m(case),
            page=f"{_PAGE}:biomegatron345m{case}",
            note=_VOCABULARY_BESIDE.format(f"bert-large-{case}", f"BioMegatron345m{case.title()}"),
        )
        for case, vocabulary, size in (("uncased", _UNCASED, 668_000_000), ("cased", _CASED, 665_000_000))
    ),
    *(
        _nemo_archive(
            f"biomegatron345m_biovocab_{size}_{case}",
            f"BioMegatron345m-biovocab-{size}-{case}",
            name=f"biomegatron-bert-345m-biovocab-{size}-{case}",
            summary=f"BioMegatron 345M, {case}: pre-trained on PubMed with a biomedical vocabulary of {size} words",
            vocabulary=Vocabulary(f"biovocab-{size}-{case}", None, is_cased=case == "cased"),
        )
        for size in ("30k", "50k")
        for case in ("cased", "uncased")
    ),
    *(
        _nemo_archive(
            f"megatron_bert_345m_{case}",
            f"megatron_bert_345m_{case}",
            name=f"megatron-bert-345m-{case}-nemo",
            summary=f"Megatron-BERT 345M, {case}, as a .nemo archive of NeMo 1.6 and later",
            vocabulary=vocabulary,
        )
        for case, vocabulary in (("cased", _CASED), ("uncased", _UNCASED))
    ),
    Published(
        name="megatron-gpt2-345m",
        summary="Megatron-LM's GPT-2 345M: Wikipedia, RealNews, OpenWebText, CC-Stories",
        architecture=NetworkSizes(24, 1024, 16, 1024, 0),
        vocabulary=Vocabulary("gpt2", 50_257, is_cased=True),
        licence=_NGC_LICENCE,
        files=(
            File("weights", "megatron_lm_345m_v0.0.zip", "zip", f"{_NGC}/megatron_lm_345m/versions/v0.0/zip"),
            File("vocabulary", "vocab.json", "json", f"{_S3}/gpt2-vocab.json"),
            File("merges", "merges.txt", "merges", f"{_S3}/gpt2-merges.txt"),
        ),
        page=f"{_PAGE}:megatron_lm_345m",
        note="A causal network: for pre-training and for inspect and convert, not for the tasks of BERT.",
        aliases=("megatron_lm_345m",),
    ),
    *(
        Published(
            name=name.lower(),
            summary=f"GatorTron {size}, {text}",
            architecture=architecture,
            vocabulary=Vocabulary("gatortron", None, is_cased=False),
            licence="Apache-2.0 (model card)",
            files=_hub_folder(f"UFNLP/{name}") if size == "345M" else (),
            page=f"{_HUB}/UFNLP/{name}",
            note="transformers' layout, megatron-bert."
            if size == "345M"
            else "The names of its weight files are not known here: download the folder and give its path.",
        )
        for name, size, architecture, text in (
            ("gatortron-base", "345M", _345M, "pre-trained on clinical notes, PubMed and Wikipedia"),
            ("gatortronS", "345M", _345M, "pre-trained on synthetic clinical text, PubMed and Wikipedia"),
            ("gatortron-medium", "3.9B", NetworkSizes(48, 2560, 40, 512), "pre-trained as gatortron-base"),
            ("gatortron-large", "8.9B", NetworkSizes(56, 3584, 56, 512), "pre-trained as gatortron-base"),
        )
    ),
    *(
        Published(
            name=f"megatron-bert-{case}",
            summary=f"{case.title()} weights of your own: give them with --bert_checkpoint and --bert_config",
            vocabulary=vocabulary,
            licence=_BERT_LICENCE,
            files=(vocabulary_file,),
            page=f"{_HUB}/google-bert/bert-large-{case}",
        )
        for case, vocabulary, vocabulary_file in (
            ("uncased", _UNCASED, _UNCASED_FILE),
            ("cased", _CASED, _CASED_FILE),
        )
    ),
    *(
        Published(
            name=name,
            summary=f"A small Megatron-BERT of megabert, uncased, pre-trained on {text} text; included in the package",
            architecture=_MINI,
            vocabulary=Vocabulary("megabert-mini", 12_288, is_cased=False),
            licence=licence,
            files=(),
            page="docs/pretraining.md",
            note="Its card, with the corpora and their licences, is beside its weights.",
            size=23_400_000,
            is_shipped=True,
        )
        for name, text, licence in (
            ("megabert-mini-uncased", "general", "Apache-2.0; its texts: CC BY-SA 3.0, CC BY 4.0, public domain"),
            ("biomegabert-mini-uncased", "biomedical", "Apache-2.0; its texts: CC BY and others, see the card"),
        )
    ),
)
PUBLISHED: Mapping[str, Published] = {row.name: row for row in _ROWS}
