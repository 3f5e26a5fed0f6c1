// Which subjects ring, how often, and how late: counted for every event, drawn once a second.
import { $, chart, element, lagText, rateText } from "./dom.js";
import { setSearch } from "./list.js";

const SECONDS = 60;
const LISTED = 12;
const REMEMBERED = 2_000; // exact subjects whose group is known

const groups = new Map(); // subject without its route → {count, second, buckets, line}
const groupOf = new Map(); // exact subject → its group
const all = new Array(SECONDS).fill(0);
const late = new Array(SECONDS).fill(null); // the worst lag of each second, ms
const overall = chart("events per second, the last minute");
const lateness = chart("from the statement to this page, the worst of each second", 240, 36);
let total = 0;
let thisSecond = 0;
let worst = null;

export const received = () => total;

/** A change's subject ends with its route: that is not listed one by one. */
function groupNamed(subject) {
  let group = groupOf.get(subject);
  if (group !== undefined) return group;
  const tokens = subject.split(".");
  const name = (tokens[2] === "change" ? tokens.slice(0, 6) : tokens).join(".");
  group = groups.get(name);
  if (group === undefined) {
    if (groups.size >= REMEMBERED) groups.delete(groups.keys().next().value);
    group = { name, count: 0, second: 0, buckets: new Array(SECONDS).fill(0), line: null };
    groups.set(name, group);
  }
  if (groupOf.size >= REMEMBERED) groupOf.clear();
  groupOf.set(subject, group);
  return group;
}

/** `lag` in ms; null for what came from the stream's past. */
export function count(subject, lag) {
  const group = groupNamed(subject);
  group.count += 1;
  group.second += 1;
  total += 1;
  thisSecond += 1;
  if (lag !== null && (worst === null || lag > worst)) worst = lag;
}

const recent = (buckets) => buckets.slice(-5).reduce((a, b) => a + b, 0) / 5;

function lineOf(group) {
  const spark = chart(`${group.name}, events per second`, 60, 18);
  const [name, rate, amount] = [element("span", "name"), element("span", "per"), element("span", "count")];
  const tokens = group.name.split(".");
  name.append(element("span", "head", `${tokens.slice(2, 3).join(".")} `), tokens.slice(3).join("."));
  const button = element("button", "subject-line", name, spark.svg, rate, amount);
  button.type = "button";
  button.title = `Show only ${group.name}`;
  button.addEventListener("click", () => {
    $("filter").value = group.name;
    setSearch(group.name);
  });
  return { item: element("li", "", button), spark, rate, amount };
}

export function tick() {
  all.push(thisSecond);
  all.shift();
  late.push(worst);
  late.shift();
  thisSecond = 0;
  worst = null;
  for (const group of groups.values()) {
    group.buckets.push(group.second);
    group.buckets.shift();
    group.second = 0;
  }
  const rate = recent(all);
  $("rate").textContent = rateText(rate);
  $("total").textContent = total.toLocaleString("en");
  overall.draw(all, 1, `${rateText(rate)} now`);
  drawLag();
  drawSubjects();
  return rate;
}

function drawLag() {
  const known = late.filter((value) => value !== null);
  const last = known.at(-1);
  $("lag-now").textContent = last === undefined ? "–" : lagText(last);
  $("lag-worst").textContent = known.length > 0 ? `worst ${lagText(Math.max(...known))}` : "no live event in the last minute";
  lateness.draw(late, 20, last === undefined ? "none yet" : lagText(last));
}

function drawSubjects() {
  const busiest = [...groups.values()].sort((a, b) => recent(b.buckets) - recent(a.buckets) || b.count - a.count || (a.name < b.name ? -1 : 1)).slice(0, LISTED);
  const lines = busiest.map((group) => {
    const line = (group.line ??= lineOf(group));
    const rate = recent(group.buckets);
    line.rate.textContent = rate === 0 ? "" : `${rateText(rate)}/s`;
    line.amount.textContent = group.count.toLocaleString("en");
    line.spark.draw(group.buckets);
    return line.item;
  });
  const list = $("subject-list");
  // Moving a line would take the focus from it.
  if (lines.some((line, i) => list.children[i] !== line) && !list.contains(document.activeElement)) list.replaceChildren(...lines);
  $("more-subjects").textContent = groups.size > LISTED ? `and ${groups.size - LISTED} more` : "";
  $("no-subjects").hidden = groups.size > 0;
}

$("rate-chart").append(overall.svg);
$("lag-chart").append(lateness.svg);
