/* The charts: the front, the guards along it, the search, its hypervolume and its predictions. */
"use strict";

const REACH = 30; // pixels around a point that count as on it

function legend(id, entries) {
  $(id).replaceChildren(
    ...entries.map(([shape, text]) => {
      const item = element("li");
      const svg = d3.create("svg").attr("viewBox", "-9 -7 18 14").attr("aria-hidden", "true");
      shape(svg);
      item.append(svg.node(), text);
      return item;
    }),
  );
}

const symbol = (type, style) => (svg) => svg.append("path").attr("d", d3.symbol(type, 70)()).attr("style", style);
const stroke = (style) => (svg) => svg.append("path").attr("d", "M-9,0H9").attr("style", `fill:none;${style}`);

/** Lets the marks of a Plot mark be styled and named by their data. */
function each(data, change) {
  return {
    render(index, scales, values, dimensions, context, next) {
      const group = next(index, scales, values, dimensions, context);
      for (const node of group.children) change(node, data[node.__data__]);
      return group;
    },
  };
}

function draw(figure, options, shape = 0.62) {
  const width = Math.max(figure.clientWidth, 260);
  const svg = Plot.plot({
    width,
    height: Math.round(Math.min(Math.max(width * shape, 225), 430)),
    marginLeft: 58,
    marginBottom: 42,
    marginTop: 26,
    marginRight: 18,
    inset: 8,
    style: { background: "transparent" },
    ...options,
  });
  figure.replaceChildren(svg);
  return svg;
}

/** Grid and axes; an axis is a text, or the label of a measure. */
function axes(x, y) {
  const [atX, atY] = [x, y].map((axis) => (typeof axis === "string" ? { label: axis } : { label: axisLabel(axis), tickFormat: axisTick(axis) }));
  return [
    Plot.gridX({ tickSpacing: 85, stroke: "var(--grid)", strokeOpacity: 1 }),
    Plot.gridY({ tickSpacing: 50, stroke: "var(--grid)", strokeOpacity: 1 }),
    Plot.axisX({ tickSpacing: 85, color: "currentColor", tickSize: 0, ...atX }),
    Plot.axisY({ tickSpacing: 50, color: "currentColor", tickSize: 0, ...atY }),
  ];
}

function errorBars(data, mean, error, style = {}) {
  const look = { stroke: "var(--soft)", strokeOpacity: 0.75, strokeWidth: 1.2, ...style };
  const [x, y] = [state.x, state.y];
  return [
    Plot.ruleY(data, { y: (d) => mean(d)[y], x1: (d) => mean(d)[x] - error(d)[x], x2: (d) => mean(d)[x] + error(d)[x], ...look }),
    Plot.ruleX(data, { x: (d) => mean(d)[x], y1: (d) => mean(d)[y] - error(d)[y], y2: (d) => mean(d)[y] + error(d)[y], ...look }),
  ];
}

const coordinates = (d) => [d.returns[state.x], d.returns[state.y]];
const returnsOf = (d) => d.returns;
const errorOf = (d) => d.std_error;

function ring(svg, at, kind = "ring") {
  svg?.querySelector(`.${kind}`)?.remove();
  if (!svg || !at) return;
  const node = d3.select(svg).append("circle").attr("class", kind).attr("r", 11);
  node.attr("cx", svg.plotScales.x.apply(at[0])).attr("cy", svg.plotScales.y.apply(at[1]));
}

function keepScales(svg) {
  svg.plotScales = { x: svg.scale("x"), y: svg.scale("y") };
  return svg;
}

/** Hover and click on whatever point is nearest; arrows walk along the points in order of x. */
function makeInteractive(figure, svg, points, which, at = coordinates) {
  const place = (d) => [svg.plotScales.x.apply(at(d)[0]), svg.plotScales.y.apply(at(d)[1])];
  const nearest = (event) => {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const [px, py] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    const far = points.map((d) => Math.hypot(place(d)[0] - px, place(d)[1] - py));
    const index = d3.minIndex(far);
    return far[index] < REACH ? points[index] : null;
  };
  svg.addEventListener("pointermove", (event) => {
    const point = nearest(event);
    svg.classList.toggle("is-clickable", Boolean(point));
    if (point && event.pointerType !== "touch") showTip(point, which, svg, place(point));
    else hideTip();
  });
  svg.addEventListener("pointerleave", hideTip);
  svg.addEventListener("click", (event) => {
    const point = nearest(event);
    if (point) choose(point.id ?? point.policy);
  });
  const order = d3.sort(points, (d) => d.returns[state.x]);
  for (const node of svg.querySelectorAll("[data-id]")) {
    node.addEventListener("focus", () => {
      figure.classList.toggle("has-focus", node.matches(":focus-visible"));
      choose(node.dataset.id);
      const point = points.find((d) => (d.id ?? d.policy) === node.dataset.id);
      if (node.matches(":focus-visible")) showTip(point, which, svg, place(point));
    });
    node.addEventListener("blur", () => {
      figure.classList.remove("has-focus");
      hideTip();
    });
    node.addEventListener("keydown", (event) => {
      const at = order.findIndex((d) => (d.id ?? d.policy) === node.dataset.id);
      const steps = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: order.length - 1 };
      if (event.key === "Escape") hideTip();
      if (!(event.key in steps)) return;
      event.preventDefault();
      const next = order[Math.min(Math.max(steps[event.key], 0), order.length - 1)];
      svg.querySelector(`[data-id="${CSS.escape(next.id ?? next.policy)}"]`).focus();
    });
  }
}

function pointNode(node, d) {
  const id = d.id ?? d.policy;
  node.dataset.id = id;
  node.style.fill = mix(d.weights);
  node.setAttribute("role", "button");
  node.setAttribute("tabindex", id === state.id ? 0 : -1);
  const numbers = LABELS.map((label, k) => `${label.text} ${withUnit(label, shown(label, d.returns[k], d.std_error[k]))}`);
  node.setAttribute("aria-label", [titleOf(id), ...numbers, ...(d.losses ?? [])].join(", "));
  if (d.losses?.length) {
    node.style.stroke = "var(--limit)";
    node.style.strokeWidth = 2;
  }
}

let frontSvg = null;
function drawFront() {
  const [x, y] = [state.x, state.y];
  const policies = MEMBERS.filter((d) => d.kind === "policy");
  const blends = MEMBERS.filter((d) => d.kind === "blend");
  const look = { x: (d) => d.returns[x], y: (d) => d.returns[y], stroke: "var(--card)", strokeWidth: 1.2 };
  const base = [DATA.base];
  frontSvg = keepScales(
    draw($("front-chart"), {
      marks: [
        ...axes(LABELS[x], LABELS[y]),
        M === 2 ? Plot.line(MEMBERS, { x: (d) => d.returns[x], y: (d) => d.returns[y], stroke: "var(--faint)", strokeWidth: 1.3, strokeOpacity: 0.7 }) : null,
        ...errorBars([...MEMBERS, ...base], returnsOf, errorOf),
        Plot.dot(blends, { ...look, r: 5, symbol: "diamond", ...each(blends, pointNode) }),
        Plot.dot(policies, { ...look, r: 6.5, ...each(policies, pointNode) }),
        Plot.dot(base, { x: (d) => d.returns[x], y: (d) => d.returns[y], symbol: "star", r: 6, fill: "var(--base)", stroke: "var(--card)" }),
      ],
    }, 0.36),
  );
  makeInteractive($("front-chart"), frontSvg, MEMBERS, DATA.set);
  const middle = `fill:${mix(Array(M).fill(1 / M))}`;
  legend("front-legend", [
    [symbol(d3.symbolCircle, middle), "policy"],
    ...(blends.length ? [[symbol(d3.symbolDiamond, middle), "blend of neighbours"]] : []),
    [symbol(d3.symbolStar, "fill:var(--base)"), "base model"],
    ...(ANY_IS_LOST ? [[symbol(d3.symbolCircle, `${middle};stroke:var(--limit);stroke-width:2`), "losing its subject"]] : []),
    [stroke("stroke:var(--soft);stroke-width:1.2"), "± 1 standard error"],
  ]);
  markChosen();
}

let guardSvgs = [];
const guardPlace = (k) => (d) => [d.returns[state.x], d.guards[DATA.guards[k].name].value];

/** Each guard over the objective of the x axis, with the limit below which policies are refused. */
function drawGuards() {
  guardSvgs = DATA.guards.map((guard, k) => {
    const at = guardPlace(k);
    const shown = MEMBERS.filter((d) => guard.name in d.guards);
    const base = DATA.base.guards[guard.name].value;
    const error = (d) => d.guards[guard.name].std_error;
    const limit = guard.max_drop === null ? [] : [base - guard.max_drop];
    const figure = $(`guard-${k}`);
    const svg = keepScales(
      draw(figure, {
        marks: [
          ...axes(LABELS[state.x], guard.label),
          Plot.ruleY(limit, { stroke: "var(--limit)", strokeDasharray: "5,4", strokeWidth: 1.6 }),
          Plot.ruleX([...shown, DATA.base], { x: (d) => at(d)[0], y1: (d) => at(d)[1] - error(d), y2: (d) => at(d)[1] + error(d), stroke: "var(--soft)", strokeOpacity: 0.75 }),
          Plot.dot(shown, { x: (d) => at(d)[0], y: (d) => at(d)[1], r: 6, stroke: "var(--card)", ...each(shown, pointNode) }),
          Plot.dot([DATA.base], { x: (d) => at(d)[0], y: (d) => at(d)[1], symbol: "star", r: 6, fill: "var(--base)", stroke: "var(--card)" }),
        ],
      }),
    );
    makeInteractive(figure, svg, shown, DATA.set, at);
    legend(`guard-${k}-legend`, [
      [symbol(d3.symbolStar, "fill:var(--base)"), "base model"],
      [stroke("stroke:var(--soft);stroke-width:1.2"), "± 1 standard error"],
      ...(limit.length ? [[stroke("stroke:var(--limit);stroke-width:1.6;stroke-dasharray:5,4"), "limit"]] : []),
    ]);
    return svg;
  });
  markChosen();
}

let searchSvg = null;
function drawSearch() {
  const [x, y] = [state.x, state.y];
  const shown = [...POLICIES.values()].filter((d) => d.generation < state.generation);
  const domain = (k) => d3.extent([...POLICIES.values()].flatMap((d) => [d.returns[k] - d.std_error[k], d.returns[k] + d.std_error[k]]));
  const archive = new Set(DATA.generations[state.generation].archive);
  const kept = d3.sort(shown.filter((d) => archive.has(d.policy)), (d) => d.returns[x]);
  const now = state.generation - 1;
  const moves = shown.filter((d) => d.generation === now && d.parent !== null);
  const line = ancestors(state.id).filter((d) => d.generation <= now);
  const link = {
    x1: (d) => POLICIES.get(d.parent).returns[x],
    y1: (d) => POLICIES.get(d.parent).returns[y],
    x2: (d) => d.returns[x],
    y2: (d) => d.returns[y],
  };
  searchSvg = keepScales(
    draw($("search-chart"), {
      x: { domain: domain(x), nice: true },
      y: { domain: domain(y), nice: true },
      marks: [
        ...axes(LABELS[x], LABELS[y]),
        M === 2 ? Plot.line(kept, { x: (d) => d.returns[x], y: (d) => d.returns[y], stroke: "var(--faint)", strokeWidth: 1.3 }) : null,
        ...errorBars(kept, returnsOf, errorOf, { strokeOpacity: 0.45 }),
        Plot.arrow(moves, { ...link, stroke: "var(--soft)", strokeOpacity: 0.8, strokeWidth: 1.2, headLength: 6, inset: 6 }),
        Plot.line(line, { x: (d) => d.returns[x], y: (d) => d.returns[y], stroke: "var(--ink)", strokeWidth: 2.4 }),
        Plot.dot(shown, {
          x: (d) => d.returns[x],
          y: (d) => d.returns[y],
          r: (d) => (archive.has(d.policy) ? 6 : 4),
          ...each(shown, (node, d) => {
            pointNode(node, d);
            node.style.fillOpacity = archive.has(d.policy) ? 1 : 0.4;
            node.style.stroke = "var(--card)";
          }),
        }),
        Plot.dot(shown.slice(0, 1), { x: (d) => d.returns[x], y: (d) => d.returns[y], symbol: "star", r: 6, fill: "var(--base)", stroke: "var(--card)" }),
      ],
      r: { type: "identity" },
    }),
  );
  makeInteractive($("search-chart"), searchSvg, shown, "selection");
  const middle = mix(Array(M).fill(1 / M));
  legend("search-legend", [
    [symbol(d3.symbolCircle, `fill:${middle}`), "in the archive"],
    [symbol(d3.symbolCircle, `fill:${middle};fill-opacity:.4`), "no longer, or never"],
    [stroke("stroke:var(--soft);stroke-width:1.2"), "what this generation moved"],
    [stroke("stroke:var(--ink);stroke-width:2.4"), "ancestry"],
    [symbol(d3.symbolStar, "fill:var(--base)"), "base model"],
  ]);
  const at = POLICIES.get(state.id);
  ring(searchSvg, at && at.generation <= now ? coordinates(at) : null);
}

function drawVolume() {
  const points = DATA.generations;
  const now = points[state.generation];
  const image = (d) => d.images;
  draw($("volume-chart"), {
    marginRight: 30,
    y: { nice: true },
    x: { nice: true, tickFormat: "~s" },
    marks: [
      ...axes("training images", "hypervolume [z-units]"),
      Plot.line(points, { x: image, y: "hypervolume", stroke: "var(--soft)", strokeWidth: 1.8 }),
      Plot.dot(points, { x: image, y: "hypervolume", r: 3.5, fill: (d) => (d.stage === "evolutionary" ? "var(--o0)" : "var(--soft)"), stroke: "var(--card)" }),
      Plot.dot(DATA.report_volumes, { x: image, y: "hypervolume", r: 5.5, symbol: "diamond", fill: "var(--o1)", stroke: "var(--card)" }),
      Plot.ruleX([now], { x: image, stroke: "var(--ink)", strokeDasharray: "3,3", strokeOpacity: 0.6 }),
      Plot.dot([now], { x: image, y: "hypervolume", r: 7, stroke: "var(--ink)", strokeWidth: 2 }),
      Plot.tip(points, Plot.pointer({ x: image, y: "hypervolume", title: (d) => `${stageOf(d)}\n${d3.format(",")(d.images)} images\nhypervolume ${d.hypervolume.toFixed(4)}\narchive of ${d.archive.length}`, fill: "var(--card)", stroke: "var(--line)", textPadding: 9 })),
    ],
  });
  legend("volume-legend", [
    [symbol(d3.symbolCircle, "fill:var(--soft)"), "selection set: base model, warm-up"],
    [symbol(d3.symbolCircle, "fill:var(--o0)"), "selection set: evolutionary"],
    ...(DATA.report_volumes.length ? [[symbol(d3.symbolDiamond, "fill:var(--o1)"), "report set"]] : []),
  ]);
}

function drawPredictions() {
  const tasks = [...POLICIES.values()].filter((d) => d.predicted);
  if (!tasks.length) {
    $("prediction").hidden = true; // no evolutionary generation yet, or a strategy that does not predict
    return;
  }
  if (!$("predictions").children.length) {
    OBJECTIVES.forEach((objective, k) => {
      const card = element("div", { class: "card" });
      const label = LABELS[k];
      card.append(element("h3", {}, label.text), element("figure", { class: "chart", "aria-label": `Predicted against realised change: ${label.text}` }), element("p", { class: "hint" }));
      $("predictions").append(card);
      const rows = tasks.map((d) => ({ ...d, ...change(d, k) }));
      const scale = objective.ideal - objective.reference;
      const error = d3.mean(rows, (d) => Math.abs(d.realised - d.expected));
      card.lastChild.textContent = `${rows.length} tasks; mean absolute error ${withUnit(label, number(error, null))} = ${d3.format(".3f")(error / scale)} z-units. Bars: one standard error of the child's return.`;
    });
  }
  [...$("predictions").children].forEach((card, k) => {
    const rows = tasks.map((d) => ({ ...d, ...change(d, k) }));
    const ends = d3.extent(rows.flatMap((d) => [d.expected, d.realised - d.error, d.realised + d.error, 0]));
    draw(card.querySelector("figure"), {
      x: { domain: ends, nice: true },
      y: { domain: ends, nice: true },
      marks: [
        ...axes({ ...LABELS[k], text: "predicted change" }, { ...LABELS[k], text: "realised change" }),
        Plot.line([ends[0], ends[1]], { x: (d) => d, y: (d) => d, stroke: "var(--faint)", strokeDasharray: "4,4" }),
        Plot.ruleX(rows, { x: "expected", y1: (d) => d.realised - d.error, y2: (d) => d.realised + d.error, stroke: "var(--soft)", strokeOpacity: 0.75 }),
        Plot.dot(rows, { x: "expected", y: "realised", r: 5.5, stroke: "var(--card)", ...each(rows, (node, d) => { node.style.fill = mix(d.weights); }) }),
        Plot.tip(rows, Plot.pointer({ x: "expected", y: "realised", title: (d) => `${d.policy} from ${titleOf(d.parent)}\n${describe(d.weights)}\npredicted ${shown(LABELS[k], d.expected, null, "+")}\nrealised ${shown(LABELS[k], d.realised, d.error, "+")}`, fill: "var(--card)", stroke: "var(--line)", textPadding: 9 })),
      ],
    });
  });
}

function change(d, k) {
  const before = POLICIES.get(d.parent).returns[k];
  return { expected: d.predicted[k] - before, realised: d.returns[k] - before, error: d.std_error[k] };
}

/* ---------------------------------------------------------------- the card beside a point */

function showTip(d, which, svg, [px, py]) {
  const id = d.id ?? d.policy;
  const numbers = element("dl");
  LABELS.forEach((label, k) => numbers.append(element("dt", {}, label.text), element("dd", {}, withUnit(label, shown(label, d.returns[k], d.std_error[k])))));
  const origin = d.kind === "blend" ? " · blend" : d.generation >= 0 ? ` · generation ${d.generation}` : "";
  const tip = $("tip");
  tip.replaceChildren(element("b", {}, titleOf(id)), origin, numbers, weightsBar(d.weights));
  const own = thumbs(which, id, 4);
  if (own) tip.append(own);
  tip.hidden = false;
  const box = svg.getBoundingClientRect();
  const scale = box.width / svg.viewBox.baseVal.width;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const right = box.left + px * scale + 18;
  const left = right > room ? right - tip.offsetWidth - 36 : right;
  const top = box.top + py * scale - tip.offsetHeight / 2;
  const lowest = document.documentElement.clientHeight - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(Math.min(left, room), 8) + window.scrollX}px`;
  tip.style.top = `${Math.max(Math.min(top, lowest), 56) + window.scrollY}px`;
}

function hideTip() {
  $("tip").hidden = true;
}

/** Mark the chosen point, and the pinned one, in all charts. */
function markChosen() {
  const member = BY_ID.get(state.id);
  const pinned = state.pinned === null ? null : BY_ID.get(state.pinned);
  ring(frontSvg, member ? coordinates(member) : null);
  ring(frontSvg, pinned ? coordinates(pinned) : null, "pinned");
  guardSvgs.forEach((svg, k) => ring(svg, member?.guards[DATA.guards[k].name] ? guardPlace(k)(member) : null));
  for (const svg of [frontSvg, searchSvg, ...guardSvgs]) {
    if (!svg) continue;
    const nodes = [...svg.querySelectorAll("[data-id]")];
    const focusable = nodes.find((node) => node.dataset.id === state.id) ?? nodes[0];
    nodes.forEach((node) => node.setAttribute("tabindex", node === focusable ? 0 : -1));
  }
}
