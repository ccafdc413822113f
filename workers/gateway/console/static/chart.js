// A chart of lines over steps: axes, a cursor for pointer and keyboard, and the values under it in words.

import { count, figure } from "./format.js";
import { fill, h, mark, s, say } from "./dom.js";

const HEIGHT = 260;
const ROOM = { left: 52, right: 14, top: 12, bottom: 34 };

/** About `wanted` round numbers from `low` to `high`, steps of 1, 2 or 5 times a power of ten: pure. */
export function ticks(low, high, wanted = 6) {
  if (!(high > low)) return [low];
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at += 1)
    found.push(Number((at * step).toPrecision(12)));
  return found;
}

/**
 * lines: [{name, key, className}], of points {step, [key]: number or null}. Answers {node, update(points)}.
 */
export function curve(label, lines) {
  const svg = s("svg", {
    class: "chart",
    role: "application",
    tabindex: "0",
    "aria-label": `${label}. Arrow keys read the values.`,
  });
  const readout = h("p", { class: "readout" });
  const key = h(
    "div",
    { class: "row" },
    lines.map((each) => h("span", { class: `key ${each.className}` }, each.name)),
  );
  const node = h("div", { class: "stack tight" }, key, svg, readout);
  const cursor = s("line", { class: "cursor", hidden: true });
  const marks = lines.map((each) => s("circle", { class: `mark ${each.className}`, r: 4, hidden: true }));
  let points = [];
  let scale = null;
  let chosen = null;

  function draw() {
    const unit = Number.parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
    const width = Math.round(svg.clientWidth / unit);
    if (width <= 0) return;
    mark(svg, "viewBox", `0 0 ${width} ${HEIGHT}`);
    const values = points.flatMap((each) => lines.map((one) => each[one.key])).filter(Number.isFinite);
    if (values.length === 0) {
      fill(svg, s("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "No point yet"));
      scale = null;
      say(readout, "");
      return;
    }
    scale = scaleOf(points, values, width);
    fill(
      svg,
      axes(scale, width),
      lines.map((each) => s("path", { class: `line ${each.className}`, d: pathOf(points, each.key, scale) })),
      lonely(),
      cursor,
      marks,
    );
    choose(chosen === null ? null : Math.min(chosen, points.length - 1));
  }

  // A line of one point is no line: it is drawn as a mark.
  function lonely() {
    return lines.map((each) => {
      const own = points.filter((point) => Number.isFinite(point[each.key]));
      return own.length === 1
        ? s("circle", {
            class: `mark ${each.className}`,
            r: 3,
            cx: scale.x(own[0].step),
            cy: scale.y(own[0][each.key]),
          })
        : null;
    });
  }

  function choose(index) {
    chosen = index;
    const point = index === null ? null : points[index];
    cursor.toggleAttribute("hidden", point === null);
    if (point)
      for (const [name, value] of Object.entries({
        x1: scale.x(point.step),
        x2: scale.x(point.step),
        y1: ROOM.top,
        y2: HEIGHT - ROOM.bottom,
      }))
        mark(cursor, name, value);
    lines.forEach((each, number) => {
      const value = point?.[each.key];
      marks[number].toggleAttribute("hidden", !Number.isFinite(value));
      if (Number.isFinite(value)) {
        mark(marks[number], "cx", scale.x(point.step));
        mark(marks[number], "cy", scale.y(value));
      }
    });
    say(readout, point ? words(point) : `${count(points.length)} points; the last: ${words(points.at(-1))}`);
  }

  function words(point) {
    const told = lines
      .filter((each) => Number.isFinite(point[each.key]))
      .map((each) => `${each.name} ${figure(point[each.key])}`);
    return [`step ${count(point.step)}`, ...told].join(", ");
  }

  svg.addEventListener("pointermove", (event) => {
    if (scale === null) return;
    const box = svg.getBoundingClientRect();
    const step = scale.step(((event.clientX - box.left) * scale.width) / box.width);
    let best = 0;
    points.forEach((each, index) => {
      if (Math.abs(each.step - step) < Math.abs(points[best].step - step)) best = index;
    });
    choose(best);
  });
  svg.addEventListener("pointerleave", () => scale && choose(null));
  // Read aloud for whoever goes through it by keys, and not with every point that comes.
  svg.addEventListener("focus", () => mark(readout, "aria-live", "polite"));
  svg.addEventListener("blur", () => {
    mark(readout, "aria-live", null);
    if (scale) choose(null);
  });
  svg.addEventListener("keydown", (event) => {
    const last = points.length - 1;
    const from = chosen ?? last + 1;
    const page = Math.max(1, Math.round(points.length / 20));
    const to = {
      ArrowLeft: from - 1,
      ArrowRight: (chosen ?? -1) + 1,
      PageUp: from - page,
      PageDown: (chosen ?? -1) + page,
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined || scale === null) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(last, to)));
  });
  const watcher = new ResizeObserver(draw);
  watcher.observe(svg.parentElement);
  return {
    node,
    update(next) {
      points = next;
      draw();
    },
    stop: () => watcher.disconnect(),
  };
}

function scaleOf(points, values, width) {
  const first = points[0].step;
  const last = Math.max(points.at(-1).step, first + 1);
  let low = Math.min(...values);
  let high = Math.max(...values);
  // A flat line still needs a height; a loss near zero is best seen from zero.
  if (low > 0 && low < high * 0.5) low = 0;
  if (high - low < 1e-9)
    [low, high] = [low - Math.max(0.5, Math.abs(low) * 0.1), high + Math.max(0.5, Math.abs(high) * 0.1)];
  const across = width - ROOM.left - ROOM.right;
  const down = HEIGHT - ROOM.top - ROOM.bottom;
  return {
    width,
    first,
    last,
    low,
    high,
    x: (step) => Number((ROOM.left + (across * (step - first)) / (last - first)).toFixed(1)),
    y: (value) => Number((ROOM.top + (down * (high - value)) / (high - low)).toFixed(1)),
    step: (x) => first + ((x - ROOM.left) / across) * (last - first),
  };
}

function axes(scale, width) {
  const floor = HEIGHT - ROOM.bottom;
  return [
    ticks(scale.low, scale.high).map((value) => [
      s("line", { class: "grid", x1: ROOM.left, x2: width - ROOM.right, y1: scale.y(value), y2: scale.y(value) }),
      s("text", { x: ROOM.left - 8, y: scale.y(value) + 4, "text-anchor": "end" }, figure(value)),
    ]),
    ticks(scale.first, scale.last, Math.max(4, Math.min(8, Math.floor(width / 110))))
      .filter(Number.isInteger)
      .map((step) => s("text", { x: scale.x(step), y: floor + 17, "text-anchor": "middle" }, count(step))),
    s("line", { class: "axis", x1: ROOM.left, x2: width - ROOM.right, y1: floor, y2: floor }),
    s("text", { x: width - ROOM.right, y: HEIGHT - 3, "text-anchor": "end" }, "step"),
  ];
}

function pathOf(points, key, scale) {
  const parts = points
    .filter((each) => Number.isFinite(each[key]))
    .map((each) => `${scale.x(each.step)} ${scale.y(each[key])}`);
  return parts.length ? `M${parts.join("L")}` : "";
}

/** Bars for counts over equal stretches of time, the newest last. */
export function spark(counts, label) {
  const most = Math.max(1, ...counts);
  const bars = counts.map((each, index) => {
    const height = each === 0 ? 1 : Math.max(3, (46 * each) / most);
    return s("rect", { x: index * 10 + 1, y: 48 - height, width: 8, height, rx: 1 });
  });
  return s(
    "svg",
    {
      class: "spark",
      viewBox: `0 0 ${counts.length * 10} 48`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": label,
    },
    bars,
  );
}
