// What passes over the bus, as it passes: by patterns, filtered, paused, with all of one event on demand.

import { tap } from "../api.js";
import { fill, field, h, say } from "../dom.js";
import { sentence, show } from "../dialogs.js";
import { bytes, count, cut, duration, holds, instant, line, pretty } from "../format.js";
import { backOff, pause, seen } from "../live.js";

export const title = "Tap";

// Rows kept on the page; older ones go.
const KEPT = 500;

// Rows kept while the list is paused; what comes beyond them is counted as missed.
const HELD = 500;

export function mount(root, { query, signal }) {
  const patterns = h("input", {
    value: query.get("patterns") ?? ">",
    spellcheck: "false",
    autocapitalize: "none",
    class: "mono",
  });
  const words = h("input", {
    type: "search",
    value: query.get("filter") ?? "",
    placeholder: "Words in subject, source or body",
  });
  const requests = h("input", { type: "checkbox", checked: query.get("requests") === "1" });
  const stop = h("button", { type: "button", "aria-pressed": "false" }, "Pause");
  const clear = h("button", { type: "button" }, "Clear");
  const figures = h("p", { class: "soft num" });
  const problem = h("p", { class: "problem", role: "alert" });
  const list = h("ul", { class: "taps", "aria-label": "Events, the newest first" });
  const empty = h("p", { class: "empty" }, "Nothing has passed yet.");
  const box = h("div", { class: "card tap-list" }, list, empty);

  const form = h(
    "form",
    { class: "card bar", role: "search" },
    h("div", { class: "grow" }, field("Patterns", patterns, "Separated by commas: memory.>, model.*; > for all")),
    h("div", { class: "grow" }, field("Filter", words, "Of what is shown; nothing is asked anew")),
    h("label", { class: "check" }, requests, "Requests, too"),
    h("button", { type: "submit", class: "primary" }, "Watch"),
  );
  root.append(
    h("header", { class: "head" }, h("h1", null, "Tap"), figures, h("div", { class: "row" }, stop, clear)),
    form,
    problem,
    box,
  );

  let isPaused = false;
  let waiting = [];
  let drawn = 0;
  let passed = 0;
  let missed = 0;
  let state = "connecting";
  let watching = new AbortController();

  function tell() {
    const parts = [`${count(passed)} passed`, `${count(list.querySelectorAll("li:not([hidden])").length)} shown`];
    if (missed) parts.push(`${count(missed)} missed`);
    if (isPaused && waiting.length) parts.push(`${count(waiting.length)} held back`);
    say(figures, state === "open" ? parts.join(" · ") : `${parts.join(" · ")} · ${state}`);
  }

  function draw() {
    drawn = 0;
    if (isPaused || signal.aborted) {
      tell();
      return;
    }
    const fresh = waiting.slice(-KEPT).reverse();
    waiting = [];
    list.prepend(...fresh.map(row));
    while (list.childElementCount > KEPT) list.lastElementChild.remove();
    empty.hidden = list.childElementCount > 0;
    tell();
  }

  // At most one drawing a frame, whatever the bus does.
  function soon() {
    drawn ||= requestAnimationFrame(draw);
  }

  function row(item) {
    const node = item.kind === "gap" ? h("li", { class: "gap" }, item.text) : eventRow(item);
    node.said = item.kind === "gap" ? null : `${item.subject}\n${item.source}\n${item.brief}`;
    node.hidden = isLeftOut(node);
    return node;
  }

  function isLeftOut(node) {
    return node.said !== null && words.value.trim() !== "" && !holds(words.value.trim(), node.said);
  }

  function take(item) {
    if (isPaused && waiting.length >= HELD) {
      waiting.shift();
      missed += 1;
    }
    waiting.push(item);
    soon();
  }

  function gap(text) {
    take({ kind: "gap", text });
  }

  function receive({ event, data }) {
    if (event === "hello") {
      state = "open";
      if (data.hidden.length) gap(`Your account may not see ${data.hidden.join(", ")}.`);
    } else if (event === "event" || event === "request") {
      passed += 1;
      take(event === "event" ? eventItem(data) : requestItem(data));
    } else if (event === "missed") {
      missed += data.count;
      gap(
        `${count(data.count)} ${data.what} passed unseen here: ${data.where === "bus" ? "the bus had more than it could hand out" : "they came faster than this page reads"}.`,
      );
    } else if (event === "away") gap(`The broker is away since ${instant(data.at)}: ${cut(data.reason, 200)}`);
    else if (event === "back") gap("The broker is back. What passed meanwhile was not seen.");
    tell();
  }

  async function watch() {
    watching.abort();
    const mine = new AbortController();
    watching = mine;
    signal.addEventListener("abort", () => mine.abort(), { signal: mine.signal });
    const wanted = patterns.value.split(/[\s,]+/).filter(Boolean);
    say(problem, "");
    for (let failures = 0; !mine.signal.aborted;) {
      await seen(mine.signal);
      if (mine.signal.aborted) return;
      // Nobody looks at a hidden tab: the stream is given back until somebody does.
      const hidden = new AbortController();
      const onHide = () => document.hidden && hidden.abort();
      document.addEventListener("visibilitychange", onHide);
      const both = AbortSignal.any([mine.signal, hidden.signal]);
      try {
        for await (const each of tap(wanted.length ? wanted : [">"], { signal: both, hasRequests: requests.checked })) {
          failures = 0;
          say(problem, "");
          receive(each);
        }
      } catch (error) {
        if (mine.signal.aborted) return;
        if (!hidden.signal.aborted && (error.status === 400 || error.status === 403)) {
          say(problem, sentence(error));
          state = "not watching";
          tell();
          return;
        }
        // Why it is tried again; that nobody answers at all stands above already.
        if (error.status > 0 && !hidden.signal.aborted) say(problem, sentence(error));
      } finally {
        document.removeEventListener("visibilitychange", onHide);
      }
      if (hidden.signal.aborted) {
        gap("The tab was hidden; what passed meanwhile was not seen.");
        continue;
      }
      failures += 1;
      state = "connecting again";
      tell();
      await pause(backOff(failures), mine.signal);
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const kept = new URLSearchParams({ patterns: patterns.value });
    if (words.value) kept.set("filter", words.value);
    if (requests.checked) kept.set("requests", "1");
    history.replaceState(null, "", `#/tap?${kept}`);
    watch();
  });
  requests.addEventListener("change", () => form.requestSubmit());
  words.addEventListener("input", () => {
    for (const node of list.children) node.hidden = isLeftOut(node);
    tell();
  });
  stop.addEventListener("click", () => {
    isPaused = !isPaused;
    say(stop, isPaused ? "Go on" : "Pause");
    stop.setAttribute("aria-pressed", String(isPaused));
    soon();
  });
  clear.addEventListener("click", () => {
    waiting = [];
    passed = missed = 0;
    fill(list);
    empty.hidden = false;
    tell();
  });
  signal.addEventListener("abort", () => cancelAnimationFrame(drawn));
  tell();
  watch();
}

function eventItem(data) {
  const body = data.cut
    ? `(${bytes(data.body_bytes)}, not shown)`
    : data.encoding === "base64"
      ? `(${bytes(data.body_bytes)} of bytes)`
      : line(data.body, 300);
  return {
    kind: data.subject.startsWith("error.") ? "error" : "event",
    at: data.at,
    subject: data.subject,
    source: data.source ?? "",
    brief: body,
    data,
  };
}

function requestItem(data) {
  const took = data.took_s === null ? "" : `, ${duration(data.took_s)}`;
  const sizes = `${data.request_bytes === null ? "?" : bytes(data.request_bytes)} → ${bytes(data.reply_bytes)}`;
  return {
    kind: data.outcome === "ok" ? "trace" : "error",
    at: data.at,
    subject: data.subject,
    source: data.worker ?? "",
    brief: `request: ${data.outcome}${took}, ${sizes}`,
    data,
  };
}

function eventRow(item) {
  const open = () =>
    show(
      cut(item.subject, 200),
      h(
        "p",
        { class: "soft" },
        `${instant(item.at)}${item.source ? `, from ${cut(item.source, 200)}` : ""}${item.data.seq ? `, number ${count(item.data.seq)}` : ""}`,
      ),
      item.data.cut
        ? h("p", null, `The body has ${bytes(item.data.body_bytes)}; only bodies up to 32 KiB are shown here.`)
        : null,
      h("pre", null, pretty(item.kind === "trace" || item.data.outcome ? item.data : item.data.body)),
    );
  return h(
    "li",
    { class: item.kind },
    h(
      "button",
      { type: "button", class: "plain", onclick: open },
      h("span", { class: "soft num" }, instant(item.at)),
      h("span", { class: "subject" }, cut(item.subject, 255)),
      h("span", { class: "soft" }, cut(item.source, 100)),
      h("span", null, item.brief),
    ),
  );
}
