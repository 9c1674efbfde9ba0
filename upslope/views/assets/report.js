(function () {
  "use strict";
  document.documentElement.classList.add("js");

  // Sort a table by the column whose head was clicked; cells carry their number in data-value.
  function key(row, index) {
    var cell = row.cells[index];
    return cell && cell.dataset.value !== undefined ? Number(cell.dataset.value) : null;
  }
  function order(index, sign) {
    return function (a, b) {
      var x = key(a, index), y = key(b, index);
      if (x !== null && y !== null) return sign * (x - y);
      if (x !== null || y !== null) return x === null ? 1 : -1;
      return sign * a.cells[index].textContent.localeCompare(b.cells[index].textContent);
    };
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    var heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach(function (head, index) {
      function sort() {
        var sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
        heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
        Array.from(table.tBodies).forEach(function (body) {
          Array.from(body.rows).sort(order(index, sign)).forEach(function (row) {
            row.classList.remove("first");
            body.appendChild(row);
          });
        });
      }
      head.tabIndex = 0;
      head.addEventListener("click", sort);
      head.addEventListener("keydown", function (event) {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
      });
    });
  });

  // Show the completions of one step.
  document.querySelectorAll(".picker").forEach(function (picker) {
    var select = picker.querySelector("select"), buttons = picker.querySelectorAll("button");
    var bodies = Array.from(picker.parentNode.querySelectorAll("[data-step]"));
    function show() {
      bodies.forEach(function (body) { body.hidden = body.dataset.step !== select.value; });
      buttons[0].disabled = select.selectedIndex === 0;
      buttons[1].disabled = select.selectedIndex === select.options.length - 1;
    }
    buttons.forEach(function (button, index) {
      button.addEventListener("click", function () { select.selectedIndex += index === 0 ? -1 : 1; show(); });
    });
    select.addEventListener("change", show);
    show();
  });

  // Read a chart's values under the pointer.
  document.querySelectorAll("svg[data-chart]").forEach(function (svg) {
    var chart = JSON.parse(svg.dataset.chart), cursor = svg.querySelector(".cursor");
    var readout = svg.parentNode.querySelector(".readout");
    var rest = Array.from(readout.childNodes).map(function (node) { return node.cloneNode(true); });
    var span = chart.x[1] - chart.x[0], width = chart.px[1] - chart.px[0];
    svg.addEventListener("pointermove", function (event) {
      var box = svg.getBoundingClientRect();
      var at = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      var wanted = chart.x[0] + Math.min(Math.max((at - chart.px[0]) / width, 0), 1) * span;
      var bests = chart.lines.map(function (line) {
        return line[2].reduce(function (a, b) { return Math.abs(b[0] - wanted) < Math.abs(a[0] - wanted) ? b : a; });
      });
      var nearest = bests.reduce(function (a, b) { return Math.abs(b[0] - wanted) < Math.abs(a[0] - wanted) ? b : a; })[0];
      var parts = bests.map(function (best, index) {
        var item = document.createElement("span");
        item.className = chart.lines[index][1];
        item.textContent = chart.lines[index][0] + " " + best[1] +
          (best[0] === nearest ? "" : " (step " + Math.round(best[0]) + ")");
        return item;
      });
      var step = document.createElement("span");
      step.textContent = "step " + Math.round(nearest);
      readout.replaceChildren.apply(readout, [step].concat(parts));
      var px = span ? chart.px[0] + (nearest - chart.x[0]) / span * width : (chart.px[0] + chart.px[1]) / 2;
      cursor.setAttribute("x1", px); cursor.setAttribute("x2", px); cursor.setAttribute("visibility", "visible");
    });
    svg.addEventListener("pointerleave", function () {
      cursor.setAttribute("visibility", "hidden");
      readout.replaceChildren.apply(readout, rest.map(function (node) { return node.cloneNode(true); }));
    });
  });

  // Tell a token's numbers under the pointer and on focus; arrow keys move from token to token.
  document.querySelectorAll(".tokens").forEach(function (box) {
    var readout = box.querySelector(".token-read"), rest = readout.innerHTML;
    var names = ["advantage", "entropy", "learner − sampler", "log-prob of the sampler", "critic"];
    function part(name, value) {
      var item = document.createElement("span"), label = document.createElement("i"), number = document.createElement("b");
      label.textContent = name + " ";
      number.textContent = value;
      item.append(label, number);
      return item;
    }
    function tell(token) {
      var text = document.createElement("code"), all = token.parentNode.querySelectorAll(".t");
      text.textContent = JSON.stringify(token.textContent.replace("↵\n", "\n").replace("⇥\t", "\t"));
      var parts = [text, part("token", (Array.prototype.indexOf.call(all, token) + 1) + " of " + all.length)];
      token.dataset.n.split("|").forEach(function (value, index) {
        if (value && value !== "-") parts.push(part(names[index], value));
      });
      readout.replaceChildren.apply(readout, parts);
    }
    function near(token, key) {
      var row = Array.from(token.parentNode.querySelectorAll(".t")), place = row.indexOf(token);
      if (key === "ArrowRight") return row[place + 1];
      if (key === "ArrowLeft") return row[place - 1];
      if (key === "Home") return row[0];
      if (key === "End") return row[row.length - 1];
      var texts = Array.from(token.closest(".token-step").querySelectorAll(".token-text"));
      var other = texts[texts.indexOf(token.parentNode) + (key === "ArrowDown" ? 1 : -1)];
      return other && other.querySelectorAll(".t")[Math.min(place, other.querySelectorAll(".t").length - 1)];
    }
    box.addEventListener("pointerover", function (event) {
      if (event.target.closest(".t")) tell(event.target.closest(".t"));
    });
    box.addEventListener("focusin", function (event) {
      if (event.target.matches(".t")) tell(event.target);
    });
    box.addEventListener("pointerleave", function () {
      var at = document.activeElement;
      if (at && at.matches(".t") && box.contains(at)) tell(at); else readout.innerHTML = rest;
    });
    box.addEventListener("keydown", function (event) {
      if (!event.target.matches(".t") || !/^(Arrow(Up|Down|Left|Right)|Home|End)$/.test(event.key)) return;
      event.preventDefault();
      var next = near(event.target, event.key);
      if (!next) return;
      next.parentNode.querySelectorAll(".t").forEach(function (token) { token.tabIndex = -1; });
      next.tabIndex = 0;
      next.focus();
    });
  });
})();
