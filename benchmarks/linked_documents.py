"""From text to linked diseases: train a tagger, annotate documents with identifiers, score them by HunFlair2's rule.

python -m benchmarks.linked_documents --train NCBI_TRAIN --dev NCBI_DEV --dict MEDIC.dict[,RUN] --out FOLDER [--seed 0]
[--encoder NAME] [SETTING=VALUE ...]: PubTator files of NCBI-disease or BC5CDR, of which the diseases are used. A second
call with the same folder and another dictionary keeps the tagger. Prints the scores as one JSON object; recipe:
docs/results.md.
"""

import argparse
import json
import re
from pathlib import Path

from megabert.cli import main as megabert_main
from megabert.cli.linking_scores import score_linking

KINDS = re.compile(r"\t(SpecificDisease|DiseaseClass|CompositeMention|Modifier)\t")
FAULT = "\t711\t761\tgeneralized epilepsy"
"""The line of NCBI-disease whose offsets are not those of its words."""
SETTINGS = [
    "trainer.max_epochs=5",
    "model.train_ds.batch_size=16",
    "model.optim.lr=3e-4",
    "trainer.val_check_interval=0",
]


def diseases(source: Path, target: Path) -> Path:
    """Copy the documents with their diseases under one type, without other entities and relations."""
    lines = KINDS.sub("\tDisease\t", source.read_text(encoding="utf-8")).splitlines()
    kept = [line for line in lines if "\t" not in line or ("\tDisease\t" in line and FAULT not in line)]
    target.write_text("\n".join(kept) + "\n\n", encoding="utf-8")
    return target


def call(*words: object) -> None:
    """Run a command of megabert; its failure ends the benchmark."""
    if code := megabert_main([str(word) for word in words]):
        raise SystemExit(code)


def main() -> None:
    """Train where there is no tagger yet, annotate and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--dict", required=True, dest="link", help="DICT[,RUN]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", default="biomegabert-mini-uncased", help="checkpoint from which the tagger starts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("settings", nargs="*")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    train, dev = diseases(arguments.train, out / "train.pubtator"), diseases(arguments.dev, out / "dev.pubtator")
    run = out / "tagger"
    if not run.exists():
        files = [f"model.train_ds.file={train}", f"model.validation_ds.file={dev}", f"seed={arguments.seed}"]
        encoder = [
            f"model.language_model.pretrained_model_name={arguments.encoder}",
            f"exp_manager.explicit_log_dir={run}",
        ]
        device = [f"trainer.accelerator={arguments.accelerator}"]
        call("train", "token_classification", *files, *encoder, *SETTINGS, *device, *arguments.settings)
    dictionary = arguments.link.partition(",")[0]
    linked = out / f"{Path(dictionary).stem}{'-dense' if ',' in arguments.link else ''}.pubtator"
    link = ["--link", f"Disease={arguments.link}", "--accelerator", arguments.accelerator]
    call("annotate", dev, "--existing", "replace", "--entities", run, *link, "-o", linked)
    scores = score_linking(dev, linked, ["type=Disease", f"dictionary={dictionary}"])
    print(json.dumps({"documents": str(arguments.dev), "link": arguments.link, "seed": arguments.seed, **scores}))


if __name__ == "__main__":
    main()
