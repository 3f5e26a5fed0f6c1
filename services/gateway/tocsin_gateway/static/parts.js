// The state of stream, listener, gateway and checker, asked every few seconds while somebody looks.
import { $, chart, element, lagText, sizeText } from "./dom.js";

const EVERY = 2_000;
const POINTS = 120;

const behind = chart("the stream behind the journal, in seconds", 240, 28);
const replica = chart("the replica behind its source, in seconds", 240, 28);
const drifted = chart("drifted rows", 240, 28);
const unasked = () => Array(POINTS).fill(null); // time runs from left to right at one pace from the first look on
const history = { behind: unasked(), replica: unasked(), drifted: unasked() };
let known = null;
let token = () => "";
let onRefused = () => {};

export const latest = () => known;

/** Ask for ever. `tokenOf` gives the token, if any; `refused` is called where one is needed. */
export function watchParts(tokenOf, refused) {
  token = tokenOf;
  onRefused = refused;
  $("behind-chart").append(behind.svg);
  $("replica-chart").append(replica.svg);
  $("drift-chart").append(drifted.svg);
  const again = async () => {
    if (!document.hidden || known === null) await look();
    setTimeout(again, EVERY);
  };
  again();
}

/** GET, with the token where there is one. Throws what fetch throws, and an Error with `code` for a refusal. */
export async function ask(path) {
  const headers = token() ? { authorization: `Bearer ${token()}` } : {};
  const answer = await fetch(path, { headers, cache: "no-store", signal: AbortSignal.timeout(5_000) });
  const body = await answer.json();
  if (answer.ok) return body;
  throw Object.assign(new Error(body.message ?? `HTTP ${answer.status}`), { code: body.code });
}

async function look() {
  try {
    known = await ask("/state");
    draw(known);
  } catch (error) {
    known = null;
    if (error.code === "unauthenticated") onRefused();
    const text = error.code ? error.message : "does not answer";
    show([{ name: "gateway", state: "bad", text }]);
    remember(null, null, null);
  }
}

function draw(state) {
  const of = (kind) => state.parts.filter((part) => part.kind === kind);
  const lines = [...of("listener").map(listenerLine), streamLine(state.stream), ...gatewayLines(state, of("gateway")), ...of("checker").map(checkerLine)];
  if (of("listener").length === 0) lines.unshift({ name: "listener", state: "unknown", text: "none answers: new changes wait in the journal" });
  if (of("checker").length === 0) lines.push({ name: "checker", state: "unknown", text: "none answers" });
  show(lines);
  const leader = of("listener").find((part) => part.measured.role === "leader")?.measured;
  const report = of("checker")[0]?.measured;
  const rows = report?.tables?.reduce((sum, table) => sum + table.missing + table.extra + table.different, 0) ?? null;
  remember(leader?.behind_seconds ?? null, report?.lag_seconds ?? null, rows);
  drawTables(report);
}

function listenerLine({ measured, id, version }) {
  const { ready, role, behind_rows: rows, trouble } = measured;
  const waiting = rows ? `, ${rows.toLocaleString("en")} ${rows === 1 ? "event" : "events"} to send` : "";
  const text = trouble || (role === "leader" ? `leads${waiting}` : (role ?? "starting"));
  return { name: "listener", state: ready ? "good" : "bad", text, title: `${id}, version ${version}` };
}

function streamLine(stream) {
  if (stream === null) return { name: "stream", state: "bad", text: "can't be reached: is NATS there?" };
  const full = stream.max_bytes > 0 ? stream.bytes / stream.max_bytes : 0;
  const text = `${stream.messages.toLocaleString("en")} events, ${sizeText(stream.bytes)}${full > 0.01 ? ` (${Math.round(full * 100)} % full)` : ""}`;
  const title = `${stream.name}, epoch ${stream.epoch}, ${stream.first_sequence} to ${stream.last_sequence}, ${stream.num_replicas} replica(s)`;
  return { name: "stream", state: full > 0.9 ? "warn" : "good", text, title };
}

function gatewayLines({ gateway }, parts) {
  const told = ({ clients, subscriptions }) => `${clients} ${clients === 1 ? "client" : "clients"}, ${subscriptions} ${subscriptions === 1 ? "subscription" : "subscriptions"}`;
  if (parts.length <= 1) return [{ name: "gateway", state: gateway.ready ? "good" : "bad", text: told(gateway), title: `has read the stream up to ${gateway.head}` }];
  return parts.map(({ measured, id }) => ({ name: "gateway", state: measured.ready ? "good" : "bad", text: told(measured), title: id }));
}

const STATUS = { in_sync: "good", pending: "warn", lagging: "warn", stale: "warn", drift: "bad", unauditable: "bad", unknown: "unknown" };

function checkerLine({ measured, id }) {
  const { status = "unknown", ready, reason } = measured;
  const text = `${status.replace("_", " ")}${reason ? `: ${reason}` : ""}`;
  return { name: "checker", state: ready ? STATUS[status] ?? "unknown" : "bad", text, title: id };
}

function show(lines) {
  $("parts").replaceChildren(
    ...lines.map(({ name, state, text, title = "" }) => {
      const line = element("li", "", element("span", "light"), element("b", "", name), element("span", "text", text));
      line.dataset.state = state;
      line.title = title;
      return line;
    }),
  );
}

function remember(seconds, lag, rows) {
  for (const [name, value] of [["behind", seconds], ["replica", lag], ["drifted", rows]]) {
    history[name].push(value);
    history[name].shift();
  }
  const text = (value) => (value === null ? "–" : lagText(value * 1_000));
  $("behind-now").textContent = text(seconds);
  $("replica-now").textContent = text(lag);
  $("drift-now").textContent = rows === null ? "–" : `${rows.toLocaleString("en")} ${rows === 1 ? "row" : "rows"}`;
  behind.draw(history.behind, 1, text(seconds));
  replica.draw(history.replica, 1, text(lag));
  drifted.draw(history.drifted, 1, String(rows ?? "unknown"));
}

function drawTables(report) {
  const tables = report?.tables ?? [];
  const wrong = tables.filter((table) => table.status !== "in_sync").slice(0, 8);
  const lines = wrong.map(({ table, status, missing, extra, different, reason }) => {
    const counts = [[missing, "missing"], [extra, "extra"], [different, "different"]].filter(([n]) => n > 0).map(([n, word]) => `${n.toLocaleString("en")} ${word}`);
    const line = element("li", "", element("b", "", table), element("span", "text", counts.join(", ") || reason || status.replace("_", " ")));
    line.dataset.state = STATUS[status] ?? "unknown";
    return line;
  });
  for (const { severity, message, fix } of (report?.findings ?? []).slice(0, 4)) {
    const line = element("li", "finding", element("span", "text", message), element("code", "", fix));
    line.dataset.state = severity === "error" ? "bad" : "warn";
    lines.push(line);
  }
  $("tables").replaceChildren(...lines);
  const fine = tables.length - tables.filter((table) => table.status !== "in_sync").length;
  $("tables-fine").textContent = tables.length === 0 ? "" : `${fine} of ${tables.length + (report.more_tables ?? 0)} ${tables.length === 1 ? "table" : "tables"} in sync`;
}
