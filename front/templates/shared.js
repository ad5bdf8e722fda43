/* What all of the page's scripts use: the run's data, the page's state, words, numbers, colours.

Whatever comes from the run (prompts, names) becomes text or an attribute, never markup. */
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const OBJECTIVES = DATA.objectives;
const LABELS = OBJECTIVES.map((objective) => objective.label);
const M = OBJECTIVES.length;
const MEMBERS = DATA.members; // from the lowest to the highest return in the first objective
const BY_ID = new Map(MEMBERS.map((member) => [member.id, member]));
const POLICIES = new Map(Object.entries(DATA.policies));
const LAST = DATA.generations.length - 1;
const ANY_IS_LOST = MEMBERS.some((member) => member.losses.length);
const NUM_COLOURS = 6;

const state = {
  id: null, // the chosen policy or blend
  pinned: null, // what it is compared with, instead of the base model
  weights: Array(M).fill(1 / M), // the preference
  mode: "front", // how the slider moves: along the "front", or by "preference"
  view: "side", // of the pictures: "side" by side, "wipe", "blink"
  generation: LAST,
  x: 0,
  y: 1,
};
const $ = (id) => document.getElementById(id);

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

/* ---------------------------------------------------------------- words and numbers */

function number(value, error, plus = "") {
  if (!error) return d3.format(`${plus}.4~g`)(value);
  const decimals = Math.min(Math.max(1 - Math.floor(Math.log10(error)), 0), 8);
  return `${d3.format(`${plus}.${decimals}f`)(value)} ± ${error.toFixed(decimals)}`;
}

/** A score as people read it: of a negative unit ("-kB") the positive number. */
const shown = (label, value, error, plus = "") => number(label.sign * value, error, plus);
/** The same without its error, to the error's first digit. */
function brief(label, value, error) {
  if (!error) return number(label.sign * value);
  return d3.format(`.${Math.min(Math.max(-Math.floor(Math.log10(error)), 0), 8)}f`)(label.sign * value);
}

const withUnit = (label, text) => `${text} ${label.plain_unit}`.trim();
const axisLabel = (label) => `${label.text} [${label.unit}]${label.sign < 0 ? ", less is better" : ""}`;
const axisTick = (label) => (value) => d3.format("~g")(label.sign * value + 0);

const percent = (value) => `${Math.round(100 * value)} %`;
const describe = (weights) => weights.map((w, k) => `“${LABELS[k].text}” counts ${percent(w)}`).join(", ");
const titleOf = (id) => (id === "base" ? "base model" : id);

function originOf(member) {
  if (member.kind === "blend") return `blend of ${member.parts.map(([policy, share]) => `${policy} ${percent(share)}`).join(" and ")}`;
  return member.id === "base" ? "untrained" : `policy of generation ${member.generation}`;
}

/* ---------------------------------------------------------------- colours */

const colourOf = (index) => `var(--o${index % NUM_COLOURS})`;

const swatch = (k) => element("i", { class: "swatch", style: `--o:${colourOf(k)}` });

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

/** The member that is best under a preference: the largest weighted sum of returns in z-units. */
function pick(weights, members = MEMBERS) {
  const scores = members.map((member) => d3.sum(toZ(member.returns), (z, k) => z * weights[k]));
  const rounded = scores.map((score) => Math.round(score * 1e9));
  return members[d3.maxIndex(rounded)];
}

/** Where the page begins: the best in everything, else an even compromise that keeps its subject. */
function firstChoice() {
  const intact = MEMBERS.filter((member) => !member.losses.length);
  return DATA.best ?? pick(state.weights, intact.length ? intact : MEMBERS).id;
}

function weightsBar(weights) {
  const bar = element("span", { class: "weights", role: "img", "aria-label": describe(weights) });
  weights.forEach((w, k) => bar.append(element("i", { style: `flex-grow:${w};--o:${colourOf(k)}` })));
  return bar;
}

/* ---------------------------------------------------------------- pictures */

function pictures(which, id) {
  return (DATA.pictures[which] || {})[id] || [];
}

/** The set whose pictures show a policy: of those off the front there are only the search's. */
const setOf = (id) => (BY_ID.has(id) ? DATA.set : "selection");

const IS_SMALL = Math.max(...DATA.drawn_size) <= 64; // enlarged pixel by pixel, not smoothed

function picture(source, alt) {
  return element("img", { class: IS_SMALL ? "picture is-small" : "picture", src: source, alt, decoding: "sync" });
}

function thumbs(which, id, count) {
  const prompts = DATA.prompts[which];
  const own = pictures(which, id).slice(0, count);
  if (!own.length) return null;
  return element("div", { class: "thumbs" }, ...own.map((source, i) => picture(source, `${titleOf(id)}: ${prompts[i]}`)));
}
