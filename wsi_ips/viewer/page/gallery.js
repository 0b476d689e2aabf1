// Tiles with the highest scores, as the model sees them; a click moves the view there.

import * as api from "./api.js";
import { element, probability } from "./format.js";

const COUNT = 24;

export class Gallery {
  /** @param chosen  called with a tile */
  constructor(chosen) {
    this.chosen = chosen;
    this.section = document.getElementById("top");
    this.list = document.getElementById("gallery");
    this.by = document.getElementById("top-by");
    this.by.addEventListener("change", () => this.draw());
    this.tiles = [];
    this.current = -1;
  }

  fill(id, version, table) {
    Object.assign(this, { id, version, table, current: -1 });
    this.ranked = table?.shown.filter((column) => column.ranked) ?? [];
    this.section.hidden = !this.ranked.length;
    const before = this.by.value;
    this.by.replaceChildren(...this.ranked.map(({ name, title }) => element("option", { value: name }, title)));
    if (this.ranked.some(({ name }) => name === before)) this.by.value = before;
    this.draw();
  }

  draw() {
    this.tiles = this.section.hidden ? [] : this.table.best(this.by.value, COUNT);
    this.current = -1;
    this.list.replaceChildren(...this.tiles.map((tile, rank) => this.#item(tile, rank)));
  }

  /** Go to the next or previous tile. */
  step(by) {
    if (!this.tiles.length) return;
    this.#choose((this.current + by + this.tiles.length) % this.tiles.length);
  }

  #choose(rank) {
    this.current = rank;
    [...this.list.children].forEach((item, number) => {
      item.firstChild.setAttribute("aria-pressed", number === rank);
    });
    this.list.children[rank].scrollIntoView({ block: "nearest" });
    this.chosen(this.tiles[rank], rank);
  }

  #item(tile, rank) {
    const column = this.ranked.find(({ name }) => name === this.by.value);
    const value = this.table.columns[column.name][tile];
    const shown = column.shown_as === "rank" ? `#${rank + 1}` : probability(value);
    const [width, height] = this.table.patchPx;
    const image = element("img", { src: api.patchUrl(this.id, this.version, tile), alt: "", width, height, loading: "lazy" });
    const { x, y } = this.table.columns;
    const label = `Tile ${rank + 1}, ${column.title} ${probability(value)}, at ${x[tile]}, ${y[tile]}`;
    const attributes = { type: "button", "aria-label": label, "aria-pressed": false, "data-tile": tile, title: label };
    const button = element("button", { ...attributes, onclick: () => this.#choose(rank) }, image, element("span", {}, shown));
    button.setAttribute("aria-pressed", "false");
    return element("li", {}, button);
  }
}
