#include "cli/report_page.hpp"

namespace troupe {

const std::string_view report_page_begin = R"page(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>troupe report</title>
<style>
:root { color-scheme: light dark; --bg: #fbfbfa; --card: #fff; --ink: #1d2126; --soft: #6a727c; --line: #e3e5e8; --a: #2563c9; --good: #17834a; --bad: #b3372b }
@media (prefers-color-scheme: dark) { :root { --bg: #15181c; --card: #1d2126; --ink: #e8eaed; --soft: #98a1ac; --line: #31363d; --a: #79a8ff; --good: #5fd08f; --bad: #ff8d80 } }
* { box-sizing: border-box } body { margin: 0 auto; max-width: 1180px; padding: 28px 20px 60px; background: var(--bg); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 26px; margin: 0 } h2 { font-size: 18px; margin: 34px 0 12px } .soft { color: var(--soft) }
.tiles, .charts { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)) } .charts { grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)) }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px } .big { font-size: 24px; font-weight: 600; font-variant-numeric: tabular-nums }
.chart h3 { margin: 0 0 4px; font-size: 14px; font-weight: 600 } svg { width: 100%; display: block } svg text { fill: var(--soft); font-size: 11px } .grid { stroke: var(--line) }
.legend { font-size: 12px; color: var(--soft); display: flex; flex-wrap: wrap; gap: 4px 12px; min-height: 18px } .legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: 13px } th { text-align: left; color: var(--soft); font-weight: 500 } th, td { padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 320px } td.n { font-variant-numeric: tabular-nums; white-space: nowrap } .good { color: var(--good) } .bad { color: var(--bad) }
pre { margin: 0; overflow-x: auto; font: 12.5px/1.5 ui-monospace, monospace } details summary { cursor: pointer }
</style></head><body><div id="page"></div><script id="data" type="application/json">)page";

const std::string_view report_page_end = R"page(</script><script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent), page = document.getElementById("page"), rows = data.metrics;
const palette = ["#2f6fde", "#e07b39", "#2a9d6f", "#a35bc9", "#c94f6d", "#8a8f2a", "#2aa3b8", "#7a7f87"];
const el = (tag, cls, text) => { const e = document.createElement(tag); if (cls) e.className = cls; if (text !== undefined) e.textContent = text; return e };
const svg = (tag, attributes) => { const e = document.createElementNS("http://www.w3.org/2000/svg", tag); for (const k in attributes) e.setAttribute(k, attributes[k]); return e };
const show = v => v === null || v === undefined ? "–" : v === 0 ? "0" : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(2) : String(+v.toPrecision(4));
const series = name => rows.filter(r => typeof r[name] === "number").map(r => [r.step, r[name]]);
const last = name => { const s = series(name); return s.length ? s[s.length - 1][1] : undefined };
const first = name => { const s = series(name); return s.length ? s[0][1] : undefined };
const section = title => page.append(el("h2", "", title));
function ticks(lo, hi) { const raw = (hi - lo) / 4, p = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].map(m => m * p).find(s => s >= raw) || raw, out = []; for (let t = Math.ceil(lo / step) * step; t <= hi + step * 1e-6; t += step) out.push(Math.abs(t) < step * 1e-6 ? 0 : t); return out }
function chart(title, names, options = {}) {
  const lines = names.map(([name, label]) => ({ label, points: series(name) })).filter(l => l.points.length);
  if (!lines.length) return null;
  const W = 360, H = 180, L = 46, R = 10, T = 8, B = 24, card = el("div", "card chart"), picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
  if (options.stacked) { const sum = new Map(); for (const l of lines) l.points = l.points.map(([x, y]) => { const low = sum.get(x) || 0; sum.set(x, low + y); return [x, low + y, low] }) }
  const xs = lines.flatMap(l => l.points.map(p => p[0])), ys = lines.flatMap(l => l.points.flatMap(p => p.slice(1)));
  let x0 = Math.min(...xs), x1 = Math.max(...xs), y0 = Math.min(...ys), y1 = Math.max(...ys);
  if (options.stacked) y0 = 0; if (options.unit) { y0 = 0; y1 = Math.max(1, y1) } if (x0 === x1) { x0 -= 1; x1 += 1 }
  if (y0 === y1) { const pad = Math.abs(y0) * 0.1 || 1; y1 += pad; if (y0 !== 0) y0 -= pad } else if (!options.unit) { const pad = (y1 - y0) * 0.05; y1 += pad; if (!options.stacked) y0 -= pad }
  const X = v => L + (v - x0) / (x1 - x0) * (W - L - R), Y = v => H - B - (v - y0) / (y1 - y0) * (H - T - B);
  for (const t of ticks(y0, y1)) { picture.append(svg("line", { class: "grid", x1: L, x2: W - R, y1: Y(t), y2: Y(t) })); const s = svg("text", { x: L - 6, y: Y(t) + 4, "text-anchor": "end" }); s.textContent = show(t); picture.append(s) }
  for (const t of ticks(x0, x1).filter(Number.isInteger)) { const s = svg("text", { x: X(t), y: H - 7, "text-anchor": "middle" }); s.textContent = t; picture.append(s) }
  lines.forEach((l, i) => { const color = palette[i % palette.length], path = l.points.map(p => `${X(p[0]).toFixed(1)},${Y(p[1]).toFixed(1)}`);
    if (options.stacked) picture.append(svg("polygon", { points: path.concat(l.points.slice().reverse().map(p => `${X(p[0]).toFixed(1)},${Y(p[2]).toFixed(1)}`)).join(" "), fill: color, "fill-opacity": 0.85 }));
    else { picture.append(svg("polyline", { points: path.join(" "), fill: "none", stroke: color, "stroke-width": 1.8, "stroke-linejoin": "round" })); if (l.points.length <= 40) for (const p of l.points) picture.append(svg("circle", { cx: X(p[0]), cy: Y(p[1]), r: 2, fill: color })) } });
  const cursor = svg("line", { y1: T, y2: H - B, stroke: "var(--soft)", "stroke-dasharray": "3 3", visibility: "hidden" }), legend = el("div", "legend"); picture.append(cursor);
  const write = x => { legend.replaceChildren(); lines.forEach((l, i) => { const p = x === null ? l.points[l.points.length - 1] : l.points.find(p => p[0] === x), item = el("span"), mark = el("i"); mark.style.background = palette[i % palette.length]; item.append(mark, `${l.label} ${p ? show(options.stacked ? p[1] - p[2] : p[1]) : "–"}`); legend.append(item) }); if (x !== null) legend.append(el("span", "", `step ${x}`)) };
  picture.addEventListener("mousemove", e => { const box = picture.getBoundingClientRect(), at = x0 + ((e.clientX - box.left) / box.width * W - L) / (W - L - R) * (x1 - x0), x = xs.reduce((a, b) => Math.abs(b - at) < Math.abs(a - at) ? b : a); cursor.setAttribute("x1", X(x)); cursor.setAttribute("x2", X(x)); cursor.setAttribute("visibility", "visible"); write(x) });
  picture.addEventListener("mouseleave", () => { cursor.setAttribute("visibility", "hidden"); write(null) });
  write(null); card.append(el("h3", "", title), picture, legend); return card }
page.append(el("h1", "", data.name), el("div", "soft", rows.length ? `${last("step")} steps` : "no step yet"));
const tiles = el("div", "tiles"), tile = (label, value) => { if (value === undefined) return; const c = el("div", "card"); c.append(el("div", "soft", label), el("div", "big", value)); tiles.append(c) };
const percent = v => v === undefined ? undefined : v.toFixed(3);
if (series("val/accuracy").length) { tile("held-out accuracy before", percent(first("val/accuracy"))); tile("held-out accuracy after", percent(last("val/accuracy"))) }
for (const [name, label] of [["critic/rewards/mean", "mean reward, last step"], ["response_length/mean", "mean response, tokens"], ["perf/throughput", "tokens a second"], ["timing_s/step", "seconds a step"]]) if (last(name) !== undefined) tile(label, show(last(name)));
const exact = series("exact/logprob_diff_max"); if (exact.length) tile("largest log-prob difference", show(Math.max(...exact.map(p => p[1]))));
section("Result"); page.append(tiles);
const charts = el("div", "charts"), passes = [...new Set(rows.flatMap(Object.keys))].filter(k => k.startsWith("val/pass@")).map(k => [k, k.slice(4)]);
for (const c of [chart("Held-out accuracy", [["val/accuracy", "accuracy"], ...passes], { unit: true }), chart("Loss", [["train/loss", "training"], ["val/loss", "held out"]]), chart("Reward", [["critic/rewards/mean", "mean"], ["critic/rewards/max", "max"], ["critic/rewards/min", "min"]]),
  chart("Response length, tokens", [["response_length/mean", "mean"], ["response_length/max", "max"], ["response_length/min", "min"]]), chart("Share of responses cut at the limit", [["response_length/clip_ratio", "cut"]], { unit: true }),
  chart("Entropy", [["actor/entropy", "nats a token"]]), chart("Gradient norm", [["actor/grad_norm", "before clipping"]]), chart("Policy loss", [["actor/pg_loss", "loss"]]), chart("KL", [["actor/ppo_kl", "to the old policy"], ["actor/kl_loss", "to the reference"]]),
  chart("Clipped tokens", [["actor/pg_clipfrac", "share"]]), chart("Learning rate", [["actor/lr", "lr"]]), chart("Exactness: rollout against learner", [["exact/logprob_diff_max", "largest difference"]]),
  chart("Seconds a step", [["timing_s/gen", "generation"], ["timing_s/reward", "reward"], ["timing_s/ref", "reference or teacher"], ["timing_s/values", "values"], ["timing_s/adv", "advantages"], ["timing_s/update_actor", "update"], ["timing_s/update_critic", "critic"], ["timing_s/update_weights", "weights"]], { stacked: true }),
  chart("Throughput, tokens a second", [["perf/throughput", "tokens/s"]])]) if (c) charts.append(c);
if (charts.children.length) { section("Curves"); page.append(charts) }
for (const group of data.samples) {
  section(`Samples of step ${group.step}`); const table = el("table"), head = el("tr"), box = el("div", "card scroll");
  for (const h of ["prompt", "response", "answer", "reward", "advantage", "end"]) head.append(el("th", "", h)); table.append(head);
  for (const s of group.rows) { const row = el("tr"); row.append(el("td", "n", s.index), el("td", "text", s.text), el("td", "n", s.answer), el("td", "n " + (s.reward > 0 ? "good" : "bad"), show(s.reward)), el("td", "n", Array.isArray(s.advantage) ? "…" : show(s.advantage)), el("td", "n", s.finish_reason)); table.append(row) }
  box.append(table); page.append(box) }
if (rows.length) { section("Last step"); const box = el("details", "card"), table = el("table"); box.append(el("summary", "", "all figures"), table); for (const name of Object.keys(rows[rows.length - 1])) { const row = el("tr"); row.append(el("td", "", name), el("td", "n", String(rows[rows.length - 1][name]))); table.append(row) } page.append(box) }
if (data.config) { section("Configuration"); const box = el("details", "card"); box.append(el("summary", "", "config.toml"), el("pre", "", data.config)); page.append(box) }
</script></body></html>
)page";

} // namespace troupe
