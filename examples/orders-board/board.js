// A board of the shop's orders by status: the rows first, then every change, however often the connection is lost.
// Serve this folder, and let the gateway know its origin; then open http://127.0.0.1:8000/?gateway=http://127.0.0.1:8080
//
//   TOCSIN_ALLOWED_ORIGINS=http://127.0.0.1:8000 tocsin up
//   python3 -m http.server --bind 127.0.0.1 8000 --directory examples/orders-board
const gateway = new URLSearchParams(location.search).get("gateway") ?? "http://127.0.0.1:8080";
const { subscribe } = await import(new URL("client.js", `${gateway}/`));

const orders = new Map(); // key → row
const columns = new Map(); // status → its section

function put(row, isNew) {
  drop(row.id);
  const item = document.createElement("li");
  item.textContent = `#${row.id}${row.note ? ` · ${row.note}` : ""}`;
  if (isNew) item.className = "changed";
  orders.set(row.id, { row, item });
  column(row.status).list.prepend(item);
  count(row.status);
}

function drop(id) {
  const known = orders.get(id);
  if (!known) return;
  orders.delete(id);
  known.item.remove();
  count(known.row.status);
}

function column(status) {
  if (!columns.has(status)) {
    const section = document.createElement("section");
    const [heading, number, list] = ["h2", "span", "ol"].map((name) => document.createElement(name));
    section.dataset.status = status;
    heading.append(status, number);
    section.append(heading, list);
    columns.set(status, { section, list, number });
    document.getElementById("board").append(section);
  }
  return columns.get(status);
}

function count(status) {
  const { list, number } = column(status);
  number.textContent = list.children.length;
}

subscribe("pg.shop.change.public.orders.>", {
  url: gateway,
  since: "snapshot",
  select: ["id", "status", "note"],
  onSnapshot: ({ kind }) => {
    if (kind !== "snapshot-begin") return;
    for (const id of [...orders.keys()]) drop(id);
  },
  onRow: ({ row }) => put(row, false),
  onEvent: ({ event: { data } }) => {
    if (data.op === "truncate") for (const id of [...orders.keys()]) drop(id);
    else if (data.op === "delete") drop(data.key.id);
    else put(data.new, true);
  },
  onState: (state) => {
    document.getElementById("state").textContent = state;
    document.getElementById("state").dataset.state = state;
  },
});
