// One view of a slide: OpenSeadragon, with a canvas above it for map, outlines and hovered tile.

import * as api from "./api.js";
import { element, length, magnification, probability, roundLength } from "./format.js";

const OpenSeadragon = window.OpenSeadragon;
const CALM = window.matchMedia("(prefers-reduced-motion: reduce)");
const MOVES = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "+", "=", "-", "_", "0"];

// OpenSeadragon adds a style element about focus outlines, which our content security policy forbids, unless it finds one
// that is marked. This empty element is marked; style.css has the rule.
const marked = document.createElementNS("urn:wsi-ips", "style");
marked.setAttribute("data-openseadragon-mobile-css", "true");
document.head.append(marked);

const NAVIGATOR_PX = 150; // longer side
const [FADES_FROM_PX, FADED_AT_PX, FADED] = [64, 192, 0.4];
const LEAST_GRID_PX = 10; // tiles smaller than this on the screen get no lines

export class Pane {
  /**
   * @param name      name for screen readers
   * @param listener  functions: lead(pane), moved(pane), hover(pane, tile), failed(url)
   */
  constructor(name, listener) {
    this.listener = listener;
    this.layer = null;
    this.hovered = null;
    this.slide = null;
    this.outlines = null;
    this.options = { outlines: true, contour: false };
    this.surface = element("div", { class: "osd" });
    this.canvas = element("canvas", { class: "overlay", "aria-hidden": "true" });
    this.bar = element("div", { class: "scale" }, element("span"), element("i"));
    this.times = element("div", { class: "times" });
    this.tip = element("div", { class: "tip", hidden: true });
    this.label = element("div", { class: "pane-label" });
    const foot = element("div", { class: "foot" }, this.bar, this.times);
    this.node = element("div", { class: "pane", role: "group", "aria-label": name });
    this.node.append(this.surface, this.label, foot, this.tip);
  }

  /** Start OpenSeadragon; the node must be on the page. */
  start() {
    this.viewer = OpenSeadragon({
      element: this.surface,
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: "TOP_RIGHT",
      navigatorWidth: `${NAVIGATOR_PX}px`,
      navigatorHeight: `${NAVIGATOR_PX}px`,
      navigatorAutoFade: false,
      animationTime: CALM.matches ? 0 : 0.7,
      springStiffness: 8,
      maxZoomPixelRatio: 4,
      minZoomImageRatio: 0.7,
      visibilityRatio: 0.3,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
      crossOriginPolicy: false,
      imageLoaderLimit: 6,
      drawer: "canvas",
      imageSmoothingEnabled: true,
    });
    this.context = this.canvas.getContext("2d");
    this.viewer.canvas.append(this.canvas); // above the slide, below the navigator
    for (const event of ["open", "update-viewport", "resize"]) this.viewer.addHandler(event, () => this.redraw());
    this.viewer.addHandler("viewport-change", () => this.listener.moved(this));
    this.viewer.addHandler("canvas-key", (event) => {
      event.preventDefaultAction = !MOVES.includes(event.originalEvent.key);
    });
    this.viewer.addHandler("tile-load-failed", (event) => this.listener.failed(event.tile?.getUrl?.() ?? null));
    for (const event of ["pointerdown", "wheel", "keydown", "focusin", "pointerenter"]) {
      this.node.addEventListener(event, () => this.listener.lead(this), { passive: true });
    }
    this.surface.addEventListener("pointermove", (event) => this.#point(event));
    this.surface.addEventListener("pointerleave", () => this.#unpoint());
    this.focusable = this.viewer.canvas;
    this.focusable.setAttribute("role", "application");
    this.focusable.setAttribute("aria-roledescription", "slide view");
    this.describe();
  }

  describe() {
    const map = this.layer ? `, ${this.layer.title} over it` : "";
    const id = element("span", { class: "id" }, this.slide ? `${this.slide.slide_id} · ` : "");
    this.label.replaceChildren(id, this.layer ? this.layer.title : "H&E");
    const how = "Arrow keys move, plus and minus zoom, 0 shows all; question mark lists all keys.";
    this.focusable?.setAttribute("aria-label", `${this.slide ? this.slide.slide_id : "No slide"}${map}. ${how}`);
  }

  /** Show a slide. */
  open(slide, version, table) {
    this.slide = slide;
    this.table = table;
    this.hovered = null;
    this.tip.hidden = true;
    this.outlines = slide.outlines ? outlinePath(slide.outlines) : null;
    const [width, height] = slide.size;
    const maxLevel = Math.ceil(Math.log2(Math.max(width, height)));
    const tileSource = {
      width,
      height,
      tileSize: slide.tile_px,
      tileOverlap: 0,
      minLevel: Math.min(7, maxLevel),
      maxLevel,
      getTileUrl: (level, x, y) => api.tileUrl(slide.slide_id, version, level, x, y),
    };
    this.describe();
    this.sizeNavigator();
    return new Promise((resolve) => {
      this.viewer.addOnceHandler("open", () => {
        const waits = () => this.node.classList.toggle("waits", !this.image?.getFullyLoaded());
        this.image.addHandler("fully-loaded-change", waits);
        waits();
        resolve();
      });
      this.viewer.open({ tileSource });
    });
  }

  /** Size the navigator to the pane and the shape of the slide. */
  sizeNavigator() {
    const [width, height] = this.slide.size;
    const side = Math.min(NAVIGATOR_PX, this.node.clientWidth * 0.3) / Math.max(width, height);
    this.viewer.navigator.setWidth(Math.max(24, Math.round(width * side)));
    this.viewer.navigator.setHeight(Math.max(24, Math.round(height * side)));
  }

  close() {
    this.slide = null;
    this.layer = null;
    this.viewer.close();
    this.redraw();
  }

  show(layer) {
    this.layer = layer;
    this.describe();
    this.redraw();
  }

  get image() {
    return this.viewer.world.getItemAt(0);
  }

  /** Centre of the view in level-0 pixels, and screen pixels per level-0 pixel. */
  place(current = false) {
    if (!this.image) return null;
    const middle = this.image.viewportToImageCoordinates(this.viewer.viewport.getCenter(current));
    return { x: middle.x, y: middle.y, zoom: this.image.viewportToImageZoom(this.viewer.viewport.getZoom(current)) };
  }

  /** Move to a centre (level-0 pixels) and a zoom (screen pixels per level-0 pixel). */
  goTo({ x, y, zoom }, immediately = false) {
    const { viewport } = this.viewer;
    const now = immediately || CALM.matches;
    const middle = this.image.imageToViewportCoordinates(x, y);
    const wanted = this.image.imageToViewportZoom(zoom);
    const size = viewport.getContainerSize();
    const width = 1 / wanted;
    const height = (width * size.y) / size.x;
    viewport.fitBounds(new OpenSeadragon.Rect(middle.x - width / 2, middle.y - height / 2, width, height), now);
  }

  home() {
    this.viewer.viewport.goHome(CALM.matches);
  }

  zoomBy(factor) {
    this.viewer.viewport.zoomBy(factor, null, CALM.matches);
  }

  /** Copy the view of another pane of the same size. */
  follow(other) {
    const { viewport } = this.viewer;
    viewport.zoomTo(other.viewer.viewport.getZoom(true), null, true);
    viewport.panTo(other.viewer.viewport.getCenter(true), true);
  }

  /** Level-0 position of a point of the pane. */
  positionAt(x, y) {
    return this.image?.viewerElementToImageCoordinates(new OpenSeadragon.Point(x, y)) ?? null;
  }

  /** Mark a tile, with its numbers beside it; null for none. */
  mark(tile, x = null, y = null) {
    if (tile === null) {
      this.hovered = null;
      this.tip.hidden = true;
    } else {
      this.tip.replaceChildren(...tileNumbers(this.table, tile));
      this.hovered = tile;
      this.tip.hidden = false;
      this.#placeTip(x, y);
    }
    this.redraw();
  }

  #placeTip(x, y) {
    const { clientWidth, clientHeight } = this.node;
    const left = x + 18 + this.tip.offsetWidth > clientWidth ? x - 18 - this.tip.offsetWidth : x + 18;
    const top = Math.min(y + 12, clientHeight - this.tip.offsetHeight - 8);
    this.tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
  }

  #point(event) {
    if (!this.table || !this.image) return;
    const frame = this.node.getBoundingClientRect();
    const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
    const position = this.positionAt(x, y);
    const tile = this.table.at(position.x, position.y);
    if (tile === null && this.hovered === null) return;
    this.mark(tile, x, y);
    this.listener.hover(this, tile);
  }

  #unpoint() {
    if (this.hovered !== null) this.mark(null);
    this.listener.hover(this, null);
  }

  redraw() {
    if (this.waiting || !this.viewer) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.#draw();
    });
  }

  #draw() {
    const { canvas, context } = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(this.node.clientWidth * ratio), Math.round(this.node.clientHeight * ratio)];
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!this.image || !this.slide) return;
    const corner = this.image.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const zoom = this.image.viewportToImageZoom(this.viewer.viewport.getZoom(true));
    const view = { scale: zoom * ratio, x: corner.x * ratio, y: corner.y * ratio, width, height, ratio };
    if (this.layer) this.#drawLayer(view);
    if (this.layer?.draws === "grid") this.#drawGrid(view);
    if (this.outlines && (this.options.outlines || this.layer?.draws === "outlines")) {
      this.#stroke(this.outlines, view, 0, 0, view.scale, view.scale);
    }
    if (this.hovered !== null) this.#drawHovered(view);
    this.#drawScale(zoom);
  }

  #drawLayer(view) {
    const { layer, context } = this;
    const [x0, y0] = layer.origin_px0;
    const [cellX, cellY] = layer.cell_px0.map((cell) => cell * view.scale); // screen pixels
    const [left, top] = [view.x + x0 * view.scale, view.y + y0 * view.scale];
    // Only the cells on the screen: when zoomed in, the whole map would be a million pixels wide.
    const first = [Math.max(0, Math.floor(-left / cellX)), Math.max(0, Math.floor(-top / cellY))];
    const last = [
      Math.min(layer.columns, Math.ceil((view.width - left) / cellX)),
      Math.min(layer.rows, Math.ceil((view.height - top) / cellY)),
    ];
    const [columns, rows] = [last[0] - first[0], last[1] - first[1]];
    if (columns <= 0 || rows <= 0) return;
    context.imageSmoothingEnabled = cellX < 1; // no blended colours between tiles
    context.globalAlpha = layer.opacity * fading(this.table.footprint[0] * this.place(true).zoom);
    context.drawImage(
      layer.canvas,
      ...[first[0], first[1], columns, rows],
      ...[left + first[0] * cellX, top + first[1] * cellY, columns * cellX, rows * cellY],
    );
    context.globalAlpha = 1;
    if (this.options.contour) this.#stroke(layer.contour(), view, x0, y0, cellX, cellY);
  }

  /** Draw a path with a unit of unitX x unitY screen pixels, black with a light edge: visible on dark and pale tissue. */
  #stroke(path, view, x0, y0, unitX, unitY) {
    const { context } = this;
    const scaled = new Path2D();
    const matrix = new DOMMatrix([unitX, 0, 0, unitY, view.x + x0 * view.scale, view.y + y0 * view.scale]);
    scaled.addPath(path, matrix);
    context.lineJoin = "round";
    for (const [colour, width] of [
      ["rgb(255 255 255 / 85%)", 4],
      ["#101014", 1.8],
    ]) {
      context.strokeStyle = colour;
      context.lineWidth = width * view.ratio;
      context.stroke(scaled);
    }
  }

  #drawGrid(view) {
    const { context, table } = this;
    const [width, height] = table.footprint.map((side) => side * view.scale);
    if (Math.min(width, height) < LEAST_GRID_PX * view.ratio) return;
    const { x, y } = table.columns;
    context.strokeStyle = "rgb(40 30 90 / 55%)";
    context.lineWidth = view.ratio;
    context.beginPath();
    for (let tile = 0; tile < table.count; tile++) {
      const [left, top] = [view.x + x[tile] * view.scale, view.y + y[tile] * view.scale];
      if (left > view.width || top > view.height || left + width < 0 || top + height < 0) continue;
      context.rect(left, top, width, height);
    }
    context.stroke();
  }

  #drawHovered(view) {
    const { context } = this;
    const box = this.table.box(this.hovered);
    const corners = [view.x + box.x * view.scale, view.y + box.y * view.scale];
    for (const [colour, width] of [
      ["rgb(0 0 0 / 80%)", 4],
      ["#ffd54a", 2],
    ]) {
      context.strokeStyle = colour;
      context.lineWidth = width * view.ratio;
      context.strokeRect(...corners, box.width * view.scale, box.height * view.scale);
    }
  }

  #drawScale(zoom) {
    const { mpp } = this.slide;
    this.bar.hidden = mpp === null;
    if (mpp === null) {
      this.times.textContent = `${(zoom * 100).toPrecision(2)} % · no scale`;
      return;
    }
    const umPerPx = mpp[0] / zoom;
    const um = roundLength(umPerPx, Math.min(180, this.node.clientWidth * 0.3));
    this.bar.lastChild.style.width = `${um / umPerPx}px`;
    this.bar.firstChild.textContent = length(um);
    this.times.textContent = `${magnification(umPerPx)} · ${umPerPx.toPrecision(3)} µm/px`;
  }
}

/** Opacity factor by tile size: colours fade when tiles are large on the screen, where people look at cells. */
function fading(tilePx) {
  const share = (tilePx - FADES_FROM_PX) / (FADED_AT_PX - FADES_FROM_PX);
  return 1 - (1 - FADED) * Math.min(1, Math.max(0, share));
}

function outlinePath(lesions) {
  const path = new Path2D();
  for (const ring of lesions.flat()) {
    ring.forEach(([x, y], number) => (number ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
  }
  return path;
}

const FORMATS = {
  number: probability,
  rank: (value) => {
    const top = Math.max(0.1, 100 * (1 - value));
    return `top ${top < 10 ? top.toFixed(1) : Math.round(top)} %`;
  },
  share: (value) => `${Math.round(100 * value)} % of the tile`,
  times: (value) => `${value.toPrecision(2)} ×`,
};

/** Numbers of a tile as rows of title and text. */
export function numbersOf(table, tile) {
  const { x, y } = table.columns;
  const rows = table.shown.map(({ name, title, shown_as }) => [title, FORMATS[shown_as](table.columns[name][tile])]);
  return [...rows, ["Tile", `${tile} at ${x[tile]}, ${y[tile]}`]];
}

function tileNumbers(table, tile) {
  return numbersOf(table, tile).map(([name, text]) =>
    element("div", {}, element("span", {}, name), element("b", {}, text)),
  );
}
