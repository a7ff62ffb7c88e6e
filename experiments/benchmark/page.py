"""The page of a report: one HTML file that asks the network for nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from experiments.benchmark.tables import Block

HERE = Path(__file__).parent
TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#content">To the content</a>
<header><h1>{title}</h1><p class="soft">{lead}</p></header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="content">{sections}</main>
<footer>{footer}</footer>
<script type="application/json" id="gallery-data">{data}</script>
<script>{script}</script>
</body>
</html>
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
GALLERY = """<div class="gallery" id="gallery-view">
<p>Choose an image and a policy, go through the steps, and drag across the picture, or move the slider, to compare. The left and right arrow
keys go from step to step; within the gallery, up and down go from policy to policy.</p>
<div class="choices">
<label>image <select data-part="image"></select></label>
<label>policy <select data-part="policy"></select></label>
<label>compare with <select data-part="against"><option value="previous">the step before</option><option value="degraded" selected>the
degraded image</option><option value="clean">the clean image</option></select></label>
</div>
<fieldset class="steps" data-part="steps"><legend>step</legend></fieldset>
<div class="stage">
<div>
<div class="compare" data-part="compare"><img class="before" data-part="before" alt=""><img class="after" data-part="after" alt="">
<div class="edge"></div><span class="name-before" data-part="name-before"></span><span class="name-after" data-part="name-after"></span>
</div>
<label>before and after<input class="slider" data-part="slider" type="range" min="0" max="100" step="0.5" value="50"></label>
<p class="soft" data-part="said" aria-live="polite"></p>
</div>
<div class="scroll" tabindex="0" role="region" aria-label="Metrics of the step"><table><thead><tr><th scope="col">metric</th>
<th scope="col">before</th><th scope="col">after</th></tr></thead><tbody data-part="scores"></tbody></table></div>
</div>
<noscript><p>The gallery needs JavaScript.</p></noscript>
</div>"""


def page(title: str, lead: str, sections: Mapping[str, str], notes: Sequence[str], gallery: Mapping[str, Any]) -> str:
    """The whole file.

    Args:
        title, lead: plain text.
        sections: heading -> HTML.
        notes: plain text, beneath everything.
        gallery: what page.js reads.
    """
    ids = {name: re.sub(r"\W+", "-", name.lower()) for name in sections}
    return TEMPLATE.format(
        policy=POLICY,
        title=escape(title),
        lead=escape(lead),
        style=(HERE / "page.css").read_text(),
        links="".join(f'<li><a href="#{at}">{escape(name)}</a></li>' for name, at in ids.items()),
        sections="".join(
            f'<section aria-labelledby="{ids[name]}"><h2 id="{ids[name]}">{escape(name)}</h2>{html}</section>'
            for name, html in sections.items()
        ),
        footer="".join(f'<p class="soft">{escape(note)}</p>' for note in notes),
        # an end tag in a name would end the script
        data=json.dumps(gallery, allow_nan=False).replace("</", "<\\/"),
        script="".join((HERE / name).read_text() for name in ("compare.js", "page.js")),
    )


def table(block: Block) -> str:
    """A table that scrolls sideways by itself where the screen is narrow."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in block.heads)
    rows = []
    for at, row in enumerate(block.rows):
        cells = [f'<th scope="row">{escape(row[0])}</th>']
        cells += [
            f'<td class="best">{escape(text)}</td>' if (at, column) in block.bold else f"<td>{escape(text)}</td>"
            for column, text in enumerate(row[1:], start=1)
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    note = f'<p class="soft">{escape(block.note)}</p>' if block.note else ""
    body = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(block.title)}">{body}</div>{note}'


def folded(title: str, html: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{html}</details>"


def figures(charts: Mapping[str, str]) -> str:
    """Charts side by side, with their captions."""
    told = [f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>" for caption, svg in charts.items()]
    return f'<div class="charts">{"".join(told)}</div>'


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"
