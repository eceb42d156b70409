"""Folders of the Hugging Face hub by their names, `org/name`: through huggingface_hub, with its cache and settings.

HF_HOME, HF_ENDPOINT (a mirror), HF_HUB_OFFLINE and a token of `hf auth login` count as they do in transformers.
"""

import re
from pathlib import Path

from ..errors import CheckpointError
from .huggingface.sentence_modules import MODULE_FILES

# Names without an organization that NeMo's and transformers' users know.
ALIASES = {
    name: f"google-bert/{name}"
    for name in ("bert-base-uncased", "bert-base-cased", "bert-large-uncased", "bert-large-cased")
} | {"gpt2": "openai-community/gpt2"}
SMALL_FILES = (
    "config.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
    "added_tokens.json", "special_tokens_map.json", *MODULE_FILES,
)  # fmt: skip
# Weights by preference: the second only where a folder has none of the first.
WEIGHTS = (
    ("model*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
)


def is_hub_name(name: str) -> bool:
    """Whether a name is of the form org/name, or one of ALIASES."""
    return name in ALIASES or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is not None


def fetch_from_hub(name: str) -> Path:
    """Find a hub's folder in huggingface_hub's cache, or download what is needed of it.

    Raises CheckpointError if it is neither in the cache nor to be reached, or holds no weights.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name = ALIASES.get(name, name)
    folder = Path()
    try:
        for patterns in WEIGHTS:
            folder = Path(snapshot_download(name, allow_patterns=[*SMALL_FILES, *patterns]))
            if any(path for pattern in patterns for path in folder.glob(pattern)):
                return folder
    # Its bases are OSError, as which an absent entry and offline mode count, and the HTTP library's own error.
    except HfHubHTTPError.__bases__ as error:  # type: ignore[misc]
        cause = error.__cause__ or error
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise CheckpointError(
            f"{name} is no file or folder here, is not in the cache of huggingface_hub (HF_HOME), and cannot be "
            f"downloaded from the hub: {reason.rstrip('.')}. Without network, fetch it elsewhere (hf download {name}) "
            "and give the folder's path."
        ) from None
    raise CheckpointError(f"{name} holds no weights ({', '.join(patterns[0] for patterns in WEIGHTS)}): {folder}.")
