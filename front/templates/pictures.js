/* The pictures: the chosen point beside the base model or a pinned point, enlarged, and of all members. */
"use strict";

const BLINK = matchMedia("(prefers-reduced-motion: reduce)").matches ? 2500 : 900; // milliseconds
const pairs = []; // one per prompt: the nodes that change as another point is chosen

/** What the chosen point is compared with. */
const otherId = () => state.pinned ?? "base";

/** The pictures to show: [of the other point, of the chosen point], and the prompts. */
function compared() {
  const which = setOf(state.id);
  return { prompts: DATA.prompts[which], sides: [otherId(), state.id].map((id) => ({ id, own: pictures(which, id) })) };
}

/* ---------------------------------------------------------------- pairs */

function buildPairs() {
  const grid = $("pictures");
  const { length } = DATA.prompts[DATA.set];
  if (!pictures(DATA.set, "base").length) {
    grid.replaceChildren(element("p", { class: "empty" }, "This run kept no pictures."));
    return;
  }
  grid.style.setProperty("--columns", length <= 4 ? length : Math.min(Math.ceil(length / 2), 8));
  grid.style.setProperty("--columns-of-one", Math.max(Math.floor(Math.sqrt(length + 1)), 1));
  for (let i = 0; i < length; i += 1) {
    const images = ["other", "chosen"].map((side) => {
      const image = picture("data:,", "");
      image.classList.add(`of-${side}`);
      return image;
    });
    const button = element("button", { type: "button", class: "pair-pictures" }, ...images);
    button.addEventListener("click", () => openLightbox(i));
    const caption = element("figcaption");
    grid.append(element("figure", { class: "pair" }, button, caption));
    pairs.push({ images, button, caption });
  }
  grid.addEventListener("pointermove", (event) => {
    const box = event.target.closest(".pair-pictures")?.getBoundingClientRect();
    if (state.view === "wipe" && box) setWipe((100 * (event.clientX - box.left)) / box.width);
  });
}

function showPictures() {
  const { prompts, sides } = compared();
  $("pictures").style.setProperty("--chosen-colour", mix((BY_ID.get(state.id) ?? POLICIES.get(state.id)).weights));
  $("key-other").textContent = `${titleOf(otherId())}${state.view === "side" ? ", above" : ""}`;
  $("pictures-of").textContent = `${titleOf(state.id)}${state.view === "side" ? ", below" : ""}`;
  pairs.forEach(({ images, button, caption }, i) => {
    const prompt = prompts[i] ?? "";
    caption.textContent = prompt;
    caption.title = prompt;
    button.setAttribute("aria-label", `Enlarge: ${prompt}`);
    images.forEach((image, side) => {
      const { id, own } = sides[side];
      image.classList.toggle("is-missing", !own[i]);
      image.src = own[i] ?? "data:,";
      image.alt = own[i] ? `${titleOf(id)}: ${prompt}` : `${titleOf(id)}: no picture`;
    });
  });
  showLightbox();
  showStrip();
}

/* ---------------------------------------------------------------- wipe and blink */

function setWipe(place) {
  $("wipe").value = place;
  $("pictures").style.setProperty("--wipe", `${Math.min(Math.max(place, 0), 100)}%`);
}

function setView(view) {
  state.view = view;
  const grid = $("pictures");
  grid.dataset.view = view;
  $("wipe").hidden = view !== "wipe";
  clearInterval(setView.timer);
  showSide(true);
  if (view === "blink") setView.timer = setInterval(() => showSide(grid.classList.contains("shows-other")), BLINK);
  showPictures();
}

/** While blinking: show the chosen point's pictures, or the other's. */
function showSide(isChosen) {
  $("pictures").classList.toggle("shows-other", !isChosen);
  const isBlinking = state.view === "blink";
  document.querySelector(".key-other").classList.toggle("is-away", isBlinking && isChosen);
  document.querySelector(".key-chosen").classList.toggle("is-away", isBlinking && !isChosen);
}

/* ---------------------------------------------------------------- lightbox */

const lightbox = { prompt: 0, size: "enlarged" };

function openLightbox(i) {
  lightbox.prompt = i;
  $("lightbox").showModal();
  showLightbox();
}

function turnLightbox(by) {
  const { length } = pairs;
  lightbox.prompt = (lightbox.prompt + by + length) % length;
  showLightbox();
}

function showLightbox() {
  if (!$("lightbox").open) return;
  const { prompts, sides } = compared();
  const i = lightbox.prompt;
  const [width, height] = DATA.drawn_size;
  $("lightbox-prompt").textContent = prompts[i];
  $("lightbox-count").textContent = `${i + 1} of ${pairs.length}`;
  const figures = sides.filter(({ own }) => own[i]).map(({ id, own }) => {
    const image = element("img", { src: own[i], alt: `${titleOf(id)}: ${prompts[i]}`, decoding: "sync" });
    image.addEventListener("load", () => fit(image));
    const isShrunk = element("small");
    image.addEventListener("load", () => {
      isShrunk.textContent = image.naturalWidth < width ? `, stored here as ${image.naturalWidth} × ${image.naturalHeight}` : "";
    });
    return element("figure", {}, image, element("figcaption", {}, element("b", {}, titleOf(id)), element("small", {}, ` drawn as ${width} × ${height} pixels`), isShrunk));
  });
  $("enlarged").replaceChildren(...figures);
}

/** One pixel of the picture for one of the page; enlarged, a small picture keeps its squares. */
function fit(image) {
  const isSmall = image.naturalWidth <= 128;
  let scale = 1;
  if (lightbox.size === "enlarged") {
    const figures = $("enlarged").children.length;
    const isNarrow = innerWidth < 700; // there they are one above the other
    const [wide, high] = [Math.min(0.96 * innerWidth, 1440) - 60, innerHeight - 190];
    const room = isNarrow ? Math.min(wide, high / figures) : Math.min(wide / figures - 16, high);
    const most = Math.max(room / image.naturalWidth, 1);
    scale = isSmall ? Math.floor(most) : Math.min(most, 2);
  }
  image.style.width = `${image.naturalWidth * scale}px`;
  image.style.imageRendering = isSmall ? "pixelated" : "auto";
}

/* ---------------------------------------------------------------- the strip of all members */

const strip = { prompt: 0, nodes: new Map() };

function buildStrip() {
  const prompts = DATA.prompts[DATA.set];
  const base = { ...DATA.base, losses: [] };
  if (!pictures(DATA.set, "base").length) {
    $("members").hidden = true;
    return;
  }
  const select = $("strip-prompt");
  select.append(...prompts.map((prompt, i) => element("option", { value: i }, prompt)));
  select.addEventListener("change", () => {
    strip.prompt = Number(select.value);
    showStrip();
  });
  const members = BY_ID.has("base") ? MEMBERS : [base, ...MEMBERS];
  for (const member of members) {
    const image = picture("data:,", "");
    const numbers = LABELS.map((label, k) => element("small", { title: `${label.text} [${label.unit}]` }, swatch(k), brief(label, member.returns[k], member.std_error[k])));
    const mark = member.losses.length ? element("span", { class: "lost", title: member.losses.join("; ") }, "⚠") : null;
    const button = element("button", { type: "button", class: "strip-member" }, image, element("span", {}, element("b", {}, titleOf(member.id)), mark), ...numbers);
    if (BY_ID.has(member.id)) button.addEventListener("click", () => choose(member.id));
    else button.disabled = true;
    $("strip").append(element("li", {}, button));
    strip.nodes.set(member.id, { button, image });
  }
}

function showStrip() {
  const prompt = DATA.prompts[DATA.set][strip.prompt];
  for (const [id, { button, image }] of strip.nodes) {
    const source = pictures(DATA.set, id)[strip.prompt] ?? "data:,";
    if (image.getAttribute("src") !== source) image.src = source;
    image.alt = `${titleOf(id)}: ${prompt}`;
    button.classList.toggle("is-selected", id === state.id);
    button.setAttribute("aria-pressed", id === state.id);
  }
  const chosen = strip.nodes.get(state.id)?.button;
  const list = $("strip");
  if (chosen) list.scrollLeft = chosen.offsetLeft - (list.clientWidth - chosen.offsetWidth) / 2;
}
