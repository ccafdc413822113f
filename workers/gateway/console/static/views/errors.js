// What failed, in groups of like errors: how bad, how often, all about one, and saying that it was seen.

import { ask } from "../api.js";
import { cell, chip, field, fill, h, mark, rechip, rows, say, table } from "../dom.js";
import { spark } from "../chart.js";
import { confirm, notice, sentence } from "../dialogs.js";
import { ago, count, cut, figure, instant, pretty, several } from "../format.js";
import { repeat } from "../live.js";
import { pulse } from "../pulse.js";

export const title = "Errors";

const EVERY_MS = 3000;
const TONES = { critical: "bad", error: "bad", warning: "warn", info: "info", debug: "" };
const SPANS = [
  ["3600", "1 hour"],
  ["28800", "8 hours"],
  ["86400", "1 day"],
  ["604800", "1 week"],
];

export function mount(root, { rest, query, signal }) {
  let chosen = rest[0] ?? null;
  const state = select(
    [
      ["open", "Open"],
      ["acknowledged", "Seen"],
      ["muted", "Muted"],
      ["any", "All"],
    ],
    query.get("state") ?? "open",
  );
  const severity = select(
    [
      ["", "Any"],
      ["warning", "Warning and worse"],
      ["error", "Error and worse"],
      ["critical", "Critical"],
    ],
    query.get("severity") ?? "",
  );
  const words = h("input", {
    type: "search",
    value: query.get("q") ?? "",
    maxlength: 1024,
    placeholder: "In kind or message",
  });
  const figures = h("p", { class: "soft num", role: "status" });
  const problem = h("p", { class: "problem", role: "alert" });
  const body = h("tbody");
  const empty = h("p", { class: "empty busy" }, "Looking…");
  const detail = h("section", { class: "card", "aria-labelledby": "group-title", hidden: true });
  const form = h(
    "form",
    { class: "card bar", role: "search" },
    h("div", { class: "field small" }, field("State", state)),
    h("div", { class: "field small" }, field("Severity", severity)),
    h("div", { class: "grow" }, field("Text", words)),
  );
  root.append(
    h("header", { class: "head" }, h("h1", null, "Errors"), figures),
    form,
    problem,
    detail,
    h(
      "section",
      { class: "card", "aria-label": "Groups of errors" },
      table(["Error", "Severity", "Service", "Times", "Last", "State", ""], body, [3]),
      empty,
    ),
  );

  const draw = rows(
    body,
    (each) => each.fingerprint,
    (each) => groupRow(each, act),
  );
  const page = groupPage(detail, act);

  const look = repeat(
    EVERY_MS,
    signal,
    async () => {
      const asked = {
        state: state.value,
        text: words.value.trim(),
        limit: 200,
        ...(severity.value ? { severity: severity.value } : {}),
      };
      const [listed, stats, one] = await Promise.allSettled([
        ask("error.list", asked, { signal }),
        ask("error.stats", { over_s: 86400 }, { signal }),
        chosen === null ? null : ask("error.show", { fingerprint: chosen }, { signal }),
      ]);
      if (signal.aborted) return;
      if (listed.status === "rejected") throw listed.reason;
      say(problem, "");
      draw(listed.value.groups);
      empty.hidden = listed.value.groups.length > 0;
      mark(empty, "class", "empty");
      say(
        empty,
        state.value === "open" && !words.value && !severity.value
          ? "Nothing is wrong that nobody has seen."
          : "No group of errors fits.",
      );
      const { groups, total } = listed.value;
      const parts = [stats.status === "fulfilled" && statsWords(stats.value)];
      if (total > groups.length) parts.push(`${count(groups.length)} of ${count(total)} listed`);
      say(figures, parts.filter(Boolean).join(" · "));
      if (chosen !== null) {
        if (one.status === "fulfilled") page.update(one.value);
        else page.fail(one.reason);
      }
    },
    (error) => {
      if (pulse.state !== "ok") return;
      say(problem, sentence(error));
      empty.hidden = true;
    },
  );

  async function act(verb, group) {
    const request = await ACTIONS[verb](group);
    if (request === null) return;
    try {
      await ask(...request.ask);
      notice(request.said);
    } catch (error) {
      notice(sentence(error), "bad");
    }
    look();
  }

  function again() {
    const kept = new URLSearchParams({ state: state.value, severity: severity.value, q: words.value });
    history.replaceState(null, "", `#/errors${chosen ? `/${chosen}` : ""}?${kept}`);
    look();
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    again();
  });
  for (const each of [state, severity]) each.addEventListener("change", again);
  let typing = 0;
  words.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(again, 300);
  });
  signal.addEventListener("abort", () => clearTimeout(typing));
  return ([name]) => {
    chosen = name ?? null;
    if (chosen === null) detail.hidden = true;
    look();
  };
}

function select(values, chosen) {
  return h(
    "select",
    null,
    values.map(([value, text]) => h("option", { value, selected: value === chosen }, text)),
  );
}

function statsWords(stats) {
  const parts = [`${several(stats.open_groups, "group")} open`, `${several(stats.count, "error")} in a day`];
  if (stats.muted_groups) parts.push(`${count(stats.muted_groups)} muted`);
  if (stats.missed) parts.push(`${count(stats.missed)} missed`);
  parts.push(...stats.degraded.map((each) => cut(each, 200)));
  return parts.join(" · ");
}

const ACTIONS = {
  async ack(group) {
    const note = h("input", { maxlength: 4096, placeholder: "What it was" });
    const answer = await confirm({
      title: "Seen?",
      content: [
        h("p", { class: "wrap" }, cut(group.message, 300)),
        h("p", { class: "soft" }, "It leaves the list until it comes again."),
        field("Note", note),
      ],
      yes: "Acknowledge",
      read: () => note.value,
    });
    return answer === null
      ? null
      : { ask: ["error.acknowledge", { fingerprint: group.fingerprint, note: answer }], said: "Acknowledged." };
  },
  async mute(group) {
    const span = select(SPANS, "3600");
    const answer = await confirm({
      title: "Mute this group?",
      content: [
        h("p", { class: "wrap" }, cut(group.message, 300)),
        field("For", span, "It is counted meanwhile, and neither listed nor told"),
      ],
      yes: "Mute",
      read: () => Number(span.value),
    });
    return answer === null
      ? null
      : { ask: ["error.mute", { fingerprint: group.fingerprint, for_s: answer }], said: "Muted." };
  },
  async unmute(group) {
    return { ask: ["error.mute", { fingerprint: group.fingerprint, for_s: 0 }], said: "No longer muted." };
  },
};

function buttons(act, ofGroup) {
  const seen = h("button", { type: "button", onclick: () => act("ack", ofGroup()) }, "Acknowledge");
  const mute = h("button", {
    type: "button",
    class: "quiet",
    onclick: () => act(ofGroup().state === "muted" ? "unmute" : "mute", ofGroup()),
  });
  return {
    nodes: [mute, seen],
    update(group) {
      seen.hidden = group.state === "acknowledged";
      say(mute, group.state === "muted" ? "Unmute" : "Mute");
      mark(mute, "aria-label", `${mute.textContent} ${cut(group.kind, 60)}`);
      mark(seen, "aria-label", `Acknowledge ${cut(group.kind, 60)}`);
    },
  };
}

function stateWords(group) {
  if (group.state === "muted") return `muted until ${instant(group.muted_until_at)}`;
  if (group.state === "acknowledged")
    return `seen${group.acknowledged_by ? ` by ${cut(group.acknowledged_by, 40)}` : ""}`;
  return group.reopened_at ? "open again" : "open";
}

function groupRow(first, act) {
  let group = first;
  const severity = chip("");
  const kind = h("a", { href: `#/errors/${first.fingerprint}`, class: "wrap" });
  const message = h("span", { class: "sub" });
  const cells = [cell("Service"), h("td", { class: "r", "data-label": "Times" }), cell("Last"), cell("State")];
  const actions = buttons(act, () => group);
  return {
    node: h(
      "tr",
      null,
      h("td", { class: "lead", "data-label": "" }, kind, message),
      cell("Severity", severity),
      cells,
      h("td", { class: "act", "data-label": "" }, actions.nodes),
    ),
    update(next) {
      group = next;
      say(kind, cut(next.kind || next.subject || "error", 120));
      say(message, cut(next.message, 240));
      rechip(severity, next.severity, TONES[next.severity]);
      [cut(next.service, 80), count(next.count), ago(next.last_at), stateWords(next)].forEach((text, index) =>
        say(cells[index], text),
      );
      actions.update(next);
    },
  };
}

function groupPage(box, act) {
  let group = null;
  let before = "";
  const actions = buttons(act, () => group);
  return {
    fail(error) {
      before = "";
      box.hidden = false;
      fill(
        box,
        h(
          "header",
          null,
          h("h2", { id: "group-title" }, "Error"),
          h("a", { class: "button", href: "#/errors" }, "Close"),
        ),
        h("p", { class: "problem" }, sentence(error)),
      );
    },
    update(found) {
      group = found.group;
      const said = JSON.stringify(found);
      box.hidden = false;
      if (said === before) return;
      const open = [...box.querySelectorAll("details")].map((each) => each.open);
      actions.update(group);
      fill(
        box,
        h(
          "header",
          null,
          h("h2", { id: "group-title", class: "wrap" }, cut(group.kind || group.subject, 200)),
          chip(group.severity, TONES[group.severity]),
          h("div", { class: "buttons" }, actions.nodes, h("a", { class: "button", href: "#/errors" }, "Close")),
        ),
        h(
          "div",
          { class: "two" },
          h(
            "div",
            { class: "stack tight" },
            h("p", { class: "text" }, cut(group.message, 4000)),
            h("h3", null, "Newest reports"),
            found.reports.map((each, index) => report(each, open[index] ?? index === 0)),
          ),
          h(
            "div",
            { class: "stack tight" },
            h(
              "dl",
              { class: "facts" },
              [
                ["Service", cut(group.service, 100)],
                ["Where", cut(group.where, 200) || "–"],
                ["Times", `${count(group.count)}, ${figure(group.per_minute)} a minute now`],
                ["First", instant(group.first_at)],
                ["Last", instant(group.last_at)],
                ["State", stateWords(group)],
                ["Note", cut(group.note, 400) || "–"],
                ["Instances", cut(group.instances.join(", "), 300) || "–"],
              ].map(([name, value]) => [h("dt", null, name), h("dd", { class: "num" }, value)]),
            ),
            h("h3", null, "The last 24 hours"),
            spark(
              found.hours,
              `Errors in each of the last ${found.hours.length} hours, the newest last: ${found.hours.join(", ")}`,
            ),
          ),
        ),
      );
      before = said;
    },
  };
}

function report(one, isOpen) {
  const where = [
    cut(one.host, 60),
    one.pid ? `process ${one.pid}` : "",
    one.subject && cut(one.subject, 120),
    one.request_id && `request ${cut(one.request_id, 40)}`,
  ]
    .filter(Boolean)
    .join(" · ");
  return h(
    "details",
    { open: isOpen },
    h(
      "summary",
      null,
      `${instant(one.at)}${one.count > 1 ? `, ${count(one.count)} times` : ""}: ${cut(one.message, 120)}`,
    ),
    h(
      "div",
      { class: "stack tight" },
      h("p", { class: "hint wrap" }, where),
      one.traceback ? h("pre", null, cut(one.traceback, 20000)) : h("p", { class: "text" }, cut(one.message, 4000)),
      Object.keys(one.context ?? {}).length ? h("pre", null, pretty(one.context, 6000)) : null,
    ),
  );
}
