// The editor: every change of the map or a setting is solved and drawn at once, in the same task as its event.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("page-data").textContent);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const ARROWS = ["↑", "→", "↓", "←"];
const hooks = {};   // what window.upslopeGrid offers
window.upslopeGrid = hooks;

function recordedWorld() {
  const { rows, columns, step_cost, slip, blocked } = data.world;
  const cells = data.world.cells.map(([kind, number, start]) =>
    kind === "#" ? wall() : kind === "t" ? terminal(number) : { ...free(), cost: number, start: start });
  return { rows, columns, cells, stepCost: step_cost, slip, blocked };
}

// What the map draws of the cells' own marks; values and arrows are added by who knows them.
function marks(cell) {
  return {
    wall: cell.kind === "#", terminal: cell.kind === "t", start: cell.start,
    cost: cell.cost === null ? "" : "~" + plain(cell.cost),
  };
}

function startEditor() {
  const svg = $("editor-map"), map = createMap(svg);
  const fields = { stepCost: ["step-cost", 0, 1e6], discount: ["discount", Math.min(0.5, data.world.discount), 1], slip: ["slip", 0, 1] };
  let world = recordedWorld(), discount = data.world.discount;
  let cursor = 0, tool = "wall", solution = null, history = [], lastEdit = "", typed = { text: "", until: 0 }, strokes = 0, edits = 0;
  const repaints = [], computes = [];
  const afterPaint = new MessageChannel();
  let waiting = [];
  afterPaint.port1.onmessage = () => {
    const now = performance.now();
    repaints.push(...waiting.map((start) => now - start));
    waiting = [];
    $("timing").textContent = `solved in ${computes[computes.length - 1].toFixed(1)} ms, shown after ${repaints[repaints.length - 1].toFixed(0)} ms`;
  };

  // ------------------------------------------------------------------------------------------------- solve and draw
  function problemOf() {
    if (!world.cells.some((cell) => cell.kind === ".")) return "No free cell: there is nowhere to walk. Python refuses such a map too. Make a cell free.";
    if (!world.cells.some((cell) => cell.kind === "t")) {
      return "No end: a walk on this map goes on for ever, and Python refuses such a map. Choose “end worth” and click a cell.";
    }
    return "";
  }

  function refresh() {
    const start = performance.now(), mdp = compile(world), { values, sweeps, converged } = valueIteration(mdp, discount);
    const best = mdp.cellOf.map((_, s) => bestMoves(mdp, values, discount, s));
    const shown = world.cells.map((cell, at) => (cell.kind === "t" ? cell.points : mdp.stateAt[at] < 0 ? NaN : values[mdp.stateAt[at]]));
    const known = shown.filter((value) => !Number.isNaN(value)), decimals = decimalsFor(known), top = largest(known);
    const mean = mdp.starts.length ? mdp.starts.reduce((sum, s) => sum + values[s], 0) / mdp.starts.length : NaN;
    solution = { mdp, values, sweeps, converged, best, decimals, mean };
    map.draw({
      rows: world.rows, columns: world.columns, top, decimals,
      cells: world.cells.map((cell, at) => {
        const s = mdp.stateAt[at], moves = s < 0 ? [] : best[s];
        return {
          ...marks(cell), value: shown[at], never: shown[at] === -Infinity,
          text: cell.kind === "t" ? fixed(cell.points, Number.isInteger(cell.points) ? 0 : Math.min(plain(cell.points).split(".")[1].length, 4), true) : undefined,
          arrows: [0, 1, 2, 3].map((a) => (moves.includes(a) ? 1 : 0)),
        };
      }),
    });
    drawLegend($("editor-legend"), top, "points", map.numbersHidden() ? "cells are too small for numbers: move the cursor to read one" : "");
    drawCursor();
    tell(problemOf());
    return performance.now() - start;
  }

  function tell(problem) {
    const { mdp, values, sweeps, converged, mean } = solution;
    $("problem").hidden = !problem && converged;
    $("problem").textContent = problem || (converged ? "" : `Not converged after ${sweeps} sweeps: the numbers are not exact.`);
    const lost = mdp.starts.filter((s) => values[s] === -Infinity).length, count = mdp.starts.length;
    const circles = discount === 1 && world.cells.some((cell) => cell.kind === "." && (cell.cost === null ? world.stepCost : cell.cost) === 0);
    $("result").replaceChildren(
      element("b", {}, `J* = ${told(mean)}`),
      lost ? `: from ${lost} of ${count} start${count === 1 ? "" : "s"} no policy is sure to end (hatched).`
        : `, the mean over ${count} start${count === 1 ? "" : "s"}.`,
      ` Value iteration took ${sweeps.toLocaleString("en")} sweep${sweeps === 1 ? "" : "s"}.`,
      circles ? " Where moves cost nothing, arrows that tie may lead in a circle." : "");
    $("row-count").textContent = `${world.rows} row${world.rows === 1 ? "" : "s"}`;
    $("column-count").textContent = `${world.columns} column${world.columns === 1 ? "" : "s"}`;
    for (const [name, [id]] of Object.entries(fields)) {
      const value = name === "discount" ? discount : world[name];
      for (const field of [$(id), $(id + "-number")]) if (document.activeElement !== field || Number(field.value) !== value) field.value = value;
    }
    document.querySelectorAll("input[name=blocked]").forEach((radio) => { radio.checked = radio.value === world.blocked; });
    if (document.activeElement !== $("text")) $("text").value = writeMap(world);
    $("undo").disabled = !history.length;
    hooks.edited = writeMap(world) !== writeMap(recordedWorld());
    document.dispatchEvent(new Event("grid-edited"));
  }

  function drawCursor() {
    cursor = clamp(cursor, 0, world.cells.length - 1);
    const x = cursor % world.columns * CELL, y = Math.floor(cursor / world.columns) * CELL;
    map.overlay.replaceChildren(
      shape("rect", { class: "cursor-under", x: x + 2, y: y + 2, width: CELL - 4, height: CELL - 4 }),
      shape("rect", { class: "cursor-line", x: x + 2, y: y + 2, width: CELL - 4, height: CELL - 4 }));
    const cell = world.cells[cursor], { mdp, values, best } = solution, s = mdp.stateAt[cursor];
    const where = `Row ${Math.floor(cursor / world.columns) + 1}, column ${cursor % world.columns + 1}: `;
    if (cell.kind === "#") { $("cell").textContent = where + "a wall."; return; }
    if (cell.kind === "t") { $("cell").textContent = where + `an end worth ${fixed(cell.points, 3, true).replace(/\.?0+$/, "")}.`; return; }
    const kind = (cell.start ? "start" : "free") + (cell.cost === null ? "" : `, moves cost ${plain(cell.cost)}`);
    if (values[s] === -Infinity) {
      $("cell").textContent = where + kind + ". No policy is sure to end from here, so its value under discount 1 is −∞.";
      return;
    }
    const q = [0, 1, 2, 3].map((a) => actionValue(mdp, values, discount, 4 * s + a));
    $("cell").replaceChildren(where + kind + ". ", element("b", {}, `V* = ${fixed(values[s], 6)}`), ...q.map((value, a) =>
      element("span", { class: best[s].includes(a) ? "q is-best" : "q" }, `${ARROWS[a]} ${mdp.available[4 * s + a] ? told(value) : "no move"}`)));
  }

  // -------------------------------------------------------------------------------------------------------- changes
  // A change is a function; it may be undone. Changes with the same name in a row (one drag, one slider) undo together.
  function edit(change, name = "") {
    const start = performance.now();
    const before = { world: copyWorld(world), discount: discount };
    change();
    if (!name || name !== lastEdit) history.push(before);
    if (history.length > 200) history.shift();
    lastEdit = name;
    computes.push(refresh());
    edits++;
    waiting.push(start);
    requestAnimationFrame(() => afterPaint.port2.postMessage(null));
  }

  const set = (at, cell, name) => edit(() => { world.cells[at] = cell; }, name);
  const points = () => clamp(Number($("points").value) || 0, -LARGEST, LARGEST);
  const cost = () => clamp(Number($("cost").value) || 0, 0, LARGEST);
  const same = (a, b) => a.kind === b.kind && a.points === b.points && a.cost === b.cost && a.start === b.start;

  // What a tool makes of a cell; used on a cell that is so already, it clears it.
  function made(name, cell) {
    if (name === "wall") return cell.kind === "#" ? free() : wall();
    if (name === "free") return free();
    if (name === "start") return { ...free(), cost: cell.cost, start: !cell.start };
    if (name === "cost") return { ...free(), start: cell.start, cost: cell.cost === cost() ? null : cost() };
    return same(cell, terminal(points())) ? free() : terminal(points());
  }

  function typeDigit(key) {
    const now = performance.now(), cell = world.cells[cursor];
    const kept = now < typed.until && typed.at === cursor ? typed.text : "";
    if (cell.kind !== "t" && cell.cost === null) {
      $("cell").textContent = "Digits change the points of an end or the cost of a cell: press T or C first.";
      return;
    }
    const text = (kept + key).slice(0, 9);
    typed = { text, at: cursor, until: now + 1500 };
    const size = Number(text), minus = cell.kind === "t" && (cell.points < 0 || Object.is(cell.points, -0));
    set(cursor, cell.kind === "t" ? terminal(minus ? -size : size) : { ...cell, cost: size }, "digits");
  }

  function nudge(by) {
    const cell = world.cells[cursor];
    if (cell.kind === "t") set(cursor, terminal(clamp(Number((cell.points + by).toFixed(9)), -LARGEST, LARGEST)));
    else if (cell.cost !== null) set(cursor, { ...cell, cost: Math.max(0, Number((cell.cost + by).toFixed(9))) });
    else $("cell").textContent = "Plus and minus change the points of an end or the cost of a cell: press T or C first.";
  }

  function resize(what) {
    const { rows, columns } = world, grow = what.endsWith("+"), row = what.startsWith("row");
    const size = row ? rows : columns;
    if (grow ? size >= MOST_ROWS : size <= 1) return;
    edit(() => {
      const wide = row ? columns : columns + (grow ? 1 : -1), high = row ? rows + (grow ? 1 : -1) : rows;
      const at = [Math.floor(cursor / columns), cursor % columns];
      world.cells = Array.from({ length: wide * high }, (_, i) => {
        const r = Math.floor(i / wide), c = i % wide;
        return r < rows && c < columns ? world.cells[r * columns + c] : free();
      });
      world.rows = high; world.columns = wide;
      cursor = Math.min(at[0], high - 1) * wide + Math.min(at[1], wide - 1);
    });
  }

  // --------------------------------------------------------------------------------------------------------- events
  let stroke = null;
  function paint(event) {
    const at = map.cellAt(event);
    if (at < 0 || !stroke || stroke.done.has(at)) return;
    stroke.done.add(at);
    cursor = at;
    if (!stroke.cell) stroke.cell = made(tool, world.cells[at]);
    // A drag goes on with what its first cell became; start and cost keep the rest of each cell.
    const old = world.cells[at];
    const next = tool === "start" ? { ...free(), cost: old.cost, start: stroke.cell.start }
      : tool === "cost" ? { ...free(), start: old.start, cost: stroke.cell.cost } : { ...stroke.cell };
    if (same(old, next)) drawCursor(); else set(at, next, `stroke ${stroke.number}`);
  }
  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    stroke = { cell: null, done: new Set(), number: ++strokes };
    if (svg.hasPointerCapture && event.isTrusted) svg.setPointerCapture(event.pointerId);
    paint(event);
  });
  svg.addEventListener("pointermove", (event) => { if (stroke) paint(event); });
  for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => { stroke = null; });

  svg.addEventListener("keydown", (event) => {
    if (event.altKey || event.metaKey || (event.ctrlKey && event.key !== "z")) return;
    const row = Math.floor(cursor / world.columns), column = cursor % world.columns, key = event.key;
    const arrow = ["ArrowUp", "ArrowRight", "ArrowDown", "ArrowLeft"].indexOf(key), tools = { w: "wall", " ": "wall", f: "free", s: "start", t: "terminal", c: "cost" };
    const named = key.length === 1 ? tools[key.toLowerCase()] : undefined;
    if (arrow >= 0) {
      cursor = clamp(row + STEP_ROW[arrow], 0, world.rows - 1) * world.columns + clamp(column + STEP_COLUMN[arrow], 0, world.columns - 1);
      drawCursor();
    } else if (named || key === "Enter") set(cursor, made(named || tool, world.cells[cursor]));
    else if (/^[0-9]$/.test(key)) typeDigit(key);
    else if (key === "+" || key === "=") nudge(1);
    else if (key === "-" || key === "_") nudge(-1);
    else if (key.toLowerCase() === "u" || key === "z") undo();
    else return;
    event.preventDefault();
  });

  function undo() {
    const last = history.pop();
    if (!last) return;
    edit(() => { ({ world, discount } = last); });
    history.pop();
    lastEdit = "";
    $("undo").disabled = !history.length;
  }

  document.querySelectorAll("[data-tool]").forEach((button) => button.addEventListener("click", () => choose(button.dataset.tool)));
  function choose(name) {
    tool = name;
    document.querySelectorAll("[data-tool]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.tool === name)));
  }
  $("points").addEventListener("input", () => choose("terminal"));
  $("cost").addEventListener("input", () => choose("cost"));
  document.querySelectorAll("[data-size]").forEach((button) => button.addEventListener("click", () => resize(button.dataset.size)));
  for (const [name, [id, low, high]] of Object.entries(fields)) {
    for (const field of [$(id), $(id + "-number")]) {
      field.addEventListener("input", () => {
        if (field.value === "" || !field.validity.valid && (field.validity.badInput || Number(field.value) < low || Number(field.value) > high)) return;
        const value = clamp(Number(field.value), low, high);
        edit(() => { if (name === "discount") discount = value; else world[name] = value; }, id);
      });
      field.addEventListener("change", () => { lastEdit = ""; field.value = name === "discount" ? discount : world[name]; });
    }
  }
  document.querySelectorAll("input[name=blocked]").forEach((radio) => radio.addEventListener("change", () => edit(() => { world.blocked = radio.value; })));
  $("undo").addEventListener("click", undo);
  $("reset").addEventListener("click", () => edit(() => { world = recordedWorld(); discount = data.world.discount; }));
  $("copy").addEventListener("click", async () => {
    const text = writeMap(world);
    try { await navigator.clipboard.writeText(text); } catch {
      $("text-box").open = true;
      $("text").value = text;
      $("text").select();
      document.execCommand("copy");   // pages opened from a file may have no clipboard
    }
    $("copy").textContent = "Copied";
    setTimeout(() => { $("copy").textContent = "Copy as text"; }, 1500);
  });
  $("read").addEventListener("click", () => {
    const found = readMap($("text").value);
    $("text-said").textContent = found.error || `Read: ${found.rows} x ${found.columns}.`;
    $("text-said").classList.toggle("is-wrong", Boolean(found.error));
    if (!found.error) edit(() => { world = { ...world, ...found }; });
  });

  for (const [name, [id, low]] of Object.entries(fields)) {
    const value = name === "discount" ? discount : world[name], slider = $(id);
    slider.min = $(id + "-number").min = low;
    if (name === "stepCost") slider.max = Math.max(3, 2 * value);
    // A recorded value between the slider's stops stays what it is until somebody moves the slider.
    if (Math.abs(value / Number(slider.step) - Math.round(value / Number(slider.step))) > 1e-9) slider.step = $(id + "-number").step = "any";
    else $(id + "-number").step = "any";
  }
  if (!data.trainings.length) $("reset").textContent = "Reset the map";
  computes.push(refresh());
  darkScheme.addEventListener("change", () => refresh());

  hooks.state = () => ({
    text: writeMap(world), rows: world.rows, columns: world.columns, stepCost: world.stepCost, slip: world.slip, blocked: world.blocked, discount,
    cells: solution.mdp.cellOf, values: Array.from(solution.values, (value) => (value === -Infinity ? "-inf" : value)),
    best: solution.best, sweeps: solution.sweeps, converged: solution.converged, decimals: solution.decimals,
    mean: Number.isFinite(solution.mean) ? solution.mean : String(solution.mean), problem: problemOf(), shown: map.shown(), cursor, edits,
  });
  hooks.timings = () => ({ repaints: repaints.slice(), computes: computes.slice() });
}
