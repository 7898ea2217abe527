// What pages cost, as a table: time to the first byte against a page that does nothing, bytes as they travel, statements
// of the database; requests and layout shifts of a first visit; and the four scores of Lighthouse in both themes.
// scripts/page-budgets starts a server and runs this.
//
//   node tests/browser/budgets.mjs http://127.0.0.1:18081 20000 target/browser [--no-lighthouse]
//
// The server must show its metrics (OPEN_SPANNER_HTTP_METRICS=true). Ends with 1 when a page breaks its budget.
import http from "node:http";
import { createRequire } from "node:module";
import path from "node:path";

const [base, wanted = "20000", modules = "target/browser", flag = ""] = process.argv.slice(2);
const require = createRequire(path.resolve(modules, "package.json"));
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
const cookies = new Map();
const ROUNDS = 40;
/** Statements that a page may take, by the beginning of its address; pages that show something of everything take more. */
const STATEMENTS = [["/overview", 12], ["/usage", 13], ["/meters/", 10], ["/subjects/", 11], ["/system", 7], ["/", 10]];
/** Of a build for release on a machine that does nothing else: a list or one thing, the overview, the largest query. */
const RATIOS = [["/overview", 12], ["/usage", 20], ["/meters/", 12], ["/subjects/", 12], ["/system", 12], ["/", 8]];
const most = (table, address) => table.find(([beginning]) => address.startsWith(beginning))[1];
const HTML_BYTES = 50 * 1024;
const ASSET_BYTES = 12 * 1024;
/** Page, style, script and icon. */
const FIRST_REQUESTS = 4;
const LIGHTHOUSE = 95;

function ask(address, { method = "GET", body, headers = {} } = {}) {
  const cookie = [...cookies].map(([name, value]) => `${name}=${value}`).join("; ");
  return new Promise((resolve, reject) => {
    const began = process.hrtime.bigint();
    const request = http.request(base + address, { method, agent, headers: { cookie, "accept-encoding": "br, gzip", "sec-fetch-site": "same-origin", ...headers } }, (answer) => {
      const first = Number(process.hrtime.bigint() - began) / 1e6;
      const parts = [];
      answer.on("data", (part) => parts.push(part));
      answer.on("end", () => {
        for (const line of answer.headers["set-cookie"] ?? []) {
          const [name, value] = line.split(";")[0].split("=");
          if (value) cookies.set(name, value); else cookies.delete(name);
        }
        resolve({ status: answer.statusCode, headers: answer.headers, first, body: Buffer.concat(parts) });
      });
    });
    request.on("error", reject);
    request.end(body);
  });
}
const json = (address, body, key) => ask(address, {
  method: "POST", body: JSON.stringify(body),
  headers: { "content-type": "application/json", "accept-encoding": "identity", ...(key ? { authorization: `Bearer ${key}` } : {}) },
});
const middle = (numbers) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];

const email = `budgets-${Date.now()}@example.com`;
await ask("/register", { method: "POST", body: `email=${encodeURIComponent(email)}&password=correct+horse+battery`, headers: { "content-type": "application/x-www-form-urlencoded" } });
const key = JSON.parse((await json("/v1/auth/api-keys", { name: "all", scopes: ["*"] })).body).key;
await json("/v1/meters", { name: "tokens", unit: "token", aggregation: "sum", dimensions: [{ name: "model", type: "string" }, { name: "region", type: "string" }] }, key);
const total = Number(wanted);
for (let done = 0; done < total; done += 1000) {
  const events = Array.from({ length: Math.min(1000, total - done) }, (_, at) => {
    const n = done + at;
    return {
      idempotency_key: `b-${n}`, meter: "tokens", subject: `org_${(n * 7919) % Math.max(10, total / 100)}`, quantity: 1 + (n % 50),
      timestamp: new Date(Date.now() - ((n * 104_729) % 7_776_000) * 1000).toISOString(),
      metadata: { model: ["small", "medium", "large"][n % 3], region: n % 2 ? "eu" : "us" },
    };
  });
  const stored = await json("/v1/usages/bulk", events, key);
  if (stored.status !== 201) throw new Error(`seeding: ${stored.status} ${stored.body}`);
}
const plan = JSON.parse((await json("/v1/plans", { name: "Pro", limits: [{ meter: "tokens", period: "month", limit: 1000 }] }, key)).body);
for (let n = 0; n < 10; n++) {
  await ask(`/v1/plans/subjects/org_${n}`, { method: "PUT", body: JSON.stringify({ plan_id: plan.id }), headers: { "content-type": "application/json", authorization: `Bearer ${key}` } });
}
console.log(`${total} events over 90 days; the middle of ${ROUNDS} requests each\n`);

async function statements() {
  const text = (await ask("/metrics", { headers: { "accept-encoding": "identity" } })).body.toString();
  return text.split("\n").filter((line) => line.startsWith("open_spanner_db_statements_total{"))
    .reduce((sum, line) => sum + (/operation="(jobs|leases|deliveries|changes|retention|heartbeat|readiness|ingestion_runs|exports)::/.test(line) && !/jobs::(overview|dead)|exports::(list|page)/.test(line) ? 0 : Number(line.split(" ").pop())), 0);
}
async function cost(address) {
  for (let n = 0; n < 3; n++) await ask(address);
  const before = await statements();
  const one = await ask(address);
  const spent = (await statements()) - before;
  const times = [];
  for (let n = 0; n < ROUNDS; n++) times.push((await ask(address)).first);
  return { status: one.status, bytes: one.body.length, spent, time: middle(times), p95: times.toSorted((a, b) => a - b)[Math.floor(ROUNDS * 0.95)] };
}

const broken = [];
const nothing = await cost("/settings");
const pages = [
  "/settings", "/overview", "/usage?meter=tokens&range=28d%2Btoday", "/usage?meter=tokens&range=90d%2Btoday&group=model,region&cmp=prev",
  "/events", "/events?meter=tokens&f=metadata.model%3Aeq%3Asmall", "/events/refused", "/ingestion", "/meters", "/meters/tokens", "/subjects", "/subjects/org_1",
  "/quota", "/plans", `/plans/${plan.id}`, "/decisions", "/alerts", "/deliveries", "/exports", "/jobs", "/system", "/api-keys", "/members", "/explain?q=b-7",
];
console.log("page".padEnd(72), "ms".padStart(7), "p95".padStart(7), "ratio".padStart(6), "bytes".padStart(7), "SQL".padStart(4));
for (const address of pages) {
  const { status, bytes, spent, time, p95 } = await cost(address);
  const ratio = time / nothing.time;
  console.log(address.padEnd(72), time.toFixed(1).padStart(7), p95.toFixed(1).padStart(7), ratio.toFixed(1).padStart(6), String(bytes).padStart(7), String(spent).padStart(4));
  if (status !== 200) broken.push(`${address} answers ${status}`);
  if (bytes > HTML_BYTES) broken.push(`${address} takes ${bytes} bytes`);
  if (ratio > most(RATIOS, address)) broken.push(`${address} takes ${ratio.toFixed(1)} times a page that does nothing`);
  if (spent > most(STATEMENTS, address)) broken.push(`${address} takes ${spent} statements, ${most(STATEMENTS, address)} are allowed`);
}
const page = (await ask("/settings", { headers: { "accept-encoding": "identity" } })).body.toString();
for (const [asset] of page.matchAll(/\/static\/[^"]+/g)) {
  const { body, headers } = await ask(asset);
  console.log(path.basename(asset).padEnd(72), "".padStart(22), String(body.length).padStart(7), headers["content-encoding"] ?? "");
  if (body.length > ASSET_BYTES) broken.push(`${asset} takes ${body.length} bytes`);
}


// A first visit: what the browser asks for, and what moves while it loads; once with nothing in its cache, once with all.
const main = ["/overview", pages[3], "/events", "/meters/tokens", "/subjects/org_1", "/quota", "/alerts", "/system"];
const { chromium } = require("playwright-core");
const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
console.log("\n" + "first visit".padEnd(72), "requests".padStart(9), "later".padStart(6), "shift".padStart(7), "long tasks".padStart(11));
for (const address of main) {
  const context = await browser.newContext();
  const { hostname } = new URL(base);
  await context.addCookies([...cookies].map(([name, value]) => ({ name, value, domain: hostname, path: "/" })));
  await context.addInitScript(() => {
    globalThis.seen = { shift: 0, long: 0 };
    new PerformanceObserver((list) => list.getEntries().forEach((entry) => { if (!entry.hadRecentInput) seen.shift += entry.value; })).observe({ type: "layout-shift", buffered: true });
    new PerformanceObserver((list) => { seen.long += list.getEntries().length; }).observe({ type: "longtask", buffered: true });
  });
  const visit = await context.newPage();
  // the icon is asked for twice, and kept after the first time
  const asked = new Set();
  // what is live begins after the page is there, and is not part of it
  visit.on("response", (answer) => { if (!answer.url().endsWith("/live")) asked.add(answer.url()); });
  await visit.goto(base + address, { waitUntil: "load" });
  await visit.waitForTimeout(300);
  const seen = await visit.evaluate(() => globalThis.seen);
  const first = asked.size;
  const later = await visit.goto(base + address, { waitUntil: "load" }).then(() => visit.evaluate(() =>
    performance.getEntriesByType("resource").filter((one) => one.transferSize > 0 && !one.name.endsWith("/live")).length + 1));
  console.log(address.padEnd(72), String(first).padStart(9), String(later).padStart(6), seen.shift.toFixed(3).padStart(7), String(seen.long).padStart(11));
  if (first > FIRST_REQUESTS) broken.push(`${address} asks for ${first} things on a first visit`);
  if (later > 1) broken.push(`${address} asks for ${later} things on a later visit`);
  if (seen.shift > 0.01) broken.push(`${address} moves while it loads: ${seen.shift.toFixed(3)}`);
  await context.close();
}
await browser.close();

if (flag !== "--no-lighthouse") {
  const { default: lighthouse } = await import(require.resolve("lighthouse"));
  const { launch } = await import(require.resolve("chrome-launcher"));
  const chrome = await launch({ chromePath: executablePath, chromeFlags: ["--headless=new", "--no-sandbox"] });
  console.log("\nLighthouse: performance, accessibility, best practices, SEO");
  for (const address of main) {
    for (const theme of ["light", "dark"]) {
      const cookie = [...cookies, ["open_spanner_theme", theme]].map(([name, value]) => `${name}=${value}`).join("; ");
      const measure = () => lighthouse(base + address, { port: chrome.port, logLevel: "error", extraHeaders: { cookie }, formFactor: "desktop", screenEmulation: { disabled: true }, throttlingMethod: "provided", skipAudits: ["is-crawlable"] });
      // pages of a signed-in person are for no search engine, so whether one may read them is not asked
      // a machine that is busy for a moment is no fault of the page
      let { lhr } = await measure();
      if (lhr.categories.performance.score < LIGHTHOUSE / 100) ({ lhr } = await measure());
      const scores = Object.values(lhr.categories).map((category) => Math.round(category.score * 100));
      console.log(address.padEnd(72), theme.padEnd(6), scores.join(" "));
      if (Math.min(...scores) < LIGHTHOUSE) {
        const failed = Object.values(lhr.audits).filter((audit) => audit.score !== null && audit.score < 0.9).map((audit) => audit.id);
        broken.push(`${address} ${theme}: ${scores.join(" ")} (${failed.join(", ")})`);
      }
    }
  }
  await chrome.kill();
}
agent.destroy();
console.log(broken.length ? `\n${broken.length} budgets are broken:\n${broken.join("\n")}` : "\nevery page keeps its budget");
process.exit(broken.length ? 1 : 0);
