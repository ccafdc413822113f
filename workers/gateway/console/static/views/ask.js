// A short conversation with a model, to try it out: streamed, stopped at will, kept nowhere but on this page.

import { ask, stream } from "../api.js";
import { field, fill, h, say } from "../dom.js";
import { sentence } from "../dialogs.js";
import { count, cut, duration } from "../format.js";
import { repeat } from "../live.js";
import { session, user } from "../session.js";

export const title = "Ask";

const EVERY_MS = 15000;

// Seconds for an answer, a load before it included.
const ANSWER_S = 600;

// What was said outlives the view, but neither the page nor the sign-in: whoever comes next must not read it.
let said = [];
let speaker = user();
session.addEventListener("change", () => {
  if (user() === speaker) return;
  speaker = user();
  said = [];
});

export function mount(root, { query, signal }) {
  const model = h("select", null, h("option", { value: "" }, "Default model"));
  const system = h("input", { placeholder: "You answer in one sentence." });
  const most = h("input", { type: "number", min: 1, max: 1000000, placeholder: "As set" });
  const heat = h("input", { type: "number", min: 0, max: 10, step: 0.1, placeholder: "As set" });
  const talk = h("div", { class: "talk", role: "log", "aria-label": "Conversation", "aria-live": "polite" });
  const empty = h("p", { class: "empty" }, "Ask something. Nothing of it is kept as a session.");
  const words = h("textarea", { rows: 3, placeholder: "What is 7 + 5?" });
  const send = h("button", { type: "submit", class: "primary" }, "Ask");
  const stop = h("button", { type: "button", class: "danger", hidden: true }, "Stop");
  const fresh = h("button", { type: "button", class: "quiet" }, "Begin anew");
  const form = h(
    "form",
    { class: "card stack tight" },
    field("Question", words, "Enter asks, Shift and Enter begins a new line"),
    h("div", { class: "buttons" }, fresh, stop, send),
  );
  root.append(
    h("header", { class: "head" }, h("h1", null, "Ask")),
    h(
      "section",
      { class: "card bar", "aria-label": "Choices" },
      h("div", { class: "field" }, field("Model", model)),
      h("div", { class: "grow" }, field("Instructions", system)),
      h("div", { class: "field small" }, field("Tokens at most", most)),
      h("div", { class: "field small" }, field("Temperature", heat)),
    ),
    h("section", { class: "card", "aria-label": "Conversation" }, talk, empty),
    form,
  );

  repeat(EVERY_MS, signal, async () => {
    const { models, default: standard } = await ask("model.list", {}, { signal });
    const usable = models.filter(
      (each) =>
        each.state !== "unusable" &&
        (each.capabilities.length === 0 || each.capabilities.some((one) => one === "chat" || one === "generate")),
    );
    const wanted = model.value || query.get("model") || "";
    fill(
      model,
      h("option", { value: "" }, standard ? `Default (${cut(standard, 60)})` : "Default model"),
      usable.map((each) =>
        h(
          "option",
          { value: each.name, selected: each.name === wanted },
          `${cut(each.name, 80)}${each.state === "loaded" ? "" : " (not loaded)"}`,
        ),
      ),
    );
  });

  function bubble(role, text) {
    const body = h("span", null, text);
    const note = h("span", { class: "hint" });
    talk.append(h("div", { class: `said ${role}` }, body, note));
    empty.hidden = true;
    return { body, note };
  }

  for (const each of said) bubble(each.role, each.content);

  function request() {
    const messages = [...(system.value.trim() ? [{ role: "system", content: system.value }] : []), ...said];
    return {
      messages,
      truncate: "start",
      ...(model.value ? { model: model.value } : {}),
      ...(most.value ? { max_tokens: Number(most.value) } : {}),
      ...(heat.value ? { temperature: Number(heat.value) } : {}),
    };
  }

  let running = null;

  async function run(question) {
    // The answer belongs to this conversation, even if another one begins before it is there.
    const mine = said;
    mine.push({ role: "user", content: question });
    bubble("user", question);
    const answer = bubble("assistant", "");
    say(answer.note, "…");
    running = new AbortController();
    signal.addEventListener("abort", () => running?.abort());
    busy(true);
    let text = "";
    let drawn = 0;
    const draw = () => {
      drawn = 0;
      const isAtEnd = innerHeight + scrollY > document.documentElement.scrollHeight - 120;
      say(answer.body, text);
      if (isAtEnd) scrollTo(0, document.documentElement.scrollHeight);
    };
    try {
      for await (const { event, data } of stream("model.chat", request(), {
        signal: running.signal,
        timeoutS: ANSWER_S,
      })) {
        if (event === "partial") {
          text += data.text;
          drawn ||= requestAnimationFrame(draw);
        } else {
          text = data.text;
          say(answer.note, figures(data));
        }
      }
    } catch (error) {
      say(answer.note, running.signal.aborted ? "stopped" : sentence(error));
      if (!running.signal.aborted) answer.note.classList.add("problem");
    } finally {
      cancelAnimationFrame(drawn);
      draw();
      // A cut-off answer stays part of the conversation; one that never began does not, and its question goes with it.
      if (text) mine.push({ role: "assistant", content: text });
      else mine.pop();
      running = null;
      busy(false);
    }
  }

  function busy(isBusy) {
    stop.hidden = !isBusy;
    send.disabled = isBusy;
    fresh.disabled = isBusy;
    if (isBusy) stop.focus();
    // Where fingers type, a focus would pull up the keyboard over the answer.
    else if (!signal.aborted && matchMedia("(hover: hover)").matches) words.focus();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const question = words.value.trim();
    if (question === "" || running !== null) return;
    words.value = "";
    run(question);
  });
  words.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  stop.addEventListener("click", () => running?.abort());
  fresh.addEventListener("click", () => {
    said = [];
    fill(talk);
    empty.hidden = false;
    words.focus();
  });
}

function figures(answer) {
  const parts = [
    answer.model,
    `${count(answer.usage.completion_tokens)} tokens`,
    `${count(Math.round(answer.timings.tokens_per_s))}/s`,
    `first after ${duration(answer.timings.first_token_s)}`,
  ];
  if (answer.adapter) parts.push(`adapter ${answer.adapter}`);
  if (answer.timings.load_s) parts.push(`loaded in ${duration(answer.timings.load_s)}`);
  if (answer.truncated_tokens) parts.push(`${count(answer.truncated_tokens)} tokens of the beginning left out`);
  if (answer.finish_reason === "length") parts.push("cut off at its length");
  return parts.join(" · ");
}
