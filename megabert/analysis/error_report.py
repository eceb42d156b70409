"""Report of errors: counts by kind and by fact, as tables, TSV, JSON and a page with the costliest examples.

The page is one HTML file without scripts that loads nothing; what comes from data is escaped. It has a light and a
dark appearance, by the reader's setting.
"""

import html
import io
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from .error_cases import CORRECT, Case
from .run_comparison import table

# Characters of the text that are shown around an entity
CONTEXT = 120
_MAX_KINDS = 8

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #d5d5d5; --faint: #5d5d5d;
        --gold: #cfe8d5; --found: #f6d5c5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181a; --line: #3c4043; --faint: #a3a8ad; --gold: #1f5132; --found: #6b3016; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem;
       margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .7rem; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.text { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
small { color: var(--faint); }
mark { color: inherit; border-radius: 3px; padding: 0 2px; }
mark.gold { background: var(--gold); } mark.found { background: var(--found); }
mark.both { background: linear-gradient(var(--gold) 50%, var(--found) 50%); }
"""
MARKS = {"gold": "gold", "found": "predicted", "both": "both"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def summarize(found: Sequence[Case]) -> dict[str, Any]:
    """Count the cases by kind, and by kind for each value of each fact."""
    groups: dict[str, dict[str, Counter[str]]] = {}
    for case in found:
        for fact, value in case.facts.items():
            groups.setdefault(fact, {}).setdefault(value, Counter())[case.kind] += 1
    kinds = Counter(case.kind for case in found)
    return {
        "cases": len(found),
        "errors": len(found) - kinds[CORRECT],
        "kinds": dict(kinds.most_common()),
        "groups": {
            fact: {value: dict(counts) for value, counts in sorted(values.items(), key=lambda pair: _order(*pair))}
            for fact, values in groups.items()
        },
    }


def _order(value: str, counts: Counter[str]) -> tuple[int, int, str]:
    """Sort groups of numbers by number, others by frequency."""
    number = value.rstrip("+").partition("-")[0]
    return (0, int(number), value) if number.isdigit() else (1, -counts.total(), value)


def shown_kinds(summary: dict[str, Any]) -> list[str]:
    """List the most frequent kinds of errors; the columns of the tables."""
    return [kind for kind in summary["kinds"] if kind != CORRECT][:_MAX_KINDS]


def group_rows(summary: dict[str, Any], fact: str) -> list[list[str]]:
    """Make the rows of a fact's table: value, cases, share that is correct, number of each kind of error."""
    rows = []
    for value, counts in summary["groups"][fact].items():
        total = sum(counts.values())
        share = f"{100 * counts.get(CORRECT, 0) / total:.1f}"
        rows.append([value, f"{total:,}", share, *(str(counts.get(kind, 0)) for kind in shown_kinds(summary))])
    return rows


def to_text(summary: dict[str, Any]) -> str:
    """Format the summary as tables."""
    lines = [f"{summary['errors']:,} errors in {summary['cases']:,} cases", ""]
    rows = [[kind, f"{count:,}", f"{100 * count / summary['cases']:.1f}"] for kind, count in summary["kinds"].items()]
    lines += table(["kind", "number", "%"], rows)
    for fact in summary["groups"]:
        lines += ["", *table([fact, "cases", "correct %", *shown_kinds(summary)], group_rows(summary, fact))]
    return "\n".join(lines)


def costliest(found: Sequence[Case]) -> list[Case]:
    """Sort the errors, the costliest first."""
    return sorted((case for case in found if case.kind != CORRECT), key=lambda case: -case.cost)


def in_turn(found: Sequence[Case]) -> list[Case]:
    """Sort the errors so that kinds take turns: the costliest of each kind, then the second of each, and so on.

    For costs that do not compare between kinds, such as losses: a network is less sure of a rare tag than of O. A wrong
    type is one kind, with or without a wrong boundary.
    """
    kinds: Counter[str] = Counter()
    turns = []
    for case in costliest(found):
        kind = case.kind.rpartition(" ")[2]
        turns.append((kinds[kind], case))
        kinds[kind] += 1
    return [case for _, case in sorted(turns, key=lambda pair: pair[0])]


def to_tsv(found: Sequence[Case], order: Callable[[Sequence[Case]], list[Case]] = costliest) -> str:
    """Write the errors as a table, by default the costliest first; a tab or line break of the data becomes a blank."""
    facts = list(dict.fromkeys(name for case in found for name in case.facts))
    output = io.StringIO()
    output.write("\t".join(["id", "kind", "gold", "predicted", "cost", *facts, "text"]) + "\n")
    for case in order(found):
        values = [case.example, case.kind, case.gold, case.predicted, f"{case.cost:.4f}"]
        values += [case.facts.get(name, "") for name in facts] + [case.text]
        output.write("\t".join(" ".join(_literal(value).split()) for value in values) + "\n")
    return output.getvalue()


def _literal(value: str) -> str:
    """Keep a spreadsheet from taking a value of the data as a formula."""
    return f"'{value}" if value[:1] in ("=", "+", "@") or (value[:1] == "-" and len(value) > 1) else value


def to_page(
    found: Sequence[Case],
    title: str,
    limit: int,
    of: str = "Errors of",
    order: Callable[[Sequence[Case]], list[Case]] = costliest,
) -> str:
    """Write the page: counts by kind and by fact, then the first errors in an order, by default the costliest."""
    summary = summarize(found)
    errors = order(found)[:limit]
    kinds = [[kind, f"{count:,}", f"{100 * count / summary['cases']:.1f}"] for kind, count in summary["kinds"].items()]
    parts = [_html_table(["kind", "number", "%"], kinds)]
    for fact in summary["groups"]:
        head = [fact, "cases", "correct %", *shown_kinds(summary)]
        parts += [f"<h2>By {html.escape(fact)}</h2>", _html_table(head, group_rows(summary, fact))]
    parts.append(f"<h2>The first {len(errors):,} errors</h2>")
    legend = (f'<mark class="{style}">{name}</mark>' for style, name in MARKS.items())
    parts.append(f"<p>{' '.join(legend)}</p>")
    rows = "".join(map(_html_error, errors))
    titles = '<tr><th>error</th><th class="n">cost</th><th>gold</th><th>predicted</th><th>text</th></tr>'
    parts.append(f'<div class="wide"><table>{titles}\n{rows}</table></div>')
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{of} {name}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><h1>{of} {name}</h1>\n<p>{summary['errors']:,} errors in {summary['cases']:,} cases.</p>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _html_error(case: Case) -> str:
    kind, name, gold, predicted = map(html.escape, (case.kind, case.example, case.gold, case.predicted))
    return (
        f'<tr><td>{kind}<br><small>{name}</small></td><td class="n">{case.cost:.2f}</td><td class="text">{gold}</td>'
        f'<td class="text">{predicted}</td><td class="text">{_marked(case)}</td></tr>\n'
    )


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        first, *others = (html.escape(cell) for cell in cells)
        return f"<tr><{tag}>{first}</{tag}>" + "".join(f'<{tag} class="n">{cell}</{tag}>' for cell in others) + "</tr>"

    return '<div class="wide"><table>' + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table></div>"


def _marked(case: Case) -> str:
    """Show the text around the gold and the predicted characters, both marked."""
    spans = [span for span in case.spans if span[1] > span[0]]
    if not spans:
        return html.escape(case.text[: 4 * CONTEXT]) + ("..." if len(case.text) > 4 * CONTEXT else "")
    first = max(0, min(start for start, _ in spans) - CONTEXT)
    last = min(len(case.text), max(end for _, end in spans) + CONTEXT)
    edges = sorted({first, last, *(min(max(edge, first), last) for span in spans for edge in span)})
    parts = ["..." if first else ""]
    for start, end in itertools.pairwise(edges):
        in_gold, in_found = (low <= start and end <= high and low < high for low, high in case.spans)
        style = "both" if in_gold and in_found else "gold" if in_gold else "found" if in_found else ""
        piece = html.escape(case.text[start:end])
        parts.append(f'<mark class="{style}">{piece}</mark>' if style else piece)
    return "".join([*parts, "..." if last < len(case.text) else ""])
