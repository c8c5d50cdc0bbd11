"""The style sheet of a study's page: light and dark by the reader's own setting, tables and figures that scroll by themselves."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5b6470; --back: #ffffff; --line: #d9dde2; --band: #f4f6f8;
  --good: #00684c; --bad: #a53f00; --plain: #5b6470; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a5adb8; --back: #15181c; --line: #363c44; --band: #1d2127; --good: #4fd1a5; --bad: #ff9a5c; --plain: #b3bac4; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { max-width: 52rem; }
.lead { font-size: 1.05rem; }
small { color: var(--soft); }
.scrolls { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { caption-side: top; text-align: left; color: var(--soft); padding: .3rem 0; min-width: 18rem; }
th, td { padding: .35rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--line); white-space: nowrap; }
tbody th { font-weight: 600; min-width: 7rem; } th small { font-weight: 400; }
.number { white-space: nowrap; }
.scrolls { margin: .8rem 0; }
tbody tr:nth-child(even) { background: var(--band); }
figure { margin: 1.2rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: 6px; padding: 6px; }
figcaption { color: var(--soft); font-size: .88rem; padding-top: .3rem; }
@media (max-width: 44rem) { figure img { max-width: none; width: 46rem; } }
.verdict { font-weight: 700; white-space: nowrap; }
.verdict.seen { color: var(--good); } .verdict.contradicted { color: var(--bad); }
.verdict.not_seen, .verdict.no_data { color: var(--plain); }
.verdict.seen::before { content: "\\2713\\00a0"; } .verdict.contradicted::before { content: "\\2717\\00a0"; }
.verdict.not_seen::before { content: "\\25cb\\00a0"; } .verdict.no_data::before { content: "\\2026\\00a0"; }
details { border-bottom: 1px solid var(--line); padding: .35rem 0; }
summary { cursor: pointer; font-weight: 600; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem; }
pre { overflow-x: auto; background: var(--band); padding: .8rem; border-radius: 6px; font-size: .8rem; line-height: 1.4; }
"""
