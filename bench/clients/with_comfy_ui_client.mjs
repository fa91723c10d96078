// npm: comfy-ui-client@0.1.2
// does: queues, waits on the socket, reads the history, downloads; lists the queue, the history, one node class
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const [url, prompt, out, modules] = process.argv.slice(2);
const { ComfyUIClient } = createRequire(modules + "/")("comfy-ui-client");
const client = new ComfyUIClient(url.replace("http://", ""), "a-node-client");
await client.connect();
const graph = JSON.parse(readFileSync(prompt));
graph["5"].inputs.seed = 112;
const made = await client.getImages(graph);
writeFileSync(out, Buffer.from(await made["7"][0].blob.arrayBuffer()));
await client.getObjectInfo("KSampler");
if ((await client.getQueue()).queue_running.length) throw new Error("the queue is not empty");
await client.disconnect();
process.exit(0);
