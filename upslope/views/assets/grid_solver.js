// The map, its text, and value iteration. This mirrors worlds/gridworld.py and maths/bellman.py: the same states, the same
// start, the same stopping rule, so that the numbers agree with Python's.
//
// A world: {rows, columns, cells, stepCost, slip, blocked}; cells[row * columns + column] is {kind: "#" wall, "." free,
// "t" terminal; points (terminals); cost (null: the step cost) and start (free cells)}.

const MOST_ROWS = 30;
const LARGEST = 1e9;
const MOVES = ["up", "right", "down", "left"];
const STEP_ROW = [-1, 0, 1, 0], STEP_COLUMN = [0, 1, 0, -1];
const POINTS = /^[+-]?\d+(\.\d+)?$/, FREE = /^(?:\.|S|S?~(\d+(?:\.\d+)?))$/;

const wall = () => ({ kind: "#", points: 0, cost: null, start: false });
const free = () => ({ kind: ".", points: 0, cost: null, start: false });
const terminal = (points) => ({ kind: "t", points: points, cost: null, start: false });
const copyWorld = (world) => ({ ...world, cells: world.cells.map((cell) => ({ ...cell })) });

// ------------------------------------------------------------------------------------------------------------- as text
// A number as the map's grammar has it: no exponent.
function plain(number) {
  const text = String(Math.abs(number));
  const digits = text.includes("e") ? Math.abs(number).toFixed(20).replace(/\.?0+$/, "") : text;
  return (number < 0 ? "-" : "") + digits;
}

const signed = (points) => (points < 0 ? "" : "+") + plain(points);

function token(cell) {
  if (cell.kind === "#") return "#";
  if (cell.kind === "t") return signed(cell.points);
  return (cell.start ? "S" : "") + (cell.cost === null ? "" : "~" + plain(cell.cost)) || ".";
}

function writeMap(world) {
  const tokens = world.cells.map(token);
  const width = Math.max(...tokens.map((text) => text.length));
  return Array.from({ length: world.rows }, (_, row) =>
    tokens.slice(row * world.columns, (row + 1) * world.columns).map((text) => text.padStart(width)).join(" ")
  ).join("\n");
}

// {rows, columns, cells}, or {error} that says where, what was found and what to do.
function readMap(text) {
  const lines = text.split(/\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/).map((line) => line.trim()).filter((line) => line !== "");
  const grid = lines.map((line) => line.split(/\s+/));
  if (!grid.length) return { error: "The text is empty: write one token a cell, separated by spaces." };
  for (let row = 0; row < grid.length; row++) {
    if (grid[row].length !== grid[0].length) {
      return { error: `Row ${row + 1} has ${grid[row].length} tokens, row 1 has ${grid[0].length}: make the rows equally long.` };
    }
  }
  if (grid.length > MOST_ROWS || grid[0].length > MOST_ROWS) {
    return { error: `The map is ${grid.length} x ${grid[0].length}; this page edits maps up to ${MOST_ROWS} x ${MOST_ROWS}.` };
  }
  const cells = [];
  for (let row = 0; row < grid.length; row++) {
    for (let column = 0; column < grid[0].length; column++) {
      const found = grid[row][column], match = FREE.exec(found);
      const number = POINTS.test(found) ? Number(found) : match && match[1] !== undefined ? Number(match[1]) : 0;
      if (Math.abs(number) > LARGEST) {
        return { error: `Row ${row + 1}, column ${column + 1}: ${found} is beyond ${LARGEST}, the most this page takes.` };
      }
      if (POINTS.test(found)) cells.push(terminal(number));
      else if (match) cells.push({ ...free(), cost: match[1] === undefined ? null : number, start: found[0] === "S" });
      else if (found === "#") cells.push(wall());
      else {
        return { error: `Row ${row + 1}, column ${column + 1}: found '${found.slice(0, 20)}'; ` +
          "expected '#', '.', 'S', a cost such as ~3 or S~3, or points such as +5." };
      }
    }
  }
  return { rows: grid.length, columns: grid[0].length, cells: cells };
}

// ---------------------------------------------------------------------------------------------------- as arrays (an MDP)
// Successor lists: move a in state s leads to next[(4 s + a) width + k] with probability chance[...]; reward[4 s + a] is
// expected; states are the cells that are no wall, row by row.
function compile(world) {
  const { rows, columns, cells, slip } = world;
  const stateAt = new Int32Array(rows * columns).fill(-1), cellOf = [];
  cells.forEach((cell, at) => { if (cell.kind !== "#") { stateAt[at] = cellOf.length; cellOf.push(at); } });
  const states = cellOf.length, width = slip > 0 ? 3 : 1;
  const next = new Int32Array(states * 4 * width), chance = new Float64Array(states * 4 * width);
  const reward = new Float64Array(states * 4), available = new Uint8Array(states * 4), ends = new Uint8Array(states);
  const around = new Int32Array(4);
  for (let s = 0; s < states; s++) {
    const at = cellOf[s], cell = cells[at], row = Math.floor(at / columns), column = at % columns;
    if (cell.kind === "t") { ends[s] = 1; continue; }
    for (let a = 0; a < 4; a++) {
      const r = row + STEP_ROW[a], c = column + STEP_COLUMN[a];
      around[a] = r >= 0 && r < rows && c >= 0 && c < columns ? stateAt[r * columns + c] : -1;
    }
    const walledIn = around.every((there) => there < 0);
    const cost = cell.cost === null ? world.stepCost : cell.cost;
    for (let a = 0; a < 4; a++) {
      if (world.blocked === "mask" && around[a] < 0 && !walledIn) continue;
      available[4 * s + a] = 1;
      const aims = width === 1 ? [a] : [a, (a + 3) % 4, (a + 1) % 4];
      let points = 0;
      aims.forEach((aim, k) => {
        const there = around[aim] < 0 ? s : around[aim], probability = k === 0 ? 1 - slip : slip / 2;
        next[(4 * s + a) * width + k] = there;
        chance[(4 * s + a) * width + k] = probability;
        points += probability * (cells[cellOf[there]].kind === "t" ? cells[cellOf[there]].points : 0);
      });
      reward[4 * s + a] = points - cost;
    }
  }
  const named = cellOf.map((_, s) => s).filter((s) => cells[cellOf[s]].start);
  const starts = named.length ? named : cellOf.map((_, s) => s).filter((s) => !ends[s]);
  return { states, width, next, chance, reward, available, ends, cellOf, stateAt, starts, slip };
}

// Does move i (4 s + a) lead with positive probability into the marked states?
function mayEnter(mdp, i, marked) {
  for (let k = i * mdp.width; k < (i + 1) * mdp.width; k++) if (mdp.chance[k] > 0 && marked[mdp.next[k]]) return true;
  return false;
}

// States from which some policy ends with probability 1, and the moves that never leave them (bellman._certain_end).
function certainEnd(mdp) {
  let certain = new Uint8Array(mdp.states).fill(1);
  for (;;) {
    const lost = certain.map((yes) => 1 - yes);
    const safe = mdp.available.map((yes, i) => (yes && !mayEnter(mdp, i, lost) ? 1 : 0));
    const reached = mdp.ends.slice();
    for (let wider = true; wider; ) {
      wider = false;
      for (let i = 0; i < safe.length; i++) {
        const s = i >> 2;
        if (!reached[s] && safe[i] && mayEnter(mdp, i, reached)) { reached[s] = 1; wider = true; }
      }
    }
    if (reached.every((yes, s) => yes === certain[s])) {
      return { certain, safe: safe.map((yes, i) => (yes && certain[i >> 2] ? 1 : 0)) };
    }
    certain = reached;
  }
}

// States from which some policy ends surely within a bounded number of moves (bellman._bounded_end).
function boundedEnd(mdp) {
  const ended = mdp.ends.slice();
  for (let wider = true; wider; ) {
    wider = false;
    const open = ended.map((yes) => 1 - yes);
    for (let i = 0; i < mdp.available.length; i++) {
      const s = i >> 2;
      if (!ended[s] && mdp.available[i] && !mayEnter(mdp, i, open)) { ended[s] = 1; wider = true; }
    }
  }
  return ended;
}

// Exact values under discount 1 of the policy that is uniform over the safe moves: V = r + P V, by elimination inside a
// band, for moves join states at most one row apart. I - P is a diagonally dominant M-matrix: no pivots are needed.
function uniformValues(mdp, certain, safe) {
  const values = new Float64Array(mdp.states).fill(-Infinity), live = [], place = new Int32Array(mdp.states).fill(-1);
  for (let s = 0; s < mdp.states; s++) {
    if (mdp.ends[s]) values[s] = 0;
    else if (certain[s]) { place[s] = live.length; live.push(s); }
  }
  const rows = live.map((s) => {
    const row = new Map([[place[s], 1]]);
    const moves = [0, 1, 2, 3].filter((a) => safe[4 * s + a]);
    let gain = 0;
    for (const a of moves) {
      gain += mdp.reward[4 * s + a] / moves.length;
      for (let k = (4 * s + a) * mdp.width; k < (4 * s + a + 1) * mdp.width; k++) {
        const there = place[mdp.next[k]];
        if (there >= 0) row.set(there, (row.get(there) || 0) - mdp.chance[k] / moves.length);
      }
    }
    return { row, gain };
  });
  let band = 0;
  rows.forEach(({ row }, i) => row.forEach((_, j) => { band = Math.max(band, Math.abs(i - j)); }));
  const n = live.length, span = 2 * band + 1, matrix = new Float64Array(n * span), right = new Float64Array(n);
  rows.forEach(({ row, gain }, i) => { right[i] = gain; row.forEach((x, j) => { matrix[i * span + j - i + band] = x; }); });
  for (let i = 0; i < n; i++) {
    for (let j = i + 1; j <= Math.min(i + band, n - 1); j++) {
      const factor = matrix[j * span + i - j + band] / matrix[i * span + band];
      if (factor === 0) continue;
      for (let k = i; k <= Math.min(i + band, n - 1); k++) {
        matrix[j * span + k - j + band] -= factor * matrix[i * span + k - i + band];
      }
      right[j] -= factor * right[i];
    }
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let k = i + 1; k <= Math.min(i + band, n - 1); k++) right[i] -= matrix[i * span + k - i + band] * right[k];
    right[i] /= matrix[i * span + band];
    values[live[i]] = right[i];
  }
  return values;
}

function startValues(mdp, discount) {
  if (discount < 1) return new Float64Array(mdp.states);
  const { certain, safe } = certainEnd(mdp), bounded = boundedEnd(mdp);
  if (certain.some((yes, s) => yes && !bounded[s])) return uniformValues(mdp, certain, safe);
  return Float64Array.from(mdp.ends, (yes) => (yes ? 0 : -Infinity));
}

// Q(s, a) = r(s, a) + discount sum_s' P(s' | s, a) V(s'); -Infinity for moves that do not exist or may be lost.
function actionValue(mdp, values, discount, i) {
  if (!mdp.available[i]) return -Infinity;
  let sum = 0;
  for (let k = i * mdp.width; k < (i + 1) * mdp.width; k++) {
    const chance = mdp.chance[k], value = values[mdp.next[k]];
    if (chance === 0) continue;
    if (value === -Infinity) { if (discount > 0) return -Infinity; } else sum += chance * value;
  }
  return mdp.reward[i] + discount * sum;
}

// V*(s) = max_a Q(s, a), sweep after sweep until no value changes by more than 8 rounding units of the largest.
function valueIteration(mdp, discount, mostSweeps = 1000000) {
  const most = discount === 1 && mdp.slip === 0 ? Math.min(mostSweeps, mdp.states + 1) : mostSweeps;
  let values = startValues(mdp, discount), before = new Float64Array(mdp.states);
  for (let sweep = 1; sweep <= most; sweep++) {
    [before, values] = [values, before];
    let change = 0, size = 1;
    for (let s = 0; s < mdp.states; s++) {
      let best = 0;
      if (!mdp.ends[s]) {
        best = -Infinity;
        for (let i = 4 * s; i < 4 * s + 4; i++) {
          const q = actionValue(mdp, before, discount, i);
          if (q > best) best = q;
        }
      }
      values[s] = best;
      if (best !== before[s]) change = Math.max(change, Math.abs(best - before[s]));
      if (best !== -Infinity) size = Math.max(size, Math.abs(best));
    }
    if (change <= 8 * Number.EPSILON * size) return { values, sweeps: sweep, converged: true };
  }
  return { values, sweeps: most, converged: false };
}

// The best moves of a state: those within 1e-6 max(1, |best|) of the best. None where all are -Infinity.
function bestMoves(mdp, values, discount, s) {
  if (mdp.ends[s]) return [];
  const q = [0, 1, 2, 3].map((a) => actionValue(mdp, values, discount, 4 * s + a)), best = Math.max(...q);
  return best === -Infinity ? [] : [0, 1, 2, 3].filter((a) => q[a] >= best - 1e-6 * Math.max(1, Math.abs(best)));
}
