// A newcomer with nothing but a browser: registers, sends a first event, sets a limit, makes an alert and takes an export
// home, by what pages offer; no address is typed but the first.
//
//   node tests/browser/newcomer.mjs http://127.0.0.1:18081 [folder with playwright-core]
//
// Prints how long each step took; ends with 1 at the first thing that is not there.
import { createRequire } from "node:module";
import path from "node:path";

const [base, modules = "target/browser"] = process.argv.slice(2);
const require = createRequire(path.resolve(modules, "package.json"));
const { chromium } = require("playwright-core");

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const page = await (await browser.newContext({ viewport: { width: 1280, height: 900 } })).newPage();
page.setDefaultTimeout(15_000);
let began = Date.now();
const step = (text) => { console.log(`- ${text} (${Date.now() - began} ms)`); began = Date.now(); };
const link = (name) => page.getByRole("link", { name, exact: true }).first().click();
const button = (name) => page.getByRole("button", { name, exact: true }).first().click();
const nav = (name) => page.getByRole("navigation", { name: "Pages" }).first().getByRole("link", { name, exact: true }).click();
const says = async (text) => page.getByText(text).first().waitFor();
const field = (label, value) => page.getByLabel(label, { exact: true }).fill(value);

await page.goto(base);
await link("Create account");
await field("Email", `newcomer-${Date.now()}@example.com`);
await field("Password", "correct horse battery");
await button("Create account");
await page.waitForURL("**/welcome");
step("registered");

await button("Create meter and key");
await page.locator("#secret").waitFor();
await button("Send a test event from here");
await says("It arrived");
step("first event counted");

await link("Explore usage");
await page.locator("svg.plot").first().waitFor();
step("seen in a chart");

await nav("Plans");
await link("Make one");
await field("Name", "Starter");
await page.getByLabel("Limit", { exact: true }).fill("1");
await button("Create plan");
await nav("Subjects");
await page.locator("main tbody a").first().click();
const subject = await page.locator("h1").innerText();
await link("Assign plan");
await page.locator("main button.primary").click();
await page.locator("main svg.quota").first().waitFor();
step(`${subject} has a plan`);
await nav("First event");
await button("Send a test event from here");
await nav("Quota");
await page.locator("main tbody tr").first().waitFor();
step("its limit is on the page of quotas");

await nav("Alerts");
await link("New alert");
await link("Make a destination first");
await field("Name", "On call");
await field("Webhook URL", "https://example.com/hook");
await button("Create destination");
await link("Make an alert that is sent there");
await field("Name", "Any call");
await field("Threshold", "1");
await button("Test on the last 28 days");
await says(/It would (not )?have fired/);
await button("Create alert");
await button("Evaluate");
await page.getByText("triggered").first().waitFor();
step("an alert fired");

await nav("Explore");
await link("Queue Export");
await button("Queue Export");
await page.getByRole("link", { name: "Download" }).waitFor();
const [download] = await Promise.all([page.waitForEvent("download"), link("Download")]);
if (!download.suggestedFilename().endsWith(".csv")) throw new Error(`the file is called ${download.suggestedFilename()}`);
step("an export is on the disk");

await browser.close();
console.log("a newcomer gets through");
