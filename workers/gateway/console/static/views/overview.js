// The house at a glance: figures, the picture of services around the broker, and details of what is chosen in it.

import { cell, chip, fill, h, mark, rechip, rows, s, say, table } from "../dom.js";
import { bytes, count, cut, duration, figure, rate } from "../format.js";
import { houseMap, stateOf } from "../map.js";
import { pulse } from "../pulse.js";

export const title = "Overview";

const TILES = [
  ["Requests", (now) => rate(now.broker.rates?.requests)],
  ["Events", (now) => rate(now.broker.rates?.events)],
  ["In flight", (now) => count(now.broker.in_flight)],
  ["Queued", (now) => count(now.broker.queued)],
  ["Workers", (now) => count(now.broker.workers)],
  ["Dead letters", (now) => count(now.broker.dead_letters)],
  ["Broker up", (now) => duration(now.broker.uptime_s)],
];

export function mount(root, { rest, signal }) {
  let chosen = rest[0] ?? "broker";
  const values = TILES.map(() => h("dd", null, "–"));
  const tiles = h(
    "dl",
    { class: "tiles" },
    TILES.map(([name], index) => h("div", { class: "card tile" }, h("dt", null, name), values[index])),
  );
  const svg = s("svg", {
    class: "map",
    role: "group",
    "aria-label": "Services around the broker",
    viewBox: "0 0 1000 340",
  });
  const detail = h(
    "section",
    { class: "card", "aria-label": "Details", "aria-live": "off" },
    h("p", { class: "empty busy" }, "Looking…"),
  );
  const draw = houseMap(svg, (name) => {
    location.hash = `#/overview/${encodeURIComponent(name)}`;
  });
  const panel = details(detail);
  const services = serviceTable();
  const machines = machineTable();
  const ports = portTable();
  const picture = h(
    "section",
    { class: "card", "aria-labelledby": "map-title" },
    h("h2", { id: "map-title" }, "Topology"),
    svg,
  );

  root.append(
    h("header", { class: "head" }, h("h1", null, "Overview")),
    tiles,
    h("div", { class: "two" }, picture, detail),
    services.node,
    machines.node,
    ports.node,
  );

  function look() {
    const now = pulse.latest;
    if (now === null) return;
    TILES.forEach(([, read], index) => say(values[index], read(now)));
    sized();
    panel(now, chosen);
    services.update(now.services);
    machines.update(now.machines);
    ports.update(now.ports);
  }

  function sized() {
    // A unit of the drawing is a pixel at the usual size of text, and grows with it.
    const unit = Number.parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
    if (pulse.latest !== null && svg.clientWidth > 0) draw(pulse.latest, chosen, Math.round(svg.clientWidth / unit));
  }

  const watcher = new ResizeObserver(sized);
  watcher.observe(picture);
  signal.addEventListener("abort", () => watcher.disconnect());
  pulse.addEventListener("look", look, { signal });
  look();
  return ([name]) => {
    chosen = name ?? "broker";
    look();
  };
}

function pairs(entries) {
  return h(
    "dl",
    { class: "facts" },
    entries
      .filter((each) => each !== null)
      .map(([name, value]) => [h("dt", null, name), h("dd", { class: "num" }, value)]),
  );
}

/** Shows the chosen one; its parts are replaced only where what they say has changed. */
function details(box) {
  let before = "";
  return (now, chosen) => {
    const service = now.services.find((each) => each.service === chosen);
    const workers = now.workers.filter((each) => each.service === chosen);
    const about = chosen === "broker" ? [now.broker, now.watchers] : [service, workers];
    const said = JSON.stringify(about);
    if (said === before) return;
    before = said;
    // What was unfolded stays so, and the keyboard where it was.
    const isOpen = box.querySelector("details")?.open ?? false;
    const isHere = box.contains(document.activeElement);
    if (chosen === "broker") fill(box, brokerDetails(now));
    else if (service) fill(box, serviceDetails(service, workers));
    else fill(box, h("p", { class: "empty" }, `There is no service ${cut(chosen, 80)} now.`));
    const fold = box.querySelector("details");
    if (fold) fold.open = isOpen;
    if (fold && isHere) fold.firstElementChild.focus({ preventScroll: true });
  };
}

function brokerDetails({ broker }) {
  return [
    h("h2", null, "Broker"),
    pairs([
      ["Requests", `${rate(broker.rates?.requests)}, ${count(broker.requests)} in all`],
      ["Events", `${rate(broker.rates?.events)}, ${count(broker.events)} in all`],
      ["Events dropped", count(broker.events_dropped)],
      ["Overloaded", count(broker.overloaded)],
      ["Expired", count(broker.expired)],
      ["Workers lost", count(broker.worker_lost)],
      ["Peers", count(broker.peers)],
      ["Memory", bytes(broker.rss_bytes)],
      ["CPU", broker.rates ? `${figure(broker.rates.cpu)} cores` : "–"],
      ["Event log", `${bytes(broker.log_bytes)}, up to ${count(broker.log_last_seq)}`],
      broker.log_failed ? ["Log failed", h("span", { class: "problem" }, cut(broker.log_failed, 300))] : null,
    ]),
  ];
}

// Workers of one service that are told of one by one.
const WORKERS = 8;

/** Those that one should know of: the troubled ones first, otherwise in the order that the broker has them in. */
function worst(workers) {
  const trouble = (each) => (each.state !== "serving") + Math.min(1, Object.keys(each.degraded).length);
  if (workers.length <= WORKERS) return workers;
  return [...workers].sort((one, two) => trouble(two) - trouble(one)).slice(0, WORKERS);
}

function serviceDetails(service, workers) {
  const { word, tone } = stateOf(service);
  // Of one worker it is told once; of several, with the worker that it is about.
  const why = workers.length > 1 ? [] : Object.entries(service.degraded);
  return [
    h("header", null, h("h2", { class: "wrap" }, cut(service.service, 120)), chip(word, tone)),
    h(
      "div",
      { class: "stack tight" },
      service.missing?.length ? h("p", { class: "note" }, `Does not find ${service.missing.join(", ")}.`) : null,
      why.map(([what, reason]) => h("p", { class: "note" }, `${cut(what, 80)}: ${cut(reason, 400)}`)),
      pairs([
        ["Answers", `${rate(service.rate)}, ${count(service.answered)} in all`],
        ["Failed", count(service.failed)],
        ["In flight", `${count(service.in_flight)} of ${count(service.capacity)}`],
        ["Queued", count(service.queued)],
        ["Median, 99 %", `${duration(service.p50_s)}, ${duration(service.p99_s)}`],
        service.needs?.length ? ["Needs", service.needs.join(", ")] : null,
      ]),
      worst(workers).map((each) => workerDetails(each, workers.length > 1)),
      workers.length > WORKERS
        ? h("p", { class: "soft" }, `${count(workers.length - WORKERS)} more workers: olympus top lists them all.`)
        : null,
      h(
        "details",
        null,
        h("summary", null, `${count(service.subjects.length)} operations`),
        h(
          "ul",
          { class: "mono" },
          service.subjects.map((each) => h("li", { class: "wrap" }, cut(each, 120))),
        ),
      ),
    ),
  ];
}

function workerDetails(worker, isOneOfSeveral) {
  return h(
    "div",
    { class: "stack tight" },
    h(
      "h3",
      { class: "wrap" },
      cut(worker.instance, 120),
      " ",
      chip(worker.state, worker.state === "serving" ? "ok" : "warn"),
    ),
    pairs([
      ["Where", `${cut(worker.host, 80)}, process ${worker.pid}`],
      ["Memory", bytes(worker.rss_bytes)],
      ["CPU", worker.cpu === null || worker.cpu === undefined ? "–" : `${figure(worker.cpu)} cores`],
      ["Answers", `${rate(worker.rate)}, ${count(worker.failed)} failed`],
      ["Heard of", `${duration(worker.heard_s)} ago`],
    ]),
    isOneOfSeveral &&
      Object.entries(worker.degraded).map(([what, reason]) =>
        h("p", { class: "note" }, `${cut(what, 80)}: ${cut(reason, 400)}`),
      ),
  );
}

function serviceTable() {
  const body = h("tbody");
  const update = rows(
    body,
    (each) => each.service,
    (first) => {
      const state = chip("");
      const cells = ["Workers", "Answers", "Failed", "In flight", "Queued", "Median", "99 %", "Machines"].map((name) =>
        cell(name),
      );
      for (const each of cells.slice(0, -1)) each.classList.add("r");
      const link = h("a", { href: `#/overview/${encodeURIComponent(first.service)}` }, cut(first.service, 80));
      return {
        node: h("tr", null, h("td", { class: "lead", "data-label": "" }, link), cell("State", state), cells),
        update(service) {
          const { word, tone } = stateOf(service);
          rechip(state, word, tone);
          const told = [
            count(service.instances),
            rate(service.rate),
            count(service.failed),
            count(service.in_flight),
            count(service.queued),
            duration(service.p50_s),
            duration(service.p99_s),
            (service.machines ?? []).join(", ") || "–",
          ];
          told.forEach((text, index) => say(cells[index], text));
        },
      };
    },
  );
  const heads = [
    "Service",
    "State",
    "Workers",
    "Answers",
    "Failed",
    "In flight",
    "Queued",
    "Median",
    "99 %",
    "Machines",
  ];
  const node = h(
    "section",
    { class: "card", "aria-labelledby": "services-title" },
    h("h2", { id: "services-title" }, "Services"),
    table(heads, body, [2, 3, 4, 5, 6, 7, 8]),
  );
  return {
    node,
    update: (services) => update([...services].sort((one, two) => one.service.localeCompare(two.service))),
  };
}

function machineTable() {
  const body = h("tbody");
  const update = rows(
    body,
    (each) => each.name,
    (first) => {
      const cells = ["Workers", "Memory", "CPU", "Services"].map((name, index) =>
        h("td", { "data-label": name, class: index < 3 ? "r" : "" }),
      );
      return {
        node: h("tr", null, h("td", { class: "lead", "data-label": "" }, cut(first.name, 80)), cells),
        update(machine) {
          const cores = machine.cpu === null ? "–" : `${figure(machine.cpu)} cores`;
          [count(machine.workers), bytes(machine.rss_bytes), cores, cut(machine.services.join(", "), 300)].forEach(
            (text, index) => say(cells[index], text),
          );
        },
      };
    },
  );
  const node = h(
    "section",
    { class: "card", "aria-labelledby": "machines-title" },
    h("h2", { id: "machines-title" }, "Machines"),
    table(["Machine", "Workers", "Memory", "CPU", "Services"], body, [1, 2, 3]),
  );
  return { node, update };
}

const PORT_TONES = { bound: "ok", taken: "bad", yielded: "warn", off: "" };

function portTable() {
  const body = h("tbody");
  const update = rows(
    body,
    (each) => `${each.owner} ${each.purpose} ${each.host} ${each.port}`,
    () => {
      const cells = ["For", "Address", "Note"].map((name) => cell(name));
      const lead = h("td", { class: "lead", "data-label": "" });
      const state = chip("");
      return {
        node: h("tr", null, lead, cells[0], cells[1], cell("State", state), cells[2]),
        update(port) {
          say(lead, cut(port.owner, 80));
          [`${port.purpose} (${port.protocol})`, `${port.host}:${port.port}`, cut(port.note, 300) || "–"].forEach(
            (text, index) => say(cells[index], text),
          );
          rechip(state, port.state, PORT_TONES[port.state]);
        },
      };
    },
  );
  const node = h(
    "section",
    { class: "card", "aria-labelledby": "ports-title" },
    h("h2", { id: "ports-title" }, "Ports"),
    table(["Owner", "For", "Address", "State", "Note"], body),
  );
  return {
    node,
    update(ports) {
      mark(node, "hidden", !ports?.length);
      if (ports) update(ports);
    },
  };
}
