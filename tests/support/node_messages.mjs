// Says one message with clients/tocsin.js, hears it, and uses a ticket twice; prints one line of JSON.
import { pathToFileURL } from "node:url";

const [client, asked] = process.argv.slice(2);
const { publish, subscribe, ticket } = await import(pathToFileURL(client).href);
const { url, token, room, elsewhere } = JSON.parse(asked);
const heard = await new Promise((resolve, reject) => {
  const live = subscribe(room, {
    url,
    token,
    onState: async (state) => {
      if (state === "live") live.said = await publish(room, { text: "hi" }, { url, token: () => token }).catch(reject);
    },
    onEvent: ({ event }) => (live.close(), resolve(event)),
    onError: reject,
  });
});
const code = (error) => error.code ?? error.message;
const once = await ticket(url, token);
const statuses = [];
for (let turn = 0; turn < 2; turn++) {
  const ended = new AbortController();
  const answer = await fetch(`${url}/sse?${new URLSearchParams({ subject: room, ticket: once })}`, { signal: ended.signal });
  statuses.push(answer.status);
  ended.abort();
}
const refused = [await publish(elsewhere, 1, { url, token }).catch(code), await publish(room, 1, { url, token: "nonsense" }).catch(code), await ticket(url, "nonsense").catch(code)];
console.log(JSON.stringify({ heard, statuses, refused }));
