// Checkpoints as Node programs write them: synchronous calls, promises and streams. Argument: write | restart
"use strict";
const fs = require("fs");
const path = require("path");
const { pipeline } = require("stream/promises");
const zlib = require("zlib");
const here = "ckpt/node";

async function write() {
    fs.mkdirSync(`${here}/deep/er`, { recursive: true });
    fs.writeFileSync(`${here}/sync`, "a".repeat(100000));
    fs.appendFileSync(`${here}/sync`, "tail");
    const many = Array.from({ length: 40 }, (_, n) => fs.promises.writeFile(`${here}/many-${n}`, `${n}\n`.repeat(n * 50)));
    await Promise.all(many);
    const file = await fs.promises.open(`${here}/handle`, "w+", 0o640);
    await file.write(Buffer.alloc(70000, 7), 0, 70000, 1000);
    await file.truncate(50000);
    await file.sync();
    console.log((await file.stat()).size);
    await file.close();
    await pipeline(fs.createReadStream(`${here}/sync`), zlib.createGzip(), fs.createWriteStream(`${here}/sync.gz`));
    const temporary = fs.mkdtempSync(`${here}/tmp-`);
    fs.writeFileSync(`${temporary}/state`, JSON.stringify({ step: 1 }));
    fs.renameSync(`${temporary}/state`, `${here}/state.json`);
    fs.rmSync(temporary, { recursive: true });
    fs.copyFileSync(`${here}/sync`, `${here}/deep/er/copied`, fs.constants.COPYFILE_EXCL);
    fs.symlinkSync("deep/er", `${here}/link`);
    fs.linkSync(`${here}/sync`, `${here}/second`);
    fs.utimesSync(`${here}/state.json`, 1e9, 1e9);
    fs.cpSync(`${here}/deep`, `${here}/deep-copy`, { recursive: true });
    await show();
}

async function restart() {
    await show();
    const state = JSON.parse(fs.readFileSync(`${here}/state.json`, "utf8"));
    state.step += 1;
    await fs.promises.writeFile(`${here}/state.new`, JSON.stringify(state), { flush: true });
    await fs.promises.rename(`${here}/state.new`, `${here}/state.json`);
    await pipeline(fs.createReadStream(`${here}/sync.gz`), zlib.createGunzip(), fs.createWriteStream(`${here}/unpacked`));
    console.log(fs.readFileSync(`${here}/unpacked`).equals(fs.readFileSync(`${here}/second`)));
    const file = fs.openSync(`${here}/handle`, "r+");
    fs.writeSync(file, "changed", 10);
    fs.closeSync(file);
    fs.renameSync(`${here}/deep`, `${here}/moved`);
    await Promise.all(Array.from({ length: 20 }, (_, n) => fs.promises.unlink(`${here}/many-${n * 2}`)));
    for (const call of [() => fs.openSync(`${here}/none`), () => fs.mkdirSync(here), () => fs.rmdirSync(here),
        () => fs.readlinkSync(`${here}/sync`), () => fs.writeFileSync(`${here}/sync`, "", { flag: "wx" })]) {
        try { call(); console.log("done"); } catch (error) { console.log(error.code); }
    }
    fs.rmSync(`${here}/deep-copy`, { recursive: true });
    await show();
}

async function show() {
    const names = fs.readdirSync("ckpt", { recursive: true }).filter(name => !name.startsWith(".sheaf")).sort();
    for (const name of names) {
        const stat = fs.lstatSync(path.join("ckpt", name));
        console.log(name, stat.mode.toString(8), stat.isFile() ? stat.size : "-", stat.isFile() ? stat.nlink : "-");
    }
    for await (const entry of await fs.promises.opendir(here)) {
        if (entry.isSymbolicLink()) console.log(entry.name, fs.existsSync(path.join(here, entry.name)));
    }
    console.log(fs.realpathSync(`${here}/link/..`).replace(process.cwd(), ""), fs.realpathSync.native(`${here}/state.json`).replace(process.cwd(), ""));
}

({ write, restart })[process.argv[2]]();
