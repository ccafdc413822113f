// Asking before something is done, and telling that it was: dialogs and short notices.

import { fill, h } from "./dom.js";

/**
 * A dialog with `title`, `content` and a button that says `yes`. Resolves to `read()` (true without) when it was pressed,
 * to null when the dialog was left. The keyboard goes back to where it was.
 */
export function confirm({ title, content = [], yes = "OK", tone = "", read = () => true }) {
  return new Promise((resolve) => {
    const heading = h("h2", { id: "dialog-title" }, title);
    const form = h(
      "form",
      { method: "dialog" },
      heading,
      h("div", { class: "dialog-body" }, content),
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "button", class: "quiet", onclick: () => dialog.close("") }, "Cancel"),
        h("button", { type: "submit", class: tone || "primary", value: "yes" }, yes),
      ),
    );
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
    dialog.addEventListener("close", () => {
      const answer = dialog.returnValue === "yes" ? read() : null;
      dialog.remove();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A dialog that only shows something. */
export function show(title, ...content) {
  const dialog = h(
    "dialog",
    { "aria-labelledby": "dialog-title", class: "wide" },
    h(
      "form",
      { method: "dialog" },
      h("header", null, h("h2", { id: "dialog-title" }, title), h("button", { class: "quiet" }, "Close")),
    ),
    h("div", { class: "dialog-body" }, content),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

// Milliseconds that a notice stays: long enough to be read twice.
const NOTICE_MS = 6000;

/** A notice at the edge of the page. */
export function notice(text, tone = "plain") {
  const box = document.getElementById("toasts");
  const node = h("p", { class: `toast ${tone}` }, text);
  if (box.childElementCount > 3) box.firstElementChild.remove();
  box.append(node);
  setTimeout(() => node.remove(), NOTICE_MS);
}

/** Puts an error in place of a list. */
export function failure(node, error) {
  fill(node, h("p", { class: "problem" }, sentence(error)));
}

/** An error for people. */
export function sentence(error) {
  if (error.status === 403) return `Your account may not do this: ${error.message}`;
  if (error.code === "no_worker") return `Nobody serves this at the moment: ${error.message}`;
  return error.message;
}
