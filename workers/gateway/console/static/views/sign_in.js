// Signing in, where the house asks for it.

import { ask } from "../api.js";
import { field, h, say } from "../dom.js";
import { sentence } from "../dialogs.js";
import { signedIn } from "../session.js";

/** The form; `done` is called once somebody is signed in. */
export function signIn(done) {
  const name = h("input", {
    name: "user",
    autocomplete: "username",
    autocapitalize: "none",
    spellcheck: "false",
    required: true,
  });
  const password = h("input", { name: "password", type: "password", autocomplete: "current-password", required: true });
  const problem = h("p", { class: "problem", role: "alert" });
  const button = h("button", { class: "primary", type: "submit" }, "Sign in");
  const form = h("form", { novalidate: true }, field("Name", name), field("Password", password), problem, button);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!name.value || !password.value) {
      say(problem, "Both name and password are needed.");
      return;
    }
    button.disabled = true;
    say(problem, "");
    try {
      signedIn(await ask("auth.login", { user_id: name.value.trim(), password: password.value }));
      done();
    } catch (error) {
      say(problem, error.status === 401 ? "That name and password do not belong together." : sentence(error));
      password.value = "";
      password.focus();
    } finally {
      button.disabled = false;
    }
  });
  return h(
    "section",
    { class: "card sign", "aria-labelledby": "sign-title" },
    h("h1", { id: "sign-title" }, "Sign in"),
    h("p", { class: "soft" }, "This house asks who you are. The sign-in is kept in this tab alone."),
    form,
  );
}
