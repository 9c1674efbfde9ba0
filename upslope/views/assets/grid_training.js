// The recorded training: its map over time, how far it stands from the exact answers, and one move at a time.

const number = (value) => (typeof value === "string" ? { inf: Infinity, "-inf": -Infinity, nan: NaN }[value] : value);
const VIEWS = {
  learned: "learned values V", exact: "exact values of its policy, V^π", error: "error of the learned values, V − V^π",
  lost: "what the policy gives away, V* − V^π", visits: "visits over the whole run",
};
const clock = (seconds) => (seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`);

// Curves over the moves made. lines: [{name, color, points: [[x, y]], dashed}]; returns show(x), which moves the cursor,
// and calls pick(x) where one points at it. A logarithmic axis leaves out what is not above 0.
function curves(host, title, note, lines, { log = false, share = false, pick }) {
  const W = 440, H = 200, left = 54, right = 12, top = 12, bottom = 28;
  const drawn = lines.map((line) => ({ ...line, points: line.points.filter(([, y]) => Number.isFinite(y) && (!log || y > 0)) }));
  const xs = lines.flatMap((line) => line.points.map(([x]) => x)), ys = drawn.flatMap((line) => line.points.map(([, y]) => (log ? Math.log10(y) : y)));
  let low = share ? 0 : Math.min(...ys), high = share ? 1 : Math.max(...ys);
  if (!ys.length) { low = 0; high = 1; }
  if (log) { low = Math.floor(low - 1e-9); high = Math.max(Math.ceil(high), low + 1); }
  else { const pad = (high - low || 1) * 0.06; low -= share ? 0 : pad; high += pad; }
  const first = Math.min(...xs), span = Math.max(...xs) - first || 1;
  const px = (x) => left + (x - first) / span * (W - left - right), py = (y) => H - bottom - (y - low) / (high - low) * (H - top - bottom);
  const svg = shape("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
  const text = (x, y, anchor, words) => { const made = shape("text", { x, y, "text-anchor": anchor }); made.textContent = words; return made; };
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = log ? Math.max(1, Math.ceil((high - low) / 5)) : [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough * 0.99);
  for (let y = Math.ceil(low / step - 1e-9) * step; y <= high + 1e-9; y += step) {
    svg.append(shape("line", { class: "grid", x1: left, x2: W - right, y1: py(y), y2: py(y) }));
    svg.append(text(left - 7, py(y) + 4, "end", log ? String(Number((10 ** y).toPrecision(1))) : fixed(y, step >= 1 ? 0 : Math.ceil(-Math.log10(step) - 1e-9))));
  }
  const stride = [1, 2, 5, 10].map((k) => k * 10 ** Math.floor(Math.log10(span / 4))).find((k) => k >= span / 4 * 0.99);
  for (let x = Math.ceil(first / stride) * stride; x <= first + span * 1.0001; x += stride) svg.append(text(Math.min(px(x), W - 22), H - 8, "middle", x.toLocaleString("en")));
  for (const line of drawn) {
    if (!line.points.length) continue;
    svg.append(shape("path", { class: `line ${line.color}${line.dashed ? " dashed" : ""}`, d: "M" + line.points.map(([x, y]) => `${px(x).toFixed(1)} ${py(log ? Math.log10(y) : y).toFixed(1)}`).join("L") }));
  }
  const cursor = shape("line", { class: "cursor", y1: top, y2: H - bottom }), dots = drawn.map((line) => shape("circle", { class: `dot ${line.color}`, r: 3.5 }));
  svg.append(cursor, ...dots);
  const readout = element("div", { class: "readout" }), caption = element("figcaption", {}, element("b", {}, title), " ", element("span", {}, note));
  const point = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = svg.getBoundingClientRect();
    pick(first + ((event.clientX - box.left) / box.width * W - left) / (W - left - right) * span);
  };
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointermove", point);
  host.append(element("figure", { class: "chart" }, caption, svg, readout));
  return (x) => {
    cursor.setAttribute("x1", px(x)); cursor.setAttribute("x2", px(x));
    readout.replaceChildren(...lines.map((line, k) => {
      const found = line.points.find(([at]) => at === x), y = found ? found[1] : NaN, there = Number.isFinite(y) && (!log || y > 0) && !line.dashed;
      dots[k].setAttribute("visibility", there ? "visible" : "hidden");
      if (there) { dots[k].setAttribute("cx", px(x)); dots[k].setAttribute("cy", py(log ? Math.log10(y) : y)); }
      return element("span", { class: `k ${line.color}` }, `${line.name} ${share ? Math.round(100 * y) + " %" : told(y)}`);
    }));
  };
}

function startTraining() {
  const map = createMap($("learned-map")), world = recordedWorld(), { columns } = world;
  const cellOf = world.cells.map((_, at) => at).filter((at) => world.cells[at].kind !== "#"), stateAt = new Map(cellOf.map((at, s) => [at, s]));
  const place = (s) => `row ${Math.floor(cellOf[s] / columns) + 1}, column ${cellOf[s] % columns + 1}`;
  const ends = (s) => world.cells[cellOf[s]].kind === "t";
  let run = null, at = 0, step = 0, playing = 0, charts = [], inspected = cellOf.find((i) => world.cells[i].kind === ".");
  const snapshot = () => run.snapshots[at];
  const row = () => run.curve[snapshot().at];
  const FACTS = ["iteration", "moves", "best", "earned", "lost", "share", "rmse", "worst"];
  const fact = (line, name) => number(line[FACTS.indexOf(name)]);

  // ----------------------------------------------------------------------------------------------------------- the map
  function tables() {
    const { values, exact } = snapshot(), best = data.best[run.best].map(number), real = exact.map(number), mine = values && values.map(number);
    const gap = (a, b) => a.map((x, s) => (x === b[s] ? 0 : x - b[s]));
    return {
      learned: mine, exact: real, error: mine && gap(mine, real), lost: gap(best, real), visits: run.visits, best,
    };
  }

  function draw() {
    if (!run.snapshots[at].values && ["learned", "error"].includes($("view").value)) $("view").value = "exact";
    for (const option of $("view").options) option.disabled = !snapshot().values && ["learned", "error"].includes(option.value);
    const view = $("view").value, all = tables(), table = all[view], isValue = view === "learned" || view === "exact";
    const points = world.cells.filter((cell) => cell.kind === "t").map((cell) => cell.points);
    const scale = largest(all.best.concat(points)), top = isValue ? scale : view === "visits" ? largest(table) : scale / 4;
    const numbers = table.filter((_, s) => !ends(s));
    map.draw({
      rows: world.rows, columns, top, decimals: isValue ? decimalsFor(numbers) : view === "visits" ? 0 : Math.max(...numbers.filter(Number.isFinite).map(Math.abs), 0) < 10 ? 2 : 1,
      cells: world.cells.map((cell, i) => {
        const s = stateAt.get(i), over = cell.kind === "t";
        return {
          ...marks(cell), value: s === undefined ? NaN : over && !isValue ? 0 : over ? cell.points : table[s],
          never: s !== undefined && !over && !Number.isFinite(table[s]) && !Number.isNaN(table[s]),
          text: over ? fixed(cell.points, Number.isInteger(cell.points) ? 0 : 2, true) : s !== undefined && view === "visits" && table[s] >= 10000 ? `${Math.round(table[s] / 1000)}k` : undefined,
          arrows: s === undefined || over || view === "visits" ? null : snapshot().policy.slice(4 * s, 4 * s + 4),
        };
      }),
    });
    const saturates = isValue ? "colours as on the exact map" : view === "visits" ? "" : "beyond the ends colours stay";
    drawLegend($("learned-legend"), top, view === "visits" ? "visits" : "points", saturates);
    drawWalk();
    inspect();
  }

  // The exact numbers of the cell under the pointer, or of the one that the arrow keys chose.
  function inspect() {
    const s = stateAt.get(inspected), line = $("learned-cell");
    if (s === undefined) { line.textContent = `Row ${Math.floor(inspected / columns) + 1}, column ${inspected % columns + 1}: a wall.`; return; }
    const where = place(s)[0].toUpperCase() + place(s).slice(1) + ": ";
    if (ends(s)) { line.textContent = where + `an end worth ${signed(world.cells[inspected].points).replace("-", "−")}.`; return; }
    const { learned, exact, best } = tables(), policy = snapshot().policy.slice(4 * s, 4 * s + 4), most = Math.max(...policy);
    line.replaceChildren(where, element("b", {}, learned ? `V = ${told(learned[s])}` : "no V"), element("span", {}, `V^π = ${told(exact[s])}`), element("span", {}, `V* = ${told(best[s])}`),
      ...policy.map((chance, a) => element("span", { class: chance === most ? "q is-best" : "q" }, `${ARROWS[a]} ${(100 * chance).toFixed(chance > 0.0995 || chance === 0 ? 0 : 1)} %`)));
  }

  function drawWalk() {
    const { walk } = snapshot(), parts = [];
    if (walk.length) {
      const here = walk[step], path = walk.slice(0, step + 1).map((move) => map.middle(cellOf[move[0]]).join(" "));
      const [x, y] = map.middle(cellOf[here[0]]), a = here[1], stays = here[0] === here[3], reach = stays ? 44 : 100;
      const tip = [x + STEP_COLUMN[a] * reach, y + STEP_ROW[a] * reach], [tx, ty] = map.middle(cellOf[here[3]]);
      if (path.length > 1) parts.push(shape("path", { class: "trace", d: "M" + path.join("L") }));
      parts.push(shape("rect", { class: "here-under", x: x - 46, y: y - 46, width: 92, height: 92 }), shape("rect", { class: "here", x: x - 46, y: y - 46, width: 92, height: 92 }));
      const start = [x + STEP_COLUMN[a] * 34, y + STEP_ROW[a] * 34];
      const slid = !stays && (tx !== tip[0] || ty !== tip[1]);   // the world slipped: aimed one way, went another
      const goal = slid ? [tx, ty] : stays ? tip : [x + STEP_COLUMN[a] * 66, y + STEP_ROW[a] * 66];
      const from = slid ? [x + (tx - x) * 0.34, y + (ty - y) * 0.34] : start, to = slid ? [x + (tx - x) * 0.66, y + (ty - y) * 0.66] : goal;
      const along = [Math.sign(to[0] - from[0]), Math.sign(to[1] - from[1])], aside = [-along[1], along[0]];
      const corner = (f, w) => `${to[0] + along[0] * f + aside[0] * w} ${to[1] + along[1] * f + aside[1] * w}`;
      const d = `M${from[0]} ${from[1]}L${to[0]} ${to[1]}M${corner(0, 10)}L${corner(14, 0)}L${corner(0, -10)}Z`;
      parts.push(shape("path", { class: "move-under", d }), shape("path", { class: "move", d }));
    }
    map.overlay.replaceChildren(...parts);
  }

  // ---------------------------------------------------------------------------------------------------- the microscope
  // A recorded move: [state, action, reward, next, value, outcome, gain, ratio, clipped].
  function read(move) {
    const [state, action, reward, next, value, outcome, gain, ratio, clipped] = move.map((part) => (typeof part === "boolean" ? part : number(part)));
    return { state, action, reward, next, value, outcome, gain, ratio, clipped };
  }

  function words(move) {
    const said = [], near = (a, b) => Math.abs(a - b) <= 1e-4 * Math.max(1, Math.abs(a), Math.abs(b));
    const from = `From ${place(move.state)} it moved ${MOVES[move.action]}`;
    const aimed = cellOf[move.state] + STEP_ROW[move.action] * columns + STEP_COLUMN[move.action], slid = cellOf[move.next] !== aimed && move.next !== move.state;
    const to = move.next === move.state ? " and stayed" : slid ? ` and slipped to ${place(move.next)}` : ` to ${place(move.next)}`;
    said.push(`${from}${to}${ends(move.next) ? `, an end worth ${fixed(world.cells[cellOf[move.next]].points, 2, true).replace(/\.?0+$/, "")}` : ""}: reward ${fixed(move.reward, 2, true)}.`);
    if (move.value === null) said.push(`This learner has no critic, so it predicted nothing; it came to ${fixed(move.outcome, 2)}.`);
    if (move.gain === null) {
      if (move.value !== null) {
        const way = near(move.outcome, move.value) ? "just as predicted" : move.outcome > move.value ? "more than predicted, so the value goes up" : "less than predicted, so the value goes down";
        said.push(`Predicted ${fixed(move.value, 2)}, it came to ${fixed(move.outcome, 2)}: ${way}. There is no gain, for no policy is pushed here.`);
      }
    } else {
      const small = Math.abs(move.gain) < 0.005, push = small ? "this move is hardly pushed" : move.gain > 0 ? "this move becomes likelier" : "this move becomes less likely";
      if (move.value === null) said.push(`Gain ${fixed(move.gain, 2, true)}, so ${push}.`);
      else {
        const difference = move.outcome - move.value, agree = snapshot().values && Math.sign(difference) === Math.sign(move.gain) && !small, equal = Math.abs(difference - move.gain) < 0.005;
        const value = move.gain > 0 ? "the value goes up" : "the value goes down";
        const stand = snapshot().values ? "" : " (the exact value under its policy, for it has no critic)";
        said.push(`Predicted ${fixed(move.value, 2)}${stand}, it came to ${fixed(move.outcome, 2)}${equal ? "" : `, ${fixed(Math.abs(difference), 2)} ${difference < 0 ? "less" : "more"}`}: ` +
          `gain ${fixed(move.gain, 2, true)}${equal ? "" : " as the update used it (predictions on the way enter it, or the batch scales it)"}, so ${agree ? value + " and " : ""}${push}.`);
      }
      said.push(...ratioWords(move));
    }
    return said;
  }

  function ratioWords({ gain, ratio, clipped }) {
    if (ratio === null) return ["No ratio is recorded here: no update of the policy followed, or this learner has none."];
    if (fact(row(), "iteration") === 0 && Math.abs(ratio - 1) < 1e-5) return ["Ratio 1: no update has been made yet."];
    const shown = `Ratio ${fixed(ratio, 2)} after the update`, out = [];
    const [low, high] = run.clip === null ? [-Infinity, Infinity] : [1 - run.clip, 1 + run.clip];
    const bounds = run.clip === null ? "" : `${plain(Number(low.toFixed(4)))} to ${plain(Number(high.toFixed(4)))}`;
    if (run.clip === null || clipped === null) out.push(`${shown}: ratio times gain, with no clip.`);
    else if (clipped) out.push(`${shown}, ${ratio > 1 ? `above ${bounds.split(" to ")[1]}` : `below ${bounds.split(" to ")[0]}`}: clipped, no further push.`);
    else if (ratio >= low && ratio <= high) out.push(`${shown}, inside ${bounds}: not clipped.`);
    else out.push(`${shown}, outside ${bounds}, but on the side where the clip does not bind: the push goes on.`);
    if (gain && Math.abs(ratio - 1) > 0.005 && (gain > 0) !== (ratio > 1)) {
      out.push("It moved against its own gain: the other moves of the batch push the same network.");
    }
    return out;
  }

  const clipSaid = (move) => (move.clipped === null || run.clip === null ? "–" : move.clipped ? "clipped" : "no");

  function showMove() {
    const { walk } = snapshot();
    step = clamp(step, 0, Math.max(walk.length - 1, 0));
    $("which").textContent = walk.length ? `move ${step + 1} of ${walk.length}` : "no walk";
    for (const button of document.querySelectorAll("[data-move]")) {
      button.disabled = !walk.length || (["first", "back"].includes(button.dataset.move) ? step === 0 : step === walk.length - 1);
    }
    document.querySelectorAll("#walk tbody tr").forEach((line, i) => { line.classList.toggle("is-now", i === step); line.setAttribute("aria-current", String(i === step)); });
    drawWalk();
    if (!walk.length) { $("words").textContent = "No walk was recorded at this point."; $("figures").replaceChildren(); return; }
    const move = read(walk[step]);
    $("words").textContent = words(move).join(" ");
    const clipWord = clipSaid(move);
    const figures = [["predicted", fixed(move.value, 3)], ["return", fixed(move.outcome, 3)], ["gain", fixed(move.gain, 3, true)], ["ratio", fixed(move.ratio, 3)], ["clip", clipWord]];
    $("figures").replaceChildren(...figures.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", { "data-figure": name }, value))));
  }

  function listWalk() {
    const { walk, walked } = snapshot();
    const head = element("tr", {}, ...["", "from", "move", "reward", "predicted", "return", "gain", "ratio", "clip"].map((name, k) => element("th", { scope: "col", class: k > 2 && k < 8 ? "n" : false }, name)));
    const body = element("tbody", {}, ...walk.map((line, i) => {
      const move = read(line), cell = (value, plus) => element("td", { class: "n" }, value === null ? "–" : fixed(value, 3, plus));
      const made = element("tr", {}, element("td", { class: "n" }, String(i + 1)), element("td", {}, place(move.state)), element("td", {}, `${ARROWS[move.action]} ${MOVES[move.action]}`),
        cell(move.reward, true), cell(move.value), cell(move.outcome), cell(move.gain, true), cell(move.ratio), element("td", {}, clipSaid(move)));
      made.addEventListener("click", () => { step = i; showMove(); });
      return made;
    }));
    $("walk").replaceChildren(element("thead", {}, head), body);
    const gaps = [];
    if (walked > walk.length) gaps.push(`The walk has ${walked} moves; the first ${walk.length} are here.`);
    if (walk.length && walk.every((move) => move[4] === null)) gaps.push("Nothing is predicted: this learner has no critic.");
    if (walk.length && walk.every((move) => move[7] === null)) gaps.push("No ratios: no update of a policy followed this walk, or this learner has none.");
    $("walk-note").textContent = gaps.concat("Predicted: the value at the cell that the move leaves, when the walk was made. Return: the discounted reward-to-go from that move on. Gain: the advantage that the update used, at the same cell. Ratio: probability of the move after the update over before.").join(" ");
  }

  // -------------------------------------------------------------------------------------------------------- time, runs
  function showTime(index) {
    at = clamp(index, 0, run.snapshots.length - 1);
    const line = row(), iteration = fact(line, "iteration");
    $("time").value = at;
    $("time").setAttribute("aria-valuetext", `after ${iteration} updates`);
    $("when").textContent = `${iteration.toLocaleString("en")} update${iteration === 1 ? "" : "s"}, ${fact(line, "moves").toLocaleString("en")} moves`;
    const cards = [
      ["J*", fact(line, "best"), "the best mean return from the starts"], ["J(π)", fact(line, "earned"), "what the policy earns"],
      ["J* − J(π)", fact(line, "best") - fact(line, "earned"), "given away, mean over the starts"], ["max V* − V^π", fact(line, "lost"), "given away in the worst cell"],
      ["critic RMSE", fact(line, "rmse"), snapshot().values ? `learned values against V^π; worst ${told(fact(line, "worst"))}` : "no critic: nothing is predicted"],
      ["starts solved", fact(line, "share"), "where the likeliest moves are optimal"],
    ];
    $("numbers").replaceChildren(...cards.map(([name, value, note]) => element("div", { class: "card" }, element("span", {}, name),
      element("b", { "data-number": name }, name === "starts solved" ? `${(100 * value).toFixed(0)} %` : told(value)), element("span", {}, note))));
    charts.forEach((show) => show(fact(line, "moves")));
    $("no-critic").hidden = Boolean(snapshot().values);
    $("no-critic").textContent = snapshot().values ? "" : "This learner has no critic: it predicts no values, so the map shows the exact values of its policy.";
    step = 0;
    draw();
    listWalk();
    showMove();
  }

  function showRun(index) {
    run = data.trainings[index];
    const kept = run.snapshots.length, made = run.curve.length;
    $("time").max = kept - 1;
    $("training-note").textContent = `${made} snapshots of ${run.algorithm}, seed ${run.seed}, discount ${run.discount}, ${clock(run.seconds)} of training.` +
      (kept < made ? ` To keep this file small ${kept} of them have their tables here; the curves have all.` : "") + " Arrows grow with their probability. Everything here belongs to the recorded map.";
    $("settings").replaceChildren(element("tbody", {}, ...run.settings.map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)))));
    $("settings-box").hidden = !run.settings.length;
    $("charts").replaceChildren();
    const points = (name) => run.curve.map((line) => [fact(line, "moves"), fact(line, name)]);
    const gap = run.curve.map((line) => [fact(line, "moves"), fact(line, "best") - fact(line, "earned")]);
    const pick = (x) => {
      const near = run.snapshots.map((shot) => Math.abs(fact(run.curve[shot.at], "moves") - x));
      showTime(near.indexOf(Math.min(...near)));
    };
    charts = [
      curves($("charts"), "Return", "points, against moves made; J* dashed", [{ name: "J(π)", color: "c0", points: points("earned") }, { name: "J*", color: "c2", points: points("best"), dashed: true }], { pick }),
      curves($("charts"), "Distance from exact", "points, logarithmic", [{ name: "J* − J(π)", color: "c0", points: gap }].concat(
        run.curve.some((line) => line[6] !== null) ? [{ name: "critic RMSE", color: "c1", points: points("rmse") }] : []), { log: true, pick }),
      curves($("charts"), "Starts solved", "share of starts", [{ name: "optimal", color: "c2", points: points("share") }], { share: true, pick }),
    ];
    showTime(kept - 1);
  }

  function play(on) {
    clearInterval(playing);
    playing = 0;
    if (on) {
      if (at === run.snapshots.length - 1) showTime(0);
      playing = setInterval(() => { if (at >= run.snapshots.length - 1) play(false); else showTime(at + 1); }, 160);
    }
    $("play").textContent = playing ? "❚❚ Pause" : "▶ Play";
    $("play").setAttribute("aria-pressed", String(Boolean(playing)));
  }

  const goTo = { first: () => 0, back: () => step - 1, next: () => step + 1, last: () => snapshot().walk.length - 1 };
  const go = (where) => { play(false); step = goTo[where](); showMove(); };
  document.querySelectorAll("[data-move]").forEach((button) => button.addEventListener("click", () => go(button.dataset.move)));
  $("microscope").addEventListener("keydown", (event) => {
    const where = { ArrowLeft: "back", ArrowRight: "next", Home: "first", End: "last" }[event.key];
    if (where) { event.preventDefault(); go(where); }
  });
  for (const kind of ["pointermove", "pointerdown"]) {
    $("learned-map").addEventListener(kind, (event) => { const i = map.cellAt(event); if (i >= 0 && i !== inspected) { inspected = i; inspect(); } });
  }
  $("learned-map").addEventListener("keydown", (event) => {
    const move = ["ArrowUp", "ArrowRight", "ArrowDown", "ArrowLeft"].indexOf(event.key);
    if (move < 0) return;
    event.preventDefault();
    inspected = clamp(Math.floor(inspected / columns) + STEP_ROW[move], 0, world.rows - 1) * columns + clamp(inspected % columns + STEP_COLUMN[move], 0, columns - 1);
    inspect();
  });
  document.addEventListener("grid-edited", () => { $("edited-note").hidden = !hooks.edited; });
  $("run").append(...data.trainings.map((training, k) => element("option", { value: k }, `${training.algorithm}, seed ${training.seed}`)));
  $("view").append(...Object.entries(VIEWS).map(([name, title]) => element("option", { value: name }, title)));
  $("run").addEventListener("change", () => { play(false); showRun(Number($("run").value)); });
  $("view").addEventListener("change", draw);
  $("time").addEventListener("input", () => { play(false); showTime(Number($("time").value)); });
  $("play").addEventListener("click", () => play(!playing));
  darkScheme.addEventListener("change", draw);
  for (const id of ["training", "standing", "walk-box"]) $(id).hidden = false;
  showRun(0);
  hooks.training = () => ({ run: data.trainings.indexOf(run), at, step, view: $("view").value, playing: Boolean(playing), shown: map.shown() });
}

document.documentElement.classList.add("js");
if (data.editable) startEditor(); else {
  $("editor").replaceChildren(element("h2", {}, "Exact: change the map"), element("p", { class: "missing" },
    `This map is ${data.world.rows} x ${data.world.columns}. The editor stops at ${MOST_ROWS} x ${MOST_ROWS}, where a change can still be solved while you look.`));
}
if (data.trainings.length) startTraining(); else document.querySelector(".board").classList.add("alone");
if (!data.editable) document.querySelector(".board").classList.add("alone");
