#include "client/load/report/report_style.h"

namespace flashbias::client {

// Series (c1 to c5) and stages (g1 to g8) can be told apart with any kind of colour vision and have
// a contrast of at least 3 to 1 against a card, texts 4.5 to 1.
constexpr absl::string_view kReportStyle = R"css(
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --text: #1a1f26; --muted: #566070; --edge: #dfe3e8;
  --grid: #e9ecf0; --axis: #9aa3af; --mark: #4b5563;
  --c1: #0a66c2; --c2: #c2410c; --c3: #0f7f63; --c4: #7c3aed; --c5: #6b7280;
  --g1: #3a93b8; --g2: #c2566a; --g3: #9c7f15; --g4: #117733; --g5: #2e8b7e; --g6: #a34a93;
  --g7: #4a3aa8; --g8: #848d98;
  --good: #0f6b3f; --good-back: #e3f5ea; --bad: #a61b1b; --bad-back: #fdeaea;
  --plain: #0b4f94; --plain-back: #e5f0fb; --warn: #854d0e; --warn-back: #fdf3d8;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #0e1116; --card: #161b22; --text: #e6e9ee; --muted: #9ca6b4; --edge: #2a313b;
    --grid: #232a33; --axis: #55606e; --mark: #b4bdc9;
    --c1: #6cb2ff; --c2: #ffa45c; --c3: #4fd1a5; --c4: #c4a5ff; --c5: #98a2b0;
    --g1: #74c5e8; --g2: #ee8797; --g3: #dcc668; --g4: #3fb26c; --g5: #5fd0c0; --g6: #d98bcb;
    --g7: #9d8ff0; --g8: #8b95a3;
    --good: #7ee2a8; --good-back: #12301f; --bad: #ff9d9d; --bad-back: #3a1719;
    --plain: #8ec5ff; --plain-back: #12283f; --warn: #f2cf7a; --warn-back: #35280c;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1200px; margin: 0 auto; padding: 40px 24px 64px; }
h1, h2, h3, p, ul, dl, dd, figure { margin: 0; padding: 0; }
h1 { font-size: 30px; line-height: 1.2; font-weight: 650; letter-spacing: -0.015em; }
h2 { font-size: 20px; line-height: 1.3; font-weight: 650; margin: 48px 0 16px; }
h3 { font-size: 15px; font-weight: 650; }
.eyebrow { color: var(--muted); font-size: 13px; margin-bottom: 8px; }
.note { color: var(--muted); margin-top: -8px; }
.badges { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 16px; }
.badge {
  display: inline-block; padding: 3px 12px; border-radius: 999px; font-size: 13px;
  font-weight: 600; border: 1px solid currentColor;
}
.badge.good { color: var(--good); background: var(--good-back); }
.badge.bad { color: var(--bad); background: var(--bad-back); }
.badge.plain { color: var(--plain); background: var(--plain-back); }
.badge.warn { color: var(--warn); background: var(--warn-back); }
.reasons { margin-top: 12px; padding-left: 20px; color: var(--text); overflow-wrap: anywhere; }
.reasons li { margin: 2px 0; }
.figures-of-run { display: grid; gap: 16px; margin-top: 24px;
  grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 12px;
  padding: 20px; min-width: 0; }
.figures-of-run .card { padding: 14px 18px 16px; }
.figures-of-run dt { color: var(--muted); font-size: 13px; }
.figures-of-run dd { font-size: 24px; line-height: 1.3; font-weight: 600; letter-spacing: -0.01em; }
.figures-of-run dd small { display: block; font-size: 13px; line-height: 1.4; font-weight: 400;
  letter-spacing: 0; color: var(--muted); }
.setup { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 6px 24px; }
.setup dt { color: var(--muted); }
.setup dd { overflow-wrap: anywhere; }
code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.figures { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); }
figcaption p { color: var(--muted); font-size: 13px; margin-top: 2px; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px;
  margin: 12px 0 10px; }
.legend li { display: flex; align-items: center; gap: 7px; }
.key { width: 26px; height: 10px; flex: none; }
.plot { display: block; width: 100%; max-width: 680px; height: auto; overflow: visible; }
.narrow { display: none; }
.grid { stroke: var(--grid); stroke-width: 1; }
.axis { stroke: var(--axis); stroke-width: 1; }
.tick { fill: var(--muted); font-size: 12px; }
.axis-title { fill: var(--muted); font-size: 12px; font-weight: 600; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.dashed { stroke-dasharray: 7 5; }
.dotted { stroke-dasharray: 0.5 4.5; stroke-width: 2.4; }
.band { stroke-width: 7; stroke-opacity: 0.4; }
.dot { stroke: none; }
.hollow { stroke-width: 1.8; }
.hit { fill: transparent; stroke: none; }
.line.c1, .hollow.c1 { stroke: var(--c1); } .dot.c1 { fill: var(--c1); }
.line.c2, .hollow.c2 { stroke: var(--c2); } .dot.c2 { fill: var(--c2); }
.line.c3, .hollow.c3 { stroke: var(--c3); } .dot.c3 { fill: var(--c3); }
.line.c4, .hollow.c4 { stroke: var(--c4); } .dot.c4 { fill: var(--c4); }
.line.c5, .hollow.c5 { stroke: var(--c5); } .dot.c5 { fill: var(--c5); }
.hollow.c1, .hollow.c2, .hollow.c3, .hollow.c4, .hollow.c5 { fill: var(--card); }
.mark { stroke: var(--mark); stroke-width: 1.2; stroke-dasharray: 3 3; }
.mark-label { fill: var(--text); font-size: 12px; font-weight: 600; paint-order: stroke;
  stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
.bar { display: block; width: 100%; height: 36px; margin: 16px 0 12px; border-radius: 6px; }
.bar rect { stroke: var(--card); stroke-width: 2; vector-effect: non-scaling-stroke; }
.g1 { fill: var(--g1); background: var(--g1); } .g2 { fill: var(--g2); background: var(--g2); }
.g3 { fill: var(--g3); background: var(--g3); } .g4 { fill: var(--g4); background: var(--g4); }
.g5 { fill: var(--g5); background: var(--g5); } .g6 { fill: var(--g6); background: var(--g6); }
.g7 { fill: var(--g7); background: var(--g7); } .g8 { fill: var(--g8); background: var(--g8); }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 3px;
  margin-right: 9px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
caption { text-align: left; font-weight: 650; font-size: 15px; padding-bottom: 8px; }
th, td { text-align: right; padding: 6px 0 6px 20px; border-top: 1px solid var(--edge);
  vertical-align: baseline; white-space: nowrap; }
thead th { border-top: none; color: var(--muted); font-weight: 500; font-size: 13px; }
tbody th { font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: break-word;
  min-width: 14ch; }
td.text { min-width: 28ch; }
.stages th, .stages td { padding-top: 4px; padding-bottom: 4px; }
.scroll { overflow-x: auto; }
.tables, .stack { display: grid; gap: 16px; align-content: start; grid-template-columns: minmax(0, 1fr); }
.tables { margin-top: 16px; }
.figures-of-run + .figures { margin-top: 24px; }
details { margin-top: 16px; }
summary { cursor: pointer; font-weight: 650; }
details .card { border: none; padding: 12px 0 0; }
footer { color: var(--muted); font-size: 13px; margin-top: 48px; }
@media (max-width: 640px) {
  main { padding: 24px 14px 48px; }
  h1 { font-size: 24px; }
  .wide { display: none; }
  .narrow { display: block; }
  .card { padding: 16px 14px; }
  .figures-of-run { gap: 10px; grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .figures-of-run .card { padding: 10px 12px 12px; }
  .figures-of-run dd { font-size: 20px; }
  .setup { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .setup dd { margin-bottom: 10px; }
}
@media print {
  body { background: #ffffff; font-size: 12px; }
  main { max-width: none; padding: 0; }
  .card, tr { break-inside: avoid; }
  .card.table { break-inside: auto; }
  h2 { break-after: avoid; }
}
)css";

}  // namespace flashbias::client
