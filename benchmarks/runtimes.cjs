// Run an ONNX file on images in onnxruntime-web, without tltools: node runtimes.cjs MODEL IMAGES ANSWER
//
// IMAGES is a .npy file, uint8 (N, H, W, 3); ANSWER is JSON, as runtimes.py writes it. NODE_PATH names the
// folder that holds onnxruntime-web.
const fs = require("fs");
const ort = require("onnxruntime-web");

const BATCH_SIZE = 8; // that of runtimes.py

function readImages(path) {
  const bytes = fs.readFileSync(path);
  const start = 10 + bytes.readUInt16LE(8); // of NumPy's format, version 1
  const header = bytes.toString("latin1", 10, start);
  const shape = header.match(/'shape': \(([^)]+)\)/)[1].split(",").map(Number);
  return { shape, pixels: new Uint8Array(bytes.subarray(start)) };
}

async function main([model, images, answer]) {
  ort.env.wasm.numThreads = 1;
  const { shape, pixels } = readImages(images);
  const [count, ...dims] = shape;
  const size = dims.reduce((a, b) => a * b);
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  const found = { version: ort.env.versions.web };
  for (const name of session.outputNames) found[name] = [];
  for (let first = 0; first < count; first += BATCH_SIZE) {
    const last = Math.min(first + BATCH_SIZE, count);
    const batch = pixels.slice(first * size, last * size);
    const tensor = new ort.Tensor("uint8", batch, [last - first, ...dims]);
    const outputs = await session.run({ images: tensor });
    for (const name of session.outputNames) {
      const { data, dims: [, classes] } = outputs[name];
      for (let i = 0; i < last - first; i++) {
        // The distance of older exports has only the batch axis.
        found[name].push(classes ? Array.from(data.slice(i * classes, (i + 1) * classes)) : data[i]);
      }
    }
  }
  fs.writeFileSync(answer, JSON.stringify(found));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(String(error).replace(/\s+/g, " "));
  process.exit(1);
});
