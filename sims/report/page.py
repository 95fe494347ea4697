"""The page: one file of HTML that needs nothing else, by light, by night and on paper."""

from html import escape

from sims.report.drawing import COLOURS, draw
from sims.report.model import Chart, Fact, Report, Rows, Section

_LIGHT = """--paper:#fff; --card:#f6f7f9; --ink:#16202c; --soft:#55606e; --grid:#dfe3e8;
--good:#1b7a3d; --goodbg:#e7f5ec; --bad:#b3261e; --badbg:#fdecea;
--s1:#0b5cad; --s2:#c2540a; --s3:#3c7d22; --s4:#8b3fa3; --s5:#a17c00; --s6:#0e8585;
--s7:#b8326a; --s8:#66707c;"""
_DARK = """--paper:#12171d; --card:#1b222a; --ink:#e8edf2; --soft:#a3afbc; --grid:#323c47;
--good:#6cd38e; --goodbg:#16301f; --bad:#ff8a80; --badbg:#3a1a18;
--s1:#6db3f8; --s2:#ffa263; --s3:#93d374; --s4:#d59bea; --s5:#e3c04d; --s6:#5fd0d0;
--s7:#f58bb4; --s8:#aab4bf;"""
STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
* {{ box-sizing: border-box; }}
body {{ margin:0; background:var(--paper); color:var(--ink);
  font:16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }}
main {{ max-width:62rem; margin:0 auto; padding:2.2rem 1.4rem 4rem; }}
h1 {{ font-size:1.9rem; line-height:1.2; margin:0 0 .2rem; }}
h2 {{ font-size:1.3rem; margin:2.6rem 0 .4rem; }}
p {{ margin:.4rem 0; max-width:46rem; }}
.soft {{ color:var(--soft); }}
.verdict {{ margin:1.4rem 0; padding:1rem 1.2rem; border-left:.4rem solid var(--soft);
  background:var(--card); border-radius:.4rem; }}
.verdict b {{ font-size:1.25rem; display:block; }}
.verdict.passed {{ border-color:var(--good); background:var(--goodbg); }}
.passed b, td.passed {{ color:var(--good); }}
.verdict.stopped {{ border-color:var(--bad); background:var(--badbg); }}
.stopped b, td.stopped {{ color:var(--bad); }}
td.passed, td.stopped {{ font-weight:600; white-space:nowrap; }}
.facts {{ display:grid; grid-template-columns:repeat(auto-fit,minmax(13rem,1fr)); gap:.9rem;
  margin:1.2rem 0; }}
.fact {{ background:var(--card); border-radius:.5rem; padding:.9rem 1.1rem; }}
.fact .name {{ color:var(--soft); font-size:.86rem; }}
.fact .value {{ font-size:1.7rem; font-weight:650; line-height:1.25;
  font-variant-numeric:tabular-nums; }}
.fact .meaning {{ font-size:.86rem; color:var(--soft); }}
figure {{ margin:1.5rem 0 2rem; break-inside:avoid; }}
figure h3 {{ font-size:1.02rem; margin:0 0 .3rem; }}
figure svg {{ width:100%; height:auto; display:block; font-family:inherit; }}
.legend {{ display:flex; flex-wrap:wrap; gap:.1rem 1.2rem; margin:.2rem 0 .4rem; max-width:none;
  font-size:.88rem; }}
.legend i {{ display:inline-block; width:1.1em; height:.32em; margin-right:.45em;
  vertical-align:middle; border-radius:.1em; print-color-adjust:exact;
  -webkit-print-color-adjust:exact; }}
.legend.boxes i {{ height:.8em; width:.8em; }}
figcaption {{ color:var(--soft); font-size:.9rem; max-width:46rem; margin-top:.3rem; }}
.wide {{ overflow-x:auto; }}
table {{ border-collapse:collapse; width:100%; font-size:.88rem; margin:.8rem 0; }}
th, td {{ text-align:left; vertical-align:top; padding:.42rem .7rem .42rem 0;
  border-bottom:1px solid var(--grid); }}
th {{ color:var(--soft); font-weight:600; }}
tr {{ break-inside:avoid; }}
footer {{ margin-top:3rem; font-size:.82rem; color:var(--soft); overflow-wrap:anywhere; }}
@media print {{
  :root {{ color-scheme: light; {_LIGHT} }}
  body {{ font-size:10.5pt; }}
  main {{ max-width:none; padding:0; }}
  h2 {{ break-after:avoid; }}
  .wide {{ overflow:visible; }}
  .verdict, .fact {{ border:1px solid var(--grid); print-color-adjust:exact;
    -webkit-print-color-adjust:exact; }}
  figure svg {{ print-color-adjust:exact; -webkit-print-color-adjust:exact; }}
}}
@page {{ margin:16mm; }}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(report: Report) -> str:
    """Give a report as one HTML document."""
    body = [
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="soft">{escape(report.subtitle)}</p>' if report.subtitle else "",
        _verdict(report),
        _facts(report.facts),
        *(_section(section) for section in report.sections),
        _footer(report),
    ]
    inner = "\n".join(part for part in body if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{inner}\n</main>\n</body>\n</html>\n"
    )


def _verdict(report: Report) -> str:
    if not report.headline:
        return ""
    word = {"passed": "Passed", "stopped": "Stopped", "": ""}[report.verdict]
    strong = f"<b>{word}</b>" if word else ""
    return f'<div class="verdict {report.verdict}">{strong}{escape(report.headline)}</div>'


def _facts(facts: tuple[Fact, ...]) -> str:
    shown = "\n".join(
        f'<div class="fact"><div class="name">{escape(fact.name)}</div>'
        f'<div class="value">{escape(fact.value)}</div>'
        f'<div class="meaning">{escape(fact.meaning)}</div></div>'
        for fact in facts
    )
    return f'<div class="facts">\n{shown}\n</div>' if facts else ""


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    parts += [_table(rows) for rows in section.tables]
    parts += [_figure(chart) for chart in section.charts]
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _table(rows: Rows) -> str:
    heads = "".join(f"<th>{escape(head)}</th>" for head in rows.heads)
    lines = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows.rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def _cell(text: str) -> str:
    kind = f' class="{text}"' if text in ("passed", "stopped") else ""
    return f"<td{kind}>{escape(text)}</td>"


def _figure(chart: Chart) -> str:
    label = escape(f"{chart.title}. {chart.note}", quote=True)
    svg = draw(chart).replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return (
        f'<figure id="chart-{escape(chart.name, quote=True)}">\n<h3>{escape(chart.title)}</h3>\n'
        f"{_legend(chart)}{svg}\n<figcaption>{escape(chart.note)}</figcaption>\n</figure>"
    )


def _legend(chart: Chart) -> str:
    """Name the colours beside the plot, where long names may wrap."""
    if len(chart.series) < 2:
        return ""
    boxes = "" if chart.kind == "lines" else " boxes"
    keys = "".join(
        f'<span><i style="background:var(--s{i % COLOURS + 1})"></i>{escape(one.name)}</span>'
        for i, one in enumerate(chart.series)
    )
    return f'<p class="legend{boxes}">{keys}</p>\n'


def _footer(report: Report) -> str:
    shown = "<br>\n".join(f"{escape(name)}: {escape(value)}" for name, value in report.made_with)
    return f"<footer>\n{shown}\n</footer>" if report.made_with else ""
