// The picture of the house: the broker in the middle, services around it, the rate of answers on the lines between.

import { count, rate, several } from "./format.js";
import { mark, s, say } from "./dom.js";

// The service `bus` is the broker itself, which is in the middle already.
const MIDDLE = "bus";

const TONES = { ok: "ok", degraded: "warn", away: "bad" };
const WORDS = { ok: "serving", degraded: "degraded", away: "away" };

// Sizes in the drawing's own units, which are CSS pixels at the usual size of text.
const BOX = { most: 236, height: 64, gap: 22 };
const HUB = { width: 136, height: 96 };
const LINE = 62; // between the broker and a service, at least: a rate stands on it
const NARROW = 590;
const WIDEST = 1180;

/** A service's state as a word and as a tone. */
export function stateOf(service) {
  return { word: WORDS[service.state] ?? service.state, tone: TONES[service.state] ?? "" };
}

/** Where everything is drawn: pure. Two columns beside the broker, or one below it where there is no room. */
export function layout(names, width) {
  return width < NARROW ? below(names, width) : beside(names, Math.min(width, WIDEST), width);
}

function below(names, width) {
  const hub = { x: 1, y: 1, width: width - 2, height: 62 };
  const foot = hub.y + hub.height;
  const boxes = new Map();
  let end = foot;
  names.forEach((name, index) => {
    const y = foot + 21 + index * (BOX.height + 12);
    end = y + BOX.height / 2 - 8;
    boxes.set(name, {
      x: 34,
      y,
      width: width - 35,
      height: BOX.height,
      edge: `M14 ${end}q0 8 8 8H34`,
      flow: `M14 ${foot}V${end}q0 8 8 8H34`,
      label: null,
    });
  });
  return { width, height: foot + 23 + names.length * (BOX.height + 12), hub, boxes, trunk: `M14 ${foot}V${end}` };
}

function beside(names, inner, width) {
  const rows = Math.max(2, Math.ceil(names.length / 2));
  const height = rows * (BOX.height + BOX.gap) - BOX.gap + 4;
  const left = (width - inner) / 2 + 1;
  const boxWidth = Math.min(BOX.most, (inner - HUB.width) / 2 - LINE);
  const hub = { x: width / 2 - HUB.width / 2, y: height / 2 - HUB.height / 2, ...HUB };
  const boxes = new Map();
  names.forEach((name, index) => {
    const isLeft = index % 2 === 0;
    const row = Math.floor(index / 2);
    const inColumn = isLeft ? Math.ceil(names.length / 2) : Math.floor(names.length / 2);
    const top = (height - (inColumn * (BOX.height + BOX.gap) - BOX.gap)) / 2;
    const x = isLeft ? left : left + inner - boxWidth - 2;
    const y = top + row * (BOX.height + BOX.gap);
    const middle = y + BOX.height / 2;
    const from = hub.y + (HUB.height * (row + 1)) / (inColumn + 1);
    const [start, end] = isLeft ? [hub.x, x + boxWidth] : [hub.x + HUB.width, x];
    const bend = (start + end) / 2;
    const path = `M${start} ${from}C${bend} ${from} ${bend} ${middle} ${end} ${middle}`;
    boxes.set(name, {
      x,
      y,
      width: boxWidth,
      height: BOX.height,
      edge: path,
      flow: path,
      label: { x: end + (isLeft ? 27 : -27), y: middle - 7 },
    });
  });
  return { width, height, hub, boxes, trunk: "" };
}

/** Draws into `svg` what `draw(topology, selected, width)` is given; `pick(name)` is called with what was chosen. */
export function houseMap(svg, pick) {
  const trunk = s("path", { class: "edge" });
  const edges = s("g");
  const nodes = s("g");
  const hub = hubNode(pick);
  svg.append(trunk, edges, hub.node, nodes);
  const known = new Map();

  return function draw(topology, selected, width) {
    const services = topology.services
      .filter((each) => each.service !== MIDDLE)
      .sort((one, two) => one.service.localeCompare(two.service));
    const plan = layout(
      services.map((each) => each.service),
      width,
    );
    mark(svg, "viewBox", `0 0 ${plan.width} ${plan.height}`);
    mark(trunk, "d", plan.trunk);
    hub.update(topology, plan.hub, selected === "broker");
    const wanted = new Set(services.map((each) => each.service));
    for (const [name, drawn] of known) {
      if (wanted.has(name)) continue;
      drawn.node.remove();
      drawn.edge.remove();
      known.delete(name);
    }
    for (const service of services) {
      let drawn = known.get(service.service);
      if (drawn === undefined) {
        drawn = serviceNode(service.service, pick);
        known.set(service.service, drawn);
        edges.append(drawn.edge);
      }
      // The order of reading and of the Tab key is the order of names; what is in its place is left there, with its focus.
      const place = [...wanted].indexOf(service.service);
      if (nodes.children[place] !== drawn.node) nodes.insertBefore(drawn.node, nodes.children[place] ?? null);
      const workers = topology.workers.filter((each) => each.service === service.service);
      drawn.update(service, workers, plan.boxes.get(service.service), selected === service.service);
    }
  };
}

function node(name, pick, className, ...children) {
  const choose = (event) => {
    if (event.type === "keydown" && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    pick(name);
  };
  return s("g", { class: className, role: "button", tabindex: "0", onclick: choose, onkeydown: choose }, ...children);
}

function hubNode(pick) {
  const box = s("rect", { class: "box", rx: 10 });
  const title = s("text", { class: "title" }, "Broker");
  const first = s("text", { class: "small" });
  const second = s("text", { class: "small" });
  const group = node("broker", pick, "node hub", box, title, first, second);
  return {
    node: group,
    update({ broker }, at, isSelected) {
      place(box, at);
      const isFlat = at.height < 80;
      const x = at.x + (isFlat ? 14 : at.width / 2);
      for (const [text, y] of [
        [title, isFlat ? 25 : 32],
        [first, isFlat ? 45 : 54],
        [second, isFlat ? 45 : 72],
      ]) {
        mark(text, "x", text === second && isFlat ? at.x + at.width - 14 : x);
        mark(text, "y", at.y + y);
        mark(text, "text-anchor", isFlat ? (text === second ? "end" : "start") : "middle");
      }
      say(first, `${rate(broker.rates?.requests)} requests`);
      say(second, `${rate(broker.rates?.events)} events`);
      mark(group, "aria-pressed", String(isSelected));
      mark(
        group,
        "aria-label",
        `Broker, ${rate(broker.rates?.requests)} requests, ${rate(broker.rates?.events)} events. Show details.`,
      );
    },
  };
}

// Dots for workers in a box; more are told as a number. What a dot takes, and a small letter at most.
const DOTS = 8;
const DOT = 12;
const SMALL = 6.5;

function serviceNode(name, pick) {
  const box = s("rect", { class: "box", rx: 10 });
  const title = s("text", { class: "title" });
  const state = s("text", { class: "state" });
  const small = s("text", { class: "small" });
  const dots = s("g");
  const group = node(name, pick, "node", box, title, state, small, dots);
  const line = s("path", { class: "edge" });
  const flow = s("path", { class: "flow" });
  const label = s("text", { class: "rate" });
  const edge = s("g", { "aria-hidden": "true" }, line, flow, label);
  return {
    node: group,
    edge,
    update(service, workers, at, isSelected) {
      const { word, tone } = stateOf(service);
      place(box, at);
      put(title, at.x + 14, at.y + 25, shortened(service.service, Math.floor((at.width - 96) / 7.4)));
      put(state, at.x + at.width - 14, at.y + 25, word);
      const told = [service.instances === 0 ? "no worker" : several(service.instances, "worker")];
      if (service.queued > 0) told.push(`${count(service.queued)} queued`);
      if (at.label === null) told.push(rate(service.rate));
      put(small, at.x + at.width - 14, at.y + 47, told.join(" · "));
      mark(small, "text-anchor", "end");
      drawDots(dots, workers, at, at.width - 44 - told.join(" · ").length * SMALL);
      mark(group, "class", `node ${tone}`);
      mark(group, "aria-pressed", String(isSelected));
      mark(
        group,
        "aria-label",
        `${service.service}, ${word}, ${told.join(", ")}, ${rate(service.rate)} answered. Show details.`,
      );
      mark(line, "d", at.edge);
      mark(line, "class", `edge ${tone === "bad" ? "bad" : ""}`);
      mark(flow, "d", at.flow);
      flow.toggleAttribute("hidden", !(service.rate > 0));
      mark(flow, "class", `flow ${service.rate > 20 ? "fast" : ""}`);
      mark(flow, "stroke-width", String(1.5 + Math.min(4, Math.log10(1 + (service.rate ?? 0)) * 1.4)));
      label.toggleAttribute("hidden", at.label === null || service.state === "away");
      if (at.label !== null) put(label, at.label.x, at.label.y, rate(service.rate));
    },
  };
}

function drawDots(group, workers, at, room) {
  const shown = workers.slice(0, Math.max(0, Math.min(DOTS, Math.floor(room / DOT) + 1)));
  while (group.childElementCount > shown.length) group.lastElementChild.remove();
  while (group.childElementCount < shown.length) group.append(s("circle", { r: 4 }));
  shown.forEach((worker, index) => {
    const dot = group.children[index];
    const isWell = worker.state === "serving" && Object.keys(worker.degraded).length === 0;
    mark(dot, "class", isWell ? "dot" : "dot poor");
    mark(dot, "cx", at.x + 18 + index * DOT);
    mark(dot, "cy", at.y + 43);
  });
}

function place(box, { x, y, width, height }) {
  for (const [name, value] of Object.entries({ x, y, width, height })) mark(box, name, value);
}

function put(text, x, y, words) {
  mark(text, "x", x);
  mark(text, "y", y);
  say(text, words);
}

function shortened(text, most) {
  return text.length <= most ? text : `${text.slice(0, Math.max(1, most - 1))}…`;
}
