// npm: @saintno/comfyui-sdk@0.3.1 ws@8
// does: probes the server, builds the prompt with named inputs and outputs, hears progress, downloads the picture
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const [url, prompt, out, modules] = process.argv.slice(2);
const require = createRequire(modules + "/");
globalThis.WebSocket ??= require("ws");
const { CallWrapper, ComfyApi, PromptBuilder } = require("@saintno/comfyui-sdk");
const api = await new ComfyApi(url).init().waitForReady();
await api.getCheckpoints();
if (!(await api.getSamplerInfo()).sampler[0].includes("euler")) throw new Error("no samplers");
const graph = new PromptBuilder(JSON.parse(readFileSync(prompt)), ["seed", "steps"], ["images"])
  .setInputNode("seed", "5.inputs.seed").setOutputNode("images", "7")
  .setInputNode("steps", "5.inputs.steps").input("seed", 111).input("steps", 40);
const steps = [];
const made = await new Promise((done, failed) =>
  new CallWrapper(api, graph).onProgress((told) => steps.push(`${told.node} ${told.value}/${told.max}`)).onFinished(done).onFailed(failed).run());
const answer = await fetch(api.getPathImage(made.images.images[0]));
writeFileSync(out, Buffer.from(await answer.arrayBuffer()));
if (!steps.includes("5 40/40")) throw new Error(`steps: ${steps}`);
process.exit(0);
