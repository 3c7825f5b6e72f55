// Chromium, driven by playwright-core, through the HTTP proxy at argv[2] with a login: a page whose script writes into
// it, a body of argv[4] bytes with its hash argv[5], a hundred requests at once, and a WebSocket to argv[6].
const assert = require("node:assert");
const { chromium } = require("playwright-core");

const [proxy, url, length, digest, websocket, flags] = process.argv.slice(2);

async function main() {
  const { origin, username, password } = new URL(proxy);
  const settings = { server: origin, bypass: "<-loopback>" };
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: flags.split(" ") });
  try {
    const login = { username: decodeURIComponent(username), password: decodeURIComponent(password) };
    const context = await browser.newContext({ proxy: { ...settings, ...login } });
    const page = await context.newPage();
    await page.goto(`${url}/page`);
    assert.match(await page.textContent("body"), /hello from inside/);

    const found = await page.evaluate(async (length) => {
      const body = await (await fetch(`/bytes/${length}`)).arrayBuffer();
      const posted = await (await fetch("/hash", { method: "POST", body })).text();
      const many = await Promise.all(Array.from({ length: 100 }, async (_, number) => {
        return (await fetch(`/hello?${number}`)).text();
      }));
      return { posted, many: new Set(many).size };
    }, length);
    assert.deepStrictEqual(found, { posted: `${digest} ${length}\n`, many: 1 });

    const echoed = await page.evaluate((websocket) => new Promise((resolve, reject) => {
      const socket = new WebSocket(websocket);
      socket.onopen = () => socket.send("hello");
      socket.onmessage = (event) => resolve(event.data);
      socket.onerror = () => reject(new Error("the WebSocket failed"));
    }), websocket);
    assert.strictEqual(echoed, "hello");

    const stranger = await browser.newContext({ proxy: { ...settings, username: "user", password: "wrong" } });
    const refused = await (await stranger.newPage()).goto(`${url}/page`).then((answer) => answer.status(), String);
    assert.match(String(refused), /407|ERR_/);
  } finally {
    await browser.close();
  }
}

main().then(() => console.log("ok"));
