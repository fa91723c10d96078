"use strict";
(() => {
  const HEIGHT = 220;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const smooth = (ys) => { let m = null; return ys.map((y) => (m = m === null ? y : m * 0.9 + y * 0.1)); };

  const table = (told) => {
    const steps = [...new Set([...told.steps, ...told.held.map((h) => h[0])])].sort((a, b) => a - b);
    const at = new Map(steps.map((s, i) => [s, i])), blank = () => Array(steps.length).fill(null);
    const [raw, mean, held, low, high] = [blank(), blank(), blank(), blank(), blank()], smoothed = smooth(told.loss);
    told.steps.forEach((s, i) => { raw[at.get(s)] = told.loss[i]; mean[at.get(s)] = smoothed[i]; });
    told.held.forEach(([s, l, a, b]) => { held[at.get(s)] = l; low[at.get(s)] = a; high[at.get(s)] = b; });
    return [steps, raw, mean, held, low, high];
  };

  const chart = (at, data) => {
    const [lamp, teal, dim, rule] = ["--lamp", "--held", "--dim", "--rule"].map(css);
    const axis = { stroke: dim, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1 }, font: "12px system-ui" };
    const points = { show: true, size: 6, fill: teal, stroke: teal };
    return new uPlot({
      width: at.clientWidth, height: HEIGHT, scales: { x: { time: false } }, legend: { live: true }, cursor: { y: false },
      axes: [axis, { ...axis, size: 54 }],
      bands: [{ series: [5, 4], fill: teal + "22" }],
      series: [
        { label: at.dataset.step }, { show: true, label: "·", stroke: lamp + "44", width: 1, points: { show: false } },
        { label: at.dataset.loss, stroke: lamp, width: 2, points: { show: false }, spanGaps: true },
        { label: at.dataset.held, stroke: teal, width: 2, points, spanGaps: true },
        { label: "↓", stroke: "transparent", points: { show: false }, spanGaps: true }, { label: "↑", stroke: "transparent", points: { show: false }, spanGaps: true },
      ],
    }, data, at);
  };

  const follow = async (at) => {
    if (at.dataset.drawn) return;
    at.dataset.drawn = "1";
    let plot = null;
    for (;;) {
      const answer = await fetch(at.dataset.curve).catch(() => null);
      if (answer && answer.ok) {
        const told = await answer.json(), data = table(told);
        if (told.steps.length > 1) {
          if (plot) plot.setData(data); else plot = chart(at, data);
        }
        if (told.over) { at.classList.toggle("bare", told.steps.length < 2); return; }
      }
      await new Promise((go) => setTimeout(go, 1500));
      if (!at.isConnected) return;
    }
  };
  const all = () => document.querySelectorAll(".curve").forEach(follow);
  addEventListener("load", all);
  document.body ? document.body.addEventListener("htmx:afterSwap", all) : addEventListener("DOMContentLoaded", () => document.body.addEventListener("htmx:afterSwap", all));
})();
