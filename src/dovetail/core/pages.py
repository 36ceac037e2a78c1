"""The report: one HTML file that needs nothing beside it."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light; --ink: #2b2f36; --soft: #6a727c; --line: #e3e6ea; --warm: #d1603d; --paper: #fbfbfa; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .8rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
.sub { color: var(--soft); margin: 0; }
.verdict { border-left: 5px solid var(--soft); background: #fff; padding: 1rem 1.2rem; margin: 1.4rem 0; font-size: 1.1rem; }
.verdict.promote { border-color: #2f8f5b; }
.verdict.hold { border-color: var(--warm); }
td.outcome { font-weight: 600; white-space: nowrap; }
tr.won td.outcome { color: #2f8f5b; }
tr.lost td.outcome { color: var(--warm); }
tr.decided { background: #f4f6f1; }
tr.decided td:first-child { border-left: 4px solid var(--ink); }
td.figure { white-space: nowrap; font-variant-numeric: tabular-nums; }
.verdict b { text-transform: uppercase; letter-spacing: .04em; font-size: .8em; display: block; color: var(--soft); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem; }
.fact { background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.fact strong { display: block; font-size: 1.3rem; }
.fact span { color: var(--soft); font-size: .85rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; }
figcaption { font-size: .82rem; color: var(--soft); margin-top: .4rem; }
.cells { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: .4rem; }
.cells span { font-size: .72rem; color: var(--soft); text-align: center; display: block; }
img { max-width: 100%; display: block; }
.cells img { width: 100%; border-radius: .25rem; }
table { border-collapse: collapse; width: 100%; background: #fff; font-size: .9rem; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
pre { background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto; }
.strip { display: flex; flex-wrap: wrap; gap: .4rem; }
.strip img { width: 4.2rem; border-radius: .25rem; }
"""


def escape(text: object) -> str:
    """Safe inside HTML, attributes too."""
    return html.escape(str(text), quote=True)


def picture(data_uri: str, alt: str) -> str:
    """An image whose bytes are in the page."""
    return f'<img src="{data_uri}" alt="{escape(alt)}">'


def rows(header: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    """A table."""
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    lines = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in body)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def section(title: str, *parts: str) -> str:
    """A heading and what belongs under it; nothing where there is nothing."""
    body = "\n".join(p for p in parts if p)
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>" if body else ""


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{escape(text)}</p>"


def verdict_box(verdict: Mapping[str, Any]) -> str:
    """The decision, and the sentence of what decided it."""
    kind = str(verdict["decision"]).replace(" ", "-")
    head = f"<b>{escape(verdict['decision'])}</b>"
    return f'<div class="verdict {kind}">{head}<p>{escape(verdict["headline"])}</p><p class="sub">{escape(verdict["sentence"])}</p></div>'


OUTCOMES = {"won": "won", "even": "no difference", "lost": "lost", "cannot judge": "cannot judge"}
GUARD_OUTCOMES = OUTCOMES | {"even": "kept", "won": "kept", "lost": "broken"}


def axis_table(axes: Sequence[Mapping[str, Any]], decided_by: Sequence[str]) -> str:
    """One row an axis: what came out, the figure with its interval, the sentence; those that decided are marked."""
    body = []
    for axis in axes:
        words = GUARD_OUTCOMES if axis["role"] == "guard" else OUTCOMES
        marked = " decided" if axis["name"] in decided_by else ""
        said = f"{axis['sentence']} {axis['advice']}".strip()
        role = {"target": "must be won", "guard": "guard", "information": ""}[axis["role"]]
        body.append(
            f'<tr class="{escape(axis["outcome"].replace(" ", "-"))}{marked}"><td>{escape(axis["name"])}</td><td>{role}</td>'
            f'<td class="outcome">{words[axis["outcome"]]}</td><td class="figure">{_figure(axis)}</td><td>{escape(said)}</td></tr>'
        )
    head = "".join(f"<th>{h}</th>" for h in ("axis", "", "outcome", "figure (95 % interval)", "what it says"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _figure(axis: Mapping[str, Any]) -> str:
    found = axis["interval"]
    if not found or found["low"] is None or found["high"] is None:
        return ""
    share = "share" in axis["unit"]
    sign = "" if axis["name"] in ("copies", "broken", "variety") else "+"
    mean, low, high = (format(found[k], f"{sign}.0%" if share else f"{sign}.2f") for k in ("mean", "low", "high"))
    return escape(f"{mean} ({low} to {high})")


def fact_boxes(facts: Sequence[tuple[str, str]]) -> str:
    """(value, what it is) in boxes."""
    return (
        '<div class="facts">'
        + "".join(f'<div class="fact"><strong>{escape(v)}</strong><span>{escape(k)}</span></div>' for v, k in facts)
        + "</div>"
    )


def side_by_side(items: Sequence[tuple[Sequence[tuple[str, str]], str]], wide: bool = False) -> str:
    """Figures of two or three labelled pictures each, with a caption under them: ([(label, data URI)], caption)."""
    figures = []
    for pictures, caption in items:
        cells = "".join(
            f"<div>{picture(uri, f'{label}: {caption}')}<span>{escape(label)}</span></div>" for label, uri in pictures
        )
        figures.append(f'<figure><div class="cells">{cells}</div><figcaption>{escape(caption)}</figcaption></figure>')
    return f'<div class="{"" if wide else "pairs"}">{"".join(figures)}</div>' if figures else ""


def strip(items: Sequence[tuple[str, str]]) -> str:
    """Small pictures in a row: (data URI, alt)."""
    return '<div class="strip">' + "".join(picture(uri, alt) for uri, alt in items) + "</div>" if items else ""


def page(title: str, subtitle: str, digest: str, parts: Sequence[str]) -> str:
    """The whole document. `digest` says what it was made from."""
    body = "\n".join(p for p in parts if p)
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style>'
    )
    top = f'<h1>{escape(title)}</h1><p class="sub">{escape(subtitle)}</p>'
    return (
        f'<!doctype html>\n<!-- made from {digest} -->\n<html lang="en"><head>{head}</head>\n'
        f"<body><main>{top}\n{body}\n</main></body></html>\n"
    )
