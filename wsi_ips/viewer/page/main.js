// The page: worklist on the left, slide in the middle, layers, tiles and review on the right.

import * as api from "./api.js";
import { Controls } from "./controls.js";
import { element, probability } from "./format.js";
import { Gallery } from "./gallery.js";
import { Layer } from "./layer.js";
import * as link from "./link.js";
import { numbersOf, Pane } from "./pane.js";
import { ReviewForm } from "./review.js";
import { TileTable } from "./tiles.js";
import { Worklist } from "./worklist.js";

const $ = (id) => document.getElementById(id);
const TILE_ON_SCREEN_PX = 220; // side of a tile after moving to it
const LINK_DELAY_MS = 250;

const state = { run: null, slide: null, layers: [], table: null, side: false, opening: 0, leader: null };

const announce = (text) => {
  $("announce").textContent = text;
};

const listener = {
  lead: (pane) => {
    state.leader = pane;
  },
  moved: (pane) => {
    if (state.side && pane === state.leader) panes.find((other) => other !== pane).follow(pane);
    if (pane === panes[0]) rememberSoon();
  },
  hover: (pane, tile) => {
    if (!state.side) return;
    const other = panes.find((one) => one !== pane);
    if (tile === null) {
      if (other.hovered !== null) other.mark(null);
      return;
    }
    other.hovered = tile; // the frame in both panes, the numbers only under the pointer
    other.tip.hidden = true;
    other.redraw();
  },
  failed: (url) => explainTile(url),
};

const panes = [new Pane("Slide", listener), new Pane("Slide, right", listener)];
const controls = panes.map(
  (pane, number) =>
    new Controls(number ? "Right" : "Layer", number ? "b" : "a", {
      choose: () => {
        pane.show(controls[number].layer);
        remember({ replace: true });
      },
      change: () => {
        for (const one of controls) if (one !== controls[number]) one.draw();
        for (const one of panes) one.redraw();
      },
    }),
);
const worklist = new Worklist((id) => show(id));
const gallery = new Gallery((tile, rank) => flyTo(tile, rank));
const reviews = new ReviewForm((id, review) => {
  const entry = worklist.find(id);
  if (entry) entry.review = review;
  worklist.draw();
});

async function begin() {
  setTheme(localStorage.getItem("theme"));
  $("panes").append(...panes.map((pane) => pane.node));
  panes[1].node.hidden = true;
  panes[0].start();
  drawSwitches();
  $("layers").append(...controls.map((one) => one.node), switches.outlines.node, switches.contour.node);
  controls[1].node.hidden = true;
  connect();
  try {
    state.run = await api.worklist();
  } catch (error) {
    problem(`The worklist cannot be read: ${error.message}`);
    return;
  }
  document.title = `${state.run.title} · wsi-ips`;
  $("title").textContent = state.run.title;
  $("subtitle").textContent = state.run.model_id ? `model ${state.run.model_id}` : "";
  fillDownloads($("run-downloads"), null, state.run.downloads, state.run.can_review);
  worklist.fill(state.run.slides, state.run.classes);
  await follow();
}

/** Show what the URL says; without a slide, the first of the list. */
async function follow() {
  const wanted = link.read();
  const id = wanted.slide ?? worklist.shown[0]?.slide_id;
  if (!id) {
    problem("There is no slide to show.");
    return;
  }
  if (id !== state.slide?.slide_id) await show(id, wanted);
  else place(wanted);
}

async function show(id, wanted = null) {
  const opening = ++state.opening;
  const entry = worklist.find(id);
  worklist.setCurrent(id);
  problem(null);
  if (!entry) {
    clear(id);
    problem(`There is no slide “${id}” in this list.`);
    return;
  }
  reviews.fill(id, entry.review, state.run.can_review);
  let slide;
  let table = null;
  let layers = [];
  try {
    slide = await api.slide(id);
    const kinds = slide.layers.map((described) => described.kind);
    const [buffer, ...values] = await Promise.all([
      slide.tiles ? api.tiles(id) : null,
      ...kinds.map((kind) => api.layer(id, kind)),
    ]);
    if (slide.tiles) table = new TileTable(slide.tiles, buffer);
    layers = slide.layers.map((described, number) => new Layer(described, values[number]));
  } catch (error) {
    if (opening !== state.opening) return;
    clear(id, entry);
    problem(`${id} cannot be shown: ${error.message}`);
    return;
  }
  if (opening !== state.opening) return; // another slide was chosen in the meantime
  keepSettings(layers);
  Object.assign(state, { slide, table, layers, version: entry.version });
  const [first = "", second = ""] = layers.filter((layer) => layer.from_model).map((layer) => layer.kind);
  const kinds = [wanted ? wanted.layer : controls[0].kind || first, wanted?.right || controls[1].kind || second];
  if (wanted && !wanted.layer && wanted.x === null) kinds[0] = first;
  controls.forEach((one, number) => one.fill(layers, slide.mpp, kinds[number]));
  describe(entry, slide);
  gallery.fill(id, entry.version, table);
  panes.forEach((pane, number) => {
    pane.layer = controls[number].layer;
  });
  state.leader = panes[0];
  await panes[0].open(slide, entry.version, table);
  if (opening !== state.opening) return;
  if (wanted) place(wanted, true);
  if (wanted?.right && !state.side) await setSide(true);
  else if (state.side) await openRight();
  if (!wanted) remember({ replace: false });
  announce(`${id} is shown.`);
}

/** Keep thresholds and opacities when the slide changes. */
function keepSettings(layers) {
  for (const layer of layers) {
    const before = state.layers.find((one) => one.kind === layer.kind);
    if (!before) continue;
    layer.opacity = before.opacity;
    layer.setThreshold(before.threshold);
  }
}

function place(wanted, immediately = false) {
  if (wanted.x === null || wanted.y === null || !panes[0].image) return;
  state.leader = panes[0];
  const [width, height] = state.slide.size;
  const inside = (value, most) => Math.min(Math.max(value, 0), most);
  const zoom = inside(wanted.zoom || 1, 40) || 1;
  panes[0].goTo({ x: inside(wanted.x, width), y: inside(wanted.y, height), zoom }, immediately);
}

function clear(id, entry = null) {
  Object.assign(state, { slide: { slide_id: id }, layers: [], table: null });
  for (const pane of panes) if (pane.viewer) pane.close();
  for (const one of controls) one.fill([], null, "");
  gallery.fill(id, "", null);
  reviews.fill(id, entry?.review ?? null, Boolean(entry) && state.run.can_review);
  describe(entry ?? { slide_id: id }, null);
}

function describe(entry, slide) {
  $("about-name").textContent = entry.slide_id;
  const positive = state.run.classes.at(-1);
  const says = entry.probability ?? null;
  $("verdict").replaceChildren();
  if (says !== null) {
    $("verdict").append(`${positive} `, element("b", {}, probability(says)), ` → ${entry.predicted}`);
  }
  const rows = [];
  if (entry.label) rows.push(["label", entry.label + (entry.split ? ` (${entry.split})` : "")]);
  if (entry.state && entry.state !== "ok") rows.push(["state", entry.state]);
  if (slide) {
    const [width, height] = slide.size;
    const mm = slide.mpp ? ` · ${((width * slide.mpp[0]) / 1000).toFixed(1)} × ${((height * slide.mpp[1]) / 1000).toFixed(1)} mm` : "";
    rows.push(["size", `${width.toLocaleString("en")} × ${height.toLocaleString("en")} px${mm}`]);
    rows.push(["scale", slide.mpp ? `${slide.mpp[0].toPrecision(3)} µm/px` : `none: ${slide.mpp_source}`]);
    rows.push(...slide.facts);
    if (slide.outlines) rows.push(["lesions", String(slide.outlines.length)]);
  }
  $("facts").replaceChildren(
    ...rows.map(([name, text]) => element("div", {}, element("dt", {}, name), element("dd", {}, text))),
  );
  const notes = [...(entry.reason ? [entry.reason] : []), ...(slide?.notes ?? [])];
  $("notes").replaceChildren(...notes.map((note) => element("li", {}, note)));
  switches.outlines.node.hidden = !slide?.outlines?.length;
  switches.contour.node.hidden = !state.layers.length;
  fillDownloads($("slide-downloads"), entry.slide_id, slide?.downloads ?? [], false);
  $("files").hidden = !slide?.downloads.length;
}

function fillDownloads(node, id, files, hasReviews) {
  const links = files.map((file) => element("a", { href: api.downloadUrl(id, file.name), download: file.name }, file.title));
  if (hasReviews) links.push(element("a", { href: "/reviews.csv", download: "reviews.csv" }, "Reviews (CSV)"));
  node.replaceChildren(...links);
  node.hidden = !links.length;
}

function flyTo(tile, rank) {
  const centre = state.table.centre(tile);
  const zoom = TILE_ON_SCREEN_PX / Math.max(...state.table.footprint);
  state.leader = panes[0];
  panes[0].goTo({ ...centre, zoom });
  for (const pane of panes) {
    pane.hovered = tile;
    pane.redraw();
  }
  const numbers = numbersOf(state.table, tile).map((row) => row.join(" "));
  announce(`Top tile ${rank + 1}: ${numbers.join(", ")}`);
}

async function setSide(on) {
  state.side = on;
  $("side").setAttribute("aria-pressed", on);
  $("stage").classList.toggle("split", on);
  panes[1].node.hidden = !on;
  controls[1].node.hidden = !on;
  controls[0].node.firstChild.textContent = on ? "Left" : "Layer";
  if (on && !panes[1].viewer) panes[1].start();
  if (panes[0].slide) panes[0].sizeNavigator();
  if (on && state.slide?.size) await openRight();
  remember({ replace: true });
}

async function openRight() {
  panes[1].layer = controls[1].layer;
  await panes[1].open(state.slide, state.version, state.table);
  state.leader = panes[0];
  panes[1].follow(panes[0]);
}

/** Ask the server why a tile failed; an image element does not say. */
async function explainTile(url) {
  if (!url) return;
  try {
    const response = await fetch(url);
    if (!response.ok) problem(`Part of the slide cannot be shown: ${(await response.json()).error}`);
  } catch {
    problem("The server does not answer. Is `wsi-ips view` still running?");
  }
}

function problem(text) {
  $("problem").textContent = text ?? "";
  $("problem").hidden = text === null;
}

let waiting = 0;

function rememberSoon() {
  clearTimeout(waiting);
  waiting = setTimeout(() => remember({ replace: true }), LINK_DELAY_MS);
}

function remember(how) {
  if (!state.slide) return;
  const layer = controls[0].kind || "he";
  const right = state.side ? controls[1].kind || "he" : null;
  link.write({ slide: state.slide.slide_id, ...panes[0].place(), layer, right }, how);
}

/** Show the numbers of the tile at the centre, for keyboard users. */
function tellMiddle() {
  const place = panes[0].place(true);
  const tile = place && state.table?.at(place.x, place.y);
  if (tile === null || tile === undefined) {
    announce("No tile at the centre of the view.");
    return;
  }
  const { clientWidth, clientHeight } = panes[0].node;
  panes[0].mark(tile, clientWidth / 2, clientHeight / 2);
  announce(numbersOf(state.table, tile).map((row) => row.join(" ")).join(", "));
}

const switches = {};

function drawSwitches() {
  for (const [name, title, key] of [
    ["outlines", "Lesion outlines", "O"],
    ["contour", "Contour at the threshold", "C"],
  ]) {
    const input = element("input", { type: "checkbox", id: `switch-${name}` });
    input.checked = panes[0].options[name];
    input.addEventListener("change", () => {
      for (const pane of panes) {
        pane.options[name] = input.checked;
        pane.redraw();
      }
    });
    const node = element("label", { class: "switch", title: `${title} (${key})` }, input, element("span", {}, title));
    node.hidden = true;
    switches[name] = { input, node };
  }
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

function toggleTheme() {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : window.matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = dark ? "light" : "dark";
  localStorage.setItem("theme", theme);
  setTheme(theme);
}

function step(by) {
  const id = worklist.beside(by);
  if (id) show(id);
}

function fullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else $("stage").requestFullscreen?.();
}

function showTab(name) {
  document.body.dataset.tab = name;
  for (const button of document.querySelectorAll(".tabs button")) {
    button.setAttribute("aria-pressed", button.dataset.show === name);
  }
}

const SHORTCUTS = [
  ["1 – 9", "H&E and the layers, in the order of the list"],
  ["J  K", "next and previous slide"],
  ["N  P", "next and previous top tile"],
  ["[  ]", "lower and higher threshold"],
  ["{  }", "less and more opacity"],
  ["Arrows  +  −  0", "move, zoom, whole slide (in the slide view)"],
  ["M", "numbers of the tile at the centre"],
  ["S", "two layers side by side"],
  ["O  C", "lesion outlines, contour at the threshold"],
  ["G  X", "agree, disagree"],
  ["/", "search the worklist"],
  ["F  D  ?", "full screen, light or dark, this list"],
];

const active = () => controls[state.side && state.leader === panes[1] ? 1 : 0];
const ACTIONS = {
  j: () => step(1),
  k: () => step(-1),
  n: () => gallery.step(1),
  p: () => gallery.step(-1),
  "[": () => active().nudge("threshold", -5),
  "]": () => active().nudge("threshold", 5),
  "{": () => active().nudge("opacity", -10),
  "}": () => active().nudge("opacity", 10),
  "+": () => panes[0].image && (state.leader ?? panes[0]).zoomBy(1.5),
  "-": () => panes[0].image && (state.leader ?? panes[0]).zoomBy(1 / 1.5),
  0: () => panes[0].image && (state.leader ?? panes[0]).home(),
  m: tellMiddle,
  s: () => setSide(!state.side),
  o: () => switches.outlines.input.click(),
  c: () => switches.contour.input.click(),
  g: () => reviews.say("agree"),
  x: () => reviews.say("disagree"),
  "/": () => {
    showTab("worklist");
    worklist.search.focus();
  },
  f: fullScreen,
  d: toggleTheme,
  "?": () => $("help").showModal(),
};

function connect() {
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("side").addEventListener("click", () => setSide(!state.side));
  $("full").addEventListener("click", fullScreen);
  $("theme").addEventListener("click", toggleTheme);
  $("keys").addEventListener("click", () => $("help").showModal());
  const rows = SHORTCUTS.map(([keys, text]) =>
    element("tr", {}, element("th", { scope: "row" }, ...keys.split("  ").map((key) => element("kbd", {}, key))), element("td", {}, text)),
  );
  $("shortcuts").tBodies[0].append(...rows);
  for (const button of document.querySelectorAll(".tabs button")) {
    button.addEventListener("click", () => showTab(button.dataset.show));
  }
  showTab("layers");
  window.addEventListener("hashchange", follow);
  window.addEventListener("popstate", follow);
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("textarea, select, input:not([type=range], [type=radio], [type=checkbox])");
    if (event.key === "Escape" && typing) event.target.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
    const inSlide = event.target.closest(".osd") && ["+", "-", "0"].includes(event.key); // OpenSeadragon handles them
    const digit = /^[1-9]$/.test(event.key) ? Number(event.key) : 0;
    const action = digit ? () => active().chooseKey(digit) : ACTIONS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action || inSlide) return;
    event.preventDefault();
    action();
  });
}

/** For tests: where the view is, and what is shown. */
window.wsiIps = { state, panes, controls };

begin();
