"""Result rows and pictures as one HTML file that needs nothing else: no network, no other file.

Tables with intervals, bars by category, curves over steps, and the same prompts side by side, filtered by category and
verdict. Its content policy forbids every address but those inside the file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from hypernoise.evaluation.report import COLUMNS, INK, PALE

TILE = 160  # px, the longer side of a picture in the file
QUALITY = 88  # of its JPEG
TABLE = [COLUMNS[0], ("95 %", 0, "score_ci95", ".3f"), *COLUMNS[1:]]
COLORS = ("#7a7a7a", "#1e8c3c", "#2864c8", "#c86428", "#8c3c96", "#966e28", "#3296a0", "#c83c5a")  # of methods
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 560, 260, 48, 16, 150, 36  # px, of the curves


@dataclass(frozen=True)
class Shown:
    """One picture of an example: whose it is, whether it is right (None: not judged), and a word on it."""

    column: str
    picture: Path | Image.Image
    right: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Example:
    """A prompt with its pictures, one per column, from the same noise."""

    prompt: str
    category: str
    pictures: Sequence[Shown]


@dataclass(frozen=True)
class Table:
    """Columns are (name, field, format); rows are by name, and columns that none of them fills are left out."""

    heading: str
    columns: Sequence[tuple[str, str, str]]
    rows: Mapping[str, Mapping[str, Any]]


def first_of_each(categories: Sequence[str], number: int) -> list[int]:
    """The places of the first `number` of each category: none is picked by its looks or its verdict."""
    seen: dict[str, int] = {}
    chosen = []
    for place, name in enumerate(categories):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] <= number:
            chosen.append(place)
    return chosen


def report(title: str, about: Mapping[str, str], rows: Sequence[Mapping[str, Any]], examples: Sequence[Example]) -> str:
    """The whole file's text. `rows` are result rows; `about` stands above them, name by name."""
    return _page(title, about, [_table(rows), _bars(rows), _curves(rows), _gallery(examples)])


def tables(title: str, about: Mapping[str, str], found: Sequence[Table]) -> str:
    """The whole file's text, of tables alone."""
    return _page(title, about, [_lines(table.heading, table.columns, table.rows) for table in found])


def _page(title: str, about: Mapping[str, str], content: Sequence[str]) -> str:
    facts = "".join(f"<dt>{escape(name)}<dd>{escape(value)}" for name, value in about.items())
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width">',
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1><dl>{facts}</dl>",
        *content,
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _lines(heading: str, columns: Sequence[tuple[str, str, str]], rows: Mapping[str, Mapping[str, Any]]) -> str:
    shown = [column for column in columns if any(row.get(column[1]) is not None for row in rows.values())]
    head = "".join(f"<th>{escape(name)}" for name, _, _ in shown)
    body = ""
    for name, row in rows.items():
        cells = "".join(f"<td>{_cell(row.get(field), spec)}" for _, field, spec in shown)
        body += f"<tr><th>{escape(name)}{cells}"
    heading = f"<h2>{escape(heading)}</h2>"
    return f'{heading}<div class="wide"><table><thead><tr><th>{head}<tbody>{body}</table></div>'


def name_of(row: Mapping[str, Any]) -> str:
    """Method and steps, as the report calls a row."""
    return row["method"] if row["steps"] is None else f"{row['method']}, {row['steps']} step{'s' * (row['steps'] > 1)}"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns that no row fills are left out; time is in ms per image."""
    shown = [column for column in TABLE if any(row.get(column[2]) is not None for row in rows)]
    timed = any(row.get("seconds_per_image") is not None for row in rows)
    head = "".join(f"<th>{escape(heading)}" for heading, *_ in shown) + "<th>ms/image" * timed
    body = ""
    for row in rows:
        cells = "".join(f"<td>{_cell(row.get(field), spec)}" for _, _, field, spec in shown)
        seconds = row.get("seconds_per_image")
        cells += f"<td>{_cell(None if seconds is None else 1000 * seconds, '.1f')}" * timed
        body += f"<tr><th>{escape(name_of(row))}{cells}"
    return f'<h2>Results</h2><div class="wide"><table><thead><tr><th>{head}<tbody>{body}</table></div>'


def _cell(value: Any, spec: str) -> str:
    if value is None:
        return ""
    return f"{value[0]:{spec}} to {value[1]:{spec}}" if isinstance(value, list) else f"{value:{spec}}"


def _bars(rows: Sequence[Mapping[str, Any]]) -> str:
    """A group of bars per category, a bar per row; scores lie in [0, 1]."""
    names = list(dict.fromkeys(name for row in rows for name in row["categories"]))
    if not names:
        return ""
    groups = ""
    for name in names:
        bars = ""
        for number, row in enumerate(rows):
            if name in row["categories"]:
                value = row["categories"][name]
                bars += (
                    f'<div class="bar"><span>{escape(name_of(row))}</span><i style="width:{60 * value:.2f}%;'
                    f'background:{COLORS[number % len(COLORS)]}"></i><b>{value:.3f}</b></div>'
                )
        groups += f'<div class="group"><h3>{escape(name)}</h3>{bars}</div>'
    return f'<h2>By category</h2><div class="groups">{groups}</div>'


def _curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Score over steps (reward, where nothing is judged), a line per method with its 95 % intervals."""
    field = "score" if any(row["score"] is not None for row in rows) else "reward"
    found = [row for row in rows if row[field] is not None and row["steps"] is not None]
    steps = sorted({row["steps"] for row in found})
    if len(steps) < 2:
        return ""
    spans = [(row.get("score_ci95") if field == "score" else None) or [row[field]] * 2 for row in found]
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    room = 0.08 * (high - low) or 0.1
    low, high = low - room, high + room

    def across(count: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * steps.index(count) / (len(steps) - 1)

    def down(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    drawn = ""
    for i in range(5):
        value = low + (high - low) * i / 4
        drawn += f'<path d="M{LEFT} {down(value):.1f}H{WIDTH - RIGHT}" stroke="{PALE}"/>'
        drawn += f'<text x="{LEFT - 6}" y="{down(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
    for count in steps:
        drawn += f'<text x="{across(count):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{count}</text>'
    for number, method in enumerate(dict.fromkeys(row["method"] for row in found)):
        color = COLORS[number % len(COLORS)]
        own = [(row, span) for row, span in zip(found, spans, strict=True) if row["method"] == method]
        own.sort(key=lambda pair: pair[0]["steps"])
        line = "L".join(f"{across(row['steps']):.1f} {down(row[field]):.1f}" for row, _ in own)
        drawn += f'<path d="M{line}" stroke="{color}" fill="none" stroke-width="2"/>'
        for row, (least, most) in own:
            x = across(row["steps"])
            drawn += f'<path d="M{x:.1f} {down(least):.1f}V{down(most):.1f}" stroke="{color}"/>'
            drawn += f'<circle cx="{x:.1f}" cy="{down(row[field]):.1f}" r="3.5" fill="{color}"/>'
        last = own[-1][0]
        y = down(last[field]) + 4
        drawn += f'<text x="{across(last["steps"]) + 8:.1f}" y="{y:.1f}" fill="{color}">{escape(method)}</text>'
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" font-size="12" fill="{INK}">{drawn}</svg>'
    return f"<h2>{field} over steps</h2>{svg}"


def _gallery(examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    categories = list(dict.fromkeys(example.category for example in examples))
    columns = list(dict.fromkeys(shown.column for example in examples for shown in example.pictures))
    judged = any(shown.right is not None for example in examples for shown in example.pictures)
    picks = _select("category", {"": "every category", **{name: name for name in categories}})
    if judged:
        verdicts = {"": "right and wrong", "right": "right", "wrong": "wrong", "differ": "verdicts that differ"}
        picks += _select("verdict", verdicts) + _select("column", {"": "any of them", **{c: c for c in columns}})
    body = "".join(_example(example) for example in examples)
    return (
        f'<h2>Pictures</h2><p class="picks">{picks} <output id="count"></output></p>'
        f'<div id="examples">{body}</div><script>{SCRIPT}</script>'
    )


def _select(name: str, options: Mapping[str, str]) -> str:
    told = "".join(f'<option value="{escape(value)}">{escape(text)}' for value, text in options.items())
    return f'<select id="{name}" aria-label="{name}">{told}</select> '


def _example(example: Example) -> str:
    figures = ""
    for shown in example.pictures:
        kind = {True: "right", False: "wrong", None: "unjudged"}[shown.right]
        note = f"<br><small>{escape(shown.note)}</small>" if shown.note else ""
        figures += (
            f'<figure class="{kind}" data-column="{escape(shown.column)}">'
            f'<img alt="{escape(example.prompt)}" src="{_embedded(shown.picture)}">'
            f"<figcaption>{escape(shown.column)}{note}</figcaption></figure>"
        )
    return (
        f'<section data-category="{escape(example.category)}"><h3>{escape(example.prompt)}</h3>'
        f'<div class="row">{figures}</div></section>'
    )


def _embedded(picture: Path | Image.Image) -> str:
    if isinstance(picture, Path):
        with Image.open(picture) as opened:
            picture = opened.convert("RGB")
    scale = TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    kept = io.BytesIO()
    picture.convert("RGB").resize(size).save(kept, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(kept.getvalue()).decode()


STYLE = f"""
body {{ font: 15px/1.45 system-ui, sans-serif; color: {INK}; max-width: 1100px; margin: 2em auto; padding: 0 1em }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .1em 1em }} dt {{ color: #666 }} dd {{ margin: 0 }}
.wide {{ overflow-x: auto }} table {{ border-collapse: collapse; white-space: nowrap }}
th, td {{ padding: .25em .7em; text-align: right; border-bottom: 1px solid {PALE} }}
th:first-child {{ text-align: left }}
.groups {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 0 2em }}
h3 {{ font-size: 1em; margin: .6em 0 .2em }} .bar {{ display: flex; align-items: center; gap: .4em; font-size: .85em }}
.bar span {{ width: 9em; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }}
.bar i {{ height: .8em; min-width: 1px }} .bar b {{ font-weight: normal }}
.row {{ display: flex; flex-wrap: wrap; gap: .6em }} figure {{ margin: 0; width: {TILE}px; font-size: .8em }}
figure img {{ width: 100%; display: block; border: 3px solid {PALE}; box-sizing: border-box }}
.right img {{ border-color: #1e8c3c }} .wrong img {{ border-color: #c83228 }}
"""

# `matches` sees plain values, so that it can be tried without a browser.
SCRIPT = """
function matches(example, picked) {
  if (picked.category && example.category !== picked.category) return false;
  const seen = example.verdicts.filter(v => v.kind !== "unjudged");
  if (picked.verdict === "differ") return new Set(seen.map(v => v.kind)).size > 1;
  if (!picked.verdict) return true;
  return seen.some(v => v.kind === picked.verdict && (!picked.column || v.column === picked.column));
}
if (typeof document !== "undefined") {
  const pick = id => (document.getElementById(id) || {value: ""}).value;
  const sections = [...document.querySelectorAll("#examples > section")];
  const update = () => {
    const picked = {category: pick("category"), verdict: pick("verdict"), column: pick("column")};
    let shown = 0;
    for (const section of sections) {
      const verdicts = [...section.querySelectorAll("figure")].map(
        f => ({kind: f.className, column: f.dataset.column}));
      section.hidden = !matches({category: section.dataset.category, verdicts}, picked);
      shown += !section.hidden;
    }
    document.getElementById("count").textContent = shown + " of " + sections.length + " prompts";
  };
  for (const select of document.querySelectorAll("select")) select.addEventListener("change", update);
  update();
}
"""
