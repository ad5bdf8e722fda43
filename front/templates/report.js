/* The start of the page, and its smaller parts: ancestry, generations, axes, light and dark. */
"use strict";

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
      const item = element("li", { class: `ancestor${isLater ? " is-later" : ""}` }, element("b", {}, titleOf(d.policy)), element("span", { class: "cut", title: where }, where));
      const own = thumbs("selection", d.policy, 4);
      if (own) item.append(own);
      if (d.generation >= 0) item.append(weightsBar(d.weights));
      const numbers = element("dl");
      d.returns.forEach((value, k) => numbers.append(element("dt", {}, LABELS[k].text), element("dd", {}, withUnit(LABELS[k], shown(LABELS[k], value, d.std_error[k])))));
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

function buildAxes() {
  if (M === 2) return;
  $("axes").hidden = false;
  for (const axis of ["x", "y"]) {
    const select = element("select", { id: `axis-${axis}` }, ...LABELS.map((label, k) => element("option", { value: k }, label.text)));
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
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("mode").addEventListener("change", (event) => {
  state.mode = event.target.value;
  buildSlider();
});
$("view").addEventListener("change", (event) => setView(event.target.value));
$("wipe").addEventListener("input", () => setWipe($("wipe").value));
$("lightbox-previous").addEventListener("click", () => turnLightbox(-1));
$("lightbox-next").addEventListener("click", () => turnLightbox(1));
$("lightbox-close").addEventListener("click", () => $("lightbox").close());
$("lightbox").addEventListener("click", (event) => {
  if (event.target === $("lightbox")) $("lightbox").close();
});
$("lightbox").addEventListener("keydown", (event) => {
  if (event.target.type === "radio") return;
  if (event.key === "ArrowRight") turnLightbox(1);
  if (event.key === "ArrowLeft") turnLightbox(-1);
});
$("size").addEventListener("change", (event) => {
  lightbox.size = event.target.value;
  showLightbox();
});
window.addEventListener("hashchange", recall);

if (M > 3) {
  state.mode = "preference";
  $("mode").hidden = true;
}
buildAxes();
buildPairs();
buildStrip();
buildSlider();
drawAll();
setWipe(50);
$("pictures").dataset.view = state.view;
if (!recall()) choose(firstChoice());
let lastWidth = window.innerWidth;
new ResizeObserver(() => {
  if (Math.abs(window.innerWidth - lastWidth) < 2) return;
  lastWidth = window.innerWidth;
  drawAll();
}).observe(document.body);
document.documentElement.dataset.ready = "true";
