// Speaking to the gateway. Every request of the page goes through here, and to the page's own origin alone.

import { isHeld, renewal, signedIn, signedOut, token } from "./session.js";

/** How the gateway fares: events `fine`, `away` (nobody answers), `doubt` (something is not served) and `denied`. */
export const line = new EventTarget();

/** A request that was refused or failed; code and details are those of the bus. */
export class Refused extends Error {
  constructor(status, code, message, details = {}) {
    super(message);
    this.name = "Refused";
    this.status = status;
    this.code = code;
    this.details = details;
  }
}

const tell = (name) => line.dispatchEvent(new Event(name));

async function refusal(response) {
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // Whatever stands between answered in its own words.
  }
  const message = problem.detail || problem.title || `the gateway answered ${response.status}`;
  return new Refused(response.status, problem.code ?? "", message, problem.details ?? {});
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, cache: "no-store", credentials: "omit", redirect: "error" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    tell("away");
    throw new Refused(0, "gateway_away", "the gateway does not answer");
  }
  if (response.ok) {
    tell("fine");
    return response;
  }
  const error = await refusal(response);
  tell(error.status === 503 ? "doubt" : "fine");
  throw error;
}

let renewing = null;

// One renewal at a time: a refresh token is good once.
function renew(refreshToken) {
  renewing ??= (async () => {
    try {
      const response = await send("api/request", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ subject: "auth.refresh", body: { refresh_token: refreshToken } }),
      });
      const renewed = await response.json();
      // Whoever signed out meanwhile stays so.
      if (isHeld(refreshToken)) signedIn(renewed);
    } catch (error) {
      // While the other end is away the tokens may still be good.
      if ((error.status === 401 || error.status === 403) && isHeld(refreshToken)) signedOut();
    } finally {
      renewing = null;
    }
  })();
  return renewing;
}

async function call(path, options, isOpen = false) {
  const due = isOpen ? null : renewal();
  if (due) await renew(due);
  const attempt = () => {
    const held = isOpen ? null : token();
    const headers = { ...options.headers, ...(held ? { authorization: `Bearer ${held}` } : {}) };
    return send(path, { ...options, headers });
  };
  try {
    return await attempt();
  } catch (error) {
    if (error.status !== 401 || isOpen) throw error;
    const refresh = renewal(true);
    if (refresh) {
      await renew(refresh);
      if (token()) return attempt();
    }
    signedOut();
    tell("denied");
    throw error;
  }
}

/** What the gateway says of itself: {auth_required, version, machine, ...}; no sign-in needed. */
export async function about(signal) {
  return (await call("api/about", { signal }, true)).json();
}

/** Broker, services, workers and ports, as the bus tells them now. */
export async function topology(signal) {
  return (await call("api/topology", { signal })).json();
}

function post(subject, body, headers) {
  return {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify({ subject, body }),
  };
}

// Asked without a token: by nobody yet.
const OPEN = new Set(["auth.login", "auth.register"]);

/** The reply of an operation. Raises Refused. timeoutS: seconds until it is given up, else as the operation has it. */
export async function ask(subject, body = {}, { signal, timeoutS } = {}) {
  const headers = timeoutS ? { "x-timeout-s": String(timeoutS) } : {};
  const response = await call("api/request", { ...post(subject, body, headers), signal }, OPEN.has(subject));
  return response.json();
}

/** Pieces of a reply as they come, then the whole: {event: "partial" | "final", data}. Aborting `signal` cancels it. */
export async function* stream(subject, body, { signal, timeoutS } = {}) {
  const headers = { accept: "text/event-stream", ...(timeoutS ? { "x-timeout-s": String(timeoutS) } : {}) };
  const response = await call("api/request", { ...post(subject, body, headers), signal });
  yield* events(response, signal);
}

/** What passes over the bus, as it comes: {event, data}. Ends when the gateway stops. */
export async function* tap(patterns, { signal, hasRequests = false } = {}) {
  const query = new URLSearchParams({ patterns: patterns.join(","), traces: hasRequests ? "1" : "0" });
  const response = await call(`api/tap?${query}`, { headers: { accept: "text/event-stream" }, signal });
  yield* events(response, signal);
}

// Milliseconds without a byte after which a connection is dead: the gateway sends a comment every 15 s.
const SILENCE_MS = 40000;

function withinSilence(reading) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("silence")), SILENCE_MS);
  });
  return Promise.race([reading, silence]).finally(() => clearTimeout(timer));
}

// Server-sent events (HTML standard, section 9.2.6), read by hand: EventSource can send no Authorization header.
async function* events(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      let chunk;
      try {
        chunk = await withinSilence(reader.read());
      } catch (error) {
        if (signal?.aborted) throw error;
        tell("away");
        throw new Refused(0, "gateway_away", "the connection to the gateway broke off");
      }
      if (chunk.done) return;
      const parts = (held + chunk.value.replaceAll("\r\n", "\n")).split("\n\n");
      held = parts.pop();
      for (const part of parts) {
        const found = eventOf(part);
        if (found === null) continue;
        if (found.event === "error") throw failed(found.data);
        yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function failed(data) {
  return new Refused(
    data.status ?? 503,
    data.code ?? "",
    data.detail ?? data.message ?? "it failed",
    data.details ?? {},
  );
}

function eventOf(part) {
  let event = "message";
  const data = [];
  for (const row of part.split("\n")) {
    if (row.startsWith("event:")) event = row.slice(6).trim();
    else if (row.startsWith("data:")) data.push(row.slice(row[5] === " " ? 6 : 5));
  }
  return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
}
