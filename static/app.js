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

// Two times win over a range in an address: whoever chooses a range does not mean those that are still in the form.
for (const range of document.querySelectorAll("select[name=range]")) {
  range.addEventListener("change", () => {
    const times = range.value ? range.form.querySelectorAll("[name=from], [name=to]") : [];
    times.forEach((time) => { time.value = ""; });
  });
}

// The browser's own zone is offered, never assumed.
for (const button of document.querySelectorAll("[data-zone]")) {
  const own = Intl.DateTimeFormat().resolvedOptions().timeZone;
  button.hidden = !own;
  button.textContent = `Use ${own}`;
  button.addEventListener("click", () => {
    document.getElementById(button.dataset.zone).value = own;
    button.form.requestSubmit();
  });
}

// An account menu closes like a menu.
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.account[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});

// The keys walk through a chart: arrows, Home and End move a line from bucket to bucket, Enter opens its events. What
// stands there is shown, and told.
function walkable(root) {
  for (const box of root.querySelectorAll("[data-chart]")) {
    box.tabIndex = 0;
    box.setAttribute("role", "application");
    box.setAttribute("aria-roledescription", "chart");
    box.setAttribute("aria-label", `${box.dataset.chart}. Arrow keys walk through the values, Enter opens the events.`);
  }
}
walkable(document);
const leaveChart = (box) => box.querySelectorAll(".cross, .readout").forEach((mark) => mark.remove());
document.addEventListener("focusout", (event) => {
  if (event.target.matches?.("[data-chart]")) leaveChart(event.target);
});
document.addEventListener("keydown", (event) => {
  const box = event.target;
  if (!box.matches?.("[data-chart]") || event.ctrlKey || event.metaKey || event.altKey) return;
  const hits = [...box.querySelectorAll(".hit")];
  const cross = box.querySelector(".cross");
  const at = cross ? Number(cross.dataset.at) : -1;
  if (event.key === "Escape") return leaveChart(box);
  if (event.key === "Enter") {
    const target = hits[at]?.closest("a")?.getAttribute("href");
    if (target) location.assign(target);
    return;
  }
  const next = { ArrowLeft: at < 0 ? hits.length - 1 : at - 1, ArrowRight: at + 1, Home: 0, End: hits.length - 1 }[event.key];
  if (next === undefined || hits.length === 0) return;
  event.preventDefault();
  point(box, hits, Math.min(Math.max(next, 0), hits.length - 1));
});
function point(box, hits, at) {
  let cross = box.querySelector(".cross");
  let readout = box.querySelector(".readout");
  if (!cross) {
    cross = document.createElement("span");
    cross.className = "cross";
    readout = document.createElement("span");
    readout.className = "readout";
    readout.setAttribute("role", "status");
    box.append(cross, readout);
  }
  const share = (at + 0.5) / hits.length;
  cross.dataset.at = String(at);
  cross.style.insetInlineStart = `${100 * share}%`;
  readout.style.insetInlineStart = share > 0.5 ? "auto" : `calc(${100 * share}% + 0.5rem)`;
  readout.style.insetInlineEnd = share > 0.5 ? `calc(${100 * (1 - share)}% + 0.5rem)` : "auto";
  readout.textContent = hits[at].textContent;
}

// Drawing over buckets of a view shows their time alone; the form has the same two times for those who do not draw.
let drawn;
const canZoom = /^\/(usage|events)(\/q\/|$)/.test(location.pathname);
const hitAt = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest(".hit");
document.addEventListener("pointerdown", (event) => {
  const box = canZoom && event.button === 0 && event.pointerType === "mouse" && event.target.closest?.("[data-chart]");
  if (!box || !event.target.closest(".hit")) return;
  const hits = [...box.querySelectorAll(".hit")];
  drawn = { hits, from: hits.indexOf(event.target.closest(".hit")) };
});
document.addEventListener("dragstart", (event) => { if (drawn) event.preventDefault(); });
document.addEventListener("pointermove", (event) => {
  const to = drawn ? drawn.hits.indexOf(hitAt(event)) : -1;
  if (to < 0) return;
  const [first, last] = [Math.min(drawn.from, to), Math.max(drawn.from, to)];
  drawn.hits.forEach((hit, at) => hit.classList.toggle("chosen", first !== last && at >= first && at <= last));
});
document.addEventListener("pointerup", (event) => {
  const { hits, from } = drawn ?? {};
  const to = hits ? hits.indexOf(hitAt(event)) : -1;
  drawn = undefined;
  hits?.forEach((hit) => hit.classList.remove("chosen"));
  if (to < 0 || to === from) return;
  // of a link in a picture `href` is no text
  const query = (at) => new URL(hits[at].closest("a").getAttribute("href"), location.href).searchParams;
  const target = new URL(location.href);
  ["range", "cursor"].forEach((name) => target.searchParams.delete(name));
  target.searchParams.set("from", query(Math.min(from, to)).get("from"));
  target.searchParams.set("to", query(Math.max(from, to)).get("to"));
  location.assign(target);
});

// Live regions: a region names its topics; when one of them changed, the page's own address is fetched anew and the
// region swapped. Nothing moves under a pointer or a focus inside the region; one request at a time for the whole page.
const regions = [...document.querySelectorAll("[data-live]")];
const topics = new Set(regions.flatMap((region) => region.dataset.live.split(" ")));
let paused = false;
let asking = false;
let again = false;
// nor while something in it is picked, nor where somebody reads further down: then it says how many wait
const isRead = (region) => "tail" in region.dataset && region.getBoundingClientRect().top < 0;
const busy = (region) => (region.matches(":hover, :focus-within") || region.querySelector("input:checked") || isRead(region)) && !region.dataset.eager;
async function refresh() {
  const due = paused ? [] : regions.filter((region) => region.isConnected && !busy(region));
  const waiting = regions.filter((region) => "tail" in region.dataset && !due.includes(region));
  if (document.hidden || due.length + waiting.length === 0) return;
  if (asking) { again = true; return; }
  asking = true;
  try {
    await swap(due, waiting);
  } finally {
    asking = false;
    const soon = again;
    again = false;
    if (soon) setTimeout(refresh, 1000);
  }
}
// What is new at the head of a list: rows that lead where none of those that are shown does.
const places = (region) => [...region.querySelectorAll("tbody .actions a")].map((link) => link.getAttribute("href"));
function news(waiting, fresh) {
  let count = 0;
  for (const region of waiting) {
    const shown = new Set(places(region));
    count += places(fresh.getElementById(region.id) ?? fresh.body).filter((place) => !shown.has(place)).length;
  }
  return count;
}
async function swap(due, waiting) {
  let answer;
  try {
    answer = await fetch(location.href, { headers: { "X-Fragment": "1" }, cache: "no-cache" });
  } catch {
    return tell("The server does not answer. Trying again.");
  }
  if (answer.status === 401) return tell("You are signed out. Load the page again to sign in.");
  if (!answer.ok) return tell("This page could not be refreshed. Trying again.");
  const fresh = parse(await answer.text());
  const count = news(waiting, fresh);
  tell(count ? `${count} new` : "", false);
  const stamp = fresh.getElementById("as-of");
  // while something is held still, the page is as old as that
  if (stamp && due.length === regions.length) document.getElementById("as-of")?.replaceWith(stamp);
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
    walkable(region);
  }
}
const status = document.getElementById("live-status");
function tell(text, isFault = true) {
  if (status && status.textContent !== text) status.textContent = text;
  status?.closest(".asof")?.classList.toggle("stale", isFault && Boolean(text));
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

// One stream of changes for all tabs of a browser: a lock elects the tab that holds it, a channel hands its words on,
// and a hidden tab lets go. More streams would use up the few connections that a browser opens to one server.
let leave;
let heard = 0;
function hear(names) {
  heard = Date.now();
  if (names.some((name) => topics.has(name))) refresh();
}
function join() {
  if (leave || document.hidden) return;
  const channel = new BroadcastChannel("open-spanner-live");
  const leaving = new AbortController();
  let end = () => {};
  channel.onmessage = (event) => hear(event.data);
  const hold = () => new Promise((resolve) => {
    const source = new EventSource("/live");
    const pass = (names) => { channel.postMessage(names); hear(names); };
    source.addEventListener("change", (event) => pass(event.data.split(" ")));
    source.addEventListener("beat", () => pass([]));
    // a stream that the server refuses is not opened again by the browser
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) setTimeout(() => { leave?.(); join(); }, 15_000);
    });
    end = () => { source.close(); resolve(); };
  });
  navigator.locks.request("open-spanner-live", { signal: leaving.signal }, hold).catch(() => {});
  leave = () => { leave = undefined; leaving.abort(); end(); channel.close(); };
  // what changed while nobody listened
  refresh();
}
if (regions.length) {
  const canShare = globalThis.EventSource && globalThis.BroadcastChannel && navigator.locks;
  // ages move on by themselves; without a stream this is all there is
  const turn = async () => {
    await refresh();
    if (canShare && heard && Date.now() - heard > 30_000) tell("No word from the server for a while. What is shown may be old.");
    setTimeout(turn, canShare ? 30_000 : 5_000);
  };
  addEventListener("load", () => setTimeout(() => {
    if (canShare) {
      join();
      document.addEventListener("visibilitychange", () => { if (document.hidden) leave?.(); else join(); });
      addEventListener("pagehide", () => leave?.());
      addEventListener("pageshow", (event) => { if (event.persisted) join(); });
    }
    turn();
  }, 2000));
}

// A page in a frame tells its height to the sites that may show it, and to nobody else.
const sites = document.body.dataset.tellHeight;
if (sites && parent !== globalThis) {
  new ResizeObserver(() => {
    const height = document.documentElement.offsetHeight;
    for (const site of sites.split(" ")) parent.postMessage({ type: "open-spanner:height", height }, site);
  }).observe(document.body);
}

// Arrows walk through the rows of a table from the link of one to that of the next; Enter follows it, like any link.
document.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey || !event.target.matches?.("tbody a")) return;
  if (document.body.dataset.keys === "off") return;
  const row = event.target.closest("tr");
  const rows = [...row.parentElement.rows];
  const next = rows[rows.indexOf(row) + step]?.querySelector("a");
  if (!next) return;
  event.preventDefault();
  next.focus();
});

// Keys: "/" to search, "g" and a letter for pages, single ones for the view. Never with a modifier, never while typing,
// and not at all where somebody switched them off.
const press = {
  "/": () => document.querySelector('[data-key="/"]'),
  "[": () => document.querySelector("main a[rel=prev]"),
  "]": () => document.querySelector("main a[rel=next]"),
  c: () => document.getElementById("cmp"),
  l: () => document.getElementById("live-pause"),
  t: () => {
    const themes = [...document.querySelectorAll('.account button[name="theme"]')];
    return themes[(themes.findIndex((one) => one.getAttribute("aria-pressed") === "true") + 1) % themes.length];
  },
  "?": () => document.querySelector('[data-key="?"]'),
};
let prefix = "";
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.querySelectorAll("details.account[open]").forEach((menu) => { menu.open = false; });
  if (document.body.dataset.keys === "off") return;
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const find = prefix ? () => document.querySelector(`[data-key="${CSS.escape(`g ${event.key}`)}"]`) : press[event.key];
  prefix = !prefix && event.key === "g" ? "g" : "";
  const target = find?.();
  if (!target || target.hidden) return;
  event.preventDefault();
  if (target.matches("input, select")) target.focus(); else target.click();
});
