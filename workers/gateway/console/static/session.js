// Who is signed in. The tokens live in this tab alone (sessionStorage) and go nowhere but to this gateway.

const KEY = "olympus.session";

// Seconds before its end at which an access token is renewed; a request on its way has that long to arrive.
const EARLY_S = 30;

export const session = new EventTarget();

let held = read();

function read() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY) ?? "null");
  } catch {
    return null;
  }
}

function keep(next) {
  held = next;
  if (next === null) sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, JSON.stringify(next));
  session.dispatchEvent(new Event("change"));
}

/** The name of who is signed in, or null. */
export function user() {
  return held?.user ?? null;
}

/** The namespaces that are the user's own by name; of who may use all of them, and of nobody: none. */
export function ownNamespaces() {
  const allowed = held?.namespaces ?? ["*"];
  return allowed.includes("*") ? [] : allowed.filter((each) => !each.includes("*"));
}

/** The access token, or null. */
export function token() {
  return held?.access ?? null;
}

/** The refresh token while the access token needs renewing and can be renewed, else null. */
export function renewal(isRefused = false) {
  if (held === null || !held.refresh) return null;
  return isRefused || Date.now() / 1000 > held.expiresAt - EARLY_S ? held.refresh : null;
}

/** Takes the answer of auth.login or auth.refresh. */
export function signedIn(answer) {
  keep({
    user: answer.user_id,
    access: answer.access_token,
    refresh: answer.refresh_token,
    namespaces: answer.namespaces,
    // By this machine's clock: the other end's may differ.
    expiresAt: Date.now() / 1000 + answer.expires_in_s,
  });
}

/** True while these tokens have not been given up for others, or for none. */
export function isHeld(refreshToken) {
  return held?.refresh === refreshToken;
}

/** Forgets the tokens. */
export function signedOut() {
  if (held !== null) keep(null);
}
