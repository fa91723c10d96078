// What the studio adds to the editor: a way back to its pages, and on nodes of datasets, trainings and scores what came of them.
const app = window.comfyAPI?.app?.app;

const told = (node, name, make) => node.widgets?.find((w) => w.name === name) ?? make();

const say = (node, text) => {
  const line = told(node, "outcome", () => {
    const made = node.addWidget("text", "outcome", "", () => {}, { serialize: false });
    return Object.assign(made, { serialize: false });
  });
  line.value = text;
};

const HIGH = 74;
const draw = (ctx, points, held, wide, y) => {
  const all = [...points, ...held], [[x0, x1], [low, high]] = [0, 1].map((i) => all.map((p) => p[i])).map((v) => [Math.min(...v), Math.max(...v)]);
  const at = ([step, loss]) => [20 + (wide - 40) * (step - x0) / Math.max(x1 - x0, 1), y + 8 + (HIGH - 16) * (high - loss) / Math.max(high - low, 1e-9)];
  ctx.fillStyle = "#1a1a1a";
  ctx.fillRect(14, y, wide - 28, HIGH);
  ctx.lineWidth = 1.5;
  for (const [line, colour] of [[points, "#e8a13c"], [held, "#4fb3a5"]]) {
    ctx.beginPath();
    line.forEach((p) => ctx.lineTo(...at(p)));
    ctx.strokeStyle = colour;
    ctx.stroke();
  }
  ctx.fillStyle = "#4fb3a5";
  held.forEach((p) => { ctx.beginPath(); ctx.arc(...at(p), 2.5, 0, 7); ctx.fill(); });
};

const measure = (node, step, values) => {
  const curve = told(node, "curve", () => node.addCustomWidget({
    name: "curve", type: "safelight.curve", options: { serialize: false }, serialize: false, value: "", points: [], held: [],
    computeSize: (wide) => [wide, HIGH + 6],
    draw(ctx, _, wide, y) { if (this.points.length) draw(ctx, this.points, this.held, wide, y); },
  }));
  if (curve.points.length && step < curve.points.at(-1)[0]) Object.assign(curve, { points: [], held: [] });
  const last = curve.points.at(-1)?.[1] ?? values.loss;
  if ("loss" in values) curve.points.push([step, 0.8 * last + 0.2 * values.loss]);
  if ("held-out" in values) curve.held.push([step, values["held-out"]]);
  const [a, b] = [curve.points.at(-1), curve.held.at(-1)];
  say(node, `${step}: ${[a && `loss ${a[1].toFixed(3)}`, b && `held out ${b[1].toFixed(3)}`].filter(Boolean).join(", ")}`);
};

const hear = ({ detail }) => {
  const node = app.rootGraph.getNodeById(Number(detail.node));
  if (!node) return;
  if (detail.text) say(node, detail.text); else measure(node, detail.step, detail.values);
  const [wide, high] = node.computeSize();
  node.setSize([Math.max(node.size[0], wide), Math.max(node.size[1], high)]);
  node.setDirtyCanvas(true, true);
};

// A node that made a file: its name, and a button that fetches it.
const made = ({ detail: { node: id, output } }) => {
  const node = app.rootGraph.getNodeById(Number(id)), link = output?.files && output.text?.[0];
  if (!node || !link) return;
  say(node, output.files[0].filename);
  told(node, "open", () => Object.assign(node.addWidget("button", "open", "", () => {}, { serialize: false }), { serialize: false }))
    .callback = () => window.open(link);
  node.setSize(node.computeSize().map((x, i) => Math.max(x, node.size[i])));
  node.setDirtyCanvas(true, true);
};

// Settings that are not for every day: the newer design of nodes folds them itself, on the canvas they would stay.
const rare = (node) => (LiteGraph.vueNodesMode || !node.constructor.category?.startsWith("safelight/") ? [] : node.widgets ?? [])
  .filter((w) => w.options?.advanced);

const fold = (node, away) => {
  for (const widget of rare(node)) widget.hidden = away;
  node.setSize(node.computeSize());
  node.setDirtyCanvas(true, true);
};

app?.registerExtension({
  name: "Safelight.Studio",
  actionBarButtons: [{ icon: "pi pi-images", label: "Studio", tooltip: "Safelight's own pages", onClick: () => location.assign("/") }],
  nodeCreated: (node) => { if (rare(node).length) fold(node, true); },
  getNodeMenuItems: (node) => rare(node).slice(0, 1).map(({ hidden }) => (
    { content: hidden ? "Show all settings" : "Fold settings", callback: () => fold(node, !hidden) })),
  setup: () => { app.api.addEventListener("safelight", hear); app.api.addEventListener("executed", made); },
});

// The graph that the editor begins with: the embedded model, which needs no download.
const nodes = [
  {"id": 1, "type": "CheckpointLoaderSimple", "pos": [40, 260], "size": [290, 100], "flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": [{"name": "MODEL", "type": "MODEL", "links": [1]}, {"name": "CLIP", "type": "CLIP", "links": [2, 3]}, {"name": "VAE", "type": "VAE", "links": [8]}], "properties": {"Node name for S&R": "CheckpointLoaderSimple"}, "widgets_values": ["mini"]},
  {"id": 2, "type": "CLIPTextEncode", "pos": [380, 120], "size": [340, 150], "flags": {}, "order": 2, "mode": 0, "inputs": [{"name": "clip", "type": "CLIP", "link": 2}], "outputs": [{"name": "CONDITIONING", "type": "CONDITIONING", "links": [4]}], "properties": {"Node name for S&R": "CLIPTextEncode"}, "widgets_values": ["a girl with purple hair"]},
  {"id": 3, "type": "CLIPTextEncode", "pos": [380, 330], "size": [340, 120], "flags": {}, "order": 3, "mode": 0, "inputs": [{"name": "clip", "type": "CLIP", "link": 3}], "outputs": [{"name": "CONDITIONING", "type": "CONDITIONING", "links": [5]}], "properties": {"Node name for S&R": "CLIPTextEncode"}, "widgets_values": [""]},
  {"id": 4, "type": "EmptyLatentImage", "pos": [380, 510], "size": [340, 110], "flags": {}, "order": 1, "mode": 0, "inputs": [], "outputs": [{"name": "LATENT", "type": "LATENT", "links": [6]}], "properties": {"Node name for S&R": "EmptyLatentImage"}, "widgets_values": [128, 128, 1]},
  {"id": 5, "type": "KSampler", "pos": [770, 120], "size": [290, 270], "flags": {}, "order": 4, "mode": 0, "inputs": [{"name": "model", "type": "MODEL", "link": 1}, {"name": "positive", "type": "CONDITIONING", "link": 4}, {"name": "negative", "type": "CONDITIONING", "link": 5}, {"name": "latent_image", "type": "LATENT", "link": 6}], "outputs": [{"name": "LATENT", "type": "LATENT", "links": [7]}], "properties": {"Node name for S&R": "KSampler"}, "widgets_values": [7, "randomize", 20, 5, "euler", "normal", 1]},
  {"id": 6, "type": "VAEDecode", "pos": [810, 470], "size": [210, 50], "flags": {}, "order": 5, "mode": 0, "inputs": [{"name": "samples", "type": "LATENT", "link": 7}, {"name": "vae", "type": "VAE", "link": 8}], "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [9]}], "properties": {"Node name for S&R": "VAEDecode"}, "widgets_values": []},
  {"id": 7, "type": "SaveImage", "pos": [1110, 120], "size": [330, 370], "flags": {}, "order": 6, "mode": 0, "inputs": [{"name": "images", "type": "IMAGE", "link": 9}], "outputs": [], "properties": {"Node name for S&R": "SaveImage"}, "widgets_values": ["safelight"]},
];
const links = [[1, 1, 0, 5, 0, "MODEL"], [2, 1, 1, 2, 0, "CLIP"], [3, 1, 1, 3, 0, "CLIP"], [4, 2, 0, 5, 1, "CONDITIONING"], [5, 3, 0, 5, 2, "CONDITIONING"], [6, 4, 0, 5, 3, "LATENT"], [7, 5, 0, 6, 0, "LATENT"], [8, 1, 2, 6, 1, "VAE"], [9, 6, 0, 7, 0, "IMAGE"]];
const first = window.comfyAPI?.defaultGraph?.defaultGraph;
if (first) Object.assign(first, { last_node_id: 7, last_link_id: 9, nodes, links, extra: { ds: { scale: 0.85, offset: [120, 90] } } });
