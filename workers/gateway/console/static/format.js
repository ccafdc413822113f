// Numbers, times and values as people read them. Pure, but for the language of the browser.

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { year: "numeric", month: "short", day: "numeric" });

/** 12345 as 12,345. */
export function count(value) {
  return value === null || value === undefined ? "–" : number.format(value);
}

/** "1 worker", "3 workers". */
export function several(value, noun, plural = `${noun}s`) {
  return `${count(value)} ${value === 1 ? noun : plural}`;
}

/** Bytes in the largest unit of 1,024 that leaves a number above 1. */
export function bytes(value) {
  if (value === null || value === undefined) return "–";
  let left = value;
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (Math.abs(left) < 1024 || unit === "TiB")
      return `${left >= 100 || unit === "B" ? Math.round(left) : left.toFixed(1)} ${unit}`;
    left /= 1024;
  }
  return "";
}

/** A number with as many digits as carry something: 0.0312, 3.14, 314. */
export function figure(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return number.format(value);
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size >= 0.1) return value.toFixed(2);
  return String(Number(value.toPrecision(2)));
}

/** Something per second; the smallest rates are told as such instead of as 0. */
export function rate(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0/s";
  if (value < 0.1) return "<0.1/s";
  return value < 10 ? `${value.toFixed(1)}/s` : `${number.format(value)}/s`;
}

/** Seconds as 350 ms, 2.1 s, 4 min, 3 h 12 min, 2 d 4 h. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${figure(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  const days = Math.floor(hours / 24);
  return hours % 24 ? `${days} d ${hours % 24} h` : `${days} d`;
}

/** An instant, in seconds since 1970: the time today, the day before it otherwise. */
export function instant(at) {
  if (at === null || at === undefined) return "–";
  const when = new Date(at * 1000);
  const time = clock.format(when);
  return when.toDateString() === new Date().toDateString() ? time : `${day.format(when)}, ${time}`;
}

// Seconds by which the house's clock is ahead of this machine's.
let ahead = 0;

/** The house's time is this, in seconds since 1970: what it says of instants is meant by that clock. */
export function houseTime(at) {
  ahead = at - Date.now() / 1000;
}

/** How long ago an instant was: "just now", "5 min ago". */
export function ago(at) {
  if (at === null || at === undefined) return "never";
  const seconds = Date.now() / 1000 + ahead - at;
  return seconds < 5 ? "just now" : `${duration(seconds)} ago`;
}

/** A share of 1 as per cent. */
export function share(value) {
  return value === null || value === undefined ? "–" : `${Math.round(value * 100)} %`;
}

/** At most `most` characters of a text; what is left out is told. */
export function cut(text, most = 2000) {
  const whole = String(text ?? "");
  return whole.length <= most ? whole : `${whole.slice(0, most)}… (${count(whole.length - most)} more characters)`;
}

/** Any value in one line of at most `most` characters. */
export function line(value, most = 200) {
  const text = typeof value === "string" ? value : (JSON.stringify(value) ?? "");
  const flat = text.slice(0, most + 1).replace(/\s+/g, " ");
  return flat.length > most ? `${flat.slice(0, most)}…` : flat;
}

/** Any value as indented JSON of at most `most` characters. */
export function pretty(value, most = 20000) {
  return cut(typeof value === "string" ? value : (JSON.stringify(value, null, 2) ?? ""), most);
}

/** True where every word of `needle` is in one of the texts, whatever the case. */
export function holds(needle, ...texts) {
  const all = texts.join("\n").toLowerCase();
  return needle
    .toLowerCase()
    .split(/\s+/)
    .every((word) => all.includes(word));
}
