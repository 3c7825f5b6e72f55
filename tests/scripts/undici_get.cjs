// undici, through the HTTP front at argv[2] by a ProxyAgent: CONNECT, fifty requests at once, bodies both ways, and a
// WebSocket to argv[6].
const assert = require("node:assert");
const { createHash } = require("node:crypto");
const { ProxyAgent, WebSocket, fetch, request } = require("undici");

const [proxy, url, length, digest, websocket] = process.argv.slice(2);

async function main() {
  const { origin, username, password } = new URL(proxy);
  const login = `${decodeURIComponent(username)}:${decodeURIComponent(password)}`;
  const token = `Basic ${Buffer.from(login).toString("base64")}`;
  // Requests to http targets go through CONNECT, or in absolute-form where the agent is told so.
  for (const proxyTunnel of [true, false]) {
    const dispatcher = new ProxyAgent({ uri: origin, token, proxyTunnel });
    const get = async () => (await fetch(`${url}/hello`, { dispatcher })).text();
    const texts = await Promise.all(Array.from({ length: 50 }, get));
    assert.deepStrictEqual(new Set(texts), new Set(["hello from inside\n"]));
    const body = Buffer.from(await (await fetch(`${url}/bytes/${length}`, { dispatcher })).arrayBuffer());
    assert.strictEqual(createHash("sha256").update(body).digest("hex"), digest);
    const answer = await request(`${url}/hash`, { dispatcher, method: "POST", body });
    assert.strictEqual(await answer.body.text(), `${digest} ${length}\n`);
    await dispatcher.close();
  }

  const dispatcher = new ProxyAgent({ uri: origin, token });
  const socket = new WebSocket(websocket, { dispatcher });
  const echoed = new Promise((resolve, reject) => {
    socket.onmessage = (event) => resolve(event.data);
    socket.onerror = (event) => reject(event.error);
  });
  socket.onopen = () => socket.send("hello");
  assert.strictEqual(await echoed, "hello");
  socket.close();
  await dispatcher.close();

  const stranger = new ProxyAgent({ uri: origin });
  await assert.rejects(request(`${url}/hello`, { dispatcher: stranger }), /407/);
  await stranger.close();
}

main().then(() => console.log("ok"));
