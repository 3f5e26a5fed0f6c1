// Follows a subject with clients/tocsin.js and prints a line of JSON for everything that it is told.
import { createHmac } from "node:crypto";
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [client, kept, asked] = process.argv.slice(2);
const { subscribe } = await import(pathToFileURL(client).href);
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const storage = {
  getItem: () => {
    try {
      return readFileSync(kept, "utf8");
    } catch {
      return null;
    }
  },
  setItem: (_, value) => {
    writeFileSync(`${kept}.new`, value);
    renameSync(`${kept}.new`, kept);
  },
};
const { subject, iterate, fresh, ...options } = JSON.parse(asked);
const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
/** A JWT as `fresh` says, from now on. */
const sign = ({ secret, seconds, claims }) => {
  const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part({ ...claims, exp: Date.now() / 1000 + seconds })}`;
  say({ signed: claims.sub });
  return `${signed}.${createHmac("sha256", secret).update(signed).digest("base64url")}`;
};
const live = subscribe(subject, {
  ...options,
  ...(fresh && { token: () => sign(fresh) }),
  storage,
  onState: (state, error) => say({ state, error: error?.message }),
  ...(!iterate && { onEvent: ({ event, change }) => say({ id: event.id, key: event.data.key?.id, new: event.data.new, change }) }),
  ...(!iterate && { onRow: ({ row }) => say({ row }), onSnapshot: ({ kind }) => say({ mark: kind }) }),
  ...(options.presence && { onPresence: ({ client, members, joined, left }) => say({ client, here: members.map(({ user }) => user), joined: joined?.user, left: left?.user }) }),
  onError: (error) => say({ failed: error.code ?? error.name }),
});
process.on("SIGTERM", () => live.close());
if (iterate) for await (const item of live) say({ key: item.event?.data.key?.id, kind: item.kind });
