// What a draft model is worth: greedy continuations of pieces of a text by TARGET alone, and with DRAFT for speculative decoding
// (DraftSequenceTokenPredictor of the npm package node-llama-cpp, on the llama.cpp that comes with it).
//
//     node speculative.mjs TARGET.gguf DRAFT.gguf TEXT
//
// Environment: THREADS (2), PROMPTS (8) pieces, NEW (96) tokens each. The package has to be installed where this file is.
import {readFileSync} from "node:fs";
import {getLlama, DraftSequenceTokenPredictor} from "node-llama-cpp";
const [target, draft, text] = process.argv.slice(2);
const PROMPTS = Number(process.env.PROMPTS ?? 8), NEW = Number(process.env.NEW ?? 96), PROMPT = 64;
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const load = async (modelPath) => (await llama.loadModel({modelPath, useMmap: true}));
const model = await load(target), small = await load(draft);
const threads = Number(process.env.THREADS ?? 2);
const tokens = model.tokenize(readFileSync(text, "utf8").slice(0, 200000));
const step = Math.floor(tokens.length / PROMPTS);
async function run(makePredictor) {
    let nTokens = 0, seconds = 0, stats = {validated: 0, refuted: 0, used: 0};
    const out = [];
    for (let i = 0; i < PROMPTS; i++) {
        const context = await model.createContext({contextSize: 512, threads});
        const predictor = makePredictor ? await makePredictor() : undefined;
        const sequence = context.getSequence(predictor ? {tokenPredictor: predictor.predictor} : {});
        const prompt = tokens.slice(i * step, i * step + PROMPT);
        let n = 0, start;
        const got = [];
        for await (const token of sequence.evaluate(prompt, {temperature: 0})) {
            start ??= performance.now();
            got.push(token);
            if (++n > NEW) break;
        }
        seconds += (performance.now() - start) / 1000;
        nTokens += n - 1;
        out.push(got.slice(0, NEW).join());
        const p = sequence.tokenPredictions;
        for (const k of Object.keys(stats)) stats[k] += p[k];
        await context.dispose();
        if (predictor) await predictor.context.dispose();
    }
    return {perSecond: nTokens / seconds, stats, out};
}
const alone = await run();
console.log(`alone ${alone.perSecond.toFixed(1)} tokens/s`);
for (const [maxTokens, minConfidence] of [[2, 0], [4, 0], [8, 0], [16, 0.6]]) {
    const both = await run(async () => {
        const context = await small.createContext({contextSize: 512, threads});
        return {context, predictor: new DraftSequenceTokenPredictor(context.getSequence(), {minTokens: minConfidence ? 0 : maxTokens, maxTokens, minConfidence})};
    });
    const {validated, refuted} = both.stats;
    const same = both.out.filter((o, i) => o === alone.out[i]).length;
    console.log(`draft of ${maxTokens}, confidence ${minConfidence}: ${both.perSecond.toFixed(1)} tokens/s, ${(both.perSecond / alone.perSecond).toFixed(2)} times, validated ${validated}, refuted ${refuted} (${(100 * validated / (validated + refuted)).toFixed(1)} %), same text ${same} of ${PROMPTS}`);
}
process.exit(0);
