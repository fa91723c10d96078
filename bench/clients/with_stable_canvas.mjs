// npm: @stable-canvas/comfyui-client@1.5.9 ws@8
// does: queues, hears the steps on the socket, gets the picture's address and fetches it
import { writeFileSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [url, prompt, out, modules] = process.argv.slice(2);
const require = createRequire(modules + "/");
const { Client } = require("@stable-canvas/comfyui-client");
const client = new Client({ api_host: url.replace("http://", ""), WebSocket: require("ws"), fetch });
await client.connect();
const graph = JSON.parse(readFileSync(prompt));
graph["5"].inputs.seed = 110;
const steps = [];
const made = await client.enqueue(graph, { progress: (told) => steps.push(told.value) });
const picture = made.images[0];
const bytes = picture.type === "buff" ? picture.data : await (await fetch(picture.data)).arrayBuffer();
writeFileSync(out, Buffer.from(bytes));
if (!steps.includes(6)) throw new Error(`steps: ${steps}`);
client.close();
process.exit(0);
