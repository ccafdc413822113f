// Models and the devices they lie on: what is there, what is loaded, loading, unloading, pinning, and why a load failed.

import { ask, tap } from "../api.js";
import { cell, chip, field, fill, h, mark, rechip, rows, s, say, table } from "../dom.js";
import { confirm, notice, sentence } from "../dialogs.js";
import { ago, bytes, count, cut, duration, holds, share } from "../format.js";
import { backOff, pause, repeat, seen } from "../live.js";
import { pulse } from "../pulse.js";

export const title = "Models";

const EVERY_MS = 3000;

// Seconds that a load may take: the gateway's own limit for it may be shorter than a large model needs.
const LOAD_S = 600;

const TONES = { loaded: "ok", loading: "info", available: "", unusable: "bad" };

// What is under way or has failed outlives the view: it can be left and come back to.
const doing = new Map(); // name -> {verb, since}
const failed = new Map(); // name -> why

export function mount(root, { query, signal }) {
  const words = h("input", {
    type: "search",
    value: query.get("filter") ?? "",
    placeholder: "Name, family or state",
    "aria-label": "Filter models",
  });
  const meters = h("div", { class: "meters" });
  const problem = h("p", { class: "problem", role: "alert" });
  const body = h("tbody");
  const empty = h("p", { class: "empty busy" }, "Looking…");
  const list = table(["Model", "State", "Size", "Context", "In memory", "Busy", "Kept", ""], body, [2, 3, 4, 5]);

  root.append(
    h("header", { class: "head" }, h("h1", null, "Models"), words),
    problem,
    h(
      "section",
      { class: "card", "aria-labelledby": "devices-title" },
      h(
        "header",
        null,
        h("h2", { id: "devices-title" }, "Memory"),
        h(
          "div",
          { class: "row" },
          h("span", { class: "key" }, "in use"),
          h("span", { class: "key second" }, "promised"),
          h("span", { class: "key rest" }, "free"),
        ),
      ),
      meters,
    ),
    h("section", { class: "card", "aria-label": "Models" }, list, empty),
  );

  let all = [];
  let standard = null;
  const drawDevices = rows(meters, (each) => each.device, deviceMeter);
  const drawModels = rows(
    body,
    (each) => each.name,
    (model) => modelRow(model, act),
  );

  function draw() {
    const needle = words.value.trim();
    const shown = all.filter(
      (each) => needle === "" || holds(needle, each.name, each.family, each.state, each.aliases.join(" ")),
    );
    drawModels(shown.map((each) => ({ ...each, isDefault: each.name === standard })));
    empty.hidden = shown.length > 0;
    mark(empty, "class", "empty");
    say(empty, all.length ? "No model fits the filter." : "There is no model yet. `olympus models pull` fetches one.");
  }

  const look = repeat(
    EVERY_MS,
    signal,
    async () => {
      const [models, devices] = await Promise.allSettled([
        ask("model.list", {}, { signal }),
        ask("gpu.status", {}, { signal }),
      ]);
      if (signal.aborted) return;
      if (devices.status === "fulfilled") {
        drawDevices(devices.value.devices);
        if (devices.value.devices.length === 0)
          fill(meters, h("p", { class: "empty" }, devices.value.problem || "No device is known."));
      } else if (meters.childElementCount === 0) fill(meters, h("p", { class: "empty" }, sentence(devices.reason)));
      if (models.status === "rejected") throw models.reason;
      say(problem, "");
      all = models.value.models;
      standard = models.value.default;
      draw();
    },
    (error) => {
      if (pulse.state === "ok") say(problem, sentence(error));
      if (all.length === 0) empty.hidden = true;
    },
  );

  async function act(verb, model) {
    const work = WORK[verb];
    const options = await work.prepare(model);
    if (options === null) return;
    doing.set(model.name, { verb, since: Date.now() });
    failed.delete(model.name);
    draw();
    try {
      notice(
        work.done(await ask(`model.${work.operation}`, { model: model.name, ...options }, { timeoutS: LOAD_S }), model),
      );
    } catch (error) {
      failed.set(model.name, `${work.failed}: ${sentence(error)}`);
      notice(`${model.name}: ${work.failed}.`, "bad");
    } finally {
      doing.delete(model.name);
      if (!signal.aborted) draw();
      look();
    }
  }

  words.addEventListener("input", draw);
  const ticking = setInterval(() => doing.size && !document.hidden && draw(), 1000);
  signal.addEventListener("abort", () => clearInterval(ticking));
  follow(signal, look);
}

/** Lets the list be looked at anew whenever a model came, left or failed. */
async function follow(signal, look) {
  for (let failures = 0; !signal.aborted;) {
    await seen(signal);
    try {
      for await (const { event, data } of tap(
        ["model.loading", "model.loaded", "model.unloaded", "model.evicted", "model.failed"],
        { signal },
      )) {
        failures = 0;
        if (event !== "event" || !data.body) continue;
        if (data.subject === "model.failed") failed.set(data.body.model, `failed: ${data.body.reason}`);
        if (data.subject === "model.loaded") failed.delete(data.body.model);
        look();
      }
    } catch {
      // The list itself says what is wrong; this only makes it quicker.
    }
    failures += 1;
    await pause(backOff(failures), signal);
  }
}

const WORK = {
  load: {
    operation: "load",
    failed: "could not be loaded",
    prepare(model) {
      const context = h("input", { type: "number", min: 16, step: 1, placeholder: count(model.context_tokens) });
      const keep = h(
        "select",
        null,
        [
          ["", "As set"],
          ["600", "10 minutes"],
          ["3600", "1 hour"],
          ["28800", "8 hours"],
          ["-1", "Until it is unloaded"],
        ].map(([value, text]) => h("option", { value }, text)),
      );
      return confirm({
        title: `Load ${cut(model.name, 80)}?`,
        content: [
          h(
            "p",
            null,
            `It takes about ${bytes(model.memory_bytes || model.size_bytes)} of memory. Where that is short, idle models leave for it.`,
          ),
          field("Context, tokens", context, "Empty for the model's own"),
          field("Stays after its last request", keep),
        ],
        yes: "Load",
        read: () => ({
          ...(context.value ? { context_tokens: Number(context.value) } : {}),
          ...(keep.value ? { keep_alive_s: Number(keep.value) } : {}),
        }),
      });
    },
    done: (answer) =>
      `${answer.model} is loaded${answer.device ? ` on ${answer.device}` : ""}, after ${duration(answer.took_s)}.`,
  },
  unload: {
    operation: "unload",
    failed: "could not be unloaded",
    prepare(model) {
      const force = h("input", { type: "checkbox" });
      return confirm({
        title: `Unload ${cut(model.name, 80)}?`,
        content: [
          h(
            "p",
            null,
            model.in_flight
              ? `It answers ${count(model.in_flight)} now and leaves when that is done.`
              : "It answers nobody now. The next request loads it again.",
          ),
          model.in_flight ? h("label", { class: "check" }, force, "At once: those answers are lost") : null,
        ],
        yes: "Unload",
        tone: "danger",
        read: () => (force.checked ? { force: true } : {}),
      });
    },
    done: (answer) => `${answer.model} is unloaded.`,
  },
  pin: {
    operation: "keep",
    failed: "could not be pinned",
    prepare: (model) =>
      confirm({
        title: `Pin ${cut(model.name, 80)}?`,
        content: h("p", null, "A pinned model is loaded at start and never leaves for another, also after a restart."),
        yes: "Pin",
        read: () => ({ is_pinned: true }),
      }),
    done: (answer) => `${answer.model} is pinned.`,
  },
  unpin: {
    operation: "keep",
    failed: "could not be unpinned",
    prepare: (model) =>
      confirm({
        title: `Unpin ${cut(model.name, 80)}?`,
        content: h("p", null, "It may then leave when it is idle or its memory is needed."),
        yes: "Unpin",
        read: () => ({ is_pinned: false }),
      }),
    done: (answer) => `${answer.model} is no longer pinned.`,
  },
};

const WORDS = { load: "loading", unload: "unloading", pin: "pinning", unpin: "unpinning" };

function modelRow(first, act) {
  let model = first;
  const sub = h("span", { class: "sub" });
  const why = h("span", { class: "sub problem" });
  const state = chip("");
  const progress = h("progress", { "aria-label": `Progress of ${first.name}`, hidden: true });
  const cells = ["Size", "Context", "In memory", "Busy"].map((name) => h("td", { "data-label": name, class: "r" }));
  const kept = cell("Kept");
  const load = h("button", { type: "button", onclick: () => act(model.state === "loaded" ? "unload" : "load", model) });
  const pin = h("button", {
    type: "button",
    class: "quiet",
    onclick: () => act(model.is_pinned ? "unpin" : "pin", model),
  });
  const node = h(
    "tr",
    null,
    h("td", { class: "lead", "data-label": "" }, h("strong", { class: "wrap" }, cut(first.name, 128)), sub, why),
    h("td", { "data-label": "State" }, h("div", null, state, progress)),
    cells,
    kept,
    h("td", { class: "act", "data-label": "" }, pin, load),
  );
  return {
    node,
    update(next) {
      model = next;
      const under = doing.get(model.name);
      const isLoading = model.state === "loading";
      const reason = failed.get(model.name) ?? model.error;
      say(
        sub,
        [
          model.isDefault ? "default" : "",
          model.family,
          model.quantisation,
          model.backend,
          model.parameters ? `${short(model.parameters)} parameters` : "",
        ]
          .filter(Boolean)
          .join(" · "),
      );
      say(why, reason && !under && model.state !== "loaded" ? cut(reason, 600) : "");
      rechip(
        state,
        under
          ? `${WORDS[under.verb]}, ${duration(Math.max(1, Math.round((Date.now() - under.since) / 1000)))}`
          : model.state,
        under ? "info" : TONES[model.state],
      );
      progress.hidden = !under && !isLoading;
      const told = [
        bytes(model.size_bytes),
        count(model.context_tokens),
        model.state === "loaded" ? `${bytes(model.memory_bytes)} on ${model.device ?? "?"}` : "–",
        model.state === "loaded" ? count(model.in_flight) : "–",
      ];
      told.forEach((text, index) => say(cells[index], text));
      say(kept, keptWords(model));
      say(load, model.state === "loaded" ? "Unload" : "Load");
      mark(load, "aria-label", `${model.state === "loaded" ? "Unload" : "Load"} ${model.name}`);
      load.disabled = Boolean(under) || isLoading || model.state === "unusable";
      say(pin, model.is_pinned ? "Unpin" : "Pin");
      mark(pin, "aria-label", `${model.is_pinned ? "Unpin" : "Pin"} ${model.name}`);
      pin.disabled = Boolean(under) || model.state === "unusable";
    },
  };
}

function keptWords(model) {
  if (model.is_pinned) return "pinned";
  if (model.state !== "loaded") return "–";
  if (model.keep_alive_s === null) return "as set";
  return model.keep_alive_s < 0 ? "until unloaded" : `${duration(model.keep_alive_s)} idle`;
}

function short(parameters) {
  if (parameters >= 1e9) return `${(parameters / 1e9).toFixed(1)} B`;
  return parameters >= 1e6 ? `${(parameters / 1e6).toFixed(1)} M` : count(parameters);
}

function deviceMeter(first) {
  const name = h("span");
  const figures = h("span", { class: "num" });
  const note = h("p", { class: "hint" });
  const problem = h("p", { class: "problem hint" });
  const held = s("rect", { class: "held", height: 12 });
  const used = s("rect", { class: "used", height: 12 });
  const bar = s(
    "svg",
    { viewBox: "0 0 100 12", preserveAspectRatio: "none", role: "img" },
    s("rect", { class: "all", width: 100, height: 12 }),
    held,
    used,
  );
  const node = h("div", { class: "meter" }, h("div", { class: "line" }, name, figures), bar, note, problem);
  return {
    node,
    update(device) {
      const total = Math.max(1, device.total_bytes);
      const taken = device.used_bytes ?? 0;
      const promised = Math.max(device.reserved_bytes, total - device.free_bytes, taken);
      const kind = device.device === "cpu" ? "RAM" : "VRAM";
      const text = `${bytes(taken)} in use, ${bytes(device.reserved_bytes)} promised, ${bytes(device.free_bytes)} free of ${bytes(total)}`;
      say(name, `${device.device} · ${cut(device.name, 80)} · ${kind}`);
      say(figures, text);
      mark(bar, "aria-label", `${kind} of ${device.device}: ${text}`);
      mark(used, "width", Math.min(100, (100 * taken) / total));
      mark(held, "width", Math.min(100, (100 * promised) / total));
      const told = [];
      if (device.utilisation !== null) told.push(`${share(device.utilisation)} busy`);
      if (device.temperature_c !== null) told.push(`${device.temperature_c} °C`);
      if (device.lock)
        told.push(
          `locked for ${device.lock.purpose || device.lock.model} by process ${device.lock.pid}, ${ago(device.lock.since).replace(" ago", "")}`,
        );
      if (device.waiting.length) told.push(`${count(device.waiting.length)} waiting for the lock`);
      for (const lease of device.leases)
        told.push(`${lease.purpose || lease.service}: ${bytes(lease.vram_bytes || lease.ram_bytes)}`);
      say(note, cut(told.join(" · "), 500));
      say(problem, device.state === "lost" ? `The device is lost. ${device.problem}` : device.problem);
    },
  };
}
