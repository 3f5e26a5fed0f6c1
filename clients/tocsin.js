// Live events from a Tocsin gateway, in a browser or in Node 22 and later. No dependencies.
//
//   import { subscribe } from "http://127.0.0.1:8080/client.js";
//   const orders = subscribe("pg.shop.change.public.orders.*", { onEvent: ({ event }) => console.log(event.data.new) });
//   for await (const { event, position } of subscribe("pg.>", { since: "5m" })) { … }
//
// Subscriptions of one gateway share a socket. A lost one is made anew, and each subscription resumes after its last
// position, without a hole and without a repeat. What can't be recovered is told, never skipped in silence.

const QUIET = 10_000; // ms without a message, after which the link is asked whether it lives
const PATIENCE = 5_000; // ms that it has to answer
const LASTED = 5_000; // ms after which a connection counts as a success, and pauses begin short again
const LONGEST_PAUSE = 5_000;
const HIGH_WATER = 2_000; // events waiting in an iterator, beyond which it lets the gateway keep the rest
const PERMANENT_CLOSES = { 4400: "bad-message", 4401: "unauthenticated", 4403: "forbidden", 4408: "unauthenticated" };

/** The gateway refuses; trying again does not help. `code` is the contract's, such as bad-subject or forbidden. */
export class SubscribeError extends Error {
  constructor(code, message) {
    super(`${code}: ${message}`);
    this.name = "SubscribeError";
    this.code = code;
  }
}

/** Events before `position` can't be served; `reason` is expired, epoch, gap or limit. */
export class GapError extends Error {
  constructor(reason, position) {
    super(`events are missing before position ${position} (${reason}): read the present state anew, then go on from there`);
    this.name = "GapError";
    this.reason = reason;
    this.position = position;
  }
}

/**
 * Subscribe to a subject; `*` is one token, a last `>` the rest.
 *
 * url      the gateway's, http(s) or ws(s); default: where this module came from
 * since    now (default), start, an age such as 5m, or a position
 * token    a JWT, or a function (may be async) that gives a fresh one for each connection
 * onEvent  ({subject, position, event}), in stream order; without it, iterate: for await (const {event} of subscription)
 * onState  (state, error): connecting, live, retrying, closed
 * onGap    ({reason, position}): events before position are missing, delivery goes on after it; without it a gap ends the
 *          subscription with a GapError
 * onError  (error): why the subscription ended; an iterator throws it
 * signal   an AbortSignal that closes it
 *
 * Returns an object with close(), state and position; keep the position to resume from it later.
 */
export function subscribe(subject, options = {}) {
  if (options.since === "snapshot") throw new SubscribeError("bad-since", "this client does not read snapshots; now, start, an age or a position is allowed");
  const subscription = new Subscription(subject, options);
  const { signal } = options;
  if (signal?.aborted) {
    subscription.close();
    return subscription;
  }
  signal?.addEventListener("abort", () => subscription.close(), { once: true });
  Link.of(socketUrl(options.url), options.token).add(subscription);
  return subscription;
}

/** `http(s)://host:port` becomes `ws(s)://host:port/ws`; a ws URL with a path stays as it is. */
export function socketUrl(url) {
  const base = new URL(import.meta.url);
  const target = url === undefined ? new URL("ws", base) : new URL(url, globalThis.location?.href ?? base);
  const http = /^https?:$/.test(target.protocol);
  if (!http && !/^wss?:$/.test(target.protocol)) throw new TypeError(`${target} is not a gateway's URL; http, https, ws and wss are allowed`);
  if (url !== undefined && (http || target.pathname === "/")) target.pathname = `${target.pathname.replace(/\/+$/, "")}/ws`;
  if (http) target.protocol = target.protocol.replace("http", "ws");
  target.hash = "";
  return target.href;
}

/** Whether a subject belongs to a pattern. */
export function matches(pattern, subject) {
  const wanted = pattern.split(".");
  const tokens = subject.split(".");
  for (const [i, token] of wanted.entries()) {
    if (token === ">") return i < tokens.length;
    if (token !== "*" && token !== tokens[i]) return false;
  }
  return wanted.length === tokens.length;
}

class Subscription {
  #options;
  #link = null;
  #queue = [];
  #waiting = [];
  #lastId = null;
  #iterated;
  #ended = null;

  constructor(subject, options) {
    this.subject = subject;
    this.position = null;
    this.state = "connecting";
    this.id = null; // of the request that is in force on the present connection
    this.flowing = false; // whether the gateway has confirmed that request
    this.paused = false;
    this.#options = options;
    this.#iterated = options.onEvent === undefined;
  }

  get since() {
    return this.position ?? this.#options.since ?? "now";
  }

  close() {
    this.end(null);
  }

  async *[Symbol.asyncIterator]() {
    this.#iterated = true;
    try {
      for (;;) {
        if (this.#queue.length > 0) {
          yield this.#queue.shift();
        } else if (this.#ended !== null) {
          if (this.#ended.error !== null) throw this.#ended.error;
          return;
        } else if (this.paused) {
          this.paused = false;
          this.#link?.request(this);
        } else {
          await new Promise((resolve) => this.#waiting.push(resolve));
        }
      }
    } finally {
      this.close();
    }
  }

  // What follows is for the link.

  attach(link) {
    this.#link = link;
  }

  enter(state, error = null) {
    if (state === this.state && error === null) return;
    this.state = state;
    this.#call("onState", state, error);
  }

  deliver(frame) {
    this.position = frame.position;
    // The copy under the old route: after a resume between the two the gateway can't know that we had the first.
    if (frame.event.id === this.#lastId) return;
    this.#lastId = frame.event.id;
    const delivery = { subject: frame.subject, position: frame.position, event: frame.event };
    this.#call("onEvent", delivery);
    if (!this.#iterated) return;
    this.#queue.push(delivery);
    this.#wake();
    if (this.#queue.length >= HIGH_WATER && !this.paused) {
      this.paused = true;
      this.#link?.withdraw(this);
    }
  }

  confirmed(frame) {
    this.flowing = true;
    this.position = frame.position;
    this.enter("live");
    if (frame.recovered !== false) return;
    const gap = new GapError(frame.reason ?? "gap", frame.position);
    if (this.#options.onGap) this.#call("onGap", { reason: gap.reason, position: gap.position });
    else this.end(gap);
  }

  end(error) {
    if (this.#ended !== null) return;
    this.#ended = { error };
    this.#link?.remove(this);
    this.enter("closed", error);
    if (error !== null && this.#options.onError) this.#call("onError", error);
    else if (error !== null && !this.#iterated) console.error("tocsin:", error);
    this.#wake();
  }

  #wake() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  // A listener that throws must not take the other subscriptions of the socket with it.
  #call(name, ...parts) {
    try {
      this.#options[name]?.(...parts);
    } catch (error) {
      (globalThis.reportError ?? console.error)(error);
    }
  }
}

class Link {
  static #links = new Map();

  #url;
  #token;
  #subscriptions = new Set();
  #byId = new Map();
  #socket = null;
  #open = false;
  #failures = 0;
  #numbers = 0;
  #retry = null;
  #watch = null;
  #pinged = null;
  #heard = 0;

  static of(url, token) {
    const key = typeof token === "function" ? token : `${url} ${token ?? ""}`;
    let link = Link.#links.get(key);
    if (link === undefined || link.#url !== url) {
      link = new Link(url, token);
      link.key = key;
      Link.#links.set(key, link);
    }
    return link;
  }

  constructor(url, token) {
    this.#url = url;
    this.#token = token;
  }

  add(subscription) {
    subscription.attach(this);
    this.#subscriptions.add(subscription);
    if (this.#open) this.request(subscription);
    else if (this.#socket === null && this.#retry === null) this.#connect();
  }

  remove(subscription) {
    this.#subscriptions.delete(subscription);
    this.withdraw(subscription);
    if (this.#subscriptions.size === 0) this.#stop();
  }

  request(subscription) {
    if (!this.#open) return;
    subscription.id = `s${++this.#numbers}`;
    subscription.flowing = false;
    this.#byId.set(subscription.id, subscription);
    this.#send({ op: "subscribe", id: subscription.id, subject: subscription.subject, since: subscription.since });
  }

  withdraw(subscription) {
    if (subscription.id !== null && this.#byId.delete(subscription.id)) this.#send({ op: "unsubscribe", id: subscription.id });
    subscription.id = null;
    subscription.flowing = false;
  }

  #send(message) {
    if (this.#open) this.#socket.send(JSON.stringify(message));
  }

  #connect() {
    clearTimeout(this.#retry);
    this.#retry = null;
    for (const subscription of this.#subscriptions) subscription.enter("connecting");
    if (this.#subscriptions.size === 0) return;
    const began = Date.now();
    const socket = (this.#socket = new WebSocket(this.#url));
    socket.onopen = () => this.#begin(socket);
    socket.onmessage = ({ data }) => this.#hear(socket, data);
    socket.onclose = ({ code, reason }) => this.#lose(socket, code, reason, Date.now() - began);
    this.#heard = began;
    this.#pinged = null;
    this.#watch = setInterval(() => this.#look(), 1_000);
    this.#listen(true);
  }

  async #begin(socket) {
    try {
      const token = typeof this.#token === "function" ? await this.#token() : this.#token;
      if (socket !== this.#socket) return;
      this.#open = true;
      if (token) this.#send({ op: "auth", token });
    } catch (error) {
      console.error("tocsin: no token:", error);
      socket.close();
      return;
    }
    for (const subscription of this.#subscriptions) if (!subscription.paused) this.request(subscription);
  }

  #hear(socket, data) {
    if (socket !== this.#socket) return;
    this.#heard = Date.now();
    this.#pinged = null;
    let frame;
    try {
      frame = JSON.parse(data);
    } catch {
      this.#endAll(new SubscribeError("bad-message", "the answer is not a gateway's; does the URL lead to a Tocsin gateway?"));
      return;
    }
    if (frame.op === "event") this.#dispatch(frame);
    else if (frame.op === "subscribed") this.#byId.get(frame.id)?.confirmed(frame);
    else if (frame.op === "position") this.#atPosition(frame);
    else if (frame.op === "error") this.#refused(socket, frame);
  }

  #dispatch(frame) {
    // With `for`, the gateway names them; without, the frame is everybody's whose pattern it matches.
    const wanted = frame.for
      ? Object.keys(frame.for).map((id) => this.#byId.get(id))
      : [...this.#subscriptions].filter((subscription) => subscription.flowing && matches(subscription.subject, frame.subject));
    for (const subscription of wanted) if (subscription?.id) subscription.deliver(frame);
  }

  #atPosition(frame) {
    const subscription = this.#byId.get(frame.id);
    if (subscription) subscription.position = frame.position;
  }

  #refused(socket, { id, code, message }) {
    if (code === "unavailable" || (code === "unauthenticated" && typeof this.#token === "function")) {
      socket.close();
      return;
    }
    const error = new SubscribeError(code, message);
    if (id === undefined) this.#endAll(error);
    else this.#byId.get(id)?.end(error);
  }

  #lose(socket, code, reason, lasted) {
    if (socket !== this.#socket) return;
    const lived = this.#open && [...this.#subscriptions].some((subscription) => subscription.flowing);
    this.#drop();
    const permanent = PERMANENT_CLOSES[code];
    if (permanent && !(permanent === "unauthenticated" && typeof this.#token === "function")) {
      this.#endAll(new SubscribeError(permanent, reason || `the gateway closed the connection with ${code}`));
      return;
    }
    if (lived && lasted >= LASTED) this.#failures = 0;
    const pause = Math.min(LONGEST_PAUSE, 100 * 2 ** this.#failures++) * (0.5 + Math.random() / 2);
    this.#retry = setTimeout(() => this.#connect(), pause);
    const error = new Error(`the connection to ${this.#url} ended (${code}${reason ? `, ${reason}` : ""})`);
    for (const subscription of this.#subscriptions) subscription.enter("retrying", error);
  }

  /** A timer of a hidden page comes late: so silence alone ends nothing, only a ping that had its time. */
  #look() {
    const now = Date.now();
    if (this.#pinged !== null && now - this.#pinged >= PATIENCE) this.#abandon();
    else if (this.#pinged === null && now - this.#heard >= QUIET) this.#ask(now);
  }

  #ask(now) {
    this.#pinged = now;
    this.#send({ op: "ping" });
  }

  #abandon() {
    const socket = this.#socket;
    // A half-open socket fires close only after a minute; we do not wait for it.
    this.#lose(socket, 1006, "no answer", 0);
    socket.close();
  }

  #drop() {
    this.#open = false;
    this.#socket = null;
    this.#byId.clear();
    clearInterval(this.#watch);
    for (const subscription of this.#subscriptions) {
      subscription.id = null;
      subscription.flowing = false;
    }
  }

  #stop() {
    const socket = this.#socket;
    this.#drop();
    clearTimeout(this.#retry);
    this.#retry = null;
    this.#listen(false);
    if (Link.#links.get(this.key) === this) Link.#links.delete(this.key);
    socket?.close();
  }

  #endAll(error) {
    for (const subscription of [...this.#subscriptions]) subscription.end(error);
  }

  // The person came back, or the network did: now, not after the pause.
  #awake = () => {
    if (globalThis.document?.visibilityState === "hidden") return;
    if (this.#retry !== null) this.#connect();
    else if (this.#open && this.#pinged === null) this.#ask(Date.now());
  };

  #listen(on) {
    if (typeof document === "undefined") return;
    const change = on ? "addEventListener" : "removeEventListener";
    document[change]("visibilitychange", this.#awake);
    globalThis[change]("online", this.#awake);
    globalThis[change]("pageshow", this.#awake);
  }
}
