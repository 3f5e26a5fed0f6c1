// The list of events, newest first: bounded in memory and in the page, and painted at most ten times a second, so that a flood
// costs a counter and not the page. What was too fast to show is said where it is missing.
import { $, element } from "./dom.js";
import { rowOf } from "./detail.js";

const KEPT = 2_000; // events in memory; the search looks at all of them
const SHOWN = 200; // rows in the page
const AT_ONCE = 40; // rows of one paint
const PAINT = 100; // ms between two

const list = $("events");
const kept = []; // entries, newest first
const ids = new Set(); // of what is kept or has arrived: an event that two patterns match is shown once
let arrived = []; // since the last paint, oldest first
let dropped = 0; // of those, already let go
let unshown = 0; // in all
let needle = "";
let paused = false;
let timer = null;

export const isPaused = () => paused;
export const search = () => needle;
export const unshownCount = () => unshown;

/** Whether an event is new here. */
export function isNew(id) {
  if (ids.has(id)) return false;
  ids.add(id);
  return true;
}

export const has = (id) => kept.some((entry) => entry.event?.id === id) || arrived.some((entry) => entry.event?.id === id);

export function add(entry) {
  arrived.push(entry);
  if (arrived.length >= 2 * KEPT) letGo(arrived.splice(0, arrived.length - KEPT));
  timer ??= setTimeout(paint, arrived.length === 1 ? 16 : PAINT);
}

function letGo(entries) {
  dropped += entries.length;
  for (const { event } of entries) if (event) ids.delete(event.id);
}

function textOf(entry) {
  entry.text ??= (entry.note ? `${entry.note.title} ${entry.note.text}` : `${entry.subject} ${JSON.stringify(entry.event)}`).toLowerCase();
  return entry.text;
}

const wanted = (entry) => needle === "" || textOf(entry).includes(needle);

function paint() {
  timer = null;
  if (!paused && arrived.length > 0) {
    const news = arrived.reverse();
    const lost = dropped;
    arrived = [];
    dropped = 0;
    kept.unshift(...news);
    for (const gone of kept.splice(KEPT)) if (gone.event) ids.delete(gone.event.id);
    const fitting = news.filter(wanted);
    const rows = fitting.slice(0, AT_ONCE);
    const missing = fitting.length - rows.length + (needle === "" ? lost : 0);
    unshown += missing;
    if (missing > 0) skip(missing);
    list.prepend(...rows.map(rowOf));
    while (list.children.length > SHOWN) list.lastElementChild.remove();
  }
  summarize();
}

/** One line for what is missing there; two that meet become one. */
function skip(count) {
  const first = list.firstElementChild;
  if (first?.className === "skipped") {
    count += Number(first.dataset.count);
    first.remove();
  }
  const line = rowOf({ skipped: count });
  line.dataset.count = String(count);
  list.prepend(line);
}

export function repaint() {
  list.replaceChildren(...kept.filter(wanted).slice(0, SHOWN).map(rowOf));
  summarize();
}

export function summarize() {
  const rows = list.querySelectorAll(":scope > li:not(.skipped)").length;
  const parts = [];
  if (needle !== "") parts.push(`${rows} of ${kept.length.toLocaleString("en")} match`);
  else if (kept.length > rows) parts.push(`newest ${rows} of ${kept.length.toLocaleString("en")} kept`);
  $("shown").textContent = parts.join(" · ");
  $("unshown").hidden = unshown === 0;
  $("unshown").textContent = `${unshown.toLocaleString("en")} not shown`;
  const waiting = arrived.length + dropped;
  $("pause-text").textContent = paused ? `Go on${waiting > 0 ? ` (${waiting.toLocaleString("en")})` : ""}` : "Pause";
  $("empty").hidden = kept.length > 0;
}

export function clear() {
  kept.length = 0;
  arrived = [];
  dropped = unshown = 0;
  ids.clear();
  list.replaceChildren();
  summarize();
}

export function setPaused(value) {
  paused = value;
  $("pause").setAttribute("aria-pressed", String(value));
  document.body.classList.toggle("paused", value);
  timer ??= setTimeout(paint, 0);
}

export function setSearch(text) {
  needle = text.trim().toLowerCase();
  repaint();
}

export function closeAll() {
  for (const entry of kept) entry.open = false;
  repaint();
}

export function move(step) {
  const rows = [...list.querySelectorAll(".row")];
  const at = rows.indexOf(document.activeElement);
  const to = rows[Math.min(Math.max(at + step, 0), rows.length - 1)];
  to?.focus();
  to?.scrollIntoView({ block: "nearest" });
}
