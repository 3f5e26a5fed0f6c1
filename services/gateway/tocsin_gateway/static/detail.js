// What is shown of one event: a row of the list, and below it old and new side by side, and the whole as a tree.
import { element, lagText } from "./dom.js";

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hourCycle: "h23" });

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

/** What the checker found of a table, in words. */
function findingText({ status, missing = 0, extra = 0, different = 0 }) {
  const counts = [[missing, "missing"], [extra, "extra"], [different, "different"]].filter(([n]) => n > 0).map(([n, word]) => `${n.toLocaleString("en")} ${word}`);
  return counts.join(", ") || status.replace("_", " ");
}

/** The changed columns with what they were, else the row's, else the payload. */
function valuesOf(entry) {
  const cell = element("span", "values");
  const data = entry.event.data;
  if (whatOf(entry) === "drift" && typeof data?.status === "string") {
    cell.append(element("b", "", findingText(data)));
    return cell;
  }
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

/** A row of the list; `entry` is {note} or {subject, position, event, change, at, lag, replayed, fresh, open}. */
export function rowOf(entry) {
  const item = element("li", entry.fresh ? "fresh" : "");
  entry.fresh = false;
  if (entry.skipped) {
    item.className = "skipped";
    item.append(`${entry.skipped.toLocaleString("en")} not shown here: too many to read`);
    return item;
  }
  if (entry.note) {
    const { title, text, level } = entry.note;
    item.append(element("div", `note ${level}`, element("b", "", title), " ", text));
    return item;
  }
  const { event } = entry;
  const at = new Date(entry.at);
  const lag = entry.lag;
  const what = element("span", "what", whatOf(entry));
  if (entry.change) what.append(element("i", "", entry.change));
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
  const copy = element("button", "plain", "Copy as JSON");
  copy.type = "button";
  copy.addEventListener("click", () => copyText(JSON.stringify({ subject, position, event }, null, 2), copy));
  detail.append(element("div", "tree", tree("message", { subject, position, event }, 2)), copy);
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

async function copyText(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "The browser does not let this page copy";
  }
  setTimeout(() => (button.textContent = before), 1_200);
}
