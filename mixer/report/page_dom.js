// Elements and numbers. Text goes in as text nodes only: the names of runs and
// classes are not to be trusted.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") {
      for (const [name, to] of Object.entries(value)) {
        node.style.setProperty(name, to);
      }
    } else node.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child);
  }
  return node;
}

function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function button(label, action, attributes) {
  return el("button", { type: "button", onclick: action, ...attributes },
    label);
}

// A button that is on or off; `action` gets the new state.
function toggle(label, action, attributes) {
  const node = button(label, () => {
    const on = node.getAttribute("aria-pressed") !== "true";
    node.setAttribute("aria-pressed", on);
    action(on);
  }, { "aria-pressed": "false", ...attributes });
  return node;
}

// One of several: buttons of which one is pressed.
function choice(label, options, chosen, action) {
  const buttons = options.map(([value, text]) =>
    button(text, () => {
      for (const [i, b] of buttons.entries()) {
        b.setAttribute("aria-pressed", options[i][0] === value);
      }
      action(value);
    }, { "aria-pressed": String(value === chosen), title: text }));
  return el("div", { class: "choice", role: "group", "aria-label": label },
    buttons);
}

function section(id, title, ...children) {
  return el("section", { id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title), children);
}

// Only this box scrolls sideways; by keyboard too, so it takes the focus.
function scrolls(label, ...children) {
  return el("div",
    { class: "scrolls", tabindex: "0", role: "region", "aria-label": label },
    children);
}

// This one is no higher than a screen, too.
function scrollsBoth(label, rows, child) {
  const box = scrolls(label, child);
  box.classList.add("tall");
  box.classList.toggle("long", rows > 100);
  return box;
}

function table(head, rows, attributes) {
  return el("table", attributes,
    el("thead", null, el("tr", null,
      head.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", null, rows.map(([first, ...rest]) => el("tr", null,
      el("th", { scope: "row" }, first),
      rest.map((cell) => el("td", null, cell))))));
}

// Six digits, with separators from ten thousand on.
function number(value) {
  if (value === null) return "not finite";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e12)) {
    return value.toExponential(4).replace(/\.?0+e/, "e");
  }
  const short = Number(value.toPrecision(6));
  return size >= 1e4
    ? short.toLocaleString("en-US", { maximumFractionDigits: 2 })
    : String(short);
}

function whole(value) {
  return value.toLocaleString("en-US");
}

function percent(share, digits = 1) {
  return share === null || share === undefined
    ? "–" : `${(100 * share).toFixed(digits)}%`;
}

function duration(seconds) {
  if (seconds < 100) return `${Number(seconds.toPrecision(3))} s`;
  if (seconds < 6000) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toFixed(seconds < 36000 ? 2 : 1)} h`;
}

// {a: {b: 1}} as [["a.b", "1"]].
function flat(tree, prefix = "") {
  return Object.entries(tree || {}).flatMap(([key, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? flat(value, `${prefix}${key}.`)
      : [[prefix + key, typeof value === "string" && value !== ""
        ? value : JSON.stringify(value)]]);
}
