// What a page can do beyond links and forms. Every page works without this file.

const policy = globalThis.trustedTypes
  ? trustedTypes.createPolicy("app", { createHTML: (text) => text })
  : { createHTML: (text) => text };
const parse = (text) => new DOMParser().parseFromString(policy.createHTML(text), "text/html");

// Copy buttons are hidden until there is a script to press them.
for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
}
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = document.getElementById(button.dataset.copy);
  const text = source.value ?? source.textContent;
  try {
    await navigator.clipboard.writeText(text.trim());
    button.textContent = "Copied";
  } catch {
    const range = document.createRange();
    range.selectNodeContents(source);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});

// Selects that belong to a view send their form when they change; the button stays for those without a script.
for (const field of document.querySelectorAll("[data-send]")) {
  field.addEventListener("change", () => field.form.requestSubmit());
}

// An account menu closes like a menu.
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.account[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});

// Live regions: a region is fetched anew by its page's own address while somebody looks, and swapped when it changed.
// Nothing moves under a pointer or a focus inside the region; one request at a time for the whole page.
const regions = [...document.querySelectorAll("[data-live]")];
let paused = false;
const busy = (region) => region.matches(":hover, :focus-within") && !region.dataset.eager;
async function refresh() {
  const due = regions.filter((region) => region.isConnected && !busy(region));
  if (paused || document.hidden || due.length === 0) return;
  let answer;
  try {
    answer = await fetch(location.href, { headers: { "X-Fragment": "1" }, cache: "no-cache" });
  } catch {
    return tell("The server does not answer. Trying again.");
  }
  if (answer.status === 401) return tell("You are signed out. Load the page again to sign in.");
  if (!answer.ok) return tell("This page could not be refreshed. Trying again.");
  tell("");
  const fresh = parse(await answer.text());
  for (const region of due) {
    const now = fresh.getElementById(region.id);
    // ages are the only text that changes by itself
    if (!now || now.innerHTML === region.dataset.seen) continue;
    region.dataset.seen = now.innerHTML;
    region.className = now.className;
    const open = [...region.querySelectorAll("details")].map((one) => one.open);
    region.replaceChildren(...now.childNodes);
    region.querySelectorAll("details").forEach((one, at) => { one.open = open[at] ?? one.open; });
    region.querySelectorAll("[data-copy]").forEach((button) => { button.hidden = false; });
  }
}
const status = document.getElementById("live-status");
function tell(text) {
  if (status && status.textContent !== text) status.textContent = text;
}
const pause = document.getElementById("live-pause");
if (pause) {
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Resume" : "Pause";
    if (!paused) refresh();
  });
}
if (regions.length) {
  const wait = Number(regions[0].dataset.live) || 5;
  const turn = async () => {
    await refresh();
    setTimeout(turn, wait * 1000);
  };
  addEventListener("load", () => setTimeout(turn, 2000));
}

// Keys: "/" to search, "g" and a letter for pages. Never with a modifier, never while typing.
let prefix = "";
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const key = prefix ? `${prefix} ${event.key}` : event.key;
  prefix = !prefix && event.key === "g" ? "g" : "";
  if (event.key === "Escape") document.querySelectorAll("details.account[open]").forEach((menu) => { menu.open = false; });
  if (!/^(\/|g [a-z])$/.test(key)) return;
  const target = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (!target) return;
  event.preventDefault();
  if (target.matches("input")) target.focus(); else target.click();
});
