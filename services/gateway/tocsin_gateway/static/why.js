// "Why did I not get it?": from the pattern, by token and stream, to this page, in the order in which an event goes.
import { matches } from "/client.js";
import { $, element } from "./dom.js";
import { has, isPaused, search, unshownCount } from "./list.js";
import { ask, latest } from "./parts.js";

const MARKS = { true: "✓", false: "✗", null: "?" };

/** `subscriptionsOf` gives what this page is subscribed to: [{subject, where, state, position, began}]. */
export function setUpWhy(subscriptionsOf, positionOf) {
  $("why").addEventListener("click", () => {
    $("why-since").value = "";
    $("why-since").placeholder = positionOf();
    $("why-answer").replaceChildren();
    $("why-dialog").showModal();
    $("why-subject").focus();
  });
  $("why-form").addEventListener("submit", async (submitted) => {
    submitted.preventDefault();
    const subject = patternOf($("why-subject").value.trim());
    const query = new URLSearchParams({ subject });
    for (const [name, id] of [["key", "why-key"], ["since", "why-since"]]) if ($(id).value.trim() !== "") query.set(name, $(id).value.trim());
    $("why-answer").replaceChildren(element("li", "", "Asking …"));
    try {
      const answer = await ask(`/why?${query}`);
      show([...answer.steps, ...here(subject, answer.event, subscriptionsOf())]);
    } catch (error) {
      show([{ step: "gateway", ok: false, text: error.code ? error.message : "the gateway does not answer" }]);
    }
  });
  $("why-close").addEventListener("click", () => $("why-dialog").close());
}

/** A table's name stands for its changes. */
function patternOf(text) {
  if (/[*>]/.test(text) || text.split(".").length > 2) return text;
  const [table, schema = "public"] = text.split(".").reverse();
  return `${latest()?.prefix ?? "pg.*"}.change.${schema}.${table}.>`;
}

function here(asked, event, subscriptions) {
  const subject = event?.subject ?? null;
  const fitting = subscriptions.filter((each) => (subject === null ? each.subject === asked : matches(each.subject, subject)));
  if (fitting.length === 0) return [{ step: "this page", ok: false, text: `is subscribed to nothing that ${subject ?? asked} belongs to; subscribe to ${asked}` }];
  const steps = fitting.map((each) => subscriptionStep(each, event));
  if (event === null) return steps;
  if (has(event.id)) steps.push({ step: "list", ok: true, text: "it is here: search for its id" });
  if (has(event.id) && search() !== "") steps.push({ step: "search", ok: null, text: `only what contains “${search()}” is shown` });
  if (isPaused()) steps.push({ step: "pause", ok: false, text: "the list is paused: what arrives waits until you go on" });
  if (!has(event.id) && unshownCount() > 0) steps.push({ step: "list", ok: null, text: `${unshownCount().toLocaleString("en")} events were too many to show, or it is no longer among the newest that are kept` });
  return steps;
}

function subscriptionStep({ subject, where, state, began }, event) {
  const step = "this page";
  if (state !== "live") return { step, ok: false, text: `${subject} is ${state}: it goes on after its position as soon as the gateway answers` };
  if (event !== null && Date.parse(event.time) < began) return { step, ok: null, text: `${subject} began after it; subscribe again with since 5m, or since its position` };
  if (where) return { step, ok: null, text: `${subject} is live with the filter ${JSON.stringify(where)}: what neither enters, stays nor leaves it is not sent` };
  return { step, ok: true, text: `${subject} is live` };
}

function show(steps) {
  $("why-answer").replaceChildren(
    ...steps.map(({ step, ok, text }) => {
      const line = element("li", "", element("span", "mark", MARKS[ok]), element("b", "", step), element("span", "text", text));
      line.dataset.ok = String(ok);
      return line;
    }),
  );
}
