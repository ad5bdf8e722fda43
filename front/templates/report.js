/* The page's behaviour: a state (chosen policy, preference, generation, axes) and what shows it.

Whatever comes from the run (prompts, names) becomes text or an attribute, never markup. */
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const OBJECTIVES = DATA.objectives;
const M = OBJECTIVES.length;
const MEMBERS = DATA.members;
const BY_ID = new Map(MEMBERS.map((member) => [member.id, member]));
const POLICIES = new Map(Object.entries(DATA.policies));
const LAST = DATA.generations.length - 1;
const NUM_COLOURS = 6;
const REACH = 30; // pixels around a point that count as on it

const state = { id: null, weights: Array(M).fill(1 / M), generation: LAST, x: 0, y: 1 };
const $ = (id) => document.getElementById(id);

/* ---------------------------------------------------------------- small helpers */

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") node.className = value;
    else if (key === "style") node.style.cssText = value;
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function number(value, error, sign = "") {
  if (!error) return d3.format(`${sign}.4~g`)(value);
  const decimals = Math.min(Math.max(1 - Math.floor(Math.log10(error)), 0), 8);
  return `${d3.format(`${sign}.${decimals}f`)(value)} ± ${error.toFixed(decimals)}`;
}

const colourOf = (index) => `var(--o${index % NUM_COLOURS})`;

/** The colour of a weight vector: its objectives' colours, mixed in proportion. */
function mix(weights) {
  let total = weights[0];
  let colour = colourOf(0);
  for (let k = 1; k < weights.length; k += 1) {
    total += weights[k];
    const share = total > 0 ? 100 - (100 * weights[k]) / total : 100;
    colour = `color-mix(in oklab, ${colour} ${share.toFixed(1)}%, ${colourOf(k)})`;
  }
  return colour;
}

const toZ = (returns) =>
  returns.map((value, k) => (value - OBJECTIVES[k].reference) / (OBJECTIVES[k].ideal - OBJECTIVES[k].reference));
const axisLabel = (k) => `${OBJECTIVES[k].name} [${OBJECTIVES[k].unit}]`;
const percent = (value) => `${Math.round(100 * value)} %`;
const describe = (weights) => weights.map((w, k) => `${OBJECTIVES[k].name} ${percent(w)}`).join(", ");
const titleOf = (id) => (id === "base" ? "base model" : id);

/** The member that is best under a preference: the largest weighted sum of returns in z-units. */
function pick(weights) {
  const scores = MEMBERS.map((member) => d3.sum(toZ(member.returns), (z, k) => z * weights[k]));
  const rounded = scores.map((score) => Math.round(score * 1e9));
  return MEMBERS[d3.maxIndex(rounded)];
}

function weightsBar(weights) {
  const bar = element("span", { class: "weights", role: "img", "aria-label": describe(weights) });
  weights.forEach((w, k) => bar.append(element("i", { style: `flex-grow:${w};--o:${colourOf(k)}` })));
  return bar;
}

function pictures(which, id) {
  return (DATA.pictures[which] || {})[id] || [];
}

function picture(source, alt) {
  const image = element("img", { class: "picture", src: source, alt, decoding: "async" });
  const sharpen = () => image.classList.toggle("is-small", image.naturalWidth <= 64);
  image.addEventListener("load", sharpen);
  return image;
}

function thumbs(which, id, count) {
  const prompts = DATA.prompts[which];
  const shown = pictures(which, id).slice(0, count);
  if (!shown.length) return null;
  return element("div", { class: "thumbs" }, ...shown.map((source, i) => picture(source, `${titleOf(id)}: ${prompts[i]}`)));
}

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

/* ---------------------------------------------------------------- charts */

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
    height: Math.round(Math.min(Math.max(width * shape, 260), 430)),
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

const axes = (x, y) => [
  Plot.gridX({ tickSpacing: 85, stroke: "var(--grid)", strokeOpacity: 1 }),
  Plot.gridY({ tickSpacing: 50, stroke: "var(--grid)", strokeOpacity: 1 }),
  Plot.axisX({ tickSpacing: 85, label: x, color: "currentColor", tickSize: 0 }),
  Plot.axisY({ tickSpacing: 50, label: y, color: "currentColor", tickSize: 0 }),
];

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

function ring(svg, at) {
  svg.querySelector(".ring")?.remove();
  if (!at) return;
  const node = d3.select(svg).append("circle").attr("class", "ring").attr("r", 11);
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
  node.setAttribute("aria-label", `${titleOf(id)}: ${d.returns.map((v, k) => `${OBJECTIVES[k].name} ${number(v, d.std_error[k])} ${OBJECTIVES[k].unit}`).join(", ")}`);
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
        ...axes(axisLabel(x), axisLabel(y)),
        M === 2 ? Plot.line(MEMBERS, { x: (d) => d.returns[x], y: (d) => d.returns[y], stroke: "var(--faint)", strokeWidth: 1.3, strokeOpacity: 0.7 }) : null,
        ...errorBars([...MEMBERS, ...base], returnsOf, errorOf),
        Plot.dot(blends, { ...look, r: 5, symbol: "diamond", ...each(blends, pointNode) }),
        Plot.dot(policies, { ...look, r: 6.5, ...each(policies, pointNode) }),
        Plot.dot(base, { x: (d) => d.returns[x], y: (d) => d.returns[y], symbol: "star", r: 6, fill: "var(--base)", stroke: "var(--card)" }),
      ],
    }, 0.46),
  );
  makeInteractive($("front-chart"), frontSvg, MEMBERS, DATA.set);
  const middle = `fill:${mix(Array(M).fill(1 / M))}`;
  legend("front-legend", [
    [symbol(d3.symbolCircle, middle), "policy, coloured by its weights"],
    ...(blends.length ? [[symbol(d3.symbolDiamond, middle), "blend of two neighbours"]] : []),
    [symbol(d3.symbolStar, "fill:var(--base)"), "base model"],
    [stroke("stroke:var(--soft);stroke-width:1.2"), `± 1 standard error, ${DATA.set} set`],
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
          ...axes(axisLabel(state.x), `${guard.name} [${guard.unit}]`),
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
      [stroke("stroke:var(--soft);stroke-width:1.2"), `± 1 standard error, ${DATA.set} set`],
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
        ...axes(axisLabel(x), axisLabel(y)),
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
    $("predictions").replaceChildren(element("p", { class: "card empty" }, "No task was predicted: there was no evolutionary generation yet, or its strategy does not predict."));
    return;
  }
  if (!$("predictions").children.length) {
    OBJECTIVES.forEach((objective, k) => {
      const card = element("div", { class: "card" });
      card.append(element("h3", {}, objective.name), element("figure", { class: "chart", "aria-label": `Predicted against realised change of ${objective.name}` }), element("p", { class: "hint" }));
      $("predictions").append(card);
      const rows = tasks.map((d) => ({ ...d, ...change(d, k) }));
      const scale = objective.ideal - objective.reference;
      const error = d3.mean(rows, (d) => Math.abs(d.realised - d.expected));
      card.lastChild.textContent = `${rows.length} tasks; mean absolute error ${number(error, null)} ${objective.unit} = ${d3.format(".3f")(error / scale)} z-units. Bars: one standard error of the child's return.`;
    });
  }
  [...$("predictions").children].forEach((card, k) => {
    const rows = tasks.map((d) => ({ ...d, ...change(d, k) }));
    const ends = d3.extent(rows.flatMap((d) => [d.expected, d.realised - d.error, d.realised + d.error, 0]));
    draw(card.querySelector("figure"), {
      x: { domain: ends, nice: true },
      y: { domain: ends, nice: true },
      marks: [
        ...axes(`predicted change [${OBJECTIVES[k].unit}]`, `realised change [${OBJECTIVES[k].unit}]`),
        Plot.line([ends[0], ends[1]], { x: (d) => d, y: (d) => d, stroke: "var(--faint)", strokeDasharray: "4,4" }),
        Plot.ruleX(rows, { x: "expected", y1: (d) => d.realised - d.error, y2: (d) => d.realised + d.error, stroke: "var(--soft)", strokeOpacity: 0.75 }),
        Plot.dot(rows, { x: "expected", y: "realised", r: 5.5, stroke: "var(--card)", ...each(rows, (node, d) => { node.style.fill = mix(d.weights); }) }),
        Plot.tip(rows, Plot.pointer({ x: "expected", y: "realised", title: (d) => `${d.policy} from ${titleOf(d.parent)}\n${describe(d.weights)}\npredicted ${number(d.expected, null, "+")}\nrealised ${number(d.realised, d.error, "+")}`, fill: "var(--card)", stroke: "var(--line)", textPadding: 9 })),
      ],
    });
  });
}

function change(d, k) {
  const before = POLICIES.get(d.parent).returns[k];
  return { expected: d.predicted[k] - before, realised: d.returns[k] - before, error: d.std_error[k] };
}

/* ---------------------------------------------------------------- what shows the chosen policy */

function showTip(d, which, svg, [px, py]) {
  const id = d.id ?? d.policy;
  const numbers = element("dl");
  d.returns.forEach((value, k) => numbers.append(element("dt", {}, OBJECTIVES[k].name), element("dd", {}, `${number(value, d.std_error[k])} ${OBJECTIVES[k].unit}`)));
  const origin = d.kind === "blend" ? " · blend" : d.generation >= 0 ? ` · generation ${d.generation}` : "";
  const tip = $("tip");
  tip.replaceChildren(element("b", {}, titleOf(id)), origin, numbers, weightsBar(d.weights));
  const shown = thumbs(which, id, 4);
  if (shown) tip.append(shown);
  tip.hidden = false;
  const box = svg.getBoundingClientRect();
  const scale = box.width / svg.viewBox.baseVal.width;
  const left = box.left + px * scale + 18;
  const flip = left + tip.offsetWidth > document.documentElement.clientWidth - 8;
  tip.style.left = `${Math.max(flip ? left - tip.offsetWidth - 36 : left, 8) + window.scrollX}px`;
  tip.style.top = `${Math.max(box.top + py * scale - tip.offsetHeight / 2, 64) + window.scrollY}px`;
}

function hideTip() {
  $("tip").hidden = true;
}

function gauge(k, member) {
  const [low, high] = zRange[k];
  const place = (value) => `${(100 * (value - low)) / (high - low)}%`;
  const z = toZ(member.returns)[k];
  const base = toZ(DATA.base.returns)[k];
  return element(
    "div",
    { class: "gauge", style: `--o:${colourOf(k)}`, title: "the bar spans the front; the tick is the base model" },
    element("i", { style: `left:0;width:${place(z)}` }),
    element("u", { style: `left:${place(base)}` }),
  );
}

const zRange = OBJECTIVES.map((_, k) => {
  const [low, high] = d3.extent([...MEMBERS, DATA.base], (d) => toZ(d.returns)[k]);
  const pad = Math.max(0.06 * (high - low), 1e-9);
  return [low - pad, high + pad];
});

function showChosen() {
  const member = BY_ID.get(state.id);
  const box = $("chosen");
  if (!member) {
    box.replaceChildren(element("div", { class: "chosen-head" }, element("b", {}, titleOf(state.id)), element("span", { class: "tag" }, "not on the front")), element("p", { class: "use" }, "Found on the way; its ancestry is shown below."));
    return;
  }
  const origin = member.kind === "blend" ? `blend of ${member.parts.map(([policy, share]) => `${policy} ${percent(share)}`).join(" and ")}` : member.id === "base" ? "untrained" : `from generation ${member.generation}`;
  const head = element("div", { class: "chosen-head" }, element("span", { class: "dot", style: `background:${mix(member.weights)}` }), element("b", {}, titleOf(member.id)), element("span", { class: "tag" }, origin));
  const measures = element("div", { class: "measures" });
  OBJECTIVES.forEach((objective, k) => {
    const gain = member.gain_std_error ? number(member.gain[k], member.gain_std_error[k], "+") : number(member.gain[k], null, "+");
    const line = element("div", { class: "measure-head" }, element("span", {}, objective.name), element("b", {}, number(member.returns[k], member.std_error[k]), " ", element("small", {}, objective.unit)));
    measures.append(element("div", { class: "measure" }, line, gauge(k, member), element("span", { class: "gain" }, `${gain} over the base model`)));
  });
  for (const guard of DATA.guards.filter(({ name }) => name in member.guards)) {
    const { value, std_error: error, drop } = member.guards[guard.name];
    const isBroken = guard.max_drop !== null && drop > guard.max_drop;
    const name = element("span", {}, guard.name, " ", element("span", { class: "tag" }, isBroken ? "guard, below its limit" : "guard"));
    const line = element("div", { class: "measure-head" }, name, element("b", {}, number(value, error), " ", element("small", {}, guard.unit)));
    measures.append(element("div", { class: "measure" }, line));
  }
  const parts = [head, measures];
  const preference = state.weights.map((w) => d3.format(".3~f")(w)).join(",");
  if (member.kind === "policy" && member.id !== "base") parts.push(element("p", { class: "use" }, element("code", {}, `pipe.load_lora_weights("${DATA.run}/adapters/${member.id}")`)));
  else if (member.kind === "blend") parts.push(element("p", { class: "use" }, element("code", {}, `python mo_front.py pick ${DATA.run} --policy ${member.id} --out my_adapter`)));
  box.replaceChildren(...parts);
  box.dataset.preference = preference;
}

function showPictures() {
  const which = BY_ID.has(state.id) ? DATA.set : "selection";
  const [base, chosen] = [pictures(which, "base"), pictures(which, state.id)];
  const colour = mix((BY_ID.get(state.id) ?? POLICIES.get(state.id)).weights);
  $("pictures-of").textContent = titleOf(state.id);
  const grid = $("pictures");
  grid.style.setProperty("--chosen-colour", colour);
  grid.style.setProperty("--columns", Math.min(Math.max(base.length, 1), 8));
  if (!base.length) {
    grid.replaceChildren(element("p", { class: "empty" }, "This run kept no pictures."));
    return;
  }
  grid.replaceChildren(
    ...base.map((source, i) => {
      const prompt = DATA.prompts[which][i];
      const pair = element("figure", { class: "pair" }, picture(source, `base model: ${prompt}`));
      if (chosen[i]) {
        pair.append(picture(chosen[i], `${titleOf(state.id)}: ${prompt}`));
        pair.lastChild.classList.add("is-chosen");
      } else pair.append(element("p", { class: "empty" }, "no picture"));
      pair.append(element("figcaption", {}, prompt));
      return pair;
    }),
  );
}

/** The chosen policy and those it was trained from, oldest first; a blend's first part stands for it. */
function ancestors(id) {
  const member = BY_ID.get(id);
  let name = member?.kind === "blend" ? d3.greatest(member.parts, (part) => part[1])[0] : id;
  const line = [];
  while (name !== null && POLICIES.has(name)) {
    line.unshift(POLICIES.get(name));
    name = line[0].parent;
  }
  return line;
}

function showAncestry() {
  $("ancestry-of").textContent = titleOf(state.id) + (BY_ID.get(state.id)?.kind === "blend" ? " (of its largest part)" : "");
  $("ancestry").replaceChildren(
    ...ancestors(state.id).map((d) => {
      const isLater = d.generation >= state.generation;
      const where = d.generation < 0 ? "before training" : `generation ${d.generation}, ${d.stage === "warmup" ? "warm-up" : d.stage}`;
      const item = element("li", { class: `ancestor${isLater ? " is-later" : ""}` }, element("b", {}, titleOf(d.policy)), where);
      const shown = thumbs("selection", d.policy, 4);
      if (shown) item.append(shown);
      if (d.generation >= 0) item.append(weightsBar(d.weights));
      const numbers = element("dl");
      d.returns.forEach((value, k) => numbers.append(element("dt", {}, OBJECTIVES[k].name), element("dd", {}, number(value, d.std_error[k]))));
      item.append(numbers);
      return item;
    }),
  );
}

const stageOf = (d) => (d.index < 0 ? "base model" : `generation ${d.index}, ${d.stage === "warmup" ? "warm-up" : d.stage}`);

function showGeneration() {
  const now = DATA.generations[state.generation];
  $("generation").value = state.generation;
  $("generation").setAttribute("aria-valuetext", stageOf(now));
  $("generation-label").replaceChildren(element("b", {}, stageOf(now)), ` · archive of ${now.archive.length} · ${d3.format(",")(now.images)} images`);
  drawSearch();
  drawVolume();
  showAncestry();
}

function markChosen() {
  const member = BY_ID.get(state.id);
  ring(frontSvg, member ? coordinates(member) : null);
  guardSvgs.forEach((svg, k) => ring(svg, member?.guards[DATA.guards[k].name] ? guardPlace(k)(member) : null));
  for (const svg of [frontSvg, searchSvg, ...guardSvgs]) {
    if (!svg) continue;
    const nodes = [...svg.querySelectorAll("[data-id]")];
    const focusable = nodes.find((node) => node.dataset.id === state.id) ?? nodes[0];
    nodes.forEach((node) => node.setAttribute("tabindex", node === focusable ? 0 : -1));
  }
  for (const row of document.querySelectorAll("tr[data-policy]")) row.classList.toggle("is-selected", row.dataset.policy === state.id);
  document.querySelectorAll(".segments i").forEach((segment) => segment.classList.toggle("is-selected", segment.dataset.id === state.id));
}

/** Make a policy the chosen one; a click moves the preference to where it would be picked. */
function choose(id, isFromSlider = false) {
  if (id === state.id && !isFromSlider) return;
  state.id = id;
  if (!isFromSlider) movePreferenceTo(id);
  showChosen();
  showPictures();
  const active = document.activeElement;
  const isFocusInSearch = searchSvg?.contains(active);
  if (isFocusInSearch) ring(searchSvg, POLICIES.has(id) ? coordinates(POLICIES.get(id)) : null);
  else drawSearch();
  showAncestry();
  markChosen();
}

/* ---------------------------------------------------------------- preference */

/** For two objectives: which member each of 1,001 preferences picks, as runs. */
const segments = [];
if (M === 2) {
  for (let i = 0; i <= 1000; i += 1) {
    const id = pick([1 - i / 1000, i / 1000]).id;
    if (segments.length && segments.at(-1).id === id) segments.at(-1).last = i;
    else segments.push({ id, first: i, last: i });
  }
}

function movePreferenceTo(id) {
  const member = BY_ID.get(id);
  if (!member) return;
  const own = segments.find((segment) => segment.id === id);
  if (own) state.weights = [1 - (own.first + own.last) / 2000, (own.first + own.last) / 2000];
  else if (pick(member.weights).id === id) state.weights = [...member.weights];
  showSliders(own || pick(state.weights).id === id ? "" : "No weighted sum prefers this policy: it lies in a dent of the front, a compromise of its own.");
}

function setWeight(k, value) {
  const rest = 1 - state.weights[k];
  const others = state.weights.map((w) => (rest > 1e-9 ? w / rest : 1 / (M - 1)));
  state.weights = others.map((w, j) => (j === k ? value : w * (1 - value)));
  showSliders("");
  choose(pick(state.weights).id, true);
}

function buildSliders() {
  const box = $("sliders");
  if (M === 2) {
    const head = element("div", { class: "slider-head" }, ...OBJECTIVES.map((objective, k) => element("span", {}, element("i", { class: "swatch", style: `--o:${colourOf(k)}` }), objective.name, " ", element("b", { id: `share-${k}` }))));
    const input = element("input", { type: "range", min: 0, max: 1000, step: 1, id: "preference", "aria-label": `Preference: from ${OBJECTIVES[0].name} to ${OBJECTIVES[1].name}`, style: `--track:linear-gradient(90deg in oklab, ${colourOf(0)}, ${colourOf(1)})` });
    input.addEventListener("input", () => setWeight(1, input.value / 1000));
    const bar = element("div", { class: "segments", "aria-hidden": "true", title: "one block a policy: the preferences that pick it" }, ...segments.map((s) => element("i", { "data-id": s.id, style: `flex:${s.last - s.first + 1}` })));
    box.append(element("div", { class: "slider" }, head, input, bar));
  } else {
    OBJECTIVES.forEach((objective, k) => {
      const head = element("label", { class: "slider-head", for: `preference-${k}` }, element("span", {}, element("i", { class: "swatch", style: `--o:${colourOf(k)}` }), objective.name), element("b", { id: `share-${k}` }));
      const input = element("input", { type: "range", min: 0, max: 1000, step: 1, id: `preference-${k}` });
      input.addEventListener("input", () => setWeight(k, input.value / 1000));
      box.append(element("div", { class: "slider" }, head, input));
    });
  }
  box.append(element("p", { class: "segment-note", id: "preference-note", role: "status" }));
}

function showSliders(note) {
  state.weights.forEach((w, k) => {
    $(`share-${k}`).textContent = percent(w);
    const input = M === 2 ? $("preference") : $(`preference-${k}`);
    if (M === 2 && k === 0) return;
    if (document.activeElement !== input || Math.abs(input.value / 1000 - w) > 1e-3) input.value = Math.round(1000 * w);
    input.setAttribute("aria-valuetext", describe(state.weights));
    input.style.setProperty("--thumb", M === 2 ? mix(state.weights) : colourOf(k));
    if (M > 2) input.style.setProperty("--track", `linear-gradient(90deg, ${colourOf(k)} ${100 * w}%, var(--line) ${100 * w}%)`);
  });
  $("preference-note").textContent = note || (M === 2 ? `One block for each of the ${segments.length} that some preference picks.` : "");
}

/* ---------------------------------------------------------------- start */

function buildAxes() {
  if (M === 2) return;
  $("axes").hidden = false;
  for (const axis of ["x", "y"]) {
    const select = element("select", { id: `axis-${axis}` }, ...OBJECTIVES.map((objective, k) => element("option", { value: k }, objective.name)));
    select.value = state[axis];
    select.addEventListener("change", () => {
      state[axis] = Number(select.value);
      drawFront();
      drawGuards();
      drawSearch();
    });
    $("axes").append(element("label", {}, `${axis} `, select));
  }
}

function play() {
  const button = $("play");
  if (play.timer) {
    clearInterval(play.timer);
    play.timer = null;
  } else {
    if (state.generation === LAST) state.generation = 0;
    showGeneration();
    play.timer = setInterval(() => {
      if (state.generation >= LAST) play();
      else {
        state.generation += 1;
        showGeneration();
      }
    }, 900);
  }
  button.textContent = play.timer ? "⏸" : "▶";
  button.setAttribute("aria-label", play.timer ? "Pause" : "Play the generations");
}

function switchTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
}

function drawAll() {
  drawFront();
  drawGuards();
  showGeneration();
  drawPredictions();
}

document.querySelectorAll("tr[data-policy]").forEach((row) => row.addEventListener("click", () => choose(row.dataset.policy)));
$("generation").addEventListener("input", () => {
  state.generation = Number($("generation").value);
  showGeneration();
});
$("play").addEventListener("click", play);
$("theme").addEventListener("click", switchTheme);

buildSliders();
buildAxes();
state.id = pick(state.weights).id;
showSliders("");
showChosen();
showPictures();
drawAll();
let lastWidth = window.innerWidth;
new ResizeObserver(() => {
  if (Math.abs(window.innerWidth - lastWidth) < 2) return;
  lastWidth = window.innerWidth;
  drawAll();
}).observe(document.body);
document.documentElement.dataset.ready = "true";
