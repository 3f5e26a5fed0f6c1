// The live console: what comes from the gateway, newest first. No build step, nothing from another host.
import { subscribe } from "/client.js";

const KEPT = 1_000; // events in memory
const SHOWN = 300; // rows in the page
const SECONDS = 60; // of the sparkline

const $ = (id) => document.getElementById(id);
const list = $("events");
const subscriptions = new Map(); // pattern → {subscription, chip, dot, counter, count, error}
const kept = []; // entries, newest first
const ids = new Set(); // of the kept events: one that two patterns match is shown once
const buckets = new Array(SECONDS).fill(0);
let arrived = []; // since the last paint, oldest first
let total = 0;
let paused = false;
let needle = "";
let painting = false;
let numbers = 0;

// ---- What is shown of an event

function element(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);
  return made;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hourCycle: "h23" });

function lagText(ms) {
  if (ms < 0) return "0 ms";
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(1)} s`;
  if (ms < 3_600_000) return `${Math.round(ms / 60_000)} min`;
  if (ms < 172_800_000) return `${Math.round(ms / 3_600_000)} h`;
  return `${Math.round(ms / 86_400_000)} d`;
}

function valueText(value, longest = 40) {
  const text = typeof value === "string" ? value : JSON.stringify(value) ?? "";
  return text.length > longest ? `${text.slice(0, longest - 1)}…` : text;
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** What happened: the op of a row change, else the kind of subject. */
function whatOf({ subject, event }) {
  const kind = subject.split(".")[2] ?? "event";
  return kind === "change" ? event.data?.op ?? "change" : kind;
}

/** The columns of a change whose value differs; an absent old value means that it did not change. */
function changedColumns({ new: now, old }) {
  if (!isObject(now) || !isObject(old)) return [];
  return Object.keys(old).filter((name) => JSON.stringify(old[name]) !== JSON.stringify(now[name]));
}

function valuesOf(entry) {
  const cell = element("span", "values");
  const data = entry.event.data;
  const { key, new: now, old } = isObject(data) ? data : {};
  if (!isObject(now) && !isObject(old)) {
    if (data !== null && data !== undefined) cell.append(valueText(isObject(data) && data.op ? { truncated: data.truncated } : data, 160));
    return cell;
  }
  const changed = changedColumns(data);
  const names = changed.length > 0 ? changed : Object.keys(now ?? old).filter((name) => !(isObject(key) && name in key));
  for (const name of names.slice(0, 8)) {
    if (cell.childNodes.length > 0) cell.append("  ");
    cell.append(`${name} `);
    if (changed.length > 0) cell.append(element("span", "was", valueText(old[name], 24)), " ");
    cell.append(element("b", "", valueText((now ?? old)[name])));
  }
  return cell;
}

function subjectOf({ subject }) {
  // What tells rows apart stands at the end; the first two tokens are the same for all.
  const tokens = subject.split(".");
  const cell = element("span", "subject", element("span", "head", `${tokens.slice(0, 2).join(".")}.`), tokens.slice(2).join("."));
  cell.title = subject;
  return cell;
}

function rowOf(entry) {
  const item = element("li", entry.fresh ? "fresh" : "");
  entry.fresh = false;
  if (entry.note) {
    const { title, text, level } = entry.note;
    item.append(element("div", `note ${level}`, element("b", "", title), " ", text));
    return item;
  }
  const { event, lag, at } = entry;
  const what = element("span", "what", whatOf(entry));
  what.dataset.what = whatOf(entry);
  const time = element("time", "time", clock.format(at));
  time.dateTime = event.time;
  time.title = event.time;
  const late = element("span", lag > 1_000 && !entry.replayed ? "lag late" : "lag", lagText(lag));
  late.title = "from the statement, by the database's clock, to this page, by yours";
  const row = element("button", "row", time, what, subjectOf(entry), element("span", "key", event.subject ?? ""), valuesOf(entry), late);
  row.type = "button";
  row.setAttribute("aria-expanded", String(entry.open));
  row.addEventListener("click", () => toggle(entry, item, row));
  item.append(row);
  if (entry.open) item.append(detailOf(entry));
  return item;
}

function toggle(entry, item, row) {
  entry.open = !entry.open;
  row.setAttribute("aria-expanded", String(entry.open));
  if (entry.open) item.append(detailOf(entry));
  else item.querySelector(".detail")?.remove();
}

function detailOf(entry) {
  const data = entry.event.data;
  const detail = element("div", "detail");
  if (isObject(data) && (isObject(data.new) || isObject(data.old))) detail.append(comparison(data));
  const { subject, position, event } = entry;
  detail.append(element("div", "tree", tree("message", { subject, position, event }, 2)));
  return detail;
}

/** Old and new side by side. On update, what `old` leaves out did not change. */
function comparison(data) {
  const { new: now, old, op } = data;
  const table = element("table");
  const heads = element("tr", "", element("th", "", "Column"), element("th", "", "Old"), element("th", "", "New"));
  const body = element("tbody");
  table.append(element("thead", "", heads), body);
  const changed = new Set(changedColumns(data));
  for (const name of new Set([...Object.keys(now ?? {}), ...Object.keys(old ?? {})])) {
    const differs = changed.has(name) || !isObject(now) || !isObject(old) && op !== "update";
    const kept = op === "update" && isObject(old) && !(name in old);
    const before = isObject(old) && name in old ? [old[name]] : kept ? [now[name]] : [];
    const after = isObject(now) && name in now ? [now[name]] : [];
    const tr = element("tr", differs ? "changed" : "", element("th", "", name), cellOf("old", before, differs), cellOf("new", after, differs));
    body.append(tr);
  }
  return table;
}

function cellOf(side, values, differs) {
  if (values.length === 0) return element("td", "absent", "–");
  const text = typeof values[0] === "string" ? values[0] : JSON.stringify(values[0], null, 1);
  return element("td", `${side} ${differs ? "" : "same"}`, text === "" ? "(empty)" : text);
}

function tree(name, value, depth) {
  if (value === null || typeof value !== "object") {
    const kind = value === null ? "null" : typeof value;
    return element("div", "leaf", element("span", "name", `${name}: `), element("span", kind, JSON.stringify(value)));
  }
  const entries = Object.entries(value);
  const size = Array.isArray(value) ? `[${entries.length}]` : `{${entries.length}}`;
  const branch = element("details", "", element("summary", "", `${name} ${size}`));
  branch.open = depth > 0;
  branch.append(...entries.map(([key, child]) => tree(key, child, depth - 1)));
  return branch;
}

// ---- The list

function searchText(entry) {
  entry.text ??= (entry.note ? `${entry.note.title} ${entry.note.text}` : `${entry.subject} ${JSON.stringify(entry.event)}`).toLowerCase();
  return entry.text;
}

const wanted = (entry) => needle === "" || searchText(entry).includes(needle);

function add(entry) {
  arrived.push(entry);
  if (arrived.length > 2 * KEPT) arrived = arrived.slice(-KEPT);
  schedule();
}

function schedule() {
  if (painting) return;
  painting = true;
  // A hidden page gets no frames; then the timer keeps the list bounded.
  if (document.hidden) setTimeout(paint, 500);
  else requestAnimationFrame(paint);
}

function paint() {
  painting = false;
  if (!paused && arrived.length > 0) {
    const news = arrived.reverse();
    arrived = [];
    kept.unshift(...news);
    for (const gone of kept.splice(KEPT)) if (gone.event) ids.delete(gone.event.id);
    list.prepend(...news.slice(0, SHOWN).filter(wanted).map(rowOf));
    while (list.children.length > SHOWN) list.lastElementChild.remove();
  }
  summarize();
}

function repaint() {
  list.replaceChildren(...kept.filter(wanted).slice(0, SHOWN).map(rowOf));
  summarize();
}

function summarize() {
  $("total").textContent = total.toLocaleString("en");
  const some = list.children.length;
  $("shown").textContent = needle !== "" ? `${some} of ${kept.length} match` : kept.length > some ? `newest ${some} of ${kept.length} kept` : "";
  $("pause").firstChild.textContent = paused ? `Go on${arrived.length > 0 ? ` (${arrived.length.toLocaleString("en")})` : ""} ` : "Pause ";
  $("empty").hidden = kept.length > 0;
  for (const { counter, count } of subscriptions.values()) counter.textContent = count.toLocaleString("en");
}

function clear() {
  kept.length = 0;
  arrived = [];
  ids.clear();
  list.replaceChildren();
  summarize();
}

function setPaused(value) {
  paused = value;
  $("pause").setAttribute("aria-pressed", String(value));
  schedule();
}

// ---- Subscriptions

function begin(subject, since) {
  const before = subscriptions.get(subject);
  if (before) drop(subject);
  problem(null);
  const dot = element("span", "dot");
  const counter = element("span", "count", "0");
  const close = element("button", "", "×");
  close.type = "button";
  close.setAttribute("aria-label", `Unsubscribe from ${subject}`);
  close.addEventListener("click", () => drop(subject));
  const chip = element("li", "", dot, element("span", "name", subject), counter, close);
  chip.title = `since ${since}`;
  const entry = { chip, counter, count: 0, began: Date.now(), number: ++numbers };
  subscriptions.set(subject, entry);
  $("subscriptions").append(chip);
  const still = () => subscriptions.get(subject) === entry;
  entry.subscription = subscribe(subject, {
    since,
    url: location.origin,
    token: $("token").value || undefined,
    onEvent: (delivery) => still() && receive(entry, delivery),
    onGap: (gap) => still() && receiveGap(subject, gap),
    onState: (state, error) => still() && showState(entry, state, error),
    onError: (error) => still() && refuse(subject, error),
  });
  showState(entry, entry.subscription.state, null);
  remember();
}

function drop(subject) {
  const entry = subscriptions.get(subject);
  subscriptions.delete(subject);
  entry.chip.remove();
  entry.subscription?.close();
  overall();
  remember();
}

function receive(entry, { subject, position, event }) {
  entry.count += 1;
  $("position").textContent = position;
  if (ids.has(event.id)) return;
  ids.add(event.id);
  total += 1;
  buckets[SECONDS - 1] += 1;
  const at = new Date(event.time);
  // What was committed before the subscription began came from the stream's past: its age is no delay of ours.
  add({ subject, position, event, at, lag: Date.now() - at, replayed: at < entry.began, fresh: true, open: false });
}

function receiveGap(subject, { reason, position }) {
  $("position").textContent = position;
  const why = {
    expired: "the stream no longer holds them",
    epoch: "the stream was made anew",
    gap: "the stream lacks some of them",
    limit: "the gateway serves too many replays at the moment",
  }[reason];
  const text = `Events of ${subject} before position ${position} are missing${why ? `: ${why}` : ""}.`;
  add({ note: { title: `Gap (${reason})`, text, level: "" } });
}

function refuse(subject, error) {
  const code = error.code ?? error.name;
  const text = error.message.startsWith(`${code}: `) ? error.message.slice(code.length + 2) : error.message;
  problem(code, text);
  if (code === "unauthenticated" || code === "forbidden") $("token-field").hidden = false;
  add({ note: { title: code, text: `${subject}: ${text}`, level: "error" } });
  drop(subject);
}

function problem(code, text) {
  $("problem").hidden = code === null;
  $("problem-code").textContent = code ?? "";
  $("problem-text").textContent = text ?? "";
}

function showState(entry, state, error) {
  entry.state = state;
  entry.error = error;
  entry.chip.dataset.state = state;
  if (entry.subscription?.position) $("position").textContent = entry.subscription.position;
  overall();
}

function overall() {
  const entries = [...subscriptions.values()];
  const first = ["retrying", "connecting", "live"].find((state) => entries.some((entry) => entry.state === state)) ?? "idle";
  const error = entries.find((entry) => entry.state === first)?.error;
  $("state").dataset.state = first;
  $("state-text").textContent = first === "retrying" ? "retrying: the gateway does not answer" : first;
  $("state").title = error?.message ?? "";
  const names = [...subscriptions.keys()].join(", ");
  $("empty-text").textContent = names === "" ? "Not subscribed to anything. Give a subject above." : `Listening to ${names}. Nothing has come yet.`;
}

// The address holds the subscriptions, so that a reload or a link brings them back.
function remember() {
  const query = new URLSearchParams([...subscriptions.keys()].map((subject) => ["subject", subject]));
  history.replaceState(null, "", subscriptions.size > 0 ? `#${query}` : location.pathname);
}

// ---- Rate

function tick() {
  const recent = buckets.slice(-6, -1);
  const rate = Math.max(buckets[SECONDS - 1], 0) === 0 && recent.every((n) => n === 0) ? 0 : [...recent, buckets[SECONDS - 1]].slice(-5).reduce((a, b) => a + b) / 5;
  $("rate").textContent = rate === 0 ? "0" : rate < 10 ? rate.toFixed(1) : Math.round(rate).toLocaleString("en");
  const top = Math.max(1, ...buckets);
  const points = buckets.map((n, i) => `${((i * 120) / (SECONDS - 1)).toFixed(1)} ${(23 - (n / top) * 21).toFixed(1)}`);
  $("spark-line").setAttribute("d", `M${points.join("L")}`);
  $("spark-area").setAttribute("d", `M0 24L${points.join("L")}L120 24Z`);
  buckets.shift();
  buckets.push(0);
  for (const { subscription } of subscriptions.values()) if (subscription?.position && total === 0) $("position").textContent = subscription.position;
}

// ---- The person

$("ask").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const chosen = $("since").value;
  const since = chosen === "position" ? $("from").value.trim() : chosen;
  if (since === "") {
    problem("bad-since", "give a position, such as one copied from the top of this page, or an age such as 20m");
    $("from").focus();
    return;
  }
  begin($("subject").value.trim(), since);
});
$("since").addEventListener("change", () => {
  $("from-field").hidden = $("since").value !== "position";
  if (!$("from-field").hidden) $("from").focus();
});
$("filter").addEventListener("input", () => {
  needle = $("filter").value.trim().toLowerCase();
  repaint();
});
$("pause").addEventListener("click", () => setPaused(!paused));
$("clear").addEventListener("click", clear);
$("help").addEventListener("click", () => $("shortcuts").showModal());
$("position").addEventListener("click", async () => {
  const text = $("position").textContent;
  try {
    await navigator.clipboard.writeText(text);
    $("position").textContent = "copied";
    setTimeout(() => ($("position").textContent = text), 700);
  } catch {
    getSelection().selectAllChildren($("position"));
  }
});

function move(step) {
  const rows = [...list.querySelectorAll(".row")];
  const at = rows.indexOf(document.activeElement);
  rows[Math.min(Math.max(at + step, 0), rows.length - 1)]?.focus();
}

const keys = {
  s: () => ($("subject").focus(), $("subject").select()),
  "/": () => $("filter").focus(),
  p: () => setPaused(!paused),
  c: clear,
  j: () => move(1),
  k: () => move(-1),
  "?": () => $("shortcuts").showModal(),
  Escape: () => {
    for (const entry of kept) entry.open = false;
    repaint();
  },
};
addEventListener("keydown", (pressed) => {
  if (pressed.ctrlKey || pressed.metaKey || pressed.altKey || $("shortcuts").open) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "")) {
    if (pressed.key === "Escape") document.activeElement.blur();
    return;
  }
  const act = keys[pressed.key];
  if (!act) return;
  pressed.preventDefault();
  act();
});

setInterval(tick, 1_000);
tick();
const asked = new URLSearchParams(location.hash.slice(1)).getAll("subject");
for (const subject of asked.length > 0 ? asked : [$("subject").value]) begin(subject, "now");
