// Making and changing elements. Text becomes text nodes, never markup: nothing from the bus can be read as HTML.

const SVG = "http://www.w3.org/2000/svg";

// What turns the direction of writing until further notice (Unicode UAX 9, sections 2.1 and 2.2): a name could look like
// another one, and the words behind it would be turned as well. The marks for single letters are left alone.
const TURNS = /[\u202a-\u202e\u2066-\u2069]/g;

/** A text that shows no other order of letters than it has. */
export function straight(text) {
  return String(text ?? "").replace(TURNS, "\ufffd");
}

function apply(node, props) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled" || name === "open") node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
}

function append(node, children) {
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(straight(child)));
  }
}

/** An HTML element: h("p", {class: "soft", onclick: f}, "text", node, [more]). */
export function h(tag, props, ...children) {
  const node = document.createElement(tag);
  append(node, children);
  apply(node, props);
  return node;
}

/** An SVG element, as `h`. */
export function s(tag, props, ...children) {
  const node = document.createElementNS(SVG, tag);
  append(node, children);
  apply(node, props);
  return node;
}

/** Sets an element's text, and touches nothing where it is the same: selections and readers of screens stay undisturbed. */
export function say(node, text) {
  const wanted = straight(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** Sets or takes away an attribute, and touches nothing where it is the same. */
export function mark(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value === true ? "" : value))
    node.setAttribute(name, value === true ? "" : value);
}

/** Gives an element these children instead of those it has. */
export function fill(node, ...children) {
  node.replaceChildren();
  append(node, children);
}

/**
 * Keeps the children of `parent` in step with `items`: one child per key, made once by `make(item)`, which answers
 * {node, update(item)}, and moved only where the order changed, so that focus and scroll positions survive.
 */
export function rows(parent, keyOf, make) {
  const known = new Map();
  return (items) => {
    const wanted = new Set();
    let at = parent.firstElementChild;
    for (const item of items) {
      const key = keyOf(item);
      if (wanted.has(key)) continue;
      wanted.add(key);
      let row = known.get(key);
      if (row === undefined) {
        row = make(item);
        known.set(key, row);
      }
      row.update(item);
      if (row.node === at) at = at.nextElementSibling;
      else parent.insertBefore(row.node, at);
    }
    for (const [key, row] of known) {
      if (wanted.has(key)) continue;
      row.node.remove();
      known.delete(key);
    }
  };
}

let labels = 0;

/** A label with its field below it, tied together for readers of screens. */
export function field(label, input, hint) {
  labels += 1;
  input.id = input.id || `field-${labels}`;
  const note = hint ? h("span", { class: "hint", id: `${input.id}-hint` }, hint) : null;
  if (note) input.setAttribute("aria-describedby", note.id);
  return h("div", { class: "field" }, h("label", { for: input.id }, label), input, note);
}

/** A small word with a colour; the word alone tells all, the colour repeats it. */
export function chip(text, tone = "plain") {
  return h("span", { class: `chip ${tone}` }, text);
}

/** Changes a chip. */
export function rechip(node, text, tone = "plain") {
  say(node, text);
  mark(node, "class", `chip ${tone}`);
}

/** A table's cell; on narrow screens, where rows become cards, `label` stands before it. */
export function cell(label, ...children) {
  return h("td", { "data-label": label }, ...children);
}

/** A table that scrolls sideways where it must. heads: their texts; right: which of them stand over numbers. */
export function table(heads, body, right = []) {
  const row = h(
    "tr",
    null,
    heads.map((name, index) => h("th", { scope: "col", class: right.includes(index) ? "r" : null }, name)),
  );
  return h("div", { class: "scroll" }, h("table", null, h("thead", null, row), body));
}
