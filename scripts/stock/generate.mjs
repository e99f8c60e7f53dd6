// Generates greedily in the stock llama.cpp that `scripts/stock/install` laid into FOLDER, one JSON object to stdout.
//
// usage: node generate.mjs FOLDER REQUEST, where REQUEST is {model, adapter, prompts, max_tokens, threads} as JSON;
// answers {release, answers: [{prompt_tokens, tokens, top}]}, `top` being the probabilities of each step's best two.
const [folder, text] = process.argv.slice(2);
const request = JSON.parse(text);
const {getLlama, LlamaLogLevel} = await import(`${folder}/node_modules/node-llama-cpp/dist/index.js`);
const llama = await getLlama({
    gpu: false, build: "never", skipDownload: true, progressLogs: false, logLevel: LlamaLogLevel.error
});
const model = await llama.loadModel({modelPath: request.model});
const answers = [];
for (const prompt of request.prompts) {
    const lora = request.adapter == null ? undefined : {adapters: [{filePath: request.adapter, scale: 1}]};
    const context = await model.createContext({contextSize: 512, threads: request.threads, lora});
    const prompt_tokens = model.tokenize(prompt, true);
    const tokens = [], top = [];
    const steps = context.getSequence()
        .evaluateWithMetadata(prompt_tokens, {probabilities: true}, {temperature: 0});
    for await (const step of steps) {
        tokens.push(step.token);
        top.push([...step.probabilities.values()].slice(0, 2));
        if (tokens.length >= request.max_tokens)
            break;
    }
    answers.push({prompt_tokens, tokens, top});
    await context.dispose();
}
console.log(JSON.stringify({release: llama.llamaCppRelease.release, answers}));
process.exit(0);
