// What repeats: looking again while somebody looks, with longer pauses while nothing answers, and never in a hidden tab.

// Longest pause between two tries while nothing answers, milliseconds.
const PAUSE_MAX_MS = 15000;

const everyone = new EventTarget();

/** Ends all pauses: what waited because nothing answered is tried at once. */
export function wake() {
  everyone.dispatchEvent(new Event("now"));
}

/** Resolves after `ms`, or as soon as `signal` aborts, `nudge` fires, or all are woken. */
export function pause(ms, signal, nudge = everyone) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      for (const target of [nudge, everyone]) target.removeEventListener("now", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
    for (const target of [nudge, everyone]) target.addEventListener("now", done);
    if (signal.aborted) done();
  });
}

/** Resolves once the tab can be seen, or `signal` aborts. */
export function seen(signal) {
  return new Promise((resolve) => {
    if (!document.hidden || signal.aborted) {
      resolve();
      return;
    }
    const done = () => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener("visibilitychange", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    document.addEventListener("visibilitychange", done);
    signal.addEventListener("abort", done);
  });
}

/** The pause before try `failures` + 1: 1 s, 2 s, 4 s, at most 15 s, of which up to a quarter is chance. */
export function backOff(failures) {
  const whole = Math.min(1000 * 2 ** Math.min(failures - 1, 8), PAUSE_MAX_MS);
  return whole * (0.75 + Math.random() / 4);
}

/**
 * Calls `work` now and every `ms` after its end until `signal` aborts. A failure of `work` is handed to `failed` and makes
 * the pause longer. Answers a function that lets the next call happen at once.
 */
export function repeat(ms, signal, work, failed = () => {}) {
  const nudge = new EventTarget();
  (async () => {
    let failures = 0;
    while (!signal.aborted) {
      await seen(signal);
      if (signal.aborted) return;
      try {
        await work();
        failures = 0;
      } catch (error) {
        if (signal.aborted) return;
        failures += 1;
        failed(error);
      }
      await pause(failures ? Math.max(ms, backOff(failures)) : ms, signal, nudge);
    }
  })();
  return () => nudge.dispatchEvent(new Event("now"));
}
