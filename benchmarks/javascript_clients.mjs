// The JavaScript clients of OpenAI and Hugging Face against a running endpoint: both get the same bytes for the same seed.
//
//   npm install --no-save openai @huggingface/inference
//   dovetail serve embedded &
//   node benchmarks/javascript_clients.mjs http://127.0.0.1:8000 [KEY]

import { createHash } from "node:crypto";
import { performance } from "node:perf_hooks";
import { InferenceClient } from "@huggingface/inference";
import OpenAI from "openai";

const url = process.argv[2] ?? "http://127.0.0.1:8000";
const key = process.argv[3] ?? "none";
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const hub = new InferenceClient(key, { endpointUrl: url });
const numbers = { seed: 11, guidance_scale: 2.5, negative_prompt: "a dog" };
const failures = [];

const digest = bytes => createHash("sha256").update(bytes).digest("hex");
const ofBase64 = text => digest(Buffer.from(text, "base64"));
const ofBlob = async blob => digest(Buffer.from(await blob.arrayBuffer()));

async function told(name, work) {
  const started = performance.now();
  const found = await work();
  console.log(`${name.padEnd(34)} ${String(found).slice(0, 16).padEnd(18)} ${(performance.now() - started).toFixed(0)} ms`);
  return found;
}

function same(name, found, wanted) {
  if (found !== wanted) failures.push(`${name}: ${found} is not ${wanted}`);
}

const wanted = await told("openai images.generate", async () => {
  const made = await openai.images.generate({ prompt: "a cat", steps: 2, ...numbers });
  return ofBase64(made.data[0].b64_json);
});

const streamed = await told("openai images.generate, streamed", async () => {
  const events = await openai.images.generate({ prompt: "a cat", stream: true, partial_images: 1, steps: 2, ...numbers });
  let last;
  for await (const event of events) last = event;
  return ofBase64(last.b64_json);
});
same("streamed", streamed, wanted);

const painted = await told("@huggingface/inference textToImage", async () => {
  const blob = await hub.textToImage({ inputs: "a cat", parameters: { num_inference_steps: 2, ...numbers } });
  return ofBlob(blob);
});
same("textToImage", painted, wanted);

const made = await openai.images.generate({ prompt: "a cat", steps: 2, seed: 5 });
const picture = new File([Buffer.from(made.data[0].b64_json, "base64")], "begin.png", { type: "image/png" });
const edited = await told("openai images.edit", async () => {
  const anew = await openai.images.edit({ image: picture, prompt: "a cat", strength: 0.5, steps: 4, seed: 11 });
  return ofBase64(anew.data[0].b64_json);
});
const again = await told("@huggingface/inference imageToImage", async () => {
  const parameters = { prompt: "a cat", strength: 0.5, num_inference_steps: 4, seed: 11 };
  return ofBlob(await hub.imageToImage({ inputs: picture, parameters }));
});
same("imageToImage", again, edited);

const refused = await openai.images.generate({ prompt: "a cat", size: "7x7" }).catch(error => error);
same("openai's refusal", `${refused.status} ${refused.param}`, "400 size");
const passed = await hub.textToImage({ inputs: "a cat", parameters: { width: 7 } }).catch(error => error);
if (!String(passed.message).includes("not possible")) failures.push(`the hub client's refusal: ${passed}`);

console.log(failures.length ? failures.join("\n") : "the same bytes through every client");
process.exit(failures.length ? 1 : 0);
