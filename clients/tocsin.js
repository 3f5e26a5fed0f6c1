// Live events from a Tocsin gateway, in a browser, Node, Deno or Bun. No dependencies.
//
//   import { subscribe } from "http://127.0.0.1:8080/client.js";
//   const orders = subscribe("pg.shop.change.public.orders.*", { onEvent: ({ event }) => console.log(event.data.new) });
//   for await (const { event, position } of subscribe("pg.>", { since: "5m" })) { … }
//
// Subscriptions of one gateway share a socket. A lost one is made anew, and each subscription resumes after its last
// position, without a hole and without a repeat. What can't be recovered is told, never skipped in silence. Where no
// WebSocket gets through, or there is none (Node before 22), the same comes as server-sent events.

const QUIET = 10_000; // ms without a message, after which the link is asked whether it lives
const PATIENCE = 5_000; // ms that it has to answer
const SILENT = 40_000; // ms without a byte after which an event stream is dead; the gateway sends one every 15 s
const LASTED = 5_000; // ms after which a connection counts as a success, and pauses begin short again
const LONGEST_PAUSE = 5_000;
const LONGEST_ANSWER = 10_000;
const LONGEST_HIDDEN_PAUSE = 60_000; // while nobody looks at the page
const HIGH_WATER = 2_000; // events waiting in an iterator, beyond which it lets the gateway keep the rest
const BLOCKED = 2; // WebSockets that never opened, one after another, before server-sent events are tried
const KEEP_PAUSE = 500; // ms between two writes of a kept position
const LONGEST_TIMER = 2 ** 31 - 1;
const PERMANENT_CLOSES = { 4400: "bad-message", 4401: "unauthenticated", 4403: "forbidden", 4408: "unauthenticated" };

/**
 * A CloudEvent; `data` of a row change is {op, schema, table, key, new, old}.
 * @typedef {{specversion: string, id: string, source: string, type: string, subject?: string, time: string, sequence: string, txid: string, data: any}} CloudEvent
 *
 * An event, where it came from, and the position to resume after it. `change` says what it means for `where`: enter, leave or stay.
 * @typedef {{kind: "event", subject: string, position: string, event: CloudEvent, change: "enter" | "leave" | "stay" | null}} Delivery
 *
 * A row of the snapshot.
 * @typedef {{kind: "row", key: Record<string, any>, row: Record<string, any>}} Row
 *
 * The snapshot begins: forget what you had. Or it is whole, and every change after `position` follows.
 * @typedef {{kind: "snapshot-begin"} | {kind: "snapshot-end", position: string}} SnapshotMark
 *
 * Who subscribes to the same with presence, ourselves too, and what brought the change; `client` is ourselves, and null once a new token does not allow presence.
 * @typedef {{client: string, user: string | null}} Member
 * @typedef {{kind: "presence", client: string | null, members: Member[], joined?: Member, left?: Member}} Presence
 *
 * @typedef {"connecting" | "live" | "retrying" | "closed"} State
 * @typedef {{getItem(key: string): string | null, setItem(key: string, value: string): void}} Store
 * @typedef {Record<string, {eq?: any, ne?: any, lt?: any, lte?: any, gt?: any, gte?: any, in?: any[], like?: string, null?: boolean}>} Where
 *
 * @typedef {object} Options
 * @property {string | URL} [url] the gateway's, http(s) or ws(s); default: where this module came from
 * @property {string} [since] now (default), start, an age such as 5m, a position, or snapshot: the table's rows, then every change after them
 * @property {Where} [where] which rows: {"customer_id": {"eq": 42}}; all conditions must hold, on the new row or the old one
 * @property {string[]} [select] the columns to send; default: all
 * @property {string | (() => string | Promise<string>)} [token] a JWT, or a function that gives a fresh one for each connection, and before it expires
 * @property {string} [keep] a name under which the position is kept, so that a reload or a restart goes on from it
 * @property {Store} [storage] where it is kept; default: localStorage
 * @property {"auto" | "websocket" | "sse"} [transport]
 * @property {any} [WebSocket] a constructor, where the platform has none
 * @property {(delivery: Delivery) => void} [onEvent] in stream order; without it, iterate: for await (const item of subscription)
 * @property {(row: Row) => void} [onRow] of the snapshot
 * @property {(mark: SnapshotMark) => void} [onSnapshot]
 * @property {boolean} [presence] be announced to whoever asks the same of the same subject, and be told of them
 * @property {(presence: Presence) => void} [onPresence] all who are there, at each change; an iterator gets it as an item
 * @property {(state: State, error: Error | null) => void} [onState]
 * @property {(gap: {reason: string, position: string}) => void} [onGap] events before position are missing, and delivery goes on after it; without it
 *   a snapshot is read anew, and any other subscription ends with a GapError
 * @property {(error: Error) => void} [onError] why the subscription ended; an iterator throws it
 * @property {AbortSignal} [signal] closes it
 */

/** The gateway refuses; trying again does not help. `code` is the contract's, such as bad-subject or forbidden. */
export class SubscribeError extends Error {
  /** @param {string} code @param {string} message */
  constructor(code, message) {
    super(`${code}: ${message}`);
    this.name = "SubscribeError";
    this.code = code;
  }
}

/** Events before `position` can't be served; `reason` is expired, epoch, gap or limit. */
export class GapError extends Error {
  /** @param {string} reason @param {string} position */
  constructor(reason, position) {
    super(`events are missing before position ${position} (${reason}): read the present state anew, then go on from there`);
    this.name = "GapError";
    this.reason = reason;
    this.position = position;
  }
}

/**
 * Subscribe to a subject; `*` is one token, a last `>` the rest. Returns an object with close(), state and position, that can be iterated.
 * @param {string} subject
 * @param {Options} [options]
 */
export function subscribe(subject, options = {}) {
  const subscription = new Subscription(subject, options);
  const { signal } = options;
  if (signal?.aborted) {
    subscription.close();
    return subscription;
  }
  signal?.addEventListener("abort", () => subscription.close(), { once: true });
  Link.of(socketUrl(options.url), options).add(subscription);
  return subscription;
}

/**
 * A single-use ticket for what can set no header, such as EventSource: `/sse?subject=…&ticket=…`. It is good for half a minute.
 * @param {string | URL | undefined} url the gateway's
 * @param {string} token a JWT
 * @returns {Promise<string>}
 */
export async function ticket(url, token) {
  const answer = await fetch(httpUrl(socketUrl(url), "tickets"), { method: "POST", headers: { authorization: `Bearer ${token}` } });
  const body = await answer.json();
  if (!answer.ok) throw new SubscribeError(body.code ?? "unauthenticated", body.message ?? `HTTP ${answer.status}`);
  return body.ticket;
}

/**
 * Send a message of one's own on `pg.<source>.live.…`: at most once, not kept. Gives the event's id once NATS has it, not that anybody heard it.
 * Each call makes a connection. Rejects with SubscribeError where the gateway refuses, and with Error where it is lost: whether the message came out
 * is not known then.
 * @param {string} subject
 * @param {any} data what JSON can hold
 * @param {{url?: string | URL, token?: string | (() => string | Promise<string>), WebSocket?: any}} [options]
 * @returns {Promise<string>}
 */
export async function publish(subject, data, { url, token, WebSocket = globalThis.WebSocket } = {}) {
  if (!WebSocket) throw new TypeError("there is no WebSocket here; give one as the option WebSocket");
  const address = socketUrl(url);
  const shown = typeof token === "function" ? await token() : token;
  const socket = new WebSocket(address);
  try {
    return await new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Error("the gateway did not answer in time")), LONGEST_ANSWER);
      const failed = (/** @type {Error} */ error) => (clearTimeout(late), reject(error));
      socket.onopen = () => {
        if (shown) socket.send(JSON.stringify({ op: "auth", token: shown }));
        socket.send(JSON.stringify({ op: "publish", id: "m", subject, data: data ?? null }));
      };
      socket.onmessage = (/** @type {{data: string}} */ message) => {
        const frame = JSON.parse(message.data);
        if (frame.op === "published") clearTimeout(late), resolve(frame.event);
        else if (frame.op === "error") failed(new SubscribeError(frame.code, frame.message));
      };
      socket.onclose = (/** @type {{code: number}} */ { code }) => failed(new Error(`the connection was lost (${code})`));
    });
  } finally {
    socket.onclose = null;
    socket.close();
  }
}

/**
 * `http(s)://host:port` becomes `ws(s)://host:port/ws`; a ws URL with a path stays as it is.
 * @param {string | URL} [url]
 */
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

/** Another endpoint of the gateway whose socket is at `url`. @param {string} url @param {string} endpoint */
function httpUrl(url, endpoint) {
  const target = new URL(endpoint, url);
  target.protocol = target.protocol.replace("ws", "http");
  target.search = "";
  return target;
}

/** Whether a subject belongs to a pattern. @param {string} pattern @param {string} subject */
export function matches(pattern, subject) {
  const wanted = pattern.split(".");
  const tokens = subject.split(".");
  for (const [i, token] of wanted.entries()) {
    if (token === ">") return i < tokens.length;
    if (token !== "*" && token !== tokens[i]) return false;
  }
  return wanted.length === tokens.length;
}

/** What one caller asked for: where it stands, and so what to ask when the link is made anew. */
class Subscription {
  /** @type {Options} */ #options;
  /** @type {Link | null} */ #link = null;
  #queue = [];
  #waiting = [];
  #lastId = null;
  #iterated;
  #ended = null;
  #received = null; // the position of what came
  #taken = null; // the position of what the caller has had
  #reading = false; // a snapshot that is not whole yet
  #store = null;
  #here = { client: null, members: [] };

  constructor(subject, options) {
    this.subject = subject;
    /** @type {State} */ this.state = "connecting";
    this.id = null; // of the request that is in force on the present connection
    this.flowing = false; // whether the gateway has confirmed that request
    this.paused = false;
    this.#options = options;
    this.#iterated = options.onEvent === undefined;
    this.#store = keeper(subject, options);
    const kept = this.#store?.read() ?? null;
    this.#received = this.#taken = kept;
    this.#reading = kept === null && options.since === "snapshot";
  }

  /** Where to resume: after the last event that was handed out. Moves on while nothing matches. */
  get position() {
    return this.#reading ? null : this.#taken;
  }

  close() {
    this.end(null);
  }

  async *[Symbol.asyncIterator]() {
    this.#iterated = true;
    try {
      for (;;) {
        if (this.#queue.length > 0) {
          const item = this.#queue.shift();
          if (item.position && !this.#reading) this.#taken = item.position;
          yield item;
          // Kept after the caller has asked for more: what it did not finish comes again.
          if (item.position && !this.#reading) this.#store?.write(item.position);
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

  /** What to ask the gateway. */
  get request() {
    const { where, select, presence, since = "now" } = this.#options;
    const from = this.#reading ? "snapshot" : (this.#received ?? since);
    return { subject: this.subject, since: from, ...(where && { where }), ...(select && { select }), ...(presence && { presence }) };
  }

  /** Whether an event frame without `for` can be its own. */
  get plain() {
    return !this.#options.where && !this.#options.select;
  }

  attach(link) {
    this.#link = link;
  }

  enter(state, error = null) {
    if (state === this.state && error === null) return;
    this.state = state;
    this.#call("onState", state, error);
  }

  deliver(frame, change = null) {
    this.#received = frame.position;
    // The copy under the old route: after a resume between the two the gateway can't know that we had the first.
    if (frame.event.id === this.#lastId) return;
    this.#lastId = frame.event.id;
    this.#give("onEvent", { kind: "event", subject: frame.subject, position: frame.position, event: frame.event, change });
  }

  row(frame) {
    this.#give("onRow", { kind: "row", key: frame.key, row: frame.row });
  }

  /** Who is there: all of them, or one who came or went. */
  present({ op, client, user = null, members }) {
    if (op === "presence") {
      this.#here = { client, members };
      this.#give("onPresence", { kind: "presence", ...this.#here });
      return;
    }
    const member = { client, user };
    const others = this.#here.members.filter((other) => other.client !== client);
    this.#here = { ...this.#here, members: op === "joined" ? [...others, member] : others };
    this.#give("onPresence", { kind: "presence", ...this.#here, [op]: member });
  }

  whole(frame) {
    this.#reading = false;
    this.#received = frame.position;
    this.#give("onSnapshot", { kind: "snapshot-end", position: frame.position });
  }

  at(position) {
    if (this.#reading) return;
    this.#received = position;
    if (this.#queue.length === 0) this.#took(position);
  }

  confirmed(frame) {
    this.flowing = true;
    if (frame.recovered !== false) this.at(frame.position);
    if (frame.hint) console.info("tocsin:", frame.hint); // for whoever writes the page: nothing of the subject ever came
    this.enter("live");
    if (frame.recovered === false) this.#missed(frame);
    else if (this.#reading) this.#give("onSnapshot", { kind: "snapshot-begin" });
  }

  #missed(frame) {
    const gap = new GapError(frame.reason ?? "gap", frame.position);
    if (this.#options.onGap) {
      this.at(frame.position);
      this.#call("onGap", { reason: gap.reason, position: gap.position });
    } else if (this.#options.since === "snapshot") {
      this.#reading = true;
      this.#link?.withdraw(this);
      this.#link?.request(this);
    } else {
      this.end(gap);
    }
  }

  end(error) {
    if (this.#ended !== null) return;
    this.#ended = { error };
    this.#store?.flush();
    this.#link?.remove(this);
    this.enter("closed", error);
    if (error !== null && this.#options.onError) this.#call("onError", error);
    else if (error !== null && !this.#iterated) console.error("tocsin:", error);
    this.#wake();
  }

  #give(name, item) {
    this.#call(name, item);
    if (!this.#iterated) {
      if (item.position && !this.#reading) this.#took(item.position);
      return;
    }
    this.#queue.push(item);
    this.#wake();
    // A snapshot is not interrupted: it would begin anew.
    if (this.#queue.length >= HIGH_WATER && !this.paused && !this.#reading) {
      this.paused = true;
      this.#link?.withdraw(this);
    }
  }

  #took(position) {
    this.#taken = position;
    this.#store?.write(position);
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

/** Keeps a position under a name, written a few times a second; null where none is wanted. */
function keeper(subject, { keep, storage, url }) {
  if (!keep) return null;
  const store = storage ?? globalThis.localStorage;
  if (!store) throw new TypeError("keep: there is no localStorage here; give a storage with getItem and setItem");
  const key = `tocsin ${keep} ${new URL(socketUrl(url)).host} ${subject}`;
  let latest = null;
  let timer = null;
  const flush = () => {
    clearTimeout(timer);
    timer = null;
    try {
      if (latest !== null) store.setItem(key, latest);
    } catch (error) {
      console.error("tocsin: the position can't be kept:", error);
    }
    latest = null;
  };
  globalThis.addEventListener?.("pagehide", flush);
  return {
    read: () => store.getItem(key),
    write(position) {
      latest = position;
      timer ??= setTimeout(flush, KEEP_PAUSE);
    },
    flush,
  };
}

/** The connections to one gateway, one after the other, and the subscriptions that share them. */
class Link {
  /** @type {Map<any, Link>} */ static #links = new Map();

  #url;
  #token;
  #transport;
  #WebSocket;
  /** @type {Set<Subscription>} */ #subscriptions = new Set();
  /** @type {Map<string, Subscription>} */ #byId = new Map();
  #connection = null;
  #open = false;
  #failures = 0;
  #blocked = 0;
  #numbers = 0;
  #retry = null;
  #watch = null;
  #refresh = null;
  #pinged = null;
  #heard = 0;
  #began = 0;

  static of(url, { token, transport = "auto", WebSocket = globalThis.WebSocket }) {
    const key = `${url} ${transport} ${typeof token === "function" ? "" : (token ?? "")}`;
    const found = Link.#links.get(typeof token === "function" ? token : key);
    if (found !== undefined && found.#url === url && found.#transport === transport) return found;
    const link = new Link(url, token, transport, WebSocket);
    link.key = typeof token === "function" ? token : key;
    Link.#links.set(link.key, link);
    return link;
  }

  constructor(url, token, transport, WebSocket) {
    if (!["auto", "websocket", "sse"].includes(transport)) throw new TypeError(`transport ${transport}: auto, websocket or sse is allowed`);
    if (transport === "websocket" && !WebSocket) throw new TypeError("there is no WebSocket here; give one as the option WebSocket, or use sse");
    this.#url = url;
    this.#token = token;
    this.#transport = transport;
    this.#WebSocket = WebSocket;
  }

  add(subscription) {
    subscription.attach(this);
    this.#subscriptions.add(subscription);
    if (this.#open) this.request(subscription);
    else if (this.#connection === null && this.#retry === null) this.#connect();
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
    this.#connection.subscribe(subscription.id, subscription.request);
  }

  withdraw(subscription) {
    if (subscription.id !== null && this.#byId.delete(subscription.id) && this.#open) this.#connection.unsubscribe(subscription.id);
    subscription.id = null;
    subscription.flowing = false;
  }

  #connect() {
    clearTimeout(this.#retry);
    this.#retry = null;
    for (const subscription of this.#subscriptions) subscription.enter("connecting");
    if (this.#subscriptions.size === 0) return;
    this.#began = this.#heard = Date.now();
    this.#pinged = null;
    const sse = this.#transport === "sse" || (this.#transport === "auto" && (!this.#WebSocket || this.#blocked >= BLOCKED));
    const connection = (this.#connection = sse ? new EventStreams(this.#url) : new Socket(this.#url, this.#WebSocket));
    connection.onOpen = () => this.#begin(connection);
    connection.onFrame = (frame, id) => this.#hear(connection, frame, id);
    connection.onNotOurs = () => connection === this.#connection && this.#endAll(new SubscribeError("bad-message", "the answer is not a gateway's; does the URL lead to a Tocsin gateway?"));
    connection.onLost = (code, reason) => this.#lose(connection, code, reason);
    this.#watch = setInterval(() => this.#look(), 1_000);
    this.#listen(true);
    connection.start();
  }

  async #begin(connection) {
    try {
      const token = await this.#freshToken();
      if (connection !== this.#connection) return;
      this.#open = true;
      if (token) connection.authenticate(token);
    } catch (error) {
      console.error("tocsin: no token:", error);
      connection.close();
      this.#lose(connection, 1006, "no token");
      return;
    }
    this.#blocked = 0;
    for (const subscription of this.#subscriptions) if (!subscription.paused) this.request(subscription);
  }

  async #freshToken() {
    return typeof this.#token === "function" ? await this.#token() : this.#token;
  }

  #hear(connection, frame, id) {
    if (connection !== this.#connection) return;
    this.#heard = Date.now();
    this.#pinged = null;
    if (frame === null) return;
    const subscription = this.#byId.get(id ?? frame.id);
    switch (frame.op) {
      case "event":
        return this.#dispatch(frame, id);
      case "subscribed":
        return subscription?.confirmed(frame);
      case "row":
        return subscription?.row(frame);
      case "snapshot-end":
        return subscription?.whole(frame);
      case "presence":
      case "joined":
      case "left":
        return subscription?.present(frame);
      case "position":
        return subscription?.at(frame.position);
      case "authenticated":
        return this.#refreshBefore(connection, frame.expires);
      case "error":
        return this.#refused(connection, frame, id);
    }
  }

  #dispatch(frame, id) {
    if (id !== undefined) {
      const marks = Object.values(frame.for ?? {});
      this.#byId.get(id)?.deliver(frame, marks[0] ?? null);
    } else if (frame.for) {
      // The gateway names them; without, the frame is everybody's whose pattern it matches.
      for (const [name, mark] of Object.entries(frame.for)) this.#byId.get(name)?.deliver(frame, mark);
    } else {
      for (const subscription of [...this.#subscriptions]) {
        if (subscription.flowing && subscription.plain && matches(subscription.subject, frame.subject)) subscription.deliver(frame);
      }
    }
  }

  /** A token that a function gives is renewed on the living connection. */
  #refreshBefore(connection, expires) {
    clearTimeout(this.#refresh);
    if (!expires || typeof this.#token !== "function") return;
    const left = Date.parse(expires) - Date.now();
    this.#refresh = setTimeout(
      async () => {
        try {
          const token = await this.#freshToken();
          if (connection === this.#connection) connection.authenticate(token);
        } catch (error) {
          console.error("tocsin: no fresh token:", error);
        }
      },
      Math.min(LONGEST_TIMER, Math.max(500, left * 0.8)),
    );
  }

  #refused(connection, { id: asked, code, message }, id = asked) {
    if (code === "unavailable" || (code === "unauthenticated" && typeof this.#token === "function")) {
      connection.close();
      this.#lose(connection, 1006, message);
      return;
    }
    const error = new SubscribeError(code, message);
    if (id === undefined) this.#endAll(error);
    else this.#byId.get(id)?.end(error);
  }

  #lose(connection, code, reason) {
    if (connection !== this.#connection) return;
    const opened = this.#open;
    const lived = opened && [...this.#subscriptions].some((subscription) => subscription.flowing);
    const lasted = Date.now() - this.#began;
    this.#drop();
    const permanent = PERMANENT_CLOSES[code];
    if (permanent && !(permanent === "unauthenticated" && typeof this.#token === "function")) {
      this.#endAll(new SubscribeError(permanent, reason || `the gateway closed the connection with ${code}`));
      return;
    }
    if (lived && lasted >= LASTED) this.#failures = 0;
    this.#blocked = opened || connection instanceof EventStreams ? 0 : this.#blocked + 1;
    this.#pause();
    const error = new Error(`the connection to ${this.#url} ended (${code}${reason ? `, ${reason}` : ""})`);
    for (const subscription of this.#subscriptions) subscription.enter("retrying", error);
  }

  #pause() {
    const hidden = globalThis.document?.visibilityState === "hidden";
    const longest = hidden ? LONGEST_HIDDEN_PAUSE : LONGEST_PAUSE;
    const pause = Math.min(longest, (hidden ? 1_000 : 100) * 2 ** Math.min(this.#failures++, 16)) * (0.5 + Math.random() / 2);
    this.#retry = setTimeout(() => this.#connect(), pause);
  }

  /** A timer of a hidden page comes late: so silence alone ends nothing, only a ping that had its time. */
  #look() {
    const now = Date.now();
    if (!this.#open) return this.#lookAtOpening(now);
    if (!this.#connection.canAsk) {
      if (now - this.#heard >= SILENT) this.#abandon();
    } else if (this.#pinged !== null && now - this.#pinged >= PATIENCE) this.#abandon();
    else if (this.#pinged === null && now - this.#heard >= QUIET) this.#ask(now);
  }

  #lookAtOpening(now) {
    if (now - this.#began >= QUIET + PATIENCE) this.#abandon();
  }

  #ask(now) {
    if (!this.#connection.canAsk) return;
    this.#pinged = now;
    this.#connection.ping();
  }

  #abandon() {
    const connection = this.#connection;
    // A half-open socket fires close only after a minute; we do not wait for it.
    this.#lose(connection, 1006, "no answer");
    connection.close();
  }

  #drop() {
    this.#open = false;
    this.#connection = null;
    this.#byId.clear();
    clearInterval(this.#watch);
    clearTimeout(this.#refresh);
    for (const subscription of this.#subscriptions) {
      subscription.id = null;
      subscription.flowing = false;
    }
  }

  #stop() {
    const connection = this.#connection;
    this.#drop();
    clearTimeout(this.#retry);
    this.#retry = null;
    this.#listen(false);
    if (Link.#links.get(this.key) === this) Link.#links.delete(this.key);
    connection?.close();
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

/** One WebSocket. A connection has start, subscribe, unsubscribe, authenticate, ping and close, and tells onOpen, onFrame and onLost. */
class Socket {
  canAsk = true;
  #socket;

  constructor(url, WebSocket) {
    this.#socket = new WebSocket(url);
  }

  start() {
    this.#socket.onopen = () => this.onOpen();
    this.#socket.onmessage = ({ data }) => {
      let frame;
      try {
        frame = JSON.parse(data);
      } catch {
        this.onNotOurs();
        return;
      }
      this.onFrame(frame);
    };
    this.#socket.onerror = () => {}; // close follows
    this.#socket.onclose = ({ code, reason }) => this.onLost(code, reason);
  }

  subscribe(id, request) {
    this.#send({ op: "subscribe", id, ...request });
  }

  unsubscribe(id) {
    this.#send({ op: "unsubscribe", id });
  }

  authenticate(token) {
    this.#send({ op: "auth", token });
  }

  ping() {
    this.#send({ op: "ping" });
  }

  close() {
    this.#socket.close();
  }

  #send(message) {
    if (this.#socket.readyState === 1) this.#socket.send(JSON.stringify(message));
  }
}

/** The same over HTTP: an event stream for each subscription, read by fetch, so that the token goes into a header. */
class EventStreams {
  canAsk = false;
  #url;
  #token = null;
  #running = new Map();
  #ended = new AbortController();

  constructor(url) {
    this.#url = url;
  }

  start() {
    queueMicrotask(() => this.onOpen());
  }

  authenticate(token) {
    this.#token = token;
  }

  subscribe(id, request) {
    const ending = new AbortController();
    this.#running.set(id, ending);
    this.#read(id, request, AbortSignal.any([ending.signal, this.#ended.signal])).catch((error) => {
      if (!ending.signal.aborted && !this.#ended.signal.aborted) this.onLost(1006, error.message);
    });
  }

  unsubscribe(id) {
    this.#running.get(id)?.abort();
    this.#running.delete(id);
  }

  ping() {}

  close() {
    this.#ended.abort();
  }

  async #read(id, { subject, since, where, select = [], presence }, signal) {
    const target = httpUrl(this.#url, "sse");
    target.searchParams.set("subject", subject);
    target.searchParams.set("since", since);
    if (where) target.searchParams.set("where", JSON.stringify(where));
    if (select.length > 0) target.searchParams.set("select", JSON.stringify(select));
    if (presence) target.searchParams.set("presence", "true");
    const headers = { accept: "text/event-stream", ...(this.#token && { authorization: `Bearer ${this.#token}` }) };
    const answer = await fetch(target, { signal, headers, cache: "no-store" });
    if (!answer.ok) return this.#refused(id, answer);
    if (!answer.headers.get("content-type")?.startsWith("text/event-stream")) return this.onNotOurs();
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the event stream has ended");
      this.onFrame(null);
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) this.#tell(id, block);
    }
  }

  #tell(id, block) {
    const data = block.split("\n").find((line) => line.startsWith("data: "));
    if (data !== undefined) this.onFrame(JSON.parse(data.slice(6)), id);
  }

  async #refused(id, answer) {
    const body = await answer.json().catch(() => ({}));
    if (!body.code && answer.status < 500 && ![408, 425, 429].includes(answer.status)) return this.onNotOurs();
    this.onFrame({ op: "error", code: body.code ?? "unavailable", message: body.message ?? `HTTP ${answer.status}` }, id);
  }
}
