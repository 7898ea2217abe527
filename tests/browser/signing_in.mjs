// A person signs in with a real provider, in a real browser: from the button to the overview, out and in again, refused and
// told why, connected and disconnected on their page.
//
//   node tests/browser/signing_in.mjs http://127.0.0.1:18081 mock|certified PICTURES [target/browser]
//
// Ends with 1 when something is wrong. The pictures are for eyes.
import { createRequire } from "node:module";
import { mkdirSync } from "node:fs";
import path from "node:path";

const [base, kind, pictures, modules = "target/browser"] = process.argv.slice(2);
const require = createRequire(path.resolve(modules, "package.json"));
const { chromium } = require("playwright-core");
const { AxeBuilder } = require("@axe-core/playwright");

mkdirSync(pictures, { recursive: true });
const faults = [];
const fault = (where, what) => { faults.push(`${where}: ${what}`); console.error(`FAULT ${where}: ${what}`); };
const step = (text) => console.log(`- ${text}`);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--force-color-profile=srgb"] });

/** A browser of its own, as another person's. */
async function person() {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  context.setDefaultTimeout(15_000);
  const page = await context.newPage();
  page.on("console", (message) => {
    if (message.type() === "error" && page.url().startsWith(base) && !/Failed to load resource/.test(message.text())) fault(page.url(), message.text());
  });
  page.on("response", (answer) => { if (answer.status() >= 500) fault(answer.url(), `status ${answer.status()}`); });
  return page;
}
async function look(page, name) {
  for (const scheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: scheme });
    const found = await new AxeBuilder({ page }).withTags(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]).analyze();
    for (const finding of found.violations) fault(`${name} ${scheme}`, `${finding.id}: ${finding.nodes.map((node) => node.target.join(" ")).join("; ")}`);
    await page.screenshot({ path: path.join(pictures, `${kind}-${name}-${scheme}.png`), fullPage: true });
  }
  await page.setViewportSize({ width: 320, height: 700 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  if (wide > 320) fault(name, `scrolls sideways at 320 px: ${wide} px`);
  await page.screenshot({ path: path.join(pictures, `${kind}-${name}-narrow.png`), fullPage: true });
  await page.setViewportSize({ width: 1280, height: 900 });
}
/** What a person does at the provider, until they are sent back. */
async function atProvider(page, who) {
  if (kind === "mock") {
    await page.locator("input[name=sub]").fill(who);
    await page.getByRole("button", { name: "Authorize" }).click();
  } else {
    await page.locator("input[name=login]").fill(who);
    await page.locator("input[name=password]").fill("any");
    await page.locator("button[type=submit]").click();
    await page.locator("button[type=submit]").click();
  }
  await page.waitForURL(`${base}/**`);
}
const sub = (who) => (kind === "mock" ? who : who.split("@")[0]);

step("the button, the provider, the overview");
const page = await person();
await page.goto(`${base}/meters`);
await look(page, "login");
await page.getByRole("link", { name: "Continue with Acme ID" }).click();
await atProvider(page, sub("ann@example.com"));
if (!page.url().endsWith("/meters")) fault("sign-in", `led to ${page.url()} instead of the page that was asked for`);
await page.goto(`${base}/settings/sessions`);
if (!(await page.locator("#providers").innerText()).includes("ann@example.com")) fault("settings", "the provider is not shown");
if (await page.getByLabel("Present password").count()) fault("settings", "a password is asked for that there is not");
await look(page, "sessions");
await page.getByRole("button", { name: "Disconnect" }).click();
if (!(await page.getByRole("alert").innerText()).includes("only way")) fault("settings", "the last way in can be taken away");

step("out, and in again, without being asked who they are where the provider knows");
await page.locator("details.account summary").click();
await page.getByRole("button", { name: "Sign out", exact: true }).click();
await page.waitForURL(`${base}/login`);
await page.getByRole("link", { name: "Continue with Acme ID" }).click();
if (kind === "mock") await atProvider(page, sub("ann@example.com"));
else await page.waitForURL(`${base}/**`);
if (!page.url().endsWith("/overview")) fault("second sign-in", `led to ${page.url()}`);

step("an account with a password is not opened by the provider alone, and can be connected");
const other = await person();
await other.goto(`${base}/register`);
await look(other, "register");
await other.getByLabel("Email").fill("bob@example.com");
await other.getByLabel("Password").fill("correct horse battery");
await other.getByRole("button", { name: "Create account" }).click();
await other.waitForURL(`${base}/welcome`);
const third = await person();
await third.goto(`${base}/login`);
await third.getByRole("link", { name: "Continue with Acme ID" }).click();
await atProvider(third, sub("bob@example.com"));
if (!third.url().endsWith("/login")) fault("refused", `led to ${third.url()}`);
if (!(await third.getByRole("status").innerText()).includes("sign in with its password")) fault("refused", "the reason is not told");
await look(third, "refused");
await other.goto(`${base}/settings/sessions`);
await other.getByRole("link", { name: "Connect Acme ID" }).click();
await atProvider(other, sub("bob@example.com"));
if (!(await other.getByRole("status").innerText()).includes("is connected")) fault("connect", "it is not told");
await look(other, "connected");

step("whoever turns back at the provider is told");
const fourth = await person();
await fourth.goto(`${base}/login`);
await fourth.getByRole("link", { name: "Continue with Acme ID" }).click();
if (kind === "mock") await fourth.getByRole("button", { name: "Deny" }).click();
else await fourth.getByRole("link", { name: "Cancel" }).click();
await fourth.waitForURL(`${base}/login`);
if (!(await fourth.getByRole("status").innerText()).includes("Could not sign in")) fault("turned back", "it is not told");

await browser.close();
if (faults.length > 0) { console.error(`${faults.length} faults`); process.exit(1); }
