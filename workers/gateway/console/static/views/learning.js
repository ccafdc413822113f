// Trainings: when they may run, what runs and ran, the curve and the log of one, and which adapters serve.

import { ask } from "../api.js";
import { cell, chip, field, fill, h, mark, rechip, rows, say, table } from "../dom.js";
import { curve } from "../chart.js";
import { confirm, notice, sentence } from "../dialogs.js";
import { bytes, count, cut, duration, figure, instant, line, share } from "../format.js";
import { repeat } from "../live.js";
import { pulse } from "../pulse.js";

export const title = "Learning";

// Trainings that are listed.
const JOBS_MAX = 100;

const EVERY_MS = 3000;
const RUNNING = new Set(["training", "evaluating", "promoting", "waiting", "queued"]);
const RESUMABLE = new Set(["stopped", "failed"]);
const TONES = {
  training: "info",
  evaluating: "info",
  promoting: "info",
  queued: "",
  waiting: "warn",
  passed: "ok",
  promoted: "ok",
  refused: "warn",
  underpowered: "warn",
  stopped: "",
  failed: "bad",
  champion: "ok",
  canary: "info",
  retired: "",
  rolled_back: "warn",
};
const words = (state) => state.replaceAll("_", " ");

export function mount(root, { rest, signal }) {
  let chosen = rest[0] ?? null;
  const problem = h("p", { class: "problem", role: "alert" });
  const schedule = h("p", { class: "soft" });
  const jobs = h("tbody");
  const noJobs = h("p", { class: "empty busy" }, "Looking…");
  const adapters = h("tbody");
  const noAdapters = h("p", { class: "empty", hidden: true }, "No adapter was put to work yet.");
  const detail = h("section", { class: "card", "aria-labelledby": "job-title", hidden: true });
  root.append(
    h("header", { class: "head" }, h("h1", null, "Learning"), schedule),
    problem,
    detail,
    h(
      "section",
      { class: "card", "aria-labelledby": "adapters-title" },
      h("h2", { id: "adapters-title" }, "Adapters in service"),
      table(["Adapter", "State", "Share", "From", "Since", ""], adapters, [2]),
      noAdapters,
    ),
    h(
      "section",
      { class: "card", "aria-labelledby": "jobs-title" },
      h("h2", { id: "jobs-title" }, `Trainings, the newest ${JOBS_MAX} at most`),
      table(["Training", "State", "Progress", "Loss", "Took", "Began"], jobs, [3, 4]),
      noJobs,
    ),
  );

  const drawJobs = rows(jobs, (each) => each.job_id, jobRow);
  const drawAdapters = rows(
    adapters,
    (each) => each.deployment_id,
    (each) => adapterRow(each, rollBack),
  );
  let page = null;

  const look = repeat(
    EVERY_MS,
    signal,
    async () => {
      const [listed, deployed, when, log] = await Promise.allSettled([
        ask("learning.training.list", { limit: JOBS_MAX }, { signal }),
        ask("learning.adapter.list", {}, { signal }),
        ask("learning.schedule.get", {}, { signal }),
        chosen === null ? null : ask("learning.training.log", { job_id: chosen, points: 500, limit: 200 }, { signal }),
      ]);
      if (signal.aborted) return;
      if (listed.status === "rejected") throw listed.reason;
      say(problem, "");
      drawJobs(listed.value.jobs);
      noJobs.hidden = listed.value.jobs.length > 0;
      mark(noJobs, "class", "empty");
      say(noJobs, "Nothing was trained yet.");
      if (deployed.status === "fulfilled") {
        drawAdapters(deployed.value.deployments);
        noAdapters.hidden = deployed.value.deployments.length > 0;
      }
      if (when.status === "fulfilled") say(schedule, scheduleWords(when.value));
      if (chosen !== null) showJob(log);
    },
    (error) => {
      if (pulse.state !== "ok") return;
      say(problem, sentence(error));
      noJobs.hidden = true;
    },
  );

  function showJob(log) {
    if (page === null || page.id !== chosen) {
      page?.stop();
      page = jobPage(detail, chosen, change);
    }
    detail.hidden = false;
    if (log.status === "fulfilled" && log.value.job.job_id === chosen) page.update(log.value);
    else if (log.status === "rejected") page.fail(log.reason);
  }

  async function promote(job) {
    const reason = h("input", { maxlength: 1024 });
    const answer = await confirm({
      title: `Put ${cut(job.adapter || job.job_id, 80)} to work?`,
      content: [
        h(
          "p",
          null,
          `The gate passed it. It then answers for ${cut(job.model, 80)}, and can be rolled back at any time.`,
        ),
        field("Reason", reason),
      ],
      yes: "Promote",
      read: () => reason.value,
    });
    if (answer !== null)
      await done(
        ask("learning.promote", { job_id: job.job_id, reason: answer }),
        `${job.adapter || job.job_id} is at work.`,
      );
  }

  async function change(verb, job) {
    if (verb === "promote") {
      await promote(job);
      return;
    }
    const isStop = verb === "stop";
    const reason = h("input", { maxlength: 1024, placeholder: "Why, for the log" });
    const answer = await confirm({
      title: `${isStop ? "Stop" : "Resume"} ${cut(job.job_id, 80)}?`,
      content: isStop
        ? [h("p", null, "It stops at its next step, with a checkpoint to go on from."), field("Reason", reason)]
        : h("p", null, "It goes back into the queue and on from its newest good checkpoint."),
      yes: isStop ? "Stop" : "Resume",
      tone: isStop ? "danger" : "",
      read: () => (isStop ? { reason: reason.value } : {}),
    });
    if (answer === null) return;
    await done(
      ask(`learning.training.${verb}`, { job_id: job.job_id, ...answer }),
      `${job.job_id} ${isStop ? "stops" : "goes on"}.`,
    );
  }

  async function rollBack(deployment) {
    const reason = h("input", { maxlength: 1024 });
    const answer = await confirm({
      title: `Take ${cut(deployment.adapter, 80)} out of service?`,
      content: [
        h(
          "p",
          null,
          `What served ${cut(deployment.model, 80)} before it serves again at once${deployment.previous ? `: ${cut(deployment.previous, 80)}` : ""}.`,
        ),
        field("Reason", reason),
      ],
      yes: "Roll back",
      tone: "danger",
      read: () => reason.value,
    });
    if (answer !== null)
      await done(
        ask("learning.rollback", { model: deployment.model, reason: answer }),
        `${deployment.adapter} is out of service.`,
      );
  }

  async function done(request, text) {
    try {
      await request;
      notice(text);
    } catch (error) {
      notice(sentence(error), "bad");
    }
    look();
  }

  signal.addEventListener("abort", () => page?.stop());
  return ([name]) => {
    chosen = name ?? null;
    if (chosen === null) detail.hidden = true;
    look();
  };
}

function scheduleWords(when) {
  const parts = [
    when.is_paused ? "Paused" : when.is_open ? "Trainings may run now" : `Trainings wait: ${cut(when.reason, 200)}`,
  ];
  if (!when.is_open && when.opens_at) parts.push(`until ${instant(when.opens_at)}`);
  if (when.queued.length) parts.push(`${count(when.queued.length)} in the queue`);
  if (when.budget_s) parts.push(`${duration(when.spent_s)} of today's ${duration(when.budget_s)} spent`);
  return parts.join(" · ");
}

function progressOf(job) {
  const progress = job.progress;
  if (!progress) return { value: null, text: "–" };
  const [done, all] = progress.total ? [progress.done, progress.total] : [progress.step, progress.steps];
  const left = progress.eta_s ? `, ${duration(progress.eta_s)} left` : "";
  return {
    value: all ? done / all : null,
    text: `${progress.phase} ${count(done)} of ${count(all)}${RUNNING.has(job.state) ? left : ""}`,
  };
}

function jobRow(first) {
  const state = chip("");
  const sub = h("span", { class: "sub" });
  const bar = h("progress", { max: 1, "aria-label": `Progress of ${first.job_id}` });
  const text = h("span", { class: "sub num" });
  const loss = h("td", { class: "r", "data-label": "Loss" });
  const took = h("td", { class: "r", "data-label": "Took" });
  const began = cell("Began");
  const reason = h("span", { class: "sub" });
  return {
    node: h(
      "tr",
      null,
      h(
        "td",
        { class: "lead", "data-label": "" },
        h("a", { href: `#/learning/${encodeURIComponent(first.job_id)}`, class: "wrap" }, cut(first.job_id, 128)),
        sub,
      ),
      h("td", { "data-label": "State" }, h("div", null, state, reason)),
      h("td", { "data-label": "Progress" }, h("div", null, bar, text)),
      loss,
      took,
      began,
    ),
    update(job) {
      rechip(state, words(job.state), TONES[job.state]);
      say(sub, `${cut(job.model, 80)} on ${cut(job.dataset, 64)} v${job.version}`);
      say(reason, cut(job.reason, 160));
      const progress = progressOf(job);
      bar.hidden = progress.value === null || !RUNNING.has(job.state);
      bar.value = progress.value ?? 0;
      say(text, progress.text);
      say(loss, figure(job.progress?.loss));
      say(took, duration(job.spent_s));
      say(began, instant(job.started_at ?? job.created_at));
    },
  };
}

function adapterRow(first, rollBack) {
  const state = chip("");
  let deployment = first;
  const cells = {
    share: h("td", { class: "r", "data-label": "Share" }),
    from: cell(
      "From",
      h("a", { href: `#/learning/${encodeURIComponent(first.job_id)}`, class: "wrap" }, cut(first.job_id, 60)),
    ),
    since: cell("Since"),
  };
  const button = h(
    "button",
    { type: "button", class: "quiet", "aria-label": `Roll back ${first.adapter}`, onclick: () => rollBack(deployment) },
    "Roll back",
  );
  const reason = h("span", { class: "sub" });
  return {
    node: h(
      "tr",
      null,
      h(
        "td",
        { class: "lead", "data-label": "" },
        h("strong", { class: "wrap" }, cut(first.adapter, 128)),
        h("span", { class: "sub" }, `${cut(first.model, 80)}, version ${first.version}`),
      ),
      h("td", { "data-label": "State" }, h("div", null, state, reason)),
      cells.share,
      cells.from,
      cells.since,
      h("td", { class: "act", "data-label": "" }, button),
    ),
    update(next) {
      deployment = next;
      rechip(state, words(next.state), TONES[next.state]);
      say(reason, cut([next.is_forced ? "forced" : "", next.reason].filter(Boolean).join(": "), 160));
      say(cells.share, share(next.share));
      say(cells.since, instant(next.promoted_at));
      button.hidden = next.state !== "champion" && next.state !== "canary";
    },
  };
}

/** The part of the page about one job; answers {id, update(log), fail(error), stop()}. */
function jobPage(box, id, change) {
  const state = chip("…");
  const facts = h("dl", { class: "facts" });
  const reason = h("p", { class: "note" });
  const chart = curve(`Loss of ${id} over its steps`, [
    { name: "training loss", key: "loss", className: "" },
    { name: "evaluation loss", key: "eval_loss", className: "second" },
  ]);
  const log = h("ol", { class: "log", tabindex: "0", "aria-label": "Log" });
  const button = h("button", { type: "button", hidden: true });
  const promote = h(
    "button",
    { type: "button", class: "primary", hidden: true, onclick: () => change("promote", job) },
    "Promote",
  );
  const gate = h("div", { class: "stack tight" });
  let job = null;
  let judged = "";
  button.addEventListener("click", () => change(RESUMABLE.has(job.state) ? "resume" : "stop", job));
  fill(
    box,
    h(
      "header",
      null,
      h("h2", { id: "job-title", class: "wrap" }, cut(id, 128)),
      state,
      h("div", { class: "buttons" }, promote, button, h("a", { class: "button", href: "#/learning" }, "Close")),
    ),
    h(
      "div",
      { class: "stack tight" },
      reason,
      h("div", { class: "two" }, chart.node, h("div", { class: "stack tight" }, facts, gate)),
      h("h3", null, "Log"),
      log,
    ),
  );
  const drawLog = rows(
    log,
    (each) => each.number,
    (entry) => ({
      node: h(
        "li",
        null,
        h("span", { class: "soft num" }, instant(entry.at)),
        h(
          "span",
          { class: "wrap" },
          cut(entry.message || entry.event, 400),
          " ",
          h("span", { class: "soft" }, Object.keys(entry.fields ?? {}).length ? line(entry.fields, 160) : ""),
        ),
      ),
      update() {},
    }),
  );
  return {
    id,
    stop: chart.stop,
    fail(error) {
      say(reason, sentence(error));
    },
    update(found) {
      job = found.job;
      rechip(state, words(job.state), TONES[job.state]);
      say(reason, cut(job.reason, 600));
      const progress = job.progress;
      const told = [
        ["Model", cut(job.model, 100)],
        ["Dataset", `${cut(job.dataset, 64)}, version ${job.version}`],
        ["Progress", progressOf(job).text],
        ["Speed", progress?.tokens_per_s ? `${count(progress.tokens_per_s)} tokens/s` : "–"],
        ["Memory", `${bytes(progress?.memory_bytes)}${job.device ? ` on ${job.device}` : ""}`],
        ["Took", `${duration(job.spent_s)}, ${count(job.attempts)} ${job.attempts === 1 ? "attempt" : "attempts"}`],
        ["Adapter", cut(job.adapter, 100) || "–"],
        ["Verdict", cut(job.verdict, 100) || "–"],
      ];
      if (facts.childElementCount === 0)
        fill(
          facts,
          told.map(([name]) => [h("dt", null, name), h("dd", { class: "num" })]),
        );
      told.forEach(([, text], index) => say(facts.children[index * 2 + 1], text));
      chart.update(found.points);
      drawLog(found.entries);
      const canStop =
        job.state === "training" || job.state === "waiting" || job.state === "queued" || job.state === "evaluating";
      promote.hidden = job.state !== "passed";
      button.hidden = !canStop && !RESUMABLE.has(job.state);
      say(button, canStop ? "Stop" : "Resume");
      if (job.verdict && judged !== job.verdict) {
        judged = job.verdict;
        showGate(gate, id);
      }
    },
  };
}

async function showGate(box, id) {
  try {
    const { result } = await ask("learning.gate.show", { job_id: id, limit: 0 });
    fill(
      box,
      h("h3", null, "The gate says"),
      result.reasons.map((each) => h("p", { class: "wrap" }, cut(each, 400))),
      [result.target, result.retention]
        .filter(Boolean)
        .map((each) =>
          h(
            "p",
            { class: "soft num" },
            `${cut(each.name, 60)}: ${figure(each.score_before)} → ${figure(each.score)} of 1, ${count(each.items)} items`,
          ),
        ),
    );
  } catch (error) {
    fill(box, h("p", { class: "soft" }, `The gate's words could not be read: ${sentence(error)}`));
  }
}
