// The frame of the console: which view is shown, who is signed in, and whether gateway and bus answer.

import { about, ask, line } from "./api.js";
import { fill, h, mark, say } from "./dom.js";
import { notice, sentence } from "./dialogs.js";
import { backOff, pause } from "./live.js";
import { pulse } from "./pulse.js";
import { session, signedOut, token, user } from "./session.js";
import { signIn } from "./views/sign_in.js";
import * as overview from "./views/overview.js";
import * as tap from "./views/tap.js";
import * as models from "./views/models.js";
import * as learning from "./views/learning.js";
import * as memory from "./views/memory.js";
import * as errors from "./views/errors.js";
import * as chat from "./views/ask.js";

const VIEWS = { overview, tap, models, learning, memory, errors, ask: chat };

const at = (id) => document.getElementById(id);
const main = at("main");

let shown = null; // {name, stop, turn}
let facts = null; // what the gateway says of itself

/** The view, the rest of its path and the query of `#/models/olympus-demo?x=1`. */
function place() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/").map(readable);
  return { name: Object.hasOwn(VIEWS, name) ? name : "overview", rest, query: new URLSearchParams(query) };
}

function readable(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function leave() {
  shown?.stop.abort();
  shown = null;
}

function needsToken() {
  return facts.auth_required && token() === null;
}

function turn() {
  if (facts === null) return;
  if (needsToken()) {
    showSignIn();
    return;
  }
  const { name, rest, query } = place();
  for (const link of document.querySelectorAll("nav a")) {
    mark(link, "aria-current", link.getAttribute("href") === `#/${name}` ? "page" : null);
  }
  pulse.start(name === "overview");
  if (shown?.name === name && shown.turn) {
    shown.turn(rest, query);
    return;
  }
  leave();
  const stop = new AbortController();
  const root = h("div", { class: "stack" });
  fill(main, root);
  document.title = `${VIEWS[name].title} · Olympus`;
  scrollTo(0, 0);
  shown = { name, stop, turn: VIEWS[name].mount(root, { rest, query, signal: stop.signal }) };
}

function showSignIn() {
  leave();
  pulse.stop();
  pulse.become("denied");
  document.title = "Sign in · Olympus";
  for (const link of document.querySelectorAll("nav a")) mark(link, "aria-current", null);
  fill(main, signIn(turn));
  main.querySelector("input").focus();
}

function showWho() {
  at("who").hidden = user() === null;
  say(at("user"), user() ?? "");
}

const STATES = {
  connecting: ["Connecting…", "", ""],
  ok: ["Connected", "ok", ""],
  "gateway-away": [
    "Gateway away",
    "bad",
    "The gateway does not answer. What you see is from before; the page goes on by itself once it is back.",
  ],
  "bus-away": [
    "Bus away",
    "bad",
    "The gateway is there, but the broker does not answer. The page goes on by itself once it is back.",
  ],
  odd: [
    "Something is odd",
    "bad",
    "The gateway answers this page in a way it does not understand; they may be of different versions. Load the page anew.",
  ],
  denied: ["Signed out", "warn", ""],
};

function showState() {
  const [word, tone, banner] = STATES[pulse.state];
  const link = at("link");
  say(link, word);
  mark(link, "class", `link ${tone}`);
  const box = at("banner");
  say(box, banner);
  box.hidden = banner === "";
  mark(box, "class", `banner ${tone}`);
  main.classList.toggle("stale", pulse.state.endsWith("away"));
}

async function signOut() {
  const held = token();
  signedOut();
  // What was searched for stands in the address; it is not for the next one.
  history.replaceState(null, "", "#/overview");
  turn();
  if (held === null) return;
  try {
    await ask("auth.logout", { token: held });
  } catch (error) {
    notice(`Signed out here. The gateway could not be told: ${sentence(error)}`, "bad");
  }
}

async function learnFacts() {
  const never = new AbortController().signal;
  for (let failures = 0; facts === null;) {
    try {
      facts = await about();
    } catch (error) {
      failures += 1;
      pulse.missed(error);
      await pause(backOff(failures), never);
    }
  }
}

at("skip").addEventListener("click", () => main.focus());
at("sign-out").addEventListener("click", signOut);
addEventListener("hashchange", () => {
  turn();
  // A reader of screens goes to the new view; the pointer's user notices nothing.
  if (document.activeElement?.closest("nav")) main.focus({ preventScroll: true });
});
session.addEventListener("change", showWho);
pulse.addEventListener("state", showState);
line.addEventListener("denied", () => {
  if (facts !== null) {
    facts.auth_required = true;
    showSignIn();
  }
});

showWho();
showState();
await learnFacts();
say(at("place"), [facts.machine, facts.version && `version ${facts.version}`].filter(Boolean).join(" · "));
turn();
