// Every page of the dashboard in a real browser: in light, dark, at 320 px and for print; without an error in the
// console, without a finding of axe, without sideways scrolling; and the ways people take through them.
//
//   node tests/browser/pages.mjs http://127.0.0.1:18081 target/browser/pictures
//   node tests/browser/pages.mjs http://127.0.0.1:18081 none             only the ways, without looking at each page: what
//                                                                        a page looks like does not depend on the database
//
// Ends with 1 when something is wrong, after it has looked at everything. The pictures are for eyes.
import { createRequire } from "node:module";
import { spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import path from "node:path";

const [base, pictures, modules = "target/browser"] = process.argv.slice(2);
const require = createRequire(path.resolve(modules, "package.json"));
const { chromium } = require("playwright-core");
const { AxeBuilder } = require("@axe-core/playwright");

const faults = [];
const fault = (where, what) => { faults.push(`${where}: ${what}`); console.error(`FAULT ${where}: ${what}`); };
const step = (text) => console.log(`- ${text}`);

const looks = pictures !== "none";
if (looks) mkdirSync(pictures, { recursive: true });
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--force-color-profile=srgb"] });
const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
context.setDefaultTimeout(15_000);
const page = await context.newPage();
// the browser's own words for answers such as 404 are no fault of a page that is meant to answer so
const isFault = (text) => !/Failed to load resource/.test(text);
page.on("console", (message) => { if (message.type() === "error" && isFault(message.text())) fault(page.url(), message.text()); });
// Chromium gives a page transition up when the machine is slow, and says so as if a script had failed
const isSkippedTransition = (error) => String(error).includes("Transition was aborted because of invalid state");
page.on("pageerror", (error) => isSkippedTransition(error) || fault(page.url(), String(error)));
page.on("response", (answer) => { if (answer.status() >= 500) fault(answer.url(), `status ${answer.status()}`); });

const heading = () => page.locator("h1").first().innerText();
async function open(address, expected = 200) {
  const answer = await page.goto(base + address);
  if (answer.status() !== expected) fault(address, `status ${answer.status()} instead of ${expected}`);
}
/** Looks at the page that is shown in every way. */
async function look(name) {
  if ((await page.locator("h1").count()) !== 1) fault(name, "not exactly one h1");
  if (!looks) return;
  const shot = (kind, options = {}) => page.screenshot({ path: path.join(pictures, `${name}-${kind}.png`), fullPage: true, ...options });
  for (const scheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: scheme });
    const found = await new AxeBuilder({ page }).withTags(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]).analyze();
    for (const finding of found.violations) {
      fault(`${name} ${scheme}`, `${finding.id}: ${finding.nodes.slice(0, 3).map((node) => node.target.join(" ")).join("; ")}`);
    }
    await shot(scheme);
  }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize({ width: 320, height: 700 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  if (wide > 320) {
    const culprit = await page.evaluate(() => [...document.querySelectorAll("main *")].find((one) => one.getBoundingClientRect().right > 321 && !one.closest(".scroll"))?.outerHTML.slice(0, 120));
    fault(name, `scrolls sideways at 320 px: ${wide} px, ${culprit}`);
  }
  await shot("narrow");
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.emulateMedia({ media: "print" });
  await shot("print");
  await page.emulateMedia({ media: null });
}
const api = (address, body, key) => fetch(base + address, {
  method: "POST", headers: { "content-type": "application/json", authorization: `Bearer ${key}` }, body: JSON.stringify(body),
});

step("register, from nothing");
const email = `browser-${Date.now()}@example.com`;
await open("/");
if (!page.url().endsWith("/login")) fault("/", `led to ${page.url()}`);
await look("login");
await page.getByLabel("Email").fill("nobody@example.com");
await page.getByLabel("Password").fill("wrong password");
await page.getByRole("button", { name: "Sign in" }).click();
if (!(await page.getByRole("alert").innerText()).includes("incorrect")) fault("login", "a wrong password is not told");
await page.getByRole("link", { name: "Create account" }).click();
await look("register");
await page.getByLabel("Email").fill(email);
await page.getByLabel("Password").fill("correct horse battery");
const began = Date.now();
await page.getByRole("button", { name: "Create account" }).click();

step("welcome, to the first event");
await page.waitForURL("**/welcome");
await look("welcome-empty");
await page.getByRole("button", { name: "Create meter and key" }).click();
const key = (await page.locator("#secret").innerText()).trim();
await look("welcome-key");
const call = await page.locator("#call").innerText();
if (!call.includes(key)) fault("welcome", "the call does not hold the key");
const sent = JSON.parse(call.match(/-d '(.*)'/s)[1]);
// the snippets are run as they stand, each with the event of the page
const unescape = (id) => page.locator(`#call-${id}`).evaluate((element) => element.textContent);
for (const [id, program, flags] of [["python", "python3", ["-"]], ["typescript", process.execPath, ["--input-type=module", "-"]]]) {
  const text = await unescape(id);
  if (!text.includes(key)) fault("welcome", `the call in ${id} does not hold the key`);
  const run = spawnSync(program, flags, { input: text.replaceAll("first-", `${id}-`), encoding: "utf8" });
  if (!run.error && !run.stdout.includes("idempotency_key")) fault("welcome", `the call in ${id} says ${run.stdout} ${run.stderr}`);
}
const stored = await api("/v1/usages", sent, key);
if (stored.status !== 201) fault("welcome", `the call of the page answers ${stored.status}: ${await stored.text()}`);
await page.locator("#arrival.done, #arrival:has-text('It arrived')").first().waitFor();
step(`first event after ${Date.now() - began} ms`);
if (Date.now() - began > 60_000) fault("welcome", "the first event took more than a minute");
await look("welcome-done");

step("more to look at");
const made = await context.request.post(base + "/v1/auth/api-keys", { data: { name: "all", scopes: ["*"] } });
const all = (await made.json()).key;
await page.goto(base + "/meters/new");
await page.getByLabel("Name", { exact: true }).fill("tokens");
await page.getByLabel("Unit").fill("token");
await page.getByLabel("Description", { exact: true }).fill("Tokens of the language models");
await page.getByRole("button", { name: "Add" }).click();
await page.getByLabel("Dimension name").fill("model");
await page.getByLabel("Dimension display name").fill("Model");
await page.getByLabel("Required").check();
await page.getByRole("button", { name: "Add" }).click();
await page.getByLabel("Dimension name").nth(1).fill("region");
await look("meter-new");
await page.getByRole("button", { name: "Create meter" }).click();
if ((await heading()) !== "tokens") fault("meters", "creating a meter did not lead to it");
const day = 86_400_000;
const events = [];
for (let n = 0; n < 900; n++) {
  const at = new Date(Date.now() - (n % 30) * day - (n * 7_919_000) % day);
  events.push({
    idempotency_key: `seed-${n}`, meter: "tokens", subject: `org_${(n * n) % 7}`, quantity: 10 + (n * 37) % 400,
    timestamp: at.toISOString(), metadata: { model: ["small", "medium", "large"][n % 3], ...(n % 4 ? { region: n % 2 ? "eu" : "us" } : {}) },
  });
}
const bulk = await api("/v1/usages/bulk", events, all);
if (bulk.status !== 201) fault("seed", await bulk.text());
await api("/v1/usages/bulk", [events[0], { ...events[1], quantity: 9999 }, { ...events[2], meter: "nosuch", idempotency_key: "bad-1" }, { ...events[3], quantity: -1, idempotency_key: "bad-2" }, { ...events[4], metadata: {}, idempotency_key: "bad-3" }], all);

const names = ["overview", "usage", "events", "meters", "subjects", "quota", "plans", "decisions", "ingestion", "api-keys", "api-keys/new", "usage/saved"];
for (const name of names) {
  await open(`/${name}`);
  await look(name.replace("/", "-"));
}
await open("/usage?meter=tokens&range=28d%2Btoday&group=model&cmp=prev&f=metadata.region:exists:");
await look("usage-grouped");
await page.getByLabel("Chart type").selectOption("line");
await page.getByLabel("Show chart points").check();
await page.getByLabel("Stack chart series").uncheck();
await page.getByRole("button", { name: "Run Query" }).click();
await page.locator("svg.plot .points").first().waitFor({ state: "attached" }).catch(() => fault("usage", "points are not drawn"));
await look("usage-points");
await page.getByLabel("Saved query name").fill("Tokens by model");
await page.getByRole("button", { name: "Save", exact: true }).click();
if (!(await page.getByRole("status").first().innerText()).includes("Saved as")) fault("usage", "saving is not told");
await open("/usage?meter=tokens&range=28d%2Btoday");
await page.getByRole("link", { name: "Filter by Region: eu" }).click();
if (!page.url().includes("f=metadata.region%3Aeq%3Aeu")) fault("usage", `a breakdown led to ${page.url()}`);
await open("/usage?meter=tokens&q=or(subject:eq:org_1,and(quantity:gt:400,metadata.model:eq:small))");
if (!(await page.locator("main").innerText()).includes("(subject is org_1 or (quantity > 400 and model is small))")) fault("usage", "a nested filter is not shown");
await look("usage-nested");
await open("/usage?meter=tokens&range=nonsense", 422);
await open("/usage?meter=tokens&range=28d%2Btoday&group=model");
await page.getByRole("button", { name: "Short link" }).click();
await page.waitForURL("**/usage/q/*");
if (!(await page.getByRole("status").first().innerText()).includes("short now")) fault("usage", "a short link is not told");
await look("usage-short");
await open(`/usage?meter=tokens&range=28d%2Btoday&f=subject:in:${Array.from({ length: 800 }, (_, n) => `org_${n}`).join(",")}`);
if (!page.url().includes("/usage/q/")) fault("usage", "a long view keeps its long address");
await open("/usage/saved");
await page.getByRole("button", { name: "Share" }).click();
await look("saved");
await open("/overview");
await look("overview-pinned");
await open("/events?meter=tokens");
await page.getByRole("link", { name: "Details" }).first().click();
await look("event");
await open("/events?from=2026-01-01&to=2026-01-02");
await page.getByLabel("Range", { exact: true }).selectOption("7d");
await page.getByRole("button", { name: "Show" }).click();
await page.waitForURL(/range=7d/);
if (/from=2/.test(page.url())) fault("events", "a range that was chosen does not take the place of two times");
await open("/meters/tokens");
await look("meter");
await open("/meters/tokens/delete");
if (!(await page.locator("#impact").innerText()).includes("stored events use this meter")) fault("meters", "the impact is not told");
await look("confirm-refused");
await open("/meters/nosuch", 404);
await look("not-found");
await open("/nosuch", 404);
if ((await heading()) !== "Not found") fault("/nosuch", "a path that leads nowhere is no page");

step("a plan and who has it");
await open("/plans/new");
await page.getByLabel("Name", { exact: true }).fill("Pro");
await page.getByLabel("Meter", { exact: true }).selectOption("tokens");
await page.getByLabel("Limit", { exact: true }).fill("26,000");
await look("plan-new");
await page.getByRole("button", { name: "Create plan" }).click();
await page.getByLabel("Subject").fill("org_1");
await page.getByRole("button", { name: "Assign" }).click();
const plan = page.url();
await page.locator("#plan-state tbody tr").first().waitFor();
await look("plan");
await page.goto(`${plan}/edit`);
await page.getByLabel("Limit", { exact: true }).fill("100");
await page.getByRole("button", { name: "Preview changes" }).click();
await look("plan-preview");
await open("/subjects/org_1");
await look("subject");
await open("/quota");
await look("quota-full");


step("an alert and where it goes");
await open("/destinations/new");
await page.getByLabel("Name", { exact: true }).fill("Operations");
await page.getByLabel("Webhook URL").fill("https://example.com/hook");
await look("destination-new");
await page.getByRole("button", { name: "Create destination" }).click();
if (!(await page.locator("#secret").innerText()).startsWith("osp_whsec_")) fault("destinations", "no secret is shown");
await look("destination-secret");
await page.getByRole("link", { name: "I have stored it" }).click();
await look("destination");
await open("/alerts/new?meter=tokens");
await page.getByLabel("Name", { exact: true }).fill("Many tokens");
await page.getByLabel("Threshold").fill("5000");
await page.getByLabel("Over the last").selectOption("86400");
await page.getByRole("button", { name: "Test on the last 28 days" }).click();
if (!/fired \d+ times? in 28 days/.test(await page.locator("#tested h2").innerText())) fault("alerts", "the test of a rule tells nothing");
await look("alert-new");
await page.getByRole("button", { name: "Create alert" }).click();
await page.getByRole("button", { name: "Evaluate" }).click();
await look("alert");
await page.getByRole("button", { name: "Snooze" }).click();
if (!(await page.getByText("Snoozed until").first().waitFor().then(() => true, () => false))) fault("alerts", "a snooze is not shown");
await look("alert-snoozed");
await page.getByRole("button", { name: "End the snooze" }).click();
await open("/alerts/new?meter=tokens");
await page.getByLabel("Name", { exact: true }).fill("Any token");
await page.getByLabel("Threshold").fill("1");
await page.getByLabel("Over the last").selectOption("2592000");
await page.getByRole("button", { name: "Create alert" }).click();
await page.getByRole("button", { name: "Evaluate" }).click();
await open("/alerts");
await look("alerts");
await page.locator("a[href^='/alerts/events/']").first().click();
await page.getByText("Delivery").first().waitFor();
await look("alert-event");
await open("/deliveries");
await look("deliveries");
await page.getByRole("link", { name: "Send all that match again" }).click();
await look("deliveries-replay");

step("an export, to its file");
await open("/usage?meter=tokens&range=28d%2Btoday&group=model");
await page.getByRole("link", { name: "Queue Export" }).click();
await look("export-new");
await page.getByRole("button", { name: "Queue Export" }).click();
await page.getByRole("link", { name: "Download" }).waitFor();
await look("export");
const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("link", { name: "Download" }).click()]);
if (!download.suggestedFilename().endsWith(".csv")) fault("exports", `the file is called ${download.suggestedFilename()}`);
await open("/exports");
await look("exports");

step("why, and is all well");
await open("/explain?q=seed-7");
if (!(await page.locator("main").innerText()).includes("Stored:")) fault("explain", "a stored key is not explained");
await look("explain");
await open("/events/refused");
await page.getByText("the idempotency key stands for another event").first().waitFor();
await look("refused");
// on a phone the reason is read without scrolling sideways
await page.setViewportSize({ width: 320, height: 700 });
const reason = await page.locator("#refused tbody tr").first().locator("td").nth(1).boundingBox();
if (!reason || reason.x < 0 || reason.x + reason.width > 320) fault("refused", `the reason lies at ${JSON.stringify(reason)} of 320 px`);
await page.setViewportSize({ width: 1280, height: 900 });
await open("/events/refused?outcome=conflict");
await page.locator("tbody a").first().click();
if (!(await page.locator("tr.diff").innerText()).includes("quantity")) fault("refused", "the difference is not marked");
await look("refused-conflict");
await open("/events/refused?outcome=rejected");
await page.locator("tbody a").first().click();
if (!(await page.locator("tr.diff").innerText()).includes("refused")) fault("refused", "the field at fault is not marked");
await look("refused-event");
await open("/explain?q=bad-1");
if (!(await page.locator("main").innerText()).includes("nosuch")) fault("explain", "a refused key is not explained");
await open("/explain?q=never-sent");
await look("explain-nothing");
await open("/decisions?try_subject=org_1&try_meter=tokens&try_quantity=30000");
if (!(await page.locator("#try").innerText()).includes("would not be let in")) fault("decisions", "a try is not answered");
await look("decisions-try");
await open("/ingestion");
await page.locator("a[href^='/ingestion/']").first().click();
await look("write-call");
for (const name of ["system", "jobs", "jobs/workers/webhook", "audit", "settings", "settings/sessions", "search?q=o", "api-keys", "api-keys/workspace", "members", "members/leave", "destinations"]) {
  await open(`/${name}`);
  await look(name.replace(/[?=/]/g, "-"));
}
await page.goto(base + "/api-keys/new");
await page.getByLabel("Name", { exact: true }).fill("gateway");
await page.getByRole("button", { name: "Create key" }).click();
await look("key-created");

step("a link for a customer");
await open("/subjects/org_1/links");
await page.getByLabel("Sites that may show it in a frame").fill("https://app.example.com");
await page.getByRole("button", { name: "Make link" }).click();
const link = (await page.locator("#secret").innerText()).trim();
await look("links");
{
  const guest = await browser.newContext();
  const customer = await guest.newPage();
  customer.on("console", (message) => { if (message.type() === "error" && isFault(message.text())) fault("share", message.text()); });
  const shown = await customer.goto(link);
  if (shown.status() !== 200) fault("share", `status ${shown.status()}`);
  const text = await customer.locator("main").innerText();
  if (!text.includes("org_1") || /org_[02-9]/.test(text)) fault("share", "it shows another subject, or not its own");
  if ((await guest.cookies()).length) fault("share", "it sets a cookie");
  const links = await customer.$$eval("a[href]", (all) => all.map((one) => one.getAttribute("href")));
  if (links.some((href) => !/^\?days|^\/share\//.test(href))) fault("share", `it links to ${links}`);
  await guest.close();
}
await page.goto(link);
await look("share");
await page.goto(`${link}?embed=1&days=90`);
await look("share-embedded");
await open("/subjects/org_1/links");
await page.getByRole("link", { name: "Take back" }).click();
await page.waitForURL("**/revoke");
await look("confirm");
await page.getByRole("button", { name: "Take back the link" }).click();
await page.waitForURL("**/links");
const over = await page.goto(link);
if (over.status() !== 404) fault("share", `a link that was taken back answers ${over.status()}`);

step("without a script");
const plain = await browser.newContext({ javaScriptEnabled: false, storageState: await context.storageState() });
const still = await plain.newPage();
for (const address of ["/overview", "/usage?meter=tokens&group=model", "/events", "/quota", "/plans", "/alerts", "/exports", "/system"]) {
  const answer = await still.goto(base + address);
  if (answer.status() !== 200 || (await still.locator("h1").count()) !== 1) fault(address, "does not work without a script");
}
await still.goto(base + "/usage?meter=tokens");
await still.getByLabel("Filter", { exact: true }).selectOption("metadata.model");
await still.getByLabel("Value").fill("small");
await still.getByRole("button", { name: "Run Query" }).click();
if (!still.url().includes("f=metadata.model")) fault("/usage", `a filter without a script led to ${still.url()}`);
await plain.close();

step("by keyboard alone");
await open("/overview");
await page.keyboard.press("Tab");
if ((await page.evaluate(() => document.activeElement.textContent)) !== "Skip to the content") fault("keyboard", "the first stop is not the skip link");
await page.keyboard.press("Enter");
if ((await page.evaluate(() => document.activeElement.id)) !== "main") fault("keyboard", "the skip link leads nowhere");
for (const theme of ["light", "dark", "system"]) {
  await page.keyboard.press("t");
  await page.waitForFunction((wanted) => document.documentElement.dataset.theme === wanted, theme);
}
await page.keyboard.press("g");
await page.keyboard.press("u");
await page.waitForURL("**/usage");
await page.keyboard.press("/");
await page.keyboard.type("org_1");
await page.keyboard.press("Enter");
await page.waitForURL("**/subjects/org_1");
/** Walks with Tab until the element that is focused is this one. */
async function walk(selector) {
  for (let stops = 0; stops < 120; stops++) {
    await page.keyboard.press("Tab");
    const there = await page.evaluate((wanted) => document.activeElement.matches(wanted), selector);
    if (!there) continue;
    const ring = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    if (ring === "none") fault("keyboard", `${selector} shows no focus`);
    return;
  }
  fault("keyboard", `${selector} cannot be reached`);
}
await page.keyboard.press("?");
await page.waitForURL("**/settings#keyboard");
await page.getByRole("button", { name: "Switch them off" }).click();
await page.keyboard.press("g");
await page.keyboard.press("u");
await page.waitForTimeout(300);
if (!page.url().endsWith("/settings")) fault("keyboard", "keys that are switched off do something");
await page.getByRole("button", { name: "Switch them on" }).click();
await open("/usage?meter=tokens&group=model");
await page.keyboard.press("[");
await page.waitForURL(/from=/);
await open("/usage?meter=tokens&group=model");
await walk("#cmp");
await page.keyboard.press("ArrowDown");
await walk("main form button.primary");
await page.keyboard.press("Enter");
await page.waitForURL(/cmp=prev/);
await walk("[data-chart]");
await page.keyboard.press("End");
if (!(await page.locator(".readout").innerText()).includes("not over yet")) fault("charts", "the last bucket is not told");
await look("usage-crosshair");
await page.locator("[data-chart]").focus();
await page.keyboard.press("Home");
const first = await page.locator(".readout").innerText();
await page.keyboard.press("ArrowRight");
if ((await page.locator(".readout").innerText()) === first) fault("charts", "an arrow leads nowhere");
await page.keyboard.press("Enter");
await page.waitForURL(/\/events\?.*from=/);
await open("/usage?meter=tokens&range=28d%2Btoday");
const buckets = page.locator("[data-chart] .hit");
const [left, right] = [await buckets.nth(5).boundingBox(), await buckets.nth(9).boundingBox()];
await page.mouse.move(left.x + left.width / 2, left.y + 50);
await page.mouse.down();
await page.mouse.move(right.x + right.width / 2, right.y + 50, { steps: 6 });
await page.mouse.up();
await page.waitForURL(/from=.*&to=/);
if (!(await page.locator("figcaption").innerText()).match(/in (5|120|121|119) buckets/)) fault("charts", `drawing over five days shows ${await page.locator("figcaption").innerText()}`);
await open("/meters/new");
await walk("#name");
await page.keyboard.type("by_keys");
await walk("#unit");
await page.keyboard.type("key");
await walk("main button.primary");
await page.keyboard.press("Enter");
await page.waitForURL(/\/meters\/[^n]/);
if ((await heading()) !== "by_keys") fault("keyboard", "a meter cannot be made by keys");

await open("/meters");
await page.locator("tbody a").first().focus();
await page.keyboard.press("ArrowDown");
const row = await page.evaluate(() => document.activeElement.closest("tr")?.rowIndex);
if (row !== 2) fault("keyboard", `an arrow leads from the first row to ${row}`);

step("zones");
await open("/settings");
await page.getByLabel("Times are shown in").fill("Asia/Kolkata");
await page.getByRole("button", { name: "Save the zone", exact: true }).click();
await open("/events");
if (!(await page.locator("#event-rows thead").innerText()).includes("Asia/Kolkata")) fault("zones", "the zone is not shown");
await look("events-zone");
await open("/settings");
await page.getByLabel("Times are shown in").fill("UTC");
await page.getByRole("button", { name: "Save the zone", exact: true }).click();

step("seven tabs at once, and one stream for all");
let streams = 0;
context.on("request", (request) => { if (request.url().endsWith("/live")) streams++; });
const tabs = await Promise.all(Array.from({ length: 7 }, () => context.newPage()));
const opened = Date.now();
await Promise.all(tabs.map((tab) => tab.goto(base + "/events")));
if (Date.now() - opened > 15_000) fault("/events", "seven tabs block each other");
await page.waitForTimeout(4000);
if (streams > 2) fault("/events", `seven tabs hold ${streams} streams`);
const late = `late-${Date.now()}`;
await api("/v1/usages", { idempotency_key: late, meter: "tokens", subject: "org_1", quantity: 1, metadata: { model: "small" } }, all);
const told = Date.now();
await Promise.all(tabs.map((tab) => tab.getByText(late).waitFor().catch(() => fault("/events", "a tab is not told of an event"))));
step(`an event is in seven tabs after ${Date.now() - told} ms`);
await Promise.all(tabs.map((tab) => tab.close()));

step("a list that is held still");
await open("/events");
await page.getByRole("button", { name: "Pause" }).click();
const held = `held-${Date.now()}`;
await api("/v1/usages", { idempotency_key: held, meter: "tokens", subject: "org_1", quantity: 1, metadata: { model: "small" } }, all);
await page.locator("#live-status").getByText("1 new").waitFor().catch(() => fault("/events", "what waits is not told"));
if (await page.getByText(held).count()) fault("/events", "a page that is held still moves");
await page.getByRole("button", { name: "Resume" }).click();
await page.getByText(held).waitFor().catch(() => fault("/events", "what waited does not come"));

step("every link, as owner, admin and viewer");
/** Follows the links of the pages, one address of each shape. */
async function crawl(who, visitor) {
  const shapes = new Set();
  const waiting = ["/overview"];
  let visited = 0;
  while (waiting.length) {
    const address = waiting.pop();
    const { pathname, searchParams } = new URL(address, base);
    // how a view looks is looked at once, not with everything else that it may be
    const look = ["auto", "hide", "sort"].find((name) => searchParams.has(name));
    const names = look ? [look] : [...new Set(searchParams.keys())].sort();
    const shape = pathname.replace(/[0-9a-f-]{20,}|org_\d+/g, "*") + names.join("&");
    if (shapes.has(shape) || /^\/(static|swagger|v1|openapi)/.test(pathname) || searchParams.has("format")) continue;
    shapes.add(shape);
    const answer = await visitor.goto(base + address).catch((error) => fault(address, String(error)));
    if (!answer) continue;
    visited++;
    if (answer.status() >= 400) fault(address, `answers ${answer.status()} to the ${who}`);
    waiting.push(...(await visitor.$$eval("a[href^='/']", (links) => links.map((link) => link.getAttribute("href")))));
  }
  step(`${visited} addresses as ${who}`);
}
await crawl("owner", page);
for (const role of ["admin", "viewer"]) {
  const address = `${role}-${Date.now()}@example.com`;
  const invited = await context.request.post(base + "/v1/auth/workspace/invitations", { data: { email: address, role } });
  const { token } = await invited.json();
  const other = await browser.newContext();
  other.setDefaultTimeout(15_000);
  const visitor = await other.newPage();
  visitor.on("console", (message) => { if (message.type() === "error" && isFault(message.text())) fault(visitor.url(), message.text()); });
  await other.request.post(base + "/v1/auth/users", { data: { email: address, password: "correct horse battery" } });
  await other.request.post(base + "/v1/auth/sessions", { data: { email: address, password: "correct horse battery" } });
  const accepted = await other.request.post(`${base}/v1/auth/workspace-invitations/${token}/accept`);
  if (!accepted.ok()) fault("invitations", `the ${role} is not let in: ${await accepted.text()}`);
  await crawl(role, visitor);
  await other.close();
}

step("dead ends");
await open("/subjects/nobody", 404);
await page.context().clearCookies();
await open("/usage?meter=tokens");
if (!page.url().includes("/login?next=")) fault("/usage", `without a session it led to ${page.url()}`);

await browser.close();
console.log(faults.length ? `${faults.length} faults:\n${faults.join("\n")}` : "every page is fine");
process.exit(faults.length ? 1 : 0);
