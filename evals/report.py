"""The report: one HTML page that stands alone, pictures and all."""

from __future__ import annotations

import base64
import html
import json
from typing import Any

from evals.evidence import Evidence
from evals.plots import picture

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--good:#1a7f37;--bad:#c0312b} body{font:16px/1.5
system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}
.verdict{display:inline-block;padding:.2rem .8rem;border-radius:1rem;color:#fff;background:var(--good)}
.no{background:var(--bad)}table{border-collapse:collapse;width:100%} td,th{border-bottom:1px solid
var(--line);padding:.3rem .6rem;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%;background:#fff;border-radius:.5rem}
pre{overflow:auto;max-height:30rem;font-size:.8rem}.fail{color:var(--bad);font-weight:600}
"""


def report_page(evidence: Evidence, title: str) -> str:
    """The evidence as a page: verdict, reasons, figures, pictures, every check, settings, the raw record."""
    good = evidence.verdict.publishable
    drawn = picture(evidence)
    image = "" if drawn is None else base64.b64encode(drawn).decode()
    shown = (
        f'<img alt="Losses, divergence, layers, flips" src="data:image/png;base64,{image}">' if image else ""
    )
    remarks = "".join(f"<li>{_esc(text)}</li>" for text in (*evidence.reasons, *evidence.notes))
    record = _esc(json.dumps(evidence.to_json(), indent=1, ensure_ascii=False))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Evidence: {_esc(title)}</title><style>{_STYLE}</style></head><body>
<h1>Evidence</h1><p>{_esc(title)}</p>
<p><span class="verdict{"" if good else " no"}">{_esc(evidence.verdict.value)}</span></p>
<ul>{remarks}</ul>
<h2>Figures</h2><table>{_rows(evidence.headline())}</table>
<h2>Pictures</h2>{shown}
<h2>Checks</h2><table><tr><th>check<th>measured<th>limit<th></tr>{_checks(evidence)}</table>
<h2>Settings</h2><table>{_rows([(key, _plain(value)) for key, value in evidence.settings.items()])}</table>
<h2>The whole record</h2><details><summary>evidence.json</summary><pre>{record}</pre></details>
</body></html>
"""


def _esc(text: str) -> str:
    return html.escape(text, quote=True)


def _plain(value: Any) -> str:
    """A setting as people write it; of several, those that are set."""
    if isinstance(value, dict):
        set_ = [(name, each) for name, each in value.items() if each not in (None, [], "")]
        return ", ".join(f"{name} {_plain(each)}" for name, each in set_) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _rows(rows: list[tuple[str, str]]) -> str:
    return "".join(f"<tr><th>{_esc(name)}</th><td>{_esc(value)}</td></tr>" for name, value in rows)


def _checks(evidence: Evidence) -> str:
    return "".join(
        f'<tr><td>{_esc(check.name)}</td><td class="n">{check.value:.3g}</td>'
        f'<td class="n">{"≥" if check.least else "≤"} {check.limit:.3g}</td>'
        f"<td{'' if check.passed else ' class=fail'}>{'kept' if check.passed else 'not kept'}</td></tr>"
        for check in evidence.checks
    )
