// What the house remembers: searching with the reasons for each hit, memories and facts added, facts listed and forgotten.

import { ask } from "../api.js";
import { cell, chip, field, fill, h, mark, rows, s, say, table } from "../dom.js";
import { confirm, failure, notice, sentence, show } from "../dialogs.js";
import { count, cut, duration, figure, instant, pretty, several } from "../format.js";
import { ownNamespaces } from "../session.js";

export const title = "Memory";

const NAMESPACES = ["memory", "kb", "session", "user"];

// Whoever may use only namespaces of their own begins in the first of them.
const first = (usual) => (ownNamespaces().includes(usual) ? usual : (ownNamespaces()[0] ?? usual));

// Characters of a hit shown in the list; the rest is one click away.
const SHOWN = 700;

export function mount(root, { rest, query, signal }) {
  const tabs = h("nav", { class: "tabs", "aria-label": "Parts of memory" });
  const box = h("div", { class: "stack" });
  root.append(h("header", { class: "head" }, h("h1", null, "Memory"), tabs), box);
  let inner = null;

  function turn([part], asked) {
    const isFacts = part === "facts";
    fill(
      tabs,
      [
        ["#/memory", "Search", !isFacts],
        ["#/memory/facts", "Facts", isFacts],
      ].map(([href, text, isHere]) => h("a", { href, "aria-current": isHere ? "page" : null }, text)),
    );
    inner?.abort();
    inner = new AbortController();
    fill(box);
    (isFacts ? facts : search)(box, asked, AbortSignal.any([signal, inner.signal]));
  }
  turn(rest, query);
  return turn;
}

function choices(values, chosen) {
  return values.map(([value, text]) => h("option", { value, selected: value === chosen }, text));
}

function namespace(value) {
  const options = h(
    "datalist",
    { id: "namespaces" },
    (ownNamespaces().length ? ownNamespaces() : NAMESPACES).map((each) => h("option", { value: each })),
  );
  const input = h("input", {
    value,
    list: "namespaces",
    maxlength: 64,
    pattern: "[A-Za-z0-9_.:\\-]+",
    spellcheck: "false",
    autocapitalize: "none",
    required: true,
  });
  return { input, options };
}

function search(box, asked, signal) {
  const words = h("input", {
    type: "search",
    value: asked.get("q") ?? "",
    maxlength: 8192,
    placeholder: "What did Ada say about the boat last summer?",
  });
  const { input: ns, options } = namespace(asked.get("ns") ?? first("memory"));
  const mode = h(
    "select",
    null,
    choices(
      [
        ["hybrid", "Words and meaning"],
        ["text", "Words"],
        ["dense", "Meaning"],
        ["symbolic", "Names and times"],
      ],
      asked.get("mode") ?? "hybrid",
    ),
  );
  const most = h(
    "select",
    null,
    choices(
      [
        ["10", "10"],
        ["25", "25"],
        ["100", "100"],
      ],
      asked.get("k") ?? "10",
    ),
  );
  const told = h("p", { class: "soft num", role: "status" });
  const list = h("ul", { class: "hits" });
  const results = h(
    "section",
    { class: "card", "aria-label": "Hits" },
    h("header", null, told, h("button", { type: "button", onclick: () => addMemory(ns.value) }, "Add a memory")),
    list,
  );
  const form = h(
    "form",
    { class: "card bar", role: "search" },
    options,
    h("div", { class: "grow" }, field("Search", words)),
    h("div", { class: "field small" }, field("Namespace", ns)),
    h("div", { class: "field medium" }, field("By", mode)),
    h("div", { class: "field small" }, field("At most", most)),
    h("button", { type: "submit", class: "primary" }, "Search"),
  );
  fill(box, form, results);
  say(told, "Say what you look for; each hit tells why it is one.");

  async function run() {
    if (!words.value.trim()) {
      say(told, "Say what you look for; each hit tells why it is one.");
      fill(list);
      return;
    }
    say(told, "Searching…");
    try {
      const found = await ask(
        "memory.search",
        { query: words.value, ns: ns.value, mode: mode.value, k: Number(most.value), explain: true },
        { signal },
      );
      say(told, summary(found));
      const best = Math.max(...found.hits.map((each) => each.score), 1e-9);
      fill(
        list,
        found.hits.map((each) => hit(each, best)),
      );
    } catch (error) {
      if (signal.aborted) return;
      say(told, "");
      failure(list, error);
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const kept = new URLSearchParams({ q: words.value, ns: ns.value, mode: mode.value, k: most.value });
    history.replaceState(null, "", `#/memory?${kept}`);
    run();
  });
  run();
}

function summary(found) {
  const parts = [
    found.hits.length ? several(found.hits.length, "hit") : "Nothing here is about that",
    duration(found.took_ms / 1000),
  ];
  if (found.degraded) parts.push(cut(found.degraded, 300));
  if (found.waiting) parts.push(`${several(found.waiting, "text")} still wait for their vector`);
  const seen = found.understood;
  if (seen) {
    const told = [...seen.terms, ...seen.phrases.map((each) => `"${each}"`)].slice(0, 12);
    if (told.length) parts.push(`understood as ${cut(told.join(", "), 200)}`);
    if (seen.speakers.length) parts.push(`said by ${cut(seen.speakers.join(", "), 100)}`);
    if (seen.time_words) parts.push(`time: ${cut(seen.time_words, 60)}`);
  }
  return parts.join(" · ");
}

function bar(value, most) {
  const width = Math.max(0, Math.min(100, (100 * value) / most));
  return h(
    "span",
    { class: "score" },
    s(
      "svg",
      { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true", class: "meter" },
      s("rect", { class: "all", width: 100, height: 8, fill: "var(--line)" }),
      s("rect", { class: "used", width, height: 8, fill: "var(--accent)" }),
    ),
  );
}

function hit(found, best) {
  const about = [
    found.title,
    found.speaker && `said by ${found.speaker}`,
    found.at && instant(found.at),
    found.type,
  ].filter(Boolean);
  return h(
    "li",
    null,
    h(
      "div",
      { class: "row" },
      bar(found.score, best),
      h("strong", { class: "num" }, figure(found.score)),
      chip(found.kind, "info"),
      h("span", { class: "soft wrap" }, cut(about.join(" · "), 200)),
      found.tags.slice(0, 8).map((each) => chip(cut(each, 40))),
    ),
    h("p", { class: "text" }, cut(found.text, SHOWN)),
    h(
      "div",
      { class: "row hint" },
      h("code", { class: "wrap" }, cut(found.id, 120)),
      h(
        "button",
        {
          type: "button",
          class: "quiet",
          "aria-label": `All of ${cut(found.id, 80)}`,
          onclick: () =>
            show(
              cut(found.id, 120),
              h("p", { class: "text" }, cut(found.text, 20000)),
              h("pre", null, pretty({ ...found, text: undefined, signals: undefined })),
            ),
        },
        "All of it",
      ),
    ),
    found.signals?.length ? h("details", null, h("summary", null, "Why it is here"), reasons(found)) : null,
  );
}

function reasons(found) {
  const most = Math.max(found.score, 1e-9);
  const lines = found.signals.map((each) =>
    h(
      "tr",
      null,
      cell("Signal", each.name),
      cell("Share", h("span", null, bar(each.share, most), ` ${figure(each.share)}`)),
      h("td", { class: "r", "data-label": "Value" }, figure(each.value)),
      cell("Note", cut(each.note, 300) || "–"),
    ),
  );
  return table(["Signal", "Share of the score", "Value", "Note"], h("tbody", null, lines), [2]);
}

async function addMemory(ns) {
  const content = h("textarea", { rows: 5, required: true });
  const tags = h("input", { placeholder: "kitchen, tea" });
  const into = h("input", { value: ns, required: true, maxlength: 64 });
  const importance = h("input", { type: "range", min: 0, max: 1, step: 0.1, value: 0.5 });
  const answer = await confirm({
    title: "Add a memory",
    content: [
      field("Text", content),
      field("Tags", tags, "Separated by commas"),
      field("Namespace", into),
      field("Importance", importance),
    ],
    yes: "Add",
    read: () => ({
      content: content.value,
      tags: tags.value
        .split(",")
        .map((each) => each.trim())
        .filter(Boolean),
      ns: into.value,
      importance: Number(importance.value),
    }),
  });
  if (answer === null) return;
  try {
    const kept = await ask("memory.add", answer);
    notice(`Kept as ${kept.id}.`);
  } catch (error) {
    notice(sentence(error), "bad");
  }
}

function facts(box, asked, signal) {
  const words = h("input", { type: "search", value: asked.get("q") ?? "", placeholder: "Words in key or value" });
  const { input: ns, options } = namespace(asked.get("ns") ?? first("user"));
  const body = h("tbody");
  const told = h("p", { class: "soft num", role: "status" }, "Looking…");
  const more = h("button", { type: "button", hidden: true }, "Show more");
  const form = h(
    "form",
    { class: "card bar", role: "search" },
    options,
    h("div", { class: "grow" }, field("Find", words)),
    h("div", { class: "field small" }, field("Namespace", ns)),
    h("button", { type: "submit", class: "primary" }, "Find"),
  );
  fill(
    box,
    form,
    h(
      "section",
      { class: "card", "aria-label": "Facts" },
      h("header", null, told, h("button", { type: "button", onclick: add }, "Add a fact")),
      table(["Fact", "Category", "From", "Read", "Changed", ""], body, [3]),
      more,
    ),
  );

  const draw = rows(
    body,
    (each) => each.key,
    (first) => {
      const value = h("span", { class: "text" });
      const cells = [cell("Category"), cell("From"), h("td", { class: "r", "data-label": "Read" }), cell("Changed")];
      return {
        node: h(
          "tr",
          null,
          h("td", { class: "lead", "data-label": "" }, h("span", { class: "sub" }, cut(first.key, 200)), value),
          cells,
          h(
            "td",
            { class: "act", "data-label": "" },
            h(
              "button",
              {
                type: "button",
                class: "quiet",
                "aria-label": `Forget ${cut(first.key, 80)}`,
                onclick: () => forget(first),
              },
              "Forget",
            ),
          ),
        ),
        update(fact) {
          say(value, cut(fact.value, 500));
          [fact.category, fact.source, `${count(fact.access_count)} ×`, instant(fact.updated_at)].forEach(
            (text, index) => say(cells[index], cut(text, 80)),
          );
        },
      };
    },
  );
  let shown = [];
  let next = null;

  async function load(after = null) {
    try {
      const needle = words.value.trim();
      const found = needle
        ? await ask("memory.find", { query: needle, ns: ns.value, limit: 200 }, { signal })
        : await ask("memory.all", { ns: ns.value, limit: 100, after }, { signal });
      if (signal.aborted) return;
      shown = after === null ? found.facts : [...shown, ...found.facts];
      next = found.next_after;
      draw(shown);
      more.hidden = next === null;
      say(
        told,
        shown.length
          ? `${several(shown.length, "fact")}${next === null ? "" : ", and more"}`
          : needle
            ? "No fact holds these words."
            : "No facts are kept here yet.",
      );
      mark(told, "class", "soft num");
    } catch (error) {
      if (signal.aborted) return;
      say(told, sentence(error));
      mark(told, "class", "problem");
    }
  }

  async function forget(fact) {
    const answer = await confirm({
      title: `Forget ${cut(fact.key, 80)}?`,
      content: [
        h("p", { class: "text" }, cut(fact.value, 300)),
        h("p", { class: "soft" }, "It cannot be brought back."),
      ],
      yes: "Forget",
      tone: "danger",
    });
    if (answer === null) return;
    try {
      await ask("memory.forget", { key: fact.key, ns: fact.ns });
      notice(`${cut(fact.key, 80)} is forgotten.`);
    } catch (error) {
      notice(sentence(error), "bad");
    }
    load();
  }

  async function add() {
    const key = h("input", { required: true, maxlength: 1024, placeholder: "favourite tea" });
    const value = h("textarea", { required: true, rows: 3 });
    const category = h(
      "select",
      null,
      choices(
        [
          ["fact", "Fact"],
          ["preference", "Preference"],
          ["context", "Context"],
        ],
        "fact",
      ),
    );
    const answer = await confirm({
      title: "Add a fact",
      content: [field("Key", key), field("Value", value), field("Category", category)],
      yes: "Add",
      read: () => ({ key: key.value, value: value.value, category: category.value, ns: ns.value }),
    });
    if (answer === null) return;
    try {
      await ask("memory.remember", answer);
      notice(`${cut(answer.key, 80)} is kept.`);
    } catch (error) {
      notice(sentence(error), "bad");
    }
    load();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    history.replaceState(null, "", `#/memory/facts?${new URLSearchParams({ q: words.value, ns: ns.value })}`);
    load();
  });
  more.addEventListener("click", () => load(next));
  load();
}
