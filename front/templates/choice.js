/* Choosing: the slider along the front or by preference, the triangle, and what is said of the choice. */
"use strict";

/* ---------------------------------------------------------------- what is said of the choice */

const zRange = OBJECTIVES.map((_, k) => {
  const [low, high] = d3.extent([...MEMBERS, DATA.base], (d) => toZ(d.returns)[k]);
  const pad = Math.max(0.06 * (high - low), 1e-9);
  return [low - pad, high + pad];
});

/** Where a member lies on the span of the front, and the point that it is compared with. */
function gauge(k, member, other) {
  const [low, high] = zRange[k];
  const place = (d) => `${Math.min(Math.max((100 * (toZ(d.returns)[k] - low)) / (high - low), 0), 100)}%`;
  return element(
    "div",
    { class: "gauge", style: `--o:${colourOf(k)}`, title: `the bar spans the front; the tick is ${titleOf(other.id)}` },
    element("i", { style: `left:0;width:${place(member)}` }),
    element("u", { style: `left:${place(other)}` }),
  );
}

/** The change from one point to another; against the base model the run measured it by pairs of pictures. */
function changeOf(k, member, other) {
  if (other.id === "base" && member.gain) return [member.gain[k], member.gain_std_error[k]];
  return [member.returns[k] - other.returns[k], Math.hypot(member.std_error[k], other.std_error[k])];
}

function measureRow(label, before, after, unit, change, extra) {
  const numbers = element("span", { class: "numbers" }, before, element("span", { class: "arrow" }, " → "), element("b", {}, after), ` ${unit}`);
  return element("div", { class: "measure" }, element("span", { class: "name" }, label), numbers, element("span", { class: "change" }, change), extra);
}

function showChosen() {
  const member = BY_ID.get(state.id) ?? POLICIES.get(state.id);
  const isMember = BY_ID.has(state.id);
  const other = BY_ID.get(state.pinned) ?? (isMember ? { ...DATA.base, id: "base" } : { ...POLICIES.get("base"), id: "base" });
  const origin = isMember ? originOf(member) : "not on the front; found on the way";
  const pin = element("button", { type: "button", class: "button", id: "pin", "aria-pressed": state.pinned === state.id }, state.pinned === state.id ? "Unpin" : state.pinned === null ? "Pin to compare" : `Unpin ${state.pinned}`);
  pin.disabled = !isMember;
  pin.addEventListener("click", () => setPinned(state.pinned === null ? state.id : null));
  const tag = member.improves_everything ? element("span", { class: "tag is-better" }, "improves everything") : null;
  const head = element(
    "div",
    { class: "chosen-head" },
    element("span", { class: "dot", style: `background:${mix(member.weights)}` }),
    element("b", {}, titleOf(state.id)),
    element("span", { class: "origin", title: origin }, origin),
    tag,
    pin,
  );
  const lost = member.losses?.length ? `⚠ Losing its subject: ${member.losses.join("; ")}` : "";
  const warning = element("p", { class: ANY_IS_LOST ? "warning" : "warning is-never", title: lost }, lost); // room is kept for it
  const measures = element("div", { class: "measures" });
  LABELS.forEach((label, k) => {
    const change = shown(label, ...changeOf(k, member, other), "+");
    measures.append(measureRow(label.text, brief(label, other.returns[k], member.std_error[k] / 10), shown(label, member.returns[k], member.std_error[k]), label.plain_unit, change, gauge(k, member, other)));
  });
  for (const { name, label } of DATA.guards) {
    const [own, before] = [member.guards?.[name], other.guards?.[name]];
    const after = own ? shown(label, own.value, own.std_error) : "not measured";
    const change = own && before ? shown(label, own.value - before.value, null, "+") : "";
    measures.append(measureRow(label.text, before ? brief(label, before.value, (own ?? before).std_error / 10) : "", after, own ? label.plain_unit : "", change, null));
  }
  $("chosen").replaceChildren(head, measures, warning);
  showUse(isMember ? member : null);
}

function setPinned(id) {
  state.pinned = id;
  showChosen();
  showPictures();
  markChosen();
  remember();
  $("pin").focus();
}

/* ---------------------------------------------------------------- taking it away */

const FILE = "pytorch_lora_weights.safetensors";

/** A place beside this page: a path where the page was opened from disk, else relative to it. */
function beside(name) {
  if (location.protocol !== "file:") return name;
  const folder = decodeURIComponent(location.pathname).replace(/[^/]*$/, "").replace(/^\/([A-Za-z]:)/, "$1");
  return folder + name;
}

const runFolder = () => (location.protocol === "file:" ? beside("").replace(/\/$/, "") : DATA.run);
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`; // for a shell

function loading(member) {
  const load = (id, name) => `pipe.load_lora_weights(${JSON.stringify(beside(BY_ID.get(id).adapter))}${name})`;
  if (member.kind !== "blend") return load(member.id, "");
  const names = member.parts.map(([id]) => id);
  return [
    ...names.map((id) => load(id, `, adapter_name=${JSON.stringify(id)}`)),
    `pipe.set_adapters(${JSON.stringify(names)}, ${JSON.stringify(member.parts.map(([, share]) => share))})`,
  ].join("\n");
}

/** Python that draws the first picture as it was judged, from an empty file on. */
function codeOf(member) {
  const lines = DATA.code.split("\n").map((line) => (line === 'pipe.load_lora_weights("ADAPTER")' ? loading(member) : line));
  return [...lines, 'image.save("picture.png")', ""].join("\n");
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { readonly: "", style: "position:fixed;opacity:0" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const words = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = words; }, 1200);
}

function copyButton(words, text, label = words) {
  const button = element("button", { type: "button", class: "button", "aria-label": label }, words);
  button.addEventListener("click", () => copy(text(), button));
  return button;
}

function showUse(member) {
  const box = $("use");
  const actions = element("div", { class: "actions" });
  const link = copyButton("link", () => location.href.split("#")[0] + addressOf(), "Copy link to this point");
  actions.append("Copy");
  if (!member || member.id === "base") {
    box.replaceChildren(element("code", {}, member ? "the base model itself: nothing to load" : "no adapter is published of it"), actions);
    actions.append(link);
    return;
  }
  const hasAdapters = member.kind === "blend" ? member.parts.every(([id]) => BY_ID.get(id)?.adapter) : member.adapter;
  const path = member.kind === "blend" ? `python mo_front.py pick ${quoted(runFolder())} --policy ${member.id} --out my_adapter` : beside(member.adapter ?? "");
  const shownCode = element("code", { title: path }, element("bdi", {}, hasAdapters ? path : "its adapter is published when the run ends"));
  if (hasAdapters) {
    actions.append(copyButton(member.kind === "blend" ? "command" : "path", () => path, member.kind === "blend" ? "Copy command" : "Copy path"));
    actions.append(copyButton("Python", () => (DATA.code ? codeOf(member) : loading(member)), "Copy Python"));
  }
  actions.append(link);
  if (hasAdapters && member.kind !== "blend") {
    actions.append(element("a", { class: "button", href: `${member.adapter.split("/").map(encodeURIComponent).join("/")}/${FILE}`, download: `${DATA.run}_${member.id}.safetensors`, title: "where this page lies beside the run's adapters" }, "Download"));
  }
  box.replaceChildren(shownCode, actions);
}

/* ---------------------------------------------------------------- along the front */

const indexOf = (id) => MEMBERS.findIndex((member) => member.id === id);

function ends() {
  return element("div", { class: "slider-head", "aria-hidden": "true" }, element("span", {}, swatch(1), LABELS[1].praise), element("span", {}, LABELS[0].praise, swatch(0)));
}

function frontSlider() {
  const input = element("input", { type: "range", min: 0, max: Math.max(MEMBERS.length - 1, 1), step: 1, id: "along", "aria-label": `Along the front: from ${LABELS[1].praise} to ${LABELS[0].praise}`, style: `--track:linear-gradient(90deg in oklab, ${MEMBERS.map((member) => mix(member.weights)).concat(mix(MEMBERS.at(-1).weights)).join(", ")})` });
  input.disabled = MEMBERS.length < 2;
  input.addEventListener("input", () => choose(MEMBERS[input.value].id));
  const ticks = element("div", { class: "ticks", "aria-hidden": "true" }, ...MEMBERS.map((member) => element("i", { "data-id": member.id, class: `is-${member.kind}${member.losses.length ? " is-lost" : ""}${member.improves_everything ? " is-better" : ""}`, style: `background:${mix(member.weights)}` })));
  return element("div", { class: "slider" }, ends(), input, ticks);
}

/* ---------------------------------------------------------------- by preference */

/** For two objectives: which member each of 1,001 preferences picks, as runs; the last weighs the first alone. */
const segments = [];
if (M === 2) {
  for (let i = 0; i <= 1000; i += 1) {
    const { id } = pick([i / 1000, 1 - i / 1000]);
    if (segments.length && segments.at(-1).id === id) segments.at(-1).last = i;
    else segments.push({ id, first: i, last: i });
  }
}

function preferenceSlider() {
  const head = element("div", { class: "slider-head" }, ...[1, 0].map((k) => element("span", {}, swatch(k), LABELS[k].praise, " ", element("b", { id: `share-${k}` }))));
  const input = element("input", { type: "range", min: 0, max: 1000, step: 1, id: "preference", "aria-label": `Preference: from ${LABELS[1].praise} to ${LABELS[0].praise}`, style: `--track:linear-gradient(90deg in oklab, ${colourOf(1)}, ${colourOf(0)})` });
  input.addEventListener("input", () => setPreference([input.value / 1000, 1 - input.value / 1000]));
  const bar = element("div", { class: "segments", "aria-hidden": "true" }, ...segments.map((s) => element("i", { "data-id": s.id, style: `flex:${s.last - s.first + 1}` })));
  return element("div", { class: "slider" }, head, input, bar);
}

function weightSliders() {
  return LABELS.map((label, k) => {
    const head = element("label", { class: "slider-head", for: `preference-${k}` }, element("span", {}, swatch(k), label.praise), element("b", { id: `share-${k}` }));
    const input = element("input", { type: "range", min: 0, max: 1000, step: 1, id: `preference-${k}` });
    input.addEventListener("input", () => setWeight(k, input.value / 1000));
    return element("div", { class: "slider" }, head, input);
  });
}

/** Give one objective a weight; the others keep their proportions. */
function setWeight(k, value) {
  const rest = 1 - state.weights[k];
  const others = state.weights.map((w) => (rest > 1e-9 ? w / rest : 1 / (M - 1)));
  setPreference(others.map((w, j) => (j === k ? value : w * (1 - value))));
}

function setPreference(weights) {
  state.weights = weights;
  showSlider();
  choose(pick(weights).id, true);
}

/** Where the preference would stand that picks a member; its own weights where none does. */
function preferenceFor(member) {
  const own = segments.find((segment) => segment.id === member.id);
  if (!own) return [...member.weights];
  const middle = (own.first + own.last) / 2000;
  return [middle, 1 - middle];
}

/* ---------------------------------------------------------------- the triangle of three objectives */

const CORNERS = [[150, 18], [24, 226], [276, 226]];
const inTriangle = (shares) => [0, 1].map((axis) => d3.sum(shares, (share, k) => share * CORNERS[k][axis]));

/** A member's place: nearer to a corner the more of that objective it has, on the span of the front. */
function shareOf(member) {
  const spans = LABELS.map((_, k) => d3.extent(MEMBERS, (d) => d.returns[k]));
  const reached = member.returns.map((value, k) => ((value - spans[k][0]) / (spans[k][1] - spans[k][0] || 1)) ** 2 + 1e-6);
  return reached.map((value) => value / d3.sum(reached));
}

/** Shares of the three corners at a point of the triangle, the nearest ones inside. */
function sharesAt([x, y]) {
  const [[ax, ay], [bx, by], [cx, cy]] = CORNERS;
  const area = (by - cy) * (ax - cx) + (cx - bx) * (ay - cy);
  const first = ((by - cy) * (x - cx) + (cx - bx) * (y - cy)) / area;
  const second = ((cy - ay) * (x - cx) + (ax - cx) * (y - cy)) / area;
  const inside = [first, second, 1 - first - second].map((share) => Math.max(share, 0));
  return inside.map((share) => share / d3.sum(inside));
}

function triangle() {
  const svg = d3.create("svg").attr("viewBox", "0 0 300 262").attr("class", "triangle").attr("role", "group").attr("tabindex", 0);
  svg.attr("aria-label", "Triangle of the three objectives: drag, or use the arrow keys");
  svg.append("path").attr("class", "edge").attr("d", `M${CORNERS.join("L")}Z`);
  CORNERS.forEach(([x, y], k) => {
    const text = svg.append("text").attr("x", k === 0 ? x : k === 1 ? 2 : 298).attr("y", k === 0 ? y - 8 : y + 20);
    text.attr("text-anchor", ["middle", "start", "end"][k]).text(LABELS[k].praise);
    svg.append("circle").attr("cx", x).attr("cy", y).attr("r", 4).attr("style", `fill:${colourOf(k)}`);
  });
  for (const member of MEMBERS) {
    const [x, y] = inTriangle(shareOf(member));
    const node = svg.append("path").attr("class", "place").attr("data-id", member.id).attr("transform", `translate(${x},${y})`);
    node.attr("d", d3.symbol(member.kind === "blend" ? d3.symbolDiamond : d3.symbolCircle, 55)()).attr("style", `fill:${mix(member.weights)}`);
  }
  svg.append("circle").attr("class", "handle").attr("r", 9);
  const node = svg.node();
  const move = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(node.getScreenCTM().inverse());
    moveInTriangle([point.x, point.y]);
  };
  node.addEventListener("pointerdown", (event) => {
    node.setPointerCapture(event.pointerId);
    move(event);
  });
  node.addEventListener("pointermove", (event) => {
    if (node.hasPointerCapture(event.pointerId)) move(event);
  });
  node.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    stepInTriangle(step);
  });
  return node;
}

/** The member nearest to a point, or the one that a preference of its shares picks. */
function moveInTriangle(point) {
  if (state.mode === "preference") setPreference(sharesAt(point));
  else choose(MEMBERS[d3.minIndex(MEMBERS, (d) => d3.sum(inTriangle(shareOf(d)), (at, axis) => (at - point[axis]) ** 2))].id);
}

/** One step of the arrow keys: to the nearest member in that direction, or a little preference. */
function stepInTriangle([dx, dy]) {
  if (state.mode === "preference") {
    const [x, y] = inTriangle(state.weights);
    moveInTriangle([x + 6 * dx, y + 6 * dy]);
    return;
  }
  const here = inTriangle(shareOf(BY_ID.get(state.id) ?? MEMBERS[0]));
  const next = d3.least(MEMBERS.filter((d) => d.id !== state.id), (d) => {
    const away = inTriangle(shareOf(d)).map((at, axis) => at - here[axis]);
    const along = away[0] * dx + away[1] * dy;
    return along > 1e-6 && along >= 0.5 * Math.hypot(...away) ? Math.hypot(...away) : Infinity;
  });
  const away = inTriangle(shareOf(next)).map((at, axis) => at - here[axis]);
  if (away[0] * dx + away[1] * dy > 1e-6) choose(next.id);
}

/* ---------------------------------------------------------------- the slider that is shown */

function buildSlider() {
  const box = $("sliders");
  const isAlong = state.mode === "front";
  if (M === 2) box.replaceChildren(isAlong ? frontSlider() : preferenceSlider());
  else if (M === 3) box.replaceChildren(triangle());
  else box.replaceChildren(...weightSliders());
  showSlider();
}

function showSlider() {
  const index = indexOf(state.id);
  const own = BY_ID.get(state.id);
  $("position").textContent = index < 0 ? "–" : `${index + 1} of ${MEMBERS.length}`;
  $("previous").disabled = index <= 0;
  $("next").disabled = index === MEMBERS.length - 1;
  const isPicked = own && pick(state.weights).id === state.id;
  const note = { front: "", preference: isPicked || !own ? `Best where ${describe(state.weights)}.` : "Best under no weighted sum: a compromise of its own." }[state.mode];
  $("preference-note").textContent = note;
  const input = $("along");
  if (input && index >= 0) {
    input.value = index;
    input.setAttribute("aria-valuetext", `${state.id}, ${index + 1} of ${MEMBERS.length}`);
    input.style.setProperty("--thumb", mix(own.weights));
  }
  for (const node of $("sliders").querySelectorAll("[data-id]")) node.classList.toggle("is-selected", node.dataset.id === state.id);
  if (M === 3) {
    const [x, y] = inTriangle(state.mode === "preference" || !own ? state.weights : shareOf(own));
    d3.select("#sliders .handle").attr("cx", x).attr("cy", y);
  }
  state.weights.forEach((w, k) => {
    const share = $(`share-${k}`);
    if (share) share.textContent = percent(w);
    const slider = M === 2 ? (k === 0 ? $("preference") : null) : $(`preference-${k}`);
    if (!slider) return;
    if (Math.abs(slider.value / 1000 - w) > 1e-3) slider.value = Math.round(1000 * w);
    slider.setAttribute("aria-valuetext", describe(state.weights));
    slider.style.setProperty("--thumb", M === 2 ? mix(state.weights) : colourOf(k));
    if (M > 2) slider.style.setProperty("--track", `linear-gradient(90deg, ${colourOf(k)} ${100 * w}%, var(--line) ${100 * w}%)`);
  });
}

/* ---------------------------------------------------------------- choosing */

/** Make a policy or blend the chosen one; whatever chose it, the slider and the preference follow. */
function choose(id, isFromPreference = false) {
  if (id === state.id) return;
  state.id = id;
  const member = BY_ID.get(id);
  if (member && !isFromPreference) state.weights = preferenceFor(member);
  showSlider();
  showChosen();
  showPictures();
  if (searchSvg?.contains(document.activeElement)) ring(searchSvg, POLICIES.has(id) ? coordinates(POLICIES.get(id)) : null);
  else drawSearch();
  showAncestry();
  markChosen();
  for (const row of document.querySelectorAll("tr[data-policy]")) row.classList.toggle("is-selected", row.dataset.policy === id);
  remember();
}

function step(by) {
  const next = MEMBERS[indexOf(state.id) + by];
  if (next) choose(next.id);
}

/** The choice as the end of an address: #id, or #id&pin=id. */
const addressOf = () => `#${state.id}${state.pinned === null ? "" : `&pin=${state.pinned}`}`;

/** Keep the choice in the address, so that the page loaded again shows it. */
function remember() {
  if (!document.documentElement.dataset.ready) return; // the page's own first choice
  try {
    history.replaceState(null, "", addressOf());
  } catch {
    // a page without an address of its own, such as a preview: it just has no links
  }
}

/** What the address asks for; false if that is no point of this run. */
function recall() {
  const [id, pin] = location.hash.slice(1).split("&pin=");
  const isKnown = BY_ID.has(id) || POLICIES.has(id);
  if (!isKnown) return false;
  state.pinned = BY_ID.has(pin) ? pin : null;
  if (id === state.id) setPinned(state.pinned);
  else choose(id);
  return true;
}
