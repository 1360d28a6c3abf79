// As processor_probe.py, with ONNX Runtime compiled to WebAssembly; run in a folder where onnxruntime-web is installed.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const ort = createRequire(`${process.cwd()}/`)("onnxruntime-web");
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";
const [model, images, answers, ...sides] = process.argv.slice(2);
const start = performance.now();
const session = await ort.InferenceSession.create(readFileSync(model), { executionProviders: ["wasm"] });
const loaded = performance.now();
const values = Float32Array.from(new Float32Array(new Uint8Array(readFileSync(images)).buffer));
const batch = new ort.Tensor("float32", values, sides.map(Number));
const logits = (await session.run({ [session.inputNames[0]]: batch }))[session.outputNames[0]].data;
const done = performance.now();
writeFileSync(answers, new Uint8Array(logits.buffer, logits.byteOffset, logits.byteLength));
const seconds = { load_s: (loaded - start) / 1000, run_s: (done - loaded) / 1000 };
console.log(JSON.stringify({ node: process.version, "onnxruntime-web": ort.env.versions.web, ...seconds }));
