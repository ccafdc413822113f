// The pulse of the house: topology and rates, looked at for the whole page, and whether gateway and bus answer at all.

import { line, topology } from "./api.js";
import { houseTime } from "./format.js";
import { repeat, wake } from "./live.js";

// Milliseconds between two looks while rates are on show, and while only somebody's absence matters.
const WATCHED_MS = 2000;
const RESTING_MS = 10000;

/** Events: `look` after each look, `state` when `pulse.state` changed. */
class Pulse extends EventTarget {
  state = "connecting"; // connecting, ok, gateway-away, bus-away, odd, denied
  latest = null; // the newest topology
  #stop = null;
  #now = () => {};
  #isWatched = false;

  /** Looks again and again, oftener while `isWatched`. */
  start(isWatched) {
    if (this.#stop !== null && this.#isWatched === isWatched) return;
    this.stop();
    this.#isWatched = isWatched;
    this.#stop = new AbortController();
    const { signal } = this.#stop;
    this.#now = repeat(
      isWatched ? WATCHED_MS : RESTING_MS,
      signal,
      () => this.#look(signal),
      (error) => this.missed(error),
    );
  }

  stop() {
    this.#stop?.abort();
    this.#stop = null;
  }

  /** Looks at once: something hints that the state is not what it was. */
  check() {
    this.#now();
  }

  become(state) {
    if (state === this.state) return;
    const wasAway = this.state !== "connecting";
    this.state = state;
    this.dispatchEvent(new Event("state"));
    if (state === "ok" && wasAway) wake();
  }

  async #look(signal) {
    this.latest = await topology(signal);
    houseTime(this.latest.at);
    this.become("ok");
    this.dispatchEvent(new Event("look"));
  }

  /** What a failed look says about the state. */
  missed(error) {
    if (error.status === 0) this.become("gateway-away");
    else if (error.status === 401) this.become("denied");
    else if (error.status === 403)
      this.become("ok"); // They answer, though not to this account.
    else this.become(error.status >= 502 ? "bus-away" : "odd");
    this.dispatchEvent(new Event("look"));
  }
}

export const pulse = new Pulse();

line.addEventListener("away", () => {
  if (pulse.state === "gateway-away") return;
  pulse.become("gateway-away");
  pulse.check();
});
line.addEventListener("doubt", () => {
  if (pulse.state === "ok") pulse.check();
});
line.addEventListener("fine", () => {
  if (pulse.state === "gateway-away") pulse.check();
});
