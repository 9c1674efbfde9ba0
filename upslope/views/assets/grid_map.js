// A map as SVG: one square a cell with its value as colour and number, arrows, and an overlay for a cursor or a walk.

const SVG = "http://www.w3.org/2000/svg", CELL = 100;
const LEAST_ARROW = 0.02;     // probability below which no arrow is drawn
const LEAST_PIXELS = 8;       // height below which a number is left out, for it could not be read
const PALETTES = {            // white (or black) is 0; orange below, blue above: told apart by colour-blind readers too
  light: ["#b35806", "#f1a340", "#fee0b6", "#fbfbf9", "#c6dcf0", "#5ea3d3", "#08519c"],
  dark: ["#ffb057", "#c9731d", "#5f3d1c", "#22252a", "#1f3c58", "#2f78b7", "#86c8ff"],
};
const darkScheme = window.matchMedia("(prefers-color-scheme: dark)");
const palette = () => PALETTES[darkScheme.matches ? "dark" : "light"].map(
  (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));

// Children may be text or elements; attributes that are false or null are left out.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function shape(tag, attributes = {}) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// ------------------------------------------------------------------------------------------------------------- numbers
// A number with a true minus; "-0.00" is written 0.00, what has no bound as infinity.
function fixed(value, decimals, plus = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const text = Math.abs(value).toFixed(decimals), nothing = Number(text) === 0;
  return (value < 0 && !nothing ? "−" : plus && !nothing ? "+" : "") + text;
}

// As many decimals as tell a number's first digits: for tables of numbers of any size.
const told = (value, plus = false) => fixed(value, Math.abs(value) < 100 ? 3 : Math.abs(value) < 10000 ? 1 : 0, plus);

// 0 decimals where every value is whole, else 2 for small values and 1 for large ones.
function decimalsFor(values) {
  const known = values.filter((value) => Number.isFinite(value));
  if (known.every((value) => Math.abs(value - Math.round(value)) < 1e-6)) return 0;
  return Math.max(...known.map(Math.abs)) < 100 ? 2 : 1;
}

const largest = (values) =>
  values.reduce((most, value) => (Number.isFinite(value) ? Math.max(most, Math.abs(value)) : most), 0) || 1;

// Width of a number in units of its size: a full stop is half as wide as a digit, a true minus wider.
const emWidth = (text) => Array.from(text).reduce((sum, sign) => sum + (sign === "." ? 0.32 : "−+∞".includes(sign) ? 0.84 : 0.64), 0);

// -------------------------------------------------------------------------------------------------------------- colours
function mix(stops, value, top) {
  const at = (Math.min(Math.max(value / top, -1), 1) + 1) / 2 * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((part, k) => part + (stops[low + 1][k] - part) * (at - low));
}

// Dark or white text, whichever reads better on a colour (relative luminance, WCAG 2).
function inkOn(color) {
  const [r, g, b] = color.map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  const luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return (luminance + 0.05) / 0.06 > 1.05 / (luminance + 0.05) ? "#1c1d1f" : "#ffffff";
}

// A colour bar with the two ends of its scale and their unit.
function drawLegend(node, top, unit, note) {
  const stops = palette().map((color) => `rgb(${color.map(Math.round).join(" ")})`);
  const bar = element("span", { class: "scale", "aria-hidden": "true" });
  bar.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
  node.replaceChildren(
    element("span", {}, fixed(-top, decimalsFor([top]))), bar, element("span", {}, fixed(top, decimalsFor([top]), true) + " " + unit),
    element("span", { class: "legend-note" }, note));
}

// --------------------------------------------------------------------------------------------------------------- arrows
// Around a number: a wedge at the edge; in a bare cell: an arrow from the middle. Both grow with the probability.
function arrowPath(x, y, move, chance, bare) {
  const along = [STEP_COLUMN[move], STEP_ROW[move]], aside = [-along[1], along[0]];
  const at = (forward, side) =>
    `${(x + along[0] * forward + aside[0] * side).toFixed(1)} ${(y + along[1] * forward + aside[1] * side).toFixed(1)}`;
  if (bare) {
    const tip = 16 + 28 * chance, half = 6 + 10 * chance, neck = tip - half * 1.4, thick = 1.5 + 3 * chance;
    return `M${at(0, thick)}L${at(neck, thick)}L${at(neck, half)}L${at(tip, 0)}L${at(neck, -half)}L${at(neck, -thick)}L${at(0, -thick)}Z`;
  }
  const base = 34, half = 5 + 9 * chance, tip = base + 3 + 11 * chance;
  return `M${at(base, half)}L${at(tip, 0)}L${at(base, -half)}Z`;
}

// ------------------------------------------------------------------------------------------------------------------ map
// draw({rows, columns, top, decimals, cells}) with cells[i] = {wall, terminal, value, text, arrows, start, cost, never}:
// `text` replaces the number, `arrows` are four probabilities, `never` hatches a cell whose value is -infinity.
function createMap(svg) {
  const ground = shape("g"), overlay = shape("g");
  let rows = 0, columns = 0, nodes = [], shown = [], last = null, wasBare = false;
  const hatch = `hatch-${svg.id}`;

  function build() {
    svg.setAttribute("viewBox", `-1 -1 ${columns * CELL + 2} ${rows * CELL + 2}`);
    svg.style.aspectRatio = `${columns} / ${rows}`;
    svg.style.maxWidth = `${Math.round(Math.min(Math.max(columns * 96, 300), 600 * columns / rows))}px`;
    const pattern = shape("pattern", { id: hatch, width: 14, height: 14, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
    pattern.append(shape("rect", { class: "hatch-back", width: 14, height: 14 }), shape("rect", { class: "hatch-line", width: 4, height: 14 }));
    nodes = Array.from({ length: rows * columns }, (_, at) => {
      const x = at % columns * CELL, y = Math.floor(at / columns) * CELL;
      const node = {
        x, y, key: "",
        back: shape("rect", { class: "cell", x, y, width: CELL, height: CELL }),
        ring: shape("rect", { class: "ring-line", x: x + 8, y: y + 8, width: CELL - 16, height: CELL - 16 }),
        arrows: shape("path"),
        number: shape("text", { class: "number", x: x + CELL / 2, y: y + CELL / 2 }),
        mark: shape("text", { class: "mark", x: x + 6, y: y + 18 }),
      };
      return node;
    });
    ground.replaceChildren(...nodes.flatMap((node) => [node.back, node.ring, node.arrows, node.number, node.mark]));
    svg.replaceChildren(pattern, ground,
      shape("rect", { class: "frame", x: 0, y: 0, width: columns * CELL, height: rows * CELL }), overlay);
  }

  const pixels = () => (svg.getBoundingClientRect().width || 480) / columns;

  function draw(picture) {
    if (picture.rows !== rows || picture.columns !== columns) { ({ rows, columns } = picture); build(); }
    last = picture;
    const stops = palette();
    const texts = picture.cells.map((cell) =>
      cell.wall ? "" : cell.text !== undefined ? cell.text : fixed(cell.value, picture.decimals));
    const widest = Math.max(0.6, ...texts.map((text, at) => (picture.cells[at].terminal ? 0 : emWidth(text))));
    const size = Math.min(27, 61 / widest), bare = size / CELL * pixels() < LEAST_PIXELS;
    wasBare = bare;
    shown = texts.map((text, at) => (bare && !picture.cells[at].terminal ? "" : text));
    nodes.forEach((node, at) => {
      const cell = picture.cells[at], color = cell.wall ? null : mix(stops, Number.isFinite(cell.value) ? cell.value : 0, picture.top);
      const fill = cell.wall ? "" : cell.never ? `url(#${hatch})` : `rgb(${color.map(Math.round).join(" ")})`;
      const ink = cell.wall || cell.never ? "" : inkOn(color), arrows = (cell.arrows || []).map((chance) => Math.round(chance * 1000) / 1000);
      const mark = (cell.start ? "S" : "") + (cell.cost || "");
      const key = [cell.wall, fill, ink, shown[at], cell.terminal, mark, arrows, size, bare].join("|");
      if (node.key === key) return;
      node.key = key;
      node.back.setAttribute("class", cell.wall ? "cell wall" : "cell");
      if (fill) node.back.setAttribute("fill", fill); else node.back.removeAttribute("fill");
      node.ring.setAttribute("visibility", cell.terminal ? "visible" : "hidden");
      for (const part of [node.arrows, node.number, node.mark]) part.setAttribute("fill", ink || "var(--ink)");
      node.ring.setAttribute("stroke", ink || "var(--ink)");
      node.number.setAttribute("font-size", cell.terminal ? Math.min(34, 72 / Math.max(1.1 * emWidth(shown[at]), 1)) : size);
      node.number.setAttribute("class", cell.terminal ? "number ending" : "number");
      node.number.textContent = shown[at];
      node.mark.textContent = bare && pixels() < 22 ? "" : mark;
      node.arrows.setAttribute("d", arrows.map((chance, move) =>
        chance < LEAST_ARROW ? "" : arrowPath(node.x + CELL / 2, node.y + CELL / 2, move, Math.min(chance, 1), bare)).join(""));
    });
  }

  // The cell under a pointer, or -1.
  function cellAt(event) {
    const box = svg.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / box.width * columns), row = Math.floor((event.clientY - box.top) / box.height * rows);
    return row >= 0 && row < rows && column >= 0 && column < columns ? row * columns + column : -1;
  }

  const redraw = () => { if (last) { nodes.forEach((node) => { node.key = ""; }); draw(last); } };
  new ResizeObserver(() => { if (last && (wasBare || pixels() < 90)) redraw(); }).observe(svg);
  const middle = (at) => [at % columns * CELL + CELL / 2, Math.floor(at / columns) * CELL + CELL / 2];
  return { draw, redraw, cellAt, middle, overlay, shown: () => shown.slice(), numbersHidden: () => wasBare };
}
