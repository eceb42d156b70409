"""Speed of entity linking: a dictionary of many names built, embedded and searched, as JSON.

python -m benchmarks.linking --names 1000000 --dict FOLDER [--run RUN]: the names are random combinations of medical
word parts, so that n-grams have the frequencies of language; each concept has two.
"""

import argparse
import json
import random
import time
from pathlib import Path

STEMS = """cardi nephr hepat neur gastr enter derm oste arthr my encephal pulmon bronch rhin ot ophthalm hemat lymph
aden angi arteri phleb thromb cyst ureter prostat hyster mast thyr pancreat splen col rect proct stomat gloss laryng
trache chondr spondyl crani men gluc lip prote"""
ENDINGS = "itis osis oma opathy ectasia algia emia uria plasia trophy sclerosis malacia megaly lithiasis"
QUALIFIERS = """acute chronic familial hereditary juvenile congenital recessive dominant progressive idiopathic
secondary primary malignant benign recurrent severe mild atypical diffuse focal bilateral infantile adult
tropical viral"""


def names(count: int) -> list[str]:
    """Return random names; most are distinct."""
    rng = random.Random(1)
    stems, endings, qualifiers = STEMS.split(), ENDINGS.split(), QUALIFIERS.split()
    found = []
    for number in range(count):
        stem = rng.choice(stems) + "o" + rng.choice(stems) + rng.choice(endings)
        found.append(f"{rng.choice(qualifiers)} {rng.choice(qualifiers)} {stem} type {number % 997}")
    return found


def timed(times: dict[str, float], name: str, function: object, *arguments: object, **options: object) -> object:
    """Call a function and keep its seconds."""
    start = time.perf_counter()
    result = function(*arguments, **options)  # type: ignore[operator]
    times[name] = round(time.perf_counter() - start, 4)
    print(name, times[name], flush=True)
    return result


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=int, default=100_000)
    parser.add_argument("--dict", type=Path, required=True, dest="folder")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dtype", default="int8")
    arguments = parser.parse_args()
    from megabert.linking.dictionary import Dictionary
    from megabert.linking.dictionary_builder import BuildOptions, build_dictionary
    from megabert.linking.open_linker import load_linker

    times: dict[str, float] = {}
    if not arguments.folder.exists():
        table = arguments.folder.with_suffix(".tsv")
        lines = (f"LAB:{number // 2}\t{name}\n" for number, name in enumerate(names(arguments.names)))
        table.write_text("".join(lines))
        timed(times, "build_seconds", build_dictionary, [table], arguments.folder, BuildOptions())
    opened = timed(times, "open_seconds", Dictionary.open, arguments.folder)
    assert isinstance(opened, Dictionary)
    rng = random.Random(2)
    wanted = [opened.name(rng.randrange(len(opened))) for _ in range(arguments.queries)]
    mentions = [f"{name[:-2]}x" for name in wanted]
    timed(times, "exact_names_seconds", load_linker(arguments.folder).link, wanted)
    timed(times, "ngrams_seconds", load_linker(arguments.folder).link, mentions)
    if arguments.run:
        from megabert.linking.dense import embed_names

        timed(times, "embed_seconds", embed_names, opened, arguments.run, dtype=arguments.dtype)
        linker = load_linker(arguments.folder, arguments.run)
        linker.link(mentions[:10])
        timed(times, "ngrams_and_embeddings_seconds", linker.link, mentions)
    sizes = {str(file.relative_to(opened.folder)): file.stat().st_size for file in opened.folder.rglob("*.*")}
    groups = {"ngrams": "gram_", "vectors": "vectors-", "names": ""}
    total: dict[str, int] = dict.fromkeys(groups, 0)
    for name, size in sizes.items():
        total[next(group for group, start in groups.items() if name.startswith(start))] += size
    print(json.dumps({"names": len(opened), "queries": len(wanted), **times, "bytes": total}))


if __name__ == "__main__":
    main()
