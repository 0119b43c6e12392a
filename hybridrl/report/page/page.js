"use strict";
(() => {
  const root = document.documentElement;
  root.dataset.colour = "a";
  document.getElementById("theme").addEventListener("click", () => {
    const dark = getComputedStyle(root).colorScheme === "dark";
    root.dataset.theme = dark ? "light" : "dark";
  });
  const numbers = (text) => (text || "").split(",").filter(Boolean).map(Number);
  const told = (svg, i, steps) => {
    if (svg.dataset.rows) {
      const rows = svg.dataset.rows.split(";").map((row) => row.split(":"));
      return rows.map(([name, values]) => `${name} ${(100 * numbers(values)[i]).toFixed(1)} %`).join("\n");
    }
    const values = numbers(svg.dataset.values);
    const more = numbers(svg.dataset.stepsMore);
    let at = -1;
    more.forEach((step, j) => { if (step <= steps[i]) at = j; });
    const held = at < 0 ? "" : `\nheld out ${numbers(svg.dataset.valuesMore)[at]} (step ${more[at]})`;
    return `${values[i]}${held}`;
  };

  const read = (svg) => {
    const steps = numbers(svg.dataset.steps);
    const first = Math.min(steps[0], ...numbers(svg.dataset.stepsMore));
    const last = steps[steps.length - 1];
    const cursor = svg.querySelector(".cursor");
    let at = steps.length - 1;
    let readout = null;
    const place = (step) => 4 + (312 * (step - first)) / ((last - first) || 1);
    const show = () => {
      if (!readout) {
        readout = document.createElement("div");
        readout.className = "readout";
        readout.setAttribute("role", "status");
        svg.parentNode.appendChild(readout);
      }
      const x = String(place(steps[at]));
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.style.visibility = "visible";
      readout.textContent = `step ${steps[at]}: ${told(svg, at, steps)}`;
    };
    const hide = () => {
      cursor.style.visibility = "hidden";
      if (readout) { readout.remove(); readout = null; }
    };
    const nearest = (step) => {
      let best = 0;
      steps.forEach((each, i) => { if (Math.abs(each - step) < Math.abs(steps[best] - step)) best = i; });
      return best;
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (320 * (event.clientX - box.left)) / box.width;
      at = nearest(first + ((x - 4) * (last - first)) / 312);
      show();
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("focus", show);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.round(steps.length / 10));
      const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - page, PageDown: at + page,
        Home: 0, End: steps.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      at = Math.max(0, Math.min(steps.length - 1, moves[event.key]));
      show();
    });
  };

  window.hybridrlReport = (part) => {
    part.querySelectorAll('input[name="colour"]').forEach((input) => {
      input.checked = input.value === root.dataset.colour;
      input.addEventListener("change", () => { root.dataset.colour = input.value; });
    });
    part.querySelectorAll("svg[data-steps]").forEach(read);
  };
  window.hybridrlReport(document);
})();
