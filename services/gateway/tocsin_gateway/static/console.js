// The live console: subscriptions, and what the keys do. No build step, nothing from another host.
import { subscribe } from "/client.js";
import { $, element } from "./dom.js";
import * as list from "./list.js";
import { watchParts } from "./parts.js";
import * as subjects from "./subjects.js";
import { parseWhere } from "./where.js";
import { setUpWhy } from "./why.js";

const subscriptions = new Map(); // name → {subject, where, filter, chip, counter, place, count, gaps, began, state, error, subscription}
let lastPosition = "–";

const nameOf = (subject, filter) => (filter === "" ? subject : `${subject} where ${filter}`);

function begin(subject, since, filter = "") {
  problem(null);
  let where;
  try {
    where = parseWhere(filter);
  } catch (error) {
    problem("bad-where", error.message);
    $("where").focus();
    return;
  }
  const name = nameOf(subject, filter);
  if (subscriptions.has(name)) drop(name);
  const entry = { name, subject, where, filter, count: 0, gaps: 0, began: Date.now(), state: "connecting", ...chipOf(name, since) };
  subscriptions.set(name, entry);
  const still = () => subscriptions.get(name) === entry;
  entry.subscription = subscribe(subject, {
    since,
    where,
    url: location.origin,
    token: $("token").value || undefined,
    onEvent: (delivery) => still() && receive(entry, delivery),
    onRow: (row) => still() && receiveRow(entry, row),
    onGap: (gap) => still() && receiveGap(entry, gap),
    onState: (state, error) => still() && showState(entry, state, error),
    onError: (error) => still() && refuse(entry, error),
  });
  showState(entry, entry.subscription.state, null);
  remember();
}

function chipOf(name, since) {
  const [counter, place, gaps] = [element("span", "count", "0"), element("span", "place"), element("span", "gaps")];
  const close = element("button", "", "×");
  close.type = "button";
  close.setAttribute("aria-label", `Unsubscribe from ${name}`);
  close.addEventListener("click", () => drop(name));
  const chip = element("li", "", element("span", "dot"), element("span", "name", name), counter, place, gaps, close);
  chip.title = `since ${since}`;
  $("subscriptions").append(chip);
  return { chip, counter, place, gapsShown: gaps };
}

function drop(name) {
  const entry = subscriptions.get(name);
  subscriptions.delete(name);
  entry.chip.remove();
  entry.subscription?.close();
  overall();
  remember();
}

function receive(entry, { subject, position, event, change }) {
  entry.count += 1;
  lastPosition = position;
  if (!list.isNew(event.id)) return;
  const at = Date.parse(event.time);
  // What was committed before the subscription began came from the stream's past: its age is no delay of ours.
  const replayed = at < entry.began;
  const lag = Math.max(0, Date.now() - at);
  subjects.count(subject, replayed ? null : lag);
  list.add({ subject, position, event, change, at, lag, replayed, fresh: true, open: false });
}

function receiveRow(entry, { key, row }) {
  entry.count += 1;
  const event = { id: `row ${entry.count}`, subject: Object.values(key ?? {}).join(","), time: new Date().toISOString(), data: { op: "row", key, new: row } };
  list.add({ subject: entry.subject, position: null, event, change: null, at: Date.now(), lag: 0, replayed: true, fresh: true, open: false });
}

function receiveGap(entry, { reason, position }) {
  entry.gaps += 1;
  lastPosition = position;
  const why = {
    expired: "the stream no longer holds them",
    epoch: "the stream was made anew",
    gap: "the stream lacks some of them",
    limit: "the gateway serves too many replays at the moment",
  }[reason];
  const text = `Events of ${entry.subject} before position ${position} are missing${why ? `: ${why}` : ""}.`;
  list.add({ note: { title: `Gap (${reason})`, text, level: "" } });
}

function refuse(entry, error) {
  const code = error.code ?? error.name;
  const text = error.message.startsWith(`${code}: `) ? error.message.slice(code.length + 2) : error.message;
  problem(code, text);
  if (code === "unauthenticated" || code === "forbidden") askForToken();
  list.add({ note: { title: code, text: `${entry.name}: ${text}`, level: "error" } });
  drop(entry.name);
}

function askForToken() {
  $("token-field").hidden = false;
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
  if (entry.subscription?.position) lastPosition = entry.subscription.position;
  overall();
}

function overall() {
  const entries = [...subscriptions.values()];
  const first = ["retrying", "connecting", "live"].find((state) => entries.some((entry) => entry.state === state)) ?? "idle";
  const error = entries.find((entry) => entry.state === first)?.error;
  // While it tries again it is also connecting, for a moment: that is no news.
  const shown = first === "connecting" && $("state").dataset.state === "retrying" ? "retrying" : first;
  $("state").dataset.state = shown;
  $("state-text").textContent = shown === "retrying" ? "retrying: the gateway does not answer" : shown;
  $("state").title = error?.message ?? "";
  const names = [...subscriptions.keys()].join(", ");
  $("empty-text").textContent = names === "" ? "Not subscribed to anything. Give a subject above." : `Listening to ${names}. Nothing has come yet.`;
  showPositions();
}

function showPositions() {
  for (const { subscription, counter, place, count, gaps, gapsShown, chip } of subscriptions.values()) {
    counter.textContent = count.toLocaleString("en");
    const position = subscription?.position ?? "";
    place.textContent = position && `@${position.slice(position.lastIndexOf("-") + 1)}`;
    chip.title = position && `position ${position}`;
    gapsShown.textContent = gaps > 0 ? `${gaps} ${gaps === 1 ? "gap" : "gaps"}` : "";
    if (position && lastPosition === "–") lastPosition = position;
  }
  if ($("position").dataset.copied === undefined) $("position").textContent = lastPosition;
}

// The address holds the subscriptions, so that a reload or a link brings them back.
function remember() {
  const query = new URLSearchParams();
  for (const { subject, filter } of subscriptions.values()) {
    query.append("subject", subject);
    query.append("where", filter);
  }
  if ([...subscriptions.values()].every(({ filter }) => filter === "")) query.delete("where");
  history.replaceState(null, "", subscriptions.size > 0 ? `#${query}` : location.pathname);
}

function restore() {
  const query = new URLSearchParams(location.hash.slice(1));
  const filters = query.getAll("where");
  const asked = query.getAll("subject");
  if (asked.length === 0) asked.push($("subject").value);
  asked.forEach((subject, i) => begin(subject, "now", filters[i] ?? ""));
}

function tick() {
  const rate = subjects.tick();
  showPositions();
  const state = $("state").dataset.state;
  document.title = state === "live" ? `${$("rate").textContent}/s · Tocsin` : `${state} · Tocsin`;
  return rate;
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
  begin($("subject").value.trim(), since, $("where").value.trim());
});
$("since").addEventListener("change", () => {
  $("from-field").hidden = $("since").value !== "position";
  if (!$("from-field").hidden) $("from").focus();
});
$("filter").addEventListener("input", () => list.setSearch($("filter").value));
$("pause").addEventListener("click", () => list.setPaused(!list.isPaused()));
$("clear").addEventListener("click", list.clear);
$("help").addEventListener("click", () => $("shortcuts").showModal());
$("position").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(lastPosition);
    $("position").textContent = "copied";
    $("position").dataset.copied = "";
    setTimeout(() => {
      delete $("position").dataset.copied;
      showPositions();
    }, 900);
  } catch {
    getSelection().selectAllChildren($("position"));
  }
});
for (const tab of document.querySelectorAll("#tabs button")) {
  tab.addEventListener("click", () => {
    document.body.dataset.panel = tab.value;
    for (const each of document.querySelectorAll("#tabs button")) each.setAttribute("aria-pressed", String(each === tab));
    scrollTo(0, 0);
  });
}

const keys = {
  s: () => ($("subject").focus(), $("subject").select()),
  f: () => $("where").focus(),
  "/": () => $("filter").focus(),
  p: () => list.setPaused(!list.isPaused()),
  c: list.clear,
  j: () => list.move(1),
  k: () => list.move(-1),
  w: () => $("why").click(),
  "?": () => $("shortcuts").showModal(),
  Escape: list.closeAll,
};
addEventListener("keydown", (pressed) => {
  if (pressed.ctrlKey || pressed.metaKey || pressed.altKey || document.querySelector("dialog[open]")) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "")) {
    if (pressed.key === "Escape") document.activeElement.blur();
    return;
  }
  const act = keys[pressed.key];
  if (!act) return;
  pressed.preventDefault();
  act();
});

setUpWhy(
  () => [...subscriptions.values()],
  () => lastPosition,
);
watchParts(() => $("token").value, askForToken);
setInterval(tick, 1_000);
tick();
restore();
