// Choice of a pane's layer, with opacity, threshold and legend.

import { element } from "./format.js";

export class Controls {
  /**
   * @param name      title of the group
   * @param id        makes element ids unique
   * @param listener  functions: choose(kind), change() after opacity or threshold
   */
  constructor(name, id, listener) {
    this.listener = listener;
    this.id = id;
    this.kind = "";
    this.layers = [];
    this.choices = element("div", { class: "choices" });
    this.legend = element("canvas", { class: "legend", role: "img" });
    this.marks = element("div", { class: "marks", "aria-hidden": "true" });
    this.opacity = this.#slider("Opacity", "opacity", () => {
      this.layer.opacity = this.opacity.input.valueAsNumber / 100;
    });
    this.threshold = this.#slider("Threshold", "threshold", () => {
      this.layer.setThreshold(this.threshold.input.valueAsNumber / 100);
    });
    this.found = element("p", { class: "quiet found" });
    this.settings = element("div", { class: "settings" });
    this.settings.append(this.legend, this.marks, this.threshold.node, this.opacity.node, this.found);
    this.node = element("fieldset", { class: "controls" }, element("legend", {}, name), this.choices, this.settings);
  }

  get layer() {
    return this.layers.find((layer) => layer.kind === this.kind) ?? null;
  }

  fill(layers, mpp, kind) {
    this.layers = layers;
    this.mpp = mpp;
    this.kind = layers.some((layer) => layer.kind === kind) ? kind : "";
    const kinds = ["", ...layers.map((layer) => layer.kind)];
    this.choices.replaceChildren(...kinds.map((one) => this.#choice(one)));
    this.draw();
  }

  choose(kind) {
    if (kind && !this.layers.some((layer) => layer.kind === kind)) return;
    this.kind = kind;
    for (const input of this.choices.querySelectorAll("input")) input.checked = input.value === kind;
    this.draw();
    this.listener.choose(kind);
  }

  /** Choose a layer by its digit on the keyboard; 1 is H&E alone. */
  chooseKey(digit) {
    const layer = this.layers.find((one) => one.key === digit);
    if (digit === 1 || layer) this.choose(layer?.kind ?? "");
  }

  /** Move the threshold or the opacity by a number of hundredths. */
  nudge(name, by) {
    const { input } = this[name];
    if (!this.layer) return;
    input.valueAsNumber += by;
    input.dispatchEvent(new Event("input"));
  }

  draw() {
    const { layer } = this;
    this.settings.hidden = layer === null;
    if (!layer) return;
    this.opacity.input.valueAsNumber = Math.round(layer.opacity * 100);
    this.threshold.input.valueAsNumber = Math.round(layer.threshold * 100);
    this.opacity.output.textContent = `${Math.round(layer.opacity * 100)} %`;
    this.threshold.output.textContent = layer.thresholdText();
    this.threshold.input.setAttribute("aria-valuetext", layer.thresholdText());
    layer.drawLegend(this.legend);
    this.legend.setAttribute("aria-label", `Colours of ${layer.title}, from ${layer.legend.join(", ")}`);
    this.marks.replaceChildren(...layer.legend.map((text) => element("span", {}, text)));
    const area = layer.area(this.mpp);
    const scale = layer.comparable ? "" : "Relative within this slide. ";
    this.found.textContent = area === null ? scale : `${scale}${layer.verb}: ${area < 10 ? area.toFixed(2) : area.toFixed(1)} mm²`;
  }

  #choice(kind) {
    const { title, key } = this.layers.find((layer) => layer.kind === kind) ?? { title: "H&E", key: 1 };
    const attributes = { type: "radio", name: `layer-${this.id}`, value: kind, onchange: () => this.choose(kind) };
    const input = element("input", attributes);
    input.checked = kind === this.kind;
    return element("label", { title: `${title} (${key})` }, input, element("span", {}, title));
  }

  #slider(title, name, change) {
    const id = `${name}-${this.id}`;
    const input = element("input", { type: "range", id, min: 0, max: 100, step: 1 });
    const output = element("output", { for: id });
    input.addEventListener("input", () => {
      change();
      this.draw();
      this.listener.change();
    });
    const label = element("label", { for: id }, title);
    return { input, output, node: element("div", { class: "slider" }, label, input, output) };
  }
}
